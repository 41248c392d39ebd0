use spegel_core::{FetchError, Key, PullKind, RefuseReason};

use super::*;
use crate::mirror::Failure;

const ATTEMPT: AttemptId = AttemptId(1);

pub(super) fn blob_head(length: usize, more: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n{more}\r\n").into_bytes()
}

#[tokio::test]
async fn blob_of_another_node_is_forwarded() {
    let (mut node, peer) = (Node::start().await, Node::start().await);
    let bytes = content(3_000_000);
    let digest = peer.add(&bytes);
    let client = asking(node.addr, "GET", &blob_uri(&digest), "");
    let pull = PullId(1);
    let requested = Input::PullRequested {
        pull,
        key: Key::of_digest(&digest),
        digest: Some(digest),
        kind: PullKind::Blob,
        whole: true,
    };
    assert_eq!(node.input().await, requested);
    node.fetch(pull, 1, peer.addr, 0);
    assert_eq!(
        node.input().await,
        Input::FetchAnswered { pull, attempt: ATTEMPT, body_bytes: 3_000_000, backlog_bytes: Some(0) }
    );
    node.forward(pull, 1);
    let (end, reported) = node.input_after_progress().await;
    assert_eq!(end, Input::FetchCompleted { pull, attempt: ATTEMPT, bytes: 3_000_000 - reported });
    let answer = seen(client).await;
    assert_eq!((answer.status, answer.body == bytes, answer.clean), (200, true, true));
    assert_eq!(answer.header("docker-content-digest"), Some(digest.to_string().as_str()));
    assert_eq!(answer.header("accept-ranges"), Some("bytes"));
    assert_eq!(answer.header("oci-namespace"), None);
    let text = node.metrics.encode();
    assert!(
        text.contains("spegel_mirror_requests_total{registry=\"docker.io\",cache=\"hit\"} 1\n"),
        "{text}"
    );
    assert!(text.contains("spegel_served_bytes_total{source=\"peer\"} 3000000\n"), "{text}");
}

#[tokio::test]
async fn part_of_a_blob_is_forwarded_as_the_client_asked_for_it() {
    let (mut node, peer) = (Node::start().await, Node::start().await);
    let bytes = content(1000);
    let digest = peer.add(&bytes);
    let client = asking(node.addr, "GET", &blob_uri(&digest), "Range: bytes=-10\r\n");
    let pull = node.pull_requested().await;
    node.fetch(pull, 1, peer.addr, 0);
    assert_eq!(
        node.input().await,
        Input::FetchAnswered { pull, attempt: ATTEMPT, body_bytes: 10, backlog_bytes: Some(0) }
    );
    node.forward(pull, 1);
    let answer = seen(client).await;
    assert_eq!((answer.status, answer.body.as_slice()), (206, &bytes[990..]));
    assert_eq!(answer.header("content-range"), Some("bytes 990-999/1000"));
}

#[tokio::test]
async fn tag_is_resolved_by_another_node_from_its_head_alone() {
    let (mut node, peer) = (Node::start().await, Node::start().await);
    let digest = peer
        .add(br#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#);
    let name = "docker.io/library/app:v1";
    peer.serving.perform(&Output::ServeTag { name: name.into(), digest });
    let client = asking(node.addr, "HEAD", &manifest_uri("v1"), "");
    let (pull, kind) = (PullId(1), PullKind::Head);
    let requested = Input::PullRequested { pull, key: Key::of(name), digest: None, kind, whole: false };
    assert_eq!(node.input().await, requested);
    node.fetch(pull, 1, peer.addr, 0);
    assert_eq!(
        node.input().await,
        Input::FetchAnswered { pull, attempt: ATTEMPT, body_bytes: 0, backlog_bytes: None }
    );
    node.forward(pull, 1);
    assert_eq!(node.input().await, Input::FetchCompleted { pull, attempt: ATTEMPT, bytes: 0 });
    let answer = seen(client).await;
    assert_eq!((answer.status, answer.body.len()), (200, 0));
    assert_eq!(answer.header("docker-content-digest"), Some(digest.to_string().as_str()));
    assert_eq!(answer.header("content-type"), Some("application/vnd.oci.image.index.v1+json"));
    assert_eq!(answer.header("content-length"), Some("88"));
}

#[tokio::test]
async fn peers_are_asked_as_the_go_implementation_asks() {
    let mut node = Node::start_with(basic_auth()).await;
    let digest = Digest::sha256_of(b"ab");
    let (addr, peer) = scripted_peer([&blob_head(2, ""), &b"ab"[..]].concat(), Then::Close).await;
    let credentials = "Authorization: Basic dXNlcjpzZWNyZXQ=\r\n";
    let client = asking(node.addr, "GET", &blob_uri(&digest), credentials);
    let pull = node.pull_requested().await;
    node.fetch(pull, 1, addr, 0);
    node.input().await;
    node.forward(pull, 1);
    assert_eq!(seen(client).await.text(), "ab");
    let request = peer.await.unwrap();
    let mut lines: Vec<_> = request.trim().lines().collect();
    assert_eq!(lines.remove(0), format!("GET {} HTTP/1.1", blob_uri(&digest)));
    let expected = [
        &format!("host: {addr}"),
        "user-agent: spegel",
        "x-spegel-mirrored: true",
        "accept: application/vnd.oci.image.manifest.v1+json",
        "accept: application/vnd.docker.distribution.manifest.v2+json",
        "accept: application/vnd.oci.image.index.v1+json",
        "accept: application/vnd.docker.distribution.manifest.list.v2+json",
        "authorization: Basic dXNlcjpzZWNyZXQ=",
    ];
    assert_eq!(
        lines.iter().map(|line| line.to_lowercase()).collect::<Vec<_>>(),
        expected.map(str::to_lowercase)
    );
}

#[tokio::test]
async fn transfer_that_breaks_goes_on_at_another_node_without_losing_a_byte() {
    for (range, first) in [("", 0), ("Range: bytes=1000-\r\n", 1000)] {
        let (mut node, peer) = (Node::start().await, Node::start().await);
        let bytes = content(2_000_000);
        let digest = peer.add(&bytes);
        let wanted = &bytes[first..];
        let head = match first {
            0 => blob_head(wanted.len(), ""),
            _ => format!(
                "HTTP/1.1 206 Partial Content\r\nContent-Length: {}\r\nContent-Range: bytes {first}-1999999/2000000\r\n\r\n",
                wanted.len()
            )
            .into_bytes(),
        };
        let (flaky, _) = scripted_peer([&head, &wanted[..700_001]].concat(), Then::Close).await;
        let client = asking(node.addr, "GET", &blob_uri(&digest), range);
        let pull = node.pull_requested().await;
        node.fetch(pull, 1, flaky, 0);
        node.input().await;
        node.forward(pull, 1);
        let (failed, skip) = node.input_after_progress().await;
        let cause = FetchError::Interrupted;
        assert_eq!(failed, Input::FetchFailed { pull, attempt: ATTEMPT, cause });
        assert_eq!(skip, 700_001);
        node.fetch(pull, 2, peer.addr, skip);
        let (attempt, body_bytes) = (AttemptId(2), wanted.len() as u64 - skip);
        assert_eq!(
            node.input().await,
            Input::FetchAnswered { pull, attempt, body_bytes, backlog_bytes: Some(0) }
        );
        node.forward(pull, 2);
        let (end, reported) = node.input_after_progress().await;
        assert_eq!(end, Input::FetchCompleted { pull, attempt, bytes: body_bytes - reported });
        let answer = seen(client).await;
        assert!(answer.body == wanted && answer.clean, "{} bytes", answer.body.len());
    }
}

#[tokio::test]
async fn stalled_transfer_is_moved_and_bytes_not_yet_reported_are_not_repeated() {
    let (mut node, peer) = (Node::start().await, Node::start().await);
    let bytes = content(100_000);
    let digest = peer.add(&bytes);
    let head = blob_head(bytes.len(), "");
    let (stalled, _) = scripted_peer([&head, &bytes[..60_000]].concat(), Then::Stall).await;
    let mut stream = connect(node.addr, &request("GET", &blob_uri(&digest), "")).await;
    let pull = node.pull_requested().await;
    node.fetch(pull, 1, stalled, 0);
    node.input().await;
    let (attempt, report_interval) = (ATTEMPT, Duration::from_secs(60));
    node.pulls.perform(&Output::Forward { pull, attempt, report_interval });
    let mut part = vec![0; 50_000];
    stream.read_exact(&mut part).await.unwrap();
    // The core knows of nothing yet.
    node.pulls.perform(&Output::CancelFetch { pull, attempt });
    node.fetch(pull, 2, peer.addr, 0);
    let attempt = AttemptId(2);
    assert_eq!(
        node.input().await,
        Input::FetchAnswered { pull, attempt, body_bytes: 100_000, backlog_bytes: Some(0) }
    );
    node.forward(pull, 2);
    let (end, reported) = node.input_after_progress().await;
    assert_eq!(end, Input::FetchCompleted { pull, attempt, bytes: 100_000 - reported });
    stream.read_to_end(&mut part).await.unwrap();
    assert!(part.ends_with(&bytes), "{} bytes", part.len());
}

#[tokio::test]
async fn body_goes_on_at_a_holder_that_was_asked_while_another_sent() {
    let (mut node, peer) = (Node::start().await, Node::start().await);
    let bytes = content(500_000);
    let digest = peer.add(&bytes);
    let (busy, _) =
        scripted_peer([&blob_head(bytes.len(), ""), &bytes[..300_000]].concat(), Then::Stall).await;
    let mut stream = connect(node.addr, &request("GET", &blob_uri(&digest), "")).await;
    let pull = node.pull_requested().await;
    node.fetch(pull, 1, busy, 0);
    node.input().await;
    node.forward(pull, 1);
    // Asked early: the client gets more of the first one until its answer is taken.
    let skip = 100_000;
    node.fetch(pull, 2, peer.addr, skip);
    let (mut answered, mut total) = (false, 0);
    while !answered || total < 300_000 {
        let input = node.input().await;
        if let Input::FetchProgressed { bytes, .. } = input {
            total += bytes;
            continue;
        }
        let (attempt, body_bytes) = (AttemptId(2), 500_000 - skip);
        assert_eq!(input, Input::FetchAnswered { pull, attempt, body_bytes, backlog_bytes: Some(0) });
        answered = true;
    }
    node.pulls.perform(&Output::CancelFetch { pull, attempt: ATTEMPT });
    node.forward(pull, 2);
    let (end, reported) = node.input_after_progress().await;
    let bytes_left = 500_000 - skip - reported;
    assert_eq!(
        end,
        Input::FetchCompleted { pull, attempt: AttemptId(2), bytes: bytes_left },
        "from the skip on"
    );
    let answer = read_to_end(&mut stream).await;
    assert!(answer.body == bytes && answer.clean, "{} bytes", answer.body.len());
    let history = node.pulls.history();
    while history.latest().is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let told = history.latest();
    let given: Vec<u64> = told[0].attempts.iter().map(|attempt| attempt.bytes).collect();
    assert_eq!((told[0].bytes(), given), (500_000, vec![300_000, 200_000]), "no byte is counted twice");
}

#[tokio::test]
async fn waiting_for_a_peer_is_reported_as_starving() {
    let mut node = Node::start().await;
    let digest = Digest::sha256_of(b"x");
    let (stalled, _) = scripted_peer([&blob_head(10, ""), &b"abc"[..]].concat(), Then::Stall).await;
    let _client = asking(node.addr, "GET", &blob_uri(&digest), "");
    let pull = node.pull_requested().await;
    node.fetch(pull, 1, stalled, 0);
    node.input().await;
    node.forward(pull, 1);
    let (mut total, mut hungry) = (0, Duration::ZERO);
    for _ in 0..4 {
        let Input::FetchProgressed { bytes, starved, .. } = node.input().await else {
            panic!("progress expected")
        };
        (total, hungry) = (total + bytes, hungry + starved);
    }
    assert_eq!(total, 3);
    assert!(hungry >= Duration::from_millis(150), "{hungry:?}");
}

#[tokio::test]
async fn truncated_transfer_ends_with_fin() {
    let mut node = Node::start().await;
    let bytes = content(500_000);
    let digest = Digest::sha256_of(&bytes);
    let (stalled, peer) =
        scripted_peer([&blob_head(bytes.len(), ""), &bytes[..400_000]].concat(), Then::Stall).await;
    let twice = request("GET", &blob_uri(&digest), "").repeat(2).replace("Connection: close\r\n", "");
    let mut stream = connect(node.addr, &twice).await;
    let pull = node.pull_requested().await;
    node.fetch(pull, 1, stalled, 0);
    node.input().await;
    node.forward(pull, 1);
    let mut total = 0;
    while total < 400_000 {
        let Input::FetchProgressed { bytes, .. } = node.input().await else { panic!("progress expected") };
        total += bytes;
    }
    // Nobody else has it: why it went no further is told all the same.
    let left = Some((PeerId::from_public_key(PEER), "stalled"));
    node.pulls.perform(&Output::Truncate { pull, reason: RefuseReason::HoldersExhausted, left });
    let answer = read_to_end(&mut stream).await;
    assert_eq!((answer.status, answer.clean), (200, true));
    assert!(answer.body == bytes[..400_000], "{} bytes", answer.body.len());
    timeout(PATIENCE, peer).await.expect("the connection to the peer is closed").unwrap();
    assert!(
        node.metrics.encode().contains("spegel_pull_truncations_total{reason=\"holders_exhausted\"} 1\n")
    );
    assert_eq!(node.pulls.running(), 0);
    let told = node.pulls.history().latest();
    assert_eq!(told[0].attempts[0].failure, Some(Failure::Left("stalled")));
}

#[tokio::test]
async fn refused_pull_is_a_404_at_once() {
    let mut node = Node::start().await;
    let digest = Digest::sha256_of(b"nowhere");
    let client = asking(node.addr, "GET", &blob_uri(&digest), "");
    let pull = node.pull_requested().await;
    let refuse = Output::Refuse { pull, reason: RefuseReason::NobodyHasIt, attempts: 0 };
    assert!(node.pulls.perform(&refuse));
    let answer = seen(client).await;
    let expected = format!(
        r#"{{"errors":[{{"code":"BLOB_UNKNOWN","detail":{{"attempts":0}},"message":"could not find peer for {digest}"}}]}}"#
    );
    assert_eq!((answer.status, answer.text()), (404, expected.as_str()));
    assert!(node.pulls.perform(&refuse), "orders for pulls that are over are ignored");
    let text = node.metrics.encode();
    assert!(
        text.contains("spegel_mirror_requests_total{registry=\"docker.io\",cache=\"miss\"} 1\n"),
        "{text}"
    );
}

#[tokio::test]
async fn client_that_has_no_more_to_ask_is_given_all_of_the_body() {
    let (mut node, peer) = (Node::start().await, Node::start().await);
    let bytes = content(8 << 20);
    let digest = peer.add(&bytes);
    // Of the node's own content, then of the peer's.
    for addr in [peer.addr, node.addr] {
        let mut stream = connect(addr, &request("GET", &blob_uri(&digest), "")).await;
        stream.shutdown().await.unwrap();
        if addr == node.addr {
            let pull = node.pull_requested().await;
            node.fetch(pull, 1, peer.addr, 0);
            node.input().await;
            node.forward(pull, 1);
        }
        let answer = read_to_end(&mut stream).await;
        assert!(answer.clean && answer.body == bytes, "{} bytes", answer.body.len());
    }
}

#[tokio::test]
async fn client_that_goes_away_abandons_the_pull() {
    let mut node = Node::start().await;
    let digest = Digest::sha256_of(b"x");
    // Before an answer: that it has not only stopped asking shows when it is given something.
    let (addr, peer) =
        scripted_peer([&blob_head(50_000_000, ""), &content(20_000_000)[..]].concat(), Then::Stall).await;
    let stream = connect(node.addr, &request("GET", &blob_uri(&digest), "")).await;
    let pull = node.pull_requested().await;
    drop(stream);
    node.fetch(pull, 1, addr, 0);
    node.input().await;
    node.forward(pull, 1);
    assert_eq!(node.input_after_progress().await.0, Input::PullAbandoned { pull });
    drop(peer);
    // In mid-body.
    let (addr, peer) =
        scripted_peer([&blob_head(50_000_000, ""), &content(20_000_000)[..]].concat(), Then::Stall).await;
    let mut stream = connect(node.addr, &request("GET", &blob_uri(&digest), "")).await;
    let pull = node.pull_requested().await;
    node.fetch(pull, 1, addr, 0);
    node.input().await;
    node.forward(pull, 1);
    stream.read_exact(&mut [0; 1000]).await.unwrap();
    drop(stream);
    assert_eq!(node.input_after_progress().await.0, Input::PullAbandoned { pull });
    timeout(PATIENCE, peer).await.expect("the connection to the peer is closed").unwrap();
}

#[tokio::test]
async fn slow_client_holds_back_the_peer() {
    let mut node = Node::start().await;
    let digest = Digest::sha256_of(b"x");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (total, written) = watch::channel(0_usize);
    let peer = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(&blob_head(1 << 30, "")).await.unwrap();
        let chunk = content(1 << 20);
        for _ in 0..1 << 10 {
            stream.write_all(&chunk).await.unwrap();
            total.send_modify(|total| *total += chunk.len());
        }
    });
    let mut stream = connect(node.addr, &request("GET", &blob_uri(&digest), "")).await;
    let pull = node.pull_requested().await;
    node.fetch(pull, 1, addr, 0);
    node.input().await;
    node.forward(pull, 1);
    stream.read_exact(&mut [0; 1]).await.unwrap();
    // Progress reports without bytes: everything is full.
    let (mut idle, mut starved_idle) = (0, Duration::ZERO);
    while idle < 5 {
        let Input::FetchProgressed { bytes, starved, .. } = node.input().await else {
            panic!("progress expected")
        };
        (idle, starved_idle) =
            if bytes == 0 { (idle + 1, starved_idle + starved) } else { (0, Duration::ZERO) };
    }
    assert_eq!(starved_idle, Duration::ZERO, "a slow client is not the peer's fault");
    let buffered = *written.borrow();
    assert!(buffered < 64 << 20, "{buffered} bytes were taken for a client that reads nothing");
    peer.abort();
}

#[tokio::test]
async fn bad_peers_are_told_apart() {
    let digest = Digest::sha256_of(b"x");
    let other = Digest::sha256_of(b"y");
    let text = |text: &str| text.as_bytes().to_vec();
    let cases: [(&str, Vec<u8>, FetchError); 10] = [
        ("absent", text("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"), FetchError::NotFound),
        ("busy", text("HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n"), FetchError::Refused { status: 503 }),
        ("moved", text("HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n"), FetchError::Refused { status: 302 }),
        ("garbage", text("SSH-2.0-OpenSSH_9.6\r\n\r\n"), FetchError::Malformed),
        ("huge head", blob_head(1, &format!("X: {}\r\n", "x".repeat(30_000))), FetchError::Malformed),
        ("many headers", blob_head(1, &"X: y\r\n".repeat(200)), FetchError::Malformed),
        ("no length", text("HTTP/1.1 200 OK\r\n\r\nabc"), FetchError::Malformed),
        (
            "chunked",
            text("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n"),
            FetchError::Malformed,
        ),
        ("other digest", blob_head(1, &format!("Docker-Content-Digest: {other}\r\n")), FetchError::Malformed),
        ("early close", text("HTTP/1.1 200 OK\r\nContent-"), FetchError::Interrupted),
    ];
    let mut node = Node::start().await;
    let client = asking(node.addr, "GET", &blob_uri(&digest), "");
    let pull = node.pull_requested().await;
    for (number, (name, answer, cause)) in (1..).zip(cases) {
        let (addr, _) = scripted_peer(answer, Then::Close).await;
        node.fetch(pull, number, addr, 0);
        let failed = Input::FetchFailed { pull, attempt: AttemptId(number), cause };
        assert_eq!(node.input().await, failed, "{name}");
    }
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    node.fetch(pull, 99, nobody, 0);
    let failed = Input::FetchFailed { pull, attempt: AttemptId(99), cause: FetchError::Connect };
    assert_eq!(node.input().await, failed);
    node.pulls.perform(&Output::Refuse { pull, reason: RefuseReason::HoldersExhausted, attempts: 11 });
    assert_eq!(seen(client).await.status, 404);
}

#[tokio::test]
async fn small_body_is_checked_before_any_of_it_is_forwarded() {
    let (mut node, honest) = (Node::start().await, Node::start().await);
    let bytes = content(5000);
    let digest = honest.add(&bytes);
    let wrong = [blob_head(5000, ""), vec![b'x'; 5000]].concat();
    let (liar, _) = scripted_peer(wrong, Then::Close).await;
    let short = [blob_head(5000, ""), vec![b'x'; 10]].concat();
    let (quitter, _) = scripted_peer(short, Then::Close).await;
    let client = asking(node.addr, "GET", &blob_uri(&digest), "");
    let pull = node.pull_requested().await;
    for (number, addr, cause) in [(1, liar, FetchError::WrongContent), (2, quitter, FetchError::Interrupted)]
    {
        node.fetch_checked(pull, number, addr, 0, 5000);
        let failed = Input::FetchFailed { pull, attempt: AttemptId(number), cause };
        assert_eq!(node.input().await, failed);
    }
    node.fetch_checked(pull, 3, honest.addr, 0, 5000);
    let attempt = AttemptId(3);
    assert_eq!(
        node.input().await,
        Input::FetchAnswered { pull, attempt, body_bytes: 5000, backlog_bytes: Some(0) }
    );
    node.forward(pull, 3);
    let (end, reported) = node.input_after_progress().await;
    assert_eq!(end, Input::FetchCompleted { pull, attempt, bytes: 5000 - reported });
    let answer = seen(client).await;
    assert_eq!((answer.status, answer.body == bytes, answer.clean), (200, true, true));
}

#[tokio::test]
async fn body_longer_than_is_to_be_checked_is_forwarded_unread() {
    let mut node = Node::start().await;
    let digest = Digest::sha256_of(b"something else");
    let (peer, _) = scripted_peer([blob_head(2, ""), b"xy".to_vec()].concat(), Then::Close).await;
    let client = asking(node.addr, "GET", &blob_uri(&digest), "");
    let pull = node.pull_requested().await;
    node.fetch_checked(pull, 1, peer, 0, 1);
    assert_eq!(
        node.input().await,
        Input::FetchAnswered { pull, attempt: ATTEMPT, body_bytes: 2, backlog_bytes: None }
    );
    node.forward(pull, 1);
    assert_eq!(seen(client).await.body, b"xy", "containerd checks it");
}

#[tokio::test]
async fn hedged_attempt_that_loses_is_dropped() {
    let (mut node, peer) = (Node::start().await, Node::start().await);
    let digest = peer.add(b"content");
    let (stalled, asked) = scripted_peer(Vec::new(), Then::Stall).await;
    let client = asking(node.addr, "GET", &blob_uri(&digest), "");
    let pull = node.pull_requested().await;
    node.fetch(pull, 1, stalled, 0);
    node.fetch(pull, 2, peer.addr, 0);
    assert_eq!(
        node.input().await,
        Input::FetchAnswered { pull, attempt: AttemptId(2), body_bytes: 7, backlog_bytes: Some(0) }
    );
    node.forward(pull, 2);
    node.pulls.perform(&Output::CancelFetch { pull, attempt: ATTEMPT });
    assert_eq!(
        node.input_after_progress().await.0,
        Input::FetchCompleted { pull, attempt: AttemptId(2), bytes: 7 }
    );
    assert_eq!(seen(client).await.text(), "content");
    timeout(PATIENCE, asked).await.expect("the losing connection is closed").unwrap();
}

#[tokio::test]
async fn empty_blob_is_forwarded() {
    let (mut node, peer) = (Node::start().await, Node::start().await);
    let digest = peer.add(b"");
    let client = asking(node.addr, "GET", &blob_uri(&digest), "");
    let pull = node.pull_requested().await;
    node.fetch(pull, 1, peer.addr, 0);
    assert_eq!(
        node.input().await,
        Input::FetchAnswered { pull, attempt: ATTEMPT, body_bytes: 0, backlog_bytes: Some(0) }
    );
    node.forward(pull, 1);
    assert_eq!(node.input().await, Input::FetchCompleted { pull, attempt: ATTEMPT, bytes: 0 });
    let answer = seen(client).await;
    assert_eq!((answer.status, answer.body.len(), answer.header("content-length")), (200, 0, Some("0")));
}

#[tokio::test]
async fn manifest_that_breaks_is_asked_for_again_as_a_whole() {
    let (mut node, peer) = (Node::start().await, Node::start().await);
    let manifest =
        br#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#;
    let digest = peer.add(manifest);
    let head =
        blob_head(manifest.len(), &format!("Docker-Content-Digest: {digest}\r\nContent-Type: a/b\r\n"));
    let (flaky, _) = scripted_peer([&head, &manifest[..40]].concat(), Then::Close).await;
    let client = asking(node.addr, "GET", &manifest_uri(digest), "");
    let pull = node.pull_requested().await;
    node.fetch(pull, 1, flaky, 0);
    node.input().await;
    node.forward(pull, 1);
    let (_, skip) = node.input_after_progress().await;
    assert_eq!(skip, 40);
    node.fetch(pull, 2, peer.addr, skip);
    let (attempt, body_bytes) = (AttemptId(2), manifest.len() as u64 - skip);
    assert_eq!(node.input().await, Input::FetchAnswered { pull, attempt, body_bytes, backlog_bytes: None });
    node.forward(pull, 2);
    assert_eq!(node.input().await, Input::FetchCompleted { pull, attempt, bytes: body_bytes });
    assert_eq!(seen(client).await.body, manifest);
}

#[tokio::test]
async fn pull_that_is_flooded_with_orders_is_given_up_as_a_whole() {
    let mut node = Node::start().await;
    let client = asking(node.addr, "GET", &blob_uri(&Digest::sha256_of(b"x")), "");
    let pull = node.pull_requested().await;
    for _ in 0..100 {
        node.pulls.perform(&Output::CancelFetch { pull, attempt: ATTEMPT });
    }
    assert_eq!(node.input().await, Input::PullAbandoned { pull });
    assert_eq!(seen(client).await.status, 404);
}
