//! What rules are about, beside callers: a component's own words in the file and in grants.

use std::fmt::Debug;

use serde_json::Value;
use toml::de::DeTable;

use super::{Effect, RuleReader};

/// How certain it is that a rule applies to this request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Match {
    No,
    Maybe,
    Yes,
}

impl Match {
    pub fn from_bool(yes: bool) -> Self {
        if yes { Self::Yes } else { Self::No }
    }

    pub(super) fn any(matches: impl IntoIterator<Item = Self>) -> Self {
        matches.into_iter().max().unwrap_or(Self::No)
    }
}

/// The part of a rule that concerns what is asked for. An empty one means no restriction.
pub trait Scope: Clone + PartialEq + Debug + Send + Sync + 'static {
    /// What is asked for.
    type Target: ?Sized;
    /// What the file says beside its rules.
    type Top: Clone + PartialEq + Debug + Default + Send + Sync;

    /// Words of a rule in the file that belong to the scope.
    const KEYS: &'static [&'static str];
    /// Words at the top of the file that belong to [`Self::Top`].
    const TOP_KEYS: &'static [&'static str];
    /// What a rule may decide.
    const EFFECTS: &'static [Effect];

    /// Reads the words of one rule; `field` names it in mistakes.
    fn of_rule(reader: &mut RuleReader<'_>, table: &DeTable<'_>, field: &str) -> Self;

    /// Reads the words at the top of the file.
    fn of_top(reader: &mut RuleReader<'_>, table: &DeTable<'_>) -> Self::Top;

    /// Reads one value of the capability, or says what is wrong with it.
    fn of_grant(value: &Value) -> Result<Grant<Self>, String>;

    /// How certainly the rule applies to the target, and because of which part it does not.
    fn matches(&self, target: &Self::Target, effect: Effect) -> (Match, &'static str);
}

/// What a value of the capability grants.
#[derive(Debug, Clone, PartialEq)]
pub struct Grant<S> {
    pub effect: Effect,
    pub scope: S,
    /// Whether it also applies to callers of other tailnets.
    pub foreign: bool,
}
