//! The parser of policy files and the patterns in them, for tests/fuzz. Not part of the crate's
//! interface.

use std::path::Path;

use tailbone_values::glob;

use super::{LoadedPolicies, PolicyMistake, file};

/// Parses the text of one policy file that names no other file.
pub fn parse(text: &str) -> Result<LoadedPolicies, Vec<PolicyMistake>> {
    file::parse("fuzz.toml", text, Path::new("/nonexistent"))
}

/// Whether the pattern matches the whole of `text`.
pub fn matches(pattern: &str, text: &str) -> bool {
    glob::matches(pattern, text)
}
