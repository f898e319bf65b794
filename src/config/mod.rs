//! Settings: what was typed (flags, environment, file) and what it means ([`Settings`]).
//!
//! The way of a value: `table.rs` names it, `raw.rs` finds what was typed for it (`file.rs` reads files), `load.rs` makes sense of
//! it (`meaning.rs` of one text), `report.rs` tells what is wrong. Invariants: every mistake is told at once with its origin; no secret is in any message.
//! How flags are parsed is left to the command line, which takes them from the table.

pub mod duration;
mod file;
#[doc(hidden)]
pub mod fuzzing;
mod load;
mod meaning;
mod otel;
mod raw;
mod report;
mod secret;
mod settings;
pub mod table;

pub use load::{
    Entry, Loaded, Origins, Purpose, load, load_all, load_client, load_output, load_policy,
    load_with_output,
};
pub use raw::{Environment, Flags, Raw, Typed, Value};
pub use report::{Mistake, Mistakes, Origin, Remark, Warning, printable};
pub use secret::Secret;
pub use settings::*;
