//! The parser of config files, for tests/fuzz. Not part of the crate's interface.

use super::{
    Environment, RawSettings, RawValue,
    file::{self, ConfigFile, FileFormat},
};

/// The keys and values of a file's text (`json`, `toml` or `yaml`), or the error about it.
pub fn items(text: &str, extension: &str) -> Result<Vec<(String, RawValue)>, String> {
    let items = file::parse(text, format(extension))?;
    Ok(items
        .into_iter()
        .map(|item| (item.key, item.value))
        .collect())
}

/// The settings of such a text, and of an environment.
pub fn collected(text: &str, extension: &str, environment: &Environment) -> RawSettings {
    let file = ConfigFile {
        path: format!("/settings.{extension}").into(),
        format: format(extension),
    };
    RawSettings::of_text(text, &file, environment)
}

fn format(extension: &str) -> FileFormat {
    match extension {
        "json" => FileFormat::Json,
        "toml" => FileFormat::Toml,
        _ => FileFormat::Yaml,
    }
}
