//! `tailbone version`.

use clap::{ArgMatches, Command};
use serde::Serialize;

use super::{
    args,
    console::Console,
    exit::Failure,
    layout::Layout,
    output::{self, Output},
};
use crate::{
    config::{self, Environment, RawSettings, table::FlagScope},
    version,
};

pub(super) fn command() -> Command {
    Command::new("version").about("Print version and commit; with -o json also what is inside")
}

/// Only the flag counts here: the Go program printed the two lines whatever `TB_OUTPUT` was, and
/// the version must be printed even if the config file is broken.
pub(super) fn run(matches: &ArgMatches, console: &mut Console<'_>) -> Result<(), Failure> {
    let flags = args::given(matches, &[FlagScope::Root]);
    let raw = RawSettings::collect(flags, &Environment::default(), None);
    let (format, _) = console.accept(config::load_output(&raw))?;
    let build = Build {
        version: version::VERSION,
        commit: version::COMMIT,
        go: version::GO,
        tsnet: version::TSNET,
    };
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
    fn text(&self, _: Layout) -> String {
        format!("Version {}\nCommit {}\n", self.version, self.commit)
    }
}
