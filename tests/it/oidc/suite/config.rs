//! The plan Config OP: one module.

use super::*;

/// Checks the discovery document: the issuer is the one that was asked; every address is `https`;
/// what Discovery 1.0 requires is there and has a value of the standard; RS256 is among the
/// algorithms; `openid` is a scope; the published keys are usable, have different names and no
/// private half. Warns where `userinfo_endpoint`, `scopes_supported` or `claims_supported` is
/// missing.
#[tokio::test]
async fn oidcc_discovery_endpoint_verification() {
    let module = Module::start(Mode::Default).await;
    let path = "/.well-known/openid-configuration";
    let answer = module.server.outside().await.get(path).await;
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.header("content-type"), "application/json");
    let document = answer.json();
    assert_eq!(document["issuer"], ISSUER);
    let members = document.as_object().unwrap();
    for (name, value) in members {
        let address = name.ends_with("_endpoint") || name.ends_with("_uri");
        if address && value.is_string() {
            let address = url::Url::parse(value.as_str().unwrap()).unwrap();
            assert_eq!(address.scheme(), "https", "{name}");
            assert!(address.fragment().is_none(), "{name}");
        }
        if let Some(list) = value.as_array() {
            assert!(!list.is_empty(), "{name}");
            assert!(list.iter().all(Value::is_string), "{name}");
        }
    }
    for required in [
        "authorization_endpoint",
        "token_endpoint",
        "userinfo_endpoint",
        "jwks_uri",
        "response_types_supported",
        "subject_types_supported",
        "id_token_signing_alg_values_supported",
        "scopes_supported",
        "claims_supported",
    ] {
        assert!(members.contains_key(required), "{required}");
    }
    let has = |name: &str, value: &str| {
        let list = document[name].as_array().unwrap();
        list.iter().any(|one| one == value)
    };
    assert!(has("response_types_supported", "code"));
    assert!(has("id_token_signing_alg_values_supported", "RS256"));
    assert!(!has("id_token_signing_alg_values_supported", "none"));
    assert!(has("scopes_supported", "openid"));
    assert!(has("claims_supported", "sub"));
    let subjects = document["subject_types_supported"].as_array().unwrap();
    let known = ["public", "pairwise"];
    assert!(
        subjects
            .iter()
            .all(|one| known.iter().any(|kind| one == kind))
    );
    for boolean in [
        "claims_parameter_supported",
        "request_parameter_supported",
        "request_uri_parameter_supported",
    ] {
        assert!(document[boolean].is_boolean(), "{boolean}");
    }
    // Absent would mean that an unsigned one counts.
    if document["request_parameter_supported"] == true {
        assert!(!has("request_object_signing_alg_values_supported", "none"));
    }

    let path = "/.well-known/jwks.json";
    let keys = module.server.outside().await.get(path).await;
    let keys = keys.json()["keys"].as_array().unwrap().clone();
    let mut kids: Vec<_> = keys
        .iter()
        .map(|key| key["kid"].as_str().unwrap())
        .collect();
    kids.sort_unstable();
    kids.dedup();
    assert_eq!(kids.len(), keys.len(), "two keys have one name");
    for key in &keys {
        assert_eq!(key["use"], "sig");
        for private in ["d", "p", "q", "dp", "dq", "qi", "k"] {
            assert!(key.get(private).is_none(), "{private}");
        }
        let read: jsonwebtoken::jwk::Jwk = serde_json::from_value(key.clone()).unwrap();
        DecodingKey::from_jwk(&read).unwrap();
    }
    for alg in document["id_token_signing_alg_values_supported"]
        .as_array()
        .unwrap()
    {
        assert!(keys.iter().any(|key| key["alg"] == *alg), "{alg}");
    }
}
