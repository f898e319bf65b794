use std::sync::Arc;

use serde_json::json;

use super::*;
use crate::{
    fetch::{CacheBounds, FetchSettings, tests::*},
    signing::{TestKey, base64, set_of},
};

const ISSUER: &str = "https://idp.example";
const NOW: i64 = 1_800_000_000;

fn request() -> Value {
    json!({
        "client_id": "app", "response_type": "code", "scope": "openid", "state": "s",
        "redirect_uri": "https://app.example/cb", "nonce": "n",
    })
}

fn with(changes: Value) -> Value {
    let mut all = request();
    all.as_object_mut()
        .unwrap()
        .extend(changes.as_object().unwrap().clone());
    all
}

struct World {
    key: TestKey,
    keys: ClientKeys,
    cache: KeyCache,
    request_uris: Vec<String>,
    algorithm: Option<Algorithm>,
}

impl World {
    fn new(key: TestKey) -> Self {
        let client = GuardedClient::new(&FetchSettings::default()).unwrap();
        Self {
            keys: ClientKeys::of(Some(&set_of(key.jwk(None))), None).unwrap(),
            key,
            cache: KeyCache::new(Arc::new(client), CacheBounds::default()),
            request_uris: Vec::new(),
            algorithm: None,
        }
    }

    fn requester(&self) -> Requester<'_> {
        Requester {
            client_id: "app",
            algorithm: self.algorithm,
            request_uris: &self.request_uris,
            keys: &self.keys,
        }
    }

    async fn verify(&self, text: &str) -> Result<RequestObject, RequestObjectError> {
        let at = Timestamp::from_second(NOW).unwrap();
        let now = Instant::now();
        RequestObject::verify(text, &self.requester(), &self.cache, ISSUER, at, now).await
    }

    async fn code(&self, claims: Value) -> String {
        match self.verify(&self.key.sign(&claims)).await {
            Ok(_) => String::new(),
            Err(error) => error.to_string(),
        }
    }
}

/// `oidcc-request-uri-signed-rs256`: registered with a fragment that is not the hash of what is
/// there.
#[tokio::test]
async fn oidcc_request_uri_signed_rs256() {
    let server = HostileServer::start().await;
    let mut world = World::new(TestKey::rs256());
    world.algorithm = Some(Algorithm::RS256);
    let object = world.key.sign(&with(json!({"aud": ISSUER, "iss": "app"})));
    server.answer("/requesturi/1", typed_answer("application/jwt", &object));
    let uri = format!("{}#{}", server.url("/requesturi/1"), base64(&[7; 32]));
    world.request_uris = vec![uri.clone()];
    let text = fetch(&server.client(), &uri, &world.requester())
        .await
        .unwrap();
    let object = world.verify(&text).await.unwrap();
    let query = format!(
        "client_id=app&response_type=code&scope=openid&request_uri={}",
        form_urlencoded::byte_serialize(uri.as_bytes()).collect::<String>()
    );
    let merged = object.merged(query.as_bytes()).unwrap();
    let merged: Vec<_> = form_urlencoded::parse(merged.as_bytes()).collect();
    let value = |name: &str| {
        let mut all = merged.iter().filter(|(found, _)| found == name);
        let one = all.next().map(|(_, value)| value.to_string());
        assert!(all.next().is_none(), "{name} occurs twice");
        one
    };
    assert_eq!(
        value("redirect_uri").as_deref(),
        Some("https://app.example/cb")
    );
    assert_eq!(value("state").as_deref(), Some("s"));
    assert_eq!(value("client_id").as_deref(), Some("app"));
    assert_eq!(
        (value("request_uri"), value("iss"), value("aud")),
        (None, None, None)
    );
}

#[tokio::test]
async fn only_registered_addresses_are_fetched() {
    let server = HostileServer::start().await;
    server.answer("/r", typed_answer("application/jwt", "a.b.c"));
    server.answer("/html", typed_answer("text/html", "a.b.c"));
    server.answer("/huge", Answer::Endless);
    let mut world = World::new(TestKey::es256());
    let registered = ["/r", "/html", "/none"].map(|path| server.url(path).as_str().to_owned());
    world.request_uris = registered.to_vec();
    let client = server.client();
    let code = async |uri: &str| match fetch(&client, uri, &world.requester()).await {
        Ok(text) => text,
        Err(error) => error.code().to_owned(),
    };
    assert_eq!(code(server.url("/r").as_str()).await, "a.b.c");
    assert_eq!(code(server.url("/r#v2").as_str()).await, "a.b.c");
    for uri in [
        server.url("/r?x").as_str(),
        server.url("/other").as_str(),
        server.url("/html").as_str(),
        server.url("/none").as_str(),
        "http://localhost/r",
        "https://user:word@localhost/r",
        "urn:example:1",
        &format!("https://a.example/{}", "a".repeat(512)),
    ] {
        assert_eq!(code(uri).await, "invalid_request_uri", "{uri}");
    }
    assert_eq!(server.count("/other"), 0);
}

/// `oidcc-unsigned-request-object-supported-correctly-or-rejected-as-unsupported` and the like:
/// discovery names the algorithms, `none` is not among them, and it does not count.
#[tokio::test]
async fn oidcc_unsigned_request_object_is_refused() {
    let world = World::new(TestKey::es256());
    let part = |value: &Value| base64(value.to_string().as_bytes());
    for (alg, signature) in [("none", ""), ("none", "c2ln"), ("HS256", "c2ln")] {
        let text = format!(
            "{}.{}.{signature}",
            part(&json!({"alg": alg})),
            part(&request())
        );
        let error = world.verify(&text).await.unwrap_err();
        assert!(matches!(error, RequestObjectError::Algorithm(_)), "{error}");
        assert_eq!(error.code(), "invalid_request_object");
    }
    assert!(world.verify(&world.key.sign(&request())).await.is_ok());
    let stranger = TestKey::es256().sign(&request());
    let error = world.verify(&stranger).await.unwrap_err();
    assert!(matches!(error, RequestObjectError::Signature(_)), "{error}");
    let mut other = World::new(TestKey::es256());
    other.algorithm = Some(Algorithm::RS256);
    let error = other.verify(&other.key.sign(&request())).await.unwrap_err();
    assert!(matches!(error, RequestObjectError::Algorithm(_)), "{error}");
    let encrypted = "a.b.c.d.e";
    let error = world.verify(encrypted).await.unwrap_err();
    assert!(matches!(error, RequestObjectError::Malformed(_)), "{error}");
}

#[tokio::test]
async fn an_object_is_from_this_client_for_this_server_and_now() {
    let world = World::new(TestKey::es256());
    for good in [
        json!({}),
        json!({"iss": "app", "aud": ISSUER, "exp": NOW + 60, "nbf": NOW, "iat": NOW, "jti": "x"}),
        json!({"aud": ["https://other.example", ISSUER]}),
        json!({"sub": "someone"}),
    ] {
        assert_eq!(world.code(with(good.clone())).await, "", "{good}");
    }
    for bad in [
        json!({"iss": "other"}),
        json!({"iss": 7}),
        json!({"aud": "https://other.example"}),
        json!({"aud": [ISSUER, 1]}),
        json!({"exp": NOW - 60}),
        json!({"exp": "soon"}),
        json!({"nbf": NOW + 61}),
        json!({"iat": NOW + 61}),
        json!({"sub": "app"}),
        json!({"request": "a.b.c"}),
        json!({"request_uri": "https://app.example/r"}),
    ] {
        assert_ne!(world.code(with(bad.clone())).await, "", "{bad}");
    }
    for (typ, is_taken) in [
        ("JWT", true),
        ("oauth-authz-req+jwt", true),
        ("client-authentication+jwt", false),
        ("at+jwt", false),
    ] {
        let header = json!({"alg": "ES256", "typ": typ});
        let text = world.key.sign_with(&header, &request());
        assert_eq!(world.verify(&text).await.is_ok(), is_taken, "{typ}");
    }
    let long = with(json!({"state": "s".repeat(MAX_BYTES)}));
    assert_ne!(world.code(long).await, "");
}

/// `oidcc-ensure-request-object-with-redirect-uri`: the object's parameter counts.
#[tokio::test]
async fn oidcc_ensure_request_object_with_redirect_uri() {
    let world = World::new(TestKey::es256());
    let object = with(json!({
        "max_age": 300, "claims": {"id_token": {"acr": null}}, "resource": ["a:1", "a:2"],
        "gone": null, "odd": true,
    }));
    let object = world.verify(&world.key.sign(&object)).await.unwrap();
    let query = b"client_id=app&response_type=code&redirect_uri=https%3A%2F%2Fevil.example\
        &state=old&resource=x&ui_locales=de&request=abc&empty=";
    let merged = object.merged(query).unwrap();
    let mut merged: Vec<(String, String)> = form_urlencoded::parse(merged.as_bytes())
        .map(|(name, value)| (name.into_owned(), value.into_owned()))
        .collect();
    merged.sort();
    let expected: Vec<_> = [
        ("claims", r#"{"id_token":{"acr":null}}"#),
        ("client_id", "app"),
        ("max_age", "300"),
        ("nonce", "n"),
        ("odd", "true"),
        ("redirect_uri", "https://app.example/cb"),
        ("resource", "a:1"),
        ("resource", "a:2"),
        ("response_type", "code"),
        ("scope", "openid"),
        ("state", "s"),
        ("ui_locales", "de"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .to_vec();
    assert_eq!(merged, expected);

    for differs in [
        "client_id=other&response_type=code",
        "client_id=app&response_type=token",
    ] {
        let error = object.merged(differs.as_bytes()).unwrap_err();
        assert!(
            matches!(error, RequestObjectError::Mismatch(_)),
            "{differs}"
        );
    }
}
