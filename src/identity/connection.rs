//! What is known of one connection: its peer, and who that is for as long as the network map stands still.

use std::{sync::Arc, time::Instant};

use ::http::request::Parts;
use arc_swap::ArcSwapOption;
use axum::extract::FromRequestParts;
use tokio::sync::watch;
use tracing::Instrument;

use super::{
    Caller, Callers, Refusal, Visitor,
    callers::Allowance,
    directory::{ask, running},
};
use crate::{
    http::{self, error::Kind},
    tailnet::{Node, Peer, Status, Via},
    telemetry::{meter::Meter, trace},
};

/// One connection from the tailnet. Part of every request's extensions; handlers take a [`Caller`] instead.
#[derive(Debug)]
pub struct Connection {
    node: Arc<dyn Node>,
    /// The node's picture of itself: looked at for each request.
    status: watch::Receiver<Arc<Status>>,
    peer: Peer,
    known: ArcSwapOption<Known>,
    meter: Meter,
    callers: Option<Callers>,
}

/// An answer and the generation of the network map that it was true in.
#[derive(Debug)]
struct Known {
    generation: u64,
    visitor: Arc<Visitor>,
    allowance: Option<Allowance>,
}

impl Connection {
    pub fn new(node: Arc<dyn Node>, peer: Peer) -> Self {
        Self {
            status: node.watch(),
            node,
            peer,
            known: ArcSwapOption::empty(),
            meter: Meter::default(),
            callers: None,
        }
    }

    /// Counts its questions there.
    #[must_use]
    pub fn counted(mut self, meter: Meter) -> Self {
        self.meter = meter;
        self
    }

    /// Bounds what its caller may ask, together with all their other connections there.
    #[must_use]
    pub fn paced(mut self, callers: Callers) -> Self {
        self.callers = Some(callers);
        self
    }

    pub fn peer(&self) -> Peer {
        self.peer
    }

    /// Who calls, right now. Callers from another tailnet are refused.
    pub async fn caller(&self) -> Result<Caller, Refusal> {
        if self.peer.via == Via::Funnel {
            trace::caller("funnel");
            return Ok(Caller::Funnel(self.peer.addr));
        }
        self.visitor().await?.caller().cloned()
    }

    /// Who calls, right now, from whatever tailnet; callers from the internet are refused. Without a change of the network
    /// map this asks nobody.
    pub async fn visitor(&self) -> Result<Arc<Visitor>, Refusal> {
        if self.peer.via == Via::Funnel {
            return Err(Refusal::Funnel);
        }
        running(&self.status.borrow())?;
        // Read before asking: an answer that is newer than its generation only costs one more question later.
        let generation = self.node.generation();
        if let Some(known) = self
            .known
            .load()
            .as_ref()
            .filter(|known| known.generation == generation)
        {
            self.meter.whois_kept();
            trace::caller(known.visitor.kind());
            return Ok(known.visitor.clone());
        }
        let visitor = ask(self.node.as_ref(), self.peer.addr)
            .instrument(tracing::debug_span!("whois"))
            .await;
        self.meter.whois_asked(visitor.is_ok());
        let visitor = Arc::new(visitor?);
        trace::caller(visitor.kind());
        let allowance = self
            .callers
            .as_ref()
            .and_then(|callers| callers.allowance(&visitor, Instant::now()));
        self.known.store(Some(Arc::new(Known {
            generation,
            visitor: visitor.clone(),
            allowance,
        })));
        Ok(visitor)
    }

    /// One more request of whoever was last found to call ([`Self::caller`], [`Self::visitor`]). `Err` is the answer to a caller
    /// that asks too often. To be called once for each request, by whoever asks for its caller.
    pub fn pace(&self) -> Result<(), http::Error> {
        match self.known.load().as_ref().map(|known| &known.allowance) {
            Some(Some(allowance)) => allowance.take(Instant::now()),
            _ => Ok(()),
        }
    }
}

/// Handlers see who calls, never an address or a header. Funnel callers have no identity, so a route that takes a `Caller`
/// refuses them; one that serves the internet takes the [`Connection`] itself.
impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = http::Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        let Some(connection) = parts.extensions.get::<Arc<Connection>>().cloned() else {
            return Err(http::Error::new(
                Kind::Internal,
                "internal",
                "this listener does not tell who calls",
            ));
        };
        match connection.caller().await? {
            Caller::Funnel(_) => Err(Refusal::Funnel.into()),
            caller => {
                connection.pace()?;
                Ok(caller)
            }
        }
    }
}
