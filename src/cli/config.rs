//! `tailbone config check` and `tailbone config show`: the settings and their origins. `tailbone
//! config migrate`: settings of tsiam or tsidp as ours. They change nothing.

use std::{ffi::OsString, path::Path};

use clap::{Arg, ArgAction, ArgMatches, Command};
use serde::Serialize;
use serde_json::{Map, Value as Json, json};

use super::{
    args,
    console::Console,
    exit::Failure,
    layout::Layout,
    output::{self, Output, Table},
};
use crate::{
    config::{self, EffectiveValue, Environment, RuleSource, table::FlagScope},
    oidc::access::LoginScope,
    policy::RequestScope,
    workload::access::AudienceScope,
};

/// Both take the flags of `server start`, so that a whole command line can be checked.
const SCOPES: &[FlagScope] = &[FlagScope::Root, FlagScope::Server, FlagScope::Start];

pub(super) fn command() -> Command {
    let flags = || {
        args::of(FlagScope::Server)
            .chain(args::of(FlagScope::Start))
            .map(|arg| arg.global(false))
    };
    Command::new("config")
        .about("Check and show the settings; takes the flags of server start")
        .subcommand(
            Command::new("check")
                .about("Load all settings and report every mistake; changes nothing")
                .args(flags()),
        )
        .subcommand(
            Command::new("show")
                .about("Show the values that all settings would have; secrets are hidden")
                .arg(
                    Arg::new("origin")
                        .long("origin")
                        .action(ArgAction::SetTrue)
                        .help("Also show where each value was typed"),
                )
                .args(flags()),
        )
        .subcommand(
            Command::new("migrate")
                .about("Print the settings of tsiam or tsidp as a config file (TOML)")
                .long_about(
                    "Print the settings of tsiam or tsidp as a config file (TOML). Reads tsiam's \
                     config file, the one that --config names or else the one that tsiam would \
                     find, and if there is none, tsidp's variables. Prints no secret and changes \
                     nothing",
                ),
        )
}

pub(super) fn run(
    matches: &ArgMatches,
    environment: &Environment,
    console: &mut Console<'_>,
) -> Result<(), Failure> {
    match matches.subcommand() {
        Some(("check", matches)) => {
            let raw = args::raw(matches, SCOPES, environment);
            let ((settings, _), _) = console.accept(config::load_all(&raw))?;
            // Rules have files of their own, which are part of the settings to be checked.
            super::policy::rules::<RequestScope>("gate.policy", &settings.gate.rules)?;
            super::policy::rules::<AudienceScope>("workload.policy", &settings.workload.rules)?;
            super::policy::rules::<LoginScope>("oidc.policy", &settings.oidc.access.rules)?;
            let groups = RuleSource {
                file: settings.oidc.groups.file.clone(),
                capability: String::new(),
            };
            super::policy::rules::<LoginScope>("oidc.groups.file", &groups)?;
            if let Some(folder) = &settings.oidc.clients {
                super::oidc::apply::read(folder, environment)?;
            }
            console.say("The settings are fine");
            Ok(())
        }
        Some(("show", matches)) => {
            let raw = args::raw(matches, SCOPES, environment);
            let ((_, client), origins) = console.accept(config::load_all(&raw))?;
            if matches.get_flag("origin") {
                output::print(console, client.output, &WithOrigin(&origins.entries))
            } else {
                output::print(console, client.output, &Plain(&origins.entries))
            }
        }
        Some(("migrate", matches)) => {
            let config = matches
                .get_one::<OsString>("config")
                .filter(|path| !path.is_empty());
            match config::migrate(environment, config.map(Path::new)) {
                Ok(migration) => {
                    console.warn(&migration.warnings);
                    console.print(&migration.text)
                }
                Err(mistakes) => {
                    console.warn(&mistakes.warnings);
                    Err(mistakes.into())
                }
            }
        }
        _ => super::help(Some("config"), console),
    }
}

/// The values, nested as in a config file.
struct Plain<'a>(&'a [EffectiveValue]);

impl Output for Plain<'_> {
    fn text(&self, layout: Layout) -> String {
        let mut table = Table::new(["Setting", "Value"]);
        for entry in self.0 {
            table.row([entry.row.key.to_owned(), cell(&entry.value)]);
        }
        table.text(layout)
    }
}

impl Serialize for Plain<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut top = Map::new();
        for entry in self.0 {
            let mut group = &mut top;
            let mut names = entry.row.key.split('.').peekable();
            while let Some(name) = names.next() {
                if names.peek().is_none() {
                    group.insert(name.to_owned(), entry.value.clone());
                    break;
                }
                let next = group.entry(name).or_insert_with(|| json!({}));
                let Json::Object(next) = next else {
                    return Err(serde::ser::Error::custom("a setting that is also a group"));
                };
                group = next;
            }
        }
        top.serialize(serializer)
    }
}

/// The values with their origins: a list.
struct WithOrigin<'a>(&'a [EffectiveValue]);

impl Output for WithOrigin<'_> {
    fn text(&self, layout: Layout) -> String {
        let mut table = Table::new(["Setting", "Value", "Origin"]);
        for entry in self.0 {
            table.row([
                entry.row.key.to_owned(),
                cell(&entry.value),
                entry.origin.to_string(),
            ]);
        }
        table.text(layout)
    }
}

impl Serialize for WithOrigin<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Line<'a> {
            key: &'a str,
            value: &'a Json,
            origin: String,
        }
        serializer.collect_seq(self.0.iter().map(|entry| Line {
            key: entry.row.key,
            value: &entry.value,
            origin: entry.origin.to_string(),
        }))
    }
}

fn cell(value: &Json) -> String {
    match value {
        Json::Array(list) => list.iter().map(cell).collect::<Vec<_>>().join(","),
        Json::String(text) => text.clone(),
        other => other.to_string(),
    }
}
