//! The plans Basic OP and Form Post OP: the same 38 modules, once with the default way of answering
//! and once with `response_mode=form_post`.

use jiff::SignedDuration;
use tailbone_oidc::{Params, provider::Caller};

use super::*;

/// Makes a test of each module in both plans.
macro_rules! modules {
    ($($name:ident)*) => {
        mod default_mode {
            $(#[tokio::test]
            async fn $name() {
                super::$name(super::Mode::Default).await;
            })*
        }

        mod form_post {
            $(#[tokio::test]
            async fn $name() {
                super::$name(super::Mode::FormPost).await;
            })*
        }
    };
}

modules! {
    oidcc_server
    oidcc_response_type_missing
    oidcc_idtoken_signature
    oidcc_idtoken_unsigned
    oidcc_userinfo_get
    oidcc_userinfo_post_header
    oidcc_userinfo_post_body
    oidcc_ensure_request_without_nonce_succeeds_for_code_flow
    oidcc_scope_profile
    oidcc_scope_email
    oidcc_scope_address
    oidcc_scope_phone
    oidcc_scope_all
    oidcc_alternate_happy_flow
    oidcc_display_page
    oidcc_display_popup
    oidcc_prompt_login
    oidcc_prompt_none_not_logged_in
    oidcc_prompt_none_logged_in
    oidcc_max_age_1
    oidcc_max_age_10000
    oidcc_ensure_request_with_unknown_parameter_succeeds
    oidcc_id_token_hint
    oidcc_login_hint
    oidcc_ui_locales
    oidcc_claims_locales
    oidcc_ensure_request_with_acr_values_succeeds
    oidcc_codereuse
    oidcc_codereuse_30seconds
    oidcc_ensure_registered_redirect_uri
    oidcc_ensure_post_request_succeeds
    oidcc_server_client_secret_post
    oidcc_request_uri_unsigned_supported_correctly_or_rejected_as_unsupported
    oidcc_unsigned_request_object_supported_correctly_or_rejected_as_unsupported
    oidcc_claims_essential
    oidcc_ensure_request_object_with_redirect_uri
    oidcc_refresh_token
    oidcc_ensure_request_with_valid_pkce_succeeds
}

/// Checks a plain login: the code's length, the answer's `iss`, the token answer, and each claim
/// and the hash of the ID token. Warns without `expires_in`, and about claims of the ID token that
/// are about the person.
///
/// Such claims stand there in tsidp's style, which the certificate is not for.
async fn oidcc_server(mode: Mode) {
    let login = Module::start(mode).await.login(&[]).await;
    assert_eq!(login.unexpected_claims(), [""; 0]);

    let mut tsidp = Module::with(mode, &json!({}), Style::Tsidp).await;
    let login = tsidp.login(&[]).await;
    let warned = login.unexpected_claims();
    for name in ["addresses", "key", "nid", "node", "tailnet", "uid"] {
        assert!(warned.contains(&name), "{name}: {warned:?}");
    }
}

/// Checks that a request without `response_type` is an error: at the client, or on a page.
async fn oidcc_response_type_missing(mode: Mode) {
    let mut module = Module::start(mode).await;
    let error = module.refused(&[("response_type", "-")]).await;
    assert!(["invalid_request", "unsupported_response_type"].contains(&error.as_str()));
}

/// Checks that the ID token is signed with RS256, where the client names no algorithm, by a key
/// whose name stands in the token and once in the published keys.
async fn oidcc_idtoken_signature(mode: Mode) {
    let mut module = Module::start(mode).await;
    let login = module.login(&[]).await;
    let header = header_of(login.tokens["id_token"].as_str().unwrap());
    assert_eq!(header["alg"], "RS256");
    let kid = header["kid"].as_str().unwrap();
    let path = "/.well-known/jwks.json";
    let keys = module.server.outside().await.get(path).await.json();
    let keys = keys["keys"].as_array().unwrap().iter();
    assert_eq!(keys.filter(|key| key["kid"] == kid).count(), 1);
}

/// Skipped where `none` is not among the algorithms. Here it is none, and no client can have it.
pub(super) async fn oidcc_idtoken_unsigned(mode: Mode) {
    let module = Module::start(mode).await;
    let document = module.discovery().await;
    let algorithms = document["id_token_signing_alg_values_supported"].as_array();
    assert!(algorithms.unwrap().iter().all(|one| one != "none"));
    let wanted = json!({"redirect_uris": [CALLBACK], "id_token_signed_response_alg": "none"});
    let refused = register(&module.server, &wanted).await;
    assert_eq!(refusal(&refused).1, "invalid_client_metadata");
}

/// Checks that `GET /userinfo` with the access token in the header answers JSON with the ID token's
/// `sub`.
async fn oidcc_userinfo_get(mode: Mode) {
    let mut module = Module::start(mode).await;
    let login = module.login(&[]).await;
    module.userinfo(&login).await;
}

/// The same with `POST` and the token in the header.
async fn oidcc_userinfo_post_header(mode: Mode) {
    let mut module = Module::start(mode).await;
    let login = module.login(&[]).await;
    let bearer = format!("Bearer {}", login.access_token().as_str().unwrap());
    let post = with(request("POST", "/userinfo"), "authorization", &bearer);
    let told = module.server.outside().await.send(post).await;
    assert_eq!(told.status(), 200, "{told:?}");
    assert_eq!(told.json()["sub"], login.claims["sub"]);
}

/// The same with the token in the form. Warns where that is refused.
async fn oidcc_userinfo_post_body(mode: Mode) {
    let mut module = Module::start(mode).await;
    let login = module.login(&[]).await;
    let pairs = [("access_token", login.access_token().as_str().unwrap())];
    let told = module
        .server
        .outside()
        .await
        .send(form("/userinfo", &pairs))
        .await;
    assert_eq!(told.status(), 200, "{told:?}");
    assert_eq!(told.json()["sub"], login.claims["sub"]);
}

/// Checks a login without a nonce, whose ID token has none either.
async fn oidcc_ensure_request_without_nonce_succeeds_for_code_flow(mode: Mode) {
    let login = Module::start(mode).await.login(&[("nonce", "-")]).await;
    assert!(login.claims.get("nonce").is_none());
}

/// What UserInfo tells for these scopes, beside `sub`. The ID token is silent about the person.
async fn told_for(mode: Mode, scope: &str) -> serde_json::Map<String, Value> {
    let mut module = Module::start(mode).await;
    let login = module.login(&[("scope", scope)]).await;
    assert_eq!(login.unexpected_claims(), [""; 0]);
    let mut told = module.userinfo(&login).await;
    told.as_object_mut().unwrap().remove("sub");
    told.as_object().unwrap().clone()
}

fn is_profile(told: &serde_json::Map<String, Value>) {
    assert_eq!(told["name"], "alice");
    assert_eq!(told["preferred_username"], "alice");
    for value in told.values() {
        assert!(!value.is_null() && value != "");
    }
}

/// Checks that the claims of `profile` have the types of the standard. Warns about each of the
/// fourteen that is missing: a tailnet knows a name, a short name and a picture, and nothing of the
/// others.
async fn oidcc_scope_profile(mode: Mode) {
    let told = told_for(mode, "openid profile").await;
    is_profile(&told);
    assert!(!told.contains_key("email"));
}

/// Checks that UserInfo has `email`, and `email_verified` as a boolean if at all. Warns without the
/// latter.
async fn oidcc_scope_email(mode: Mode) {
    let told = told_for(mode, "openid email").await;
    assert_eq!(told["email"], "alice@example.com");
    assert!(told.get("email_verified").is_none_or(Value::is_boolean));
    assert!(!told.contains_key("name"));
}

/// The scope is not among `scopes_supported`, so that the module is skipped. A client that asks
/// for it nevertheless is logged in without it.
async fn is_skipped(mode: Mode, scope: &str, claim: &str) {
    let mut module = Module::start(mode).await;
    let scopes = module.discovery().await["scopes_supported"].clone();
    assert!(!scopes.as_array().unwrap().contains(&json!(scope)));
    let login = module.login(&[("scope", &format!("openid {scope}"))]).await;
    assert_eq!(login.tokens["scope"], "openid");
    assert!(module.userinfo(&login).await.get(claim).is_none());
}

/// Skipped: a tailnet knows no postal addresses.
async fn oidcc_scope_address(mode: Mode) {
    is_skipped(mode, "address", "address").await;
}

/// Skipped: a tailnet knows no telephone numbers.
async fn oidcc_scope_phone(mode: Mode) {
    is_skipped(mode, "phone", "phone_number").await;
}

/// Checks all scopes at once; skipped where one is not supported. The supported ones together tell
/// what each tells alone.
async fn oidcc_scope_all(mode: Mode) {
    let told = told_for(mode, "openid profile email address phone").await;
    is_profile(&told);
    assert_eq!(told["email"], "alice@example.com");
}

/// Checks `scope-email` with the scopes and the parameters in another order.
async fn oidcc_alternate_happy_flow(mode: Mode) {
    let mut module = Module::start(mode).await;
    let id = module.client.id.clone();
    let turned = [
        ("scope", "email openid"),
        ("state", STATE),
        ("redirect_uri", CALLBACK),
        ("client_id", id.as_str()),
    ];
    let login = module.login(&turned).await;
    assert_eq!(module.userinfo(&login).await["email"], "alice@example.com");
}

/// Checks that a login succeeds with a parameter that need not have an effect.
async fn succeeds_with(mode: Mode, name: &str, value: &str) {
    Module::start(mode).await.login(&[(name, value)]).await;
}

/// Checks that the request succeeds.
async fn oidcc_display_page(mode: Mode) {
    succeeds_with(mode, "display", "page").await;
}

/// Checks that the request succeeds.
async fn oidcc_display_popup(mode: Mode) {
    succeeds_with(mode, "display", "popup").await;
}

/// Checks that the person is asked at the second login too, which wants a page to look at, and that
/// `auth_time` is later then.
async fn oidcc_prompt_login(mode: Mode) {
    let mut module = Module::start(mode).await;
    let first = module.login(&[]).await;
    module.age(2).await;
    let again = [("prompt", "login")];
    let page = module.authorize(&again).await;
    assert!(is_page(&page), "{page:?}");
    let fields = module.confirm(page).await;
    let second = module.finish(&fields, &again).await;
    assert_eq!(second.claims["sub"], first.claims["sub"]);
    assert!(second.auth_time() >= first.auth_time());
    assert!(Timestamp::now().as_second() - second.auth_time() < 2);
}

/// Checks that the client is told, without a page, that nobody is logged in; with its `state` of
/// 128 characters.
async fn oidcc_prompt_none_not_logged_in(mode: Mode) {
    assert_eq!(STATE.len(), 128);
    let mut module = Module::start(mode).await;
    let error = module.refused(&[("prompt", "none")]).await;
    assert_eq!(error, "login_required");
}

/// Checks that a second login shows no page and tells the same person and the same `auth_time`.
async fn oidcc_prompt_none_logged_in(mode: Mode) {
    let mut module = Module::start(mode).await;
    module.login(&[]).await;
    module.age(60).await;
    let first = module.silent_login(&[]).await;
    let second = module.silent_login(&[("prompt", "none")]).await;
    for claim in ["sub", "auth_time"] {
        assert_eq!(second.claims[claim], first.claims[claim], "{claim}");
    }
    assert!(Timestamp::now().as_second() - second.auth_time() >= 60);
}

/// Checks that a login two seconds ago is too old: the person is asked, and `auth_time` is later
/// and recent.
async fn oidcc_max_age_1(mode: Mode) {
    let mut module = Module::start(mode).await;
    let first = module.login(&[]).await;
    module.age(2).await;
    let aged = [("max_age", "1")];
    let page = module.authorize(&aged).await;
    assert!(is_page(&page), "{page:?}");
    let fields = module.confirm(page).await;
    let second = module.finish(&fields, &aged).await;
    assert_eq!(second.claims["sub"], first.claims["sub"]);
    let age = Timestamp::now().as_second() - second.auth_time();
    assert!(second.auth_time() > first.auth_time() - 2 && age < 2);
}

/// Checks that a login that is young enough stands: no page, and the same `auth_time`.
async fn oidcc_max_age_10000(mode: Mode) {
    let mut module = Module::start(mode).await;
    module.login(&[("max_age", "15000")]).await;
    module.age(9_000).await;
    let first = module.silent_login(&[("max_age", "15000")]).await;
    let second = module.silent_login(&[("max_age", "10000")]).await;
    assert_eq!(second.auth_time(), first.auth_time());
    module.age(2_000).await;
    let page = module.authorize(&[("max_age", "10000")]).await;
    assert!(is_page(&page), "{page:?}");
}

/// Checks that a parameter that nobody knows has no effect.
async fn oidcc_ensure_request_with_unknown_parameter_succeeds(mode: Mode) {
    succeeds_with(mode, "extra", "foobar").await;
}

/// Checks that `prompt=none` with the ID token of the first login succeeds for the same person.
async fn oidcc_id_token_hint(mode: Mode) {
    let mut module = Module::start(mode).await;
    let first = module.login(&[]).await;
    let hint = first.tokens["id_token"].as_str().unwrap();
    let asked = [("prompt", "none"), ("id_token_hint", hint)];
    let second = module.silent_login(&asked).await;
    assert_eq!(second.claims["sub"], first.claims["sub"]);
}

/// Checks that the request succeeds.
async fn oidcc_login_hint(mode: Mode) {
    succeeds_with(mode, "login_hint", "buffy@example.com").await;
}

/// Checks that the request succeeds, also where no page is in these languages.
async fn oidcc_ui_locales(mode: Mode) {
    succeeds_with(mode, "ui_locales", "se fr-CA").await;
}

/// Checks that the request succeeds, also where no claim is in these languages.
async fn oidcc_claims_locales(mode: Mode) {
    succeeds_with(mode, "claims_locales", "se fr-CA").await;
}

/// Checks that the request succeeds, and that `acr` is a string. Warns without it.
async fn oidcc_ensure_request_with_acr_values_succeeds(mode: Mode) {
    let login = Module::start(mode)
        .await
        .login(&[("acr_values", "1 2")])
        .await;
    assert!(login.claims["acr"].is_string());
}

/// Checks that a code works once: the second time is 400 `invalid_grant` in JSON. Warns if the
/// access token that it gave still works then.
async fn oidcc_codereuse(mode: Mode) {
    let mut module = Module::start(mode).await;
    let fields = module.answered(&[]).await;
    let login = module.finish(&fields, &[]).await;
    let again = module.redeem(Module::code(&fields), &[]).await;
    assert_eq!(refusal(&again), is(400, "invalid_grant", "code not found"));
    assert_eq!(again.header("content-type"), "application/json");
    let told = userinfo(&mut module.server.outside().await, login.access_token()).await;
    assert_eq!(told.status(), 401);
}

/// The same, thirty seconds after the first use.
async fn oidcc_codereuse_30seconds(mode: Mode) {
    let mut module = Module::start(mode).await;
    let fields = module.answered(&[]).await;
    let login = module.finish(&fields, &[]).await;
    let pairs = [
        ("grant_type", "authorization_code"),
        ("code", Module::code(&fields)),
        ("redirect_uri", CALLBACK),
        ("client_id", module.client.id.as_str()),
        ("client_secret", module.client.secret.as_str()),
    ];
    let params = Params::parse(query(&pairs).as_bytes());
    let later = Timestamp::now() + SignedDuration::from_secs(30);
    let provider = &module.server.provider;
    let again = provider.token(&params, None, &Caller::Unknown, later).await;
    let refused = again.unwrap_err();
    assert_eq!(
        (refused.status.as_u16(), refused.code),
        (400, "invalid_grant")
    );
    let told = userinfo(&mut module.server.outside().await, login.access_token()).await;
    assert_eq!(told.status(), 401);
}

/// Checks that an address which the client did not register is an error on a page, which wants to
/// be looked at, and that the browser is not sent there.
async fn oidcc_ensure_registered_redirect_uri(mode: Mode) {
    let mut module = Module::start(mode).await;
    for other in [
        "https://suite.example.com/test/a/tailbone/callback/x",
        "https://evil.example/",
    ] {
        module
            .is_refused_on_a_page(&[("redirect_uri", other)])
            .await;
    }
}

/// Checks that the request may be posted as a form.
async fn oidcc_ensure_post_request_succeeds(mode: Mode) {
    let mut module = Module::start(mode).await;
    let params = module.params(&[]);
    let pairs: Vec<_> = params
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    let posted = with(
        form("/authorize", &pairs),
        "origin",
        "https://suite.example.com",
    );
    let shown = module
        .browser
        .send(with(posted, "sec-fetch-site", "cross-site"));
    // The form of another site comes without cookies, and is sent on to fetch them.
    let to = shown.await.header("location").to_owned();
    assert!(to.starts_with("/authorize?"), "{to}");
    let shown = module.browser.get(&to).await;
    let fields = module.confirm(shown).await;
    module.finish(&fields, &[]).await;
}

/// Checks a login of a client that has its secret in the form of the token request.
async fn oidcc_server_client_secret_post(mode: Mode) {
    let method = json!({"token_endpoint_auth_method": "client_secret_post"});
    let mut module = Module::of(mode, &method).await;
    assert_eq!(module.client.method, "client_secret_post");
    module.login(&[]).await;
}

/// An unsigned request object of OpenID Connect Core, section 6.1.
fn unsigned(claims: &Value) -> String {
    let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}.", part(json!({"alg": "none"})), part(claims.clone()))
}

/// Whether modules about unsigned request objects are skipped: the algorithms are told, and `none`
/// is not among them. Where nothing is told, the error must be that the parameter is not supported.
async fn unsigned_are_excluded(module: &Module) -> bool {
    match module
        .discovery()
        .await
        .get("request_object_signing_alg_values_supported")
    {
        Some(algorithms) => {
            assert!(!algorithms.as_array().unwrap().contains(&json!("none")));
            true
        }
        None => false,
    }
}

/// Checks that an unsigned request object by reference is used, or refused with
/// `request_uri_not_supported`. Skipped where the algorithms exclude it; then it is an error all
/// the same.
async fn oidcc_request_uri_unsigned_supported_correctly_or_rejected_as_unsupported(mode: Mode) {
    unsigned_by_reference(mode).await;
}

pub(super) async fn unsigned_by_reference(mode: Mode) {
    let mut module = Module::start(mode).await;
    let excluded = unsigned_are_excluded(&module).await;
    let address = "https://suite.example.com/request.jwt";
    let error = module.refused(&[("request_uri", address)]).await;
    if !excluded || error != "invalid_request_uri" {
        assert_eq!(error, "request_uri_not_supported");
    }
}

/// The same by value.
async fn oidcc_unsigned_request_object_supported_correctly_or_rejected_as_unsupported(mode: Mode) {
    let mut module = Module::start(mode).await;
    let excluded = unsigned_are_excluded(&module).await;
    let id = module.client.id.clone();
    let object = unsigned(
        &json!({"iss": id, "aud": ISSUER, "client_id": id, "scope": "openid",
        "response_type": "code", "redirect_uri": CALLBACK, "state": STATE, "nonce": NONCE}),
    );
    let error = module.refused(&[("request", &object)]).await;
    if !excluded || error != "invalid_request_object" {
        assert_eq!(error, "request_not_supported");
    }
}

/// Checks that a claim that is asked for as essential is told. Warns where it is missing.
async fn oidcc_claims_essential(mode: Mode) {
    let mut module = Module::start(mode).await;
    let wanted = json!({"userinfo": {"name": {"essential": true}}}).to_string();
    let login = module.login(&[("claims", &wanted)]).await;
    let told = module.userinfo(&login).await;
    assert_eq!(told["name"], "alice");
    assert!(told.get("preferred_username").is_none(), "only that one");
}

/// Checks that the redirect URI of an unsigned request object counts, or that a page says no: the
/// one in the query is not registered. Skipped where the algorithms exclude such objects.
pub(super) async fn oidcc_ensure_request_object_with_redirect_uri(mode: Mode) {
    let mut module = Module::start(mode).await;
    let id = module.client.id.clone();
    let object = unsigned(&json!({"iss": id, "aud": ISSUER, "redirect_uri": CALLBACK}));
    let wrong = "https://evil.example/callback";
    let more = [("request", object.as_str()), ("redirect_uri", wrong)];
    module.is_refused_on_a_page(&more).await;
}

/// Checks that a refresh token gives tokens about the same login, that another client cannot use it
/// (400 `invalid_grant`), and that no answer is kept by a cache. Asks for `offline_access` with
/// `prompt=consent` where that scope is supported.
async fn oidcc_refresh_token(mode: Mode) {
    let more = json!({"grant_types": ["authorization_code", "refresh_token"]});
    refreshes(mode, &more).await;
}

pub(super) async fn refreshes(mode: Mode, more: &Value) {
    let mut module = Module::of(mode, more).await;
    let scopes = module.discovery().await["scopes_supported"].clone();
    let offline = scopes
        .as_array()
        .unwrap()
        .contains(&json!("offline_access"));
    let login = if offline {
        let asked = [("scope", "openid offline_access"), ("prompt", "consent")];
        module.login(&asked).await
    } else {
        module.login(&[]).await
    };
    let token = login.tokens["refresh_token"].as_str().unwrap();
    let pairs = [("grant_type", "refresh_token"), ("refresh_token", token)];

    let client2 = registered(&module.server, more).await;
    let stolen = module.token(&client2, &pairs).await;
    assert_eq!(refusal(&stolen).0, 400);
    assert_eq!(refusal(&stolen).1, "invalid_grant");

    let answer = module.token(&module.client, &pairs).await;
    // A nonce is allowed here, if it is the one of the login.
    let nonce = answer.json()["id_token"].as_str().map(|token| {
        let claims = token.split('.').nth(1).unwrap();
        let claims = URL_SAFE_NO_PAD.decode(claims).unwrap();
        serde_json::from_slice::<Value>(&claims).unwrap()["nonce"].clone()
    });
    let nonce = nonce.filter(Value::is_string).map(|_| NONCE);
    let refreshed = module.checked(&answer, nonce).await;
    for claim in ["iss", "sub", "aud", "auth_time", "azp"] {
        assert_eq!(
            refreshed.claims.get(claim),
            login.claims.get(claim),
            "{claim}"
        );
    }
    assert_ne!(refreshed.access_token(), login.access_token());
    module.userinfo(&refreshed).await;
}

/// Checks a login with PKCE (S256).
async fn oidcc_ensure_request_with_valid_pkce_succeeds(mode: Mode) {
    let mut module = Module::start(mode).await;
    let challenge = [
        ("code_challenge", CHALLENGE),
        ("code_challenge_method", "S256"),
    ];
    let fields = module.answered(&challenge).await;
    let code = Module::code(&fields);
    let answer = module.redeem(code, &[("code_verifier", VERIFIER)]).await;
    module.checked(&answer, Some(NONCE)).await;
}
