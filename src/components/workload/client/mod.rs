//! The client of an issuer of workload tokens: what `tailbone workload …` does on a machine that is
//! no server.
//!
//! [`issuer`] fetches a token, [`agent`] keeps files fresh, [`aws`] buys credentials with a token,
//! [`google`] answers as the libraries of Google ask, and [`spiffe`] as those of SPIFFE.
//! [`recipe`] says how clouds come to trust the issuer.
//!
//! Invariants: no token appears in an error or a log line; a token reaches the file, the standard
//! output or the server that was named, and nothing else. Flags and variables are the command
//! line's concern.

pub mod agent;
pub mod aws;
mod cache;
pub mod google;
pub mod issuer;
pub mod recipe;
pub mod spiffe;
