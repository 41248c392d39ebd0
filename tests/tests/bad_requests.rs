//! Whatever a client sends, the mirror says what was wrong or hangs up, goes on serving everybody else at once,
//! and grows by nothing that stays.
#![allow(clippy::disallowed_methods, reason = "real parts run on the real clock; nothing here is simulated")]
#![allow(clippy::print_stdout, reason = "figures are worth reading when a test passes too")]

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use spegel_tests::{
    Answer, Cluster, ClusterOptions, Generation, HttpClient, Image, ImageSpec, Node, REGISTRY, mib,
    percentile, wait_for,
};

const PATIENCE: Duration = Duration::from_secs(20);
const P99_MAX: Duration = Duration::from_millis(5);
const RSS_BYTES_MAX: u64 = mib(100);
const IDLE_CONNECTIONS: usize = 500;
const SLOW_CLIENTS: usize = 300;
const ASKED: usize = 300;
/// Longer than a client may take to send the head of a request, and the end of its connection after that.
const HEAD_GIVEN_UP_MAX: Duration = Duration::from_secs(15);

fn mirror() -> (Cluster, Image) {
    let mut options = ClusterOptions::new(2, Generation::V2_1);
    options.spegel_args = vec!["--registry-filters".to_owned(), "/private/".to_owned()];
    let cluster = Cluster::with_spegel(options);
    let image = cluster.image(&ImageSpec::new("bad/requests", "1", &[mib(8)]).single());
    cluster.expect("import", cluster.nodes[0].import(&image));
    let known = || cluster.nodes[0].finds(&image.blob_path(&image.layers[0]));
    cluster.expect("the mirror knows", wait_for("local", PATIENCE, known));
    (cluster, image)
}

/// Asks for the layer again and again, each time over a new connection; from the request's last byte, so that
/// the harness's own way into the namespace (a thread for each connection) is not in the figure.
fn p99(cluster: &Cluster, node: &Node, image: &Image) -> Duration {
    let path = image.blob_path(&image.layers[0]);
    let ask = |_| {
        let mut client = cluster.expect("connect", node.client());
        let answer = cluster.expect("HEAD", client.request("HEAD", &path, &[("Connection", "close")]));
        assert_eq!(answer.status, 200);
        answer.elapsed
    };
    percentile(&(0..ASKED).map(ask).collect::<Vec<Duration>>(), 99)
}

fn raw(node: &Node) -> TcpStream {
    let stream =
        node.netns().enter(|| TcpStream::connect(node.mirror_address())).expect("the mirror listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream
}

/// Sends bytes and reads until the mirror hangs up; asks for that where the bytes are a request.
fn exchange(node: &Node, bytes: &[u8]) -> String {
    let mut stream = raw(node);
    let _hung_up = stream.write_all(bytes);
    let mut answer = Vec::new();
    let _reset = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

fn pid(node: &Node) -> String {
    let pids = node.netns().run("ip", &["netns", "pids", node.netns().name()]).expect("ip lists processes");
    let is_mirror = |pid: &&str| {
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "spegel")
    };
    pids.lines().find(is_mirror).expect("the mirror runs").to_owned()
}

fn descriptors(node: &Node) -> usize {
    fs::read_dir(format!("/proc/{}/fd", pid(node))).expect("the mirror runs").count()
}

fn still_well(cluster: &Cluster, node: &Node, image: &Image, what: &str) {
    let took = p99(cluster, node, image);
    let rss = node.spegel_rss_bytes();
    println!("{what}: p99 {took:?}, RSS {} MiB, {} descriptors", rss / mib(1), descriptors(node));
    assert!(took <= P99_MAX, "{what}: one answer in a hundred takes over {took:?}, not {P99_MAX:?}");
    assert!(rss <= RSS_BYTES_MAX, "{what}: {rss} bytes, not {RSS_BYTES_MAX}");
}

fn check_error(path: &str, answer: &Answer, status: u16, code: &str) {
    let text = answer.text();
    assert_eq!(answer.status, status, "{path}: {text}");
    let body: serde_json::Value = serde_json::from_slice(&answer.body)
        .unwrap_or_else(|error| panic!("{path}: {error}: not an OCI error: {text}"));
    let error = &body["errors"][0];
    assert_eq!(error["code"], code, "{path}: {text}");
    assert!(error["message"].as_str().is_some_and(|message| message.len() > 10), "{path}: {text}");
    assert_eq!(answer.header("content-type"), "application/json", "{path}");
}

#[test]
fn wrong_request_gets_an_error_that_says_why() {
    let (cluster, image) = mirror();
    let node = &cluster.nodes[0];
    let layer = image.blob_path(&image.layers[0]);
    let long = "a".repeat(3000);
    let ns = format!("?ns={REGISTRY}");
    let cases: Vec<(String, u16, &str)> = vec![
        ("/nothing".into(), 404, "UNSUPPORTED"),
        (format!("/v2/a/tags/list{ns}"), 404, "UNSUPPORTED"),
        ("/v2/_catalog".into(), 404, "UNSUPPORTED"),
        (format!("/v2/a%FF/manifests/v1{ns}"), 404, "UNSUPPORTED"),
        ("/v2/a/manifests/v1".into(), 400, "NAME_UNKNOWN"),
        ("/v2/a/manifests/v1?ns=".into(), 400, "NAME_UNKNOWN"),
        ("/v2/a/manifests/v1?ns=a/b".into(), 400, "NAME_UNKNOWN"),
        (format!("/v2/A/manifests/v1{ns}"), 400, "NAME_INVALID"),
        (format!("/v2/../etc/manifests/v1{ns}"), 400, "NAME_INVALID"),
        (format!("/v2/a/manifests/{}{ns}", &long[..129]), 400, "MANIFEST_INVALID"),
        (format!("/v2/a/blobs/sha256:00{ns}"), 400, "DIGEST_INVALID"),
        (format!("/v2/a/blobs/..%2f..%2fetc{ns}"), 404, "UNSUPPORTED"),
        (format!("/v2/a/blobs/md5:{}{ns}", &long[..32]), 400, "DIGEST_INVALID"),
        (format!("/v2/a/manifests/v1{ns}&{long}"), 414, "NAME_INVALID"),
        ("/v2/a/manifests/v1?ns=other.test".into(), 404, "NAME_UNKNOWN"),
        (format!("/v2/private/a/manifests/v1{ns}"), 404, "NAME_UNKNOWN"),
        (layer.replace("/bad/", "/private/"), 404, "NAME_UNKNOWN"),
        (format!("/v2/a/manifests/nobody-has-it{ns}"), 404, "MANIFEST_UNKNOWN"),
    ];
    let mut client = cluster.expect("connect", node.client());
    for (path, status, code) in &cases {
        let get = cluster.expect("GET", client.get(path, &[]));
        check_error(path, &get, *status, code);
        let head = cluster.expect("HEAD", client.request("HEAD", path, &[]));
        assert_eq!(head.status, *status, "HEAD {path}");
        for name in ["content-type", "content-length"] {
            assert_eq!(head.header(name), get.header(name), "HEAD {path}: {name}");
        }
    }
    let beyond = cluster.expect("GET", client.get(&layer, &[("Range", "bytes=99999999-")]));
    check_error("a range beyond the end", &beyond, 416, "SIZE_INVALID");
    assert_eq!(beyond.header("content-range"), format!("bytes */{}", image.layers[0].size));
    for method in ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "BREW"] {
        let answer = cluster.expect(method, client.request(method, &layer, &[("Content-Length", "0")]));
        check_error(method, &answer, 405, "UNSUPPORTED");
        assert_eq!(answer.header("allow"), "GET, HEAD");
    }
    still_well(&cluster, node, &image, "after wrong requests");
}

#[test]
fn request_that_is_no_http_is_hung_up_on() {
    let (cluster, image) = mirror();
    let node = &cluster.nodes[0];
    let path = image.blob_path(&image.layers[0]);
    let before = descriptors(node);
    let huge = format!("GET {path} HTTP/1.1\r\nHost: m\r\nX: {}\r\n\r\n", "x".repeat(1 << 20));
    let many = format!("GET {path} HTTP/1.1\r\nHost: m\r\n{}\r\n", "X: y\r\n".repeat(500));
    let long_line = format!("GET /{} HTTP/1.1\r\nHost: m\r\n\r\n", "x".repeat(1 << 20));
    let double =
        format!("POST {path} HTTP/1.1\r\nHost: m\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nGET /x");
    let both = format!(
        "GET {path} HTTP/1.1\r\nHost: m\r\nContent-Length: 9\r\nTransfer-Encoding: gzip\r\n\r\n0\r\n\r\nGET /x HTTP/1.1\r\n\r\n"
    );
    let tls = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".repeat(20);
    for (what, bytes) in [
        ("a huge header", huge.as_bytes()),
        ("many headers", many.as_bytes()),
        ("a long request line", long_line.as_bytes()),
        ("two lengths", double.as_bytes()),
        ("a length and a coding", both.as_bytes()),
        ("TLS", &tls),
        ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        ("zeros", &[0; 4096]),
        ("no version", b"GET /v2/\r\n\r\n"),
        ("a negative length", b"GET /v2/ HTTP/1.1\r\nHost: m\r\nContent-Length: -1\r\n\r\n"),
    ] {
        let start = Instant::now();
        let answer = exchange(node, bytes);
        let first = answer.lines().next().unwrap_or("(hung up)");
        println!("{what}: {first} after {:?}", start.elapsed());
        // Never taken for two requests, never answered with content.
        assert!(answer.matches("HTTP/1.1 ").count() <= 1, "{what}: {answer}");
        assert!(!first.contains(" 200 "), "{what}: {first}");
    }
    still_well(&cluster, node, &image, "after what is no HTTP");
    let closed = || match descriptors(node) {
        now if now <= before + 2 => Ok(()),
        now => Err(format!("{now} descriptors, {before} before")),
    };
    cluster.expect("nothing is left open", wait_for("descriptors", PATIENCE, closed));
}

#[test]
fn body_and_pipeline_do_not_confuse_the_next_request() {
    let (cluster, _image) = mirror();
    let node = &cluster.nodes[0];
    let body = "GET /v2/smuggled HTTP/1.1\r\nHost: m\r\n\r\n";
    let with_body = format!(
        "GET /v2/ HTTP/1.1\r\nHost: m\r\nContent-Length: {}\r\n\r\n{body}GET /livez HTTP/1.1\r\nHost: m\r\nConnection: close\r\n\r\n",
        body.len()
    );
    let answer = exchange(node, with_body.as_bytes());
    assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), answer.matches("HTTP/1.1 ").count(), "{answer}");
    assert!((1..=2).contains(&answer.matches("HTTP/1.1 200 OK").count()), "{answer}");
    let pipelined = "GET /livez HTTP/1.1\r\nHost: m\r\n\r\n".repeat(20)
        + "GET /nothing HTTP/1.1\r\nHost: m\r\nConnection: close\r\n\r\n";
    let answer = exchange(node, pipelined.as_bytes());
    assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), 20, "{answer}");
    assert_eq!(answer.matches("HTTP/1.1 404").count(), 1, "{answer}");
}

#[test]
fn clients_that_are_slow_or_idle_hold_up_nobody() {
    let (cluster, image) = mirror();
    let node = &cluster.nodes[0];
    let before = (descriptors(node), node.spegel_rss_bytes());
    still_well(&cluster, node, &image, "alone");
    let idle: Vec<TcpStream> = (0..IDLE_CONNECTIONS).map(|_| raw(node)).collect();
    let half: Vec<TcpStream> = (0..SLOW_CLIENTS)
        .map(|_| {
            let mut stream = raw(node);
            stream.write_all(b"GET /v2/ HTTP/1.1\r\nHost: m\r\nX-Slow").expect("the mirror reads");
            stream
        })
        .collect();
    still_well(&cluster, node, &image, "with idle and half-sent requests");
    let start = Instant::now();
    let closed = || match descriptors(node) {
        now if now <= before.0 + 5 => Ok(()),
        now => Err(format!("{now} descriptors, {} before", before.0)),
    };
    cluster.expect("they are given up", wait_for("descriptors", HEAD_GIVEN_UP_MAX, closed));
    println!("given up after {:?}; RSS {} -> {}", start.elapsed(), before.1, node.spegel_rss_bytes());
    drop((idle, half));
    still_well(&cluster, node, &image, "afterwards");
}

#[test]
fn clients_that_vanish_in_mid_body_leave_nothing_behind() {
    let (cluster, image) = mirror();
    let [holder, other] = cluster.nodes.as_slice() else { panic!("two nodes") };
    let path = image.blob_path(&image.layers[0]);
    cluster.expect("shared", other.wait_finds(&image, PATIENCE));
    // Local content on one node, a peer's on the other.
    for node in [holder, other] {
        let before = descriptors(node);
        for _ in 0..50 {
            let mut client: HttpClient = cluster.expect("connect", node.client());
            cluster.expect("send", client.send("GET", &path, &[]));
            cluster.expect("some bytes", client.read_some(1000));
        }
        let closed = || match descriptors(node) {
            now if now <= before + 3 => Ok(()),
            now => Err(format!("{now} descriptors, {before} before")),
        };
        let ((), took) = cluster.expect("all is closed", wait_for("descriptors", PATIENCE, closed));
        println!("{}: back to {before} descriptors after {took:?}", node.name);
    }
    thread::sleep(Duration::from_millis(100));
    still_well(&cluster, holder, &image, "after vanished clients");
}
