//! What comes of codes and refresh tokens, exchange, introspection and revocation.

use super::*;

pub(super) const EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
pub(super) const ACCESS_TOKEN: &str = "urn:ietf:params:oauth:token-type:access_token";

pub(super) async fn introspect(connection: &mut Connection, token: &Value) -> Value {
    let pairs = [("token", token.as_str().unwrap())];
    let answer = connection.send(form("/introspect", &pairs)).await;
    assert_eq!(answer.status(), 200, "{answer:?}");
    answer.json()
}

#[tokio::test]
async fn a_code_is_redeemed_once_by_its_client_and_reuse_ends_what_it_gave() {
    let server = OidcServer::open().await;
    let mut alice = server.alice().await;
    let given = code(&mut alice, &asking("silent", &[])).await;
    let tokens = redeem(&mut alice, &given, &[]).await.json();
    assert_eq!(
        userinfo(&mut alice, &tokens["access_token"]).await.status(),
        200
    );
    let again = redeem(&mut alice, &given, &[]).await;
    assert_eq!(refusal(&again), is(400, "invalid_grant", "code not found"));
    assert_eq!(
        userinfo(&mut alice, &tokens["access_token"]).await.status(),
        401
    );
    let refreshed = refresh(&mut alice, &tokens["refresh_token"], &[]).await;
    assert_eq!(refusal(&refreshed).1, "invalid_grant");
}

#[tokio::test]
async fn whoever_presents_a_code_wrongly_ends_it() {
    let server = OidcServer::open().await;
    let mut alice = server.alice().await;
    let failed = "client authentication failed";
    let right = ("redirect_uri", APP);
    for (request, refused) in [
        (vec![right], is(401, "invalid_client", failed)),
        (
            vec![right, ("client_id", "silent")],
            is(401, "invalid_client", failed),
        ),
        (
            vec![right, ("client_id", "silent"), ("client_secret", "wrong")],
            is(401, "invalid_client", failed),
        ),
        (
            vec![right, ("client_id", "nobody"), ("client_secret", SECRET)],
            is(400, "invalid_client", failed),
        ),
        (
            vec![right, ("client_id", "asking"), ("client_secret", SECRET)],
            is(400, "invalid_grant", "it was given to another client"),
        ),
        (
            vec![("client_id", "silent"), ("client_secret", SECRET)],
            is(400, "invalid_request", "redirect_uri mismatch"),
        ),
        (
            vec![
                right,
                ("client_id", "silent"),
                ("client_secret", SECRET),
                ("code_verifier", VERIFIER),
            ],
            is(
                400,
                "invalid_request",
                "code_verifier without a code_challenge",
            ),
        ),
    ] {
        let code = code(&mut alice, &asking("silent", &[])).await;
        let pairs = [
            ("grant_type", "authorization_code"),
            ("code", code.as_str()),
        ];
        let pairs: Vec<_> = pairs.into_iter().chain(request).collect();
        let answer = alice.send(form("/token", &pairs)).await;
        assert_eq!(refusal(&answer), refused);
        let challenge = answer.header("www-authenticate");
        assert_eq!(challenge.starts_with("Basic"), answer.status() == 401);
        let late = redeem(&mut alice, &code, &[]).await;
        assert_eq!(refusal(&late).1, "invalid_grant", "{pairs:?}");
    }
}

#[tokio::test]
async fn pkce_binds_a_code_to_whoever_asked_for_it() {
    let server = OidcServer::open().await;
    let mut alice = server.alice().await;
    let asked = asking(
        "silent",
        &[
            ("code_challenge", CHALLENGE),
            ("code_challenge_method", "S256"),
        ],
    );
    for (verifier, status) in [(Some(VERIFIER), 200), (Some(CHALLENGE), 400), (None, 400)] {
        let code = code(&mut alice, &asked).await;
        let verifier: Vec<_> = verifier
            .map(|one| ("code_verifier", one))
            .into_iter()
            .collect();
        let answer = redeem(&mut alice, &code, &verifier).await;
        assert_eq!(answer.status(), status, "{answer:?}");
    }
}

#[tokio::test]
async fn a_refresh_keeps_the_login_and_its_token_is_used_once() {
    let server = OidcServer::open().await;
    let mut alice = server.alice().await;
    let first = tokens(&mut alice, &[]).await;
    let answer = refresh(&mut alice, &first["refresh_token"], &[]).await;
    assert_eq!(answer.status(), 200, "{answer:?}");
    let second = answer.json();
    for token in ["access_token", "refresh_token", "id_token"] {
        assert_ne!(first[token], second[token], "{token}");
    }
    let (before, after) = (
        server.verified(first["id_token"].as_str().unwrap()).await,
        server.verified(second["id_token"].as_str().unwrap()).await,
    );
    for claim in ["iss", "sub", "aud", "auth_time", "nonce", "email"] {
        assert_eq!(before[claim], after[claim], "{claim}");
    }
    // A lost answer may be asked for again, until the successor is used.
    let lost = refresh(&mut alice, &first["refresh_token"], &[])
        .await
        .json();
    assert_eq!(lost["refresh_token"], second["refresh_token"]);
    let third = refresh(&mut alice, &second["refresh_token"], &[])
        .await
        .json();
    let stolen = refresh(&mut alice, &first["refresh_token"], &[]).await;
    let refused = is(400, "invalid_grant", "invalid refresh token");
    assert_eq!(refusal(&stolen), refused);
    let family = refresh(&mut alice, &third["refresh_token"], &[]).await;
    assert_eq!(refusal(&family), refused, "reuse ends the family");
    for odd in ["", "00", &"0".repeat(64)] {
        let code = refusal(&refresh(&mut alice, &json!(odd), &[]).await).1;
        assert_eq!(
            code,
            if odd.is_empty() {
                "invalid_request"
            } else {
                "invalid_grant"
            }
        );
    }
}

#[tokio::test]
async fn only_its_client_uses_a_refresh_token() {
    let server = OidcServer::open().await;
    let mut alice = server.alice().await;
    let given = tokens(&mut alice, &[]).await;
    let token = given["refresh_token"].as_str().unwrap();
    let pairs = [("grant_type", "refresh_token"), ("refresh_token", token)];
    let other = with(form("/token", &pairs), "authorization", &basic("asking"));
    assert_eq!(refusal(&alice.send(other).await).1, "invalid_grant");
    let unproven = alice.send(form("/token", &pairs)).await;
    assert_eq!(refusal(&unproven).1, "invalid_client");
    // Neither was a use.
    assert_eq!(
        refresh(&mut alice, &given["refresh_token"], &[])
            .await
            .status(),
        200
    );
}

#[tokio::test]
async fn a_refresh_asks_the_tailnet_again() {
    let server = OidcServer::open().await;
    let mut outside = server.outside().await;
    for (change, allowed) in [
        ("nothing", true),
        ("expired", false),
        ("removed", false),
        ("tagged", false),
        ("sold", false),
    ] {
        let mut alice = server.person(change, |identity| identity).await;
        let given = tokens(&mut alice, &[]).await;
        let tailnet = &server.world.tailnet;
        match change {
            "expired" => assert!(tailnet.expire(change)),
            "removed" => assert!(tailnet.remove(change)),
            "tagged" => assert!(tailnet.update(change, |one| one.tags = vec!["tag:x".into()])),
            "sold" => {
                let other = Identity::user("other@example.com");
                assert!(tailnet.update(change, |one| *one = other));
            }
            _ => {}
        }
        let answer = refresh(&mut outside, &given["refresh_token"], &[]).await;
        assert_eq!(answer.status() == 200, allowed, "{change}: {answer:?}");
        let alive = userinfo(&mut outside, &given["access_token"])
            .await
            .status()
            == 200;
        assert_eq!(alive, allowed, "{change}: the grant ends with it");
    }
    // What the tailnet's policy says by then counts.
    let mut bob = server.person("bob", mcp).await;
    let given = tokens(&mut bob, &[("resource", RESOURCE)]).await;
    server.world.tailnet.update("bob", |bob| bob.caps.clear());
    let answer = refresh(&mut outside, &given["refresh_token"], &[]).await;
    let claims = server
        .verified(answer.json()["id_token"].as_str().unwrap())
        .await;
    assert_eq!(claims["aud"], "silent");
}

#[tokio::test]
async fn resources_are_audiences_as_far_as_policy_allows() {
    let server = OidcServer::open().await;
    let mut alice = server.person("alice", mcp).await;
    let denied = "https://denied.example.com";
    let asked = [("resource", RESOURCE), ("resource", denied)];
    let given = tokens(&mut alice, &asked).await;
    let claims = server.verified(given["id_token"].as_str().unwrap()).await;
    assert_eq!(claims["aud"], json!(["silent", RESOURCE]));
    assert_eq!(claims["azp"], "silent");
    let told = introspect(&mut alice, &given["access_token"]).await;
    assert_eq!(told["aud"], json!(["silent", RESOURCE]));

    let other = [("resource", "https://other.example.com")];
    let wider = refresh(&mut alice, &given["refresh_token"], &other).await;
    let words = "requested resource not in original grant";
    assert_eq!(refusal(&wider), is(400, "invalid_target", words));
    let code = code(&mut alice, &asking("silent", &[])).await;
    let late = redeem(&mut alice, &code, &[("resource", denied)]).await;
    assert_eq!(
        refusal(&late),
        is(400, "invalid_target", "invalid resource")
    );
}

#[tokio::test]
async fn introspection_tells_nodes_and_clients_and_nobody_else() {
    let server = OidcServer::open().await;
    let mut alice = server.alice().await;
    let given = tokens(&mut alice, &[]).await;
    let told = introspect(&mut server.machine().await, &given["access_token"]).await;
    let claims = server.verified(given["id_token"].as_str().unwrap()).await;
    for (name, value) in [
        ("active", json!(true)),
        ("client_id", json!("silent")),
        ("sub", claims["sub"].clone()),
        ("aud", json!(["silent"])),
        ("username", json!("alice@example.com")),
        ("email", json!("alice@example.com")),
        ("scope", json!("openid email profile")),
        ("token_type", json!("Bearer")),
        ("jti", claims["jti"].clone()),
        ("exp", claims["exp"].clone()),
    ] {
        assert_eq!(told[name], value, "{name}");
    }
    let inactive = json!({"active": false});
    for other in [&given["refresh_token"], &given["id_token"], &json!("x")] {
        assert_eq!(introspect(&mut alice, other).await, inactive);
    }
    let mut outside = server.outside().await;
    assert_eq!(
        introspect(&mut outside, &given["access_token"]).await,
        inactive
    );
    let pairs = [("token", given["access_token"].as_str().unwrap())];
    let proven = with(
        form("/introspect", &pairs),
        "authorization",
        &basic("asking"),
    );
    assert_eq!(outside.send(proven).await.json()["active"], true);
    let wrong = with(form("/introspect", &pairs), "authorization", "Basic YTpi");
    assert_eq!(outside.send(wrong).await.status(), 401);
    let empty = outside.send(form("/introspect", &[])).await;
    assert_eq!(
        refusal(&empty),
        is(400, "invalid_request", "token is required")
    );

    let strict = OidcServer::with(|settings| settings.nodes_may_inspect = false).await;
    let mut alice = strict.alice().await;
    let given = tokens(&mut alice, &[]).await;
    assert_eq!(
        introspect(&mut alice, &given["access_token"]).await,
        inactive
    );
}

#[tokio::test]
async fn an_exchanged_token_is_for_other_audiences_and_lives_no_longer() {
    let server = OidcServer::open().await;
    let mut alice = server.person("alice", mcp).await;
    let given = tokens(&mut alice, &[]).await;
    let exchange = |token: &Value, audience: &str| {
        let pairs = [
            ("grant_type", EXCHANGE),
            ("subject_token", token.as_str().unwrap()),
            ("subject_token_type", ACCESS_TOKEN),
            ("audience", audience),
        ];
        form("/token", &pairs)
    };
    let mut gateway = server.machine().await;
    let answer = gateway
        .send(exchange(&given["access_token"], RESOURCE))
        .await;
    assert_eq!(answer.status(), 200, "{answer:?}");
    let exchanged = answer.json();
    assert_eq!(exchanged["issued_token_type"], ACCESS_TOKEN);
    assert!(exchanged["expires_in"].as_i64().unwrap() <= 300);
    assert!(exchanged.get("id_token").is_none() && exchanged.get("refresh_token").is_none());
    let told = introspect(&mut gateway, &exchanged["access_token"]).await;
    assert_eq!(told["aud"], json!([RESOURCE]));
    assert!(
        told["client_id"].as_str().unwrap().starts_with("node:"),
        "{told}"
    );
    let subject = introspect(&mut gateway, &given["access_token"]).await;
    assert!(told["exp"].as_i64() <= subject["exp"].as_i64());

    let refused = gateway
        .send(exchange(&given["access_token"], "https://denied"))
        .await;
    let words = "access denied for requested audience";
    assert_eq!(refusal(&refused), is(403, "access_denied", words));
    let unknown = gateway.send(exchange(&json!("x"), RESOURCE)).await;
    assert_eq!(
        refusal(&unknown),
        is(401, "invalid_grant", "invalid subject token")
    );
    let nobody = server
        .outside()
        .await
        .send(exchange(&given["access_token"], RESOURCE))
        .await;
    assert_eq!(
        refusal(&nobody),
        is(401, "invalid_client", "invalid client credentials")
    );
}

#[tokio::test]
async fn a_client_revokes_its_own_tokens_alone() {
    let server = OidcServer::open().await;
    let mut alice = server.alice().await;
    let given = tokens(&mut alice, &[]).await;
    let revoke = |token: &Value, client: &str| {
        let request = form("/revoke", &[("token", token.as_str().unwrap())]);
        with(request, "authorization", &basic(client))
    };
    for client in ["asking", "silent"] {
        assert_eq!(
            alice.send(revoke(&json!("unknown"), client)).await.status(),
            200
        );
    }
    for token in ["access_token", "refresh_token"] {
        assert_eq!(
            alice.send(revoke(&given[token], "asking")).await.status(),
            200
        );
    }
    assert_eq!(
        userinfo(&mut alice, &given["access_token"]).await.status(),
        200
    );
    assert_eq!(
        alice
            .send(revoke(&given["refresh_token"], "silent"))
            .await
            .status(),
        200
    );
    assert_eq!(
        userinfo(&mut alice, &given["access_token"]).await.status(),
        401
    );
    let again = refresh(&mut alice, &given["refresh_token"], &[]).await;
    assert_eq!(refusal(&again).1, "invalid_grant");
    let unproven = alice.send(form("/revoke", &[("token", "x")])).await;
    assert_eq!(unproven.status(), 401);
}

#[tokio::test]
async fn userinfo_takes_a_bearer_token_and_challenges_in_tsidps_words() {
    let server = OidcServer::open().await;
    let mut alice = server.alice().await;
    let given = tokens(&mut alice, &[]).await;
    let token = given["access_token"].as_str().unwrap();
    let posted = alice
        .send(form("/userinfo", &[("access_token", token)]))
        .await;
    assert_eq!(posted.json()["username"], "alice");
    let bearer = format!("Bearer {token}");
    let posted = alice
        .send(with(request("POST", "/userinfo"), "authorization", &bearer))
        .await;
    assert_eq!(posted.status(), 200);
    let both = with(
        form("/userinfo", &[("access_token", token)]),
        "authorization",
        &bearer,
    );
    assert_eq!(alice.send(both).await.status(), 400);
    let missing = alice.get("/userinfo").await;
    let challenge =
        "Bearer error=\"invalid_request\", error_description=\"invalid Authorization header\"";
    assert_eq!(
        (missing.status(), missing.header("www-authenticate")),
        (400, challenge)
    );
    assert_eq!(missing.text(), "");
    for wrong in [&given["refresh_token"], &given["id_token"], &json!("x")] {
        let answer = userinfo(&mut alice, wrong).await;
        let challenge = "Bearer error=\"invalid_token\", error_description=\"invalid token\"";
        assert_eq!(
            (answer.status(), answer.header("www-authenticate")),
            (401, challenge)
        );
    }
}

#[tokio::test]
async fn extra_claims_come_from_grants_and_protected_ones_fail() {
    let server = OidcServer::open().await;
    let rule = json!({"extraClaims": {"groups": ["admin"]}, "includeInUserInfo": true});
    let mut alice = server
        .person("alice", |one| one.cap(CAPABILITY, rule))
        .await;
    let given = tokens(&mut alice, &[]).await;
    let claims = server.verified(given["id_token"].as_str().unwrap()).await;
    assert_eq!(claims["groups"], json!(["admin"]));
    let told = userinfo(&mut alice, &given["access_token"]).await.json();
    assert_eq!(told["groups"], json!(["admin"]));
    for (rule, words) in [
        (
            json!({"extraClaims": {"email": "root@example.com"}}),
            "failed to merge extra claims",
        ),
        (json!({"extraClaims": []}), "failed to unmarshal capability"),
    ] {
        let mut bob = server.person("bob", |one| one.cap(CAPABILITY, rule)).await;
        let code = code(&mut bob, &asking("silent", &[])).await;
        let answer = redeem(&mut bob, &code, &[]).await;
        assert_eq!(refusal(&answer), is(400, "invalid_request", words));
    }
}
