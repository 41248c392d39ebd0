use std::{
    fs,
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::LazyLock,
    time::Duration,
};

use spegel_core::{Filters, Input, Output, RefuseReason, oci::Digest};
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

/// How long the server may say nothing before it is taken to wait for more.
const SILENCE: Duration = Duration::from_millis(50);

/// Longer than the server keeps any connection on which nothing happens.
const PATIENCE: Duration = Duration::from_secs(12);

/// A registry on loopback that has two blobs and knows nobody; the same for every input.
struct Server {
    addr: SocketAddr,
    blobs: Vec<(Digest, Vec<u8>)>,
    _runtime: Runtime,
    _dir: TempDir,
}

static SERVER: LazyLock<Server> = LazyLock::new(start);

/// What a client sends, as it is, on one connection, with `@0` and `@1` standing for the digests of
/// the two blobs; then a request that ends the connection. Whatever comes before, each answer is
/// well formed, each body is that of the blob it names, and the connection ends by FIN.
pub fn http_request(data: &[u8]) {
    let server = &*SERVER;
    let mut sent = Vec::with_capacity(data.len() + 300);
    for (at, byte) in data.iter().enumerate() {
        match (at.checked_sub(1).map(|before| data[before]), byte) {
            (Some(b'@'), b'0' | b'1') => {
                sent.pop();
                sent.extend(server.blobs[usize::from(byte - b'0')].0.to_string().into_bytes());
            }
            _ => sent.push(*byte),
        }
    }
    sent.extend(b"GET /livez HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    let mut stream = TcpStream::connect(server.addr).expect("loopback");
    stream.write_all(&sent).expect("the server reads");
    check(&received(&mut stream), &server.blobs);
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

fn check(mut answers: &[u8], blobs: &[(Digest, Vec<u8>)]) {
    while !answers.is_empty() {
        let end = answers.windows(4).position(|window| window == b"\r\n\r\n").expect("a whole head") + 4;
        let head = std::str::from_utf8(&answers[..end]).expect("a head is text");
        assert!(head.starts_with("HTTP/1."), "{head}");
        let header = |name: &str| {
            let mut lines = head.lines().filter_map(|line| line.split_once(": "));
            lines.find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value)
        };
        let length = header("content-length").map_or(0, |length| length.parse().expect("a length"));
        answers = &answers[end..];
        // Blobs have no ASCII in them, errors are JSON, and after the answer to HEAD comes another.
        match answers.first() {
            None | Some(b'H') => {}
            Some(b'{') => answers = &answers[length..],
            Some(_) => {
                let digest = header("docker-content-digest").expect("the digest of what is served");
                let blob = blobs.iter().find(|(known, _)| known.to_string() == digest).expect("ours");
                let first = header("content-range").map_or(0, |range| {
                    let first = range.strip_prefix("bytes ").and_then(|range| range.split_once('-'));
                    first.expect("a range").0.parse().expect("an offset")
                });
                let there = answers.len().min(length);
                assert!(
                    answers[..there] == blob.1[first..first + there],
                    "other bytes than asked for: {head}"
                );
                // Less only where the client was taken to have gone.
                answers = &answers[there..];
            }
        }
    }
}

fn start() -> Server {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.expect("threads");
    let dir = TempDir::new().expect("a directory");
    fs::create_dir_all(dir.path().join("blobs/sha256")).expect("a directory");
    let (inputs, mut from_adapters) = mpsc::channel(64);
    let (serving, metrics) = (Serving::default(), Metrics::new());
    let blobs = SIZES.map(|size| {
        let bytes: Vec<u8> = (0..size).map(|at| 0x80 | (at * 31 + at / 127).to_le_bytes()[0]).collect();
        let digest = Digest::sha256_of(&bytes);
        fs::write(dir.path().join("blobs/sha256").join(digest.hex()), &bytes).expect("a file");
        serving.perform(&Output::ServeContent { digest, size: size as u64 });
        (digest, bytes)
    });
    let pulls = Pulls::new(TcpDialer::default(), inputs.clone(), Trust::default(), metrics.clone());
    let ready = watch::channel(true).1;
    let registry = Registry {
        serving,
        store: ContentDir::new(dir.path()),
        pulls: pulls.clone(),
        filters: Filters::default(),
        trust: Trust::default(),
        ready,
        inputs,
        metrics,
    };
    let addr = runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let addr = listener.local_addr().expect("it is bound");
        let end = CancellationToken::new();
        tokio::spawn(registry::serve(listener, registry.into_router(), Kernel::new(), end, PATIENCE));
        tokio::spawn(async move {
            while let Some(input) = from_adapters.recv().await {
                if let Input::PullRequested { pull, .. } = input {
                    pulls.perform(&Output::Refuse { pull, reason: RefuseReason::NobodyHasIt, attempts: 0 });
                }
            }
        });
        addr
    });
    Server { addr, blobs: blobs.into(), _runtime: runtime, _dir: dir }
}
