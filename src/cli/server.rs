//! `tailbone server start` and `tailbone server housekeeping`.

use clap::{Arg, ArgAction, ArgMatches, Command};
use serde::Serialize;

use super::{
    args,
    console::Console,
    exit::Failure,
    keys,
    layout::Layout,
    output::{self, Output, Table},
};
use crate::{
    config::{self, Environment, OutputFormat, Purpose, Settings, table::FlagScope},
    jwks::life::Outcome,
    server::{self, Housekept},
    telemetry,
};

pub(super) fn command() -> Command {
    Command::new("server")
        .about("Run the services")
        .args(args::of(FlagScope::Server))
        .subcommand(
            Command::new("start")
                .about("Join the tailnet and serve until told to stop")
                .args(args::of(FlagScope::Start)),
        )
        .subcommand(
            Command::new("housekeeping")
                .about(
                    "Bring the key directory and the published JWKS in line, once; no tailnet \
                     needed",
                )
                .arg(
                    Arg::new("dry-run")
                        .long("dry-run")
                        .action(ArgAction::SetTrue)
                        .help("Only show what would be done"),
                ),
        )
}

pub(super) fn run(
    matches: &ArgMatches,
    environment: &Environment,
    console: &mut Console<'_>,
) -> Result<(), Failure> {
    match matches.subcommand() {
        Some(("start", matches)) => {
            let raw = args::raw(
                matches,
                &[FlagScope::Root, FlagScope::Server, FlagScope::Start],
                environment,
            );
            let (settings, _) = console.accept(config::load(&raw, Purpose::Start))?;
            start(&settings, || load_again(matches, environment))
        }
        Some(("housekeeping", matches)) => {
            let raw = args::raw(matches, &[FlagScope::Root, FlagScope::Server], environment);
            let ((settings, format), _) =
                console.accept(config::load_with_output(&raw, Purpose::Housekeeping))?;
            housekeeping(&settings, matches.get_flag("dry-run"), format, console)
        }
        _ => super::help(Some("server"), console),
    }
}

fn start(
    settings: &Settings,
    reload: impl Fn() -> Result<Settings, String>,
) -> Result<(), Failure> {
    server::start(settings, reload).map_err(|error| Failure::with_code(error.exit_code(), error))
}

/// Loads the same command line and variables over the present contents of the config file and of
/// the files of secrets.
fn load_again(matches: &ArgMatches, environment: &Environment) -> Result<Settings, String> {
    let scopes = &[FlagScope::Root, FlagScope::Server, FlagScope::Start];
    let raw = args::raw(matches, scopes, environment);
    config::load(&raw, Purpose::Start)
        .map(|(settings, ..)| settings)
        .map_err(|mistakes| mistakes.to_string())
}

/// Log lines go to stdout, as in the Go program, unless a result for programs goes there.
fn housekeeping(
    settings: &Settings,
    dry_run: bool,
    format: OutputFormat,
    console: &mut Console<'_>,
) -> Result<(), Failure> {
    if format == OutputFormat::Text {
        telemetry::log::init(&settings.log, None);
    } else {
        telemetry::log::init_beside_result(&settings.log);
    }
    let done = server::housekeeping(settings, dry_run)
        .map_err(|error| Failure::with_code(error.exit_code(), error))?;
    keys::warn(done.reports(), true, console);
    output::print(console, format, &Actions(&done))?;
    if done.succeeded() {
        Ok(())
    } else {
        Err(Failure::failed(
            "housekeeping could not do everything that was due; in doubt it deletes nothing. The \
             reasons are above; run it again once they are resolved",
        ))
    }
}

/// The actions of one pass.
#[derive(Serialize)]
#[serde(transparent)]
struct Actions<'a>(&'a Housekept);

impl Output for Actions<'_> {
    fn text(&self, layout: Layout) -> String {
        let mut table = Table::new(["Action", "KeyId", "Outcome", "Reason"]);
        let dry_run = self.0.reports().any(|report| report.dry_run);
        let actions: Vec<_> = self.0.reports().flat_map(|report| &report.done).collect();
        for done in &actions {
            let kid = done.kid.as_ref().map_or("-", |kid| kid.as_str());
            let (outcome, reason) = match &done.outcome {
                Outcome::Done => ("done", "-"),
                Outcome::Failed(reason) => ("failed", reason.as_str()),
                Outcome::Planned => ("planned", "-"),
            };
            table.row([done.action, kid, outcome, reason].map(str::to_owned));
        }
        if actions.is_empty() {
            table.row(
                [
                    "nothing",
                    "-",
                    if dry_run { "planned" } else { "done" },
                    "-",
                ]
                .map(str::to_owned),
            );
        }
        table.text(layout)
    }
}
