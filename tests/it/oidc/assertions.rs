//! Clients that sign who they are (`private_key_jwt`), and what else is presented as an assertion.

use tailbone::keys::Signer;
use tailbone_oidc::{assertion::JWT_BEARER, device::DEVICE_CODE_GRANT, provider::WorkloadIssuer};
use testkit::jwks_server::signer;

use super::{
    application::{Application, At},
    pages::Browser,
    *,
};

const CLIENT: &str = "signing";
const WORKLOAD: &str = "https://workload.example.ts.net";
const MACHINE: &str = "spiffe://example.ts.net/node/ci";

fn by_key(change: impl FnOnce(&mut ClientMetadata)) -> ClientMetadata {
    let mut metadata = ClientMetadata {
        redirect_uris: vec![APP.into()],
        token_endpoint_auth_method: AuthMethod::PrivateKeyJwt,
        login: Some(Login::Silent),
        ..ClientMetadata::default()
    };
    change(&mut metadata);
    metadata
}

/// The client's key as the OpenID suite registers it: inline, and without an id.
fn without_id(signer: &Signer) -> Value {
    let mut key = signer.public().to_value();
    key.as_object_mut().unwrap().remove("kid");
    json!({ "keys": [key] })
}

/// The claims of a good assertion, and what the test changes; `null` takes a claim away.
fn claims(changes: Value) -> Value {
    let now = Timestamp::now().as_second();
    let mut claims = json!({
        "iss": CLIENT, "sub": CLIENT, "aud": ISSUER, "iat": now, "exp": now + 60,
        "jti": uuid::Uuid::new_v4().to_string(),
    });
    for (name, value) in changes.as_object().unwrap() {
        claims[name] = value.clone();
    }
    let members = claims.as_object_mut().unwrap();
    members.retain(|_, value| !value.is_null());
    claims
}

fn signed(by: &Signer, claims: &Value) -> String {
    by.sign(claims.to_string().as_bytes()).unwrap()
}

fn presenting(assertion: &str) -> [(&str, &str); 2] {
    [
        ("client_assertion_type", JWT_BEARER),
        ("client_assertion", assertion),
    ]
}

/// What the client hears that ends an unknown token: 200 if it is who it says it is.
async fn shown(connection: &mut Connection, assertion: &str) -> u16 {
    let mut pairs = presenting(assertion).to_vec();
    pairs.push(("token", "unknown"));
    connection.send(form("/revoke", &pairs)).await.status()
}

#[tokio::test]
async fn a_client_with_a_key_redeems_asks_and_revokes() {
    let server = OidcServer::open().await;
    let key = signer("1", KeySpec::Es256);
    let metadata = by_key(|metadata| metadata.jwks = Some(without_id(&key)));
    server.add_client(CLIENT, &metadata).await;
    let mut alice = server.alice().await;
    let code = code(&mut alice, &asking(CLIENT, &[])).await;
    let mut outside = server.outside().await;
    let audience = format!("{ISSUER}/token");
    let assertion = signed(&key, &claims(json!({ "aud": audience })));
    let mut pairs = presenting(&assertion).to_vec();
    pairs.extend([
        ("grant_type", "authorization_code"),
        ("code", code.as_str()),
        ("redirect_uri", APP),
    ]);
    let answer = outside.send(form("/token", &pairs)).await;
    assert_eq!(answer.status(), 200, "{answer:?}");
    let tokens = answer.json();
    let access = tokens["access_token"].as_str().unwrap();

    let assertion = signed(&key, &claims(json!({})));
    let mut pairs = presenting(&assertion).to_vec();
    pairs.push(("token", access));
    let told = outside.send(form("/introspect", &pairs)).await.json();
    assert_eq!(
        (&told["active"], &told["client_id"]),
        (&json!(true), &json!(CLIENT))
    );
    let again = outside.send(form("/introspect", &pairs)).await;
    let refused = is(401, "invalid_client", "client authentication failed");
    assert_eq!(refusal(&again), refused, "an assertion counts once");

    let assertion = signed(&key, &claims(json!({"aud": [ISSUER]})));
    let mut pairs = presenting(&assertion).to_vec();
    pairs.push(("token", access));
    assert_eq!(outside.send(form("/revoke", &pairs)).await.status(), 200);
    assert_eq!(
        userinfo(&mut alice, &tokens["access_token"]).await.status(),
        401
    );
}

/// Each poll needs an assertion of its own, and only one.
#[tokio::test]
async fn a_client_with_a_key_begins_devices_and_acts_for_itself() {
    let server = OidcServer::open().await;
    let key = signer("1", KeySpec::Es256);
    let metadata = by_key(|metadata| {
        metadata.jwks = Some(without_id(&key));
        metadata.grant_types = vec![DEVICE_CODE_GRANT.into(), "client_credentials".into()];
    });
    server.add_client(CLIENT, &metadata).await;
    let mut outside = server.outside().await;
    let proving = |path: &str, more: &[(&str, &str)]| {
        let assertion = signed(&key, &claims(json!({})));
        let mut pairs = presenting(&assertion).to_vec();
        pairs.extend(more);
        form(path, &pairs)
    };
    let own = [("grant_type", "client_credentials")];
    let own = outside.send(proving("/token", &own)).await;
    assert_eq!(own.status(), 200, "{own:?}");

    let begun = outside.send(proving("/device_authorization", &[])).await;
    assert_eq!(begun.status(), 200, "{begun:?}");
    let device = begun.json();
    let poll = [
        ("grant_type", DEVICE_CODE_GRANT),
        ("device_code", device["device_code"].as_str().unwrap()),
    ];
    let pending = outside.send(proving("/token", &poll)).await;
    assert_eq!(refusal(&pending).1, "authorization_pending");
    let mut alice = Browser::of(&server, "alice").await;
    alice.decide(&device, "continue").await;
    let answer = outside.send(proving("/token", &poll)).await;
    assert_eq!(answer.status(), 200, "{answer:?}");
    let unproven = outside.send(form("/token", &poll)).await;
    assert_eq!(refusal(&unproven).0, 401);
}

#[tokio::test]
async fn what_is_no_assertion_of_the_client() {
    let server = OidcServer::open().await;
    let (key, other) = (signer("1", KeySpec::Es256), signer("1", KeySpec::Es256));
    let metadata = by_key(|metadata| metadata.jwks = Some(without_id(&key)));
    server.add_client(CLIENT, &metadata).await;
    let es384 = by_key(|metadata| {
        metadata.jwks = Some(without_id(&key));
        metadata.token_endpoint_auth_signing_alg = Some("ES384".into());
    });
    server.add_client("es384", &es384).await;
    let mut alice = server.alice().await;
    let good = signed(&key, &claims(json!({})));
    assert_eq!(shown(&mut alice, &good).await, 200);
    let now = Timestamp::now().as_second();
    let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let unsigned = |algorithm: &str| {
        let (header, claims) = (part(json!({ "alg": algorithm })), part(claims(json!({}))));
        format!("{header}.{claims}.")
    };
    // The public key as the secret of an HMAC.
    let confused = {
        let message = format!(
            "{}.{}",
            part(json!({"alg": "HS256"})),
            part(claims(json!({})))
        );
        let public = without_id(&key).to_string();
        let secret = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, public.as_bytes());
        let tag = aws_lc_rs::hmac::sign(&secret, message.as_bytes());
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(tag))
    };
    let of_another_kind = |typ: &str| {
        let claims = claims(json!({})).to_string();
        key.sign_as(typ, claims.as_bytes()).unwrap()
    };
    let id_token = tokens(&mut alice, &[]).await["id_token"].clone();
    for (case, assertion) in [
        ("replayed", good),
        ("alg none", unsigned("none")),
        ("no signature", unsigned("ES256")),
        ("HMAC by the public key", confused),
        ("another key", signed(&other, &claims(json!({})))),
        (
            "another audience",
            signed(&key, &claims(json!({"aud": "https://other"}))),
        ),
        (
            "also for somebody else",
            signed(&key, &claims(json!({"aud": [ISSUER, "https://other"]}))),
        ),
        ("no audience", signed(&key, &claims(json!({"aud": null})))),
        ("no id", signed(&key, &claims(json!({"jti": null})))),
        ("ended", signed(&key, &claims(json!({"exp": now - 61})))),
        ("endless", signed(&key, &claims(json!({"exp": null})))),
        (
            "too long",
            signed(&key, &claims(json!({"exp": now + 100_000}))),
        ),
        ("not yet", signed(&key, &claims(json!({"nbf": now + 120})))),
        (
            "another client",
            signed(&key, &claims(json!({"iss": "silent", "sub": "silent"}))),
        ),
        (
            "another algorithm than registered",
            signed(&key, &claims(json!({"iss": "es384", "sub": "es384"}))),
        ),
        ("an access token", of_another_kind("at+jwt")),
        ("a request object", of_another_kind("oauth-authz-req+jwt")),
        ("a logout token", of_another_kind("logout+jwt")),
        ("an ID token of ours", id_token.as_str().unwrap().to_owned()),
        ("no token", "a.b.c".to_owned()),
    ] {
        assert_eq!(shown(&mut alice, &assertion).await, 401, "{case}");
    }
    // The client has no secret, and does not get in by its name.
    for more in [vec![], vec![("client_secret", SECRET)]] {
        let mut pairs = vec![("client_id", CLIENT), ("token", "unknown")];
        pairs.extend(more);
        assert_eq!(
            alice.send(form("/revoke", &pairs)).await.status(),
            401,
            "{pairs:?}"
        );
    }
    let fresh = signed(&key, &claims(json!({})));
    let mut two_ways = presenting(&fresh).to_vec();
    two_ways.extend([("client_secret", SECRET), ("token", "unknown")]);
    assert_eq!(alice.send(form("/revoke", &two_ways)).await.status(), 400);
}

#[tokio::test]
async fn keys_at_an_address_are_fetched_again_for_a_new_key() {
    let application = Application::start().await;
    let server = OidcServer::changed(|provider| provider.foreign = Application::reached()).await;
    let (one, two) = (signer("1", KeySpec::Es256), signer("2", KeySpec::Es256));
    let keys = |signers: &[&Signer]| {
        let keys: Vec<_> = signers.iter().map(|one| one.public().to_value()).collect();
        json!({ "keys": keys })
    };
    application.answer_json("/jwks", keys(&[&one]));
    let metadata = by_key(|metadata| metadata.jwks_uri = Some(application.url("/jwks")));
    server.add_client(CLIENT, &metadata).await;
    let mut alice = server.alice().await;
    for _ in 0..2 {
        assert_eq!(
            shown(&mut alice, &signed(&one, &claims(json!({})))).await,
            200
        );
    }
    assert_eq!(application.requests("/jwks"), 1);
    application.answer_json("/jwks", keys(&[&one, &two]));
    assert_eq!(
        shown(&mut alice, &signed(&two, &claims(json!({})))).await,
        200
    );
    assert_eq!(application.requests("/jwks"), 2);
    // Whoever names unknown keys makes the server fetch nothing for a minute.
    let three = signer("3", KeySpec::Es256);
    for _ in 0..3 {
        assert_eq!(
            shown(&mut alice, &signed(&three, &claims(json!({})))).await,
            401
        );
    }
    assert_eq!(application.requests("/jwks"), 2);
}

#[tokio::test]
async fn an_address_for_keys_that_is_private_or_hostile_authenticates_nobody() {
    let application = Application::start().await;
    let key = signer("1", KeySpec::Es256);
    application.answer_json("/jwks", json!({"keys": [key.public().to_value()]}));
    application.answer("/huge", At::Huge);
    application.answer("/silence", At::Silence);
    application.answer("/moved", At::Redirect(application.url("/jwks")));
    application.answer("/text", At::Text("text/html", "<html>".into()));
    application.answer_json("/none", json!({"keys": []}));

    let by_default = OidcServer::open().await;
    let metadata = by_key(|metadata| metadata.jwks_uri = Some(application.url("/jwks")));
    by_default.add_client(CLIENT, &metadata).await;
    let mut alice = by_default.alice().await;
    assert_eq!(
        shown(&mut alice, &signed(&key, &claims(json!({})))).await,
        401
    );
    assert_eq!(
        application.requests("/jwks"),
        0,
        "a private address is not asked"
    );

    let reached = Application::reached_within(Duration::from_millis(500));
    let server = OidcServer::changed(|provider| provider.foreign = reached).await;
    let mut alice = server.alice().await;
    for path in ["/huge", "/silence", "/moved", "/text", "/none", "/missing"] {
        let metadata = by_key(|metadata| metadata.jwks_uri = Some(application.url(path)));
        server.add_client(path, &metadata).await;
        let assertion = signed(&key, &claims(json!({"iss": path, "sub": path})));
        assert_eq!(shown(&mut alice, &assertion).await, 401, "{path}");
        assert_eq!(application.requests(path), 1, "{path}");
    }
    assert_eq!(
        application.requests("/jwks"),
        0,
        "a redirect is not followed"
    );
}

#[tokio::test]
async fn a_machine_shows_its_workload_token() {
    let keys = KeySet::in_memory("workload", &policy(), "tb", KeySpec::Es256, &[]);
    keys.start(Timestamp::now()).await.unwrap();
    let issuer = keys
        .loaded()
        .await
        .signer(tailbone::keys::Algorithm::Es256)
        .unwrap();
    let server = OidcServer::changed(|provider| {
        provider.workload = Some(WorkloadIssuer {
            issuer: WORKLOAD.into(),
            keys,
        });
    })
    .await;
    let metadata = by_key(|metadata| metadata.workload_subjects = vec![MACHINE.into()]);
    server.add_client(CLIENT, &metadata).await;
    server.add_client("other", &by_key(|_| ())).await;
    let mut machine = server.machine().await;
    let token = |changes: Value| {
        let mut token = claims(json!({"iss": WORKLOAD, "sub": MACHINE}));
        for (name, value) in changes.as_object().unwrap() {
            token[name] = value.clone();
        }
        signed(&issuer, &token)
    };
    let mut shown_for = async |client: &str, token: &str| {
        let mut pairs = presenting(token).to_vec();
        pairs.extend([("client_id", client), ("token", "unknown")]);
        machine.send(form("/revoke", &pairs)).await.status()
    };
    let good = token(json!({}));
    assert_eq!(shown_for(CLIENT, &good).await, 200);
    assert_eq!(
        shown_for(CLIENT, &good).await,
        200,
        "it counts until it ends"
    );
    for (case, token) in [
        (
            "another machine",
            token(json!({"sub": "spiffe://example.ts.net/node/other"})),
        ),
        (
            "another issuer",
            token(json!({"iss": "https://other.example.ts.net"})),
        ),
        (
            "another audience",
            token(json!({"aud": "sts.amazonaws.com"})),
        ),
        (
            "ended",
            token(json!({"exp": Timestamp::now().as_second() - 61})),
        ),
        ("another key", {
            let claims = claims(json!({"iss": WORKLOAD, "sub": MACHINE}));
            signed(&signer("1", KeySpec::Es256), &claims)
        }),
    ] {
        assert_eq!(shown_for(CLIENT, &token).await, 401, "{case}");
    }
    for (client, case) in [
        ("other", "another client"),
        ("silent", "a client with a secret"),
    ] {
        assert_eq!(shown_for(client, &good).await, 401, "{case}");
    }
}

#[tokio::test]
async fn a_client_registers_its_keys() {
    let server = OidcServer::open().await;
    let grant = json!({"allow_dcr": true});
    let mut bob = server.person("bob", |bob| bob.cap(CAPABILITY, grant)).await;
    let key = signer("1", KeySpec::Es256);
    let mut register = async |body: Value| {
        let (parts, _) = request("POST", "/register").into_parts();
        bob.send(Request::from_parts(parts, Full::from(body.to_string())))
            .await
    };
    let body = json!({
        "redirect_uris": [APP], "token_endpoint_auth_method": "private_key_jwt",
        "token_endpoint_auth_signing_alg": "ES256", "jwks": without_id(&key),
    });
    let client = register(body.clone()).await.json();
    assert_eq!(client["token_endpoint_auth_signing_alg"], "ES256");
    assert_eq!(client["jwks"], body["jwks"]);
    assert!(client.get("client_secret").is_none());
    let id = client["client_id"].as_str().unwrap();
    let assertion = signed(&key, &claims(json!({"iss": id, "sub": id})));
    assert_eq!(shown(&mut server.outside().await, &assertion).await, 200);

    let mut private = body.clone();
    private["jwks"]["keys"][0]["d"] = "AAAA".into();
    let mut none = body.clone();
    none["jwks"] = Value::Null;
    let mut two = body;
    two["jwks_uri"] = "https://app.example.com/jwks".into();
    for bad in [private, none, two] {
        let (status, code, words) = refusal(&register(bad).await);
        assert_eq!(
            (status, code.as_str()),
            (400, "invalid_client_metadata"),
            "{words}"
        );
    }
}
