//! `tailbone status`: how a running server sees itself, in the order in which a person asks: is it
//! ready, who is it, what does it serve, what is to be done. `--check` is for the health check of
//! a container or a supervisor.

use std::fmt;

use clap::{Arg, ArgAction, ArgMatches, Command};
use jiff::Timestamp;
use serde::Serialize;

use super::{
    args,
    ask::ServerCall,
    console::Console,
    exit::Failure,
    layout::{Layout, List, Mark, count},
    output::{self, Output},
};
use crate::{
    admin::proto::{self, StatusResponse},
    config::{Environment, table::FlagScope},
};

pub(super) fn command() -> Command {
    Command::new("status")
        .about("Show whether a running server is ready, who it is and what it serves")
        .args(args::of(FlagScope::Keys))
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
    let call = ServerCall::new(matches, environment, console)?;
    let status = call.wait(async |client| client.status().await)?;
    if matches.get_flag("check") {
        return if status.ready {
            Ok(())
        } else {
            Err(Failure::failed(format!("not ready: {}", held(&status))))
        };
    }
    output::print(console, call.settings.output, &Status::from(status))
}

/// Every latch that is held, in one line.
pub(super) fn held(status: &StatusResponse) -> String {
    reasons(status, |latch| !latch.ready)
}

/// Every latch that is degraded, in one line.
pub(super) fn degraded(status: &StatusResponse) -> String {
    reasons(status, |latch| latch.degraded)
}

fn reasons(status: &StatusResponse, wanted: fn(&proto::Latch) -> bool) -> String {
    let latches = status.latches.iter().filter(|latch| wanted(latch));
    let reasons: Vec<_> = latches
        .map(|latch| format!("{}: {}", latch.name, latch.reason))
        .collect();
    reasons.join("; ")
}

/// The result. Times are RFC 3339, and absent if there is none.
#[derive(Debug, Serialize)]
pub(super) struct Status {
    version: String,
    commit: String,
    ready: bool,
    latches: Vec<Latch>,
    node: Node,
    keys: Vec<Key>,
    signing_key: Option<String>,
    signing_trouble: Option<String>,
    jwks: Jwks,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    key_sets: Vec<KeySet>,
    #[serde(skip_serializing_if = "Option::is_none")]
    oidc: Option<Provider>,
    listeners: Vec<Listener>,
}

/// The OpenID provider.
#[derive(Debug, Serialize)]
struct Provider {
    issuer: String,
    store: String,
    store_trouble: Option<String>,
    /// The counts are as of then.
    counted_at: Option<String>,
    clients: u64,
    grants: u64,
    access_tokens: u64,
    sessions: u64,
    swept_at: Option<String>,
    swept_rows: u64,
}

#[derive(Debug, Serialize)]
struct Certificate {
    names: Vec<String>,
    issuer: String,
    not_after: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trouble: Option<String>,
}

impl fmt::Display for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.names.is_empty() {
            return f.write_str("no certificate yet");
        }
        let end = self.not_after.as_deref().unwrap_or("an unknown time");
        write!(
            f,
            "a certificate for {} by {} until {end}",
            self.names.join(", "),
            self.issuer
        )
    }
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
    /// The component whose own key it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    set: Option<String>,
}

/// The keys of a component that has its own.
#[derive(Debug, Serialize)]
struct KeySet {
    name: String,
    jwks: Jwks,
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
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate: Option<Certificate>,
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
                    set: some(key.set),
                })
                .collect(),
            signing_key: some(status.signing_key),
            signing_trouble: some(status.signing_trouble),
            jwks: Jwks {
                place: status.jwks_place,
                read_at: moment(status.jwks_read_at),
                trouble: some(status.jwks_trouble),
            },
            key_sets: status
                .key_sets
                .into_iter()
                .map(|set| KeySet {
                    name: set.name,
                    jwks: Jwks {
                        place: set.jwks_place,
                        read_at: moment(set.jwks_read_at),
                        trouble: some(set.jwks_trouble),
                    },
                })
                .collect(),
            oidc: status.oidc.map(|oidc| Provider {
                issuer: oidc.issuer,
                store: oidc.store,
                store_trouble: some(oidc.store_trouble),
                counted_at: moment(oidc.counted_at),
                clients: oidc.clients,
                grants: oidc.grants,
                access_tokens: oidc.access_tokens,
                sessions: oidc.sessions,
                swept_at: moment(oidc.swept_at),
                swept_rows: oidc.swept_rows,
            }),
            listeners: status
                .listeners
                .into_iter()
                .map(|listener| Listener {
                    name: listener.name,
                    address: listener.address,
                    connections: listener.connections,
                    certificate: listener.certificate.map(|certificate| Certificate {
                        names: certificate.names,
                        issuer: certificate.issuer,
                        not_after: moment(certificate.not_after),
                        trouble: some(certificate.trouble),
                    }),
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

/// The name of the issuer's listener.
const ISSUER: &str = "issuer";

impl Output for Status {
    fn text(&self, layout: Layout) -> String {
        let mut list = List::new(layout);
        self.add_readiness(&mut list);
        self.add_node(&mut list);
        self.add_services(&mut list);
        self.add_provider(&mut list);
        self.add_next_steps(&mut list);
        list.finish()
    }
}

impl Status {
    fn is_degraded(&self) -> bool {
        self.latches.iter().any(|latch| latch.degraded)
    }

    fn is_on_the_tailnet(&self) -> bool {
        self.node.state == "running"
    }

    fn add_readiness(&self, list: &mut List) {
        let (mark, words) = match (self.ready, self.is_degraded()) {
            (true, false) => (Mark::Good, "The server is ready"),
            (true, true) => (Mark::Warning, "The server is ready, but degraded"),
            (false, _) => (Mark::Bad, "The server is not ready"),
        };
        let version = format!("tailbone {}, commit {}", self.version, self.commit);
        list.sentence(mark, &format!("{words} ({version})"));
        for latch in &self.latches {
            if !latch.ready || latch.degraded {
                list.note(&format!("{}: {}", latch.name, latch.reason));
            }
        }
    }

    fn add_node(&self, list: &mut List) {
        let expiry = match &self.node.key_expiry {
            Some(time) => time.clone(),
            None if self.node.name.is_empty() => String::new(),
            None => "never".to_owned(),
        };
        let mut facts = vec![
            ("Name", self.node.name.trim_end_matches('.').to_owned()),
            ("State", self.node.state.clone()),
            ("Tailnet", self.node.tailnet.clone()),
            ("Addresses", self.node.addresses.join(", ")),
            ("Owner", self.node.owner.clone().unwrap_or_default()),
            ("Tags", self.node.tags.join(", ")),
            ("Key expires", expiry),
        ];
        for words in &self.node.health {
            facts.push(("Problem", words.clone()));
        }
        list.heading("Node");
        list.facts(&facts);
    }

    fn add_services(&self, list: &mut List) {
        list.heading("Listeners");
        if self.listeners.is_empty() {
            list.sentence(Mark::None, "The server does not listen yet");
        }
        let listeners = self.listeners.iter().map(|listener| {
            let connections = usize::try_from(listener.connections).unwrap_or(usize::MAX);
            let connections = count(connections, "connection", "connections");
            let certificate = match &listener.certificate {
                Some(certificate) => format!(", {certificate}"),
                None => String::new(),
            };
            (
                &listener.name,
                format!("{}, {connections}{certificate}", listener.address),
            )
        });
        list.facts(&listeners.collect::<Vec<_>>());

        if self.keys.is_empty() && self.jwks.place.is_empty() {
            return;
        }
        list.heading("Signing keys");
        match (&self.signing_key, &self.signing_trouble) {
            (None, Some(trouble)) => {
                list.sentence(Mark::Bad, &format!("No key signs: {trouble}"));
            }
            (None, None) if self.keys.is_empty() => {
                list.sentence(Mark::None, "There is no key yet");
            }
            _ => {}
        }
        let keys = self.keys.iter().map(|key| {
            let signs = match &key.set {
                Some(_) => key.signs_since.is_some(),
                None => self.signing_key.as_ref() == Some(&key.id),
            };
            let signs = if signs { ", signs" } else { "" };
            let of = match &key.set {
                Some(set) => format!(" for {set}"),
                None => String::new(),
            };
            let state = &key.state;
            (&key.id, format!("{}, {state}{signs}{of}", key.algorithm))
        });
        list.facts(&keys.collect::<Vec<_>>());

        list.heading("Published keys (JWKS)");
        list.facts(&[
            ("Place", self.jwks.place.clone()),
            (
                "Last read",
                self.jwks.read_at.clone().unwrap_or_else(|| "never".into()),
            ),
            ("Problem", self.jwks.trouble.clone().unwrap_or_default()),
        ]);
        for set in &self.key_sets {
            list.heading(&format!("Published keys of {}", set.name));
            let read = set.jwks.read_at.clone();
            list.facts(&[
                ("Place", set.jwks.place.clone()),
                ("Last read", read.unwrap_or_else(|| "never".into())),
                ("Problem", set.jwks.trouble.clone().unwrap_or_default()),
            ]);
        }
    }

    fn add_provider(&self, list: &mut List) {
        let Some(provider) = &self.oidc else {
            return;
        };
        let counts = match &provider.counted_at {
            Some(time) => format!(
                "{} clients, {} grants, {} access tokens, {} sessions, at {time}",
                provider.clients, provider.grants, provider.access_tokens, provider.sessions
            ),
            None => "not counted yet".to_owned(),
        };
        let swept = match &provider.swept_at {
            Some(time) => format!("{} expired rows deleted, at {time}", provider.swept_rows),
            None => "none yet".to_owned(),
        };
        list.heading("OpenID provider");
        list.facts(&[
            ("Issuer", provider.issuer.clone()),
            ("Store", provider.store.clone()),
            (
                "Problem",
                provider.store_trouble.clone().unwrap_or_default(),
            ),
            ("Has", counts),
            ("Last sweep", swept),
        ]);
    }

    fn add_next_steps(&self, list: &mut List) {
        list.heading("Next");
        if let Some(url) = &self.node.login_url {
            list.sentence(
                Mark::Warning,
                "A person has to log this node in. Open this address, or set \
                 server.tailscale.authkey and start again:",
            );
            list.verbatim(url);
        } else if !self.is_on_the_tailnet() && !self.node.words.is_empty() {
            list.sentence(Mark::Warning, &self.node.words);
        } else if !self.ready || self.is_degraded() || self.signing_trouble.is_some() {
            list.sentence(Mark::Warning, "Find out what is wrong and what to do:");
            list.verbatim("tailbone doctor");
        } else if let Some(url) = self.token_url() {
            list.sentence(
                Mark::Good,
                "Nothing needs to be done. From a machine of the tailnet this gets a token:",
            );
            list.verbatim(&format!("curl -X POST {url}"));
        } else {
            list.sentence(Mark::Good, "Nothing needs to be done.");
        }
    }

    /// Where the issuer gives tokens on the tailnet.
    fn token_url(&self) -> Option<String> {
        let listener = self
            .listeners
            .iter()
            .find(|listener| listener.name == ISSUER)?;
        // All of the node's addresses, or one of them.
        let (ip, port) = listener.address.rsplit_once(':')?;
        let own = |address: &String| ip.trim_matches(['[', ']']) == address;
        let host = self.node.name.trim_end_matches('.');
        if host.is_empty() || !(ip.is_empty() || self.node.addresses.iter().any(own)) {
            return None;
        }
        Some(match port {
            "80" => format!("http://{host}/issue"),
            port => format!("http://{host}:{port}/issue"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready() -> StatusResponse {
        StatusResponse {
            version: "0.2.0".into(),
            commit: "1a2b3c".into(),
            ready: true,
            join_state: "running".into(),
            node_name: "tailbone.example.ts.net.".into(),
            tailnet: "example.ts.net".into(),
            addresses: vec!["100.64.0.3".into(), "fd7a:115c:a1e0::3".into()],
            owner: "alice@example.com".into(),
            signing_key: "tb-1740172800".into(),
            keys: vec![
                proto::Key {
                    key_id: "tb-1740172800".into(),
                    algorithm: "RS256".into(),
                    state: "active".into(),
                    published: true,
                    ..proto::Key::default()
                },
                proto::Key {
                    key_id: "tb-1740000000".into(),
                    algorithm: "ES256".into(),
                    ..proto::Key::default()
                },
            ],
            jwks_place: "s3://a-bucket-with-a-long-name/.well-known/jwks.json".into(),
            jwks_read_at: 1_740_172_800,
            listeners: vec![
                proto::Listener {
                    name: "admin socket".into(),
                    address: ".tsnet/admin.sock".into(),
                    connections: 1,
                    certificate: None,
                },
                proto::Listener {
                    name: "issuer".into(),
                    address: ":80".into(),
                    connections: 3,
                    certificate: None,
                },
            ],
            ..StatusResponse::default()
        }
    }

    fn waiting_for_login() -> StatusResponse {
        StatusResponse {
            ready: false,
            join_state: "needs-login".into(),
            join_words: "a person has to log in".into(),
            login_url: "https://login.example/a/b?c".into(),
            latches: vec![proto::Latch {
                name: "node-running".into(),
                ready: false,
                reason: "a person has to log the node in; `tailbone status` shows where".into(),
                ..proto::Latch::default()
            }],
            signing_key: String::new(),
            signing_trouble: "there is no key yet".into(),
            node_name: String::new(),
            tailnet: String::new(),
            addresses: Vec::new(),
            owner: String::new(),
            listeners: Vec::new(),
            keys: Vec::new(),
            jwks_read_at: 0,
            ..ready()
        }
    }

    fn text(status: StatusResponse, layout: Layout) -> String {
        Status::from(status).text(layout)
    }

    #[test]
    fn a_ready_server_in_the_order_of_a_persons_questions() {
        assert_eq!(
            text(ready(), Layout::terminal(80)),
            "\
✓ The server is ready (tailbone 0.2.0, commit 1a2b3c)

Node
  Name         tailbone.example.ts.net
  State        running
  Tailnet      example.ts.net
  Addresses    100.64.0.3, fd7a:115c:a1e0::3
  Owner        alice@example.com
  Key expires  never

Listeners
  admin socket  .tsnet/admin.sock, 1 connection
  issuer        :80, 3 connections

Signing keys
  tb-1740172800  RS256, active, signs
  tb-1740000000  ES256, another server's

Published keys (JWKS)
  Place      s3://a-bucket-with-a-long-name/.well-known/jwks.json
  Last read  2025-02-21T21:20:00Z

Next
  ✓ Nothing needs to be done. From a machine of the tailnet this gets a token:
        curl -X POST http://tailbone.example.ts.net/issue
"
        );
    }

    #[test]
    fn on_40_columns_no_line_is_longer() {
        for status in [ready(), waiting_for_login()] {
            let text = text(status, Layout::terminal(40));
            for line in text.lines() {
                let whole = line.trim().split(' ').count() == 1 || line.contains("curl");
                assert!(whole || line.chars().count() <= 40, "{line}\n{text}");
            }
        }
    }

    #[test]
    fn on_a_pipe_values_stay_on_their_line_and_there_are_no_marks() {
        let text = text(ready(), Layout::PIPE);
        assert!(text.starts_with("The server is ready ("), "{text}");
        assert!(text.contains("100.64.0.3, fd7a:115c:a1e0::3\n"), "{text}");
        assert!(!text.contains(['✓', '\x1b']), "{text}");
    }

    #[test]
    fn a_login_is_the_next_step_with_its_address_alone_on_a_line() {
        let text = text(waiting_for_login(), Layout::terminal(80));
        assert!(text.starts_with("✗ The server is not ready"), "{text}");
        assert!(
            text.contains("    node-running: a person has to log"),
            "{text}"
        );
        assert!(text.contains("  State  needs-login\n"), "{text}");
        let (_, next) = text.split_once("\nNext\n").unwrap();
        let address = next.lines().find(|line| line.contains("http")).unwrap();
        assert_eq!(address.trim(), "https://login.example/a/b?c");
    }

    #[test]
    fn what_is_degraded_is_told_with_the_command_that_finds_out() {
        let text = text(
            StatusResponse {
                latches: vec![proto::Latch {
                    name: "jwks-read".into(),
                    ready: true,
                    reason: "long ago".into(),
                    degraded: true,
                }],
                ..ready()
            },
            Layout::terminal(80),
        );
        assert!(
            text.starts_with("! The server is ready, but degraded"),
            "{text}"
        );
        assert!(text.contains("\n    jwks-read: long ago\n"), "{text}");
        assert!(text.ends_with("\n        tailbone doctor\n"), "{text}");
    }

    #[test]
    fn a_token_is_offered_only_where_callers_of_the_tailnet_get_one() {
        let next = |address: &str| {
            let mut status = ready();
            status.listeners[1].address = address.into();
            let text = text(status, Layout::PIPE);
            text.split_once("\nNext\n").unwrap().1.trim().to_owned()
        };
        assert!(next(":8080").ends_with("POST http://tailbone.example.ts.net:8080/issue"));
        assert!(next("[fd7a:115c:a1e0::3]:80").ends_with("http://tailbone.example.ts.net/issue"));
        assert_eq!(next("127.0.0.1:80"), "Nothing needs to be done.");
        assert_eq!(next("/run/issuer.sock"), "Nothing needs to be done.");
    }

    #[test]
    fn an_openid_provider_is_shown_with_its_store_and_what_is_in_it() {
        let mut status = StatusResponse {
            oidc: Some(proto::OidcProvider {
                issuer: "https://idp.example.ts.net".into(),
                store: "sqlite:oidc/oidc.db".into(),
                ..proto::OidcProvider::default()
            }),
            ..ready()
        };
        let shown = |status: &StatusResponse| {
            let text = text(status.clone(), Layout::PIPE);
            let (_, section) = text.split_once("\nOpenID provider\n").unwrap();
            section.split_once("\n\n").unwrap().0.to_owned()
        };
        assert_eq!(
            shown(&status),
            "  Issuer      https://idp.example.ts.net
  Store       sqlite:oidc/oidc.db
  Has         not counted yet
  Last sweep  none yet"
        );
        let provider = status.oidc.as_mut().unwrap();
        provider.store_trouble = "it does not answer".into();
        (provider.counted_at, provider.swept_at) = (1_740_172_800, 1_740_172_801);
        (provider.clients, provider.grants) = (3, 20);
        (provider.access_tokens, provider.sessions) = (7, 5);
        provider.swept_rows = 12;
        assert_eq!(
            shown(&status),
            "  Issuer      https://idp.example.ts.net
  Store       sqlite:oidc/oidc.db
  Problem     it does not answer
  Has         3 clients, 20 grants, 7 access tokens, 5 sessions, at 2025-02-21T21:20:00Z
  Last sweep  12 expired rows deleted, at 2025-02-21T21:20:01Z"
        );
        let json = serde_json::to_value(Status::from(status)).unwrap();
        assert_eq!(json["oidc"]["grants"], 20);
        let without = serde_json::to_value(Status::from(ready())).unwrap();
        assert_eq!(without.get("oidc"), None);
    }

    #[test]
    fn json_has_null_for_what_there_is_not() {
        let json = serde_json::to_value(Status::from(waiting_for_login())).unwrap();
        assert_eq!(json["jwks"]["read_at"], serde_json::Value::Null);
        assert_eq!(json["node"]["login_url"], "https://login.example/a/b?c");
    }
}
