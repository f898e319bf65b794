//! `tailbone bugreport`: one text with everything that helps to find a fault. Nothing is sent
//! anywhere.
//!
//! It never contains secrets: settings are those of `config show`, and the log has none. It leaves
//! out login addresses, because whoever opens one owns the node.

use clap::{ArgMatches, Command};
use serde::{Serialize, Serializer};
use serde_json::{Map, Value, json};

use super::{
    args,
    ask::{runtime, target},
    console::Console,
    exit::Failure,
    layout::{Layout, List},
    output::{self, Output},
    status::Status,
};
use crate::{
    admin::AdminClient,
    config::{self, Environment, OutputFormat, table::FlagScope},
    version,
};

const SCOPES: &[FlagScope] = &[FlagScope::Root, FlagScope::Server, FlagScope::Start];

pub(super) fn command() -> Command {
    Command::new("bugreport")
        .about(
            "Collect what helps with a problem: versions, settings without secrets, status, last \
             log lines",
        )
        .args(
            args::of(FlagScope::Server)
                .chain(args::of(FlagScope::Start))
                .map(|arg| arg.global(false)),
        )
}

pub(super) fn run(
    matches: &ArgMatches,
    environment: &Environment,
    console: &mut Console<'_>,
) -> Result<(), Failure> {
    let raw = args::raw(matches, SCOPES, environment);
    let mut report = Report(Vec::new());
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
    // Wrong settings are often the very fault that is reported; those of the client may be right
    // all the same.
    let client = config::load_client(&raw).map(|(client, ..)| client).ok();
    match config::load_all(&raw) {
        Ok((_, origins, warnings)) => {
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
        }
        Err(mistakes) => report.add("mistakes", mistakes.to_string().into()),
    }
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

/// Hides the addresses in a line about a login: whoever opens one first owns the node.
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

/// Sections by name, in the order for people.
struct Report(Vec<(&'static str, Value)>);

impl Report {
    fn add(&mut self, name: &'static str, value: Value) {
        self.0.push((name, value));
    }
}

impl Serialize for Report {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let sections = self.0.iter();
        let sections: Map<_, _> = sections
            .map(|(name, section)| ((*name).to_owned(), section.clone()))
            .collect();
        sections.serialize(serializer)
    }
}

impl Output for Report {
    fn text(&self, layout: Layout) -> String {
        let mut list = List::new(layout);
        for (name, section) in &self.0 {
            list.heading(name);
            let mut facts = Vec::new();
            flatten("", section, &mut facts);
            list.facts(&facts);
        }
        list.finish()
    }
}

/// Every value with the names of the objects around it, joined by dots.
fn flatten(name: &str, value: &Value, facts: &mut Vec<(String, String)>) {
    match value {
        Value::Object(members) => {
            if let (2, Some(value), Some(Value::String(origin))) =
                (members.len(), members.get("value"), members.get("origin"))
            {
                facts.push((name.to_owned(), format!("{} ({origin})", plain(value))));
                return;
            }
            for (member, value) in members {
                let dot = if name.is_empty() { "" } else { "." };
                flatten(&format!("{name}{dot}{member}"), value, facts);
            }
        }
        Value::Array(items) => {
            for item in items {
                flatten(name, item, facts);
            }
        }
        other => facts.push((name.to_owned(), plain(other))),
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_have_headings_and_a_setting_stays_on_one_line() {
        let mut report = Report(Vec::new());
        let port = json!({"value": 8080, "origin": "variable TB_SERVER_PORT"});
        report.add("settings", json!({"server.port": port}));
        report.add(
            "status",
            json!({"node": {"state": "running"}, "ready": true}),
        );
        report.add("log", json!(["one line", "another"]));
        assert_eq!(
            report.text(Layout::PIPE),
            "settings\n  server.port  8080 (variable TB_SERVER_PORT)\n\n\
             status\n  node.state  running\n  ready       true\n\n\
             log\n  one line\n  another\n"
        );
    }

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
