//! The debug page at `/debug/web/`, beside the metrics: what this node knows, for a person. Everything
//! that it needs is in this program. Decides nothing, except who may see it ([`Guard`]).

mod guard;
mod html;
mod measure;
mod page;
mod pulls;
mod tools;

use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, RawQuery, State},
    response::{IntoResponse, Redirect, Response},
    routing,
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header};
use spegel_core::oci::Sought;

pub use self::guard::{Guard, TokenFileError};
pub use self::measure::Measurer;
use self::{
    page::View,
    tools::{Measurement, NAME_BYTES_MAX, Search},
};
use crate::{check::Checks, clock, mirror::PullHistory, questions::Questions, shell::Reports};

/// What a browser may do with the page: nothing that comes from elsewhere, even if some of it got into it.
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; img-src data:; connect-src 'self'; \
                      form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// Largest form that is read, in bytes: a name, each of whose characters may be written as three.
const FORM_BYTES_MAX: usize = 4 * NAME_BYTES_MAX;

/// What the page is made from; clones share it.
#[derive(Clone, Debug)]
pub struct DebugPage {
    /// What the core knows.
    pub reports: Reports,
    /// What the check found.
    pub checks: Checks,
    /// What became of the last pulls.
    pub pulls: PullHistory,
    /// Who has something.
    pub questions: Questions,
    /// How fast it comes.
    pub measurer: Measurer,
}

/// `/debug/web/` and what belongs to it, to be protected by a [`Guard`].
pub fn router(page: DebugPage) -> Router {
    Router::new()
        .route("/debug/web", routing::get(async || Redirect::permanent("/debug/web/")))
        .route("/debug/web/", routing::get(show))
        .route("/debug/web/measure", routing::post(measure).layer(DefaultBodyLimit::max(FORM_BYTES_MAX)))
        .route("/debug/web/page.css", routing::get(style))
        .route("/debug/web/page.js", routing::get(script))
        .with_state(page)
}

async fn show(State(page): State<DebugPage>, RawQuery(query): RawQuery) -> impl IntoResponse {
    let search = match field(query.unwrap_or_default().as_bytes(), "q") {
        Some(text) => Some(search(&page.questions, text).await),
        None => None,
    };
    rendered(&page, search.as_ref(), None).await
}

async fn search(questions: &Questions, text: String) -> Search {
    let answer = match text.parse::<Sought>() {
        Ok(sought) => {
            let found = questions.holders(sought.key()).await;
            Ok((sought, found))
        }
        Err(error) => Err(error),
    };
    Search { text, answer }
}

async fn measure(State(page): State<DebugPage>, headers: HeaderMap, form: Bytes) -> Response {
    if !is_from_this_page(&headers) {
        return (StatusCode::FORBIDDEN, "Only this page itself may start a measurement.\n").into_response();
    }
    let text = field(&form, "image").unwrap_or_default();
    let answer = match text.parse() {
        Ok(Sought::Image(image)) => Ok(page.measurer.measure(&image).await),
        Ok(Sought::Content(_)) => {
            Err("A digest alone does not say of which repository it is: name an image.".to_owned())
        }
        Err(error) => Err(format!("That is no name: {error}.")),
    };
    rendered(&page, None, Some(&Measurement { text, answer })).await.into_response()
}

async fn rendered(
    page: &DebugPage,
    search: Option<&Search>,
    measurement: Option<&Measurement>,
) -> impl IntoResponse + use<> {
    let (report, findings) = (page.reports.report().await, page.checks.findings());
    let view = View {
        report: report.as_ref(),
        findings: &findings,
        pulls: &page.pulls.latest(),
        search,
        measurement,
        now: clock::now(),
        now_unix_ms: clock::unix_ms(),
    };
    asset("text/html; charset=utf-8", page::render(&view))
}

/// A field of a form, unless it is empty or longer than any name.
fn field(form: &[u8], name: &str) -> Option<String> {
    let (_, value) = form_urlencoded::parse(form).find(|(field, _)| field == name)?;
    let value = value.trim();
    (1..=NAME_BYTES_MAX).contains(&value.len()).then(|| value.to_owned())
}

/// Browsers say which page a form is of; a page of somebody else could otherwise make a browser that sees this
/// one measure all day.
fn is_from_this_page(headers: &HeaderMap) -> bool {
    let text = |name| headers.get(name).map(|value: &HeaderValue| value.to_str().unwrap_or_default());
    let Some(origin) = text(header::ORIGIN) else {
        // No browser: whoever can leave it out can be let in by other means.
        return true;
    };
    let authority = origin.parse::<Uri>().ok().and_then(|origin| origin.authority().cloned());
    authority.is_some_and(|authority| text(header::HOST) == Some(authority.as_str()))
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
        // Stricter, and the form of this page would not say where it comes from.
        (header::REFERRER_POLICY, "same-origin"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    (headers.map(|(name, value)| (name, HeaderValue::from_static(value))), body)
}

#[cfg(test)]
mod tests;
