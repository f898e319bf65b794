//! The gate as a tower layer, for services of one's own on a tailnet listener.
//!
//! ```
//! use axum::{Router, routing::get};
//! use tailbone::gate::{Admitted, GateLayer};
//! use tailbone::policy::{CAPABILITY, Rules};
//!
//! # fn app() -> Result<Router, tailbone::policy::Mistakes> {
//! let rules = Rules::parse("[[rule]]\ndecision = 'allow'\nwho = ['*@example.com']\n", CAPABILITY)?;
//! let app = Router::new().route("/", get(hello)).layer(GateLayer::new(rules));
//! # Ok(app)
//! # }
//!
//! async fn hello(caller: Admitted) -> String {
//!     caller.visitor().map(|v| format!("Hello, {}!", v.even_foreign())).unwrap_or_default()
//! }
//! ```
//!
//! Requests must carry an `Arc<Connection>` in their extensions, as [`crate::http::serve`] puts it there. The layer strips identity
//! headers from outside and sets ours, so that services that know nothing of this crate may read those instead. A handler that
//! wants callers of the own tailnet alone takes [`crate::identity::Caller`].

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
    error::{Denied, Malformed},
    forward_auth::nobody_told,
    guard::{Admitted, Guard},
    headers,
    recheck::{self, Recheck, Watched},
};
use crate::{
    http::{
        Error,
        error::Kind,
        host::asked,
        layers::RequestId,
        origin::{Place, foreign},
    },
    identity::Connection,
    policy::{self, Path, Rules, What},
    web::{Allowed, Host, Origin},
};

/// Lets through what the rules let through.
#[derive(Debug, Clone)]
pub struct GateLayer {
    guard: Arc<Guard>,
    capabilities: Arc<[String]>,
    origins: Arc<[Allowed<Origin>]>,
}

impl GateLayer {
    pub fn new(rules: Rules) -> Self {
        Self::of(Arc::new(Guard::new(
            Arc::new(policy::Store::fixed(rules)),
            None,
        )))
    }

    /// With rules that change while they are in force.
    pub fn with_store(store: Arc<policy::Store>, expected_tailnet: Option<String>) -> Self {
        Self::of(Arc::new(Guard::new(store, expected_tailnet)))
    }

    pub(super) fn of(guard: Arc<Guard>) -> Self {
        Self {
            guard,
            capabilities: Arc::new([]),
            origins: Arc::new([]),
        }
    }

    /// Lets web pages of these origins open WebSockets and use other methods than GET, HEAD and OPTIONS, besides the service's own.
    #[must_use]
    pub fn allow_origins(mut self, origins: impl IntoIterator<Item = Allowed<Origin>>) -> Self {
        self.origins = origins.into_iter().collect();
        self
    }

    /// Tells the service these of the caller's capabilities, in `Tailscale-App-Capabilities`.
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
        // The one that was polled ready is the one to call.
        let waiting = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, waiting);
        Box::pin(async move {
            let (mut parts, body) = request.into_parts();
            match gate.admit(&mut parts).await {
                Ok(recheck) => {
                    let answer = inner.call(Request::from_parts(parts, body)).await?;
                    Ok(answer.map(|body| Watched::wrap(body, recheck)))
                }
                // Below `http::layers` the error is written there, with the request's id; alone it has to do with one of its own.
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
        let connection = parts
            .extensions
            .get::<Arc<Connection>>()
            .cloned()
            .ok_or_else(nobody_told)?;
        let what = what(parts)?;
        let recheck = Recheck::new(self.guard.clone(), connection.clone(), what, recheck::EVERY);
        let what = recheck.what();
        let (host, port) = host(parts)?;
        let place = Place {
            host: &host,
            port,
            port_told: true,
        };
        let foreign = is_foreign(parts, what.method.as_ref(), place, &self.origins);
        let caller = connection.visitor().await;
        connection.pace()?;
        if foreign {
            return Err(self
                .guard
                .refuse(&caller, what, Denied::ForeignOrigin)
                .into());
        }
        let admitted = self.guard.admit(caller, what, None)?;
        headers::strip(
            &mut parts.headers,
            self.guard.policy().rules().name_methods(),
        );
        headers::tell(&mut parts.headers, &admitted, &self.capabilities);
        parts.extensions.insert(admitted);
        Ok(recheck)
    }
}

/// The host that a request to ourselves names, with its port. It must name one: rules and upstreams go by it.
pub(super) fn host(parts: &Parts) -> Result<(Host, Option<u16>), Malformed> {
    asked(parts.version, &parts.uri, &parts.headers)?.ok_or(Malformed::AmbiguousHost)
}

/// Whether a page of another origin sent this, and it is one that may do harm without anybody's reading the answer: anything but
/// a safe method (RFC 9110, 9.2.1), or a WebSocket, which no other rule of browsers keeps to one origin.
pub(super) fn is_foreign(
    parts: &Parts,
    method: Option<&Method>,
    place: Place<'_>,
    allowed: &[Allowed<Origin>],
) -> bool {
    let safe = method
        .is_some_and(|method| matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS));
    let websocket = parts.headers.contains_key(header::UPGRADE)
        || parts.headers.contains_key(header::SEC_WEBSOCKET_KEY);
    (!safe || websocket) && foreign(&parts.headers, place, allowed)
}

/// What a request that came to ourselves asks for.
pub(super) fn what(parts: &Parts) -> Result<What, Malformed> {
    let (host, _) = host(parts)?;
    Ok(What {
        host: Some(host),
        path: Some(Path::sent(parts.uri.path())?),
        method: Some(parts.method.clone()),
    })
}

/// Behind the layer it is there; without one nobody was let through.
impl<S: Send + Sync> FromRequestParts<S> for Admitted {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Error> {
        parts.extensions.get::<Self>().cloned().ok_or_else(|| {
            Error::new(
                Kind::Unauthorized,
                "not_a_tailnet_caller",
                "no gate has let anybody through to here",
            )
        })
    }
}

// A service that cannot fail stays one.
const _: fn() = || {
    fn infallible<S: Service<Request<Body>, Error = Infallible>>() {}
    infallible::<GateService<axum::routing::Route>>();
};
