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
        let aud = if self.aud_is_text {
            json!(self.audience)
        } else {
            json!([self.audience])
        };
        let mut claims = self.extra.clone();
        claims.insert("aud".into(), aud);
        claims.insert("exp".into(), until.into());
        claims.insert("iat".into(), from.into());
        claims.insert("iss".into(), self.issuer.into());
        claims.insert("jti".into(), self.id.into());
        claims.insert("nbf".into(), from.into());
        claims.insert("sub".into(), self.subject.into());
        if self.aws_session {
            claims.insert(AWS_TAGS.into(), aws_tags(self.visitor));
            claims.extend(aws_source_identity(self.visitor));
        }
        let record = NodeRecord::new(self.visitor, self.with_capabilities);
        serde_json::to_vec(&Payload {
            before: &claims,
            record: &record,
        })
    }
}

/// A new id for a token.
pub(super) fn token_id() -> Result<String, aws_lc_rs::error::Unspecified> {
    let mut bytes = [0; JTI_BYTES];
    rand::fill(&mut bytes)?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

/// Claims in alphabetical order, with the record of the node in its place among them; the record's
/// own members keep their order.
struct Payload<'a> {
    before: &'a Map<String, Value>,
    record: &'a NodeRecord<'a>,
}

impl Serialize for Payload<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeMap as _;
        let mut map = serializer.serialize_map(Some(self.before.len() + 1))?;
        let (before, after): (Vec<_>, Vec<_>) = self
            .before
            .iter()
            .partition(|(name, _)| name.as_str() < TSIAM_CAPABILITY);
        for (name, value) in before {
            map.serialize_entry(name, value)?;
        }
        map.serialize_entry(TSIAM_CAPABILITY, self.record)?;
        for (name, value) in after {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
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
fn aws_source_identity(visitor: &Visitor) -> Option<(String, Value)> {
    let identity = match visitor.caller_any_tailnet() {
        Caller::User(user) => &user.login,
        _ => visitor.node_id(),
    };
    let fits = |c: char| c.is_ascii_alphanumeric() || "_=,.@+-".contains(c);
    (AWS_SOURCE_IDENTITY_CHARS.contains(&identity.len()) && identity.chars().all(fits))
        .then(|| (AWS_SOURCE_IDENTITY.to_owned(), identity.into()))
}
