//! Parses a token of another issuer and verifies its signature. Callers evaluate the claims.
//!
//! Invariants
//! - The bytes that are parsed are the bytes whose signature is checked; nothing is serialized
//!   again.
//! - The token chooses neither key type nor algorithm: the caller must allow its `alg`, and a key
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

use super::fetch::{KeySet, PublicKey};

/// A parsed token, not verified yet.
#[derive(Clone)]
pub struct ParsedToken {
    /// The signed text: the first two parts with the dot between them.
    message: String,
    signature: String,
    /// `None` for an algorithm that JOSE defines and this code does not verify.
    pub algorithm: Option<Algorithm>,
    pub kid: Kid,
    pub typ: Typ,
    /// The header has a `crit` entry, which always demands something unsupported.
    critical: bool,
    pub claims: TokenClaims,
}

/// Leaves out the signature, which is a credential.
impl fmt::Debug for ParsedToken {
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
    NotAString,
    Text(String),
}

/// The `typ` of the header, which says what kind of token it is (RFC 8725, 3.11).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Typ {
    Absent,
    /// Present, but not a string.
    NotAString,
    /// In lower case, without the `application/` that may stand before it (RFC 7515, 4.1.9).
    Text(String),
}

/// Why a text is not a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a signed token: {0}")]
pub struct MalformedToken(&'static str);

/// The result of verifying a signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignatureCheck {
    Invalid,
    Valid,
    /// The issuer's keys could not be fetched.
    NoKeys,
    /// No key of the set fits, or the token demands something unsupported.
    NoMatchingKey,
}

impl ParsedToken {
    pub fn read(text: &str) -> Result<Self, MalformedToken> {
        let mut parts = text.split('.');
        let (Some(header), Some(payload), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(MalformedToken("it has not three parts"));
        };
        let header_map =
            decode_object(header).ok_or(MalformedToken("its header is not a JSON object"))?;
        let claims =
            decode_object(payload).ok_or(MalformedToken("its payload is not a JSON object"))?;
        if URL_SAFE_NO_PAD.decode(signature).is_err() {
            return Err(MalformedToken("its signature is not base64url"));
        }
        let algorithm = (header_map.get("alg").and_then(Value::as_str))
            .and_then(known_algorithm)
            .ok_or(MalformedToken("its algorithm is unknown"))?;
        let kid = match header_map.get("kid") {
            None => Kid::Absent,
            Some(Value::String(kid)) => Kid::Text(kid.clone()),
            Some(_) => Kid::NotAString,
        };
        let typ = match header_map.get("typ") {
            None => Typ::Absent,
            Some(Value::String(typ)) => Typ::read(typ),
            Some(_) => Typ::NotAString,
        };
        Ok(Self {
            message: format!("{header}.{payload}"),
            signature: signature.to_owned(),
            algorithm,
            kid,
            typ,
            critical: header_map.contains_key("crit"),
            claims: TokenClaims(claims),
        })
    }

    pub fn kid(&self) -> Option<&str> {
        match &self.kid {
            Kid::Text(kid) => Some(kid),
            Kid::Absent | Kid::NotAString => None,
        }
    }

    /// Whether `set` is recent enough for this token: it contains the key that the token names, or
    /// if none is named, one that verifies it.
    pub fn can_be_checked_with(&self, set: &KeySet) -> bool {
        match &self.kid {
            Kid::Absent => self.signature(set) == SignatureCheck::Valid,
            Kid::NotAString => true,
            Kid::Text(kid) => set.contains(kid),
        }
    }

    /// Verifies the signature with the keys of one set.
    pub fn signature(&self, set: &KeySet) -> SignatureCheck {
        self.signature_by(|algorithm| set.candidates(self.kid(), algorithm))
    }

    /// The same, where a key without an id counts as one that the token may name. For a set that
    /// belongs to one client: such sets often give no ids, and name the key in their tokens.
    pub fn signature_by_owner(&self, set: &KeySet) -> SignatureCheck {
        self.signature_by(|algorithm| {
            set.candidates(None, algorithm).filter(|key| {
                let kid = key.kid.as_deref();
                self.kid() == kid || self.kid().is_none() || kid.is_none()
            })
        })
    }

    fn signature_by<'a, K: Iterator<Item = &'a PublicKey>>(
        &'a self,
        candidates: impl FnOnce(Algorithm) -> K,
    ) -> SignatureCheck {
        let Some(algorithm) = self.algorithm else {
            return SignatureCheck::Invalid;
        };
        if self.critical || self.kid == Kid::NotAString {
            return SignatureCheck::NoMatchingKey;
        }
        let mut matching_keys = candidates(algorithm).peekable();
        if matching_keys.peek().is_none() {
            return SignatureCheck::NoMatchingKey;
        }
        let valid = matching_keys.any(|key| {
            let message = self.message.as_bytes();
            jsonwebtoken::crypto::verify(&self.signature, message, &key.key, algorithm)
                .unwrap_or(false)
        });
        if valid {
            SignatureCheck::Valid
        } else {
            SignatureCheck::Invalid
        }
    }
}

impl Typ {
    fn read(text: &str) -> Self {
        let text = text.to_ascii_lowercase();
        Self::Text(match text.strip_prefix("application/") {
            Some(short) => short.to_owned(),
            None => text,
        })
    }

    /// Whether it is absent, `JWT`, or this kind, which is in lower case.
    pub fn is_plain_or(&self, kind: &str) -> bool {
        match self {
            Self::Absent => true,
            Self::NotAString => false,
            Self::Text(typ) => typ == "jwt" || typ == kind,
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
pub struct TokenClaims(Map<String, Value>);

/// A time claim: seconds since 1970 (RFC 7519).
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum TimeClaim {
    Absent,
    At(f64),
    /// Present, but not a number.
    NotANumber,
}

impl TokenClaims {
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

    pub fn time(&self, name: &str) -> TimeClaim {
        match self.0.get(name) {
            None => TimeClaim::Absent,
            Some(Value::Number(number)) => {
                number.as_f64().map_or(TimeClaim::NotANumber, TimeClaim::At)
            }
            Some(_) => TimeClaim::NotANumber,
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

    /// All claims by their names.
    pub fn all(&self) -> &Map<String, Value> {
        &self.0
    }

    /// A claim by its name, or by a JSON pointer if the name begins with a slash.
    pub fn find(&self, name: &str) -> Option<&Value> {
        let Some(pointer) = name.strip_prefix('/') else {
            return self.0.get(name);
        };
        let mut parts = pointer
            .split('/')
            .map(|component| component.replace("~1", "/").replace("~0", "~"));
        let first = self.0.get(&parts.next()?)?;
        parts.try_fold(first, |value, component| match value {
            Value::Object(map) => map.get(&component),
            Value::Array(list) => list.get(array_index(&component)?),
            _ => None,
        })
    }
}

/// An array index in the form of RFC 6901: only digits, without leading zeros.
fn array_index(component: &str) -> Option<usize> {
    let digits = component.bytes().all(|b| b.is_ascii_digit());
    let canonical = digits && (component == "0" || !component.starts_with('0'));
    component.parse().ok().filter(|_| canonical)
}

fn decode_object(component: &str) -> Option<Map<String, Value>> {
    let bytes = URL_SAFE_NO_PAD.decode(component).ok()?;
    serde_json::from_slice::<UniqueNames>(&bytes)
        .ok()
        .map(|map| map.0)
}

/// A JSON object without duplicate names.
struct UniqueNames(Map<String, Value>);

impl<'de> Deserialize<'de> for UniqueNames {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct UniqueNamesVisitor;

        impl<'de> Visitor<'de> for UniqueNamesVisitor {
            type Value = UniqueNames;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<UniqueNames, A::Error> {
                let mut map = Map::new();
                while let Some((name, value)) = access.next_entry::<String, Value>()? {
                    if map.insert(name, value).is_some() {
                        return Err(A::Error::custom("a name occurs twice"));
                    }
                }
                Ok(UniqueNames(map))
            }
        }

        deserializer.deserialize_map(UniqueNamesVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(header: &str, payload: &str) -> Result<ParsedToken, MalformedToken> {
        let component = |text: &str| URL_SAFE_NO_PAD.encode(text);
        ParsedToken::read(&format!(
            "{}.{}.{}",
            component(header),
            component(payload),
            component("s")
        ))
    }

    #[test]
    fn only_three_parts_of_clean_base64url_json_are_read() {
        assert!(token(r#"{"alg":"RS256"}"#, "{}").is_ok());
        for text in ["", "a.b", "a.b.c", "a.b.c.d", "e30=.e30=.c2c="] {
            assert!(ParsedToken::read(text).is_err(), "{text}");
        }
        assert!(token(r#"{"alg":"XX"}"#, "{}").is_err());
        assert!(token("{}", "{}").is_err());
        assert!(token("[]", "{}").is_err());
        assert!(token(r#"{"alg":"RS256"}"#, r#"{"sub":"a","sub":"b"}"#).is_err());
        assert!(token(r#"{"alg":"RS256","alg":"none"}"#, "{}").is_err());
    }

    /// To serde_json's optional features such an object is not what it looks like.
    #[test]
    fn an_object_is_what_stands_in_the_token() {
        for name in ["RawValue", "Number"] {
            let odd = format!(r#"{{"$serde_json::private::{name}":"1"}}"#);
            let payload = format!(r#"{{"sub":{odd},"aud":"a"}}"#);
            let claims = token(r#"{"alg":"RS256"}"#, &payload).unwrap().claims;
            assert_eq!(claims.text("sub"), None);
            assert_eq!(
                serde_json::to_string(claims.all()["sub"].as_object().unwrap()).unwrap(),
                odd
            );
            assert!(serde_json::from_str::<Value>(&odd).unwrap().is_object());
        }
    }

    #[test]
    fn symmetric_and_missing_algorithms_verify_nothing() {
        for alg in ["none", "HS256", "ES512"] {
            let token = token(&format!(r#"{{"alg":"{alg}"}}"#), "{}").unwrap();
            assert_eq!(token.algorithm, None);
            assert_eq!(token.signature(&KeySet::default()), SignatureCheck::Invalid);
        }
    }

    #[test]
    fn the_kind_of_a_token_is_read_as_a_media_type() {
        let typ = |typ: &str| {
            let header = format!(r#"{{"alg":"RS256","typ":{typ}}}"#);
            token(&header, "{}").unwrap().typ
        };
        assert_eq!(typ(r#""application/AT+JWT""#), Typ::Text("at+jwt".into()));
        assert!(typ(r#""JWT""#).is_plain_or("at+jwt"));
        assert!(typ(r#""at+jwt""#).is_plain_or("at+jwt"));
        assert!(!typ(r#""at+jwt""#).is_plain_or("logout+jwt"));
        assert_eq!(typ("7"), Typ::NotAString);
        assert!(!Typ::NotAString.is_plain_or("at+jwt"));
        let absent = token(r#"{"alg":"RS256"}"#, "{}").unwrap().typ;
        assert!(absent.is_plain_or("at+jwt"));
    }

    #[test]
    fn claims_are_found_by_exact_name_or_pointer() {
        let payload = r#"{"Sub":"b","sub":"a","kubernetes.io":{"namespace":"ci","list":[1,2]},"aud":["x",1]}"#;
        let claims = token(r#"{"alg":"RS256"}"#, payload).unwrap().claims;
        assert_eq!(claims.text("sub"), Some("a"));
        assert_eq!(claims.text("azp"), Some(""));
        assert_eq!(claims.find("/kubernetes.io/namespace"), Some(&"ci".into()));
        assert_eq!(claims.find("/kubernetes.io/list/1"), Some(&2.into()));
        assert_eq!(claims.find("/kubernetes.io/none"), None);
        assert_eq!(claims.find("/kubernetes.io/list/01"), None);
        assert_eq!(claims.find("/kubernetes.io/list/+1"), None);
        assert_eq!(claims.audiences(), None);
    }
}
