//! What a client says about itself (RFC 7591, OpenID Connect Registration 1.0), and what its entry
//! says about it here.
//!
//! Invariants
//! - What was registered is checked: an entry never has a redirect URI that runs a script, nor a
//!   way to authenticate that is not offered.
//! - What is stored is read leniently, since an entry that was good once must stay readable; a way
//!   to authenticate that is not known any more authenticates nobody.
//! - Unknown members are ignored.

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};
use tailbone_keys::jwks::fetch::name;
use tailbone_values::Object;

use super::redirect;
use crate::{assertion, client_keys::ClientKeys, request_object};

/// The most redirect URIs of a client, and the longest text of any member: a registration stays
/// small.
const MAX_URIS: usize = 64;
const MAX_TEXT: usize = 2048;

/// The longest set of keys, in bytes.
const MAX_KEYS: usize = 32 << 10;

/// How a client proves who it is at the token endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AuthMethod {
    #[default]
    ClientSecretBasic,
    ClientSecretPost,
    /// A public client, which has no secret and must use PKCE.
    None,
    PrivateKeyJwt,
    /// Of an entry that another version wrote.
    #[serde(other)]
    Unknown,
}

impl AuthMethod {
    pub fn has_secret(self) -> bool {
        matches!(self, Self::ClientSecretBasic | Self::ClientSecretPost)
    }
}

/// Whether a login of this client shows a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Login {
    /// The person confirms the login once in a session.
    #[default]
    Confirm,
    /// As in tsidp: identity on the tailnet is enough.
    Silent,
}

/// The metadata of a client, as it is registered, stored and answered.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ClientMetadata {
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "or_null")]
    pub client_name: String,
    #[serde(deserialize_with = "or_null")]
    pub redirect_uris: Vec<String>,
    #[serde(deserialize_with = "or_null")]
    pub token_endpoint_auth_method: AuthMethod,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "or_null")]
    pub grant_types: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "or_null")]
    pub response_types: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "or_null")]
    pub scope: String,
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "or_null")]
    pub client_uri: String,
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "or_null")]
    pub logo_uri: String,
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "or_null")]
    pub policy_uri: String,
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "or_null")]
    pub tos_uri: String,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "or_null")]
    pub contacts: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "or_null")]
    pub application_type: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jwks: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jwks_uri: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_endpoint_auth_signing_alg: Option<String>,
    /// Of this server alone: subjects of its workload tokens, which authenticate the client in the
    /// place of keys of its own.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "or_null")]
    pub workload_subjects: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id_token_signed_response_alg: Option<String>,
    /// Access tokens are JWTs of this algorithm (RFC 9068); without it they tell nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access_token_signed_response_alg: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub userinfo_signed_response_alg: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_object_signing_alg: Option<String>,
    /// RFC 9101, section 10.5: nothing counts that the client did not sign.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub require_signed_request_object: Option<bool>,
    /// RFC 9126, section 6.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub require_pushed_authorization_requests: Option<bool>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "or_null")]
    pub request_uris: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "or_null")]
    pub post_logout_redirect_uris: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backchannel_logout_uri: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backchannel_logout_session_required: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sector_identifier_uri: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject_type: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_max_age: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub require_auth_time: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub software_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub software_version: Option<String>,
    /// Ours, and of no registration: whether a login shows a page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub login: Option<Login>,
    /// Ours, and of no registration: who may log in, in words that the network understands. Empty:
    /// whoever its rules admit.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "or_null")]
    pub access: Vec<String>,
}

/// `null` counts as absent, as Go writes an empty list.
fn or_null<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Why a registration is refused, with the code of RFC 7591, section 3.2.2.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadMetadata {
    /// In tsidp's words.
    #[error("invalid request body")]
    NotJson,
    /// In tsidp's words.
    #[error("redirect_uris is required")]
    NoRedirectUri,
    #[error("redirect URI number {number} {why}")]
    RedirectUri {
        number: usize,
        why: redirect::BadRedirectUri,
    },
    #[error("{0}")]
    Other(String),
}

impl BadMetadata {
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotJson => "invalid_request",
            Self::RedirectUri { .. } => "invalid_redirect_uri",
            Self::NoRedirectUri | Self::Other(_) => "invalid_client_metadata",
        }
    }
}

/// What a registration may choose from.
#[derive(Debug, Clone, Copy)]
pub struct Offered<'a> {
    pub auth_methods: &'a [&'a str],
    pub grant_types: &'a [&'a str],
    pub id_token_algorithms: &'a [&'a str],
}

impl ClientMetadata {
    /// Reads what is stored. An entry of tsidp's predecessor has one `redirect_uri`.
    pub fn from_stored(json: &str) -> Result<Self, serde_json::Error> {
        #[derive(Deserialize)]
        struct Legacy {
            #[serde(default)]
            redirect_uri: Option<String>,
        }
        let Object(mut metadata) = serde_json::from_str::<Object<Self>>(json)?;
        if metadata.redirect_uris.is_empty() {
            let Object(legacy) = serde_json::from_str::<Object<Legacy>>(json)?;
            let uri = legacy.redirect_uri.filter(|uri| !uri.is_empty());
            metadata.redirect_uris.extend(uri);
        }
        Ok(metadata)
    }

    /// As it is stored.
    pub fn to_stored(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string(self)
    }

    /// Reads a registration, with tsidp's defaults for what is absent.
    pub fn register(body: &[u8], offered: Offered<'_>) -> Result<Self, BadMetadata> {
        let value: Value = serde_json::from_slice(body).map_err(|_| BadMetadata::NotJson)?;
        let metadata = Self {
            // Not for a client to say about itself.
            login: None,
            access: Vec::new(),
            ..Self::read(value, offered)?
        };
        metadata.completed(offered)
    }

    /// Reads what an administrator says about a client, which is a registration and our own
    /// members.
    pub fn described(
        members: Map<String, Value>,
        offered: Offered<'_>,
    ) -> Result<Self, BadMetadata> {
        Self::read(Value::Object(members), offered)?.completed(offered)
    }

    fn read(value: Value, offered: Offered<'_>) -> Result<Self, BadMetadata> {
        if let Some(method) = value
            .get("token_endpoint_auth_method")
            .and_then(Value::as_str)
        {
            one_of("token_endpoint_auth_method", method, offered.auth_methods)?;
        }
        let Object(metadata) =
            serde_json::from_value::<Object<Self>>(value).map_err(|_| BadMetadata::NotJson)?;
        Ok(metadata)
    }

    /// Adds tsidp's defaults, and checks.
    fn completed(mut self, offered: Offered<'_>) -> Result<Self, BadMetadata> {
        self.jwks_uri = self.jwks_uri.filter(|uri| !uri.is_empty());
        if self.grant_types.is_empty() {
            self.grant_types.push("authorization_code".into());
        }
        let redirects = self.may_use("authorization_code");
        if self.response_types.is_empty() && redirects {
            self.response_types.push("code".into());
        }
        if self.application_type.is_empty() {
            self.application_type = "web".into();
        }
        self.check(offered)?;
        Ok(self)
    }

    /// Reads what an administrator says about a client. A member that nothing knows is a mistake,
    /// and what is absent stays so, as with clients of tsidp's `/clients/`.
    pub fn administered(
        members: &Map<String, Value>,
        offered: Offered<'_>,
    ) -> Result<Self, BadMetadata> {
        let known = Self::members();
        if let Some(name) = members.keys().find(|name| !known.contains(&name.as_str())) {
            let name = crate::describable(name);
            return other(format!("there is no member {name} of a client's metadata"));
        }
        for (name, value) in members {
            let alone = Map::from_iter([(name.clone(), value.clone())]);
            let unknown = |read: &Self| read.token_endpoint_auth_method == AuthMethod::Unknown;
            match serde_json::from_value::<Self>(alone.into()) {
                Ok(read) if !unknown(&read) => {}
                Ok(_) => {
                    let methods = offered.auth_methods.join(", ");
                    return other(format!("{name} is one of {methods}"));
                }
                Err(_) => return other(format!("{name} has a value of the wrong kind")),
            }
        }
        let read = serde_json::from_value::<Self>(members.clone().into());
        let mut metadata = read.map_err(|_| BadMetadata::NotJson)?;
        metadata.jwks_uri = metadata.jwks_uri.filter(|uri| !uri.is_empty());
        metadata.clone().completed(offered)?;
        Ok(metadata)
    }

    /// The names of all members.
    pub fn members() -> &'static [&'static str] {
        let mut names: &[&str] = &[];
        // It fails, after it was told the names.
        let _ = Self::deserialize(Members(&mut names));
        names
    }

    /// Reads the document of a client. It speaks to other servers as well: what the client can do
    /// elsewhere is left out.
    pub fn from_document(
        document: &Map<String, Value>,
        offered: Offered<'_>,
    ) -> Result<Self, BadMetadata> {
        let mut document = document.clone();
        for (name, known) in [
            ("grant_types", offered.grant_types),
            ("response_types", &["code"]),
        ] {
            if let Some(Value::Array(list)) = document.get_mut(name) {
                list.retain(|one| one.as_str().is_none_or(|one| known.contains(&one)));
            }
        }
        let body = serde_json::to_vec(&document).map_err(|_| BadMetadata::NotJson)?;
        Self::register(&body, offered)
    }

    fn check(&self, offered: Offered<'_>) -> Result<(), BadMetadata> {
        let redirects = self
            .grant_types
            .iter()
            .any(|one| one == "authorization_code");
        if self.redirect_uris.is_empty() && redirects {
            return Err(BadMetadata::NoRedirectUri);
        }
        let lists = [
            ("redirect_uris", &self.redirect_uris),
            ("request_uris", &self.request_uris),
            ("post_logout_redirect_uris", &self.post_logout_redirect_uris),
            ("contacts", &self.contacts),
            ("access", &self.access),
            ("workload_subjects", &self.workload_subjects),
            ("grant_types", &self.grant_types),
            ("response_types", &self.response_types),
        ];
        for (name, list) in lists {
            if list.len() > MAX_URIS || list.iter().any(|one| one.len() > MAX_TEXT) {
                return other(format!("{name} is too long"));
            }
        }
        for (at, uri) in self.redirect_uris.iter().enumerate() {
            redirect::check(uri).map_err(|why| BadMetadata::RedirectUri {
                number: at + 1,
                why,
            })?;
        }
        for uri in &self.post_logout_redirect_uris {
            if let Err(why) = redirect::check(uri) {
                return other(format!("a URI of post_logout_redirect_uris {why}"));
            }
        }
        for grant_type in &self.grant_types {
            one_of("grant_types", grant_type, offered.grant_types)?;
        }
        if self.is_public() && self.may_use("client_credentials") {
            return other("client_credentials is for clients that authenticate".into());
        }
        for response_type in &self.response_types {
            one_of("response_types", response_type, &["code"])?;
        }
        one_of(
            "application_type",
            &self.application_type,
            &["web", "native"],
        )?;
        for (name, algorithm) in [
            (
                "id_token_signed_response_alg",
                &self.id_token_signed_response_alg,
            ),
            (
                "access_token_signed_response_alg",
                &self.access_token_signed_response_alg,
            ),
            (
                "userinfo_signed_response_alg",
                &self.userinfo_signed_response_alg,
            ),
        ] {
            if let Some(algorithm) = algorithm {
                one_of(name, algorithm, offered.id_token_algorithms)?;
            }
        }
        self.check_keys()?;
        if self
            .subject_type
            .as_deref()
            .is_some_and(|kind| kind != "public")
        {
            return other("subject_type is public".into());
        }
        self.check_links()
    }

    /// With what the client signs.
    fn check_keys(&self) -> Result<(), BadMetadata> {
        if let Some(algorithm) = &self.token_endpoint_auth_signing_alg {
            let names = assertion::SIGNING_ALGORITHMS.map(name);
            one_of("token_endpoint_auth_signing_alg", algorithm, &names)?;
        }
        if let Some(algorithm) = &self.request_object_signing_alg {
            let names = request_object::SIGNING_ALGORITHMS.map(name);
            one_of("request_object_signing_alg", algorithm, &names)?;
        }
        for uri in &self.request_uris {
            if let Err(bad) = request_object::check_uri(uri) {
                return other(format!("an address of request_uris is not usable: {bad}"));
            }
        }
        if let Some(jwks) = &self.jwks {
            let keys = jwks.get("keys").and_then(Value::as_array);
            let is_secret = |key: &Value| key.get("d").is_some() || key.get("k").is_some();
            if keys.is_some_and(|keys| keys.iter().any(is_secret)) {
                return other("jwks has a private key, which nobody else must know".into());
            }
            if jwks.to_string().len() > MAX_KEYS {
                return other("jwks is too long".into());
            }
        }
        let keys = ClientKeys::of(self.jwks.as_ref(), self.jwks_uri.as_deref())
            .map_err(|bad| BadMetadata::Other(bad.to_string()))?;
        let signs = !matches!(keys, ClientKeys::None) || !self.workload_subjects.is_empty();
        if self.token_endpoint_auth_method == AuthMethod::PrivateKeyJwt && !signs {
            return other("private_key_jwt needs jwks, jwks_uri or workload_subjects".into());
        }
        Ok(())
    }

    /// What pages show and programs fetch. Only web addresses are either.
    fn check_links(&self) -> Result<(), BadMetadata> {
        let optional = |uri: &'_ Option<String>| uri.clone().unwrap_or_default();
        for (name, uri, schemes) in [
            (
                "client_uri",
                self.client_uri.clone(),
                &["http", "https"][..],
            ),
            ("logo_uri", self.logo_uri.clone(), &["http", "https"][..]),
            (
                "policy_uri",
                self.policy_uri.clone(),
                &["http", "https"][..],
            ),
            ("tos_uri", self.tos_uri.clone(), &["http", "https"][..]),
            ("jwks_uri", optional(&self.jwks_uri), &["https"][..]),
            (
                "sector_identifier_uri",
                optional(&self.sector_identifier_uri),
                &["https"][..],
            ),
            (
                "backchannel_logout_uri",
                optional(&self.backchannel_logout_uri),
                &["https"][..],
            ),
        ] {
            if uri.is_empty() {
                continue;
            }
            let scheme = uri.split(':').next().unwrap_or_default();
            let fits = schemes.iter().any(|one| scheme.eq_ignore_ascii_case(one));
            if !fits || uri.len() > MAX_TEXT || redirect::check(&uri).is_err() {
                return other(format!("{name} is no {} address", schemes.join(" or ")));
            }
        }
        let texts = [&self.client_name, &self.scope];
        if texts.iter().any(|text| text.len() > MAX_TEXT) {
            return other("client_name or scope is too long".into());
        }
        Ok(())
    }

    /// The name for people.
    pub fn display_name<'a>(&'a self, client_id: &'a str) -> &'a str {
        if self.client_name.is_empty() {
            client_id
        } else {
            &self.client_name
        }
    }

    pub fn is_public(&self) -> bool {
        self.token_endpoint_auth_method == AuthMethod::None
    }

    pub fn may_use(&self, grant_type: &str) -> bool {
        self.grant_types.iter().any(|one| one == grant_type)
    }
}

/// A deserializer that has no value, and is told the names of the fields.
struct Members<'a>(&'a mut &'static [&'static str]);

impl<'de> Deserializer<'de> for Members<'_> {
    type Error = serde::de::value::Error;

    fn deserialize_struct<V: serde::de::Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Self::Error> {
        *self.0 = fields;
        Err(serde::de::Error::custom("there is no value"))
    }

    fn deserialize_any<V: serde::de::Visitor<'de>>(self, _: V) -> Result<V::Value, Self::Error> {
        Err(serde::de::Error::custom("there is no value"))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option
        unit unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

fn other<T>(sentence: String) -> Result<T, BadMetadata> {
    Err(BadMetadata::Other(sentence))
}

fn one_of(name: &str, value: &str, offered: &[&str]) -> Result<(), BadMetadata> {
    if offered.contains(&value) {
        return Ok(());
    }
    other(format!("{name} is one of {}", offered.join(", ")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const OFFERED: Offered<'_> = Offered {
        auth_methods: &[
            "client_secret_basic",
            "client_secret_post",
            "none",
            "private_key_jwt",
        ],
        grant_types: &["authorization_code", "refresh_token", "client_credentials"],
        id_token_algorithms: &["RS256", "ES256"],
    };

    fn register(body: Value) -> Result<ClientMetadata, BadMetadata> {
        ClientMetadata::register(body.to_string().as_bytes(), OFFERED)
    }

    #[test]
    fn a_minimal_registration_gets_tsidps_defaults() {
        let metadata = register(json!({"redirect_uris": ["https://a/cb"], "newer": 1})).unwrap();
        let stored = metadata.to_stored().unwrap();
        assert_eq!(
            serde_json::from_str::<Value>(&stored).unwrap(),
            json!({
                "redirect_uris": ["https://a/cb"],
                "token_endpoint_auth_method": "client_secret_basic",
                "grant_types": ["authorization_code"],
                "response_types": ["code"],
                "application_type": "web",
            })
        );
        assert_eq!(ClientMetadata::from_stored(&stored).unwrap(), metadata);
    }

    #[test]
    fn a_client_that_logs_nobody_in_needs_no_redirect_uri() {
        let body = json!({"grant_types": ["client_credentials"]});
        let metadata = register(body).unwrap();
        assert!(metadata.response_types.is_empty() && metadata.redirect_uris.is_empty());
    }

    #[test]
    fn a_document_may_say_what_the_client_does_elsewhere() {
        let document = json!({
            "client_id": "https://app.example/c", "redirect_uris": ["http://127.0.0.1/cb"],
            "token_endpoint_auth_method": "none", "grant_types": ["refresh_token", "password"],
            "response_types": ["code", "token"], "login": "silent",
        });
        let read = |document: &Value| {
            ClientMetadata::from_document(document.as_object().unwrap(), OFFERED)
        };
        let metadata = read(&document).unwrap();
        assert_eq!(metadata.grant_types, ["refresh_token"]);
        assert_eq!(metadata.response_types, ["code"]);
        assert_eq!(metadata.login, None);
        let mut bad = document;
        bad["redirect_uris"] = json!(["javascript:1"]);
        assert!(read(&bad).is_err());
    }

    #[test]
    fn a_registration_does_not_choose_whether_its_login_is_silent() {
        let body = json!({"redirect_uris": ["https://a/cb"], "login": "silent"});
        assert_eq!(register(body).unwrap().login, None);
    }

    #[test]
    fn what_an_administrator_says_is_kept_as_it_is_or_refused_by_name() {
        let read =
            |members: Value| ClientMetadata::administered(members.as_object().unwrap(), OFFERED);
        let metadata = read(json!({"redirect_uris": ["https://a/cb"], "login": "silent"})).unwrap();
        assert_eq!(metadata.login, Some(Login::Silent));
        assert_eq!(metadata.grant_types, [""; 0]);
        for (members, words) in [
            (
                json!({"redirect_uris": ["https://a/cb"], "redirect_url": "x"}),
                "there is no member redirect_url",
            ),
            (
                json!({"redirect_uris": "https://a/cb"}),
                "redirect_uris has a value of the wrong kind",
            ),
            (
                json!({"redirect_uris": ["https://a/cb"], "login": "loud"}),
                "login has a value of the wrong kind",
            ),
            (
                json!({"redirect_uris": ["https://a/cb"], "token_endpoint_auth_method": "mtls"}),
                "token_endpoint_auth_method is one of client_secret_basic, ",
            ),
            (json!({"client_name": "App"}), "redirect_uris is required"),
            (
                json!({"redirect_uris": ["javascript:1"]}),
                "redirect URI number 1 ",
            ),
        ] {
            let refused = read(members.clone()).unwrap_err().to_string();
            assert!(refused.starts_with(words), "{members}: {refused}");
        }
    }

    #[test]
    fn every_member_is_known_by_its_name() {
        let members = ClientMetadata::members();
        for name in ["client_name", "redirect_uris", "jwks", "login"] {
            assert!(members.contains(&name), "{members:?}");
        }
        assert!(!members.contains(&"client_id"));
    }

    #[test]
    fn what_is_refused_and_under_which_code() {
        let uris = json!(["https://a/cb"]);
        for (body, code) in [
            (json!([]), "invalid_request"),
            (json!({"redirect_uris": "https://a/cb"}), "invalid_request"),
            (json!({}), "invalid_client_metadata"),
            (json!({"redirect_uris": []}), "invalid_client_metadata"),
            (json!({"redirect_uris": null}), "invalid_client_metadata"),
            (
                json!({"redirect_uris": ["https://a/#f"]}),
                "invalid_redirect_uri",
            ),
            (
                json!({"redirect_uris": ["javascript:1"]}),
                "invalid_redirect_uri",
            ),
            (
                json!({"redirect_uris": uris, "token_endpoint_auth_method": "tls_client_auth"}),
                "invalid_client_metadata",
            ),
            (
                json!({"redirect_uris": uris, "grant_types": ["password"]}),
                "invalid_client_metadata",
            ),
            (
                json!({"grant_types": ["client_credentials"], "token_endpoint_auth_method": "none"}),
                "invalid_client_metadata",
            ),
            (
                json!({"redirect_uris": uris, "response_types": ["token"]}),
                "invalid_client_metadata",
            ),
            (
                json!({"redirect_uris": uris, "logo_uri": "javascript:alert(1)"}),
                "invalid_client_metadata",
            ),
            (
                json!({"redirect_uris": uris, "backchannel_logout_uri": "http://a/logout"}),
                "invalid_client_metadata",
            ),
            (
                json!({"redirect_uris": uris, "jwks_uri": "http://a/jwks"}),
                "invalid_client_metadata",
            ),
            (
                json!({"redirect_uris": uris, "jwks_uri": "https://a/j", "jwks": {"keys": []}}),
                "invalid_client_metadata",
            ),
            (
                json!({"redirect_uris": uris, "token_endpoint_auth_method": "private_key_jwt"}),
                "invalid_client_metadata",
            ),
            (
                json!({"redirect_uris": uris, "jwks": {"keys": [{"kty": "oct", "k": "AAAA"}]}}),
                "invalid_client_metadata",
            ),
            (
                json!({"redirect_uris": uris, "request_object_signing_alg": "none"}),
                "invalid_client_metadata",
            ),
            (
                json!({"redirect_uris": uris, "request_uris": ["http://a/object"]}),
                "invalid_client_metadata",
            ),
            (
                json!({"redirect_uris": uris, "jwks": {"keys": "none"}}),
                "invalid_client_metadata",
            ),
            (
                json!({"redirect_uris": uris, "token_endpoint_auth_signing_alg": "HS256"}),
                "invalid_client_metadata",
            ),
            (
                json!({"redirect_uris": uris, "id_token_signed_response_alg": "none"}),
                "invalid_client_metadata",
            ),
            (
                json!({"redirect_uris": uris, "access_token_signed_response_alg": "none"}),
                "invalid_client_metadata",
            ),
            (
                json!({"redirect_uris": uris, "userinfo_signed_response_alg": "HS256"}),
                "invalid_client_metadata",
            ),
            (
                json!({"redirect_uris": vec!["https://a/cb"; 65]}),
                "invalid_client_metadata",
            ),
        ] {
            let refused = register(body.clone()).unwrap_err();
            assert_eq!(refused.code(), code, "{body}: {refused}");
        }
        assert_eq!(
            ClientMetadata::register(b"{", OFFERED),
            Err(BadMetadata::NotJson)
        );
    }

    #[test]
    fn entries_of_tsidp_and_of_its_predecessor_are_read() {
        let stored = |value: Value| ClientMetadata::from_stored(&value.to_string()).unwrap();
        let tsidp = stored(json!({
            "client_id": "0".repeat(32), "client_secret": "s", "client_name": "Proxmox",
            "redirect_uris": ["https://pve:8006"], "redirect_uri": "https://pve:8006",
            "created_at": "0001-01-01T00:00:00Z",
        }));
        assert_eq!(tsidp.redirect_uris, ["https://pve:8006"]);
        assert_eq!(tsidp.client_name, "Proxmox");
        let older = stored(json!({"redirect_uris": null, "redirect_uri": "https://a/cb"}));
        assert_eq!(older.redirect_uris, ["https://a/cb"]);
        let both = stored(json!({"redirect_uris": ["https://b"], "redirect_uri": "https://a"}));
        assert_eq!(both.redirect_uris, ["https://b"]);
        let newer = stored(json!({"token_endpoint_auth_method": "tls_client_auth"}));
        assert_eq!(newer.token_endpoint_auth_method, AuthMethod::Unknown);
        assert!(!newer.is_public() && !newer.token_endpoint_auth_method.has_secret());
    }
}
