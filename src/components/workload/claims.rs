//! The claims of a workload token: those of tsiam, and what a rule or an audience adds. A pure
//! function of caller, settings and time.

use std::{net::IpAddr, time::Duration};

use aws_lc_rs::rand;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::access::TSIAM_CAPABILITY;
use crate::identity::{Caller, Visitor};

const AWS_TAGS: &str = "https://aws.amazon.com/tags";
const AWS_SOURCE_IDENTITY: &str = "https://aws.amazon.com/source_identity";

/// The claims that no rule gives another value (RFC 7519, and ours).
const RESERVED: [&str; 10] = [
    "aud",
    "exp",
    "iat",
    "iss",
    "jti",
    "nbf",
    "sub",
    TSIAM_CAPABILITY,
    AWS_TAGS,
    AWS_SOURCE_IDENTITY,
];

/// The most session tags that AWS takes, and the most characters of the value of one.
const MAX_AWS_TAGS: usize = 50;
const MAX_AWS_VALUE: usize = 256;

/// The source identity of AWS is 2 to 64 characters long.
const AWS_SOURCE_IDENTITY_CHARS: std::ops::RangeInclusive<usize> = 2..=64;

/// Random bytes of a token's id, as in tsiam.
const JTI_BYTES: usize = 24;

pub(super) fn is_reserved(name: &str) -> bool {
    RESERVED.contains(&name)
}

/// What a token is made of.
#[derive(Debug, Clone, Copy)]
pub(super) struct TokenInput<'a> {
    pub(super) issuer: &'a str,
    pub(super) subject: &'a str,
    pub(super) audience: &'a str,
    pub(super) visitor: &'a Visitor,
    pub(super) lifetime: Duration,
    pub(super) now: Timestamp,
    pub(super) id: &'a str,
    pub(super) aud_is_text: bool,
    /// All capabilities of the caller towards this node, as tsiam puts them into every token.
    pub(super) with_capabilities: bool,
    pub(super) aws_session: bool,
    pub(super) extra: &'a Map<String, Value>,
}

/// Issued at, not before; and the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    pub from: i64,
    pub until: i64,
}

impl TokenInput<'_> {
    pub(super) fn validity(&self) -> Validity {
        let from = self.now.as_second();
        let life = i64::try_from(self.lifetime.as_secs()).unwrap_or(i64::MAX);
        Validity {
            from,
            until: from.saturating_add(life),
        }
    }

    /// The payload, with its members in alphabetical order.
    pub(super) fn payload(&self) -> Result<Vec<u8>, serde_json::Error> {
        let Validity { from, until } = self.validity();
        let record = NodeRecord::new(self.visitor, self.with_capabilities);
        let aud = if self.aud_is_text {
            Claim::Text(self.audience)
        } else {
            Claim::List([self.audience])
        };
        let mut claims = Vec::with_capacity(RESERVED.len() + self.extra.len());
        claims.extend([
            ("aud", aud),
            ("exp", Claim::Number(until)),
            ("iat", Claim::Number(from)),
            ("iss", Claim::Text(self.issuer)),
            (TSIAM_CAPABILITY, Claim::Node(&record)),
            ("jti", Claim::Text(self.id)),
            ("nbf", Claim::Number(from)),
            ("sub", Claim::Text(self.subject)),
        ]);
        if self.aws_session {
            claims.push((AWS_TAGS, Claim::Made(aws_tags(self.visitor))));
            let identity = aws_source_identity(self.visitor);
            claims.extend(identity.map(|identity| (AWS_SOURCE_IDENTITY, Claim::Text(identity))));
        }
        // No rule may name one of those above.
        let extra = self.extra.iter();
        claims.extend(extra.map(|(name, value)| (name.as_str(), Claim::Added(value))));
        claims.sort_unstable_by_key(|(name, _)| *name);
        serde_json::to_vec(&Payload(claims))
    }
}

/// A new id for a token.
pub(super) fn token_id() -> Result<String, aws_lc_rs::error::Unspecified> {
    let mut bytes = [0; JTI_BYTES];
    rand::fill(&mut bytes)?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

/// Claims in this order.
struct Payload<'a>(Vec<(&'a str, Claim<'a>)>);

impl Serialize for Payload<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, claim)| (name, claim)))
    }
}

/// The value of a claim, borrowed where it can be: a token costs no copy of what is known anyway.
#[derive(Serialize)]
#[serde(untagged)]
enum Claim<'a> {
    /// By a rule or a grant.
    Added(&'a Value),
    List([&'a str; 1]),
    Made(Value),
    /// Its own members keep their order.
    Node(&'a NodeRecord<'a>),
    Number(i64),
    Text(&'a str),
}

/// The node, as tsiam describes it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct NodeRecord<'a> {
    node_id: &'a str,
    name: &'a str,
    hostname: &'a str,
    /// Empty if the node has no such address.
    ip4: String,
    ip6: String,
    #[serde(skip_serializing_if = "str::is_empty")]
    user_login_name: &'a str,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    tags: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    cap_map: Option<&'a std::collections::BTreeMap<String, Vec<Value>>>,
}

impl<'a> NodeRecord<'a> {
    fn new(visitor: &'a Visitor, with_capabilities: bool) -> Self {
        let caller = visitor.caller_any_tailnet();
        let address = |wanted: fn(&IpAddr) -> bool| {
            let found = visitor.addresses().iter().find(|address| wanted(address));
            found.map_or_else(String::new, IpAddr::to_string)
        };
        Self {
            node_id: visitor.node_id(),
            name: visitor.node_name(),
            hostname: visitor.display_name(),
            ip4: address(IpAddr::is_ipv4),
            ip6: address(IpAddr::is_ipv6),
            user_login_name: login(caller),
            tags: tags(caller),
            cap_map: caller
                .all_grants()
                .filter(|grants| with_capabilities && !grants.is_empty()),
        }
    }
}

fn login(caller: &Caller) -> &str {
    match caller {
        Caller::Funnel(_) => "",
        Caller::Machine(machine) => &machine.login,
        Caller::User(user) => &user.login,
    }
}

fn tags(caller: &Caller) -> &[String] {
    match caller {
        Caller::Machine(machine) => &machine.tags,
        _ => &[],
    }
}

/// Session tags (AWS IAM User Guide, "Pass session tags"): the node, and each of its tags.
fn aws_tags(visitor: &Visitor) -> Value {
    let mut principal = Map::new();
    let mut tag = |key: &str, value: &str| {
        let value: String = value.chars().take(MAX_AWS_VALUE).collect();
        if principal.len() < MAX_AWS_TAGS && !value.is_empty() {
            principal.insert(key.to_owned(), json!([value]));
        }
    };
    tag("node-id", visitor.node_id());
    tag("node-name", visitor.node_name());
    tag("tailnet", visitor.tailnet());
    match visitor.caller_any_tailnet() {
        Caller::User(user) => tag("user", &user.login),
        Caller::Machine(machine) => machine.tags.iter().for_each(|name| tag(name, "true")),
        Caller::Funnel(_) => {}
    }
    json!({ "principal_tags": principal })
}

/// Who is behind the session in CloudTrail: the user, or the node's stable id. Left out where AWS
/// would refuse it.
fn aws_source_identity(visitor: &Visitor) -> Option<&str> {
    let identity: &str = match visitor.caller_any_tailnet() {
        Caller::User(user) => &user.login,
        _ => visitor.node_id(),
    };
    let fits = |c: char| c.is_ascii_alphanumeric() || "_=,.@+-".contains(c);
    (AWS_SOURCE_IDENTITY_CHARS.contains(&identity.len()) && identity.chars().all(fits))
        .then_some(identity)
}
