//! Clients that are described by a document at their id, which is a URL
//! (draft-ietf-oauth-client-id-metadata-document; MCP authorization from 2025-11-25 on).
//!
//! Invariants
//! - The id is compared and fetched as it came: an id that is not in its own canonical form is no
//!   id, so two spellings never name one client.
//! - The document names the very id under which it was fetched. It has no secret, and no
//!   authentication by one.
//! - A document that could not be fetched or is not right is not kept; a good one at most as long
//!   as its headers allow.
//! - Whose hosts may do this is a setting, and a blocked host is asked for nothing.
//!
//! What the metadata mean is for `client` to say.

use std::{fmt, str::FromStr};

use serde_json::{Map, Value};
use tailbone_values::{
    Object,
    web::{Host, HostPattern},
};
use url::Url;

use crate::fetch::{BadUrl, CacheBounds, Cached, FetchCache, FetchUrl, NotFetched};

/// Fetches documents and keeps them.
pub type DocumentCache = FetchCache<ClientDocument>;

/// The largest document. The draft recommends 5 kB at least, and says that more is not needed.
const MAX_DOCUMENT_BYTES: usize = 16 << 10;

const MAX_REDIRECT_URIS: usize = 32;

/// What of a document is kept, and for how long.
pub fn cache_bounds() -> CacheBounds {
    CacheBounds {
        body_bytes: MAX_DOCUMENT_BYTES,
        keep_after_failure: std::time::Duration::ZERO,
        ..CacheBounds::default()
    }
}

/// The id of a client that is described by a document.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ClientUrl(FetchUrl);

/// Why an id is not that of a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadClientUrl {
    #[error("the client id has a fragment")]
    Fragment,
    #[error("the client id is not in its canonical form: lower case, no default port, no dots")]
    NotCanonical,
    #[error("the client id has no path")]
    NoPath,
    #[error("the client id is no address: {0}")]
    Url(#[from] BadUrl),
}

impl ClientUrl {
    /// Whether an id is meant to be one, right or wrong.
    pub fn is_meant(client_id: &str) -> bool {
        client_id.starts_with("https://")
    }

    pub fn parse(client_id: &str) -> Result<Self, BadClientUrl> {
        let url = FetchUrl::parse(client_id)?;
        if url.url().fragment().is_some() {
            return Err(BadClientUrl::Fragment);
        }
        if url.url().path() == "/" {
            return Err(BadClientUrl::NoPath);
        }
        if url.as_str() != client_id {
            return Err(BadClientUrl::NotCanonical);
        }
        Ok(Self(url))
    }

    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// What is fetched.
    pub fn address(&self) -> &FetchUrl {
        &self.0
    }
}

impl fmt::Display for ClientUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Whose documents are fetched.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DocumentHosts {
    /// Without any, all hosts that are not blocked.
    pub allowed: Vec<HostPattern>,
    pub blocked: Vec<HostPattern>,
}

/// A word of the list from which they are read: `*` allows all hosts, `!` before a host blocks it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DocumentHost {
    All,
    Allowed(HostPattern),
    Blocked(HostPattern),
}

impl FromStr for DocumentHost {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix('!') {
            _ if text == "*" => Ok(Self::All),
            Some(blocked) => HostPattern::parse(blocked).map(Self::Blocked),
            None => HostPattern::parse(text).map(Self::Allowed),
        }
    }
}

impl fmt::Display for DocumentHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("*"),
            Self::Allowed(pattern) => pattern.fmt(f),
            Self::Blocked(pattern) => write!(f, "!{pattern}"),
        }
    }
}

impl DocumentHosts {
    /// `None`: the list allows no host.
    pub fn of(words: &[DocumentHost]) -> Option<Self> {
        let mut hosts = Self::default();
        let mut all = false;
        for word in words {
            match word {
                DocumentHost::All => all = true,
                DocumentHost::Allowed(pattern) => hosts.allowed.push(pattern.clone()),
                DocumentHost::Blocked(pattern) => hosts.blocked.push(pattern.clone()),
            }
        }
        if all {
            hosts.allowed.clear();
        }
        (all || !hosts.allowed.is_empty()).then_some(hosts)
    }

    pub fn permit(&self, url: &ClientUrl) -> bool {
        let Ok(host) = Host::parse(url.0.host()) else {
            return false;
        };
        let is_in = |patterns: &[HostPattern]| patterns.iter().any(|known| known.matches(&host));
        !is_in(&self.blocked) && (self.allowed.is_empty() || is_in(&self.allowed))
    }
}

/// What the document of a client says.
#[derive(Debug, Clone, PartialEq)]
pub struct ClientDocument {
    /// As a registration would send them (RFC 7591), with the authentication method spelled out.
    pub metadata: Map<String, Value>,
    pub client_name: Option<String>,
    pub redirect_uris: Vec<String>,
}

/// Why a document does not describe a client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DocumentError {
    #[error("the client's document is not a JSON object: {0}")]
    Form(String),
    #[error("the client's document has {0}, which a public document must not")]
    HasSecret(&'static str),
    #[error("{0} in the client's document is missing or not as it must be")]
    Member(&'static str),
    #[error("the client's document says token_endpoint_auth_method {0:?}, which needs a secret")]
    Method(String),
    #[error("the client's document names another client_id")]
    OtherClient,
}

/// Why there is no client of this id.
pub type NoDocument = NotFetched<DocumentError>;

impl Cached for ClientDocument {
    type Error = DocumentError;

    fn parse(url: &FetchUrl, body: &[u8]) -> Result<Self, DocumentError> {
        let mut metadata: Map<String, Value> =
            Object::from_bytes(body).map_err(|error| DocumentError::Form(error.to_string()))?;
        if metadata.get("client_id").and_then(Value::as_str) != Some(url.as_str()) {
            return Err(DocumentError::OtherClient);
        }
        for secret in ["client_secret", "client_secret_expires_at"] {
            if metadata.contains_key(secret) {
                return Err(DocumentError::HasSecret(secret));
            }
        }
        // RFC 7591 takes its absence for a method with a secret, of which there is none here.
        let method = metadata
            .entry("token_endpoint_auth_method")
            .or_insert_with(|| "none".into());
        match method.as_str() {
            Some("none") => {}
            Some("private_key_jwt") => {
                if metadata.contains_key("jwks") == metadata.contains_key("jwks_uri") {
                    return Err(DocumentError::Member("jwks_uri"));
                }
            }
            Some(other) => return Err(DocumentError::Method(other.to_owned())),
            None => return Err(DocumentError::Member("token_endpoint_auth_method")),
        }
        let client_name = match metadata.get("client_name") {
            None => None,
            Some(Value::String(name)) => Some(name.clone()),
            Some(_) => return Err(DocumentError::Member("client_name")),
        };
        let redirect_uris = metadata.get("redirect_uris").and_then(Value::as_array);
        let redirect_uris: Option<Vec<String>> = redirect_uris.and_then(|uris| {
            let texts = uris.iter().map(|uri| uri.as_str().map(str::to_owned));
            texts.collect()
        });
        let redirect_uris = redirect_uris
            .filter(|uris| (1..=MAX_REDIRECT_URIS).contains(&uris.len()))
            .ok_or(DocumentError::Member("redirect_uris"))?;
        Ok(Self {
            metadata,
            client_name,
            redirect_uris,
        })
    }
}

/// Whether every redirect leads back to the user's own machine: then any program there can be this
/// client, and the page that asks the user should say so.
pub fn is_loopback_only(redirect_uris: &[String]) -> bool {
    redirect_uris.iter().all(|uri| {
        let url = Url::parse(uri).ok();
        let host = url.as_ref().and_then(Url::host);
        match host {
            Some(url::Host::Domain(name)) => name == "localhost",
            Some(url::Host::Ipv4(address)) => address.is_loopback(),
            Some(url::Host::Ipv6(address)) => address.is_loopback(),
            None => false,
        }
    })
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Instant};

    use serde_json::json;

    use super::*;
    use crate::fetch::tests::*;

    #[test]
    fn a_list_allows_the_hosts_that_it_names() {
        let permits = |list: &str, id: &str| {
            let words: Vec<DocumentHost> = (list.split_whitespace())
                .map(|word| word.parse().unwrap())
                .collect();
            let url = ClientUrl::parse(id).unwrap();
            DocumentHosts::of(&words).map(|hosts| hosts.permit(&url))
        };
        let (one, other) = ("https://app.example/c", "https://other.test/c");
        for (list, of_one, of_other) in [
            ("*", Some(true), Some(true)),
            ("* !app.example", Some(false), Some(true)),
            ("app.example", Some(true), Some(false)),
            ("app.example *", Some(true), Some(true)),
            ("*.test !app.example", Some(false), Some(true)),
            ("", None, None),
            ("!app.example", None, None),
        ] {
            assert_eq!(
                (permits(list, one), permits(list, other)),
                (of_one, of_other),
                "{list}"
            );
        }
        assert!("https://a".parse::<DocumentHost>().is_err());
    }

    #[test]
    fn an_id_is_an_address_in_its_canonical_form() {
        for good in [
            "https://claude.ai/oauth/claude-code-client-metadata",
            "https://app.example:8443/client.json",
            "https://app.example/c?v=1",
            "https://[2606:4700::1]/c",
        ] {
            assert_eq!(ClientUrl::parse(good).unwrap().as_str(), good);
        }
        for (bad, error) in [
            ("https://app.example", BadClientUrl::NoPath),
            ("https://app.example/", BadClientUrl::NoPath),
            ("https://app.example/c#x", BadClientUrl::Fragment),
            ("https://app.example/c#", BadClientUrl::Fragment),
            ("https://app.example/a/../c", BadClientUrl::NotCanonical),
            ("https://app.example/./c", BadClientUrl::NotCanonical),
            ("https://app.example/%2e%2e/c", BadClientUrl::NotCanonical),
            ("https://App.example/c", BadClientUrl::NotCanonical),
            ("HTTPS://app.example/c", BadClientUrl::NotCanonical),
            ("https://app.example:443/c", BadClientUrl::NotCanonical),
            ("https://app.example/a b", BadClientUrl::NotCanonical),
            ("https:app.example/c", BadClientUrl::NotCanonical),
            ("http://app.example/c", BadClientUrl::Url(BadUrl::NotHttps)),
            (
                "https://u@app.example/c",
                BadClientUrl::Url(BadUrl::UserInfo),
            ),
            ("app", BadClientUrl::Url(BadUrl::Form)),
        ] {
            assert_eq!(ClientUrl::parse(bad), Err(error), "{bad}");
        }
    }

    #[test]
    fn a_setting_says_whose_documents_are_fetched() {
        let hosts = |allowed: &[&str], blocked: &[&str]| {
            let patterns = |texts: &[&str]| {
                let patterns = texts.iter().map(|text| HostPattern::parse(text).unwrap());
                patterns.collect()
            };
            DocumentHosts {
                allowed: patterns(allowed),
                blocked: patterns(blocked),
            }
        };
        let url = ClientUrl::parse("https://a.app.example/c").unwrap();
        assert!(hosts(&[], &[]).permit(&url));
        assert!(hosts(&["*.app.example"], &[]).permit(&url));
        assert!(!hosts(&["app.example"], &[]).permit(&url));
        assert!(!hosts(&[], &["a.app.example"]).permit(&url));
        assert!(!hosts(&["a.app.example"], &["*.app.example"]).permit(&url));
    }

    fn read(document: &Value) -> Result<ClientDocument, DocumentError> {
        let url = FetchUrl::parse("https://app.example/c").unwrap();
        ClientDocument::parse(&url, document.to_string().as_bytes())
    }

    fn with(changes: Value) -> Value {
        let mut document = json!({
            "client_id": "https://app.example/c", "client_name": "App",
            "redirect_uris": ["http://127.0.0.1/cb", "http://localhost/cb"],
        });
        (document.as_object_mut().unwrap()).extend(changes.as_object().unwrap().clone());
        document
    }

    #[test]
    fn a_document_describes_its_own_client_without_a_secret() {
        let document = read(&with(json!({}))).unwrap();
        assert_eq!(document.metadata["token_endpoint_auth_method"], "none");
        assert_eq!(document.client_name.as_deref(), Some("App"));
        assert!(is_loopback_only(&document.redirect_uris));
        let mixed = json!({"redirect_uris": ["http://127.0.0.1/cb", "https://app.example/cb"]});
        assert!(!is_loopback_only(
            &read(&with(mixed)).unwrap().redirect_uris
        ));
        let scheme = json!({"redirect_uris": ["com.example.app:/cb"]});
        assert!(!is_loopback_only(
            &read(&with(scheme)).unwrap().redirect_uris
        ));
        let by_key = json!({"token_endpoint_auth_method": "private_key_jwt",
            "jwks_uri": "https://app.example/jwks"});
        assert!(read(&with(by_key)).is_ok());
        for bad in [
            json!({"client_id": "https://app.example/other"}),
            json!({"client_id": "https://app.example/c/"}),
            json!({"client_id": null}),
            json!({"client_secret": "x"}),
            json!({"client_secret_expires_at": 0}),
            json!({"token_endpoint_auth_method": "client_secret_basic"}),
            json!({"token_endpoint_auth_method": "private_key_jwt"}),
            json!({"token_endpoint_auth_method": "private_key_jwt", "jwks": {}, "jwks_uri": ""}),
            json!({"token_endpoint_auth_method": 1}),
            json!({"client_name": 1}),
            json!({"redirect_uris": []}),
            json!({"redirect_uris": "https://app.example/cb"}),
            json!({"redirect_uris": [1]}),
            json!({"redirect_uris": vec!["https://app.example/cb"; MAX_REDIRECT_URIS + 1]}),
        ] {
            assert!(read(&with(bad.clone())).is_err(), "{bad}");
        }
        assert!(matches!(read(&json!([])), Err(DocumentError::Form(_))));
    }

    #[tokio::test]
    async fn a_good_document_is_kept_and_a_bad_one_is_not() {
        let server = HostileServer::start().await;
        let id = server.url("/client");
        let document = |name: &str| {
            let document = with(json!({"client_id": id.as_str(), "client_name": name}));
            let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n";
            let body = document.to_string();
            format!(
                "{head}cache-control: max-age=120\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            )
        };
        let cache = DocumentCache::new(Arc::new(server.client()), cache_bounds());
        let begin = Instant::now();
        let name = async |seconds| {
            let now = begin + std::time::Duration::from_secs(seconds);
            let found = cache.get(&id, |_| true, now).await;
            found.map(|document| document.client_name.clone().unwrap_or_default())
        };
        server.answer("/client", document("1"));
        assert_eq!(name(0).await.unwrap(), "1");
        server.answer("/client", document("2"));
        assert_eq!(name(119).await.unwrap(), "1");
        assert_eq!(name(120).await.unwrap(), "2");
        server.answer("/client", json_answer("{}"));
        let error = name(240).await.unwrap_err();
        assert!(matches!(error, NoDocument::Content(_)), "{error}");
        server.answer("/client", document("3"));
        // A few seconds later, not at once: a client must not make us ask as often as it likes.
        assert!(name(241).await.is_err());
        assert_eq!(name(245).await.unwrap(), "3");
        assert_eq!(server.count("/client"), 4);
        server.answer("/client", json_answer(&" ".repeat(MAX_DOCUMENT_BYTES + 1)));
        assert!(matches!(name(600).await, Err(NoDocument::Fetch(_))));
    }
}
