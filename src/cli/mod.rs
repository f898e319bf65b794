//! The command line: one file per noun.
//!
//! Flags come from the table of settings (`args.rs`), exit codes are in `exit.rs`, `output.rs`
//! prints results, `layout.rs` lays out those for people, `prompt.rs` asks questions. A command
//! leaves its work to a component.
//!
//! Invariants: a result goes to stdout and everything else to stderr; an error is printed once, as
//! `Error: …`.

mod args;
mod ask;
mod bugreport;
mod completion;
mod config;
pub mod console;
mod doctor;
pub mod exit;
pub mod keys;
pub mod layout;
mod man;
mod oidc;
pub mod output;
mod policy;
pub mod prompt;
mod server;
mod status;
pub mod sts;
mod version;
mod wait;
mod whois;
pub mod workload;

use std::{
    ffi::OsString,
    io::{self, BufRead},
    process::ExitCode,
    time::Duration,
};

use clap::{Arg, ArgAction, ArgMatches, Command, error::ErrorKind};

use self::{console::Console, exit::Failure, layout::Layout};
use crate::{
    config::{Environment, table::FlagScope},
    telemetry,
};

/// How long the log may take to write its last lines.
const LOG_FLUSH: Duration = Duration::from_secs(1);

/// Runs the command line of this process.
pub fn run() -> ExitCode {
    let mut out = io::stdout();
    let mut err = io::stderr();
    let mut stdin = io::stdin().lock();
    let environment = Environment::of_process();
    let mut console = Console {
        out: &mut out,
        err: &mut err,
        person: console::can_ask().then_some(&mut stdin as &mut dyn BufRead),
        layout: Layout::of_stdout(&environment),
    };
    let code = execute(std::env::args_os(), &environment, &mut console);
    telemetry::log::flush(LOG_FLUSH);
    ExitCode::from(code)
}

/// Runs one command line and returns its exit code.
pub fn execute(
    arguments: impl IntoIterator<Item = OsString>,
    environment: &Environment,
    console: &mut Console<'_>,
) -> u8 {
    let arguments = sts::with_two_dashes(arguments);
    let result = match command().try_get_matches_from(arguments) {
        Ok(matches) => dispatch(&matches, environment, console),
        Err(error) => not_a_command(&error, console),
    };
    match result {
        Ok(()) => exit::DONE,
        Err(failure) => {
            if let Some(message) = failure.message() {
                console.say(&format!("Error: {message}"));
            }
            failure.code()
        }
    }
}

/// The whole command line. Help, completions and man pages are made from it.
pub fn command() -> Command {
    Command::new("tailbone")
        .bin_name("tailbone")
        .about("Identity services on a Tailscale network: signed JWTs for whoever calls")
        // The Go program's words: `tailbone version 0.2.0-1a2b3c`.
        .version(concat!(
            "version ",
            env!("TAILBONE_VERSION"),
            "-",
            env!("TAILBONE_COMMIT")
        ))
        .disable_version_flag(true)
        .args_override_self(true)
        .arg(
            Arg::new("version")
                .short('v')
                .long("version")
                .action(ArgAction::Version)
                .help("Print version and commit"),
        )
        .arg(args::config().global(true))
        .args(args::of(FlagScope::Root))
        .subcommand(server::command())
        .subcommand(keys::command())
        .subcommand(status::command())
        .subcommand(whois::command())
        .subcommand(wait::command())
        .subcommand(doctor::command())
        .subcommand(bugreport::command())
        .subcommand(sts::command())
        .subcommand(workload::command())
        .subcommand(oidc::command())
        .subcommand(policy::command())
        .subcommand(config::command())
        .subcommand(version::command())
        .subcommand(completion::command())
        .subcommand(man::command())
}

fn dispatch(
    matches: &ArgMatches,
    environment: &Environment,
    console: &mut Console<'_>,
) -> Result<(), Failure> {
    match matches.subcommand() {
        Some(("server", matches)) => server::run(matches, environment, console),
        Some(("keys", matches)) => keys::run(matches, environment, console),
        Some(("status", matches)) => status::run(matches, environment, console),
        Some(("whois", matches)) => whois::run(matches, environment, console),
        Some(("wait", matches)) => wait::run(matches, environment, console),
        Some(("doctor", matches)) => doctor::run(matches, environment, console),
        Some(("bugreport", matches)) => bugreport::run(matches, environment, console),
        Some(("sts", matches)) => sts::run(matches, environment, console),
        Some(("workload", matches)) => workload::run(matches, environment, console),
        Some(("oidc", matches)) => oidc::run(matches, environment, console),
        Some(("policy", matches)) => policy::run(matches, environment, console),
        Some(("config", matches)) => config::run(matches, environment, console),
        Some(("version", matches)) => version::run(matches, console),
        Some(("completion", matches)) => completion::run(matches, console),
        Some(("man", matches)) => man::run(matches),
        _ => help(None, console),
    }
}

/// Prints the help of a group of commands of which none was named, as the Go program does.
fn help(group: Option<&str>, console: &mut Console<'_>) -> Result<(), Failure> {
    let mut root = command();
    root.build();
    let command = match group {
        Some(name) => root.find_subcommand_mut(name),
        None => Some(&mut root),
    };
    match command {
        Some(command) => console.print(&format!(
            "{}\n",
            command.render_help().to_string().trim_end()
        )),
        None => Ok(()),
    }
}

/// Prints the answers of clap: help and version are results, anything else is a mistake in the
/// command line.
fn not_a_command(error: &clap::Error, console: &mut Console<'_>) -> Result<(), Failure> {
    let text = error.render().to_string();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            console.print(&format!("{}\n", text.trim_end()))
        }
        _ => {
            let text = text.trim_end();
            let text = text.strip_prefix("error: ").unwrap_or(text);
            Err(Failure::with_code(exit::USAGE, text))
        }
    }
}
