use std::{
    fs,
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::LazyLock,
    time::Duration,
};

use serde_json::Value;
use spegel_core::{AttemptId, Filters, Input, Output, PeerId, PullId, RefuseReason, oci::Digest};
use spegel_io::{
    content::ContentDir,
    metrics::Metrics,
    mirror::Pulls,
    net::TcpDialer,
    registry::{self, Registry, Serving},
    trust::Trust,
    zero_copy::Kernel,
};
use tempfile::TempDir;
use tokio::{net::TcpListener, runtime::Runtime, sync::mpsc, sync::watch};
use tokio_util::sync::CancellationToken;

/// A blob that the kernel sends, in more than one turn of the socket, and one that is read.
const SIZES: [usize; 2] = [400_000, 700];

/// A blob that another node has: the kernel moves it from one socket to the other.
const PEER_SIZE: usize = 300_000;

/// How long the server may say nothing before it is taken to wait for more.
const SILENCE: Duration = Duration::from_millis(50);

/// Longer than the server keeps any connection on which nothing happens.
const PATIENCE: Duration = Duration::from_secs(12);

/// What HTTP/2 begins with, to which there is no answer in HTTP/1: the HTTP library drops the connection on the spot,
/// with what it has not sent yet of the answer before.
const HTTP_2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A registry on loopback that has two blobs and knows one node with a third; the same for every input.
struct Server {
    addr: SocketAddr,
    blobs: Vec<(Digest, Vec<u8>)>,
    _runtime: Runtime,
    _dirs: [TempDir; 2],
}

static SERVER: LazyLock<Server> = LazyLock::new(start);

/// One answer, by what a person expects of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HttpAnswer {
    /// Its status.
    pub status: u16,
    /// What it says of the length of its body.
    pub length: usize,
    /// Whether a body came, which is then that long.
    pub has_body: bool,
}

/// What a client sends, as it is, on one connection, with `@0` and `@1` standing for the digests of
/// the two blobs and `@2` for that of the other node's; then a request that ends the connection.
///
/// Whatever comes before, there is an answer, each answer is well formed, each body is that of the blob
/// it names, or an error's, and exactly as long as its head says, and the connection ends by FIN. As the
/// client reads everything, one thing alone excuses an answer that is missing or ends early, and only the
/// last one: a preface of HTTP/2 in what was sent.
pub fn http_request(data: &[u8]) {
    let _answers = http_request_answers(data);
}

/// As [`http_request`], and gives the answers.
pub fn http_request_answers(data: &[u8]) -> Vec<HttpAnswer> {
    let server = &*SERVER;
    let mut sent = Vec::with_capacity(data.len() + 300);
    for (at, byte) in data.iter().enumerate() {
        match (at.checked_sub(1).map(|before| data[before]), byte) {
            (Some(b'@'), b'0'..=b'2') => {
                sent.pop();
                sent.extend(server.blobs[usize::from(byte - b'0')].0.to_string().into_bytes());
            }
            _ => sent.push(*byte),
        }
    }
    sent.extend(b"GET /livez HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    let mut stream = TcpStream::connect(server.addr).expect("loopback");
    stream.write_all(&sent).expect("the server reads");
    check(&received(&mut stream), &sent, &server.blobs)
}

fn received(stream: &mut TcpStream) -> Vec<u8> {
    let (mut all, mut buffer) = (Vec::new(), vec![0; 1 << 20]);
    stream.set_read_timeout(Some(SILENCE)).expect("a timeout");
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return all,
            Ok(read) => all.extend_from_slice(&buffer[..read]),
            // The fuzzer looks at the clock by a signal.
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                // It takes what we sent for the beginning of something; now it knows better.
                let _ = stream.shutdown(std::net::Shutdown::Write);
                stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
            }
            Err(error) => panic!("the connection does not end by FIN: {error}"),
        }
    }
}

fn count(sent: &[u8], what: &[u8]) -> usize {
    sent.windows(what.len()).filter(|window| *window == what).count()
}

fn check(mut answers: &[u8], sent: &[u8], blobs: &[(Digest, Vec<u8>)]) -> Vec<HttpAnswer> {
    // An answer does not say what it answers: that it has no body is right as often as HEAD was asked.
    let mut heads = count(sent, b"HEAD ");
    let may_be_cut = count(sent, HTTP_2_PREFACE) > 0;
    let mut found = Vec::new();
    while !answers.is_empty() {
        let Some(end) = answers.windows(4).position(|window| window == b"\r\n\r\n") else {
            assert!(may_be_cut, "half a head: {}", answers.escape_ascii());
            return found;
        };
        let head = Head::read(&answers[..end + 4]);
        answers = &answers[end + 4..];
        if head.status == 100 {
            assert!(count(sent, b"100-") > 0, "nobody waits for leave to send: {head:?}");
            continue;
        }
        assert!(head.status >= 200, "nothing else comes before an answer: {head:?}");
        assert_eq!(head.header("transfer-encoding"), None, "every length is known: {head:?}");
        let length = head.header("content-length").expect("a length").parse().expect("a length");
        let named = head.blob(length, blobs);
        // Blobs have no ASCII in them, errors are JSON, and after an answer without a body comes another.
        let has_body = length > 0 && !matches!(answers.first(), None | Some(b'H'));
        if has_body {
            let (body, rest) = answers.split_at(answers.len().min(length));
            assert!(body.len() == length || may_be_cut, "{} bytes of {length} came: {head:?}", body.len());
            match named {
                Some(blob) => assert!(body == &blob[..body.len()], "other bytes than asked for: {head:?}"),
                None if body.len() < length => {}
                None => {
                    let error: Value = serde_json::from_slice(body).expect("an error in JSON");
                    assert!(
                        head.status >= 400 && error["errors"][0]["code"].is_string(),
                        "{error}: {head:?}"
                    );
                }
            }
            answers = rest;
        } else if length > 0 && !(may_be_cut && answers.is_empty()) {
            heads = heads.checked_sub(1).unwrap_or_else(|| panic!("no byte of {length} came: {head:?}"));
        }
        found.push(HttpAnswer { status: head.status, length, has_body });
    }
    assert!(!found.is_empty() || may_be_cut, "no answer");
    found
}

#[derive(Debug)]
struct Head<'a> {
    status: u16,
    lines: Vec<(&'a str, &'a str)>,
}

impl<'a> Head<'a> {
    fn read(bytes: &'a [u8]) -> Self {
        let text = std::str::from_utf8(bytes).expect("a head is text");
        let mut lines = text.trim_end_matches("\r\n").split("\r\n");
        let first = lines.next().expect("a line");
        let mut words = first.splitn(3, ' ');
        assert!(matches!(words.next(), Some("HTTP/1.1" | "HTTP/1.0")), "{text}");
        let status = words.next().filter(|status| status.len() == 3).expect("a status");
        assert!(words.next().is_some_and(|reason| !reason.contains(char::is_control)), "{text}");
        let lines = lines.map(|line| line.split_once(": ").expect("a header")).collect();
        Self { status: status.parse().expect("a status"), lines }
    }

    /// Headers that matter are there once.
    fn header(&self, name: &str) -> Option<&'a str> {
        let mut found = self.lines.iter().filter(|(found, _)| found.eq_ignore_ascii_case(name));
        let value = found.next().map(|(_, value)| *value);
        assert!(found.next().is_none(), "{name} twice: {self:?}");
        value
    }

    /// What the body is to be; `None` if it is no blob's. The head's figures must fit each other.
    fn blob<'b>(&self, length: usize, blobs: &'b [(Digest, Vec<u8>)]) -> Option<&'b [u8]> {
        let digest = self.header("docker-content-digest")?;
        let (_, blob) = blobs.iter().find(|(known, _)| known.to_string() == digest).expect("ours");
        let span = if self.status == 206 {
            let range = self.header("content-range").expect("a part is of something");
            let (span, size) = range
                .strip_prefix("bytes ")
                .and_then(|range| range.split_once('/'))
                .expect("a range in bytes of a blob");
            assert_eq!(size.parse(), Ok(blob.len()), "{self:?}");
            let (first, last) = span.split_once('-').expect("a range");
            first.parse().expect("an offset")..last.parse::<usize>().expect("an offset") + 1
        } else {
            assert_eq!(self.status, 200, "{self:?}");
            0..blob.len()
        };
        assert_eq!(length, span.len(), "{self:?}");
        Some(&blob[span])
    }
}

/// One of the two registries: the one that is asked, or the node that it pulls from.
fn registry(blobs: &[Vec<u8>]) -> (Registry<ContentDir, TcpDialer>, mpsc::Receiver<Input>, TempDir) {
    let dir = TempDir::new().expect("a directory");
    fs::create_dir_all(dir.path().join("blobs/sha256")).expect("a directory");
    let (inputs, from_adapters) = mpsc::channel(64);
    let (serving, metrics) = (Serving::default(), Metrics::new());
    for bytes in blobs {
        let digest = Digest::sha256_of(bytes);
        fs::write(dir.path().join("blobs/sha256").join(digest.hex()), bytes).expect("a file");
        serving.perform(&Output::ServeContent { digest, size: bytes.len() as u64 });
    }
    let pulls = Pulls::new(TcpDialer::default(), inputs.clone(), Trust::default(), metrics.clone());
    let registry = Registry {
        serving,
        store: ContentDir::new(dir.path()),
        pulls,
        filters: Filters::default(),
        trust: Trust::default(),
        ready: watch::channel(true).1,
        inputs,
        metrics,
    };
    (registry, from_adapters, dir)
}

async fn listen(registry: Registry<ContentDir, TcpDialer>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let addr = listener.local_addr().expect("it is bound");
    let end = CancellationToken::new();
    tokio::spawn(registry::serve(listener, registry.into_router(), Kernel::new(), end, PATIENCE));
    addr
}

/// What the core orders of one pull: to ask the one node, where that has it, and to pass on what it says.
#[expect(clippy::wildcard_enum_match_arm, reason = "the rest is for a whole core")]
fn order(input: &Input, holder: SocketAddr, held: &Digest) -> Option<Output> {
    let attempt = AttemptId(1);
    let refuse = |pull: PullId| Output::Refuse { pull, reason: RefuseReason::NobodyHasIt, attempts: 0 };
    match *input {
        Input::PullRequested { pull, digest: Some(digest), .. } if digest == *held => {
            let peer = PeerId::from_public_key([1; 32]);
            Some(Output::Fetch { pull, attempt, peer, addr: holder, skip: 0, check_bytes_max: 0 })
        }
        Input::PullRequested { pull, .. } | Input::FetchFailed { pull, .. } => Some(refuse(pull)),
        Input::FetchAnswered { pull, attempt, .. } => {
            Some(Output::Forward { pull, attempt, report_interval: PATIENCE })
        }
        _ => None,
    }
}

fn start() -> Server {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.expect("threads");
    let [long, short] = SIZES;
    let blobs = [long, short, PEER_SIZE].map(|size| {
        let bytes: Vec<u8> = (0..size).map(|at| 0x80 | (at * 31 + at / 127).to_le_bytes()[0]).collect();
        (Digest::sha256_of(&bytes), bytes)
    });
    let [(_, long), (_, short), (held, other)] = blobs.clone();
    let (asked, mut inputs, dir) = registry(&[long, short]);
    let (holder, mut unheard, holder_dir) = registry(&[other]);
    let pulls = asked.pulls.clone();
    let addr = runtime.block_on(async {
        let holder = listen(holder).await;
        tokio::spawn(async move { while unheard.recv().await.is_some() {} });
        tokio::spawn(async move {
            while let Some(input) = inputs.recv().await {
                if let Some(output) = order(&input, holder, &held) {
                    pulls.perform(&output);
                }
            }
        });
        listen(asked).await
    });
    Server { addr, blobs: blobs.into(), _runtime: runtime, _dirs: [dir, holder_dir] }
}
