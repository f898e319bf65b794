//! The composition root of `tailbone server …`: what is built in which order, and how it ends. The only place that names every
//! component.
//!
//! Order of the start: signals, then node and keys side by side (joining waits for the network, a first key for the processor),
//! then listeners, then "listening" in the log. A listener exists only once what it serves is ready; the local admin socket needs
//! the keys alone, so it is there while the node still joins.
//!
//! Order of the end: listeners stop accepting, open requests get the grace time, the keys' task ends, the node logs out if it is
//! ephemeral and closes. A second signal ends the process at once.
//!
//! Left to others: joining ([`crate::tailnet::join`]), serving ([`crate::http::serve`]), which key signs ([`crate::jwks`]).

mod admin;
mod error;
mod housekeeping;
mod keys;
mod latches;
mod live;
mod node;
mod notify;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use ::http::Extensions;
use axum::Router;
use futures_util::future::select_all;
use tokio::{net::TcpListener, task::JoinHandle};

pub use error::StartError;
pub use housekeeping::{housekeeping, succeeded};
use keys::Keeper;
use live::Live;
use notify::Supervisor;

use crate::{
    admin::OwnNode,
    config::{self, Admin, Binding, Component, Settings},
    http::{
        health, layers,
        serve::{Listening, LiveLimits, Server, Stopped, serve},
        tls::PlainListener,
    },
    identity::Connection,
    issuer::{self, Issuer},
    jwks::life::KeyLife,
    keys::SigningPool,
    metrics::{self, Metrics},
    signals::{Signal, Signals},
    tailnet::{Node, join::JoinState},
    telemetry::{meter::Meter, readiness::Switch},
    version,
};

/// How long an ephemeral node may take to say goodbye to the control server.
const LOGOUT: Duration = Duration::from_secs(3);

/// `tailbone server start`: returns when asked to stop, or when it cannot go on. `reload` loads the settings once more, or says why it
/// cannot.
pub fn start(
    settings: &Settings,
    reload: impl Fn() -> Result<Settings, String>,
) -> Result<(), StartError> {
    runtime()?.block_on(run(settings, reload))
}

fn runtime() -> Result<tokio::runtime::Runtime, StartError> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("tb-worker")
        .build()
        .map_err(StartError::Runtime)
}

async fn run(
    settings: &Settings,
    reload: impl Fn() -> Result<Settings, String>,
) -> Result<(), StartError> {
    tracing::info!(target: "server", version = version::VERSION, commit = version::COMMIT, "starting tailbone server");
    let supervisor = Supervisor::of_process();
    let mut signals = Signals::install().map_err(StartError::Runtime)?;
    let mut live = Live::new(settings);
    let meter = Meter::default();
    let mut daemon = tokio::select! {
        daemon = Daemon::start(settings, &live, &meter, &supervisor) => daemon?,
        signal = stop_signal(&mut signals, || {}) => {
            let signal = signal.map_err(StartError::Runtime)?;
            tracing::info!(target: "server", ?signal, "stopped before the start was done");
            return Ok(());
        }
    };
    let keeper = Keeper::start(daemon.keys.clone(), meter.clone());
    supervisor.ready();
    let keys = daemon.keys.clone();
    let reload = || {
        supervisor.reloading();
        keeper.look();
        let new = reload();
        meter.reloaded(new.is_ok());
        reloaded(&mut live, new, &keys);
        supervisor.ready();
    };
    let outcome = tokio::select! {
        signal = stop_signal(&mut signals, reload) => {
            signal.map(|signal| tracing::info!(target: "server", ?signal, "shutting down listeners")).map_err(StartError::Runtime)
        }
        died = daemon.listener_died() => Err(died),
    };
    supervisor.stopping();
    tokio::select! {
        () = daemon.stop(live.settings()) => {}
        _ = stop_signal(&mut signals, || {}) => {
            tracing::warn!(target: "server", "a second signal: ending at once");
        }
    }
    outcome
}

/// Exchanges what can be exchanged, and says what cannot.
fn reloaded(live: &mut Live, new: Result<Settings, String>, keys: &KeyLife) {
    let new = match new {
        Ok(new) => new,
        Err(error) => {
            tracing::error!(target: "server", error, "settings not reloaded; the old ones stay in force");
            return;
        }
    };
    let exchanged = live.exchange(&new, keys);
    tracing::info!(target: "server", changed = exchanged.done.join(", "), "settings and keys reloaded");
    if !exchanged.left.is_empty() {
        tracing::warn!(target: "server", settings = exchanged.left.join(", "), "changed settings that need a restart");
    }
}

/// Waits for a signal to end; on a hang-up `reload` is called and the waiting goes on.
async fn stop_signal(signals: &mut Signals, mut reload: impl FnMut()) -> io::Result<Signal> {
    loop {
        match signals.next().await? {
            Signal::Hangup => reload(),
            signal => return Ok(signal),
        }
    }
}

/// Everything that runs.
struct Daemon {
    node: Arc<dyn Node>,
    keys: KeyLife,
    servers: Vec<Server>,
    follow: JoinHandle<()>,
    own: OwnNode,
    limits: LiveLimits,
    meter: Meter,
    /// Held by the server's end.
    up: Switch,
}

impl Daemon {
    async fn start(
        settings: &Settings,
        live: &Live,
        meter: &Meter,
        supervisor: &Supervisor,
    ) -> Result<Self, StartError> {
        let own = OwnNode::default();
        let up = latches::first(&own);
        let news = |state: JoinState| {
            supervisor.status(state.code());
            own.membership.joining(state);
        };
        // A start without keys is none, so their failure ends the join at once.
        let (node, (keys, administration, socket)) = tokio::try_join!(
            async {
                let node = node::joined(&settings.server.tailscale, &settings.log, news).await?;
                own.joined(node.clone());
                Ok::<_, StartError>(node)
            },
            async {
                let keys = keys::open(settings).await?;
                latches::hang(&own, &keys);
                let administration = admin::routes(settings, &keys, &own)?;
                let socket = admin::local(settings, administration.clone(), &own.listeners)?;
                Ok((keys, administration, socket))
            }
        )?;
        let follow = tokio::spawn(node::follow(node.clone()));
        let mut daemon = Self {
            node,
            keys,
            servers: socket.into_iter().collect(),
            follow,
            own,
            limits: live.limits.clone(),
            meter: meter.clone(),
            up,
        };
        if settings.components.contains(&Component::Issuer) {
            let router = issuer::router(Issuer {
                rules: live.rules.clone(),
                keys: daemon.keys.clone(),
                signing: Arc::new(SigningPool::new().map_err(StartError::Runtime)?),
                cache_time: settings.keys.cache_time,
                meter: meter.clone(),
            })
            .merge(health::router(daemon.own.readiness.clone()));
            daemon
                .serve(
                    "issuer",
                    settings.server.binding,
                    settings.server.port,
                    layers::wrap(router, "issuer"),
                )
                .await?;
        }
        if settings.components.contains(&Component::Admin) {
            let Admin { binding, port, .. } = settings.admin;
            daemon.serve("admin", binding, port, administration).await?;
        }
        if settings.components.contains(&Component::Metrics) {
            daemon.serve_metrics(settings.metrics).await?;
        }
        daemon.up.release();
        Ok(daemon)
    }

    /// On the tailnet; on the machine's own loopback only where its address is typed out.
    async fn serve_metrics(&mut self, settings: config::Metrics) -> Result<(), StartError> {
        let router = metrics::router(Metrics {
            meter: self.meter.clone(),
            node: self.node.clone(),
            keys: self.keys.clone(),
            readiness: self.own.readiness.clone(),
            listeners: self.own.listeners.clone(),
        });
        let router = layers::wrap(router, "metrics");
        let config::Metrics { port, binding } = settings;
        let Binding::Addr(ip) = binding else {
            return self.serve("metrics", binding, port, router).await;
        };
        if !ip.is_loopback() {
            return self.serve("metrics", binding, port, router).await;
        }
        let addr = SocketAddr::new(ip, port);
        let listener = TcpListener::bind(addr)
            .await
            .map_err(|source| StartError::Bind {
                what: "metrics",
                addr,
                source,
            })?;
        let server = serve(
            "metrics",
            PlainListener(listener),
            router,
            self.limits.clone(),
            |_| Extensions::new(),
        );
        self.listening(server, addr.to_string());
        Ok(())
    }

    /// Puts a component's routes, with the layers around them, on the tailnet.
    async fn serve(
        &mut self,
        what: &'static str,
        binding: Binding,
        port: u16,
        router: Router,
    ) -> Result<(), StartError> {
        let addr = node::listen_addr(binding, port);
        let listener = self
            .node
            .listen(addr)
            .await
            .map_err(|source| StartError::Listen { what, addr, source })?;
        let node = self.node.clone();
        let meter = self.meter.clone();
        let identify = move |peer| {
            let mut known = Extensions::new();
            let connection = Connection::new(node.clone(), peer).counted(meter.clone());
            known.insert(Arc::new(connection));
            known
        };
        let server = serve(what, listener, router, self.limits.clone(), identify);
        self.listening(server, addr.to_string());
        Ok(())
    }

    fn listening(&mut self, server: Server, addr: String) {
        tracing::info!(target: "server", component = server.name(), binding = %addr, "listening");
        self.own.listeners.add(Listening {
            name: server.name(),
            addr,
            load: server.load(),
        });
        self.servers.push(server);
    }

    /// Waits until a listener ends that was not asked to.
    async fn listener_died(&mut self) -> StartError {
        if self.servers.is_empty() {
            return std::future::pending().await;
        }
        let ends = self.servers.iter_mut().map(|server| {
            let what = server.name();
            Box::pin(async move {
                StartError::ListenerDied {
                    what,
                    source: server.failed().await,
                }
            })
        });
        select_all(ends).await.0
    }

    async fn stop(&mut self, settings: &Settings) {
        let grace = settings.server.grace;
        self.up.hold();
        let stops = self.servers.drain(..).map(|server| async move {
            let what = server.name();
            if server.stop(grace).await == Stopped::Cut {
                tracing::warn!(target: "server", listener = what, ?grace, "requests were cut: the grace time is over");
            }
        });
        futures_util::future::join_all(stops).await;
        tracing::info!(target: "server", "shutting down Tailscale server");
        if settings.server.tailscale.ephemeral
            && let Err(error) = self.node.logout(LOGOUT).await
        {
            tracing::warn!(target: "ts", %error, "the ephemeral node could not log out; the control server forgets it later");
        }
        self.follow.abort();
        self.node.close().await;
        tracing::info!(target: "server", "stopped");
    }
}
