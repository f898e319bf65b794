//! The help of every command, a snapshot for each.

use std::collections::BTreeSet;

use tailbone::cli;
use testkit::files::tree;

#[test]
fn help_of_every_command() {
    let mut command = cli::command();
    command.build();
    let mut pages = Vec::new();
    pages_of(&mut command, "tailbone", &mut pages);
    for (path, page) in &pages {
        insta::assert_snapshot!(name(path), page);
    }
    let expected: BTreeSet<_> = pages
        .iter()
        .map(|(path, _)| format!("it__config__help__{}.snap", name(path)))
        .collect();
    let kept: BTreeSet<_> = std::fs::read_dir(tree("tests/it/config/snapshots"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("it__config__help__") && name.ends_with(".snap"))
        .collect();
    assert_eq!(kept, expected, "a snapshot for each command and no other");
}

/// The help of a command and of all below it, each with the words that lead to it.
fn pages_of(command: &mut clap::Command, path: &str, pages: &mut Vec<(String, String)>) {
    let page = command
        .clone()
        .term_width(100)
        .render_long_help()
        .to_string();
    let lines: Vec<_> = page.lines().map(str::trim_end).collect();
    pages.push((path.to_owned(), lines.join("\n")));
    let names: Vec<_> = command
        .get_subcommands()
        .map(|command| command.get_name().to_owned())
        .filter(|name| name != "help")
        .collect();
    for name in names {
        let command = command.find_subcommand_mut(&name).unwrap();
        pages_of(command, &format!("{path} {name}"), pages);
    }
}

fn name(path: &str) -> String {
    path.replace(' ', "_")
}
