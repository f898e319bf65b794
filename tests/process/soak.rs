//! Half an hour of a busy server in half a minute: connections that open and close, keys that are
//! rotated, a network map that changes, hundreds of each. Afterwards nothing of that is left.
//!
//! A first round warms up everything that stays: threads, caches, buffers, the node's own paths. A
//! leak shows in each round after it, so the bounds compare with the cost of one item times their
//! number:
//! - descriptors: none more, except for the few of a measurement.
//! - threads: Go and tokio keep threads that they have created, and may create a few more under
//!   load; one per connection or rotation would be hundreds.
//! - goroutines: like descriptors; the node's own vary by a handful with its timers.
//! - Go's heap: with GOGC=10 the value is at most a tenth (of about 40 MB) above the live data.
//!   That is 4 KiB for each connection and map in the rounds after the first; a connection that was
//!   not released holds more.
//! - resident memory: allocators keep what they have; the bound is two thirds of a 16 KiB buffer
//!   for each connection.

use std::{
    collections::BTreeMap,
    fs,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use futures_util::future::join_all;
use tailbone::{
    admin::{AdminClient, ServerAddress},
    tailnet::Node,
};
use tempfile::TempDir;
use testkit::{daemon::Daemon, devnet::Devnet, eventually, http::Connection, tailnet::users_node};

use super::{alone, tailbone};

/// In each round.
const CONNECTIONS: usize = 400;
const ROTATIONS: usize = 100;
const MAPS: usize = 150;
const ROUNDS: usize = 3;

/// Signs with a new key at once and drops old ones after a second, so that many fit into the time.
const SETTINGS: &str = "components = \"issuer,metrics\"\n[keys]\nexpiry = \"1s\"\ncacheTime = \"0s\"\n\
    skew = \"0s\"\nalgorithm = \"ES256\"\n[server.tailscale]\nhostname = \"tailbone\"\n";

type Measurements = BTreeMap<&'static str, f64>;

/// The most by which a measurement may exceed the first one.
const MAY_GROW: [(&str, f64); 5] = [
    ("process_open_fds", 3.0),
    ("process_threads", 6.0),
    ("tailbone_go_goroutines", 8.0),
    ("tailbone_go_heap_bytes", 4.0 * 1024.0 * 1024.0),
    ("process_resident_memory_bytes", 8.0 * 1024.0 * 1024.0),
];

async fn measured(peer: &dyn Node) -> Measurements {
    let answer = Connection::to(peer, "tailbone", 9090)
        .await
        .get("/metrics")
        .await;
    let text = String::from_utf8(answer.0.body().to_vec()).unwrap();
    let value = |name: &str| {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in {text}"))
            .parse()
            .unwrap()
    };
    MAY_GROW.map(|(name, _)| (name, value(name))).into()
}

/// The minimum of several measurements: requests in progress and garbage are not leaks.
async fn at_rest(peer: &dyn Node) -> Measurements {
    let mut least = measured(peer).await;
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        for (name, value) in measured(peer).await {
            let known = least.get_mut(name).unwrap();
            *known = known.min(value);
        }
    }
    least
}

async fn connections(peer: &dyn Node) {
    let left = AtomicUsize::new(CONNECTIONS);
    let one = async || {
        while left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                left.checked_sub(1)
            })
            .is_ok()
        {
            let answer = Connection::to(peer, "tailbone", 80)
                .await
                .post("/issue")
                .await;
            assert_eq!(answer.status(), 200);
        }
    };
    join_all((0..4).map(|_| one())).await;
}

async fn rotations(daemon: &Daemon) {
    let socket = daemon.path(".tsnet/admin.sock");
    let client = AdminClient::new(ServerAddress::Socket(socket), Duration::from_secs(20));
    for _ in 0..ROTATIONS {
        let made = client
            .rotate(0, String::new(), String::new())
            .await
            .unwrap()
            .key
            .unwrap();
        // The keys would otherwise stay in the document as long as tokens of theirs may exist.
        for key in client.list().await.unwrap() {
            if key.key_id != made.key_id {
                client.remove(key.key_id, true).await.unwrap();
            }
        }
    }
    // The key, its state, the document and its last copies, the locks.
    let entries = fs::read_dir(daemon.path("keys")).unwrap();
    let files: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
    assert!(files.len() < 20, "{files:?}");
}

/// Renames, tags and grants of another node, each of which makes a new map for all.
async fn maps(devnet: &Devnet, other: &dyn Node) {
    let other = other.watch().borrow().id.clone();
    for change in 0..MAPS {
        match change % 3 {
            0 => devnet.set_tags(&other, &[&format!("tag:t{change}")]).await,
            1 => devnet.set_tags(&other, &[]).await,
            _ => {
                let login = format!("renamed{change}@example.com");
                devnet.rename_login(&other, &login).await;
            }
        }
    }
}

#[test]
fn hundreds_of_connections_rotations_and_maps_leave_nothing_behind() {
    alone(async {
        let devnet = Devnet::start();
        let folder = TempDir::new().unwrap();
        let daemon = tailbone(&folder)
            .joining(&devnet)
            .await
            .settings(SETTINGS)
            .after("export GOGC=10")
            .started()
            .await;
        daemon.ready();
        let alice = &users_node(&devnet, folder.path(), "alice").await;
        let bob = &users_node(&devnet, folder.path(), "bob").await;

        let mut first = None;
        for round in 0..ROUNDS {
            let began = std::time::Instant::now();
            tokio::join!(connections(alice), rotations(&daemon), maps(&devnet, bob));
            let took = began.elapsed();
            let Some(first) = &first else {
                let held = at_rest(alice).await;
                eprintln!("round {round} in {took:?}: {held:?}");
                first = Some(held);
                continue;
            };
            let held = eventually("back to where it began", async || {
                let held = at_rest(alice).await;
                let more = MAY_GROW
                    .iter()
                    .find(|(name, may)| held[name] > first[name] + may);
                more.map_or(Ok(held.clone()), |(name, may)| {
                    Err(format!(
                        "{name}: {} at first, now {}, which may be {may} more",
                        first[name], held[name]
                    ))
                })
            })
            .await;
            eprintln!("round {round} in {took:?}: {held:?}");
        }
        assert_eq!(
            Connection::to(alice, "tailbone", 80)
                .await
                .post("/issue")
                .await
                .status(),
            200
        );
        alice.close().await;
        bob.close().await;
    });
}
