//! tailbone: identity services on a Tailscale network, from a node inside the process.
//!
//! Dependencies point down: [`cli`] and [`server`] -> the components (issuer, [`admin`], [`gate`],
//! [`metrics`], [`sts`]) -> [`part`] -> [`policy`], [`jwks`], [`keys`], [`identity`] -> [`tailnet`], [`http`],
//! [`telemetry`], [`config`]. Components never import each other. `ARCHITECTURE.md` is the map.

pub mod admin;
pub mod cli;
pub mod config;
pub mod gate;
pub mod issuer;
pub mod metrics;
pub mod part;
pub mod server;
pub mod signals;
pub mod sts;
pub mod version;

pub use tailbone_http as http;
pub use tailbone_identity::{self as identity, policy};
pub use tailbone_keys::{self as keys, jwks};
pub use tailbone_tailnet as tailnet;
pub use tailbone_telemetry::{self as telemetry, audit};
pub use tailbone_values::web;
