//! Health endpoints for probes, for any listener.
//!
//! | Route | Answer |
//! |---|---|
//! | `GET /livez` | 200 while the process answers; checks nothing else |
//! | `GET /readyz` | 200, or 503 with `Retry-After`; names the latches that are held or degraded |
//! | `GET /readyz?verbose` | the same with every latch, and a reason for those not in order |
//!
//! Not being ready is a state and not an error of the request. So it is no [`super::Error`], and a
//! probe leaves no line in the log.

use axum::{
    Router,
    extract::{RawQuery, State},
    response::{IntoResponse, Response},
    routing::get,
};
use http::{HeaderValue, StatusCode, header};
use jiff::Timestamp;
use serde::Serialize;

use super::{Error, json::Json};
use tailbone_telemetry::readiness::{Latch, Readiness, all};

const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");

pub fn router(readiness: Readiness) -> Router {
    Router::new()
        .route("/livez", get(live).fallback(method_not_allowed))
        .route("/readyz", get(ready).fallback(method_not_allowed))
        .with_state(readiness)
}

async fn method_not_allowed() -> Error {
    Error::method_not_allowed("GET, HEAD")
}

async fn live() -> Json<Live> {
    Json(Live { live: true })
}

#[derive(Serialize)]
struct Live {
    live: bool,
}

async fn ready(State(readiness): State<Readiness>, RawQuery(query): RawQuery) -> Response {
    let verbose = query
        .as_deref()
        .unwrap_or_default()
        .split('&')
        .any(|word| word == "verbose" || word.starts_with("verbose="));
    let latches = readiness.check(Timestamp::now());
    let names = |wanted: fn(&Latch) -> bool| {
        let found = latches.iter().filter(|latch| wanted(latch));
        found.map(|latch| latch.name).collect()
    };
    let body = Ready {
        ready: all(&latches),
        held: names(|latch| !latch.ready),
        degraded: names(|latch| latch.degraded),
        latches: if verbose { &latches } else { &[] },
    };
    let mut response = Json(&body).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if !body.ready {
        headers.insert(header::RETRY_AFTER, RETRY_AFTER);
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    response
}

#[derive(Serialize)]
struct Ready<'a> {
    ready: bool,
    held: Vec<&'static str>,
    degraded: Vec<&'static str>,
    #[serde(skip_serializing_if = "<[Latch]>::is_empty")]
    latches: &'a [Latch],
}
