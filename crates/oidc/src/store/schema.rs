//! The tables, and how they become those of this version.
//!
//! Invariants
//! - A migration that was released is never edited; a change is a new one, numbered on.
//! - A migration takes nothing away that the version before it needs, so that several processes on
//!   one database can be updated one after the other.
//! - Each one runs in a transaction with the note that it has run.

use super::database::{Connection, Failure};

/// The first one is number 1.
const MIGRATIONS: &[&str] = &[include_str!("migrations/0001.sql")];

/// What the databases spell differently.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Dialect {
    pub(crate) bytes: &'static str,
    /// A text whose order is that of its bytes.
    pub(crate) ordered_text: &'static str,
    /// Behind a table of short rows, all of which are found by the primary key.
    pub(crate) compact: &'static str,
}

impl Dialect {
    fn spell(&self, migration: &str) -> String {
        migration
            .replace("ORDERED_TEXT", self.ordered_text)
            .replace("BYTES", self.bytes)
            .replace("COMPACT", self.compact)
    }
}

/// The version of the tables that this program knows.
pub(crate) fn newest() -> i64 {
    i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX)
}

/// Takes the tables one migration further, in the transaction of `connection`; `false` if there is
/// nothing left to do. To be called until then.
///
/// The row of the version is locked meanwhile, so that of two processes one waits for the other.
pub(crate) async fn step(
    connection: &mut dyn Connection,
    dialect: &Dialect,
    lock: &str,
) -> Result<bool, Failure> {
    let statement = format!("SELECT version FROM oidc_schema{lock}");
    let found = connection.query(&statement, &[]).await?;
    let version = match found.into_iter().next() {
        Some(mut row) => row.int()?,
        None => {
            return Err(Failure::Broken(
                "the table oidc_schema has no row".to_owned(),
            ));
        }
    };
    let known = newest();
    if version > known {
        return Err(Failure::Broken(format!(
            "a newer tailbone has changed the tables to version {version}, and this one knows \
             {known}: run the newer one, or load a dump into an empty store"
        )));
    }
    let next = usize::try_from(version)
        .ok()
        .and_then(|at| MIGRATIONS.get(at));
    let Some(migration) = next else {
        return Ok(false);
    };
    connection.batch(&dialect.spell(migration)).await?;
    let statement = "UPDATE oidc_schema SET version = version + 1";
    connection.query(statement, &[]).await?;
    Ok(true)
}

/// Creates the table of the version where it is missing.
pub(crate) const CREATE: &str = "
CREATE TABLE IF NOT EXISTS oidc_schema (id BIGINT PRIMARY KEY, version BIGINT NOT NULL);
INSERT INTO oidc_schema (id, version) VALUES (1, 0) ON CONFLICT DO NOTHING;
";
