//! `output` and `no-confirmation`: how a command shows its result, and whether it asks first.

use crate::config::{
    read::SettingsReader,
    table::{FlagScope, ValueKind, row, rows},
};

rows! {
    OUTPUT = row("output", ValueKind::Word(&["text", "table", "json", "yaml", "yml"]))
        .short("output", 'o', FlagScope::Root)
        .default("text")
        .help("How results are printed; text and table are the same");
    NO_CONFIRMATION = row("no-confirmation", ValueKind::Bool)
        .short("yes", 'y', FlagScope::Remove)
        .default("false")
        .help("Do not ask before something is removed");
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputFormat {
    Json,
    Text,
    Yaml,
}

impl SettingsReader<'_> {
    pub(in crate::config) fn output(&mut self) -> Option<OutputFormat> {
        let format = self.word_or(&OUTPUT, "text")?;
        Some(match format {
            "json" => OutputFormat::Json,
            "yaml" | "yml" => OutputFormat::Yaml,
            _ => OutputFormat::Text,
        })
    }
}
