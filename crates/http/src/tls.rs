//! TLS on the connections of any other listener.
//!
//! Invariants
//! - A handshake is a task of its own with a timeout, and their number is bounded, in all and per
//!   peer. At the bound the oldest handshake is aborted in favour of the new one, so accepting
//!   never waits: peers that say nothing delay nobody.
//! - A handshake for which there is no certificate is refused with an alert, at once.
//! - TLS 1.2 and 1.3 by aws-lc; HTTP/2 is offered.

use std::{
    collections::VecDeque,
    fmt, io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use rustls::{AlertDescription, ServerConfig, crypto::aws_lc_rs, server::Acceptor};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _},
    net::TcpListener,
    task::{self, AbortHandle, JoinSet},
    time::Instant,
};
use tokio_rustls::{LazyConfigAcceptor, server::TlsStream};

use super::{
    certificate::CertificateSource,
    serve::{Accept, PollInPlace},
    tcp::PlainListener,
};

/// Why there is no listener with TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("TLS cannot be set up")]
    Provider(#[source] rustls::Error),
    #[error("{0} cannot be listened on")]
    Listen(SocketAddr, #[source] io::Error),
}

/// Accepts the connections of another listener, with TLS.
pub struct TlsListener<L: Accept> {
    listener: L,
    config: Arc<ServerConfig>,
    certificates: Arc<dyn CertificateSource>,
    handshakes: JoinSet<Outcome<L>>,
    /// The running handshakes, the oldest first.
    running: VecDeque<Handshake>,
    /// Why the other listener ended. The handshakes that it left are still completed.
    failure: Option<io::Error>,
    /// Set once new connections are refused.
    last: Option<Instant>,
}

/// A connection whose handshake is complete, or `None` if it failed.
type Outcome<L> = Option<(TlsStream<<L as Accept>::Io>, <L as Accept>::Addr)>;

/// A running handshake.
#[derive(Debug)]
struct Handshake {
    peer: Option<IpAddr>,
    task: AbortHandle,
}

/// Among the extensions of each request that came over TLS which ended in this process.
#[derive(Debug, Clone, Copy)]
pub struct OverTls;

/// The number of handshakes that may run at a time, in all and per peer.
const MAX_HANDSHAKES: usize = 256;
const MAX_HANDSHAKES_PER_PEER: usize = 32;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// The time for handshakes that run when new connections begin to be refused.
const LAST_HANDSHAKES_TIMEOUT: Duration = Duration::from_secs(1);

impl TlsListener<PlainListener> {
    /// On a host address.
    pub async fn bind(
        addr: SocketAddr,
        certificates: Arc<dyn CertificateSource>,
    ) -> Result<Self, TlsError> {
        let tcp = TcpListener::bind(addr)
            .await
            .map_err(|cause| TlsError::Listen(addr, cause))?;
        Self::new(PlainListener(tcp), certificates)
    }

    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.0.local_addr()
    }
}

impl<L: Accept> TlsListener<L> {
    /// `certificates` gives one for each handshake. A client that comes again may resume its
    /// session, by a ticket that only this listener can read.
    pub fn new(listener: L, certificates: Arc<dyn CertificateSource>) -> Result<Self, TlsError> {
        let mut config =
            ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
                .with_safe_default_protocol_versions()
                .map_err(TlsError::Provider)?
                .with_no_client_auth()
                .with_cert_resolver(certificates.clone());
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config.ticketer = aws_lc_rs::Ticketer::new().map_err(TlsError::Provider)?;
        Ok(Self {
            listener,
            config: Arc::new(config),
            certificates,
            handshakes: JoinSet::new(),
            running: VecDeque::with_capacity(MAX_HANDSHAKES),
            failure: None,
            last: None,
        })
    }

    fn start_handshake(&mut self, io: L::Io, addr: L::Addr) {
        let peer = L::peer(&addr);
        if let Some(oldest) = over_bound(&self.running, peer)
            && let Some(handshake) = self.running.remove(oldest)
        {
            handshake.task.abort();
        }
        let handshake = handshake(io, self.config.clone(), self.certificates.clone());
        let task = self.handshakes.spawn(async move {
            match tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await {
                Ok(Ok(stream)) => Some((stream, addr)),
                Ok(Err(error)) => {
                    tracing::debug!(target: "server", peer = ?peer, %error, "TLS handshake failed");
                    None
                }
                Err(_) => None,
            }
        });
        self.running.push_back(Handshake { peer, task });
    }

    fn ended_because(&mut self) -> io::Error {
        let refusing = || io::Error::other("the listener takes no more connections");
        self.failure.take().unwrap_or_else(refusing)
    }

    fn ended(&mut self, task: task::Id) {
        self.running.retain(|handshake| handshake.task.id() != task);
    }
}

impl<L: Accept + fmt::Debug> fmt::Debug for TlsListener<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsListener")
            .field("listener", &self.listener)
            .field("handshakes", &self.running.len())
            .finish_non_exhaustive()
    }
}

async fn handshake<Io: AsyncRead + AsyncWrite + Unpin>(
    io: Io,
    config: Arc<ServerConfig>,
    certificates: Arc<dyn CertificateSource>,
) -> io::Result<TlsStream<Io>> {
    let mut begun = LazyConfigAcceptor::new(Acceptor::default(), io).await?;
    let server_name = begun.client_hello().server_name().map(str::to_owned);
    let Some(alert) = certificates.refusal(server_name.as_deref()) else {
        return begun.into_stream(config).await;
    };
    begun.io.write_all(&fatal_alert(alert)).await?;
    begun.io.shutdown().await?;
    Err(io::Error::other(format!(
        "refused with the alert {alert:?} for the name {server_name:?}"
    )))
}

/// A record with an alert before anything is encrypted (RFC 8446 sections 5.1 and 6). rustls itself
/// has one alert for all handshakes without a certificate.
fn fatal_alert(alert: AlertDescription) -> [u8; 7] {
    const ALERT: u8 = 21;
    const FATAL: u8 = 2;
    [ALERT, 3, 3, 0, 2, FATAL, alert.into()]
}

/// Which running handshake is aborted for a new one of this peer, if any: the oldest of this peer
/// if it has its share, else the oldest of all at the total bound. An honest peer completes its
/// handshake within a round trip or two, long before that many others arrive.
fn over_bound(running: &VecDeque<Handshake>, peer: Option<IpAddr>) -> Option<usize> {
    let mut own = running
        .iter()
        .enumerate()
        .filter(|(_, handshake)| peer.is_some() && handshake.peer == peer)
        .map(|(at, _)| at);
    let oldest = own.next();
    if oldest.is_some() && own.count() + 1 >= MAX_HANDSHAKES_PER_PEER {
        return oldest;
    }
    (running.len() >= MAX_HANDSHAKES).then_some(0)
}

/// Never without a time.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

impl<L: Accept> Accept for TlsListener<L> {
    type Io = TlsStream<L::Io>;
    type Addr = L::Addr;

    fn peer(addr: &L::Addr) -> Option<IpAddr> {
        L::peer(addr)
    }

    fn poll_in_place(io: &Self::Io) -> Option<PollInPlace> {
        L::poll_in_place(io.get_ref().0)
    }

    /// Running handshakes may still be completed, but a peer that says nothing is not waited for.
    fn refuse(&mut self) -> bool {
        if !self.listener.refuse() {
            self.failure = Some(self.ended_because());
        }
        self.last = Some(Instant::now() + LAST_HANDSHAKES_TIMEOUT);
        self.failure.is_none() || !self.running.is_empty()
    }

    /// Dropping this future loses nothing: running handshakes belong to the listener.
    async fn accept(&mut self) -> io::Result<(Self::Io, L::Addr)> {
        loop {
            if self.failure.is_some() && self.running.is_empty() {
                return Err(self.ended_because());
            }
            tokio::select! {
                accepted = self.listener.accept(), if self.failure.is_none() => match accepted {
                    Ok((io, addr)) => self.start_handshake(io, addr),
                    Err(error) => self.failure = Some(error),
                },
                Some(done) = self.handshakes.join_next_with_id() => match done {
                    Ok((task, connection)) => {
                        self.ended(task);
                        if let Some(connection) = connection {
                            return Ok(connection);
                        }
                    }
                    Err(error) => self.ended(error.id()),
                },
                () = at(self.last) => return Err(self.ended_because()),
            }
        }
    }
}
