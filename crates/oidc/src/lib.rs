//! The OpenID provider: what a client may ask, what it is answered, and the state between.
//!
//! Nothing here knows the tailnet. The component `oidc` of the program tells each rule who calls,
//! and gives it the time.

pub mod assertion;
pub mod authorize;
pub mod capability;
pub mod claims;
pub mod client;
pub mod client_files;
pub mod client_keys;
pub mod device;
pub mod discovery;
pub mod documents;
mod error;
pub mod fetch;
pub mod grant;
pub mod logout;
pub mod par;
mod params;
pub mod provider;
pub mod request_object;
#[cfg(test)]
mod signing;
pub mod store;
#[cfg(test)]
mod store_tests;
pub mod token;

pub use error::{OidcError, describable};
pub use params::Params;
