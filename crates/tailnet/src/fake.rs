//! A tailnet without Tailscale: nodes on loopback TCP with the identities that a test gives them.
//! For fast tests.
//!
//! It keeps the promises of [`Node`] and passes the same list of tests as the embedded node
//! (`tests/testkit/src/node_contract.rs`), so a component meets the same behaviour on it as on a
//! real tailnet.
//!
//! How it works: node number N has the tailnet address `100.64.x.y` and dials from the loopback
//! address `127.64.x.y` (`x.y` = N), so a listener knows its caller by the source address alone.
//! Another program can act as a node too: it binds [`FakeNode::source`] and connects to
//! [`FakeNode::host_addr`]. Callers from `127.65.0.0/16` come through Funnel.
//!
//! It is there only with the feature `test-util`, which only tests switch on.

use std::{
    any::Any,
    collections::BTreeMap,
    fmt,
    future::Future as _,
    io::{self, IoSlice},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    pin::Pin,
    sync::{
        Arc, Weak,
        atomic::{AtomicU16, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::future::BoxFuture;
use jiff::SignedDuration;
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::watch,
};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::{
    BackendState, CertificateError, CertificatePair, CertificateRefusal, Error, FunnelLack,
    ListenAddr, Listener, Node, Peer, Status, Stream, Via, WhoIs, WhoIsNode, WhoIsUser,
    listener::{AcceptOutcome, Source},
};

const SUFFIX: &str = "fake-tailnet.ts.net";
const TAGGED_USER: i64 = 1;

/// A tailnet: what its nodes know of each other.
#[derive(Debug, Clone, Default)]
pub struct FakeTailnet(Arc<Net>);

/// Who a node is, as others see it.
#[derive(Debug, Clone, PartialEq)]
pub struct Identity {
    /// The user's login. A node with tags has no user.
    pub login: String,
    pub display_name: String,
    /// Stays the same when the login is renamed.
    pub user_id: i64,
    pub tags: Vec<String>,
    pub key_expiry: Option<jiff::Timestamp>,
    pub expired: bool,
    /// Shared into the tailnet by someone.
    pub sharer: bool,
    pub same_tailnet: bool,
    /// Ports of every other node that the packet filter does not let it reach.
    pub closed_ports: Vec<u16>,
    /// Grants towards every other node.
    pub caps: BTreeMap<String, Vec<serde_json::Value>>,
}

impl Identity {
    pub fn user(login: &str) -> Self {
        Self {
            login: login.into(),
            display_name: login.split('@').next().unwrap_or(login).into(),
            // Equal logins are one user.
            user_id: login
                .bytes()
                .fold(1000, |id, byte| (id * 31 + i64::from(byte)) % 1_000_000_007),
            tags: Vec::new(),
            key_expiry: None,
            expired: false,
            sharer: false,
            same_tailnet: true,
            closed_ports: Vec::new(),
            caps: BTreeMap::new(),
        }
    }

    pub fn tagged<'a>(tags: impl IntoIterator<Item = &'a str>) -> Self {
        Self {
            tags: tags.into_iter().map(Into::into).collect(),
            ..Self::user("")
        }
    }

    #[must_use]
    pub fn cap(mut self, name: &str, value: serde_json::Value) -> Self {
        self.caps.entry(name.into()).or_default().push(value);
        self
    }
}

#[derive(Debug, Default)]
struct Net {
    nodes: Mutex<BTreeMap<String, Entry>>,
    numbers: AtomicU16,
}

#[derive(Debug)]
struct Entry {
    number: u16,
    identity: Identity,
    node: Weak<Inner>,
    /// The ports being listened on, with their addresses on this host.
    ports: BTreeMap<u16, SocketAddr>,
    /// Those of Funnel.
    funnel: BTreeMap<u16, SocketAddr>,
}

impl Entry {
    fn ports(&mut self, via: Via) -> &mut BTreeMap<u16, SocketAddr> {
        match via {
            Via::Tailnet => &mut self.ports,
            Via::Funnel => &mut self.funnel,
        }
    }
}

impl FakeTailnet {
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a node that is `Running` from the start. A second one of the same name replaces the
    /// first.
    pub fn join(&self, host: &str, identity: Identity) -> FakeNode {
        let inner = {
            let mut nodes = self.0.nodes.lock();
            let number = match nodes.get(host) {
                Some(known) => known.number,
                None => self.0.numbers.fetch_add(1, Ordering::Relaxed) + 1,
            };
            let inner = Arc::new(Inner {
                net: self.clone(),
                host: host.into(),
                number,
                generation: AtomicU64::new(1),
                status: watch::Sender::new(Arc::new(status(host, number, &identity))),
                ended: CancellationToken::new(),
                certificates: Mutex::default(),
                funnel_lack: watch::Sender::new(Some(FunnelLack::Https)),
            });
            let entry = Entry {
                number,
                identity,
                node: Arc::downgrade(&inner),
                ports: BTreeMap::new(),
                funnel: BTreeMap::new(),
            };
            nodes.insert(host.into(), entry);
            inner
        };
        self.announce_change();
        FakeNode(inner)
    }

    /// Changes the identity of a node and announces it to all nodes. `false` if there is no node of
    /// that name.
    pub fn update(&self, host: &str, change: impl FnOnce(&mut Identity)) -> bool {
        let node = {
            let mut nodes = self.0.nodes.lock();
            let Some(entry) = nodes.get_mut(host) else {
                return false;
            };
            change(&mut entry.identity);
            (entry.node.upgrade(), entry.identity.clone())
        };
        if let (Some(inner), identity) = node {
            inner.status.send_modify(|last| {
                let last = Arc::make_mut(last);
                last.tags.clone_from(&identity.tags);
                last.owner = owner(&identity);
                last.owner_id = owner_id(&identity);
                last.key_expiry = identity.key_expiry;
                last.expired = identity.expired;
                match (identity.expired, last.state) {
                    (true, BackendState::Running) => last.state = BackendState::NeedsLogin,
                    (false, BackendState::NeedsLogin) => last.state = BackendState::Running,
                    _ => {}
                }
            });
        }
        self.announce_change();
        true
    }

    /// Expires the node's key.
    pub fn expire(&self, host: &str) -> bool {
        self.update(host, |identity| identity.expired = true)
    }

    /// Removes the node, as the control server would. The node itself has to log in again.
    pub fn remove(&self, host: &str) -> bool {
        let Some(entry) = self.0.nodes.lock().remove(host) else {
            return false;
        };
        if let Some(inner) = entry.node.upgrade() {
            inner.status.send_modify(|last| {
                if !inner.ended.is_cancelled() {
                    Arc::make_mut(last).state = BackendState::NeedsLogin;
                }
            });
        }
        self.announce_change();
        true
    }

    /// Announces a change of the network map to all nodes.
    fn announce_change(&self) {
        // Upgraded outside of the lock, because dropping the last owner of a node takes it again.
        let all: Vec<Weak<Inner>> = self
            .0
            .nodes
            .lock()
            .values()
            .map(|e| e.node.clone())
            .collect();
        for inner in all.iter().filter_map(Weak::upgrade) {
            inner.bump();
        }
    }
}

/// A node of a [`FakeTailnet`].
#[derive(Debug, Clone)]
pub struct FakeNode(Arc<Inner>);

struct Inner {
    net: FakeTailnet,
    host: String,
    number: u16,
    generation: AtomicU64,
    status: watch::Sender<Arc<Status>>,
    ended: CancellationToken,
    certificates: Mutex<Option<Authority>>,
    /// What the tailnet lacks for Funnel.
    funnel_lack: watch::Sender<Option<FunnelLack>>,
}

/// Gives certificates for a name and the validity that was asked for.
type Authority =
    Arc<dyn Fn(&str, SignedDuration) -> Result<CertificatePair, CertificateError> + Send + Sync>;

impl FakeNode {
    /// The tailnet address.
    pub fn ip(&self) -> IpAddr {
        tailnet_ip(self.0.number)
    }

    /// The loopback address that this node's connections come from, for clients that are other
    /// programs.
    pub fn source(&self) -> IpAddr {
        host_ip(self.0.number)
    }

    /// The address on this host of a port that the node listens on.
    pub fn host_addr(&self, port: u16) -> Option<SocketAddr> {
        self.entry(|entry| entry.ports.get(&port).copied())
            .flatten()
    }

    /// Says what the tailnet lacks for Funnel. At first it has no HTTPS.
    pub fn set_funnel_lack(&self, lack: Option<FunnelLack>) {
        self.0.funnel_lack.send_replace(lack);
        self.0.bump();
    }

    /// A connection from a caller on the internet, through Funnel: to a listener of Funnel, or else
    /// to one of the tailnet.
    pub async fn dial_as_funnel(&self, port: u16) -> Result<Stream, Error> {
        let funnel = self.entry(|entry| entry.funnel.get(&port).copied());
        let to = funnel
            .flatten()
            .or_else(|| self.host_addr(port))
            .ok_or_else(|| Error::Refused(format!("nobody listens on {port}")))?;
        let socket = connect(Ipv4Addr::new(127, 65, 0, 9).into(), to).await?;
        Ok(FakeStream::stream(
            socket,
            &CancellationToken::new(),
            Arc::new(()),
        )?)
    }

    /// Changes what the node reports about itself.
    pub fn set_status(&self, change: impl FnOnce(&mut Status)) {
        self.0.status.send_modify(|last| {
            let last = Arc::make_mut(last);
            change(last);
            if self.0.ended.is_cancelled() {
                last.state = BackendState::Stopped;
            }
        });
        self.0.bump();
    }

    /// Enables HTTPS for the node's name. `authority` gives the certificates.
    pub fn enable_https(
        &self,
        authority: impl Fn(&str, SignedDuration) -> Result<CertificatePair, CertificateError>
        + Send
        + Sync
        + 'static,
    ) {
        *self.0.certificates.lock() = Some(Arc::new(authority));
        self.set_status(|status| status.cert_domains = vec![status.name.clone()]);
    }

    fn order(
        &self,
        name: &str,
        min_validity: SignedDuration,
    ) -> Result<CertificatePair, CertificateError> {
        self.running()?;
        let authority = self.0.certificates.lock().clone();
        let Some(authority) = authority else {
            return Err(CertificateError::new(
                CertificateRefusal::NoHttps,
                "HTTPS is not enabled in this tailnet",
            ));
        };
        if !self
            .0
            .status
            .borrow()
            .cert_domains
            .iter()
            .any(|own| own == name)
        {
            return Err(CertificateError::new(
                CertificateRefusal::OtherName,
                format!("{name} is not a name of this node"),
            ));
        }
        authority(name, min_validity)
    }

    fn entry<T>(&self, look: impl FnOnce(&mut Entry) -> T) -> Option<T> {
        self.0.entry(look)
    }

    fn running(&self) -> Result<(), Error> {
        if self.0.ended.is_cancelled() {
            return Err(Error::Closed);
        }
        match self.0.status.borrow().state {
            BackendState::Running => Ok(()),
            other => Err(Error::State(format!("the node is {other:?}, not Running"))),
        }
    }

    /// A closed port gives no answer at all, as behind a packet filter.
    async fn connect(&self, addr: &str) -> Result<Stream, Error> {
        let to = {
            let (host, port) = addr
                .rsplit_once(':')
                .and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?)))
                .filter(|(host, port)| !host.is_empty() && *port > 0)
                .ok_or_else(|| Error::Invalid(format!("{addr:?} is not host:port")))?;
            if self
                .entry(|own| own.identity.closed_ports.contains(&port))
                .unwrap_or_default()
            {
                return std::future::pending().await;
            }
            let nodes = self.0.net.0.nodes.lock();
            let entry = match host.parse::<IpAddr>() {
                Ok(ip) => nodes.values().find(|e| tailnet_ip(e.number) == ip),
                Err(_) => {
                    let short = host
                        .strip_suffix(SUFFIX)
                        .and_then(|h| h.strip_suffix('.'))
                        .unwrap_or(host);
                    nodes.get(short)
                }
            };
            let entry =
                entry.ok_or_else(|| Error::Unreachable(format!("no node is called {host:?}")))?;
            entry
                .ports
                .get(&port)
                .copied()
                .ok_or_else(|| Error::Refused(format!("{addr} refused the connection")))?
        };
        let socket = connect(self.source(), to).await?;
        Ok(FakeStream::stream(
            socket,
            &self.0.ended,
            Arc::clone(&self.0) as _,
        )?)
    }
}

impl Node for FakeNode {
    fn generation(&self) -> u64 {
        self.0.generation.load(Ordering::Acquire)
    }

    fn watch(&self) -> watch::Receiver<Arc<Status>> {
        self.0.status.subscribe()
    }

    fn whois(&self, peer: SocketAddr) -> BoxFuture<'_, Result<WhoIs, Error>> {
        Box::pin(async move {
            if self.0.ended.is_cancelled() {
                return Err(Error::Closed);
            }
            let ip = peer.ip().to_canonical();
            let nodes = self.0.net.0.nodes.lock();
            nodes
                .iter()
                .find(|(_, entry)| tailnet_ip(entry.number) == ip)
                .map(|(host, entry)| whois(host, entry))
                .ok_or(Error::NotFound)
        })
    }

    fn whois_at(&self, peer: SocketAddr, local: SocketAddr) -> BoxFuture<'_, Result<WhoIs, Error>> {
        Box::pin(async move {
            let whois = self.whois(peer).await?;
            let ip = peer.ip().to_canonical();
            let nodes = self.0.net.0.nodes.lock();
            let closed = nodes
                .values()
                .find(|entry| tailnet_ip(entry.number) == ip)
                .is_some_and(|entry| entry.identity.closed_ports.contains(&local.port()));
            if closed {
                return Err(Error::Forbidden(format!("{ip} may not reach {local}")));
            }
            Ok(whois)
        })
    }

    fn listen(&self, addr: ListenAddr) -> BoxFuture<'_, Result<Listener, Error>> {
        Box::pin(async move {
            if self.0.ended.is_cancelled() {
                return Err(Error::Closed);
            }
            let port = addr.port();
            if port == 0 {
                return Err(Error::Invalid(format!("{addr}: port 0 is not allowed")));
            }
            if let ListenAddr::Addr(ip, _) = addr
                && ip != self.ip()
            {
                return Err(Error::Invalid(format!(
                    "{ip} is not an address of this node"
                )));
            }
            let mut via = Via::Tailnet;
            if let ListenAddr::Funnel(port) = addr {
                via = Via::Funnel;
                if ![443, 8443, 10000].contains(&port) {
                    return Err(Error::Invalid(format!(
                        "{addr}: it has 443, 8443 and 10000"
                    )));
                }
                if let Some(lack) = *self.0.funnel_lack.borrow() {
                    return Err(no_funnel(lack));
                }
            }
            let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
            let at = socket.local_addr()?;
            self.entry(|entry| {
                let ports = entry.ports(via);
                if ports.contains_key(&port) {
                    return Err(Error::InUse(format!("port {port} is already listened on")));
                }
                ports.insert(port, at);
                Ok(())
            })
            .unwrap_or_else(|| Err(Error::State("the node is not on the tailnet".into())))?;
            let listener = FakeListener {
                socket,
                local: SocketAddr::new(self.ip(), port),
                via,
                node: Arc::clone(&self.0),
            };
            Ok(Listener::new(listener, addr, self.0.ended.clone()))
        })
    }

    fn dial<'a>(
        &'a self,
        addr: &'a str,
        timeout: Duration,
    ) -> BoxFuture<'a, Result<Stream, Error>> {
        Box::pin(async move {
            self.running()?;
            tokio::select! {
                () = self.0.ended.cancelled() => Err(Error::Closed),
                stream = self.connect(addr) => stream,
                () = tokio::time::sleep(timeout) => Err(Error::Timeout(format!("dialling {addr}"))),
            }
        })
    }

    fn certificate<'a>(
        &'a self,
        name: &'a str,
        min_validity: SignedDuration,
    ) -> BoxFuture<'a, Result<CertificatePair, CertificateError>> {
        Box::pin(async move { self.order(name, min_validity) })
    }

    fn logout(&self, _timeout: Duration) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            if self.0.ended.is_cancelled() {
                return Err(Error::Closed);
            }
            self.0.net.remove(&self.0.host);
            Ok(())
        })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move { self.0.close() })
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FakeNode")
            .field("host", &self.host)
            .field("status", &self.status)
            .finish_non_exhaustive()
    }
}

impl Inner {
    fn bump(&self) {
        let generation = self.generation.fetch_add(1, Ordering::AcqRel) + 1;
        self.status
            .send_modify(|last| Arc::make_mut(last).generation = generation);
    }

    /// This node's entry in the tailnet, unless another node has taken its place.
    fn entry<T>(&self, look: impl FnOnce(&mut Entry) -> T) -> Option<T> {
        let mut nodes = self.net.0.nodes.lock();
        let entry = nodes.get_mut(&self.host)?;
        std::ptr::eq(entry.node.as_ptr(), self).then(|| look(entry))
    }

    fn close(&self) {
        if self.ended.is_cancelled() {
            return;
        }
        self.ended.cancel();
        self.status
            .send_modify(|last| Arc::make_mut(last).state = BackendState::Stopped);
        self.bump();
        self.entry(|entry| {
            entry.ports.clear();
            entry.funnel.clear();
        });
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.close();
    }
}

/// A listening port of a fake node.
#[derive(Debug)]
struct FakeListener {
    socket: TcpListener,
    local: SocketAddr,
    via: Via,
    node: Arc<Inner>,
}

impl Source for FakeListener {
    fn next(&mut self) -> BoxFuture<'_, AcceptOutcome> {
        Box::pin(async move {
            tokio::select! {
                accepted = self.accept() => match accepted {
                    Ok((stream, peer)) => AcceptOutcome::Connection(stream, peer),
                    Err(error) => AcceptOutcome::Retry(error),
                },
                lack = self.forbidden() => AcceptOutcome::End(no_funnel(lack)),
            }
        })
    }
}

impl FakeListener {
    async fn accept(&self) -> Result<(Stream, Peer), Error> {
        let (socket, from) = self.socket.accept().await?;
        let (ip, via) = peer_of(from.ip());
        let via = match self.via {
            Via::Tailnet => via,
            Via::Funnel => Via::Funnel,
        };
        let peer = Peer {
            addr: SocketAddr::new(ip, from.port()),
            local: self.local,
            via,
        };
        let owner = Arc::clone(&self.node) as _;
        Ok((FakeStream::stream(socket, &self.node.ended, owner)?, peer))
    }

    /// Waits until the tailnet withdraws Funnel; for ever if this is no listener of Funnel.
    async fn forbidden(&self) -> FunnelLack {
        let mut lack = self.node.funnel_lack.subscribe();
        loop {
            if self.via == Via::Funnel
                && let Some(lack) = *lack.borrow_and_update()
            {
                return lack;
            }
            if lack.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

fn no_funnel(lack: FunnelLack) -> Error {
    Error::NoFunnel {
        lack,
        message: format!("the tailnet lacks something for Funnel: {lack:?}"),
    }
}

impl Drop for FakeListener {
    fn drop(&mut self) {
        self.node
            .entry(|entry| entry.ports(self.via).remove(&self.local.port()));
    }
}

/// A connection of a fake node.
pub(super) struct FakeStream {
    socket: TcpStream,
    /// The kernel reports a reset only once, to whichever direction asks first. The other one must
    /// not take the silence that follows for an orderly end.
    reset: bool,
    /// The end of the node. Each direction has its own future, as a different task may poll it.
    reader_ended: Pin<Box<WaitForCancellationFutureOwned>>,
    writer_ended: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl FakeStream {
    fn stream(
        socket: TcpStream,
        ended: &CancellationToken,
        owner: Arc<dyn Any + Send + Sync>,
    ) -> io::Result<Stream> {
        socket.set_nodelay(true)?;
        let stream = Self {
            socket,
            reset: false,
            reader_ended: Box::pin(ended.clone().cancelled_owned()),
            writer_ended: Box::pin(ended.clone().cancelled_owned()),
        };
        Ok(Stream::fake(stream, owner))
    }

    /// Calls `write` on the socket unless the node has ended, and remembers a failure.
    fn write<T>(
        &mut self,
        cx: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut TcpStream>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if self.writer_ended.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        write(Pin::new(&mut self.socket), cx)
    }
}

impl AsyncRead for FakeStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.reader_ended.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let before = buf.filled().len();
        let room = buf.remaining() > 0;
        let read = ready!(Pin::new(&mut self.socket).poll_read(cx, buf));
        self.reset |= read.is_err();
        let end = room && read.is_ok() && buf.filled().len() == before;
        if end && self.reset {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        Poll::Ready(read)
    }
}

impl AsyncWrite for FakeStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = self.write(cx, |socket, cx| socket.poll_write(cx, buf));
        self.reset |= matches!(written, Poll::Ready(Err(_)));
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = self.write(cx, |socket, cx| socket.poll_write_vectored(cx, bufs));
        self.reset |= matches!(written, Poll::Ready(Err(_)));
        written
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.write(cx, |socket, cx| socket.poll_shutdown(cx))
    }
}

impl fmt::Debug for FakeStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FakeStream").field(&self.socket).finish()
    }
}

async fn connect(from: IpAddr, to: SocketAddr) -> Result<TcpStream, Error> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::new(from, 0))?;
    socket
        .connect(to)
        .await
        .map_err(|error| match error.kind() {
            io::ErrorKind::ConnectionRefused => Error::Refused(error.to_string()),
            _ => Error::Io(error.to_string()),
        })
}

/// The caller that a source address on this host stands for.
fn peer_of(ip: IpAddr) -> (IpAddr, Via) {
    match ip.to_canonical() {
        IpAddr::V4(v4) => match v4.octets() {
            [127, 64, x, y] => (Ipv4Addr::new(100, 64, x, y).into(), Via::Tailnet),
            [127, 65, _, y] => (Ipv4Addr::new(203, 0, 113, y).into(), Via::Funnel),
            _ => (v4.into(), Via::Tailnet),
        },
        v6 => (v6, Via::Tailnet),
    }
}

fn tailnet_ip(number: u16) -> IpAddr {
    let [x, y] = number.to_be_bytes();
    Ipv4Addr::new(100, 64, x, y).into()
}

fn host_ip(number: u16) -> IpAddr {
    let [x, y] = number.to_be_bytes();
    Ipv4Addr::new(127, 64, x, y).into()
}

fn owner_id(identity: &Identity) -> Option<i64> {
    identity.tags.is_empty().then_some(identity.user_id)
}

fn owner(identity: &Identity) -> String {
    if identity.tags.is_empty() {
        identity.login.clone()
    } else {
        String::new()
    }
}

fn status(host: &str, number: u16, identity: &Identity) -> Status {
    Status {
        generation: 1,
        state: if identity.expired {
            BackendState::NeedsLogin
        } else {
            BackendState::Running
        },
        id: stable_id(number),
        name: format!("{host}.{SUFFIX}"),
        hostname: host.into(),
        addresses: vec![tailnet_ip(number)],
        tailnet: SUFFIX.into(),
        key_expiry: identity.key_expiry,
        expired: identity.expired,
        tags: identity.tags.clone(),
        owner: owner(identity),
        owner_id: owner_id(identity),
        in_map_poll: true,
        ..Status::default()
    }
}

fn whois(host: &str, entry: &Entry) -> WhoIs {
    let identity = &entry.identity;
    let user = if identity.tags.is_empty() {
        WhoIsUser {
            id: identity.user_id,
            login: identity.login.clone(),
            display_name: identity.display_name.clone(),
            picture: String::new(),
        }
    } else {
        WhoIsUser {
            id: TAGGED_USER,
            login: "tagged-devices".into(),
            display_name: "Tagged Devices".into(),
            picture: String::new(),
        }
    };
    WhoIs {
        node: WhoIsNode {
            id: stable_id(entry.number),
            name: format!("{host}.{SUFFIX}"),
            hostname: host.into(),
            addresses: vec![tailnet_ip(entry.number)],
            tags: identity.tags.clone(),
            key_expiry: identity.key_expiry,
            expired: identity.expired,
            sharer: identity.sharer,
            user_id: user.id,
            key: format!("nodekey:{:064x}", entry.number),
            numeric_id: entry.number.into(),
        },
        user,
        caps: identity.caps.clone(),
        same_tailnet: identity.same_tailnet,
    }
}

fn stable_id(number: u16) -> String {
    format!("nFAKE{number:04}CNTRL")
}
