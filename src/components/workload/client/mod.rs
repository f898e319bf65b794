//! The client of an issuer of workload tokens: what `tailbone workload …` does on a machine that is
//! no server.
//!
//! [`issuer`] fetches a token, [`agent`] keeps files fresh, [`aws`] buys credentials with a token,
//! and [`google`] answers as the libraries of Google ask.
//!
//! Invariants: no token appears in an error or a log line; a token reaches the file, the standard
//! output or the server that was named, and nothing else. Flags and variables are the command
//! line's concern.

pub mod agent;
pub mod aws;
pub mod google;
pub mod issuer;
