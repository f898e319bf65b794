//! Access rules: one rule language for the components that guard a service.
//!
//! [`RuleList::decide`] is a pure function of the rules, the caller ([`Who`]) and the request
//! ([`Target`]). It evaluates in this order:
//!
//! 1. the grants that the tailnet's own policy file gives the caller for our capability. A denying
//!    grant beats an allowing one, since grants have no order that an operator could rely on;
//! 2. the local rules, in the order of the file: the first match decides;
//! 3. the end of the list, which denies.
//!
//! Invariants
//! - Doubt never grants access. A match is `No`, `Maybe` or `Yes`; a path that two servers could
//!   read differently, or a header that the proxy did not send, makes it a `Maybe`. Rules that
//!   grant access need a `Yes`; for rules that deny a `Maybe` is enough.
//! - Callers from another tailnet and from the internet get access only by a rule that names them.
//! - "Allow" always means an identified caller; access without identity is `Anonymous`.
//!
//! What rules are about is a [`Scope`]: web requests for the gate ([`RequestScope`]), or whatever
//! another component guards. It adds its own words to the file and to the grants; callers, groups
//! and the order of evaluation are the same for all.
//!
//! Not decided here: who the caller is (the crate itself), what a denial looks like (the
//! components), and when the file is read again ([`RuleFile`] reads it when it is told to).
//!
//! `sts/policy` is a separate rule language, with the wire format of TailSTS: it compares claims of
//! outside tokens and knows no tailnet callers, hosts or paths.

mod file;
mod grant;
mod scope;
mod selector;
mod store;
mod target;

use std::{borrow::Cow, fmt};

pub use file::{Mistake, Mistakes, Node, RuleReader};
pub use scope::{Grant, Match, Scope};
pub use selector::Selector;
pub use store::{Change, LoadError, RuleFile};
pub use target::{Path, PathPrefix, RequestScope, Target, TargetError};

pub use tailbone_values::web::{Host, HostPattern};

use crate::{Caller, Visitor};

/// The capability whose grants are rules for the gate, unless the settings name another one.
pub const CAPABILITY: &str = "tailbone.dev/cap/gate";

/// The same for workload tokens.
pub const WORKLOAD_CAPABILITY: &str = "tailbone.dev/cap/workload";

/// The same for logins to applications.
pub const LOGIN_CAPABILITY: &str = "tailbone.dev/cap/login";

/// The caller, as the rules see it.
#[derive(Debug, Clone, Copy)]
pub enum Who<'a> {
    /// Unknown at the moment, because of a fault of ours.
    Doubt,
    /// A caller from the internet.
    Funnel,
    /// A node that the tailnet knows and vouches for.
    Known(&'a Visitor),
    /// A caller that the tailnet does not know, or no longer vouches for.
    Nobody,
}

/// The outcome for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Access with the caller's identity.
    Allow,
    /// Access without an identity.
    Anonymous,
    Deny,
}

impl Effect {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Anonymous => "anonymous",
            Self::Deny => "deny",
        }
    }
}

/// The rule that decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RuleId {
    /// No rule: the end of the list.
    End,
    /// A value of the capability in the tailnet's policy, counted from 1.
    Grant(usize),
    /// A rule in the file.
    Local { name: String, line: usize },
}

impl RuleId {
    /// For counters: leaves out the number of the grant.
    pub fn kind(&self) -> String {
        match self {
            Self::Grant(_) => "grant".to_owned(),
            Self::End | Self::Local { .. } => self.to_string(),
        }
    }
}

impl fmt::Display for RuleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::End => f.write_str("end"),
            Self::Grant(number) => write!(f, "grant:{number}"),
            Self::Local { name, .. } => write!(f, "rule:{name}"),
        }
    }
}

/// The result of [`RuleList::decide`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    pub effect: Effect,
    pub rule: RuleId,
    /// For people.
    pub why: Cow<'static, str>,
}

/// The evaluation of one rule, for `policy test`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    pub rule: RuleId,
    pub effect: Effect,
    /// Whether this rule decides.
    pub decides: bool,
    pub why: Cow<'static, str>,
}

/// A local rule that would grant access if it were changed, for `policy test`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Near {
    pub rule: RuleId,
    /// The parts of it that do not match, in words.
    pub misses: Vec<&'static str>,
}

/// Rules about web requests.
pub type Rules = RuleList<RequestScope>;

/// The file with rules about web requests.
pub type RuleStore = RuleFile<RequestScope>;

/// Valid rules, ready to decide.
#[derive(Debug, Clone, PartialEq)]
pub struct RuleList<S: Scope> {
    rules: Vec<Rule<S>>,
    /// The file's groups, by name.
    groups: file::Groups,
    /// What the file says beside its rules.
    top: S::Top,
    /// `None` if grants are not evaluated.
    capability: Option<String>,
}

#[derive(Debug, Clone, PartialEq)]
struct Rule<S> {
    name: String,
    line: usize,
    effect: Effect,
    who: Vec<Selector>,
    /// Whether the rule applies to callers of other tailnets (`true`) or of ours (`false`). Without
    /// it a denying rule applies to both, and a rule that grants access only to callers of ours.
    foreign: Option<bool>,
    tailnet: Option<String>,
    grant: Option<grant::Condition>,
    scope: S,
}

impl<S: Scope> RuleList<S> {
    /// No local rules: only the tailnet's grants decide.
    pub fn grants_only(capability: &str) -> Self {
        Self {
            rules: Vec::new(),
            groups: file::Groups::new(),
            top: S::Top::default(),
            capability: Some(capability.to_owned()).filter(|name| !name.is_empty()),
        }
    }

    /// Reads a file of rules and reports all of its mistakes at once.
    pub fn parse(text: &str, capability: &str) -> Result<Self, Mistakes> {
        let (rules, groups, top) = file::parse(text)?;
        Ok(Self {
            rules,
            groups,
            top,
            ..Self::grants_only(capability)
        })
    }

    /// What the file says beside its rules.
    pub fn top(&self) -> &S::Top {
        &self.top
    }

    /// The names of the file's groups that have this caller as a member.
    pub fn groups_of<'a>(&'a self, caller: &'a Caller) -> impl Iterator<Item = &'a str> {
        let groups = self.groups.iter();
        groups
            .filter(|(_, members)| members.iter().any(|one| one.matches(caller)))
            .map(|(name, _)| name.as_str())
    }

    pub fn decide(&self, who: Who<'_>, target: &S::Target) -> Verdict {
        self.decide_with_scope(who, target).0
    }

    /// The verdict, with what the rule or grant that decided says about its scope; `None` at the
    /// end of the list and for a grant that cannot be read.
    pub fn decide_with_scope<'a>(
        &'a self,
        who: Who<'a>,
        target: &'a S::Target,
    ) -> (Verdict, Option<Cow<'a, S>>) {
        let mut steps = self.steps(who, target);
        match steps.find(|(step, _)| step.decides) {
            Some((step, scope)) => {
                let verdict = Verdict {
                    effect: step.effect,
                    rule: step.rule,
                    why: step.why,
                };
                (verdict, scope)
            }
            None => (end(), None),
        }
    }

    /// All rules up to the one that decides, each with its reason.
    pub fn explain(&self, who: Who<'_>, target: &S::Target) -> (Vec<Step>, Verdict) {
        let mut seen = Vec::new();
        for (step, _) in self.steps(who, target) {
            let decides = step.decides;
            seen.push(step);
            if decides {
                break;
            }
        }
        let decision = match seen.last().filter(|step| step.decides) {
            Some(step) => Verdict {
                effect: step.effect,
                rule: step.rule.clone(),
                why: step.why.clone(),
            },
            None => end(),
        };
        (seen, decision)
    }

    /// The rule that comes nearest to granting access: the first of those with the fewest parts
    /// that do not match, and rather one for other callers than one for other requests.
    pub fn nearest(&self, who: Who<'_>, target: &S::Target) -> Option<Near> {
        let granting = self.rules.iter().filter(|rule| rule.effect != Effect::Deny);
        let misses = granting.map(|rule| {
            let (request, caller) = (
                rule.scope.matches(target, rule.effect),
                rule.match_caller(who),
            );
            let parts = [request, caller];
            let misses = parts.iter().filter(|(found, _)| *found != Match::Yes);
            let near = Near {
                rule: rule.id(),
                misses: misses.map(|(_, why)| *why).collect(),
            };
            (request.0 != Match::Yes, near)
        });
        misses
            .min_by_key(|(other_request, near)| (near.misses.len(), *other_request))
            .map(|(_, near)| near)
    }

    fn steps<'a>(
        &'a self,
        who: Who<'a>,
        target: &'a S::Target,
    ) -> impl Iterator<Item = (Step, Option<Cow<'a, S>>)> + 'a {
        let grants = match (&self.capability, who) {
            (Some(capability), Who::Known(visitor)) => grant::steps(visitor, capability, target),
            _ => Vec::new(),
        };
        let grants = grants
            .into_iter()
            .map(|(step, scope)| (step, scope.map(Cow::Owned)));
        let rules = self.rules.iter();
        grants.chain(
            rules.map(move |rule| (rule.step(who, target), Some(Cow::Borrowed(&rule.scope)))),
        )
    }
}

impl Rules {
    /// Whether any rule depends on methods. A header that overrides the method could get around it.
    pub fn name_methods(&self) -> bool {
        self.rules.iter().any(|rule| rule.scope.names_methods())
    }

    /// Whether a rule, or a grant of the caller, names this host or its domain.
    pub fn name_host(&self, who: Who<'_>, host: &Host) -> bool {
        let granted = match (&self.capability, who) {
            (Some(capability), Who::Known(visitor)) => grant::name_host(visitor, capability, host),
            _ => false,
        };
        granted || self.rules.iter().any(|rule| rule.scope.names_host(host))
    }
}

fn end() -> Verdict {
    Verdict {
        effect: Effect::Deny,
        rule: RuleId::End,
        why: "no rule matches, and the end of the list denies".into(),
    }
}

impl<S: Scope> Rule<S> {
    fn step(&self, who: Who<'_>, target: &S::Target) -> Step {
        let scope = self.scope.matches(target, self.effect);
        let caller = if scope.0 == Match::No {
            (Match::No, "")
        } else {
            self.match_caller(who)
        };
        let (effect, decides, why): (_, _, Cow<'static, str>) =
            match (self.effect, scope.0, caller.0) {
                (_, Match::No, _) => (self.effect, false, scope.1.into()),
                (_, _, Match::No) => (self.effect, false, caller.1.into()),
                (Effect::Deny, Match::Yes, Match::Yes) => (Effect::Deny, true, "matches".into()),
                (Effect::Deny, _, Match::Maybe) => (Effect::Deny, true, caller.1.into()),
                (Effect::Deny, _, _) => (Effect::Deny, true, scope.1.into()),
                // Continuing with a later rule could give access to a caller that this rule was
                // meant to single out.
                (_, _, Match::Maybe) => (Effect::Deny, true, caller.1.into()),
                (_, Match::Maybe, _) => (self.effect, false, scope.1.into()),
                (effect, Match::Yes, Match::Yes) => (effect, true, "matches".into()),
            };
        Step {
            rule: self.id(),
            effect,
            decides,
            why,
        }
    }

    fn id(&self) -> RuleId {
        RuleId::Local {
            name: self.name.clone(),
            line: self.line,
        }
    }

    /// Whether the rule applies to this caller, and if not, because of which part.
    fn match_caller(&self, who: Who<'_>) -> (Match, &'static str) {
        let lets_through = self.effect != Effect::Deny;
        if !self.needs_identity() {
            return (Match::Yes, "");
        }
        let visitor = match who {
            Who::Known(visitor) => visitor,
            Who::Doubt => return (Match::Maybe, "who calls cannot be told at the moment"),
            // A rule that denies everybody includes callers without identity.
            Who::Funnel => {
                let named = self.who.contains(&Selector::Funnel);
                let all = !lets_through && self.who.contains(&Selector::Everybody);
                return (
                    Match::from_bool((named || all) && !self.conditions()),
                    "not for callers from the internet",
                );
            }
            Who::Nobody => {
                let all = !lets_through && self.who.contains(&Selector::Everybody);
                return (
                    Match::from_bool(all && !self.conditions()),
                    "not for callers without identity",
                );
            }
        };
        let foreign = self.foreign.or(lets_through.then_some(false));
        if foreign.is_some_and(|foreign| foreign != visitor.foreign()) {
            let why = if visitor.foreign() {
                "not for callers of another tailnet"
            } else {
                "for callers of another tailnet only"
            };
            return (Match::No, why);
        }
        if let Some(tailnet) = &self.tailnet
            && !same_tailnet(tailnet, visitor.tailnet())
        {
            return (Match::No, "another tailnet");
        }
        let caller = visitor.caller_any_tailnet();
        if !self.who.is_empty() && !self.who.iter().any(|selector| selector.matches(caller)) {
            return (Match::No, "not for this caller");
        }
        match &self.grant {
            Some(condition) if !condition.is_met(caller) => {
                (Match::No, "the caller lacks the grant that it asks for")
            }
            _ => (Match::Yes, ""),
        }
    }

    fn needs_identity(&self) -> bool {
        let anyone = self.who.contains(&Selector::Anyone)
            || (self.who.is_empty() && self.effect != Effect::Allow);
        !anyone || self.conditions()
    }

    fn conditions(&self) -> bool {
        self.foreign.is_some() || self.tailnet.is_some() || self.grant.is_some()
    }
}

/// Whether `actual` is the tailnet that was written in a rule. A final dot and case do not matter,
/// and `tailnet-x` stands for `tailnet-x.ts.net`, since both spellings are common. An empty name
/// never matches.
pub fn same_tailnet(written: &str, actual: &str) -> bool {
    let plain = |text: &str| text.trim_end_matches('.').to_ascii_lowercase();
    let (written, actual) = (plain(written), plain(actual));
    if actual.is_empty() || written.is_empty() {
        return false;
    }
    written == actual || (!written.contains('.') && actual == format!("{written}.ts.net"))
}

/// The caller's name for an audit line, with a mark if it is from another tailnet.
pub fn caller_word(visitor: &Visitor) -> String {
    let caller: &Caller = visitor.caller_any_tailnet();
    if visitor.foreign() {
        format!("foreign {caller}")
    } else {
        caller.to_string()
    }
}

#[cfg(test)]
mod tests;
