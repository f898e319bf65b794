//! Assertions and request objects of clients. Input: header, payload and the parameters of the
//! request, each in a line. The first two are signed here with the client's key, and read as an
//! assertion and as a request object. Then the same without the right signature.

use std::sync::LazyLock;

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::Timestamp;
use serde_json::{Value, json};
use tailbone::jwks::fetch::KeySet;
use tailbone_oidc::{
    assertion::{self, ClientAssertion, Expected, JWT_BEARER, TrustedSubject},
    request_object::{self, RequestObject},
};
use url::form_urlencoded;

const ISSUER: &str = "https://idp.example";
const WORKLOAD_ISSUER: &str = "https://workload.example";
const CLIENT: &str = "app";
const NOW: i64 = 1_800_000_000;

struct Client {
    key: EcdsaKeyPair,
    set: KeySet,
}

static CLIENT_KEY: LazyLock<Client> = LazyLock::new(|| {
    let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
    let (x, y) = key.public_key().as_ref()[1..].split_at(32);
    let part = |bytes| URL_SAFE_NO_PAD.encode(bytes);
    let set = json!({"keys": [{"kty": "EC", "crv": "P-256", "x": part(x), "y": part(y)}]});
    Client {
        key,
        set: KeySet::parse(set.to_string().as_bytes()).unwrap(),
    }
});

pub(super) fn run(data: &[u8]) {
    let Some(text) = super::text(data) else {
        return;
    };
    assert!(!is_taken(text), "nobody signed it");
    let mut lines = text.split('\n');
    let mut line = || lines.next().unwrap_or_default();
    let (header, payload, request) = (line(), line(), line());
    let message = format!(
        "{}.{}",
        URL_SAFE_NO_PAD.encode(header),
        URL_SAFE_NO_PAD.encode(payload)
    );
    let signature = (CLIENT_KEY.key)
        .sign(&SystemRandom::new(), message.as_bytes())
        .unwrap();
    let token = format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature));
    assertion_of_client(&token, header, payload);
    workload_token(&token, payload);
    object(&token, header, payload, request);
    let forged = format!("{message}.{}", URL_SAFE_NO_PAD.encode([7; 64]));
    assert!(!is_taken(&forged), "nobody signed it");
}

fn at() -> Timestamp {
    Timestamp::from_second(NOW).unwrap()
}

fn expected() -> Expected<'static> {
    Expected {
        audiences: &[ISSUER],
        algorithm: None,
        at: at(),
    }
}

fn is_taken(token: &str) -> bool {
    let set = &CLIENT_KEY.set;
    let assertion = ClientAssertion::read(JWT_BEARER, token, None);
    let asserted =
        assertion.is_ok_and(|read| assertion::fuzzing::verify(&read, set, &expected()).is_ok());
    asserted || request_object::fuzzing::verify(token, CLIENT, set, ISSUER, at()).is_ok()
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

fn is_plain(header: &str, kind: &str) -> bool {
    match &json(header)["typ"] {
        Value::Null => true,
        Value::String(typ) => {
            let typ = typ.to_ascii_lowercase();
            ["jwt", kind].contains(&typ.strip_prefix("application/").unwrap_or(&typ))
        }
        _ => false,
    }
}

/// Every audience is ours.
fn is_for_us_alone(claims: &Value) -> bool {
    match &claims["aud"] {
        Value::String(one) => one == ISSUER,
        Value::Array(many) => !many.is_empty() && many.iter().all(|one| one == ISSUER),
        _ => false,
    }
}

fn assertion_of_client(token: &str, header: &str, payload: &str) {
    let Ok(read) = ClientAssertion::read(JWT_BEARER, token, None) else {
        return;
    };
    if let Err(error) = assertion::fuzzing::verify(&read, &CLIENT_KEY.set, &expected()) {
        super::assert_one_line(&error.to_string());
        return;
    }
    let claims = json(payload);
    assert_eq!(json(header)["alg"], "ES256");
    assert!(is_plain(header, "client-authentication+jwt"), "{header}");
    assert_eq!(claims["iss"], claims["sub"]);
    assert_eq!(claims["sub"], read.client_id());
    assert!(is_for_us_alone(&claims), "{payload}");
    assert!(claims["jti"].as_str().is_some_and(|id| !id.is_empty()));
    let exp = claims["exp"].as_f64().unwrap();
    assert!(
        (NOW as f64 - 60.0..NOW as f64 + 3700.0).contains(&exp),
        "{exp}"
    );
    for other in ["b", ""].into_iter().filter(|id| *id != read.client_id()) {
        assert!(ClientAssertion::read(JWT_BEARER, token, Some(other)).is_err());
    }
}

fn workload_token(token: &str, payload: &str) {
    let Ok(read) = ClientAssertion::read(JWT_BEARER, token, Some(CLIENT)) else {
        return;
    };
    let trusted = [TrustedSubject {
        issuer: WORKLOAD_ISSUER.to_owned(),
        subject: "ci".to_owned(),
    }];
    if read
        .verify_workload_token(&CLIENT_KEY.set, &trusted, &expected())
        .is_ok()
    {
        let claims = json(payload);
        assert_eq!(
            (&claims["iss"], &claims["sub"]),
            (&json!(WORKLOAD_ISSUER), &json!("ci"))
        );
        assert!(is_for_us_alone(&claims), "{payload}");
        assert!(claims["exp"].as_f64().unwrap() > NOW as f64 - 61.0);
    }
}

fn object(token: &str, header: &str, payload: &str, request: &str) {
    let verified = request_object::fuzzing::verify(token, CLIENT, &CLIENT_KEY.set, ISSUER, at());
    let object = match verified {
        Ok(object) => object,
        Err(error) => return super::assert_one_line(&error.to_string()),
    };
    let claims = json(payload);
    assert!(is_plain(header, "oauth-authz-req+jwt"), "{header}");
    assert!(claims.get("request").is_none() && claims.get("request_uri").is_none());
    assert_ne!(claims["sub"], CLIENT);
    assert!(claims.get("iss").is_none_or(|issuer| issuer == CLIENT));
    if let Ok(merged) = object.merged(request.as_bytes()) {
        merges(&object, request, &merged, &claims);
    }
}

/// The object's parameters count; the others stay as they were.
fn merges(object: &RequestObject, request: &str, merged: &str, claims: &Value) {
    let pairs = |text: &str| -> Vec<(String, String)> {
        form_urlencoded::parse(text.as_bytes())
            .into_owned()
            .collect()
    };
    let merged = pairs(merged);
    let outside = pairs(request);
    let passes = |name: &str| name != "request" && name != "request_uri";
    assert!(merged.iter().all(|(name, _)| passes(name)));
    let signed = |name: &String| object.parameters().iter().any(|(known, _)| known == name);
    for (name, value) in &merged {
        let place = if signed(name) {
            object.parameters()
        } else {
            &outside
        };
        assert!(
            place.contains(&(name.clone(), value.clone())),
            "{name}={value}"
        );
    }
    for (name, value) in claims.as_object().unwrap() {
        if let Some(text) = value.as_str()
            && !["aud", "exp", "iat", "iss", "jti", "nbf", "sub"].contains(&name.as_str())
        {
            let all: Vec<_> = merged.iter().filter(|(known, _)| known == name).collect();
            assert_eq!(all, [&(name.clone(), text.to_owned())]);
        }
    }
    for must_equal in ["client_id", "response_type"] {
        let values = |pairs: &[(String, String)]| -> Vec<String> {
            let of_name = pairs
                .iter()
                .filter(|(name, value)| name == must_equal && !value.is_empty());
            of_name.map(|(_, value)| value.clone()).take(1).collect()
        };
        let (inside, outside) = (values(object.parameters()), values(&outside));
        assert!(
            inside.is_empty() || outside.is_empty() || inside == outside,
            "{must_equal}"
        );
    }
}
