//! The JWKS document: `{"keys":[…]}` as verifiers fetch it, and as other programs may have written
//! it.
//!
//! Invariants
//! - Keys of others, unknown members, members beside `keys` and the order of `keys` survive a
//!   rewrite.
//! - Written compact, members in alphabetical order, as the original did.
//! - Bytes that are not a JWKS are [`Unreadable`] and never treated as an empty document. A
//!   document that does not exist is told apart elsewhere (`Option<Versioned>`), so missing, empty
//!   and unreadable stay three different things.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Map, Value};

use crate::{KeyId, PublicJwk};

/// Size limit in bytes of a document, read or written.
pub const MAX_DOCUMENT: usize = 1024 * 1024;

/// A JWK set.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Document {
    keys: Vec<Value>,
    /// Members beside `keys`.
    other_members: Map<String, Value>,
}

/// Why bytes are not a JWKS.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    #[error("its member `keys` is not a list of objects")]
    Keys,
    #[error("it has no member `keys`")]
    NoKeys,
    #[error("it is not JSON ({0})")]
    NotJson(String),
    #[error("it is JSON, but not an object")]
    NotObject,
    #[error("it is larger than {MAX_DOCUMENT} bytes")]
    TooLarge,
}

/// The document holds another key under this id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the JWKS holds another key under the id {0}")]
pub struct KidTaken(pub KeyId);

impl Document {
    pub fn parse(bytes: &[u8]) -> Result<Self, Unreadable> {
        if bytes.len() > MAX_DOCUMENT {
            return Err(Unreadable::TooLarge);
        }
        let value: Value = serde_json::from_slice(bytes).map_err(|error| {
            Unreadable::NotJson(format!("line {}, column {}", error.line(), error.column()))
        })?;
        let Value::Object(mut other_members) = value else {
            return Err(Unreadable::NotObject);
        };
        match other_members.remove("keys") {
            None => Err(Unreadable::NoKeys),
            Some(Value::Array(keys)) if keys.iter().all(Value::is_object) => Ok(Self {
                keys,
                other_members,
            }),
            Some(_) => Err(Unreadable::Keys),
        }
    }

    /// The bytes to publish.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut whole = self.other_members.clone();
        whole.insert("keys".to_owned(), Value::Array(self.keys.clone()));
        sorted(Value::Object(whole)).to_string().into_bytes()
    }

    /// All entries, in order.
    pub fn keys(&self) -> &[Value] {
        &self.keys
    }

    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The ids in order; entries without one are skipped.
    pub fn kids(&self) -> impl Iterator<Item = &str> {
        self.keys.iter().filter_map(kid)
    }

    /// The entry of that id.
    pub fn find(&self, id: &str) -> Option<&Value> {
        self.keys.iter().find(|key| kid(key) == Some(id))
    }

    /// True if the document holds this very key, not only its id.
    pub fn contains(&self, key: &PublicJwk) -> bool {
        self.find(key.kid.as_str())
            .is_some_and(|value| key.same_key(value))
    }

    /// Adds a key at the end. One that is in the document already stays as and where it is. Returns
    /// whether anything changed.
    pub fn add(&mut self, key: &PublicJwk) -> Result<bool, KidTaken> {
        match self.find(key.kid.as_str()) {
            Some(value) if key.same_key(value) => Ok(false),
            Some(_) => Err(KidTaken(key.kid.clone())),
            None => {
                self.keys.push(key.to_value());
                Ok(true)
            }
        }
    }

    /// Removes every entry with that id. Returns whether there was one.
    pub fn remove(&mut self, id: &str) -> bool {
        let before = self.keys.len();
        self.keys.retain(|key| kid(key) != Some(id));
        self.keys.len() != before
    }
}

fn kid(key: &Value) -> Option<&str> {
    key.get("kid").and_then(Value::as_str)
}

/// Length in bits of an RSA key's modulus; 0 for other keys.
pub(super) fn modulus_bits(jwk: &Value) -> u32 {
    let member = |name| jwk.get(name).and_then(Value::as_str);
    let modulus = member("n")
        .filter(|_| member("kty") == Some("RSA"))
        .and_then(|n| URL_SAFE_NO_PAD.decode(n).ok());
    let Some(modulus) = modulus else {
        return 0;
    };
    let zeros = modulus.iter().take_while(|byte| **byte == 0).count();
    let first = modulus.get(zeros).map_or(0, |byte| byte.leading_zeros());
    u32::try_from((modulus.len() - zeros) * 8).map_or(0, |bits| bits - first)
}

/// Sorts the members at every depth, whatever order serde_json was built to keep.
fn sorted(value: Value) -> Value {
    match value {
        Value::Array(items) => Value::Array(items.into_iter().map(sorted).collect()),
        Value::Object(members) => {
            let mut members: Vec<_> = members.into_iter().collect();
            members.sort_by(|a, b| a.0.cmp(&b.0));
            Value::Object(
                members
                    .into_iter()
                    .map(|(name, value)| (name, sorted(value)))
                    .collect(),
            )
        }
        plain => plain,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(kid: &str) -> PublicJwk {
        let json = format!(
            r#"{{"alg":"ES256","crv":"P-256","kid":"{kid}","kty":"EC","x":"AA","y":"AQ"}}"#
        );
        PublicJwk::from_json(json.as_bytes()).unwrap()
    }

    #[test]
    fn d01_what_is_not_a_jwks_is_never_an_empty_one() {
        type Expected = fn(&Unreadable) -> bool;
        let cases: [(&[u8], Expected); 9] = [
            (b"", |e| matches!(e, Unreadable::NotJson(_))),
            (b"<html>502</html>", |e| matches!(e, Unreadable::NotJson(_))),
            (br#"{"keys":[{"kid":"a""#, |e| {
                matches!(e, Unreadable::NotJson(_))
            }),
            (b"[]", |e| matches!(e, Unreadable::NotObject)),
            (b"null", |e| matches!(e, Unreadable::NotObject)),
            (b"{}", |e| matches!(e, Unreadable::NoKeys)),
            (br#"{"keys":{}}"#, |e| matches!(e, Unreadable::Keys)),
            (br#"{"keys":null}"#, |e| matches!(e, Unreadable::Keys)),
            (br#"{"keys":[1]}"#, |e| matches!(e, Unreadable::Keys)),
        ];
        for (bytes, expected) in cases {
            let error = Document::parse(bytes).unwrap_err();
            assert!(
                expected(&error),
                "{:?}: {error:?}",
                String::from_utf8_lossy(bytes)
            );
        }
        let huge = vec![b' '; MAX_DOCUMENT + 1];
        assert_eq!(Document::parse(&huge), Err(Unreadable::TooLarge));
        assert!(Document::parse(br#"{"keys":[]}"#).unwrap().is_empty());
    }

    #[test]
    fn d11_foreign_keys_and_members_survive_a_rewrite() {
        let foreign = r#"{"issuer":"x","keys":[{"kid":"no time","kty":"oct","x-odd":{"b":[1.5],"a":null}},{"kty":"RSA"}]}"#;
        let mut document = Document::parse(foreign.as_bytes()).unwrap();
        assert!(document.add(&key("tb-1")).unwrap());
        assert!(
            !document.add(&key("tb-1")).unwrap(),
            "adding twice changes nothing"
        );
        assert_eq!(
            String::from_utf8(document.to_bytes()).unwrap(),
            concat!(
                r#"{"issuer":"x","keys":[{"kid":"no time","kty":"oct","x-odd":{"a":null,"b":[1.5]}},{"kty":"RSA"},"#,
                r#"{"alg":"ES256","crv":"P-256","kid":"tb-1","kty":"EC","x":"AA","y":"AQ"}]}"#
            )
        );
        assert!(document.remove("tb-1"));
        assert!(!document.remove("tb-1"));
        assert_eq!(document, Document::parse(foreign.as_bytes()).unwrap());
    }

    /// Each is printed as it came, and is read again as the same number.
    #[test]
    fn numbers_of_others_survive_a_rewrite() {
        let numbers =
            "[4.143139993007743e-10,4.5814680009972443e-20,7.972877146661437e-10,0.1,-0.0]";
        let foreign = format!(r#"{{"keys":[],"x-odd":{numbers}}}"#);
        let read = Document::parse(foreign.as_bytes()).unwrap();
        let exact = |text: &str| text.parse::<f64>().unwrap();
        let wanted: Vec<f64> = numbers
            .trim_matches(['[', ']'])
            .split(',')
            .map(exact)
            .collect();
        assert_eq!(read.other_members["x-odd"], serde_json::json!(wanted));
        assert_eq!(Document::parse(&read.to_bytes()), Ok(read));
    }

    #[test]
    fn d08_a_taken_id_is_refused_not_overwritten() {
        let mut document = Document::parse(
            br#"{"keys":[{"crv":"P-256","kid":"tb-1","kty":"EC","x":"BB","y":"AQ"}]}"#,
        )
        .unwrap();
        assert!(document.add(&key("tb-1")).is_err());
        assert!(!document.contains(&key("tb-1")));
    }

    #[test]
    fn a_modulus_is_measured_in_bits() {
        let bits = |n: &[u8]| {
            modulus_bits(&serde_json::json!({"kty": "RSA", "n": URL_SAFE_NO_PAD.encode(n)}))
        };
        assert_eq!(bits(&[0x80, 0]), 16);
        assert_eq!(bits(&[0, 0x80, 0]), 16);
        assert_eq!(bits(&[0x01, 0]), 9);
        assert_eq!(bits(&[0, 0]), 0);
        assert_eq!(bits(&[]), 0);
        assert_eq!(
            modulus_bits(&serde_json::json!({"kty": "EC", "n": "gAA"})),
            0
        );
        assert_eq!(
            modulus_bits(&serde_json::json!({"kty": "RSA", "n": "!"})),
            0
        );
    }
}
