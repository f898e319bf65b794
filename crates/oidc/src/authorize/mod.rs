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

/// How the person was authenticated (`acr`): by the device's place in the tailnet and the browser's
/// session alone, or by the person's confirmation in this very request as well.
pub const ACR_NETWORK: &str = "0";
pub const ACR_CONFIRMED: &str = "1";

/// Both, for discovery.
pub const ACR_VALUES: [&str; 2] = [ACR_NETWORK, ACR_CONFIRMED];

/// What `prompt` may say. Other words are ignored.
pub const PROMPTS: [&str; 4] = ["none", "login", "consent", "select_account"];

/// What `display` may say. A page looks the same in each of them, and other words are ignored.
pub const DISPLAYS: [&str; 4] = ["page", "popup", "touch", "wap"];

/// The languages of pages (`ui_locales`). No claim has several (`claims_locales`).
pub const LOCALES: [&str; 1] = ["en"];

/// The scopes that mean something here.
pub const SCOPES: [&str; 4] = ["openid", "email", "profile", "groups"];
