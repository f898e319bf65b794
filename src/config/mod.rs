//! Settings: what was given (flags, environment, file) and what it means ([`Settings`]).
//!
//! A value goes through these files: a row in `sections/` names it (`table.rs` says what a row is),
//! `raw.rs` finds what was given for it (`file.rs` reads files, `tsiam/` those of tsiam, `otel.rs`
//! and `tsidp.rs` the variables of OpenTelemetry and of tsidp), and the section's reader makes a
//! checked value of it with the methods of `read.rs` (`parse.rs` parses one text). `load.rs` puts
//! the sections together, `client_files.rs` reads the folder of clients, `listen.rs` says where
//! each component listens, `reload.rs` applies what may change while the server runs, and
//! `report.rs` says what is wrong.
//!
//! Every mistake is reported at once with its origin, and no message contains a secret. The command
//! line takes its flags from the table; how they are parsed is its own business.

pub mod duration;

mod client_files;
mod file;
#[doc(hidden)]
pub mod fuzzing;
mod listen;
mod load;
mod migrate;
mod otel;
mod parse;
mod raw;
mod read;
mod reload;
mod report;
pub mod sections;
pub mod table;
mod tsiam;
mod tsidp;

pub use client_files::{AccessWord, BadClientFiles, ClientFolder};
pub use listen::{Listen, TailnetTls};
pub use load::{
    PolicySettings, Purpose, RuleSource, Settings, load, load_all, load_client, load_oidc_place,
    load_output, load_policy, load_with_output,
};
pub use migrate::{Migration, migrate};
pub use parse::Binding;
pub use raw::{Environment, Flags, GivenValue, RawSettings, RawValue};
pub use read::{EffectiveValue, LoadResult, ValueOrigins};
pub use reload::Reloaded;
pub use report::{InvalidSettings, Remark, ValueOrigin};
pub use sections::{
    admin::{AdminSettings, Authorization, MAX_SOCKET_PATH_BYTES},
    client::ClientSettings,
    components::Component,
    gate::{GateAuthSettings, GateSettings, GateTokenSettings, UpstreamScheme, UpstreamSettings},
    keys::{KeySettings, Publish, TokenSettings},
    memory::MemoryLimit,
    metrics::MetricsSettings,
    oidc::{
        GroupSettings, LoginSettings, OidcErrorFormat, OidcKeySettings, OidcPlace, OidcPostgres,
        OidcSettings, OidcStore, TailnetGroupSettings,
    },
    output::OutputFormat,
    server::ServerSettings,
    signer::SignerSettings,
    sts::{Credentials, StsSettings, TlsFiles},
    tailscale::TailscaleSettings,
    workload::{WorkloadKeySettings, WorkloadKeyStorage, WorkloadSettings},
};

/// The types of the layers below that settings are made of.
pub use tailbone_http::serve::Limits;
pub use tailbone_keys::{KeySpec, RSA_SIZES};
pub use tailbone_telemetry::{
    log::{Log, LogFormat, LogLevel},
    otlp::Settings as Otlp,
};
pub use tailbone_values::{Secret, printable};
