//! A control server with faults, from the view of callers and of readiness: a node on the tailnet
//! stays there and is served, a node that joins does so when the fault is over, and changes in
//! between are known afterwards.
//!
//! A fault lasts a few seconds; `TAILBONE_TEST_TROUBLE` (seconds) makes it last as long as you
//! want.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::{Value, json};
use tailbone::tailnet::Node;
use tempfile::TempDir;
use testkit::{devnet::Devnet, eventually, http::Connection, tailnet::users_node};

use super::{alone, status::settings, tailbone};

fn trouble() -> Duration {
    let seconds = std::env::var("TAILBONE_TEST_TROUBLE")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(6);
    Duration::from_secs(seconds)
}

fn kinds() -> [(&'static str, Value); 4] {
    [
        ("down", json!({"mode": "down"})),
        ("fail", json!({"mode": "fail", "status": 500})),
        ("slow", json!({"mode": "slow", "delay_ms": 3000})),
        ("hold", json!({"mode": "hold"})),
    ]
}

async fn while_in_trouble(what: &str, how: Value) {
    let devnet = Devnet::start();
    let folder = TempDir::new().unwrap();
    let daemon = tailbone(&folder)
        .joining(&devnet)
        .await
        .settings(&settings("tailbone", "20m"))
        .started()
        .await;
    daemon.ready();
    let alice = users_node(&devnet, folder.path(), "alice").await;
    let mut kept = Connection::to(&alice, "tailbone", 80).await;
    assert_eq!(kept.post("/issue").await.status(), 200);

    devnet.control(how).await;
    let began = Instant::now();
    let mut asked = 0;
    while began.elapsed() < trouble() {
        let mut new = Connection::to(&alice, "tailbone", 80).await;
        for connection in [&mut kept, &mut new] {
            assert_eq!(connection.post("/issue").await.status(), 200, "{what}");
            let answer = connection.get("/readyz?verbose").await;
            assert_eq!(answer.status(), 200, "{what}: {:?}", answer.json());
            asked += 1;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(asked > 10, "{what}: {asked}");
    assert!(daemon.run(&["status", "--check"]).status.success());

    // The server is back: news arrives again, such as a new user.
    devnet.control(json!({"mode": "ok"})).await;
    let bob = users_node(&devnet, folder.path(), "bob").await;
    eventually("a token for somebody new", async || {
        let dialled = bob.dial("tailbone:80", Duration::from_secs(5)).await;
        let stream = dialled.map_err(|error| error.to_string())?;
        let mut connection = Connection::over(stream).await;
        match connection.post("/issue").await.status() {
            200 => Ok(()),
            other => Err(format!("{other}")),
        }
    })
    .await;
    let answer = kept.get("/readyz?verbose").await;
    assert_eq!(answer.status(), 200, "{what}: {:?}", answer.json());
    alice.close().await;
    bob.close().await;
}

#[test]
fn whoever_is_on_the_tailnet_is_served_while_the_control_server_is_in_trouble() {
    alone(async {
        join_all(kinds().map(|(what, how)| while_in_trouble(what, how))).await;
    });
}

async fn join_in_trouble(what: &str, how: Value) {
    let devnet = Devnet::start();
    let folder = TempDir::new().unwrap();
    devnet.control(how).await;
    let mut daemon = tailbone(&folder)
        .joining(&devnet)
        .await
        .settings(&(settings("tailbone", "20m") + "joinTimeout = \"1h\"\n"))
        .started()
        .await;
    let check = eventually("the socket tells why", async || {
        let check = daemon.run(&["status", "--check"]);
        let said = String::from_utf8_lossy(&check.stderr).into_owned();
        (said.contains("node-running: ") && said.contains("listeners-up: "))
            .then_some(check)
            .ok_or(said)
    })
    .await;
    assert_eq!(check.status.code(), Some(1), "{what}");
    let began = Instant::now();
    while began.elapsed() < trouble() / 2 {
        assert!(
            daemon.child.try_wait().unwrap().is_none(),
            "{what}: {}",
            daemon.log()
        );
        assert_eq!(
            daemon.run(&["status", "--check"]).status.code(),
            Some(1),
            "{what}"
        );
    }
    devnet.control(json!({"mode": "ok"})).await;
    daemon.ready();
}

#[test]
fn a_join_waits_for_the_control_server_and_then_goes_on_by_itself() {
    alone(async {
        // A slow control server lets nodes join, only later.
        let all = kinds().into_iter().filter(|(what, _)| *what != "slow");
        join_all(all.map(|(what, how)| join_in_trouble(what, how))).await;
    });
}
