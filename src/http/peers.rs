//! What one peer may take of a listener: connections at once, and requests over time.
//!
//! Invariants
//! - A peer is an address; all its connections share one account, which outlives them until it is as good as new.
//! - Accounts cost bounded memory: those that are as good as new are swept out whenever their number has doubled.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use super::pace::Bucket;

/// Fewer accounts than this are not worth sweeping.
const SWEEP: usize = 1024;

#[derive(Debug, Default)]
pub(super) struct Peers(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    accounts: HashMap<IpAddr, Arc<Account>>,
    sweep_at: usize,
}

/// One peer's.
#[derive(Debug, Default)]
pub(super) struct Account {
    connections: AtomicUsize,
    bucket: Bucket,
}

impl Peers {
    /// One more connection of `peer`, unless it has `most` already.
    pub(super) fn connect(&self, peer: IpAddr, most: usize, now: Instant) -> Option<Held> {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if table.accounts.len() >= table.sweep_at.max(SWEEP) {
            table.accounts.retain(|_, account| !account.as_new(now));
            table.sweep_at = table.accounts.len() * 2;
        }
        let account = table.accounts.entry(peer.to_canonical()).or_default();
        // Counted up under the lock alone, so the bound holds.
        if account.connections.load(Ordering::Acquire) >= most {
            return None;
        }
        account.connections.fetch_add(1, Ordering::AcqRel);
        Some(Held(account.clone()))
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.0.lock().unwrap().accounts.len()
    }
}

/// A connection that counts, until dropped.
#[derive(Debug)]
pub(super) struct Held(Arc<Account>);

impl Held {
    pub(super) fn account(&self) -> Arc<Account> {
        self.0.clone()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Account {
    pub(super) fn bucket(&self) -> &Bucket {
        &self.bucket
    }

    fn as_new(&self, now: Instant) -> bool {
        self.connections.load(Ordering::Acquire) == 0 && self.bucket.as_new(now)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn ip(last: u32) -> IpAddr {
        std::net::Ipv4Addr::from(0x6440_0000 + last).into()
    }

    #[test]
    fn connections_are_counted_per_peer_and_given_back() {
        let peers = Peers::default();
        let now = Instant::now();
        let first = peers.connect(ip(1), 2, now).unwrap();
        let _second = peers.connect(ip(1), 2, now).unwrap();
        assert!(peers.connect(ip(1), 2, now).is_none());
        assert!(peers.connect(ip(2), 2, now).is_some());
        drop(first);
        assert!(peers.connect(ip(1), 2, now).is_some());
    }

    #[test]
    fn a_reconnect_does_not_refill_the_bucket() {
        let peers = Peers::default();
        let now = Instant::now();
        for _ in 0..3 {
            let held = peers.connect(ip(1), 1, now).unwrap();
            held.account().bucket().take(1, 3, now).unwrap();
        }
        let held = peers.connect(ip(1), 1, now).unwrap();
        assert!(held.account().bucket().take(1, 3, now).is_err());
    }

    #[test]
    fn accounts_of_peers_that_left_do_not_pile_up() {
        let peers = Peers::default();
        let now = Instant::now();
        let stays = peers.connect(ip(0), 1, now).unwrap();
        for peer in 1..100_000 {
            let at = now + Duration::from_millis(peer.into());
            let held = peers.connect(ip(peer), 1, at).unwrap();
            held.account().bucket().take(10, 10, at).unwrap();
        }
        assert!(peers.len() <= 2 * SWEEP, "{}", peers.len());
        assert!(
            peers.connect(ip(0), 1, now).is_none(),
            "who is there stays counted"
        );
        drop(stays);
    }
}
