//! All tests that can share a process, in one binary: every further binary would link the Go
//! archive again.
// Tests report failures by panicking; the lints that keep the daemon from panicking do not help
// here.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation
)]

mod admin;
mod architecture;
mod config;
mod fuzz;
mod gate;
mod identity;
mod inspection;
mod issuer;
mod jwks;
mod keys;
mod limits;
mod oidc;
mod prompt;
mod sts;
mod tailnet;
mod tls;
mod workload;
mod workload_client;
