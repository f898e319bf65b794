//! Listeners on a host address, with TLS or plain, for callers outside the tailnet. They exist only
//! where a setting names the address.
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
    fs, io,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use http::Extensions;
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio::{
    net::{TcpListener, TcpStream},
    task::{self, AbortHandle, JoinSet},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::{peers::network, serve::Accept};

/// The peer of a host listener: an address, which identifies nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Remote(pub SocketAddr);

impl Remote {
    /// The extensions that each request of the connection gets, for [`super::serve::serve`].
    pub fn identify(addr: SocketAddr) -> Extensions {
        let mut extensions = Extensions::new();
        extensions.insert(Self(addr));
        extensions
    }
}

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

/// Accepts TLS connections on a host address.
#[derive(Debug)]
pub struct TlsListener {
    tcp: TcpListener,
    acceptor: Acceptor,
    handshakes: JoinSet<Option<(TlsStream<TcpStream>, SocketAddr)>>,
    /// The running handshakes, the oldest first.
    ages: VecDeque<Handshake>,
}

/// A running handshake.
#[derive(Debug)]
struct Handshake {
    of: IpAddr,
    task: AbortHandle,
}

#[derive(Clone)]
struct Acceptor(TlsAcceptor);

impl std::fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Acceptor")
    }
}

/// The number of handshakes that may run at a time, in all and per network.
const HANDSHAKES: usize = 256;
const HANDSHAKES_EACH: usize = 32;
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);

impl TlsListener {
    pub async fn bind(addr: SocketAddr, files: Arc<CertificateFiles>) -> Result<Self, TlsError> {
        let mut config =
            ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
                .with_safe_default_protocol_versions()
                .map_err(TlsError::Pair)?
                .with_no_client_auth()
                .with_cert_resolver(files);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let tcp = TcpListener::bind(addr)
            .await
            .map_err(|cause| TlsError::Listen(addr, cause))?;
        Ok(Self {
            tcp,
            acceptor: Acceptor(Arc::new(config).into()),
            handshakes: JoinSet::new(),
            ages: VecDeque::with_capacity(HANDSHAKES),
        })
    }

    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }

    fn shake(&mut self, tcp: TcpStream, addr: SocketAddr) {
        let of = network(addr.ip());
        if let Some(oldest) = over_bound(&self.ages, of)
            && let Some(handshake) = self.ages.remove(oldest)
        {
            handshake.task.abort();
        }
        let handshake = self.acceptor.0.accept(tcp);
        let task = self.handshakes.spawn(async move {
            match tokio::time::timeout(HANDSHAKE_TIME, handshake).await {
                Ok(Ok(stream)) => Some((stream, addr)),
                Ok(Err(error)) => {
                    tracing::debug!(target: "server", peer = %addr, %error, "TLS handshake failed");
                    None
                }
                Err(_) => None,
            }
        });
        self.ages.push_back(Handshake { of, task });
    }

    fn ended(&mut self, task: task::Id) {
        self.ages.retain(|handshake| handshake.task.id() != task);
    }
}

/// Which running handshake is aborted for a new one of this network, if any: the oldest of this
/// network if it has its share, else the oldest of all at the total bound. An honest peer completes
/// its handshake within a round trip or two, long before that many others arrive.
fn over_bound(ages: &VecDeque<Handshake>, of: IpAddr) -> Option<usize> {
    let mut own = ages
        .iter()
        .enumerate()
        .filter(|(_, handshake)| handshake.of == of)
        .map(|(at, _)| at);
    let oldest = own.next();
    if oldest.is_some() && own.count() + 1 >= HANDSHAKES_EACH {
        return oldest;
    }
    (ages.len() >= HANDSHAKES).then_some(0)
}

impl Accept for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    fn peer(addr: &SocketAddr) -> Option<IpAddr> {
        Some(network(addr.ip()))
    }

    /// Dropping this future loses nothing: running handshakes belong to the listener.
    async fn accept(&mut self) -> io::Result<(Self::Io, SocketAddr)> {
        loop {
            tokio::select! {
                accepted = accept_tcp(&self.tcp) => {
                    let (tcp, addr) = accepted?;
                    self.shake(tcp, addr);
                }
                Some(done) = self.handshakes.join_next_with_id() => match done {
                    Ok((task, connection)) => {
                        self.ended(task);
                        if let Some(connection) = connection {
                            return Ok(connection);
                        }
                    }
                    Err(error) => self.ended(error.id()),
                }
            }
        }
    }
}

/// A host address without TLS: on loopback, or behind a proxy that ends TLS.
#[derive(Debug)]
pub struct PlainListener(pub TcpListener);

impl Accept for PlainListener {
    type Io = TcpStream;
    type Addr = SocketAddr;

    fn peer(addr: &SocketAddr) -> Option<IpAddr> {
        Some(network(addr.ip()))
    }

    async fn accept(&mut self) -> io::Result<(TcpStream, SocketAddr)> {
        accept_tcp(&self.0).await
    }
}

/// Retries what is temporary: a connection that was reset while it waited, and a shortage of file
/// descriptors or memory. Neither may end the listener.
async fn accept_tcp(listener: &TcpListener) -> io::Result<(TcpStream, SocketAddr)> {
    let mut pause = Duration::from_millis(5);
    loop {
        match listener.accept().await {
            Ok((tcp, addr)) => {
                // Small answers must not wait for an acknowledgement. A failure here only costs
                // time.
                let _ = tcp.set_nodelay(true);
                return Ok((tcp, addr));
            }
            Err(error) if is_of_the_connection(&error) => {}
            Err(error) if is_passing(&error) => {
                tracing::warn!(target: "server", %error, "cannot accept; trying again");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(1));
            }
            Err(error) => return Err(error),
        }
    }
}

fn is_of_the_connection(error: &io::Error) -> bool {
    use io::ErrorKind::*;
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionReset | ConnectionRefused | Interrupted
    )
}

fn is_passing(error: &io::Error) -> bool {
    let passing = [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM];
    error
        .raw_os_error()
        .is_some_and(|code| passing.contains(&code))
}
