//! The authorization request, whose parameters the provider has gathered from wherever they stood
//! (`provider/requests.rs`): reading it, deciding whether a person must be asked, and where the
//! answer goes.
//!
//! Invariants
//! - Nothing is sent to a redirect URI before the client is known and has registered it. Until then
//!   an error is a page ([`destination`]).
//! - `registration`, which the standards define and which is not honoured, is refused, never
//!   ignored. Unknown parameters are ignored.
//! - `state` goes back as it came, and every answer names the issuer (RFC 9207).

mod answer;
mod consent;
mod pkce;
mod request;

pub use answer::{Answer, ReplyTo, ResponseMode};
pub use consent::{Asked, Decision, Session, decide};
pub use pkce::{Challenge, verify};
pub use request::{
    AuthorizationRequest, Destination, Prompt, ReadRules, Refused, UnknownScopes, client_id,
    destination, parse_scopes, resources,
};

/// The scopes that mean something here.
pub const SCOPES: [&str; 4] = ["openid", "email", "profile", "groups"];
