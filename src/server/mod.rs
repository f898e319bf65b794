//! The composition root of `tailbone server …`: builds everything in order, runs it, and ends it.
//!
//! Order of the start: log and export of telemetry, signals, the local admin socket. Then two
//! things happen side by side: the node joins and its listeners open ("listening" in the log), and
//! the keys are loaded. Making a first key takes an unpredictable time, and a bucket may be slow,
//! so the server runs before it has its keys, and requests that need one wait
//! ([`crate::keys::CurrentKeys::loaded`]). The supervisor is told "ready" when both are done.
//!
//! Order of the end: listeners stop accepting, open requests get the grace time, their answers and
//! the last telemetry are sent, the node logs out if it is ephemeral, and closes. A second signal
//! ends the process at once.
//!
//! Done elsewhere: joining ([`crate::tailnet::join`]), serving ([`crate::http::serve`]), the choice
//! of the signing key ([`crate::jwks`]), the components ([`crate::part`]).

mod admin;
mod error;
mod funnel;
mod go_runtime;
mod housekeeping;
mod join_screen;
mod key_maintenance;
mod latches;
mod listeners;
mod live_settings;
mod node;
mod node_certificate;
mod parts;
mod supervisor;

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{task::JoinHandle, time::MissedTickBehavior};

pub use error::ServerError;
pub use housekeeping::{Housekept, KeptSet, LocalKeys, housekeeping};

use self::{
    funnel::FunnelPorts,
    key_maintenance::KeyMaintenance,
    listeners::ListenerOpener,
    live_settings::LiveSettings,
    node_certificate::CertificateRenewal,
    parts::{OwnKeys, RunningParts},
    supervisor::Supervisor,
};
use crate::{
    config::Settings,
    http::host::NodeNames,
    identity::{CallerRates, Directory},
    jwks::{KeySet, life::KeyLife},
    keys::{SigningQueue, azure::InvalidVault},
    metrics::MetricSources,
    part::{Context, ServerState},
    signals::{Signal, Signals},
    tailnet::{self, Node, join::JoinState, runtime_stats},
    telemetry::{self, meter::Meter, otlp::Otlp, readiness::Switch},
    version,
};

/// How long an ephemeral node may take to log out at the control server.
const LOGOUT_TIMEOUT: Duration = Duration::from_secs(3);

/// How long the node may take to copy the last answers out of our buffers, and its TCP to send
/// them.
const COPY_TIMEOUT: Duration = Duration::from_secs(1);
const SEND_TIME: Duration = Duration::from_millis(100);

/// How long the collector may take for the last traces and metrics if the requests used up the
/// grace time.
const MIN_FLUSH_TIME: Duration = Duration::from_millis(500);

/// The time between two checks of files that may change while the server runs.
const FILE_CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// `tailbone server start`: returns when asked to stop, or when it cannot continue. `load` loads
/// the settings again for a reload, or says why it cannot.
pub fn start(
    settings: &Settings,
    load: impl Fn() -> Result<Settings, String>,
) -> Result<(), ServerError> {
    runtime()?.block_on(run(settings, load))
}

fn runtime() -> Result<tokio::runtime::Runtime, ServerError> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("tb-worker")
        .build()
        .map_err(ServerError::Runtime)
}

async fn run(
    settings: &Settings,
    load: impl Fn() -> Result<Settings, String>,
) -> Result<(), ServerError> {
    let otlp = settings
        .server
        .otlp
        .as_ref()
        .map(|otlp| Otlp::start(otlp, version::VERSION))
        .transpose()?;
    telemetry::log::init(&settings.log, otlp.as_ref());
    tracing::info!(target: "server", version = version::VERSION, commit = version::COMMIT, "starting tailbone server");
    let supervisor = Supervisor::from_environment();
    let mut signals = Signals::install().map_err(ServerError::Runtime)?;
    let mut daemon = tokio::select! {
        daemon = Daemon::start(settings, supervisor, otlp) => daemon?,
        signal = stop_signal(&mut signals) => {
            let signal = signal.map_err(ServerError::Runtime)?;
            tracing::info!(target: "server", ?signal, "stopped before the start was complete");
            return Ok(());
        }
    };
    let outcome = daemon.run(&mut signals, load).await;
    daemon.supervisor.stopping();
    tokio::select! {
        () = daemon.stop() => {}
        _ = stop_signal(&mut signals) => {
            tracing::warn!(target: "server", "second signal: exiting at once");
        }
    }
    outcome
}

/// Waits for a signal to stop. Hang-ups are ignored: outside of [`Daemon::run`] there is nothing
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
    key_maintenance: KeyMaintenance,
    parts: RunningParts,
    node_follower: JoinHandle<()>,
    live_settings: LiveSettings,
    meter: Meter,
    otlp: Option<Otlp>,
    /// The latch `listeners-up`; held again when the server ends.
    listeners_up: Switch,
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
    ) -> Result<Self, ServerError> {
        node::prepare_state_directory(&settings.server.tailscale)?;
        let state = ServerState::default();
        let live_settings = LiveSettings::new(settings);
        let meter = Meter::default();
        let needs_keys = parts::needs_keys(settings);
        let keys = settings.keys.life_counted_by(&meter);
        let listeners_up = latches::register(&state, needs_keys.then_some(&keys));
        let open = |own: OwnKeys| {
            let set = (own.set)(settings, &meter)?;
            latches::register_key_set(&state, &set, &own);
            Ok::<_, InvalidVault>(set)
        };
        let key_sets = parts::own_keys(settings).map(open);
        let key_sets: Arc<[KeySet]> = key_sets.collect::<Result<_, _>>()?;
        go_runtime::limit_memory(settings.server.memory).await;
        let admin_routes = admin::routes(settings, &keys, key_sets.clone(), &state)?;
        let socket = admin::serve_local_socket(
            settings,
            admin_routes.clone(),
            live_settings.limits.clone(),
            &state.listeners,
        )?;
        let issuer_keys = needs_keys.then(|| KeySet::of("issuer", keys.clone()));
        let maintained = issuer_keys.into_iter().chain(key_sets.iter().cloned());
        let mut key_maintenance = KeyMaintenance::start(maintained.collect(), &meter);
        let report_join_state = |join: JoinState| {
            supervisor.status(join.code());
            state.membership.joining(join);
        };
        let serving = async {
            let node =
                node::join_tailnet(&settings.server.tailscale, &settings.log, report_join_state)
                    .await?;
            state.membership.joined(node.clone());
            let names = NodeNames::default();
            node::update_names(&node, &names);
            let callers = CallerRates::new(live_settings.limits.clone());
            let context = Context {
                node: node.clone(),
                directory: Directory::with(node.clone(), meter.clone(), Some(callers)),
                keys: keys.clone(),
                key_sets,
                signing: Arc::new(SigningQueue::new(|work| tailnet::batch_wakeups(work))),
                meter: meter.clone(),
                state: state.clone(),
                admin_routes,
            };
            if let Some(otlp) = &mut otlp {
                let metrics = MetricSources::from_context(&context);
                otlp.measure(move || {
                    let metrics = metrics.clone();
                    async move { metrics.registry().await }
                });
            }
            let opener = ListenerOpener {
                context,
                limits: live_settings.limits.clone(),
                names: names.clone(),
                hosts: settings.server.allowed_hosts.clone(),
                renewal: Arc::new(CertificateRenewal::new(node.clone())),
                funnel: FunnelPorts::default(),
                node_certificate_ports: settings.node_certificate_ports(),
            };
            let parts = RunningParts::start(settings, opener, socket).await?;
            listeners_up.release();
            Ok::<_, ServerError>((node, parts, names))
        };
        let (node, parts, names) = tokio::select! {
            served = serving => served?,
            // The server is useless without keys, so a failure to load them ends the start.
            Err(failed) = key_maintenance.loaded() => return Err(failed.into()),
        };
        go_runtime::limit_processors().await;
        let node_follower = tokio::spawn(node::follow_node(node.clone(), names));
        Ok(Self {
            node,
            keys,
            key_maintenance,
            parts,
            node_follower,
            live_settings,
            meter,
            otlp,
            listeners_up,
            ready: false,
            supervisor,
        })
    }

    /// Runs until a signal says stop, or a listener fails.
    async fn run(
        &mut self,
        signals: &mut Signals,
        load: impl Fn() -> Result<Settings, String>,
    ) -> Result<(), ServerError> {
        let mut ticks = tokio::time::interval(FILE_CHECK_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                signal = signals.next() => match signal.map_err(ServerError::Runtime)? {
                    Signal::Hangup => self.reload(load()),
                    signal => {
                        tracing::info!(target: "server", ?signal, "shutting down listeners");
                        return Ok(());
                    }
                },
                failed = self.parts.listener_failed() => return Err(failed),
                loaded = self.key_maintenance.loaded(), if !self.ready => {
                    loaded?;
                    self.ready = true;
                    self.supervisor.ready();
                }
                _ = ticks.tick() => {
                    self.parts.tick();
                    telemetry::audit::report_repeated(Instant::now(), false);
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
        self.key_maintenance.check_now();
        self.meter.reloaded(new.is_ok());
        match new {
            Err(error) => {
                tracing::error!(target: "server", error, "settings not reloaded; the old ones stay in force");
            }
            Ok(new) => {
                let reloaded = self.live_settings.reload(&new, &self.keys);
                tracing::info!(target: "server", changed = reloaded.applied.join(", "), "settings and keys reloaded");
                if !reloaded.needs_restart.is_empty() {
                    tracing::warn!(target: "server", settings = reloaded.needs_restart.join(", "), "changed settings that need a restart");
                }
            }
        }
        self.parts.reload(self.live_settings.current());
        if self.ready {
            self.supervisor.ready();
        }
    }

    async fn stop(&mut self) {
        self.listeners_up.hold();
        let settings = self.live_settings.current();
        let started = Instant::now();
        self.parts.stop(settings.server.grace).await;
        telemetry::audit::report_repeated(started, true);
        // The collector gets what is left of the grace time.
        let remaining = settings.server.grace.saturating_sub(started.elapsed());
        let flushed = async {
            if let Some(otlp) = &mut self.otlp {
                otlp.stop(remaining.max(MIN_FLUSH_TIME)).await;
            }
        };
        tokio::join!(flushed, drain_answers());
        tracing::info!(target: "server", "shutting down Tailscale server");
        if settings.server.tailscale.ephemeral
            && let Err(error) = self.node.logout(LOGOUT_TIMEOUT).await
        {
            tracing::warn!(target: "ts", %error, "the ephemeral node could not log out; the control server forgets it later");
        }
        self.node_follower.abort();
        self.node.close().await;
        tracing::info!(target: "server", "stopped");
    }
}

/// Waits until the last answers have been sent. A finished answer is first in our buffers, then in
/// the node's TCP, and closing the node discards both.
async fn drain_answers() {
    let copied = async {
        while runtime_stats().await.is_ok_and(|stats| stats.conns > 0) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    // A peer that keeps its connection open without reading is not waited for longer.
    let _ = tokio::time::timeout(COPY_TIMEOUT, copied).await;
    tokio::time::sleep(SEND_TIME).await;
}
