//! `output` and `no-confirmation`: how a command shows its result, and whether it asks first.

use crate::config::{
    read::Reader,
    table::{Kind, Scope, row, rows},
};

rows! {
    OUTPUT = row("output", Kind::Word(&["text", "table", "json", "yaml", "yml"]))
        .short("output", 'o', Scope::Root)
        .default("text")
        .help("How results are printed; text and table are the same");
    NO_CONFIRMATION = row("no-confirmation", Kind::Bool)
        .short("yes", 'y', Scope::Remove)
        .default("false")
        .help("Do not ask before a key is removed");
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputFormat {
    Json,
    Text,
    Yaml,
}

impl Reader<'_> {
    pub(in crate::config) fn output(&mut self) -> Option<OutputFormat> {
        let format = self.lenient_word(&OUTPUT, "text")?;
        Some(match format {
            "json" => OutputFormat::Json,
            "yaml" | "yml" => OutputFormat::Yaml,
            _ => OutputFormat::Text,
        })
    }
}
