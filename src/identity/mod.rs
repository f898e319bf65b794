//! Who calls. The network says it (WhoIs); this module turns its words into a [`Caller`] or a [`Refusal`], and nothing else
//! in the program decides about identity.
//!
//! Invariants
//! - Denied wherever identity is in doubt: node not running, WhoIs failed, unknown peer, expired node, another tailnet.
//! - Who is behind an address is kept for all connections together, and only while the network map stands still ([`Directory`]).
//! - Whoever may no longer connect has no connection: it ends with what it carries ([`Connection`]).
//! - A Funnel peer is a variant of its own and is never looked up: its address means nothing on the tailnet.
//!
//! - Whoever wants callers of other tailnets has to say so: they come as a [`Visitor`], from [`Connection::visitor`].
//! - How much one caller may ask is counted per identity, over all its nodes and connections ([`Callers`]).
//! - An address that a trusted proxy tells is looked up in the [`Directory`], never taken for a connection.
//!
//! What a known caller may do is left to the components; [`Caller::grants`] hands them the tailnet policy's own words.

mod caller;
mod callers;
mod connection;
mod directory;
mod visitor;

pub use caller::{Caller, Machine, Refusal, User};
pub use callers::Callers;
pub use connection::Connection;
pub use directory::Directory;
pub use visitor::Visitor;
