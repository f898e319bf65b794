//! One file per section of the settings. Each file has the section's rows of the table, the types
//! that they become, and the reader that makes one of the other.
//!
//! A new section also goes into `ROWS`, and the field for it into its parent's type.

pub mod admin;
pub mod client;
pub mod components;
pub mod gate;
pub mod keys;
pub mod limits;
pub mod log;
pub mod memory;
pub mod metrics;
pub mod output;
pub mod server;
pub mod sts;
pub mod tailscale;
pub mod telemetry;

use super::table::Row;

/// The rows of all sections, in the order in which help and `docs/settings.md` show them.
pub(super) const ROWS: &[&[&Row]] = &[
    components::ROWS,
    output::ROWS,
    log::ROWS,
    keys::ROWS,
    server::ROWS,
    limits::ROWS,
    telemetry::ROWS,
    memory::ROWS,
    tailscale::ROWS,
    admin::ROWS,
    metrics::ROWS,
    client::ROWS,
    gate::ROWS,
    sts::ROWS,
];
