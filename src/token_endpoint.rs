//! The call of Tailscale's token endpoint: client credentials for the scopes and tags of one
//! request.
//!
//! Invariants
//! - A request's scopes and tags are passed as arguments from its policy to the form that is sent;
//!   requests never share them in any state. The cache is keyed by everything that makes up a
//!   grant.
//! - The client's secret is sent to the endpoint only: redirects are not followed, and no error
//!   contains a response body.
//! - Nobody waits for long: each call has a timeout, the number of concurrent calls is bounded, and
//!   after a 429 the client is not used again until `Retry-After` (at most 5 minutes) has passed.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use ::http::{HeaderMap, StatusCode, header};
use base64::{Engine, engine::general_purpose::STANDARD};
use parking_lot::Mutex;
use serde::Deserialize;
use tailbone_values::Object;
use tokio::sync::Semaphore;
use url::{Url, form_urlencoded};

use crate::{
    config::{Credentials, Secret},
    http::client,
};

/// What a request is to get.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RequestedGrant {
    pub policy: String,
    pub scopes: Vec<String>,
    pub tags: Vec<String>,
}

/// The endpoint's answer.
#[derive(Debug, Clone)]
pub struct AccessToken {
    pub token: Secret,
    /// The remaining lifetime.
    pub expires_in: Option<Duration>,
}

/// Why the endpoint gave no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenEndpointError {
    #[error("the client may not request these scopes or tags: {0}")]
    GrantRefused(String),
    #[error("the client was refused: {0}")]
    ClientRefused(String),
    #[error("too many calls; retry in {0:?}")]
    Throttled(Duration),
    #[error("too many concurrent calls")]
    Busy,
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    #[error("the endpoint cannot be reached")]
    Unreachable(#[source] reqwest::Error),
    #[error("the endpoint answered {0}")]
    Status(StatusCode),
    #[error("the endpoint's answer is invalid: {0}")]
    InvalidAnswer(&'static str),
}

/// The client of the token endpoint.
#[derive(Debug)]
pub struct TokenEndpoint {
    http: reqwest::Client,
    url: Url,
    timeout: Duration,
    cache_time: Duration,
    calls: Semaphore,
    /// By client id.
    clients: Mutex<HashMap<String, ClientState>>,
    cache: Mutex<HashMap<(String, RequestedGrant), CachedToken>>,
}

/// The state of an OAuth client at the endpoint; never what was requested.
#[derive(Debug, Default, Clone, Copy)]
struct ClientState {
    secret_style: Option<SecretStyle>,
    blocked_until: Option<Instant>,
}

/// How a client sends its secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SecretStyle {
    Basic,
    Form,
}

#[derive(Debug)]
struct CachedToken {
    token: Secret,
    /// The time after which the token is not given to anybody.
    fresh_until: Instant,
    expires: Instant,
}

const MAX_CALLS: usize = 64;
const MAX_CACHED_TOKENS: usize = 1024;
/// The least remaining lifetime of a cached token that is given away.
const MIN_REMAINING_LIFE: Duration = Duration::from_secs(60);
const MAX_BLOCKED_TIME: Duration = Duration::from_secs(300);

impl TokenEndpoint {
    pub fn new(url: Url, timeout: Duration, cache_time: Duration) -> Result<Self, reqwest::Error> {
        let http = client::builder(timeout).build()?;
        Ok(Self {
            http,
            url,
            timeout,
            cache_time,
            calls: Semaphore::new(MAX_CALLS),
            clients: Mutex::default(),
            cache: Mutex::default(),
        })
    }

    /// A token for exactly this grant.
    pub async fn token(
        &self,
        credentials: &Credentials,
        grant: &RequestedGrant,
        now: Instant,
    ) -> Result<AccessToken, TokenEndpointError> {
        let key = (credentials.id.clone(), grant.clone());
        if let Some(cached) = self.cached(&key, now) {
            return Ok(cached);
        }
        let client = self.client(&credentials.id);
        if let Some(until) = client.blocked_until.filter(|until| *until > now) {
            return Err(TokenEndpointError::Throttled(until - now));
        }
        let _slot = tokio::time::timeout(self.timeout, self.calls.acquire())
            .await
            .map_err(|_| TokenEndpointError::Busy)?
            .map_err(|_| TokenEndpointError::Busy)?;
        let token = match client.secret_style {
            Some(secret_style) => self.call(credentials, grant, secret_style).await,
            None => self.first_call(credentials, grant).await,
        };
        if let Err(TokenEndpointError::Throttled(wait)) = &token {
            let until = now + (*wait).min(MAX_BLOCKED_TIME);
            self.update_client(&credentials.id, |client| client.blocked_until = Some(until));
        }
        let token = token?;
        self.cache(key, &token, now);
        Ok(token)
    }

    /// Drops cached tokens, so that a changed policy takes effect at once.
    pub fn clear_cache(&self) {
        self.cache.lock().clear();
    }

    /// Endpoints differ in how they expect the secret. The second style is only tried if the first
    /// one may be the reason for the refusal.
    async fn first_call(
        &self,
        credentials: &Credentials,
        grant: &RequestedGrant,
    ) -> Result<AccessToken, TokenEndpointError> {
        let (token, secret_style) = match self.call(credentials, grant, SecretStyle::Basic).await {
            Err(TokenEndpointError::ClientRefused(_)) => (
                self.call(credentials, grant, SecretStyle::Form).await?,
                SecretStyle::Form,
            ),
            other => (other?, SecretStyle::Basic),
        };
        self.update_client(&credentials.id, |client| {
            client.secret_style = Some(secret_style)
        });
        Ok(token)
    }

    async fn call(
        &self,
        credentials: &Credentials,
        grant: &RequestedGrant,
        secret_style: SecretStyle,
    ) -> Result<AccessToken, TokenEndpointError> {
        let mut request = self
            .http
            .post(self.url.clone())
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .header(header::ACCEPT, "application/json")
            .body(request_form(credentials, grant, secret_style));
        if secret_style == SecretStyle::Basic {
            request = request.header(header::AUTHORIZATION, basic_authorization(credentials)?);
        }
        let answer = async {
            let response = request.send().await?;
            let (status, headers) = (response.status(), response.headers().clone());
            Ok((status, headers, client::read_body(response).await?))
        };
        let (status, headers, body) = answer.await.map_err(|error| self.transport_error(error))?;
        let body = body.ok_or(TokenEndpointError::InvalidAnswer("it is larger than 1 MiB"))?;
        parse_response(status, &headers, &body)
    }

    fn transport_error(&self, error: reqwest::Error) -> TokenEndpointError {
        if error.is_timeout() {
            TokenEndpointError::TimedOut(self.timeout)
        } else {
            TokenEndpointError::Unreachable(error.without_url())
        }
    }

    fn client(&self, id: &str) -> ClientState {
        self.clients.lock().get(id).copied().unwrap_or_default()
    }

    fn update_client(&self, id: &str, change: impl FnOnce(&mut ClientState)) {
        change(self.clients.lock().entry(id.to_owned()).or_default());
    }

    fn cached(&self, key: &(String, RequestedGrant), now: Instant) -> Option<AccessToken> {
        let cache = self.cache.lock();
        let cached = cache.get(key).filter(|cached| now < cached.fresh_until)?;
        Some(AccessToken {
            token: cached.token.clone(),
            expires_in: Some(cached.expires.saturating_duration_since(now)),
        })
    }

    fn cache(&self, key: (String, RequestedGrant), token: &AccessToken, now: Instant) {
        let Some(life) = token.expires_in else { return };
        let keep = self.cache_time.min(life.saturating_sub(MIN_REMAINING_LIFE));
        if keep.is_zero() {
            return;
        }
        let mut cache = self.cache.lock();
        if cache.len() >= MAX_CACHED_TOKENS {
            cache.retain(|_, cached| now < cached.fresh_until);
        }
        if cache.len() < MAX_CACHED_TOKENS {
            let cached = CachedToken {
                token: token.token.clone(),
                fresh_until: now + keep,
                expires: now + life,
            };
            cache.insert(key, cached);
        }
    }
}

fn request_form(
    credentials: &Credentials,
    grant: &RequestedGrant,
    secret_style: SecretStyle,
) -> String {
    let mut form = form_urlencoded::Serializer::new(String::new());
    form.append_pair("grant_type", "client_credentials");
    form.append_pair("scope", &grant.scopes.join(" "));
    if !grant.tags.is_empty() {
        form.append_pair("tags", &grant.tags.join(" "));
    }
    if secret_style == SecretStyle::Form {
        form.append_pair("client_id", &credentials.id);
        form.append_pair("client_secret", credentials.secret.reveal());
    }
    form.finish()
}

/// Both parts are form-encoded before base64 (RFC 6749, section 2.3.1).
fn basic_authorization(
    credentials: &Credentials,
) -> Result<header::HeaderValue, TokenEndpointError> {
    let encoded = |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
    let pair = format!(
        "{}:{}",
        encoded(&credentials.id),
        encoded(credentials.secret.reveal())
    );
    let mut value = header::HeaderValue::try_from(format!("Basic {}", STANDARD.encode(pair)))
        .map_err(|_| TokenEndpointError::InvalidAnswer("the client does not fit into a header"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// `None` if the body is too large.
#[derive(Debug, Default, Deserialize)]
struct TokenResponse {
    access_token: Option<String>,
    token_type: Option<String>,
    expires_in: Option<serde_json::Value>,
    error: Option<String>,
    error_description: Option<String>,
}

fn parse_response(
    status: StatusCode,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<AccessToken, TokenEndpointError> {
    if status == StatusCode::TOO_MANY_REQUESTS {
        return Err(TokenEndpointError::Throttled(retry_after(headers)));
    }
    let answer = parse_body(headers, body);
    if let Some(error) = answer.as_ref().and_then(|answer| answer.error.as_deref()) {
        let message = answer
            .as_ref()
            .and_then(|answer| answer.error_description.as_deref());
        return Err(classify_refusal(status, error, message));
    }
    if matches!(
        status,
        StatusCode::UNAUTHORIZED | StatusCode::BAD_REQUEST | StatusCode::FORBIDDEN
    ) {
        // Without an error code, the style in which the secret was sent may have been the reason.
        return Err(TokenEndpointError::ClientRefused(status.to_string()));
    }
    if !status.is_success() {
        return Err(TokenEndpointError::Status(status));
    }
    let answer = answer.ok_or(TokenEndpointError::InvalidAnswer(
        "it is neither JSON nor a form",
    ))?;
    let bearer = (answer.token_type.as_deref())
        .is_none_or(|token_type| token_type.eq_ignore_ascii_case("bearer"));
    if !bearer {
        return Err(TokenEndpointError::InvalidAnswer(
            "the token is not a bearer token",
        ));
    }
    let token = answer
        .access_token
        .filter(|token| !token.is_empty() && token.bytes().all(|c| c.is_ascii_graphic()))
        .ok_or(TokenEndpointError::InvalidAnswer("it has no access_token"))?;
    Ok(AccessToken {
        token: Secret::new(token),
        expires_in: answer.expires_in.as_ref().and_then(seconds),
    })
}

fn parse_body(headers: &HeaderMap, body: &[u8]) -> Option<TokenResponse> {
    let content_type = headers
        .get(header::CONTENT_TYPE)
        .and_then(|content_type| content_type.to_str().ok())
        .unwrap_or_default()
        .to_ascii_lowercase();
    if let Ok(answer) = Object::from_bytes(body) {
        return Some(answer);
    }
    let form = content_type.starts_with("text/plain")
        || content_type.starts_with("application/x-www-form-urlencoded");
    if !form {
        return None;
    }
    let mut answer = TokenResponse::default();
    for (name, value) in form_urlencoded::parse(body) {
        let value = value.into_owned();
        match name.as_ref() {
            "access_token" => answer.access_token = Some(value),
            "token_type" => answer.token_type = Some(value),
            "expires_in" => answer.expires_in = Some(value.into()),
            "error" => answer.error = Some(value),
            _ => {}
        }
    }
    Some(answer)
}

/// Assigns the standard's error codes to a cause. The description goes to the log, shortened and
/// without control characters.
fn classify_refusal(
    status: StatusCode,
    error: &str,
    description: Option<&str>,
) -> TokenEndpointError {
    let message: String = format!("{error}: {}", description.unwrap_or("no description"))
        .chars()
        .filter(|c| !c.is_control())
        .take(300)
        .collect();
    match error {
        "invalid_scope" | "invalid_target" | "access_denied" => {
            TokenEndpointError::GrantRefused(message)
        }
        "invalid_client" | "unauthorized_client" | "invalid_request" => {
            TokenEndpointError::ClientRefused(message)
        }
        _ if status.is_server_error() => TokenEndpointError::Status(status),
        _ => TokenEndpointError::ClientRefused(message),
    }
}

/// A number, or a string that contains one.
fn seconds(value: &serde_json::Value) -> Option<Duration> {
    let seconds = match value {
        serde_json::Value::Number(number) => number.as_u64()?,
        serde_json::Value::String(text) => text.trim().parse().ok()?,
        _ => return None,
    };
    // At most a year, which is longer than any token lives and cannot overflow in sums.
    Some(Duration::from_secs(seconds.min(365 * 24 * 3600)))
}

fn retry_after(headers: &HeaderMap) -> Duration {
    let text = headers
        .get(header::RETRY_AFTER)
        .and_then(|value| value.to_str().ok());
    let seconds = text.and_then(|text| text.trim().parse().ok());
    Duration::from_secs(seconds.unwrap_or(5_u64).clamp(1, 3600))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(
        status: u16,
        content_type: &'static str,
        body: &str,
    ) -> Result<AccessToken, TokenEndpointError> {
        let mut headers = HeaderMap::new();
        headers.insert(
            header::CONTENT_TYPE,
            header::HeaderValue::from_static(content_type),
        );
        parse_response(
            StatusCode::from_u16(status).unwrap(),
            &headers,
            body.as_bytes(),
        )
    }

    #[test]
    fn answers_of_all_kinds_are_parsed() {
        let json = parse(
            200,
            "application/json",
            r#"{"access_token":"t","token_type":"Bearer","expires_in":"3600"}"#,
        )
        .unwrap();
        assert_eq!(
            (json.token.reveal(), json.expires_in),
            ("t", Some(Duration::from_secs(3600)))
        );
        let form = parse(200, "text/plain", "access_token=t&expires_in=60").unwrap();
        assert_eq!(
            (form.token.reveal(), form.expires_in),
            ("t", Some(Duration::from_secs(60)))
        );
    }

    #[test]
    fn refusals_blame_the_right_side() {
        let code = |status, body: &str| parse(status, "application/json", body).unwrap_err();
        assert!(matches!(
            code(400, r#"{"error":"invalid_scope"}"#),
            TokenEndpointError::GrantRefused(_)
        ));
        assert!(matches!(
            code(400, r#"{"error":"invalid_target"}"#),
            TokenEndpointError::GrantRefused(_)
        ));
        assert!(matches!(
            code(401, r#"{"error":"invalid_client"}"#),
            TokenEndpointError::ClientRefused(_)
        ));
        assert!(matches!(
            code(200, r#"{"error":"invalid_scope","access_token":"t"}"#),
            TokenEndpointError::GrantRefused(_)
        ));
        assert!(matches!(
            code(401, "{}"),
            TokenEndpointError::ClientRefused(_)
        ));
        assert!(matches!(
            code(500, r#"{"error":"server_error"}"#),
            TokenEndpointError::Status(_)
        ));
        assert!(matches!(
            code(200, r#"{"access_token":""}"#),
            TokenEndpointError::InvalidAnswer(_)
        ));
        assert!(matches!(
            code(200, r#"{"access_token":"a\nb"}"#),
            TokenEndpointError::InvalidAnswer(_)
        ));
        assert!(matches!(code(302, ""), TokenEndpointError::Status(_)));
    }

    #[test]
    fn basic_credentials_are_form_encoded_first() {
        let credentials = Credentials {
            id: "a b".into(),
            secret: Secret::new("s:%+"),
        };
        let value = basic_authorization(&credentials).unwrap();
        let pair = STANDARD
            .decode(value.to_str().unwrap().strip_prefix("Basic ").unwrap())
            .unwrap();
        assert_eq!(pair, b"a+b:s%3A%25%2B");
    }

    #[test]
    fn a_cached_token_is_of_one_grant_and_never_nearly_expired() {
        let endpoint = |cache| {
            let url = Url::parse("http://localhost/").unwrap();
            TokenEndpoint::new(url, Duration::from_secs(1), Duration::from_secs(cache)).unwrap()
        };
        let grant = |scope: &str| {
            (
                String::from("id"),
                RequestedGrant {
                    policy: "p".into(),
                    scopes: vec![scope.into()],
                    tags: vec![],
                },
            )
        };
        let token = |life| AccessToken {
            token: Secret::new("t"),
            expires_in: Some(Duration::from_secs(life)),
        };
        let now = Instant::now();
        let after = |seconds| now + Duration::from_secs(seconds);

        let cached = endpoint(300);
        cached.cache(grant("a"), &token(3600), now);
        assert_eq!(
            cached.cached(&grant("a"), after(299)).unwrap().expires_in,
            Some(Duration::from_secs(3301))
        );
        assert!(cached.cached(&grant("a"), after(300)).is_none());
        assert!(cached.cached(&grant("b"), now).is_none());
        cached.cache(grant("b"), &token(90), now);
        assert!(cached.cached(&grant("b"), after(29)).is_some());
        assert!(cached.cached(&grant("b"), after(30)).is_none());
        cached.clear_cache();
        assert!(cached.cached(&grant("a"), now).is_none());

        let off = endpoint(0);
        off.cache(grant("a"), &token(3600), now);
        assert!(off.cached(&grant("a"), now).is_none());
    }
}
