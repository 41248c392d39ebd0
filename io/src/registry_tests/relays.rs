//! Bodies of other nodes on their way through the kernel.

use spegel_core::{FetchError, RefuseReason};
use tokio::time::sleep;

use super::{pulls::blob_head, *};

/// More than sockets and a pipe hold, so that a client which does not read stops the mirror in
/// mid-body.
const LONG: usize = 32 << 20;

async fn node_with(kernel: &Kernel) -> Node {
    Node::start_on(MemoryStore::default(), Trust::default(), kernel.clone()).await
}

/// A client of a pull that is being forwarded from `peer`; the peer has sent something.
async fn forwarded(node: &mut Node, requests: &str, peer: SocketAddr) -> (TcpStream, PullId) {
    let stream = connect(node.addr, requests).await;
    let pull = node.pull_requested().await;
    node.fetch(pull, 1, peer, 0);
    node.input().await;
    node.forward(pull, 1);
    stream.peek(&mut [0]).await.unwrap();
    (stream, pull)
}

/// The next pull; reports of those before come in between.
async fn next_pull(node: &mut Node) -> PullId {
    loop {
        if let Input::PullRequested { pull, .. } = node.input().await {
            return pull;
        }
    }
}

/// Waits until the peer of a pull has answered.
async fn answered(node: &mut Node, pull: PullId) {
    while !matches!(node.input().await, Input::FetchAnswered { pull: answered, .. } if answered == pull) {}
}

async fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let so = async {
        while !is_so() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, so).await.unwrap_or_else(|_| panic!("never: {what}"));
}

#[tokio::test]
async fn long_body_takes_a_pipe_and_gives_it_back() {
    let (kernel, peer) = (Kernel::with_pipes(2), Node::start().await);
    let mut node = node_with(&kernel).await;
    let bytes = content(LONG);
    let (digest, small) = (peer.add(&bytes), peer.add(&content(1000)));
    let (mut stream, _) = forwarded(&mut node, &request("GET", &blob_uri(&digest), ""), peer.addr).await;
    assert_eq!(kernel.pipes_left(), 1);
    assert!(read_to_end(&mut stream).await.body == bytes, "other bytes");
    eventually("the pipe is given back", || kernel.pipes_left() == 2).await;
    let _progress = node.input_after_progress().await;
    // A client that goes away with a pipe full.
    let (stream, pull) = forwarded(&mut node, &request("GET", &blob_uri(&digest), ""), peer.addr).await;
    assert_eq!(kernel.pipes_left(), 1);
    drop(stream);
    assert_eq!(node.input_after_progress().await.0, Input::PullAbandoned { pull });
    eventually("the pipe is given back", || kernel.pipes_left() == 2).await;
    // A body for which copying is cheaper.
    let (mut stream, _) = forwarded(&mut node, &request("GET", &blob_uri(&small), ""), peer.addr).await;
    assert_eq!(kernel.pipes_left(), 2);
    assert_eq!(read_to_end(&mut stream).await.body, content(1000));
}

#[tokio::test]
async fn pulls_on_one_connection_follow_each_other() {
    let (kernel, peer) = (Kernel::with_pipes(2), Node::start().await);
    let mut node = node_with(&kernel).await;
    let long = content(LONG);
    // Of which no two have the same bytes at the same place.
    let bodies = [&long[..], &long[1..], &long[5..]];
    let requests = bodies
        .map(|body| request("GET", &blob_uri(&peer.add(body)), "").replace("Connection: close\r\n", ""));
    // Two at once, and one after the answer to those.
    let mut stream = connect(node.addr, &requests[..2].concat()).await;
    for (n, body) in bodies.iter().enumerate() {
        if n == 2 {
            stream.write_all(requests[2].as_bytes()).await.unwrap();
        }
        let pull = next_pull(&mut node).await;
        node.fetch(pull, 1, peer.addr, 0);
        answered(&mut node, pull).await;
        node.forward(pull, 1);
        stream.peek(&mut [0]).await.unwrap();
        assert_eq!(
            kernel.pipes_left(),
            1,
            "answer {n} takes a pipe, and the one before has given back its own"
        );
        let (head, found) = read_answer(&mut stream, true).await;
        assert!(head.starts_with("HTTP/1.1 200 "), "answer {n}: {head}");
        assert!(found == *body, "answer {n}: other bytes");
    }
    eventually("the pipe is given back", || kernel.pipes_left() == 2).await;
}

#[tokio::test]
async fn pulls_for_which_no_pipe_is_left_are_copied() {
    let (kernel, peer) = (Kernel::with_pipes(1), Node::start().await);
    let mut node = node_with(&kernel).await;
    let bytes = content(LONG);
    let digest = peer.add(&bytes);
    let mut streams = Vec::new();
    for _ in 0..3 {
        let stream = connect(node.addr, &request("GET", &blob_uri(&digest), "")).await;
        let pull = next_pull(&mut node).await;
        node.fetch(pull, 1, peer.addr, 0);
        answered(&mut node, pull).await;
        node.forward(pull, 1);
        streams.push(stream);
    }
    let inputs = tokio::spawn(async move { while node.inputs.recv().await.is_some() {} });
    for stream in &mut streams {
        assert!(read_to_end(stream).await.body == bytes, "other bytes");
    }
    inputs.abort();
}

#[tokio::test]
async fn kernel_that_stops_moving_bytes_in_mid_body_costs_none() {
    let (kernel, peer) = (Kernel::new(), Node::start().await);
    let mut node = node_with(&kernel).await;
    let bytes = content(LONG);
    let digest = peer.add(&bytes);
    let (mut stream, _) = forwarded(&mut node, &request("GET", &blob_uri(&digest), ""), peer.addr).await;
    // Until everything is full, so that there are bytes in the pipe.
    while !matches!(node.input().await, Input::FetchProgressed { bytes: 0, .. }) {}
    kernel.refuse();
    let inputs = tokio::spawn(async move { while node.inputs.recv().await.is_some() {} });
    let answer = read_to_end(&mut stream).await;
    assert!(answer.body == bytes && answer.clean, "{} bytes", answer.body.len());
    inputs.abort();
}

/// Bytes that come so fast that they gather, from a link that could bring no more.
#[tokio::test]
async fn waiting_for_bytes_to_gather_is_waiting_for_the_peer() {
    let mut node = node_with(&Kernel::new()).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let peer = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(&blob_head(LONG, "")).await.unwrap();
        for sent in content(LONG).chunks(64 * 1024) {
            stream.write_all(sent).await.unwrap();
            sleep(Duration::from_millis(2)).await;
        }
    });
    let uri = blob_uri(&Digest::sha256_of(b"x"));
    let (mut stream, _) = forwarded(&mut node, &request("GET", &uri, ""), addr).await;
    let client = tokio::spawn(async move { read_to_end(&mut stream).await.body.len() });
    let (mut reports, mut hungry) = (0, Duration::ZERO);
    while let Input::FetchProgressed { starved, .. } = node.input().await {
        (reports, hungry) = (reports + 1, hungry + starved);
    }
    assert_eq!(client.await.unwrap(), LONG);
    peer.await.unwrap();
    assert!(hungry > REPORT_INTERVAL * reports / 2, "{hungry:?} of {reports} reports");
}

/// Wherever a peer breaks off, and whether its first bytes came with the head or after it.
#[tokio::test]
async fn body_is_resumed_to_the_byte_wherever_it_broke() {
    let bytes = content(500_000);
    for first in [0, 1, 1900, 2048, 32_767, 262_144, 400_000] {
        for second in [0, 1, 77_777] {
            let (mut node, peer) = (Node::start().await, Node::start().await);
            let digest = peer.add(&bytes);
            let mut client = connect(node.addr, &request("GET", &blob_uri(&digest), "")).await;
            let pull = node.pull_requested().await;
            let mut given = 0;
            for (attempt, most) in [(1, first), (2, second)] {
                let end = (given + most).min(bytes.len());
                let head = if given == 0 {
                    blob_head(bytes.len(), "")
                } else {
                    let (length, last) = (bytes.len() - given, bytes.len() - 1);
                    let range = format!("Content-Range: bytes {given}-{last}/{}", bytes.len());
                    format!("HTTP/1.1 206 Partial Content\r\nContent-Length: {length}\r\n{range}\r\n\r\n")
                        .into_bytes()
                };
                let answer = [&head, &bytes[given..end]].concat();
                let (addr, _) = scripted_peer(answer, Then::Close).await;
                node.fetch(pull, attempt, addr, given as u64);
                let Input::FetchAnswered { .. } = node.input().await else { panic!("no answer") };
                node.forward(pull, attempt);
                let (failed, reported) = node.input_after_progress().await;
                let cause = FetchError::Interrupted;
                assert_eq!(failed, Input::FetchFailed { pull, attempt: AttemptId(attempt), cause });
                given += usize::try_from(reported).unwrap();
                assert_eq!(given, end, "{first}, {second}: what was given is what was reported");
            }
            node.fetch(pull, 3, peer.addr, given as u64);
            node.input().await;
            node.forward(pull, 3);
            let answer = read_to_end(&mut client).await;
            assert!(answer.body == bytes && answer.clean, "{first}, {second}: {} bytes", answer.body.len());
        }
    }
}

#[tokio::test]
async fn every_early_end_of_a_body_is_a_fin() {
    type End = fn(&Node, PullId);
    let ends: [(&str, End); 3] = [
        ("the core ends it", |node, pull| {
            let reason = RefuseReason::HoldersExhausted;
            node.pulls.perform(&Output::Truncate { pull, reason, left: None });
        }),
        ("the pull no longer follows orders", |node, pull| {
            for _ in 0..100 {
                node.pulls.perform(&Output::CancelFetch { pull, attempt: AttemptId(9) });
            }
        }),
        ("the process ends", |node, _| node.shutdown.cancel()),
    ];
    let bytes = content(LONG);
    for (what, end) in ends {
        for reads_on in [true, false] {
            let (kernel, peer) = (Kernel::new(), Node::start().await);
            let mut node = node_with(&kernel).await;
            let digest = peer.add(&bytes);
            let request = request("GET", &blob_uri(&digest), "").replace("Connection: close\r\n", "");
            let (mut stream, pull) = forwarded(&mut node, &request, peer.addr).await;
            while !matches!(node.input().await, Input::FetchProgressed { bytes: 0, .. }) {}
            // A second request, which stays unread because it comes so late.
            stream.write_all(request.as_bytes()).await.unwrap();
            end(&node, pull);
            let inputs = tokio::spawn(async move { while node.inputs.recv().await.is_some() {} });
            if !reads_on {
                sleep(DRAIN_MAX + Duration::from_millis(100)).await;
            }
            let answer = read_to_end(&mut stream).await;
            let length = answer.body.len();
            assert!(answer.clean, "{what}: RST after {length} bytes");
            assert!(answer.body == bytes[..length], "{what}: other bytes");
            inputs.abort();
        }
    }
}
