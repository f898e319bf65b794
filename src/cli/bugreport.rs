//! `tailbone bugreport`: what somebody who is to help has to know, in one text. Nothing is sent anywhere.
//!
//! Secrets are never in it: settings come as `config show` has them, the log has none, and the address of a login, with which one
//! could take the node over, is left out.

use clap::{ArgMatches, Command};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{
    args,
    ask::{runtime, target},
    console::Console,
    exit::Failure,
    output::{self, Output, Table},
    status::Status,
};
use crate::{
    admin::AdminClient,
    config::{self, Environment, OutputFormat, table::Scope},
    version,
};

const SCOPES: &[Scope] = &[Scope::Root, Scope::Server, Scope::Start];

pub(super) fn command() -> Command {
    Command::new("bugreport")
        .about("Collect what helps with a problem: versions, settings without secrets, status, last log lines")
        .args(
            args::of(Scope::Server)
                .chain(args::of(Scope::Start))
                .map(|arg| arg.global(false)),
        )
}

pub(super) fn run(
    matches: &ArgMatches,
    environment: &Environment,
    console: &mut Console<'_>,
) -> Result<(), Failure> {
    let raw = args::raw(matches, SCOPES, environment);
    let mut report = Report(Map::new());
    report.add(
        "version",
        json!({
            "tailbone": version::VERSION,
            "commit": version::COMMIT,
            "go": version::GO,
            "tsnet": version::TSNET,
            "system": std::env::consts::OS,
            "machine": std::env::consts::ARCH,
            "kernel": rustix::system::uname().release().to_string_lossy(),
        }),
    );
    // Wrong settings are often the very trouble that is reported.
    let client = match config::load_all(&raw) {
        Ok(((_, client), origins, warnings)) => {
            let settings: Map<String, Value> = origins
                .entries
                .iter()
                .map(|entry| {
                    let value = json!({"value": entry.value, "origin": entry.origin.to_string()});
                    (entry.row.key.to_owned(), value)
                })
                .collect();
            report.add("settings", settings.into());
            let warnings: Vec<_> = warnings.iter().map(ToString::to_string).collect();
            report.add("warnings", warnings.into());
            Some(client)
        }
        Err(mistakes) => {
            report.add("mistakes", mistakes.to_string().into());
            None
        }
    };
    let mut format = OutputFormat::Text;
    if let Some(settings) = client {
        format = settings.output;
        let client = AdminClient::new(target(&settings), settings.timeout);
        let runtime = runtime()?;
        match runtime.block_on(client.status()) {
            Ok(mut status) => {
                status.join_words = without_login(&status.join_words);
                status.login_url.clear();
                let status = serde_json::to_value(Status::from(status)).map_err(Failure::failed)?;
                report.add("status", status);
            }
            Err(error) => report.add("status", json!({"unreachable": error.to_string()})),
        }
        if let Ok(lines) = runtime.block_on(client.recent_log()) {
            let lines: Vec<_> = lines.iter().map(|line| without_login(line)).collect();
            report.add("log", lines.into());
        }
    }
    output::print(console, format, &report)
}

/// Without addresses that come after "login": whoever opens one first owns the node.
fn without_login(line: &str) -> String {
    if !line.to_ascii_lowercase().contains("login") {
        return line.to_owned();
    }
    line.split(' ')
        .map(|word| match word.find("http") {
            Some(at) => format!("{}(hidden)", word.get(..at).unwrap_or_default()),
            None => word.to_owned(),
        })
        .collect::<Vec<_>>()
        .join(" ")
}

/// Sections by name, in the order in which they were added.
#[derive(Serialize)]
struct Report(Map<String, Value>);

impl Report {
    fn add(&mut self, name: &str, value: Value) {
        self.0.insert(name.to_owned(), value);
    }
}

impl Output for Report {
    fn table(&self) -> Table {
        let mut table = Table::new(["What", "Is"]);
        for (name, section) in &self.0 {
            rows(&mut table, name, section);
        }
        table
    }
}

fn rows(table: &mut Table, name: &str, value: &Value) {
    match value {
        Value::Object(members) => {
            for (member, value) in members {
                rows(table, &format!("{name}.{member}"), value);
            }
        }
        Value::Array(items) => {
            for item in items {
                rows(table, name, item);
            }
        }
        Value::String(text) => table.row([name.to_owned(), text.clone()]),
        other => table.row([name.to_owned(), other.to_string()]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_of_a_login_is_left_out() {
        let line = "WRN ts needs a login URL: https://login.example/a/b state=needs-login";
        assert_eq!(
            without_login(line),
            "WRN ts needs a login URL: (hidden) state=needs-login"
        );
        assert_eq!(
            without_login("see https://x.example"),
            "see https://x.example"
        );
    }
}
