//! Request objects: an authorization request as a signed token (OpenID Connect Core, section 6; RFC
//! 9101), by value (`request`) or at an address of the client (`request_uri`).
//!
//! Invariants
//! - Only what the client signed with RS256 or ES256 counts. `none` and everything else is refused.
//! - An object is fetched only from an address that the client registered.
//! - What stands in the object replaces the parameter of the same name. `client_id` and
//!   `response_type` must be equal in both places, `request` and `request_uri` must not be in it.
//! - An object is for this server and from this client, if it says so: `iss` is the client, `aud`
//!   contains our issuer. One whose `sub` is the client could be played as its assertion, and is
//!   refused (RFC 9101, section 10.8).

use std::time::Instant;

use jiff::Timestamp;
use jsonwebtoken::Algorithm;
use serde_json::Value;
use tailbone_keys::jwks::{
    fetch::name,
    verify::{MalformedToken, ParsedToken, TimeClaim},
};
use url::form_urlencoded;

use crate::{
    client_keys::{BadClientKeys, ClientKeys, SignatureProblem},
    fetch::{BadUrl, Content, FetchError, FetchUrl, Fetched, GuardedClient, KeyCache, Wanted},
};

/// For discovery (`request_object_signing_alg_values_supported`), which must not leave it out.
pub const SIGNING_ALGORITHMS: [Algorithm; 2] = [Algorithm::RS256, Algorithm::ES256];

const TYP: &str = "oauth-authz-req+jwt";

/// The largest object, by value or by reference.
pub const MAX_BYTES: usize = 32 << 10;

/// The longest `request_uri` (OpenID Connect Core, section 6.2).
const MAX_REQUEST_URI_BYTES: usize = 512;

/// How far the clock of a client may be from ours, in seconds.
const LEEWAY: f64 = 60.0;

/// Claims that are about the token, not parameters of the request.
const ABOUT_THE_TOKEN: [&str; 7] = ["aud", "exp", "iat", "iss", "jti", "nbf", "sub"];

/// Why a request object does not count.
#[derive(Debug, thiserror::Error)]
pub enum RequestObjectError {
    #[error("the request object is signed with another algorithm than {0}")]
    Algorithm(String),
    #[error("the request object is not for this server")]
    Audience,
    #[error("the request object has ended, or begins later")]
    Expired,
    #[error("request_uri cannot be fetched: {0}")]
    Fetch(#[from] FetchError),
    #[error("the request object is not from this client")]
    Issuer,
    #[error("{0}")]
    Keys(#[from] BadClientKeys),
    #[error("the request object is {0}")]
    Malformed(#[from] MalformedToken),
    #[error("{0} in the request object differs from the parameter")]
    Mismatch(&'static str),
    #[error("a request object must not contain {0}")]
    Nested(&'static str),
    #[error("request_uri is not registered for this client")]
    NotRegistered,
    #[error("{0}")]
    Signature(#[from] SignatureProblem),
    #[error("the request object is larger than {MAX_BYTES} bytes")]
    TooLarge,
    #[error("the type of the request object is that of another kind of token")]
    Typ,
    #[error("request_uri is no address: {0}")]
    Url(#[from] BadUrl),
}

impl RequestObjectError {
    /// The code of OpenID Connect Core, section 3.1.2.6.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Fetch(_) | Self::NotRegistered | Self::Url(_) => "invalid_request_uri",
            _ => "invalid_request_object",
        }
    }
}

/// The client whose request it is.
#[derive(Debug, Clone, Copy)]
pub struct Requester<'a> {
    pub client_id: &'a str,
    /// `request_object_signing_alg`, if it has one.
    pub algorithm: Option<Algorithm>,
    /// `request_uris`
    pub request_uris: &'a [String],
    pub keys: &'a ClientKeys,
}

/// Whether a client may register the address of an object.
pub fn check_uri(request_uri: &str) -> Result<FetchUrl, BadUrl> {
    if request_uri.len() > MAX_REQUEST_URI_BYTES {
        return Err(BadUrl::TooLong);
    }
    FetchUrl::parse(request_uri)
}

/// Fetches the object at a `request_uri`.
pub async fn fetch(
    client: &GuardedClient,
    request_uri: &str,
    requester: &Requester<'_>,
) -> Result<String, RequestObjectError> {
    let url = check_uri(request_uri)?.without_fragment();
    // A fragment is the hash of a version of the object (section 6.2), which clients change.
    let is_registered = (requester.request_uris.iter())
        .filter_map(|registered| FetchUrl::parse(registered).ok())
        .any(|registered| registered.without_fragment() == url);
    if !is_registered {
        return Err(RequestObjectError::NotRegistered);
    }
    let wanted = Wanted {
        url: &url,
        content: Content::Jwt,
        max_bytes: MAX_BYTES,
        etag: None,
    };
    match client.get(wanted).await? {
        Fetched::New { body, .. } => {
            let text = String::from_utf8_lossy(&body);
            Ok(text.trim().to_owned())
        }
        Fetched::Unchanged { .. } => Err(FetchError::Redirect.into()),
    }
}

/// The parameters that a client signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestObject(Vec<(String, String)>);

impl RequestObject {
    /// Reads and verifies an object. `issuer` is ours, `now` is for the cache of keys.
    pub async fn verify(
        text: &str,
        requester: &Requester<'_>,
        cache: &KeyCache,
        issuer: &str,
        at: Timestamp,
        now: Instant,
    ) -> Result<Self, RequestObjectError> {
        let token = Self::check(text, requester, issuer, at)?;
        requester.keys.verify(&token, cache, now).await?;
        Ok(Self::parameters_of(&token))
    }

    /// Everything but the signature.
    fn check(
        text: &str,
        requester: &Requester<'_>,
        issuer: &str,
        at: Timestamp,
    ) -> Result<ParsedToken, RequestObjectError> {
        if text.len() > MAX_BYTES {
            return Err(RequestObjectError::TooLarge);
        }
        let token = ParsedToken::read(text)?;
        if !token.typ.is_plain_or(TYP) {
            return Err(RequestObjectError::Typ);
        }
        let fits = |algorithm: &Algorithm| {
            SIGNING_ALGORITHMS.contains(algorithm)
                && requester
                    .algorithm
                    .is_none_or(|wanted| wanted == *algorithm)
        };
        if !token.algorithm.as_ref().is_some_and(fits) {
            let names = SIGNING_ALGORITHMS.map(name).join(" or ");
            let wanted = requester.algorithm.map(|wanted| name(wanted).to_owned());
            return Err(RequestObjectError::Algorithm(wanted.unwrap_or(names)));
        }
        let claims = &token.claims;
        for nested in ["request", "request_uri"] {
            if claims.all().contains_key(nested) {
                return Err(RequestObjectError::Nested(nested));
            }
        }
        let is_from_another =
            |text: Option<&str>| text.is_none_or(|text| text != requester.client_id);
        if claims.all().contains_key("iss") && is_from_another(claims.text("iss")) {
            return Err(RequestObjectError::Issuer);
        }
        if claims.text("sub") == Some(requester.client_id) {
            return Err(RequestObjectError::Nested("the client as its subject"));
        }
        let for_us = claims.audiences().is_some_and(|all| all.contains(&issuer));
        if claims.all().contains_key("aud") && !for_us {
            return Err(RequestObjectError::Audience);
        }
        check_times(&token, at)?;
        Ok(token)
    }

    fn parameters_of(token: &ParsedToken) -> Self {
        let claims = token.claims.all().iter();
        let parameters = claims.filter(|(name, _)| !ABOUT_THE_TOKEN.contains(&name.as_str()));
        Self(
            parameters
                .flat_map(|(name, value)| {
                    let values = texts(value).into_iter();
                    values.map(|value| (name.clone(), value))
                })
                .collect(),
        )
    }

    pub fn parameters(&self) -> &[(String, String)] {
        &self.0
    }

    /// The request with the parameters of the object in the place of its own, encoded as a form.
    pub fn merged(&self, request: &[u8]) -> Result<String, RequestObjectError> {
        let outside: Vec<_> = form_urlencoded::parse(request)
            .filter(|(_, value)| !value.is_empty())
            .collect();
        let inside = |wanted: &str| self.0.iter().find(|(name, _)| name == wanted);
        for must_equal in ["client_id", "response_type"] {
            let of_request = outside.iter().find(|(name, _)| name == must_equal);
            if let (Some((_, of_object)), Some((_, of_request))) = (inside(must_equal), of_request)
                && of_object != of_request
            {
                return Err(RequestObjectError::Mismatch(must_equal));
            }
        }
        let mut merged = form_urlencoded::Serializer::new(String::new());
        for (name, value) in &outside {
            let is_replaced = inside(name).is_some();
            if !is_replaced && name != "request" && name != "request_uri" {
                merged.append_pair(name, value);
            }
        }
        for (name, value) in &self.0 {
            merged.append_pair(name, value);
        }
        Ok(merged.finish())
    }
}

/// The values of a parameter, in the spelling of a query. Every JSON value has one, so that nothing
/// that the client signed is silently left out; what reads the parameter judges it.
fn texts(value: &Value) -> Vec<String> {
    match value {
        Value::Null => Vec::new(),
        Value::String(text) => vec![text.clone()],
        Value::Array(values) if values.iter().all(Value::is_string) => values
            .iter()
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect(),
        other => vec![other.to_string()],
    }
}

fn check_times(token: &ParsedToken, at: Timestamp) -> Result<(), RequestObjectError> {
    #[allow(clippy::cast_precision_loss)]
    let at = at.as_second() as f64;
    let has_ended = match token.claims.time("exp") {
        TimeClaim::Absent => false,
        TimeClaim::At(exp) => exp + LEEWAY <= at,
        TimeClaim::NotANumber => true,
    };
    let begins_later = ["nbf", "iat"]
        .iter()
        .any(|name| match token.claims.time(name) {
            TimeClaim::Absent => false,
            TimeClaim::At(from) => from > at + LEEWAY,
            TimeClaim::NotANumber => true,
        });
    if has_ended || begins_later {
        return Err(RequestObjectError::Expired);
    }
    Ok(())
}

/// For the fuzz targets alone.
#[doc(hidden)]
pub mod fuzzing {
    use tailbone_keys::jwks::{fetch::KeySet, verify::SignatureCheck};

    use super::*;

    /// [`RequestObject::verify`] with the keys at hand.
    pub fn verify(
        text: &str,
        client_id: &str,
        keys: &KeySet,
        issuer: &str,
        at: Timestamp,
    ) -> Result<RequestObject, RequestObjectError> {
        let requester = Requester {
            client_id,
            algorithm: None,
            request_uris: &[],
            keys: &ClientKeys::None,
        };
        let token = RequestObject::check(text, &requester, issuer, at)?;
        match token.signature_by_owner(keys) {
            SignatureCheck::Valid => Ok(RequestObject::parameters_of(&token)),
            _ => Err(SignatureProblem::Invalid.into()),
        }
    }
}

#[cfg(test)]
mod tests;
