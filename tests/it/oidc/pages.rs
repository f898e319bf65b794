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
