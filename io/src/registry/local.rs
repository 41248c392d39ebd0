//! Responses from this node's own content store.

use std::{io, sync::Arc};

use axum::{body::Body, response::Response};
use bytes::Bytes;
use futures::{Stream, stream};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use spegel_core::{
    ContentRange, Input,
    oci::{Digest, MANIFEST_SIZE_MAX, media_type_of},
};
use tokio::sync::mpsc;
use tracing::debug;

use super::{
    backlog::{Backlog, Owed},
    body::Exact,
};
use crate::{
    content::Blob,
    distribution::{BACKLOG_HEADER, ContentRequest, DIGEST_HEADER, OciError},
    metrics::{Metrics, Source},
    zero_copy::{self, Call, Lane, SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN},
};

/// How much of a blob is read at once where the kernel cannot send it. Smaller costs system calls;
/// larger is held by every client that is slow.
const CHUNK_BYTES: usize = 256 * 1024;

/// Names the registry that content is served on behalf of, as the Go implementation does.
const NAMESPACE_HEADER: &str = "oci-namespace";

/// The whole of a manifest, with the media type that it gives itself.
pub(super) async fn manifest<B: Blob>(
    request: &ContentRequest,
    digest: Digest,
    blob: &B,
    metrics: &Metrics,
) -> io::Result<Result<Response, OciError>> {
    let not_a_manifest = || OciError::NotAManifest { identifier: request.identifier() };
    if blob.size() > MANIFEST_SIZE_MAX {
        return Ok(Err(not_a_manifest()));
    }
    let bytes = read_whole(blob).await?;
    let content_type = media_type_of(&bytes).and_then(|media_type| HeaderValue::try_from(media_type).ok());
    let Some(content_type) = content_type else { return Ok(Err(not_a_manifest())) };
    let mut headers = headers(request, digest, bytes.len() as u64);
    headers.insert(header::CONTENT_TYPE, content_type);
    let body = if request.head {
        Body::empty()
    } else {
        metrics.bytes_served(Source::Local, bytes.len() as u64);
        Body::from(bytes)
    };
    Ok(Ok(response(StatusCode::OK, headers, body)))
}

/// The whole or a part of a blob. A manifest that is asked for as a blob is served as one. Another node
/// is told of the backlog.
pub(super) fn blob<B: Blob>(
    request: &ContentRequest,
    digest: Digest,
    blob: B,
    lane: Option<&Lane>,
    backlog: Option<&Backlog>,
    metrics: &Metrics,
    inputs: &mpsc::Sender<Input>,
) -> Result<Response, OciError> {
    let size = blob.size();
    let (status, first, length, content_range) = match request.range {
        None => (StatusCode::OK, 0, size, None),
        Some(range) => {
            let resolved = range.resolve(size).map_err(|_| OciError::RangeInvalid { size })?;
            let content_range = ContentRange::new(resolved.0, resolved.1, size);
            (StatusCode::PARTIAL_CONTENT, resolved.0, resolved.1, content_range)
        }
    };
    let mut headers = headers(request, digest, length);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if let Some(range) = content_range {
        let range = HeaderValue::try_from(range.to_string()).expect("digits are visible ASCII");
        headers.insert(header::CONTENT_RANGE, range);
    }
    let owed = backlog.map(|backlog| {
        let (owed, before) = backlog.owe(if request.head { 0 } else { length });
        headers.insert(BACKLOG_HEADER, HeaderValue::from(before));
        owed
    });
    let body = if request.head {
        Body::empty()
    } else {
        let reading = Reading {
            blob,
            digest,
            offset: first,
            end: first + length,
            lane: lane.filter(|_| length >= SEGMENT_BYTES_MIN).cloned(),
            owed,
            metrics: metrics.clone(),
            inputs: inputs.clone(),
        };
        Body::new(Exact::new(Box::pin(reading.chunks()), length))
    };
    Ok(response(status, headers, body))
}

fn headers(request: &ContentRequest, digest: Digest, length: u64) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let digest = HeaderValue::try_from(digest.to_string()).expect("a digest is visible ASCII");
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    headers.insert(DIGEST_HEADER, digest);
    if let Ok(registry) = HeaderValue::try_from(&request.registry) {
        headers.insert(NAMESPACE_HEADER, registry);
    }
    headers
}

pub(super) fn response(status: StatusCode, headers: HeaderMap, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

async fn read_whole<B: Blob>(blob: &B) -> io::Result<Bytes> {
    let size = usize::try_from(blob.size()).map_err(|_| io::ErrorKind::FileTooLarge)?;
    let mut whole = Vec::with_capacity(size);
    while whole.len() < size {
        let chunk = blob.read_at(whole.len() as u64, size - whole.len()).await?;
        if chunk.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        whole.extend_from_slice(&chunk);
    }
    Ok(whole.into())
}

/// A blob on its way to a client.
struct Reading<B> {
    blob: B,
    digest: Digest,
    offset: u64,
    end: u64,
    /// Of the client's connection.
    lane: Option<Lane>,
    /// To another node.
    owed: Option<Owed>,
    metrics: Metrics,
    inputs: mpsc::Sender<Input>,
}

impl<B: Blob> Reading<B> {
    /// Ends early where the blob cannot be read on.
    fn chunks(self) -> impl Stream<Item = Bytes> + Send {
        stream::unfold(self, async |mut reading| {
            if reading.offset == reading.end {
                return None;
            }
            match reading.next().await {
                Ok(chunk) => {
                    reading.offset += chunk.len() as u64;
                    reading.owed.iter_mut().for_each(|owed| owed.sent(chunk.len() as u64));
                    reading.metrics.bytes_served(Source::Local, chunk.len() as u64);
                    Some((chunk, reading))
                }
                Err(cause) => {
                    debug!(digest = %reading.digest, %cause, "content became unreadable");
                    tell_unreadable(&reading.inputs, reading.digest);
                    None
                }
            }
        })
    }

    /// The next bytes, or a frame that stands for them; never more than remain, and not none.
    async fn next(&self) -> io::Result<Bytes> {
        let up_to = |most| usize::try_from(self.end - self.offset).map_or(most, |rest| rest.min(most));
        if let Some(lane) = self.lane.as_ref().filter(|lane| lane.is_open(Call::Sendfile))
            && let Some(file) = self.blob.file()
        {
            let length = up_to(SEGMENT_BYTES_MAX);
            zero_copy::load(file, self.offset, length as u64).await?;
            return lane.file(Arc::clone(file), self.offset, length);
        }
        let length = up_to(CHUNK_BYTES);
        let mut chunk = self.blob.read_at(self.offset, length).await?;
        chunk.truncate(length);
        if chunk.is_empty() { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(chunk) }
    }
}

/// Lets the core look again. A full queue loses the message rather than hold up the client: the
/// next request for the same content sends another.
pub(super) fn tell_unreadable(inputs: &mpsc::Sender<Input>, digest: Digest) {
    if inputs.try_send(Input::ContentUnreadable { digest }).is_err() {
        debug!(%digest, "core is too busy to hear of unreadable content");
    }
}
