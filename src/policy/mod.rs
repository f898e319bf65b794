//! Who may do what: one rule language for every component that guards something.
//!
//! [`Rules::decide`] is a pure function of the rules, the caller ([`Who`]) and the request ([`What`]). It asks, in this order:
//!
//! 1. the grants that the tailnet's own policy file gives the caller for our capability: a denying grant beats an allowing
//!    one, since grants have no order that an operator could rely on;
//! 2. the local rules, as they stand in the file: the first that matches decides;
//! 3. nobody: the end of the list denies.
//!
//! Invariants
//! - Doubt never opens a door. A match is `No`, `Maybe` or `Yes`; a path that two servers could read in two ways, or a header
//!   that the proxy did not send, makes a `Maybe`. Rules that let through need `Yes`; rules that deny are content with `Maybe`.
//! - Callers from another tailnet and from the internet are let through only by a rule that names them.
//! - "Allow" always means an identified caller; whoever is let through without identity is `Anonymous`.
//!
//! Left to others: finding out who calls ([`crate::identity`]), what a denial looks like (the components), when the file is
//! read again ([`Store`] does it when it is told to).

mod file;
mod grant;
mod selector;
mod store;
mod what;

use std::{borrow::Cow, fmt};

pub use file::{Mistake, Mistakes};
pub use selector::Selector;
pub use store::{Change, LoadError, Store};
pub use what::{Path, PathPrefix, What, WhatError};

pub use crate::web::{Host, HostPattern};

use crate::identity::{Caller, Visitor};

/// The capability of grants that speak of us, unless another name is set.
pub const CAPABILITY: &str = "tailbone.dev/cap/gate";

/// Whom the rules are asked about.
#[derive(Debug, Clone, Copy)]
pub enum Who<'a> {
    /// We cannot tell at the moment: a trouble of ours.
    Doubt,
    /// Somebody on the internet.
    Funnel,
    /// The tailnet knows the node and vouches for it.
    Known(&'a Visitor),
    /// Somebody whom the tailnet does not know or no longer vouches for.
    Nobody,
}

/// What is to happen with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Let through, with the caller's identity.
    Allow,
    /// Let through, without telling who it is.
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

/// Which rule decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RuleId {
    /// None: the end of the list.
    End,
    /// A value of the capability in the tailnet's policy, counted from 1.
    Grant(usize),
    /// A rule of the file.
    Local { name: String, line: usize },
}

impl RuleId {
    /// For counting: which of a caller's grants it was is not told.
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

/// The answer of [`Rules::decide`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    pub effect: Effect,
    pub rule: RuleId,
    /// For people.
    pub why: Cow<'static, str>,
}

/// One rule that was looked at, for `policy test`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    pub rule: RuleId,
    pub effect: Effect,
    /// Whether this is the rule that decides.
    pub decides: bool,
    pub why: Cow<'static, str>,
}

/// How sure it is that a rule is about this request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Match {
    No,
    Maybe,
    Yes,
}

impl Match {
    fn from_bool(yes: bool) -> Self {
        if yes { Self::Yes } else { Self::No }
    }

    fn any(matches: impl IntoIterator<Item = Self>) -> Self {
        matches.into_iter().max().unwrap_or(Self::No)
    }
}

/// Checked rules, ready to decide.
#[derive(Debug, Clone, PartialEq)]
pub struct Rules {
    rules: Vec<Rule>,
    /// `None` where grants are not to be asked.
    capability: Option<String>,
}

#[derive(Debug, Clone, PartialEq)]
struct Rule {
    name: String,
    line: usize,
    effect: Effect,
    who: Vec<Selector>,
    /// Whether callers of other tailnets are meant; by default everybody's denied, and only our own are let through.
    foreign: Option<bool>,
    tailnet: Option<String>,
    grant: Option<grant::Condition>,
    scope: what::Scope,
}

impl Rules {
    /// No local rules: the tailnet's grants decide alone.
    pub fn grants_only(capability: &str) -> Self {
        Self {
            rules: Vec::new(),
            capability: Some(capability.to_owned()).filter(|name| !name.is_empty()),
        }
    }

    /// Reads a file of rules. All its mistakes are told at once.
    pub fn parse(text: &str, capability: &str) -> Result<Self, Mistakes> {
        Ok(Self {
            rules: file::parse(text)?,
            ..Self::grants_only(capability)
        })
    }

    pub fn decide(&self, who: Who<'_>, what: &What) -> Decision {
        let mut steps = self.steps(who, what);
        match steps.find(|step| step.decides) {
            Some(step) => Decision {
                effect: step.effect,
                rule: step.rule,
                why: step.why,
            },
            None => end(),
        }
    }

    /// Every rule up to the one that decides, each with its reason.
    pub fn explain(&self, who: Who<'_>, what: &What) -> (Vec<Step>, Decision) {
        let mut seen = Vec::new();
        for step in self.steps(who, what) {
            let decides = step.decides;
            seen.push(step);
            if decides {
                break;
            }
        }
        let decision = match seen.last().filter(|step| step.decides) {
            Some(step) => Decision {
                effect: step.effect,
                rule: step.rule.clone(),
                why: step.why.clone(),
            },
            None => end(),
        };
        (seen, decision)
    }

    /// Whether any rule speaks of methods: a header that replaces the method would then get around it.
    pub fn name_methods(&self) -> bool {
        self.rules.iter().any(|rule| rule.scope.names_methods())
    }

    /// Whether a rule or a grant of the caller names this host, by itself or by its domain.
    pub fn name_host(&self, who: Who<'_>, host: &Host) -> bool {
        let granted = match (&self.capability, who) {
            (Some(capability), Who::Known(visitor)) => grant::name_host(visitor, capability, host),
            _ => false,
        };
        granted || self.rules.iter().any(|rule| rule.scope.names_host(host))
    }

    fn steps<'a>(&'a self, who: Who<'a>, what: &'a What) -> impl Iterator<Item = Step> + 'a {
        let grants = match (&self.capability, who) {
            (Some(capability), Who::Known(visitor)) => grant::steps(visitor, capability, what),
            _ => Vec::new(),
        };
        grants
            .into_iter()
            .chain(self.rules.iter().map(move |rule| rule.step(who, what)))
    }
}

fn end() -> Decision {
    Decision {
        effect: Effect::Deny,
        rule: RuleId::End,
        why: "no rule matches, and the end of the list denies".into(),
    }
}

impl Rule {
    fn step(&self, who: Who<'_>, what: &What) -> Step {
        let scope = self.scope.matches(what, self.effect);
        let caller = if scope.0 == Match::No {
            (Match::No, "")
        } else {
            self.about(who)
        };
        let (effect, decides, why): (_, _, Cow<'static, str>) =
            match (self.effect, scope.0, caller.0) {
                (_, Match::No, _) => (self.effect, false, scope.1.into()),
                (_, _, Match::No) => (self.effect, false, caller.1.into()),
                (Effect::Deny, Match::Yes, Match::Yes) => (Effect::Deny, true, "matches".into()),
                (Effect::Deny, _, Match::Maybe) => (Effect::Deny, true, caller.1.into()),
                (Effect::Deny, _, _) => (Effect::Deny, true, scope.1.into()),
                // Going on to a later rule could let somebody through whom this one was meant to tell apart.
                (_, _, Match::Maybe) => (Effect::Deny, true, caller.1.into()),
                (_, Match::Maybe, _) => (self.effect, false, scope.1.into()),
                (effect, Match::Yes, Match::Yes) => (effect, true, "matches".into()),
            };
        Step {
            rule: RuleId::Local {
                name: self.name.clone(),
                line: self.line,
            },
            effect,
            decides,
            why,
        }
    }

    /// Whether the rule is about this caller, and if not, which part of it says so.
    fn about(&self, who: Who<'_>) -> (Match, &'static str) {
        let lets_through = self.effect != Effect::Deny;
        if !self.needs_identity() {
            return (Match::Yes, "");
        }
        let visitor = match who {
            Who::Known(visitor) => visitor,
            Who::Doubt => return (Match::Maybe, "who calls cannot be told at the moment"),
            // A rule that denies everybody means those without a name too.
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
        let caller = visitor.even_foreign();
        if !self.who.is_empty() && !self.who.iter().any(|selector| selector.is(caller)) {
            return (Match::No, "not for this caller");
        }
        match &self.grant {
            Some(condition) if !condition.met(caller) => {
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

/// Whether a tailnet is the one that was written down. The final dot and the case mean nothing, and `tailnet-x` stands for
/// `tailnet-x.ts.net`, since both ways of writing are about. No tailnet at all is never the expected one.
pub fn same_tailnet(written: &str, actual: &str) -> bool {
    let plain = |text: &str| text.trim_end_matches('.').to_ascii_lowercase();
    let (written, actual) = (plain(written), plain(actual));
    if actual.is_empty() || written.is_empty() {
        return false;
    }
    written == actual || (!written.contains('.') && actual == format!("{written}.ts.net"))
}

/// The caller's word in an audit line; an identity from another tailnet is marked as such.
pub fn caller_word(visitor: &Visitor) -> String {
    let caller: &Caller = visitor.even_foreign();
    if visitor.foreign() {
        format!("foreign {caller}")
    } else {
        caller.to_string()
    }
}

#[cfg(test)]
mod tests;
