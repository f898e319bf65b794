//! `tailbone completion <shell>`: a script for the shell, made from the command line itself.

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use clap_complete::Shell;

use super::{console::Console, exit::Failure};

pub(super) fn command() -> Command {
    Command::new("completion")
        .about("Print the completion script for a shell")
        .arg(Arg::new("shell").value_parser(value_parser!(Shell)))
        .arg(
            // The Go program's scripts could leave descriptions out; the flag is still accepted.
            Arg::new("no-descriptions")
                .long("no-descriptions")
                .action(ArgAction::SetTrue)
                .hide(true),
        )
}

pub(super) fn run(matches: &ArgMatches, console: &mut Console<'_>) -> Result<(), Failure> {
    let Some(shell) = matches.get_one::<Shell>("shell") else {
        return super::help(Some("completion"), console);
    };
    let mut script = Vec::new();
    clap_complete::generate(*shell, &mut super::command(), "tailbone", &mut script);
    console.print(&String::from_utf8_lossy(&script))
}
