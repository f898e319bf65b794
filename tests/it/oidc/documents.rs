//! Discovery, keys, CORS, and what is at no route.

use super::*;

const DOCUMENTS: [&str; 3] = [
    "/.well-known/openid-configuration",
    "/.well-known/oauth-authorization-server",
    "/.well-known/jwks.json",
];

#[tokio::test]
async fn the_documents_are_for_everybody_and_tell_the_truth() {
    let server = OidcServer::open().await;
    let mut alice = server.alice().await;
    let mut outside = server.outside().await;
    for path in DOCUMENTS {
        for connection in [&mut alice, &mut outside] {
            let answer = connection.get(path).await;
            assert_eq!(answer.status(), 200, "{path}");
            assert_eq!(answer.header("content-type"), "application/json");
            assert_eq!(answer.header("access-control-allow-origin"), "*");
            let asked = connection.send(request("OPTIONS", path)).await;
            assert_eq!((asked.status(), asked.text().as_str()), (204, ""));
            assert_eq!(asked.header("access-control-allow-methods"), "GET, OPTIONS");
            assert_eq!(asked.header("access-control-allow-headers"), "*");
        }
    }
    let within = alice.get(DOCUMENTS[0]).await.json();
    assert_eq!(within["issuer"], ISSUER);
    assert_eq!(
        within["registration_endpoint"],
        format!("{ISSUER}/register")
    );
    assert_eq!(within["code_challenge_methods_supported"], json!(["S256"]));
    assert!(
        outside
            .get(DOCUMENTS[0])
            .await
            .json()
            .get("registration_endpoint")
            .is_none()
    );
    // Every endpoint that is told is there.
    for (name, url) in within.as_object().unwrap() {
        if name.ends_with("_endpoint") || name == "jwks_uri" {
            let path = url.as_str().unwrap().strip_prefix(ISSUER).unwrap();
            let answer = alice.get(path).await;
            assert!(![404, 500].contains(&answer.status()), "{name}: {answer:?}");
        }
    }
    let keys = alice.get(DOCUMENTS[2]).await;
    let key = &keys.json()["keys"][0];
    for member in ["kty", "use", "kid", "alg"] {
        assert!(key[member].is_string(), "{member}: {key}");
    }
    assert!(key.get("d").is_none());
    let known = with(
        request("GET", DOCUMENTS[2]),
        "if-none-match",
        keys.header("etag"),
    );
    assert_eq!(alice.send(known).await.status(), 304);
    assert_eq!(keys.header("cache-control"), "public, max-age=300");
    let head = alice.send(request("HEAD", DOCUMENTS[2])).await;
    assert_eq!((head.status(), head.text().as_str()), (200, ""));
    for name in ["cache-control", "content-length", "content-type", "etag"] {
        assert_eq!(head.header(name), keys.header(name), "{name}");
    }
}

#[tokio::test]
async fn pages_of_every_origin_may_use_the_endpoints_for_programs() {
    let server = OidcServer::open().await;
    let mut alice = server.alice().await;
    for path in ["/token", "/register", "/revoke", "/device_authorization"] {
        let asked = alice.send(request("OPTIONS", path)).await;
        assert_eq!(asked.status(), 204, "{path}");
        assert_eq!(
            asked.header("access-control-allow-methods"),
            "POST, OPTIONS"
        );
        let posted = with(form(path, &[]), "origin", "https://page.example.com");
        let answer = alice
            .send(with(posted, "sec-fetch-site", "cross-site"))
            .await;
        assert_eq!(answer.header("access-control-allow-origin"), "*", "{path}");
    }
}

#[tokio::test]
async fn methods_and_paths_that_are_not_there() {
    let server = OidcServer::open().await;
    let mut alice = server.alice().await;
    let not_allowed = is(405, "invalid_request", "method not allowed");
    for path in [
        "/token",
        "/introspect",
        "/revoke",
        "/authorize/confirm",
        "/device_authorization",
    ] {
        assert_eq!(refusal(&alice.get(path).await), not_allowed, "{path}");
    }
    let put = alice.send(request("PUT", "/userinfo")).await;
    assert_eq!(refusal(&put), not_allowed);
    let refused = is(403, "access_denied", "application capability not granted");
    for path in [
        "/",
        "/elsewhere",
        "/.well-known/oauth-protected-resource",
        "/clients/",
    ] {
        assert_eq!(refusal(&alice.get(path).await), refused, "{path}");
    }
    let moved = alice.get("/clients").await;
    assert_eq!(
        (moved.status(), moved.header("location")),
        (301, "/clients/")
    );
    let mut outside = server.outside().await;
    let nothing = is(401, "access_denied", "not available over funnel");
    for path in ["/", "/clients/", "/register"] {
        assert_eq!(refusal(&outside.get(path).await), nothing, "{path}");
    }
}

#[tokio::test]
async fn grant_types_that_are_not_offered() {
    let server = OidcServer::with(|settings| settings.offers.token_exchange = false).await;
    let mut alice = server.alice().await;
    for grant_type in ["password", "implicit", "x"] {
        let answer = alice
            .send(form("/token", &[("grant_type", grant_type)]))
            .await;
        let refused = is(400, "unsupported_grant_type", "unsupported grant type");
        assert_eq!(refusal(&answer), refused, "{grant_type}");
    }
    let exchange = [("grant_type", tailbone_oidc::token::TOKEN_EXCHANGE)];
    let answer = alice.send(form("/token", &exchange)).await;
    let words = "token exchange not enabled";
    assert_eq!(refusal(&answer), is(400, "unsupported_grant_type", words));
    let told = alice.get(DOCUMENTS[0]).await.json();
    let types = told["grant_types_supported"].as_array().unwrap();
    assert_eq!(
        types[..2],
        [json!("authorization_code"), json!("refresh_token")]
    );
    assert!(!types.contains(&json!(exchange[0].1)), "{types:?}");
}
