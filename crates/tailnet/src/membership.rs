//! The server's own place on the tailnet, as everybody in the process may ask for it: from the
//! first moment on, while the node joins, and once it has joined.

use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwapOption;
use jiff::Timestamp;

use super::{
    Node, Status,
    join::{JoinState, classify},
};

/// The node once it has joined, and the progress of joining before that. Clones share one state.
#[derive(Debug, Clone, Default)]
pub struct Membership {
    node: Arc<OnceLock<Arc<dyn Node>>>,
    joining: Arc<ArcSwapOption<JoinState>>,
}

impl Membership {
    /// Sets the progress of joining, until there is a node.
    pub fn joining(&self, state: JoinState) {
        self.joining.store(Some(Arc::new(state)));
    }

    /// To be called once; a second node is ignored.
    pub fn joined(&self, node: Arc<dyn Node>) {
        let _ = self.node.set(node);
    }

    /// The node, if it has joined.
    pub fn node(&self) -> Option<&Arc<dyn Node>> {
        self.node.get()
    }

    /// What the node says about itself; nothing before it has joined.
    pub fn status(&self) -> Arc<Status> {
        self.node
            .get()
            .map(|node| node.watch().borrow().clone())
            .unwrap_or_default()
    }

    /// The node's state on the tailnet.
    pub fn state(&self, now: Timestamp) -> JoinState {
        match (self.node.get(), self.joining.load_full()) {
            (Some(node), _) => classify(&node.watch().borrow(), false, now),
            (None, Some(state)) => JoinState::clone(&state),
            (None, None) => JoinState::Starting,
        }
    }
}
