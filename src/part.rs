//! A component as the server sees it: a part.
//!
//! A component is built from the settings and from what all components share ([`Context`]), and
//! hands over a [`Part`]: what it serves and where ([`Endpoint`]), what it needs to be ready, and
//! what a tick, a reload and the end mean for it ([`Lifecycle`]). The server opens the listeners
//! and calls the rest in one loop, without knowing any component.
//!
//! Invariants
//! - A component that is switched off is not built: it has no routes, no listeners and no tasks.
//! - Components do not know each other. What two of them need is in the context or below them.
//! - What is reachable from the internet is a router of its own ([`Routes::on_the_internet`]). A
//!   component that has none has nothing there.
//! - A part has no listener of its own: it says where it wants to be served, and each kind of
//!   listener brings its limits, its host names and the identity of its callers.
//!
//! Done elsewhere: opening listeners and calling the lifecycle (`server`), the kinds of listeners
//! ([`crate::config::Listen`]).

use std::sync::{Arc, OnceLock};

use ::http::Extensions;
use axum::Router;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use parking_lot::Mutex;
use tailbone_oidc::{provider::Provider, store::LiveRows};

use crate::{
    config::{Listen, Settings},
    http::{layers, serve::Listeners, unix::LocalPeer},
    identity::Directory,
    jwks::{KeySet, life::KeyLife},
    keys::SigningQueue,
    tailnet::{Membership, Node},
    telemetry::{
        meter::Meter,
        readiness::{self, Readiness},
    },
};

/// What all components share. Clones share one state.
#[derive(Debug, Clone)]
pub struct Context {
    pub node: Arc<dyn Node>,
    pub directory: Directory,
    /// The keys of the issuer and the gate.
    pub keys: KeyLife,
    /// The keys of components that have their own.
    pub key_sets: Arc<[KeySet]>,
    pub signing: Arc<SigningQueue>,
    pub meter: Meter,
    pub state: ServerState,
    /// The admin API. The local admin socket serves the same routes before there is a node.
    pub admin_routes: Router,
}

impl Context {
    /// The component's own keys, if it declared some (`server/parts.rs`). The server keeps them in
    /// order.
    pub fn keys_of(&self, component: &str) -> Option<&KeySet> {
        self.key_sets.iter().find(|set| set.name() == component)
    }
}

/// What the server knows about itself, from its first moment on: the node may not exist yet.
/// Clones share one state.
#[derive(Debug, Clone, Default)]
pub struct ServerState {
    pub membership: Membership,
    pub readiness: Readiness,
    pub listeners: Listeners,
    pub provider: ProviderPlace,
    pub provider_report: ProviderReport,
}

/// Where the component `oidc` leaves the OpenID provider for the admin API, which is served before
/// there are components. Clones share one place.
#[derive(Debug, Clone, Default)]
pub struct ProviderPlace(Arc<OnceLock<Provider>>);

impl ProviderPlace {
    /// The first one stays: a server has one provider, for as long as it runs.
    pub fn put(&self, provider: Provider) {
        let _ = self.0.set(provider);
    }

    /// `None` if the component is off, or is not built yet.
    pub fn get(&self) -> Option<&Provider> {
        self.0.get()
    }
}

/// What the component `oidc` tells the admin API about its state; nothing while it is off. Clones
/// share one report.
#[derive(Debug, Clone, Default)]
pub struct ProviderReport(Arc<Mutex<Option<ProviderFigures>>>);

/// The state of the OpenID provider, as last looked at.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ProviderFigures {
    pub issuer: String,
    /// Names the database, without a secret.
    pub store: String,
    /// What lived when it was last counted.
    pub live: Option<(LiveRows, Timestamp)>,
    /// How many expired rows the last sweep deleted, and when it ended.
    pub swept: Option<(u64, Timestamp)>,
}

impl ProviderReport {
    pub fn begin(&self, issuer: &str, store: &str) {
        *self.0.lock() = Some(ProviderFigures {
            issuer: issuer.to_owned(),
            store: store.to_owned(),
            ..ProviderFigures::default()
        });
    }

    pub fn counted(&self, live: LiveRows, now: Timestamp) {
        if let Some(figures) = &mut *self.0.lock() {
            figures.live = Some((live, now));
        }
    }

    pub fn swept(&self, rows: u64, now: Timestamp) {
        if let Some(figures) = &mut *self.0.lock() {
            figures.swept = Some((rows, now));
        }
    }

    pub fn get(&self) -> Option<ProviderFigures> {
        self.0.lock().clone()
    }
}

/// Why a component could not be built.
pub type PartError = Box<dyn std::error::Error + Send + Sync>;

/// A component that is switched on.
#[must_use]
pub struct Part {
    pub name: &'static str,
    pub endpoints: Vec<Endpoint>,
    pub latches: Vec<LatchCheck>,
    pub lifecycle: Option<Box<dyn Lifecycle>>,
}

/// A latch of [`Readiness`], with its name.
pub type LatchCheck = (
    &'static str,
    Box<dyn Fn(Timestamp) -> readiness::LatchState + Send + Sync>,
);

/// The routes of a component, by who can reach them.
#[derive(Debug, Clone)]
pub struct Routes {
    within: Router,
    internet: Router,
}

impl Routes {
    /// For all listeners but those of Funnel, where nothing is found.
    pub fn new(component: &'static str, within: Router) -> Self {
        Self {
            within,
            internet: layers::wrap(Router::new(), component),
        }
    }

    /// Also these, for everybody on the internet. Their callers have no identity.
    #[must_use]
    pub fn on_the_internet(self, internet: Router) -> Self {
        Self { internet, ..self }
    }

    fn at(&self, listen: &Listen) -> Router {
        match listen {
            Listen::Funnel { .. } => self.internet.clone(),
            Listen::Tailnet { .. }
            | Listen::Redirect { .. }
            | Listen::Host { .. }
            | Listen::Unix { .. } => self.within.clone(),
        }
    }
}

/// Routes, and a listener for them.
#[derive(Debug)]
pub struct Endpoint {
    /// The name in logs, metrics and `tailbone status`.
    pub name: &'static str,
    pub listen: Listen,
    pub routes: Router,
    pub hosts: AcceptedHosts,
    /// Who a caller on a unix socket is, in the words of the component.
    pub identify_local: fn(LocalPeer) -> Extensions,
}

/// For which hosts a listener takes requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AcceptedHosts {
    /// Those that its callers name: the component has its own rule, or its callers are proxies.
    Any,
    /// The listener's own names, where it knows them ([`crate::http::host`]).
    Own,
}

/// What happens to a part while the server runs. Nothing does by default.
pub trait Lifecycle: Send + Sync {
    /// Comes every few seconds: files that have changed are read again.
    fn tick(&self) {}

    /// Reads everything again, whether it has changed or not. `settings` are those in force.
    fn reload(&self, _settings: &Settings) {}

    /// Ends what outlives the requests. Comes when the listeners have stopped.
    fn stop(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}

impl Part {
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            endpoints: Vec::new(),
            latches: Vec::new(),
            lifecycle: None,
        }
    }

    /// Serves the routes at each of these listeners, under their own names of host.
    pub fn serve(self, name: &'static str, listen: Vec<Listen>, routes: &Routes) -> Self {
        self.serve_as(name, listen, routes, AcceptedHosts::Own, |_| {
            Extensions::new()
        })
    }

    pub fn serve_as(
        mut self,
        name: &'static str,
        listen: Vec<Listen>,
        routes: &Routes,
        hosts: AcceptedHosts,
        identify_local: fn(LocalPeer) -> Extensions,
    ) -> Self {
        self.endpoints
            .extend(listen.into_iter().map(|listen| Endpoint {
                name,
                routes: routes.at(&listen),
                listen,
                hosts,
                identify_local,
            }));
        self
    }

    pub fn latch<S: Into<readiness::LatchState>>(
        mut self,
        name: &'static str,
        check: impl Fn(Timestamp) -> S + Send + Sync + 'static,
    ) -> Self {
        self.latches
            .push((name, Box::new(move |now| check(now).into())));
        self
    }

    pub fn lifecycle(mut self, lifecycle: impl Lifecycle + 'static) -> Self {
        self.lifecycle = Some(Box::new(lifecycle));
        self
    }
}

impl std::fmt::Debug for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Part")
            .field("name", &self.name)
            .field("endpoints", &self.endpoints)
            .finish_non_exhaustive()
    }
}
