//! The store on real databases: one list of promises for both, and what only one of them has.
//!
//! PostgreSQL is one of the machine's, started here in a temporary directory. Where it is not
//! installed, its tests say so and do nothing.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

mod killed;
mod measure;
mod moving;
mod postgres;
mod promises;
mod server;
mod sqlite;
