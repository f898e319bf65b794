//! What clients read before they ask: the metadata of OpenID Connect Discovery 1.0 and of RFC 8414.
//!
//! Invariants
//! - Every URL is made of the issuer's name. No header and no part of a request has a say in it.
//! - What is told is what is offered: each list has one source, which the endpoints use as well.
//! - tsidp's members stand first and in its order; both documents agree.

use serde::Serialize;
use serde_json::{Value, json};

use tailbone_keys::jwks::fetch::name as jose_name;

use crate::{
    assertion,
    authorize::{self, ResponseMode, SCOPES},
    claims, request_object,
    token::Offers,
};

pub const OPENID_PATH: &str = "/.well-known/openid-configuration";
pub const OAUTH_PATH: &str = "/.well-known/oauth-authorization-server";
pub const JWKS_PATH: &str = "/.well-known/jwks.json";
pub const AUTHORIZE_PATH: &str = "/authorize";
pub const TOKEN_PATH: &str = "/token";
pub const USERINFO_PATH: &str = "/userinfo";
pub const INTROSPECT_PATH: &str = "/introspect";
pub const REVOKE_PATH: &str = "/revoke";
pub const DEVICE_AUTHORIZATION_PATH: &str = "/device_authorization";
/// The page that takes user codes.
pub const DEVICE_PATH: &str = "/device";
pub const PAR_PATH: &str = "/par";
pub const REGISTER_PATH: &str = "/register";
pub const END_SESSION_PATH: &str = "/logout";

/// How clients may authenticate.
pub const AUTH_METHODS: [&str; 4] = [
    "client_secret_post",
    "client_secret_basic",
    "none",
    "private_key_jwt",
];

/// What the documents tell.
#[derive(Debug, Clone)]
pub struct Metadata<'a> {
    pub issuer: &'a str,
    /// Of ID tokens. RS256 is among them (OpenID Connect Core, section 15.1).
    pub algorithms: Vec<&'a str>,
    pub offers: Offers,
    /// Clients may be described by documents at their ids.
    pub client_documents: bool,
}

/// Who reads a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reader {
    /// Through Funnel, where nobody can register a client.
    Internet,
    Tailnet,
}

impl Metadata<'_> {
    fn url(&self, path: &str) -> String {
        url_of(self.issuer, path)
    }

    /// The document of OpenID Connect Discovery.
    pub fn openid(&self, reader: Reader) -> Vec<u8> {
        let mut document = Document::default();
        document.add("issuer", self.issuer);
        document.add("authorization_endpoint", self.url(AUTHORIZE_PATH));
        document.add("token_endpoint", self.url(TOKEN_PATH));
        document.add("userinfo_endpoint", self.url(USERINFO_PATH));
        document.add("introspection_endpoint", self.url(INTROSPECT_PATH));
        if reader == Reader::Tailnet {
            document.add("registration_endpoint", self.url(REGISTER_PATH));
        }
        document.add("jwks_uri", self.url(JWKS_PATH));
        document.add("scopes_supported", json!(SCOPES));
        document.add("response_types_supported", json!(["code"]));
        document.add("subject_types_supported", json!(["public"]));
        document.add("claims_supported", json!(claims::SUPPORTED));
        let algorithms = json!(self.algorithms);
        document.add("id_token_signing_alg_values_supported", algorithms);
        document.add("grant_types_supported", json!(self.offers.grant_types()));
        document.add("token_endpoint_auth_methods_supported", json!(AUTH_METHODS));
        document.add("code_challenge_methods_supported", json!(["S256"]));
        document.add("claims_parameter_supported", true);
        document.add("end_session_endpoint", self.url(END_SESSION_PATH));
        document.add("acr_values_supported", json!(authorize::ACR_VALUES));
        document.add("display_values_supported", json!(authorize::DISPLAYS));
        document.add("prompt_values_supported", json!(authorize::PROMPTS));
        document.add("ui_locales_supported", json!(authorize::LOCALES));
        let algorithms = json!(self.algorithms);
        document.add("userinfo_signing_alg_values_supported", algorithms);
        document.add("backchannel_logout_supported", true);
        document.add("backchannel_logout_session_supported", true);
        self.add_common(&mut document);
        document.print()
    }

    /// The document of RFC 8414.
    pub fn oauth(&self, reader: Reader) -> Vec<u8> {
        let mut document = Document::default();
        document.add("issuer", self.issuer);
        document.add("authorization_endpoint", self.url(AUTHORIZE_PATH));
        document.add("token_endpoint", self.url(TOKEN_PATH));
        document.add("introspection_endpoint", self.url(INTROSPECT_PATH));
        if reader == Reader::Tailnet {
            document.add("registration_endpoint", self.url(REGISTER_PATH));
        }
        document.add("jwks_uri", self.url(JWKS_PATH));
        document.add("response_types_supported", json!(["code"]));
        document.add("grant_types_supported", json!(self.offers.grant_types()));
        document.add("scopes_supported", json!(SCOPES));
        document.add("token_endpoint_auth_methods_supported", json!(AUTH_METHODS));
        let kinds = json!(["resource_indicators"]);
        document.add("authorization_details_types_supported", kinds);
        document.add("resource_indicators_supported", true);
        document.add("code_challenge_methods_supported", json!(["S256"]));
        self.add_common(&mut document);
        document.print()
    }

    fn add_common(&self, document: &mut Document) {
        let algorithms = json!(assertion::SIGNING_ALGORITHMS.map(jose_name));
        let name = "token_endpoint_auth_signing_alg_values_supported";
        document.add(name, algorithms.clone());
        document.add("request_parameter_supported", true);
        document.add("request_uri_parameter_supported", true);
        document.add("require_request_uri_registration", true);
        let of_objects = json!(request_object::SIGNING_ALGORITHMS.map(jose_name));
        // Absent would mean that unsigned ones count too.
        document.add("request_object_signing_alg_values_supported", of_objects);
        document.add("pushed_authorization_request_endpoint", self.url(PAR_PATH));
        document.add("revocation_endpoint", self.url(REVOKE_PATH));
        let methods = json!(AUTH_METHODS);
        let devices = self.url(DEVICE_AUTHORIZATION_PATH);
        document.add("device_authorization_endpoint", devices);
        document.add(
            "revocation_endpoint_auth_methods_supported",
            methods.clone(),
        );
        let name = "revocation_endpoint_auth_signing_alg_values_supported";
        document.add(name, algorithms.clone());
        document.add("introspection_endpoint_auth_methods_supported", methods);
        let name = "introspection_endpoint_auth_signing_alg_values_supported";
        document.add(name, algorithms);
        document.add("response_modes_supported", json!(ResponseMode::NAMES));
        document.add("authorization_response_iss_parameter_supported", true);
        if self.client_documents {
            document.add("client_id_metadata_document_supported", true);
        }
    }
}

/// The address of a path of this issuer.
pub fn url_of(issuer: &str, path: &str) -> String {
    format!("{}{path}", issuer.trim_end_matches('/'))
}

/// An object whose members keep their order.
#[derive(Default)]
struct Document(Vec<(&'static str, Value)>);

impl Document {
    fn add(&mut self, name: &'static str, value: impl Into<Value>) {
        self.0.push((name, value.into()));
    }

    /// Indented by two blanks, with a newline at the end, as tsidp's.
    fn print(&self) -> Vec<u8> {
        let mut text = serde_json::to_vec_pretty(self).unwrap_or_default();
        text.push(b'\n');
        text
    }
}

impl Serialize for Document {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, value)| (name, value)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(issuer: &str) -> Metadata<'_> {
        Metadata {
            issuer,
            algorithms: vec!["RS256", "ES256"],
            offers: Offers::default(),
            client_documents: false,
        }
    }

    #[test]
    fn tsidps_members_stand_first_and_in_its_order() {
        let text = String::from_utf8(metadata("https://idp").openid(Reader::Tailnet)).unwrap();
        assert!(
            text.starts_with("{\n  \"issuer\": \"https://idp\",\n"),
            "{text}"
        );
        let mut at = 0;
        for name in [
            "issuer",
            "authorization_endpoint",
            "token_endpoint",
            "userinfo_endpoint",
            "introspection_endpoint",
            "registration_endpoint",
            "jwks_uri",
            "scopes_supported",
            "response_types_supported",
            "subject_types_supported",
            "claims_supported",
            "id_token_signing_alg_values_supported",
            "grant_types_supported",
            "token_endpoint_auth_methods_supported",
            "code_challenge_methods_supported",
        ] {
            let found = text.find(&format!("\n  \"{name}\":")).unwrap_or_default();
            assert!(found > at || name == "issuer", "{name} is not in its place");
            at = found;
        }
        assert!(text.ends_with("}\n"));
    }

    #[test]
    fn both_documents_agree_and_the_internet_reads_of_no_registration() {
        let metadata = metadata("https://idp");
        let parse = |text: Vec<u8>| serde_json::from_slice::<Value>(&text).unwrap();
        for reader in [Reader::Tailnet, Reader::Internet] {
            let (one, other) = (
                parse(metadata.openid(reader)),
                parse(metadata.oauth(reader)),
            );
            for (name, value) in other.as_object().unwrap() {
                assert!(one.get(name).is_none_or(|same| same == value), "{name}");
            }
            for document in [&one, &other] {
                let told = document.get("registration_endpoint").is_some();
                assert_eq!(told, reader == Reader::Tailnet);
            }
        }
    }

    #[test]
    fn the_urls_of_an_issuer_with_a_path_keep_it() {
        let document = metadata("https://a.example.com/tenant/").openid(Reader::Tailnet);
        let document: Value = serde_json::from_slice(&document).unwrap();
        assert_eq!(document["issuer"], "https://a.example.com/tenant/");
        assert_eq!(
            document["token_endpoint"],
            "https://a.example.com/tenant/token"
        );
    }

    #[test]
    fn token_exchange_is_told_where_it_is_on() {
        let on = Metadata {
            offers: Offers {
                token_exchange: true,
            },
            ..metadata("https://idp")
        };
        let document: Value = serde_json::from_slice(&on.oauth(Reader::Tailnet)).unwrap();
        let types = document["grant_types_supported"].as_array().unwrap();
        assert!(types.contains(&json!(crate::token::TOKEN_EXCHANGE)));
    }
}
