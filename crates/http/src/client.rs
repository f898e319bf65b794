//! Requests of the program to one other server: a token endpoint, an issuer, an exchange.
//!
//! Invariants: redirects are not followed, so that what a request carries reaches the named server
//! alone; every request ends in bounded time; a body is read up to a bound.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;
use tailbone_values::{Object, Secret, excerpt};

/// The largest body that [`read_body`] reads.
pub const MAX_BODY_BYTES: usize = 1 << 20;

/// How the server is reached. Without a proxy here, the variables `HTTPS_PROXY`, `HTTP_PROXY`,
/// `ALL_PROXY` and `NO_PROXY` count.
#[derive(Debug, Clone, Default)]
pub struct Reach {
    /// Certificates in PEM, which are then the only ones that are trusted.
    pub ca_file: Option<PathBuf>,
    /// `http`, `https`, `socks5` or `socks5h`, perhaps with a password.
    pub proxy: Option<Secret>,
}

/// Why there can be no client.
#[derive(Debug, thiserror::Error)]
pub enum ReachError {
    #[error("the file of certificates {path} cannot be read")]
    CaFile {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("the file {0} contains no certificate in PEM")]
    NoCertificate(PathBuf),
    #[error("the proxy is no address such as socks5h://127.0.0.1:1055")]
    Proxy,
    #[error(transparent)]
    Client(reqwest::Error),
}

/// A client for one server. `timeout` bounds each request as a whole.
pub fn builder(timeout: Duration) -> reqwest::ClientBuilder {
    reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .timeout(timeout)
        .user_agent(concat!("tailbone/", env!("CARGO_PKG_VERSION")))
}

/// The same, on the way that `reach` names.
pub fn build(timeout: Duration, reach: &Reach) -> Result<reqwest::Client, ReachError> {
    let mut builder = builder(timeout);
    if let Some(path) = &reach.ca_file {
        builder = builder.tls_certs_only(certificates(path)?);
    }
    if let Some(proxy) = &reach.proxy {
        builder = builder.proxy(parse_proxy(proxy)?);
    }
    builder.build().map_err(ReachError::Client)
}

/// The certificates in a file of PEM, at least one.
pub fn certificates(path: &Path) -> Result<Vec<reqwest::Certificate>, ReachError> {
    let pem = std::fs::read(path).map_err(|cause| ReachError::CaFile {
        path: path.to_path_buf(),
        cause,
    })?;
    match reqwest::Certificate::from_pem_bundle(&pem) {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        _ => Err(ReachError::NoCertificate(path.to_path_buf())),
    }
}

/// The error has no source: reqwest's repeats the address, which may contain a password.
fn parse_proxy(proxy: &Secret) -> Result<reqwest::Proxy, ReachError> {
    let url = reqwest::Url::parse(proxy.reveal()).map_err(|_| ReachError::Proxy)?;
    let host = url.host_str().is_some_and(|host| !host.is_empty());
    if !host || !["http", "https", "socks5", "socks5h"].contains(&url.scheme()) {
        return Err(ReachError::Proxy);
    }
    reqwest::Proxy::all(url).map_err(|_| ReachError::Proxy)
}

/// The body, or nothing if it is larger than [`MAX_BODY_BYTES`].
pub async fn read_body(response: reqwest::Response) -> Result<Option<Vec<u8>>, reqwest::Error> {
    read_body_up_to(response, MAX_BODY_BYTES).await
}

/// The body, or nothing if it is larger than `most` bytes.
pub async fn read_body_up_to(
    mut response: reqwest::Response,
    most: usize,
) -> Result<Option<Vec<u8>>, reqwest::Error> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > most {
            return Ok(None);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Some(body))
}

/// The words of a refusal, made safe for a terminal: `error` and `error_description` of RFC 6749,
/// `code` and `message` of tsiam's answers, otherwise the text itself.
pub fn error_message(body: &str) -> String {
    #[derive(Deserialize)]
    struct JsonError {
        #[serde(alias = "code")]
        error: String,
        #[serde(alias = "message")]
        error_description: Option<String>,
        request_id: Option<String>,
    }

    let text = match serde_json::from_str::<Object<JsonError>>(body) {
        Ok(Object(json)) => {
            let mut text = json.error;
            if let Some(description) = json.error_description {
                text = format!("{text}: {description}");
            }
            if let Some(id) = json.request_id {
                text = format!("{text} (request {id})");
            }
            text
        }
        Err(_) => body.trim().to_owned(),
    };
    excerpt(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_quotes_the_server() {
        assert_eq!(error_message("subject mismatch\n"), "subject mismatch");
        assert_eq!(
            error_message(
                r#"{"error":"invalid_scope","error_description":"no","request_id":"r1"}"#
            ),
            "invalid_scope: no (request r1)"
        );
        assert_eq!(
            error_message(r#"{"code":"missing_audience","message":"Missing"}"#),
            "missing_audience: Missing"
        );
    }

    #[test]
    fn a_proxy_is_an_address_and_never_repeated() {
        for right in [
            "socks5h://127.0.0.1:1055",
            "socks5://[::1]",
            "http://user:word@proxy.example:3128",
        ] {
            assert!(parse_proxy(&Secret::new(right)).is_ok(), "{right}");
        }
        for wrong in [
            "127.0.0.1:1055",
            "ftp://word@x",
            "socks5h://",
            "http://[word",
        ] {
            let error = parse_proxy(&Secret::new(wrong)).unwrap_err();
            assert!(!tailbone_telemetry::error_chain(&error).contains("word"));
        }
    }

    #[test]
    fn a_file_of_certificates_must_contain_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.pem");
        let reach = Reach {
            ca_file: Some(path.clone()),
            proxy: None,
        };
        let build = || build(Duration::from_secs(1), &reach).unwrap_err();
        assert!(matches!(build(), ReachError::CaFile { .. }));
        std::fs::write(&path, "nothing").unwrap();
        assert!(matches!(build(), ReachError::NoCertificate(_)));
    }
}
