//! Results as text, JSON or YAML.
//!
//! - JSON: indented by two, no newline at the end;
//! - YAML: as the serializer writes it;
//! - tables, in the shape of the Go program: no borders, one blank on either side of every cell.
//!
//! A table that is wider than its terminal becomes a list with one record per row, so that no cell
//! is broken. On a pipe it stays a table of any width, for scripts.
//!
//! Control characters in cells are escaped, because names come from the network.

use serde::Serialize;

use super::{
    console::Console,
    exit::Failure,
    layout::{Layout, List, width},
};
use crate::config::{OutputFormat, printable};

/// A result that can be printed. JSON and YAML differ where those of the Go program did.
pub trait Output: Serialize {
    /// For people.
    fn text(&self, layout: Layout) -> String;

    fn json(&self) -> impl Serialize {
        self
    }

    fn yaml(&self) -> impl Serialize {
        self
    }
}

/// Rows of cells below a header.
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

    /// Nothing at all without rows: a header alone says nothing, so the command says a sentence.
    pub fn text(&self, layout: Layout) -> String {
        if self.rows.is_empty() {
            return String::new();
        }
        let table = self.columns();
        let widest = table.lines().map(|line| width(line.trim_end())).max();
        match layout.columns() {
            Some(columns) if widest > Some(columns) => self.records(layout),
            _ => table,
        }
    }

    fn columns(&self) -> String {
        let mut table = comfy_table::Table::new();
        table
            .load_style(comfy_table::presets::NOTHING)
            .set_content_arrangement(comfy_table::ContentArrangement::Disabled)
            .set_header(self.header.iter().map(|cell| printable(cell)));
        for row in &self.rows {
            table.add_row(row.iter().map(|cell| printable(cell)));
        }
        format!("{table}\n")
    }

    /// One record per row: its first cell, and below it the others with their headings.
    fn records(&self, layout: Layout) -> String {
        let mut text = String::new();
        for row in &self.rows {
            let mut cells = row.iter().cloned();
            let mut record = List::new(layout);
            record.heading(&printable(&cells.next().unwrap_or_default()));
            let facts: Vec<_> = self.header.iter().skip(1).zip(cells).collect();
            record.facts(&facts);
            text.push_str(&record.finish());
        }
        text
    }
}

/// Prints a result in the wanted format.
pub fn print<T: Output>(
    console: &mut Console<'_>,
    format: OutputFormat,
    result: &T,
) -> Result<(), Failure> {
    let text = match format {
        OutputFormat::Json => {
            serde_json::to_string_pretty(&result.json()).map_err(Failure::failed)?
        }
        OutputFormat::Text => result.text(console.layout),
        OutputFormat::Yaml => yaml_serde::to_string(&result.yaml()).map_err(Failure::failed)?,
    };
    console.print(&text)
}
