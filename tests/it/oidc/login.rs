//! Logins without a page, and what the client is told when there is none.

use super::*;

#[tokio::test]
async fn a_login_as_tsidp_does_it() {
    let server = OidcServer::open().await;
    let (node, mut alice) = server.device("alice", |identity| identity).await;
    let code = code(&mut alice, &asking("silent", &[])).await;
    let answer = redeem(&mut server.outside().await, &code, &[]).await;
    assert_eq!(answer.status(), 200, "{answer:?}");
    assert_eq!(answer.header("content-type"), "application/json");
    assert_eq!(answer.header("cache-control"), "no-store");
    let text = answer.text();
    let order = [
        "id_token",
        "token_type",
        "access_token",
        "refresh_token",
        "expires_in",
    ];
    let at: Vec<_> = order
        .iter()
        .map(|name| text.find(&format!("\"{name}\":")).unwrap())
        .collect();
    assert!(at.is_sorted() && text.ends_with("}\n"), "{text}");
    let tokens = answer.json();
    assert_eq!(
        (&tokens["token_type"], &tokens["expires_in"]),
        (&json!("Bearer"), &json!(300))
    );
    assert!(tokens.get("scope").is_none());

    let token = tokens["id_token"].as_str().unwrap();
    assert_eq!(header_of(token)["typ"], "JWT");
    let claims = server.verified(token).await;
    let person = Identity::user("alice@example.com");
    for (name, value) in [
        ("iss", json!(ISSUER)),
        ("sub", json!(format!("userid:{}", person.user_id))),
        ("aud", json!("silent")),
        ("nonce", json!("n-1")),
        ("email", json!("alice@example.com")),
        ("preferred_username", json!("alice")),
        ("uid", json!(person.user_id)),
        ("addresses", json!([format!("{}/32", node.ip())])),
        ("node", json!("alice.fake-tailnet.ts.net.")),
        ("tailnet", json!("fake-tailnet.ts.net.")),
    ] {
        assert_eq!(claims[name], value, "{name}");
    }
    assert!(claims["key"].as_str().unwrap().starts_with("nodekey:"));
    assert!(claims["nid"].as_i64().unwrap() > 0);
    let (issued, ends, starts) = (&claims["iat"], &claims["exp"], &claims["nbf"]);
    assert_eq!(ends.as_i64().unwrap() - issued.as_i64().unwrap(), 300);
    assert_eq!(issued.as_i64().unwrap() - starts.as_i64().unwrap(), 300);
    assert!(claims.get("azp").is_none());

    let told = userinfo(&mut server.outside().await, &tokens["access_token"]).await;
    assert_eq!(
        told.json(),
        json!({
            "sub": claims["sub"], "name": "alice", "email": "alice@example.com",
            "username": "alice",
        })
    );
}

#[tokio::test]
async fn what_only_the_person_may_see_is_never_sent_to_the_client() {
    let server = OidcServer::open().await;
    let mut alice = server.alice().await;
    let absent = "-";
    for (client, more, code, words) in [
        (
            "silent",
            ("redirect_uri", absent),
            "invalid_request",
            "must specify redirect_uri",
        ),
        (
            "silent",
            ("client_id", absent),
            "invalid_request",
            "must specify client_id",
        ),
        ("nobody", ("x", "y"), "invalid_client", "invalid client ID"),
        (
            "silent",
            ("redirect_uri", "https://app.example.com/callback"),
            "invalid_request",
            "redirect_uri mismatch",
        ),
        (
            "silent",
            ("redirect_uri", "https://evil.example/callback?tenant=1"),
            "invalid_request",
            "redirect_uri mismatch",
        ),
    ] {
        let path = asking(client, &[more]);
        let answer = alice.get(&path).await;
        assert_eq!(refusal(&answer), is(400, code, words), "{path}");
        assert_eq!(answer.header("location"), "");
        let page = alice
            .send(with(request("GET", &path), "accept", "text/html,*/*"))
            .await;
        assert_eq!((page.status(), page.header("location")), (400, ""));
        assert!(page.header("content-type").starts_with("text/html"));
        assert!(
            page.header("content-security-policy")
                .contains("frame-ancestors 'none'")
        );
        assert!(page.text().contains(words), "{}", page.text());
    }
    let twice = format!(
        "{}&redirect_uri=https%3A%2F%2Fevil.example",
        asking("silent", &[])
    );
    assert_eq!(
        refusal(&alice.get(&twice).await).2,
        "redirect_uri occurs twice"
    );
    let put = alice.send(request("PUT", &asking("silent", &[]))).await;
    assert_eq!(
        refusal(&put),
        is(405, "invalid_request", "method not allowed")
    );
}

#[tokio::test]
async fn every_other_error_goes_back_with_state_and_issuer() {
    let server = OidcServer::open().await;
    let mut alice = server.alice().await;
    for (more, code) in [
        (("response_type", "-"), "invalid_request"),
        (("response_type", "token"), "unsupported_response_type"),
        (("code_challenge", CHALLENGE), "invalid_request"),
        (("request", "eyJ"), "invalid_request_object"),
        (("request_uri", "https://a"), "invalid_request_uri"),
        (("prompt", "none"), "login_required"),
        (("resource", RESOURCE), "invalid_target"),
        (("max_age", "soon"), "invalid_request"),
    ] {
        let fields = answer_of(&alice.get(&asking("silent", &[more])).await);
        assert_eq!(field(&fields, "error"), code, "{more:?} {fields:?}");
        assert_ne!(field(&fields, "error_description"), "");
        assert_eq!(
            (field(&fields, "state"), field(&fields, "iss")),
            ("st&te", ISSUER)
        );
        assert_eq!(field(&fields, "code"), "");
    }
    let twice = format!("{}&nonce=other", asking("silent", &[]));
    assert_eq!(
        field(&answer_of(&alice.get(&twice).await), "error"),
        "invalid_request"
    );
    let public = answer_of(&alice.get(&asking("public", &[])).await);
    assert_eq!(field(&public, "error"), "invalid_request");
}

#[tokio::test]
async fn a_tagged_device_is_refused_by_redirect_and_the_internet_with_a_page() {
    let server = OidcServer::open().await;
    let fields = answer_of(&server.machine().await.get(&asking("silent", &[])).await);
    assert_eq!(field(&fields, "error"), "access_denied");
    let refused = is(401, "access_denied", "not allowed over funnel");
    let outside = server.outside().await.get(&asking("silent", &[])).await;
    assert_eq!(refusal(&outside), refused);
    let mut alice = server.alice().await;
    let marked = with(
        request("GET", &asking("silent", &[])),
        "tailscale-funnel-request",
        "?1",
    );
    assert_eq!(refusal(&alice.send(marked).await), refused);
}

#[tokio::test]
async fn a_caller_whom_the_tailnet_does_not_know_logs_in_nowhere() {
    let server = OidcServer::open().await;
    let mut alice = server.alice().await;
    server.world.tailnet.expire("alice");
    let refused = alice.get(&asking("silent", &[])).await;
    let words = "failed to authenticate user with WhoIs";
    assert_eq!(refusal(&refused), is(500, "server_error", words));
}

#[tokio::test]
async fn scopes_that_mean_nothing_are_ignored_or_refused() {
    let scope = [("scope", "openid,email profile address offline_access")];
    let server = OidcServer::open().await;
    let mut alice = server.alice().await;
    assert_eq!(tokens(&mut alice, &scope).await["scope"], "profile");

    let strict = OidcServer::with(|settings| settings.unknown_scopes = UnknownScopes::Refuse).await;
    let fields = answer_of(&strict.alice().await.get(&asking("silent", &scope)).await);
    assert_eq!(field(&fields, "error"), "invalid_scope");
    let words = "invalid scope: unsupported scope: \"openid,email\"";
    assert_eq!(field(&fields, "error_description"), words);
}

#[tokio::test]
async fn a_request_may_be_posted_and_the_answer_too() {
    let server = OidcServer::open().await;
    let mut alice = server.alice().await;
    let query = asking("silent", &[]).split_once('?').unwrap().1.to_owned();
    let pairs: Vec<_> = url::form_urlencoded::parse(query.as_bytes())
        .into_owned()
        .collect();
    let pairs: Vec<_> = pairs
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    let posted = with(
        form("/authorize", &pairs),
        "origin",
        "https://app.example.com",
    );
    let answer = alice.send(posted).await;
    assert_eq!(answer.status(), 303);
    assert!(answer.header("location").contains("code="));

    for (more, name) in [(vec![], "code"), (vec![("prompt", "none")], "error")] {
        let more: Vec<_> = [("response_mode", "form_post")]
            .into_iter()
            .chain(more)
            .collect();
        let page = alice.get(&asking("silent", &more)).await;
        assert_eq!((page.status(), page.header("location")), (200, ""));
        let text = page.text();
        let action = APP.replace('&', "&amp;");
        assert!(
            text.contains(&format!("<form method=\"post\" action=\"{action}\">")),
            "{text}"
        );
        assert!(text.contains(&format!("name=\"{name}\"")), "{text}");
        assert!(
            text.contains("name=\"state\" value=\"st&amp;te\""),
            "{text}"
        );
        assert!(
            page.header("content-security-policy")
                .contains("script-src 'sha256-")
        );
    }
}

#[tokio::test]
async fn a_native_application_listens_at_any_port() {
    let server = OidcServer::open().await;
    let mut alice = server.alice().await;
    let uri = "http://127.0.0.1:51004/cb";
    let more = [
        ("redirect_uri", uri),
        ("code_challenge", CHALLENGE),
        ("code_challenge_method", "S256"),
    ];
    let answer = alice.get(&asking("public", &more)).await;
    let location = answer.header("location").to_owned();
    let code = location.strip_prefix(&format!("{uri}?code=")).unwrap();
    let code = &code[..32];
    let redeem = |verifier: &'static str| {
        form(
            "/token",
            &[
                ("grant_type", "authorization_code"),
                ("code", code),
                ("redirect_uri", uri),
                ("client_id", "public"),
                ("code_verifier", verifier),
            ],
        )
    };
    let answer = alice.send(redeem(VERIFIER)).await;
    assert_eq!(answer.status(), 200, "{answer:?}");
    let again = alice.send(redeem(VERIFIER)).await;
    assert_eq!(refusal(&again), is(400, "invalid_grant", "code not found"));
}
