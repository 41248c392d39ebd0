//! Asks another node's registry: one connection per attempt, closed by dropping it. Has no
//! timeout, retry or choice of its own; the mirror drops an attempt when the core says so.

use std::{
    future::{Future, poll_fn},
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Method, Request, header, response};
use http_body::Body as _;
use http_body_util::Empty;
use hyper::{
    body::Incoming,
    client::conn::http1::{self, Connection},
};
use hyper_util::rt::TokioIo;
use spegel_core::{ByteRange, FetchError};

use crate::{
    distribution::{Credentials, MIRRORED_HEADER},
    net::{Dialer, Stream},
};

/// Largest head of an answer. Those of nodes, here and in Go, are below 1 KiB.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// Most headers of an answer.
const HEADERS_MAX: usize = 64;

/// Most bytes read at once. Smaller costs system calls; larger is held by every pull whose
/// client is slow.
const BUFFER_BYTES_MAX: usize = 128 * 1024;

/// What a node may answer with, in the order that the Go implementation asks for it.
const ACCEPTED: [&str; 4] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];

/// What to ask a node for.
#[derive(Clone, Debug)]
pub(crate) struct PeerRequest {
    /// HEAD instead of GET.
    pub(crate) head: bool,
    pub(crate) path_and_query: String,
    pub(crate) range: Option<ByteRange>,
    pub(crate) credentials: Option<Credentials>,
}

/// A node's answer.
pub(crate) struct PeerResponse<S: Stream> {
    pub(crate) head: response::Parts,
    pub(crate) body: PeerBody<S>,
}

type PeerConnection<S> = Connection<TokioIo<S>, Empty<Bytes>>;

/// The body of an answer, together with the connection that it arrives on.
pub(crate) struct PeerBody<S: Stream> {
    /// All of it, once it was read ahead.
    ahead: Option<Bytes>,
    body: Incoming,
    /// `None` once all has been read from it.
    connection: Option<PeerConnection<S>>,
}

/// Sends a request and waits for the head of the answer. Dropping the future or the answer
/// closes the connection.
pub(crate) async fn fetch<D: Dialer>(
    dialer: &D,
    addr: SocketAddr,
    request: &PeerRequest,
) -> Result<PeerResponse<D::Stream>, FetchError> {
    let message = message(addr, request)?;
    let stream = dialer.dial(addr).await.map_err(|_| FetchError::Connect)?;
    let (mut sender, connection) = http1::Builder::new()
        .max_headers(HEADERS_MAX)
        .max_buf_size(BUFFER_BYTES_MAX)
        .max_header_size(HEAD_BYTES_MAX)
        .handshake::<_, Empty<Bytes>>(TokioIo::new(stream))
        .await
        .map_err(|error| cause(&error))?;
    let mut connection = Some(connection);
    let mut answer = std::pin::pin!(sender.send_request(message));
    let answer = poll_fn(|cx| {
        if let Poll::Ready(answer) = answer.as_mut().poll(cx) {
            return Poll::Ready(answer);
        }
        drive(&mut connection, cx);
        answer.as_mut().poll(cx)
    });
    let (head, body) = answer.await.map_err(|error| cause(&error))?.into_parts();
    Ok(PeerResponse { head, body: PeerBody { ahead: None, body, connection } })
}

impl<S: Stream> PeerBody<S> {
    /// The next bytes; `None` after the last. Nothing is lost when the future is dropped.
    pub(crate) async fn chunk(&mut self) -> Option<Result<Bytes, FetchError>> {
        poll_fn(|cx| self.poll_chunk(cx)).await
    }

    /// All of a body of `length` bytes, which stays to be read.
    pub(crate) async fn read_ahead(&mut self, length: u64) -> Result<Bytes, FetchError> {
        let mut all = BytesMut::new();
        while (all.len() as u64) < length {
            let chunk = self.chunk().await.ok_or(FetchError::Interrupted)??;
            all.extend_from_slice(&chunk);
        }
        let all = all.freeze();
        self.ahead = Some(all.clone());
        Ok(all)
    }

    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, FetchError>>> {
        if let Some(ahead) = self.ahead.take_if(|ahead| !ahead.is_empty()) {
            return Poll::Ready(Some(Ok(ahead)));
        }
        loop {
            let frame = match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Ready(frame) => frame,
                Poll::Pending => {
                    drive(&mut self.connection, cx);
                    ready!(Pin::new(&mut self.body).poll_frame(cx))
                }
            };
            match frame {
                None => return Poll::Ready(None),
                Some(Err(error)) => return Poll::Ready(Some(Err(cause(&error)))),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Poll::Ready(Some(Ok(data)));
                    }
                }
            }
        }
    }
}

/// Lets the connection read and write. Its errors reach the request or the body as well.
fn drive<S: Stream>(connection: &mut Option<PeerConnection<S>>, cx: &mut Context<'_>) {
    if let Some(running) = connection
        && Pin::new(running).poll(cx).is_ready()
    {
        *connection = None;
    }
}

fn message(addr: SocketAddr, request: &PeerRequest) -> Result<Request<Empty<Bytes>>, FetchError> {
    let mut builder = Request::builder()
        .method(if request.head { Method::HEAD } else { Method::GET })
        .uri(&request.path_and_query)
        .header(header::HOST, addr.to_string())
        .header(header::USER_AGENT, "spegel")
        .header(MIRRORED_HEADER, "true");
    for media_type in ACCEPTED {
        builder = builder.header(header::ACCEPT, HeaderValue::from_static(media_type));
    }
    if let Some(range) = request.range {
        builder = builder.header(header::RANGE, range.to_string());
    }
    if let Some(credentials) = &request.credentials {
        builder = builder.header(header::AUTHORIZATION, credentials.header());
    }
    // The path is made of parts that were parsed, so this does not happen.
    builder.body(Empty::new()).map_err(|_| FetchError::Malformed)
}

fn cause(error: &hyper::Error) -> FetchError {
    if error.is_parse() { FetchError::Malformed } else { FetchError::Interrupted }
}
