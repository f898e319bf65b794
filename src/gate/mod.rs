//! The gate: identity in front of any HTTP service, by the rules of [`crate::policy`].
//!
//! | Way in | Router | What happens |
//! |---|---|---|
//! | reverse proxy on the tailnet | [`Gate::proxy_router`] | who calls is the connection itself; an upstream gets the request with identity headers |
//! | forward-auth for nginx, Caddy, Traefik, HAProxy, Envoy | [`Gate::auth_router`] | a trusted proxy asks; the answer is a status with identity headers |
//! | Rust | [`GateLayer`] | a tower layer around any service on our listener, and [`Admitted`] as extractor |
//!
//! Routes of forward-auth, for any method: `/auth/forwarded` reads `X-Forwarded-*` (Caddy, Traefik, HAProxy), `/auth/envoy/…` the
//! request itself (Envoy), `/auth/nginx` and every other path `Remote-Addr` and `X-Original-*` as nginx-auth did. A route never
//! reads the headers of another convention: what the proxy does not set itself comes from the client.
//!
//! Invariants
//! - Identity headers from outside never pass: they are stripped before ours are set, however they are spelled.
//! - Who calls is the connection's peer, or the address that a proxy tells whom we trust by *its* connection: tailnet identity, or
//!   our own unix socket. A header alone is never believed.
//! - A web page of another origin neither opens a WebSocket nor uses another method than GET, HEAD and OPTIONS, and a request whose
//!   host nothing here is called by reaches nobody (`http::origin`, `http::host`).
//! - Trouble of ours is 503, an unknown caller 401, a known and unwanted one 403. Only an anonymous rule answers without identity.
//! - Every decision is an audit line with caller, rule, host and the first part of the path; never queries, cookies or tokens.
//!
//! Left to others: who calls ([`crate::identity`]), which rule decides ([`crate::policy`]), statuses ([`crate::http`]), signing
//! (a [`Sign`] is handed in), listening and the clock of [`Gate::tick`] (the composition root).

mod error;
mod forward_auth;
#[doc(hidden)]
pub mod fuzzing;
mod guard;
mod headers;
mod layer;
mod proxy;
mod recheck;
mod routes;
mod socket;
mod token;
mod upstreams;

use std::sync::Arc;

use axum::Router;

pub use error::BuildError;
pub use forward_auth::{LocalProxy, local_proxy};
pub use guard::Admitted;
pub use layer::{GateLayer, GateService};
pub use socket::Socket;
pub use token::{Sign, SignError, TOKEN_TYPE};

use self::{forward_auth::ForwardAuth, guard::Guard, proxy::ReverseProxy, token::Tokens};
use crate::{
    config,
    identity::Directory,
    policy::{self, Change},
    telemetry::meter::Meter,
    web::{Allowed, Origin},
};

/// A built gate.
#[derive(Debug, Clone)]
pub struct Gate {
    guard: Arc<Guard>,
    capabilities: Vec<String>,
    origins: Vec<Allowed<Origin>>,
    auth: Option<Arc<ForwardAuth>>,
    proxy: Option<Arc<ReverseProxy>>,
}

impl Gate {
    /// Loads the policy and checks the settings against each other. `sign` is needed where the backend is to get a token.
    pub fn build(
        settings: &config::Gate,
        directory: Directory,
        sign: Option<Sign>,
        meter: Meter,
    ) -> Result<Self, BuildError> {
        let store = policy::Store::open(settings.policy.as_deref(), &settings.capability)?;
        if settings.policy.is_none() {
            tracing::warn!(target: "gate", capability = settings.capability, "no gate.policy: only callers with a grant are let through");
        }
        let guard = Guard::new(Arc::new(store), settings.expected_tailnet.clone());
        let guard = Arc::new(guard.counted(meter));
        let tokens = match (&settings.token, sign) {
            (None, _) => None,
            (Some(token), Some(sign)) => Some(Arc::new(Tokens::new(token, sign))),
            (Some(_), None) => return Err(BuildError::NoSigner),
        };
        let without_host = |upstream: &&config::Upstream| upstream.host.is_empty();
        if let Some(token) = &settings.token
            && token.audience.is_none()
            && let Some(upstream) = settings.upstreams.iter().find(without_host)
        {
            return Err(BuildError::NoAudience(upstream.address.clone()));
        }
        let auth = if settings.auth.proxies.is_empty() && settings.auth.socket.is_none() {
            None
        } else {
            let auth = ForwardAuth::new(guard.clone(), directory, settings, tokens.clone())?;
            Some(Arc::new(auth))
        };
        let proxy = if settings.upstreams.is_empty() {
            None
        } else {
            let proxy = ReverseProxy::new(guard.clone(), settings, tokens)?;
            proxy.warn();
            Some(Arc::new(proxy))
        };
        if auth.is_none() && proxy.is_none() {
            return Err(BuildError::NothingToDo);
        }
        Ok(Self {
            guard,
            capabilities: settings.forward_capabilities.clone(),
            origins: settings.allowed_origins.clone(),
            auth,
            proxy,
        })
    }

    /// The reverse proxy, where there is an upstream. Wrap it with [`crate::http::layers::wrap_streaming`]; requests carry an
    /// `Arc<Connection>`.
    pub fn proxy_router(&self) -> Option<Router> {
        self.proxy.clone().map(proxy::router)
    }

    /// Forward-auth, where a proxy is trusted. Wrap it with [`crate::http::layers::wrap`]; requests carry an `Arc<Connection>`, or
    /// the extensions of [`local_proxy`] where they come over the local socket.
    pub fn auth_router(&self) -> Option<Router> {
        self.auth.clone().map(forward_auth::router)
    }

    /// The same rules around a service of one's own, which is told the same.
    pub fn layer(&self) -> GateLayer {
        GateLayer::of(self.guard.clone())
            .forward_capabilities(self.capabilities.iter().cloned())
            .allow_origins(self.origins.iter().cloned())
    }

    /// Reads the policy again. With mistakes in it, the one before stays.
    pub fn reload(&self) -> Result<Change, policy::LoadError> {
        self.guard.policy().reload()
    }

    /// Reads the policy again if its file has changed. To be called every few seconds.
    pub fn tick(&self) -> Result<Change, policy::LoadError> {
        self.guard.policy().tick()
    }

    /// Ends open tunnels (WebSockets), which outlive the requests that they began as, and waits for them.
    pub async fn close(&self) {
        if let Some(proxy) = &self.proxy {
            proxy.close().await;
        }
    }
}
