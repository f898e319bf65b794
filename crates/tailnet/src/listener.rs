//! Accepts connections from the tailnet, each with its peer.
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
    fmt, io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use axum::{extract::connect_info::Connected, serve::IncomingStream};
use tokio_util::sync::CancellationToken;

use super::{
    Error, Stream,
    fake::FakeListener,
    wire::{Arrival, Broken, Channel},
};

const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// What to listen on. Never a host address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListenAddr {
    /// A port on every tailnet address of the node.
    Port(u16),
    /// A port on one tailnet address.
    Addr(IpAddr, u16),
}

impl ListenAddr {
    pub fn port(self) -> u16 {
        match self {
            Self::Port(port) | Self::Addr(_, port) => port,
        }
    }
}

/// As Go reads it: `:80`, `100.64.0.1:80`, `[fd7a::1]:80`.
impl fmt::Display for ListenAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Port(port) => write!(f, ":{port}"),
            Self::Addr(ip, port) => SocketAddr::new(ip, port).fmt(f),
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
    source: Source,
    addr: ListenAddr,
    /// Cancelled when the node is closed.
    ended: CancellationToken,
    pause: Duration,
    /// The last failure that looked as if it would pass. If the listener then ends, this is the
    /// reason.
    failure: Option<Error>,
}

#[derive(Debug)]
pub(super) enum Source {
    Embedded {
        channel: Channel,
        node: Arc<super::embedded::Inner>,
    },
    Fake(FakeListener),
    Dead,
}

/// Outcome of one attempt to accept.
enum Next {
    Connection(Stream, Peer),
    /// The connection ended before it was accepted.
    Ended,
    /// No connection this time, but the next attempt may succeed.
    Passing(Error),
    End(Error),
}

impl Listener {
    pub(super) fn new(source: Source, addr: ListenAddr, ended: CancellationToken) -> Self {
        Self {
            source,
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
            let next = tokio::select! {
                biased;
                () = self.ended.cancelled() => Next::End(Error::Closed),
                next = self.source.next() => next,
            };
            match next {
                Next::Connection(stream, peer) => {
                    self.pause = FIRST_PAUSE;
                    self.failure = None;
                    return Ok((stream, peer));
                }
                Next::Ended => {}
                Next::End(error) => {
                    self.source = Source::Dead;
                    return Err(self.failure.take().unwrap_or(error));
                }
                Next::Passing(error) => {
                    tracing::warn!(%error, addr = %self.addr, pause = ?self.pause, "accept failed, trying again");
                    self.failure = Some(error);
                    let pause = self.pause;
                    self.pause = (pause * 2).min(LONGEST_PAUSE);
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
        match &self.source {
            Source::Embedded { channel, .. } => channel.say_last(),
            Source::Fake(_) | Source::Dead => false,
        }
    }

    pub fn local_addr(&self) -> ListenAddr {
        self.addr
    }
}

impl Source {
    async fn next(&mut self) -> Next {
        match self {
            Self::Dead => Next::End(Error::Closed),
            Self::Embedded { channel, node } => match channel.connection().await {
                Ok(Some(Arrival::Accepted {
                    stream: Some(stream),
                    peer,
                })) => Next::Connection(Stream::direct(stream, Arc::clone(node) as _), peer),
                Ok(Some(Arrival::Accepted { stream: None, .. })) => Next::Ended,
                Ok(Some(Arrival::Dialled { .. })) => {
                    Next::End(Error::Internal("a listener told of a dial".into()))
                }
                // Go reports what went wrong. If it was the end, Go closes the channel next.
                Ok(Some(Arrival::Failure(error))) => Next::Passing(error),
                Ok(None) => Next::End(Error::Closed),
                Err(lost @ Broken::Lost) => Next::Passing(lost.into()),
                Err(broken) => Next::End(broken.into()),
            },
            Self::Fake(listener) => match listener.accept().await {
                Ok((stream, peer)) => Next::Connection(stream, peer),
                Err(error) => Next::Passing(error),
            },
        }
    }
}

/// For `axum::serve`. A listener that has ended logs it once and then never returns. A caller that
/// must act on the end calls [`Listener::accept`] itself.
impl axum::serve::Listener for Listener {
    type Io = Stream;
    type Addr = Peer;

    async fn accept(&mut self) -> (Stream, Peer) {
        match Self::accept(self).await {
            Ok(connection) => connection,
            Err(error) => {
                if !matches!(error, Error::Closed) {
                    tracing::error!(%error, addr = %self.addr, "listener ended");
                }
                std::future::pending().await
            }
        }
    }

    /// A listener has no peer: both addresses are our own.
    fn local_addr(&self) -> io::Result<Peer> {
        let own = match self.addr {
            ListenAddr::Port(port) => SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port),
            ListenAddr::Addr(ip, port) => SocketAddr::new(ip, port),
        };
        Ok(Peer {
            addr: own,
            local: own,
            via: Via::Tailnet,
        })
    }
}

/// Makes `ConnectInfo<Peer>` work in handlers.
impl Connected<IncomingStream<'_, Listener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Listener>) -> Self {
        *stream.remote_addr()
    }
}
