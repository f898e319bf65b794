//! The caller as the rest of the program sees it, and every reason for which there is none.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use tailbone_http as http;
use tailbone_http::error::Kind;
use tailbone_tailnet as tailnet;
use tailbone_tailnet::WhoIs;

/// The identity of a caller.
#[derive(Debug, Clone, PartialEq)]
pub enum Caller {
    /// A caller from the internet, through Funnel. Only the address is known.
    Funnel(SocketAddr),
    /// A tagged node, which acts for itself and has no user.
    Machine(Machine),
    /// A person, on one of their own nodes.
    User(User),
}

#[derive(Debug, Clone, PartialEq)]
pub struct User {
    /// The user's number on the control server. It stays the same when the login is renamed.
    pub id: i64,
    pub login: String,
    pub display_name: String,
    /// Stable id of the node from which the user calls.
    pub node_id: String,
    grants: Grants,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Machine {
    /// Stable node id.
    pub id: String,
    /// MagicDNS name, or the host name where the tailnet has no MagicDNS.
    pub name: String,
    pub tags: Vec<String>,
    /// Of the profile that all tagged nodes share, as the control server names it.
    pub login: String,
    pub display_name: String,
    grants: Grants,
}

/// Shared, because a caller is cloned for each request of its connection.
type Grants = Arc<BTreeMap<String, Vec<serde_json::Value>>>;

/// Tailscale's names for the profile of tagged nodes, for control servers that send none.
const TAGGED_LOGIN: &str = "tagged-devices";
const TAGGED_NAME: &str = "Tagged Devices";

impl Caller {
    /// Converts a WhoIs answer. Callers from another tailnet are refused; for them see
    /// [`super::Visitor`].
    pub fn from_whois(whois: WhoIs) -> Result<Self, Refusal> {
        if !whois.same_tailnet {
            return Err(Refusal::ForeignTailnet {
                login: whois.user.login,
            });
        }
        Self::of_any_tailnet(whois)
    }

    /// A node with tags is a machine, whatever its profile says: that profile belongs to no user.
    pub(super) fn of_any_tailnet(whois: WhoIs) -> Result<Self, Refusal> {
        let WhoIs {
            node,
            user,
            caps: grants,
            ..
        } = whois;
        if node.expired {
            return Err(Refusal::NodeExpired { node: node.name });
        }
        if node.tags.is_empty() {
            if user.login.is_empty() {
                return Err(Refusal::UnknownPeer);
            }
            return Ok(Self::User(User {
                id: user.id,
                login: user.login,
                display_name: user.display_name,
                node_id: node.id,
                grants: Arc::new(grants),
            }));
        }
        let or = |text: String, default: &str| {
            if text.is_empty() {
                default.to_owned()
            } else {
                text
            }
        };
        Ok(Self::Machine(Machine {
            id: node.id,
            name: if node.name.is_empty() {
                node.hostname
            } else {
                node.name
            },
            tags: node.tags,
            login: or(user.login, TAGGED_LOGIN),
            display_name: or(user.display_name, TAGGED_NAME),
            grants: Arc::new(grants),
        }))
    }

    /// The values of `capability` that the tailnet's policy grants this caller on our node.
    pub fn grants(&self, capability: &str) -> &[serde_json::Value] {
        self.all_grants()
            .and_then(|grants| grants.get(capability))
            .map_or(&[], Vec::as_slice)
    }

    /// Whether the capability is granted at all, possibly without values.
    pub fn has_capability(&self, capability: &str) -> bool {
        self.all_grants()
            .is_some_and(|grants| grants.contains_key(capability))
    }

    /// Every capability that the tailnet's policy grants this caller on our node.
    pub fn all_grants(&self) -> Option<&BTreeMap<String, Vec<serde_json::Value>>> {
        self.shared_grants().map(Arc::as_ref)
    }

    fn shared_grants(&self) -> Option<&Grants> {
        match self {
            Self::Funnel(_) => None,
            Self::Machine(machine) => Some(&machine.grants),
            Self::User(user) => Some(&user.grants),
        }
    }
}

/// How logs and audit lines name a caller.
impl std::fmt::Display for Caller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Funnel(addr) => write!(f, "funnel:{addr}"),
            Self::Machine(machine) => write!(f, "node:{}", machine.name),
            Self::User(user) => write!(f, "user:{}", user.login),
        }
    }
}

/// Why a caller has no identity here.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Refusal {
    #[error("{login} belongs to another tailnet")]
    ForeignTailnet { login: String },
    #[error("callers from the internet have no identity here")]
    Funnel,
    #[error("the tailnet's policy no longer lets this node connect here")]
    NoNetworkAccess,
    #[error("the node {node} has an expired key: log in again on it (`tailscale login`)")]
    NodeExpired { node: String },
    #[error("the server's own node is not on the tailnet ({state})")]
    NotRunning { state: &'static str },
    #[error("the caller's address now belongs to another node: connect again")]
    OtherNode,
    #[error("the tailnet knows no node at the caller's address")]
    UnknownPeer,
    #[error("the tailnet could not say who calls")]
    WhoIsFailed(#[source] Arc<tailnet::Error>),
}

impl Refusal {
    /// True if the connection itself may not continue, whatever our own rules say.
    pub fn ends_connection(&self) -> bool {
        matches!(self, Self::NoNetworkAccess | Self::OtherNode)
    }

    /// A stable code for programs, logs and metrics.
    pub fn code(&self) -> &'static str {
        match self {
            Self::ForeignTailnet { .. } => "foreign_tailnet",
            Self::Funnel => "funnel",
            Self::NoNetworkAccess => "no_network_access",
            Self::NodeExpired { .. } => "node_expired",
            Self::NotRunning { .. } => "node_not_running",
            Self::OtherNode => "other_node",
            Self::UnknownPeer => "unknown_peer",
            Self::WhoIsFailed(_) => "whois_failed",
        }
    }
}

/// 503 for a fault of ours, 401 if the caller is unknown, 403 if it is known and refused.
impl From<Refusal> for http::Error {
    fn from(refusal: Refusal) -> Self {
        let kind = match &refusal {
            Refusal::ForeignTailnet { .. }
            | Refusal::Funnel
            | Refusal::NoNetworkAccess
            | Refusal::NodeExpired { .. } => Kind::Forbidden,
            Refusal::OtherNode | Refusal::UnknownPeer => Kind::Unauthorized,
            Refusal::NotRunning { .. } | Refusal::WhoIsFailed(_) => Kind::Unavailable {
                retry_after: Duration::from_secs(5),
            },
        };
        let error = Self::new(kind, refusal.code(), refusal.to_string());
        match refusal {
            Refusal::WhoIsFailed(cause) => error.because(cause),
            _ => error,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tailbone_tailnet::{WhoIsNode, WhoIsUser};

    fn whois() -> WhoIs {
        WhoIs {
            node: WhoIsNode {
                id: "n1".into(),
                name: "laptop.example.ts.net".into(),
                ..WhoIsNode::default()
            },
            user: WhoIsUser {
                id: 7,
                login: "alice@example.com".into(),
                display_name: "Alice".into(),
                ..WhoIsUser::default()
            },
            caps: BTreeMap::from([(
                "tailbone.dev/cap/admin".into(),
                vec![serde_json::json!({"methods": ["list"]})],
            )]),
            same_tailnet: true,
        }
    }

    #[test]
    fn a_node_without_tags_is_its_user() {
        let caller = Caller::from_whois(whois()).unwrap();
        assert_eq!(caller.to_string(), "user:alice@example.com");
        assert_eq!(caller.grants("tailbone.dev/cap/admin").len(), 1);
        assert!(caller.grants("tailbone.dev/cap/gate").is_empty());
    }

    #[test]
    fn tags_make_a_machine_even_when_a_user_is_told() {
        let mut whois = whois();
        whois.node.tags = vec!["tag:ci".into()];
        let Caller::Machine(machine) = Caller::from_whois(whois).unwrap() else {
            panic!("not a machine")
        };
        assert_eq!(machine.tags, ["tag:ci"]);
    }

    #[test]
    fn doubt_is_refused() {
        let refused = |change: fn(&mut WhoIs)| {
            let mut whois = whois();
            change(&mut whois);
            Caller::from_whois(whois)
                .map(|c| c.to_string())
                .map_err(|r| r.code())
        };
        assert_eq!(refused(|w| w.same_tailnet = false), Err("foreign_tailnet"));
        assert_eq!(refused(|w| w.node.expired = true), Err("node_expired"));
        assert_eq!(refused(|w| w.user.login.clear()), Err("unknown_peer"));
    }
}
