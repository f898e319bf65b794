//! What surrounds every router, from the outside in:
//!
//! 1. `request`: gives the request an id and a span, writes the answer of a parked [`Error`], logs its cause. Outermost,
//!    so that every answer has its id, those of the layers below too. Here also a peer that asks too often is refused.
//! 2. catch-panic: a panic in a handler is a 500 of this request, not the end of the connection's task.
//! 3. concurrency limit with load shed: above the bound a request is refused at once instead of waiting in memory.
//! 4. timeout: the longest that a handler may take.
//! 5. body limit: no route takes a large body.
//!
//! What stands before a server of somebody else ([`wrap_streaming`]) lets bodies of any size and length in time pass, and leaves
//! that server's answers alone; 4 and 5 are not for it.
//! gRPC ([`wrap_grpc`]) has the same, with its own way to say no and more time: its calls wait for others' changes.
//!
//! Limits of the connection (number, header size, times) belong to [`super::serve`].

use std::{
    any::Any,
    convert::Infallible,
    time::{Duration, Instant},
};

use axum::{
    BoxError, Router,
    error_handling::HandleErrorLayer,
    extract::{DefaultBodyLimit, MatchedPath, Request},
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use http::{HeaderName, HeaderValue, StatusCode};
use tower::{
    ServiceBuilder, limit::ConcurrencyLimitLayer, load_shed::LoadShedLayer, timeout::TimeoutLayer,
};
use tower_http::{catch_panic::CatchPanicLayer, limit::RequestBodyLimitLayer};
use tracing::Instrument;

use super::{Error, error::Kind, serve::Pace};
use crate::telemetry::{
    chain,
    trace::{self, Neighbour},
};

pub const REQUEST_TIME: Duration = Duration::from_secs(30);
/// The same for gRPC. Longer than a key change waits for whoever has the key directory and for the place of publication.
pub const CALL_TIME: Duration = Duration::from_secs(120);
pub const BODY_BYTES: usize = 64 << 10;
/// Requests in hand at once, over all connections of a listener.
pub const REQUESTS: usize = 4096;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The id under which log, audit and answer know a request.
#[derive(Debug, Clone)]
pub struct RequestId(pub String);

/// Wraps a component's routes. Its name becomes the span's.
pub fn wrap(router: Router, component: &'static str) -> Router {
    let router = router.fallback(|| async { Error::not_found() });
    let router = whole(router, REQUEST_TIME);
    scoped(router, component, Answers::Ours)
}

/// Wraps routes that read no more of a body than they may and say so in words of their own.
pub fn wrap_worded(router: Router, component: &'static str) -> Router {
    let router = router.fallback(|| async { Error::not_found() });
    let router = timed(router.layer(DefaultBodyLimit::disable()), REQUEST_TIME);
    scoped(router, component, Answers::OfOthers)
}

/// Wraps gRPC services.
pub fn wrap_grpc(router: Router, component: &'static str) -> Router {
    scoped(whole(router, CALL_TIME), component, Answers::Grpc)
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

/// Bounds for requests that are taken in whole and answered within `time`.
fn whole(router: Router, time: Duration) -> Router {
    let router = router
        .layer(DefaultBodyLimit::disable())
        .layer(RequestBodyLimitLayer::new(BODY_BYTES));
    timed(router, time)
}

fn timed(router: Router, time: Duration) -> Router {
    let limit = ServiceBuilder::new()
        .layer(HandleErrorLayer::new(move |error| async move {
            limit_error(error, time)
        }))
        .layer(TimeoutLayer::new(time));
    router.layer(limit)
}

fn scoped(router: Router, component: &'static str, answers: Answers) -> Router {
    let shed = ServiceBuilder::new()
        .layer(HandleErrorLayer::new(|error| async move {
            limit_error(error, REQUEST_TIME)
        }))
        .layer(LoadShedLayer::new())
        .layer(ConcurrencyLimitLayer::new(REQUESTS));
    router
        .layer(shed)
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
    let paid = request
        .extensions()
        .get::<Pace>()
        .map_or(Ok(()), |pace| pace.take(Instant::now()));
    let response = match paid {
        Ok(()) => next.run(request).instrument(span.clone()).await,
        Err(retry_after) => too_often(retry_after).into_response(),
    };
    let _entered = span.enter();
    let mut response = answer(response, answers, &id);
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    trace::answered(&span, response.status());
    Ok(response)
}

fn answer(mut response: Response, answers: Answers, id: &str) -> Response {
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
    // Refusals of layers that know nothing of `Error`.
    match response.status() {
        StatusCode::PAYLOAD_TOO_LARGE if answers != Answers::OfOthers => answer(&Error::new(
            Kind::TooLarge,
            "body_too_large",
            format!("a body may have {BODY_BYTES} bytes at most"),
        )),
        _ => response,
    }
}

fn too_often(retry_after: Duration) -> Error {
    // Rounded up: who comes back at the told second must not be refused again for the rest of it.
    let seconds = retry_after.as_secs_f64().ceil().max(1.0);
    let kind = Kind::TooManyRequests {
        retry_after: Duration::from_secs_f64(seconds),
    };
    Error::new(
        kind,
        "too_many_requests",
        "more requests than one caller may make; come back after the time in Retry-After",
    )
}

fn limit_error(error: BoxError, time: Duration) -> Error {
    if error.is::<tower::timeout::error::Elapsed>() {
        return Error::new(
            Kind::Timeout,
            "timeout",
            format!("not done within {time:?}"),
        );
    }
    if error.is::<tower::load_shed::error::Overloaded>() {
        let kind = Kind::Unavailable {
            retry_after: Duration::from_secs(1),
        };
        return Error::new(kind, "overloaded", "too many requests at once; try again");
    }
    Error::new(
        Kind::Internal,
        "internal",
        "unexpected failure; the log has the cause under this id",
    )
    .because(std::io::Error::other(error.to_string()))
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
