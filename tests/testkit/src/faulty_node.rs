//! A fake node that a test can make fail, hold back answers, or answer something else.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::future::BoxFuture;
use jiff::SignedDuration;
use tailbone_tailnet::{
    CertificateError, CertificatePair, Error, ListenAddr, Listener, Node, Status, Stream, WhoIs,
    fake::FakeNode,
};
use tokio::sync::{Semaphore, watch};

/// What is wrong with the answers to WhoIs.
#[derive(Clone, Default)]
pub enum Fault {
    #[default]
    None,
    /// The answer is changed by this function.
    Changed(Arc<dyn Fn(&mut WhoIs) + Send + Sync>),
    Fails,
    Hangs,
}

impl Fault {
    pub fn changed(change: impl Fn(&mut WhoIs) + Send + Sync + 'static) -> Self {
        Self::Changed(Arc::new(change))
    }
}

impl fmt::Debug for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "None",
            Self::Changed(_) => "Changed",
            Self::Fails => "Fails",
            Self::Hangs => "Hangs",
        })
    }
}

/// A fake node with faults. It also knows its callers by their loopback addresses, which a proxy on
/// this host sees.
#[derive(Debug)]
pub struct FaultyNode {
    node: FakeNode,
    fault: Mutex<Fault>,
    /// One for each WhoIs call that may be answered.
    answers: Semaphore,
    asked: AtomicUsize,
    ports_open: AtomicBool,
}

impl FaultyNode {
    pub fn new(node: FakeNode) -> Self {
        Self {
            node,
            fault: Mutex::default(),
            answers: Semaphore::new(Semaphore::MAX_PERMITS),
            asked: AtomicUsize::new(0),
            ports_open: AtomicBool::new(false),
        }
    }

    /// Sets what is wrong from the next WhoIs call on. Identities that are kept stay so until the
    /// next generation.
    pub fn set_fault(&self, fault: Fault) {
        *self.fault.lock().unwrap() = fault;
    }

    /// Holds every answer back until [`Self::answer_one`].
    pub fn hold_answers(&self) {
        self.answers.forget_permits(Semaphore::MAX_PERMITS);
    }

    /// Lets WhoIs calls be answered, one at a time.
    pub fn answer_one(&self) {
        self.answers.add_permits(1);
    }

    /// Opens every port to every peer, whatever the fake tailnet says.
    pub fn open_ports(&self) {
        self.ports_open.store(true, Ordering::SeqCst);
    }

    /// Starts a new generation of the network map without any change.
    pub fn new_generation(&self) {
        self.node.set_status(|_| {});
    }

    /// The number of WhoIs calls.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

impl Node for FaultyNode {
    fn generation(&self) -> u64 {
        self.node.generation()
    }

    fn watch(&self) -> watch::Receiver<Arc<Status>> {
        self.node.watch()
    }

    fn whois(&self, peer: SocketAddr) -> BoxFuture<'_, Result<WhoIs, Error>> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        Box::pin(async move {
            let _permit = self.answers.acquire().await.unwrap();
            let fault = self.fault.lock().unwrap().clone();
            match fault {
                Fault::Fails => return Err(Error::Internal("inner words".into())),
                Fault::Hangs => std::future::pending().await,
                Fault::None | Fault::Changed(_) => {}
            }
            let peer = SocketAddr::new(on_the_tailnet(peer.ip()), peer.port());
            let mut whois = self.node.whois(peer).await?;
            if let Fault::Changed(change) = fault {
                change(&mut whois);
            }
            Ok(whois)
        })
    }

    fn whois_at(&self, peer: SocketAddr, local: SocketAddr) -> BoxFuture<'_, Result<WhoIs, Error>> {
        let whois = self.whois(peer);
        Box::pin(async move {
            let whois = whois.await?;
            if !self.ports_open.load(Ordering::SeqCst) {
                self.node.whois_at(peer, local).await?;
            }
            Ok(whois)
        })
    }

    fn listen(&self, addr: ListenAddr) -> BoxFuture<'_, Result<Listener, Error>> {
        self.node.listen(addr)
    }

    fn dial<'a>(
        &'a self,
        addr: &'a str,
        timeout: Duration,
    ) -> BoxFuture<'a, Result<Stream, Error>> {
        self.node.dial(addr, timeout)
    }

    fn certificate<'a>(
        &'a self,
        name: &'a str,
        min_validity: SignedDuration,
    ) -> BoxFuture<'a, Result<CertificatePair, CertificateError>> {
        self.node.certificate(name, min_validity)
    }

    fn logout(&self, timeout: Duration) -> BoxFuture<'_, Result<(), Error>> {
        self.node.logout(timeout)
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.node.close()
    }
}

/// The tailnet address of a fake node that has this loopback address; others stay as they are.
fn on_the_tailnet(addr: IpAddr) -> IpAddr {
    match addr {
        IpAddr::V4(v4) if v4.octets()[..2] == [127, 64] => {
            let [_, _, x, y] = v4.octets();
            Ipv4Addr::new(100, 64, x, y).into()
        }
        other => other,
    }
}
