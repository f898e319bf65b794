//! `tailbone whois ADDRESS`: the caller that a running server sees at a tailnet address, and
//! whether it would serve them.

use clap::{Arg, ArgMatches, Command};
use serde::Serialize;
use serde_json::Value;

use super::{
    args,
    ask::ServerCall,
    console::Console,
    exit::Failure,
    layout::{Layout, List, Mark},
    output::{self, Output},
};
use crate::{
    admin::proto::WhoIsResponse,
    config::{Environment, table::FlagScope},
};

pub(super) fn command() -> Command {
    Command::new("whois")
        .about("Ask a running server who is behind a tailnet address")
        .args(args::of(FlagScope::Keys))
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
    let call = ServerCall::new(matches, environment, console)?;
    let address = matches.get_one::<String>("address").cloned();
    let answer = call.wait(async |client| client.who_is(address.unwrap_or_default()).await)?;
    output::print(console, call.settings.output, &CallerDetails::from(answer))
}

#[derive(Debug, Serialize)]
struct CallerDetails {
    kind: String,
    login: String,
    display_name: String,
    node: String,
    node_id: String,
    tags: Vec<String>,
    grants: Value,
    /// Stable code and words of why the server would refuse the caller.
    refusal: Option<(String, String)>,
}

impl From<WhoIsResponse> for CallerDetails {
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

impl Output for CallerDetails {
    fn text(&self, layout: Layout) -> String {
        let mut list = List::new(layout);
        let name = if self.kind == "machine" {
            &self.node
        } else {
            &self.login
        };
        let owner = format!("This address belongs to the {} {name}", self.kind);
        match &self.refusal {
            None => list.sentence(Mark::Good, &owner),
            Some((code, words)) => {
                let words = format!("{owner}. The server refuses them: {words} ({code})");
                list.sentence(Mark::Bad, &words);
            }
        }
        let grants = self
            .grants
            .as_object()
            .map(|grants| grants.keys().cloned().collect::<Vec<_>>().join(", "));
        list.heading("Caller");
        list.facts(&[
            ("Login", self.login.clone()),
            ("Display name", self.display_name.clone()),
            ("Node", self.node.clone()),
            ("Node id", self.node_id.clone()),
            ("Tags", self.tags.join(", ")),
            ("Grants", grants.unwrap_or_default()),
        ]);
        list.finish()
    }
}
