//! The token endpoint: what a request asks for, who sends it, and what the answer looks like.
//!
//! Invariants
//! - Errors are those of tsidp, in its order and its words, except where a standard names another
//!   code: `invalid_target` for resources (RFC 8707).
//! - A token is never for more than what was granted.

mod authentication;
mod request;

use serde::Serialize;
use serde_json::Value;

pub use authentication::{Credentials, Presented, Proven, prove};
pub use request::{
    ACCESS_TOKEN_TYPE, AUTHORIZATION_CODE, CLIENT_CREDENTIALS, Exchange, Offers, REFRESH_TOKEN,
    TOKEN_EXCHANGE, TokenRequest,
};

use crate::{OidcError, authorize, capability::Rules, grant::GrantDetails};

/// RFC 6749, section 5.1, with tsidp's members in tsidp's order.
#[derive(Serialize)]
pub struct TokenAnswer {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id_token: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub issued_token_type: Option<&'static str>,
    pub token_type: &'static str,
    pub access_token: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refresh_token: Option<String>,
    pub expires_in: i64,
    /// Where it is not what was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
}

impl std::fmt::Debug for TokenAnswer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TokenAnswer(hidden)")
    }
}

/// Whether the request that redeems a code is the one that the code was given for.
pub fn check_redemption(
    grant: &GrantDetails,
    redirect_uri: Option<&str>,
    verifier: Option<&str>,
) -> Result<(), OidcError> {
    if redirect_uri != Some(&grant.redirect_uri) {
        return Err(OidcError::invalid_request("redirect_uri mismatch"));
    }
    match (&grant.challenge, verifier) {
        (None, None) => Ok(()),
        (None, Some(_)) => Err(OidcError::invalid_request(
            "code_verifier without a code_challenge",
        )),
        (Some(_), None) => Err(OidcError::invalid_request("code_verifier is required")),
        (Some(challenge), Some(verifier)) if authorize::verify(challenge, verifier) => Ok(()),
        (Some(_), Some(_)) => Err(OidcError::invalid_grant("code verification failed")),
    }
}

/// The resources of an access token: those that the request names and policy allows, or else those
/// of the grant. `refused` has tsidp's words for this grant type. A grant without resources can
/// gain some, as in tsidp.
pub fn resources(
    grant: &GrantDetails,
    rules: &Rules,
    requested: &[String],
    refused: &'static str,
) -> Result<Vec<String>, OidcError> {
    let login = &grant.identity.login;
    if requested.is_empty() {
        // Those that policy has taken away since are gone.
        return Ok(rules.allowed(login, &grant.resources));
    }
    let target = |sentence: &'static str| OidcError::bad("invalid_target", sentence);
    let allowed = rules.allowed(login, requested);
    if allowed.is_empty() {
        return Err(target(refused));
    }
    let within = |one: &String| grant.resources.contains(one);
    if !grant.resources.is_empty() && !allowed.iter().all(within) {
        return Err(target("requested resource not in original grant"));
    }
    Ok(allowed)
}

/// The scopes of an exchanged token: those of the subject token that are asked for, or all.
pub fn narrowed(held: &[String], asked: Option<&str>) -> Result<Vec<String>, OidcError> {
    let Some(asked) = asked else {
        return Ok(held.to_vec());
    };
    let kept = |one: &&String| asked.split_whitespace().any(|word| word == *one);
    let scopes: Vec<String> = held.iter().filter(kept).cloned().collect();
    if scopes.is_empty() {
        let words = "the subject token has none of these scopes";
        return Err(OidcError::bad("invalid_scope", words));
    }
    Ok(scopes)
}

/// How many have acted, in an `act` claim.
pub fn actors(act: &Value) -> usize {
    std::iter::successors(Some(act), |act| act.get("act")).count()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::claims::Identity;

    const VERIFIER: &str = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
    const CHALLENGE: &str = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM";

    fn grant(challenge: Option<&str>, resources: &[&str]) -> GrantDetails {
        GrantDetails {
            identity: Identity {
                login: "alice@example.com".into(),
                ..Identity::default()
            },
            redirect_uri: "https://a/cb".into(),
            challenge: challenge.map(str::to_owned),
            resources: owned(resources),
            ..GrantDetails::default()
        }
    }

    fn owned(list: &[&str]) -> Vec<String> {
        list.iter().map(|one| (*one).to_owned()).collect()
    }

    #[test]
    fn a_code_is_redeemed_by_the_request_that_it_was_given_for() {
        let uri = Some("https://a/cb");
        let check = |challenge, uri, verifier| {
            check_redemption(&grant(challenge, &[]), uri, verifier)
                .map_err(|error| (error.code, error.description.into_owned()))
        };
        assert_eq!(check(None, uri, None), Ok(()));
        assert_eq!(check(Some(CHALLENGE), uri, Some(VERIFIER)), Ok(()));
        for (challenge, uri, verifier, code, words) in [
            (None, None, None, "invalid_request", "redirect_uri mismatch"),
            (
                None,
                Some("https://a/CB"),
                None,
                "invalid_request",
                "redirect_uri mismatch",
            ),
            (
                Some(CHALLENGE),
                uri,
                None,
                "invalid_request",
                "code_verifier is required",
            ),
            (
                Some(CHALLENGE),
                uri,
                Some(CHALLENGE),
                "invalid_grant",
                "code verification failed",
            ),
            (
                Some(CHALLENGE),
                uri,
                Some("short"),
                "invalid_grant",
                "code verification failed",
            ),
            (
                None,
                uri,
                Some(VERIFIER),
                "invalid_request",
                "code_verifier without a code_challenge",
            ),
        ] {
            assert_eq!(
                check(challenge, uri, verifier),
                Err((code, words.to_owned()))
            );
        }
    }

    #[test]
    fn scopes_are_narrowed_and_never_widened() {
        let held = owned(&["openid", "email"]);
        let of = |asked| narrowed(&held, asked).map_err(|error| error.code);
        assert_eq!(of(None), Ok(held.clone()));
        assert_eq!(of(Some("email")), Ok(owned(&["email"])));
        assert_eq!(of(Some("profile email openid")), Ok(held.clone()));
        for none in ["profile", "", "emai"] {
            assert_eq!(of(Some(none)), Err("invalid_scope"), "{none}");
        }
        let chain = json!({"sub": "a", "act": {"sub": "b", "act": {"sub": "c"}}});
        assert_eq!(actors(&chain), 3);
    }

    #[test]
    fn resources_are_narrowed_and_never_widened() {
        let all = ["https://a", "https://b", "https://denied"];
        let rules =
            json!([{"users": ["alice@example.com"], "resources": ["https://a", "https://b"]}]);
        let rules = Rules::parse(rules.as_array().unwrap()).unwrap();
        let of = |granted: &[&str], requested: &[&str]| {
            resources(
                &grant(None, granted),
                &rules,
                &owned(requested),
                "invalid resource",
            )
            .map_err(|error| (error.code, error.description.into_owned()))
        };
        assert_eq!(of(&[], &[]), Ok(vec![]));
        assert_eq!(of(&all, &[]), Ok(owned(&all[..2])));
        assert_eq!(of(&[], &all), Ok(owned(&all[..2])));
        assert_eq!(of(&all[..2], &["https://b"]), Ok(owned(&["https://b"])));
        let refused = |words: &str| Err(("invalid_target", words.to_owned()));
        assert_eq!(of(&[], &["https://denied"]), refused("invalid resource"));
        let outside = refused("requested resource not in original grant");
        assert_eq!(of(&["https://a"], &["https://b"]), outside);
    }
}
