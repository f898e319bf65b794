//! Names and mail of people whose logins are no mail addresses, in every place where they are told.

use super::*;

/// The ID token, UserInfo and introspection of one login.
async fn told(server: &OidcServer, login: &str) -> [Value; 3] {
    let node = server.world.join("device", Identity::user(login));
    let mut person = server.world.call(&node, 443).await;
    let tokens = tokens(&mut person, &[]).await;
    let id_token = server.verified(tokens["id_token"].as_str().unwrap()).await;
    let userinfo = userinfo(&mut person, &tokens["access_token"]).await.json();
    let pairs = [("token", tokens["access_token"].as_str().unwrap())];
    let introspected = person.send(form("/introspect", &pairs)).await.json();
    [id_token, userinfo, introspected]
}

#[tokio::test]
async fn a_login_without_a_mailbox_has_the_name_and_mail_of_the_settings() {
    let server = OidcServer::with(|settings| {
        settings.mapping = Mapping {
            user_names: vec!["*={name}".parse().unwrap()],
            mail: vec![
                "*@github={name}@users.example.com".parse().unwrap(),
                "*@*={login}".parse().unwrap(),
                "*={name}@example.com".parse().unwrap(),
            ],
            verified_domains: vec!["example.com".parse().unwrap()],
        };
    })
    .await;
    for (login, name, mail, verified) in [
        ("alice", "alice", "alice@example.com", json!(true)),
        ("bob@github", "bob", "bob@users.example.com", Value::Null),
        (
            "carol@example.com",
            "carol",
            "carol@example.com",
            json!(true),
        ),
    ] {
        let [id_token, userinfo, introspected] = told(&server, login).await;
        for claims in [&id_token, &userinfo, &introspected] {
            assert_eq!(claims["email"], mail, "{login}");
            assert_eq!(claims["email_verified"], verified, "{login}");
            assert_eq!(claims["sub"], id_token["sub"], "{login}");
        }
        assert_eq!(id_token["preferred_username"], name);
        assert_eq!(introspected["preferred_username"], name);
        assert_eq!(userinfo["username"], name);
        assert_eq!(introspected["username"], login);
    }
}

#[tokio::test]
async fn what_nobody_knows_is_left_out() {
    let server = OidcServer::open().await;
    for claims in told(&server, "alice").await {
        for absent in ["email", "email_verified", "preferred_username"] {
            assert!(claims.get(absent).is_none(), "{absent}: {claims}");
        }
    }
    for claims in told(&server, "bob@github").await {
        assert_eq!(claims["email"], format!("bob@github.{HOST}"));
        assert!(claims.get("email_verified").is_none(), "{claims}");
    }
}

#[tokio::test]
async fn in_the_standards_style_an_address_that_was_made_up_is_not_verified() {
    let server = OidcServer::with(|settings| settings.style = Style::Standard).await;
    let [_, userinfo, introspected] = told(&server, "bob@github").await;
    for claims in [userinfo, introspected] {
        assert_eq!(claims["email_verified"], false, "{claims}");
    }
    let [_, userinfo, _] = told(&server, "carol@example.org").await;
    assert_eq!(userinfo["email"], "carol@example.org");
    assert!(userinfo.get("email_verified").is_none(), "{userinfo}");
}

#[tokio::test]
async fn extra_claims_of_a_grant_go_on_as_they_are() {
    let server = OidcServer::open().await;
    let extra = json!({"extraClaims": {"role": "admin", "level": 3, "teams": ["b", "a", 1, true]}});
    let mut alice = server
        .person("alice", |identity| identity.cap(CAPABILITY, extra))
        .await;
    let tokens = tokens(&mut alice, &[]).await;
    let claims = server.verified(tokens["id_token"].as_str().unwrap()).await;
    assert_eq!(
        (&claims["role"], &claims["level"]),
        (&json!("admin"), &json!(3))
    );
    assert_eq!(claims["teams"], json!(["b", "a", 1, true]));
    let userinfo = userinfo(&mut alice, &tokens["access_token"]).await.json();
    assert!(userinfo.get("role").is_none(), "{userinfo}");
}

#[tokio::test]
async fn discovery_tells_every_claim_that_a_login_has() {
    let server = OidcServer::with(|settings| {
        settings.mapping.verified_domains = vec!["example.com".parse().unwrap()];
    })
    .await;
    let document = server
        .outside()
        .await
        .get("/.well-known/openid-configuration")
        .await
        .json();
    let supported = document["claims_supported"].as_array().unwrap();
    let [id_token, userinfo, _] = told(&server, "alice@example.com").await;
    assert_eq!(id_token["email_verified"], true);
    for claims in [id_token, userinfo] {
        for name in claims.as_object().unwrap().keys() {
            assert!(supported.contains(&json!(name)), "{name}: {supported:?}");
        }
    }
}
