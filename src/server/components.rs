//! The components that are switched on, each built with its listeners. One that is not switched on has no routes, no listener and
//! no task.
//!
//! What they share (node, keys) is handed in; they never see each other.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use ::http::Extensions;
use arc_swap::ArcSwap;
use axum::Router;
use futures_util::{FutureExt, future::select_all};

use super::{StartError, node};
use crate::{
    config::{self, Admin, Binding, Component, Settings},
    gate::{self, Gate},
    http::{
        health,
        host::{HostRule, NodeNames},
        layers, origin,
        serve::{Accept, Listeners, Listening, LiveLimits, Server, Stopped, serve},
        tls::{CertificateFiles, PlainListener, Remote, TlsListener},
    },
    identity::Directory,
    issuer::{self, Issuer, TokenRules},
    jwks::life::KeyLife,
    keys::SigningQueue,
    metrics::{self, Metrics},
    sts::{self, Sts},
    tailnet::{Node, Via},
    telemetry::{meter::Meter, readiness::Readiness, trace::Neighbour},
    web::{Allowed, HostPattern},
};

/// What components share with each other and with the server around them.
pub(super) struct Shared {
    pub(super) node: Arc<dyn Node>,
    pub(super) keys: KeyLife,
    pub(super) rules: Arc<ArcSwap<TokenRules>>,
    pub(super) limits: LiveLimits,
    pub(super) directory: Directory,
    pub(super) names: NodeNames,
    pub(super) meter: Meter,
    pub(super) readiness: Readiness,
    pub(super) listeners: Listeners,
}

impl Shared {
    /// All numbers there are, whether or not a listener shows them.
    pub(super) fn metrics(&self) -> Metrics {
        Metrics {
            meter: self.meter.clone(),
            node: self.node.clone(),
            keys: self.keys.clone(),
            readiness: self.readiness.clone(),
            listeners: self.listeners.clone(),
        }
    }
}

/// What runs.
pub(super) struct Components {
    shared: Shared,
    /// Names of one's own, besides the node's.
    hosts: Vec<Allowed<HostPattern>>,
    servers: Vec<Server>,
    gate: Option<Gate>,
    sts: Option<Sts>,
    certificate: Option<Arc<CertificateFiles>>,
}

impl Components {
    /// Builds and begins to serve. The keys may still be loading, where a component that is switched on needs them ([`needs_keys`]);
    /// the local admin socket is served already.
    pub(super) async fn start(
        settings: &Settings,
        shared: Shared,
        administration: Router,
        socket: Option<Server>,
    ) -> Result<Self, StartError> {
        let signing = Signing {
            keys: shared.keys.clone(),
            queue: Arc::default(),
        };
        let node = &shared.node.clone();
        let mut parts = Self {
            shared,
            hosts: settings.server.allowed_hosts.clone(),
            servers: socket.into_iter().collect(),
            gate: None,
            sts: None,
            certificate: None,
        };
        let on = |component| settings.components.contains(&component);
        if on(Component::Issuer) {
            parts.issuer(settings, node, &signing).await?;
        }
        if on(Component::Admin) {
            let Admin { binding, port, .. } = settings.admin;
            parts
                .on_tailnet("admin", node, binding, port, administration)
                .await?;
        }
        if on(Component::Gate) {
            parts.gate(settings, node, &signing).await?;
        }
        if on(Component::Sts) {
            parts.sts(settings, node).await?;
        }
        if on(Component::Metrics) {
            parts.metrics(settings.metrics, node).await?;
        }
        Ok(parts)
    }

    async fn issuer(
        &mut self,
        settings: &Settings,
        node: &Arc<dyn Node>,
        signing: &Signing,
    ) -> Result<(), StartError> {
        let routes = issuer::router(Issuer {
            rules: self.shared.rules.clone(),
            keys: signing.keys.clone(),
            signing: signing.queue.clone(),
            cache_time: settings.keys.cache_time,
            origins: settings.server.allowed_origins.clone().into(),
            meter: self.shared.meter.clone(),
        })
        .merge(health::router(self.shared.readiness.clone()));
        let routes = layers::wrap(routes, "issuer");
        let server = &settings.server;
        self.on_tailnet("issuer", node, server.binding, server.port, routes)
            .await
    }

    async fn gate(
        &mut self,
        settings: &Settings,
        node: &Arc<dyn Node>,
        signing: &Signing,
    ) -> Result<(), StartError> {
        let set = &settings.gate;
        let sign = set.token.is_some().then(|| signing.for_gate());
        let meter = self.shared.meter.clone();
        let directory = self.shared.directory.clone();
        let gate = Gate::build(set, directory, sign, meter)?;
        if let Some(routes) = gate.proxy_router() {
            let routes = layers::wrap_streaming(routes, "gate");
            self.on_tailnet("gate", node, set.binding, set.port, routes)
                .await?;
        }
        if let Some(routes) = gate.auth_router() {
            let routes = layers::wrap(routes, "gate");
            if !set.auth.proxies.is_empty() {
                // Proxies name the host that their client asked for, and who they are is their own connection.
                self.on_tailnet_for(
                    "gate auth",
                    node,
                    set.binding,
                    set.auth.port,
                    routes.clone(),
                    None,
                )
                .await?;
            }
            if let Some(path) = &set.auth.socket {
                let listener =
                    gate::Socket::bind(path, set.auth.socket_mode).map_err(|source| {
                        StartError::GateSocket {
                            path: path.clone(),
                            source,
                        }
                    })?;
                let addr = path.display().to_string();
                self.serve("gate auth", addr, listener, routes, |_| gate::local_proxy());
                tracing::info!(target: "server", component = "gate auth", socket = %path.display(), "listening");
            }
        }
        self.gate = Some(gate);
        Ok(())
    }

    async fn sts(&mut self, settings: &Settings, node: &Arc<dyn Node>) -> Result<(), StartError> {
        let set = &settings.sts;
        let sts = Sts::start(set, self.shared.meter.clone())?;
        let routes = origin::wrap(sts::router(sts.state()), &settings.server.allowed_origins);
        let routes = layers::wrap_worded(routes, "sts");
        self.on_tailnet("sts", node, set.binding, set.port, routes.clone())
            .await?;
        if let Some(config::HostListener { addr, tls }) = set.host.clone() {
            match tls {
                Some(config::TlsFiles { cert, key }) => {
                    let files = Arc::new(CertificateFiles::open(cert, key)?);
                    self.certificate = Some(files.clone());
                    let listener = TlsListener::bind(addr, files).await?;
                    self.serve(
                        "sts host",
                        addr.to_string(),
                        listener,
                        routes,
                        Remote::identify,
                    );
                }
                None => {
                    let listener = tokio::net::TcpListener::bind(addr)
                        .await
                        .map_err(|source| StartError::Host { addr, source })?;
                    self.serve(
                        "sts host",
                        addr.to_string(),
                        PlainListener(listener),
                        routes,
                        Remote::identify,
                    );
                }
            }
            // No rule about hosts there: the names are those of the proxy or the certificate in front, and the caller's identity is
            // in its token, not in the connection.
            tracing::warn!(target: "server", component = "sts", %addr, "listening at a host address, as set");
        }
        let state = sts.state();
        self.shared.readiness.latch("sts-issuers", move |_| {
            if state.readiness().ready {
                Ok(())
            } else {
                Err("no issuer of the exchange's policies has given its keys yet".to_owned())
            }
        });
        self.sts = Some(sts);
        Ok(())
    }

    /// On the tailnet; on the machine's own loopback only where its address is typed out.
    async fn metrics(
        &mut self,
        set: config::Metrics,
        node: &Arc<dyn Node>,
    ) -> Result<(), StartError> {
        let routes = metrics::router(self.shared.metrics());
        let routes = layers::wrap(routes, "metrics");
        match set.binding {
            Binding::Addr(ip) if ip.is_loopback() => {
                let addr = SocketAddr::new(ip, set.port);
                let listener = tokio::net::TcpListener::bind(addr)
                    .await
                    .map_err(|source| StartError::Host { addr, source })?;
                let listener = PlainListener(listener);
                let hosts = HostRule::of_loopback(&self.hosts);
                self.serve("metrics", addr.to_string(), listener, routes, move |_| {
                    let mut known = Extensions::new();
                    known.insert(hosts.clone());
                    known
                });
                tracing::info!(target: "server", component = "metrics", %addr, "listening");
                Ok(())
            }
            binding => {
                self.on_tailnet("metrics", node, binding, set.port, routes)
                    .await
            }
        }
    }

    /// With the rule that requests must name the node.
    async fn on_tailnet(
        &mut self,
        what: &'static str,
        node: &Arc<dyn Node>,
        binding: Binding,
        port: u16,
        routes: Router,
    ) -> Result<(), StartError> {
        let hosts = HostRule::of_node(self.shared.names.clone(), &self.hosts);
        self.on_tailnet_for(what, node, binding, port, routes, Some(hosts))
            .await
    }

    async fn on_tailnet_for(
        &mut self,
        what: &'static str,
        node: &Arc<dyn Node>,
        binding: Binding,
        port: u16,
        routes: Router,
        hosts: Option<HostRule>,
    ) -> Result<(), StartError> {
        let addr = node::listen_addr(binding, port);
        let listener = node
            .listen(addr)
            .await
            .map_err(|source| StartError::Listen { what, addr, source })?;
        let directory = self.shared.directory.clone();
        self.serve(what, addr.to_string(), listener, routes, move |peer| {
            let mut known = directory.identify(peer);
            if peer.via == Via::Tailnet {
                known.insert(Neighbour);
            }
            if let Some(hosts) = &hosts {
                known.insert(hosts.clone());
            }
            known
        });
        tracing::info!(target: "server", component = what, binding = %addr, port, "listening");
        Ok(())
    }

    fn serve<L: Accept>(
        &mut self,
        what: &'static str,
        addr: String,
        listener: L,
        routes: Router,
        identify: impl Fn(L::Addr) -> Extensions + Send + Sync + 'static,
    ) {
        let server = serve(what, listener, routes, self.shared.limits.clone(), identify);
        self.shared.listeners.add(Listening {
            name: what,
            addr,
            load: server.load(),
        });
        self.servers.push(server);
    }

    /// What files say anew: policies and certificates that have changed.
    pub(super) fn tick(&self) {
        if let Some(gate) = &self.gate
            && let Err(error) = gate.tick()
        {
            tracing::warn!(target: "gate", error = &error as &dyn std::error::Error, "the policy file has mistakes; the one before stays");
        }
        if let Some(files) = &self.certificate {
            match files.reload() {
                Ok(false) => {}
                Ok(true) => tracing::info!(target: "sts", "the certificate was read anew"),
                Err(error) => {
                    tracing::warn!(target: "sts", error = &error as &dyn std::error::Error, "the certificate cannot be read; the one before stays");
                }
            }
        }
    }

    /// As on a hang-up signal: everything that can be read anew, whether it has changed or not.
    pub(super) fn reload(&self) {
        if let Some(gate) = &self.gate {
            match gate.reload() {
                Ok(_) => tracing::info!(target: "gate", "policy read anew"),
                Err(error) => {
                    tracing::warn!(target: "gate", error = &error as &dyn std::error::Error, "the policy file has mistakes; the one before stays");
                }
            }
        }
        if let Some(sts) = &self.sts
            && let Err(error) = sts.reload()
        {
            tracing::warn!(target: "sts", error = &error as &dyn std::error::Error, "the policies have mistakes; those before stay");
        }
        self.tick();
    }

    /// Waits until a listener ends that was not asked to.
    pub(super) async fn listener_died(&mut self) -> StartError {
        if self.servers.is_empty() {
            return std::future::pending().await;
        }
        let ends = self.servers.iter_mut().map(|server| {
            async {
                let what = server.name();
                let source = server.failed().await;
                StartError::ListenerDied { what, source }
            }
            .boxed()
        });
        select_all(ends).await.0
    }

    /// Stops accepting, lets open requests finish within `grace`, and says what was cut.
    pub(super) async fn stop(&mut self, grace: Duration) {
        let stops = self.servers.drain(..).map(|server| async move {
            let what = server.name();
            if server.stop(grace).await == Stopped::Cut {
                tracing::warn!(target: "server", listener = what, ?grace, "requests were cut: the grace time is over");
            }
        });
        futures_util::future::join_all(stops).await;
        if let Some(gate) = &self.gate {
            gate.close().await;
        }
        if let Some(sts) = self.sts.take() {
            sts.stop();
        }
    }
}

/// Whether a component that is switched on signs anything, so that there must be keys.
pub(super) fn needs_keys(settings: &Settings) -> bool {
    let on = |component| settings.components.contains(&component);
    on(Component::Issuer)
        || on(Component::Admin)
        || (on(Component::Gate) && settings.gate.token.is_some())
}

/// Keys, and the queue of those who want to sign with them.
struct Signing {
    keys: KeyLife,
    queue: Arc<SigningQueue>,
}

impl Signing {
    /// The gate signs with whatever key the issuer would.
    fn for_gate(&self) -> gate::Sign {
        let (ring, queue) = (self.keys.ring().clone(), self.queue.clone());
        Arc::new(move |claims| {
            let (ring, queue) = (ring.clone(), queue.clone());
            async move {
                let signer = ring
                    .loaded()
                    .await
                    .signer()
                    .map_err(|why| gate::SignError(why.to_string()))?;
                queue
                    .sign_as(&signer, gate::TOKEN_TYPE, &claims)
                    .await
                    .map_err(|why| gate::SignError(why.to_string()))
            }
            .boxed()
        })
    }
}
