//! The identities behind the tailnet's addresses: one table for all connections, and for addresses
//! that a trusted proxy reports.
//!
//! Invariants
//! - An answer is valid for one generation of the network map. The generation is read before the
//!   node is asked: if the answer is newer than that, the only cost is another WhoIs call later.
//! - Concurrent requests for the same address share one WhoIs call.
//! - At a new generation the entries of open connections are refreshed even without a request, so
//!   that those that wait for a change ([`Entry::changed`]) learn of it at once. This takes at most
//!   half of one task's time.
//! - Memory is bounded: an entry without a connection is dropped at the next generation, or earlier
//!   if there are too many.
//! - A failed WhoIs call is not kept.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use ::http::Extensions;
use arc_swap::ArcSwapOption;
use futures_util::{StreamExt, stream};
use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::sync::{Notify, futures::Notified, watch};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::Instrument;

use super::{CallerRates, Connection, Refusal, Visitor, callers::Allowance};
use tailbone_http::serve::Revocable;
use tailbone_tailnet as tailnet;
use tailbone_tailnet::{
    Node, Peer, Status,
    join::{JoinState, classify},
};
use tailbone_telemetry::meter::Meter;

/// The longest time for a WhoIs answer, including the wait for another call about the same address.
const WHOIS_TIMEOUT: Duration = Duration::from_secs(5);
/// The number of entries without a connection that are kept. Few tailnets have more callers, and
/// dropped ones are looked up again.
const MAX_UNUSED: usize = 4096;
/// Concurrent WhoIs calls when the entries are refreshed after a new generation.
const REFRESH_CONCURRENCY: usize = 2;
/// The longest pause after such a refresh.
const MAX_PAUSE: Duration = Duration::from_secs(1);

/// The table. Clones share it.
#[derive(Debug, Clone)]
pub struct Directory(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    shared: Shared,
    entries: Mutex<Entries>,
    /// Ends the task that follows the network map.
    _following: DropGuard,
}

/// What an entry needs to look up its peer.
#[derive(Debug, Clone)]
struct Shared {
    node: Arc<dyn Node>,
    /// The node's own status, checked at each request.
    status: watch::Receiver<Arc<Status>>,
    meter: Meter,
    callers: Option<CallerRates>,
}

#[derive(Debug, Default)]
struct Entries {
    all: HashMap<Key, Arc<Entry>>,
    sweep_at: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    peer: IpAddr,
    /// Our address that the peer is connected to. `None` for an address that a proxy reports, since
    /// that peer is connected to the proxy.
    local: Option<SocketAddr>,
}

/// What is known about one peer at one of our addresses.
#[derive(Debug)]
pub(super) struct Entry {
    key: Key,
    shared: Shared,
    answer: ArcSwapOption<Answer>,
    /// Held by the task whose WhoIs call is running.
    whois_running: tokio::sync::Mutex<()>,
    changed: Notify,
}

/// An answer, and the generation of the network map for which it is valid.
#[derive(Debug)]
pub(super) struct Answer {
    generation: u64,
    pub(super) visitor: Result<Arc<Visitor>, Refusal>,
    pub(super) allowance: Option<Allowance>,
}

impl Directory {
    /// Needs a tokio runtime: a task follows the network map until the last clone and the last
    /// connection are gone.
    pub fn new(node: Arc<dyn Node>) -> Self {
        Self::with(node, Meter::default(), None)
    }

    /// The same, counting WhoIs calls in `meter`, and limiting the rate of each caller over all of
    /// its connections ([`Connection::count_request`]).
    pub fn with(node: Arc<dyn Node>, meter: Meter, callers: Option<CallerRates>) -> Self {
        let status = node.watch();
        let generation = node.generation();
        let ended = CancellationToken::new();
        let inner = Arc::new(Inner {
            shared: Shared {
                node,
                status: status.clone(),
                meter,
                callers,
            },
            entries: Mutex::default(),
            _following: ended.clone().drop_guard(),
        });
        tokio::spawn(follow(Arc::downgrade(&inner), generation, status, ended));
        Self(inner)
    }

    /// A new connection from `peer`.
    pub fn connection(&self, peer: Peer) -> Arc<Connection> {
        Arc::new(Connection::new(self.clone(), peer))
    }

    /// The extensions for the requests of a connection: the connection itself, and its right to
    /// continue.
    pub fn identify(&self, peer: Peer) -> Extensions {
        let connection = self.connection(peer);
        let mut extensions = Extensions::new();
        extensions.insert(Arc::clone(&connection) as Arc<dyn Revocable>);
        extensions.insert(connection);
        extensions
    }

    pub(super) fn generation(&self) -> u64 {
        self.0.shared.node.generation()
    }

    /// Whether this is an address of our own node.
    pub fn is_own(&self, addr: IpAddr) -> bool {
        let addr = addr.to_canonical();
        self.0.shared.status.borrow().addresses.contains(&addr)
    }

    /// The identity behind an address that a trusted proxy reports. On a tailnet the port tells
    /// nothing.
    pub async fn visitor(&self, addr: IpAddr) -> Result<Arc<Visitor>, Refusal> {
        let now = Timestamp::now();
        let answer = self.entry(addr, None).current(now).await?;
        let visitor = answer.visitor.clone()?;
        visitor.check_expiry(now)?;
        Ok(visitor)
    }

    pub(super) fn entry(&self, peer: IpAddr, local: Option<SocketAddr>) -> Arc<Entry> {
        // The network map does not know IPv4 addresses inside IPv6, which a peer may appear with.
        let key = Key {
            peer: peer.to_canonical(),
            local,
        };
        let mut entries = self.0.entries.lock();
        if let Some(entry) = entries.all.get(&key) {
            // This peer has just passed the packet filter. So an answer that it may not connect is
            // outdated, or will come again from a new WhoIs call. The connections that hold the old
            // entry end through it.
            if !entry.ends_connections() {
                return entry.clone();
            }
        }
        entries.make_room();
        let entry = Arc::new(Entry {
            key,
            shared: self.0.shared.clone(),
            answer: ArcSwapOption::empty(),
            whois_running: tokio::sync::Mutex::default(),
            changed: Notify::new(),
        });
        entries.all.insert(key, entry.clone());
        entry
    }

    /// The number of entries.
    #[doc(hidden)]
    pub fn len(&self) -> usize {
        self.0.entries.lock().all.len()
    }

    #[doc(hidden)]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Entries {
    fn make_room(&mut self) {
        if self.all.len() >= self.sweep_at.max(MAX_UNUSED) {
            self.forget_unheld();
            self.sweep_at = self.all.len() * 2;
        }
    }

    /// Keeps entries in use: a second entry for the same key would cost a second WhoIs call.
    fn forget_unheld(&mut self) {
        self.all.retain(|_, entry| Arc::strong_count(entry) > 1);
    }
}

/// Refreshes the entries of open connections whenever the network map has changed.
async fn follow(
    directory: Weak<Inner>,
    mut seen: u64,
    mut status: watch::Receiver<Arc<Status>>,
    ended: CancellationToken,
) {
    let mut again = false;
    loop {
        let Some(inner) = directory.upgrade() else {
            return;
        };
        let generation = inner.shared.node.generation();
        if again || seen != generation {
            seen = generation;
            let began = Instant::now();
            let held: Vec<_> = {
                let mut entries = inner.entries.lock();
                entries.forget_unheld();
                entries.all.values().cloned().collect()
            };
            // If a WhoIs call failed, the next round starts without waiting for a change of the
            // map.
            again = stream::iter(held)
                .map(|entry| async move { entry.current(Timestamp::now()).await.err() })
                .buffer_unordered(REFRESH_CONCURRENCY)
                .any(async |error| matches!(error, Some(Refusal::WhoIsFailed(_))))
                .await;
            drop(inner);
            let pause = if again {
                MAX_PAUSE
            } else {
                began.elapsed().min(MAX_PAUSE)
            };
            tokio::select! {
                () = ended.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            if again {
                continue;
            }
        } else {
            drop(inner);
        }
        tokio::select! {
            () = ended.cancelled() => return,
            changed = status.changed() => if changed.is_err() { return },
        }
    }
}

impl Entry {
    /// The current answer. The node is only asked if the network map has changed since the last
    /// one.
    pub(super) async fn current(&self, now: Timestamp) -> Result<Arc<Answer>, Refusal> {
        check_own_node(&self.shared.status.borrow(), now)?;
        if let Some(answer) = self.fresh() {
            self.shared.meter.whois_kept();
            return Ok(answer);
        }
        let asked = async {
            let _turn = self.whois_running.lock().await;
            match self.fresh() {
                Some(answer) => {
                    self.shared.meter.whois_kept();
                    Ok(answer)
                }
                None => self.ask_node().await,
            }
        };
        tokio::time::timeout(WHOIS_TIMEOUT, asked)
            .await
            .unwrap_or_else(|_| {
                let words = format!("no answer within {WHOIS_TIMEOUT:?}");
                Err(whois_failed(tailnet::Error::Timeout(words)))
            })
            .inspect_err(|_| self.shared.meter.whois_asked(false))
    }

    /// The last answer, valid or not.
    pub(super) fn last(&self) -> Option<Arc<Answer>> {
        self.answer.load_full()
    }

    fn ends_connections(&self) -> bool {
        let answer = self.answer.load();
        let answer = answer.as_ref().map(|answer| &answer.visitor);
        matches!(answer, Some(Err(refusal)) if refusal.ends_connection())
    }

    /// The last answer, if it is valid for the current generation.
    pub(super) fn fresh(&self) -> Option<Arc<Answer>> {
        let generation = self.shared.node.generation();
        self.last().filter(|answer| answer.generation == generation)
    }

    /// Resolves when an answer arrives that differs from the one before. Call this before reading
    /// the answer, so that no change is missed.
    pub(super) fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }

    async fn ask_node(&self) -> Result<Arc<Answer>, Refusal> {
        let Shared {
            node,
            status,
            meter,
            callers,
        } = &self.shared;
        let generation = node.generation();
        let peer = SocketAddr::new(self.key.peer, 0);
        let question = match self.key.local {
            Some(local) => node.whois_at(peer, local),
            None => node.whois(peer),
        };
        let visitor = match question.instrument(tracing::debug_span!("whois")).await {
            Ok(whois) => {
                let own = status.borrow().tailnet.clone();
                Visitor::from_whois(whois, &own).map(Arc::new)
            }
            Err(tailnet::Error::NotFound) => Err(Refusal::UnknownPeer),
            Err(tailnet::Error::Forbidden(_)) => Err(Refusal::NoNetworkAccess),
            Err(error) => return Err(whois_failed(error)),
        };
        let allowance = match (&visitor, callers) {
            (Ok(visitor), Some(callers)) => callers.allowance(visitor, Instant::now()),
            _ => None,
        };
        meter.whois_asked(visitor.is_ok());
        let answer = Arc::new(Answer {
            generation,
            visitor,
            allowance,
        });
        let before = self.answer.swap(Some(answer.clone()));
        if before.is_none_or(|before| !before.has_same_visitor(&answer)) {
            self.changed.notify_waiters();
        }
        Ok(answer)
    }
}

impl Answer {
    fn has_same_visitor(&self, other: &Self) -> bool {
        match (&self.visitor, &other.visitor) {
            (Ok(one), Ok(other)) => one == other,
            (Err(one), Err(other)) => one.code() == other.code(),
            _ => false,
        }
    }
}

fn whois_failed(error: tailnet::Error) -> Refusal {
    Refusal::WhoIsFailed(Arc::new(error))
}

/// Whether our node's answers about others can be trusted: it is on the tailnet, its key is valid,
/// and the control server knows it. Checked at each request, since the network map does not change
/// when our own node loses its place in it.
fn check_own_node(status: &Status, now: Timestamp) -> Result<(), Refusal> {
    match classify(status, false, now) {
        JoinState::Running => Ok(()),
        state => Err(Refusal::NotRunning {
            state: state.code(),
        }),
    }
}
