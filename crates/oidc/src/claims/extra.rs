//! Claims that grants of the tailnet's policy add (`extraClaims`).
//!
//! For each name, over all rules in their order: a name that occurs as a scalar alone has the first
//! rule's value. A name that any rule gives as a list is a list of all values, each once. Objects
//! and `null` are dropped, inside of lists too; nested lists are flattened; an empty list adds
//! nothing. tsidp turns what is in lists into strings without order; here values keep their type
//! and order.

use serde_json::{Map, Value};

use super::{OURS, PROTECTED};
use crate::capability::Rule;

/// A rule claims what only the provider may say.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a grant of the tailnet's policy claims {0:?}, which the provider alone may say")]
pub struct ProtectedClaim(pub String);

/// Adds the extra claims of these rules to claims that are there already, and replaces those of the
/// same names.
pub(super) fn add<'a>(
    claims: &mut Map<String, Value>,
    rules: impl Iterator<Item = &'a Rule>,
) -> Result<(), ProtectedClaim> {
    let mut merged: Vec<(&str, Merged)> = Vec::new();
    for (name, value) in rules.flat_map(|rule| &rule.extra_claims) {
        if PROTECTED.contains(&name.as_str()) {
            return Err(ProtectedClaim(name.clone()));
        }
        if OURS.contains(&name.as_str()) {
            continue;
        }
        match merged.iter_mut().find(|(known, _)| known == name) {
            Some((_, known)) => known.take(value),
            None => {
                let mut first = Merged::default();
                first.take(value);
                merged.push((name, first));
            }
        }
    }
    for (name, merged) in merged {
        if let Some(value) = merged.value() {
            claims.insert(name.to_owned(), value);
        }
    }
    Ok(())
}

#[derive(Default)]
struct Merged {
    values: Vec<Value>,
    is_list: bool,
}

impl Merged {
    fn take(&mut self, value: &Value) {
        match value {
            Value::Array(items) => {
                self.is_list = true;
                for item in items {
                    self.take(item);
                }
            }
            Value::Object(_) | Value::Null => {}
            scalar if self.values.contains(scalar) => {}
            scalar => self.values.push(scalar.clone()),
        }
    }

    fn value(self) -> Option<Value> {
        if self.is_list {
            return (!self.values.is_empty()).then_some(Value::Array(self.values));
        }
        self.values.into_iter().next()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn merged(rules: &[Value]) -> Result<Value, ProtectedClaim> {
        let rules: Vec<Rule> = rules
            .iter()
            .map(|claims| Rule {
                extra_claims: claims.as_object().unwrap().clone(),
                ..Rule::default()
            })
            .collect();
        let mut claims = Map::new();
        claims.insert("name".into(), "Alice".into());
        add(&mut claims, rules.iter())?;
        claims.retain(|name, value| name != "name" || value != "Alice");
        Ok(Value::Object(claims))
    }

    #[test]
    fn scalars_and_lists_over_all_rules() {
        for (rules, expected) in [
            (vec![], json!({})),
            (
                vec![json!({"a": "x", "n": 42, "b": false})],
                json!({"a": "x", "n": 42, "b": false}),
            ),
            (
                vec![json!({"a": "x"}), json!({"a": "x"})],
                json!({"a": "x"}),
            ),
            (
                vec![json!({"a": "x"}), json!({"a": "y"})],
                json!({"a": "x"}),
            ),
            (
                vec![json!({"a": "x"}), json!({"a": ["y", 1]})],
                json!({"a": ["x", "y", 1]}),
            ),
            (
                vec![json!({"a": ["x", "y"]}), json!({"a": ["y", "z"]})],
                json!({"a": ["x", "y", "z"]}),
            ),
            (
                vec![json!({"a": ["x", true, 42, {"o": 1}, ["n"]]})],
                json!({"a": ["x", true, 42, "n"]}),
            ),
            (vec![json!({"a": {"o": 1}, "b": 1})], json!({"b": 1})),
            (
                vec![json!({"a": "x"}), json!({"a": {"o": 1}})],
                json!({"a": "x"}),
            ),
            (
                vec![json!({"a": {"o": 1}}), json!({"a": "x"})],
                json!({"a": "x"}),
            ),
            (vec![json!({"a": [], "b": null})], json!({})),
            (vec![json!({"name": "Root"})], json!({"name": "Root"})),
        ] {
            assert_eq!(merged(&rules), Ok(expected), "{rules:?}");
        }
    }

    #[test]
    fn a_protected_name_fails_and_one_of_the_protocol_has_no_effect() {
        for name in PROTECTED {
            let rules = [json!({"a": 1}), json!({name: "x"})];
            assert_eq!(merged(&rules), Err(ProtectedClaim(name.into())));
        }
        for name in OURS {
            assert_eq!(merged(&[json!({name: "x", "a": 1})]), Ok(json!({"a": 1})));
        }
    }
}
