//! Settings from the outside, through the command line.

mod binary;
mod commands;
mod contract;
mod files;
mod help;
mod listeners;
mod meaning;
mod otlp;
mod precedence;
mod reload;
mod report;
mod secrets;
mod tsiam;
mod tsidp;
mod values;
mod variables;

use std::{collections::BTreeMap, ffi::OsString, path::PathBuf};

use serde_json::Value as Json;
use tailbone::{
    cli::{self, console::Console, layout::Layout},
    config::{
        self, ClientSettings, Environment, Flags, InvalidSettings, Listen, Purpose, RawSettings,
        Settings,
    },
};
use tempfile::TempDir;

/// The result of a command line.
struct Ran {
    code: u8,
    out: String,
    err: String,
}

fn run(arguments: &[&str], variables: &[(&str, &str)]) -> Ran {
    let environment: Environment = variables.iter().copied().collect();
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let code = cli::execute(
        std::iter::once("tailbone")
            .chain(arguments.iter().copied())
            .map(OsString::from),
        &environment,
        &mut Console {
            out: &mut out,
            err: &mut err,
            person: None,
            layout: Layout::PIPE,
        },
    );
    Ran {
        code,
        out: String::from_utf8(out).unwrap(),
        err: String::from_utf8(err).unwrap(),
    }
}

/// `config show --origin` as a map from key to value and origin.
fn show(arguments: &[&str], variables: &[(&str, &str)]) -> BTreeMap<String, (Json, String)> {
    let mut all = vec!["config", "show", "--origin", "-o", "json"];
    all.extend(arguments);
    let ran = run(&all, variables);
    assert_eq!(ran.code, 0, "{}", ran.err);
    let lines: Vec<Json> = serde_json::from_str(&ran.out).unwrap();
    lines
        .into_iter()
        .map(|line| {
            (
                line["key"].as_str().unwrap().to_owned(),
                (
                    line["value"].clone(),
                    line["origin"].as_str().unwrap().to_owned(),
                ),
            )
        })
        .collect()
}

fn raw(variables: &[(&str, &str)]) -> RawSettings {
    RawSettings::collect(Flags::default(), &variables.iter().copied().collect(), None)
}

fn load(variables: &[(&str, &str)]) -> Result<Settings, InvalidSettings> {
    config::load(&raw(variables), Purpose::Start).map(|(settings, _, _)| settings)
}

fn client(variables: &[(&str, &str)]) -> ClientSettings {
    config::load_client(&raw(variables)).unwrap().0
}

/// The warnings and mistakes for some variables.
fn remarks(variables: &[(&str, &str)]) -> (Vec<String>, Vec<String>) {
    let told = |list: &[config::Remark]| list.iter().map(ToString::to_string).collect();
    match config::load_all(&raw(variables)) {
        Ok((_, _, warnings)) => (told(&warnings), Vec::new()),
        Err(mistakes) => (told(&mistakes.warnings), told(&mistakes.mistakes)),
    }
}

fn warning(name: &str, value: &str) -> String {
    let (warnings, mistakes) = remarks(&[(name, value)]);
    assert_eq!(mistakes, [""; 0]);
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    warnings.into_iter().next().unwrap()
}

fn mistake(name: &str, value: &str) -> String {
    let (_, mistakes) = remarks(&[(name, value)]);
    assert_eq!(mistakes.len(), 1, "{name}={value}: {mistakes:?}");
    mistakes.into_iter().next().unwrap()
}

fn file(name: &str, text: &str) -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(name);
    std::fs::write(&path, text).unwrap();
    (directory, path)
}

fn with_file(name: &str, text: &str, arguments: &[&str]) -> Ran {
    let (_directory, path) = file(name, text);
    let mut all = arguments.to_vec();
    all.extend(["--config", path.to_str().unwrap()]);
    let mut ran = run(&all, &[]);
    ran.err = ran.err.replace(path.to_str().unwrap(), "PATH");
    ran.out = ran.out.replace(path.to_str().unwrap(), "PATH");
    ran
}

fn addresses(listen: &[Listen]) -> Vec<String> {
    listen.iter().map(ToString::to_string).collect()
}
