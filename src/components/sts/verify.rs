//! Parses a token and verifies its signature. [`super::policy`] evaluates the claims.
//!
//! Invariants
//! - The bytes that are parsed are the bytes whose signature is checked; nothing is serialized
//!   again.
//! - The token chooses neither key type nor algorithm: the policy must allow its `alg`, and a key
//!   is only used with the algorithms that were assigned to it when its set was read. Keys, URLs
//!   and certificates in the header are ignored.
//! - Claim names are compared exactly, and a duplicate name makes the token invalid: two parsers of
//!   the same token can never disagree about its subject.

use std::fmt;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::Algorithm;
use serde::{
    Deserialize,
    de::{Deserializer, Error as _, MapAccess, Visitor},
};
use serde_json::{Map, Value};

use crate::jwks::fetch::KeySet;

/// A parsed token, not verified yet.
#[derive(Clone)]
pub struct Token {
    /// The signed text: the first two parts with the dot between them.
    message: String,
    signature: String,
    /// `None` for an algorithm that JOSE defines and this code does not verify.
    pub algorithm: Option<Algorithm>,
    pub kid: Kid,
    /// The header has a `crit` entry, which always demands something unsupported.
    critical: bool,
    pub claims: Claims,
}

/// Leaves out the signature, which is a credential.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token")
            .field("algorithm", &self.algorithm)
            .field("kid", &self.kid)
            .finish_non_exhaustive()
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kid {
    Absent,
    /// Present, but not a string.
    Odd,
    Text(String),
}

/// Why a text is not a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a signed token: {0}")]
pub struct Unreadable(&'static str);

/// The result of verifying a signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signature {
    Bad,
    Good,
    /// The issuer's keys could not be fetched.
    NoKeys,
    /// No key of the set fits, or the token demands something unsupported.
    Unknown,
}

impl Token {
    pub fn read(text: &str) -> Result<Self, Unreadable> {
        let mut parts = text.split('.');
        let (Some(header), Some(payload), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(Unreadable("it has not three parts"));
        };
        let header_map = object(header).ok_or(Unreadable("its header is not a JSON object"))?;
        let claims = object(payload).ok_or(Unreadable("its payload is not a JSON object"))?;
        if URL_SAFE_NO_PAD.decode(signature).is_err() {
            return Err(Unreadable("its signature is not base64url"));
        }
        let algorithm = (header_map.get("alg").and_then(Value::as_str))
            .and_then(known_algorithm)
            .ok_or(Unreadable("its algorithm is unknown"))?;
        let kid = match header_map.get("kid") {
            None => Kid::Absent,
            Some(Value::String(kid)) => Kid::Text(kid.clone()),
            Some(_) => Kid::Odd,
        };
        Ok(Self {
            message: format!("{header}.{payload}"),
            signature: signature.to_owned(),
            algorithm,
            kid,
            critical: header_map.contains_key("crit"),
            claims: Claims(claims),
        })
    }

    pub fn kid(&self) -> Option<&str> {
        match &self.kid {
            Kid::Text(kid) => Some(kid),
            Kid::Absent | Kid::Odd => None,
        }
    }

    /// Whether `set` is recent enough for this token: it contains the key that the token names, or
    /// if none is named, one that verifies it.
    pub fn is_judged_by(&self, set: &KeySet) -> bool {
        match &self.kid {
            Kid::Absent => self.signature(set) == Signature::Good,
            Kid::Odd => true,
            Kid::Text(kid) => set.has(kid),
        }
    }

    /// Verifies the signature with the keys of one set.
    pub fn signature(&self, set: &KeySet) -> Signature {
        let Some(algorithm) = self.algorithm else {
            return Signature::Bad;
        };
        if self.critical || self.kid == Kid::Odd {
            return Signature::Unknown;
        }
        let mut fitting = set.fitting(self.kid(), algorithm).peekable();
        if fitting.peek().is_none() {
            return Signature::Unknown;
        }
        let good = fitting.any(|key| {
            let message = self.message.as_bytes();
            jsonwebtoken::crypto::verify(&self.signature, message, &key.key, algorithm)
                .unwrap_or(false)
        });
        if good {
            Signature::Good
        } else {
            Signature::Bad
        }
    }
}

/// `None`: JOSE does not define the algorithm. `Some(None)`: it does, but it is not supported here.
fn known_algorithm(name: &str) -> Option<Option<Algorithm>> {
    match name {
        "none" | "HS256" | "HS384" | "HS512" | "ES512" | "ES256K" => Some(None),
        "Ed25519" => Some(Some(Algorithm::EdDSA)),
        name => name.parse().ok().map(Some),
    }
}

/// A token's claims.
#[derive(Debug, Clone, Default)]
pub struct Claims(Map<String, Value>);

/// A time claim: seconds since 1970 (RFC 7519).
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum When {
    Absent,
    At(f64),
    /// Present, but not a number.
    Odd,
}

impl Claims {
    pub fn new(claims: Map<String, Value>) -> Self {
        Self(claims)
    }

    /// A string claim; empty if absent, `None` if it is not a string.
    pub fn text(&self, name: &str) -> Option<&str> {
        match self.0.get(name) {
            None => Some(""),
            Some(value) => value.as_str(),
        }
    }

    pub fn when(&self, name: &str) -> When {
        match self.0.get(name) {
            None => When::Absent,
            Some(Value::Number(number)) => number.as_f64().map_or(When::Odd, When::At),
            Some(_) => When::Odd,
        }
    }

    /// The audiences; `None` if `aud` is neither a string nor a list of strings.
    pub fn audiences(&self) -> Option<Vec<&str>> {
        match self.0.get("aud") {
            None => Some(Vec::new()),
            Some(Value::String(one)) => Some(vec![one]),
            Some(Value::Array(many)) => many.iter().map(Value::as_str).collect(),
            Some(_) => None,
        }
    }

    /// A claim by its name, or by a JSON pointer if the name begins with a slash.
    pub fn at(&self, name: &str) -> Option<&Value> {
        let Some(pointer) = name.strip_prefix('/') else {
            return self.0.get(name);
        };
        let mut parts = pointer
            .split('/')
            .map(|part| part.replace("~1", "/").replace("~0", "~"));
        let first = self.0.get(&parts.next()?)?;
        parts.try_fold(first, |value, part| match value {
            Value::Object(map) => map.get(&part),
            Value::Array(list) => list.get(index(&part)?),
            _ => None,
        })
    }
}

/// An array index in the form of RFC 6901: only digits, without leading zeros.
fn index(part: &str) -> Option<usize> {
    let digits = part.bytes().all(|b| b.is_ascii_digit());
    let plain = digits && (part == "0" || !part.starts_with('0'));
    part.parse().ok().filter(|_| plain)
}

fn object(part: &str) -> Option<Map<String, Value>> {
    let bytes = URL_SAFE_NO_PAD.decode(part).ok()?;
    serde_json::from_slice::<Distinct>(&bytes)
        .ok()
        .map(|map| map.0)
}

/// A JSON object without duplicate names.
struct Distinct(Map<String, Value>);

impl<'de> Deserialize<'de> for Distinct {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Names;

        impl<'de> Visitor<'de> for Names {
            type Value = Distinct;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Distinct, A::Error> {
                let mut map = Map::new();
                while let Some((name, value)) = access.next_entry::<String, Value>()? {
                    if map.insert(name, value).is_some() {
                        return Err(A::Error::custom("a name stands twice"));
                    }
                }
                Ok(Distinct(map))
            }
        }

        deserializer.deserialize_map(Names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(header: &str, payload: &str) -> Result<Token, Unreadable> {
        let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
        Token::read(&format!("{}.{}.{}", part(header), part(payload), part("s")))
    }

    #[test]
    fn only_three_parts_of_clean_base64url_json_are_read() {
        assert!(token(r#"{"alg":"RS256"}"#, "{}").is_ok());
        for text in ["", "a.b", "a.b.c", "a.b.c.d", "e30=.e30=.c2c="] {
            assert!(Token::read(text).is_err(), "{text}");
        }
        assert!(token(r#"{"alg":"XX"}"#, "{}").is_err());
        assert!(token("{}", "{}").is_err());
        assert!(token("[]", "{}").is_err());
        assert!(token(r#"{"alg":"RS256"}"#, r#"{"sub":"a","sub":"b"}"#).is_err());
        assert!(token(r#"{"alg":"RS256","alg":"none"}"#, "{}").is_err());
    }

    #[test]
    fn symmetric_and_missing_algorithms_verify_nothing() {
        for alg in ["none", "HS256", "ES512"] {
            let token = token(&format!(r#"{{"alg":"{alg}"}}"#), "{}").unwrap();
            assert_eq!(token.algorithm, None);
            assert_eq!(token.signature(&KeySet::default()), Signature::Bad);
        }
    }

    #[test]
    fn claims_are_found_by_exact_name_or_pointer() {
        let payload = r#"{"Sub":"b","sub":"a","kubernetes.io":{"namespace":"ci","list":[1,2]},"aud":["x",1]}"#;
        let claims = token(r#"{"alg":"RS256"}"#, payload).unwrap().claims;
        assert_eq!(claims.text("sub"), Some("a"));
        assert_eq!(claims.text("azp"), Some(""));
        assert_eq!(claims.at("/kubernetes.io/namespace"), Some(&"ci".into()));
        assert_eq!(claims.at("/kubernetes.io/list/1"), Some(&2.into()));
        assert_eq!(claims.at("/kubernetes.io/none"), None);
        assert_eq!(claims.at("/kubernetes.io/list/01"), None);
        assert_eq!(claims.at("/kubernetes.io/list/+1"), None);
        assert_eq!(claims.audiences(), None);
    }
}
