//! The plan Dynamic OP: clients that register themselves, and what they register.

use super::*;

/// A client with these redirect URIs.
async fn with_callbacks(uris: &[&str]) -> Module {
    Module::of(Mode::Default, &json!({ "redirect_uris": uris })).await
}

/// Checks that a client which registers `id_token_signed_response_alg` RS256 gets such ID tokens.
#[tokio::test]
async fn oidcc_idtoken_rs256() {
    let algorithm = json!({"id_token_signed_response_alg": "RS256"});
    let mut module = Module::of(Mode::Default, &algorithm).await;
    let login = module.login(&[]).await;
    let header = header_of(login.tokens["id_token"].as_str().unwrap());
    assert_eq!(header["alg"], "RS256");
}

/// Skipped where `none` is not among the algorithms, as in the plan Basic OP.
#[tokio::test]
async fn oidcc_idtoken_unsigned() {
    basic::oidcc_idtoken_unsigned(Mode::Default).await;
}

/// Checks that a request without `redirect_uri` is an error on a page, which wants to be looked at,
/// where the client has registered two.
#[tokio::test]
async fn oidcc_ensure_redirect_uri_in_authorization_request() {
    let other = "https://suite.example.com/test/a/tailbone/callback2";
    let mut module = with_callbacks(&[CALLBACK, other]).await;
    module.is_refused_on_a_page(&[("redirect_uri", "-")]).await;
}

const WITH_QUERY: &str = "https://suite.example.com/test/a/tailbone/callback?foo=bar";

/// Checks that the query of a registered redirect URI stays, with the answer behind it.
#[tokio::test]
async fn oidcc_redirect_uri_query_ok() {
    let mut module = with_callbacks(&[WITH_QUERY]).await;
    WITH_QUERY.clone_into(&mut module.callback);
    module.login(&[]).await;
}

/// Checks that another query than the registered one is an error on a page, which wants to be
/// looked at.
#[tokio::test]
async fn oidcc_redirect_uri_query_mismatch() {
    let mut module = with_callbacks(&[WITH_QUERY]).await;
    let other = format!("{CALLBACK}?bar=foo");
    module
        .is_refused_on_a_page(&[("redirect_uri", &other)])
        .await;
}

/// The same with a query where none is registered.
#[tokio::test]
async fn oidcc_redirect_uri_query_added() {
    let mut module = with_callbacks(&[CALLBACK]).await;
    module
        .is_refused_on_a_page(&[("redirect_uri", WITH_QUERY)])
        .await;
}

/// Checks that no redirect URI with a fragment can be registered: 400 in JSON. Warns where the code
/// is neither `invalid_redirect_uri` nor `invalid_client_metadata`.
#[tokio::test]
async fn oidcc_redirect_uri_regfrag() {
    let module = Module::start(Mode::Default).await;
    let fragment = json!({"redirect_uris": [format!("{CALLBACK}#foobar")]});
    let answer = register(&module.server, &fragment).await;
    assert_eq!(answer.header("content-type"), "application/json");
    let (status, code, _) = refusal(&answer);
    assert_eq!((status, code.as_str()), (400, "invalid_redirect_uri"));
}

/// Fails a provider whose discovery names no response types `id_token` and `token id_token`, or
/// grant types without `implicit`. That flow hands tokens to a page's address, and RFC 9700,
/// section 2.1.2, advises against it: it is not offered. The rest of the document is checked as in
/// the plan Config OP.
#[tokio::test]
async fn oidcc_discovery_endpoint_verification() {
    let module = Module::start(Mode::Default).await;
    let path = "/.well-known/openid-configuration";
    let document = module.server.alice().await.get(path).await.json();
    let names = |list: &str| document[list].as_array().unwrap().clone();
    assert_eq!(names("response_types_supported"), ["code"]);
    assert!(!names("grant_types_supported").contains(&json!("implicit")));
    // What this plan wants besides.
    let registration = document["registration_endpoint"].as_str().unwrap();
    assert_eq!(registration, format!("{ISSUER}/register"));
}

/// What the page of a login shows of the client, and that the login succeeds.
async fn shows(member: &str, uri: &str, html: &str) {
    let mut module = Module::of(Mode::Default, &json!({ member: uri })).await;
    let page = module.authorize(&[]).await;
    assert!(is_page(&page), "{page:?}");
    assert!(page.text().contains(html), "{}", page.text());
    let fields = module.confirm(page).await;
    module.finish(&fields, &[]).await;
}

/// Checks that the client's logo is on the page, which wants to be looked at.
#[tokio::test]
async fn oidcc_registration_logo_uri() {
    let uri = "https://suite.example.com/images/logo.png";
    shows("logo_uri", uri, &format!("<img src=\"{uri}\"")).await;
}

/// Checks that the client's policy is linked on the page, which wants to be looked at.
#[tokio::test]
async fn oidcc_registration_policy_uri() {
    let uri = "https://suite.example.com/policy";
    shows("policy_uri", uri, &format!("<a href=\"{uri}\"")).await;
}

/// Checks that the client's terms are linked on the page, which wants to be looked at.
#[tokio::test]
async fn oidcc_registration_tos_uri() {
    let uri = "https://suite.example.com/tos";
    shows("tos_uri", uri, &format!("<a href=\"{uri}\"")).await;
}

/// No subjects are different for each client, so that the modules about sectors are skipped: a
/// client that asks for such subjects is refused.
async fn pairwise_is_refused() {
    let module = Module::start(Mode::Default).await;
    assert_eq!(
        module.discovery().await["subject_types_supported"],
        json!(["public"])
    );
    let pairwise = json!({
        "redirect_uris": [CALLBACK],
        "subject_type": "pairwise",
        "sector_identifier_uri": "https://suite.example.com/test/a/tailbone/redirect_uris.json",
    });
    let answer = register(&module.server, &pairwise).await;
    assert_eq!(refusal(&answer).1, "invalid_client_metadata");
}

/// Checks a client whose redirect URIs stand at its `sector_identifier_uri`. Skipped where
/// discovery does not name `pairwise`.
#[tokio::test]
async fn oidcc_registration_sector_uri() {
    pairwise_is_refused().await;
}

/// Checks that a client is refused whose redirect URIs do not stand there: 400
/// `invalid_client_metadata`. Skipped where discovery does not name `pairwise`.
#[tokio::test]
async fn oidcc_registration_sector_bad() {
    pairwise_is_refused().await;
}

/// Checks that a new key with another name is published after a rotation, that logins succeed
/// before and after it, and warns if the old one is gone.
#[tokio::test]
async fn oidcc_server_rotate_keys() {
    let keys = new_keys().await;
    let mut module = Module::with_keys(keys.clone()).await;
    let first = module.login(&[]).await;
    let before = kids(&module).await;
    keys.rotate(None, Timestamp::now()).await.unwrap();
    let after = kids(&module).await;
    assert!(before.is_subset(&after), "{before:?}, {after:?}");
    assert_eq!(after.len(), before.len() + 1);
    // Tokens of before stay good.
    let token = first.tokens["id_token"].as_str().unwrap();
    module.server.verified(token).await;
    module.login(&[]).await;
}

/// The names of the published keys.
async fn kids(module: &Module) -> std::collections::BTreeSet<String> {
    let path = "/.well-known/jwks.json";
    let document = module.server.outside().await.get(path).await.json();
    let keys = document["keys"].as_array().unwrap().iter();
    keys.map(|key| key["kid"].as_str().unwrap().to_owned())
        .collect()
}

/// As in the plan Basic OP.
#[tokio::test]
async fn oidcc_request_uri_unsigned() {
    basic::unsigned_by_reference(Mode::Default).await;
}

/// As in the plan Basic OP.
#[tokio::test]
async fn oidcc_ensure_request_object_with_redirect_uri() {
    basic::oidcc_ensure_request_object_with_redirect_uri(Mode::Default).await;
}

/// As in the plan Basic OP.
#[tokio::test]
async fn oidcc_refresh_token() {
    basic::oidcc_refresh_token(Mode::Default).await;
}
