//! What Google's client libraries ask for: the answer of an executable (AIP-4117), and a source
//! that answers `GET`.
//!
//! Invariants of the source
//! - It listens on loopback alone, and a request must show the secret: other users of the machine
//!   and web pages do not know it.
//! - A request that a browser sent for a page is refused, and so is one for a foreign host.
//! - Only the audiences that were named get tokens.

use std::{collections::HashMap, path::Path, sync::Arc, time::Duration};

use ::http::{HeaderMap, Uri, Version, header};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use axum::{
    Router,
    extract::{self, Query, State},
    response::{IntoResponse, Response},
    routing::get,
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Serialize;

use super::{
    cache::CachedTokens,
    issuer::{IssuedToken, Issuer, TokenError},
};
use crate::{
    config::Secret,
    http::{
        Error,
        error::Kind,
        host::{HostRule, requested_host},
        json::Json,
        origin,
    },
    keys::disk::{self, DiskError, Probe},
    telemetry,
};

/// The header that shows the secret, where the path does not.
pub const SECRET_HEADER: &str = "x-tailbone-secret";

pub const JWT_TYPE: &str = "urn:ietf:params:oauth:token-type:jwt";
pub const ID_TOKEN_TYPE: &str = "urn:ietf:params:oauth:token-type:id_token";

/// The answer of an executable. Libraries read it from standard output, and from the output file.
#[derive(Serialize)]
#[serde(untagged)]
pub enum ExecutableAnswer<'a> {
    Failure {
        version: u8,
        success: bool,
        code: &'a str,
        message: String,
    },
    Token {
        version: u8,
        success: bool,
        token_type: &'a str,
        id_token: &'a str,
        expiration_time: i64,
    },
}

impl std::fmt::Debug for ExecutableAnswer<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Failure { .. } => "Failure",
            Self::Token { .. } => "Token",
        })
    }
}

impl<'a> ExecutableAnswer<'a> {
    pub fn token(token: &'a IssuedToken, token_type: &'a str) -> Self {
        Self::Token {
            version: 1,
            success: true,
            token_type,
            id_token: token.token.reveal(),
            expiration_time: token.expires.as_second(),
        }
    }

    pub fn failure(code: &'a str, message: String) -> Self {
        Self::Failure {
            version: 1,
            success: false,
            code,
            message,
        }
    }
}

/// Reads the secret from its file, or makes one and the file.
pub fn secret(path: &Path) -> Result<Secret, SecretError> {
    const LIMIT: u64 = 4096;
    const BYTES: usize = 24;
    if let Some(bytes) = disk::read(path, LIMIT)? {
        let text = String::from_utf8(bytes).unwrap_or_default();
        let text = text.trim();
        let right = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        if text.len() < 16 || !text.bytes().all(right) {
            return Err(SecretError::Weak);
        }
        return Ok(Secret::new(text));
    }
    let mut random = [0u8; BYTES];
    aws_lc_rs::rand::fill(&mut random).map_err(|_| SecretError::NoRandom)?;
    let text = URL_SAFE_NO_PAD.encode(random);
    disk::write(path, text.as_bytes(), 0o600, &Probe::default())?;
    Ok(Secret::new(text))
}

#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error("the system gives no random numbers")]
    NoRandom,
    #[error("the secret must have at least 16 of the characters A-Z, a-z, 0-9, - and _")]
    Weak,
}

/// Answers `GET /token` with the secret in its header, and `GET /SECRET/token`.
#[derive(Debug, Clone)]
pub struct TokenSource(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    tokens: CachedTokens,
    /// The first is for requests that name none.
    audiences: Vec<String>,
    secret: Secret,
    hosts: HostRule,
}

impl TokenSource {
    pub fn new(issuer: Issuer, audiences: Vec<String>, secret: Secret) -> Self {
        Self(Arc::new(Inner {
            tokens: CachedTokens::new(issuer),
            audiences,
            secret,
            hosts: HostRule::of_loopback(&[]),
        }))
    }

    pub fn router(&self) -> Router {
        Router::new()
            .route(
                "/token",
                get(by_header).fallback(async || Error::method_not_allowed("GET, HEAD")),
            )
            .route("/{secret}/token", get(by_path))
            .with_state(self.clone())
    }

    async fn answer(
        &self,
        request: &RequestHead,
        secret: Option<&[u8]>,
        audience: Option<&str>,
    ) -> Result<Response, Error> {
        self.check(request, secret)?;
        let audiences = &self.0.audiences;
        let audience = match audience {
            None => audiences.first(),
            Some(named) => audiences.iter().find(|known| *known == named),
        };
        let audience = audience.ok_or_else(|| {
            Error::new(
                Kind::Forbidden,
                "audience_not_allowed",
                "this source gives no tokens for the audience: name it with --audience when it is \
                 started",
            )
        })?;
        let (token, left) = self.token(audience).await?;
        let body = serde_json::json!({
            "access_token": token.token.reveal(),
            "token_type": "Bearer",
            "expires_in": left.as_secs(),
            "expires_on": token.expires.as_second(),
        });
        Ok(([(header::CACHE_CONTROL, "no-store")], Json(body)).into_response())
    }

    fn check(&self, request: &RequestHead, secret: Option<&[u8]>) -> Result<(), Error> {
        let forbidden = |code, words| Error::new(Kind::Forbidden, code, words);
        if origin::by_browser(&request.headers) {
            let words = "this is for programs, and a browser sent it for a page";
            return Err(forbidden("browser_request", words));
        }
        let host = requested_host(request.version, &request.uri, &request.headers)?;
        if !host.is_some_and(|(host, _)| self.0.hosts.accepts(&host)) {
            return Err(Error::new(
                Kind::Misdirected,
                "unknown_host",
                "this server is called localhost, 127.0.0.1 or ::1",
            ));
        }
        let expected = self.0.secret.reveal().as_bytes();
        let right = secret.is_some_and(|shown| verify_slices_are_equal(shown, expected).is_ok());
        if !right {
            let words = "the request does not show the secret, in the header X-Tailbone-Secret or \
                         as the first part of the path";
            return Err(forbidden("no_secret", words));
        }
        Ok(())
    }

    async fn token(&self, audience: &str) -> Result<(IssuedToken, Duration), Error> {
        self.0.tokens.get(audience).await.map_err(|error| {
            let kind = match &error {
                TokenError::Refused { status, .. } if status.is_client_error() => Kind::Forbidden,
                TokenError::TimedOut { .. } => Kind::GatewayTimeout,
                _ => Kind::BadGateway,
            };
            let words = telemetry::error_chain(&error);
            tracing::warn!(target: "workload", audience, error = words, "no token");
            Error::new(kind, "no_token", words)
        })
    }
}

/// What the checks look at.
#[derive(Debug)]
struct RequestHead {
    version: Version,
    uri: Uri,
    headers: HeaderMap,
}

async fn by_header(
    State(source): State<TokenSource>,
    Query(query): Query<HashMap<String, String>>,
    version: Version,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Error> {
    let request = RequestHead {
        version,
        uri,
        headers,
    };
    let secret = request.headers.get(SECRET_HEADER);
    let secret = secret.map(|value| value.as_bytes());
    let audience = query.get("audience").map(String::as_str);
    source.answer(&request, secret, audience).await
}

async fn by_path(
    State(source): State<TokenSource>,
    extract::Path(secret): extract::Path<String>,
    Query(query): Query<HashMap<String, String>>,
    version: Version,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Error> {
    let request = RequestHead {
        version,
        uri,
        headers,
    };
    let audience = query.get("audience").map(String::as_str);
    source
        .answer(&request, Some(secret.as_bytes()), audience)
        .await
}
