//! What verifiers read.

use super::*;

#[tokio::test]
async fn the_discovery_document_is_the_same_under_both_names_and_may_be_kept() {
    let server = WorkloadServer::open().await;
    let mut outside = server.outside().await;
    let openid = outside.get("/.well-known/openid-configuration").await;
    assert_eq!(
        openid.header("content-type"),
        "application/json; charset=utf-8"
    );
    assert_eq!(openid.header("cache-control"), "public, max-age=300");
    assert_eq!(openid.header("access-control-allow-origin"), "*");
    let document = openid.json();
    assert_eq!(document["issuer"], ISSUER);
    assert_eq!(document["token_endpoint"], format!("{ISSUER}/token"));
    assert_eq!(
        document["jwks_uri"],
        format!("{ISSUER}/.well-known/jwks.json")
    );
    assert_eq!(
        document["id_token_signing_alg_values_supported"],
        json!(["ES256", "ES384", "EdDSA"])
    );
    let oauth = outside.get("/.well-known/oauth-authorization-server").await;
    assert_eq!(oauth.text(), openid.text());

    let mut again = request("GET", "/.well-known/openid-configuration");
    let etag = openid.header("etag").parse().unwrap();
    again.headers_mut().insert("if-none-match", etag);
    let unchanged = outside.send(again).await;
    assert_eq!((unchanged.status(), unchanged.text().as_str()), (304, ""));
}

#[tokio::test]
async fn no_part_of_a_request_gets_into_a_document() {
    let server = WorkloadServer::open().await;
    let mut outside = server.outside().await;
    for target in [
        "https://evil.example/.well-known/openid-configuration",
        "http://evil.example/.well-known/openid-configuration",
    ] {
        let request = Request::builder()
            .uri(target)
            .body(Full::default())
            .unwrap();
        let answer = outside.send(request).await;
        let text = answer.text();
        assert!(!text.contains("evil"), "{text}");
    }
    let mut forged = request("GET", "/.well-known/openid-configuration");
    for name in ["x-forwarded-host", "forwarded", "x-forwarded-proto"] {
        forged
            .headers_mut()
            .insert(name, "evil.example".parse().unwrap());
    }
    assert_eq!(outside.send(forged).await.json()["issuer"], ISSUER);
}

#[tokio::test]
async fn every_published_key_is_public_and_says_that_it_is_for_signatures() {
    let server = WorkloadServer::open().await;
    let answer = server.outside().await.get("/.well-known/jwks.json").await;
    let document = answer.json();
    let keys = document["keys"].as_array().unwrap();
    assert_eq!(keys.len(), 3);
    for key in keys {
        let members = key.as_object().unwrap();
        assert_eq!(members["use"], "sig");
        for present in ["alg", "kid", "kty"] {
            assert!(members.contains_key(present), "{present}");
        }
        // AWS refuses key_ops, and the others are private.
        for absent in ["key_ops", "d", "p", "q", "dp", "dq", "qi", "k"] {
            assert!(!members.contains_key(absent), "{absent}");
        }
    }
}
