//! The settings in force, and what a reload does to the parts that use them. Which settings can be
//! exchanged is said in `config/sections/`.
//!
//! Invariants
//! - Settings that do not load change nothing.
//! - A setting that cannot be exchanged keeps its old value. Each reload names it until a restart.
//! - Keys stay published for the longest life that tokens have been given since the start
//!   ([`KeyLife::set_policy`]), and that is raised before tokens get the longer life:
//!   the parts learn of a change afterwards.

use rustix::process::{Resource, getrlimit};

use super::memory;
use crate::{
    config::{Exchanged, Settings},
    http::serve::{Limits, LiveLimits},
    jwks::life::KeyLife,
    keys::Policy,
    telemetry,
};

/// Descriptors that are not connections: those of the node, keys, sockets and the log.
const OWN_DESCRIPTORS: u64 = 100;
/// Descriptors per connection of the limit. A connection from the tailnet has none, but the one to
/// an upstream that it may need has, as have those of the exchange's callers; and the limit is one
/// listener's, of which there are several.
const DESCRIPTORS_EACH: u64 = 4;

/// Memory of a connection whose peer sends and does not read, in the buffers of Go and Rust, if
/// there are many such connections.
const BYTES_EACH: u64 = 256 << 10;
/// One peer may use at most this fraction (one fourth) of the memory in that way.
const PEERS_MEMORY: u64 = 4;

/// The settings in force, and what the parts that can exchange theirs read them from.
#[derive(Debug)]
pub(super) struct Live {
    settings: Settings,
    pub(super) limits: LiveLimits,
}

impl Live {
    pub(super) fn new(settings: &Settings) -> Self {
        Self {
            settings: settings.clone(),
            limits: limits(settings).into(),
        }
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(super) fn exchange(&mut self, new: &Settings, keys: &KeyLife) -> Exchanged {
        let old = self.settings.clone();
        let exchanged = self.settings.exchange(new);
        let now = &self.settings;
        if now.log.level != old.log.level {
            telemetry::log::set_level(now.log.level);
        }
        if now.server.limits != old.server.limits {
            self.limits.set(limits(now));
        }
        if now.keys != old.keys {
            keys.set_policy(Policy::from(&now.keys));
        }
        exchanged
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

/// Connections for which there are descriptors, so that keys can still be read and published under
/// a flood of callers.
fn affordable(descriptors: Option<u64>) -> usize {
    let Some(descriptors) = descriptors else {
        return usize::MAX;
    };
    let spare = descriptors.saturating_sub(OWN_DESCRIPTORS) / DESCRIPTORS_EACH;
    usize::try_from(spare).unwrap_or(usize::MAX).max(8)
}

/// Connections of one peer for which there is memory, whatever the peer does with them.
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
