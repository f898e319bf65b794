//! All tests that may share a process, in one binary: each further one would link the Go archive once more.
// Tests say what they expect by failing; the lints that keep the daemon from panicking do not help here.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::cast_possible_truncation)]

mod jwks;
mod keys;
mod keys_fixture;
mod keys_crash;
mod keys_rotation;
