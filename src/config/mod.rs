//! Settings: what was typed (flags, environment, file) and what it means ([`Settings`]).

mod secret;
mod settings;

pub use secret::Secret;
pub use settings::*;
