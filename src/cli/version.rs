//! `tailbone version`.

use clap::{ArgMatches, Command};
use serde::Serialize;

use super::{
    args,
    console::Console,
    exit::Failure,
    output::{self, Output, Table},
};
use crate::{
    config::{self, Environment, OutputFormat, Raw, table::Scope},
    version,
};

pub(super) fn command() -> Command {
    Command::new("version").about("Print version and commit; with -o json also what is inside")
}

/// Only the flag counts here: the Go program printed the two lines whatever `TB_OUTPUT` said, and a broken config file must not
/// keep anybody from learning the version.
pub(super) fn run(matches: &ArgMatches, console: &mut Console<'_>) -> Result<(), Failure> {
    let flags = args::given(matches, &[Scope::Root]);
    let raw = Raw::collect(flags, &Environment::default(), None);
    let (format, _) = console.told(config::load_output(&raw))?;
    let build = Build {
        version: version::VERSION,
        commit: version::COMMIT,
        go: version::GO,
        tsnet: version::TSNET,
    };
    if format == OutputFormat::Text {
        return console.print(&format!(
            "Version {}\nCommit {}\n",
            build.version, build.commit
        ));
    }
    output::print(console, format, &build)
}

#[derive(Serialize)]
struct Build {
    version: &'static str,
    commit: &'static str,
    go: &'static str,
    tsnet: &'static str,
}

impl Output for Build {
    fn table(&self) -> Table {
        let mut table = Table::new(["Version", "Commit"]);
        table.row([self.version.to_owned(), self.commit.to_owned()]);
        table
    }
}
