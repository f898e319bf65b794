//! The OpenID provider: what a client may ask, what it is answered, and the state between.
//!
//! Nothing here knows the tailnet. The component `oidc` of the program tells each rule who calls,
//! and gives it the time.

pub mod store;
