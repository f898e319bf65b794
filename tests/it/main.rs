//! Whole-program and cross-module tests in one binary: each file more would link the Go archive once more.

// A test says what is wrong by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

// Every test binary compiles all of it and uses a part.
#[allow(dead_code, unreachable_pub)]
#[path = "../support/mod.rs"]
mod support;

mod tailnet;
