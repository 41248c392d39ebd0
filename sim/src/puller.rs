//! Pulls an image as containerd does: every manifest and blob from the mirror on its own node
//! first, and from the registry when the mirror says 404.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use spegel_core::oci::{Descriptor, Digest};
use tokio::time::sleep;
use turmoil::net::TcpStream;

use crate::{containerd::Containerd, image::Image};

/// How often containerd asks again for a body that ended early without any progress.
const RESUMES_MAX: u32 = 5;

/// How long the registry takes to answer.
const UPSTREAM_LATENCY: Duration = Duration::from_millis(50);

/// The registry that images come from.
#[derive(Clone, Debug, Default)]
pub struct Upstream(Arc<UpstreamState>);

#[derive(Debug, Default)]
struct UpstreamState {
    cut: AtomicBool,
    requests: AtomicU64,
}

impl Upstream {
    /// Takes it away, so that every request fails, or gives it back.
    pub fn set_cut(&self, is_cut: bool) {
        self.0.cut.store(is_cut, Ordering::Relaxed);
    }

    /// Requests that reached it, also those that failed.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.0.requests.load(Ordering::Relaxed)
    }

    async fn get(&self, image: &Image, digest: &Digest) -> io::Result<Bytes> {
        sleep(UPSTREAM_LATENCY).await;
        self.0.requests.fetch_add(1, Ordering::Relaxed);
        if self.0.cut.load(Ordering::Relaxed) {
            return Err(io::Error::other("the registry is cut off"));
        }
        image.content(digest).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

/// What one request got out of the mirror.
enum Mirrored {
    Whole(Bytes),
    /// The mirror said 404.
    Nothing,
    /// The body ended early.
    Part(Bytes),
}

/// Pulls `image` into `containerd`.
///
/// # Errors
///
/// When neither mirror nor registry gave some content, or the wrong one.
pub async fn pull(
    image: &Image,
    containerd: &Containerd,
    upstream: &Upstream,
    mirror: SocketAddr,
) -> io::Result<()> {
    let (_, _, tag) = image.parts();
    let mirror = Mirror { image, addr: mirror };
    // By tag first, as containerd resolves; what it names must be the image's manifest.
    let manifest = match mirror.get("manifests", tag, 0).await? {
        Mirrored::Whole(manifest) => manifest,
        Mirrored::Nothing | Mirrored::Part(_) => upstream.get(image, &image.manifest.digest).await?,
    };
    commit(containerd, &image.manifest, manifest).await?;
    for blob in &image.blobs {
        if containerd.has(&[blob.digest]) {
            continue;
        }
        let content = fetch_blob(&mirror, upstream, blob).await?;
        commit(containerd, blob, content).await?;
    }
    containerd.tell(containerd.name_image(&image.name, image.manifest.clone())).await;
    Ok(())
}

async fn fetch_blob(mirror: &Mirror<'_>, upstream: &Upstream, blob: &Descriptor) -> io::Result<Bytes> {
    let mut content = BytesMut::new();
    let mut resumes = 0;
    while resumes < RESUMES_MAX {
        match mirror.get("blobs", &blob.digest.to_string(), content.len()).await? {
            Mirrored::Whole(rest) => {
                content.extend_from_slice(&rest);
                return Ok(content.freeze());
            }
            Mirrored::Nothing => {
                let whole = upstream.get(mirror.image, &blob.digest).await?;
                content.extend_from_slice(&whole[content.len()..]);
                return Ok(content.freeze());
            }
            Mirrored::Part(part) => {
                resumes = if part.is_empty() { resumes + 1 } else { 0 };
                content.extend_from_slice(&part);
            }
        }
    }
    Err(io::Error::other(format!("body of {} ended early {RESUMES_MAX} times without progress", blob.digest)))
}

async fn commit(containerd: &Containerd, expected: &Descriptor, content: Bytes) -> io::Result<()> {
    if Digest::sha256_of(&content) != expected.digest {
        return Err(io::Error::other(format!("wrong content for {}", expected.digest)));
    }
    containerd.tell(containerd.store(expected.digest, content)).await;
    Ok(())
}

struct Mirror<'a> {
    image: &'a Image,
    addr: SocketAddr,
}

impl Mirror<'_> {
    async fn get(&self, kind: &str, reference: &str, offset: usize) -> io::Result<Mirrored> {
        let (registry, repository, _) = self.image.parts();
        // A mirror that is not there is no worse than one that has nothing.
        let Ok(stream) = TcpStream::connect(self.addr).await else { return Ok(Mirrored::Nothing) };
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(io::Error::other)?;
        tokio::spawn(connection);
        let mut request = Request::get(format!("/v2/{repository}/{kind}/{reference}?ns={registry}"))
            .header(header::HOST, "127.0.0.1");
        if offset > 0 {
            request = request.header(header::RANGE, format!("bytes={offset}-"));
        }
        let request = request.body(Empty::<Bytes>::new()).map_err(io::Error::other)?;
        let response = sender.send_request(request).await.map_err(io::Error::other)?;
        let expected = if offset > 0 { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
        if response.status() == StatusCode::NOT_FOUND {
            return Ok(Mirrored::Nothing);
        }
        if response.status() != expected {
            return Err(io::Error::other(format!("the mirror answered {}", response.status())));
        }
        let mut body = response.into_body();
        let mut content = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else { return Ok(Mirrored::Part(content.freeze())) };
            if let Some(data) = frame.data_ref() {
                content.extend_from_slice(data);
            }
        }
        Ok(Mirrored::Whole(content.freeze()))
    }
}
