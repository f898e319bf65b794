//! What the test programs share: a tailnet on loopback, servers around the program and their
//! faults, lists of promises that several things keep, and waiting for conditions instead of fixed
//! times.

// The kit reports what goes wrong in a test, which ends by a panic. Nothing of it is printed.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    missing_debug_implementations
)]

pub mod backend;
pub mod browser;
pub mod certificates;
pub mod cloud_sdks;
pub mod connect_proxy;
pub mod counts;
pub mod daemon;
pub mod devnet;
pub mod fault_proxy;
pub mod faulty_node;
pub mod files;
pub mod http;
pub mod jwks_server;
pub mod key_vault;
pub mod keys;
pub mod line_program;
pub mod moto;
pub mod node_contract;
pub mod oidc_apps;
pub mod oidc_clients;
pub mod openbao;
pub mod proxies;
pub mod publisher_contract;
pub mod pyjwt;
pub mod s3;
pub mod signer_contract;
pub mod softhsm;
pub mod spoof;
pub mod tailnet;
pub mod token_endpoint;
pub mod verifiers;
pub mod world;
pub mod written;

use std::{
    fmt::Debug,
    future::Future,
    time::{Duration, Instant},
};

/// How long a test waits for something that must happen. Longer than anything takes;
/// `TAILBONE_TEST_PATIENCE` (seconds) changes it.
pub fn patience() -> Duration {
    let seconds = std::env::var("TAILBONE_TEST_PATIENCE")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or(20);
    Duration::from_secs(seconds)
}

/// Waits for a future that must end.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(patience(), future).await {
        Ok(value) => value,
        Err(_) => panic!("{what}: nothing within {:?}", patience()),
    }
}

/// Waits until a condition holds.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let no = || "it does not hold".to_owned();
    eventually(what, async || holds().then_some(()).ok_or_else(no)).await;
}

/// Calls `look` until it succeeds.
pub async fn eventually<T: Debug>(
    what: &str,
    mut look: impl AsyncFnMut() -> Result<T, String>,
) -> T {
    let began = Instant::now();
    loop {
        match look().await {
            Ok(value) => return value,
            Err(last) if began.elapsed() > patience() => {
                panic!("{what}: not within {:?}, last: {last}", patience())
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}
