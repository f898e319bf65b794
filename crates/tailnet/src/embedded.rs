//! The real node: tsnet inside this process.
//!
//! Invariants
//! - Every wait on the Go side is a descriptor of ours ([`Channel`]); dropping it cancels the wait.
//! - Closing first ends all our own waits, at once and whatever Go does. Then Go closes the node on
//!   a call thread, for which we wait [`CLOSE_WITHIN`] at most. It happens once; every caller waits
//!   for the same close.
//! - The last owner of [`Inner`] (node, listener or stream) closes the node without waiting.
//! - A node that is closed, or whose state we can no longer watch, is never `Running`.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::future::BoxFuture;
use jiff::SignedDuration;
use rustix::pipe::{PipeFlags, pipe_with};
use serde::Deserialize;
use tokio::{net::unix::pipe, sync::watch};
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use super::{
    BackendState, CertificateError, CertificatePair, CertificateRefusal, Config, Error, ListenAddr,
    Listener, Node, Status, Stream, WhoIs,
    calls::{QUICK, SLOW},
    certificate,
    ffi::{self, Handle},
    id_token,
    listener::{AcceptOutcome, Source},
    log,
    wire::{Channel, ChannelError, ConnectionMessage},
};

/// The longest that [`Node::close`] takes. Go's own limit is 5.5 s.
pub const CLOSE_WITHIN: Duration = Duration::from_secs(6);

/// Buffer for one status of the node, in bytes. Larger than the kernel's default limit for a
/// message, so every state fits.
const STATUS_BUFFER: usize = 256 * 1024;

/// How much longer than Go we wait for the outcome of a dial.
const DIAL_MARGIN: Duration = Duration::from_secs(2);

/// How long we wait for a certificate. Go's own limit for an order is 5 minutes.
const CERTIFICATE_TIMEOUT: Duration = Duration::from_secs(6 * 60);

/// A tsnet node in this process.
#[derive(Debug)]
pub struct EmbeddedNode(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    handle: Arc<Handle>,
    generation: Arc<AtomicU64>,
    status: Arc<watch::Sender<Arc<Status>>>,
    /// Cancelled when closing begins.
    ended: CancellationToken,
    closing: AtomicBool,
    /// Whether Go has finished closing.
    closed: watch::Sender<bool>,
}

impl EmbeddedNode {
    /// Makes a node and starts it. It has not joined yet when this returns: follow [`Node::watch`],
    /// or use `join`.
    ///
    /// A failure is final for this node; a new one may use the same state directory.
    pub async fn start(config: &Config) -> Result<Self, Error> {
        let id_tokens = match &config.audience {
            Some(audience) => Some(id_token::offer(audience)?),
            None => None,
        };
        let settings = config.json(id_tokens.as_ref().map(AsFd::as_fd))?;
        let (log_end, log_start) = pipe_with(PipeFlags::CLOEXEC).map_err(io::Error::from)?;
        let log_end = log_receiver(log_end)?;
        let generation = Arc::new(AtomicU64::new(0));

        let counter = Arc::clone(&generation);
        // If a later step fails or the caller gives up waiting, dropping the node closes it.
        let opened = SLOW.run(move || {
            ffi::set_callbacks()?;
            let handle = Handle::open(&settings, Arc::clone(&counter), Some(log_start))?;
            drop(id_tokens); // Go has its own descriptor of the socket.
            let inner = Inner::new(handle, counter);
            inner.handle.start()?;
            let statuses = inner.handle.watch()?;
            Ok((inner, statuses))
        });
        tokio::spawn(log::pump(log_end, config.hostname.clone()));
        let (inner, statuses) = opened.await?;

        tokio::spawn(follow(
            Channel::new(statuses)?,
            Arc::clone(&inner.status),
            inner.ended.clone(),
        ));
        Ok(Self(Arc::new(inner)))
    }

    /// The node's own state together with its peers, as JSON for people (`status`, `bugreport`).
    pub async fn status_with_peers(&self) -> Result<serde_json::Value, Error> {
        let handle = self.0.handle()?;
        QUICK.run(move || decode(&handle.status()?, "status")).await
    }
}

impl Node for EmbeddedNode {
    fn generation(&self) -> u64 {
        self.0.generation.load(Ordering::Acquire)
    }

    fn watch(&self) -> watch::Receiver<Arc<Status>> {
        self.0.status.subscribe()
    }

    fn whois(&self, peer: SocketAddr) -> BoxFuture<'_, Result<WhoIs, Error>> {
        Box::pin(async move {
            let handle = self.0.handle()?;
            let peer = peer.ip().to_canonical().to_string();
            QUICK
                .run(move || decode(&handle.whois(peer.as_bytes(), b"")?, "WhoIs"))
                .await
        })
    }

    fn whois_at(&self, peer: SocketAddr, local: SocketAddr) -> BoxFuture<'_, Result<WhoIs, Error>> {
        Box::pin(async move {
            let handle = self.0.handle()?;
            let (peer, local) = (peer.ip().to_canonical().to_string(), local.to_string());
            QUICK
                .run(move || {
                    let answer = handle.whois(peer.as_bytes(), local.as_bytes())?;
                    decode(&answer, "WhoIs")
                })
                .await
        })
    }

    fn listen(&self, addr: ListenAddr) -> BoxFuture<'_, Result<Listener, Error>> {
        Box::pin(async move {
            let handle = self.0.handle()?;
            let connections = QUICK
                .run(move || match addr {
                    ListenAddr::Funnel(port) => handle.listen_funnel(port),
                    ListenAddr::Port(_) | ListenAddr::Addr(..) => handle.listen(&addr.to_string()),
                })
                .await?;
            let source = EmbeddedSource {
                channel: Channel::new(connections)?,
                node: Arc::clone(&self.0),
            };
            Ok(Listener::new(source, addr, self.0.ended.clone()))
        })
    }

    fn dial<'a>(
        &'a self,
        addr: &'a str,
        timeout: Duration,
    ) -> BoxFuture<'a, Result<Stream, Error>> {
        Box::pin(async move {
            let handle = self.0.handle()?;
            let text = addr.to_owned();
            let timeout_ms = milliseconds(timeout);
            let outcome = async {
                let outcome = QUICK.run(move || handle.dial(&text, timeout_ms)).await?;
                match Channel::new(outcome)?.connection().await? {
                    Some(ConnectionMessage::Dialled { socket }) => {
                        Ok(Stream::dialled(socket, Arc::clone(&self.0) as _)?)
                    }
                    Some(ConnectionMessage::Accepted { .. }) => {
                        Err(Error::Internal("a dial told of an accept".into()))
                    }
                    Some(ConnectionMessage::Failure(error)) => Err(error),
                    None => Err(Error::Canceled),
                }
            };
            tokio::select! {
                biased;
                () = self.0.ended.cancelled() => Err(Error::Closed),
                outcome = outcome => outcome,
                () = tokio::time::sleep(timeout.saturating_add(DIAL_MARGIN)) => {
                    Err(Error::Timeout(format!("dialling {addr}")))
                }
            }
        })
    }

    fn certificate<'a>(
        &'a self,
        name: &'a str,
        min_validity: SignedDuration,
    ) -> BoxFuture<'a, Result<CertificatePair, CertificateError>> {
        Box::pin(async move {
            let handle = self.0.handle()?;
            let (name, seconds) = (name.to_owned(), min_validity.as_secs());
            let outcome = async {
                let outcome = QUICK
                    .run(move || handle.certificate(&name, seconds))
                    .await?;
                let mut text = Zeroizing::new(vec![0; certificate::MAX_MESSAGE]);
                match Channel::new(outcome)?
                    .text(&mut text)
                    .await
                    .map_err(Error::from)?
                {
                    Some(length) => certificate::parse(text.get(..length).unwrap_or_default()),
                    None => Err(Error::Canceled.into()),
                }
            };
            tokio::select! {
                biased;
                () = self.0.ended.cancelled() => Err(Error::Closed.into()),
                outcome = outcome => outcome,
                // Go has limits of its own, which are shorter.
                () = tokio::time::sleep(CERTIFICATE_TIMEOUT) => Err(CertificateError::new(
                    CertificateRefusal::Unreachable,
                    "the node did not say what became of the certificate",
                )),
            }
        })
    }

    fn logout(&self, timeout: Duration) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            let handle = self.0.handle()?;
            let timeout_ms = milliseconds(timeout);
            SLOW.run(move || handle.logout(timeout_ms)).await
        })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            self.0.begin_close();
            let mut closed = self.0.closed.subscribe();
            let wait = closed.wait_for(|closed| *closed);
            if tokio::time::timeout(CLOSE_WITHIN, wait).await.is_err() {
                tracing::error!(bound = ?CLOSE_WITHIN, "the node did not close in time; what it still holds is lost");
            }
        })
    }
}

/// Connections from the tailnet, as Go announces them.
#[derive(Debug)]
struct EmbeddedSource {
    channel: Channel,
    node: Arc<Inner>,
}

impl Source for EmbeddedSource {
    fn next(&mut self) -> BoxFuture<'_, AcceptOutcome> {
        Box::pin(async move {
            match self.channel.connection().await {
                Ok(Some(ConnectionMessage::Accepted {
                    stream: Some(stream),
                    peer,
                })) => {
                    let node = Arc::clone(&self.node) as _;
                    AcceptOutcome::Connection(Stream::accepted(stream, node), peer)
                }
                Ok(Some(ConnectionMessage::Accepted { stream: None, .. })) => AcceptOutcome::Ended,
                Ok(Some(ConnectionMessage::Dialled { .. })) => {
                    AcceptOutcome::End(Error::Internal("a listener told of a dial".into()))
                }
                Ok(Some(ConnectionMessage::Failure(error @ Error::NoFunnel { .. }))) => {
                    AcceptOutcome::End(error)
                }
                // Go reports what went wrong. If it was the end, Go closes the channel next.
                Ok(Some(ConnectionMessage::Failure(error))) => AcceptOutcome::Retry(error),
                Ok(None) => AcceptOutcome::End(Error::Closed),
                Err(lost @ ChannelError::Lost) => AcceptOutcome::Retry(lost.into()),
                Err(error) => AcceptOutcome::End(error.into()),
            }
        })
    }

    fn refuse(&self) -> bool {
        self.channel.refuse_new()
    }
}

impl Inner {
    fn new(handle: Handle, generation: Arc<AtomicU64>) -> Self {
        Self {
            handle: Arc::new(handle),
            generation,
            status: Arc::new(watch::Sender::default()),
            ended: CancellationToken::new(),
            closing: AtomicBool::new(false),
            closed: watch::Sender::new(false),
        }
    }

    /// The handle, unless the node is being closed.
    fn handle(&self) -> Result<Arc<Handle>, Error> {
        if self.closing.load(Ordering::Acquire) {
            return Err(Error::Closed);
        }
        Ok(Arc::clone(&self.handle))
    }

    fn begin_close(&self) {
        if self.closing.swap(true, Ordering::AcqRel) {
            return;
        }
        self.ended.cancel();
        self.status.send_modify(mark_stopped);
        // Answers about peers that were cached before are invalid from here on.
        self.generation.fetch_add(1, Ordering::AcqRel);
        let handle = Arc::clone(&self.handle);
        let closed = self.closed.clone();
        SLOW.detach(move || {
            let outcome = handle.close();
            closed.send_replace(true);
            outcome
        });
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.begin_close();
    }
}

/// Publishes each state that the node reports, until it ends.
async fn follow(
    statuses: Channel,
    status: Arc<watch::Sender<Arc<Status>>>,
    ended: CancellationToken,
) {
    let outcome = tokio::select! {
        biased;
        () = ended.cancelled() => return,
        outcome = receive_statuses(&statuses, &status, &ended) => outcome,
    };
    // A node whose state is unknown must not be taken for a running one.
    status.send_modify(|last| {
        mark_stopped(last);
        if let Err(error) = &outcome {
            Arc::make_mut(last).error = error.to_string();
        }
    });
    if let Err(error) = outcome {
        tracing::error!(%error, "lost sight of the node's state");
    }
}

async fn receive_statuses(
    statuses: &Channel,
    status: &watch::Sender<Arc<Status>>,
    ended: &CancellationToken,
) -> Result<(), Error> {
    let mut text = vec![0; STATUS_BUFFER];
    while let Some(length) = statuses.text(&mut text).await? {
        let newest: Status = decode(text.get(..length).unwrap_or_default(), "state")?;
        status.send_if_modified(|last| {
            // Closing cancels first and then sets `Stopped` under the same lock; no state may
            // follow that.
            if ended.is_cancelled() {
                return false;
            }
            *last = Arc::new(newest);
            true
        });
    }
    Ok(())
}

fn mark_stopped(last: &mut Arc<Status>) {
    Arc::make_mut(last).state = BackendState::Stopped;
}

fn decode<T: for<'de> Deserialize<'de>>(json: &[u8], what: &str) -> Result<T, Error> {
    serde_json::from_slice(json)
        .map_err(|error| Error::Internal(format!("{what} as the node tells it: {error}")))
}

fn log_receiver(end: OwnedFd) -> io::Result<pipe::Receiver> {
    rustix::io::ioctl_fionbio(&end, true)?;
    pipe::Receiver::from_owned_fd(end)
}

fn milliseconds(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

/// Versions inside the program, for `version` and `bugreport`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct EngineVersion {
    pub tsnet: String,
    pub go: String,
    #[serde(default)]
    pub tags: Vec<String>,
}

/// Counts of the Go runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct RuntimeStats {
    pub goroutines: u64,
    pub heap_bytes: u64,
    pub sys_bytes: u64,
    pub gc_cycles: u64,
    pub threads: u64,
    pub max_procs: u64,
    pub nodes: u64,
    pub conns: u64,
    /// `None` if no limit is set.
    pub memory_limit: Option<u64>,
}

/// Limits of the Go runtime, for the whole process. In a request, `None` leaves a limit unchanged;
/// in an answer it means that there is no such limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, serde::Serialize)]
#[serde(default)]
pub struct RuntimeLimits {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_limit: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gc_percent: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_procs: Option<u32>,
}

pub async fn engine_version() -> Result<EngineVersion, Error> {
    QUICK.run(|| decode(&ffi::version()?, "version")).await
}

pub async fn runtime_stats() -> Result<RuntimeStats, Error> {
    QUICK
        .run(|| decode(&ffi::runtime_stats()?, "statistics"))
        .await
}

/// Sets the limits and returns those now in force.
pub async fn limit_runtime(limits: RuntimeLimits) -> Result<RuntimeLimits, Error> {
    QUICK
        .run(move || {
            let json = serde_json::to_vec(&limits).map_err(|e| Error::Internal(e.to_string()))?;
            decode(&ffi::limit_runtime(&json)?, "limits")
        })
        .await
}
