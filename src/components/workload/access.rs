//! Who gets a token for which audience, and on what terms.
//!
//! In this order:
//!
//! 1. `workload.audiences`, if it is set: an audience that it does not list is refused to
//!    everybody;
//! 2. the grants of our capability and the rules of `workload.policy`, by [`crate::policy`];
//! 3. where none of them decides, the grants of tsiam's capability;
//! 4. where the caller has none of those, `workload.allowWithoutGrant`.
//!
//! The file has the words of the rule language, and these:
//!
//! ```toml
//! [[rule]]
//! decision = "allow"
//! who = ["tag:web"]
//! audiences = ["sts.amazonaws.com", "https://*.example.com"]
//! max_lifetime = "15m"
//! algorithms = ["RS256"]
//! claims = { team = "payments" }
//!
//! [[audience]]                        # the first one that matches counts
//! match = ["sts.amazonaws.com"]
//! lifetime = "15m"
//! algorithm = "RS256"
//! subject = "spiffe://{tailnet}/node/{id}"
//! aud = "text"                        # or "list"
//! aws_session = true
//! ```
//!
//! A grant says the same as `{"decision": "allow", "audiences": […], "maxLifetime": "15m",
//! "algorithms": […], "claims": {…}, "foreign": false}`.
//!
//! Invariants
//! - A rule or grant only narrows: a token never lives longer than its audience's, and no claim
//!   that the program makes can be given another value.
//! - Callers of other tailnets need a rule or a grant that says so.

use std::{fmt, str::FromStr, time::Duration};

use serde::Deserialize;
use serde_json::{Map, Value};
use tailbone_values::Object;
use toml::de::{DeTable, DeValue};

use super::claims;
use crate::{
    config::duration,
    identity::{AudiencePattern, Caller, SubjectTemplate, Visitor},
    keys::Algorithm,
    policy::{Effect, Grant, Match, Node, RuleFile, RuleId, RuleList, RuleReader, Scope, Who},
};

/// tsiam's capability.
pub const TSIAM_CAPABILITY: &str = "italypaleale.me/tsiam";

/// The shortest and the longest life of a token, as in tsiam.
pub const LIFETIMES: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(60)..=Duration::from_secs(3600);

pub type AudienceRules = RuleList<AudienceScope>;
pub type AudienceRuleFile = RuleFile<AudienceScope>;

/// What a rule or a grant says about audiences. An empty list means no restriction.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct AudienceScope {
    audiences: Vec<AudiencePattern>,
    pub terms: TokenTerms,
}

/// How a rule or grant narrows the tokens that it allows.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TokenTerms {
    pub max_lifetime: Option<Duration>,
    /// Those that may be used; any if empty.
    pub algorithms: Vec<Algorithm>,
    /// Added to the token.
    pub claims: Map<String, Value>,
}

/// `[[audience]]`: how tokens for some audiences are made.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct AudienceEntry {
    patterns: Vec<AudiencePattern>,
    pub lifetime: Option<Duration>,
    pub algorithm: Option<Algorithm>,
    pub subject: Option<SubjectTemplate>,
    /// `aud` is a string instead of a list of one.
    pub aud_is_text: bool,
    /// AWS session tags and source identity.
    pub aws_session: bool,
}

impl Scope for AudienceScope {
    type Target = str;
    type Top = Vec<AudienceEntry>;

    const KEYS: &'static [&'static str] = &["algorithms", "audiences", "claims", "max_lifetime"];
    const TOP_KEYS: &'static [&'static str] = &["audience"];
    const EFFECTS: &'static [Effect] = &[Effect::Allow, Effect::Deny];

    fn of_rule(reader: &mut RuleReader<'_>, table: &DeTable<'_>, field: &str) -> Self {
        Self {
            audiences: reader.list(table, "audiences", field, AudiencePattern::parse),
            terms: TokenTerms {
                max_lifetime: lifetime_of(reader, table, "max_lifetime", field),
                algorithms: reader.list(table, "algorithms", field, algorithm),
                claims: claims_of(reader, table, field),
            },
        }
    }

    fn of_top(reader: &mut RuleReader<'_>, table: &DeTable<'_>) -> Self::Top {
        let Some(node) = table.get("audience") else {
            return Vec::new();
        };
        let entries = node.get_ref().as_array();
        let tables = entries.and_then(|entries| {
            let tables = entries.iter().map(|entry| entry.get_ref().as_table());
            tables.collect::<Option<Vec<_>>>()
        });
        let Some(tables) = tables else {
            let words = "write each audience under an [[audience]] of its own";
            reader.mistake(&node.span(), "audience", words);
            return Vec::new();
        };
        let mut read = Vec::new();
        for (at, table) in tables.into_iter().enumerate() {
            let field = format!("audience[{}]", at + 1);
            if !table.contains_key("match") {
                reader.mistake(&node.span(), &format!("{field}.match"), "is missing");
            }
            read.push(audience_entry(reader, table, &field));
        }
        read
    }

    fn of_grant(value: &Value) -> Result<Grant<Self>, String> {
        let Object(words) =
            Object::<GrantValue>::deserialize(value).map_err(|error| error.to_string())?;
        let patterns = words
            .audiences
            .iter()
            .map(|word| AudiencePattern::parse(word));
        let algorithms = words.algorithms.iter().map(|word| algorithm(word));
        if let Some(reserved) = words.claims.keys().find(|name| claims::is_reserved(name)) {
            return Err(reserved_claim(reserved));
        }
        Ok(Grant {
            effect: match words.decision {
                Choice::Allow => Effect::Allow,
                Choice::Deny => Effect::Deny,
            },
            foreign: words.foreign,
            scope: Self {
                audiences: patterns.collect::<Result<_, _>>()?,
                terms: TokenTerms {
                    max_lifetime: words.max_lifetime.as_deref().map(lifetime).transpose()?,
                    algorithms: algorithms.collect::<Result<_, _>>()?,
                    claims: words.claims,
                },
            },
        })
    }

    fn matches(&self, audience: &str, _: Effect) -> (Match, &'static str) {
        let listed = self
            .audiences
            .iter()
            .any(|pattern| pattern.matches(audience));
        (
            Match::from_bool(self.audiences.is_empty() || listed),
            "another audience",
        )
    }
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
struct GrantValue {
    decision: Choice,
    audiences: Vec<String>,
    max_lifetime: Option<String>,
    algorithms: Vec<String>,
    claims: Map<String, Value>,
    foreign: bool,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "lowercase")]
enum Choice {
    #[default]
    Allow,
    Deny,
}

const AUDIENCE_KEYS: [&str; 6] = [
    "algorithm",
    "aud",
    "aws_session",
    "lifetime",
    "match",
    "subject",
];

fn audience_entry(reader: &mut RuleReader<'_>, table: &DeTable<'_>, field: &str) -> AudienceEntry {
    reader.known_keys(table, field, &AUDIENCE_KEYS);
    let aud_is_text = parsed(reader, table, "aud", field, |word| match word {
        "text" => Ok(true),
        "list" => Ok(false),
        _ => Err(format!("{word:?} is not text or list")),
    });
    AudienceEntry {
        patterns: reader.list(table, "match", field, AudiencePattern::parse),
        lifetime: lifetime_of(reader, table, "lifetime", field),
        algorithm: parsed(reader, table, "algorithm", field, algorithm),
        subject: parsed(reader, table, "subject", field, SubjectTemplate::parse),
        aud_is_text: aud_is_text.unwrap_or_default(),
        aws_session: reader
            .boolean(table, "aws_session", field)
            .unwrap_or_default(),
    }
}

/// A string, converted by `read`.
fn parsed<T>(
    reader: &mut RuleReader<'_>,
    table: &DeTable<'_>,
    key: &str,
    field: &str,
    read: impl Fn(&str) -> Result<T, String>,
) -> Option<T> {
    let (span, word) = reader.text_of(table, key, field)?;
    match read(&word) {
        Ok(value) => Some(value),
        Err(message) => {
            reader.mistake(&span, &format!("{field}.{key}"), message);
            None
        }
    }
}

fn lifetime_of(
    reader: &mut RuleReader<'_>,
    table: &DeTable<'_>,
    key: &str,
    field: &str,
) -> Option<Duration> {
    parsed(reader, table, key, field, lifetime)
}

/// In whole seconds, as tokens tell it.
fn lifetime(word: &str) -> Result<Duration, String> {
    let given = duration::parse(word).map_err(|error| error.to_string())?;
    let whole = Duration::from_secs(given.size.as_secs());
    if given.negative || !LIFETIMES.contains(&whole) {
        return Err(format!("{word:?} is not from 1m to 60m"));
    }
    Ok(whole)
}

fn algorithm(word: &str) -> Result<Algorithm, String> {
    Algorithm::from_str(word).map_err(|error| error.to_string())
}

fn claims_of(reader: &mut RuleReader<'_>, table: &DeTable<'_>, field: &str) -> Map<String, Value> {
    let Some(node) = table.get("claims") else {
        return Map::new();
    };
    let field = format!("{field}.claims");
    let Some(members) = node.get_ref().as_table() else {
        reader.mistake(
            &node.span(),
            &field,
            "is a table of claims and their values",
        );
        return Map::new();
    };
    let mut claims = Map::new();
    for (name, value) in members {
        let field = format!("{field}.{}", name.get_ref());
        if claims::is_reserved(name.get_ref()) {
            reader.mistake(&name.span(), &field, reserved_claim(name.get_ref()));
        }
        let value = claim(reader, value, &field);
        claims.insert(name.get_ref().to_string(), value);
    }
    claims
}

fn claim(reader: &mut RuleReader<'_>, node: &Node<'_>, field: &str) -> Value {
    match node.get_ref() {
        DeValue::Array(items) => {
            let items = items.iter().map(|item| claim(reader, item, field));
            Value::Array(items.collect())
        }
        _ => reader.json(node, field),
    }
}

fn reserved_claim(name: &str) -> String {
    format!("the claim {name:?} is made by the program")
}

/// What the settings say about everybody, beside the rules.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Access {
    /// No restriction if empty.
    pub audiences: Vec<AudiencePattern>,
    /// Callers to whom no grant and no rule applies get tokens too.
    pub allow_without_grant: bool,
}

/// The decision about a caller and an audience.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    Allowed {
        terms: TokenTerms,
        by: DecidedBy,
    },
    /// The audience is not among those of the settings.
    NotListed,
    /// This caller may not have it.
    NotPermitted {
        by: DecidedBy,
    },
}

/// What decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DecidedBy {
    /// `workload.audiences`
    Audiences,
    /// A rule, a grant of ours, or the end of the list.
    Rule(RuleId),
    /// `workload.allowWithoutGrant`
    Setting,
    /// A grant of tsiam's capability.
    TsiamGrant,
}

impl fmt::Display for DecidedBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Audiences => f.write_str("workload.audiences"),
            Self::Rule(rule) => rule.fmt(f),
            Self::Setting => f.write_str("workload.allowWithoutGrant"),
            Self::TsiamGrant => write!(f, "a grant of {TSIAM_CAPABILITY}"),
        }
    }
}

impl Access {
    pub fn decide(&self, rules: &AudienceRules, who: Who<'_>, audience: &str) -> Verdict {
        let listed =
            self.audiences.is_empty() || self.audiences.iter().any(|one| one.matches(audience));
        // The reader put the character in place of bytes that are no text.
        if !listed || audience.contains(char::REPLACEMENT_CHARACTER) {
            return Verdict::NotListed;
        }
        let (verdict, scope) = rules.decide_with_scope(who, audience);
        match (verdict.effect, verdict.rule, who) {
            (Effect::Allow, rule, _) => Verdict::Allowed {
                terms: scope.map(|scope| scope.terms.clone()).unwrap_or_default(),
                by: DecidedBy::Rule(rule),
            },
            (Effect::Deny, RuleId::End, Who::Known(visitor)) => {
                self.without_rule(visitor, audience)
            }
            (Effect::Deny | Effect::Anonymous, rule, _) => Verdict::NotPermitted {
                by: DecidedBy::Rule(rule),
            },
        }
    }

    fn without_rule(&self, visitor: &Visitor, audience: &str) -> Verdict {
        let allowed = |by| Verdict::Allowed {
            terms: TokenTerms::default(),
            by,
        };
        match granted_by_tsiam(visitor.caller_any_tailnet(), audience) {
            Some(true) => allowed(DecidedBy::TsiamGrant),
            None if self.allow_without_grant && !visitor.foreign() => allowed(DecidedBy::Setting),
            Some(false) | None => Verdict::NotPermitted {
                by: DecidedBy::Rule(RuleId::End),
            },
        }
    }
}

/// Whether a grant of tsiam's capability lists the audience; `None` if the caller has none at all.
/// As in tsiam, a value that cannot be read counts as one without audiences, and audiences are
/// compared byte by byte.
fn granted_by_tsiam(caller: &Caller, audience: &str) -> Option<bool> {
    if !caller.has_capability(TSIAM_CAPABILITY) {
        return None;
    }
    let values = caller.grants(TSIAM_CAPABILITY).iter();
    Some(
        values
            .filter_map(tsiam_audiences)
            .any(|mut list| list.any(|one| one == audience)),
    )
}

/// The audiences of one value, if it has the right shape. Names of members are compared without
/// case, as Go does.
fn tsiam_audiences(value: &Value) -> Option<impl Iterator<Item = &str>> {
    let members = value.as_object()?.iter();
    let list = members
        .filter(|(name, _)| name.eq_ignore_ascii_case("allowedAudiences"))
        .map(|(_, list)| list)
        .next_back()?
        .as_array()?;
    list.iter()
        .all(Value::is_string)
        .then(|| list.iter().filter_map(Value::as_str))
}

/// How tokens for this audience are made.
pub fn entry_of<'a>(rules: &'a AudienceRules, audience: &str) -> Option<&'a AudienceEntry> {
    let matches = |entry: &&AudienceEntry| entry.patterns.iter().any(|one| one.matches(audience));
    rules.top().iter().find(matches)
}
