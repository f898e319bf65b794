//! `tailbone policy test` and `tailbone policy check`: the decisions of the gate's rules, of those
//! for workload tokens and of those about logins, without a node and without a request.
//!
//! The command line describes the caller, including their grants; or it names a live address, and
//! the running server at the local admin socket says who that is and what the tailnet grants them.
//! In both cases the rules are those of the file, whether they are in force or not.

mod audience;
mod login;

use std::collections::BTreeMap;

use clap::{Arg, ArgAction, ArgGroup, ArgMatches, Command};
use serde::Serialize;

use super::{
    args, ask,
    console::Console,
    exit::{Failure, USAGE},
    layout::{Layout, List, Mark},
    output::{self, Output},
};
use crate::{
    admin::{AdminClient, ServerAddress},
    config::{self, ClientSettings, Environment, OutputFormat, RuleSource, table::FlagScope},
    identity::{Caller, Visitor},
    oidc::access::LoginScope,
    policy::{
        Effect, Host, LoadError, Path, RequestScope, RuleFile, RuleId, RuleList, Rules, Scope,
        Step, Target, Verdict, Who,
    },
    tailnet::{WhoIs, WhoIsNode, WhoIsUser},
    workload::access::AudienceScope,
};

/// The tailnet of callers who are not from another one.
const OWN_TAILNET: &str = "example.ts.net";

pub(super) fn command() -> Command {
    let text = |name: &'static str, value: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(value).help(help)
    };
    Command::new("policy")
        .about(
            "Check the rules of the gate, for workload tokens and about logins, and try them out",
        )
        .args(args::of(FlagScope::Policy).map(|arg| arg.global(true)))
        .subcommand(Command::new("check").about("Load the files of rules and report every mistake"))
        .subcommand(
            Command::new("test")
                .about("Say who is let in by which rule, or which rule would have to change")
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
                    "The caller has this tailnet address; the running server says who that is",
                ))
                .arg(flag("funnel", "The caller is somebody on the internet"))
                .arg(flag("unknown", "The caller is not known to the tailnet"))
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
                    "Host of the request; without it a rule about hosts is in doubt",
                ))
                .arg(text("path", "PATH", "Path of the request"))
                .arg(text(
                    "method",
                    "METHOD",
                    "Method of the request [default: GET]",
                ))
                .arg(
                    text(
                        "audience",
                        "AUDIENCE",
                        "The caller asks for a workload token with this audience",
                    )
                    .conflicts_with_all(["host", "path", "method"]),
                )
                .arg(
                    text(
                        "client",
                        "ID",
                        "The caller logs in to the application with this client id",
                    )
                    .conflicts_with_all(["host", "path", "method", "audience"]),
                )
                .arg(flag("registered", "The application registered itself").requires("client"))
                .arg(
                    text("expect", "DECISION", "Fail unless this is the decision").value_parser([
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
    let raw = args::raw(matches, &[FlagScope::Root, FlagScope::Policy], environment);
    let (settings, _) = console.accept(config::load_policy(&raw))?;
    if name == "check" {
        rules::<RequestScope>("gate.policy", &settings.gate)?;
        rules::<AudienceScope>("workload.policy", &settings.workload)?;
        rules::<LoginScope>("oidc.policy", &settings.logins.rules)?;
        let sources = [&settings.gate, &settings.workload, &settings.logins.rules];
        let has_file = sources.iter().any(|source| source.file.is_some());
        console.say(if has_file {
            "The policy is fine"
        } else {
            "There is no file of rules (gate.policy is not set): only grants of the tailnet decide"
        });
        return Ok(());
    }
    let mistake = |words: String| Failure::with_code(USAGE, words);
    let visitor = match matches.get_one::<String>("address") {
        Some(address) => {
            let (settings, _) = console.accept(config::load_client(&raw))?;
            live(address, settings)?
        }
        None => visitor(matches).map_err(mistake)?,
    };
    let who = match &visitor {
        Some(visitor) => Who::Known(visitor),
        None if matches.get_flag("funnel") => Who::Funnel,
        None => Who::Nobody,
    };
    let answer = if let Some(audience) = matches.get_one::<String>("audience") {
        audience::explain(&settings, who, audience)?
    } else if let Some(client) = matches.get_one::<String>("client") {
        login::explain(&settings, who, client, matches.get_flag("registered"))?
    } else {
        let rules = rules("gate.policy", &settings.gate)?;
        let target = target(matches).map_err(mistake)?;
        let (steps, decision) = rules.explain(who, &target);
        let sentence = sentence(&rules, who, &target, &decision);
        Explained::new(&steps, &decision, sentence)
    };
    print(matches, &answer, settings.format, console)
}

/// The rules of a component; `setting` names their file.
pub(super) fn rules<S: Scope>(setting: &str, source: &RuleSource) -> Result<RuleList<S>, Failure> {
    match RuleFile::open(source.file.as_deref(), &source.capability) {
        Ok(store) => Ok(store.rules().as_ref().clone()),
        Err(error @ LoadError::Mistakes { .. }) => {
            Err(Failure::with_code(super::exit::SETTINGS, error.to_string()))
        }
        Err(error) => {
            let words = format!("the file of rules cannot be used: {error}");
            Err(Failure::failed(words).advise(format!("Set another as {setting}")))
        }
    }
}

fn print(
    matches: &ArgMatches,
    answer: &Explained,
    format: OutputFormat,
    console: &mut Console<'_>,
) -> Result<(), Failure> {
    output::print(console, format, answer)?;
    match matches.get_one::<String>("expect") {
        Some(expected) if expected != answer.decision => Err(Failure::failed(format!(
            "expected {expected}, but the decision is {}",
            answer.decision
        ))),
        _ => Ok(()),
    }
}

/// The caller at the address, according to the running server. Nobody if the tailnet knows no such
/// node or no longer vouches for it.
fn live(address: &str, settings: ClientSettings) -> Result<Option<Visitor>, Failure> {
    let client = AdminClient::new(ServerAddress::Socket(settings.socket), settings.timeout);
    let answer = match ask::runtime()?.block_on(client.who_is(address.to_owned())) {
        Err(error) if error.code == tonic::Code::NotFound => return Ok(None),
        answer => answer
            .map_err(|error| Failure::failed(format!("--address {address}: {}", error.message)))?,
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
    if login.as_deref() == Some("") {
        return Err("--as: write a login, for example --as alice@example.com".to_owned());
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
            .ok_or_else(|| format!("--grant {grant}: write it as CAPABILITY=JSON"))?;
        let value = serde_json::from_str(value)
            .map_err(|error| format!("--grant {grant}: the text after = is not JSON: {error}"))?;
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

fn target(matches: &ArgMatches) -> Result<Target, String> {
    let text = |name: &str| matches.get_one::<String>(name).map(String::as_str);
    let method = text("method").unwrap_or("GET");
    Ok(Target {
        host: text("host")
            .map(|host| Host::parse(host).map_err(|error| format!("--host {host}: {error}")))
            .transpose()?,
        path: text("path")
            .map(|path| {
                let bare = path.split(['?', '#']).next().unwrap_or_default();
                if !bare.starts_with('/') {
                    return Err(format!("--path {path}: a path begins with /"));
                }
                Path::parse(bare).map_err(|error| format!("--path {path}: {error}"))
            })
            .transpose()?,
        method: Some(
            http::Method::from_bytes(method.as_bytes())
                .map_err(|_| format!("--method {method}: not an HTTP method"))?,
        ),
    })
}

/// Who is let in by which rule, or which rule would have to change.
fn sentence(rules: &Rules, who: Who<'_>, target: &Target, decision: &Verdict) -> String {
    let caller = caller(who);
    let effect = decision.effect.as_str();
    let rule = rule(&decision.rule);
    match (decision.effect, &decision.rule) {
        (Effect::Allow, _) => format!("{effect}: {rule} lets {caller} in"),
        (Effect::Anonymous, _) => format!("{effect}: {rule} lets {caller} in, without identity"),
        (Effect::Deny, RuleId::End) => {
            let change = match rules.nearest(who, target) {
                None => ", and none comes near: add one".to_owned(),
                Some(near) => format!(
                    "; the nearest, {}, would have to change: {}",
                    self::rule(&near.rule),
                    near.misses.join(", ")
                ),
            };
            format!("{effect}: no rule lets {caller} in{change}")
        }
        (Effect::Deny, _) => {
            let why = match decision.why.as_ref() {
                "matches" => String::new(),
                doubt => format!(": {doubt}"),
            };
            format!("{effect}: {rule} keeps {caller} out and would have to change{why}")
        }
    }
}

fn caller(who: Who<'_>) -> String {
    let visitor = match who {
        Who::Doubt | Who::Nobody => return "an unknown caller".to_owned(),
        Who::Funnel => return "a caller from the internet".to_owned(),
        Who::Known(visitor) => visitor,
    };
    let name = match visitor.caller_any_tailnet() {
        Caller::Machine(machine) => format!("a machine with {}", machine.tags.join(", ")),
        Caller::User(user) => user.login.clone(),
        Caller::Funnel(_) => "a caller from the internet".to_owned(),
    };
    match (visitor.foreign(), visitor.tailnet()) {
        (false, _) => name,
        (true, "") => format!("{name} of another tailnet"),
        (true, tailnet) => format!("{name} of the tailnet {tailnet}"),
    }
}

fn rule(rule: &RuleId) -> String {
    match rule {
        RuleId::End => "the end of the list".to_owned(),
        RuleId::Grant(number) => format!("grant {number} of the tailnet's own policy"),
        RuleId::Local { name, line } => format!("rule {name:?} (line {line})"),
    }
}

/// The decision, with every rule that was evaluated.
#[derive(Debug, Serialize)]
struct Explained {
    decision: &'static str,
    rule: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<usize>,
    why: String,
    /// For people.
    #[serde(skip)]
    sentence: String,
    /// What people read where there are no rules.
    #[serde(skip)]
    without_rules: &'static str,
    rules: Vec<Evaluated>,
}

/// Where a local rule is.
fn line(rule: &RuleId) -> Option<usize> {
    match rule {
        RuleId::Local { line, .. } => Some(*line),
        RuleId::End | RuleId::Grant(_) => None,
    }
}

#[derive(Debug, Serialize)]
struct Evaluated {
    rule: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<usize>,
    decision: &'static str,
    decides: bool,
    why: String,
}

impl Explained {
    fn new(steps: &[Step], decision: &Verdict, sentence: String) -> Self {
        Self {
            decision: decision.effect.as_str(),
            rule: decision.rule.to_string(),
            line: line(&decision.rule),
            why: match line(&decision.rule) {
                Some(line) => format!("{} (line {line}): {}", decision.rule, decision.why),
                None => format!("{}: {}", decision.rule, decision.why),
            },
            sentence,
            without_rules: "There are no rules, neither in a file (gate.policy) nor in the \
                            caller's grants.",
            rules: steps
                .iter()
                .map(|step| Evaluated {
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
    fn text(&self, layout: Layout) -> String {
        let mut list = List::new(layout);
        let mark = if self.decision == Effect::Deny.as_str() {
            Mark::Bad
        } else {
            Mark::Good
        };
        list.sentence(mark, &self.sentence);
        if self.rules.is_empty() {
            list.note(self.without_rules);
            return list.finish();
        }
        list.heading("Rules, in their order");
        let rules = self.rules.iter().map(|rule| {
            let label = match rule.line {
                Some(line) => format!("{} (line {line})", rule.rule),
                None => rule.rule.clone(),
            };
            let decides = if rule.decides { ", decides" } else { "" };
            (label, format!("{}: {}{decides}", rule.decision, rule.why))
        });
        list.facts(&rules.collect::<Vec<_>>());
        list.finish()
    }
}
