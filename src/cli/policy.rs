//! `tailbone policy test` and `tailbone policy check`: what the gate's rules would say, without a node and without a request.
//!
//! The caller is made up from the command line, grants included; or it is a live address, and the running server at the local admin
//! socket says who that is and what the tailnet grants them. The rules are those of the file either way, in force or not yet.

use std::{collections::BTreeMap, path::PathBuf};

use clap::{Arg, ArgAction, ArgGroup, ArgMatches, Command};
use serde::Serialize;

use super::{
    args, ask,
    console::Console,
    exit::{Failure, USAGE},
    output::{self, Output, Table},
};
use crate::{
    admin::{AdminClient, ServerAddress},
    config::{self, ClientSettings, Environment, OutputFormat, table::Scope},
    identity::Visitor,
    policy::{Decision, Host, LoadError, Path, RuleId, Rules, Step, Store, What, Who},
    tailnet::{WhoIs, WhoIsNode, WhoIsUser},
};

/// Whom a rule about the own tailnet is tried with.
const OWN_TAILNET: &str = "example.ts.net";

pub(super) fn command() -> Command {
    let text = |name: &'static str, value: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(value).help(help)
    };
    Command::new("policy")
        .about("Check the gate's rules and try them out")
        .args(args::of(Scope::Policy).map(|arg| arg.global(true)))
        .subcommand(Command::new("check").about("Load the file of rules and tell every mistake"))
        .subcommand(
            Command::new("test")
                .about("Say which rule decides about a request, and why")
                .arg(text("as", "LOGIN", "The caller is this user"))
                .arg(
                    text(
                        "node",
                        "TAG",
                        "The caller is a machine with this tag; again for more",
                    )
                    .action(ArgAction::Append),
                )
                .arg(text(
                    "address",
                    "ADDRESS",
                    "The caller is whoever has this tailnet address, as the running server knows them",
                ))
                .arg(flag("funnel", "The caller is somebody on the internet"))
                .arg(flag(
                    "unknown",
                    "The caller is nobody whom the tailnet knows",
                ))
                .group(
                    ArgGroup::new("who")
                        .args(["as", "node", "address", "funnel", "unknown"])
                        .required(true),
                )
                .arg(flag("foreign", "The caller is of another tailnet"))
                .arg(text(
                    "tailnet",
                    "SUFFIX",
                    "MagicDNS suffix of the caller's tailnet",
                ))
                .arg(
                    text(
                        "grant",
                        "CAPABILITY=JSON",
                        "A grant of the caller; again for more",
                    )
                    .action(ArgAction::Append),
                )
                .arg(text(
                    "host",
                    "HOST",
                    "What is asked for; a rule about hosts is in doubt without",
                ))
                .arg(text("path", "PATH", "The same for the path"))
                .arg(text(
                    "method",
                    "METHOD",
                    "The same for the method [default: GET]",
                ))
                .arg(
                    text("expect", "DECISION", "Fail unless this is decided").value_parser([
                        "allow",
                        "anonymous",
                        "deny",
                    ]),
                ),
        )
}

fn flag(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name)
        .long(name)
        .action(ArgAction::SetTrue)
        .help(help)
}

pub(super) fn run(
    matches: &ArgMatches,
    environment: &Environment,
    console: &mut Console<'_>,
) -> Result<(), Failure> {
    let Some((name, matches)) = matches.subcommand() else {
        return super::help(Some("policy"), console);
    };
    let raw = args::raw(matches, &[Scope::Root, Scope::Policy], environment);
    let ((file, capability, format), _) = console.told(config::load_policy(&raw))?;
    let rules = rules(file, &capability)?;
    if name == "check" {
        console.say("The policy is fine");
        return Ok(());
    }
    let mistake = |words: String| Failure::with_code(USAGE, words);
    let visitor = match matches.get_one::<String>("address") {
        Some(address) => {
            let (settings, _) = console.told(config::load_client(&raw))?;
            live(address, settings)?
        }
        None => visitor(matches).map_err(mistake)?,
    };
    let what = what(matches).map_err(mistake)?;
    test(matches, &rules, visitor.as_ref(), &what, format, console)
}

pub(super) fn rules(file: Option<PathBuf>, capability: &str) -> Result<Rules, Failure> {
    match Store::open(file.as_deref(), capability) {
        Ok(store) => Ok(store.rules().as_ref().clone()),
        Err(error @ LoadError::Mistakes { .. }) => {
            Err(Failure::with_code(super::exit::SETTINGS, error.to_string()))
        }
        Err(error) => Err(Failure::failed(error.to_string())),
    }
}

fn test(
    matches: &ArgMatches,
    rules: &Rules,
    visitor: Option<&Visitor>,
    what: &What,
    format: OutputFormat,
    console: &mut Console<'_>,
) -> Result<(), Failure> {
    let who = match visitor {
        Some(visitor) => Who::Known(visitor),
        None if matches.get_flag("funnel") => Who::Funnel,
        None => Who::Nobody,
    };
    let (steps, decision) = rules.explain(who, what);
    let answer = Explained::new(&steps, &decision);
    if format == OutputFormat::Text {
        console.print(&format!("{}: {}\n", answer.decision, answer.why))?;
    }
    output::print(console, format, &answer)?;
    match matches.get_one::<String>("expect") {
        Some(expected) if expected != answer.decision => Err(Failure::failed(format!(
            "expected {expected}, but it is {}",
            answer.decision
        ))),
        _ => Ok(()),
    }
}

/// Who has the address, by the running server; nobody where the tailnet knows no such node or no longer vouches for it.
fn live(address: &str, settings: ClientSettings) -> Result<Option<Visitor>, Failure> {
    let client = AdminClient::new(ServerAddress::Socket(settings.socket), settings.timeout);
    let answer = match ask::runtime()?.block_on(client.who_is(address.to_owned())) {
        Err(error) if error.code == tonic::Code::NotFound => return Ok(None),
        answer => answer.map_err(Failure::failed)?,
    };
    let whois = WhoIs {
        node: WhoIsNode {
            id: answer.node_id,
            name: answer.node_name,
            tags: answer.tags,
            expired: answer.refusal == "node_expired",
            ..WhoIsNode::default()
        },
        user: WhoIsUser {
            login: answer.login,
            display_name: answer.display_name,
            ..WhoIsUser::default()
        },
        caps: serde_json::from_str(&answer.grants_json).map_err(Failure::failed)?,
        same_tailnet: answer.refusal != "foreign_tailnet",
    };
    Ok(Visitor::from_whois(whois, &answer.tailnet).ok())
}

fn visitor(matches: &ArgMatches) -> Result<Option<Visitor>, String> {
    let login = matches.get_one::<String>("as").cloned();
    let tags: Vec<String> = matches
        .get_many::<String>("node")
        .into_iter()
        .flatten()
        .map(|tag| {
            if tag.starts_with("tag:") {
                tag.clone()
            } else {
                format!("tag:{tag}")
            }
        })
        .collect();
    if login.is_none() && tags.is_empty() {
        return Ok(None);
    }
    let foreign = matches.get_flag("foreign");
    let tailnet = matches
        .get_one::<String>("tailnet")
        .map_or(if foreign { "" } else { OWN_TAILNET }, String::as_str);
    let name = if foreign && !tailnet.is_empty() {
        format!("node.{tailnet}")
    } else {
        "node".into()
    };
    let mut caps: BTreeMap<String, Vec<serde_json::Value>> = BTreeMap::new();
    for grant in matches.get_many::<String>("grant").into_iter().flatten() {
        let (capability, value) = grant
            .split_once('=')
            .ok_or_else(|| format!("--grant {grant}: write it as capability=JSON"))?;
        let value = serde_json::from_str(value)
            .map_err(|error| format!("--grant {grant}: no JSON after the =: {error}"))?;
        caps.entry(capability.to_owned()).or_default().push(value);
    }
    let whois = WhoIs {
        node: WhoIsNode {
            name,
            tags,
            ..WhoIsNode::default()
        },
        user: WhoIsUser {
            login: login.unwrap_or_default(),
            ..WhoIsUser::default()
        },
        caps,
        same_tailnet: !foreign,
    };
    Visitor::from_whois(whois, tailnet)
        .map(Some)
        .map_err(|refusal| refusal.to_string())
}

fn what(matches: &ArgMatches) -> Result<What, String> {
    let text = |name: &str| matches.get_one::<String>(name).map(String::as_str);
    let method = text("method").unwrap_or("GET");
    Ok(What {
        host: text("host")
            .map(|host| Host::parse(host).map_err(|error| format!("--host {host}: {error}")))
            .transpose()?,
        path: text("path")
            .map(|path| {
                let bare = path.split(['?', '#']).next().unwrap_or_default();
                Path::parse(bare).map_err(|error| format!("--path {path}: {error}"))
            })
            .transpose()?,
        method: Some(
            http::Method::from_bytes(method.as_bytes())
                .map_err(|_| format!("--method {method}: no method"))?,
        ),
    })
}

/// The answer, with every rule that was looked at.
#[derive(Debug, Serialize)]
struct Explained {
    decision: &'static str,
    rule: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<usize>,
    why: String,
    rules: Vec<Looked>,
}

#[derive(Debug, Serialize)]
struct Looked {
    rule: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<usize>,
    decision: &'static str,
    decides: bool,
    why: String,
}

impl Explained {
    fn new(steps: &[Step], decision: &Decision) -> Self {
        let line = |rule: &RuleId| match rule {
            RuleId::Local { line, .. } => Some(*line),
            _ => None,
        };
        Self {
            decision: decision.effect.as_str(),
            rule: decision.rule.to_string(),
            line: line(&decision.rule),
            why: match line(&decision.rule) {
                Some(line) => format!("{} (line {line}): {}", decision.rule, decision.why),
                None => format!("{}: {}", decision.rule, decision.why),
            },
            rules: steps
                .iter()
                .map(|step| Looked {
                    rule: step.rule.to_string(),
                    line: line(&step.rule),
                    decision: step.effect.as_str(),
                    decides: step.decides,
                    why: step.why.clone().into_owned(),
                })
                .collect(),
        }
    }
}

impl Output for Explained {
    fn table(&self) -> Table {
        let mut table = Table::new(["Rule", "Line", "Decision", "Decides", "Why"]);
        for looked in &self.rules {
            table.row([
                looked.rule.clone(),
                looked.line.map(|line| line.to_string()).unwrap_or_default(),
                looked.decision.to_owned(),
                if looked.decides { "yes" } else { "no" }.to_owned(),
                looked.why.clone(),
            ]);
        }
        table
    }
}
