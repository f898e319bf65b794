//! tailbone: identity services on a Tailscale network, from a node inside the process.
//!
//! Dependencies point down: [`cli`] and [`server`] -> the components (issuer, [`admin`], [`gate`],
//! [`metrics`], [`sts`]) -> [`part`] -> [`policy`], [`jwks`], [`keys`], [`identity`] -> [`tailnet`], [`http`],
//! [`telemetry`], [`config`]. Components never import each other. `ARCHITECTURE.md` is the map.

pub mod admin;
pub mod cli;
pub mod config;
pub mod gate;
pub mod http;
pub mod identity;
pub mod issuer;
pub mod jwks;
pub mod keys;
pub mod metrics;
pub mod part;
pub mod policy;
pub mod server;
pub mod signals;
pub mod sts;
pub mod tailnet;
pub mod telemetry;
pub mod version;
pub mod web;
