//! The parser of config files, for tests/fuzz. Not part of the crate's interface.

use super::{
    RawValue,
    file::{self, FileFormat},
};

/// The keys and values of a file's text (`json`, `toml` or `yaml`), or the error about it.
pub fn items(text: &str, extension: &str) -> Result<Vec<(String, RawValue)>, String> {
    let format = match extension {
        "json" => FileFormat::Json,
        "toml" => FileFormat::Toml,
        _ => FileFormat::Yaml,
    };
    let items = file::parse(text, format)?;
    Ok(items
        .into_iter()
        .map(|item| (item.key, item.value))
        .collect())
}
