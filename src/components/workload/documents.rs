//! What verifiers read: the discovery document (OpenID Connect Discovery 1.0, RFC 8414) and the
//! keys.
//!
//! Invariant: every URL is made of the issuer's name in the settings, or of the node's. No header
//! and no part of a request's target has a say in it.

use serde_json::json;

use crate::keys::Algorithm;

pub(super) const JWKS_PATH: &str = "/.well-known/jwks.json";
pub(super) const DISCOVERY_PATH: &str = "/.well-known/openid-configuration";
pub(super) const OAUTH_METADATA_PATH: &str = "/.well-known/oauth-authorization-server";
pub(super) const TOKEN_PATH: &str = "/token";
pub(super) const OAUTH_TOKEN_PATH: &str = "/oauth/token";

/// The claims that a token may have.
const CLAIMS: [&str; 10] = [
    "aud",
    "exp",
    "https://aws.amazon.com/source_identity",
    "https://aws.amazon.com/tags",
    "iat",
    "iss",
    super::access::TSIAM_CAPABILITY,
    "jti",
    "nbf",
    "sub",
];

/// The discovery document of this issuer, for both of its well-known names. Its first members are
/// those of tsiam, in their order.
pub(super) fn discovery(issuer: &str, algorithms: &[Algorithm]) -> Vec<u8> {
    let url = |path: &str| format!("{}{path}", issuer.trim_end_matches('/'));
    let first = [
        ("issuer", issuer.to_owned()),
        ("token_endpoint", url(TOKEN_PATH)),
        ("jwks_uri", url(JWKS_PATH)),
    ];
    let mut document = String::from("{");
    for (name, value) in first {
        document.push_str(&format!("\"{name}\":{},", json!(value)));
    }
    let algorithms: Vec<&str> = algorithms.iter().map(|one| one.as_str()).collect();
    let rest = json!({
        // Strict readers require it, and nobody logs in here: a name that leads nowhere, as the
        // issuers of Kubernetes have it.
        "authorization_endpoint": "urn:tailbone:no_authorization_endpoint",
        "claims_supported": CLAIMS,
        "grant_types_supported": [super::oauth::CLIENT_CREDENTIALS, super::oauth::TOKEN_EXCHANGE],
        "id_token_signing_alg_values_supported": algorithms,
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        // The connection says who calls.
        "token_endpoint_auth_methods_supported": ["none"],
    });
    document.push_str(rest.to_string().trim_start_matches('{'));
    document.push('\n');
    document.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_begins_as_tsiams_and_has_all_that_is_required() {
        let document = discovery("https://a.b.ts.net", &[Algorithm::Rs256, Algorithm::Es256]);
        let text = String::from_utf8(document).unwrap();
        assert!(text.starts_with(concat!(
            r#"{"issuer":"https://a.b.ts.net","token_endpoint":"https://a.b.ts.net/token","#,
            r#""jwks_uri":"https://a.b.ts.net/.well-known/jwks.json","#
        )));
        assert!(text.ends_with("}\n"));
        let document: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            document["id_token_signing_alg_values_supported"],
            json!(["RS256", "ES256"])
        );
        for required in [
            "authorization_endpoint",
            "response_types_supported",
            "subject_types_supported",
        ] {
            assert!(document.get(required).is_some(), "{required}");
        }
    }

    #[test]
    fn an_issuer_with_a_path_keeps_it() {
        let document = discovery("https://a.example.com/tenant/", &[Algorithm::Rs256]);
        let document: serde_json::Value = serde_json::from_slice(&document).unwrap();
        assert_eq!(document["issuer"], "https://a.example.com/tenant/");
        assert_eq!(
            document["jwks_uri"],
            "https://a.example.com/tenant/.well-known/jwks.json"
        );
    }
}
