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
//! gRPC ([`wrap_grpc`]) has the same, with its own way to say no and more time: its calls wait for others' changes. What is no gRPC
//! call is answered as plain HTTP.
//!
//! How much is how much comes with each request from its listener ([`super::serve::Limits`]), so it may change while requests
//! run. Limits of the connection (number, header size, times) belong to [`super::serve`], those per caller to [`crate::identity`].

use std::{
    any::Any,
    convert::Infallible,
    future::Future,
    panic::AssertUnwindSafe,
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::{Body, HttpBody as _},
    extract::{DefaultBodyLimit, MatchedPath, Request},
    response::{IntoResponse, Response},
    routing::Route,
};
use futures_util::FutureExt;
use http::{Extensions, HeaderName, HeaderValue, StatusCode};
use http_body_util::Limited;
use tower::{ServiceExt, layer::layer_fn, service_fn};
use tracing::Instrument;

use super::{
    Error,
    error::Kind,
    grpc,
    host::HostRule,
    pace::too_often,
    serve::{Bounds, InHand, Limits},
};
use crate::telemetry::{
    chain,
    trace::{self, Neighbour},
};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The id under which log, audit and answer know a request: one of our own, since one from outside could be made to collide or to
/// carry anything into the log.
#[derive(Debug, Clone)]
pub struct RequestId(pub String);

/// Wraps a component's routes. Its name becomes the span's.
pub fn wrap(router: Router, component: &'static str) -> Router {
    let around = Around {
        component,
        answers: Answers::Ours,
        time: Some(|limits| limits.request_time),
        body: Bodies::OfASize,
        own_hosts: true,
    };
    around.layer(with_fallback(router))
}

/// Wraps routes that say in words of their own that a body is too large: they see it break off.
pub fn wrap_worded(router: Router, component: &'static str) -> Router {
    let around = Around {
        component,
        answers: Answers::OfOthers,
        time: Some(|limits| limits.request_time),
        body: Bodies::Cut,
        own_hosts: true,
    };
    around.layer(with_fallback(router))
}

/// Wraps gRPC services.
pub fn wrap_grpc(router: Router, component: &'static str) -> Router {
    let around = Around {
        component,
        answers: Answers::Grpc,
        time: Some(|limits| limits.call_time),
        body: Bodies::OfASize,
        own_hosts: true,
    };
    around.layer(router)
}

/// Wraps routes that hand requests on, with bodies that may take as long as they like.
pub fn wrap_streaming(router: Router, component: &'static str) -> Router {
    let around = Around {
        component,
        answers: Answers::OfOthers,
        time: None,
        body: Bodies::Any,
        own_hosts: false,
    };
    around.layer(router)
}

fn with_fallback(router: Router) -> Router {
    router.fallback(|| async { Error::not_found() })
}

/// What is around the routes of a component. All of it is one layer: each one of axum's is a service in a box of its own, which is
/// cloned for each request with all that it holds.
#[derive(Debug, Clone, Copy)]
struct Around {
    component: &'static str,
    answers: Answers,
    /// The longest that a handler may take, if there is one.
    time: Option<fn(&Limits) -> Duration>,
    body: Bodies,
    /// Whether only the listener's own names are hosts.
    own_hosts: bool,
}

/// Whose answers go through a layer, and so how a refusal of ours is written: a bare status of ours may be given our words, one
/// of others, or with words of its own, is what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answers {
    Grpc,
    OfOthers,
    Ours,
}

/// What becomes of bodies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bodies {
    Any,
    /// They break off where they are too long.
    Cut,
    /// The same, and who says beforehand that one is too long is not waited for.
    OfASize,
}

impl Around {
    fn layer(self, router: Router) -> Router {
        router.layer(layer_fn(move |route: Route| {
            service_fn(move |request| self.request(request, route.clone()))
        }))
    }

    async fn request(self, mut request: Request, route: Route) -> Result<Response, Infallible> {
        let id = uuid::Uuid::now_v7().simple().to_string();
        request.extensions_mut().insert(RequestId(id.clone()));
        let span = trace::request(
            self.component,
            &id,
            request.method(),
            request
                .extensions()
                .get::<MatchedPath>()
                .map(MatchedPath::as_str),
            request.headers(),
            request.extensions().get::<Neighbour>().is_some(),
        );
        let limits = limits(request.extensions());
        let answers = match self.answers {
            Answers::Grpc if grpc::check(request.version(), request.headers()).is_err() => {
                Answers::Ours
            }
            answers => answers,
        };
        let admitted = admit(request.extensions(), &limits)
            .and_then(|in_hand| self.is_ours(&request).map(|()| in_hand));
        let response = match admitted {
            Ok(_in_hand) => {
                let answer = self.within(&limits, self.whole(&limits, request, route));
                AssertUnwindSafe(answer)
                    .catch_unwind()
                    .instrument(span.clone())
                    .await
                    .unwrap_or_else(|cause| panicked(cause).into_response())
            }
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

    /// Whether the request is for this listener, where that is known.
    fn is_ours(self, request: &Request) -> Result<(), Error> {
        match request.extensions().get::<HostRule>() {
            Some(rule) if self.own_hosts => {
                rule.check(request.version(), request.uri(), request.headers())
            }
            _ => Ok(()),
        }
    }

    /// The answer, or that it took too long.
    async fn within(self, limits: &Limits, answer: impl Future<Output = Response>) -> Response {
        let Some(time) = self.time.map(|time| time(limits)) else {
            return answer.await;
        };
        tokio::time::timeout(time, answer)
            .await
            .unwrap_or_else(|_| {
                let words = format!("not done within {time:?}");
                Error::new(Kind::Timeout, "timeout", words).into_response()
            })
    }

    /// The answer to a request with no more of a body than it may have.
    async fn whole(self, limits: &Limits, mut request: Request, route: Route) -> Response {
        let most = limits.body_bytes;
        let length = request.body().size_hint();
        if self.body == Bodies::OfASize && length.lower() > most as u64 {
            return too_large(most).into_response();
        }
        if !request.body().is_end_stream() {
            // axum's own bound is another.
            DefaultBodyLimit::disable().apply(&mut request);
            if self.body != Bodies::Any {
                request = request.map(|body| Body::new(Limited::new(body, most)));
            }
        }
        route.oneshot(request).await.into_response()
    }
}

/// Those of the listener; the defaults where a router is used without one.
pub(super) fn limits(extensions: &Extensions) -> Limits {
    extensions
        .get::<Bounds>()
        .map_or_else(Limits::default, Bounds::limits)
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

fn panicked(cause: Box<dyn Any + Send>) -> Error {
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
}
