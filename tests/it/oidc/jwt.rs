//! Access tokens that are JWTs (RFC 9068), and what they are not.

use super::{
    pages::Browser,
    tokens::{ACCESS_TOKEN, EXCHANGE, introspect},
    *,
};

/// A server whose client `reading` wants JWTs, and whose client `job` acts for itself with them.
async fn with_jwts() -> OidcServer {
    let server = OidcServer::open().await;
    let wants = |metadata: &mut ClientMetadata| {
        metadata.login = Some(Login::Silent);
        metadata.access_token_signed_response_alg = Some("ES256".into());
        metadata.grant_types = vec!["authorization_code".into(), "client_credentials".into()];
    };
    for id in ["reading", "job"] {
        server
            .add_with(id, AuthMethod::ClientSecretBasic, wants)
            .await;
    }
    server
}

async fn tokens_of(connection: &mut Connection, more: &[(&str, &str)]) -> Value {
    let code = code(connection, &asking("reading", more)).await;
    let pairs = [
        ("grant_type", "authorization_code"),
        ("code", code.as_str()),
        ("redirect_uri", APP),
    ];
    let request = with(form("/token", &pairs), "authorization", &basic("reading"));
    let answer = connection.send(request).await;
    assert_eq!(answer.status(), 200, "{answer:?}");
    answer.json()
}

#[tokio::test]
async fn a_client_that_wants_them_has_jwts_that_resources_can_verify() {
    let server = with_jwts().await;
    let mut alice = server.person("alice", mcp).await;
    let given = tokens_of(&mut alice, &[("resource", RESOURCE)]).await;
    let token = given["access_token"].as_str().unwrap();
    let header = header_of(token);
    assert_eq!(
        (&header["typ"], &header["alg"]),
        (&json!("at+jwt"), &json!("ES256"))
    );
    let claims = server.verified(token).await;
    let person = server.verified(given["id_token"].as_str().unwrap()).await;
    for (name, value) in [
        ("iss", json!(ISSUER)),
        ("aud", json!(RESOURCE)),
        ("client_id", json!("reading")),
        ("scope", json!("openid email profile")),
        ("sub", person["sub"].clone()),
        ("auth_time", person["auth_time"].clone()),
        ("iat", person["iat"].clone()),
        ("exp", person["exp"].clone()),
    ] {
        assert_eq!(claims[name], value, "{name}");
    }
    assert_ne!(
        claims["jti"], person["jti"],
        "each token has an id of its own"
    );
    for name in ["email", "nonce", "key", "node"] {
        assert!(claims.get(name).is_none(), "{name} is for the client alone");
    }

    let told = introspect(&mut alice, &given["access_token"]).await;
    assert_eq!(told["active"], true);
    assert_eq!(
        (&told["jti"], &told["sub"]),
        (&claims["jti"], &claims["sub"])
    );
    assert_eq!(told["aud"], json!([RESOURCE]));
    let known = userinfo(&mut alice, &given["access_token"]).await;
    assert_eq!(known.json()["sub"], claims["sub"]);

    let unbound = tokens_of(&mut alice, &[]).await;
    let unbound = server
        .verified(unbound["access_token"].as_str().unwrap())
        .await;
    assert_eq!(unbound["aud"], ISSUER, "without a resource it is for us");

    let revoked = with(
        form("/revoke", &[("token", token)]),
        "authorization",
        &basic("reading"),
    );
    assert_eq!(alice.send(revoked).await.status(), 200);
    let told = introspect(&mut alice, &given["access_token"]).await;
    assert_eq!(told, json!({"active": false}));
    let ended = userinfo(&mut alice, &given["access_token"]).await;
    assert_eq!(ended.status(), 401);
}

#[tokio::test]
async fn a_jwt_is_only_the_token_that_was_given() {
    let server = with_jwts().await;
    let mut alice = Browser::of(&server, "alice").await;
    let given = tokens_of(&mut alice.connection, &[]).await;
    let token = given["access_token"].as_str().unwrap();
    let parts: Vec<&str> = token.split('.').collect();
    let none = URL_SAFE_NO_PAD.encode(r#"{"alg":"none","typ":"at+jwt"}"#);
    let signature = parts[2].replace(|c: char| c.is_ascii_lowercase(), "A");
    for forged in [
        format!("{none}.{}.", parts[1]),
        format!("{}.{}.{signature}", parts[0], parts[1]),
        format!("{token}="),
        given["id_token"].as_str().unwrap().to_owned(),
    ] {
        let answer = userinfo(&mut alice.connection, &json!(forged)).await;
        assert_eq!(answer.status(), 401, "{forged}");
    }
    // Nor is it an ID token, which would be a good hint in this session.
    alice.confirmed(&server, &asking("asking", &[])).await;
    for (hint, error) in [
        (given["id_token"].as_str().unwrap(), ""),
        (token, "login_required"),
    ] {
        let hint = [("prompt", "none"), ("id_token_hint", hint)];
        let fields = answer_of(&alice.get(&asking("asking", &hint)).await);
        assert_eq!(field(&fields, "error"), error);
    }
}

#[tokio::test]
async fn every_grant_gives_the_client_the_form_that_it_wants() {
    let server = with_jwts().await;
    let mut alice = server.person("alice", mcp).await;
    let own = form("/token", &[("grant_type", "client_credentials")]);
    let answer = alice.send(with(own, "authorization", &basic("job"))).await;
    let token = answer.json()["access_token"].as_str().unwrap().to_owned();
    let claims = server.verified(&token).await;
    assert_eq!(
        (&claims["sub"], &claims["client_id"]),
        (&json!("job"), &json!("job"))
    );
    assert_eq!(header_of(&token)["typ"], "at+jwt");
    assert!(claims.get("scope").is_none() && claims.get("auth_time").is_none());

    // The form is that of the client which has the token, not of the one that logged in.
    let given = tokens(&mut alice, &[]).await;
    assert_eq!(given["access_token"].as_str().unwrap().len(), 32);
    let exchange = [
        ("grant_type", EXCHANGE),
        ("subject_token", given["access_token"].as_str().unwrap()),
        ("subject_token_type", ACCESS_TOKEN),
        ("audience", RESOURCE),
    ];
    let exchange = with(form("/token", &exchange), "authorization", &basic("job"));
    let exchanged = alice.send(exchange).await.json();
    let claims = server
        .verified(exchanged["access_token"].as_str().unwrap())
        .await;
    let person = server.verified(given["id_token"].as_str().unwrap()).await;
    assert_eq!(claims["sub"], person["sub"]);
    assert_eq!(
        (&claims["client_id"], &claims["aud"]),
        (&json!("job"), &json!(RESOURCE))
    );
    assert!(claims["exp"].as_i64() <= person["exp"].as_i64());
}
