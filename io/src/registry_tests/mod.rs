//! The registry and the mirror over loopback TCP: a scripted core, raw clients, and peers that
//! are either whole registries or play back bytes.

mod files;
mod local;
mod pulls;
mod relays;
mod trust;

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use spegel_core::{AttemptId, Filters, Input, Output, PeerId, PullId, oci::Digest};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    task::JoinHandle,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::{
    content::{Blob, ContentStore},
    distribution::Credentials,
    metrics::Metrics,
    mirror::Pulls,
    net::TcpDialer,
    registry::{Registry, Serving, serve},
    trust::{Refusals, Trust},
    zero_copy::Kernel,
};

/// The peer that fetches go to.
const PEER: [u8; 32] = [1; 32];

const REPORT_INTERVAL: Duration = Duration::from_millis(50);
/// No step of a test takes longer, even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long bodies may take to end when a node does.
const DRAIN_MAX: Duration = Duration::from_secs(2);

/// Content in memory; reading beyond `readable` fails, as on a disk that breaks.
#[derive(Clone, Debug, Default)]
struct MemoryStore(Arc<Mutex<BTreeMap<Digest, MemoryBlob>>>);

#[derive(Clone, Debug)]
struct MemoryBlob {
    bytes: Bytes,
    readable: usize,
}

impl ContentStore for MemoryStore {
    type Blob = MemoryBlob;

    async fn open(&self, digest: &Digest, size: u64) -> io::Result<MemoryBlob> {
        let blob = self.0.lock().unwrap().get(digest).cloned().ok_or(io::ErrorKind::NotFound)?;
        if blob.size() == size { Ok(blob) } else { Err(io::ErrorKind::InvalidData.into()) }
    }
}

impl Blob for MemoryBlob {
    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    async fn read_at(&self, offset: u64, length: usize) -> io::Result<Bytes> {
        let start = usize::try_from(offset).unwrap();
        if start >= self.readable {
            return Err(io::Error::other("disk broke"));
        }
        Ok(self.bytes.slice(start..(start + length).min(self.readable)))
    }
}

/// A registry whose core is the test.
struct Node<C = MemoryStore> {
    addr: SocketAddr,
    serving: Serving,
    store: C,
    kernel: Kernel,
    metrics: Metrics,
    pulls: Pulls<TcpDialer>,
    inputs: mpsc::Receiver<Input>,
    ready: watch::Sender<bool>,
    shutdown: CancellationToken,
    server: JoinHandle<()>,
}

impl<C: ContentStore> Node<C> {
    async fn start_on(store: C, trust: Trust, kernel: Kernel) -> Self {
        let (to_core, inputs) = mpsc::channel(16);
        let (ready, ready_receiver) = watch::channel(false);
        let (serving, metrics) = (Serving::default(), Metrics::new());
        let dialer = TcpDialer::new(kernel.clone());
        let pulls = Pulls::new(dialer, to_core.clone(), trust.clone(), metrics.clone());
        let registry = Registry {
            serving: serving.clone(),
            store: store.clone(),
            pulls: pulls.clone(),
            filters: Filters::new(&[], &["^filtered\\.test/".to_owned()]).unwrap(),
            trust,
            ready: ready_receiver,
            inputs: to_core,
            metrics: metrics.clone(),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (addr, shutdown) = (listener.local_addr().unwrap(), CancellationToken::new());
        let server = serve(listener, registry.into_router(), kernel.clone(), shutdown.clone(), DRAIN_MAX);
        let server = tokio::spawn(server);
        Self { addr, serving, store, kernel, metrics, pulls, inputs, ready, shutdown, server }
    }

    /// What the core hears next.
    async fn input(&mut self) -> Input {
        timeout(PATIENCE, self.inputs.recv()).await.expect("no input came").expect("inputs are open")
    }

    async fn pull_requested(&mut self) -> PullId {
        let Input::PullRequested { pull, .. } = self.input().await else { panic!("pull expected") };
        pull
    }

    /// The next input that is no progress report, and the bytes reported until then.
    async fn input_after_progress(&mut self) -> (Input, u64) {
        let mut total = 0;
        loop {
            let input = self.input().await;
            let Input::FetchProgressed { bytes, .. } = input else { return (input, total) };
            total += bytes;
        }
    }

    fn fetch(&self, pull: PullId, attempt: u32, addr: SocketAddr, skip: u64) {
        self.fetch_checked(pull, attempt, addr, skip, 0);
    }

    fn fetch_checked(&self, pull: PullId, attempt: u32, addr: SocketAddr, skip: u64, check_bytes_max: u64) {
        let (attempt, peer) = (AttemptId(attempt), PeerId::from_public_key(PEER));
        assert!(self.pulls.perform(&Output::Fetch { pull, attempt, peer, addr, skip, check_bytes_max }));
    }

    fn forward(&self, pull: PullId, attempt: u32) {
        let (attempt, report_interval) = (AttemptId(attempt), REPORT_INTERVAL);
        assert!(self.pulls.perform(&Output::Forward { pull, attempt, report_interval }));
    }
}

impl Node {
    async fn start() -> Self {
        Self::start_with(Trust::default()).await
    }

    async fn start_with(trust: Trust) -> Self {
        Self::start_on(MemoryStore::default(), trust, Kernel::new()).await
    }

    fn add(&self, content: &[u8]) -> Digest {
        self.add_broken(content, content.len())
    }

    fn add_broken(&self, content: &[u8], readable: usize) -> Digest {
        let digest = Digest::sha256_of(content);
        let blob = MemoryBlob { bytes: Bytes::copy_from_slice(content), readable };
        self.store.0.lock().unwrap().insert(digest, blob);
        self.serving.perform(&Output::ServeContent { digest, size: content.len() as u64 });
        digest
    }
}

fn basic_auth() -> Trust {
    let credentials = Some(Credentials::new(b"user", b"secret"));
    Trust::new(PeerId::from_public_key(PEER), credentials, None, Refusals::default())
}

/// A response as a client saw it, up to the end of the connection.
#[derive(Debug)]
struct Seen {
    status: u16,
    head: String,
    body: Vec<u8>,
    /// Whether the connection ended with FIN rather than RST.
    clean: bool,
}

impl Seen {
    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }
}

async fn connect(addr: SocketAddr, request: &str) -> TcpStream {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

async fn read_to_end(stream: &mut TcpStream) -> Seen {
    let mut bytes = Vec::new();
    let clean = timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.expect("no end came").is_ok();
    let split = bytes.windows(4).position(|window| window == b"\r\n\r\n").expect("a response has a head") + 4;
    let head = String::from_utf8(bytes[..split].to_vec()).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Seen { status, head, body: bytes[split..].to_vec(), clean }
}

/// The next answer on a connection that stays open.
async fn read_answer(stream: &mut TcpStream, has_body: bool) -> (String, Vec<u8>) {
    let read = async {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap();
        let mut lines = head
            .lines()
            .filter_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
        let mut body = vec![0; if has_body { lines.next().unwrap_or(0) } else { 0 }];
        stream.read_exact(&mut body).await.unwrap();
        (head, body)
    };
    timeout(PATIENCE, read).await.expect("no whole answer came")
}

fn request(method: &str, uri: &str, headers: &str) -> String {
    format!("{method} {uri} HTTP/1.1\r\nHost: mirror\r\n{headers}Connection: close\r\n\r\n")
}

async fn ask(addr: SocketAddr, method: &str, uri: &str, headers: &str) -> Seen {
    read_to_end(&mut connect(addr, &request(method, uri, headers)).await).await
}

/// Asks without waiting for the answer.
fn asking(addr: SocketAddr, method: &str, uri: &str, headers: &str) -> JoinHandle<Seen> {
    let request = request(method, uri, headers);
    tokio::spawn(async move { read_to_end(&mut connect(addr, &request).await).await })
}

async fn seen(client: JoinHandle<Seen>) -> Seen {
    timeout(PATIENCE, client).await.expect("no answer came").unwrap()
}

fn blob_uri(digest: &Digest) -> String {
    format!("/v2/library/app/blobs/{digest}?ns=docker.io")
}

fn manifest_uri(reference: impl std::fmt::Display) -> String {
    format!("/v2/library/app/manifests/{reference}?ns=docker.io")
}

/// What a peer does after its bytes were sent.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    Close,
    Stall,
}

/// A peer that answers one request with exactly these bytes. Gives back the request.
async fn scripted_peer(answer: Vec<u8>, then: Then) -> (SocketAddr, JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let peer = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let (mut request, mut byte) = (Vec::new(), [0]);
        while !request.ends_with(b"\r\n\r\n") {
            stream.read_exact(&mut byte).await.unwrap();
            request.push(byte[0]);
        }
        // The mirror may hang up on nonsense before all of it was written.
        let _ = stream.write_all(&answer).await;
        if then == Then::Stall {
            let _ = timeout(PATIENCE, stream.read_to_end(&mut Vec::new())).await;
        }
        String::from_utf8(request).unwrap()
    });
    (addr, peer)
}

/// Bytes that differ everywhere, so that any loss or repetition shows.
fn content(length: usize) -> Vec<u8> {
    (0..length).map(|at| u8::try_from((at * 31 + at / 251 * 7) % 256).unwrap()).collect()
}
