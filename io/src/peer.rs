//! Asks another node's registry: one connection per attempt, closed by dropping it. Has no
//! timeout, retry or choice of its own; the mirror drops an attempt when the core says so.
//!
//! A client of its own and not a library's, because the body must stay in the socket for the
//! kernel to move. It asks for one thing and understands the one kind of answer that a node gives:
//! a head, and a body whose length is in it. What else an answer may be, the mirror refuses.

use std::{
    fmt::Write as _,
    future::poll_fn,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderName, HeaderValue, Method, Response, StatusCode, response, uri::PathAndQuery};
use httparse::{EMPTY_HEADER, ParserConfig, Status};
use rustix::io::ioctl_fionread;
use spegel_core::{ByteRange, FetchError};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_util::io::poll_read_buf;

use crate::{
    distribution::MIRRORED_HEADER,
    net::{Dialer, Stream},
    trust::Shown,
};

/// Largest head of an answer, with those of interim answers before it. Those of nodes, here and in
/// Go, are below 1 KiB.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// Most headers of an answer.
const HEADERS_MAX: usize = 64;

/// How much of an answer is read at once while its head is looked for. Smaller costs system calls;
/// larger takes more of the body out of the socket than need be.
const HEAD_READ_BYTES: usize = 2048;

/// Most bytes read at once of a body that the kernel does not move. Smaller costs system calls;
/// larger is held by every pull whose client is slow.
const BODY_READ_BYTES_MAX: usize = 16 * 1024;

/// What a node may answer with, in the order that the Go implementation asks for it.
pub(crate) const ACCEPTED: [&str; 4] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];

/// What to ask a node for.
#[derive(Clone, Debug)]
pub(crate) struct PeerRequest {
    /// GET or HEAD.
    pub(crate) method: Method,
    pub(crate) path_and_query: String,
    pub(crate) range: Option<ByteRange>,
    pub(crate) shown: Shown,
}

/// A node's answer.
pub(crate) struct PeerResponse<S: Stream> {
    pub(crate) head: response::Parts,
    pub(crate) body: PeerBody<S>,
}

/// What follows the head, on the connection that it arrives on. How much of that is the body, the
/// reader must know.
pub(crate) struct PeerBody<S: Stream> {
    /// What was read already.
    ahead: Bytes,
    stream: S,
}

/// Sends a request and waits for the head of the answer. Dropping the future or the answer
/// closes the connection.
pub(crate) async fn fetch<D: Dialer>(
    dialer: &D,
    addr: SocketAddr,
    request: &PeerRequest,
) -> Result<PeerResponse<D::Stream>, FetchError> {
    let message = message(addr, request)?;
    let mut stream = dialer.dial(addr).await.map_err(|_| FetchError::Connect)?;
    stream.write_all(message.as_bytes()).await.map_err(|_| FetchError::Interrupted)?;
    let mut bytes = BytesMut::new();
    let (head, length) = loop {
        if let Some(parsed) = parse_head(&bytes)? {
            break parsed;
        }
        bytes.reserve(HEAD_READ_BYTES);
        match stream.read_buf(&mut bytes).await {
            Ok(0) | Err(_) => return Err(FetchError::Interrupted),
            Ok(_) => {}
        }
    };
    Ok(PeerResponse { head, body: PeerBody { ahead: bytes.split_off(length).freeze(), stream } })
}

impl<S: Stream> PeerBody<S> {
    /// All of a body of `length` bytes, which stays to be read.
    pub(crate) async fn read_ahead(&mut self, length: u64) -> Result<Bytes, FetchError> {
        let length = usize::try_from(length).map_err(|_| FetchError::Malformed)?;
        let mut all = BytesMut::new();
        while all.len() < length {
            all.extend_from_slice(&poll_fn(|cx| self.poll_chunk(cx, length - all.len())).await?);
        }
        self.ahead = all.freeze();
        Ok(self.ahead.clone())
    }

    /// The next bytes, `most` of them and not none. Nothing is lost while it is pending.
    pub(crate) fn poll_chunk(
        &mut self,
        cx: &mut Context<'_>,
        most: usize,
    ) -> Poll<Result<Bytes, FetchError>> {
        if !self.ahead.is_empty() {
            return Poll::Ready(Ok(self.ahead.split_to(most.min(self.ahead.len()))));
        }
        let mut bytes = BytesMut::with_capacity(most.min(BODY_READ_BYTES_MAX)).limit(most);
        match ready!(poll_read_buf(Pin::new(&mut self.stream), cx, &mut bytes)) {
            Ok(0) | Err(_) => Poll::Ready(Err(FetchError::Interrupted)),
            Ok(_) => Poll::Ready(Ok(bytes.into_inner().freeze())),
        }
    }

    /// Where the next bytes come from, if the kernel can take them from there.
    pub(crate) fn socket(&self) -> Option<&TcpStream> {
        if self.ahead.is_empty() { self.stream.socket() } else { None }
    }

    /// Whether bytes are there already, and have not been taken.
    pub(crate) fn has_arrived(&self) -> bool {
        let waiting = || self.stream.socket().and_then(|socket| ioctl_fionread(socket).ok());
        !self.ahead.is_empty() || waiting().is_some_and(|bytes| bytes > 0)
    }
}

fn message(addr: SocketAddr, request: &PeerRequest) -> Result<String, FetchError> {
    let method = &request.method;
    // Made of parts that were parsed, so that it is well formed; but nothing that ends the line may
    // ever be in it.
    let target: PathAndQuery = request.path_and_query.parse().map_err(|_| FetchError::Malformed)?;
    let mut text = format!(
        "{method} {target} HTTP/1.1\r\nhost: {addr}\r\nuser-agent: spegel\r\n{MIRRORED_HEADER}: true\r\n",
    );
    for media_type in ACCEPTED {
        add(&mut text, "accept", media_type);
    }
    if let Some(range) = request.range {
        add(&mut text, "range", &range.to_string());
    }
    if let Some((name, value)) = request.shown.header() {
        add(&mut text, name, value);
    }
    Ok(text + "\r\n")
}

fn add(text: &mut String, name: &str, value: &str) {
    write!(text, "{name}: {value}\r\n").expect("a string takes everything");
}

/// The head of an answer and its length in `bytes`, interim answers included; `None` if more is to
/// come.
///
/// # Errors
///
/// [`FetchError::Malformed`] as soon as it can no longer become one.
pub fn parse_head(bytes: &[u8]) -> Result<Option<(response::Parts, usize)>, FetchError> {
    let mut start = 0;
    loop {
        let mut headers = [EMPTY_HEADER; HEADERS_MAX];
        let mut head = httparse::Response::new(&mut headers);
        let parsed = ParserConfig::default().parse_response(&mut head, &bytes[start..]);
        match parsed.map_err(|_| FetchError::Malformed)? {
            Status::Partial if bytes.len() >= HEAD_BYTES_MAX => return Err(FetchError::Malformed),
            Status::Partial => return Ok(None),
            Status::Complete(length) => start += length,
        }
        if start > HEAD_BYTES_MAX {
            return Err(FetchError::Malformed);
        }
        let code = head.code.and_then(|code| StatusCode::from_u16(code).ok());
        let status = code.ok_or(FetchError::Malformed)?;
        if status == StatusCode::SWITCHING_PROTOCOLS {
            return Err(FetchError::Malformed);
        }
        if status.is_informational() {
            continue;
        }
        let (mut parts, ()) = Response::new(()).into_parts();
        parts.status = status;
        for header in head.headers.iter() {
            let name = HeaderName::from_bytes(header.name.as_bytes());
            let value = HeaderValue::from_bytes(header.value);
            let (Ok(name), Ok(value)) = (name, value) else { return Err(FetchError::Malformed) };
            parts.headers.append(name, value);
        }
        return Ok(Some((parts, start)));
    }
}
