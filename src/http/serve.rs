//! Serves a router on a listener until told to stop, then lets open requests finish within a grace time.
//!
//! Invariants
//! - A connection costs bounded memory: header bytes, header time and the number of connections are limited.
//! - A slow peer holds up nobody: each connection is a task of its own, and accepting never waits for one.
//! - A stop cuts no request within the grace time: also those are answered whose connection stands, but waits to be accepted or
//!   has not carried its first request yet.
//! - After [`Server::stop`] no connection of this listener is left.
//! - A listener that dies ends the server with its error; it is never silently deaf.
//!
//! The tailnet, a unix socket and the tests' TCP are served alike ([`Accept`]). What the routes know of the peer is put into
//! each request's extensions by the caller's `identify`.

use std::{
    future::Future,
    io,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{Router, body::Body};
use http::{Extensions, Request};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot},
    task::JoinHandle,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt;

/// A source of connections. Passing troubles are retried inside; an error means that the listener is dead.
pub trait Accept: Send + 'static {
    type Io: AsyncRead + AsyncWrite + Unpin + Send + 'static;
    type Addr: Send;
    fn accept(&mut self) -> impl Future<Output = io::Result<(Self::Io, Self::Addr)>> + Send;

    /// Refuses what comes from now on. Whether what stands already is still to be had from `accept`, up to an error.
    fn refuse(&mut self) -> bool {
        false
    }
}

/// How long after a stop a connection may take to send its first request. Somebody who connected just before needs about one
/// round trip; who sends nothing is not waited for.
const FIRST_REQUEST: Duration = Duration::from_secs(1);

/// Bounds of a listener's connections.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at once; further ones wait in the listener's queue.
    pub connections: usize,
    /// Bytes of a request's head.
    pub header_bytes: usize,
    /// For the whole head of a request, and so the longest idle time between two.
    pub header_time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 16_384,
            header_bytes: 16 << 10,
            header_time: Duration::from_secs(60),
        }
    }
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    name: &'static str,
    stop: oneshot::Sender<Duration>,
    task: JoinHandle<io::Result<Stopped>>,
}

/// How a server ended that was asked to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// Every request was answered.
    Drained,
    /// The grace time ran out over open requests.
    Cut,
}

/// Starts to serve. `identify` makes the extensions that every request of a connection carries.
pub fn serve<L, F>(
    name: &'static str,
    listener: L,
    router: Router,
    limits: Limits,
    identify: F,
) -> Server
where
    L: Accept,
    F: Fn(L::Addr) -> Extensions + Send + Sync + 'static,
{
    let (stop, stopped) = oneshot::channel();
    let task = tokio::spawn(accept_loop(listener, router, limits, identify, stopped));
    Server { name, stop, task }
}

impl Server {
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Waits until the server has ended without having been asked to, and says why.
    pub async fn failed(&mut self) -> io::Error {
        match (&mut self.task).await {
            Ok(Err(error)) => error,
            Ok(Ok(_)) => io::Error::other("the listener ended"),
            Err(panic) => io::Error::other(panic),
        }
    }

    /// Stops accepting, waits for open requests at most `grace`, then cuts.
    pub async fn stop(self, grace: Duration) -> Stopped {
        // The receiver is gone only when the task has ended already.
        let _ = self.stop.send(grace);
        match self.task.await {
            Ok(Ok(stopped)) => stopped,
            _ => Stopped::Cut,
        }
    }
}

async fn accept_loop<L, F>(
    mut listener: L,
    router: Router,
    limits: Limits,
    identify: F,
    mut stopped: oneshot::Receiver<Duration>,
) -> io::Result<Stopped>
where
    L: Accept,
    F: Fn(L::Addr) -> Extensions + Send + Sync + 'static,
{
    let slots = Arc::new(Semaphore::new(limits.connections));
    let connections = Connections {
        builder: builder(limits),
        open: TaskTracker::new(),
        stop: CancellationToken::new(),
        cut: CancellationToken::new(),
    };
    let end = loop {
        let accepted = async {
            // The slot comes first: a connection that cannot be served yet is better left with the node.
            let slot = slots
                .clone()
                .acquire_owned()
                .await
                .map_err(io::Error::other)?;
            let (io, addr) = listener.accept().await?;
            io::Result::Ok((io, addr, slot))
        };
        tokio::select! {
            grace = &mut stopped => break Ok(grace.unwrap_or_default()),
            accepted = accepted => match accepted {
                Ok((io, addr, slot)) => connections.spawn(io, identify(addr), router.clone(), slot),
                Err(error) => break Err(error),
            }
        }
    };
    let grace = *end.as_ref().unwrap_or(&Duration::ZERO);
    let drained = tokio::time::timeout(grace, async {
        connections.stop.cancel();
        if end.is_ok() && listener.refuse() {
            // Beyond the limit of connections there is no answer to be had, as there was none before.
            while let (Ok((io, addr)), Ok(slot)) =
                (listener.accept().await, slots.clone().try_acquire_owned())
            {
                connections.spawn(io, identify(addr), router.clone(), slot);
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
        .header_read_timeout(limits.header_time)
        .max_buf_size(limits.header_bytes);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(limits.header_time)
        .max_header_list_size(u32::try_from(limits.header_bytes).unwrap_or(u32::MAX));
    builder
}

struct Connections {
    builder: auto::Builder<TokioExecutor>,
    open: TaskTracker,
    /// Asks each connection to end after the request that it is at.
    stop: CancellationToken,
    /// Ends them all.
    cut: CancellationToken,
}

/// Whether a connection has carried a request.
#[derive(Default)]
struct Begun {
    seen: AtomicBool,
    told: Notify,
}

impl Begun {
    fn tell(&self) {
        // Relaxed: nothing but the flag itself is read by it. Looked at first, so that the warm path writes nothing.
        if !self.seen.load(Ordering::Relaxed) {
            self.seen.store(true, Ordering::Relaxed);
            self.told.notify_one();
        }
    }

    async fn wait(&self) {
        if !self.seen.load(Ordering::Relaxed) {
            self.told.notified().await;
        }
    }
}

impl Connections {
    fn spawn<I>(&self, io: I, known: Extensions, router: Router, slot: OwnedSemaphorePermit)
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let begun = Arc::new(Begun::default());
        let service = {
            let begun = Arc::clone(&begun);
            service_fn(move |request: Request<Incoming>| {
                begun.tell();
                let mut request = request.map(Body::new);
                request.extensions_mut().extend(known.clone());
                router.clone().oneshot(request)
            })
        };
        let connection = self
            .builder
            .serve_connection_with_upgrades(TokioIo::new(io), service)
            .into_owned();
        let (stop, cut) = (self.stop.clone(), self.cut.clone());
        self.open.spawn(async move {
            let mut connection = pin!(connection);
            // hyper ends a connection at once on which it has read nothing yet, with its first request maybe under way.
            let asked = async {
                stop.cancelled().await;
                let _ = tokio::time::timeout(FIRST_REQUEST, begun.wait()).await;
            };
            let ended = tokio::select! {
                ended = connection.as_mut() => ended,
                () = cut.cancelled() => Ok(()),
                () = asked => {
                    connection.as_mut().graceful_shutdown();
                    tokio::select! {
                        ended = connection => ended,
                        () = cut.cancelled() => Ok(()),
                    }
                }
            };
            if let Err(error) = ended {
                tracing::debug!(target: "server", error, "connection ended early");
            }
            drop(slot);
        });
    }
}
