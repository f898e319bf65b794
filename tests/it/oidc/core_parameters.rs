//! What OpenID Connect Core lets a client wish for: how the person was authenticated, whom it
//! expects, and signed UserInfo.

use super::{logout::log_in, pages::Browser, *};

#[tokio::test]
async fn how_the_person_was_authenticated_is_told_to_those_who_ask() {
    let server = OidcServer::open().await;
    let mut alice = Browser::of(&server, "alice").await;
    let wish = |value: Value| json!({"id_token": {"acr": value}}).to_string();
    let asked = asking("asking", &[("acr_values", "1 2")]);
    let first = alice.confirmed(&server, &asked).await;
    assert_eq!(first["acr"], "1");
    let answer = alice.get(&asked).await;
    let again = alice.claims(&server, answer.header("location")).await;
    assert_eq!(again["acr"], "0");
    assert_eq!(again["auth_time"], first["auth_time"]);
    let answer = alice.get(&asking("asking", &[])).await;
    let unasked = alice.claims(&server, answer.header("location")).await;
    assert!(unasked.get("acr").is_none());
    // What must be is had by a confirmation, or the login fails.
    let needed = wish(json!({"essential": true, "values": ["1"]}));
    let needed = asking("asking", &[("claims", &needed)]);
    assert_eq!(alice.confirmed(&server, &needed).await["acr"], "1");
    let unknown = wish(json!({"essential": true, "value": "phr"}));
    let refused = alice.get(&asking("asking", &[("claims", &unknown)])).await;
    let fields = answer_of(&refused);
    assert_eq!(field(&fields, "error"), "unmet_authentication_requirements");
}

#[tokio::test]
async fn the_page_tells_a_person_that_somebody_else_is_expected() {
    let server = OidcServer::open().await;
    let mut alice = Browser::of(&server, "alice").await;
    let expects = "It expects <b>";
    for (hint, shown) in [
        ("bob@example.com", true),
        ("Alice@Example.com", false),
        ("call us now", false),
    ] {
        let page = alice.get(&asking("asking", &[("login_hint", hint)])).await;
        assert_eq!(page.status(), 200);
        assert_eq!(page.text().contains(expects), shown, "{hint}");
    }
    // It is a hint: whoever is there may log in.
    let asked = asking("asking", &[("login_hint", "bob@example.com")]);
    alice.confirmed(&server, &asked).await;
}

#[tokio::test]
async fn userinfo_is_signed_for_a_client_that_registered_it() {
    let server = OidcServer::open().await;
    server
        .add_with("signed", AuthMethod::ClientSecretBasic, |metadata| {
            metadata.userinfo_signed_response_alg = Some("ES256".into());
            metadata.post_logout_redirect_uris = vec![APP.into()];
            metadata.login = Some(Login::Silent);
        })
        .await;
    let mut alice = Browser::of(&server, "alice").await;
    let tokens = log_in(&mut alice, "signed").await;
    let answer = userinfo(&mut alice.connection, &tokens["access_token"]).await;
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.header("content-type"), "application/jwt");
    assert_eq!(answer.header("cache-control"), "no-store");
    assert_eq!(answer.header("access-control-allow-origin"), "*");
    let token = answer.text();
    assert_eq!(header_of(&token)["alg"], "ES256");
    let claims = server.verified_without_times(&token).await;
    let login = server.verified(tokens["id_token"].as_str().unwrap()).await;
    assert_eq!(claims["sub"], login["sub"]);
    assert_eq!(
        (&claims["iss"], &claims["aud"]),
        (&json!(ISSUER), &json!("signed"))
    );
    assert_eq!(claims["email"], "alice@example.com");
    for absent in ["nonce", "exp", "iat"] {
        assert!(claims.get(absent).is_none(), "{absent}");
    }
    // It is no ID token, so it signs nobody out.
    let page = alice
        .get(&super::logout::logout(&[("id_token_hint", &token)]))
        .await;
    assert!(super::logout::is_question(&page), "{page:?}");
    let told = alice.get("/.well-known/openid-configuration").await.json();
    assert_eq!(
        told["userinfo_signing_alg_values_supported"],
        told["id_token_signing_alg_values_supported"]
    );
    for (name, values) in [
        ("acr_values_supported", json!(["0", "1"])),
        ("ui_locales_supported", json!(["en"])),
        (
            "prompt_values_supported",
            json!(["none", "login", "consent", "select_account"]),
        ),
    ] {
        assert_eq!(told[name], values, "{name}");
    }
}
