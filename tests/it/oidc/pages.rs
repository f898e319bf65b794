//! Logins that a person confirms, sessions, and the cookies of both.

use super::*;

pub(super) const SESSION: &str = "__Host-oidc-session";
const CONFIRM: &str = "__Host-oidc-confirm";

/// A browser: it keeps cookies and says so.
pub(super) struct Browser {
    pub(super) connection: Connection,
    pub(super) cookies: Vec<(String, String)>,
}

impl Browser {
    pub(super) async fn of(server: &OidcServer, name: &str) -> Self {
        Self::on(server.person(name, |identity| identity).await)
    }

    pub(super) fn on(connection: Connection) -> Self {
        Self {
            connection,
            cookies: Vec::new(),
        }
    }

    pub(super) async fn send(&mut self, request: Request<Full<Bytes>>) -> Answer {
        let request = with(request, "sec-fetch-mode", "navigate");
        let pairs = self
            .cookies
            .iter()
            .map(|(name, value)| format!("{name}={value}"));
        let cookies = pairs.collect::<Vec<_>>().join("; ");
        let request = with(with(request, "cookie", &cookies), "accept", "text/html");
        let answer = self.connection.send(request).await;
        for cookie in answer.0.headers().get_all(header::SET_COOKIE) {
            let cookie = cookie.to_str().unwrap();
            for part in ["Path=/", "Secure", "HttpOnly", "SameSite="] {
                assert!(cookie.contains(part), "{cookie}");
            }
            let (name, value) = cookie.split(';').next().unwrap().split_once('=').unwrap();
            self.cookies.retain(|(known, _)| known != name);
            self.cookies.push((name.to_owned(), value.to_owned()));
        }
        answer
    }

    pub(super) async fn get(&mut self, path: &str) -> Answer {
        self.send(request("GET", path)).await
    }

    pub(super) fn cookie(&self, name: &str) -> Option<&str> {
        let found = self.cookies.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }

    /// Presses a button of the page.
    pub(super) async fn press(&mut self, page: &Answer, decision: &str) -> Answer {
        let (request, token) = (hidden(page, "request"), hidden(page, "confirm"));
        let pairs = [
            ("request", request.as_str()),
            ("confirm", token.as_str()),
            ("decision", decision),
        ];
        self.send(with(form("/authorize/confirm", &pairs), "origin", ISSUER))
            .await
    }

    /// The ID token's claims of a login that was confirmed.
    pub(super) async fn confirmed(&mut self, server: &OidcServer, path: &str) -> Value {
        let page = self.get(path).await;
        let answer = self.press(&page, "continue").await;
        assert_eq!(answer.status(), 303, "{answer:?}");
        self.claims(server, answer.header("location")).await
    }

    pub(super) async fn claims(&mut self, server: &OidcServer, location: &str) -> Value {
        let query = location.strip_prefix(&format!("{APP}&")).unwrap();
        let fields: Vec<_> = url::form_urlencoded::parse(query.as_bytes())
            .into_owned()
            .collect();
        let request = form(
            "/token",
            &[
                ("grant_type", "authorization_code"),
                ("code", field(&fields, "code")),
                ("redirect_uri", APP),
            ],
        );
        let request = with(request, "authorization", &basic("asking"));
        let tokens = self.connection.send(request).await.json();
        server.verified(tokens["id_token"].as_str().unwrap()).await
    }
}

pub(super) fn hidden(page: &Answer, name: &str) -> String {
    page.hidden_field(name)
}

pub(super) fn is_page(answer: &Answer) -> bool {
    answer.status() == 200 && answer.text().contains("Continue as alice")
}

#[tokio::test]
async fn a_person_confirms_once_in_a_session() {
    let server = OidcServer::open().await;
    let mut alice = Browser::of(&server, "alice").await;
    let page = alice.get(&asking("asking", &[])).await;
    assert!(is_page(&page), "{page:?}");
    let text = page.text();
    for shown in [
        "The asking application",
        "alice@example.com",
        "app.example.com",
    ] {
        assert!(text.contains(shown), "{shown}: {text}");
    }
    assert!(
        page.header("content-security-policy")
            .contains("frame-ancestors 'none'")
    );
    assert!(alice.cookie(SESSION).is_none() && alice.cookie(CONFIRM).is_some());

    let answer = alice.press(&page, "continue").await;
    assert_eq!(answer.status(), 303, "{answer:?}");
    let claims = alice.claims(&server, answer.header("location")).await;
    assert!(alice.cookie(SESSION).is_some());
    for prompt in ["-", "none"] {
        let answer = alice.get(&asking("asking", &[("prompt", prompt)])).await;
        assert_eq!(answer.status(), 302, "{prompt}: {answer:?}");
        let again = alice.claims(&server, answer.header("location")).await;
        assert_eq!(again["auth_time"], claims["auth_time"]);
        assert_eq!(again["sub"], claims["sub"]);
    }
    // Another browser of the same person has confirmed nothing.
    let mut other = Browser::of(&server, "alice").await;
    assert!(is_page(&other.get(&asking("asking", &[])).await));
}

#[tokio::test]
async fn a_login_may_be_asked_for_again() {
    let server = OidcServer::open().await;
    let mut alice = Browser::of(&server, "alice").await;
    let claims = alice.confirmed(&server, &asking("asking", &[])).await;
    let before = alice.cookie(SESSION).unwrap().to_owned();
    for more in [("prompt", "login"), ("max_age", "0"), ("prompt", "consent")] {
        let page = alice.get(&asking("asking", &[more])).await;
        assert!(is_page(&page), "{more:?}");
    }
    let aged = alice.get(&asking("asking", &[("max_age", "10000")])).await;
    assert_eq!(aged.status(), 302);
    let again = alice
        .confirmed(&server, &asking("asking", &[("prompt", "login")]))
        .await;
    assert!(again["auth_time"].as_i64() >= claims["auth_time"].as_i64());
    assert_ne!(
        alice.cookie(SESSION),
        Some(before.as_str()),
        "a login gives another cookie"
    );
}

#[tokio::test]
async fn without_a_session_prompt_none_shows_no_page() {
    let server = OidcServer::open().await;
    let mut alice = Browser::of(&server, "alice").await;
    for client in ["asking", "silent"] {
        let fields = answer_of(&alice.get(&asking(client, &[("prompt", "none")])).await);
        assert_eq!(field(&fields, "error"), "login_required");
    }
}

#[tokio::test]
async fn cancelling_goes_back_without_a_code() {
    let server = OidcServer::open().await;
    let mut alice = Browser::of(&server, "alice").await;
    let page = alice.get(&asking("asking", &[])).await;
    let answer = alice.press(&page, "cancel").await;
    let location = answer.header("location");
    assert!(
        location.contains("error=access_denied") && !location.contains("code="),
        "{location}"
    );
    assert!(alice.cookie(SESSION).is_none());
}

#[tokio::test]
async fn nobody_confirms_for_somebody_else() {
    let server = OidcServer::open().await;
    let mut alice = Browser::of(&server, "alice").await;
    let page = alice.get(&asking("asking", &[])).await;
    let (wanted, token) = (hidden(&page, "request"), hidden(&page, "confirm"));
    let pairs = |token| {
        [
            ("request", wanted.as_str()),
            ("confirm", token),
            ("decision", "continue"),
        ]
    };
    let good = form("/authorize/confirm", &pairs(token.as_str()));
    for forged in [
        with(good.clone(), "origin", "https://evil.example"),
        with(good.clone(), "sec-fetch-site", "cross-site"),
        form("/authorize/confirm", &pairs("")),
        form(
            "/authorize/confirm",
            &pairs("00000000000000000000000000000000"),
        ),
    ] {
        // The page is shown again, and nothing is confirmed.
        assert!(is_page(&alice.send(forged).await));
    }
    // Without the cookie the token alone is worth nothing.
    alice.cookies.clear();
    assert!(is_page(&alice.send(good).await));

    // A session of one person is none of another.
    let mut alice = Browser::of(&server, "alice").await;
    alice.confirmed(&server, &asking("asking", &[])).await;
    let mut bob = Browser::of(&server, "bob").await;
    bob.cookies = alice.cookies.clone();
    let page = bob.get(&asking("asking", &[])).await;
    assert!(page.text().contains("Continue as bob"), "{page:?}");
}

#[tokio::test]
async fn a_hint_about_another_person_needs_another_login() {
    let server = OidcServer::open().await;
    let mut alice = Browser::of(&server, "alice").await;
    let mine = tokens(&mut alice.connection, &[]).await;
    alice.confirmed(&server, &asking("asking", &[])).await;
    let bobs = tokens(&mut server.person("bob", |identity| identity).await, &[]).await;
    let with_hint = |hint: &str| asking("asking", &[("prompt", "none"), ("id_token_hint", hint)]);
    let good = alice
        .get(&with_hint(mine["id_token"].as_str().unwrap()))
        .await;
    assert!(field(&answer_of(&good), "code").len() == 32);
    for hint in [
        bobs["id_token"].as_str().unwrap(),
        "eyJhbGciOiJub25lIn0.e30.",
    ] {
        let fields = answer_of(&alice.get(&with_hint(hint)).await);
        assert_eq!(field(&fields, "error"), "login_required", "{hint}");
    }
}

#[tokio::test]
async fn what_a_client_calls_itself_is_text() {
    let server = OidcServer::open().await;
    let mut admin = server
        .person("admin", |identity| {
            identity.cap(CAPABILITY, json!({"allow_dcr": true}))
        })
        .await;
    let body = json!({
        "redirect_uris": ["https://app.example.com/callback?tenant=1"],
        "client_name": "<script>alert(1)</script>\"'",
        "policy_uri": "https://app.example.com/policy",
        "logo_uri": "https://cdn.example.com/logo.png",
    });
    let (parts, _) = request("POST", "/register").into_parts();
    let registered = admin
        .send(Request::from_parts(parts, Full::from(body.to_string())))
        .await;
    let id = registered.json()["client_id"].as_str().unwrap().to_owned();
    let mut alice = Browser::of(&server, "alice").await;
    let page = alice.get(&asking(&id, &[])).await;
    assert!(is_page(&page), "registered clients are confirmed: {page:?}");
    let text = page.text();
    assert!(
        !text.contains("<script>") && text.contains("&lt;script&gt;"),
        "{text}"
    );
    assert!(text.contains("https://app.example.com/policy"));
    let policy = page.header("content-security-policy");
    assert!(
        policy.contains("img-src https://cdn.example.com;"),
        "{policy}"
    );
    assert!(!policy.contains("script-src"), "{policy}");
}

/// A name that would run a script, were it not escaped.
const HOSTILE: &str = "<img src=x onerror=alert(1)>\"'&";

/// Nothing on the page runs, loads or is styled but what the server itself wrote.
fn is_harmless(page: &Answer) {
    let text = page.text();
    assert!(!text.contains("<img src=x"), "{text}");
    assert!(!text.contains("\"'&"), "{text}");
    for needed in ["<html lang=\"en\">", "<main>", "<h1>", "<style>", "<title>"] {
        assert_eq!(text.matches(needed).count(), 1, "{needed}: {text}");
    }
    assert!(
        text.len() < 20_000 && !text.contains("style=\"") && !text.contains("http://evil"),
        "{text}"
    );
    let (_, style) = text.split_once("<style>").unwrap();
    let (style, _) = style.split_once("</style>").unwrap();
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, style.as_bytes());
    let hash = base64::engine::general_purpose::STANDARD.encode(hash);
    let policy = page.header("content-security-policy");
    for needed in [
        &format!("style-src 'sha256-{hash}';"),
        "default-src 'none';",
        "base-uri 'none';",
        "frame-ancestors 'none'",
    ] {
        assert!(policy.contains(needed), "{needed}: {policy}");
    }
    assert_eq!(page.header("cache-control"), "no-store");
    assert_eq!(page.header("referrer-policy"), "no-referrer");
}

#[tokio::test]
async fn the_page_tells_in_words_what_the_client_learns() {
    let server = OidcServer::open().await;
    let mut alice = Browser::of(&server, "alice").await;
    let claims = json!({"userinfo": {"groups": null}}).to_string();
    let page = alice.get(&asking("asking", &[("claims", &claims)])).await;
    is_harmless(&page);
    let text = page.text();
    for shown in [
        "<h2>What it learns about you</h2>",
        "<dt>Your mail address</dt><dd>alice@example.com</dd>",
        "<dt>Your user name</dt><dd>alice</dd>",
        "<dt>Your number on this tailnet</dt><dd>userid:",
        "with its addresses and key</dd>",
    ] {
        assert!(text.contains(shown), "{shown}: {text}");
    }
    for kept in ["<dt>Also: ", "What it wants to use"] {
        assert!(!text.contains(kept), "{kept}: {text}");
    }
    let mut alice = Browser::on(server.person("alice", mcp).await);
    let page = alice
        .get(&asking("asking", &[("resource", RESOURCE)]))
        .await;
    assert!(
        page.text().contains(&format!("<li>{RESOURCE}</li>")),
        "{page:?}"
    );
}

#[tokio::test]
async fn every_name_that_somebody_else_chose_is_text() {
    let server = OidcServer::open().await;
    server
        .add_with("hostile", AuthMethod::None, |metadata| {
            metadata.client_name = HOSTILE.into();
            metadata.login = Some(Login::Confirm);
            metadata.client_uri = "javascript:alert(1)".into();
            metadata.policy_uri = format!("https://app.example.com/{HOSTILE}");
            metadata.tos_uri = "data:text/html,x".into();
        })
        .await;
    let challenge = [
        ("code_challenge", CHALLENGE),
        ("code_challenge_method", "S256"),
    ];
    let more = [&challenge[..], &[("login_hint", "<b>@\"'&.example")]].concat();
    let rule = json!({
        "users": ["*"],
        "resources": ["*"],
        "extraClaims": {HOSTILE: HOSTILE},
    });
    let identity = Identity {
        display_name: HOSTILE.into(),
        ..Identity::user("mallory@example.com").cap(CAPABILITY, rule)
    };
    let node = server.world.join("mallory", identity);
    let mut mallory = Browser::on(server.world.call(&node, 443).await);
    let page = mallory.get(&asking("hostile", &more)).await;
    assert_eq!(page.status(), 200, "{page:?}");
    is_harmless(&page);
    let text = page.text();
    for kept in ["javascript:", "data:text", "<b>@"] {
        assert!(!text.contains(kept), "{kept}: {text}");
    }
    assert!(text.contains("<dt>Also: &lt;img src=x"), "{text}");
    assert!(text.contains("Continue as &lt;img src=x"), "{text}");
    // What a request says comes back on an error's page at most.
    let bad = asking(HOSTILE, &[("redirect_uri", HOSTILE)]);
    let page = mallory.get(&bad).await;
    assert_eq!(page.status(), 400);
    is_harmless(&page);
    let page = mallory
        .get(&format!("/device?{}", query(&[("user_code", HOSTILE)])))
        .await;
    is_harmless(&page);
    assert!(
        page.header("content-security-policy")
            .contains("form-action 'self';")
    );
    let page = mallory.get("/logout").await;
    is_harmless(&page);
}

#[tokio::test]
async fn an_error_says_what_happened_whose_turn_it_is_and_its_id() {
    let server = OidcServer::open().await;
    let mut alice = Browser::of(&server, "alice").await;
    let mut outside = Browser::on(server.outside().await);
    let mut machine = Browser::on(server.machine().await);
    let unknown = asking("nobody", &[]);
    let mismatch = asking("asking", &[("redirect_uri", "https://evil.example/")]);
    let asked = asking("asking", &[]);
    let pages = [
        (
            alice.get(&unknown).await,
            400,
            "is not registered",
            "those who run the application",
        ),
        (
            alice.get(&mismatch).await,
            400,
            "sent a request",
            "those who run the application",
        ),
        (
            outside.get(&asked).await,
            401,
            "from the internet",
            "It is your turn: connect",
        ),
        (
            outside.get("/device").await,
            401,
            "from the internet",
            "It is your turn: connect",
        ),
        (
            machine.get(&asked).await,
            403,
            "a tagged machine",
            "It is your turn: log in",
        ),
        (
            machine.get("/device").await,
            403,
            "a tagged machine",
            "It is your turn: open",
        ),
        (
            alice.get("/logout?state=1&state=2").await,
            400,
            "You are still signed in",
            "those who run the application",
        ),
    ];
    for (page, status, happened, turn) in pages {
        assert_eq!(page.status(), status, "{page:?}");
        is_harmless(&page);
        let id = page.header("x-request-id");
        for shown in [happened, turn, &format!("<code>{id}</code>")] {
            assert!(page.text().contains(shown), "{shown}: {page:?}");
        }
        assert!(id.len() == 32, "{id}");
    }
}

#[tokio::test]
async fn a_machines_browser_goes_back_to_the_client_from_its_page() {
    let server = OidcServer::open().await;
    let mut machine = Browser::on(server.machine().await);
    let page = machine.get(&asking("asking", &[])).await;
    let text = page.text();
    let (_, back) = text.split_once("href=\"https://app").unwrap();
    let (back, _) = back.split_once('"').unwrap();
    assert!(
        back.contains("error=access_denied") && back.contains("state=st%26te"),
        "{back}"
    );
    // A client that wants no page gets none, and a program neither.
    let quiet = machine.get(&asking("asking", &[("prompt", "none")])).await;
    assert_eq!(field(&answer_of(&quiet), "error"), "access_denied");
    let program = machine.connection.get(&asking("asking", &[])).await;
    assert_eq!(field(&answer_of(&program), "error"), "access_denied");
}

#[tokio::test]
async fn the_form_of_another_site_logs_in_with_the_session_that_there_is() {
    let server = OidcServer::open().await;
    let mut alice = Browser::of(&server, "alice").await;
    let claims = alice.confirmed(&server, &asking("asking", &[])).await;
    let path = asking("asking", &[("prompt", "none")]);
    let sent = query_pairs(&path);
    let pairs: Vec<_> = sent.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
    let foreign = |pairs: &[(&str, &str)]| {
        let request = with(form("/authorize", pairs), "sec-fetch-site", "cross-site");
        with(request, "origin", "https://app.example.com")
    };
    // The browser sends no cookie with it.
    let cookies = std::mem::take(&mut alice.cookies);
    let answer = alice.send(foreign(&pairs)).await;
    assert_eq!(answer.status(), 303, "{answer:?}");
    assert!(answer.header("set-cookie").is_empty(), "{answer:?}");
    let own = answer.header("location").to_owned();
    assert!(own.starts_with("/authorize?"), "{own}");
    let again: std::collections::BTreeSet<_> = query_pairs(&own).into_iter().collect();
    assert_eq!(again, sent.iter().cloned().collect());
    // What is too long for a link is a form of ours.
    let long = "s".repeat(5000);
    let longer = [&pairs[..], &[("ui_locales", long.as_str())]].concat();
    let page = alice.send(foreign(&longer)).await;
    assert_eq!(page.status(), 200, "{page:?}");
    assert!(
        page.text()
            .contains("<form method=\"post\" action=\"/authorize\">"),
        "{page:?}"
    );
    assert_eq!(hidden(&page, "nonce"), "n-1");
    // Followed, it comes with the cookie.
    alice.cookies = cookies;
    let answer = alice.get(&own).await;
    let known = alice.claims(&server, answer.header("location")).await;
    assert_eq!(known["auth_time"], claims["auth_time"]);
}

fn query_pairs(path: &str) -> Vec<(String, String)> {
    let (_, query) = path.split_once('?').unwrap();
    url::form_urlencoded::parse(query.as_bytes())
        .into_owned()
        .collect()
}
