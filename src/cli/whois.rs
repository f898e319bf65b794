//! `tailbone whois ADDR`: who a running server takes a tailnet address for, and whether it would serve them.

use clap::{Arg, ArgMatches, Command};
use serde::Serialize;
use serde_json::Value;

use super::{
    args,
    ask::Asking,
    console::Console,
    exit::Failure,
    output::{self, Output, Table},
};
use crate::{
    admin::proto::WhoIsResponse,
    config::{Environment, table::Scope},
};

pub(super) fn command() -> Command {
    Command::new("whois")
        .about("Ask a running server who is behind a tailnet address")
        .args(args::of(Scope::Keys))
        .arg(
            Arg::new("address")
                .required(true)
                .value_name("ADDRESS")
                .help("Tailnet address, with or without a port"),
        )
}

pub(super) fn run(
    matches: &ArgMatches,
    environment: &Environment,
    console: &mut Console<'_>,
) -> Result<(), Failure> {
    let asking = Asking::new(matches, environment, console)?;
    let address = matches.get_one::<String>("address").cloned();
    let answer = asking
        .runtime
        .block_on(asking.client.who_is(address.unwrap_or_default()))
        .map_err(Failure::failed)?;
    output::print(console, asking.settings.output, &Known::from(answer))
}

#[derive(Debug, Serialize)]
struct Known {
    kind: String,
    login: String,
    display_name: String,
    node: String,
    node_id: String,
    tags: Vec<String>,
    grants: Value,
    /// Stable code and words of why it would be refused.
    refusal: Option<(String, String)>,
}

impl From<WhoIsResponse> for Known {
    fn from(answer: WhoIsResponse) -> Self {
        Self {
            kind: answer.kind,
            login: answer.login,
            display_name: answer.display_name,
            node: answer.node_name,
            node_id: answer.node_id,
            tags: answer.tags,
            grants: serde_json::from_str(&answer.grants_json).unwrap_or_default(),
            refusal: Some((answer.refusal, answer.refusal_words))
                .filter(|(code, _)| !code.is_empty()),
        }
    }
}

impl Output for Known {
    fn table(&self) -> Table {
        let mut table = Table::new(["What", "Is"]);
        let grants = self
            .grants
            .as_object()
            .map(|grants| grants.keys().cloned().collect::<Vec<_>>().join(", "));
        let refusal = self
            .refusal
            .as_ref()
            .map(|(code, words)| format!("{code}: {words}"));
        for (what, is) in [
            ("kind", self.kind.clone()),
            ("login", self.login.clone()),
            ("display name", self.display_name.clone()),
            ("node", self.node.clone()),
            ("node id", self.node_id.clone()),
            ("tags", self.tags.join(", ")),
            ("grants", grants.unwrap_or_default()),
            ("refused", refusal.unwrap_or_default()),
        ] {
            if !is.is_empty() {
                table.row([what.to_owned(), is]);
            }
        }
        table
    }
}
