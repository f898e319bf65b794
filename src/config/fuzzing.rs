//! The reader of settings files, for tests/fuzz. Not part of the crate's interface.

use super::{
    Value,
    file::{self, Format},
};

/// Keys and values of a file's text (`json`, `toml` or `yaml`), or what is told of it.
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
