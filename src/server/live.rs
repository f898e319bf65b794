//! What of the settings may change while the server runs, and how it is exchanged.
//!
//! Invariants
//! - Settings that do not load change nothing.
//! - What cannot be exchanged keeps its old value and is named; it is named at each reload until a restart.
//! - Keys stay published for the longest life that tokens were given since the start ([`KeyLife::set_policy`]), and that is raised
//!   before tokens get the longer life.

use std::sync::Arc;

use arc_swap::ArcSwap;
use rustix::process::{Resource, getrlimit};

use super::memory;
use crate::{
    config::Settings,
    http::serve::{Limits, LiveLimits},
    issuer::TokenRules,
    jwks::life::KeyLife,
    keys::Policy,
    telemetry,
};

/// Descriptors that are not connections: node, keys, sockets, log.
const OWN_DESCRIPTORS: u64 = 100;
/// A connection from the tailnet has none, but the one to an upstream that it may need has, as have those of the exchange's
/// callers; and there is more than one listener.
const DESCRIPTORS_EACH: u64 = 4;

/// What a connection takes whose peer sends and does not read, in the buffers on both sides of the
/// fence, where there are many.
const BYTES_EACH: u64 = 256 << 10;
/// The part of the memory that one peer may take so.
const PEERS_MEMORY: u64 = 4;

/// The parts that read their settings anew.
#[derive(Debug)]
pub(super) struct Live {
    /// What is in force.
    settings: Settings,
    pub(super) rules: Arc<ArcSwap<TokenRules>>,
    pub(super) limits: LiveLimits,
}

/// What a reload did.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Exchanged {
    /// Settings whose new value holds.
    pub(super) done: Vec<&'static str>,
    /// Settings that want a restart.
    pub(super) left: Vec<&'static str>,
}

impl Live {
    pub(super) fn new(settings: &Settings) -> Self {
        Self {
            settings: settings.clone(),
            rules: Arc::new(ArcSwap::from_pointee(rules(settings))),
            limits: limits(settings).into(),
        }
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(super) fn exchange(&mut self, new: &Settings, keys: &KeyLife) -> Exchanged {
        let mut exchanged = Exchanged::default();
        let old = self.settings.clone();
        let now = &mut self.settings;
        let mut changed = |name, differs: bool| {
            if differs {
                exchanged.done.push(name);
            }
            differs
        };
        if changed("log.level", old.log.level != new.log.level) {
            now.log.level = new.log.level;
            telemetry::log::set_level(new.log.level);
        }
        if changed("server.limits", old.server.limits != new.server.limits) {
            now.server.limits = new.server.limits;
            self.limits.set(limits(now));
        }
        if changed("server.grace", old.server.grace != new.server.grace) {
            now.server.grace = new.server.grace;
        }
        let issuer = changed("keys.issuer", old.keys.issuer != new.keys.issuer);
        let expiry = changed("keys.expiry", old.keys.expiry != new.keys.expiry);
        let skew = changed("keys.skew", old.keys.skew != new.keys.skew);
        let rotate = changed(
            "keys.rotateEvery",
            old.keys.rotate_every != new.keys.rotate_every,
        );
        now.keys.issuer.clone_from(&new.keys.issuer);
        now.keys.expiry = new.keys.expiry;
        now.keys.skew = new.keys.skew;
        now.keys.rotate_every = new.keys.rotate_every;
        if expiry || skew || rotate {
            keys.set_policy(Policy::from(&now.keys));
        }
        if issuer || expiry || skew {
            self.rules.store(Arc::new(rules(now)));
        }
        exchanged.left = left(now, new);
        exchanged
    }
}

/// What differs still.
fn left(now: &Settings, new: &Settings) -> Vec<&'static str> {
    let (ours, theirs) = (&now.server.tailscale, &new.server.tailscale);
    let all = [
        ("components", now.components != new.components),
        (
            "log.format",
            now.log.format != new.log.format || now.log.no_color != new.log.no_color,
        ),
        ("keys.dir", now.keys.dir != new.keys.dir),
        (
            "keys.bucket, keys.jwksFile, keys.keyPath or keys.s3",
            now.keys.publish != new.keys.publish,
        ),
        (
            "keys.algorithm or keys.size",
            now.keys.spec != new.keys.spec,
        ),
        ("key.prefix", now.keys.prefix != new.keys.prefix),
        ("keys.cacheTime", now.keys.cache_time != new.keys.cache_time),
        (
            "server.port or server.binding",
            now.server.port != new.server.port || now.server.binding != new.server.binding,
        ),
        (
            "server.allowedHosts or server.allowedOrigins",
            now.server.allowed_hosts != new.server.allowed_hosts
                || now.server.allowed_origins != new.server.allowed_origins,
        ),
        (
            "server.limits.memory",
            now.server.memory != new.server.memory,
        ),
        // Joining is over: how long it may take, and with which key, matters at the next start alone.
        (
            "server.tailscale",
            ours.dir != theirs.dir
                || ours.hostname != theirs.hostname
                || ours.control_url != theirs.control_url
                || ours.ephemeral != theirs.ephemeral
                || ours.tags != theirs.tags
                || ours.upload_logs != theirs.upload_logs,
        ),
        ("server.telemetry", now.server.otlp != new.server.otlp),
        ("admin", now.admin != new.admin),
        ("metrics", now.metrics != new.metrics),
        ("gate", now.gate != new.gate),
        ("sts", now.sts != new.sts),
    ];
    all.into_iter()
        .filter(|(_, differs)| *differs)
        .map(|(name, _)| name)
        .collect()
}

fn rules(settings: &Settings) -> TokenRules {
    TokenRules {
        issuer: settings.keys.issuer.clone(),
        expiry: settings.keys.expiry,
        skew: settings.keys.skew,
    }
}

fn limits(settings: &Settings) -> Limits {
    let memory = memory::of_process(settings.server.memory);
    let settings = &settings.server.limits;
    let wanted = settings.connections;
    let connections = wanted.min(affordable(getrlimit(Resource::Nofile).current));
    if connections < wanted {
        tracing::info!(target: "server", wanted, connections, "fewer connections than the setting allows: the process may not have more descriptors");
    }
    let wanted = settings.connections_per_peer;
    let connections_per_peer = wanted.min(bearable(memory));
    if connections_per_peer < wanted {
        tracing::info!(target: "server", wanted, connections_per_peer, "fewer connections of one peer than the setting allows: they could fill too much of the process's memory");
    }
    Limits {
        connections,
        connections_per_peer,
        ..*settings
    }
}

/// Connections for which there are descriptors, so that keys can still be read and published under a flood of callers.
fn affordable(descriptors: Option<u64>) -> usize {
    let Some(descriptors) = descriptors else {
        return usize::MAX;
    };
    let spare = descriptors.saturating_sub(OWN_DESCRIPTORS) / DESCRIPTORS_EACH;
    usize::try_from(spare).unwrap_or(usize::MAX).max(8)
}

/// Connections of one peer for which there is memory, whatever it does with them.
fn bearable(memory: Option<u64>) -> usize {
    let Some(memory) = memory else {
        return usize::MAX;
    };
    usize::try_from(memory / PEERS_MEMORY / BYTES_EACH)
        .unwrap_or(usize::MAX)
        .max(8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_peer_gets_what_the_memory_bears() {
        assert_eq!(bearable(Some(256 << 20)), 256);
        assert_eq!(bearable(Some(1 << 20)), 8);
        assert_eq!(bearable(None), usize::MAX);
        assert!(bearable(Some(1 << 30)) >= 1024);
    }

    #[test]
    fn a_small_process_serves_few_and_a_large_one_all() {
        assert_eq!(affordable(Some(256)), 39);
        assert_eq!(affordable(Some(10)), 8);
        assert_eq!(affordable(None), usize::MAX);
        assert!(affordable(Some(1 << 20)) > 16_384);
    }
}
