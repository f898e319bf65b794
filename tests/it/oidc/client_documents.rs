//! Clients that are described by a document at their id, as MCP clients are.

use tailbone_oidc::{assertion::JWT_BEARER, documents::DocumentHosts};
use testkit::jwks_server::signer;

use super::{
    application::{Application, At, every_host},
    pages::Browser,
    *,
};

const LOOPBACK: &str = "http://127.0.0.1:51004/cb";

async fn open() -> (Application, OidcServer) {
    let application = Application::start().await;
    let server = OidcServer::changed(|provider| provider.foreign = Application::reached()).await;
    (application, server)
}

/// A document as MCP clients have it, and what the test changes.
fn document(id: &str, changes: Value) -> Value {
    let mut document = json!({
        "client_id": id,
        "client_name": "Coder",
        "redirect_uris": ["http://127.0.0.1/cb", "http://localhost/cb"],
        "grant_types": ["authorization_code", "refresh_token"],
        "response_types": ["code"],
        "token_endpoint_auth_method": "none",
    });
    for (name, value) in changes.as_object().unwrap() {
        document[name] = value.clone();
    }
    document
}

fn login(id: &str, redirect_uri: &str) -> String {
    let more = [
        ("redirect_uri", redirect_uri),
        ("code_challenge", CHALLENGE),
        ("code_challenge_method", "S256"),
        ("resource", RESOURCE),
    ];
    asking(id, &more)
}

/// The code after the person has pressed the button.
async fn confirmed(browser: &mut Browser, path: &str, redirect_uri: &str) -> String {
    let page = browser.get(path).await;
    let answer = browser.press(&page, "continue").await;
    assert_eq!(answer.status(), 303, "{answer:?}");
    let location = answer.header("location").to_owned();
    let query = location.strip_prefix(&format!("{redirect_uri}?")).unwrap();
    let fields: Vec<_> = url::form_urlencoded::parse(query.as_bytes())
        .into_owned()
        .collect();
    field(&fields, "code").to_owned()
}

#[tokio::test]
async fn a_client_logs_in_without_being_registered() {
    let (application, server) = open().await;
    let id = application.url("/client");
    application.answer_json("/client", document(&id, json!({})));
    let mut outside = server.outside().await;
    for path in [
        "/.well-known/openid-configuration",
        "/.well-known/oauth-authorization-server",
    ] {
        let told = outside.get(path).await.json();
        assert_eq!(told["client_id_metadata_document_supported"], true);
    }
    let mut alice = Browser::on(server.person("alice", mcp).await);
    let page = alice.get(&login(&id, LOOPBACK)).await;
    let text = page.text();
    for words in [
        "Log in to Coder",
        "comes from <b>localhost</b>",
        "runs on your own device",
        "You go on to <b>127.0.0.1</b>",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
    let code = confirmed(&mut alice, &login(&id, LOOPBACK), LOOPBACK).await;
    let redeem = form(
        "/token",
        &[
            ("grant_type", "authorization_code"),
            ("client_id", &id),
            ("code", &code),
            ("redirect_uri", LOOPBACK),
            ("code_verifier", VERIFIER),
            ("resource", RESOURCE),
        ],
    );
    let answer = outside.send(redeem).await;
    assert_eq!(answer.status(), 200, "{answer:?}");
    let tokens = answer.json();
    let claims = server.verified(tokens["id_token"].as_str().unwrap()).await;
    assert!(claims["aud"].to_string().contains(&id), "{claims}");
    let refresh_token = tokens["refresh_token"].as_str().unwrap();
    let refresh = form(
        "/token",
        &[
            ("grant_type", "refresh_token"),
            ("client_id", &id),
            ("refresh_token", refresh_token),
        ],
    );
    let answer = outside.send(refresh).await;
    assert_eq!(answer.status(), 200, "{answer:?}");
    let revoke = form(
        "/revoke",
        &[
            ("client_id", &id),
            ("token", answer.json()["access_token"].as_str().unwrap()),
        ],
    );
    assert_eq!(outside.send(revoke).await.status(), 200);
    assert_eq!(application.requests("/client"), 1, "it is kept");
}

#[tokio::test]
async fn a_document_may_name_keys() {
    let (application, server) = open().await;
    let id = application.url("/client");
    let key = signer("1", KeySpec::Es256);
    application.answer_json("/jwks", json!({"keys": [key.public().to_value()]}));
    let method = json!({
        "token_endpoint_auth_method": "private_key_jwt",
        "jwks_uri": application.url("/jwks"), "redirect_uris": ["https://app.example.com/cb"],
    });
    application.answer_json("/client", document(&id, method));
    let uri = "https://app.example.com/cb";
    let mut first = Browser::on(server.person("alice", mcp).await);
    let page = first.get(&login(&id, uri)).await;
    assert!(!page.text().contains("your own device"), "{}", page.text());
    let mut outside = server.outside().await;
    for (signs, status) in [(false, 401), (true, 200)] {
        let mut alice = Browser::on(server.person("alice", mcp).await);
        let code = confirmed(&mut alice, &login(&id, uri), uri).await;
        let now = Timestamp::now().as_second();
        let claims = json!({"iss": id, "sub": id, "aud": ISSUER, "exp": now + 60, "jti": code});
        let assertion = key.sign(claims.to_string().as_bytes()).unwrap();
        let mut pairs = vec![
            ("grant_type", "authorization_code"),
            ("client_id", id.as_str()),
            ("code", code.as_str()),
            ("redirect_uri", uri),
            ("code_verifier", VERIFIER),
        ];
        if signs {
            pairs.push(("client_assertion_type", JWT_BEARER));
            pairs.push(("client_assertion", &assertion));
        }
        let answer = outside.send(form("/token", &pairs)).await;
        assert_eq!(answer.status(), status, "{answer:?}");
    }
}

#[tokio::test]
async fn a_program_that_describes_itself_has_no_token_of_its_own() {
    let (application, server) = open().await;
    let id = application.url("/client");
    let key = signer("1", KeySpec::Es256);
    let program = json!({
        "token_endpoint_auth_method": "private_key_jwt",
        "jwks": {"keys": [key.public().to_value()]}, "grant_types": ["client_credentials"],
    });
    application.answer_json("/client", document(&id, program));
    let mut alice = server.alice().await;
    // Now the document is known.
    assert_eq!(alice.get(&login(&id, LOOPBACK)).await.status(), 302);
    let now = Timestamp::now().as_second();
    let claims = json!({"iss": id, "sub": id, "aud": ISSUER, "exp": now + 60, "jti": "1"});
    let assertion = key.sign(claims.to_string().as_bytes()).unwrap();
    let request = form(
        "/token",
        &[
            ("grant_type", "client_credentials"),
            ("client_assertion_type", JWT_BEARER),
            ("client_assertion", &assertion),
        ],
    );
    let (status, code, _) = refusal(&alice.send(request).await);
    assert_eq!((status, code.as_str()), (400, "unauthorized_client"));
}

#[tokio::test]
async fn nobody_on_the_internet_makes_the_server_fetch() {
    let (application, server) = open().await;
    let id = application.url("/client");
    application.answer_json("/client", document(&id, json!({})));
    let mut outside = server.outside().await;
    let answer = outside.get(&login(&id, LOOPBACK)).await;
    assert_eq!(answer.status(), 401);
    for (path, pairs) in [
        ("/revoke", vec![("token", "x")]),
        ("/introspect", vec![("token", "x"), ("client_secret", "x")]),
        (
            "/token",
            vec![("grant_type", "authorization_code"), ("code", "x")],
        ),
        (
            "/token",
            vec![("grant_type", "refresh_token"), ("refresh_token", "x")],
        ),
    ] {
        let mut pairs = pairs.clone();
        pairs.push(("client_id", id.as_str()));
        let answer = outside.send(form(path, &pairs)).await;
        assert!([400, 401].contains(&answer.status()), "{path}: {answer:?}");
    }
    assert_eq!(application.requests("/client"), 0);
}

#[tokio::test]
async fn an_id_whose_document_does_not_describe_it_is_no_client() {
    let application = Application::start().await;
    let reached = Application::reached_within(Duration::from_millis(500));
    let server = OidcServer::changed(|provider| provider.foreign = reached).await;
    let mut alice = server.alice().await;
    let url = |path: &str| application.url(path);
    application.answer("/huge", At::Huge);
    application.answer("/moved", At::Redirect(url("/good")));
    application.answer("/html", At::Text("text/html", "<html>".into()));
    for (path, changes) in [
        ("/good", json!({})),
        ("/other", json!({"client_id": url("/good")})),
        ("/secret", json!({"client_secret": "x"})),
        (
            "/basic",
            json!({"token_endpoint_auth_method": "client_secret_basic"}),
        ),
        ("/script", json!({"redirect_uris": ["javascript:1"]})),
        ("/nowhere", json!({"redirect_uris": []})),
    ] {
        application.answer_json(path, document(&url(path), changes));
    }
    let paths = [
        "/huge",
        "/moved",
        "/html",
        "/missing",
        "/other",
        "/secret",
        "/basic",
        "/script",
        "/nowhere",
        "/x/../good",
        "/good#x",
    ];
    for path in paths {
        let answer = alice.get(&login(&url(path), LOOPBACK)).await;
        let (status, code, words) = refusal(&answer);
        assert_eq!(
            (status, code.as_str()),
            (400, "invalid_client"),
            "{path}: {words}"
        );
    }
    assert_eq!(
        application.requests("/good"),
        0,
        "a redirect is not followed"
    );
    application.answer("/silence", At::Silence);
    let (status, code, _) = refusal(&alice.get(&login(&url("/silence"), LOOPBACK)).await);
    assert_eq!((status, code.as_str()), (503, "temporarily_unavailable"));
    // A redirect URI that the document does not name is not redirected to.
    let elsewhere = alice
        .get(&login(&url("/good"), "https://evil.example/cb"))
        .await;
    let mismatch = is(400, "invalid_request", "redirect_uri mismatch");
    assert_eq!(refusal(&elsewhere), mismatch);
}

#[tokio::test]
async fn documents_come_only_from_hosts_that_a_setting_names() {
    let application = Application::start().await;
    let id = application.url("/client");
    application.answer_json("/client", document(&id, json!({})));
    let only = |words: &str| {
        let words: Vec<_> = words.split(' ').map(|word| word.parse().unwrap()).collect();
        DocumentHosts::of(&words)
    };
    let fetching = FetchSettings::default();
    for (hosts, words) in [
        (None, "invalid client ID"),
        (
            only("*.corp.example"),
            "this server takes no clients from this host",
        ),
        (
            only("* !localhost"),
            "this server takes no clients from this host",
        ),
        (
            every_host(),
            "the client's document cannot be had: the host localhost has a private address, and the settings of t",
        ),
    ] {
        let told = hosts.is_some();
        let foreign = Arc::new(Foreign::new(&fetching, hosts).unwrap());
        let server = OidcServer::changed(|provider| provider.foreign = foreign).await;
        let mut alice = server.alice().await;
        let answer = alice.get(&login(&id, LOOPBACK)).await;
        assert_eq!(refusal(&answer), is(400, "invalid_client", words));
        let document = alice.get("/.well-known/openid-configuration").await.json();
        let member = document.get("client_id_metadata_document_supported");
        assert_eq!(member.is_some(), told);
    }
    assert_eq!(application.requests("/client"), 0);
}
