//! Pulls an image as containerd does: every manifest and blob from the mirror on its own node
//! first, and from the registry when the mirror says 404.

use std::{io, net::Ipv4Addr};

use bytes::{Bytes, BytesMut};
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use spegel_core::oci::{Descriptor, Digest};
use tokio::time::sleep;
use turmoil::net::TcpStream;

use crate::{
    containerd::{Containerd, LABEL_LATENCY},
    image::Image,
    kubelet::RESUMES_MAX,
    node::{REGISTRY_PORT, elapsed},
    node_port::NodePort,
    upstream::{self, Answer, THROTTLED_TRIES_MAX, Upstream},
};

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
    node_port: &NodePort,
) -> io::Result<()> {
    let mirror = Mirror { image, node_port, is_bypassed: containerd.bypasses_mirror() };
    // By tag only the head; what it names must be the image's manifest.
    if !mirror.resolves().await? {
        request_upstream(upstream).await?;
    }
    for wanted in std::iter::once(&image.manifest).chain(&image.blobs) {
        if !containerd.has(&[wanted.digest]) {
            let content = fetch(&mirror, upstream, wanted).await?;
            commit(containerd, wanted, content).await?;
        }
        containerd.label(&wanted.digest, image);
    }
    containerd.tell(containerd.name_image(&image.name, image.manifest.clone())).await;
    Ok(())
}

/// Asks the registry for anything, as containerd does.
async fn request_upstream(upstream: &Upstream) -> io::Result<()> {
    for _ in 0..THROTTLED_TRIES_MAX {
        sleep(upstream::LATENCY).await;
        match upstream.answer(elapsed()) {
            Answer::Given => return Ok(()),
            Answer::Throttled => {}
            Answer::Unreachable => return Err(io::Error::other("the registry is cut off")),
        }
    }
    Err(io::Error::other("429 Too Many Requests"))
}

async fn fetch(mirror: &Mirror<'_>, upstream: &Upstream, wanted: &Descriptor) -> io::Result<Bytes> {
    let kind = if wanted.digest == mirror.image.manifest.digest { "manifests" } else { "blobs" };
    let mut content = BytesMut::new();
    let mut resumes = 0;
    while resumes < RESUMES_MAX {
        match mirror.get(kind, &wanted.digest.to_string(), content.len()).await? {
            Mirrored::Whole(rest) => {
                content.extend_from_slice(&rest);
                return Ok(content.freeze());
            }
            Mirrored::Nothing => {
                request_upstream(upstream).await?;
                let whole = mirror.image.content(&wanted.digest).ok_or(io::ErrorKind::NotFound)?;
                content.extend_from_slice(&whole[content.len()..]);
                return Ok(content.freeze());
            }
            Mirrored::Part(part) => {
                resumes = if part.is_empty() { resumes + 1 } else { 0 };
                content.extend_from_slice(&part);
            }
        }
    }
    let digest = wanted.digest;
    Err(io::Error::other(format!("body of {digest} ended early {RESUMES_MAX} times without progress")))
}

async fn commit(containerd: &Containerd, expected: &Descriptor, content: Bytes) -> io::Result<()> {
    if Digest::sha256_of(&content) != expected.digest {
        return Err(io::Error::other(format!("wrong content for {}", expected.digest)));
    }
    containerd.tell(containerd.store(expected.digest, content)).await;
    sleep(LABEL_LATENCY).await;
    Ok(())
}

struct Mirror<'a> {
    image: &'a Image,
    node_port: &'a NodePort,
    is_bypassed: bool,
}

impl Mirror<'_> {
    /// Whether the mirror knows what the image's tag names.
    async fn resolves(&self) -> io::Result<bool> {
        let (_, _, tag) = self.image.parts();
        Ok(self.request(Method::HEAD, "manifests", tag, 0).await?.is_some())
    }

    async fn get(&self, kind: &str, reference: &str, offset: usize) -> io::Result<Mirrored> {
        let Some(mut body) = self.request(Method::GET, kind, reference, offset).await? else {
            return Ok(Mirrored::Nothing);
        };
        let mut content = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else { return Ok(Mirrored::Part(content.freeze())) };
            if let Some(data) = frame.data_ref() {
                content.extend_from_slice(data);
            }
        }
        Ok(Mirrored::Whole(content.freeze()))
    }

    /// The body of an answer, or `None` if the mirror has nothing.
    async fn request(
        &self,
        method: Method,
        kind: &str,
        reference: &str,
        offset: usize,
    ) -> io::Result<Option<Incoming>> {
        if self.is_bypassed {
            return Ok(None);
        }
        let (registry, repository, _) = self.image.parts();
        // A mirror that is not there is no worse than one that has nothing.
        let Ok(stream) = TcpStream::connect((Ipv4Addr::LOCALHOST, REGISTRY_PORT)).await else {
            self.node_port.find_nobody().await;
            return Ok(None);
        };
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(io::Error::other)?;
        tokio::spawn(connection);
        let mut request = Request::builder()
            .method(method)
            .uri(format!("/v2/{repository}/{kind}/{reference}?ns={registry}"))
            .header(header::HOST, "127.0.0.1");
        if offset > 0 {
            request = request.header(header::RANGE, format!("bytes={offset}-"));
        }
        let request = request.body(Empty::<Bytes>::new()).map_err(io::Error::other)?;
        // Nor is one that ends in the middle of it.
        let Ok(response) = sender.send_request(request).await else { return Ok(None) };
        let expected = if offset > 0 { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
        if response.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        if response.status() != expected {
            return Err(io::Error::other(format!("the mirror answered {}", response.status())));
        }
        Ok(Some(response.into_body()))
    }
}
