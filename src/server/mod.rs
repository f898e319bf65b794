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
mod components;
mod error;
mod housekeeping;
mod keys;
mod node;

use std::{io, sync::Arc, time::Duration};

use tokio::{task::JoinHandle, time::MissedTickBehavior};

pub use error::StartError;
pub use housekeeping::{housekeeping, succeeded};

use self::{components::Components, keys::Keeper};
use crate::{
    admin::OwnNode,
    config::Settings,
    signals::{Signal, Signals},
    tailnet::Node,
    version,
};

/// How long an ephemeral node may take to say goodbye to the control server.
const LOGOUT: Duration = Duration::from_secs(3);

/// Between two looks at files that may change while the server runs: policies, certificates.
const TICK: Duration = Duration::from_secs(5);

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
    let outcome = daemon.until(&mut signals).await;
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
    keeper: Option<Keeper>,
    components: Components,
    follow: JoinHandle<()>,
}

impl Daemon {
    async fn start(settings: &Settings) -> Result<Self, StartError> {
        let own = OwnNode::default();
        let signs = components::needs_keys(settings);
        // A start without keys is none, so their failure ends the join at once.
        let (node, (keys, administration, socket)) = tokio::try_join!(
            async {
                let node = node::joined(&settings.server.tailscale, &settings.log).await?;
                own.joined(node.clone());
                Ok::<_, StartError>(node)
            },
            async {
                let keys = keys::open(settings, signs).await?;
                let administration = admin::routes(settings, &keys, &own)?;
                let socket = admin::local(settings, administration.clone())?;
                Ok((keys, administration, socket))
            }
        )?;
        let components = Components::start(settings, &node, &keys, administration, socket).await?;
        let follow = tokio::spawn(node::follow(node.clone()));
        Ok(Self {
            node,
            keeper: signs.then(|| Keeper::start(keys)),
            components,
            follow,
        })
    }

    /// Runs until a signal says stop, or a listener has died.
    async fn until(&mut self, signals: &mut Signals) -> Result<(), StartError> {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                signal = signals.next() => match signal.map_err(StartError::Runtime)? {
                    Signal::Hangup => self.reload(),
                    signal => {
                        tracing::info!(target: "server", ?signal, "shutting down listeners");
                        return Ok(());
                    }
                },
                died = self.components.listener_died() => return Err(died),
                _ = ticks.tick() => self.components.tick(),
            }
        }
    }

    fn reload(&self) {
        if let Some(keeper) = &self.keeper {
            keeper.look();
        }
        self.components.reload();
    }

    async fn stop(&mut self, settings: &Settings) {
        self.components.stop(settings.server.grace).await;
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
