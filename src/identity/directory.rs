//! Who is behind a tailnet address, for addresses that a trusted proxy tells instead of a connection.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use jiff::Timestamp;

use super::{Refusal, Visitor};
use crate::tailnet::{
    self, Node, Status,
    join::{JoinState, classify},
};

/// The longest that the node may take to tell who somebody is.
const WHOIS_TIME: Duration = Duration::from_secs(5);
/// Addresses kept at once. A tailnet rarely has more callers of one service; where it has, the rest is asked for again.
const KNOWN: usize = 4096;

/// Looks callers up by address and keeps the answers while the network map stands still.
#[derive(Debug)]
pub struct Directory {
    node: Arc<dyn Node>,
    known: Mutex<Known>,
}

/// All answers are of one generation of the network map.
#[derive(Debug, Default)]
struct Known {
    generation: u64,
    visitors: HashMap<IpAddr, Arc<Visitor>>,
}

impl Directory {
    pub fn new(node: Arc<dyn Node>) -> Self {
        Self {
            node,
            known: Mutex::default(),
        }
    }

    /// Whether this is an address of our own node.
    pub fn is_own(&self, addr: IpAddr) -> bool {
        let addr = addr.to_canonical();
        self.node.watch().borrow().addresses.contains(&addr)
    }

    /// Who calls from there. The port says nothing on a tailnet.
    pub async fn visitor(&self, addr: IpAddr) -> Result<Arc<Visitor>, Refusal> {
        let addr = addr.to_canonical();
        running(&self.node.watch().borrow())?;
        // Read before asking, as for a connection.
        let generation = self.node.generation();
        if let Some(visitor) = self.kept(generation, addr) {
            return Ok(visitor);
        }
        let visitor = Arc::new(ask(self.node.as_ref(), SocketAddr::new(addr, 0)).await?);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.generation == generation {
            if known.visitors.len() >= KNOWN {
                known.visitors.clear();
            }
            known.visitors.insert(addr, visitor.clone());
        }
        Ok(visitor)
    }

    fn kept(&self, generation: u64, addr: IpAddr) -> Option<Arc<Visitor>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.generation != generation {
            known.visitors.clear();
            known.generation = generation;
        }
        known.visitors.get(&addr).cloned()
    }
}

/// Asks the node itself.
pub(super) async fn ask(node: &dyn Node, peer: SocketAddr) -> Result<Visitor, Refusal> {
    // A peer may appear as an IPv4 address inside IPv6, which the network map does not know.
    let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
    let answer = tokio::time::timeout(WHOIS_TIME, node.whois(peer)).await;
    let whois = match answer {
        Ok(Ok(whois)) => whois,
        Ok(Err(tailnet::Error::NotFound)) => return Err(Refusal::UnknownPeer),
        Ok(Err(error)) => return Err(Refusal::WhoIsFailed(Arc::new(error))),
        Err(_) => {
            let words = format!("no answer within {WHOIS_TIME:?}");
            return Err(Refusal::WhoIsFailed(Arc::new(tailnet::Error::Timeout(
                words,
            ))));
        }
    };
    let own = node.watch().borrow().tailnet.clone();
    Visitor::from_whois(whois, &own)
}

/// Whether what our node says of others can be believed: it is on the tailnet, its key is good, and the control server knows it.
/// Asked for each request, since the network map does not change when our own node loses its place in it.
pub(super) fn running(status: &Status) -> Result<(), Refusal> {
    match classify(status, false, Timestamp::now()) {
        JoinState::Running => Ok(()),
        state => Err(Refusal::NotRunning {
            state: state.code(),
        }),
    }
}
