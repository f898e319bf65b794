//! Access to the methods: a pure function of method, requester and rules.
//!
//! Invariants
//! - [`METHODS`] lists every method of every service, also those open to everybody. A method that
//!   is not listed is never called: the request is refused as a bug of ours if the method is
//!   declared, and as unknown otherwise.
//! - A grant only counts in the one documented form. A grant with anything unknown in it grants
//!   nothing.
//! - Whatever gives access (the socket, the owner's login, a grant, the mode `open`) is a rule,
//!   which the audit names.
//!
//! Whether a tailnet peer has an identity is decided before, in [`crate::identity`]; `open` makes
//! the grant unnecessary, but never the identity.

use ::http::Extensions;
use serde::Deserialize;
use tailbone_values::Object;

use crate::{config::Authorization, identity::Caller};

/// The app capability that grants administration.
pub const ADMIN_CAPABILITY: &str = "tailbone.dev/cap/admin";

const ROOT: u32 = 0;

/// What a gRPC method requires.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// A right, which the table names.
    Right(Right),
    /// Nothing: the method reveals nothing about this server except that it answers.
    Anyone,
}

/// A right, by its name in grants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Right {
    Generate,
    List,
    OidcEdit,
    OidcView,
    Remove,
    Rotate,
}

/// All methods and what they require.
pub const METHODS: &[(&str, Access)] = &[
    (
        "/proto.AdminService/GenerateNewKeys",
        Access::Right(Right::Generate),
    ),
    ("/proto.AdminService/ListKeys", Access::Right(Right::List)),
    (
        "/proto.AdminService/RemoveKey",
        Access::Right(Right::Remove),
    ),
    (
        "/proto.AdminService/RotateKeys",
        Access::Right(Right::Rotate),
    ),
    // The state of the server is no more sensitive than its keys.
    ("/proto.AdminService/Status", Access::Right(Right::List)),
    // The audit lines show the callers as well.
    ("/proto.AdminService/WhoIs", Access::Right(Right::List)),
    // The method also requires the local socket.
    ("/proto.AdminService/RecentLog", Access::Right(Right::List)),
    (
        "/tailbone.oidc.v1.OidcAdmin/ListClients",
        Access::Right(Right::OidcView),
    ),
    (
        "/tailbone.oidc.v1.OidcAdmin/GetClient",
        Access::Right(Right::OidcView),
    ),
    (
        "/tailbone.oidc.v1.OidcAdmin/CreateClient",
        Access::Right(Right::OidcEdit),
    ),
    (
        "/tailbone.oidc.v1.OidcAdmin/UpdateClient",
        Access::Right(Right::OidcEdit),
    ),
    (
        "/tailbone.oidc.v1.OidcAdmin/RemoveClient",
        Access::Right(Right::OidcEdit),
    ),
    (
        "/tailbone.oidc.v1.OidcAdmin/AddClientSecret",
        Access::Right(Right::OidcEdit),
    ),
    (
        "/tailbone.oidc.v1.OidcAdmin/RemoveClientSecret",
        Access::Right(Right::OidcEdit),
    ),
    (
        "/tailbone.oidc.v1.OidcAdmin/ListSessions",
        Access::Right(Right::OidcView),
    ),
    (
        "/tailbone.oidc.v1.OidcAdmin/EndSessions",
        Access::Right(Right::OidcEdit),
    ),
    (
        "/tailbone.oidc.v1.OidcAdmin/ListGrants",
        Access::Right(Right::OidcView),
    ),
    (
        "/tailbone.oidc.v1.OidcAdmin/RevokeGrants",
        Access::Right(Right::OidcEdit),
    ),
    ("/grpc.health.v1.Health/Check", Access::Anyone),
    ("/grpc.health.v1.Health/Watch", Access::Anyone),
    // The schema is public, in the repository.
    (
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        Access::Anyone,
    ),
    (
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        Access::Anyone,
    ),
];

/// The methods that `proto/admin.proto` and `proto/oidc.proto` declare.
pub const DECLARED_METHODS: &[&str] = include!(concat!(env!("OUT_DIR"), "/admin_methods.rs"));

/// The sender of a request.
#[derive(Debug, Clone, PartialEq)]
pub enum Requester {
    /// A process on this machine, with its user as the kernel reports it.
    Local {
        uid: u32,
        pid: Option<i32>,
    },
    Tailnet(Caller),
}

impl Requester {
    /// The extensions that each request of its connection gets, for [`crate::http::serve::serve`].
    pub fn identify(self) -> Extensions {
        let mut extensions = Extensions::new();
        extensions.insert(self);
        extensions
    }
}

/// What else the decision depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessRules {
    pub mode: Authorization,
    /// The user that this process runs as.
    pub own_uid: u32,
    /// The node's owner, by the user's number on the control server. That stays the same when a
    /// login is renamed and given to somebody else. A tagged node has no owner.
    pub owner: Option<i64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AccessDecision {
    /// Access, and the rule that gives it.
    Allowed { rule: AccessRule },
    /// No access, and an explanation for the person who asked.
    Denied { explanation: String },
}

/// What gives access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessRule {
    Grant,
    LocalSocket,
    Open,
    Owner,
}

/// What the table says about a path.
pub fn access(path: &str) -> Option<Access> {
    METHODS
        .iter()
        .find(|(method, _)| *method == path)
        .map(|(_, access)| *access)
}

pub fn authorize(right: Right, requester: &Requester, rules: &AccessRules) -> AccessDecision {
    let rule = match requester {
        Requester::Local { uid, .. } => local_rule(*uid, rules),
        Requester::Tailnet(caller) => tailnet_rule(right, caller, rules),
    };
    match rule {
        Some(rule) => AccessDecision::Allowed { rule },
        None => AccessDecision::Denied {
            explanation: explain_denial(right, requester, rules),
        },
    }
}

fn local_rule(uid: u32, rules: &AccessRules) -> Option<AccessRule> {
    if uid == rules.own_uid || uid == ROOT {
        Some(AccessRule::LocalSocket)
    } else {
        open_rule(rules)
    }
}

fn tailnet_rule(right: Right, caller: &Caller, rules: &AccessRules) -> Option<AccessRule> {
    match caller {
        // Callers from the internet never have access.
        Caller::Funnel(_) => return None,
        Caller::User(user) if rules.owner == Some(user.id) => {
            return Some(AccessRule::Owner);
        }
        // A machine acts for itself, whoever owned it before it was tagged.
        Caller::Machine(_) | Caller::User(_) => {}
    }
    if caller
        .grants(ADMIN_CAPABILITY)
        .iter()
        .any(|value| grants(value, right))
    {
        return Some(AccessRule::Grant);
    }
    open_rule(rules)
}

fn open_rule(rules: &AccessRules) -> Option<AccessRule> {
    (rules.mode == Authorization::Open).then_some(AccessRule::Open)
}

/// One value of the capability. A member that we do not know might restrict the grant, so a value
/// with one grants nothing.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AdminGrant {
    methods: Vec<String>,
}

fn grants(value: &serde_json::Value, right: Right) -> bool {
    Object::<AdminGrant>::deserialize(value).is_ok_and(|Object(grant)| {
        grant
            .methods
            .iter()
            .any(|method| method == "*" || method == right.as_str())
    })
}

fn explain_denial(right: Right, requester: &Requester, rules: &AccessRules) -> String {
    match requester {
        Requester::Local { uid, .. } => format!(
            "the local admin socket is for the user that runs the server (uid {}) and root, not for uid {uid}",
            rules.own_uid
        ),
        Requester::Tailnet(Caller::Funnel(_)) => {
            "the admin API is not for callers from the internet".to_owned()
        }
        Requester::Tailnet(caller) => {
            let owner = match rules.owner {
                None => "",
                Some(_) => ", and is not the owner of the server's node",
            };
            format!(
                "{caller} lacks the grant \"{ADMIN_CAPABILITY}\" with {{\"methods\":[\"{}\"]}} towards this server{owner}",
                right.as_str()
            )
        }
    }
}

impl Right {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Generate => "generate",
            Self::List => "list",
            Self::OidcEdit => "oidc-edit",
            Self::OidcView => "oidc-view",
            Self::Remove => "remove",
            Self::Rotate => "rotate",
        }
    }
}

impl AccessRule {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Grant => "grant",
            Self::LocalSocket => "local-socket",
            Self::Open => "open",
            Self::Owner => "owner",
        }
    }
}

/// The requester's name in audit lines.
impl std::fmt::Display for Requester {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Local {
                uid,
                pid: Some(pid),
            } => write!(f, "local:uid={uid},pid={pid}"),
            Self::Local { uid, pid: None } => write!(f, "local:uid={uid}"),
            Self::Tailnet(caller) => caller.fmt(f),
        }
    }
}

#[cfg(test)]
#[path = "authorize_tests.rs"]
mod tests;
