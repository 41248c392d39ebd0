//! The debug page at `/debug/web/`, beside the metrics: what this node knows, for a person. Everything
//! that it needs is in this program. Decides nothing, except who may see it ([`Guard`]).

mod guard;
mod html;
mod page;

use axum::{
    Router,
    extract::State,
    middleware,
    response::{IntoResponse, Redirect},
    routing,
};
use http::{HeaderName, HeaderValue, header};

pub use self::guard::{Guard, TokenFileError};
use self::page::View;
use crate::{check::Checks, clock, shell::Reports};

/// What a browser may do with the page: nothing that comes from elsewhere, even if some of it got into it.
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; img-src data:; connect-src 'self'; \
                      form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// What the page is made from; clones share it.
#[derive(Clone, Debug)]
pub struct DebugPage {
    /// What the core knows.
    pub reports: Reports,
    /// What the check found.
    pub checks: Checks,
}

/// `/debug/web/` and what belongs to it, for those whom `guard` lets in.
pub fn router(page: DebugPage, guard: Guard) -> Router {
    Router::new()
        .route("/debug/web", routing::get(async || Redirect::permanent("/debug/web/")))
        .route("/debug/web/", routing::get(show))
        .route("/debug/web/page.css", routing::get(style))
        .route("/debug/web/page.js", routing::get(script))
        .route_layer(middleware::from_fn_with_state(guard, guard::check))
        .with_state(page)
}

async fn show(State(page): State<DebugPage>) -> impl IntoResponse {
    let (report, findings) = (page.reports.report().await, page.checks.findings());
    let view = View { report: report.as_ref(), findings: &findings, now: clock::now() };
    asset("text/html; charset=utf-8", page::render(&view))
}

async fn style() -> impl IntoResponse {
    asset("text/css; charset=utf-8", include_str!("page.css"))
}

async fn script() -> impl IntoResponse {
    asset("text/javascript; charset=utf-8", include_str!("page.js"))
}

fn asset(kind: &'static str, body: impl IntoResponse) -> impl IntoResponse {
    let headers: [(HeaderName, &'static str); 5] = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    (headers.map(|(name, value)| (name, HeaderValue::from_static(value))), body)
}

#[cfg(test)]
mod tests;
