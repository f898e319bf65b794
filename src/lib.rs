//! tailbone: identity services on a Tailscale network, from a node inside the process.
//!
//! Dependencies point down: [`cli`] and [`server`] -> the [`components`] -> [`part`] -> [`config`]
//! -> the crates, which are re-exported here: [`identity`] with [`policy`], [`keys`] with [`jwks`],
//! [`tailnet`], [`http`], [`telemetry`] and [`web`]. Components never import each other.
//! `ARCHITECTURE.md` is the map.

pub mod cli;
pub mod components;
pub mod config;
pub mod part;
pub mod server;
pub mod signals;
pub mod token_endpoint;
pub mod version;

pub use components::{admin, gate, issuer, metrics, oidc, sts, workload};
pub use tailbone_http as http;
pub use tailbone_identity::{self as identity, policy};
pub use tailbone_keys::{self as keys, jwks};
pub use tailbone_tailnet as tailnet;
pub use tailbone_telemetry::{self as telemetry, audit};
pub use tailbone_values::web;
