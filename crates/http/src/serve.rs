//! Serves a router on a listener until told to stop, then lets open requests finish within a grace
//! time.
//!
//! Invariants
//! - A connection costs bounded memory: its header bytes, its times, and the number of connections,
//!   in all and per peer, are limited.
//! - Limits may change while the server runs; a connection keeps the timeouts that it began with.
//! - A slow peer delays nobody: each connection is a task of its own, and accepting never waits for
//!   one.
//! - A stop cuts off no request within the grace time. That includes connections that are
//!   established but not accepted yet, and those that have not sent their first request yet.
//! - After [`Server::stop`] no connection of this listener is left.
//! - A connection that its peer is no longer allowed to have ([`Revocable`]) ends at once, with
//!   whatever it carries.
//! - A listener that fails ends the server with its error; the server never stops accepting
//!   silently.
//!
//! The tailnet, unix sockets and the tests' TCP listeners are served alike ([`Accept`]). The
//! caller's `identify` puts what the routes know about the peer into each request's extensions.

use std::{
    convert::Infallible,
    future::Future,
    io,
    net::IpAddr,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Waker},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use axum::{Router, body::Body};
use futures_util::future::BoxFuture;
use http::{Extensions, Request, StatusCode, Version};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use parking_lot::RwLock;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{Notify, oneshot},
    task::JoinHandle,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt;

use super::{
    certificate::CertificateSource,
    peers::{PeerAccount, PeerConnection, Peers},
    timeouts::{AnswerBody, ConnectionRequests, TimedStream, Timeouts},
};

pub use super::peers::network;

/// A source of connections. It retries temporary failures itself; an error means that the listener
/// has failed for good.
pub trait Accept: Send + 'static {
    type Io: AsyncRead + AsyncWrite + Unpin + Send + 'static;
    type Addr: Send + 'static;
    fn accept(&mut self) -> impl Future<Output = io::Result<(Self::Io, Self::Addr)>> + Send;

    /// The peer that a connection is counted for: an address, or one that stands for a network.
    /// `None`: this listener cannot tell peers apart.
    fn peer(_: &Self::Addr) -> Option<IpAddr> {
        None
    }

    /// How another thread may poll a connection too, if one may.
    fn poll_in_place(_: &Self::Io) -> Option<PollInPlace> {
        None
    }

    /// Refuses new connections. Returns true if established connections can still be accepted until
    /// `accept` fails.
    fn refuse(&mut self) -> bool {
        false
    }
}

/// Wraps a connection's future so that another thread may poll it too.
pub type PollInPlace = Box<dyn FnOnce(BoxFuture<'static, ()>) -> BoxFuture<'static, ()> + Send>;

/// A connection's right to exist, where it can lose it. `identify` adds it to the extensions, as
/// `Arc<dyn Revocable>`.
pub trait Revocable: Send + Sync + 'static {
    /// Resolves to the reason when the connection must end.
    fn revoked(&self) -> BoxFuture<'_, &'static str>;
}

/// How long a connection may take after a stop to send its first request. A peer that connected
/// just before needs about one round trip; a peer that sends nothing is not waited for.
const FIRST_REQUEST: Duration = Duration::from_secs(1);

/// One peer may have at most this fraction (one fourth) of a listener's connections.
const MAX_PEER_SHARE: usize = 4;

/// The limits of a listener and its connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Open connections; more wait in the listener's queue.
    pub connections: usize,
    /// Open connections of one peer; more get 503 and are closed. [`Limits::share`] may lower it.
    pub connections_per_peer: usize,
    /// Requests being handled at a time, over all connections; more get 503.
    pub requests: usize,
    /// Requests per second of one peer in the long run; 0 is no limit.
    pub request_rate: u32,
    /// Requests of one peer at once before the rate applies.
    pub request_burst: u32,
    /// Requests per second of one caller over all of its nodes; 0 is no limit. The default is
    /// higher than that of one peer, because one person may have several busy nodes.
    pub caller_rate: u32,
    /// Requests of one caller at once before the rate applies.
    pub caller_burst: u32,
    /// Size of a request's head.
    pub header_bytes: usize,
    /// Size of a body that is read as a whole before it is handled.
    pub body_bytes: usize,
    /// For the whole head of a request; on a new connection from its beginning.
    pub header_time: Duration,
    /// The longest silence between two requests.
    pub idle_time: Duration,
    /// For the answer to a request whose body is read as a whole.
    pub request_time: Duration,
    /// The same for gRPC. A change of keys may wait for the key directory's lock and for the place
    /// of publication; this is longer.
    pub call_time: Duration,
    /// The longest that a part of an answer may wait to be read.
    pub write_time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 16_384,
            connections_per_peer: 1024,
            requests: 4096,
            request_rate: 1000,
            request_burst: 5000,
            caller_rate: 2000,
            caller_burst: 10_000,
            header_bytes: 16 << 10,
            body_bytes: 64 << 10,
            header_time: Duration::from_secs(60),
            idle_time: Duration::from_secs(60),
            request_time: Duration::from_secs(30),
            call_time: Duration::from_secs(120),
            write_time: Duration::from_secs(30),
        }
    }
}

impl Limits {
    /// The limit of connections for one peer. It is never all of the listener's: a process with few
    /// file descriptors has few connections.
    pub fn share(&self) -> usize {
        let part = (self.connections / MAX_PEER_SHARE).max(1);
        self.connections_per_peer.min(part)
    }
}

/// Limits that may change while they apply. Clones share one value.
#[derive(Debug, Clone)]
pub struct LiveLimits(Arc<ArcSwap<Limits>>);

impl From<Limits> for LiveLimits {
    fn from(limits: Limits) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(limits)))
    }
}

impl LiveLimits {
    pub fn now(&self) -> Limits {
        **self.0.load()
    }

    pub fn set(&self, limits: Limits) {
        self.0.store(Arc::new(limits));
    }
}

/// What limits the requests of a connection. It is among their extensions, where [`super::layers`]
/// finds it.
#[derive(Debug, Clone)]
pub(super) struct ConnectionLimits {
    /// `None` where the listener cannot tell peers apart.
    account: Option<Arc<PeerAccount>>,
    limits: LiveLimits,
    load: Load,
}

impl ConnectionLimits {
    pub(super) fn limits(&self) -> Limits {
        self.limits.now()
    }

    /// Counts one request of the peer. `Err` has the time to wait before the next try.
    pub(super) fn check_rate(&self, limits: &Limits, now: Instant) -> Result<(), Duration> {
        match &self.account {
            Some(account) => account
                .bucket()
                .take(limits.request_rate, limits.request_burst, now),
            None => Ok(()),
        }
    }

    /// Counts a request as being handled, if there is room for it.
    pub(super) fn take(&self, limits: &Limits) -> Option<InFlight> {
        let counted = InFlight(self.load.clone());
        let before = self.load.0.in_flight.fetch_add(1, Ordering::AcqRel);
        (before < limits.requests).then_some(counted)
    }
}

/// A request being handled, until dropped.
#[derive(Debug)]
pub(super) struct InFlight(Load);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.0.in_flight.fetch_sub(1, Ordering::AcqRel);
    }
}

/// How busy a server is, for the metrics.
#[derive(Debug, Clone, Default)]
pub struct Load(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    open: AtomicUsize,
    in_flight: AtomicUsize,
    refused: AtomicU64,
    closed: Notify,
}

impl Load {
    /// The number of open connections.
    pub fn open(&self) -> usize {
        self.0.open.load(Ordering::Acquire)
    }

    /// Connections refused since the start because their peer had too many.
    pub fn refused(&self) -> u64 {
        self.0.refused.load(Ordering::Relaxed)
    }

    /// Waits until a connection may be accepted. Only one task per server asks, so the room is
    /// still there when it accepts.
    async fn await_slot(&self, limits: &LiveLimits) {
        loop {
            let closed = self.0.closed.notified();
            if self.open() < limits.now().connections {
                return;
            }
            // Check again after a while even so: the limit may have been raised.
            let _ = tokio::time::timeout(Duration::from_secs(1), closed).await;
        }
    }

    fn take(&self) -> OpenConnection {
        self.0.open.fetch_add(1, Ordering::AcqRel);
        OpenConnection(self.clone())
    }
}

/// The active listeners, for display. Clones share one list.
#[derive(Debug, Clone, Default)]
pub struct Listeners(Arc<RwLock<Vec<Listening>>>);

#[derive(Debug, Clone)]
pub struct Listening {
    pub name: &'static str,
    pub addr: String,
    pub load: Load,
    /// What it shows, if it is one with TLS.
    pub certificate: Option<Arc<dyn CertificateSource>>,
}

impl Listeners {
    pub fn add(&self, listening: Listening) {
        self.0.write().push(listening);
    }

    pub fn all(&self) -> Vec<Listening> {
        self.0.read().clone()
    }
}

/// A counted connection, until dropped.
#[derive(Debug)]
struct OpenConnection(Load);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.0.open.fetch_sub(1, Ordering::AcqRel);
        self.0.0.closed.notify_one();
    }
}

#[derive(Debug)]
pub struct Server {
    name: &'static str,
    load: Load,
    stop: oneshot::Sender<Duration>,
    task: JoinHandle<io::Result<Stopped>>,
}

/// How a server ended that was told to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// Every request was answered.
    Drained,
    /// The grace time ended before all requests did.
    Cut,
}

/// Starts to serve. `identify` makes the extensions that every request of a connection gets.
pub fn serve<L, F>(
    name: &'static str,
    listener: L,
    router: Router,
    limits: impl Into<LiveLimits>,
    identify: F,
) -> Server
where
    L: Accept,
    F: Fn(L::Addr) -> Extensions + Send + Sync + 'static,
{
    let (stop, stopped) = oneshot::channel();
    let load = Load::default();
    let connections = Connections {
        router,
        limits: limits.into(),
        load: load.clone(),
        peers: Arc::default(),
        open: TaskTracker::new(),
        stop: CancellationToken::new(),
        cut: CancellationToken::new(),
    };
    let task = tokio::spawn(accept_loop(listener, connections, identify, stopped));
    Server {
        name,
        load,
        stop,
        task,
    }
}

impl Server {
    pub fn name(&self) -> &'static str {
        self.name
    }

    pub fn load(&self) -> Load {
        self.load.clone()
    }

    /// Waits until the server ends without having been told to, and returns the reason.
    pub async fn failed(&mut self) -> io::Error {
        match (&mut self.task).await {
            Ok(Err(error)) => error,
            Ok(Ok(_)) => io::Error::other("the listener ended"),
            Err(panic) => io::Error::other(panic),
        }
    }

    /// Stops accepting, waits at most `grace` for open requests, then closes all connections.
    pub async fn stop(self, grace: Duration) -> Stopped {
        // Sending only fails if the task has ended already.
        let _ = self.stop.send(grace);
        match self.task.await {
            Ok(Ok(stopped)) => stopped,
            _ => Stopped::Cut,
        }
    }
}

async fn accept_loop<L, F>(
    mut listener: L,
    connections: Connections,
    identify: F,
    mut stopped: oneshot::Receiver<Duration>,
) -> io::Result<Stopped>
where
    L: Accept,
    F: Fn(L::Addr) -> Extensions + Send + Sync + 'static,
{
    let end = loop {
        let accepted = async {
            // Wait for room first: a connection that cannot be served yet is better left with the
            // node.
            connections.load.await_slot(&connections.limits).await;
            listener.accept().await
        };
        tokio::select! {
            grace = &mut stopped => break Ok(grace.unwrap_or_default()),
            accepted = accepted => match accepted {
                Ok((io, addr)) => connections.serve::<L>(io, L::peer(&addr), identify(addr)),
                Err(error) => break Err(error),
            }
        }
    };
    let grace = *end.as_ref().unwrap_or(&Duration::ZERO);
    let drained = tokio::time::timeout(grace, async {
        connections.stop.cancel();
        if end.is_ok() && listener.refuse() {
            // At the limit of connections the rest gets no answer, as it would have got none before
            // the stop.
            while connections.load.open() < connections.limits.now().connections {
                let Ok((io, addr)) = listener.accept().await else {
                    break;
                };
                connections.serve::<L>(io, L::peer(&addr), identify(addr));
            }
        }
        drop(listener);
        connections.open.close();
        connections.open.wait().await;
    })
    .await;
    connections.cut.cancel();
    connections.open.close();
    connections.open.wait().await;
    end.map(|_| match drained {
        Ok(()) => Stopped::Drained,
        Err(_) => Stopped::Cut,
    })
}

fn builder(limits: Limits) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        // `TimedStream` has the timeouts instead: it tells silence from a head that is arriving.
        .header_read_timeout(None)
        .max_buf_size(limits.header_bytes);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(limits.idle_time)
        .max_header_list_size(u32::try_from(limits.header_bytes).unwrap_or(u32::MAX));
    builder
}

/// The peer has as many connections as it may have.
struct PeerFull;

const TURNED_AWAY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\n\
    content-type: application/json\r\ncache-control: no-store\r\ncontent-length: 91\r\n\r\n\
    {\"error\":\"too_many_connections\",\"error_description\":\"one peer may not have that many more\"}";

/// Tries once to send the reason, without waiting: a refused connection costs no task and no
/// memory.
fn turn_away<I: AsyncWrite + Unpin>(mut io: I) {
    let mut cx = Context::from_waker(Waker::noop());
    let _ = Pin::new(&mut io).poll_write(&mut cx, TURNED_AWAY);
    let _ = Pin::new(&mut io).poll_shutdown(&mut cx);
}

struct Connections {
    router: Router,
    limits: LiveLimits,
    load: Load,
    peers: Arc<Peers>,
    open: TaskTracker,
    /// Asks each connection to end after its current request.
    stop: CancellationToken,
    /// Ends all connections at once.
    cut: CancellationToken,
}

impl Connections {
    /// Counts the connection for its peer, where the peer is known.
    fn admit(&self, peer: Option<IpAddr>) -> Result<Option<PeerConnection>, PeerFull> {
        let Some(peer) = peer else {
            return Ok(None);
        };
        let most = self.limits.now().share();
        match self.peers.connect(peer, most, Instant::now()) {
            Some(counted) => Ok(Some(counted)),
            None => {
                // Log refusals 1, 2, 4, 8, …: a flood of connections must not become a flood of log
                // lines.
                let before = self.load.0.refused.fetch_add(1, Ordering::Relaxed);
                if (before + 1).is_power_of_two() {
                    tracing::warn!(target: "server", %peer, most, so_far = before + 1, "connections turned away: a peer has as many as it may have");
                }
                Err(PeerFull)
            }
        }
    }

    /// Serves a connection, unless its peer has too many.
    fn serve<L: Accept>(&self, io: L::Io, peer: Option<IpAddr>, extensions: Extensions) {
        match self.admit(peer) {
            Ok(counted) => self.spawn(
                L::poll_in_place(&io),
                io,
                extensions,
                counted,
                self.load.take(),
            ),
            Err(PeerFull) => turn_away(io),
        }
    }

    fn spawn<I>(
        &self,
        poll_in_place: Option<PollInPlace>,
        io: I,
        mut extensions: Extensions,
        counted: Option<PeerConnection>,
        slot: OpenConnection,
    ) where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        extensions.insert(ConnectionLimits {
            account: counted.as_ref().map(PeerConnection::account),
            limits: self.limits.clone(),
            load: self.load.clone(),
        });
        let revocable = extensions.get::<Arc<dyn Revocable>>().cloned();
        let requests = ConnectionRequests::new(Instant::now().into());
        let router = self.router.clone();
        let service = {
            let requests = requests.clone();
            service_fn(move |request: Request<Incoming>| {
                let open = requests.begin();
                let http2 = request.version() == Version::HTTP_2;
                let mut request = request.map(Body::new);
                request.extensions_mut().extend(extensions.clone());
                let answer = router.clone().oneshot(request);
                let requests = requests.clone();
                async move {
                    let answer = answer.await?;
                    if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
                        requests.mark_upgraded();
                    }
                    Ok::<_, Infallible>(answer.map(|body| AnswerBody::new(body, open, http2)))
                }
            })
        };
        let limits = self.limits.now();
        let timeouts = Timeouts {
            header: limits.header_time,
            idle: limits.idle_time,
            write: limits.write_time,
        };
        let io = TokioIo::new(TimedStream::new(io, timeouts, requests.clone()));
        let connection = builder(limits)
            .serve_connection_with_upgrades(io, service)
            .into_owned();
        let (stop, cut) = (self.stop.clone(), self.cut.clone());
        let serving = async move {
            let mut connection = pin!(connection);
            // hyper's graceful shutdown at once ends a connection from which nothing has been read,
            // though its first request may be on the way.
            let asked_to_stop = async {
                stop.cancelled().await;
                let _ = tokio::time::timeout(FIRST_REQUEST, requests.first_request()).await;
            };
            let revoked = async {
                let why = match &revocable {
                    Some(revocable) => revocable.revoked().await,
                    None => std::future::pending().await,
                };
                tracing::debug!(target: "server", why, "a connection is ended: its peer may no longer have it");
            };
            let mut must_end = pin!(async {
                tokio::select! {
                    () = cut.cancelled() => {}
                    () = revoked => {}
                    () = requests.answer_unread(timeouts.write) => {}
                }
            });
            let ended = tokio::select! {
                ended = connection.as_mut() => ended,
                () = must_end.as_mut() => Ok(()),
                () = asked_to_stop => {
                    connection.as_mut().graceful_shutdown();
                    tokio::select! {
                        ended = connection => ended,
                        () = must_end => Ok(()),
                    }
                }
            };
            if let Err(error) = ended {
                tracing::debug!(target: "server", error, "connection ended early");
            }
            drop((slot, counted));
        };
        match poll_in_place {
            Some(poll_in_place) => self.open.spawn(poll_in_place(Box::pin(serving))),
            None => self.open.spawn(serving),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_peer_may_have_all_connections() {
        for (connections, per_peer, share) in [
            (16_384, 1024, 1024),
            (231, 1024, 57),
            (231, 10, 10),
            (3, 1024, 1),
        ] {
            let limits = Limits {
                connections,
                connections_per_peer: per_peer,
                ..Limits::default()
            };
            assert_eq!(limits.share(), share, "{connections} connections");
        }
    }

    #[test]
    fn the_answer_to_a_refused_connection_is_complete() {
        let text = std::str::from_utf8(TURNED_AWAY).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(
            head.contains(&format!("content-length: {}", body.len())),
            "{}",
            body.len()
        );
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(body["error"], "too_many_connections");
    }
}
