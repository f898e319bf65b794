//! Counters of all parts. Counting costs a few atomic additions, whether or not the numbers are
//! read; the component `metrics` publishes them.
//!
//! Invariant: label values come from the program (components, results, reason codes) or from the
//! operator's files (names of rules and policies), never from a caller. So the number of series is
//! bounded.

use std::{sync::Arc, time::Duration};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

/// The counters. Clones share them.
#[derive(Debug, Clone)]
pub struct Meter(Arc<Counts>);

#[derive(Debug)]
struct Counts {
    tokens: Family<TokenLabels, Counter>,
    signing: Histogram,
    whois: Family<ResultLabels, Counter>,
    reloads: Family<ResultLabels, Counter>,
    jwks: Family<ResultLabels, Counter>,
    changes: Family<KeyChangeLabels, Counter>,
    decisions: Family<DecisionLabels, Counter>,
    upstreams: Family<ResultLabels, Counter>,
    exchanges: Family<ExchangeLabels, Counter>,
    issuers: Family<ResultLabels, Counter>,
    logouts: Family<ResultLabels, Counter>,
    service_calls: Family<ServiceCallLabels, Counter>,
    service_seconds: Family<ServiceLabels, Histogram, fn() -> Histogram>,
    service_refuses: Family<ServiceLabel, Gauge>,
    oidc_requests: Family<OidcRequestLabels, Counter>,
    oidc_store_calls: Family<StoreCallLabels, Counter>,
    oidc_store_seconds: Family<StoreLabel, Histogram, fn() -> Histogram>,
    oidc_rows: Family<KindLabel, Gauge>,
    oidc_rows_swept: Counter,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TokenLabels {
    component: &'static str,
    result: &'static str,
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabels {
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KeyChangeLabels {
    change: &'static str,
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DecisionLabels {
    result: &'static str,
    reason: &'static str,
    rule: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ExchangeLabels {
    policy: String,
    result: &'static str,
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ServiceCallLabels {
    service: &'static str,
    call: &'static str,
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ServiceLabels {
    service: &'static str,
    call: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ServiceLabel {
    service: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OidcRequestLabels {
    endpoint: &'static str,
    result: &'static str,
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StoreCallLabels {
    call: &'static str,
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StoreLabel {
    call: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}

/// From 0.1 ms (EdDSA, idle machine) to the longest wait that the overload limit allows.
const SIGNING: [f64; 12] = [
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 2.5,
];

/// From a token on this machine to the time limit of a service that is far away.
const SERVICE: [f64; 10] = [
    0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 3.0,
];

/// From a read in SQLite to the time limit of a call.
const STORE: [f64; 11] = [
    0.000_1, 0.000_25, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5, 5.0,
];

impl Default for Meter {
    fn default() -> Self {
        Self(Arc::new(Counts {
            tokens: Family::default(),
            signing: Histogram::new(SIGNING),
            whois: Family::default(),
            reloads: Family::default(),
            jwks: Family::default(),
            changes: Family::default(),
            decisions: Family::default(),
            upstreams: Family::default(),
            exchanges: Family::default(),
            issuers: Family::default(),
            logouts: Family::default(),
            service_calls: Family::default(),
            service_seconds: Family::new_with_constructor(|| Histogram::new(SERVICE)),
            service_refuses: Family::default(),
            oidc_requests: Family::default(),
            oidc_store_calls: Family::default(),
            oidc_store_seconds: Family::new_with_constructor(|| Histogram::new(STORE)),
            oidc_rows: Family::default(),
            oidc_rows_swept: Counter::default(),
        }))
    }
}

impl Meter {
    pub fn token_issued(&self, component: &'static str, signing: Duration) {
        self.0.signing.observe(signing.as_secs_f64());
        self.token(component, "issued", "");
    }

    /// `reason` is the stable code of the refusal.
    pub fn token_refused(&self, component: &'static str, reason: &'static str) {
        self.token(component, "refused", reason);
    }

    fn token(&self, component: &'static str, result: &'static str, reason: &'static str) {
        self.0
            .tokens
            .get_or_create(&TokenLabels {
                component,
                result,
                reason,
            })
            .inc();
    }

    /// The answer was known already.
    pub fn whois_kept(&self) {
        self.whois("kept");
    }

    pub fn whois_asked(&self, known: bool) {
        self.whois(if known { "known" } else { "refused" });
    }

    fn whois(&self, result: &'static str) {
        self.0.whois.get_or_create(&ResultLabels { result }).inc();
    }

    pub fn reloaded(&self, done: bool) {
        let result = if done { "done" } else { "failed" };
        self.0.reloads.get_or_create(&ResultLabels { result }).inc();
    }

    pub fn jwks_read(&self, readable: bool) {
        let result = if readable { "done" } else { "failed" };
        self.0.jwks.get_or_create(&ResultLabels { result }).inc();
    }

    /// `change` is the name that the key's life cycle has for it.
    pub fn key_changed(&self, change: &'static str, done: bool) {
        let result = if done { "done" } else { "failed" };
        self.0
            .changes
            .get_or_create(&KeyChangeLabels { change, result })
            .inc();
    }

    /// A decision of the gate. `reason` is the code of the refusal or empty; `rule` is the name in
    /// the operator's file.
    pub fn decided(&self, result: &'static str, reason: &'static str, rule: String) {
        let labels = DecisionLabels {
            result,
            reason,
            rule,
        };
        self.0.decisions.get_or_create(&labels).inc();
    }

    /// `result` is `answered`, or the error code of the failed call.
    pub fn upstream(&self, result: &'static str) {
        self.0
            .upstreams
            .get_or_create(&ResultLabels { result })
            .inc();
    }

    /// `policy` is empty if none applies.
    pub fn exchanged(&self, policy: &str) {
        self.exchange(policy, "granted", "");
    }

    pub fn exchange_refused(&self, policy: &str, reason: &'static str) {
        self.exchange(policy, "refused", reason);
    }

    fn exchange(&self, policy: &str, result: &'static str, reason: &'static str) {
        let policy = policy.to_owned();
        let exchange = ExchangeLabels {
            policy,
            result,
            reason,
        };
        self.0.exchanges.get_or_create(&exchange).inc();
    }

    /// The result of fetching an outside issuer's keys: `new`, `unchanged` or `failed`.
    pub fn issuer_keys_fetched(&self, result: &'static str) {
        self.0.issuers.get_or_create(&ResultLabels { result }).inc();
    }

    /// An application was told that a session has ended: `told`, or the code of what went wrong.
    pub fn logout_told(&self, result: &'static str) {
        self.0.logouts.get_or_create(&ResultLabels { result }).inc();
    }

    /// A call of a service that keeps private keys. `result` is `done` or what was wrong.
    pub fn key_service_called(
        &self,
        service: &'static str,
        call: &'static str,
        result: &'static str,
        took: Duration,
    ) {
        let labels = ServiceCallLabels {
            service,
            call,
            result,
        };
        self.0.service_calls.get_or_create(&labels).inc();
        let labels = ServiceLabels { service, call };
        let seconds = self.0.service_seconds.get_or_create(&labels);
        seconds.observe(took.as_secs_f64());
    }

    /// Callers are refused without a call from now on (`begins`), or no longer.
    pub fn key_service_refuses(&self, service: &'static str, begins: bool) {
        let gauge = self
            .0
            .service_refuses
            .get_or_create(&ServiceLabel { service });
        if begins {
            gauge.inc();
        } else {
            gauge.dec();
        }
    }

    /// A request to the OpenID provider. `result` is `done`, `asked` (a page), `refused` or
    /// `failed`; `reason` is the code of the error, or empty.
    pub fn oidc_requested(
        &self,
        endpoint: &'static str,
        result: &'static str,
        reason: &'static str,
    ) {
        let labels = OidcRequestLabels {
            endpoint,
            result,
            reason,
        };
        self.0.oidc_requests.get_or_create(&labels).inc();
    }

    /// A call of the store of the OpenID provider: `read`, `write` or `bulk`, and what came of it.
    /// `took` is absent where the time depends on how much there is to do.
    pub fn oidc_store_called(
        &self,
        call: &'static str,
        result: &'static str,
        took: Option<Duration>,
    ) {
        let labels = StoreCallLabels { call, result };
        self.0.oidc_store_calls.get_or_create(&labels).inc();
        if let Some(took) = took {
            let seconds = self
                .0
                .oidc_store_seconds
                .get_or_create(&StoreLabel { call });
            seconds.observe(took.as_secs_f64());
        }
    }

    /// Rows of this kind that live in the store of the OpenID provider, as last counted.
    pub fn oidc_rows_counted(&self, kind: &'static str, rows: u64) {
        let gauge = self.0.oidc_rows.get_or_create(&KindLabel { kind });
        gauge.set(i64::try_from(rows).unwrap_or(i64::MAX));
    }

    /// Expired rows that were deleted.
    pub fn oidc_rows_swept(&self, rows: u64) {
        self.0.oidc_rows_swept.inc_by(rows);
    }

    /// Adds the counters to a registry.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "tokens",
            "Tokens issued and refused, by component, result and reason code",
            self.0.tokens.clone(),
        );
        registry.register(
            "signing_seconds",
            "Time from the claims to the signed token, waiting for a turn included",
            self.0.signing.clone(),
        );
        registry.register(
            "whois",
            "Questions for who calls: known and refused were asked of the node, kept were answered by the connection",
            self.0.whois.clone(),
        );
        registry.register(
            "reloads",
            "Reloads of the settings on a hang-up signal",
            self.0.reloads.clone(),
        );
        registry.register(
            "jwks_looks",
            "Looks at the published document, by whether it could be read",
            self.0.jwks.clone(),
        );
        registry.register(
            "key_changes",
            "Changes of keys and of the published document (publish, activate, retire, …), by result",
            self.0.changes.clone(),
        );
        registry.register(
            "gate_decisions",
            "Decisions of the gate, by result, reason code and rule",
            self.0.decisions.clone(),
        );
        registry.register(
            "gate_upstreams",
            "Requests that the gate passed to a service behind it: answered, or the code of what went wrong",
            self.0.upstreams.clone(),
        );
        registry.register(
            "sts_exchanges",
            "Exchanges of outside tokens, by policy, result and reason code",
            self.0.exchanges.clone(),
        );
        registry.register(
            "sts_key_fetches",
            "Fetches of outside issuers' keys, by what came of them",
            self.0.issuers.clone(),
        );
        registry.register(
            "oidc_logout_notices",
            "Applications to be told that a session has ended: told, or the code of what went wrong",
            self.0.logouts.clone(),
        );
        registry.register(
            "key_service_calls",
            "Calls of services and vaults that keep private keys, by what came of them",
            self.0.service_calls.clone(),
        );
        registry.register(
            "key_service_call_seconds",
            "Time of those calls, each repetition by itself",
            self.0.service_seconds.clone(),
        );
        registry.register(
            "key_service_refusing",
            "Keys of a service whose callers are refused without a call, because it does not sign",
            self.0.service_refuses.clone(),
        );
        registry.register(
            "oidc_requests",
            "Requests to the OpenID provider, by endpoint, what came of them, and the code of the error",
            self.0.oidc_requests.clone(),
        );
        registry.register(
            "oidc_store_calls",
            "Calls of the store of the OpenID provider, by what came of them",
            self.0.oidc_store_calls.clone(),
        );
        registry.register(
            "oidc_store_call_seconds",
            "Time of those calls, waiting for the database included",
            self.0.oidc_store_seconds.clone(),
        );
        registry.register(
            "oidc_rows",
            "Rows in the store of the OpenID provider that have not expired, as last counted, by kind",
            self.0.oidc_rows.clone(),
        );
        registry.register(
            "oidc_rows_swept",
            "Expired rows of the OpenID provider that were deleted",
            self.0.oidc_rows_swept.clone(),
        );
    }
}
