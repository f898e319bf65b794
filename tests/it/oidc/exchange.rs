//! Token exchange (RFC 8693): who acts, for how long, and with what.

use tailbone_oidc::{Params, provider::Caller};

use super::{
    tokens::{ACCESS_TOKEN, EXCHANGE, introspect},
    *,
};

fn exchange(subject: &Value, more: &[(&str, &str)]) -> Request<Full<Bytes>> {
    let usual = [
        ("grant_type", EXCHANGE),
        ("subject_token", subject.as_str().unwrap()),
        ("subject_token_type", ACCESS_TOKEN),
    ];
    let audience = [("audience", RESOURCE)];
    let audience = audience
        .iter()
        .filter(|_| more.iter().all(|(name, _)| *name != "audience"));
    let all: Vec<_> = usual.iter().chain(audience).chain(more).copied().collect();
    form("/token", &all)
}

async fn exchanged(connection: &mut Connection, subject: &Value, more: &[(&str, &str)]) -> Value {
    let answer = connection.send(exchange(subject, more)).await;
    assert_eq!(answer.status(), 200, "{answer:?}");
    answer.json()
}

#[tokio::test]
async fn the_one_who_acts_is_told_and_those_before_as_well() {
    let server = OidcServer::open().await;
    let mut alice = server.person("alice", mcp).await;
    let mut bob = server.person("bob", mcp).await;
    let (subject, actor) = (tokens(&mut alice, &[]).await, tokens(&mut bob, &[]).await);
    let sub = |told: &Value| told["sub"].clone();
    let (alices, bobs) = (
        introspect(&mut alice, &subject["access_token"]).await,
        introspect(&mut bob, &actor["access_token"]).await,
    );
    let acting = [
        ("actor_token", actor["access_token"].as_str().unwrap()),
        ("actor_token_type", ACCESS_TOKEN),
    ];
    let mut gateway = server.machine().await;
    let first = exchanged(&mut gateway, &subject["access_token"], &acting).await;
    let told = introspect(&mut gateway, &first["access_token"]).await;
    assert_eq!(sub(&told), sub(&alices));
    let act = json!({"sub": bobs["sub"], "client_id": "silent"});
    assert_eq!(told["act"], act);
    // Without another actor it stays as it is; with one it is the newest.
    let same = exchanged(&mut gateway, &first["access_token"], &[]).await;
    let told = introspect(&mut gateway, &same["access_token"]).await;
    assert_eq!(told["act"], act);
    let second = [("actor_token", subject["access_token"].as_str().unwrap())];
    let second = exchanged(&mut gateway, &first["access_token"], &second).await;
    let told = introspect(&mut gateway, &second["access_token"]).await;
    let newest = json!({"sub": alices["sub"], "client_id": "silent", "act": act});
    assert_eq!(told["act"], newest);

    // The chain has an end.
    let mut token = second["access_token"].clone();
    for _ in 0..6 {
        token = exchanged(&mut gateway, &token, &acting).await["access_token"].clone();
    }
    let long = gateway.send(exchange(&token, &acting)).await;
    let words = "more have acted for each other than may";
    assert_eq!(refusal(&long), is(400, "invalid_request", words));
}

#[tokio::test]
async fn an_exchanged_token_is_never_wider_nor_longer() {
    let server = OidcServer::open().await;
    let mut alice = server.person("alice", mcp).await;
    let subject = tokens(&mut alice, &[("scope", "openid email")]).await;
    let subject = &subject["access_token"];
    let narrowed = exchanged(&mut alice, subject, &[("scope", "email profile")]).await;
    assert_eq!(narrowed["scope"], "email");
    let told = introspect(&mut alice, &narrowed["access_token"]).await;
    assert_eq!(told["scope"], "email");
    let again = [("scope", "openid email")];
    let again = exchanged(&mut alice, &narrowed["access_token"], &again).await;
    assert_eq!(
        again["scope"], "email",
        "what was given up does not come back"
    );
    let wider = alice.send(exchange(subject, &[("scope", "profile")])).await;
    let words = "the subject token has none of these scopes";
    assert_eq!(refusal(&wider), is(400, "invalid_scope", words));

    let exp = |told: &Value| told["exp"].as_i64().unwrap();
    let first = introspect(&mut alice, subject).await;
    let mut token = subject.clone();
    for _ in 0..3 {
        token = exchanged(&mut alice, &token, &[]).await["access_token"].clone();
        let told = introspect(&mut alice, &token).await;
        assert!(exp(&told) <= exp(&first), "{told}");
        assert!(told.get("refresh_token").is_none());
    }
    // Late in the life of the subject token little is left.
    let late = Timestamp::now() + Duration::from_secs(200);
    let pairs = [
        ("grant_type", EXCHANGE),
        ("subject_token", subject.as_str().unwrap()),
        ("subject_token_type", ACCESS_TOKEN),
        ("audience", RESOURCE),
    ];
    let form = Params::parse(query(&pairs).as_bytes());
    let gateway = Caller::Machine {
        node: "gateway".into(),
        tags: Vec::new(),
        grants: Vec::new(),
    };
    let answer = server.provider.token(&form, None, &gateway, late).await;
    let left = answer.unwrap().expires_in;
    assert!((90..=100).contains(&left), "{left}");
    // Audiences are those of the person's policy, each once and in their order.
    let both = [
        ("audience", "https://denied.example.com"),
        ("audience", "https://other.example.com"),
        ("audience", RESOURCE),
        ("audience", RESOURCE),
    ];
    let both = exchanged(&mut alice, subject, &both).await;
    let told = introspect(&mut alice, &both["access_token"]).await;
    assert_eq!(told["aud"], json!(["https://other.example.com", RESOURCE]));
}

#[tokio::test]
async fn an_exchanged_token_ends_with_the_login_it_came_of() {
    let server = OidcServer::open().await;
    let mut alice = server.person("alice", mcp).await;
    let given = tokens(&mut alice, &[]).await;
    let first = exchanged(&mut alice, &given["access_token"], &[]).await;
    let second = exchanged(&mut alice, &first["access_token"], &[]).await;
    let logout = with(
        form(
            "/revoke",
            &[("token", given["refresh_token"].as_str().unwrap())],
        ),
        "authorization",
        &basic("silent"),
    );
    assert_eq!(alice.send(logout).await.status(), 200);
    for token in [&given, &first, &second] {
        let told = introspect(&mut alice, &token["access_token"]).await;
        assert_eq!(told, json!({"active": false}));
    }
    let late = alice.send(exchange(&second["access_token"], &[])).await;
    let words = "invalid subject token";
    assert_eq!(refusal(&late), is(401, "invalid_grant", words));
}

#[tokio::test]
async fn only_access_tokens_are_exchanged() {
    let server = OidcServer::open().await;
    let mut alice = server.person("alice", mcp).await;
    let given = tokens(&mut alice, &[]).await;
    for other in ["id_token", "refresh_token"] {
        let answer = alice.send(exchange(&given[other], &[])).await;
        let words = "invalid subject token";
        assert_eq!(refusal(&answer), is(401, "invalid_grant", words), "{other}");
        let actor = [("actor_token", given[other].as_str().unwrap())];
        let answer = alice.send(exchange(&given["access_token"], &actor)).await;
        let words = "invalid or expired actor_token";
        assert_eq!(
            refusal(&answer),
            is(400, "invalid_request", words),
            "{other}"
        );
    }
    // A page of another origin has a secret, or nothing.
    let forged = exchange(&given["access_token"], &[]);
    let forged = with(forged, "origin", "https://evil.example");
    let words = "invalid client credentials";
    assert_eq!(
        refusal(&alice.send(forged).await),
        is(401, "invalid_client", words)
    );
}
