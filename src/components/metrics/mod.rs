//! The component `metrics`: the program's counters and its present state, in Prometheus' format.
//!
//! | Route | Answer |
//! |---|---|
//! | `GET /metrics` | OpenMetrics text |
//! | `GET /livez`, `GET /readyz` | as on the issuer ([`crate::http::health`]) |
//!
//! Invariants
//! - Nothing is stored here: each answer is made from the counters ([`crate::telemetry::meter`])
//!   and the state of each part.
//! - The number of series is bounded, since label values come from the program; no caller, address
//!   or key id is a label.
//! - Callers are not identified, and nothing about callers is revealed. On the tailnet, its policy
//!   decides who can reach the port.
//!
//! `docs/reference/observability.md` lists all names.

use std::sync::{Arc, atomic::AtomicU64};

use ::http::header;
use axum::{
    Router,
    extract::State,
    response::{IntoResponse, Response},
    routing::get,
};
use jiff::Timestamp;
use prometheus_client::{
    encoding::text,
    metrics::{counter::ConstCounter, family::Family, gauge::Gauge, info::Info},
    registry::{Registry, Unit},
};

use crate::{
    config::Settings,
    http::{Error, error::Kind, health, layers, serve::Listeners},
    jwks::{KeySet, life::KeyLife},
    keys,
    part::{Context, Part, PartError, Routes},
    tailnet::{
        self, Node, RuntimeStats,
        join::{JoinState, classify},
    },
    telemetry::{
        meter::Meter,
        readiness::{self, Readiness},
    },
    version,
};

const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The sources of the metrics.
#[derive(Debug, Clone)]
pub struct MetricSources {
    pub meter: Meter,
    pub node: Arc<dyn Node>,
    pub keys: KeyLife,
    pub key_sets: Arc<[KeySet]>,
    pub readiness: Readiness,
    pub listeners: Listeners,
}

/// The component, at its listeners.
pub fn part(settings: &Settings, context: &Context) -> Result<Part, PartError> {
    let routes = layers::wrap(router(MetricSources::from_context(context)), "metrics");
    let routes = Routes::new("metrics", routes);
    Ok(Part::new("metrics").serve("metrics", settings.metrics.listen.clone(), &routes))
}

pub fn router(metrics: MetricSources) -> Router {
    let health = health::router(metrics.readiness.clone());
    Router::new()
        .route(
            "/metrics",
            get(scrape).fallback(async || Error::method_not_allowed("GET, HEAD")),
        )
        .with_state(metrics)
        .merge(health)
}

async fn scrape(State(metrics): State<MetricSources>) -> Result<Response, Error> {
    let mut text = String::new();
    text::encode(&mut text, &metrics.registry().await)
        .map_err(|cause| Error::new(Kind::Internal, "internal", "no metrics").because(cause))?;
    Ok(([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response())
}

type Labels = [(&'static str, &'static str); 1];
type SetLabels = [(&'static str, String); 1];
type KeyLabels = [(&'static str, String); 2];
type FloatGauge = Gauge<f64, AtomicU64>;

impl MetricSources {
    pub fn from_context(context: &Context) -> Self {
        Self {
            meter: context.meter.clone(),
            node: context.node.clone(),
            keys: context.keys.clone(),
            key_sets: context.key_sets.clone(),
            readiness: context.state.readiness.clone(),
            listeners: context.state.listeners.clone(),
        }
    }

    /// The present values of all metrics, for every way of showing them.
    pub async fn registry(&self) -> Registry {
        // The other metrics are useful without this one.
        let runtime = tailnet::runtime_stats().await.ok();
        self.registry_at(runtime, Timestamp::now())
    }

    fn registry_at(&self, runtime: Option<RuntimeStats>, now: Timestamp) -> Registry {
        let mut root = Registry::default();
        process_metrics(&mut root);
        let registry = root.sub_registry_with_prefix("tailbone");
        self.meter.register(registry);
        registry.register(
            "build",
            "Versions of the running program",
            Info::new([
                ("version", version::VERSION),
                ("commit", version::COMMIT),
                ("go", version::GO),
                ("tsnet", version::TSNET),
            ]),
        );
        self.add_readiness(registry, now);
        self.add_node(registry, now);
        self.add_keys(registry, now);
        if !self.key_sets.is_empty() {
            self.add_key_sets(registry, now);
        }
        self.add_connections(registry);
        if let Some(runtime) = runtime {
            go_metrics(registry, runtime);
        }
        root
    }

    fn add_readiness(&self, registry: &mut Registry, now: Timestamp) {
        let latches = self.readiness.check(now);
        gauge(
            registry,
            "ready",
            "1 while no latch is held",
            bool_value(readiness::all(&latches)),
        );
        let held = Family::<Labels, Gauge>::default();
        let degraded = Family::<Labels, Gauge>::default();
        for latch in &latches {
            let label = [("latch", latch.name)];
            held.get_or_create(&label).set(i64::from(!latch.ready));
            degraded
                .get_or_create(&label)
                .set(i64::from(latch.degraded));
        }
        registry.register(
            "latch_held",
            "1 while the latch keeps the server from being ready",
            held,
        );
        registry.register(
            "latch_degraded",
            "1 while the latch reports a problem although the server is ready",
            degraded,
        );
    }

    fn add_node(&self, registry: &mut Registry, now: Timestamp) {
        let status = self.node.watch().borrow().clone();
        let state = classify(&status, false, now);
        let states = Family::<Labels, Gauge>::default();
        for code in JoinState::CODES {
            states
                .get_or_create(&[("state", code)])
                .set(i64::from(state.code() == code));
        }
        registry.register("join_state", "1 for the state that the node is in", states);
        if let Some(end) = status.key_expiry {
            gauge(
                registry,
                "node_key_expiry_timestamp_seconds",
                "When the node's key expires; absent if it does not",
                unix_seconds(end),
            );
        }
    }

    fn add_keys(&self, registry: &mut Registry, now: Timestamp) {
        let snapshot = self.keys.current_keys().snapshot();
        gauge(
            registry,
            "signing",
            "1 while there is a key to sign with",
            bool_value(snapshot.signer.is_ok()),
        );
        let signing = snapshot.keys.iter().find(|key| key.signing);
        if let Some(since) = signing.and_then(|key| key.created.or(key.signs_since)) {
            gauge(
                registry,
                "signing_key_age_seconds",
                "Age of the key that signs",
                unix_seconds(now) - unix_seconds(since),
            );
        }
        let keys_by_state = Family::<Labels, Gauge>::default();
        for key in &snapshot.keys {
            keys_by_state
                .get_or_create(&[("state", key.state.map_or("foreign", keys::KeyState::as_str))])
                .inc();
        }
        registry.register(
            "keys",
            "Keys of this server by state; foreign ones are other servers'",
            keys_by_state,
        );
        if let Some(read) = snapshot.document_read {
            gauge(
                registry,
                "jwks_read_timestamp_seconds",
                "When the published document was last read",
                unix_seconds(read),
            );
        }
        gauge(
            registry,
            "jwks_trouble",
            "Problems with reading or publishing the document",
            as_f64(snapshot.trouble.len() as u64),
        );
    }

    /// The keys of components that have their own. Those above are the keys of issuer and gate.
    fn add_key_sets(&self, registry: &mut Registry, now: Timestamp) {
        let signing = Family::<KeyLabels, Gauge>::default();
        let ages = Family::<KeyLabels, FloatGauge>::default();
        let keys_by_state = Family::<KeyLabels, Gauge>::default();
        let read = Family::<SetLabels, FloatGauge>::default();
        let trouble = Family::<SetLabels, Gauge>::default();
        for set in self.key_sets.iter() {
            let label = |name, value: &str| [("set", set.name().to_owned()), (name, value.into())];
            let keys = set.keys();
            for algorithm in set.algorithms() {
                let label = label("algorithm", algorithm.as_str());
                let signer = set.signer(algorithm).ok();
                signing
                    .get_or_create(&label)
                    .set(i64::from(signer.is_some()));
                let key = signer.and_then(|signer| {
                    keys.iter()
                        .find(|key| key.kid == signer.kid().as_str())
                        .and_then(|key| key.created.or(key.signs_since))
                });
                if let Some(since) = key {
                    let age = unix_seconds(now) - unix_seconds(since);
                    ages.get_or_create(&label).set(age);
                }
            }
            for key in &keys {
                let state = key.state.map_or("foreign", keys::KeyState::as_str);
                keys_by_state.get_or_create(&label("state", state)).inc();
            }
            let set_label = [("set", set.name().to_owned())];
            if let Some(time) = set.document_read() {
                read.get_or_create(&set_label).set(unix_seconds(time));
            }
            let troubles = i64::try_from(set.trouble().len()).unwrap_or(i64::MAX);
            trouble.get_or_create(&set_label).set(troubles);
        }
        registry.register(
            "key_set_signing",
            "1 while the component has a key of its own to sign with",
            signing,
        );
        registry.register(
            "key_set_signing_key_age_seconds",
            "Age of the component's key that signs",
            ages,
        );
        registry.register(
            "key_set_keys",
            "Keys of the component by state; foreign ones are other servers'",
            keys_by_state,
        );
        registry.register(
            "key_set_jwks_read_timestamp_seconds",
            "When the component's published document was last read",
            read,
        );
        registry.register(
            "key_set_jwks_trouble",
            "Problems with reading or publishing the component's document",
            trouble,
        );
    }

    fn add_connections(&self, registry: &mut Registry) {
        let open = Family::<Labels, Gauge>::default();
        let turned_away = Family::<Labels, Gauge>::default();
        let ends = Family::<Labels, FloatGauge>::default();
        for listening in self.listeners.all() {
            let label = [("listener", listening.name)];
            // A component may have several.
            open.get_or_create(&label)
                .inc_by(i64::try_from(listening.load.open()).unwrap_or(i64::MAX));
            turned_away
                .get_or_create(&label)
                .inc_by(i64::try_from(listening.load.refused()).unwrap_or(i64::MAX));
            let certificate = listening.certificate.as_ref();
            if let Some(facts) = certificate.and_then(|certificate| certificate.facts()) {
                let end = unix_seconds(facts.not_after);
                let gauge = ends.get_or_create(&label);
                let known = gauge.get();
                gauge.set(if known > 0.0 { known.min(end) } else { end });
            }
        }
        registry.register(
            "certificate_end_timestamp_seconds",
            "When the listener's certificate ends, the first if it has several",
            ends,
        );
        registry.register("connections", "Open connections by listener", open);
        registry.register(
            "connections_turned_away",
            "Connections refused since the start because their peer had too many",
            turned_away,
        );
    }
}

fn go_metrics(registry: &mut Registry, runtime: RuntimeStats) {
    let all = [
        (
            "go_goroutines",
            "Goroutines of the node",
            runtime.goroutines,
        ),
        (
            "go_heap_bytes",
            "Heap of the node in use",
            runtime.heap_bytes,
        ),
        (
            "go_sys_bytes",
            "Memory that Go obtained from the system",
            runtime.sys_bytes,
        ),
        ("go_threads", "Threads that Go has created", runtime.threads),
        (
            "go_processors",
            "Processors that Go uses at once",
            runtime.max_procs,
        ),
        (
            "node_connections",
            "Connections between node and program",
            runtime.conns,
        ),
    ];
    for (name, help, value) in all {
        gauge(registry, name, help, as_f64(value));
    }
    if let Some(limit) = runtime.memory_limit {
        gauge(
            registry,
            "go_memory_limit_bytes",
            "Memory limit of the node, near which Go collects garbage more often",
            as_f64(limit),
        );
    }
    registry.register(
        "go_gc_cycles",
        "Garbage collections of the node",
        ConstCounter::new(runtime.gc_cycles),
    );
}

/// The usual metrics of a process, under their conventional names.
fn process_metrics(registry: &mut Registry) {
    let entries = |path| std::fs::read_dir(path).map(|entries| as_f64(entries.count() as u64));
    if let Ok(open) = entries("/proc/self/fd") {
        gauge(registry, "process_open_fds", "Open descriptors", open);
    }
    if let Ok(threads) = entries("/proc/self/task") {
        gauge(registry, "process_threads", "Threads", threads);
    }
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    if let Some(limit) = limit.current {
        gauge(
            registry,
            "process_max_fds",
            "Maximum number of open descriptors",
            as_f64(limit),
        );
    }
    let pages = std::fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|text| text.split_whitespace().nth(1)?.parse::<u64>().ok());
    if let Some(pages) = pages {
        let gauge = FloatGauge::default();
        gauge.set(as_f64(pages * rustix::param::page_size() as u64));
        registry.register_with_unit(
            "process_resident_memory",
            "Memory in use",
            Unit::Bytes,
            gauge,
        );
    }
}

fn gauge(registry: &mut Registry, name: &str, help: &str, value: f64) {
    let gauge = FloatGauge::default();
    gauge.set(value);
    registry.register(name, help, gauge);
}

fn bool_value(set: bool) -> f64 {
    f64::from(u8::from(set))
}

fn unix_seconds(time: Timestamp) -> f64 {
    time.as_millisecond() as f64 / 1000.0
}

/// Exact up to 2^53, which no counter here reaches.
fn as_f64(count: u64) -> f64 {
    count as f64
}
