//! A fake tailnet with our node on it, its peers, and servers on the node's ports.

use std::sync::Arc;

use axum::{Router, routing::get};
use tailbone_http::{
    host::{HostRule, NodeNames},
    layers,
    serve::{Limits, LiveLimits, Server, serve},
};
use tailbone_identity::{Caller, CallerRates, Directory, TailnetListener};
use tailbone_tailnet::{
    ListenAddr, Node, Peer,
    fake::{FakeNode, FakeTailnet, Identity},
};
use tailbone_telemetry::meter::Meter;
use tailbone_values::web::{Allowed, HostPattern};

use crate::{faulty_node::FaultyNode, http::Connection};

pub struct World {
    pub tailnet: FakeTailnet,
    /// Our node, `tailbone`.
    pub node: FakeNode,
    /// The same node as the servers ask it, with the faults that a test sets.
    pub faulty: Arc<FaultyNode>,
    /// The identities of all callers.
    pub directory: Directory,
    /// The node's names of host.
    pub names: NodeNames,
}

impl World {
    /// With a node of `owner@example.com`.
    pub fn new() -> Self {
        Self::owned_by(Identity::user("owner@example.com"))
    }

    pub fn owned_by(owner: Identity) -> Self {
        let tailnet = FakeTailnet::new();
        let node = tailnet.join("tailbone", owner);
        let faulty = Arc::new(FaultyNode::new(node.clone()));
        let names = NodeNames::default();
        let status = node.watch().borrow().clone();
        names.set(&status.name, &status.hostname, &status.addresses);
        Self {
            tailnet,
            node,
            directory: Directory::new(faulty.clone()),
            faulty,
            names,
        }
    }

    /// A new node of `HOST@example.com`.
    pub fn peer(&self, host: &str) -> FakeNode {
        self.join(host, Identity::user(&format!("{host}@example.com")))
    }

    /// A new node of anybody.
    pub fn join(&self, host: &str, identity: Identity) -> FakeNode {
        self.tailnet.join(host, identity)
    }

    /// A connection of a peer to a port of our node.
    pub async fn call(&self, peer: &FakeNode, port: u16) -> Connection {
        Connection::to(peer, "tailbone", port).await
    }

    /// Serves routes, which have their layers, at a port of our node.
    pub async fn serve(&self, port: u16, routes: Router) -> Server {
        self.serve_with(port, routes, Serving::default()).await
    }

    /// Serves a router with the usual layers and these limits, those of callers among them.
    pub async fn serve_limited(
        &self,
        port: u16,
        router: Router,
        limits: impl Into<LiveLimits>,
    ) -> Server {
        let limits: LiveLimits = limits.into();
        self.serve_with(port, layers::wrap(router, "test"), limits)
            .await
    }

    pub async fn serve_with(
        &self,
        port: u16,
        routes: Router,
        serving: impl Into<Serving>,
    ) -> Server {
        let Serving {
            limits,
            hosts,
            callers,
            meter,
        } = serving.into();
        let listener = self.node.listen(ListenAddr::Port(port)).await.unwrap();
        let directory = match callers {
            Some(callers) => Directory::with(self.faulty.clone(), meter, Some(callers)),
            None => self.directory.clone(),
        };
        let identify = move |peer: Peer| {
            let mut known = directory.identify(peer);
            if let Some(hosts) = hosts.clone() {
                known.insert(hosts);
            }
            known
        };
        serve("test", TailnetListener(listener), routes, limits, identify)
    }

    /// Takes requests for the node's own names and these alone.
    pub fn hosts(&self, also: &[&str]) -> HostRule {
        let also = allowed(also, HostPattern::parse);
        HostRule::of_node(self.names.clone(), &also)
    }
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

/// How routes are served.
pub struct Serving {
    pub limits: LiveLimits,
    /// The hosts for which requests are taken, if not for all.
    pub hosts: Option<HostRule>,
    /// Counts each caller's requests. A listener that counts has identities of its own.
    pub callers: Option<CallerRates>,
    /// Counts what such a listener asks the node.
    pub meter: Meter,
}

impl Default for Serving {
    fn default() -> Self {
        Self {
            limits: Limits::default().into(),
            hosts: None,
            callers: None,
            meter: Meter::default(),
        }
    }
}

/// With the limits of callers too, as the server does it.
impl From<LiveLimits> for Serving {
    fn from(limits: LiveLimits) -> Self {
        Self {
            callers: Some(CallerRates::new(limits.clone())),
            limits,
            ..Self::default()
        }
    }
}

impl From<Limits> for Serving {
    fn from(limits: Limits) -> Self {
        LiveLimits::from(limits).into()
    }
}

/// A router that answers `/` with its caller.
pub fn caller_routes() -> Router {
    Router::new().route("/", get(|caller: Caller| async move { caller.to_string() }))
}

/// Words of a setting that allows something.
pub fn allowed<T>(words: &[&str], one: impl Fn(&str) -> Result<T, String>) -> Vec<Allowed<T>> {
    words
        .iter()
        .map(|word| Allowed::parse(word, &one).unwrap())
        .collect()
}
