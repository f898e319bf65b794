//! The tailnet as the rest of the program sees it: a [`Node`] that joins, says who a peer is, and
//! hands over connections.
//!
//! Invariants
//! - A connection and the address of its peer arrive together ([`Listener::accept`]); nothing is
//!   looked up by descriptor.
//! - [`Node::generation`] grows whenever an answer of [`Node::whois`] may have changed; reading it
//!   makes no call into Go.
//! - Every wait ends when its future is dropped or the node is closed; closing is idempotent and
//!   bounded.
//!
//! `embedded.rs` is the real node, `fake.rs` one on loopback TCP for fast tests; both pass the same
//! list of tests. `join.rs` brings a node onto the tailnet. Between the real node and Go:
//!
//! - `ffi.rs` is the fence: every call into Go, and the unsafe code;
//! - `calls.rs` has the threads that make those calls;
//! - `id_token.rs` asks the platform for an ID token when Go needs one to join;
//! - `wire.rs` reads the messages that Go sends on descriptors;
//! - `shared_buffer` holds the bytes of accepted connections in memory that Go fills and empties,
//!   and lets Go's thread poll the future that serves a connection.
//!
//! What a caller may do is decided in `identity` and above, not here.
//!
//! ```no_run
//! use tailbone_tailnet::{BackendState, Config, EmbeddedNode, ListenAddr, Node as _};
//! use tailbone_values::Secret;
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let config = Config {
//!     hostname: "hello".into(),
//!     dir: "state".into(),
//!     auth_key: Some(Secret::new(std::env::var("TS_AUTHKEY")?)),
//!     ..Config::default()
//! };
//! let node = EmbeddedNode::start(&config).await?;
//! node.watch().wait_for(|status| status.state == BackendState::Running).await?;
//! let mut listener = node.listen(ListenAddr::Port(80)).await?;
//! let (stream, peer) = listener.accept().await?;
//! let who = node.whois(peer.addr).await?;
//! println!("{} called", who.user.login);
//! # drop(stream);
//! # Ok(())
//! # }
//! ```

#[cfg(feature = "test-util")]
mod axum;
mod calls;
mod certificate;
mod config;
mod embedded;
mod error;
#[cfg(any(test, feature = "test-util"))]
pub mod fake;
mod ffi;
#[cfg(feature = "test-util")]
pub mod fuzzing;
mod id_token;
pub mod join;
mod listener;
mod log;
mod membership;
mod shared_buffer;
mod status;
mod stream;
mod wire;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use jiff::SignedDuration;
use tokio::sync::watch;

pub use certificate::{CertificateError, CertificatePair, CertificateRefusal};
pub use config::{Config, LogLevel, StateStore};
pub use embedded::{
    CLOSE_WITHIN, EmbeddedNode, EngineVersion, RuntimeLimits, RuntimeStats, engine_version,
    limit_runtime, runtime_stats,
};
pub use error::{Error, FunnelLack};
pub use listener::{ListenAddr, Listener, Peer, Via};
pub use membership::Membership;
pub use shared_buffer::batch_wakeups;
pub use status::{BackendState, Status, WhoIs, WhoIsNode, WhoIsUser};
pub use stream::Stream;

/// A node of a tailnet. Two implementations: the embedded tsnet node and the fake one.
pub trait Node: Send + Sync + std::fmt::Debug + 'static {
    /// Grows with every change of the network map. A cached [`WhoIs`] is valid while this number is
    /// unchanged.
    fn generation(&self) -> u64;
    /// The newest state that the node has reported about itself. There is a value from the start;
    /// the last one is `Stopped`.
    fn watch(&self) -> watch::Receiver<Arc<Status>>;
    /// Who is behind this tailnet address.
    fn whois(&self, peer: SocketAddr) -> BoxFuture<'_, Result<WhoIs, Error>>;
    /// As [`Node::whois`], for a peer that is connected to `local`, an address of this node.
    /// [`Error::Forbidden`] if the packet filter would not let the peer connect now. (The node
    /// applies the filter only to the first packet of a connection.)
    fn whois_at(&self, peer: SocketAddr, local: SocketAddr) -> BoxFuture<'_, Result<WhoIs, Error>>;
    /// Listens on the tailnet or through Funnel, never on an address of the host.
    /// [`Error::NoFunnel`] if the tailnet does not let the node use Funnel; a listener of Funnel
    /// ends with the same error when the tailnet withdraws that.
    fn listen(&self, addr: ListenAddr) -> BoxFuture<'_, Result<Listener, Error>>;
    /// Opens a TCP connection over the tailnet to `host:port`; MagicDNS names work.
    fn dial<'a>(&'a self, addr: &'a str, timeout: Duration)
    -> BoxFuture<'a, Result<Stream, Error>>;
    /// A certificate for `name`, one of [`Status::cert_domains`], that is valid for at least
    /// `min_validity` from now on. A negative time also takes one that ended at most so long ago.
    /// No more than two thirds of a certificate's life are asked for.
    ///
    /// A pair that the node keeps and that lasts long enough is given at once, without the network.
    /// Otherwise one is ordered, which may take minutes. The node itself orders no more often than
    /// the authority allows, over restarts too, so callers may ask at any time.
    fn certificate<'a>(
        &'a self,
        name: &'a str,
        min_validity: SignedDuration,
    ) -> BoxFuture<'a, Result<CertificatePair, CertificateError>>;
    /// Removes this node from the control server, as an ephemeral node does on a clean stop.
    fn logout(&self, timeout: Duration) -> BoxFuture<'_, Result<(), Error>>;
    /// Ends all listeners, streams and waits. Idempotent; takes at most 6 s.
    fn close(&self) -> BoxFuture<'_, ()>;
}
