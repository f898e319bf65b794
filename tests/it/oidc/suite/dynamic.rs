//! The plan Dynamic OP: clients that register themselves, and what they register.

use super::{
    super::application::{Application, At},
    *,
};

/// What a client registers that authenticates by `private_key_jwt`: its key, which has no name.
fn signing(more: Value) -> Value {
    let mut key = CLIENT_KEY.public().to_value();
    key.as_object_mut().unwrap().remove("kid");
    let mut all = json!({
        "token_endpoint_auth_method": "private_key_jwt",
        "jwks": {"keys": [key]},
    });
    let members = all.as_object_mut().unwrap();
    members.extend(more.as_object().unwrap().clone());
    all
}

/// With a client that registers these members besides.
async fn module(more: Value) -> Module {
    Module::of(Mode::Default, &signing(more)).await
}

/// The same with a provider that reaches the client's own web server.
async fn reaching(more: &Value) -> Module {
    let server = server(|provider| provider.foreign = Application::reached()).await;
    Module::on(server, Mode::Default, more).await
}

/// A client with these redirect URIs.
async fn with_callbacks(uris: &[&str]) -> Module {
    module(json!({ "redirect_uris": uris })).await
}

/// Checks that a client which registers `id_token_signed_response_alg` RS256 gets such ID tokens.
#[tokio::test]
async fn oidcc_idtoken_rs256() {
    let mut module = module(json!({"id_token_signed_response_alg": "RS256"})).await;
    let login = module.login(&[]).await;
    let header = header_of(login.tokens["id_token"].as_str().unwrap());
    assert_eq!(header["alg"], "RS256");
}

/// Checks that discovery names RS256 for UserInfo, and that a client which registers
/// `userinfo_signed_response_alg` gets a token with its `sub` and without a `nonce`. Warns without
/// `iss` and `aud`.
#[tokio::test]
async fn oidcc_userinfo_rs256() {
    let algorithm = json!({"userinfo_signed_response_alg": "RS256"});
    let mut module = Module::of(Mode::Default, &algorithm).await;
    let told = module.discovery().await;
    let offered = told["userinfo_signing_alg_values_supported"].as_array();
    assert!(offered.unwrap().contains(&json!("RS256")));
    let login = module.login(&[]).await;
    let mut application = module.server.outside().await;
    let answer = userinfo(&mut application, login.access_token()).await;
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.header("content-type"), "application/jwt");
    let token = answer.text();
    assert_eq!(header_of(&token)["alg"], "RS256");
    let claims = module.server.verified_without_times(&token).await;
    assert_eq!(claims["sub"], login.claims["sub"]);
    assert_eq!(claims["iss"], ISSUER);
    assert_eq!(claims["aud"], module.client.id);
    assert!(claims.get("nonce").is_none());
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
    let module = module(json!({})).await;
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
    let module = module(json!({})).await;
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
    let mut module = module(json!({ member: uri })).await;
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
    let module = module(json!({})).await;
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
    let server = server(|provider| provider.keys = keys.clone()).await;
    let mut module = Module::on(server, Mode::Default, &signing(json!({}))).await;
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
    let more = json!({"grant_types": ["authorization_code", "refresh_token"]});
    basic::refreshes(Mode::Default, &signing(more)).await;
}

/// Checks a plain login, as in the plan Basic OP, of a client that signs who it is.
#[tokio::test]
async fn oidcc_server() {
    let mut module = module(json!({})).await;
    assert_eq!(module.client.method, "private_key_jwt");
    assert_eq!(module.client.secret, "");
    let login = module.login(&[]).await;
    assert_eq!(login.unexpected_claims(), [""; 0]);
}

/// Checks that an assertion counts which is for the issuer and not for the token endpoint. Warns
/// where it does not.
#[tokio::test]
async fn oidcc_ensure_client_assertion_with_iss_aud_succeeds() {
    let mut module = module(json!({})).await;
    ISSUER.clone_into(&mut module.audience);
    module.login(&[]).await;
}

/// A client whose keys stand at an address.
fn keys_at(application: &Application, more: Value) -> Value {
    let mut all = signing(more);
    all["jwks_uri"] = application.url("/jwks").into();
    all.as_object_mut().unwrap().remove("jwks");
    all
}

fn key_set(key: &Signer) -> Value {
    json!({"keys": [key.public().to_value()]})
}

/// Checks a login of a client whose keys stand at its `jwks_uri`.
#[tokio::test]
async fn oidcc_registration_jwks_uri() {
    let application = Application::start().await;
    application.answer_json("/jwks", key_set(&CLIENT_KEY));
    let mut module = reaching(&keys_at(&application, json!({}))).await;
    module.login(&[]).await;
    assert_eq!(application.requests("/jwks"), 1);
}

/// Checks that a client may exchange its key: it refreshes with a key that the provider does not
/// know yet, and that stands at its `jwks_uri`.
#[tokio::test]
async fn oidcc_refresh_token_rp_key_rotation() {
    static SUCCESSOR: LazyLock<Signer> =
        LazyLock::new(|| signer("2", KeySpec::Rs256 { bits: 2048 }));
    let application = Application::start().await;
    application.answer_json("/jwks", key_set(&CLIENT_KEY));
    let more = json!({"grant_types": ["authorization_code", "refresh_token"]});
    let mut module = reaching(&keys_at(&application, more)).await;
    let login = module.login(&[]).await;

    application.answer_json("/jwks", key_set(&SUCCESSOR));
    module.key = &SUCCESSOR;
    let token = login.tokens["refresh_token"].as_str().unwrap();
    let pairs = [("grant_type", "refresh_token"), ("refresh_token", token)];
    let answer = module.token(&module.client, &pairs).await;
    assert_eq!(answer.status(), 200, "{answer:?}");
    assert_eq!(application.requests("/jwks"), 2);
}

/// Checks a request that stands, signed with RS256, at an address which the client has registered
/// and names with a fragment. What it says counts, and not the same parameters outside of it.
#[tokio::test]
async fn oidcc_request_uri_signed_rs256() {
    let application = Application::start().await;
    let at = application.url("/request.jwt#version");
    let registered = json!({"request_uris": [at], "request_object_signing_alg": "RS256"});
    let mut module = reaching(&signing(registered)).await;
    let document = module.discovery().await;
    assert_eq!(document["request_uri_parameter_supported"], true);
    let algorithms = document["request_object_signing_alg_values_supported"].as_array();
    assert!(algorithms.unwrap().contains(&json!("RS256")));
    let claims = json!({
        "iss": module.client.id, "aud": ISSUER, "client_id": module.client.id,
        "response_type": "code", "redirect_uri": CALLBACK, "scope": "openid",
        "state": STATE, "nonce": NONCE,
    });
    let object = module.key.sign(claims.to_string().as_bytes()).unwrap();
    let kind = "application/oauth-authz-req+jwt";
    application.answer("/request.jwt", At::Text(kind, object));
    let outside = [("request_uri", at.as_str()), ("state", "-"), ("nonce", "-")];
    let fields = module.answered(&outside).await;
    module.finish(&fields, &[]).await;
    assert!(application.requests("/request.jwt") >= 1);
}
