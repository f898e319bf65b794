//! Clients: what they say about themselves, and where their users may be sent back to.
//!
//! Where clients are kept is for the store; what they may do by the tailnet's policy is in
//! [`crate::capability`].

mod metadata;
pub mod redirect;

pub use metadata::{AuthMethod, BadMetadata, ClientMetadata, Login, Offered};
