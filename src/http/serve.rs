//! Serves a router on a listener until told to stop, then lets open requests finish within a grace time.
//!
//! Invariants
//! - A connection costs bounded memory: header bytes, header time and the number of connections are limited.
//! - A slow peer holds up nobody: each connection is a task of its own, and accepting never waits for one.
//! - After [`Server::stop`] no connection of this listener is left.
//! - A listener that dies ends the server with its error; it is never silently deaf.
//!
//! The tailnet, a unix socket and the tests' TCP are served alike ([`Accept`]). What the routes know of the peer is put into
//! each request's extensions by the caller's `identify`.

use std::{future::Future, io, sync::Arc, time::Duration};

use axum::{Router, body::Body};
use http::{Extensions, Request};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

/// A source of connections. Passing troubles are retried inside; an error means that the listener is dead.
pub trait Accept: Send + 'static {
    type Io: AsyncRead + AsyncWrite + Unpin + Send + 'static;
    type Addr: Send;
    fn accept(&mut self) -> impl Future<Output = io::Result<(Self::Io, Self::Addr)>> + Send;
}

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
        open: GracefulShutdown::new(),
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
    drop(listener);
    let grace = *end.as_ref().unwrap_or(&Duration::ZERO);
    let stopped = connections.end(grace).await;
    end.map(|_| stopped)
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
    open: GracefulShutdown,
    cut: CancellationToken,
}

impl Connections {
    fn spawn<I>(&self, io: I, known: Extensions, router: Router, slot: OwnedSemaphorePermit)
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let service = service_fn(move |request: Request<Incoming>| {
            let mut request = request.map(Body::new);
            request.extensions_mut().extend(known.clone());
            router.clone().oneshot(request)
        });
        let connection = self
            .builder
            .serve_connection_with_upgrades(TokioIo::new(io), service)
            .into_owned();
        let connection = self.open.watch(connection);
        let cut = self.cut.clone();
        tokio::spawn(async move {
            tokio::select! {
                ended = connection => if let Err(error) = ended {
                    tracing::debug!(target: "server", error, "connection ended early");
                },
                () = cut.cancelled() => {}
            }
            drop(slot);
        });
    }

    async fn end(self, grace: Duration) -> Stopped {
        let drained = tokio::time::timeout(grace, self.open.shutdown())
            .await
            .is_ok();
        self.cut.cancel();
        if drained {
            Stopped::Drained
        } else {
            Stopped::Cut
        }
    }
}
