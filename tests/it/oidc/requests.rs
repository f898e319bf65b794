//! Authorization requests that are signed (`request`, `request_uri`), and those that are pushed.

use tailbone::keys::Signer;
use testkit::jwks_server::signer;

use super::{
    application::{Application, At},
    pages::Browser,
    *,
};

const URN: &str = "urn:ietf:params:oauth:request_uri:";

/// What a client pushes, or signs: the usual request.
fn usual(client: &str) -> Vec<(&str, &str)> {
    vec![
        ("response_type", "code"),
        ("client_id", client),
        ("redirect_uri", APP),
        ("state", "st&te"),
        ("scope", "openid email profile"),
        ("nonce", "n-1"),
    ]
}

/// The usual request with other values; `-` takes a parameter away.
fn changed<'a>(client: &'a str, changes: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let named = |name: &str| changes.iter().any(|(other, _)| *other == name);
    let mut pairs = usual(client);
    pairs.retain(|(name, _)| !named(name));
    pairs.extend(changes.iter().filter(|(_, value)| *value != "-"));
    pairs
}

async fn push(connection: &mut Connection, client: &str, pairs: &[(&str, &str)]) -> Answer {
    let request = with(form("/par", pairs), "authorization", &basic(client));
    connection.send(request).await
}

async fn pushed(connection: &mut Connection, client: &str) -> String {
    let answer = push(connection, client, &usual(client)).await;
    assert_eq!(answer.status(), 201, "{answer:?}");
    answer.json()["request_uri"].as_str().unwrap().to_owned()
}

fn by_reference(client: &str, request_uri: &str) -> String {
    let pairs = [("client_id", client), ("request_uri", request_uri)];
    format!("/authorize?{}", query(&pairs))
}

#[tokio::test]
async fn a_pushed_request_counts_once_and_alone() {
    let server = OidcServer::open().await;
    let (mut alice, mut outside) = (server.alice().await, server.outside().await);
    let answer = push(&mut outside, "silent", &usual("silent")).await;
    assert_eq!(
        (answer.status(), answer.header("cache-control")),
        (201, "no-store")
    );
    let told = answer.json();
    assert_eq!(told["expires_in"], 600);
    let request_uri = told["request_uri"].as_str().unwrap();
    assert!(request_uri.starts_with(URN), "{request_uri}");

    let as_another = alice.get(&by_reference("asking", request_uri)).await;
    assert_eq!(refusal(&as_another).1, "invalid_request_uri");
    assert_eq!(as_another.header("location"), "");
    let tampered = format!(
        "{}&state=other&redirect_uri=https%3A%2F%2Fevil.example&response_type=token&nonce=x",
        by_reference("silent", request_uri)
    );
    let code = code(&mut alice, &tampered).await;
    let answer = redeem(&mut outside, &code, &[]).await;
    let claims = server
        .verified(answer.json()["id_token"].as_str().unwrap())
        .await;
    assert_eq!(claims["nonce"], "n-1");
    for reference in [request_uri, "urn:ietf:params:oauth:request_uri:0"] {
        let again = alice.get(&by_reference("silent", reference)).await;
        let (status, code, _) = refusal(&again);
        assert_eq!((status, code.as_str()), (400, "invalid_request_uri"));
        assert_eq!(again.header("location"), "");
    }
    // Also one whose answer was an error.
    let pairs = changed("silent", &[("prompt", "none")]);
    let told = push(&mut outside, "silent", &pairs).await.json();
    let path = by_reference("silent", told["request_uri"].as_str().unwrap());
    let fields = answer_of(&alice.get(&path).await);
    assert_eq!(field(&fields, "error"), "login_required");
    assert_eq!(refusal(&alice.get(&path).await).1, "invalid_request_uri");
}

#[tokio::test]
async fn the_page_that_asks_may_be_loaded_again_and_is_answered_once() {
    let server = OidcServer::open().await;
    let request_uri = pushed(&mut server.outside().await, "asking").await;
    let mut alice = Browser::on(server.alice().await);
    let path = by_reference("asking", &request_uri);
    let first = alice.get(&path).await;
    let second = alice.get(&path).await;
    let answer = alice.press(&second, "continue").await;
    assert_eq!(answer.status(), 303, "{answer:?}");
    assert!(
        answer
            .header("location")
            .starts_with(&format!("{APP}&code="))
    );
    let again = alice.press(&first, "continue").await;
    assert_eq!((again.status(), again.header("location")), (400, ""));
}

#[tokio::test]
async fn what_cannot_be_pushed() {
    let server = OidcServer::open().await;
    let mut outside = server.outside().await;
    for (changes, code) in [
        (
            ("redirect_uri", "https://evil.example/cb"),
            "invalid_request",
        ),
        (("redirect_uri", "-"), "invalid_request"),
        (("response_type", "token"), "unsupported_response_type"),
        (
            ("request_uri", "https://app.example.com/object"),
            "invalid_request",
        ),
        (("request", "a.b.c"), "invalid_request_object"),
        (("client_id", "asking"), "invalid_request"),
        (("code_challenge", CHALLENGE), "invalid_request"),
        (("client_secret", SECRET), "invalid_request"),
    ] {
        let answer = push(&mut outside, "silent", &changed("silent", &[changes])).await;
        let (status, told, words) = refusal(&answer);
        assert_eq!((status, told.as_str()), (400, code), "{changes:?}: {words}");
    }
    let refused = is(401, "invalid_client", "client authentication failed");
    for pairs in [
        changed("silent", &[]),
        changed("silent", &[("client_secret", "wrong")]),
        changed("nobody", &[]),
        changed("silent", &[("client_id", "-")]),
    ] {
        let answer = outside.send(form("/par", &pairs)).await;
        assert_eq!(refusal(&answer), refused, "{pairs:?}");
    }
    let public = outside.send(form("/par", &usual("public"))).await;
    assert_eq!(refusal(&public).0, 400, "a public client needs PKCE");
    let with_pkce = [
        ("code_challenge", CHALLENGE),
        ("code_challenge_method", "S256"),
    ];
    let public = outside
        .send(form("/par", &changed("public", &with_pkce)))
        .await;
    assert_eq!(public.status(), 201);
    let get = outside.get("/par").await;
    assert_eq!(
        refusal(&get),
        is(405, "invalid_request", "method not allowed")
    );
    let asked = outside.send(request("OPTIONS", "/par")).await;
    assert_eq!(asked.status(), 204);
}

#[tokio::test]
async fn a_client_without_credentials_pushes_a_bounded_number() {
    let server = OidcServer::changed(|provider| {
        provider.pushed_requests = Arc::new(Tries::new(2, 600));
    })
    .await;
    let mut outside = server.outside().await;
    let with_pkce = [
        ("code_challenge", CHALLENGE),
        ("code_challenge_method", "S256"),
    ];
    let public = changed("public", &with_pkce);
    for status in [201, 201, 429] {
        let answer = outside.send(form("/par", &public)).await;
        assert_eq!(answer.status(), status, "{answer:?}");
    }
    // Each caller of the tailnet has their own, and a client with a secret any number.
    let answer = server.alice().await.send(form("/par", &public)).await;
    assert_eq!(answer.status(), 201);
    for _ in 0..3 {
        pushed(&mut outside, "silent").await;
    }
}

#[tokio::test]
async fn a_client_may_have_to_push_its_requests() {
    let server = OidcServer::open().await;
    let metadata = ClientMetadata {
        redirect_uris: vec![APP.into()],
        require_pushed_authorization_requests: Some(true),
        login: Some(Login::Silent),
        ..ClientMetadata::default()
    };
    server.add_client("pushing", &metadata).await;
    let mut alice = server.alice().await;
    let fields = answer_of(&alice.get(&asking("pushing", &[])).await);
    assert_eq!(field(&fields, "error"), "invalid_request");
    let request_uri = pushed(&mut server.outside().await, "pushing").await;
    code(&mut alice, &by_reference("pushing", &request_uri)).await;
}

/// A client that signs its requests.
async fn signing(server: &OidcServer, by: &Signer, change: impl FnOnce(&mut ClientMetadata)) {
    let mut metadata = ClientMetadata {
        redirect_uris: vec![APP.into()],
        jwks: Some(json!({"keys": [by.public().to_value()]})),
        login: Some(Login::Silent),
        ..ClientMetadata::default()
    };
    change(&mut metadata);
    server.add_client("signing", &metadata).await;
}

/// The usual request as claims, and what the test changes; `null` takes a claim away.
fn claims(changes: Value) -> Value {
    let mut claims = json!({"iss": "signing", "aud": ISSUER});
    for (name, value) in usual("signing") {
        claims[name] = value.into();
    }
    for (name, value) in changes.as_object().unwrap() {
        claims[name] = value.clone();
    }
    let members = claims.as_object_mut().unwrap();
    members.retain(|_, value| !value.is_null());
    claims
}

fn object(by: &Signer, changes: Value) -> String {
    by.sign(claims(changes).to_string().as_bytes()).unwrap()
}

fn with_object(object: &str, more: &[(&str, &str)]) -> String {
    let mut pairs = vec![
        ("client_id", "signing"),
        ("response_type", "code"),
        ("scope", "openid"),
        ("request", object),
    ];
    pairs.extend(more);
    format!("/authorize?{}", query(&pairs))
}

#[tokio::test]
async fn what_the_client_signed_wins() {
    let server = OidcServer::open().await;
    let key = signer("1", KeySpec::Es256);
    signing(&server, &key, |_| ()).await;
    let mut alice = server.alice().await;
    // The redirect URI may stand in the object alone.
    let more = [("state", "other"), ("nonce", "other")];
    code(&mut alice, &with_object(&object(&key, json!({})), &more)).await;
    // What stands outside alone counts as well (OpenID Connect Core, section 6.1).
    let outside = [("state", "st&te"), ("redirect_uri", APP)];
    let bare = object(&key, json!({"state": null, "redirect_uri": null}));
    code(&mut alice, &with_object(&bare, &outside)).await;
    let pushed = {
        let pairs = [("request", object(&key, json!({})))];
        let pairs: Vec<_> = pairs
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        push(&mut server.outside().await, "signing", &pairs)
            .await
            .json()
    };
    let request_uri = pushed["request_uri"].as_str().unwrap();
    code(&mut alice, &by_reference("signing", request_uri)).await;
}

#[tokio::test]
async fn an_object_that_the_client_did_not_sign_for_this_request() {
    let server = OidcServer::open().await;
    let (key, other) = (signer("1", KeySpec::Es256), signer("1", KeySpec::Es256));
    signing(&server, &key, |_| ()).await;
    let mut alice = server.alice().await;
    let now = Timestamp::now().as_second();
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let unsigned = format!(
        "{}.{}.",
        part(&json!({"alg": "none"})),
        part(&claims(json!({})))
    );
    let access_token = key.sign_as("at+jwt", claims(json!({})).to_string().as_bytes());
    let id_token = tokens(&mut alice, &[]).await["id_token"].clone();
    let back = [("redirect_uri", APP), ("state", "st&te")];
    for (case, object) in [
        ("unsigned", unsigned),
        ("another key", object(&other, json!({}))),
        (
            "for somebody else",
            object(&key, json!({"aud": "https://other"})),
        ),
        ("from somebody else", object(&key, json!({"iss": "silent"}))),
        ("ended", object(&key, json!({"exp": now - 61}))),
        (
            "another client",
            object(&key, json!({"client_id": "silent"})),
        ),
        (
            "another response type",
            object(&key, json!({"response_type": "token"})),
        ),
        (
            "one in the other",
            object(&key, json!({"request": "a.b.c"})),
        ),
        ("an assertion", object(&key, json!({"sub": "signing"}))),
        ("an access token", access_token.unwrap()),
        ("an ID token of ours", id_token.as_str().unwrap().to_owned()),
        ("no token", "x".to_owned()),
    ] {
        let fields = answer_of(&alice.get(&with_object(&object, &back)).await);
        assert_eq!(field(&fields, "error"), "invalid_request_object", "{case}");
        assert_eq!(field(&fields, "state"), "st&te", "{case}");
        // Where only the object would say where to go, nobody is sent anywhere.
        let answer = alice.get(&with_object(&object, &[])).await;
        let (status, code, _) = refusal(&answer);
        assert_eq!(
            (status, code.as_str()),
            (400, "invalid_request_object"),
            "{case}"
        );
        assert_eq!(answer.header("location"), "", "{case}");
    }
    let elsewhere = object(&key, json!({"redirect_uri": "https://evil.example/cb"}));
    let answer = alice.get(&with_object(&elsewhere, &back)).await;
    assert_eq!(
        refusal(&answer),
        is(400, "invalid_request", "redirect_uri mismatch")
    );
    let both = [
        ("redirect_uri", APP),
        ("request_uri", "https://app.example.com/o"),
    ];
    let fields = answer_of(
        &alice
            .get(&with_object(&object(&key, json!({})), &both))
            .await,
    );
    assert_eq!(field(&fields, "error"), "invalid_request");
    // One without keys cannot sign.
    let path = asking(
        "silent",
        &[("request", &object(&key, json!({"iss": "silent"})))],
    );
    let fields = answer_of(&alice.get(&path).await);
    assert_eq!(field(&fields, "error"), "invalid_request_object");
}

#[tokio::test]
async fn a_client_that_must_sign_gets_no_further_without() {
    let server = OidcServer::open().await;
    let key = signer("1", KeySpec::Es256);
    let must = |metadata: &mut ClientMetadata| metadata.require_signed_request_object = Some(true);
    signing(&server, &key, must).await;
    let mut alice = server.alice().await;
    let fields = answer_of(&alice.get(&asking("signing", &[])).await);
    assert_eq!(field(&fields, "error"), "invalid_request");
    // What it did not sign does not count.
    let more = [("prompt", "none"), ("redirect_uri", APP)];
    code(&mut alice, &with_object(&object(&key, json!({})), &more)).await;
}

#[tokio::test]
async fn an_object_is_fetched_from_registered_addresses_alone() {
    let application = Application::start().await;
    let reached = Application::reached_within(Duration::from_millis(500));
    let server = OidcServer::changed(|provider| provider.foreign = reached).await;
    let key = signer("1", KeySpec::new(tailbone::keys::Algorithm::Rs256, 2048));
    let paths = [
        "/object", "/huge", "/moved", "/silence", "/missing", "/html",
    ];
    signing(&server, &key, |metadata| {
        metadata.request_object_signing_alg = Some("RS256".into());
        metadata.request_uris = paths.map(|path| application.url(path)).to_vec();
        metadata.request_uris[0].push_str("#registered");
    })
    .await;
    let signed = object(&key, json!({}));
    let jwt = "application/oauth-authz-req+jwt";
    application.answer("/object", At::Text(jwt, signed.clone()));
    application.answer("/other", At::Text(jwt, signed.clone()));
    application.answer("/huge", At::Huge);
    application.answer("/moved", At::Redirect(application.url("/object")));
    application.answer("/silence", At::Silence);
    application.answer("/html", At::Text("text/html", signed));
    let mut alice = server.alice().await;
    let at = |path: &str| asking("signing", &[("request_uri", &application.url(path))]);
    // The fragment is the hash of a version, which the client changes.
    code(&mut alice, &at("/object#another")).await;
    assert_eq!(application.requests("/object"), 1);
    for path in ["/other", "/huge", "/moved", "/silence", "/missing", "/html"] {
        let fields = answer_of(&alice.get(&at(path)).await);
        assert_eq!(field(&fields, "error"), "invalid_request_uri", "{path}");
    }
    assert_eq!(application.requests("/other"), 0, "it is not registered");
    assert_eq!(
        application.requests("/object"),
        1,
        "a redirect is not followed"
    );

    let by_default = OidcServer::open().await;
    signing(&by_default, &key, |metadata| {
        metadata.request_uris = vec![application.url("/object")];
    })
    .await;
    let fields = answer_of(&by_default.alice().await.get(&at("/object")).await);
    assert_eq!(field(&fields, "error"), "invalid_request_uri");
    assert_eq!(
        application.requests("/object"),
        1,
        "a private address is not asked"
    );
}

#[tokio::test]
async fn the_page_asks_about_the_object_that_was_read() {
    let application = Application::start().await;
    let server = OidcServer::changed(|provider| provider.foreign = Application::reached()).await;
    let key = signer("1", KeySpec::Es256);
    signing(&server, &key, |metadata| {
        metadata.request_uris = vec![application.url("/object")];
        metadata.login = Some(Login::Confirm);
    })
    .await;
    let jwt = "application/jwt";
    application.answer("/object", At::Text(jwt, object(&key, json!({}))));
    let mut alice = Browser::on(server.alice().await);
    let path = by_reference("signing", &application.url("/object"));
    let page = alice
        .get(&format!("{path}&response_type=code&scope=openid"))
        .await;
    application.answer(
        "/object",
        At::Text(jwt, object(&key, json!({"state": "other"}))),
    );
    let answer = alice.press(&page, "continue").await;
    assert_eq!(answer.status(), 303, "{answer:?}");
    assert!(
        answer.header("location").contains("state=st%26te"),
        "{answer:?}"
    );
    assert_eq!(application.requests("/object"), 1);
}

#[tokio::test]
async fn a_registration_names_a_sector_that_knows_its_addresses() {
    let application = Application::start().await;
    let server = OidcServer::changed(|provider| provider.foreign = Application::reached()).await;
    application.answer_json("/sector", json!([APP, "https://other.example.com/cb"]));
    application.answer("/moved", At::Redirect(application.url("/sector")));
    let grant = json!({"allow_dcr": true});
    let mut bob = server.person("bob", |bob| bob.cap(CAPABILITY, grant)).await;
    for (path, uri, status) in [
        ("/sector", APP, 201),
        ("/sector", "https://third.example.com/cb", 400),
        ("/moved", APP, 400),
        ("/missing", APP, 400),
    ] {
        let body = json!({
            "redirect_uris": [uri], "sector_identifier_uri": application.url(path),
        });
        let (parts, _) = request("POST", "/register").into_parts();
        let register = Request::from_parts(parts, Full::from(body.to_string()));
        let answer = bob.send(register).await;
        assert_eq!(answer.status(), status, "{path}: {answer:?}");
        if status == 400 {
            assert_eq!(refusal(&answer).1, "invalid_client_metadata");
        }
    }
}

#[tokio::test]
async fn the_documents_tell_how_requests_may_come() {
    let server = OidcServer::open().await;
    let mut outside = server.outside().await;
    for path in [
        "/.well-known/openid-configuration",
        "/.well-known/oauth-authorization-server",
    ] {
        let told = outside.get(path).await.json();
        for (name, value) in [
            ("request_parameter_supported", json!(true)),
            ("request_uri_parameter_supported", json!(true)),
            ("require_request_uri_registration", json!(true)),
            (
                "request_object_signing_alg_values_supported",
                json!(["RS256", "ES256"]),
            ),
            (
                "pushed_authorization_request_endpoint",
                json!(format!("{ISSUER}/par")),
            ),
        ] {
            assert_eq!(told[name], value, "{path}: {name}");
        }
        let methods = told["token_endpoint_auth_methods_supported"].as_array();
        assert!(methods.unwrap().contains(&json!("private_key_jwt")));
        for endpoint in ["token", "revocation", "introspection"] {
            let name = format!("{endpoint}_endpoint_auth_signing_alg_values_supported");
            assert!(
                told[&name].as_array().unwrap().contains(&json!("ES256")),
                "{name}"
            );
        }
    }
}
