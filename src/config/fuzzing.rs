//! The parser of config files, for tests/fuzz. Not part of the crate's interface.

use super::{
    Value,
    file::{self, Format},
};

/// The keys and values of a file's text (`json`, `toml` or `yaml`), or the error about it.
pub fn items(text: &str, extension: &str) -> Result<Vec<(String, Value)>, String> {
    let format = match extension {
        "json" => Format::Json,
        "toml" => Format::Toml,
        _ => Format::Yaml,
    };
    let items = file::parse(text, format)?;
    Ok(items
        .into_iter()
        .map(|item| (item.key, item.value))
        .collect())
}
