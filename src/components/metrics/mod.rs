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
    jwks::life::KeyLife,
    keys,
    part::{BuildError, Context, Part},
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
pub struct Metrics {
    pub meter: Meter,
    pub node: Arc<dyn Node>,
    pub keys: KeyLife,
    pub readiness: Readiness,
    pub listeners: Listeners,
}

/// The component, at its listeners.
pub fn part(settings: &Settings, context: &Context) -> Result<Part, BuildError> {
    let routes = layers::wrap(router(Metrics::of(context)), "metrics");
    Ok(Part::new("metrics").serve("metrics", settings.metrics.listen.clone(), &routes))
}

pub fn router(metrics: Metrics) -> Router {
    let health = health::router(metrics.readiness.clone());
    Router::new()
        .route(
            "/metrics",
            get(scrape).fallback(async || Error::method_not_allowed("GET, HEAD")),
        )
        .with_state(metrics)
        .merge(health)
}

async fn scrape(State(metrics): State<Metrics>) -> Result<Response, Error> {
    let mut text = String::new();
    text::encode(&mut text, &metrics.registry().await)
        .map_err(|cause| Error::new(Kind::Internal, "internal", "no metrics").because(cause))?;
    Ok(([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response())
}

type Labels = [(&'static str, &'static str); 1];
type Number = Gauge<f64, AtomicU64>;

impl Metrics {
    pub fn of(context: &Context) -> Self {
        Self {
            meter: context.meter.clone(),
            node: context.node.clone(),
            keys: context.keys.clone(),
            readiness: context.state.readiness.clone(),
            listeners: context.state.listeners.clone(),
        }
    }

    /// The present values of all metrics, for every way of showing them.
    pub async fn registry(&self) -> Registry {
        // The other metrics are useful without this one.
        let runtime = tailnet::runtime_stats().await.ok();
        self.at(runtime, Timestamp::now())
    }

    fn at(&self, runtime: Option<RuntimeStats>, now: Timestamp) -> Registry {
        let mut root = Registry::default();
        process(&mut root);
        let registry = root.sub_registry_with_prefix("tailbone");
        self.meter.register(registry);
        registry.register(
            "build",
            "What runs",
            Info::new([
                ("version", version::VERSION),
                ("commit", version::COMMIT),
                ("go", version::GO),
                ("tsnet", version::TSNET),
            ]),
        );
        self.readiness(registry, now);
        self.node(registry, now);
        self.keys(registry, now);
        self.connections(registry);
        if let Some(runtime) = runtime {
            go(registry, runtime);
        }
        root
    }

    fn readiness(&self, registry: &mut Registry, now: Timestamp) {
        let latches = self.readiness.look(now);
        one(
            registry,
            "ready",
            "1 while no latch is held",
            flag(readiness::all(&latches)),
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
            "1 while something is wrong with what the latch looks at, though the server is ready",
            degraded,
        );
    }

    fn node(&self, registry: &mut Registry, now: Timestamp) {
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
            one(
                registry,
                "node_key_expiry_timestamp_seconds",
                "When the node's key ends; absent when it does not",
                seconds(end),
            );
        }
    }

    fn keys(&self, registry: &mut Registry, now: Timestamp) {
        let snapshot = self.keys.ring().snapshot();
        one(
            registry,
            "signing",
            "1 while there is a key to sign with",
            flag(snapshot.signer.is_ok()),
        );
        let signing = snapshot.keys.iter().find(|key| key.signing);
        if let Some(since) = signing.and_then(|key| key.created.or(key.signs_since)) {
            one(
                registry,
                "signing_key_age_seconds",
                "Age of the key that signs",
                seconds(now) - seconds(since),
            );
        }
        let count = Family::<Labels, Gauge>::default();
        for key in &snapshot.keys {
            count
                .get_or_create(&[("state", key.state.map_or("foreign", keys::State::as_str))])
                .inc();
        }
        registry.register(
            "keys",
            "Keys of this server by state; foreign ones are other servers'",
            count,
        );
        if let Some(read) = snapshot.document_read {
            one(
                registry,
                "jwks_read_timestamp_seconds",
                "When the published document was last read",
                seconds(read),
            );
        }
        one(
            registry,
            "jwks_trouble",
            "Things that stand in the way of reading or publishing the document",
            number(snapshot.trouble.len() as u64),
        );
    }

    fn connections(&self, registry: &mut Registry) {
        let open = Family::<Labels, Gauge>::default();
        let refused = Family::<Labels, Gauge>::default();
        for listening in self.listeners.all() {
            let label = [("listener", listening.name)];
            open.get_or_create(&label)
                .set(i64::try_from(listening.load.open()).unwrap_or(i64::MAX));
            refused
                .get_or_create(&label)
                .set(i64::try_from(listening.load.refused()).unwrap_or(i64::MAX));
        }
        registry.register("connections", "Open connections by listener", open);
        registry.register(
            "connections_turned_away",
            "Connections refused since the start, for their peer had as many as it may have",
            refused,
        );
    }
}

fn go(registry: &mut Registry, runtime: RuntimeStats) {
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
            "Memory that Go has from the system",
            runtime.sys_bytes,
        ),
        ("go_threads", "Threads that Go has made", runtime.threads),
        (
            "go_processors",
            "Processors that Go uses at a time",
            runtime.max_procs,
        ),
        (
            "node_connections",
            "Connections between node and program",
            runtime.conns,
        ),
    ];
    for (name, help, value) in all {
        one(registry, name, help, number(value));
    }
    if let Some(limit) = runtime.memory_limit {
        one(
            registry,
            "go_memory_limit_bytes",
            "Memory of the node above which it collects rather than grows",
            number(limit),
        );
    }
    registry.register(
        "go_gc_cycles",
        "Garbage collections of the node",
        ConstCounter::new(runtime.gc_cycles),
    );
}

/// The usual metrics of a process, under their conventional names.
fn process(registry: &mut Registry) {
    let entries = |path| std::fs::read_dir(path).map(|entries| number(entries.count() as u64));
    if let Ok(open) = entries("/proc/self/fd") {
        one(registry, "process_open_fds", "Open descriptors", open);
    }
    if let Ok(threads) = entries("/proc/self/task") {
        one(registry, "process_threads", "Threads", threads);
    }
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    if let Some(most) = limit.current {
        one(
            registry,
            "process_max_fds",
            "Most open descriptors",
            number(most),
        );
    }
    let pages = std::fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|text| text.split_whitespace().nth(1)?.parse::<u64>().ok());
    if let Some(pages) = pages {
        let gauge = Number::default();
        gauge.set(number(pages * rustix::param::page_size() as u64));
        registry.register_with_unit(
            "process_resident_memory",
            "Memory in use",
            Unit::Bytes,
            gauge,
        );
    }
}

fn one(registry: &mut Registry, name: &str, help: &str, value: f64) {
    let gauge = Number::default();
    gauge.set(value);
    registry.register(name, help, gauge);
}

fn flag(set: bool) -> f64 {
    f64::from(u8::from(set))
}

fn seconds(time: Timestamp) -> f64 {
    time.as_millisecond() as f64 / 1000.0
}

/// Exact up to 2^53, which no counter here reaches.
fn number(count: u64) -> f64 {
    count as f64
}
