//! Accepts connections from the tailnet, or from the internet through Funnel, each with its peer.
//!
//! Invariants
//! - [`Listener::accept`] fails only when no further connection can ever come. A passing failure of
//!   the node is logged and retried inside, with a growing pause.
//! - A connection that its peer reset before it was accepted is skipped without a pause or a log
//!   line. It is no failure of the node and must not delay the connections behind it.
//! - Dropping a listener frees its port; closing the node ends it.
//! - After [`Listener::refuse`] new connections are reset; `accept` still returns those already
//!   established, then ends.
//! - The node lives at least as long as its listeners, unless it is closed.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use futures_util::future::BoxFuture;
use tokio_util::sync::CancellationToken;

use super::{Error, Stream};

const FIRST_PAUSE: Duration = Duration::from_millis(5);
const MAX_PAUSE: Duration = Duration::from_secs(1);

/// What to listen on. Never a host address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListenAddr {
    /// A port on every tailnet address of the node.
    Port(u16),
    /// A port on one tailnet address.
    Addr(IpAddr, u16),
    /// A port of the node's name on the internet: 443, 8443 or 10000. Connections are as callers
    /// send them, so with TLS.
    Funnel(u16),
}

impl ListenAddr {
    pub fn port(self) -> u16 {
        match self {
            Self::Port(port) | Self::Addr(_, port) | Self::Funnel(port) => port,
        }
    }
}

/// Those on the tailnet as Go reads them: `:80`, `100.64.0.1:80`, `[fd7a::1]:80`.
impl fmt::Display for ListenAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Port(port) => write!(f, ":{port}"),
            Self::Addr(ip, port) => SocketAddr::new(ip, port).fmt(f),
            Self::Funnel(port) => write!(f, "port {port} of Funnel"),
        }
    }
}

/// The other end of a connection, as the node reported it together with the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    pub addr: SocketAddr,
    /// The address of this node that the peer called.
    pub local: SocketAddr,
    pub via: Via,
}

/// How a connection came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Via {
    /// Over the tailnet: the address belongs to a node, and WhoIs knows it.
    Tailnet,
    /// Through Funnel: the address is somewhere on the internet, and WhoIs must not be asked.
    Funnel,
}

/// Accepts connections from the tailnet.
#[derive(Debug)]
pub struct Listener {
    /// `None` once the listener has ended.
    source: Option<Box<dyn Source>>,
    addr: ListenAddr,
    /// Cancelled when the node is closed.
    ended: CancellationToken,
    pause: Duration,
    /// The last failure that looked as if it would pass. If the listener then ends, this is the
    /// reason.
    failure: Option<Error>,
}

/// Where a listener's connections come from.
pub(super) trait Source: fmt::Debug + Send + Sync {
    /// One attempt to accept. Dropping the future loses no connection.
    fn next(&mut self) -> BoxFuture<'_, AcceptOutcome>;

    /// As [`Listener::refuse`].
    fn refuse(&self) -> bool {
        false
    }
}

/// Outcome of one attempt to accept.
pub(super) enum AcceptOutcome {
    Connection(Stream, Peer),
    /// The connection ended before it was accepted.
    Ended,
    /// No connection this time, but the next attempt may succeed.
    Retry(Error),
    End(Error),
}

impl Listener {
    pub(super) fn new(
        source: impl Source + 'static,
        addr: ListenAddr,
        ended: CancellationToken,
    ) -> Self {
        Self {
            source: Some(Box::new(source)),
            addr,
            ended,
            pause: FIRST_PAUSE,
            failure: None,
        }
    }

    /// The next connection. An error means that the listener has ended. Dropping the future loses
    /// no connection.
    pub async fn accept(&mut self) -> Result<(Stream, Peer), Error> {
        loop {
            let Some(source) = &mut self.source else {
                return Err(self.failure.take().unwrap_or(Error::Closed));
            };
            let outcome = tokio::select! {
                biased;
                () = self.ended.cancelled() => AcceptOutcome::End(Error::Closed),
                outcome = source.next() => outcome,
            };
            match outcome {
                AcceptOutcome::Connection(stream, peer) => {
                    self.pause = FIRST_PAUSE;
                    self.failure = None;
                    return Ok((stream, peer));
                }
                AcceptOutcome::Ended => {}
                AcceptOutcome::End(error) => {
                    self.source = None;
                    return Err(self.failure.take().unwrap_or(error));
                }
                AcceptOutcome::Retry(error) => {
                    tracing::warn!(%error, addr = %self.addr, pause = ?self.pause, "accept failed, trying again");
                    self.failure = Some(error);
                    let pause = self.pause;
                    self.pause = (pause * 2).min(MAX_PAUSE);
                    tokio::select! {
                        () = self.ended.cancelled() => {}
                        () = tokio::time::sleep(pause) => {}
                    }
                }
            }
        }
    }

    /// Refuses new connections. Returns true if established connections can still be accepted until
    /// `accept` fails. False if this listener cannot tell the two apart: the caller should drop it.
    pub fn refuse(&mut self) -> bool {
        self.source.as_ref().is_some_and(|source| source.refuse())
    }

    pub fn local_addr(&self) -> ListenAddr {
        self.addr
    }
}
