//! TLS on the connections of any other listener, and the certificates that it shows.
//!
//! Invariants
//! - A handshake is a task of its own with a timeout, and their number is bounded, in all and per
//!   network. At the bound the oldest handshake is aborted in favour of the new one, so accepting
//!   never waits: peers that say nothing delay nobody.
//! - Certificate and key are read together and must match. When the files change they are read
//!   again, and while their contents are broken the last good pair stays in use.
//! - TLS 1.2 and 1.3 by aws-lc; HTTP/2 is offered.

use std::{
    collections::VecDeque,
    fmt, fs, io,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio::{
    net::TcpListener,
    task::{self, AbortHandle, JoinSet},
    time::Instant,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::{
    serve::{Accept, Place},
    tcp::PlainListener,
};

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{}: no certificate or key in PEM form", path.display())]
    Pem {
        path: PathBuf,
        #[source]
        cause: pem::Error,
    },
    #[error("{}: cannot be read", path.display())]
    File {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("{}: no certificate", .0.display())]
    NoCertificate(PathBuf),
    #[error("certificate and key do not belong together, or are of a kind that is not supported")]
    Pair(#[source] rustls::Error),
    #[error("TLS cannot be set up")]
    Provider(#[source] rustls::Error),
    #[error("{0} cannot be listened on")]
    Listen(SocketAddr, #[source] io::Error),
}

/// A certificate chain and its private key, from two PEM files.
#[derive(Debug)]
pub struct CertificateFiles {
    cert: PathBuf,
    key: PathBuf,
    pair: ArcSwap<CertifiedKey>,
    seen: ArcSwap<Option<[Stamp; 2]>>,
}

/// Modification time and length: tells two versions of a file apart without reading it.
type Stamp = (SystemTime, u64);

impl CertificateFiles {
    pub fn open(cert: PathBuf, key: PathBuf) -> Result<Self, TlsError> {
        // Taken before reading, so that a change in between is noticed at the next check.
        let seen = stamps(&cert, &key);
        let pair = read(&cert, &key)?;
        Ok(Self {
            cert,
            key,
            pair: ArcSwap::from_pointee(pair),
            seen: ArcSwap::from_pointee(seen),
        })
    }

    /// Reads the files again if they have changed, and says whether it did. On an error the old
    /// pair stays and the files are read again at the next call: a renewal may have replaced only
    /// one of them so far.
    pub fn reload(&self) -> Result<bool, TlsError> {
        let now = stamps(&self.cert, &self.key);
        if now.is_some() && now == **self.seen.load() {
            return Ok(false);
        }
        self.pair.store(Arc::new(read(&self.cert, &self.key)?));
        self.seen.store(Arc::new(now));
        Ok(true)
    }

    /// The same, with the outcome in the log. To be called every few seconds: two small files are
    /// not worth a thread of their own.
    pub fn tick(&self) {
        match self.reload() {
            Ok(true) => {
                tracing::info!(target: "server", cert = %self.cert.display(), "certificate read again");
            }
            Ok(false) => {}
            Err(error) => {
                let error = tailbone_telemetry::chain(&error);
                tracing::error!(target: "server", error, "certificate not read again; the old one stays in use");
            }
        }
    }
}

impl ResolvesServerCert for CertificateFiles {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.pair.load_full())
    }
}

fn stamps(cert: &PathBuf, key: &PathBuf) -> Option<[Stamp; 2]> {
    let stamp = |path: &PathBuf| {
        let meta = fs::metadata(path).ok()?;
        Some((meta.modified().ok()?, meta.len()))
    };
    Some([stamp(cert)?, stamp(key)?])
}

fn read(cert: &PathBuf, key: &PathBuf) -> Result<CertifiedKey, TlsError> {
    let text = |path: &PathBuf| {
        fs::read(path).map_err(|cause| TlsError::File {
            path: path.clone(),
            cause,
        })
    };
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&text(cert)?)
        .collect::<Result<_, _>>()
        .map_err(|cause| TlsError::Pem {
            path: cert.clone(),
            cause,
        })?;
    if chain.is_empty() {
        return Err(TlsError::NoCertificate(cert.clone()));
    }
    let private = PrivateKeyDer::from_pem_slice(&text(key)?).map_err(|cause| TlsError::Pem {
        path: key.clone(),
        cause,
    })?;
    CertifiedKey::from_der(chain, private, &aws_lc_rs::default_provider()).map_err(TlsError::Pair)
}

/// Accepts the connections of another listener, with TLS.
pub struct TlsListener<L: Accept> {
    listener: L,
    acceptor: TlsAcceptor,
    handshakes: JoinSet<Outcome<L>>,
    /// The running handshakes, the oldest first.
    ages: VecDeque<Handshake>,
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
    of: Option<IpAddr>,
    task: AbortHandle,
}

/// The number of handshakes that may run at a time, in all and per peer.
const HANDSHAKES: usize = 256;
const HANDSHAKES_EACH: usize = 32;
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
/// The time for handshakes that run when new connections begin to be refused.
const LAST_HANDSHAKES: Duration = Duration::from_secs(1);

impl TlsListener<PlainListener> {
    /// On a host address.
    pub async fn bind(addr: SocketAddr, files: Arc<CertificateFiles>) -> Result<Self, TlsError> {
        let tcp = TcpListener::bind(addr)
            .await
            .map_err(|cause| TlsError::Listen(addr, cause))?;
        Self::new(PlainListener(tcp), files)
    }

    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.0.local_addr()
    }
}

impl<L: Accept> TlsListener<L> {
    /// `certificates` chooses one for each handshake. A client that comes again may resume its
    /// session, by a ticket that only this listener can read.
    pub fn new(listener: L, certificates: Arc<dyn ResolvesServerCert>) -> Result<Self, TlsError> {
        let mut config =
            ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
                .with_safe_default_protocol_versions()
                .map_err(TlsError::Provider)?
                .with_no_client_auth()
                .with_cert_resolver(certificates);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config.ticketer = aws_lc_rs::Ticketer::new().map_err(TlsError::Provider)?;
        Ok(Self {
            listener,
            acceptor: Arc::new(config).into(),
            handshakes: JoinSet::new(),
            ages: VecDeque::with_capacity(HANDSHAKES),
            failure: None,
            last: None,
        })
    }

    fn begin(&mut self, io: L::Io, addr: L::Addr) {
        let of = L::peer(&addr);
        if let Some(oldest) = over_bound(&self.ages, of)
            && let Some(handshake) = self.ages.remove(oldest)
        {
            handshake.task.abort();
        }
        let handshake = self.acceptor.accept(io);
        let task = self.handshakes.spawn(async move {
            match tokio::time::timeout(HANDSHAKE_TIME, handshake).await {
                Ok(Ok(stream)) => Some((stream, addr)),
                Ok(Err(error)) => {
                    tracing::debug!(target: "server", peer = ?of, %error, "TLS handshake failed");
                    None
                }
                Err(_) => None,
            }
        });
        self.ages.push_back(Handshake { of, task });
    }

    fn ended_because(&mut self) -> io::Error {
        let refusing = || io::Error::other("the listener takes no more connections");
        self.failure.take().unwrap_or_else(refusing)
    }

    fn ended(&mut self, task: task::Id) {
        self.ages.retain(|handshake| handshake.task.id() != task);
    }
}

impl<L: Accept + fmt::Debug> fmt::Debug for TlsListener<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsListener")
            .field("listener", &self.listener)
            .field("handshakes", &self.ages.len())
            .finish_non_exhaustive()
    }
}

/// Which running handshake is aborted for a new one of this peer, if any: the oldest of this peer
/// if it has its share, else the oldest of all at the total bound. An honest peer completes its
/// handshake within a round trip or two, long before that many others arrive.
fn over_bound(ages: &VecDeque<Handshake>, of: Option<IpAddr>) -> Option<usize> {
    let mut own = ages
        .iter()
        .enumerate()
        .filter(|(_, handshake)| of.is_some() && handshake.of == of)
        .map(|(at, _)| at);
    let oldest = own.next();
    if oldest.is_some() && own.count() + 1 >= HANDSHAKES_EACH {
        return oldest;
    }
    (ages.len() >= HANDSHAKES).then_some(0)
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

    fn home(io: &Self::Io) -> Option<Place> {
        L::home(io.get_ref().0)
    }

    /// Running handshakes may still be completed, but a peer that says nothing is not waited for.
    fn refuse(&mut self) -> bool {
        if !self.listener.refuse() {
            self.failure = Some(self.ended_because());
        }
        self.last = Some(Instant::now() + LAST_HANDSHAKES);
        self.failure.is_none() || !self.ages.is_empty()
    }

    /// Dropping this future loses nothing: running handshakes belong to the listener.
    async fn accept(&mut self) -> io::Result<(Self::Io, L::Addr)> {
        loop {
            if self.failure.is_some() && self.ages.is_empty() {
                return Err(self.ended_because());
            }
            tokio::select! {
                accepted = self.listener.accept(), if self.failure.is_none() => match accepted {
                    Ok((io, addr)) => self.begin(io, addr),
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
