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

use super::go_runtime::process_memory;
use crate::{
    config::{Reloaded, Settings},
    http::serve::{Limits, LiveLimits},
    jwks::life::KeyLife,
    keys::KeyPolicy,
    telemetry,
};

/// Descriptors that are not connections: those of the node, keys, sockets and the log.
const RESERVED_DESCRIPTORS: u64 = 100;
/// Descriptors per connection of the limit. A connection from the tailnet has none, but the one to
/// an upstream that it may need has, as have those of the exchange's callers; and the limit is one
/// listener's, of which there are several.
const DESCRIPTORS_PER_CONNECTION: u64 = 4;

/// Memory of a connection whose peer sends and does not read, in the buffers of Go and Rust, if
/// there are many such connections.
const BYTES_PER_CONNECTION: u64 = 256 << 10;
/// One peer may use at most this fraction (one fourth) of the memory in that way.
const PEER_MEMORY_DIVISOR: u64 = 4;

/// The settings in force, and what the parts that can exchange theirs read them from.
#[derive(Debug)]
pub(super) struct LiveSettings {
    settings: Settings,
    pub(super) limits: LiveLimits,
}

impl LiveSettings {
    pub(super) fn new(settings: &Settings) -> Self {
        Self {
            settings: settings.clone(),
            limits: limits(settings).into(),
        }
    }

    pub(super) fn current(&self) -> &Settings {
        &self.settings
    }

    pub(super) fn reload(&mut self, new: &Settings, keys: &KeyLife) -> Reloaded {
        let old = self.settings.clone();
        let reloaded = self.settings.reload(new);
        let now = &self.settings;
        if now.log.level != old.log.level {
            telemetry::log::set_level(now.log.level);
        }
        if now.server.limits != old.server.limits {
            self.limits.set(limits(now));
        }
        if now.keys != old.keys {
            keys.set_policy(KeyPolicy::from(&now.keys));
        }
        reloaded
    }
}

fn limits(settings: &Settings) -> Limits {
    let memory = process_memory(settings.server.memory);
    let settings = &settings.server.limits;
    let wanted = settings.connections;
    let connections = wanted.min(connections_for_descriptors(
        getrlimit(Resource::Nofile).current,
    ));
    if connections < wanted {
        tracing::info!(target: "server", wanted, connections, "fewer connections than the setting allows: the process has too few file descriptors");
    }
    let wanted = settings.connections_per_peer;
    let connections_per_peer = wanted.min(connections_for_memory(memory));
    if connections_per_peer < wanted {
        tracing::info!(target: "server", wanted, connections_per_peer, "fewer connections of one peer than the setting allows: they could use too much of the process's memory");
    }
    Limits {
        connections,
        connections_per_peer,
        ..*settings
    }
}

/// Connections for which there are descriptors, so that keys can still be read and published under
/// a flood of callers.
fn connections_for_descriptors(descriptors: Option<u64>) -> usize {
    let Some(descriptors) = descriptors else {
        return usize::MAX;
    };
    let connections = descriptors.saturating_sub(RESERVED_DESCRIPTORS) / DESCRIPTORS_PER_CONNECTION;
    usize::try_from(connections).unwrap_or(usize::MAX).max(8)
}

/// Connections of one peer for which there is memory, whatever the peer does with them.
fn connections_for_memory(memory: Option<u64>) -> usize {
    let Some(memory) = memory else {
        return usize::MAX;
    };
    usize::try_from(memory / PEER_MEMORY_DIVISOR / BYTES_PER_CONNECTION)
        .unwrap_or(usize::MAX)
        .max(8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_peer_gets_what_the_memory_bears() {
        assert_eq!(connections_for_memory(Some(256 << 20)), 256);
        assert_eq!(connections_for_memory(Some(1 << 20)), 8);
        assert_eq!(connections_for_memory(None), usize::MAX);
        assert!(connections_for_memory(Some(1 << 30)) >= 1024);
    }

    #[test]
    fn a_small_process_serves_few_and_a_large_one_all() {
        assert_eq!(connections_for_descriptors(Some(256)), 39);
        assert_eq!(connections_for_descriptors(Some(10)), 8);
        assert_eq!(connections_for_descriptors(None), usize::MAX);
        assert!(connections_for_descriptors(Some(1 << 20)) > 16_384);
    }
}
