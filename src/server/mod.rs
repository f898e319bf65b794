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
mod node;

use std::{io, sync::Arc, time::Duration};

use ::http::Extensions;
use axum::Router;
use futures_util::future::select_all;
use tokio::task::JoinHandle;

pub use error::StartError;
pub use housekeeping::{housekeeping, succeeded};
use keys::Keeper;

use crate::{
    admin::OwnNode,
    config::{Admin, Binding, Component, Settings},
    http::{
        layers,
        serve::{Limits, Server, Stopped, serve},
    },
    identity::Connection,
    issuer::{self, Issuer, TokenRules},
    jwks::life::KeyLife,
    keys::SigningPool,
    signals::{Signal, Signals},
    tailnet::Node,
    version,
};

/// How long an ephemeral node may take to say goodbye to the control server.
const LOGOUT: Duration = Duration::from_secs(3);

/// `tailbone server start`: returns when asked to stop, or when it cannot go on.
pub fn start(settings: &Settings) -> Result<(), StartError> {
    runtime()?.block_on(run(settings))
}

fn runtime() -> Result<tokio::runtime::Runtime, StartError> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("tb-worker")
        .build()
        .map_err(StartError::Runtime)
}

async fn run(settings: &Settings) -> Result<(), StartError> {
    tracing::info!(target: "server", version = version::VERSION, commit = version::COMMIT, "starting tailbone server");
    let mut signals = Signals::install().map_err(StartError::Runtime)?;
    let mut daemon = tokio::select! {
        daemon = Daemon::start(settings) => daemon?,
        signal = stop_signal(&mut signals, || {}) => {
            let signal = signal.map_err(StartError::Runtime)?;
            tracing::info!(target: "server", ?signal, "stopped before the start was done");
            return Ok(());
        }
    };
    let keeper = Keeper::start(daemon.keys.clone());
    let outcome = tokio::select! {
        signal = stop_signal(&mut signals, || keeper.look()) => {
            signal.map(|signal| tracing::info!(target: "server", ?signal, "shutting down listeners")).map_err(StartError::Runtime)
        }
        died = daemon.listener_died() => Err(died),
    };
    tokio::select! {
        () = daemon.stop(settings) => {}
        _ = stop_signal(&mut signals, || {}) => {
            tracing::warn!(target: "server", "a second signal: ending at once");
        }
    }
    outcome
}

/// Waits for a signal to end; on a hang-up `reload` is called and the waiting goes on.
async fn stop_signal(signals: &mut Signals, reload: impl Fn()) -> io::Result<Signal> {
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
}

impl Daemon {
    async fn start(settings: &Settings) -> Result<Self, StartError> {
        let own = OwnNode::default();
        // A start without keys is none, so their failure ends the join at once.
        let (node, (keys, administration, socket)) = tokio::try_join!(
            async {
                let node = node::joined(&settings.server.tailscale, &settings.log).await?;
                own.joined(node.clone());
                Ok::<_, StartError>(node)
            },
            async {
                let keys = keys::open(settings).await?;
                let administration = admin::routes(settings, &keys, &own)?;
                let socket = admin::local(settings, administration.clone())?;
                Ok((keys, administration, socket))
            }
        )?;
        let follow = tokio::spawn(node::follow(node.clone()));
        let mut daemon = Self {
            node,
            keys,
            servers: socket.into_iter().collect(),
            follow,
        };
        if settings.components.contains(&Component::Issuer) {
            let rules = TokenRules {
                issuer: settings.keys.issuer.clone(),
                expiry: settings.keys.expiry,
                skew: settings.keys.skew,
            };
            let router = issuer::router(Issuer {
                rules: Arc::new(rules),
                keys: daemon.keys.clone(),
                signing: Arc::new(SigningPool::new().map_err(StartError::Runtime)?),
                cache_time: settings.keys.cache_time,
            });
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
        Ok(daemon)
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
        let identify = move |peer| {
            let mut known = Extensions::new();
            known.insert(Arc::new(Connection::new(node.clone(), peer)));
            known
        };
        self.servers
            .push(serve(what, listener, router, Limits::default(), identify));
        tracing::info!(target: "server", component = what, binding = %addr, port, "listening");
        Ok(())
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
