//! Who may log in at which application.
//!
//! In this order:
//!
//! 1. the grants of our capability (`oidc.policyCapability`) and the rules of `oidc.policy`, by
//!    [`crate::policy`];
//! 2. where none of them decides, nobody if there is a file of rules or `oidc.requireRule` is on;
//!    otherwise every person that the tailnet identifies, as with tsidp.
//!
//! The file has the words of the rule language, and these:
//!
//! ```toml
//! contact = "it@example.com"          # whom people ask who are refused
//!
//! [[rule]]
//! decision = "allow"
//! who = ["group:staff"]
//! clients = ["grafana", "https://*.example.com/*"]    # client ids; if absent: any
//! registered = false                  # true: only clients that registered themselves
//! ```
//!
//! A grant says the same as `{"decision": "allow", "clients": […], "registered": false, "foreign":
//! false}`.
//!
//! Invariant: a client is named by its id. What it calls itself has no say.

use serde::Deserialize;
use serde_json::Value;
use tailbone_values::Object;
use toml::de::DeTable;

use crate::{
    config::AccessWord,
    identity::{AudiencePattern, Caller, Visitor},
    policy::{Effect, Grant, Match, RuleFile, RuleId, RuleList, RuleReader, Scope, Verdict, Who},
};

pub type LoginRules = RuleList<LoginScope>;
pub type LoginRuleFile = RuleFile<LoginScope>;

/// Where somebody logs in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoginTarget {
    pub client_id: String,
    /// The client registered itself, or describes itself in a document.
    pub registered: bool,
}

/// What a rule or a grant says about clients. An empty one means no restriction.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LoginScope {
    clients: Vec<AudiencePattern>,
    registered: Option<bool>,
}

/// What the file says beside its rules.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LoginTop {
    /// Whom people ask who are refused.
    pub contact: Option<String>,
}

impl Scope for LoginScope {
    type Target = LoginTarget;
    type Top = LoginTop;

    const KEYS: &'static [&'static str] = &["clients", "registered"];
    const TOP_KEYS: &'static [&'static str] = &["contact"];
    const EFFECTS: &'static [Effect] = &[Effect::Allow, Effect::Deny];

    fn of_rule(reader: &mut RuleReader<'_>, table: &DeTable<'_>, field: &str) -> Self {
        Self {
            clients: reader.list(table, "clients", field, client_pattern),
            registered: reader.boolean(table, "registered", field),
        }
    }

    fn of_top(reader: &mut RuleReader<'_>, table: &DeTable<'_>) -> Self::Top {
        LoginTop {
            contact: reader
                .text_of(table, "contact", "")
                .map(|(_, contact)| contact),
        }
    }

    fn of_grant(value: &Value) -> Result<Grant<Self>, String> {
        let Object(words) =
            Object::<GrantValue>::deserialize(value).map_err(|error| error.to_string())?;
        let clients = words.clients.iter().map(|word| client_pattern(word));
        Ok(Grant {
            effect: match words.decision {
                Choice::Allow => Effect::Allow,
                Choice::Deny => Effect::Deny,
            },
            foreign: words.foreign,
            scope: Self {
                clients: clients.collect::<Result<_, _>>()?,
                registered: words.registered,
            },
        })
    }

    fn matches(&self, login: &LoginTarget, _: Effect) -> (Match, &'static str) {
        let mut clients = self.clients.iter();
        if !self.clients.is_empty() && !clients.any(|one| one.matches(&login.client_id)) {
            return (Match::No, "another client");
        }
        match self.registered {
            Some(registered) if registered != login.registered => {
                let why = if registered {
                    "for clients that registered themselves only"
                } else {
                    "not for clients that registered themselves"
                };
                (Match::No, why)
            }
            _ => (Match::Yes, ""),
        }
    }
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct GrantValue {
    decision: Choice,
    clients: Vec<String>,
    registered: Option<bool>,
    foreign: bool,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "lowercase")]
enum Choice {
    #[default]
    Allow,
    Deny,
}

/// A client id, or a pattern of ids with `*`.
fn client_pattern(word: &str) -> Result<AudiencePattern, String> {
    AudiencePattern::parse(word).map_err(|_| format!("{word:?} is no client id"))
}

/// The rules in force, and what counts where none of them decides.
#[derive(Debug)]
pub struct LoginAccess {
    pub rules: LoginRuleFile,
    /// Nobody logs in without a rule or a grant that allows it.
    pub require_rule: bool,
}

impl LoginAccess {
    /// Everybody logs in everywhere, unless a grant of this capability says otherwise.
    pub fn grants_only(capability: &str) -> Self {
        Self {
            rules: LoginRuleFile::fixed(LoginRules::grants_only(capability)),
            require_rule: false,
        }
    }

    pub fn decide(&self, who: Who<'_>, login: &LoginTarget) -> Verdict {
        decide(&self.rules.rules(), self.require_rule, who, login)
    }

    /// The decision where the client's own entry says who may log in: nobody else may, whatever the
    /// rules allow; and where no rule decides, those may.
    pub fn decide_with(
        &self,
        visitor: &Visitor,
        login: &LoginTarget,
        access: &[String],
    ) -> Verdict {
        if access.is_empty() {
            return self.decide(Who::Known(visitor), login);
        }
        let rules = self.rules.rules();
        let verdict = rules.decide(Who::Known(visitor), login);
        let named = match visitor.caller() {
            Ok(caller @ Caller::User(_)) => {
                let of_group = |name: &str| rules.groups_of(caller).any(|group| group == name);
                access.iter().any(|word| match AccessWord::parse(word) {
                    Ok(AccessWord::Group(name)) => of_group(name),
                    Ok(AccessWord::Login(selector)) => selector.matches(caller),
                    // Of another version, perhaps: nobody is let in by it.
                    Err(_) => false,
                })
            }
            _ => false,
        };
        let of_client = |effect, why: &'static str| Verdict {
            effect,
            rule: RuleId::Local {
                name: "access".to_owned(),
                line: 0,
            },
            why: why.into(),
        };
        let undecided = verdict.rule == RuleId::End;
        if !named && (undecided || verdict.effect == Effect::Allow) {
            of_client(Effect::Deny, "the client admits others only")
        } else if named && undecided {
            of_client(Effect::Allow, "the client admits the person")
        } else {
            verdict
        }
    }

    pub fn contact(&self) -> Option<String> {
        self.rules.rules().top().contact.clone()
    }
}

/// The decision about a person and a client; `require_rule`: at the end of the list nobody is let
/// in.
pub fn decide(
    rules: &LoginRules,
    require_rule: bool,
    who: Who<'_>,
    login: &LoginTarget,
) -> Verdict {
    let verdict = rules.decide(who, login);
    let person = match who {
        Who::Known(visitor) => matches!(visitor.caller_any_tailnet(), Caller::User(_)),
        _ => false,
    };
    if verdict.rule == RuleId::End && person && !require_rule {
        return Verdict {
            effect: Effect::Allow,
            why: "no rule decides, and oidc.requireRule is off".into(),
            ..verdict
        };
    }
    verdict
}
