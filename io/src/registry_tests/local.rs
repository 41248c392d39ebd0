use super::*;

const MANIFEST: &[u8] = br#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":0},"layers":[]}"#;

#[tokio::test]
async fn local_blob_is_served_whole_and_in_parts() {
    let node = Node::start().await;
    let bytes = content(600_000);
    let digest = node.add(&bytes);
    let uri = blob_uri(&digest);

    let whole = ask(node.addr, "GET", &uri, "").await;
    assert_eq!((whole.status, whole.body == bytes, whole.clean), (200, true, true));
    assert_eq!(whole.header("docker-content-digest"), Some(digest.to_string().as_str()));
    assert_eq!(whole.header("oci-namespace"), Some("docker.io"));
    assert_eq!(whole.header("accept-ranges"), Some("bytes"));
    assert_eq!(whole.header("content-type"), Some("application/octet-stream"));
    assert_eq!(whole.header("content-length"), Some("600000"));

    for (range, first, last) in [
        ("bytes=0-0", 0, 0),
        ("bytes=599999-", 599_999, 599_999),
        ("bytes=-300000", 300_000, 599_999),
        ("bytes=5-700000", 5, 599_999),
    ] {
        let part = ask(node.addr, "GET", &uri, &format!("Range: {range}\r\n")).await;
        assert_eq!((part.status, part.body == bytes[first..=last]), (206, true), "{range}");
        let content_range = format!("bytes {first}-{last}/600000");
        assert_eq!(part.header("content-range"), Some(content_range.as_str()), "{range}");
        let head = ask(node.addr, "HEAD", &uri, &format!("Range: {range}\r\n")).await;
        assert_eq!((head.status, head.body.len()), (206, 0), "{range}");
        assert_eq!(head.header("content-length"), part.header("content-length"), "{range}");
    }
    let ignored = ask(node.addr, "GET", &uri, "Range: bytes=9-5\r\n").await;
    assert_eq!((ignored.status, ignored.body.len()), (200, 600_000));
    let beyond = ask(node.addr, "GET", &uri, "Range: bytes=600000-\r\n").await;
    assert_eq!((beyond.status, beyond.header("content-range")), (416, Some("bytes */600000")));
    let text = node.metrics.encode();
    assert!(
        text.contains(
            "http_request_duration_seconds_count{handler=\"/v2/*\",method=\"GET\",code=\"206\"} 4\n"
        )
    );
    assert!(!text.contains("spegel_mirror_requests_total{"), "local hits are no mirrored requests");
}

#[tokio::test]
async fn local_manifest_is_served_by_tag_and_digest() {
    let node = Node::start().await;
    let digest = node.add(MANIFEST);
    node.serving.perform(&Output::ServeTag { name: "docker.io/library/app:v1".into(), digest });
    for reference in ["v1".to_owned(), digest.to_string()] {
        let answer = ask(node.addr, "GET", &manifest_uri(&reference), "Range: bytes=1-2\r\n").await;
        assert_eq!((answer.status, answer.body.as_slice()), (200, MANIFEST), "{reference}");
        let kind = Some("application/vnd.oci.image.manifest.v1+json");
        assert_eq!(answer.header("content-type"), kind);
        let head = ask(node.addr, "HEAD", &manifest_uri(&reference), "").await;
        assert_eq!((head.status, head.body.len(), head.header("content-type")), (200, 0, kind));
        assert_eq!(head.header("content-length"), answer.header("content-length"));
        assert_eq!(head.header("docker-content-digest"), Some(digest.to_string().as_str()));
    }
    let as_blob = ask(node.addr, "GET", &blob_uri(&digest), "").await;
    assert_eq!((as_blob.status, as_blob.header("content-type")), (200, Some("application/octet-stream")));
}

#[tokio::test]
async fn other_nodes_are_only_given_local_content() {
    let node = Node::start().await;
    let digest = node.add(b"here");
    let mirrored = "X-Spegel-Mirrored: true\r\n";
    assert_eq!(ask(node.addr, "GET", &blob_uri(&digest), mirrored).await.text(), "here");
    let answer = ask(node.addr, "HEAD", &manifest_uri("v9"), mirrored).await;
    assert_eq!((answer.status, answer.body.len()), (404, 0));
    assert!(answer.header("content-length").is_some_and(|length| length != "0"));
}

/// An answer but for what every answer has: the date, and how the connection goes on.
fn shown(method: &str, uri: &str, answer: &Seen) -> String {
    let shown = ["content-type", "content-length", "content-range", "allow", "www-authenticate"];
    let header = |name: &&str| answer.header(name).map(|value| format!("{name}: {value}\n"));
    let headers: String = shown.iter().filter_map(header).collect();
    format!("{method} {uri}\n{}\n{headers}{}\n\n", answer.status, answer.text())
}

#[tokio::test]
async fn nonsense_is_answered_with_an_error_that_says_what_is_wrong() {
    let node = Node::start().await;
    let layer = node.add(b"no manifest");
    let digest = Digest::sha256_of(b"absent");
    let mut answers = String::new();
    for (method, uri, headers) in [
        ("GET", "/elsewhere", ""),
        ("GET", "/v2/library/app/tags/list?ns=docker.io", ""),
        ("PUT", "/v2/library/app/manifests/v1?ns=docker.io", ""),
        ("POST", "/livez", ""),
        ("GET", "/v2/library/app/manifests/v1", ""),
        ("GET", "/v2/library/app/manifests/v1?ns=a/b", ""),
        ("GET", "/v2/LIBRARY/manifests/v1?ns=docker.io", ""),
        ("GET", "/v2/library/app/manifests/-v?ns=docker.io", ""),
        ("GET", "/v2/library/app/manifests/md5:00?ns=docker.io", ""),
        ("GET", "/v2/library/app/blobs/v1?ns=docker.io", ""),
        ("GET", "/v2/library/app/blobs/sha256:00?ns=docker.io", ""),
        ("HEAD", "/v2/library/app/blobs/sha256:00?ns=docker.io", ""),
        ("GET", "/v2/library/app/manifests/v1?ns=filtered.test", ""),
        ("GET", &manifest_uri(layer), ""),
        ("GET", &manifest_uri(digest), "X-Spegel-Mirrored: true\r\n"),
        ("GET", &blob_uri(&digest), "X-Spegel-Mirrored: true\r\n"),
        ("GET", &blob_uri(&layer), "Range: bytes=11-\r\n"),
    ] {
        answers += &shown(method, uri, &ask(node.addr, method, uri, headers).await);
    }
    let long = format!("/v2/{}?ns=docker.io", "a".repeat(3000));
    answers += &shown("GET", "(longer than any image needs)", &ask(node.addr, "GET", &long, "").await);
    insta::assert_snapshot!(answers);
    let huge = format!("X-Large: {}\r\n", "a".repeat(20_000));
    assert_eq!(ask(node.addr, "GET", "/v2", &huge).await.status, 431);
}

#[tokio::test]
async fn probes_say_whether_the_core_is_ready() {
    let node = Node::start().await;
    assert_eq!(ask(node.addr, "GET", "/livez", "").await.status, 200);
    assert_eq!(ask(node.addr, "GET", "/readyz", "").await.status, 500);
    node.ready.send(true).unwrap();
    assert_eq!(ask(node.addr, "GET", "/readyz", "").await.status, 200);
    for uri in ["/v2", "/v2/"] {
        let answer = ask(node.addr, "GET", uri, "").await;
        assert_eq!((answer.status, answer.body.len()), (200, 0));
    }
}

#[tokio::test]
async fn credentials_are_asked_for_except_by_probes() {
    let node = Node::start_with(basic_auth()).await;
    let digest = node.add(b"private");
    let answer = ask(node.addr, "GET", &blob_uri(&digest), "").await;
    let expected = r#"{"errors":[{"code":"UNAUTHORIZED","message":"invalid credentials"}]}"#;
    assert_eq!((answer.status, answer.text()), (401, expected));
    assert_eq!(answer.header("www-authenticate"), Some("Basic realm=\"spegel\""));
    assert_eq!(ask(node.addr, "GET", "/v2", "").await.status, 401);
    assert_eq!(ask(node.addr, "GET", "/livez", "").await.status, 200);
    let credentials = "Authorization: Basic dXNlcjpzZWNyZXQ=\r\n";
    assert_eq!(ask(node.addr, "GET", &blob_uri(&digest), credentials).await.text(), "private");
}

#[tokio::test]
async fn content_that_cannot_be_opened_is_a_miss_and_reported() {
    let mut node = Node::start().await;
    let digest = node.add(b"gone");
    node.store.0.lock().unwrap().clear();
    let answer = ask(node.addr, "GET", &blob_uri(&digest), "X-Spegel-Mirrored: true\r\n").await;
    assert_eq!(answer.status, 404);
    assert_eq!(node.input().await, Input::ContentUnreadable { digest });
}

/// containerd asks again from its offset after FIN, and fails the pull after RST.
#[tokio::test]
async fn blob_that_breaks_in_mid_body_ends_with_fin() {
    let mut node = Node::start().await;
    let bytes = content(700_000);
    let digest = node.add_broken(&bytes, 300_000);
    // A second request is on its way already: unread bytes must not turn FIN into RST.
    let twice = request("GET", &blob_uri(&digest), "").repeat(2).replace("Connection: close\r\n", "");
    let mut stream = connect(node.addr, &twice).await;
    let answer = read_to_end(&mut stream).await;
    assert_eq!((answer.status, answer.header("content-length")), (200, Some("700000")));
    assert_eq!((answer.body == bytes[..300_000], answer.clean), (true, true), "{}", answer.body.len());
    assert_eq!(node.input().await, Input::ContentUnreadable { digest });
}

#[tokio::test]
async fn running_responses_end_before_the_server_does() {
    let node = Node::start().await;
    let bytes = content(8_000_000);
    let digest = node.add(&bytes);
    let mut idle = connect(node.addr, "GET /livez HTTP/1.1\r\nHost: mirror\r\n\r\n").await;
    let mut stream = connect(node.addr, &request("GET", &blob_uri(&digest), "")).await;
    let mut first = [0; 1000];
    stream.read_exact(&mut first).await.unwrap();
    node.shutdown.cancel();
    assert_eq!(read_to_end(&mut idle).await.status, 200);
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.unwrap();
    let mut all = first.to_vec();
    all.extend(rest);
    assert!(all.ends_with(&bytes), "the body is whole");
    drop((idle, stream));
    timeout(PATIENCE, node.server).await.expect("the server ends").unwrap();
    assert!(TcpStream::connect(node.addr).await.is_err());
}

#[tokio::test]
async fn other_nodes_are_told_how_much_there_is_to_send_to_them() {
    const AS_NODE: &str = "X-Spegel-Mirrored: true\r\n";
    let node = Node::start().await;
    let bytes = content(32 << 20);
    let uri = blob_uri(&node.add(&bytes));
    let told = async |headers: &str| {
        let answer = ask(node.addr, "HEAD", &uri, headers).await;
        answer.header("x-spegel-backlog").map(|bytes| bytes.parse::<usize>().unwrap())
    };
    assert_eq!((told(AS_NODE).await, told("").await), (Some(0), None));
    let client = connect(node.addr, &request("GET", &uri, "")).await;
    client.peek(&mut [0]).await.unwrap();
    assert_eq!(told(AS_NODE).await, Some(0), "what goes to containerd takes nothing from other nodes");
    let other = connect(node.addr, &request("GET", &uri, AS_NODE)).await;
    other.peek(&mut [0]).await.unwrap();
    let backlog = told(AS_NODE).await.unwrap();
    assert!((1..bytes.len()).contains(&backlog), "{backlog} of {}", bytes.len());
    drop(other);
    let given_up = async {
        while told(AS_NODE).await != Some(0) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, given_up).await.expect("what was given up is sent to nobody");
}
