//! `tailbone man <directory>`: the manual pages, made from the command line itself. It is hidden,
//! because only packagers use it.

use std::path::PathBuf;

use clap::{Arg, ArgMatches, Command, value_parser};

use super::exit::Failure;

pub(super) fn command() -> Command {
    Command::new("man")
        .hide(true)
        .about("Write the manual pages into a directory")
        .arg(
            Arg::new("directory")
                .required(true)
                .value_parser(value_parser!(PathBuf)),
        )
}

pub(super) fn run(matches: &ArgMatches) -> Result<(), Failure> {
    let Some(directory) = matches.get_one::<PathBuf>("directory") else {
        return Ok(());
    };
    std::fs::create_dir_all(directory)
        .and_then(|()| clap_mangen::generate_to(super::command(), directory))
        .map_err(|error| {
            Failure::failed(std::io::Error::new(
                error.kind(),
                format!(
                    "the pages cannot be written into {}: {error}",
                    directory.display()
                ),
            ))
        })
}
