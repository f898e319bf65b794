//! The processors of the node inside: half of the machine's, unless `GOMAXPROCS` says another number. Told to Go's runtime when the
//! start is done, which has use for all of them.
//!
//! On its way in and out a packet passes through several goroutines, and for each Go wakes a thread if it may use another processor.
//! Where the processors are few, that costs more than the packet (docs/benchmarks.md). Rust's threads have all cores: signatures,
//! TLS and storage are theirs.
//!
//! Invariants
//! - What an operator said holds: `GOMAXPROCS`, as with every program of Go's.
//! - A number that cannot be found or set is no reason not to serve.

use std::{env, num::NonZero, thread};

use crate::tailnet::{RuntimeLimits, limit_runtime};

/// Tells the runtime, and the log.
pub(super) async fn limit() {
    let told = env::var_os("GOMAXPROCS").is_some_and(|text| !text.is_empty());
    // The cgroup's quota is in it.
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    let limits = RuntimeLimits {
        max_procs: (!told).then(|| share(cores)),
        ..RuntimeLimits::default()
    };
    match limit_runtime(limits).await {
        Ok(limits) => {
            let from = if told {
                "GOMAXPROCS"
            } else {
                "half of the cores"
            };
            tracing::debug!(target: "server", processors = limits.max_procs, from, cores, "processors of the node");
        }
        Err(error) => {
            tracing::warn!(target: "server", %error, "processors of the node not limited");
        }
    }
}

fn share(cores: usize) -> u32 {
    u32::try_from(cores / 2).unwrap_or(u32::MAX).clamp(1, 4096)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_node_has_half_of_the_cores_and_one_at_least() {
        for (cores, share_of_them) in [(1, 1), (2, 1), (3, 1), (4, 2), (64, 32), (1 << 20, 4096)] {
            assert_eq!(share(cores), share_of_them, "{cores}");
        }
    }
}
