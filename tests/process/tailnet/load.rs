//! Many connections.

use std::time::{Duration, Instant};

use super::Held;
use crate::support::{
    node_contract::interleaved,
    world::{EmbeddedWorld, Who, World},
};

alone! {
    /// Opened and closed from several peers, interleaved: each is answered with its own peer's identity, and nothing stays behind.
    async fn ten_thousand_connections() {
        let world = EmbeddedWorld::new();
        let server = world.node("server", Who::User("alice@example.com")).await;
        let callers = [
            world.node("caller-a", Who::User("alice@example.com")).await,
            world.node("caller-b", Who::User("bob@example.com")).await,
            world.node("caller-c", Who::Tag("tag:robot")).await,
        ];
        // Threads and pools that are made once.
        assert_eq!(interleaved(&server, &callers, 1_000, 48).await, 0);
        tokio::time::sleep(Duration::from_millis(500)).await;
        let before = Held::now().await;

        let began = Instant::now();
        let mixed_up = interleaved(&server, &callers, 10_000, 48).await;
        let took = began.elapsed();
        eprintln!("10000 connections, each answered by WhoIs, in {took:?}; {mixed_up} mixed up");
        assert_eq!(mixed_up, 0);
        Held::back_to(before, Duration::from_secs(30)).await;
        world.end().await;
    }
}
