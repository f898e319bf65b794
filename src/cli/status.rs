//! `tailbone status`: the server as it sees itself; with `--check` for a container's or a supervisor's health check.

use clap::{Arg, ArgAction, ArgMatches, Command};
use jiff::Timestamp;
use serde::Serialize;

use super::{
    args,
    ask::Asking,
    console::Console,
    exit::Failure,
    output::{self, Output, Table},
};
use crate::{
    admin::proto::{self, StatusResponse},
    config::{Environment, table::Scope},
};

pub(super) fn command() -> Command {
    Command::new("status")
        .about("Show how a running server does: node, keys, JWKS, listeners")
        .args(args::of(Scope::Keys))
        .arg(
            Arg::new("check")
                .long("check")
                .action(ArgAction::SetTrue)
                .help("Print nothing when the server is ready; else say why not and exit 1"),
        )
}

pub(super) fn run(
    matches: &ArgMatches,
    environment: &Environment,
    console: &mut Console<'_>,
) -> Result<(), Failure> {
    let asking = Asking::new(matches, environment, console)?;
    let status = asking
        .runtime
        .block_on(asking.client.status())
        .map_err(Failure::failed)?;
    if matches.get_flag("check") {
        return if status.ready {
            Ok(())
        } else {
            Err(Failure::failed(format!("not ready: {}", held(&status))))
        };
    }
    output::print(console, asking.settings.output, &Status::from(status))
}

/// Every latch that is held, in one line.
pub(super) fn held(status: &StatusResponse) -> String {
    told(status, |latch| !latch.ready)
}

/// Every latch that is degraded, in one line.
pub(super) fn degraded(status: &StatusResponse) -> String {
    told(status, |latch| latch.degraded)
}

fn told(status: &StatusResponse, wanted: fn(&proto::Latch) -> bool) -> String {
    let latches = status.latches.iter().filter(|latch| wanted(latch));
    let told: Vec<_> = latches
        .map(|latch| format!("{}: {}", latch.name, latch.reason))
        .collect();
    told.join("; ")
}

/// What is printed. Times are RFC 3339, and absent where there is none.
#[derive(Debug, Serialize)]
pub struct Status {
    version: String,
    commit: String,
    ready: bool,
    latches: Vec<Latch>,
    node: Node,
    keys: Vec<Key>,
    signing_key: Option<String>,
    signing_trouble: Option<String>,
    jwks: Jwks,
    listeners: Vec<Listener>,
}

#[derive(Debug, Serialize)]
struct Latch {
    name: String,
    ready: bool,
    degraded: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    reason: String,
}

#[derive(Debug, Serialize)]
struct Node {
    state: String,
    words: String,
    login_url: Option<String>,
    name: String,
    tailnet: String,
    addresses: Vec<String>,
    owner: Option<String>,
    tags: Vec<String>,
    key_expiry: Option<String>,
    health: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Key {
    id: String,
    algorithm: String,
    state: String,
    published: bool,
    created: Option<String>,
    signs_since: Option<String>,
}

#[derive(Debug, Serialize)]
struct Jwks {
    place: String,
    read_at: Option<String>,
    trouble: Option<String>,
}

#[derive(Debug, Serialize)]
struct Listener {
    name: String,
    address: String,
    connections: u64,
}

impl From<StatusResponse> for Status {
    fn from(status: StatusResponse) -> Self {
        Self {
            version: status.version,
            commit: status.commit,
            ready: status.ready,
            latches: status
                .latches
                .into_iter()
                .map(|latch| Latch {
                    name: latch.name,
                    ready: latch.ready,
                    degraded: latch.degraded,
                    reason: latch.reason,
                })
                .collect(),
            node: Node {
                state: status.join_state,
                words: status.join_words,
                login_url: some(status.login_url),
                name: status.node_name,
                tailnet: status.tailnet,
                addresses: status.addresses,
                owner: some(status.owner),
                tags: status.tags,
                key_expiry: moment(status.node_key_expiry),
                health: status.health,
            },
            keys: status
                .keys
                .into_iter()
                .map(|key| Key {
                    id: key.key_id,
                    algorithm: key.algorithm,
                    state: if key.state.is_empty() {
                        "another server's".to_owned()
                    } else {
                        key.state
                    },
                    published: key.published,
                    created: moment(key.created_at),
                    signs_since: moment(key.signs_since),
                })
                .collect(),
            signing_key: some(status.signing_key),
            signing_trouble: some(status.signing_trouble),
            jwks: Jwks {
                place: status.jwks_place,
                read_at: moment(status.jwks_read_at),
                trouble: some(status.jwks_trouble),
            },
            listeners: status
                .listeners
                .into_iter()
                .map(|listener| Listener {
                    name: listener.name,
                    address: listener.address,
                    connections: listener.connections,
                })
                .collect(),
        }
    }
}

fn some(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

fn moment(seconds: i64) -> Option<String> {
    Timestamp::from_second(seconds)
        .ok()
        .filter(|_| seconds != 0)
        .map(|time| time.to_string())
}

impl Output for Status {
    fn table(&self) -> Table {
        let mut table = Table::new(["What", "Is"]);
        let mut row = |what: &str, is: String| {
            if !is.is_empty() {
                table.row([what.to_owned(), is]);
            }
        };
        let degraded = self.latches.iter().any(|latch| latch.degraded);
        let ready = match (self.ready, degraded) {
            (true, false) => "yes",
            (true, true) => "yes, degraded",
            (false, _) => "no",
        };
        row("ready", ready.to_owned());
        for latch in self
            .latches
            .iter()
            .filter(|latch| !latch.ready || latch.degraded)
        {
            row(&latch.name, latch.reason.clone());
        }
        row("node", self.node.state.clone());
        if self.node.state != "running" {
            row("", self.node.words.clone());
        }
        row("name", self.node.name.clone());
        row("addresses", self.node.addresses.join(", "));
        row("owner", self.node.owner.clone().unwrap_or_default());
        row("tags", self.node.tags.join(", "));
        row(
            "node key expires",
            if self.node.name.is_empty() {
                String::new()
            } else {
                self.node
                    .key_expiry
                    .clone()
                    .unwrap_or_else(|| "never".to_owned())
            },
        );
        for words in &self.node.health {
            row("health", words.clone());
        }
        row(
            "signs with",
            self.signing_key
                .clone()
                .or_else(|| self.signing_trouble.clone())
                .unwrap_or_default(),
        );
        for key in &self.keys {
            row("key", format!("{} {} {}", key.id, key.algorithm, key.state));
        }
        row("JWKS", self.jwks.place.clone());
        row("JWKS read", self.jwks.read_at.clone().unwrap_or_default());
        row(
            "JWKS trouble",
            self.jwks.trouble.clone().unwrap_or_default(),
        );
        for listener in &self.listeners {
            row(
                "listens",
                format!(
                    "{} {} ({} open)",
                    listener.name, listener.address, listener.connections
                ),
            );
        }
        row("version", format!("{} {}", self.version, self.commit));
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_says_why_and_what_to_do_and_json_has_no_zeros_for_nothing() {
        let status = Status::from(StatusResponse {
            join_state: "needs-login".into(),
            join_words: "a person has to log in".into(),
            login_url: "https://login.example/x".into(),
            latches: vec![proto::Latch {
                name: "node-running".into(),
                ready: false,
                reason: "because".into(),
                ..proto::Latch::default()
            }],
            ..StatusResponse::default()
        });
        let table = status.table().to_string();
        for words in ["because", "a person has to log in", "needs-login"] {
            assert!(table.contains(words), "{table}");
        }
        let degraded = Status::from(StatusResponse {
            ready: true,
            latches: vec![proto::Latch {
                name: "jwks-read".into(),
                ready: true,
                reason: "long ago".into(),
                degraded: true,
            }],
            ..StatusResponse::default()
        });
        let table = degraded.table().to_string();
        assert!(
            table.contains("yes, degraded") && table.contains("long ago"),
            "{table}"
        );
        let json = serde_json::to_value(&status).unwrap();
        assert_eq!(json["jwks"]["read_at"], serde_json::Value::Null);
        assert_eq!(json["node"]["login_url"], "https://login.example/x");
    }
}
