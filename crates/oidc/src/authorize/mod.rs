//! The authorization request: reading it, deciding whether a person must be asked, and where the
//! answer goes.
//!
//! Invariants
//! - Nothing is sent to a redirect URI before the client is known and has registered it. Until then
//!   an error is a page ([`destination`]).
//! - Parameters that the standards define and that are not honoured are refused, never ignored:
//!   `request`, `request_uri`, `registration`. Unknown ones are ignored.
//! - `state` goes back as it came, and every answer names the issuer (RFC 9207).

mod answer;
mod consent;
mod pkce;
mod request;

pub use answer::{Answer, ReplyTo, ResponseMode};
pub use consent::{Asked, Decision, Session, decide};
pub use pkce::{Challenge, verify};
pub use request::{
    AuthorizationRequest, Destination, Prompt, ReadRules, Refused, UnknownScopes, destination,
    parse_scopes, resources,
};

/// The scopes that mean something here.
pub const SCOPES: [&str; 4] = ["openid", "email", "profile", "groups"];
