//! What surrounds every router, from the outside in:
//!
//! 1. `request`: gives the request an id and a span, writes the answer of a parked [`Error`], logs its cause. Outermost,
//!    so that every answer has its id, those of the layers below too. Here also a peer that asks too often is refused (429), and
//!    whoever asks when as many requests are in hand as may be (503): at once, instead of waiting in memory.
//! 2. catch-panic: a panic in a handler is a 500 of this request, not the end of the connection's task.
//! 3. time and body: the longest that a handler may take (408), the longest body (413).
//!
//! What stands before a server of somebody else ([`wrap_streaming`]) lets bodies of any size and length in time pass, and leaves
//! that server's answers alone; 3 is not for it.
//! gRPC ([`wrap_grpc`]) has the same, with its own way to say no and more time: its calls wait for others' changes.
//!
//! How much is how much comes with each request from its listener ([`super::serve::Limits`]), so it may change while requests
//! run. Limits of the connection (number, header size, times) belong to [`super::serve`], those per caller to [`crate::identity`].

use std::{
    any::Any,
    convert::Infallible,
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::{Body, HttpBody as _},
    extract::{DefaultBodyLimit, MatchedPath, Request},
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use http::{Extensions, HeaderName, HeaderValue, StatusCode};
use http_body_util::Limited;
use tower_http::catch_panic::CatchPanicLayer;
use tracing::Instrument;

use super::{
    Error,
    error::Kind,
    pace::too_often,
    serve::{Bounds, InHand, Limits},
};
use crate::telemetry::{
    chain,
    trace::{self, Neighbour},
};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The id under which log, audit and answer know a request.
#[derive(Debug, Clone)]
pub struct RequestId(pub String);

/// Wraps a component's routes. Its name becomes the span's.
pub fn wrap(router: Router, component: &'static str) -> Router {
    let router = router.fallback(|| async { Error::not_found() });
    let router = whole(router, |limits| limits.request_time);
    scoped(router, component, Answers::Ours)
}

/// Wraps routes that say in words of their own that a body is too large: they see it break off.
pub fn wrap_worded(router: Router, component: &'static str) -> Router {
    let router = router
        .fallback(|| async { Error::not_found() })
        .layer(DefaultBodyLimit::disable())
        .layer(middleware::from_fn(cut));
    let router = timed(router, |limits| limits.request_time);
    scoped(router, component, Answers::OfOthers)
}

/// Wraps gRPC services.
pub fn wrap_grpc(router: Router, component: &'static str) -> Router {
    let router = whole(router, |limits| limits.call_time);
    scoped(router, component, Answers::Grpc)
}

/// Wraps routes that hand requests on, with bodies that may take as long as they like.
pub fn wrap_streaming(router: Router, component: &'static str) -> Router {
    scoped(
        router.layer(DefaultBodyLimit::disable()),
        component,
        Answers::OfOthers,
    )
}

/// Whose answers go through a layer, and so how a refusal of ours is written: a bare status of ours may be given our words, one
/// of others, or with words of its own, is what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answers {
    Grpc,
    OfOthers,
    Ours,
}

/// Bounds for requests that are taken in whole and answered within a time.
fn whole(router: Router, time: fn(&Limits) -> Duration) -> Router {
    let router = router
        .layer(DefaultBodyLimit::disable())
        .layer(middleware::from_fn(of_a_size));
    timed(router, time)
}

async fn of_a_size(request: Request, next: Next) -> Response {
    let most = limits(request.extensions()).body_bytes;
    // Who says so beforehand is not waited for; who does not is cut where it is too much.
    if request.body().size_hint().lower() > most as u64 {
        return too_large(most).into_response();
    }
    cut(request, next).await
}

async fn cut(request: Request, next: Next) -> Response {
    let most = limits(request.extensions()).body_bytes;
    next.run(request.map(|body| Body::new(Limited::new(body, most))))
        .await
}

fn timed(router: Router, time: fn(&Limits) -> Duration) -> Router {
    router.layer(middleware::from_fn(move |request: Request, next: Next| {
        within(time, request, next)
    }))
}

async fn within(time: fn(&Limits) -> Duration, request: Request, next: Next) -> Response {
    let time = time(&limits(request.extensions()));
    match tokio::time::timeout(time, next.run(request)).await {
        Ok(response) => response,
        Err(_) => Error::new(
            Kind::Timeout,
            "timeout",
            format!("not done within {time:?}"),
        )
        .into_response(),
    }
}

/// Those of the listener; the defaults where a router is used without one.
fn limits(extensions: &Extensions) -> Limits {
    extensions
        .get::<Bounds>()
        .map_or_else(Limits::default, Bounds::limits)
}

fn scoped(router: Router, component: &'static str, answers: Answers) -> Router {
    router
        .layer(CatchPanicLayer::custom(panicked))
        .layer(middleware::from_fn(move |request: Request, next: Next| {
            request_scope(component, answers, request, next)
        }))
}

/// An id of our own for each request: one from outside could be made to collide or to carry anything into the log.
async fn request_scope(
    component: &'static str,
    answers: Answers,
    mut request: Request,
    next: Next,
) -> Result<Response, Infallible> {
    let id = uuid::Uuid::now_v7().simple().to_string();
    request.extensions_mut().insert(RequestId(id.clone()));
    let route = request.extensions().get::<MatchedPath>().cloned();
    let span = trace::request(
        component,
        &id,
        request.method(),
        route.as_ref().map(MatchedPath::as_str),
        request.headers(),
        request.extensions().get::<Neighbour>().is_some(),
    );
    let limits = limits(request.extensions());
    let response = match admit(request.extensions(), &limits) {
        Ok(_in_hand) => next.run(request).instrument(span.clone()).await,
        Err(error) => error.into_response(),
    };
    let _entered = span.enter();
    let mut response = answer(response, answers, &limits, &id);
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    trace::answered(&span, response.status());
    Ok(response)
}

/// Whether the peer may ask now, and there is room for what it asks.
fn admit(extensions: &Extensions, limits: &Limits) -> Result<Option<InHand>, Error> {
    let Some(bounds) = extensions.get::<Bounds>() else {
        return Ok(None);
    };
    bounds.pace(limits, Instant::now()).map_err(too_often)?;
    bounds.take(limits).map(Some).ok_or_else(|| {
        let kind = Kind::Unavailable {
            retry_after: Duration::from_secs(1),
        };
        Error::new(kind, "overloaded", "too many requests at once; try again")
    })
}

fn answer(mut response: Response, answers: Answers, limits: &Limits, id: &str) -> Response {
    let answer = |error: &Error| match answers {
        Answers::Grpc => error.grpc().into_http(),
        Answers::OfOthers | Answers::Ours => error.answer(id),
    };
    if let Some(error) = response.extensions_mut().remove::<Error>() {
        match (&error.kind, &error.cause) {
            (kind, Some(cause)) if kind.is_ours() => {
                tracing::error!(target: "server", code = error.code, error = chain(cause.as_ref()), "request failed");
            }
            (kind, None) if kind.is_ours() => {
                tracing::error!(target: "server", code = error.code, "request failed: {}", error.message);
            }
            _ => {
                tracing::debug!(target: "server", code = error.code, "request refused: {}", error.message)
            }
        }
        return answer(&error);
    }
    // Refusals of extractors that know nothing of `Error`.
    match response.status() {
        StatusCode::PAYLOAD_TOO_LARGE if answers != Answers::OfOthers => {
            answer(&too_large(limits.body_bytes))
        }
        _ => response,
    }
}

fn too_large(most: usize) -> Error {
    Error::new(
        Kind::TooLarge,
        "body_too_large",
        format!("a body may have {most} bytes at most"),
    )
}

fn panicked(cause: Box<dyn Any + Send>) -> Response {
    let words = cause
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| cause.downcast_ref::<&str>().copied())
        .unwrap_or("no words");
    Error::new(
        Kind::Internal,
        "internal",
        "unexpected failure; the log has the cause under this id",
    )
    .because(std::io::Error::other(format!(
        "a handler panicked: {words}"
    )))
    .into_response()
}
