//! The tailnet as the rest of the program sees it: a [`Node`] that joins, tells who a peer is, and hands over connections.
//!
//! Invariants
//! - A connection and the address of its peer arrive together ([`Listener::accept`]); nothing is looked up by descriptor.
//! - [`Node::generation`] grows whenever an answer of [`Node::whois`] may have changed; reading it costs no call.
//! - Every wait ends when its future is dropped or the node is closed; closing is idempotent and bounded.
//!
//! `ffi.rs` is the fence to Go and holds the unsafe code, `calls.rs` the threads that go through it, `wire.rs` what comes back on
//! descriptors, `direct.rs` the bytes of accepted connections, `inline.rs` who serves them where they arrive; `embedded.rs` is the real node, `fake.rs` one on loopback TCP for fast tests. Both pass the same test list.
//! `join.rs` brings a node onto the tailnet. Who may do what is not decided here: see `identity`.

mod calls;
mod config;
mod direct;
mod embedded;
mod error;
#[doc(hidden)]
pub mod fake;
mod ffi;
#[doc(hidden)]
pub mod fuzzing;
mod inline;
pub mod join;
mod listener;
mod log;
mod status;
mod stream;
mod wire;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use tokio::sync::watch;

pub use config::{Config, LogLevel, Store};
pub use direct::together;
pub use embedded::{
    CLOSE_WITHIN, EmbeddedNode, EngineVersion, RuntimeLimits, RuntimeStats, engine_version,
    limit_runtime, runtime_stats,
};
pub use error::Error;
pub use listener::{ListenAddr, Listener, Peer, Via};
pub use status::{BackendState, Status, WhoIs, WhoIsNode, WhoIsUser};
pub use stream::Stream;

/// A node of a tailnet. Two implementations: the embedded tsnet node and the fake.
pub trait Node: Send + Sync + std::fmt::Debug + 'static {
    /// Grows with every change of the network map; a cached [`WhoIs`] is good while it stands still.
    fn generation(&self) -> u64;
    /// The newest picture of the node's own state. The first value is there from the start; the last one is `Stopped`.
    fn watch(&self) -> watch::Receiver<Arc<Status>>;
    /// Who is behind this tailnet address.
    fn whois(&self, peer: SocketAddr) -> BoxFuture<'_, Result<WhoIs, Error>>;
    /// The same, for a peer that is connected to `local`, an address of ours. [`Error::Forbidden`] where the packet filter would
    /// not let it connect now: the node itself asks the filter for the first packet of a connection alone.
    fn whois_at(&self, peer: SocketAddr, local: SocketAddr) -> BoxFuture<'_, Result<WhoIs, Error>>;
    /// Listens on the tailnet only. `addr` as in [`ListenAddr`].
    fn listen(&self, addr: ListenAddr) -> BoxFuture<'_, Result<Listener, Error>>;
    /// Opens a TCP connection over the tailnet (`host:port`, MagicDNS names included).
    fn dial<'a>(&'a self, addr: &'a str, timeout: Duration)
    -> BoxFuture<'a, Result<Stream, Error>>;
    /// Forgets this node on the control server (what an ephemeral node does on a clean stop).
    fn logout(&self, timeout: Duration) -> BoxFuture<'_, Result<(), Error>>;
    /// Ends everything: listeners, streams, waits. Idempotent, at most 6 s.
    fn close(&self) -> BoxFuture<'_, ()>;
}
