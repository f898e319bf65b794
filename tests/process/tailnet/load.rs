//! Many connections.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tailbone::tailnet::ListenAddr;
use testkit::{
    node_contract::interleaved,
    soon,
    tailnet::{DevnetTailnet, Owner, Tailnet, running},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::Resources;
use crate::alone;

/// Connections are opened and closed from several peers, interleaved, while the identity of one
/// peer changes: each is answered with its own peer's identity, and nothing stays behind.
#[test]
fn ten_thousand_connections_are_never_mixed_up_and_leave_nothing_behind() {
    alone(async {
        let tailnet = DevnetTailnet::new();
        let server = tailnet
            .node("server", Owner::User("alice@example.com"))
            .await;
        let callers = [
            tailnet
                .node("caller-a", Owner::User("alice@example.com"))
                .await,
            tailnet
                .node("caller-b", Owner::User("bob@example.com"))
                .await,
            tailnet.node("caller-c", Owner::Tag("tag:robot")).await,
        ];
        let bob = running(&*callers[1]).await;
        let while_bob_is_renamed = async |count| {
            let renaming = async {
                for number in 0.. {
                    tailnet
                        .rename_login(&bob, &format!("bob-{number}@example.com"))
                        .await;
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            tokio::select! {
                mixed_up = interleaved(&server, &callers, count, 48) => mixed_up,
                () = renaming => unreachable!(),
            }
        };
        // Creates threads and pools that are created once.
        assert_eq!(while_bob_is_renamed(1_000).await, 0);
        tokio::time::sleep(Duration::from_millis(500)).await;
        let before = Resources::now().await;

        let began = Instant::now();
        let mixed_up = while_bob_is_renamed(10_000).await;
        let took = began.elapsed();
        eprintln!(
            "10000 connections, each answered with its identity, in {took:?}; {mixed_up} mixed up"
        );
        assert_eq!(mixed_up, 0);
        Resources::back_to(before, Duration::from_secs(30)).await;
        tailnet.end().await;
    });
}

/// A server that closes first keeps each pair of ports reserved for a while. Callers choose
/// ports at random, so among 3000 connections some use such a pair again, and must not notice.
#[test]
fn a_server_that_closes_first_answers_everybody() {
    alone(async {
        let tailnet = DevnetTailnet::new();
        let server = tailnet
            .node("server", Owner::User("alice@example.com"))
            .await;
        let caller = tailnet.node("caller", Owner::User("bob@example.com")).await;
        let addr = format!("{}:80", running(&*server).await.addresses[0]);
        let mut listener = server.listen(ListenAddr::Port(80)).await.unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    stream.write_all(b"bye").await.unwrap();
                    stream.shutdown().await.unwrap();
                    let _ = stream.read_to_end(&mut Vec::new()).await;
                });
            }
        });
        let slowest = join_all((0..16).map(|_| async {
            let mut slowest = Duration::ZERO;
            for _ in 0..3_000 / 16 {
                let began = Instant::now();
                let mut said = Vec::new();
                let mut stream = soon("dial", caller.dial(&addr, Duration::from_secs(30)))
                    .await
                    .unwrap();
                soon("an answer", stream.read_to_end(&mut said))
                    .await
                    .unwrap();
                assert_eq!(said, b"bye");
                slowest = slowest.max(began.elapsed());
            }
            slowest
        }))
        .await;
        eprintln!(
            "the slowest of 3000 took {:?}",
            slowest.iter().max().unwrap()
        );
        tailnet.end().await;
    });
}
