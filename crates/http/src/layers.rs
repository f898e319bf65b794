//! What surrounds every router, from the outside in:
//!
//! 1. `request`: gives the request an id and a span, writes the answer of a stored [`Error`] and
//!    logs its cause. It is the outermost layer so that every answer carries its id, also those
//!    that come from the layers below. It also refuses a peer that asks too often (429), and any
//!    request while the listener is handling as many as it may (503): at once, instead of keeping
//!    it in memory.
//! 2. catch-panic: a panic in a handler becomes a 500 for this request and does not end the
//!    connection's task.
//! 3. time and body: the longest time for a handler (408), the largest body (413).
//!
//! Routes in front of somebody else's server ([`wrap_streaming`]) do without 3: bodies may have any
//! size and take any time, and that server's answers are passed on unchanged. gRPC ([`wrap_grpc`])
//! has all three layers, answers errors as gRPC statuses, and allows more time, since its calls may
//! wait for other changes to finish. A request that is no gRPC call gets a plain HTTP answer.
//!
//! Each request carries its listener's limits ([`super::serve::Limits`]), so they may change while
//! requests run. Limits of a connection (their number, header size, timeouts) belong to
//! [`super::serve`], limits per identity to the crate `identity`.

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
    rate_limit::too_many_requests,
    serve::{ConnectionLimits, InFlight, Limits},
};
use tailbone_telemetry::{
    error_chain,
    trace::{self, FromTailnet},
};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The id under which the log, the audit and the answer know a request. We always make our own: an
/// id from outside could be made to collide, or could carry anything into the log.
#[derive(Debug, Clone)]
pub struct RequestId(pub String);

/// Wraps a component's routes. The component's name goes into the span.
pub fn wrap(router: Router, component: &'static str) -> Router {
    let layers = RouterLayer {
        component,
        answers: AnswerFormat::Json,
        time: Some(|limits| limits.request_time),
        body: BodyLimit::Reject,
        check_hosts: true,
    };
    layers.layer(with_fallback(router))
}

/// Wraps routes that report a body that is too large in their own words: they see it end early.
pub fn wrap_own_errors(router: Router, component: &'static str) -> Router {
    let layers = RouterLayer {
        component,
        answers: AnswerFormat::Unchanged,
        time: Some(|limits| limits.request_time),
        body: BodyLimit::Truncate,
        check_hosts: true,
    };
    layers.layer(with_fallback(router))
}

/// Wraps gRPC services.
pub fn wrap_grpc(router: Router, component: &'static str) -> Router {
    let layers = RouterLayer {
        component,
        answers: AnswerFormat::Grpc,
        time: Some(|limits| limits.call_time),
        body: BodyLimit::Reject,
        check_hosts: true,
    };
    layers.layer(router)
}

/// Wraps routes that pass requests on, with bodies that may take any time.
pub fn wrap_streaming(router: Router, component: &'static str) -> Router {
    let layers = RouterLayer {
        component,
        answers: AnswerFormat::Unchanged,
        time: None,
        body: BodyLimit::Unlimited,
        check_hosts: false,
    };
    layers.layer(router)
}

fn with_fallback(router: Router) -> Router {
    router.fallback(|| async { Error::not_found() })
}

/// What surrounds the routes of a component. It is a single layer because each of axum's layers is
/// a boxed service of its own, cloned for each request with everything that it holds.
#[derive(Debug, Clone, Copy)]
struct RouterLayer {
    component: &'static str,
    answers: AnswerFormat,
    /// The longest time for a handler, if there is a limit.
    time: Option<fn(&Limits) -> Duration>,
    body: BodyLimit,
    /// Whether to accept only the listener's own names as hosts.
    check_hosts: bool,
}

/// Whose answers pass through, which decides how a refusal of ours is written. A bare status from
/// our own extractors gets our JSON body; answers of other servers, and answers with their own
/// wording, stay as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AnswerFormat {
    Grpc,
    Unchanged,
    Json,
}

/// How request bodies are limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BodyLimit {
    Unlimited,
    /// A body ends early at the limit.
    Truncate,
    /// The same, and a request that declares a larger body is refused before it is read.
    Reject,
}

impl RouterLayer {
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
            request.extensions().get::<FromTailnet>().is_some(),
        );
        let limits = limits(request.extensions());
        let answers = match self.answers {
            AnswerFormat::Grpc if grpc::check(request.version(), request.headers()).is_err() => {
                AnswerFormat::Json
            }
            answers => answers,
        };
        let admitted = admit(request.extensions(), &limits)
            .and_then(|in_flight| self.check_host(&request).map(|()| in_flight));
        let response = match admitted {
            Ok(_in_flight) => {
                let answer = self.with_timeout(&limits, self.call(&limits, request, route));
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

    /// Refuses a request for another host, where the listener's names are known.
    fn check_host(self, request: &Request) -> Result<(), Error> {
        match request.extensions().get::<HostRule>() {
            Some(rule) if self.check_hosts => {
                rule.check(request.version(), request.uri(), request.headers())
            }
            _ => Ok(()),
        }
    }

    /// The answer, or 408 if it takes too long.
    async fn with_timeout(
        self,
        limits: &Limits,
        answer: impl Future<Output = Response>,
    ) -> Response {
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

    /// Calls the handler with a body that respects the limit.
    async fn call(self, limits: &Limits, mut request: Request, route: Route) -> Response {
        let most = limits.body_bytes;
        let length = request.body().size_hint();
        if self.body == BodyLimit::Reject && length.lower() > most as u64 {
            return too_large(most).into_response();
        }
        if !request.body().is_end_stream() {
            // axum has a limit of its own, with another value.
            DefaultBodyLimit::disable().apply(&mut request);
            if self.body != BodyLimit::Unlimited {
                request = request.map(|body| Body::new(Limited::new(body, most)));
            }
        }
        route.oneshot(request).await.into_response()
    }
}

/// The limits of the request's listener, or the defaults if a router is used without one.
pub(super) fn limits(extensions: &Extensions) -> Limits {
    extensions
        .get::<ConnectionLimits>()
        .map_or_else(Limits::default, ConnectionLimits::limits)
}

/// Checks the peer's rate and the number of requests that are being handled.
fn admit(extensions: &Extensions, limits: &Limits) -> Result<Option<InFlight>, Error> {
    let Some(connection) = extensions.get::<ConnectionLimits>() else {
        return Ok(None);
    };
    connection
        .check_rate(limits, Instant::now())
        .map_err(too_many_requests)?;
    connection.take(limits).map(Some).ok_or_else(|| {
        let kind = Kind::Unavailable {
            retry_after: Duration::from_secs(1),
        };
        Error::new(kind, "overloaded", "too many requests at once; try again")
    })
}

fn answer(mut response: Response, answers: AnswerFormat, limits: &Limits, id: &str) -> Response {
    let answer = |error: &Error| match answers {
        AnswerFormat::Grpc => error.grpc().into_http(),
        AnswerFormat::Unchanged | AnswerFormat::Json => error.answer(id),
    };
    if let Some(error) = response.extensions_mut().remove::<Error>() {
        match (&error.kind, &error.cause) {
            (kind, Some(cause)) if kind.is_ours() => {
                tracing::error!(target: "server", code = error.code, error = error_chain(cause.as_ref()), "request failed");
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
    // Refusals of axum's extractors, which do not know `Error`.
    match response.status() {
        StatusCode::PAYLOAD_TOO_LARGE if answers != AnswerFormat::Unchanged => {
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
