//! All tests that may share a process, in one binary: each further one would link the Go archive once more.
// Tests say what they expect by failing; the lints that keep the daemon from panicking do not help here.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation
)]

mod architecture;
