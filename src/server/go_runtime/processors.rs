//! The processors of Go's runtime: half of the machine's cores, or what `GOMAXPROCS` says. Applied
//! after start-up, which benefits from all cores.
//!
//! A packet passes through several goroutines, and Go wakes a thread for each of them if another
//! processor is free. On few cores that costs more than the packet itself
//! (docs/design/go-on-half-of-the-cores.md). Rust's threads may use all cores: they sign, do TLS
//! and read storage.
//!
//! Invariants
//! - `GOMAXPROCS` wins, as in every Go program.
//! - If the number cannot be found or set, the server runs with Go's default.

use std::{env, num::NonZero, thread};

use crate::tailnet::{RuntimeLimits, limit_runtime};

/// Sets the number and logs it.
pub(in crate::server) async fn limit_processors() {
    let set_by_environment = env::var_os("GOMAXPROCS").is_some_and(|text| !text.is_empty());
    // This takes the cgroup's quota into account.
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    let limits = RuntimeLimits {
        max_procs: (!set_by_environment).then(|| go_share(cores)),
        ..RuntimeLimits::default()
    };
    match limit_runtime(limits).await {
        Ok(limits) => {
            let from = if set_by_environment {
                "GOMAXPROCS"
            } else {
                "half of the cores"
            };
            tracing::debug!(target: "server", processors = limits.max_procs, from, cores, "the node's processors");
        }
        Err(error) => {
            tracing::warn!(target: "server", %error, "the node's processors are not limited");
        }
    }
}

fn go_share(cores: usize) -> u32 {
    u32::try_from(cores / 2).unwrap_or(u32::MAX).clamp(1, 4096)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_node_has_half_of_the_cores_and_one_at_least() {
        for (cores, share) in [(1, 1), (2, 1), (3, 1), (4, 2), (64, 32), (1 << 20, 4096)] {
            assert_eq!(go_share(cores), share, "{cores}");
        }
    }
}
