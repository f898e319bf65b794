//! The plans RP-Initiated Logout OP (`oidcc-rp-initiated-logout-certification-test-plan`) and
//! Back-Channel OP (`oidcc-backchannel-rp-initiated-logout-certification-test-plan`). Where a
//! module wants to see an error or a question, it takes a picture of the page; a redirect fails.

use super::super::{
    logout::{OUT, SignedIn, is_question, is_signed_out, log_in, logout},
    notices::Applications,
    pages::Browser,
    *,
};

/// As long as the suite's.
fn state() -> String {
    "0123456789abcdef".repeat(8)
}

/// The browser went back to the application with this state, and nobody is signed in any more: a
/// login without a page is `login_required`.
async fn is_out(signed_in: &mut SignedIn, answer: &Answer, state: Option<&str>) {
    assert!([302, 303].contains(&answer.status()), "{answer:?}");
    let expected = state.map_or(OUT.to_owned(), |state| format!("{OUT}?state={state}"));
    assert_eq!(answer.header("location"), expected);
    nobody_is_signed_in(signed_in).await;
}

async fn nobody_is_signed_in(signed_in: &mut SignedIn) {
    let silent = asking("leaving", &[("prompt", "none")]);
    let fields = answer_of(&signed_in.browser.get(&silent).await);
    assert_eq!(field(&fields, "error"), "login_required");
}

/// The person sees a page, error or question; the browser goes nowhere and stays signed in.
async fn stays(signed_in: &mut SignedIn, answer: &Answer) {
    assert!([200, 400].contains(&answer.status()), "{answer:?}");
    let kind = answer.header("content-type");
    assert!(kind.starts_with("text/html"), "{answer:?}");
    assert_eq!(answer.header("location"), "");
    let silent = asking("leaving", &[("prompt", "none")]);
    let fields = answer_of(&signed_in.browser.get(&silent).await);
    assert_eq!(field(&fields, "code").len(), 32, "{fields:?}");
}

/// `end_session_endpoint` is there and https. The discovery checks of the Config plan are
/// elsewhere.
#[tokio::test]
async fn oidcc_rp_initiated_logout_discovery_endpoint_verification() {
    let server = OidcServer::open().await;
    let path = "/.well-known/openid-configuration";
    for connection in [&mut server.alice().await, &mut server.outside().await] {
        let told = connection.get(path).await.json();
        assert_eq!(told["end_session_endpoint"], format!("{ISSUER}/logout"));
    }
}

/// A hint, a registered URI and a state of 128 characters: the browser goes there with the very
/// state, and the session is over.
#[tokio::test]
async fn oidcc_rp_initiated_logout() {
    let mut alice = SignedIn::open().await;
    let state = state();
    let asked = logout(&[
        ("id_token_hint", &alice.id_token),
        ("post_logout_redirect_uri", OUT),
        ("state", &state),
    ]);
    let answer = alice.browser.get(&asked).await;
    is_out(&mut alice, &answer, Some(&state)).await;
}

/// A URI that was not registered: an error page.
#[tokio::test]
async fn oidcc_rp_initiated_logout_bad_post_logout_redirect_uri() {
    let mut alice = SignedIn::open().await;
    let asked = logout(&[
        ("id_token_hint", &alice.id_token),
        ("post_logout_redirect_uri", "https://app.example.com/foo"),
        ("state", &state()),
    ]);
    let answer = alice.browser.get(&asked).await;
    assert_eq!(answer.status(), 400);
    stays(&mut alice, &answer).await;
}

/// The registered URI with a query that is not: an error page.
#[tokio::test]
async fn oidcc_rp_initiated_logout_query_added_to_post_logout_redirect_uri() {
    let mut alice = SignedIn::open().await;
    let asked = logout(&[
        ("id_token_hint", &alice.id_token),
        ("post_logout_redirect_uri", &format!("{OUT}?foo=bar")),
        ("state", &state()),
    ]);
    let answer = alice.browser.get(&asked).await;
    assert_eq!(answer.status(), 400);
    stays(&mut alice, &answer).await;
}

/// The claims of the hint under `alg: none`: an error or a question, and no redirect even if the
/// person signs out.
#[tokio::test]
async fn oidcc_rp_initiated_logout_modified_id_token_hint() {
    let mut alice = SignedIn::open().await;
    let header = URL_SAFE_NO_PAD.encode(json!({"alg": "none"}).to_string());
    let claims = alice.id_token.split('.').nth(1).unwrap();
    let asked = logout(&[
        ("id_token_hint", &format!("{header}.{claims}.")),
        ("post_logout_redirect_uri", OUT),
        ("state", &state()),
    ]);
    let page = alice.browser.get(&asked).await;
    assert!(is_question(&page), "{page:?}");
    stays(&mut alice, &page).await;
    let answer = alice.press(&page, "continue").await;
    assert!(is_signed_out(&answer), "{answer:?}");
    nobody_is_signed_in(&mut alice).await;
}

/// A hint that somebody else signed: the same.
#[tokio::test]
async fn oidcc_rp_initiated_logout_bad_id_token_hint() {
    let mut alice = SignedIn::open().await;
    let other = SignedIn::open().await;
    let asked = logout(&[
        ("id_token_hint", &other.id_token),
        ("post_logout_redirect_uri", OUT),
        ("state", &state()),
    ]);
    let page = alice.browser.get(&asked).await;
    assert!(is_question(&page), "{page:?}");
    stays(&mut alice, &page).await;
    let answer = alice.press(&page, "continue").await;
    assert!(is_signed_out(&answer), "{answer:?}");
}

/// A URI and a state without a hint: nobody knows which client that is, so the person is asked and
/// the browser stays.
#[tokio::test]
async fn oidcc_rp_initiated_logout_no_id_token_hint() {
    let mut alice = SignedIn::open().await;
    let asked = logout(&[("post_logout_redirect_uri", OUT), ("state", &state())]);
    let page = alice.browser.get(&asked).await;
    assert!(is_question(&page), "{page:?}");
    stays(&mut alice, &page).await;
    let answer = alice.press(&page, "continue").await;
    assert!(is_signed_out(&answer), "{answer:?}");
    nobody_is_signed_in(&mut alice).await;
}

/// Nothing at all: a question, and then a page that says so.
#[tokio::test]
async fn oidcc_rp_initiated_logout_no_params() {
    let mut alice = SignedIn::open().await;
    let page = alice.browser.get("/logout").await;
    assert!(is_question(&page), "{page:?}");
    stays(&mut alice, &page).await;
    let answer = alice.press(&page, "continue").await;
    assert!(is_signed_out(&answer), "{answer:?}");
    nobody_is_signed_in(&mut alice).await;
}

/// A hint and a state without a URI: a page that says that the person is signed out.
#[tokio::test]
async fn oidcc_rp_initiated_logout_no_post_logout_redirect_uri() {
    let mut alice = SignedIn::open().await;
    let asked = logout(&[("id_token_hint", &alice.id_token), ("state", &state())]);
    let answer = alice.browser.get(&asked).await;
    assert!(is_signed_out(&answer), "{answer:?}");
    nobody_is_signed_in(&mut alice).await;
}

/// A hint and a URI: the browser goes there without a state.
#[tokio::test]
async fn oidcc_rp_initiated_logout_no_state() {
    let mut alice = SignedIn::open().await;
    let asked = logout(&[
        ("id_token_hint", &alice.id_token),
        ("post_logout_redirect_uri", OUT),
    ]);
    let answer = alice.browser.get(&asked).await;
    is_out(&mut alice, &answer, None).await;
}

/// A state alone: as without parameters.
#[tokio::test]
async fn oidcc_rp_initiated_logout_only_state() {
    let mut alice = SignedIn::open().await;
    let page = alice.browser.get(&logout(&[("state", &state())])).await;
    assert!(is_question(&page), "{page:?}");
    stays(&mut alice, &page).await;
    let answer = alice.press(&page, "continue").await;
    assert!(is_signed_out(&answer), "{answer:?}");
    nobody_is_signed_in(&mut alice).await;
}

/// `backchannel_logout_supported`, `backchannel_logout_session_supported` and
/// `end_session_endpoint`, and every endpoint is https.
#[tokio::test]
async fn oidcc_backchannel_logout_discovery_endpoint_verification() {
    let server = OidcServer::open().await;
    let path = "/.well-known/openid-configuration";
    let told = server.alice().await.get(path).await.json();
    assert_eq!(told["backchannel_logout_supported"], true);
    assert_eq!(told["backchannel_logout_session_supported"], true);
    for (name, url) in told.as_object().unwrap() {
        if name.ends_with("_endpoint") || name.ends_with("_uri") {
            assert!(url.as_str().unwrap().starts_with("https://"), "{name}");
        }
    }
}

/// After a login and a sign-out with a hint the client is posted one logout token: signed with a
/// published key, with the claims that the standard asks for, `sub` and `sid` of the ID token, and
/// no `nonce`. Other parameters in the form warn. The browser goes back with the state, and a login
/// without a page is `login_required`.
#[tokio::test]
async fn oidcc_backchannel_rp_initiated_logout() {
    let (mut applications, server) = Applications::with_server().await;
    let url = applications.url("/backchannel_logout");
    server
        .add_with("told", AuthMethod::ClientSecretBasic, |metadata| {
            metadata.post_logout_redirect_uris = vec![OUT.into()];
            metadata.backchannel_logout_uri = Some(url);
            metadata.backchannel_logout_session_required = Some(true);
            metadata.login = Some(Login::Silent);
        })
        .await;
    let mut alice = Browser::of(&server, "alice").await;
    let tokens = log_in(&mut alice, "told").await;
    let id_token = tokens["id_token"].as_str().unwrap();
    let state = state();
    let asked = logout(&[
        ("id_token_hint", id_token),
        ("post_logout_redirect_uri", OUT),
        ("state", &state),
    ]);
    let answer = alice.get(&asked).await;
    assert_eq!(answer.header("location"), format!("{OUT}?state={state}"));

    let (path, form) = applications.heard().await;
    assert_eq!(path, "/backchannel_logout");
    let [(name, token)] = form.as_slice() else {
        panic!("{form:?}");
    };
    assert_eq!(name, "logout_token");
    assert_eq!(header_of(token)["typ"], "logout+jwt");
    let claims = server.verified(token).await;
    let login = server.verified(id_token).await;
    assert_eq!(claims["aud"], "told");
    for name in ["iss", "sub", "sid"] {
        assert!(claims[name].is_string(), "{name}");
        assert_eq!(claims[name], login[name], "{name}");
    }
    let now = Timestamp::now().as_second();
    assert!((now - 60..=now).contains(&claims["iat"].as_i64().unwrap()));
    assert!(claims["exp"].as_i64().unwrap() > now);
    assert!(!claims["jti"].as_str().unwrap().is_empty());
    let event = "http://schemas.openid.net/event/backchannel-logout";
    assert_eq!(claims["events"], json!({ event: {} }));
    assert!(claims.get("nonce").is_none());

    let fields = answer_of(&alice.get(&asking("told", &[("prompt", "none")])).await);
    assert_eq!(field(&fields, "error"), "login_required");
}
