//! The parameters of a request, from a form or a query.
//!
//! Invariants
//! - A parameter without a value counts as absent (RFC 6749, section 3.1).
//! - A parameter that occurs twice is an error (the same section), but for those that standards
//!   repeat: `resource` (RFC 8707) and `audience` (RFC 8693).

use std::collections::BTreeMap;

use url::form_urlencoded;

use crate::OidcError;

const REPEATABLE: [&str; 2] = ["audience", "resource"];

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Params {
    values: BTreeMap<String, Vec<String>>,
}

impl Params {
    pub fn parse(encoded: &[u8]) -> Self {
        let mut params = Self::default();
        params.add(encoded);
        params
    }

    /// Adds those of a second place, as if they stood behind the first.
    pub fn add(&mut self, encoded: &[u8]) {
        for (name, value) in form_urlencoded::parse(encoded) {
            if !value.is_empty() {
                let values = self.values.entry(name.into_owned()).or_default();
                values.push(value.into_owned());
            }
        }
    }

    /// The value, if there is exactly one.
    pub fn get(&self, name: &str) -> Option<&str> {
        match self.all(name) {
            [one] => Some(one),
            _ => None,
        }
    }

    /// All values of a parameter that may be repeated.
    pub fn all(&self, name: &str) -> &[String] {
        self.values.get(name).map_or(&[], Vec::as_slice)
    }

    /// The first parameter that occurs twice although it may not.
    pub fn duplicate(&self) -> Option<&str> {
        let mut values = self.values.iter();
        values.find_map(|(name, values)| {
            (values.len() > 1 && !REPEATABLE.contains(&name.as_str())).then_some(name.as_str())
        })
    }

    /// As a query, for a page that asks first.
    pub fn encode(&self) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        for (name, values) in &self.values {
            for value in values {
                query.append_pair(name, value);
            }
        }
        query.finish()
    }

    /// All of them, for a page that sends them again.
    pub fn pairs(&self) -> Vec<(&str, String)> {
        let values = self.values.iter();
        values
            .flat_map(|(name, values)| values.iter().map(|one| (name.as_str(), one.clone())))
            .collect()
    }

    pub fn check_duplicates(&self) -> Result<(), OidcError> {
        match self.duplicate() {
            None => Ok(()),
            Some(_) => Err(OidcError::invalid_request("a parameter occurs twice")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_occurs_twice_has_no_value_and_is_told() {
        let params = Params::parse(b"a=1&b=2&a=3&empty=&resource=x&resource=y");
        assert_eq!((params.get("a"), params.get("b")), (None, Some("2")));
        assert_eq!(params.get("empty"), None);
        assert_eq!(params.all("resource"), ["x", "y"]);
        assert_eq!(params.duplicate(), Some("a"));
        let fine = Params::parse(b"resource=x&resource=y&a=&a=1");
        assert_eq!((fine.duplicate(), fine.get("a")), (None, Some("1")));
    }

    #[test]
    fn the_body_and_the_query_are_one_list() {
        let mut params = Params::parse(b"code=1");
        params.add(b"code=2&state=s");
        assert_eq!(params.duplicate(), Some("code"));
        assert_eq!(params.get("state"), Some("s"));
        assert_eq!(Params::parse(params.encode().as_bytes()), params);
    }
}
