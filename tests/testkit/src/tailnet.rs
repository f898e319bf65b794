//! The two tailnets on which nodes are tested, behind one trait: the fake one, and a real one on
//! loopback with embedded nodes.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use tailbone_tailnet::{
    BackendState, Config, EmbeddedNode, LogLevel, Node, Status,
    fake::{FakeTailnet, Identity},
};
use tailbone_values::Secret;

use crate::{
    devnet::{Devnet, Key},
    soon,
};

/// The owner of a node.
#[derive(Debug, Clone, Copy)]
pub enum Owner {
    User(&'static str),
    Tag(&'static str),
}

/// A tailnet and what its admin can do.
#[allow(async_fn_in_trait)] // Used by generic tests of this crate alone.
pub trait Tailnet: Sync {
    /// The name of a login in this tailnet.
    fn login(&self, login: &str) -> String;
    /// A new node that runs.
    async fn node(&self, host: &str, owner: Owner) -> Arc<dyn Node>;
    async fn rename_login(&self, node: &Status, login: &str);
    async fn set_tags(&self, node: &Status, tags: &[&str]);
    async fn expire(&self, node: &Status);
    async fn delete(&self, node: &Status);
    async fn grant(&self, src: &Status, dst: &Status, cap: &str, value: serde_json::Value);
    /// Drops its handles of nodes without closing them.
    fn forget(&self);
    /// Closes all nodes that it has.
    async fn end(self);
}

impl Tailnet for FakeTailnet {
    fn login(&self, login: &str) -> String {
        login.into()
    }

    async fn node(&self, host: &str, owner: Owner) -> Arc<dyn Node> {
        let identity = match owner {
            Owner::User(login) => Identity::user(login),
            Owner::Tag(tag) => Identity::tagged([tag]),
        };
        Arc::new(self.join(host, identity))
    }

    async fn rename_login(&self, node: &Status, login: &str) {
        assert!(self.update(&node.hostname, |id| id.login = login.into()));
    }

    async fn set_tags(&self, node: &Status, tags: &[&str]) {
        let tags = tags.iter().map(|t| (*t).to_owned()).collect();
        assert!(self.update(&node.hostname, |id| id.tags = tags));
    }

    async fn expire(&self, node: &Status) {
        assert!(Self::expire(self, &node.hostname));
    }

    async fn delete(&self, node: &Status) {
        assert!(self.remove(&node.hostname));
    }

    async fn grant(&self, src: &Status, _dst: &Status, cap: &str, value: serde_json::Value) {
        assert!(self.update(&src.hostname, |id| {
            id.caps.entry(cap.into()).or_default().push(value);
        }));
    }

    fn forget(&self) {}

    async fn end(self) {}
}

/// Embedded nodes on a devnet that other tests use at the same time: the hosts of each such tailnet
/// have their own names.
#[derive(Debug)]
pub struct DevnetTailnet {
    pub devnet: &'static Devnet,
    prefix: u32,
    dir: tempfile::TempDir,
    nodes: Mutex<Vec<Arc<EmbeddedNode>>>,
}

impl DevnetTailnet {
    pub fn new() -> Self {
        static WORLDS: AtomicU32 = AtomicU32::new(0);
        Self {
            devnet: Devnet::shared(),
            prefix: WORLDS.fetch_add(1, Ordering::Relaxed),
            dir: tempfile::tempdir().unwrap(),
            nodes: Mutex::default(),
        }
    }

    pub fn config(&self, host: &str, auth_key: &str) -> Config {
        config(self.devnet, self.dir.path(), &self.host(host), auth_key)
    }

    /// The name of a host on the shared tailnet.
    pub fn host(&self, host: &str) -> String {
        format!("{host}-{}", self.prefix)
    }

    /// Starts a node without waiting until it runs.
    pub async fn start(&self, config: &Config) -> Arc<EmbeddedNode> {
        let node = Arc::new(soon("start", EmbeddedNode::start(config)).await.unwrap());
        self.nodes.lock().unwrap().push(Arc::clone(&node));
        node
    }
}

impl Default for DevnetTailnet {
    fn default() -> Self {
        Self::new()
    }
}

impl Tailnet for DevnetTailnet {
    fn login(&self, login: &str) -> String {
        format!("{}.{login}", self.prefix)
    }

    async fn node(&self, host: &str, owner: Owner) -> Arc<dyn Node> {
        let mut key = Key {
            preauthorized: true,
            ..Key::default()
        };
        match owner {
            // A renamed login is renamed for all nodes of its user, so each tailnet has its own
            // users.
            Owner::User(login) => key.login = self.login(login),
            Owner::Tag(tag) => key.tags = vec![tag.into()],
        }
        let key = self.devnet.key(&key).await;
        let node = self.start(&self.config(host, &key)).await;
        running(&*node).await;
        node
    }

    async fn rename_login(&self, node: &Status, login: &str) {
        self.devnet.rename_login(&node.id, &self.login(login)).await;
    }

    async fn set_tags(&self, node: &Status, tags: &[&str]) {
        self.devnet.set_tags(&node.id, tags).await;
    }

    async fn expire(&self, node: &Status) {
        self.devnet.expire(&node.id).await;
    }

    async fn delete(&self, node: &Status) {
        self.devnet.delete_node(&node.id).await;
    }

    async fn grant(&self, src: &Status, dst: &Status, cap: &str, value: serde_json::Value) {
        self.devnet.grant(&src.id, &dst.id, cap, value).await;
    }

    fn forget(&self) {
        self.nodes.lock().unwrap().clear();
    }

    async fn end(self) {
        let nodes = std::mem::take(&mut *self.nodes.lock().unwrap());
        futures_util::future::join_all(nodes.iter().map(|node| node.close())).await;
    }
}

pub fn config(devnet: &Devnet, state: &std::path::Path, host: &str, auth_key: &str) -> Config {
    Config {
        hostname: host.into(),
        dir: state.join(host),
        auth_key: (!auth_key.is_empty()).then(|| Secret::new(auth_key)),
        control_url: Some(devnet.ready.control_url.clone()),
        log_level: LogLevel::Warn,
        ..Config::default()
    }
}

/// A running node of a user, `HOST@example.com`, on a devnet used by one test.
pub async fn users_node(devnet: &Devnet, state: &std::path::Path, host: &str) -> EmbeddedNode {
    let key = Key {
        login: format!("{host}@example.com"),
        ..Key::default()
    };
    node_with(devnet, state, host, key).await
}

/// A running machine with this tag, on a devnet used by one test.
pub async fn tagged_node(
    devnet: &Devnet,
    state: &std::path::Path,
    host: &str,
    tag: &str,
) -> EmbeddedNode {
    let key = Key {
        tags: vec![tag.to_owned()],
        ..Key::default()
    };
    node_with(devnet, state, host, key).await
}

async fn node_with(devnet: &Devnet, state: &std::path::Path, host: &str, key: Key) -> EmbeddedNode {
    let key = Key {
        preauthorized: true,
        ..key
    };
    let key = devnet.key(&key).await;
    let node = EmbeddedNode::start(&config(devnet, state, host, &key))
        .await
        .unwrap();
    running(&node).await;
    node
}

/// Waits until the node is on the tailnet.
pub async fn running(node: &dyn Node) -> Arc<Status> {
    status_becomes(node, "Running", |status| {
        status.state == BackendState::Running && !status.addresses.is_empty()
    })
    .await
}

/// Waits until the node's own status is as wanted.
pub async fn status_becomes(
    node: &dyn Node,
    what: &str,
    wanted: impl FnMut(&Status) -> bool,
) -> Arc<Status> {
    let mut watch = node.watch();
    let mut wanted = wanted;
    let waited = tokio::time::timeout(crate::patience(), watch.wait_for(|s| wanted(s)))
        .await
        .map(|status| Arc::clone(&status.unwrap()));
    match waited {
        Ok(status) => status,
        Err(_) => panic!("not {what} in time, but {:?}", node.watch().borrow()),
    }
}

/// Waits until the network map has changed since `generation`.
pub async fn generation_moves(node: &dyn Node, generation: u64) {
    let began = tokio::time::Instant::now();
    while node.generation() == generation {
        assert!(
            began.elapsed() < crate::patience(),
            "the generation stands still at {generation}"
        );
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
