//! Who may log in to which application: `tailbone policy test --client`.

use super::{Explained, caller, rule, rules};
use crate::{
    cli::exit::Failure,
    config::PolicySettings,
    oidc::access::{self, LoginRules, LoginTarget},
    policy::{Effect, RuleId, Verdict, Who},
};

pub(super) fn explain(
    settings: &PolicySettings,
    who: Who<'_>,
    client_id: &str,
    registered: bool,
) -> Result<Explained, Failure> {
    let rules: LoginRules = rules("oidc.policy", &settings.logins.rules)?;
    let login = LoginTarget {
        client_id: client_id.to_owned(),
        registered,
    };
    let (steps, _) = rules.explain(who, &login);
    let verdict = access::decide(&rules, settings.logins.require_rule, who, &login);
    let sentence = sentence(&rules, who, &login, &verdict);
    Ok(Explained {
        without_rules: "There are no rules, neither in a file (oidc.policy) nor in the caller's \
                        grants.",
        ..Explained::new(&steps, &verdict, sentence)
    })
}

fn sentence(rules: &LoginRules, who: Who<'_>, login: &LoginTarget, verdict: &Verdict) -> String {
    let (caller, client) = (caller(who), &login.client_id);
    match (verdict.effect, &verdict.rule) {
        (Effect::Deny, RuleId::End) => {
            let change = match rules.nearest(who, login) {
                None => ", and none comes near: add one, or a grant".to_owned(),
                Some(near) => format!(
                    "; the nearest, {}, would have to change: {}",
                    rule(&near.rule),
                    near.misses.join(", ")
                ),
            };
            format!("deny: no rule lets {caller} log in to {client}{change}")
        }
        (Effect::Deny, id) => {
            let id = rule(id);
            format!("deny: {id} keeps {caller} out of {client} and would have to change")
        }
        (_, RuleId::End) => format!(
            "allow: {caller} may log in to {client}, since no rule decides and oidc.requireRule \
             is off"
        ),
        (_, id) => format!("allow: {} lets {caller} log in to {client}", rule(id)),
    }
}
