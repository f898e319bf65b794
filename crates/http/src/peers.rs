//! What one peer may use of a listener: connections at a time, and requests over time.
//!
//! Invariants
//! - A peer is an address, or the network that one host usually has for itself ([`network`]); the
//!   listener decides which. All connections of a peer share one account, which outlives them until
//!   it is idle (`accounts.rs`).

use std::{
    net::{IpAddr, Ipv6Addr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use parking_lot::Mutex;

use super::{accounts::Accounts, rate_limit::TokenBucket};

/// The network that one host outside of a tailnet can choose its addresses from: an IPv6 host
/// commonly has a /64 for itself. A tailnet node has one address that it cannot choose.
pub fn network(addr: IpAddr) -> IpAddr {
    match addr.to_canonical() {
        IpAddr::V6(addr) => Ipv6Addr::from_bits(addr.to_bits() & (u128::MAX << 64)).into(),
        addr @ IpAddr::V4(_) => addr,
    }
}

#[derive(Debug, Default)]
pub(super) struct Peers(Mutex<Accounts<IpAddr, PeerAccount>>);

/// The account of one peer.
#[derive(Debug, Default)]
pub(super) struct PeerAccount {
    connections: AtomicUsize,
    bucket: TokenBucket,
}

impl Peers {
    /// Adds a connection of `peer`, unless it has `most` already.
    pub(super) fn connect(
        &self,
        peer: IpAddr,
        most: usize,
        now: Instant,
    ) -> Option<PeerConnection> {
        let mut accounts = self.0.lock();
        let account = accounts.get_or_insert(peer.to_canonical(), |account| account.is_idle(now));
        // The counter is only increased under the lock, so the bound holds.
        if account.connections.load(Ordering::Acquire) >= most {
            return None;
        }
        account.connections.fetch_add(1, Ordering::AcqRel);
        Some(PeerConnection(account))
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.0.lock().count()
    }
}

/// A counted connection, until dropped.
#[derive(Debug)]
pub(super) struct PeerConnection(Arc<PeerAccount>);

impl PeerConnection {
    pub(super) fn account(&self) -> Arc<PeerAccount> {
        self.0.clone()
    }
}

impl Drop for PeerConnection {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::AcqRel);
    }
}

impl PeerAccount {
    pub(super) fn bucket(&self) -> &TokenBucket {
        &self.bucket
    }

    fn is_idle(&self, now: Instant) -> bool {
        self.connections.load(Ordering::Acquire) == 0 && self.bucket.is_idle(now)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{super::accounts::MIN_SWEEP, *};

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
    fn a_network_is_what_one_host_may_choose_from() {
        for (addr, its) in [
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
            ("2001:db8:1:2::", "2001:db8:1:2::"),
            ("192.0.2.1", "192.0.2.1"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
        ] {
            assert_eq!(
                network(addr.parse().unwrap()),
                its.parse::<IpAddr>().unwrap()
            );
        }
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
        assert!(peers.len() <= 2 * MIN_SWEEP, "{}", peers.len());
        assert!(
            peers.connect(ip(0), 1, now).is_none(),
            "who is there stays counted"
        );
        drop(stays);
    }
}
