//! The page over HTTP, as it is asked for.

use std::net::SocketAddr;

use axum::{
    body::{Body, to_bytes},
    extract::{ConnectInfo, Request},
};
use http::StatusCode;
use tower::ServiceExt as _;

use super::*;
use crate::shell;

/// Largest page that a test reads.
const PAGE_BYTES_MAX: usize = 1024 * 1024;

struct Seen {
    status: StatusCode,
    headers: http::HeaderMap,
    body: String,
}

/// What somebody at `from` is answered by a node whose core has ended.
async fn ask(guard: Guard, from: &str, path: &str) -> Seen {
    let (reports, _) = shell::reports();
    let page = DebugPage { reports: reports.clone(), checks: Checks::none(reports) };
    let mut request =
        Request::builder().uri(path).header(header::HOST, "localhost:9090").body(Body::empty()).unwrap();
    let from: SocketAddr = format!("{from}:40000").parse().unwrap();
    request.extensions_mut().insert(ConnectInfo(from));
    let (head, body) = router(page, guard).oneshot(request).await.unwrap().into_parts();
    let body = to_bytes(body, PAGE_BYTES_MAX).await.unwrap();
    Seen { status: head.status, headers: head.headers, body: String::from_utf8(body.to_vec()).unwrap() }
}

#[tokio::test]
async fn neighbours_see_nothing_but_how_to_see_it() {
    for path in ["/debug/web", "/debug/web/", "/debug/web/page.js"] {
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
