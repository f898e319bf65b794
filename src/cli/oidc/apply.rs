//! `tailbone oidc apply`: the clients that files describe, with a diff.
//!
//! Invariants
//! - `--dry-run` only reads, so it may run beside the server that has the file of SQLite.
//! - No secret is printed: a diff counts them.

use clap::{Arg, ArgAction, ArgMatches, Command};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;
use tailbone_oidc::{
    client_files,
    store::{ApplyMode, ApplyOptions, ClientChange, WithoutFile},
};

use super::{failed, to_read, to_write};
use crate::{
    cli::{
        console::Console,
        exit::{self, Failure},
        layout::{Layout, count},
        output::{self, Output},
    },
    config::{ClientFolder, Environment, OidcPlace, OutputFormat, printable},
};

pub(super) fn command() -> Command {
    let flag = |name: &'static str, help: &'static str| {
        Arg::new(name)
            .long(name)
            .action(ArgAction::SetTrue)
            .help(help)
    };
    Command::new("apply")
        .about("Make the clients of files those of oidc.clientsDir, all or none")
        .long_about(
            "Make the clients of files those of oidc.clientsDir, all or none, and print what \
             changes. With --dry-run nothing does, and the exit code is 3 if something would",
        )
        .arg(flag(
            "dry-run",
            "Only print what would change, also while a server uses the file of SQLite",
        ))
        .arg(flag("prune", "Remove the clients whose files are gone"))
}

pub(super) async fn run(
    matches: &ArgMatches,
    place: &OidcPlace,
    environment: &Environment,
) -> Result<Applied, Failure> {
    let now = Timestamp::now();
    let Some(folder) = &place.clients else {
        return Err(
            Failure::with_code(exit::SETTINGS, "oidc.clientsDir is missing")
                .advise("Name the folder with --oidc-clients-dir"),
        );
    };
    let clients = read(folder, environment)?;
    let dry_run = matches.get_flag("dry-run");
    let options = ApplyOptions {
        mode: if dry_run {
            ApplyMode::Preview
        } else {
            ApplyMode::Write
        },
        without_file: if matches.get_flag("prune") {
            WithoutFile::Remove
        } else {
            WithoutFile::Keep
        },
    };
    let store = if dry_run {
        to_read(place).await?
    } else {
        to_write(place).await?
    };
    let changes = store.apply_clients(&clients, options, now).await;
    Ok(Applied::of(
        &changes.map_err(failed)?,
        store.place(),
        dry_run,
    ))
}

/// The clients of the folder; its mistakes end the command as those of settings do.
pub(in crate::cli) fn read(
    folder: &ClientFolder,
    environment: &Environment,
) -> Result<Vec<tailbone_oidc::store::Client>, Failure> {
    let clients = folder.read(environment, Timestamp::now());
    clients.map_err(|mistakes| Failure::with_code(exit::SETTINGS, mistakes))
}

/// What changed, or would.
#[derive(Debug, Serialize)]
pub(super) struct Applied {
    store: String,
    dry_run: bool,
    /// Those that changed or would, and those without a file.
    clients: Vec<ChangedClient>,
    unchanged: usize,
}

#[derive(Debug, Serialize)]
struct ChangedClient {
    client_id: String,
    /// `added`, `changed`, `kept` or `removed`.
    change: &'static str,
    members: Vec<ChangedMember>,
}

#[derive(Debug, Serialize)]
struct ChangedMember {
    member: String,
    before: Option<Value>,
    after: Option<Value>,
}

impl Applied {
    fn of(changes: &[ClientChange], store: &str, dry_run: bool) -> Self {
        let clients = changes.iter().filter_map(|change| {
            let word = match change {
                ClientChange::Added(_) => "added",
                ClientChange::Changed { .. } => "changed",
                ClientChange::Kept(_) => "kept",
                ClientChange::Removed(_) => "removed",
                ClientChange::Unchanged(_) => return None,
            };
            let members = client_files::differences(change).into_iter();
            Some(ChangedClient {
                client_id: change.client().id.clone(),
                change: word,
                members: members
                    .map(|one| ChangedMember {
                        member: one.member,
                        before: one.before,
                        after: one.after,
                    })
                    .collect(),
            })
        });
        let clients: Vec<_> = clients.collect();
        Self {
            store: store.to_owned(),
            dry_run,
            unchanged: changes.len() - clients.len(),
            clients,
        }
    }

    fn changes(&self) -> bool {
        self.clients.iter().any(|client| client.change != "kept")
    }

    /// Prints the diff and says by the exit code whether a dry run found something.
    pub(super) fn print(
        &self,
        console: &mut Console<'_>,
        format: OutputFormat,
    ) -> Result<(), Failure> {
        output::print(console, format, self)?;
        if self.dry_run && self.changes() {
            return Err(Failure::told(exit::WOULD_CHANGE));
        }
        Ok(())
    }
}

impl Output for Applied {
    fn text(&self, _: Layout) -> String {
        let mut text = String::new();
        let mut line = |words: &str| {
            text.push_str(&printable(words));
            text.push('\n');
        };
        let value = |value: &Option<Value>| value.as_ref().map(Value::to_string);
        for client in &self.clients {
            let id = &client.client_id;
            line(&match client.change {
                "added" => format!("+ {id}"),
                "changed" => format!("~ {id}"),
                "removed" => format!("- {id}"),
                _ => format!("  {id}: has no file any more and stays; --prune removes it"),
            });
            for ChangedMember {
                member,
                before,
                after,
            } in &client.members
            {
                line(&match (client.change, value(before), value(after)) {
                    ("removed", ..) => continue,
                    ("added", _, Some(after)) => format!("    {member}: {after}"),
                    (_, Some(before), Some(after)) => format!("    {member}: {before} -> {after}"),
                    (_, None, Some(after)) => format!("    {member}: nothing -> {after}"),
                    (_, Some(before), None) => format!("    {member}: {before} -> nothing"),
                    (_, None, None) => continue,
                });
            }
        }
        let of = |word| self.clients.iter().filter(|one| one.change == word).count();
        let numbers = format!(
            "{}: {} added, {} changed, {} removed, {} unchanged",
            count(self.clients.len() + self.unchanged, "client", "clients"),
            of("added"),
            of("changed"),
            of("removed"),
            self.unchanged + of("kept"),
        );
        line(&if self.dry_run {
            format!("{numbers} (dry run)")
        } else {
            numbers
        });
        text
    }
}
