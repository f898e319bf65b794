//! Who gets a workload token for which audience: `tailbone policy test --audience`.

use super::{Explained, caller, rule, rules};
use crate::{
    cli::exit::Failure,
    config::{PolicySettings, duration},
    policy::{Effect, Near, RuleId, Verdict, Who},
    workload::access::{self, Access, AudienceRules, DecidedBy, TokenTerms},
};

pub(super) fn explain(
    settings: &PolicySettings,
    who: Who<'_>,
    audience: &str,
) -> Result<Explained, Failure> {
    let rules: AudienceRules = rules("workload.policy", &settings.workload)?;
    let access = Access {
        audiences: settings.audiences.clone(),
        allow_without_grant: settings.allow_without_grant,
    };
    let (steps, _) = rules.explain(who, audience);
    let decided = access.decide(&rules, who, audience);
    let by = match &decided {
        access::Verdict::NotListed => &DecidedBy::Audiences,
        access::Verdict::Allowed { by, .. } | access::Verdict::NotPermitted { by } => by,
    };
    let verdict = Verdict {
        effect: match decided {
            access::Verdict::Allowed { .. } => Effect::Allow,
            _ => Effect::Deny,
        },
        rule: match by {
            DecidedBy::Rule(rule) => rule.clone(),
            _ => RuleId::End,
        },
        why: by.to_string().into(),
    };
    let near = rules.nearest(who, audience);
    let sentence = sentence(&decided, who, audience, near.as_ref());
    Ok(Explained {
        rule: by.to_string(),
        without_rules: "There are no rules, neither in a file (workload.policy) nor in the \
                        caller's grants.",
        ..Explained::new(&steps, &verdict, sentence)
    })
}

fn sentence(
    decided: &access::Verdict,
    who: Who<'_>,
    audience: &str,
    near: Option<&Near>,
) -> String {
    let caller = caller(who);
    match decided {
        access::Verdict::NotListed => {
            format!(
                "deny: workload.audiences does not list {audience}, so nobody gets tokens for it"
            )
        }
        access::Verdict::Allowed { terms, by } => {
            let terms = words(terms);
            format!(
                "allow: {} gives {caller} tokens for {audience}{terms}",
                name(by)
            )
        }
        access::Verdict::NotPermitted {
            by: DecidedBy::Rule(RuleId::End),
        } => {
            let change = match near {
                None => ", and none comes near: add one, or a grant".to_owned(),
                Some(near) => format!(
                    "; the nearest, {}, would have to change: {}",
                    rule(&near.rule),
                    near.misses.join(", ")
                ),
            };
            format!("deny: no rule gives {caller} tokens for {audience}{change}")
        }
        access::Verdict::NotPermitted { by } => {
            format!("deny: {} gives {caller} no tokens for {audience}", name(by))
        }
    }
}

fn name(by: &DecidedBy) -> String {
    match by {
        DecidedBy::Rule(id) => rule(id),
        other => other.to_string(),
    }
}

/// How a rule narrows the tokens.
fn words(terms: &TokenTerms) -> String {
    let mut words = Vec::new();
    if let Some(most) = terms.max_lifetime {
        words.push(format!("for at most {}", duration::format(most)));
    }
    if !terms.algorithms.is_empty() {
        let names: Vec<&str> = terms.algorithms.iter().map(|one| one.as_str()).collect();
        words.push(format!("signed with {}", names.join(" or ")));
    }
    if !terms.claims.is_empty() {
        let names: Vec<&str> = terms.claims.keys().map(String::as_str).collect();
        words.push(format!("with {}", names.join(", ")));
    }
    if words.is_empty() {
        return String::new();
    }
    format!(", {}", words.join(", "))
}
