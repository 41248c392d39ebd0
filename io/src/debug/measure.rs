//! A live measurement: asks this node's own mirror for an image as containerd would, and says how long each
//! answer took. What is asked for, and for how long, [`spegel_core::measure`] decides.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::BytesMut;
use http::{Method, header};
use spegel_core::{
    ByteRange,
    measure::{MANIFESTS_TRIED_MAX, TIME_MAX, parts},
    oci::{Children, Digest, ImageName, MANIFEST_SIZE_MAX, parse_manifest},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::Mutex,
    time::{Instant, timeout},
};

use crate::{
    distribution::{ContentRequest, DIGEST_HEADER, Wanted},
    listen::reachable_here,
    peer::{ACCEPTED, parse_head},
    trust::Trust,
};

/// How much is read at once. Smaller costs system calls, which then are what is measured; larger only costs
/// memory.
const READ_BYTES: usize = 256 * 1024;

/// Most bytes kept of an answer that is an error: the mirror's are below 1 KiB.
const ERROR_BYTES_MAX: usize = 4096;

/// Measures the mirror of this node; clones share the turn.
#[derive(Clone, Debug)]
pub struct Measurer {
    /// Where the mirror listens; the first that takes a connection is asked.
    addrs: Arc<[SocketAddr]>,
    trust: Trust,
    /// One at a time: two would measure each other.
    turn: Arc<Mutex<()>>,
}

/// What a measurement came to.
#[derive(Debug, Default)]
pub(super) struct Measured {
    pub(super) steps: Vec<Step>,
    /// Why there are no more of them.
    pub(super) trouble: Option<String>,
}

/// One request.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) what: String,
    pub(super) bytes: u64,
    /// Until the head of the answer.
    pub(super) first_byte: Duration,
    /// Until its end.
    pub(super) took: Duration,
    pub(super) outcome: Result<(), String>,
}

/// An answer, as far as it is wanted.
struct Answer {
    digest: Option<Digest>,
    media_type: Option<String>,
    body: BytesMut,
}

impl Measurer {
    /// Asks the mirror at one of `addrs` and shows what `trust` wants of containerd.
    #[must_use]
    pub fn new(addrs: &[SocketAddr], trust: Trust) -> Self {
        Self { addrs: addrs.iter().map(|addr| reachable_here(*addr)).collect(), trust, turn: Arc::default() }
    }

    /// Measures one image, in no longer than [`TIME_MAX`].
    pub(super) async fn measure(&self, image: &ImageName) -> Measured {
        let mut measured = Measured::default();
        let Ok(_turn) = self.turn.try_lock() else {
            measured.trouble =
                Some("Another measurement is under way: two would measure each other.".to_owned());
            return measured;
        };
        match timeout(TIME_MAX, self.run(image, &mut measured.steps)).await {
            Ok(Ok(())) => {}
            Ok(Err(trouble)) => measured.trouble = Some(trouble),
            Err(_) => measured.trouble = Some(format!("Stopped after {} seconds.", TIME_MAX.as_secs())),
        }
        measured
    }

    async fn run(&self, image: &ImageName, steps: &mut Vec<Step>) -> Result<(), String> {
        let children = self.manifest(image, steps).await?;
        for part in parts(&children) {
            let request = content(image, Wanted::Blob(part.digest), Some(part.range), false);
            if self.step(format!("blob {}", part.digest), &request, steps).await.is_none() {
                return Err("A part of the image cannot be had from the cluster.".to_owned());
            }
        }
        Ok(())
    }

    /// What a manifest of the image points to: the tag is resolved first, and of an index the first manifest is
    /// taken that is there.
    async fn manifest(&self, image: &ImageName, steps: &mut Vec<Step>) -> Result<Children, String> {
        const NOBODY: &str = "The image cannot be had from the cluster.";
        let mut digest = image.digest;
        if let (None, Some(tag)) = (digest, &image.tag) {
            let request = content(image, Wanted::Tag(tag.clone()), None, true);
            let answer = self.step(format!("tag {tag}"), &request, steps).await.ok_or(NOBODY)?;
            digest = answer.digest;
        }
        let root = digest.ok_or("The answer does not say what the tag names.")?;
        let children = self.children(image, root, steps).await?.ok_or(NOBODY)?;
        if children.manifests.is_empty() {
            return Ok(children);
        }
        for manifest in children.manifests.iter().take(MANIFESTS_TRIED_MAX) {
            if let Some(children) = self.children(image, manifest.digest, steps).await? {
                return Ok(children);
            }
        }
        Err("None of the manifests of this image can be had from the cluster.".to_owned())
    }

    async fn children(
        &self,
        image: &ImageName,
        digest: Digest,
        steps: &mut Vec<Step>,
    ) -> Result<Option<Children>, String> {
        let request = content(image, Wanted::Manifest(digest), None, false);
        let Some(answer) = self.step(format!("manifest {digest}"), &request, steps).await else {
            return Ok(None);
        };
        let children = parse_manifest(answer.media_type.as_deref(), &answer.body);
        children.map(Some).map_err(|error| error.to_string())
    }

    /// One request; nothing if it was not answered with content.
    async fn step(&self, what: String, request: &ContentRequest, steps: &mut Vec<Step>) -> Option<Answer> {
        let began = Instant::now();
        let mut step =
            Step { what, bytes: 0, first_byte: Duration::ZERO, took: Duration::ZERO, outcome: Ok(()) };
        let answer = self.ask(request, began, &mut step).await;
        step.took = began.elapsed();
        let (outcome, answer) = match answer {
            Ok(answer) => (Ok(()), Some(answer)),
            Err(cause) => (Err(cause), None),
        };
        step.outcome = outcome;
        steps.push(step);
        answer
    }

    async fn ask(&self, request: &ContentRequest, began: Instant, step: &mut Step) -> Result<Answer, String> {
        let text = |error: std::io::Error| error.to_string();
        let mut stream = TcpStream::connect(&*self.addrs).await.map_err(text)?;
        stream.write_all(self.message(request).as_bytes()).await.map_err(text)?;
        let mut bytes = BytesMut::with_capacity(READ_BYTES);
        let (head, length) = loop {
            let malformed = |_| "The answer is not HTTP.".to_owned();
            if let Some(parsed) = parse_head(&bytes).map_err(malformed)? {
                break parsed;
            }
            if stream.read_buf(&mut bytes).await.map_err(text)? == 0 {
                return Err("The mirror hung up.".to_owned());
            }
        };
        step.first_byte = began.elapsed();
        let mut body = bytes.split_off(length);
        let header = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok());
        let announced = header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
        let announced: u64 = if request.head { 0 } else { announced };
        let is_kept = request.wanted.is_manifest() || !head.status.is_success();
        let kept_max = if head.status.is_success() {
            usize::try_from(MANIFEST_SIZE_MAX).unwrap_or(0)
        } else {
            ERROR_BYTES_MAX
        };
        step.bytes = body.len() as u64;
        while step.bytes < announced && !(is_kept && body.len() > kept_max) {
            if !is_kept {
                body.clear();
            }
            body.reserve(READ_BYTES);
            match stream.read_buf(&mut body).await.map_err(text)? {
                0 => return Err("The body ended early.".to_owned()),
                more => step.bytes += more as u64,
            }
        }
        if !head.status.is_success() {
            return Err(format!("{}{}", head.status, message_of(&body)));
        }
        let digest = header(DIGEST_HEADER).and_then(|digest| digest.parse().ok());
        Ok(Answer { digest, media_type: header("content-type").map(ToOwned::to_owned), body })
    }

    fn message(&self, request: &ContentRequest) -> String {
        let method = if request.head { Method::HEAD } else { Method::GET };
        let mut text = format!(
            "{method} {} HTTP/1.1\r\nhost: localhost\r\nuser-agent: spegel-measurement\r\nconnection: close\r\n",
            request.path_and_query()
        );
        let mut add = |name: &str, value: &str| {
            text.push_str(name);
            text.push_str(": ");
            text.push_str(value);
            text.push_str("\r\n");
        };
        ACCEPTED.iter().for_each(|media_type| add("accept", media_type));
        if let Some(range) = request.range {
            add("range", &range.to_string());
        }
        if let Some(authorization) = self.trust.as_client() {
            add(header::AUTHORIZATION.as_str(), &authorization);
        }
        text + "\r\n"
    }
}

fn content(image: &ImageName, wanted: Wanted, range: Option<ByteRange>, head: bool) -> ContentRequest {
    let (registry, repository) = (image.registry.clone(), image.repository.clone());
    ContentRequest { registry, repository, wanted, range, head }
}

/// What an error of the distribution-spec says.
fn message_of(body: &[u8]) -> String {
    let json: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let message = json.pointer("/errors/0/message").and_then(serde_json::Value::as_str);
    message.map_or_else(String::new, |message| format!(": {message}"))
}
