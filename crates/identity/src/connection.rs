//! One connection: its peer, the current identity of that peer, and whether the connection may
//! continue.
//!
//! Invariants
//! - A connection belongs to the node that it began with. If its address passes to another node, it
//!   ends.
//! - It also ends when the tailnet's policy no longer lets the peer connect, with or without a
//!   request in progress.
//! - No identity outlives the key of the peer's node: its expiry is checked at each request.

use std::{
    pin::pin,
    sync::{Arc, OnceLock},
    time::Instant,
};

use ::http::{Extensions, request::Parts};
use axum::extract::FromRequestParts;
use futures_util::future::BoxFuture;
use jiff::Timestamp;

use super::{Caller, Directory, Refusal, Visitor, directory::Entry};
use tailbone_http as http;
use tailbone_http::{error::Kind, serve::Revocable};
use tailbone_tailnet::{Peer, Via};
use tailbone_telemetry::trace;

/// One connection from the tailnet. It is among the extensions of every request; handlers take a
/// [`Caller`] instead.
#[derive(Debug)]
pub struct Connection {
    peer: Peer,
    /// `None` for connections from the internet, which have no identity.
    entry: Option<Arc<Entry>>,
    /// The first identity that was found, which fixes the connection's node.
    pinned: OnceLock<Arc<Visitor>>,
    directory: Directory,
}

impl Connection {
    pub(super) fn new(directory: Directory, peer: Peer) -> Self {
        let entry =
            (peer.via == Via::Tailnet).then(|| directory.entry(peer.addr.ip(), Some(peer.local)));
        let pinned = OnceLock::new();
        if let Some(answer) = entry.as_ref().and_then(|entry| entry.fresh())
            && let Ok(visitor) = &answer.visitor
        {
            let _ = pinned.set(visitor.clone());
        }
        Self {
            peer,
            entry,
            pinned,
            directory,
        }
    }

    /// The connection that a request came over. A listener that is not on the tailnet has none.
    pub fn of(request: &Extensions) -> Result<&Arc<Self>, http::Error> {
        request.get().ok_or_else(|| {
            http::Error::new(
                Kind::Forbidden,
                "no_identity",
                "callers have an identity on the tailnet alone, and this listener is not there",
            )
        })
    }

    pub fn peer(&self) -> Peer {
        self.peer
    }

    /// The current caller. Callers from another tailnet are refused.
    pub async fn caller(&self) -> Result<Caller, Refusal> {
        if self.entry.is_none() {
            trace::caller("funnel");
            return Ok(Caller::Funnel(self.peer.addr));
        }
        self.visitor().await?.caller().cloned()
    }

    /// The current caller, from any tailnet; callers from the internet are refused. While the
    /// network map does not change this needs no WhoIs call.
    pub async fn visitor(&self) -> Result<Arc<Visitor>, Refusal> {
        self.visitor_at(Timestamp::now()).await
    }

    /// The same, at the given time.
    pub async fn visitor_at(&self, now: Timestamp) -> Result<Arc<Visitor>, Refusal> {
        let Some(entry) = &self.entry else {
            return Err(Refusal::Funnel);
        };
        let answer = entry.current(now).await?;
        let visitor = answer.visitor.as_ref().map_err(Refusal::clone)?;
        if self.pinned.get_or_init(|| visitor.clone()).node_id() != visitor.node_id() {
            return Err(Refusal::OtherNode);
        }
        visitor.check_expiry(now)?;
        trace::caller(visitor.kind());
        Ok(visitor.clone())
    }

    /// Counts one request of the caller last found by [`Self::caller`] or [`Self::visitor`]. `Err`
    /// is the answer to a caller that asks too often. To be called once per request, by the code
    /// that asks for its caller.
    pub fn count_request(&self) -> Result<(), http::Error> {
        let answer = self.entry.as_ref().and_then(|entry| entry.last());
        match answer.as_ref().map(|answer| &answer.allowance) {
            Some(Some(allowance)) => allowance.take(Instant::now()),
            _ => Ok(()),
        }
    }

    /// Resolves when the result of [`Self::visitor`] may have changed. Call this first, then ask,
    /// so that no change is missed.
    pub fn changed(&self) -> impl Future<Output = ()> + Send + '_ {
        // Registered here, because the future itself would only do so when first polled.
        let changed = self.entry.as_ref().map(|entry| entry.changed());
        async move {
            match changed {
                Some(changed) => changed.await,
                None => std::future::pending().await,
            }
        }
    }

    /// When the key of the caller's node expires, as far as known.
    pub fn key_expiry(&self) -> Option<Timestamp> {
        let answer = self.entry.as_ref()?.last()?;
        answer.visitor.as_ref().ok()?.key_expiry()
    }

    /// Generation of the network map. Until it changes, the result of [`Self::visitor`] stays the
    /// same, except for keys that expire.
    pub fn generation(&self) -> u64 {
        self.directory.generation()
    }

    /// The reason for which the connection must end, if there is one.
    fn must_end(&self, entry: &Entry) -> Option<Refusal> {
        let answer = entry.last()?;
        match (&answer.visitor, self.pinned.get()) {
            (Err(refusal), _) if refusal.ends_connection() => Some(refusal.clone()),
            (Ok(now), Some(pinned)) if now.node_id() != pinned.node_id() => {
                Some(Refusal::OtherNode)
            }
            _ => None,
        }
    }
}

impl Revocable for Connection {
    fn revoked(&self) -> BoxFuture<'_, &'static str> {
        Box::pin(async move {
            let Some(entry) = &self.entry else {
                return std::future::pending().await;
            };
            loop {
                let mut changed = pin!(entry.changed());
                changed.as_mut().enable();
                if let Some(refusal) = self.must_end(entry) {
                    return refusal.code();
                }
                changed.await;
            }
        })
    }
}

/// Handlers get the caller's identity, never an address or a header. Funnel callers have none, so a
/// route that takes a `Caller` refuses them; a route for the internet takes the [`Connection`].
impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = http::Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        let connection = Connection::of(&parts.extensions)?.clone();
        match connection.caller().await? {
            Caller::Funnel(_) => Err(Refusal::Funnel.into()),
            caller => {
                connection.count_request()?;
                Ok(caller)
            }
        }
    }
}
