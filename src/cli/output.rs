//! Results as table, JSON or YAML, in the shapes of the Go program.
//!
//! - table: no borders, one blank either side of every cell, header as written;
//! - JSON: two blanks of indent, no newline at the end;
//! - YAML: as the serializer writes it.
//!
//! A result says what it is by [`Output`]. Control characters in cells are shown, not sent: names come from the network.

use serde::Serialize;

use super::{console::Console, exit::Failure};
use crate::config::OutputFormat;

/// A result that can be printed. The shapes differ where the Go program's did.
pub trait Output: Serialize {
    fn table(&self) -> Table;

    fn json(&self) -> impl Serialize {
        self
    }

    fn yaml(&self) -> impl Serialize {
        self
    }
}

/// Rows of cells under a header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    header: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new<const N: usize>(header: [&str; N]) -> Self {
        Self {
            header: header.map(str::to_owned).to_vec(),
            rows: Vec::new(),
        }
    }

    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.to_vec());
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut table = comfy_table::Table::new();
        table
            .load_style(comfy_table::presets::NOTHING)
            .set_content_arrangement(comfy_table::ContentArrangement::Disabled)
            .set_header(printable(&self.header));
        for row in &self.rows {
            table.add_row(printable(row));
        }
        writeln!(f, "{table}")
    }
}

fn printable(cells: &[String]) -> Vec<String> {
    cells
        .iter()
        .map(|cell| {
            cell.chars()
                .flat_map(|c| {
                    let shown: Vec<char> = if c.is_control() {
                        c.escape_default().collect()
                    } else {
                        vec![c]
                    };
                    shown
                })
                .collect()
        })
        .collect()
}

/// Prints a result in the wanted form.
pub fn print<T: Output>(
    console: &mut Console<'_>,
    format: OutputFormat,
    result: &T,
) -> Result<(), Failure> {
    console.print(&text(format, result)?)
}

fn text<T: Output>(format: OutputFormat, result: &T) -> Result<String, Failure> {
    match format {
        OutputFormat::Json => serde_json::to_string_pretty(&result.json()).map_err(Failure::failed),
        OutputFormat::Text => Ok(result.table().to_string()),
        OutputFormat::Yaml => yaml_serde::to_string(&result.yaml()).map_err(Failure::failed),
    }
}
