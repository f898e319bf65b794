//! What the node reports about itself and about others, decoded from the JSON that crosses the
//! fence.

use std::{collections::BTreeMap, net::IpAddr};

use serde::Deserialize;

/// The node's own state at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct Status {
    pub generation: u64,
    pub state: BackendState,
    /// Where a person has to log in, while the state is `NeedsLogin`.
    pub auth_url: String,
    /// The last message of the control server about this node; empty if there is none.
    pub error: String,
    /// Stable node id.
    pub id: String,
    /// MagicDNS name without the final dot.
    pub name: String,
    pub hostname: String,
    pub addresses: Vec<IpAddr>,
    /// MagicDNS suffix of the tailnet.
    pub tailnet: String,
    #[serde(deserialize_with = "optional_timestamp")]
    pub key_expiry: Option<jiff::Timestamp>,
    pub expired: bool,
    pub tags: Vec<String>,
    /// Login of the node's owner; empty for a tagged node.
    pub owner: String,
    /// The owner's number on the control server; absent for a tagged node.
    pub owner_id: Option<i64>,
    pub health: Vec<String>,
    /// Whether the node is receiving map updates from the control server right now.
    pub in_map_poll: bool,
    /// Why the last contact with the control server failed; empty if it did not.
    pub control_error: String,
    /// The names for which the node can have certificates; none if HTTPS is not enabled in the
    /// tailnet.
    pub cert_domains: Vec<String>,
}

/// The states of Tailscale's backend, under its own names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
pub enum BackendState {
    #[default]
    NoState,
    InUseOtherUser,
    NeedsLogin,
    NeedsMachineAuth,
    Stopped,
    Starting,
    Running,
    /// A state that this program does not know, from a newer backend.
    #[serde(other)]
    Unknown,
}

/// Who is behind an address.
#[derive(Debug, Clone, PartialEq, Deserialize, Default)]
pub struct WhoIs {
    pub node: WhoIsNode,
    pub user: WhoIsUser,
    /// Grants (app capabilities) of this peer towards us.
    #[serde(default)]
    pub caps: BTreeMap<String, Vec<serde_json::Value>>,
    /// False for a node that was shared into the tailnet or belongs to another one.
    pub same_tailnet: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct WhoIsNode {
    /// Stable node id.
    pub id: String,
    /// MagicDNS name without the final dot.
    pub name: String,
    pub hostname: String,
    pub addresses: Vec<IpAddr>,
    pub tags: Vec<String>,
    #[serde(deserialize_with = "optional_timestamp")]
    pub key_expiry: Option<jiff::Timestamp>,
    pub expired: bool,
    /// Shared into this tailnet by someone.
    pub sharer: bool,
    pub user_id: i64,
    /// Public key of the node, as `nodekey:` and 64 hexadecimal digits.
    pub key: String,
    /// The node's number on the control server, beside its stable id.
    pub numeric_id: i64,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct WhoIsUser {
    pub id: i64,
    pub login: String,
    pub display_name: String,
    pub picture: String,
}

/// A time in RFC 3339; an empty string is `None`.
fn optional_timestamp<'de, D: serde::Deserializer<'de>>(
    d: D,
) -> Result<Option<jiff::Timestamp>, D::Error> {
    let text = String::deserialize(d)?;
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_is_read_as_it_comes() {
        let json = r#"{"generation":7,"state":"Running","auth_url":"","error":"","id":"n1","name":"a.b.ts.net","hostname":"a",
            "addresses":["100.64.0.1","fd7a::1"],"tailnet":"b.ts.net","key_expiry":"2030-01-02T03:04:05Z","expired":false,
            "tags":[],"owner":"a@b.c","health":[],"in_map_poll":true,"control_error":""}"#;
        let status: Status = serde_json::from_str(json).unwrap();
        assert_eq!(status.state, BackendState::Running);
        assert_eq!(status.addresses.len(), 2);
        let expiry = "2030-01-02T03:04:05Z".parse().unwrap();
        assert_eq!(status.key_expiry, Some(expiry));
    }

    #[test]
    fn unknown_fields_are_ignored_and_an_unknown_state_is_not_running() {
        let json = r#"{"state":"Meditating","key_expiry":"","news":[1]}"#;
        let status: Status = serde_json::from_str(json).unwrap();
        assert_eq!(status.state, BackendState::Unknown);
        assert_eq!(status.key_expiry, None);
    }

    #[test]
    fn an_invalid_time_is_an_error() {
        assert!(serde_json::from_str::<Status>(r#"{"key_expiry":"tomorrow"}"#).is_err());
    }
}
