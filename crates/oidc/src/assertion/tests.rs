use std::sync::Arc;

use serde_json::{Value, json};

use super::*;
use crate::{
    fetch::{CacheBounds, FetchSettings, GuardedClient, tests::*},
    signing::{TestKey, base64, set_of},
    store_tests::{World, after, now},
};

const ISSUER: &str = "https://idp.example";
const TOKEN_ENDPOINT: &str = "https://idp.example/token";
const NOW: i64 = 1_800_000_000;

fn expected() -> Expected<'static> {
    Expected {
        audiences: &[ISSUER, TOKEN_ENDPOINT],
        algorithm: None,
        at: Timestamp::from_second(NOW).unwrap(),
    }
}

/// As the suite makes them, with these members changed; `null` removes one.
fn claims(changes: Value) -> Value {
    let mut claims = json!({
        "iss": "app", "sub": "app", "aud": TOKEN_ENDPOINT, "jti": "j1",
        "nbf": NOW, "iat": NOW, "exp": NOW + 60,
    });
    for (name, value) in changes.as_object().unwrap() {
        if value.is_null() {
            claims.as_object_mut().unwrap().remove(name);
        } else {
            claims[name] = value.clone();
        }
    }
    claims
}

fn cache_without_fetches() -> KeyCache {
    let client = GuardedClient::new(&FetchSettings::default()).unwrap();
    KeyCache::new(Arc::new(client), CacheBounds::default())
}

/// Checks and verifies without a store.
async fn verified(
    assertion: &str,
    keys: &ClientKeys,
    cache: &KeyCache,
    expected: &Expected<'_>,
    now: Instant,
) -> Result<FirstUse, AssertionError> {
    let assertion = ClientAssertion::read(JWT_BEARER, assertion, None)?;
    let first_use = assertion.check(expected)?;
    keys.verify(&assertion.token, cache, now).await?;
    Ok(first_use)
}

/// `oidcc-server` of the Dynamic plan: RS256, keys in the metadata, none of them with a `kid`.
#[tokio::test]
async fn oidcc_server_with_private_key_jwt_and_inline_keys_without_kid() {
    let (key, other) = (TestKey::rs256(), TestKey::rs256());
    let keys = json!({"keys": [other.jwk(None), key.jwk(None)]});
    let keys = ClientKeys::of(Some(&keys), None).unwrap();
    let cache = cache_without_fetches();
    let check = async |assertion: &str| {
        verified(assertion, &keys, &cache, &expected(), Instant::now()).await
    };
    let good = key.sign(&claims(json!({})));
    assert_eq!(check(&good).await.unwrap().until.as_second(), NOW + 120);
    // A client may name its key although its set does not.
    let named = key.sign_with(&json!({"alg": "RS256", "kid": "x"}), &claims(json!({})));
    check(&named).await.unwrap();
    let stranger = TestKey::rs256().sign(&claims(json!({})));
    let error = check(&stranger).await.unwrap_err();
    assert_eq!(error.code(), "assertion_signature", "{error}");
    let (signed, signature) = good.rsplit_once('.').unwrap();
    let (_, signature_of_another) = named.rsplit_once('.').unwrap();
    assert_ne!(signature, signature_of_another);
    let changed = format!("{signed}.{signature_of_another}");
    assert!(check(&changed).await.is_err());
}

/// `oidcc-ensure-client-assertion-with-iss-aud-succeeds`: our issuer is an audience, too.
#[tokio::test]
async fn oidcc_ensure_client_assertion_with_iss_aud_succeeds() {
    let key = TestKey::es256();
    let keys = ClientKeys::of(Some(&set_of(key.jwk(None))), None).unwrap();
    let cache = cache_without_fetches();
    for (audience, is_taken) in [
        (json!(ISSUER), true),
        (json!([ISSUER]), true),
        (json!([ISSUER, TOKEN_ENDPOINT]), true),
        (json!([ISSUER, "https://other.example"]), false),
        (json!("https://idp.example/"), false),
        (json!("https://IDP.example"), false),
        (json!([]), false),
        (json!([1]), false),
        (Value::Null, false),
    ] {
        let assertion = key.sign(&claims(json!({ "aud": audience })));
        let outcome = verified(&assertion, &keys, &cache, &expected(), Instant::now()).await;
        assert_eq!(outcome.is_ok(), is_taken, "{audience}");
    }
}

/// `oidcc-registration-jwks-uri` and `oidcc-refresh-token-rp-key-rotation`: a new key under a new
/// `kid`, a minute later.
#[tokio::test]
async fn oidcc_refresh_token_rp_key_rotation() {
    let server = HostileServer::start().await;
    let (old, new) = (TestKey::rs256(), TestKey::rs256());
    server.answer(
        "/jwks",
        json_answer(&set_of(old.jwk(Some("old"))).to_string()),
    );
    let keys = ClientKeys::of(None, Some(server.url("/jwks").as_str())).unwrap();
    let cache = KeyCache::new(Arc::new(server.client()), CacheBounds::default());
    let begin = Instant::now();
    let check = async |key: &TestKey, kid: &str, seconds| {
        let assertion = key.sign_with(&json!({"alg": "RS256", "kid": kid}), &claims(json!({})));
        let now = begin + Duration::from_secs(seconds);
        verified(&assertion, &keys, &cache, &expected(), now).await
    };
    check(&old, "old", 0).await.unwrap();
    server.answer(
        "/jwks",
        json_answer(&set_of(new.jwk(Some("new"))).to_string()),
    );
    check(&new, "new", 60).await.unwrap();
    assert_eq!(server.count("/jwks"), 2);
    let error = check(&old, "old", 61).await.unwrap_err();
    assert!(matches!(
        error,
        AssertionError::Signature(SignatureProblem::NoMatchingKey)
    ));
}

#[tokio::test]
async fn keys_that_cannot_be_fetched_authenticate_nobody() {
    let server = HostileServer::start().await;
    let key = TestKey::es256();
    let keys = ClientKeys::of(None, Some(server.url("/none").as_str())).unwrap();
    let cache = KeyCache::new(Arc::new(server.client()), CacheBounds::default());
    let assertion = key.sign(&claims(json!({})));
    let error = verified(&assertion, &keys, &cache, &expected(), Instant::now()).await;
    let error = error.unwrap_err();
    assert_eq!(error.code(), "client_keys");
    assert!(!error.is_our_trouble());
    let (none, expected) = (ClientKeys::None, expected());
    let error = verified(&assertion, &none, &cache, &expected, Instant::now()).await;
    assert_eq!(error.unwrap_err().code(), "assertion_signature");
}

#[test]
fn an_assertion_is_short_of_life_and_has_an_id() {
    let key = TestKey::es256();
    let code = |changes: Value| {
        let assertion = key.sign(&claims(changes));
        let assertion = ClientAssertion::read(JWT_BEARER, &assertion, None).unwrap();
        match assertion.check(&expected()) {
            Ok(_) => "",
            Err(error) => error.code(),
        }
    };
    assert_eq!(code(json!({})), "");
    assert_eq!(code(json!({"iat": null, "nbf": null})), "");
    assert_eq!(code(json!({"exp": NOW - 59})), "", "within the leeway");
    assert_eq!(code(json!({"exp": NOW - 60})), "assertion_expired");
    assert_eq!(code(json!({"exp": NOW + 3600})), "");
    assert_eq!(code(json!({"exp": NOW + 3700})), "assertion_expired");
    assert_eq!(code(json!({"exp": 1e300})), "assertion_expired");
    assert_eq!(code(json!({"exp": null})), "assertion_claim");
    assert_eq!(code(json!({"exp": "soon"})), "assertion_claim");
    assert_eq!(code(json!({"nbf": NOW + 61})), "assertion_expired");
    assert_eq!(code(json!({"iat": NOW + 61})), "assertion_expired");
    assert_eq!(code(json!({"iat": "now"})), "assertion_claim");
    assert_eq!(code(json!({"jti": null})), "assertion_claim");
    assert_eq!(code(json!({"jti": ""})), "assertion_claim");
    assert_eq!(code(json!({"jti": 1})), "assertion_claim");
    assert_eq!(code(json!({"jti": "x".repeat(513)})), "assertion_claim");
}

#[test]
fn the_client_is_named_once() {
    let key = TestKey::es256();
    let own = key.sign(&claims(json!({})));
    let read = |client_id| ClientAssertion::read(JWT_BEARER, &own, client_id);
    assert_eq!(read(None).unwrap().client_id(), "app");
    assert_eq!(read(Some("app")).unwrap().client_id(), "app");
    let error = read(Some("other")).unwrap_err();
    assert!(matches!(error, AssertionError::ClientId));

    let foreign = key.sign(&claims(json!({"iss": "https://issuer.example"})));
    let error = ClientAssertion::read(JWT_BEARER, &foreign, None).unwrap_err();
    assert!(matches!(error, AssertionError::ClientId));
    let foreign = ClientAssertion::read(JWT_BEARER, &foreign, Some("app")).unwrap();
    assert_eq!(foreign.asserted_by(), AssertedBy::Issuer);
    // It is not taken for one of the client's own.
    assert!(foreign.check(&expected()).is_err());

    let saml = "urn:ietf:params:oauth:client-assertion-type:saml2-bearer";
    let error = ClientAssertion::read(saml, &own, None).unwrap_err();
    assert!(matches!(error, AssertionError::AssertionType));
    for broken in [
        "",
        "a.b",
        "a.b.c",
        &format!("{own}.x"),
        &"a".repeat(1 << 20),
    ] {
        assert!(ClientAssertion::read(JWT_BEARER, broken, None).is_err());
    }
    for missing in [json!({"iss": null}), json!({"sub": ""}), json!({"sub": 7})] {
        let assertion = key.sign(&claims(missing));
        assert!(ClientAssertion::read(JWT_BEARER, &assertion, None).is_err());
    }
}

#[tokio::test]
async fn no_algorithm_but_those_of_key_pairs_counts() {
    let key = TestKey::es256();
    let keys = ClientKeys::of(Some(&set_of(key.jwk(None))), None).unwrap();
    let cache = cache_without_fetches();
    let part = |value: &Value| base64(value.to_string().as_bytes());
    for (alg, signature) in [("none", ""), ("HS256", "c2ln"), ("none", "c2ln")] {
        let forged = format!(
            "{}.{}.{signature}",
            part(&json!({"alg": alg})),
            part(&claims(json!({})))
        );
        let error = verified(&forged, &keys, &cache, &expected(), Instant::now()).await;
        assert_eq!(error.unwrap_err().code(), "assertion_algorithm", "{alg}");
    }
    let own = key.sign(&claims(json!({})));
    let registered = Expected {
        algorithm: Some(Algorithm::RS256),
        ..expected()
    };
    let error = verified(&own, &keys, &cache, &registered, Instant::now()).await;
    assert_eq!(error.unwrap_err().code(), "assertion_algorithm");
    let critical = key.sign_with(
        &json!({"alg": "ES256", "crit": ["b64"]}),
        &claims(json!({})),
    );
    let error = verified(&critical, &keys, &cache, &expected(), Instant::now()).await;
    assert_eq!(error.unwrap_err().code(), "assertion_signature");
}

#[test]
fn tokens_of_other_kinds_are_refused() {
    let key = TestKey::es256();
    let typed = |typ: Value| {
        let token = key.sign_with(&json!({"alg": "ES256", "typ": typ}), &claims(json!({})));
        let read = ClientAssertion::read(JWT_BEARER, &token, None).unwrap();
        read.check(&expected()).is_ok()
    };
    for good in ["JWT", "jwt", "client-authentication+jwt", "application/JWT"] {
        assert!(typed(json!(good)), "{good}");
    }
    for bad in [
        "at+jwt",
        "logout+jwt",
        "oauth-authz-req+jwt",
        "application/at+jwt",
        "",
    ] {
        assert!(!typed(json!(bad)), "{bad}");
    }
    assert!(!typed(json!(1)));
}

#[test]
fn a_workload_token_authenticates_the_client_that_trusts_its_subject() {
    let key = TestKey::es256();
    let issuer = "https://workload.example";
    let keys = KeySet::parse(set_of(key.jwk(Some("k1"))).to_string().as_bytes()).unwrap();
    let trusted = [TrustedSubject {
        issuer: issuer.to_owned(),
        subject: "node:ci".to_owned(),
    }];
    let token = |changes: Value| {
        let mut all = json!({"iss": issuer, "sub": "node:ci", "aud": [ISSUER]});
        all.as_object_mut()
            .unwrap()
            .extend(changes.as_object().unwrap().clone());
        let header = json!({"alg": "ES256", "kid": "k1", "typ": "JWT"});
        key.sign_with(&header, &claims(all))
    };
    let code = |token: &str| {
        let read = ClientAssertion::read(JWT_BEARER, token, Some("app")).unwrap();
        match read.verify_workload_token(&keys, &trusted, &expected()) {
            Ok(()) => "",
            Err(error) => error.code(),
        }
    };
    let good = token(json!({"exp": NOW + 86_400, "jti": null}));
    assert_eq!(code(&good), "");
    assert_eq!(code(&good), "", "again: it is a file on the machine");
    assert_eq!(
        code(&token(json!({"sub": "node:other"}))),
        "assertion_subject"
    );
    assert_eq!(
        code(&token(json!({"iss": "https://x.example"}))),
        "assertion_subject"
    );
    assert_eq!(
        code(&token(json!({"aud": "sts.amazonaws.com"}))),
        "assertion_audience"
    );
    assert_eq!(code(&token(json!({"exp": NOW - 61}))), "assertion_expired");
    let stranger = TestKey::es256();
    let forged = stranger.sign_with(
        &json!({"alg": "ES256", "kid": "k1"}),
        &claims(json!({"iss": issuer, "sub": "node:ci", "aud": ISSUER})),
    );
    assert_eq!(code(&forged), "assertion_signature");
    let own = key.sign(&claims(json!({})));
    assert_eq!(
        code(&own),
        "assertion_subject",
        "one of the client's own is none"
    );
}

/// What was used once does not count again, while it could still be valid, and only for its client.
#[tokio::test]
async fn an_assertion_is_accepted_once() {
    let world = World::new().await;
    let key = TestKey::es256();
    let keys = ClientKeys::of(Some(&set_of(key.jwk(None))), None).unwrap();
    let cache = cache_without_fetches();
    let code = async |assertion: &str, at: Timestamp| {
        let read = ClientAssertion::read(JWT_BEARER, assertion, None).unwrap();
        let expected = Expected { at, ..expected() };
        let verified = read.verify(&keys, &cache, &world.store, &expected, Instant::now());
        verified.await.map_or_else(|error| error.code(), |()| "")
    };
    let assertion = key.sign(&claims(json!({})));
    let forged = TestKey::es256().sign(&claims(json!({})));
    assert_eq!(code(&forged, now()).await, "assertion_signature");
    assert_eq!(
        code(&assertion, now()).await,
        "",
        "a forged one uses nothing up"
    );
    assert_eq!(code(&assertion, now()).await, "assertion_replayed");
    assert_eq!(code(&assertion, after(119)).await, "assertion_replayed");
    assert_eq!(code(&assertion, after(120)).await, "assertion_expired");
    let of_other = claims(json!({"iss": "other", "sub": "other"}));
    assert_eq!(
        code(&key.sign(&of_other), now()).await,
        "",
        "ids are those of one client"
    );
    let next = key.sign(&claims(json!({"jti": "j2"})));
    assert_eq!(code(&next, now()).await, "");
}
