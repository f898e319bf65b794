//! All of a store as lines of JSON, by which it moves from one database to the other.
//!
//! The first line says what the file is. Then comes each table: a line with its name and columns,
//! and a line for each row. The last line has the number of rows, so that half a file is noticed.
//! Bytes are written in hexadecimal.
//!
//! A dump has no secret that gives access, and all the rest of what the provider knows.

use std::io::{BufRead as _, BufReader, BufWriter, Read, Write};

use futures_util::{FutureExt as _, future::BoxFuture};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::{
    database::{Cell, Connection, Failure, Value},
    secret::{hex, unhex_any},
};

const FORMAT: u32 = 1;
/// Rows of one statement.
const PAGE: i64 = 500;
/// Bytes of a line that is read. The longest that is written has a pushed request in it.
const MAX_LINE: u64 = 16 * 1024 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Bytes,
    Int,
    Text,
}
use Kind::{Bytes, Int, Text};

struct Table {
    name: &'static str,
    /// The first ones are the primary key.
    columns: &'static [(&'static str, Kind)],
    key: usize,
}

/// In an order in which they can be filled.
const TABLES: &[Table] = &[
    Table {
        name: "oidc_clients",
        columns: &[
            ("id", Text),
            ("origin", Text),
            ("owner", Text),
            ("secrets", Text),
            ("registration_token", Bytes),
            ("metadata", Text),
            ("search", Text),
            ("created_at", Int),
            ("updated_at", Int),
            ("expires_at", Int),
            ("version", Int),
            ("incarnation", Int),
            ("removed_at", Int),
        ],
        key: 1,
    },
    Table {
        name: "oidc_client_counts",
        columns: &[("owner", Text), ("clients", Int)],
        key: 1,
    },
    Table {
        name: "oidc_imports",
        columns: &[("source", Text), ("imported_at", Int)],
        key: 1,
    },
    Table {
        name: "oidc_grants",
        columns: &[
            ("id", Bytes),
            ("client_id", Text),
            ("incarnation", Int),
            ("subject", Text),
            ("session", Bytes),
            ("created_at", Int),
            ("expires_at", Int),
            ("details", Text),
            ("code", Bytes),
            ("code_expires_at", Int),
            ("redeemed_at", Int),
            ("refresh", Bytes),
            ("refresh_expires_at", Int),
            ("previous", Bytes),
            ("previous_salt", Bytes),
            ("replaced_at", Int),
        ],
        key: 1,
    },
    Table {
        name: "oidc_access_tokens",
        columns: &[
            ("digest", Bytes),
            ("grant_id", Bytes),
            ("client_id", Text),
            ("incarnation", Int),
            ("issued_at", Int),
            ("expires_at", Int),
            ("details", Text),
        ],
        key: 1,
    },
    Table {
        name: "oidc_sessions",
        columns: &[
            ("id", Bytes),
            ("cookie", Bytes),
            ("subject", Text),
            ("authenticated_at", Int),
            ("created_at", Int),
            ("expires_at", Int),
            ("details", Text),
        ],
        key: 1,
    },
    Table {
        name: "oidc_session_clients",
        columns: &[("session", Bytes), ("client_id", Text)],
        key: 2,
    },
    Table {
        name: "oidc_pushed_requests",
        columns: &[
            ("reference", Bytes),
            ("client_id", Text),
            ("parameters", Text),
            ("expires_at", Int),
        ],
        key: 1,
    },
    Table {
        name: "oidc_devices",
        columns: &[
            ("device_code", Bytes),
            ("user_code", Bytes),
            ("client_id", Text),
            ("details", Text),
            ("created_at", Int),
            ("expires_at", Int),
            ("poll_interval", Int),
            ("polled_at", Int),
            ("approved", Int),
        ],
        key: 1,
    },
    Table {
        name: "oidc_assertions",
        columns: &[("digest", Bytes), ("expires_at", Int)],
        key: 1,
    },
];

/// A line that is no row.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
enum Heading {
    First { tailbone_oidc_dump: u32 },
    Last { rows: u64 },
    Table { table: String, columns: Vec<String> },
}

pub(crate) type Sink = Mutex<Option<Box<dyn Write + Send>>>;
pub(crate) type Source = Mutex<Option<Box<dyn Read + Send>>>;

/// Half of a dump cannot be taken back.
fn interrupted() -> Failure {
    Failure::Unavailable("the connection was lost: begin again".to_owned())
}

pub(crate) fn write<'c>(
    link: &'c mut dyn Connection,
    sink: &'c Sink,
) -> BoxFuture<'c, Result<(), Failure>> {
    async move {
        let mut to = BufWriter::new(sink.lock().take().ok_or_else(interrupted)?);
        let first = Heading::First {
            tailbone_oidc_dump: FORMAT,
        };
        line(&mut to, &first)?;
        let mut rows = 0;
        for table in TABLES {
            let columns = table.columns.iter().map(|(name, _)| (*name).to_owned());
            let heading = Heading::Table {
                table: table.name.to_owned(),
                columns: columns.collect(),
            };
            line(&mut to, &heading)?;
            rows += write_table(link, table, &mut to).await?;
        }
        line(&mut to, &Heading::Last { rows })?;
        to.flush().map_err(unwritable)
    }
    .boxed()
}

async fn write_table(
    link: &mut dyn Connection,
    table: &Table,
    to: &mut (impl Write + Send),
) -> Result<u64, Failure> {
    let names: Vec<_> = table.columns.iter().map(|(name, _)| *name).collect();
    let (columns, key) = (names.join(", "), names[..table.key].join(", "));
    let numbers: Vec<_> = (1..=table.key).map(|number| format!("${number}")).collect();
    let name = table.name;
    let first = format!("SELECT {columns} FROM {name} ORDER BY {key} LIMIT {PAGE}");
    let next = format!(
        "SELECT {columns} FROM {name} WHERE ({key}) > ({}) ORDER BY {key} LIMIT {PAGE}",
        numbers.join(", ")
    );
    let mut last: Vec<Cell> = Vec::new();
    let mut written = 0;
    loop {
        let parameters: Vec<_> = last.iter().map(as_value).collect();
        let statement = if last.is_empty() { &first } else { &next };
        let page = link.query(statement, &parameters).await?;
        if page.is_empty() {
            return Ok(written);
        }
        for mut row in page {
            let cells = (0..names.len())
                .map(|_| row.cell())
                .collect::<Result<Vec<_>, _>>()?;
            line(to, &cells.iter().map(as_json).collect::<Vec<_>>())?;
            written += 1;
            last = cells;
            last.truncate(table.key);
        }
    }
}

fn line(to: &mut impl Write, what: &impl Serialize) -> Result<(), Failure> {
    let mut text = serde_json::to_vec(what).map_err(|error| Failure::Broken(error.to_string()))?;
    text.push(b'\n');
    to.write_all(&text).map_err(unwritable)
}

fn unwritable(error: std::io::Error) -> Failure {
    Failure::Dump(format!("it cannot be written: {error}"))
}

fn as_value(cell: &Cell) -> Value<'_> {
    match cell {
        Cell::Bytes(bytes) => Value::Bytes(Some(bytes)),
        Cell::Int(number) => Value::Int(Some(*number)),
        Cell::Null => Value::Text(None),
        Cell::Text(text) => Value::Text(Some(text)),
    }
}

fn as_json(cell: &Cell) -> Json {
    match cell {
        Cell::Bytes(bytes) => Json::String(hex(bytes)),
        Cell::Int(number) => Json::from(*number),
        Cell::Null => Json::Null,
        Cell::Text(text) => Json::String(text.clone()),
    }
}

pub(crate) fn read<'c>(
    link: &'c mut dyn Connection,
    source: &'c Source,
) -> BoxFuture<'c, Result<(), Failure>> {
    async move {
        let from = source.lock().take().ok_or_else(interrupted)?;
        for table in TABLES {
            let any = format!("SELECT 1 FROM {} LIMIT 1", table.name);
            if !link.query(&any, &[]).await?.is_empty() {
                return Err(Failure::Refused(
                    "a dump can be loaded into an empty store only",
                ));
            }
        }
        let mut lines = Lines {
            from: BufReader::new(from),
            number: 0,
        };
        let first = lines.next()?.unwrap_or_default();
        match serde_json::from_str(&first) {
            Ok(Heading::First { tailbone_oidc_dump }) if tailbone_oidc_dump == FORMAT => {}
            Ok(Heading::First { .. }) => return Err(lines.wrong("a newer tailbone made it")),
            _ => return Err(lines.wrong("it is no dump of tailbone's")),
        }
        let mut filling: Option<Filling> = None;
        let mut rows = 0;
        while let Some(text) = lines.next()? {
            if text.starts_with('[') {
                let filling = filling
                    .as_ref()
                    .ok_or_else(|| lines.wrong("a row has no table"))?;
                filling.insert(link, &text, lines.number).await?;
                rows += 1;
                continue;
            }
            match serde_json::from_str(&text) {
                Ok(Heading::Table { table, columns }) => {
                    filling = Some(Filling::new(&table, &columns, &lines)?);
                }
                Ok(Heading::Last { rows: all }) if all == rows => {
                    return match lines.next()? {
                        None => Ok(()),
                        Some(_) => Err(lines.wrong("there is more behind its end")),
                    };
                }
                Ok(Heading::Last { .. }) => return Err(lines.wrong("rows are missing")),
                _ => return Err(lines.wrong("it is neither a row nor a heading")),
            }
        }
        Err(lines.wrong("its end is missing"))
    }
    .boxed()
}

struct Lines {
    from: BufReader<Box<dyn Read + Send>>,
    number: u64,
}

impl Lines {
    fn next(&mut self) -> Result<Option<String>, Failure> {
        self.number += 1;
        let mut text = String::new();
        let read = (&mut self.from).take(MAX_LINE).read_line(&mut text);
        let length = read.map_err(|error| self.wrong(&error.to_string()))?;
        if length as u64 == MAX_LINE {
            return Err(self.wrong("it is too long"));
        }
        text.truncate(text.trim_end().len());
        Ok((length > 0).then_some(text))
    }

    fn wrong(&self, what: &str) -> Failure {
        wrong(self.number, what)
    }
}

fn wrong(line: u64, what: &str) -> Failure {
    Failure::Dump(format!("line {line}: {what}"))
}

/// A table that is being filled.
struct Filling {
    statement: String,
    kinds: Vec<Kind>,
}

impl Filling {
    fn new(name: &str, columns: &[String], lines: &Lines) -> Result<Self, Failure> {
        let table = TABLES
            .iter()
            .find(|table| table.name == name)
            .ok_or_else(|| lines.wrong("it has a table that this tailbone does not know"))?;
        let kinds = columns
            .iter()
            .map(|column| {
                let known = table.columns.iter().find(|(name, _)| name == column);
                known.map(|(_, kind)| *kind)
            })
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| lines.wrong("it has a column that this tailbone does not know"))?;
        let numbers: Vec<_> = (1..=columns.len())
            .map(|number| format!("${number}"))
            .collect();
        Ok(Self {
            statement: format!(
                "INSERT INTO {} ({}) VALUES ({})",
                table.name,
                columns.join(", "),
                numbers.join(", ")
            ),
            kinds,
        })
    }

    async fn insert(
        &self,
        link: &mut dyn Connection,
        text: &str,
        number: u64,
    ) -> Result<(), Failure> {
        let unfit = || wrong(number, "a row does not fit its columns");
        let row: Vec<Json> = serde_json::from_str(text).map_err(|_| unfit())?;
        if row.len() != self.kinds.len() {
            return Err(unfit());
        }
        let cells = row
            .iter()
            .zip(&self.kinds)
            .map(|(json, kind)| as_cell(json, *kind))
            .collect::<Option<Vec<_>>>()
            .ok_or_else(unfit)?;
        let parameters: Vec<_> = cells
            .iter()
            .zip(&self.kinds)
            .map(|(cell, kind)| match (cell, kind) {
                (Cell::Null, Kind::Bytes) => Value::Bytes(None),
                (Cell::Null, Kind::Int) => Value::Int(None),
                (cell, _) => as_value(cell),
            })
            .collect();
        link.query(&self.statement, &parameters).await?;
        Ok(())
    }
}

fn as_cell(json: &Json, kind: Kind) -> Option<Cell> {
    match (json, kind) {
        (Json::Null, _) => Some(Cell::Null),
        (Json::Number(number), Kind::Int) => number.as_i64().map(Cell::Int),
        (Json::String(text), Kind::Text) => Some(Cell::Text(text.clone())),
        (Json::String(text), Kind::Bytes) => unhex_any(text).map(Cell::Bytes),
        _ => None,
    }
}
