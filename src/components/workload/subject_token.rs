//! Reads a token that this issuer made, for an exchange.

use jiff::Timestamp;
use jsonwebtoken::{Algorithm, DecodingKey, Validation, jwk::Jwk};
use serde::Deserialize;

use super::access::TSIAM_CAPABILITY;
use crate::jwks::Document;

#[derive(Deserialize)]
struct Claims {
    exp: i64,
    nbf: i64,
    iss: String,
    #[serde(flatten)]
    others: serde_json::Map<String, serde_json::Value>,
}

/// The stable id of the node that the token was given to, if it is a valid token of this issuer.
pub(super) fn node(
    token: &str,
    published: &Document,
    issuer: &str,
    now: Timestamp,
) -> Option<String> {
    let header = jsonwebtoken::decode_header(token).ok()?;
    let key = published.find(header.kid.as_deref()?)?;
    // The key says which algorithm it is for; the token has no say in it.
    let algorithm: Algorithm = key.get("alg")?.as_str()?.parse().ok()?;
    let key: Jwk = serde_json::from_value(key.clone()).ok()?;
    let mut rules = Validation::new(algorithm);
    rules.required_spec_claims.clear();
    // Checked below, at a time that is an argument.
    rules.validate_exp = false;
    rules.validate_nbf = false;
    rules.validate_aud = false;
    let key = DecodingKey::from_jwk(&key).ok()?;
    let claims = jsonwebtoken::decode::<Claims>(token, &key, &rules)
        .ok()?
        .claims;
    let at = now.as_second();
    if claims.iss != issuer || claims.exp <= at || claims.nbf > at {
        return None;
    }
    let node = claims
        .others
        .get(TSIAM_CAPABILITY)?
        .get("nodeId")?
        .as_str()?;
    Some(node.to_owned())
}
