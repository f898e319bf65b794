//! Tests that need a process of their own: they count its descriptors and threads, or change its
//! limits or signal handlers.
//!
//! A test calls [`alone`] with its body, which runs it by starting this program again, and shows
//! its output. [`own_network`] does so in a network namespace of its own.

// A test reports failures by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod admin;
mod certificates;
mod cloud_sdks;
mod disk;
mod front_proxies;
mod funnel;
mod gate;

mod join;
mod limits;
mod listeners;
mod memory;
mod oidc;
mod oidc_apps;
mod oidc_clients;
mod oidc_server;
mod otlp;
mod pages;
mod pkcs11;
mod remote_signer;
mod resets;
mod server;
mod soak;
mod status;
mod tailnet;
mod terminal;
mod trouble;
mod verifiers;
mod workload;
mod workload_client;

use std::{any::type_name_of_val, future::Future, path::Path, process::Command};

use testkit::daemon::Start;

const ALONE: &str = "TAILBONE_TEST_ALONE";

/// The real program, before it starts as a server in this folder.
fn tailbone(folder: impl AsRef<Path>) -> Start {
    Start::new(env!("CARGO_BIN_EXE_tailbone"), folder.as_ref())
}

/// Runs the body of a test in a process of its own, on a runtime with two threads.
fn alone(body: impl Future<Output = ()>) {
    run_again(Command::new(std::env::current_exe().unwrap()), body);
}

/// The same in a network namespace where a tailnet's addresses belong to the machine, as on a host
/// whose tailscaled has a TUN device: programs can listen on them and connect from them. Nothing
/// else uses that network.
fn own_network(body: impl Future<Output = ()>) {
    match in_own_network() {
        Ok(again) => run_again(again, body),
        Err(why) => {
            let name = name_of_test(&body);
            println!("{name} NOT RUN: no network of one's own here: {why}");
        }
    }
}

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
fn run_again(mut again: Command, body: impl Future<Output = ()>) {
    let name = name_of_test(&body);
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

/// The path of the test whose body this is: the type of an async block has the name of the function
/// around it.
fn name_of_test(body: &impl Future<Output = ()>) -> &'static str {
    let block = type_name_of_val(body);
    let (_, path) = block.split_once("::").unwrap();
    path.strip_suffix("::{{closure}}").unwrap()
}
