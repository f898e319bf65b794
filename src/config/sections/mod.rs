//! One file per section of the settings. Each file has the section's rows of the table, the types
//! that they become, and the reader that makes one of the other.
//!
//! A new section also goes into the list below, and the field for it into its parent's type.

use super::table::Row;

/// Declares the module of each section and puts its rows into [`ROWS`], in the order in which help
/// and `docs/settings.md` show them.
macro_rules! sections {
    ($($section:ident),* $(,)?) => {
        $(pub mod $section;)*

        /// The rows of all sections.
        pub(super) const ROWS: &[&[&Row]] = &[$($section::ROWS),*];
    };
}

sections! {
    components,
    output,
    log,
    keys,
    signer,
    server,
    limits,
    telemetry,
    memory,
    tailscale,
    admin,
    metrics,
    client,
    gate,
    sts,
    workload,
    oidc,
}
