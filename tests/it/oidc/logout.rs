//! Signing out: who can end a session, and where the browser goes afterwards.

use super::{
    pages::{Browser, SESSION, hidden},
    *,
};

/// Where the application wants the browser back.
pub(super) const OUT: &str = "https://app.example.com/signed-out";

/// A browser whose person has logged in to the client `leaving`.
pub(super) struct SignedIn {
    pub(super) server: OidcServer,
    pub(super) browser: Browser,
    pub(super) tokens: Value,
    pub(super) id_token: String,
}

impl SignedIn {
    pub(super) async fn open() -> Self {
        let server = OidcServer::open().await;
        Self::at(server).await
    }

    pub(super) async fn at(server: OidcServer) -> Self {
        server
            .add_with("leaving", AuthMethod::ClientSecretBasic, leaving)
            .await;
        let mut browser = Browser::of(&server, "alice").await;
        let tokens = log_in(&mut browser, "leaving").await;
        Self {
            id_token: tokens["id_token"].as_str().unwrap().to_owned(),
            server,
            browser,
            tokens,
        }
    }

    /// Presses a button of the page that asks.
    pub(super) async fn press(&mut self, page: &Answer, decision: &str) -> Answer {
        let request = pressed(page, decision);
        self.browser.send(with(request, "origin", ISSUER)).await
    }

    pub(super) fn is_in(&self) -> bool {
        self.browser
            .cookie(SESSION)
            .is_some_and(|cookie| !cookie.is_empty())
    }
}

fn pressed(page: &Answer, decision: &str) -> Request<Full<Bytes>> {
    let (asked, token) = (hidden(page, "request"), hidden(page, "confirm"));
    let pairs = [
        ("request", asked.as_str()),
        ("confirm", token.as_str()),
        ("decision", decision),
    ];
    form("/logout/confirm", &pairs)
}

/// A client that its people can leave.
pub(super) fn leaving(metadata: &mut ClientMetadata) {
    metadata.post_logout_redirect_uris = vec![OUT.into()];
    metadata.login = Some(Login::Silent);
}

/// The tokens of a login in this browser.
pub(super) async fn log_in(browser: &mut Browser, client: &str) -> Value {
    let fields = answer_of(&browser.get(&asking(client, &[])).await);
    let redeemed = form(
        "/token",
        &[
            ("grant_type", "authorization_code"),
            ("code", field(&fields, "code")),
            ("redirect_uri", APP),
        ],
    );
    let redeemed = with(redeemed, "authorization", &basic(client));
    let answer = browser.connection.send(redeemed).await;
    assert_eq!(answer.status(), 200, "{answer:?}");
    answer.json()
}

pub(super) fn logout(pairs: &[(&str, &str)]) -> String {
    format!("/logout?{}", query(pairs))
}

pub(super) fn is_question(answer: &Answer) -> bool {
    answer.status() == 200 && answer.text().contains("<h1>Sign out?</h1>")
}

pub(super) fn is_signed_out(answer: &Answer) -> bool {
    answer.status() == 200 && answer.text().contains("<h1>Signed out</h1>")
}

#[tokio::test]
async fn a_sign_out_ends_the_session_with_all_that_was_granted_in_it() {
    let mut alice = SignedIn::open().await;
    let claims = alice.server.verified(&alice.id_token).await;
    assert_eq!(claims["sid"].as_str().unwrap().len(), 32);
    let again = log_in(&mut alice.browser, "leaving").await;
    let again = alice
        .server
        .verified(again["id_token"].as_str().unwrap())
        .await;
    assert_eq!(again["sid"], claims["sid"], "one session");

    let cookies = alice.browser.cookies.clone();
    let answer = alice
        .browser
        .get(&logout(&[("id_token_hint", &alice.id_token)]))
        .await;
    assert!(is_signed_out(&answer) && !alice.is_in(), "{answer:?}");
    let told = userinfo(&mut alice.browser.connection, &alice.tokens["access_token"]).await;
    assert_eq!(told.status(), 401);
    let refreshed = form(
        "/token",
        &[
            ("grant_type", "refresh_token"),
            (
                "refresh_token",
                alice.tokens["refresh_token"].as_str().unwrap(),
            ),
        ],
    );
    let refreshed = with(refreshed, "authorization", &basic("leaving"));
    let refreshed = alice.browser.connection.send(refreshed).await;
    assert_eq!(refusal(&refreshed).1, "invalid_grant");
    // Nor does a cookie that was kept bring the session back.
    alice.browser.cookies = cookies;
    let silent = asking("leaving", &[("prompt", "none")]);
    let fields = answer_of(&alice.browser.get(&silent).await);
    assert_eq!(field(&fields, "error"), "login_required");
}

#[tokio::test]
async fn a_client_that_names_itself_has_the_person_asked_and_the_browser_back() {
    let mut alice = SignedIn::open().await;
    let asked = [
        ("client_id", "leaving"),
        ("post_logout_redirect_uri", OUT),
        ("state", "s&t"),
    ];
    let page = alice.browser.get(&logout(&asked)).await;
    assert!(
        is_question(&page) && page.text().contains("alice@example.com"),
        "{page:?}"
    );
    let stays = alice.press(&page, "cancel").await;
    assert!(
        stays.text().contains("You are still signed in"),
        "{stays:?}"
    );
    assert!(alice.is_in());
    let answer = alice.press(&page, "continue").await;
    assert_eq!(answer.status(), 303);
    assert_eq!(answer.header("location"), format!("{OUT}?state=s%26t"));
    assert!(!alice.is_in());
    // Where nobody is signed in, a request without a proof leads nowhere.
    let nobody = alice.browser.get(&logout(&asked)).await;
    assert!(is_signed_out(&nobody), "{nobody:?}");
    // A hint that is good proves it, also when the session is over.
    let asked = [
        ("id_token_hint", alice.id_token.as_str()),
        ("client_id", "leaving"),
        ("post_logout_redirect_uri", OUT),
    ];
    let answer = alice.browser.get(&logout(&asked)).await;
    assert_eq!(answer.header("location"), OUT);
}

#[tokio::test]
async fn nobody_signs_out_somebody_else() {
    let mut alice = SignedIn::open().await;
    let page = alice.browser.get("/logout").await;
    let good = pressed(&page, "continue");
    let token = hidden(&page, "confirm");
    for forged in [
        with(good.clone(), "origin", "https://evil.example"),
        with(good.clone(), "sec-fetch-site", "cross-site"),
        form("/logout/confirm", &[("decision", "continue")]),
        form(
            "/logout/confirm",
            &[("decision", "continue"), ("confirm", &token[1..])],
        ),
    ] {
        let answer = alice.browser.send(forged).await;
        assert!(is_question(&answer), "{answer:?}");
    }
    // Tokens that are no ID token of this session: of another person, of another session of the
    // same person, and an access token.
    let mut other = Browser::of(&alice.server, "alice").await;
    let mut bob = Browser::of(&alice.server, "bob").await;
    let elsewhere = log_in(&mut other, "leaving").await;
    let bobs = log_in(&mut bob, "leaving").await;
    for hint in [
        &elsewhere["id_token"],
        &bobs["id_token"],
        &alice.tokens["access_token"],
    ] {
        let asked = logout(&[("id_token_hint", hint.as_str().unwrap())]);
        let answer = alice.browser.get(&asked).await;
        assert!(is_question(&answer), "{answer:?}");
    }
    let head = alice.browser.send(request("HEAD", "/logout")).await;
    assert_eq!(head.status(), 405);
    let silent = asking("leaving", &[("prompt", "none")]);
    let fields = answer_of(&alice.browser.get(&silent).await);
    assert_eq!(field(&fields, "code").len(), 32, "{fields:?}");
}

#[tokio::test]
async fn a_request_that_is_wrong_shows_a_page_and_leads_nowhere() {
    let mut alice = SignedIn::open().await;
    let hint = alice.id_token.clone();
    for wrong in [
        vec![("id_token_hint", hint.as_str()), ("client_id", "silent")],
        vec![
            ("id_token_hint", &hint),
            (
                "post_logout_redirect_uri",
                "https://evil.example/signed-out",
            ),
        ],
        vec![
            ("client_id", "leaving"),
            (
                "post_logout_redirect_uri",
                "https://app.example.com/signed-out/",
            ),
        ],
        vec![("client_id", "nobody"), ("post_logout_redirect_uri", OUT)],
        vec![("client_id", "silent"), ("post_logout_redirect_uri", APP)],
        vec![("state", "1"), ("state", "2")],
    ] {
        let answer = alice.browser.get(&logout(&wrong)).await;
        assert_eq!(answer.status(), 400, "{wrong:?}: {answer:?}");
        assert!(
            answer.text().contains("You are still signed in"),
            "{answer:?}"
        );
        assert!(alice.is_in());
        // A program is told the same as JSON.
        let told = alice.browser.connection.get(&logout(&wrong)).await;
        assert_eq!(refusal(&told).1, "invalid_request");
    }
}

#[tokio::test]
async fn the_form_of_an_application_signs_out_like_its_link() {
    let mut alice = SignedIn::open().await;
    let pairs = [
        ("id_token_hint", alice.id_token.as_str()),
        ("post_logout_redirect_uri", OUT),
        ("state", "\"<&"),
    ];
    // The browser sends no cookie with the form of another site.
    let cookies = std::mem::take(&mut alice.browser.cookies);
    let foreign = with(form("/logout", &pairs), "sec-fetch-site", "cross-site");
    let page = alice.browser.send(foreign).await;
    assert_eq!(page.status(), 200, "{page:?}");
    assert!(
        page.text()
            .contains("<form method=\"post\" action=\"/logout\">"),
        "{page:?}"
    );
    assert_eq!(hidden(&page, "id_token_hint"), alice.id_token);
    assert_eq!(hidden(&page, "state"), "&quot;&lt;&");
    // Its script sends the form again, and then the cookie comes along.
    alice.browser.cookies = cookies;
    let own = with(form("/logout", &pairs), "sec-fetch-site", "same-origin");
    let answer = alice.browser.send(own).await;
    assert_eq!(answer.status(), 303);
    assert_eq!(answer.header("location"), format!("{OUT}?state=%22%3C%26"));
    assert!(!alice.is_in());
}

#[tokio::test]
async fn a_person_who_has_left_the_tailnet_can_still_sign_out() {
    let mut alice = SignedIn::open().await;
    let peer = alice.server.world.peer("alice's phone");
    let outside = alice.server.world.call(&peer, 8443).await;
    alice.browser.connection = outside;
    let page = alice.browser.get("/logout").await;
    assert!(
        is_question(&page) && !page.text().contains("alice"),
        "{page:?}"
    );
    let answer = alice.press(&page, "continue").await;
    assert!(is_signed_out(&answer) && !alice.is_in(), "{answer:?}");
}
