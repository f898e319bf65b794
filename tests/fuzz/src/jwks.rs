//! JWKS documents: our own, to which others may have written, and those of outside issuers. Input:
//! the document.

use std::sync::LazyLock;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::Algorithm;
use serde::de::IgnoredAny;
use serde_json::Value;
use tailbone::{
    jwks::{Document, fetch::KeySet},
    keys::PublicJwk,
};

const OURS: &[u8] = br#"{"alg":"ES256","crv":"P-256","kid":"tb-1","kty":"EC","x":"AA","y":"AQ"}"#;

static KEY: LazyLock<PublicJwk> = LazyLock::new(|| PublicJwk::from_json(OURS).unwrap());

pub(super) fn run(data: &[u8]) {
    let value: Option<Value> = serde_json::from_slice(data).ok();
    document(data, value.as_ref());
    key_set(data, value.as_ref());
    public_key(data);
}

fn document(data: &[u8], value: Option<&Value>) {
    let keys = value.and_then(|value| value.as_object()?.get("keys")?.as_array());
    let keys = keys.filter(|keys| keys.iter().all(Value::is_object));
    let Ok(document) = Document::parse(data) else {
        assert!(keys.is_none(), "a JWKS was not read");
        return;
    };
    assert_eq!(Some(document.keys()), keys.map(Vec::as_slice));
    let printed = document.to_bytes();
    assert_eq!(
        serde_json::from_slice::<Value>(&printed).ok().as_ref(),
        value,
        "a rewrite changes something"
    );
    let again = Document::parse(&printed).unwrap();
    assert_eq!(again, document);
    assert_eq!(again.to_bytes(), printed);

    let mut changed = document.clone();
    match changed.add(&KEY) {
        Ok(added) => {
            assert!(changed.contains(&KEY));
            if added {
                assert!(changed.remove(KEY.kid.as_str()));
            }
            assert_eq!(changed, document);
        }
        Err(_) => {
            assert_eq!(changed, document);
            assert!(!document.contains(&KEY));
        }
    }
}

fn key_set(data: &[u8], value: Option<&Value>) {
    let Ok(set) = KeySet::parse(data) else {
        return;
    };
    assert!(str::from_utf8(data).is_ok() && serde_json::from_slice::<IgnoredAny>(data).is_ok());
    // Members that are not read may have what no `Value` holds: lone surrogates, 1e999, a depth
    // above 128.
    let Some(value) = value else {
        return;
    };
    let keys = value["keys"].as_array().unwrap();
    assert_eq!(set.is_empty(), keys.is_empty());
    assert!(set.len() <= keys.len().min(256));
    for algorithm in [
        Algorithm::HS256,
        Algorithm::HS384,
        Algorithm::HS512,
        Algorithm::RS256,
        Algorithm::RS384,
        Algorithm::RS512,
        Algorithm::PS256,
        Algorithm::PS384,
        Algorithm::PS512,
        Algorithm::ES256,
        Algorithm::ES384,
        Algorithm::EdDSA,
    ] {
        for key in set.candidates(None, algorithm) {
            let published = keys.iter().any(|published| {
                published.get("kid").and_then(Value::as_str) == key.kid.as_deref()
                    && may_verify(published, algorithm)
            });
            assert!(published, "{key:?} is no published key for {algorithm:?}");
        }
    }
}

/// An independent reading of RFC 7517 and 7518: type and curve, `use`, `key_ops`, `alg`, size.
fn may_verify(jwk: &Value, algorithm: Algorithm) -> bool {
    let member = |name: &str| jwk.get(name).and_then(Value::as_str);
    let bytes = |name: &str| URL_SAFE_NO_PAD.decode(member(name).unwrap_or_default());
    let length = |name: &str| bytes(name).map_or(0, |bytes| bytes.len());
    // Zeros in front of a number do not count, however many there are.
    let significant = |name: &str| {
        let bytes = bytes(name).unwrap_or_default();
        bytes.len() - bytes.iter().take_while(|byte| **byte == 0).count()
    };
    let shape = match algorithm {
        Algorithm::ES256 => {
            member("kty") == Some("EC")
                && member("crv") == Some("P-256")
                && (length("x"), length("y")) == (32, 32)
        }
        Algorithm::ES384 => {
            member("kty") == Some("EC")
                && member("crv") == Some("P-384")
                && (length("x"), length("y")) == (48, 48)
        }
        Algorithm::EdDSA => {
            member("kty") == Some("OKP") && member("crv") == Some("Ed25519") && length("x") == 32
        }
        Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512 => false,
        _ => member("kty") == Some("RSA") && (256..=1024).contains(&significant("n")),
    };
    let name = format!("{algorithm:?}");
    let named = member("alg")
        .is_none_or(|alg| alg == name || (alg == "Ed25519" && algorithm == Algorithm::EdDSA));
    let verifies = jwk.get("key_ops").and_then(Value::as_array);
    let verifies = verifies.is_none_or(|ops| ops.iter().any(|op| op == "verify"));
    shape && named && verifies && member("use").is_none_or(|usage| usage == "sig")
}

fn public_key(data: &[u8]) {
    match PublicJwk::from_json(data) {
        Ok(key) => {
            let value = key.to_value();
            assert!(key.same_key(&value));
            let again = PublicJwk::from_json(value.to_string().as_bytes()).unwrap();
            assert_eq!(again, key);
            assert_eq!(PublicJwk::from_json(&key.to_file()).unwrap(), key);
            for private in ["d", "p", "q", "dp", "dq", "qi"] {
                assert!(value.get(private).is_none());
            }
            // The id becomes a file name.
            let kid = key.kid.as_str();
            assert!(!kid.contains(['/', '\\']) && !kid.starts_with('.') && kid.len() <= 128);
            super::assert_one_line(kid);
        }
        Err(error) => super::assert_one_line(&error.to_string()),
    }
}
