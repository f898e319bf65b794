//! Tests that need a process for themselves: they count its descriptors and threads, change its limits or its signal handlers.
//!
//! [`alone!`] makes a test that starts this very program again for its body and shows what that says.

// A test says what is wrong by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

// Every test binary compiles all of it and uses a part.
#[allow(dead_code, unused_macros, unreachable_pub)]
#[path = "../support/mod.rs"]
mod support;

/// A test whose body is run in a process of its own, on a runtime of two threads.
macro_rules! alone {
    ($(#[$meta:meta])* async fn $name:ident() $body:block) => {
        $(#[$meta])*
        #[test]
        fn $name() {
            $crate::alone(concat!(module_path!(), "::", stringify!($name)), async $body);
        }
    };
}

mod admin;
mod gate;
mod inside;
mod otlp;
mod server;
mod tailnet;
mod terminal;

use std::{future::Future, process::Command};

const ALONE: &str = "TAILBONE_TEST_ALONE";

fn alone(path: &str, body: impl Future<Output = ()>) {
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
    let output = Command::new(std::env::current_exe().unwrap())
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
    // A name that matches nothing would succeed as well.
    assert!(said.concat().contains("1 passed"), "{name} was not run");
}
