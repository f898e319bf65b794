//! Access tokens: random ones, or JWTs for clients whose metadata wants them (RFC 9068).
//!
//! Invariants
//! - Both are in the store, by their digest. A JWT ends at `/userinfo` and `/introspect` when its
//!   grant does, and another text with the same claims is no token.
//! - A JWT has `typ` `at+jwt`, so that it passes for no ID token.
//! - Introspection tells the audiences and the id that the JWT tells.

use jiff::Timestamp;
use serde_json::{Map, Value};
use uuid::Uuid;
use zeroize::Zeroizing;

use super::{Provider, no_random, offered_algorithm, written};
use crate::{
    OidcError,
    client::ClientMetadata,
    grant::AccessDetails,
    store::{AccessToken, Digest, random_token},
};

/// The type of a JWT that is an access token.
const TYPE: &str = "at+jwt";

/// What a new access token is for.
pub(super) struct NewAccess<'a> {
    /// Says the form of the token; a machine that is no client has random ones.
    pub(super) client: Option<&'a ClientMetadata>,
    pub(super) client_id: &'a str,
    pub(super) subject: &'a str,
    /// When the person confirmed, in seconds.
    pub(super) auth_time: Option<i64>,
    pub(super) details: AccessDetails,
    pub(super) expires_at: Timestamp,
}

impl Provider {
    /// Makes the token, and what is stored of it.
    pub(super) async fn new_access(
        &self,
        wanted: NewAccess<'_>,
        now: Timestamp,
    ) -> Result<(Zeroizing<String>, AccessToken), OidcError> {
        let wish = wanted
            .client
            .and_then(|client| client.access_token_signed_response_alg.as_deref());
        let mut details = wanted.details.clone();
        let token = match wish {
            None => random_token().map_err(no_random)?,
            Some(wish) => {
                details.id = Some(Uuid::new_v4().simple().to_string());
                // Without a resource the token is for what is asked with it here.
                details.told_audiences = if details.resources.is_empty() {
                    vec![self.settings.issuer.clone()]
                } else {
                    details.resources.clone()
                };
                let claims = self.access_claims(&wanted, &details, now);
                let algorithm = offered_algorithm(wish, &self.keys);
                Zeroizing::new(self.sign_as(algorithm, TYPE, &claims).await?)
            }
        };
        let stored = AccessToken {
            digest: Digest::of(&token),
            client_id: wanted.client_id.to_owned(),
            issued_at: now,
            expires_at: wanted.expires_at,
            details: serde_json::to_string(&details).map_err(written)?,
        };
        Ok((token, stored))
    }

    /// RFC 9068, section 2.2.
    fn access_claims(
        &self,
        wanted: &NewAccess<'_>,
        details: &AccessDetails,
        now: Timestamp,
    ) -> Map<String, Value> {
        let mut claims = Map::new();
        let mut put = |name: &str, value: Value| {
            claims.insert(name.to_owned(), value);
        };
        put("iss", self.settings.issuer.as_str().into());
        put("sub", wanted.subject.into());
        put("client_id", wanted.client_id.into());
        match details.told_audiences.as_slice() {
            [one] => put("aud", one.as_str().into()),
            several => put("aud", several.into()),
        }
        put("iat", now.as_second().into());
        put("exp", wanted.expires_at.as_second().into());
        put("jti", details.id.as_deref().into());
        if !details.scopes.is_empty() {
            put("scope", details.scopes.join(" ").into());
        }
        if let Some(time) = wanted.auth_time {
            put("auth_time", time.into());
        }
        if let Some(act) = &details.act {
            put("act", act.clone());
        }
        claims
    }
}
