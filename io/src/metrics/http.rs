//! Durations and sizes of HTTP responses. A response counts when its body has ended or was
//! dropped, because that is when the client has been served.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use axum::{
    body::Body,
    extract::{Request, State},
    middleware::Next,
    response::Response,
};
use bytes::Bytes;
use http::Method;
use http_body::{Frame, SizeHint};
use tokio::time::Instant;

use super::Metrics;

impl Metrics {
    /// A request came in. It counts as running until the result is finished or dropped.
    pub(crate) fn http_request(&self, handler: &'static str, method: &Method) -> HttpRequest {
        self.0.http_inflight.get_or_create(&[("handler", handler.into())]).inc();
        // Methods are free text: anyone could fill memory with made-up ones.
        let method = match *method {
            Method::GET => "GET",
            Method::HEAD => "HEAD",
            _ => "other",
        };
        HttpRequest { metrics: self.clone(), handler, method, began: Instant::now() }
    }
}

/// A request that is being answered.
pub(crate) struct HttpRequest {
    metrics: Metrics,
    handler: &'static str,
    method: &'static str,
    began: Instant,
}

impl HttpRequest {
    /// The response ended.
    pub(super) fn finish(self, status: u16, bytes: u64) {
        let labels =
            [("handler", self.handler.into()), ("method", self.method.into()), ("code", status.to_string())];
        let families = &self.metrics.0;
        families.http_duration.get_or_create(&labels).observe(self.began.elapsed().as_secs_f64());
        #[expect(clippy::cast_precision_loss, reason = "a histogram of sizes needs no 53 bits")]
        families.http_size.get_or_create(&labels).observe(bytes as f64);
    }

    /// Finishes when the body of `response` does.
    pub(crate) fn observe(self, response: Response) -> Response {
        let status = response.status().as_u16();
        response.map(|body| Body::new(Observed { body, bytes: 0, status, request: Some(self) }))
    }
}

impl Drop for HttpRequest {
    fn drop(&mut self) {
        self.metrics.0.http_inflight.get_or_create(&[("handler", self.handler.into())]).dec();
    }
}

/// The router on the metrics address.
pub(super) async fn observe_debug(State(metrics): State<Metrics>, request: Request, next: Next) -> Response {
    let handler = match request.uri().path() {
        "/debug/web/check" => "/debug/web/check",
        "/debug/web/metadata" => "/debug/web/metadata",
        path if path.starts_with("/debug/web/") => "/debug/web/*",
        path if path.starts_with("/debug/pprof/") => "/debug/pprof/*",
        "/metrics" => "/metrics",
        _ => "other",
    };
    let observed = metrics.http_request(handler, request.method());
    observed.observe(next.run(request).await)
}

struct Observed {
    body: Body,
    bytes: u64,
    status: u16,
    request: Option<HttpRequest>,
}

impl http_body::Body for Observed {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let Some(data) = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref()) {
            self.bytes += data.len() as u64;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Observed {
    fn drop(&mut self) {
        if let Some(request) = self.request.take() {
            request.finish(self.status, self.bytes);
        }
    }
}
