//! The page over HTTP, as it is asked for.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use axum::{
    body::{Body, to_bytes},
    extract::{ConnectInfo, Request},
};
use http::StatusCode;
use tokio::sync::mpsc;
use tower::ServiceExt as _;

use super::*;
use crate::{shell, trust::Trust};

/// Nobody listens there.
const NOWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 1);

/// Largest page that a test reads.
const PAGE_BYTES_MAX: usize = 1024 * 1024;

struct Seen {
    status: StatusCode,
    headers: HeaderMap,
    body: String,
}

/// What somebody at `from` is answered by a node whose core has ended.
async fn ask(guard: Guard, from: &str, path: &str) -> Seen {
    answer(guard, from, Request::get(path).body(Body::empty()).unwrap(), NOWHERE).await
}

/// The same for any request; `mirror` is where the node's registry is.
async fn answer(guard: Guard, from: &str, mut request: Request, mirror: SocketAddr) -> Seen {
    let (reports, _) = shell::reports();
    let questions = Questions::new(mpsc::channel(1).0);
    let measurer = Measurer::new(&[mirror], Trust::default());
    let page = DebugPage {
        reports: reports.clone(),
        checks: Checks::none(reports),
        pulls: PullHistory::default(),
        questions,
        measurer,
    };
    let from: SocketAddr = format!("{from}:40000").parse().unwrap();
    request.headers_mut().insert(header::HOST, HeaderValue::from_static("localhost:9090"));
    request.extensions_mut().insert(ConnectInfo(from));
    let (head, body) = guard.protect(router(page)).oneshot(request).await.unwrap().into_parts();
    let body = to_bytes(body, PAGE_BYTES_MAX).await.unwrap();
    Seen { status: head.status, headers: head.headers, body: String::from_utf8(body.to_vec()).unwrap() }
}

#[tokio::test]
async fn neighbours_see_nothing_but_how_to_see_it() {
    for path in
        ["/debug/web", "/debug/web/", "/debug/web/?q=nginx", "/debug/web/measure", "/debug/web/page.js"]
    {
        let seen = ask(Guard::Loopback, "10.0.0.7", path).await;
        assert_eq!(seen.status, StatusCode::FORBIDDEN, "{path}");
        assert!(seen.body.contains("port-forward") && !seen.body.contains("<html"), "{}", seen.body);
        let seen = ask(Guard::Token([0; 32]), "10.0.0.7", path).await;
        assert_eq!(seen.status, StatusCode::UNAUTHORIZED, "{path}");
        assert!(seen.headers[header::WWW_AUTHENTICATE].to_str().unwrap().starts_with("Basic realm="));
    }
    assert_eq!(ask(Guard::Loopback, "127.0.0.1", "/debug/web/").await.status, StatusCode::OK);
}

#[tokio::test]
async fn page_needs_nothing_from_elsewhere() {
    let page = ask(Guard::Loopback, "127.0.0.1", "/debug/web/").await;
    assert_eq!(page.headers[header::CONTENT_TYPE], "text/html; charset=utf-8");
    assert!(
        page.headers[header::CONTENT_SECURITY_POLICY].to_str().unwrap().starts_with("default-src 'none'")
    );
    assert!(page.body.contains("This node is ending."), "{}", page.body);
    let mut wanted = Vec::new();
    for attribute in ["src=\"", "href=\""] {
        wanted.extend(page.body.split(attribute).skip(1).map(|rest| rest.split('"').next().unwrap()));
    }
    for target in wanted.iter().filter(|target| !target.starts_with(['#']) && **target != "data:,") {
        assert!(!target.contains(':') && !target.contains('/'), "{target} is not beside the page");
        let seen = ask(Guard::Loopback, "127.0.0.1", &format!("/debug/web/{target}")).await;
        assert_eq!(seen.status, StatusCode::OK, "{target}");
        assert!(!seen.body.contains("http:") && !seen.body.contains("https:"), "{target}");
    }
    assert!(wanted.contains(&"page.css") && wanted.contains(&"page.js"), "{wanted:?}");
}

#[tokio::test]
async fn search_is_answered_on_the_page_and_says_what_is_no_name() {
    let seen = ask(Guard::Loopback, "127.0.0.1", "/debug/web/?q=nginx%3A1").await;
    assert!(
        seen.body.contains("value=\"nginx:1\"") && seen.body.contains("<div role=\"status\">"),
        "{}",
        seen.body
    );
    let seen = ask(Guard::Loopback, "127.0.0.1", "/debug/web/?q=%3Cscript%3E").await;
    assert!(seen.body.contains("That is no name") && !seen.body.contains("<script>"), "{}", seen.body);
    for nothing in [
        "/debug/web/?q=",
        "/debug/web/?q=+",
        "/debug/web/?x=y",
        &format!("/debug/web/?q={}", "a".repeat(1025)),
    ] {
        let seen = ask(Guard::Loopback, "127.0.0.1", nothing).await;
        assert!(!seen.body.contains("role=\"status\""), "{nothing}: {}", seen.body);
    }
}

fn measure(origin: Option<&str>, form: &str) -> Request {
    let mut request = Request::post("/debug/web/measure").body(Body::from(form.to_owned())).unwrap();
    origin.map(|origin| request.headers_mut().insert(header::ORIGIN, origin.parse().unwrap()));
    request
}

#[tokio::test]
async fn only_the_page_itself_starts_a_measurement() {
    for (origin, status) in [
        (Some("http://localhost:9090"), StatusCode::OK),
        (None, StatusCode::OK),
        (Some("http://elsewhere.example"), StatusCode::FORBIDDEN),
        (Some("http://localhost"), StatusCode::FORBIDDEN),
        (Some("null"), StatusCode::FORBIDDEN),
    ] {
        let seen = answer(Guard::Loopback, "127.0.0.1", measure(origin, "image=nginx"), NOWHERE).await;
        assert_eq!(seen.status, status, "{origin:?}");
    }
    let large = measure(None, &format!("image={}", "a".repeat(FORM_BYTES_MAX)));
    let seen = answer(Guard::Loopback, "127.0.0.1", large, NOWHERE).await;
    assert_eq!(seen.status, StatusCode::PAYLOAD_TOO_LARGE);
}

#[tokio::test]
async fn measurement_says_what_went_wrong() {
    for (form, told) in [
        ("image=nginx", "The image cannot be had from the cluster."),
        ("image=nginx", "Connection refused"),
        ("image=%3Cb%3E", "That is no name"),
        ("image=", "That is no name"),
        ("image=sha256%3Ae3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", "name an image"),
    ] {
        let seen = answer(Guard::Loopback, "127.0.0.1", measure(None, form), NOWHERE).await;
        assert!(seen.body.contains(told), "{form}: {}", seen.body);
    }
}
