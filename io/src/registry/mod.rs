//! The registry that containerd and other nodes ask (OCI distribution-spec, read only):
//! answers from local content, or else hands the request to the mirror. Does not decide what
//! is served, whom to ask, or when to give up: the core does, by [`Serving`] and
//! [`crate::mirror::Pulls`].

mod backlog;
mod body;
mod local;
mod patience;
mod server;
mod serving;

use std::sync::Arc;

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    response::Response,
};
use http::{Method, StatusCode, request::Parts};
use spegel_core::{Filters, Input};
use tokio::sync::{mpsc, watch};
use tracing::debug;

use self::body::Exact;
pub use self::{server::serve, serving::Serving};
use crate::{
    content::ContentStore,
    distribution::{self, ContentRequest, OciError, Wanted},
    metrics::Metrics,
    mirror::{Outcome, Pulls},
    net::Dialer,
    trust::Trust,
    zero_copy::Lane,
};

/// Everything that a registry answers from.
#[derive(Debug)]
pub struct Registry<C, D> {
    /// What is served locally.
    pub serving: Serving,
    /// Where its bytes are.
    pub store: C,
    /// Where the rest is pulled from.
    pub pulls: Pulls<D>,
    /// What may be mirrored.
    pub filters: Filters,
    /// Who is answered.
    pub trust: Trust,
    /// What `/readyz` says.
    pub ready: watch::Receiver<bool>,
    /// Where unreadable content is reported.
    pub inputs: mpsc::Sender<Input>,
    /// Where requests are counted.
    pub metrics: Metrics,
}

impl<C: ContentStore, D: Dialer> Registry<C, D> {
    /// The registry's endpoints, to be passed to [`serve`].
    pub fn into_router(self) -> Router {
        // One handler for everything: repositories have slashes, which no route pattern covers.
        Router::new().fallback(answer::<C, D>).with_state(Arc::new(self))
    }

    async fn endpoint(&self, request: &Parts) -> Result<Response, OciError> {
        let (method, path) = (&request.method, request.uri.path());
        let readable = matches!(*method, Method::GET | Method::HEAD);
        match path {
            "/livez" if readable => Ok(empty(StatusCode::OK)),
            "/readyz" if readable => {
                let ready = *self.ready.borrow();
                Ok(empty(if ready { StatusCode::OK } else { StatusCode::INTERNAL_SERVER_ERROR }))
            }
            "/livez" | "/readyz" => Err(OciError::MethodNotAllowed),
            path if path == "/v2" || path.starts_with("/v2/") => self.distribution(request).await,
            _ => Err(OciError::UnknownEndpoint),
        }
    }

    async fn distribution(&self, request: &Parts) -> Result<Response, OciError> {
        let admitted = self.trust.admit(request)?;
        let mut response = self.content(request).await?;
        admitted.sign(response.headers_mut());
        Ok(response)
    }

    async fn content(&self, request: &Parts) -> Result<Response, OciError> {
        let (method, headers) = (&request.method, &request.headers);
        if !matches!(*method, Method::GET | Method::HEAD) {
            return Err(OciError::MethodNotAllowed);
        }
        if distribution::is_base(request.uri.path()) {
            return Ok(empty(StatusCode::OK));
        }
        let content = distribution::parse(&request.uri, headers, method == Method::HEAD)?;
        let tag = match &content.wanted {
            Wanted::Tag(tag) => Some(tag.as_str()),
            Wanted::Manifest(_) | Wanted::Blob(_) => None,
        };
        if !self.filters.allows(&content.registry, content.repository.as_str(), tag) {
            let repository = content.repository.to_string();
            return Err(OciError::Filtered { registry: content.registry, repository });
        }
        let lane = request.extensions.get();
        let is_mirrored = distribution::is_mirrored(headers);
        if let Some(response) = self.local(&content, is_mirrored, lane).await {
            return response;
        }
        if is_mirrored {
            let (identifier, manifest) = (content.identifier(), content.wanted.is_manifest());
            return Err(OciError::NotLocal { identifier, manifest });
        }
        self.mirrored(content, lane).await
    }

    /// From local content; `None` where there is none.
    async fn local(
        &self,
        request: &ContentRequest,
        is_mirrored: bool,
        lane: Option<&Lane>,
    ) -> Option<Result<Response, OciError>> {
        let digest = match &request.wanted {
            Wanted::Tag(_) => self.serving.digest_of(&request.identifier())?,
            Wanted::Manifest(digest) | Wanted::Blob(digest) => *digest,
        };
        let size = self.serving.size_of(&digest)?;
        let response = match self.store.open(&digest, size).await {
            Ok(blob) if request.wanted.is_manifest() => {
                local::manifest(request, digest, &blob, &self.metrics).await
            }
            Ok(blob) => {
                let backlog = is_mirrored.then(|| self.serving.backlog());
                Ok(local::blob(request, digest, blob, lane, backlog, &self.metrics, &self.inputs))
            }
            Err(error) => Err(error),
        };
        match response {
            Ok(response) => Some(response),
            Err(cause) => {
                debug!(%digest, %cause, "content is unreadable");
                local::tell_unreadable(&self.inputs, digest);
                None
            }
        }
    }

    /// From another node.
    async fn mirrored(&self, request: ContentRequest, lane: Option<&Lane>) -> Result<Response, OciError> {
        let (identifier, manifest) = (request.identifier(), request.wanted.is_manifest());
        let head = request.head;
        match self.pulls.pull(request).await {
            Outcome::Forwarded { status, headers, length, body } => {
                let body =
                    if head { Body::empty() } else { Body::new(Exact::new(body.by_way_of(lane), length)) };
                Ok(local::response(status, headers, body))
            }
            Outcome::Refused { reason, attempts } => {
                Err(OciError::Refused { identifier, manifest, reason, attempts })
            }
        }
    }
}

async fn answer<C: ContentStore, D: Dialer>(
    State(registry): State<Arc<Registry<C, D>>>,
    request: Request,
) -> Response {
    let (request, _) = request.into_parts();
    let handler = match request.uri.path() {
        "/livez" => "/livez",
        "/readyz" => "/readyz",
        "/v2" => "/v2/*",
        path if path.starts_with("/v2/") => "/v2/*",
        _ => "other",
    };
    let observed = registry.metrics.http_request(handler, &request.method);
    let response = match registry.endpoint(&request).await {
        Ok(response) => response,
        Err(error) => {
            debug!(method = %request.method, uri = %request.uri, %error, "request not answered with content");
            error.into_response(&request.method)
        }
    };
    observed.observe(response)
}

fn empty(status: StatusCode) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}
