//! `tailbone oidc …`: the OpenID provider. Its state, without a server of our own: it is copied,
//! moved between SQLite and PostgreSQL, and tidied; clients of files are applied to it. And what a
//! running server has: clients, sessions and grants (`oidc/clients.rs`, `oidc/logins.rs`).
//!
//! Invariants
//! - `backup` and `dump` only read, so they may run beside the server that has the file.
//! - Nothing is overwritten: a file that exists stays, and a store that has something is not
//!   loaded.

pub(super) mod apply;
mod call;
mod clients;
mod logins;

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use clap::{Arg, ArgMatches, Command};
use jiff::Timestamp;
use serde::Serialize;
use tailbone_oidc::store::{OpenError, Postgres, Sqlite, Store, StoreError};

use super::{
    args, ask,
    console::Console,
    exit::Failure,
    layout::{Layout, List, Mark, count},
    output::{self, Output},
};
use crate::{
    config::{self, Environment, OidcPlace, OidcStore, table::FlagScope},
    keys::disk::DiskError,
    oidc::state::{DATABASE, postgres_settings},
};

/// Rows of each kind that one call of the sweep deletes.
const SWEEP_ROWS: u32 = 1000;

/// In place of a file: standard input or output.
const STANDARD: &str = "-";

pub(super) fn command() -> Command {
    let path = |name: &'static str, help: &'static str| {
        Arg::new("path")
            .value_name(name)
            .required(true)
            .value_parser(clap::value_parser!(PathBuf))
            .value_hint(clap::ValueHint::FilePath)
            .help(help)
    };
    Command::new("oidc")
        .about(
            "Administer the OpenID provider; copy, move and tidy its state; apply files of clients",
        )
        .args(args::of(FlagScope::Oidc).map(|arg| arg.global(true)))
        .subcommand(clients::command())
        .subcommand(logins::session_command())
        .subcommand(logins::grant_command())
        .subcommand(
            Command::new("backup")
                .about("Copy the file of SQLite, also while a server uses it")
                .arg(path("TO", "File that does not exist yet")),
        )
        .subcommand(
            Command::new("dump")
                .about("Write the state as lines of JSON, also while servers use it")
                .arg(path(
                    "TO",
                    "File that does not exist yet, or - for standard output",
                )),
        )
        .subcommand(
            Command::new("load")
                .about("Read a dump of either database into an empty store")
                .arg(path("FROM", "File of a dump, or - for standard input")),
        )
        .subcommand(
            Command::new("sweep").about("Delete what has expired, as servers do by themselves"),
        )
        .subcommand(apply::command())
}

pub(super) fn run(
    matches: &ArgMatches,
    environment: &Environment,
    console: &mut Console<'_>,
) -> Result<(), Failure> {
    let Some((name, matches)) = matches.subcommand() else {
        return super::help(Some("oidc"), console);
    };
    match name {
        "client" => return clients::run(matches, environment, console),
        "session" => return logins::run_session(matches, environment, console),
        "grant" => return logins::run_grant(matches, environment, console),
        _ => {}
    }
    let raw = args::raw(matches, &[FlagScope::Root, FlagScope::Oidc], environment);
    let ((place, format), _) = console.accept(config::load_oidc_place(&raw))?;
    if name == "apply" {
        let applied = ask::runtime()?.block_on(apply::run(matches, &place, environment))?;
        return applied.print(console, format);
    }
    let path = matches.try_get_one::<PathBuf>("path").ok().flatten();
    let done = ask::runtime()?.block_on(async {
        match (name, path) {
            ("backup", Some(to)) => back_up(&place, to).await.map(Some),
            ("dump", Some(to)) if to == Path::new(STANDARD) => {
                let store = to_read(&place).await?;
                store.dump(Box::new(io::stdout())).await.map_err(failed)?;
                Ok(None)
            }
            ("dump", Some(to)) => dump(&place, to).await.map(Some),
            ("load", Some(from)) => load(&place, from).await.map(Some),
            _ => sweep(&place).await.map(Some),
        }
    })?;
    match done {
        Some(done) => output::print(console, format, &done),
        None => Ok(()),
    }
}

/// What a command did.
#[derive(Debug, Serialize)]
struct Done {
    /// `backup`, `dump`, `load` or `sweep`.
    did: &'static str,
    store: String,
    /// The file that was written or read.
    path: Option<String>,
    /// Its size.
    bytes: Option<u64>,
    /// Rows that were deleted.
    rows: Option<u64>,
}

impl Done {
    fn with_file(did: &'static str, store: &dyn Store, path: &Path) -> Self {
        Self {
            did,
            store: store.place().to_owned(),
            path: Some(path.display().to_string()),
            bytes: fs::metadata(path).ok().map(|file| file.len()),
            rows: None,
        }
    }
}

impl Output for Done {
    fn text(&self, layout: Layout) -> String {
        let store = &self.store;
        let path = self.path.as_deref().unwrap_or_default();
        let rows = usize::try_from(self.rows.unwrap_or_default()).unwrap_or(usize::MAX);
        let words = match self.did {
            "backup" => format!("Copied {store} to {path}"),
            "dump" => format!("Wrote {store} to {path}"),
            "load" => format!("Read {path} into {store}"),
            _ => {
                let rows = count(rows, "expired row", "expired rows");
                format!("Deleted {rows} of {store}")
            }
        };
        let mut list = List::new(layout);
        list.sentence(Mark::Good, &words);
        list.finish()
    }
}

async fn back_up(place: &OidcPlace, to: &Path) -> Result<Done, Failure> {
    let store = to_read(place).await?;
    store.back_up(to).await.map_err(failed)?;
    Ok(Done::with_file("backup", &*store, to))
}

/// A dump that was not finished does not stay.
async fn dump(place: &OidcPlace, to: &Path) -> Result<Done, Failure> {
    let store = to_read(place).await?;
    let at = |error: io::Error| Failure::failed(format!("{}: {error}", to.display()));
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(to)
        .map_err(at)?;
    let written = async {
        let sink = file.try_clone().map_err(at)?;
        store.dump(Box::new(sink)).await.map_err(failed)?;
        file.sync_all().map_err(at)
    };
    if let Err(failure) = written.await {
        // What went wrong first is told.
        let _ = fs::remove_file(to);
        return Err(failure);
    }
    Ok(Done::with_file("dump", &*store, to))
}

async fn load(place: &OidcPlace, from: &Path) -> Result<Done, Failure> {
    let source: Box<dyn io::Read + Send> = if from == Path::new(STANDARD) {
        Box::new(io::stdin())
    } else {
        let file = File::open(from);
        Box::new(file.map_err(|error| Failure::failed(format!("{}: {error}", from.display())))?)
    };
    let store = to_write(place).await?;
    store.load(source).await.map_err(failed)?;
    Ok(Done::with_file("load", &*store, from))
}

async fn sweep(place: &OidcPlace) -> Result<Done, Failure> {
    if let OidcStore::Sqlite = &place.store {
        let path = place.dir.join(DATABASE);
        if !path.exists() {
            return Err(Failure::failed(format!("there is no {}", path.display())));
        }
    }
    let store = to_write(place).await?;
    let mut rows = 0;
    loop {
        let swept = store
            .sweep(SWEEP_ROWS, Timestamp::now())
            .await
            .map_err(failed)?;
        rows += swept.rows;
        if !swept.more {
            break;
        }
    }
    Ok(Done {
        did: "sweep",
        store: store.place().to_owned(),
        path: None,
        bytes: None,
        rows: Some(rows),
    })
}

async fn to_read(place: &OidcPlace) -> Result<Box<dyn Store>, Failure> {
    match &place.store {
        OidcStore::Sqlite => {
            let store = Sqlite::open_to_read(&place.dir.join(DATABASE)).map_err(Failure::failed)?;
            Ok(Box::new(store))
        }
        OidcStore::Postgres(_) => to_write(place).await,
    }
}

async fn to_write(place: &OidcPlace) -> Result<Box<dyn Store>, Failure> {
    match &place.store {
        OidcStore::Sqlite => match Sqlite::open(&place.dir.join(DATABASE)) {
            Ok(store) => Ok(Box::new(store)),
            Err(error @ OpenError::Disk(DiskError::Locked { .. })) => {
                Err(Failure::failed(error).advise("Stop the server that has it first"))
            }
            Err(error) => Err(Failure::failed(error)),
        },
        OidcStore::Postgres(address) => {
            let store = Postgres::open(&postgres_settings(address)).await;
            Ok(Box::new(store.map_err(Failure::failed)?))
        }
    }
}

fn failed(error: StoreError) -> Failure {
    Failure::failed(error)
}
