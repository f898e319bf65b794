//! Who may call which method: a pure function of method, requester and rules.
//!
//! Invariants
//! - Every method of every service that is served stands in [`METHODS`], also those that are for everybody. One that is missing
//!   there is never called: it is refused as a bug of ours if we declare it, and as unknown otherwise.
//! - A grant is believed only in the one shape that is documented. What we do not understand grants nothing.
//! - Being let in (by a socket, an owner's login, a grant, or the mode `open`) is one rule, and the rule is named for the audit.
//!
//! That a tailnet peer is somebody at all is decided before, in [`crate::identity`]; `open` waives the grant, never the identity.

use serde::Deserialize;

use crate::{config::Authorization, identity::Caller};

/// The app capability that grants administration.
pub const CAPABILITY: &str = "tailbone.dev/cap/admin";

const ROOT: u32 = 0;

/// What a path of a gRPC method is to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Asks for the right, which the table names.
    Right(Right),
    /// Tells nothing about this server beyond that it answers.
    Everybody,
}

/// One right, in the grant's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Right {
    Generate,
    List,
    Remove,
    Rotate,
}

/// The one table of methods.
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
    // Who may see the keys may see how the server does.
    ("/proto.AdminService/Status", Access::Right(Right::List)),
    // … and who its callers are: the audit lines tell the same.
    ("/proto.AdminService/WhoIs", Access::Right(Right::List)),
    // The method itself also insists on the local socket.
    ("/proto.AdminService/RecentLog", Access::Right(Right::List)),
    ("/grpc.health.v1.Health/Check", Access::Everybody),
    ("/grpc.health.v1.Health/Watch", Access::Everybody),
    // The schema is in the public repository.
    (
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        Access::Everybody,
    ),
    (
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        Access::Everybody,
    ),
];

/// Methods that `proto/admin.proto` declares.
pub const DECLARED: &[&str] = include!(concat!(env!("OUT_DIR"), "/admin_methods.rs"));

/// Who asks.
#[derive(Debug, Clone, PartialEq)]
pub enum Requester {
    /// A process on this machine, by the kernel's word for its user.
    Local {
        uid: u32,
        pid: Option<i32>,
    },
    Tailnet(Caller),
}

/// What the answer depends on beside method and requester.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    pub mode: Authorization,
    /// The user that this process runs as.
    pub own_uid: u32,
    /// The node's owner by the control server's number, which stays when a login is renamed and given to somebody else. A tagged node
    /// has none.
    pub owner: Option<i64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// The rule that let them in, for the audit.
    Allowed { rule: Rule },
    /// What is missing, in words for the person who asked.
    Denied { words: String },
}

/// Why somebody was let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    Grant,
    LocalSocket,
    Open,
    Owner,
}

/// What the table says of a path.
pub fn access(path: &str) -> Option<Access> {
    METHODS
        .iter()
        .find(|(method, _)| *method == path)
        .map(|(_, access)| *access)
}

pub fn authorize(right: Right, requester: &Requester, rules: &Rules) -> Decision {
    let rule = match requester {
        Requester::Local { uid, .. } => local(*uid, rules),
        Requester::Tailnet(caller) => tailnet(right, caller, rules),
    };
    match rule {
        Some(rule) => Decision::Allowed { rule },
        None => Decision::Denied {
            words: missing(right, requester, rules),
        },
    }
}

fn local(uid: u32, rules: &Rules) -> Option<Rule> {
    if uid == rules.own_uid || uid == ROOT {
        Some(Rule::LocalSocket)
    } else {
        open(rules)
    }
}

fn tailnet(right: Right, caller: &Caller, rules: &Rules) -> Option<Rule> {
    match caller {
        // Nobody on the internet administers anything.
        Caller::Funnel(_) => return None,
        Caller::User(user) if rules.owner == Some(user.id) => {
            return Some(Rule::Owner);
        }
        // A machine acts for itself, whoever its owner was before it was tagged.
        Caller::Machine(_) | Caller::User(_) => {}
    }
    if caller
        .grants(CAPABILITY)
        .iter()
        .any(|value| grants(value, right))
    {
        return Some(Rule::Grant);
    }
    open(rules)
}

fn open(rules: &Rules) -> Option<Rule> {
    (rules.mode == Authorization::Open).then_some(Rule::Open)
}

/// One value of the capability. Members we do not know may restrict it, so with them it grants nothing.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Grant {
    methods: Vec<String>,
}

fn grants(value: &serde_json::Value, right: Right) -> bool {
    Grant::deserialize(value).is_ok_and(|grant| {
        grant
            .methods
            .iter()
            .any(|method| method == "*" || method == right.as_str())
    })
}

fn missing(right: Right, requester: &Requester, rules: &Rules) -> String {
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
                "{caller} lacks the grant \"{CAPABILITY}\" with {{\"methods\":[\"{}\"]}} towards this server{owner}",
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
            Self::Remove => "remove",
            Self::Rotate => "rotate",
        }
    }
}

impl Rule {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Grant => "grant",
            Self::LocalSocket => "local-socket",
            Self::Open => "open",
            Self::Owner => "owner",
        }
    }
}

/// How audit lines name a requester.
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
