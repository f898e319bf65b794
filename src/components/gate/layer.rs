//! The gate as a tower layer, for your own services on a tailnet listener.
//!
//! ```
//! use axum::{Router, routing::get};
//! use tailbone::gate::{Admitted, GateLayer};
//! use tailbone::policy::{CAPABILITY, Rules};
//!
//! # fn app() -> Result<Router, tailbone::policy::Mistakes> {
//! let text = "[[rule]]\ndecision = 'allow'\nwho = ['*@example.com']\n";
//! let rules = Rules::parse(text, CAPABILITY)?;
//! let app = Router::new().route("/", get(hello)).layer(GateLayer::new(rules));
//! # Ok(app)
//! # }
//!
//! async fn hello(caller: Admitted) -> String {
//!     caller.visitor().map(|v| format!("Hello, {}!", v.caller_any_tailnet())).unwrap_or_default()
//! }
//! ```
//!
//! Requests must have an `Arc<Connection>` among their extensions, as [`crate::http::serve`] adds
//! it. The layer removes identity headers from outside and sets ours, so that services that do not
//! use this crate can read those instead. A handler that only wants callers of its own tailnet
//! takes a [`crate::identity::Caller`].

use std::{
    convert::Infallible,
    sync::Arc,
    task::{Context, Poll},
};

use ::http::{Method, Request, Response, header, request::Parts};
use axum::{body::Body, extract::FromRequestParts, response::IntoResponse};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use tower::{Layer, Service};

use super::{
    error::{Denial, MalformedRequest},
    guard::{Admitted, Guard},
    headers,
    recheck::{self, Recheck, RecheckedBody},
};
use crate::{
    http::{
        Error,
        error::Kind,
        host::requested_host,
        layers::RequestId,
        origin::{self, Destination},
    },
    identity::Connection,
    policy::{self, Path, Rules, Target},
    web::{Allowed, Host, Origin},
};

/// Admits requests by the given rules.
#[derive(Debug, Clone)]
pub struct GateLayer {
    guard: Arc<Guard>,
    capabilities: Arc<[String]>,
    origins: Arc<[Allowed<Origin>]>,
}

impl GateLayer {
    pub fn new(rules: Rules) -> Self {
        Self::with_guard(Arc::new(Guard::new(
            Arc::new(policy::RuleStore::fixed(rules)),
            None,
        )))
    }

    /// The same, with rules that may change at any time.
    pub fn with_store(store: Arc<policy::RuleStore>, expected_tailnet: Option<String>) -> Self {
        Self::with_guard(Arc::new(Guard::new(store, expected_tailnet)))
    }

    pub(super) fn with_guard(guard: Arc<Guard>) -> Self {
        Self {
            guard,
            capabilities: Arc::new([]),
            origins: Arc::new([]),
        }
    }

    /// Allows web pages of these origins to open WebSockets and to use methods other than GET, HEAD
    /// and OPTIONS, in addition to the service's own pages.
    #[must_use]
    pub fn allow_origins(mut self, origins: impl IntoIterator<Item = Allowed<Origin>>) -> Self {
        self.origins = origins.into_iter().collect();
        self
    }

    /// Passes these capabilities of the caller on to the service, in `Tailscale-App-Capabilities`.
    #[must_use]
    pub fn forward_capabilities(mut self, names: impl IntoIterator<Item = String>) -> Self {
        self.capabilities = names.into_iter().collect();
        self
    }
}

impl<S> Layer<S> for GateLayer {
    type Service = GateService<S>;

    fn layer(&self, inner: S) -> GateService<S> {
        GateService {
            inner,
            gate: self.clone(),
        }
    }
}

/// A service behind a [`GateLayer`].
#[derive(Debug, Clone)]
pub struct GateService<S> {
    inner: S,
    gate: GateLayer,
}

impl<S, B, R> Service<Request<B>> for GateService<S>
where
    S: Service<Request<B>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send,
    B: Send + 'static,
    R: axum::body::HttpBody<Data = Bytes> + Send + 'static,
    R::Error: Into<axum::BoxError>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response<Body>, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let gate = self.gate.clone();
        // Call the instance that was polled ready, and keep its clone for the next request.
        let next = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, next);
        Box::pin(async move {
            let (mut parts, body) = request.into_parts();
            match gate.admit(&mut parts).await {
                Ok(recheck) => {
                    let answer = inner.call(Request::from_parts(parts, body)).await?;
                    Ok(answer.map(|body| RecheckedBody::wrap(body, recheck)))
                }
                // With `http::layers` around, that writes the error, with the request's id. Alone,
                // the layer has to make an id itself.
                Err(error) if parts.extensions.get::<RequestId>().is_some() => {
                    Ok(error.into_response())
                }
                Err(error) => Ok(error.answer(&uuid::Uuid::now_v7().simple().to_string())),
            }
        })
    }
}

impl GateLayer {
    async fn admit(&self, parts: &mut Parts) -> Result<Arc<Recheck>, Error> {
        let connection = Connection::of(&parts.extensions)?.clone();
        let target = target(parts)?;
        let recheck = Recheck::new(
            self.guard.clone(),
            connection.clone(),
            target,
            recheck::DEFAULT_INTERVAL,
        );
        let target = recheck.target();
        let (host, port) = host(parts)?;
        let destination = Destination {
            host: &host,
            port,
            port_known: true,
        };
        let cross_origin =
            is_cross_origin(parts, target.method.as_ref(), destination, &self.origins);
        let caller = connection.visitor().await;
        connection.count_request()?;
        if cross_origin {
            return Err(self
                .guard
                .refuse(&caller, target, Denial::CrossOrigin)
                .into());
        }
        let admitted = self.guard.admit(caller, target, None)?;
        headers::strip_identity(
            &mut parts.headers,
            self.guard.policy().rules().name_methods(),
        );
        headers::set_identity(&mut parts.headers, &admitted, &self.capabilities);
        parts.extensions.insert(admitted);
        Ok(recheck)
    }
}

/// The host that a request to this node names, with its port. It is required, since rules and
/// upstreams depend on it.
pub(super) fn host(parts: &Parts) -> Result<(Host, Option<u16>), MalformedRequest> {
    requested_host(parts.version, &parts.uri, &parts.headers)?
        .ok_or(MalformedRequest::AmbiguousHost)
}

/// Whether a page of another origin sent this request, and could do harm with it without reading
/// the answer. That is any method that is not safe (RFC 9110, section 9.2.1), and a WebSocket,
/// which browsers do not restrict to one origin.
pub(super) fn is_cross_origin(
    parts: &Parts,
    method: Option<&Method>,
    destination: Destination<'_>,
    allowed: &[Allowed<Origin>],
) -> bool {
    let safe = method
        .is_some_and(|method| matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS));
    let websocket = parts.headers.contains_key(header::UPGRADE)
        || parts.headers.contains_key(header::SEC_WEBSOCKET_KEY);
    (!safe || websocket) && origin::is_cross_origin(&parts.headers, destination, allowed)
}

/// What a request to this node asks for.
pub(super) fn target(parts: &Parts) -> Result<Target, MalformedRequest> {
    let (host, _) = host(parts)?;
    Ok(Target {
        host: Some(host),
        path: Some(Path::sent(parts.uri.path())?),
        method: Some(parts.method.clone()),
    })
}

/// The layer adds it. Without the layer nobody has been admitted.
impl<S: Send + Sync> FromRequestParts<S> for Admitted {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Error> {
        parts.extensions.get::<Self>().cloned().ok_or_else(|| {
            Error::new(
                Kind::Unauthorized,
                "not_a_tailnet_caller",
                "this route is not behind a gate",
            )
        })
    }
}

// A service that cannot fail stays infallible behind the layer.
const _: fn() = || {
    fn infallible<S: Service<Request<Body>, Error = Infallible>>() {}
    infallible::<GateService<axum::routing::Route>>();
};
