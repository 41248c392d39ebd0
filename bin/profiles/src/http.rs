//! Profiles over HTTP, where Go's tools look for them. Who may have them is for others to say.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::{
    Router,
    extract::RawQuery,
    response::{IntoResponse, Response},
    routing,
};
use http::{HeaderValue, StatusCode, header};
use tokio::{task::spawn_blocking, time::sleep};

use crate::{
    cpu::{CpuProfile, SECONDS_DEFAULT, SECONDS_MAX},
    heap,
};

/// `/debug/pprof/profile?seconds=` and `/debug/pprof/heap`.
pub fn router() -> Router {
    Router::new()
        .route("/debug/pprof/profile", routing::get(processor))
        .route("/debug/pprof/heap", routing::get(memory))
}

async fn processor(RawQuery(query): RawQuery) -> Response {
    let Some(seconds) = seconds(&query.unwrap_or_default()) else {
        let told = format!("seconds must be a number from 1 to {SECONDS_MAX}\n");
        return (StatusCode::BAD_REQUEST, told).into_response();
    };
    let profile = match CpuProfile::start() {
        Ok(profile) => profile,
        Err(error) => return (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")).into_response(),
    };
    // Who hangs up ends it.
    sleep(Duration::from_secs(seconds)).await;
    match spawn_blocking(|| profile.finish()).await {
        Ok(Ok(profile)) => file("attachment; filename=\"cpu.pb\"", profile),
        Ok(Err(error)) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

/// Go's tools add other fields, which are for Go.
fn seconds(query: &str) -> Option<u64> {
    let given = query.split('&').find_map(|field| field.strip_prefix("seconds="));
    let seconds = given.map_or(Some(SECONDS_DEFAULT), |given| given.parse().ok());
    seconds.filter(|seconds| (1..=SECONDS_MAX).contains(seconds))
}

async fn memory() -> Response {
    match spawn_blocking(|| heap::profile(now_unix_ns())).await {
        Ok(Some(profile)) => file("attachment; filename=\"heap.pb\"", profile),
        Ok(None) => (StatusCode::SERVICE_UNAVAILABLE, "allocations are not noted\n").into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

fn file(name: &'static str, content: Vec<u8>) -> Response {
    let headers = [
        (header::CONTENT_TYPE, "application/octet-stream"),
        (header::CONTENT_DISPOSITION, name),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    (headers.map(|(name, value)| (name, HeaderValue::from_static(value))), content).into_response()
}

#[expect(clippy::disallowed_methods, reason = "a date to print; nothing is decided by it")]
fn now_unix_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use http::Request;
    use tower::ServiceExt as _;

    use super::*;

    #[test]
    fn time_is_bounded_and_has_a_default() {
        assert_eq!(seconds(""), Some(SECONDS_DEFAULT));
        assert_eq!(seconds("debug=0&seconds=5"), Some(5));
        assert_eq!(seconds(&format!("seconds={SECONDS_MAX}")), Some(SECONDS_MAX));
        for wrong in
            ["seconds=0", "seconds=", "seconds=-1", "seconds=x", &format!("seconds={}", SECONDS_MAX + 1)]
        {
            assert_eq!(seconds(wrong), None, "{wrong}");
        }
    }

    #[tokio::test]
    async fn heap_is_served_as_a_file() {
        heap::start();
        let request = Request::get("/debug/pprof/heap").body(Body::empty()).unwrap();
        let response = router().oneshot(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()[header::CONTENT_TYPE], "application/octet-stream");
    }
}
