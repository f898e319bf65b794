//! A closed node leaves nothing behind.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tailbone::tailnet::{EmbeddedNode, Error, ListenAddr, Node};
use testkit::{
    devnet::Devnet,
    node_contract::interleaved,
    tailnet::{DevnetTailnet, Owner, Tailnet, config, running},
};

use super::Resources;
use crate::alone;

const PATIENCE: Duration = Duration::from_secs(15);

/// One life of two nodes with everything that can depend on them: connections, some still open,
/// listeners, an accept, a waiting dial.
async fn life() {
    let tailnet = DevnetTailnet::new();
    let server = tailnet
        .node("server", Owner::User("alice@example.com"))
        .await;
    let caller = tailnet.node("caller", Owner::User("bob@example.com")).await;
    assert_eq!(interleaved(&server, &[Arc::clone(&caller)], 20, 4).await, 0);

    let ip = running(&*server).await.addresses[0];
    let mut listener = server.listen(ListenAddr::Port(80)).await.unwrap();
    let addr = format!("{ip}:80");
    let (dialled, accepted) = tokio::join!(caller.dial(&addr, PATIENCE), listener.accept());
    let _open = (dialled.unwrap(), accepted.unwrap());
    // Connected but never accepted.
    let _waiting = caller.dial(&addr, PATIENCE).await.unwrap();
    let accepting = tokio::spawn(async move {
        let _first = listener.accept().await;
        listener.accept().await.map(drop)
    });
    let dialling = {
        let server = Arc::clone(&server);
        tokio::spawn(async move { server.dial("100.64.0.99:1", PATIENCE).await.map(drop) })
    };
    tokio::time::sleep(Duration::from_millis(50)).await;
    let began = Instant::now();
    tailnet.end().await;
    eprintln!("two busy nodes closed in {:?}", began.elapsed());
    assert!(matches!(accepting.await.unwrap(), Err(Error::Closed)));
    assert!(dialling.await.unwrap().is_err());
}

#[test]
fn closing_gives_everything_back() {
    alone(async {
        life().await;
        let before = Resources::back_to(
            Resources {
                goroutines: 200,
                ..Resources::now().await
            },
            PATIENCE,
        )
        .await;
        assert_eq!((before.nodes, before.conns), (0, 0));
        for _ in 0..5 {
            life().await;
            Resources::back_to(before, PATIENCE).await;
        }
    });
}

/// In each state of joining, by closing and by dropping.
#[test]
fn ending_while_joining_gives_everything_back() {
    alone(async {
        let mut before = None;
        for _ in 0..3 {
            for (require_auth, mode) in [
                (true, "ok"),
                (false, "hold"),
                (false, "down"),
                (false, "ok"),
            ] {
                let devnet = Devnet::start();
                devnet
                    .configure(serde_json::json!({ "require_auth": require_auth }))
                    .await;
                devnet.control(serde_json::json!({ "mode": mode })).await;
                let state = tempfile::tempdir().unwrap();
                for (close, wait) in [(true, 0), (false, 0), (true, 100), (false, 100)] {
                    let node = EmbeddedNode::start(&config(&devnet, state.path(), "joining", ""))
                        .await
                        .unwrap();
                    tokio::time::sleep(Duration::from_millis(wait)).await;
                    if close {
                        node.close().await;
                    }
                }
                // Dropped while it starts.
                let config = config(&devnet, state.path(), "joining", "");
                let start = EmbeddedNode::start(&config);
                // The start may be faster than that; then a running node is dropped.
                let _ = tokio::time::timeout(Duration::from_millis(1), start).await;
            }
            match before {
                // Dropped nodes close by themselves.
                None => {
                    let stopped = Resources {
                        goroutines: 60,
                        nodes: 0,
                        ..Resources::now().await
                    };
                    before = Some(Resources::back_to(stopped, PATIENCE).await);
                }
                Some(before) => {
                    Resources::back_to(before, PATIENCE).await;
                }
            }
        }
    });
}

#[test]
fn refused_settings_and_failed_starts_give_everything_back() {
    alone(async {
        let tailnet = DevnetTailnet::new();
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut before = None;
        for round in 0..30 {
            let mut refused = tailnet.config("refused", "");
            refused.hostname = "a\0b".into();
            assert!(matches!(
                EmbeddedNode::start(&refused).await,
                Err(Error::Invalid(_))
            ));
            let mut failing = tailnet.config("failing", "");
            failing.dir = file.path().join("below-a-file");
            assert!(EmbeddedNode::start(&failing).await.is_err());
            if round == 4 {
                tokio::time::sleep(Duration::from_millis(500)).await;
                before = Some(Resources::now().await);
            }
        }
        Resources::back_to(before.unwrap(), PATIENCE).await;
    });
}

/// The runtime ends before the last handle: no panic, and the node is closed nevertheless.
#[test]
fn a_node_may_outlive_its_runtime() {
    alone(async {
        let devnet = Devnet::start();
        let state = tempfile::tempdir().unwrap();
        let config = config(&devnet, state.path(), "orphan", "");
        let node = tokio::task::spawn_blocking(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(EmbeddedNode::start(&config)).unwrap()
        })
        .await
        .unwrap();
        assert_eq!(tailbone::tailnet::runtime_stats().await.unwrap().nodes, 1);
        drop(node);
        let stopped = Resources {
            goroutines: 60,
            nodes: 0,
            ..Resources::now().await
        };
        Resources::back_to(stopped, PATIENCE).await;
    });
}

#[test]
fn the_generation_stands_still_after_closing() {
    alone(async {
        let tailnet = DevnetTailnet::new();
        let node = tailnet
            .node("still", Owner::User("alice@example.com"))
            .await;
        node.close().await;
        let after = node.generation();
        // The tailnet keeps changing.
        let other = tailnet.node("other", Owner::User("bob@example.com")).await;
        tailnet
            .set_tags(&*running(&*other).await, &["tag:changed"])
            .await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(node.generation(), after);
        tailnet.end().await;
    });
}
