//! Rules in the tailnet's own policy file, written as values of a capability:
//!
//! ```json
//! {"decision": "allow", "hosts": ["wiki.example.com"], "paths": ["/docs"], "methods": ["GET"],
//!  "foreign": false}
//! ```
//!
//! Every member may be absent; `{}` allows everything. The grant's `src` says which callers it
//! applies to. A value that cannot be read denies, since that may have been its purpose.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{Effect, Grant, Match, RequestScope, RuleId, Scope, Step, target::PathPrefix};
use crate::{Caller, Visitor};
use tailbone_values::{
    Object,
    web::{Host, HostPattern},
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
#[derive(Default)]
struct GrantValue {
    decision: Choice,
    hosts: Vec<String>,
    paths: Vec<String>,
    methods: Vec<String>,
    /// Whether the grant also applies to callers of other tailnets.
    foreign: bool,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "lowercase")]
enum Choice {
    #[default]
    Allow,
    Anonymous,
    Deny,
}

/// The caller's grants as steps with their scopes, denying ones first.
pub(super) fn steps<S: Scope>(
    visitor: &Visitor,
    capability: &str,
    target: &S::Target,
) -> Vec<(Step, Option<S>)> {
    let values = visitor.caller_any_tailnet().grants(capability).iter();
    let mut steps: Vec<_> = values
        .enumerate()
        .map(|(at, value)| step(at + 1, value, visitor.foreign(), target))
        .collect();
    steps.sort_by_key(|(step, _)| step.effect != Effect::Deny);
    steps
}

/// Whether a readable grant names this host.
pub(super) fn name_host(visitor: &Visitor, capability: &str, host: &Host) -> bool {
    let values = visitor.caller_any_tailnet().grants(capability).iter();
    values
        .filter_map(|value| RequestScope::of_grant(value).ok())
        .any(|grant| grant.scope.names_host(host))
}

fn step<S: Scope>(
    number: usize,
    value: &Value,
    foreign: bool,
    target: &S::Target,
) -> (Step, Option<S>) {
    let rule = RuleId::Grant(number);
    let grant = match S::of_grant(value) {
        Ok(grant) => grant,
        Err(mistake) => {
            let step = Step {
                rule,
                effect: Effect::Deny,
                decides: true,
                why: format!("the grant cannot be read: {mistake}").into(),
            };
            return (step, None);
        }
    };
    let (sure, why) = grant.scope.matches(target, grant.effect);
    let needed = if grant.effect == Effect::Deny {
        Match::Maybe
    } else {
        Match::Yes
    };
    let meant = grant.effect == Effect::Deny || grant.foreign || !foreign;
    let step = Step {
        rule,
        effect: grant.effect,
        decides: meant && sure >= needed,
        why: if !meant {
            "not for callers of another tailnet".into()
        } else if why.is_empty() {
            "matches".into()
        } else {
            why.into()
        },
    };
    (step, Some(grant.scope))
}

/// Reads a grant of web requests.
pub(super) fn read(value: &Value) -> Result<Grant<RequestScope>, String> {
    let Object(words) =
        Object::<GrantValue>::deserialize(value).map_err(|error| error.to_string())?;
    let effect = match words.decision {
        Choice::Allow => Effect::Allow,
        Choice::Anonymous => Effect::Anonymous,
        Choice::Deny => Effect::Deny,
    };
    let hosts = words.hosts.iter().map(|word| HostPattern::parse(word));
    let paths = words.paths.iter().map(|word| PathPrefix::parse(word));
    let methods = words.methods.iter().map(|word| method(word));
    let scope = RequestScope {
        hosts: hosts.collect::<Result<_, _>>()?,
        paths: paths.collect::<Result<_, _>>()?,
        methods: methods.collect::<Result<_, _>>()?,
    };
    Ok(Grant {
        effect,
        scope,
        foreign: words.foreign,
    })
}

/// A method in the spelling of HTTP.
pub(super) fn method(word: &str) -> Result<::http::Method, String> {
    let upper = !word.is_empty() && word.bytes().all(|b| b.is_ascii_uppercase() || b == b'-');
    match ::http::Method::from_bytes(word.as_bytes()) {
        Ok(method) if upper => Ok(method),
        _ => Err(format!(
            "{word:?} is no method: they are written in capitals"
        )),
    }
}

/// What a local rule requires of the caller's grants: a capability, and optionally members that one
/// of its values must have.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Condition {
    pub(super) capability: String,
    pub(super) has: Map<String, Value>,
}

impl Condition {
    pub(super) fn is_met(&self, caller: &Caller) -> bool {
        let values = caller.grants(&self.capability);
        if self.has.is_empty() {
            return caller.has_capability(&self.capability);
        }
        values.iter().any(|value| {
            self.has
                .iter()
                .all(|(name, wanted)| value.get(name).is_some_and(|found| holds(found, wanted)))
        })
    }
}

/// True if equal, or if `found` is a list with an equal element.
fn holds(found: &Value, wanted: &Value) -> bool {
    found == wanted || found.as_array().is_some_and(|list| list.contains(wanted))
}
