//! What the tailnet's policy grants a caller: the rules of tsidp's capability.
//!
//! Invariants
//! - Denied by default. Permissions of several rules add up; `users` and `resources` must match
//!   within one rule.
//! - One rule that cannot be read fails them all, as in tsidp: what it meant to forbid or to claim
//!   is not known.

use serde_json::{Map, Value};

/// The name of the capability, unless a setting says another.
pub const CAPABILITY: &str = "tailscale.com/cap/tsidp";

/// One value of the capability.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rule {
    pub allow_admin_ui: bool,
    pub allow_dcr: bool,
    /// Whom `resources` are for: logins, or `*`; tags of machines, and `client:` with the id of a
    /// client that acts for itself.
    pub users: Vec<String>,
    /// Resources and audiences that may be asked for, or `*`.
    pub resources: Vec<String>,
    pub extra_claims: Map<String, Value>,
    /// For the claim `groups`; tsidp knows no such member.
    pub groups: Vec<String>,
    /// The extra claims go to UserInfo as well.
    pub include_in_user_info: bool,
}

/// A value of the capability that is no rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a grant of the capability is not a rule: {0}")]
pub struct BadRule(String);

/// The rules of a caller.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rules(Vec<Rule>);

impl Rules {
    pub fn parse(values: &[Value]) -> Result<Self, BadRule> {
        values
            .iter()
            .map(Rule::parse)
            .collect::<Result<_, _>>()
            .map(Self)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Rule> {
        self.0.iter()
    }

    pub fn allow_admin_ui(&self) -> bool {
        self.0.iter().any(|rule| rule.allow_admin_ui)
    }

    pub fn allow_dcr(&self) -> bool {
        self.0.iter().any(|rule| rule.allow_dcr)
    }

    /// Whether this user may have tokens for the resource.
    pub fn allows(&self, login: &str, resource: &str) -> bool {
        let listed =
            |list: &[String], wanted: &str| list.iter().any(|one| one == "*" || one == wanted);
        self.0
            .iter()
            .any(|rule| listed(&rule.users, login) && listed(&rule.resources, resource))
    }

    /// Those of the resources that this user may have, in their order.
    pub fn allowed(&self, login: &str, resources: &[String]) -> Vec<String> {
        kept(resources, |resource| self.allows(login, resource))
    }

    /// The same for a program that policy knows by these names. A rule must have one of them among
    /// its users: `*` is every person.
    pub fn allowed_to_program(&self, names: &[String], resources: &[String]) -> Vec<String> {
        kept(resources, |wanted| {
            self.0.iter().any(|rule| {
                let listed = |one: &String| one == "*" || one == wanted;
                rule.users.iter().any(|user| names.contains(user))
                    && rule.resources.iter().any(listed)
            })
        })
    }
}

impl Rule {
    /// Names of members are compared without case, as Go does; unknown ones are ignored, and `null`
    /// is an absent value.
    fn parse(value: &Value) -> Result<Self, BadRule> {
        let members = value
            .as_object()
            .ok_or_else(|| BadRule("it is not an object".into()))?;
        let mut rule = Self::default();
        for (name, value) in members {
            let wrong = || BadRule(format!("{name} is of another type"));
            if value.is_null() {
                continue;
            }
            let is = |known: &str| name.eq_ignore_ascii_case(known);
            if is("allow_admin_ui") {
                rule.allow_admin_ui = value.as_bool().ok_or_else(wrong)?;
            } else if is("allow_dcr") {
                rule.allow_dcr = value.as_bool().ok_or_else(wrong)?;
            } else if is("users") {
                rule.users = texts(value).ok_or_else(wrong)?;
            } else if is("resources") {
                rule.resources = texts(value).ok_or_else(wrong)?;
            } else if is("groups") {
                rule.groups = texts(value).ok_or_else(wrong)?;
            } else if is("extraClaims") {
                rule.extra_claims = value.as_object().ok_or_else(wrong)?.clone();
            } else if is("includeInUserInfo") {
                rule.include_in_user_info = value.as_bool().ok_or_else(wrong)?;
            }
        }
        Ok(rule)
    }
}

/// Those that are allowed, each once.
fn kept(resources: &[String], allowed: impl Fn(&str) -> bool) -> Vec<String> {
    let mut kept: Vec<String> = Vec::new();
    for resource in resources {
        if allowed(resource) && !kept.contains(resource) {
            kept.push(resource.clone());
        }
    }
    kept
}

fn texts(value: &Value) -> Option<Vec<String>> {
    let items = value.as_array()?.iter();
    items.map(|item| item.as_str().map(str::to_owned)).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rules(values: Value) -> Result<Rules, BadRule> {
        Rules::parse(values.as_array().unwrap())
    }

    #[test]
    fn users_and_resources_match_within_one_rule() {
        let rules = rules(json!([
            {"users": ["alice@example.com"], "resources": ["https://a.example.com"]},
            {"users": ["*"], "resources": ["https://all.example.com"]},
            {"users": ["bob@github"]},
            {"resources": ["*"]},
        ]))
        .unwrap();
        let all = [
            "https://a.example.com",
            "https://all.example.com",
            "https://b.example.com",
        ];
        let allowed = |login| rules.allowed(login, &all.map(str::to_owned));
        assert_eq!(allowed("alice@example.com"), all[..2]);
        assert_eq!(allowed("bob@github"), all[1..2]);
        assert!(!rules.allows("alice@example.com", "https://A.example.com"));
        assert!(!rules.allow_admin_ui() && !rules.allow_dcr());
    }

    #[test]
    fn a_program_is_allowed_what_a_rule_gives_it_by_name() {
        let rules = rules(json!([
            {"users": ["*"], "resources": ["https://all.example.com"]},
            {"users": ["tag:ci", "alice@example.com"], "resources": ["https://a.example.com"]},
            {"users": ["client:c1"], "resources": ["*"]},
        ]))
        .unwrap();
        let all = ["https://a.example.com", "https://all.example.com"].map(str::to_owned);
        let allowed = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            rules.allowed_to_program(&names, &all)
        };
        assert_eq!(allowed(&["tag:x", "tag:ci"]), all[..1]);
        assert_eq!(allowed(&["client:c1"]), all);
        for nobody in [&[][..], &["client:c2"], &["tag:c"], &[""]] {
            assert!(allowed(nobody).is_empty(), "{nobody:?}");
        }
    }

    #[test]
    fn names_are_read_as_go_reads_them_and_unknown_ones_ignored() {
        let rules = rules(json!([
            {"Allow_Admin_UI": true, "newer": 1, "users": null},
            {"ALLOW_DCR": true, "includeinuserinfo": true, "EXTRACLAIMS": {"a": 1}},
        ]))
        .unwrap();
        assert!(rules.allow_admin_ui() && rules.allow_dcr());
        assert_eq!(rules.0[1].extra_claims["a"], 1);
        assert!(rules.0[1].include_in_user_info);
    }

    #[test]
    fn one_bad_rule_fails_them_all() {
        for bad in [
            json!("admin"),
            json!({"allow_dcr": "true"}),
            json!({"users": "*"}),
            json!({"users": [1]}),
            json!({"extraClaims": []}),
        ] {
            assert!(
                rules(json!([{"allow_admin_ui": true}, bad])).is_err(),
                "{bad}"
            );
        }
    }
}
