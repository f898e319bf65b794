//! The identity of callers. It comes from the network (WhoIs). This module turns the network's
//! answer into a [`Caller`] or a [`Refusal`]; no other part of the program decides about identity.
//!
//! Invariants
//! - Access is denied wherever the identity is in doubt: own node not running, WhoIs failed,
//!   unknown peer, expired node, another tailnet.
//! - The identity behind an address is kept for all connections together, and only as long as the
//!   network map does not change ([`Directory`]).
//! - A peer that may no longer connect loses its connections, with whatever they carry
//!   ([`Connection`]).
//! - A Funnel peer is a variant of its own and is never looked up: its address means nothing on the
//!   tailnet.
//! - Code that wants callers of other tailnets has to ask for them: they come as a [`Visitor`],
//!   from [`Connection::visitor`].
//! - Request rates are counted per identity, over all of its nodes and connections
//!   ([`CallerRates`]).
//! - An address that a trusted proxy reports is looked up in the [`Directory`] and never treated as
//!   a connection.
//!
//! What a known caller may do is decided by the components; [`Caller::grants`] gives them the
//! values from the tailnet's policy.
//!
//! The node says who is behind an address, and rules say what that caller may do:
//!
//! ```
//! use tailbone_identity::{Visitor, policy::{CAPABILITY, Effect, Path, Rules, Target, Who}};
//! use tailbone_tailnet::{WhoIs, WhoIsUser};
//!
//! let whois = WhoIs {
//!     user: WhoIsUser { id: 1, login: "alice@example.com".into(), ..WhoIsUser::default() },
//!     same_tailnet: true,
//!     ..WhoIs::default()
//! };
//! let alice = Visitor::from_whois(whois, "example.ts.net")?;
//! let rules = "[[rule]]\ndecision = 'allow'\nwho = ['*@example.com']\npaths = ['/docs']\n";
//! let rules = Rules::parse(rules, CAPABILITY)?;
//! let docs = Target { path: Some(Path::parse("/docs/start")?), ..Target::default() };
//! assert_eq!(rules.decide(Who::Known(&alice), &docs).effect, Effect::Allow);
//! assert_eq!(rules.decide(Who::Nobody, &docs).effect, Effect::Deny);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod audience;
mod caller;
mod callers;
mod connection;
mod directory;
mod listener;
pub mod policy;
mod subject;
mod visitor;

pub use audience::{AudiencePattern, MAX_AUDIENCE_BYTES};
pub use caller::{Caller, Machine, Refusal, User};
pub use callers::CallerRates;
pub use connection::Connection;
pub use directory::Directory;
pub use listener::TailnetListener;
pub use subject::{NoSubject, SubjectTemplate};
pub use visitor::Visitor;
