//! The gate: identity in front of any HTTP service, by the rules of [`crate::policy`].
//!
//! | Use | Code | What happens |
//! |---|---|---|
//! | reverse proxy on the tailnet | [`Gate::proxy_router`] | the connection identifies the caller |
//! | forward-auth (nginx, …) | [`Gate::auth_router`] | a trusted proxy asks about each request |
//! | Rust | [`GateLayer`] | a tower layer, with [`Admitted`] as extractor |
//!
//! In each case the service gets the caller's identity in headers. Forward-auth has these routes,
//! for any method: `/auth/forwarded` reads `X-Forwarded-*` (Caddy, Traefik, HAProxy),
//! `/auth/envoy/…` reads the request itself (Envoy), `/auth/nginx` and every other path read
//! `Remote-Addr` and `X-Original-*` as nginx-auth did. A route never reads the headers of another
//! convention: a header that the proxy does not set itself comes from the client.
//!
//! Invariants
//! - Identity headers from outside are never passed on: they are removed before ours are set, in
//!   any spelling.
//! - The caller is the connection's peer, or the address that a trusted proxy reports. The proxy is
//!   trusted because of *its* connection: its tailnet identity, or our own unix socket. A header
//!   alone is never trusted.
//! - A web page of another origin can neither open a WebSocket nor use methods other than GET, HEAD
//!   and OPTIONS, and a request for an unknown host is refused (`http::origin`, `http::host`).
//! - A fault of ours is a 503, an unknown caller a 401, a known caller without access a 403. Only
//!   an anonymous rule grants access without identity.
//! - Every decision is an audit line with caller, rule, host and the first part of the path; never
//!   with queries, cookies or tokens.
//!
//! Done elsewhere: identification ([`crate::identity`]), rules ([`crate::policy`]), statuses
//! ([`crate::http`]), signing (the caller of [`Gate::build`] passes a [`SignFn`]), listening, and
//! the timer that calls [`Lifecycle::tick`] (the composition root).

mod error;
mod forward_auth;
#[doc(hidden)]
pub mod fuzzing;
mod guard;
mod headers;
mod layer;
mod proxy;
mod recheck;
mod token;
mod upstream_clients;
mod upstream_table;

use std::sync::Arc;

use axum::Router;
use futures_util::future::BoxFuture;

pub use error::GateError;
pub use forward_auth::{LocalProxy, local_proxy_extensions};
pub use guard::Admitted;
pub use layer::{GateLayer, GateService};
pub use token::{BACKEND_TOKEN_TYPE, BackendTokenError, SignFn};

use self::{forward_auth::ForwardAuth, guard::Guard, proxy::ReverseProxy, token::BackendTokens};
use crate::{
    config,
    http::layers,
    identity::Directory,
    part::{self, AcceptedHosts, Context, Lifecycle, Part, Routes},
    policy::{self, Change},
    telemetry::meter::Meter,
    web::{Allowed, Origin},
};

/// The component: the reverse proxy and forward-auth, each at its listeners.
pub fn part(settings: &config::Settings, context: &Context) -> Result<Part, part::PartError> {
    let settings = &settings.gate;
    let sign = settings
        .token
        .is_some()
        .then(|| token::sign_with_active_key(context));
    let gate = Gate::build(
        settings,
        context.directory.clone(),
        sign,
        context.meter.clone(),
    )?;
    let mut part = Part::new("gate");
    if let Some(routes) = gate.proxy_router() {
        let routes = layers::wrap_streaming(routes, "gate");
        // The rules decide what `funnel` may do.
        let routes = Routes::new("gate", routes.clone()).on_the_internet(routes);
        part = part.serve("gate", settings.listen.clone(), &routes);
    }
    if let Some(routes) = gate.auth_router() {
        let routes = Routes::new("gate", layers::wrap(routes, "gate"));
        // The caller is a proxy, and names the host that its client asked for.
        part = part.serve_as(
            "gate auth",
            settings.auth.listen.clone(),
            &routes,
            AcceptedHosts::Any,
            |_| local_proxy_extensions(),
        );
    }
    Ok(part.lifecycle(gate))
}

/// A gate with checked settings.
#[derive(Debug, Clone)]
pub struct Gate {
    guard: Arc<Guard>,
    capabilities: Vec<String>,
    origins: Vec<Allowed<Origin>>,
    auth: Option<Arc<ForwardAuth>>,
    proxy: Option<Arc<ReverseProxy>>,
}

impl Gate {
    /// Loads the policy and checks the settings for consistency. `sign` is required if backends get
    /// tokens.
    pub fn build(
        settings: &config::GateSettings,
        directory: Directory,
        sign: Option<SignFn>,
        meter: Meter,
    ) -> Result<Self, GateError> {
        let rules = &settings.rules;
        let store = policy::RuleStore::open(rules.file.as_deref(), &rules.capability)?;
        if rules.file.is_none() {
            tracing::warn!(target: "gate", capability = rules.capability, "no gate.policy: only callers with a grant have access");
        }
        let guard = Guard::new(Arc::new(store), settings.expected_tailnet.clone());
        let guard = Arc::new(guard.with_meter(meter));
        let tokens = match (&settings.token, sign) {
            (None, _) => None,
            (Some(token), Some(sign)) => Some(Arc::new(BackendTokens::new(token, sign))),
            (Some(_), None) => return Err(GateError::NoSigner),
        };
        let without_host = |upstream: &&config::UpstreamSettings| upstream.host.is_empty();
        if let Some(token) = &settings.token
            && token.audience.is_none()
            && let Some(upstream) = settings.upstreams.iter().find(without_host)
        {
            return Err(GateError::NoAudience(upstream.address.clone()));
        }
        let auth = if settings.auth.listen.is_empty() && settings.auth.proxies.is_empty() {
            None
        } else {
            let auth = ForwardAuth::new(guard.clone(), directory, settings, tokens.clone())?;
            Some(Arc::new(auth))
        };
        let proxy = if settings.upstreams.is_empty() {
            None
        } else {
            let proxy = ReverseProxy::new(guard.clone(), settings, tokens)?;
            proxy.warn_about_upstreams_without_host();
            Some(Arc::new(proxy))
        };
        if auth.is_none() && proxy.is_none() {
            return Err(GateError::NothingToDo);
        }
        Ok(Self {
            guard,
            capabilities: settings.forward_capabilities.clone(),
            origins: settings.allowed_origins.clone(),
            auth,
            proxy,
        })
    }

    /// The reverse proxy, if there is an upstream. Wrap it with
    /// [`crate::http::layers::wrap_streaming`]; requests must carry an `Arc<Connection>`.
    pub fn proxy_router(&self) -> Option<Router> {
        self.proxy.clone().map(proxy::router)
    }

    /// Forward-auth, if a proxy is trusted. Wrap it with [`crate::http::layers::wrap`]; requests
    /// must carry an `Arc<Connection>`, or the extensions of [`local_proxy_extensions`] if they
    /// come over the local socket.
    pub fn auth_router(&self) -> Option<Router> {
        self.auth.clone().map(forward_auth::router)
    }

    /// The same rules as a layer around your own service, which gets the same headers.
    pub fn layer(&self) -> GateLayer {
        GateLayer::with_guard(self.guard.clone())
            .forward_capabilities(self.capabilities.iter().cloned())
            .allow_origins(self.origins.iter().cloned())
    }

    /// Reads the policy again. If it has mistakes, the previous one stays active.
    pub fn reload_policy(&self) -> Result<Change, policy::LoadError> {
        self.guard.policy().reload()
    }

    /// Reads the policy again if its file has changed. To be called every few seconds.
    pub fn reload_if_changed(&self) -> Result<Change, policy::LoadError> {
        self.guard.policy().tick()
    }

    /// Ends open tunnels (WebSockets), which outlive the requests that opened them, and waits for
    /// them.
    pub async fn close(&self) {
        if let Some(proxy) = &self.proxy {
            proxy.close().await;
        }
    }
}

impl Lifecycle for Gate {
    fn tick(&self) {
        if let Err(error) = self.reload_if_changed() {
            log_load_error(&error);
        }
    }

    fn reload(&self, _: &config::Settings) {
        match self.reload_policy() {
            Ok(_) => tracing::info!(target: "gate", "policy reloaded"),
            Err(error) => log_load_error(&error),
        }
    }

    fn stop(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.close())
    }
}

fn log_load_error(error: &policy::LoadError) {
    tracing::warn!(target: "gate", error = error as &dyn std::error::Error, "the policy file has mistakes; the previous rules stay in force");
}
