//! The exchange's routes: three dialects of the request, one decision.
//!
//! The plain dialect equals TailSTS's byte for byte, including the order of checks: errors in the
//! header come before errors in the body, and those before errors in the token.

use std::{sync::Arc, time::Instant};

use ::http::{Extensions, HeaderMap, HeaderValue, Method, StatusCode, header, request::Parts};
use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    response::{IntoResponse, Response},
    routing::{any, get},
};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Map, Value};
use tailbone_values::excerpt;
use url::form_urlencoded;

use super::{ExchangeError, Granted, RefusedExchange, SharedState, policy};
use crate::{
    audit,
    http::{form::is_form, json::Json, tcp::Remote},
    identity::Connection,
    jwks::verify::ParsedToken,
    telemetry::audit::Decision,
};

const TOKEN_EXCHANGE_GRANT: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
const ACCESS_TOKEN_TYPE: &str = "urn:ietf:params:oauth:token-type:access_token";
const ID_TOKEN_TYPE: &str = "urn:ietf:params:oauth:token-type:id_token";
const JWT_TYPE: &str = "urn:ietf:params:oauth:token-type:jwt";

pub fn router(state: Arc<SharedState>) -> Router {
    // Any path, as in TailSTS. Not the router's fallback: `http::layers` sets that.
    Router::new()
        .route("/", any(exchange))
        .route("/{*path}", any(exchange))
        .route("/_healthz", get(health).fallback(exchange))
        .with_state(state)
}

async fn health(State(state): State<Arc<SharedState>>) -> Response {
    // Does not name the issuers: the listener may be on the internet.
    let body = serde_json::json!({"ok": true, "ready": state.readiness().ready});
    ([(header::CACHE_CONTROL, "no-store")], Json(body)).into_response()
}

async fn exchange(State(state): State<Arc<SharedState>>, request: Request) -> Response {
    if request.method() != Method::POST {
        let mut response = plain_response(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed");
        let headers = response.headers_mut();
        headers.insert(header::ALLOW, HeaderValue::from_static("POST"));
        return response;
    }
    let (parts, body) = request.into_parts();
    let (dialect, request) = parse_request(&parts, body).await;
    let peer = peer_address(&parts.extensions);
    let request = match request {
        Ok(request) => request,
        Err(error) => {
            state.meter.exchange_refused("", error.code());
            audit!(
                Decision::Refused,
                "exchange",
                reason = error.code(),
                peer = peer
            );
            return refusal_response(dialect, error);
        }
    };
    respond(&state, dialect, &request, peer).await
}

/// The dialect of a request, which its answer uses too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dialect {
    /// A bearer token, with an answer in OAuth's format.
    Bearer,
    /// RFC 8693.
    TokenExchange,
    /// TailSTS.
    Plain,
}

#[derive(Debug)]
struct ParsedRequest {
    token: String,
    scopes: Vec<String>,
    tags: Vec<String>,
}

async fn parse_request(
    parts: &Parts,
    body: Body,
) -> (Dialect, Result<ParsedRequest, ExchangeError>) {
    let dialect = if wants_json(&parts.headers) {
        Dialect::Bearer
    } else {
        Dialect::Plain
    };
    // curl declares every body as a form, so only the grant type inside shows whether it is RFC
    // 8693.
    if is_form(&parts.headers) {
        return match read_body(body).await {
            Err(error) => (dialect, Err(error)),
            Ok(body) => match parse_form(&body) {
                Some(form) => (Dialect::TokenExchange, form),
                None => {
                    let request = bearer_token(&parts.headers, dialect);
                    (dialect, request.and_then(|token| parse_json(token, &body)))
                }
            },
        };
    }
    let token = match bearer_token(&parts.headers, dialect) {
        Ok(token) => token,
        Err(error) => return (dialect, Err(error)),
    };
    (
        dialect,
        read_body(body)
            .await
            .and_then(|body| parse_json(token, &body)),
    )
}

fn bearer_token(headers: &HeaderMap, dialect: Dialect) -> Result<String, ExchangeError> {
    let value = headers
        .get(header::AUTHORIZATION)
        .ok_or(ExchangeError::MissingAuthorization)?;
    if value.is_empty() {
        return Err(ExchangeError::MissingAuthorization);
    }
    let value = value
        .to_str()
        .map_err(|_| ExchangeError::MalformedAuthorization)?;
    let (scheme, token) = value
        .split_once(' ')
        .ok_or(ExchangeError::MalformedAuthorization)?;
    let scheme_matches = match dialect {
        Dialect::Plain => scheme == "Bearer",
        Dialect::Bearer | Dialect::TokenExchange => scheme.eq_ignore_ascii_case("Bearer"),
    };
    if !scheme_matches {
        return Err(ExchangeError::MalformedAuthorization);
    }
    Ok(token.to_owned())
}

async fn read_body(body: Body) -> Result<Vec<u8>, ExchangeError> {
    // `http::layers` limits its size.
    match axum::body::to_bytes(body, usize::MAX).await {
        Ok(body) => Ok(body.into()),
        Err(error) if is_too_large(&error) => Err(ExchangeError::BodyTooLarge),
        Err(_) => Err(ExchangeError::MalformedBody("it is incomplete")),
    }
}

fn is_too_large(error: &axum::Error) -> bool {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(cause) = next {
        if cause.is::<http_body_util::LengthLimitError>() {
            return true;
        }
        next = cause.source();
    }
    false
}

/// Takes the first JSON value and ignores what follows; `scopes` may be in any case.
fn parse_json(token: String, body: &[u8]) -> Result<ParsedRequest, ExchangeError> {
    let first = serde_json::Deserializer::from_slice(body)
        .into_iter::<Value>()
        .next();
    let object = match first {
        Some(Ok(Value::Object(object))) => object,
        Some(Ok(Value::Null)) => Map::new(),
        _ => return Err(ExchangeError::MalformedBody("it is not a JSON object")),
    };
    let scopes = string_list(&object, "scopes").ok_or(ExchangeError::MalformedBody(
        "scopes is not a list of texts",
    ))?;
    let tags = string_list(&object, "tags")
        .ok_or(ExchangeError::MalformedBody("tags is not a list of texts"))?;
    if scopes.is_empty() {
        return Err(ExchangeError::MissingScopes);
    }
    Ok(ParsedRequest {
        token,
        scopes,
        tags,
    })
}

/// Empty if absent or null.
fn string_list(object: &Map<String, Value>, name: &str) -> Option<Vec<String>> {
    let ignoring_case = || {
        let mut members = object.iter();
        members.find_map(|(key, value)| key.eq_ignore_ascii_case(name).then_some(value))
    };
    match object.get(name).or_else(ignoring_case) {
        None | Some(Value::Null) => Some(Vec::new()),
        Some(Value::Array(list)) => list
            .iter()
            .map(|text| text.as_str().map(str::to_owned))
            .collect(),
        Some(_) => None,
    }
}

/// `None` if the body is not a form with an OAuth grant.
fn parse_form(body: &[u8]) -> Option<Result<ParsedRequest, ExchangeError>> {
    // A parameter without a value counts as absent (RFC 6749, section 3.1).
    let pairs: Vec<(String, String)> = form_urlencoded::parse(body)
        .into_owned()
        .filter(|(_, value)| !value.is_empty())
        .collect();
    pairs
        .iter()
        .any(|(name, _)| name == "grant_type")
        .then(|| TokenExchangeForm(pairs).parse())
}

struct TokenExchangeForm(Vec<(String, String)>);

impl TokenExchangeForm {
    fn parse(&self) -> Result<ParsedRequest, ExchangeError> {
        if self.parameter("grant_type")? != Some(TOKEN_EXCHANGE_GRANT) {
            return Err(ExchangeError::MalformedBody(
                "grant_type is not token-exchange",
            ));
        }
        let token = self
            .parameter("subject_token")?
            .ok_or(ExchangeError::MalformedBody("subject_token is missing"))?;
        match self.parameter("subject_token_type")? {
            Some(JWT_TYPE | ID_TOKEN_TYPE) => {}
            Some(_) => {
                return Err(ExchangeError::MalformedBody(
                    "subject_token_type is neither jwt nor id_token",
                ));
            }
            None => {
                return Err(ExchangeError::MalformedBody(
                    "subject_token_type is missing",
                ));
            }
        }
        if self.parameter("actor_token")?.is_some() {
            return Err(ExchangeError::MalformedBody(
                "actor tokens are not supported",
            ));
        }
        if !matches!(
            self.parameter("requested_token_type")?,
            None | Some(ACCESS_TOKEN_TYPE)
        ) {
            return Err(ExchangeError::MalformedBody(
                "only an access_token can be requested",
            ));
        }
        // The token is only valid for Tailscale's API; a caller that names another target must
        // learn that.
        let target = (self.0.iter()).find(|(name, _)| name == "resource" || name == "audience");
        if let Some((_, target)) = target {
            return Err(ExchangeError::UnsupportedTarget(excerpt(target)));
        }
        let split_words = |text: Option<&str>| -> Vec<String> {
            text.unwrap_or_default()
                .split(' ')
                .filter(|word| !word.is_empty())
                .map(str::to_owned)
                .collect()
        };
        let scopes = split_words(self.parameter("scope")?);
        if scopes.is_empty() {
            return Err(ExchangeError::MissingScopes);
        }
        Ok(ParsedRequest {
            token: token.to_owned(),
            scopes,
            tags: split_words(self.parameter("tags")?),
        })
    }

    fn parameter(&self, name: &str) -> Result<Option<&str>, ExchangeError> {
        let mut values = self.0.iter().filter(|(key, _)| key == name);
        match (values.next(), values.next()) {
            (value, None) => Ok(value.map(|(_, value)| value.as_str())),
            _ => Err(ExchangeError::MalformedBody("a parameter occurs twice")),
        }
    }
}

async fn respond(
    state: &SharedState,
    dialect: Dialect,
    request: &ParsedRequest,
    peer: Option<String>,
) -> Response {
    let scopes = excerpt(&request.scopes.join(" "));
    let token = match ParsedToken::read(&request.token) {
        Ok(token) => token,
        Err(error) => {
            let error = ExchangeError::from(error);
            state.meter.exchange_refused("", error.code());
            audit!(
                Decision::Refused,
                "exchange",
                reason = error.code(),
                scopes = scopes,
                peer = peer
            );
            return refusal_response(dialect, error);
        }
    };
    let requested = policy::RequestedAccess {
        scopes: &request.scopes,
        tags: &request.tags,
    };
    let claim = |name| excerpt(token.claims.text(name).unwrap_or_default());
    let (issuer, subject, jti) = (claim("iss"), claim("sub"), claim("jti"));
    let kid = token.kid().map(excerpt);
    let outcome = state
        .exchange(&token, requested, Timestamp::now(), Instant::now())
        .await;
    match outcome {
        Ok(granted) => {
            state.meter.exchanged(&granted.grant.policy);
            audit!(
                Decision::Allowed,
                "exchange",
                issuer = issuer,
                subject = subject,
                policy = granted.grant.policy,
                scopes = scopes,
                tags = granted.grant.tags.join(" "),
                kid = kid,
                jti = jti,
                peer = peer
            );
            success_response(dialect, &granted)
        }
        Err(RefusedExchange {
            error,
            policy,
            verified,
        }) => {
            let policy_name = policy.as_deref().unwrap_or_default();
            state.meter.exchange_refused(policy_name, error.code());
            // Before the signature is verified, issuer and subject are mere claims.
            audit!(
                Decision::Refused,
                "exchange",
                reason = error.code(),
                cause = crate::telemetry::error_chain(&error),
                issuer = issuer,
                subject = subject,
                verified = verified,
                policy = policy,
                scopes = scopes,
                tags = excerpt(&request.tags.join(" ")),
                kid = kid,
                jti = jti,
                peer = peer
            );
            refusal_response(dialect, error)
        }
    }
}

#[derive(Serialize)]
struct SuccessBody<'a> {
    access_token: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    issued_token_type: Option<&'static str>,
    token_type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_in: Option<u64>,
    scope: String,
}

fn success_response(dialect: Dialect, granted: &Granted) -> Response {
    let token = granted.token.token.reveal();
    let mut response = match dialect {
        // The bare token without a newline: scripts use the whole body.
        Dialect::Plain => (
            [(header::CONTENT_TYPE, "text/plain; charset=utf-8")],
            token.to_owned(),
        )
            .into_response(),
        Dialect::Bearer | Dialect::TokenExchange => Json(SuccessBody {
            access_token: token,
            issued_token_type: (dialect == Dialect::TokenExchange).then_some(ACCESS_TOKEN_TYPE),
            token_type: "Bearer",
            expires_in: granted.token.expires_in.map(|left| left.as_secs()),
            scope: granted.grant.scopes.join(" "),
        })
        .into_response(),
    };
    no_store(response.headers_mut());
    response
}

fn refusal_response(dialect: Dialect, error: ExchangeError) -> Response {
    match dialect {
        Dialect::Bearer => return error.into_bearer_error().into_response(),
        Dialect::TokenExchange => return error.into_token_exchange_error().into_response(),
        Dialect::Plain => {}
    }
    let (status, text) = error.plain_answer();
    if status.is_server_error() {
        tracing::error!(target: "sts", code = error.code(), error = crate::telemetry::error_chain(&error), "exchange failed");
    }
    let mut response = plain_response(status, text);
    let headers = response.headers_mut();
    if status == StatusCode::UNAUTHORIZED {
        let challenge = match error {
            ExchangeError::MissingAuthorization | ExchangeError::MalformedAuthorization => "Bearer",
            _ => "Bearer error=\"invalid_token\"",
        };
        headers.insert(
            header::WWW_AUTHENTICATE,
            HeaderValue::from_static(challenge),
        );
    }
    if let Some(wait) = error.retry_after() {
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)));
    }
    response
}

fn plain_response(status: StatusCode, text: &str) -> Response {
    let mut response = (status, format!("{text}\n")).into_response();
    let headers = response.headers_mut();
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    no_store(headers);
    response
}

fn no_store(headers: &mut HeaderMap) {
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
}

/// Whether `Accept` names JSON, with at least the weight of text.
fn wants_json(headers: &HeaderMap) -> bool {
    let (mut json, mut text) = (0.0, 0.0);
    for line in headers.get_all(header::ACCEPT) {
        for range in line.to_str().unwrap_or_default().split(',') {
            let mut parts = range.split(';').map(str::trim);
            let content_type = parts.next().unwrap_or_default().to_ascii_lowercase();
            let weight = parts
                .find_map(|part| part.strip_prefix("q=")?.parse::<f32>().ok())
                .unwrap_or(1.0);
            match content_type.as_str() {
                "application/json" => json = weight,
                "text/plain" => text = weight,
                _ => {}
            }
        }
    }
    json > 0.0 && json >= text
}

/// The peer's address, for the audit line.
fn peer_address(extensions: &Extensions) -> Option<String> {
    let tailnet = || Some(extensions.get::<Arc<Connection>>()?.peer().addr);
    let host = || Some(extensions.get::<Remote>()?.0);
    Some(tailnet().or_else(host)?.to_string())
}
