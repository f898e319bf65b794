//! What tsidp's own tests promise and no other test here shows. Its `plain` challenges are refused
//! here, and its words for an expired token are those for an unknown one.

use jiff::SignedDuration;
use tailbone_oidc::{
    Params,
    provider::{BearerError, Caller, Inspector},
};

use super::*;

fn pkce<'a>() -> [(&'a str, &'a str); 2] {
    [
        ("code_challenge", CHALLENGE),
        ("code_challenge_method", "S256"),
    ]
}

#[tokio::test]
async fn verifiers_of_another_form_are_refused() {
    let server = OidcServer::open().await;
    let mut alice = server.alice().await;
    let asked = asking("silent", &pkce());
    let odd = VERIFIER.replace('-', "!");
    for verifier in ["short", &"x".repeat(129), &odd] {
        let code = code(&mut alice, &asked).await;
        let answer = redeem(&mut alice, &code, &[("code_verifier", verifier)]).await;
        assert_eq!(refusal(&answer).0, 400, "{verifier}");
    }
}

#[tokio::test]
async fn a_refresh_after_pkce_needs_no_verifier_and_keeps_the_scopes() {
    let server = OidcServer::open().await;
    let mut alice = server.alice().await;
    let [challenge, method] = pkce();
    let asked = asking(
        "silent",
        &[challenge, method, ("scope", "  openid  email ")],
    );
    let code = code(&mut alice, &asked).await;
    let first = redeem(&mut alice, &code, &[("code_verifier", VERIFIER)])
        .await
        .json();
    let second = refresh(&mut alice, &first["refresh_token"], &[]).await;
    assert_eq!(second.status(), 200, "{second:?}");
    let second = second.json();
    assert_ne!(second["access_token"], first["access_token"]);
    assert!(second["refresh_token"].is_string());
    for tokens in [&first, &second] {
        let pairs = [("token", tokens["access_token"].as_str().unwrap())];
        let told = alice.send(form("/introspect", &pairs)).await.json();
        assert_eq!(told["scope"], "openid email");
        let claims = server.verified(tokens["id_token"].as_str().unwrap()).await;
        assert_eq!(claims["email"], "alice@example.com");
        assert!(
            claims.get("preferred_username").is_none(),
            "no scope for it"
        );
    }
}

#[tokio::test]
async fn tokens_end_at_their_time() {
    let server = OidcServer::open().await;
    let mut alice = server.alice().await;
    let given = tokens(&mut alice, &[]).await;
    let text = |name: &str| given[name].as_str().unwrap().to_owned();
    let (access_token, refresh_token) = (text("access_token"), text("refresh_token"));
    let provider = &server.provider;
    let after = |seconds| Timestamp::now() + SignedDuration::from_secs(seconds);
    let node = Inspector::Node("n1".into());
    let asked = Params::parse(format!("token={access_token}").as_bytes());
    for (seconds, alive) in [(290, true), (310, false)] {
        let now = after(seconds);
        let told = provider.introspect(&asked, Some(&node), now).await.unwrap();
        assert_eq!(told.is_some(), alive, "after {seconds} s");
        match provider.userinfo(Some(&access_token), now).await {
            Ok(_) => assert!(alive, "after {seconds} s"),
            Err(BearerError::Challenge { status, code, .. }) => {
                assert!(!alive, "after {seconds} s");
                assert_eq!((status.as_u16(), code), (401, "invalid_token"));
            }
            Err(other) => panic!("{other:?}"),
        }
    }
    let pairs = [
        ("grant_type", "refresh_token"),
        ("refresh_token", refresh_token.as_str()),
        ("client_id", "silent"),
        ("client_secret", SECRET),
    ];
    let asked = Params::parse(query(&pairs).as_bytes());
    let month = 30 * 24 * 3600;
    let late = after(month + 10);
    let refused = provider.token(&asked, None, &Caller::Unknown, late).await;
    let refused = refused.unwrap_err();
    assert_eq!(
        (refused.status.as_u16(), refused.code),
        (400, "invalid_grant")
    );
    let in_time = after(month - 10);
    provider
        .token(&asked, None, &Caller::Unknown, in_time)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_refresh_may_be_for_fewer_resources() {
    let server = OidcServer::open().await;
    let mut alice = server.person("alice", mcp).await;
    let other = "https://other.example.com";
    let given = tokens(&mut alice, &[("resource", RESOURCE), ("resource", other)]).await;
    let answer = refresh(&mut alice, &given["refresh_token"], &[("resource", other)]).await;
    assert_eq!(answer.status(), 200, "{answer:?}");
    let claims = server
        .verified(answer.json()["id_token"].as_str().unwrap())
        .await;
    assert_eq!(claims["aud"], json!(["silent", other]));
}

#[tokio::test]
async fn an_administrator_finds_no_page_and_others_may_not_look() {
    let server = OidcServer::open().await;
    let may = json!({"allow_admin_ui": true});
    let mut root = server.person("root", |one| one.cap(CAPABILITY, may)).await;
    assert_eq!(root.get("/new").await.status(), 404);
    assert_eq!(server.alice().await.get("/new").await.status(), 403);
}

#[tokio::test]
async fn only_the_own_origin_makes_clients() {
    let server = OidcServer::open().await;
    let may = json!({"allow_admin_ui": true});
    let mut root = server.person("root", |one| one.cap(CAPABILITY, may)).await;
    let new = || form("/clients/new", &[("name", "Wiki"), ("redirect_uri", APP)]);
    let site = |request, site| with(request, "sec-fetch-site", site);
    let foreign = with(site(new(), "cross-site"), "origin", "https://evil.example");
    assert_eq!(root.send(foreign).await.status(), 403);
    let own = with(site(new(), "same-site"), "origin", ISSUER);
    for good in [new(), site(new(), "same-origin"), own] {
        let made = root.send(good).await;
        assert_eq!(made.status(), 200, "{made:?}");
        assert_eq!(made.json()["client_secret"].as_str().unwrap().len(), 64);
    }
}

#[tokio::test]
async fn a_registration_keeps_all_its_redirect_uris() {
    let server = OidcServer::open().await;
    let may = json!({"allow_dcr": true});
    let mut bob = server.person("bob", |one| one.cap(CAPABILITY, may)).await;
    let uris = ["https://a.example.com/cb", "https://b.example.com/cb", APP];
    let (parts, _) = request("POST", "/register").into_parts();
    let body = Full::from(json!({ "redirect_uris": uris }).to_string());
    let made = bob.send(Request::from_parts(parts, body)).await.json();
    assert_eq!(made["redirect_uris"], json!(uris));
}
