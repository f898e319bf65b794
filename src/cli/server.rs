//! `tailbone server start` and `tailbone server housekeeping`.

use clap::{Arg, ArgAction, ArgMatches, Command};

use super::{args, console::Console, exit::Failure};
use crate::{
    config::{self, Environment, OutputFormat, Purpose, Settings, table::Scope},
    server, telemetry,
};

pub(super) fn command() -> Command {
    Command::new("server")
        .about("Run the services")
        .args(args::of(Scope::Server))
        .subcommand(
            Command::new("start")
                .about("Join the tailnet and serve until told to stop")
                .args(args::of(Scope::Start)),
        )
        .subcommand(
            Command::new("housekeeping")
                .about("Put the key directory in order with the published JWKS, once; no tailnet needed")
                .arg(
                    Arg::new("dry-run")
                        .long("dry-run")
                        .action(ArgAction::SetTrue)
                        .help("Only tell what would be done"),
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
                &[Scope::Root, Scope::Server, Scope::Start],
                environment,
            );
            let (settings, _) = console.told(config::load(&raw, Purpose::Start))?;
            start(&settings)
        }
        Some(("housekeeping", matches)) => {
            let raw = args::raw(matches, &[Scope::Root, Scope::Server], environment);
            let ((settings, format), _) =
                console.told(config::load_with_output(&raw, Purpose::Housekeeping))?;
            housekeeping(settings, matches.get_flag("dry-run"), format, console)
        }
        _ => super::help(Some("server"), console),
    }
}

fn start(settings: &Settings) -> Result<(), Failure> {
    telemetry::log::init(&settings.log);
    server::start(settings).map_err(|error| Failure::with_code(error.exit_code(), error))
}

// PLACEHOLDER: becomes `crate::server::housekeeping(…)`; its summary is printed with `output::print`.
fn housekeeping(
    _settings: Settings,
    _dry_run: bool,
    _format: OutputFormat,
    _console: &mut Console<'_>,
) -> Result<(), Failure> {
    Err(Failure::failed(
        "server housekeeping is not wired to the server yet",
    ))
}
