//! Tests that need a process of their own: they count its descriptors and threads, or change its
//! limits or signal handlers.
//!
//! [`alone!`] defines a test that runs its body by starting this program again, and shows its
//! output; [`own_network!`] does so in a network namespace of its own.

// A test reports failures by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

/// Defines a test whose body runs in a process of its own, on a runtime with two threads.
macro_rules! alone {
    ($(#[$meta:meta])* async fn $name:ident() $body:block) => {
        $(#[$meta])*
        #[test]
        fn $name() {
            let again = std::process::Command::new(std::env::current_exe().unwrap());
            $crate::alone(concat!(module_path!(), "::", stringify!($name)), again, async $body);
        }
    };
}

/// The same in a network namespace where a tailnet's addresses belong to the machine, as on a host
/// whose tailscaled has a TUN device: programs can listen on them and connect from them. Nothing
/// else uses that network.
macro_rules! own_network {
    ($(#[$meta:meta])* async fn $name:ident() $body:block) => {
        $(#[$meta])*
        #[test]
        fn $name() {
            let path = concat!(module_path!(), "::", stringify!($name));
            match $crate::in_own_network() {
                Ok(again) => $crate::alone(path, again, async $body),
                Err(why) => println!("{path} NOT RUN: no network of one's own here: {why}"),
            }
        }
    };
}

mod admin;
mod disk;
mod front_proxies;
mod gate;
mod inside;
mod join;
mod limits;
mod listeners;
mod memory;
mod otlp;
mod pages;
mod resets;
mod server;
mod soak;
mod tailnet;
mod terminal;
mod trouble;

use std::{future::Future, process::Command};

const ALONE: &str = "TAILBONE_TEST_ALONE";

/// A command for this program in another network namespace. A user namespace makes that possible
/// without root.
fn in_own_network() -> Result<Command, String> {
    let namespace = || {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--net", "sh", "-c"]);
        command
    };
    let tried = namespace().arg(NETWORK).output();
    let tried = tried.map_err(|error| format!("unshare: {error}"))?;
    if !tried.status.success() {
        return Err(String::from_utf8_lossy(&tried.stderr).trim().to_owned());
    }
    let mut again = namespace();
    again
        .arg(format!("{NETWORK} && exec \"$0\" \"$@\""))
        .arg(std::env::current_exe().unwrap());
    Ok(again)
}

const NETWORK: &str = "ip link set lo up && ip addr add 100.64.0.0/10 dev lo";

/// `again` starts this program; the test's name is added to it.
fn alone(path: &str, mut again: Command, body: impl Future<Output = ()>) {
    let (_, name) = path.split_once("::").unwrap();
    if std::env::var(ALONE).as_deref() == Ok(name) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(body);
        return;
    }
    let output = again
        .args([name, "--exact", "--nocapture", "--test-threads=1"])
        .env(ALONE, name)
        .output()
        .unwrap();
    let said =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    print!("{}", said.concat());
    assert!(
        output.status.success(),
        "{name} in a process of its own: {}",
        output.status
    );
    // A name that matches no test would succeed as well.
    assert!(said.concat().contains("1 passed"), "{name} was not run");
}
