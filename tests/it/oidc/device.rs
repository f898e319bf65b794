//! Logins of devices: the codes, the page, polling, and what a guess costs (RFC 8628).

use tailbone_oidc::{Params, device::DEVICE_CODE_GRANT, provider::Caller};

use super::{pages::Browser, *};

const TV: &str = "tv";
const BOX: &str = "box";

/// A server with a public client and a confidential one that may begin logins of devices.
async fn with_devices() -> OidcServer {
    let server = OidcServer::open().await;
    let registered = |metadata: &mut ClientMetadata| {
        metadata.grant_types = vec![DEVICE_CODE_GRANT.into()];
        metadata.redirect_uris.clear();
    };
    server.add_with(TV, AuthMethod::None, registered).await;
    server
        .add_with(BOX, AuthMethod::ClientSecretBasic, registered)
        .await;
    server
}

async fn begin(connection: &mut Connection, more: &[(&str, &str)]) -> Value {
    let pairs: Vec<_> = [("client_id", TV)].iter().chain(more).copied().collect();
    let answer = connection.send(form("/device_authorization", &pairs)).await;
    assert_eq!(answer.status(), 200, "{answer:?}");
    assert_eq!(answer.header("cache-control"), "no-store");
    answer.json()
}

fn polling(code: &Value, client: &str) -> Request<Full<Bytes>> {
    let pairs = [
        ("grant_type", DEVICE_CODE_GRANT),
        ("device_code", code.as_str().unwrap()),
        ("client_id", client),
    ];
    form("/token", &pairs)
}

async fn poll(connection: &mut Connection, device: &Value) -> Answer {
    connection.send(polling(&device["device_code"], TV)).await
}

impl Browser {
    /// Types a code, as a person does who has opened the page.
    async fn enter(&mut self, code: &str) -> Answer {
        let page = self.get("/device").await;
        self.post_code(&page, code, None).await
    }

    async fn post_code(&mut self, page: &Answer, code: &str, decision: Option<&str>) -> Answer {
        let token = super::pages::hidden(page, "confirm");
        let mut pairs = vec![("confirm", token.as_str()), ("user_code", code)];
        pairs.extend(decision.map(|decision| ("decision", decision)));
        self.send(with(form("/device", &pairs), "origin", ISSUER))
            .await
    }

    /// Presses a button of the page about a device.
    pub(super) async fn decide(&mut self, device: &Value, decision: &str) -> Answer {
        let code = device["user_code"].as_str().unwrap();
        let page = self.enter(code).await;
        assert!(page.text().contains("Continue as alice"), "{page:?}");
        self.post_code(&page, code, Some(decision)).await
    }
}

#[tokio::test]
async fn a_person_connects_a_device_that_then_has_tokens() {
    let server = with_devices().await;
    let mut outside = server.outside().await;
    let device = begin(&mut outside, &[("scope", "openid email")]).await;
    assert_eq!(device["verification_uri"], format!("{ISSUER}/device"));
    assert_eq!(
        (&device["interval"], &device["expires_in"]),
        (&json!(5), &json!(900))
    );
    let told = outside
        .get("/.well-known/openid-configuration")
        .await
        .json();
    let endpoint = format!("{ISSUER}/device_authorization");
    assert_eq!(told["device_authorization_endpoint"], endpoint);
    let types = told["grant_types_supported"].as_array().unwrap();
    assert!(types.contains(&json!(DEVICE_CODE_GRANT)));

    let pending = refusal(&poll(&mut outside, &device).await);
    assert_eq!(
        (pending.0, pending.1.as_str()),
        (400, "authorization_pending")
    );
    let early = refusal(&poll(&mut outside, &device).await);
    assert_eq!((early.0, early.1.as_str()), (400, "slow_down"));

    let mut alice = Browser::of(&server, "alice").await;
    // What the device shows as a picture fills the form in, and decides nothing.
    let complete = device["verification_uri_complete"].as_str().unwrap();
    let page = alice.get(complete.strip_prefix(ISSUER).unwrap()).await;
    let code = device["user_code"].as_str().unwrap();
    assert!(
        page.text().contains(&format!("value=\"{code}\"")),
        "{page:?}"
    );
    assert!(!page.text().contains("The tv application"), "{page:?}");
    let policy = page.header("content-security-policy");
    assert!(policy.contains("frame-ancestors 'none'"), "{policy}");

    let page = alice.enter(&code.to_lowercase().replace('-', " ")).await;
    let text = page.text();
    for shown in ["The tv application", "alice@example.com", code] {
        assert!(text.contains(shown), "{shown}: {text}");
    }
    let done = alice.decide(&device, "continue").await;
    assert!(done.text().contains("The device is connected"), "{done:?}");

    let answer = poll(&mut outside, &device).await;
    assert_eq!(answer.status(), 200, "{answer:?}");
    let tokens = answer.json();
    let claims = server.verified(tokens["id_token"].as_str().unwrap()).await;
    assert_eq!(claims["aud"], TV);
    assert_eq!(claims["email"], "alice@example.com");
    assert!(claims["auth_time"].is_i64(), "{claims}");
    let known = userinfo(&mut outside, &tokens["access_token"]).await;
    assert_eq!(known.json()["sub"], claims["sub"]);
    let refreshed = form(
        "/token",
        &[
            ("grant_type", "refresh_token"),
            ("refresh_token", tokens["refresh_token"].as_str().unwrap()),
            ("client_id", TV),
        ],
    );
    assert_eq!(outside.send(refreshed).await.status(), 200);

    // The same code again ends what it gave.
    let again = poll(&mut outside, &device).await;
    assert_eq!(refusal(&again), is(400, "invalid_grant", "code not found"));
    let ended = userinfo(&mut outside, &tokens["access_token"]).await;
    assert_eq!(ended.status(), 401);
}

#[tokio::test]
async fn a_device_hears_that_it_was_refused_or_came_too_late() {
    let server = with_devices().await;
    let mut outside = server.outside().await;
    let mut alice = Browser::of(&server, "alice").await;
    let device = begin(&mut outside, &[]).await;
    let done = alice.decide(&device, "cancel").await;
    assert!(done.text().contains("not connected"), "{done:?}");
    let refused = refusal(&poll(&mut outside, &device).await);
    assert_eq!((refused.0, refused.1.as_str()), (400, "access_denied"));
    // Who decided first has decided.
    let page = alice.enter(device["user_code"].as_str().unwrap()).await;
    assert!(page.text().contains("No device waits"), "{page:?}");

    let late = begin(&mut outside, &[]).await;
    let pairs = [
        ("grant_type", DEVICE_CODE_GRANT),
        ("device_code", late["device_code"].as_str().unwrap()),
        ("client_id", TV),
    ];
    let then = Timestamp::now() + Duration::from_secs(901);
    let answer = server
        .provider
        .token(
            &Params::parse(query(&pairs).as_bytes()),
            None,
            &Caller::Unknown,
            then,
        )
        .await;
    assert_eq!(answer.unwrap_err().code, "expired_token");
    let unknown = outside.send(polling(&json!("0"), TV)).await;
    assert_eq!(refusal(&unknown).1, "expired_token");
}

#[tokio::test]
async fn only_the_client_that_began_has_the_tokens() {
    let server = with_devices().await;
    let mut outside = server.outside().await;
    let mut alice = Browser::of(&server, "alice").await;
    let device = begin(&mut outside, &[]).await;
    alice.decide(&device, "continue").await;
    let other = with(
        polling(&device["device_code"], BOX),
        "authorization",
        &basic(BOX),
    );
    let mixed = outside.send(other).await;
    let words = "it was given to another client";
    assert_eq!(refusal(&mixed), is(400, "invalid_grant", words));
    let burnt = poll(&mut outside, &device).await;
    assert_eq!(
        refusal(&burnt).1,
        "invalid_grant",
        "a stolen code is worth nothing"
    );

    // A device's code is no code of a browser, and the other way round.
    let device = begin(&mut outside, &[]).await;
    alice.decide(&device, "continue").await;
    let as_code = form(
        "/token",
        &[
            ("grant_type", "authorization_code"),
            ("code", device["device_code"].as_str().unwrap()),
            ("redirect_uri", APP),
            ("client_id", TV),
        ],
    );
    assert_eq!(outside.send(as_code).await.status(), 400);
    let code = code(&mut alice.connection, &asking("silent", &[])).await;
    let as_device = outside.send(polling(&json!(code), TV)).await;
    assert_eq!(refusal(&as_device).1, "expired_token");
}

#[tokio::test]
async fn who_may_not_begin() {
    let server = with_devices().await;
    let mut outside = server.outside().await;
    let failed = "client authentication failed";
    let unregistered = "the client did not register this grant type";
    for (pairs, refused) in [
        (vec![], is(401, "invalid_client", failed)),
        (
            vec![("client_id", "nobody")],
            is(401, "invalid_client", failed),
        ),
        (vec![("client_id", BOX)], is(401, "invalid_client", failed)),
        (
            vec![("client_id", BOX), ("client_secret", "wrong")],
            is(401, "invalid_client", failed),
        ),
        (
            vec![("client_id", "public")],
            is(400, "unauthorized_client", unregistered),
        ),
        (
            vec![("client_id", TV), ("client_id", TV)],
            is(400, "invalid_request", "a parameter occurs twice"),
        ),
        (
            vec![("client_id", TV), ("resource", "no-uri")],
            is(
                400,
                "invalid_target",
                "resource is no absolute URI without fragment",
            ),
        ),
    ] {
        let answer = outside.send(form("/device_authorization", &pairs)).await;
        assert_eq!(refusal(&answer), refused, "{pairs:?}");
    }
    // The same at the token endpoint, before any code is looked at.
    let unregistered_poll = outside.send(polling(&json!("0"), "public")).await;
    assert_eq!(refusal(&unregistered_poll).1, "unauthorized_client");

    for _ in 0..100 {
        begin(&mut outside, &[]).await;
    }
    let more = outside
        .send(form("/device_authorization", &[("client_id", TV)]))
        .await;
    assert_eq!(refusal(&more).0, 429);
}

#[tokio::test]
async fn a_person_has_few_tries() {
    let server = with_devices().await;
    let mut outside = server.outside().await;
    let device = begin(&mut outside, &[]).await;
    let code = device["user_code"].as_str().unwrap();
    let mut alice = Browser::of(&server, "alice").await;
    // Right ones cost nothing, nor does what can be no code.
    for typed in [code, code, "AAAA-AAAA", "short"] {
        assert_eq!(alice.enter(typed).await.status(), 200);
    }
    for _ in 0..10 {
        let page = alice.enter("BBBB-BBBB").await;
        assert!(page.text().contains("No device waits"), "{page:?}");
    }
    let refused = alice.enter(code).await;
    assert_eq!(refused.status(), 429, "also the right one: {refused:?}");
    assert!(
        refused.text().contains("too many wrong codes"),
        "{refused:?}"
    );
    let mut bob = Browser::of(&server, "bob").await;
    let page = bob.enter(code).await;
    assert!(page.text().contains("Continue as bob"), "{page:?}");
}

#[tokio::test]
async fn no_other_page_types_or_decides() {
    let server = with_devices().await;
    let mut outside = server.outside().await;
    let device = begin(&mut outside, &[]).await;
    let code = device["user_code"].as_str().unwrap();
    let mut alice = Browser::of(&server, "alice").await;
    let page = alice.enter(code).await;
    let token = super::pages::hidden(&page, "confirm");
    let pairs = |token| {
        [
            ("confirm", token),
            ("user_code", code),
            ("decision", "continue"),
        ]
    };
    let good = form("/device", &pairs(token.as_str()));
    let forged = [
        with(good.clone(), "origin", "https://evil.example"),
        with(good.clone(), "sec-fetch-site", "cross-site"),
        form("/device", &pairs("")),
        form("/device", &pairs("00000000000000000000000000000000")),
        request("GET", &format!("/device?{}", query(&pairs(token.as_str())))),
    ];
    for forged in forged {
        let shown = alice.send(forged).await;
        assert!(
            shown.text().contains("Code that the device shows"),
            "{shown:?}"
        );
    }
    alice.cookies.clear();
    let shown = alice.send(good).await;
    assert!(
        shown.text().contains("Code that the device shows"),
        "{shown:?}"
    );
    let pending = refusal(&poll(&mut outside, &device).await);
    assert_eq!(pending.1, "authorization_pending");

    let mut machine = server.machine().await;
    let words = "tagged devices have no user who could log in";
    assert_eq!(
        refusal(&machine.get("/device").await),
        is(403, "access_denied", words)
    );
    let words = "not allowed over funnel";
    assert_eq!(
        refusal(&outside.get("/device").await),
        is(401, "access_denied", words)
    );
}

#[tokio::test]
async fn a_device_has_the_resources_that_policy_gives_its_person() {
    let server = with_devices().await;
    let mut outside = server.outside().await;
    let asked = [
        ("resource", RESOURCE),
        ("resource", "https://denied.example.com"),
    ];
    let mut alice = Browser::of(&server, "alice").await;
    let device = begin(&mut outside, &asked).await;
    let done = alice.decide(&device, "continue").await;
    assert!(done.text().contains("policy of your tailnet"), "{done:?}");
    let refused = refusal(&poll(&mut outside, &device).await);
    assert_eq!(refused.1, "access_denied");

    let allowed = server.person("alice2", mcp).await;
    let mut alice = Browser {
        connection: allowed,
        cookies: Vec::new(),
    };
    let device = begin(&mut outside, &asked).await;
    let page = alice.enter(device["user_code"].as_str().unwrap()).await;
    assert!(page.text().contains(RESOURCE), "{page:?}");
    alice.decide(&device, "continue").await;
    let tokens = poll(&mut outside, &device).await.json();
    let claims = server.verified(tokens["id_token"].as_str().unwrap()).await;
    assert_eq!(claims["aud"], json!([TV, RESOURCE]));
}
