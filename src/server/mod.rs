//! The composition root of `tailbone server …`: builds everything in order, runs it, and ends it.
//!
//! Order of the start: log and export of telemetry, signals, the local admin socket. Then two
//! things happen side by side: the node joins and its listeners open ("listening" in the log), and
//! the keys are loaded. Making a first key takes an unpredictable time, and a bucket may be slow,
//! so the server runs before it has its keys, and requests that need one wait
//! ([`crate::keys::Ring::loaded`]). The supervisor is told "ready" when both are done.
//!
//! Order of the end: listeners stop accepting, open requests get the grace time, their answers and
//! the last telemetry are sent, the node logs out if it is ephemeral, and closes. A second signal
//! ends the process at once.
//!
//! Done elsewhere: joining ([`crate::tailnet::join`]), serving ([`crate::http::serve`]), the choice
//! of the signing key ([`crate::jwks`]), the components ([`crate::part`]).

mod admin;
mod error;
mod housekeeping;
mod keys;
mod latches;
mod listen;
mod live;
mod memory;
mod node;
mod notify;
mod parts;
mod processors;
mod screen;

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{task::JoinHandle, time::MissedTickBehavior};

pub use error::StartError;
pub use housekeeping::{housekeeping, succeeded};

use self::{keys::Keeper, listen::Opener, live::Live, notify::Supervisor, parts::Parts};
use crate::{
    config::Settings,
    http::host::NodeNames,
    identity::{Callers, Directory},
    jwks::life::KeyLife,
    keys::SigningQueue,
    metrics::Metrics,
    part::{Context, ServerState},
    signals::{Signal, Signals},
    tailnet::{self, Node, join::JoinState, runtime_stats},
    telemetry::{self, meter::Meter, otlp::Otlp, readiness::Switch},
    version,
};

/// How long an ephemeral node may take to log out at the control server.
const LOGOUT: Duration = Duration::from_secs(3);

/// How long the node may take to copy the last answers out of our buffers, and its TCP to send
/// them.
const PUMPING: Duration = Duration::from_secs(1);
const SENDING: Duration = Duration::from_millis(100);

/// How long the collector may take for the last traces and metrics if the requests used up the
/// grace time.
const LEAST_FLUSH: Duration = Duration::from_millis(500);

/// The time between two checks of files that may change while the server runs.
const TICK: Duration = Duration::from_secs(5);

/// `tailbone server start`: returns when asked to stop, or when it cannot continue. `load` loads
/// the settings again for a reload, or says why it cannot.
pub fn start(
    settings: &Settings,
    load: impl Fn() -> Result<Settings, String>,
) -> Result<(), StartError> {
    runtime()?.block_on(run(settings, load))
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
    load: impl Fn() -> Result<Settings, String>,
) -> Result<(), StartError> {
    let otlp = settings
        .server
        .otlp
        .as_ref()
        .map(|otlp| Otlp::start(otlp, version::VERSION))
        .transpose()?;
    telemetry::log::init(&settings.log, otlp.as_ref());
    tracing::info!(target: "server", version = version::VERSION, commit = version::COMMIT, "starting tailbone server");
    let supervisor = Supervisor::of_process();
    let mut signals = Signals::install().map_err(StartError::Runtime)?;
    let mut daemon = tokio::select! {
        daemon = Daemon::start(settings, supervisor, otlp) => daemon?,
        signal = stop_signal(&mut signals) => {
            let signal = signal.map_err(StartError::Runtime)?;
            tracing::info!(target: "server", ?signal, "stopped before the start was done");
            return Ok(());
        }
    };
    let outcome = daemon.until(&mut signals, load).await;
    daemon.supervisor.stopping();
    tokio::select! {
        () = daemon.stop() => {}
        _ = stop_signal(&mut signals) => {
            tracing::warn!(target: "server", "a second signal: ending at once");
        }
    }
    outcome
}

/// Waits for a signal to stop. Hang-ups are ignored: outside of [`Daemon::until`] there is nothing
/// to reload.
async fn stop_signal(signals: &mut Signals) -> io::Result<Signal> {
    loop {
        match signals.next().await? {
            Signal::Hangup => {}
            signal => return Ok(signal),
        }
    }
}

/// Everything that runs.
struct Daemon {
    node: Arc<dyn Node>,
    keys: KeyLife,
    keeper: Keeper,
    parts: Parts,
    follow: JoinHandle<()>,
    live: Live,
    meter: Meter,
    otlp: Option<Otlp>,
    /// The latch `listeners-up`; held again when the server ends.
    up: Switch,
    /// The keys are loaded too, and the supervisor has been told.
    ready: bool,
    supervisor: Supervisor,
}

impl Daemon {
    /// Returns when all listeners are open. The keys may still be loading.
    async fn start(
        settings: &Settings,
        supervisor: Supervisor,
        mut otlp: Option<Otlp>,
    ) -> Result<Self, StartError> {
        node::state_directory(&settings.server.tailscale)?;
        let state = ServerState::default();
        let live = Live::new(settings);
        let meter = Meter::default();
        let signs = parts::needs_keys(settings);
        let keys = settings.keys.life();
        let up = latches::add(&state, signs.then_some(&keys));
        memory::limit(settings.server.memory).await;
        let administration = admin::routes(settings, &keys, &state)?;
        let socket = admin::local(
            settings,
            administration.clone(),
            live.limits.clone(),
            &state.listeners,
        )?;
        let mut keeper = if signs {
            Keeper::start(keys.clone(), meter.clone())
        } else {
            Keeper::default()
        };
        let news = |join: JoinState| {
            supervisor.status(join.code());
            state.membership.joining(join);
        };
        let serving = async {
            let node = node::joined(&settings.server.tailscale, &settings.log, news).await?;
            state.membership.joined(node.clone());
            let names = NodeNames::default();
            node::name(&node, &names);
            let callers = Callers::new(live.limits.clone());
            let context = Context {
                node: node.clone(),
                directory: Directory::with(node.clone(), meter.clone(), Some(callers)),
                keys: keys.clone(),
                signing: Arc::new(SigningQueue::new(|work| tailnet::together(work))),
                meter: meter.clone(),
                state: state.clone(),
                administration,
            };
            if let Some(otlp) = &mut otlp {
                let metrics = Metrics::of(&context);
                otlp.measure(move || {
                    let metrics = metrics.clone();
                    async move { metrics.registry().await }
                });
            }
            let opener = Opener {
                context,
                limits: live.limits.clone(),
                names: names.clone(),
                hosts: settings.server.allowed_hosts.clone(),
            };
            let parts = Parts::start(settings, opener, socket).await?;
            up.release();
            Ok::<_, StartError>((node, parts, names))
        };
        let (node, parts, names) = tokio::select! {
            served = serving => served?,
            // The server is useless without keys, so a failure to load them ends the start.
            Err(failed) = keeper.loaded() => return Err(failed.into()),
        };
        processors::limit().await;
        let follow = tokio::spawn(node::follow(node.clone(), names));
        Ok(Self {
            node,
            keys,
            keeper,
            parts,
            follow,
            live,
            meter,
            otlp,
            up,
            ready: false,
            supervisor,
        })
    }

    /// Runs until a signal says stop, or a listener fails.
    async fn until(
        &mut self,
        signals: &mut Signals,
        load: impl Fn() -> Result<Settings, String>,
    ) -> Result<(), StartError> {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                signal = signals.next() => match signal.map_err(StartError::Runtime)? {
                    Signal::Hangup => self.reload(load()),
                    signal => {
                        tracing::info!(target: "server", ?signal, "shutting down listeners");
                        return Ok(());
                    }
                },
                died = self.parts.listener_died() => return Err(died),
                loaded = self.keeper.loaded(), if !self.ready => {
                    loaded?;
                    self.ready = true;
                    self.supervisor.ready();
                }
                _ = ticks.tick() => {
                    self.parts.tick();
                    telemetry::audit::tell_repeated(Instant::now(), false);
                }
            }
        }
    }

    /// Applies the settings that may change while the server runs, reports the others, and reads
    /// all files again.
    fn reload(&mut self, new: Result<Settings, String>) {
        if self.ready {
            self.supervisor.reloading();
        }
        self.keeper.look();
        self.meter.reloaded(new.is_ok());
        match new {
            Err(error) => {
                tracing::error!(target: "server", error, "settings not reloaded; the old ones stay in force");
            }
            Ok(new) => {
                let exchanged = self.live.exchange(&new, &self.keys);
                tracing::info!(target: "server", changed = exchanged.done.join(", "), "settings and keys reloaded");
                if !exchanged.left.is_empty() {
                    tracing::warn!(target: "server", settings = exchanged.left.join(", "), "changed settings that need a restart");
                }
            }
        }
        self.parts.reload(self.live.settings());
        if self.ready {
            self.supervisor.ready();
        }
    }

    async fn stop(&mut self) {
        self.up.hold();
        let settings = self.live.settings();
        let began = Instant::now();
        self.parts.stop(settings.server.grace).await;
        telemetry::audit::tell_repeated(began, true);
        // The collector gets what is left of the grace time.
        let left = settings.server.grace.saturating_sub(began.elapsed());
        let flushed = async {
            if let Some(otlp) = &mut self.otlp {
                otlp.stop(left.max(LEAST_FLUSH)).await;
            }
        };
        tokio::join!(flushed, answers_have_left());
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

/// Waits until the last answers have been sent. A finished answer is first in our buffers, then in
/// the node's TCP, and closing the node discards both.
async fn answers_have_left() {
    let pumped = async {
        while runtime_stats().await.is_ok_and(|stats| stats.conns > 0) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    // A peer that keeps its connection open without reading is not waited for longer.
    let _ = tokio::time::timeout(PUMPING, pumped).await;
    tokio::time::sleep(SENDING).await;
}
