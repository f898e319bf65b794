//! The exchange's routes: three dialects of the request, one decision.
//!
//! The plain dialect equals TailSTS's byte for byte, including the order of checks: errors in the
//! header come before errors in the body, and those before errors in the token.

use std::{sync::Arc, time::Instant};

use ::http::{Extensions, HeaderMap, HeaderValue, Method, StatusCode, header, request::Parts};
use axum::{
    Json, Router,
    body::Body,
    extract::{Request, State},
    response::{IntoResponse, Response},
    routing::{any, get},
};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Map, Value};
use url::form_urlencoded;

use super::{Error, Granted, Refused, State as Exchange, policy, verify::Token};
use crate::{audit, http::tls::Remote, identity::Connection, telemetry::audit::Decision};

const GRANT: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
const ACCESS_TOKEN: &str = "urn:ietf:params:oauth:token-type:access_token";
const ID_TOKEN: &str = "urn:ietf:params:oauth:token-type:id_token";
const JWT: &str = "urn:ietf:params:oauth:token-type:jwt";

pub fn router(state: Arc<Exchange>) -> Router {
    // Any path, as in TailSTS. Not the router's fallback: `http::layers` sets that.
    Router::new()
        .route("/", any(exchange))
        .route("/{*path}", any(exchange))
        .route("/_healthz", get(health).fallback(exchange))
        .with_state(state)
}

async fn health(State(state): State<Arc<Exchange>>) -> Response {
    // Does not name the issuers: the listener may be on the internet.
    let body = serde_json::json!({"ok": true, "ready": state.readiness().ready});
    ([(header::CACHE_CONTROL, "no-store")], Json(body)).into_response()
}

async fn exchange(State(state): State<Arc<Exchange>>, request: Request) -> Response {
    if request.method() != Method::POST {
        let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed");
        let headers = response.headers_mut();
        headers.insert(header::ALLOW, HeaderValue::from_static("POST"));
        return response;
    }
    let (parts, body) = request.into_parts();
    let (dialect, asked) = read(&parts, body).await;
    let peer = peer(&parts.extensions);
    let asked = match asked {
        Ok(asked) => asked,
        Err(error) => {
            state.meter.exchange_refused("", error.code());
            audit!(
                Decision::Refused,
                "exchange",
                reason = error.code(),
                peer = peer
            );
            return refusal(dialect, error);
        }
    };
    answer(&state, dialect, &asked, peer).await
}

/// The dialect of a request, which its answer uses too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dialect {
    /// A bearer token, with an answer in OAuth's format.
    Bearer,
    /// RFC 8693.
    Exchange,
    /// TailSTS.
    Plain,
}

#[derive(Debug)]
struct Asked {
    token: String,
    scopes: Vec<String>,
    tags: Vec<String>,
}

async fn read(parts: &Parts, body: Body) -> (Dialect, Result<Asked, Error>) {
    let dialect = if wants_json(&parts.headers) {
        Dialect::Bearer
    } else {
        Dialect::Plain
    };
    // curl declares every body as a form, so only the grant type inside shows whether it is RFC
    // 8693.
    if is_form(&parts.headers) {
        return match whole(body).await {
            Err(error) => (dialect, Err(error)),
            Ok(body) => match form(&body) {
                Some(form) => (Dialect::Exchange, form),
                None => {
                    let asked = bearer(&parts.headers, dialect);
                    (dialect, asked.and_then(|token| json(token, &body)))
                }
            },
        };
    }
    let token = match bearer(&parts.headers, dialect) {
        Ok(token) => token,
        Err(error) => return (dialect, Err(error)),
    };
    (
        dialect,
        whole(body).await.and_then(|body| json(token, &body)),
    )
}

fn bearer(headers: &HeaderMap, dialect: Dialect) -> Result<String, Error> {
    let value = headers.get(header::AUTHORIZATION).ok_or(Error::NoHeader)?;
    if value.is_empty() {
        return Err(Error::NoHeader);
    }
    let value = value.to_str().map_err(|_| Error::OddHeader)?;
    let (scheme, token) = value.split_once(' ').ok_or(Error::OddHeader)?;
    let fits = match dialect {
        Dialect::Plain => scheme == "Bearer",
        Dialect::Bearer | Dialect::Exchange => scheme.eq_ignore_ascii_case("Bearer"),
    };
    if !fits {
        return Err(Error::OddHeader);
    }
    Ok(token.to_owned())
}

async fn whole(body: Body) -> Result<Vec<u8>, Error> {
    // `http::layers` limits its size.
    match axum::body::to_bytes(body, usize::MAX).await {
        Ok(body) => Ok(body.into()),
        Err(error) if is_too_large(&error) => Err(Error::TooLarge),
        Err(_) => Err(Error::OddBody("it broke off")),
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
fn json(token: String, body: &[u8]) -> Result<Asked, Error> {
    let first = serde_json::Deserializer::from_slice(body)
        .into_iter::<Value>()
        .next();
    let object = match first {
        Some(Ok(Value::Object(object))) => object,
        Some(Ok(Value::Null)) => Map::new(),
        _ => return Err(Error::OddBody("it is not a JSON object")),
    };
    let scopes = texts(&object, "scopes").ok_or(Error::OddBody("scopes is not a list of texts"))?;
    let tags = texts(&object, "tags").ok_or(Error::OddBody("tags is not a list of texts"))?;
    if scopes.is_empty() {
        return Err(Error::NoScopes);
    }
    Ok(Asked {
        token,
        scopes,
        tags,
    })
}

/// Empty if absent or null.
fn texts(object: &Map<String, Value>, name: &str) -> Option<Vec<String>> {
    let any_case = || {
        let mut members = object.iter();
        members.find_map(|(known, value)| known.eq_ignore_ascii_case(name).then_some(value))
    };
    match object.get(name).or_else(any_case) {
        None | Some(Value::Null) => Some(Vec::new()),
        Some(Value::Array(list)) => list
            .iter()
            .map(|text| text.as_str().map(str::to_owned))
            .collect(),
        Some(_) => None,
    }
}

/// `None` if the body is not a form with an OAuth grant.
fn form(body: &[u8]) -> Option<Result<Asked, Error>> {
    // A parameter without a value counts as absent (RFC 6749, section 3.1).
    let pairs: Vec<(String, String)> = form_urlencoded::parse(body)
        .into_owned()
        .filter(|(_, value)| !value.is_empty())
        .collect();
    pairs
        .iter()
        .any(|(name, _)| name == "grant_type")
        .then(|| Form(pairs).asked())
}

struct Form(Vec<(String, String)>);

impl Form {
    fn asked(&self) -> Result<Asked, Error> {
        if self.one("grant_type")? != Some(GRANT) {
            return Err(Error::OddBody("grant_type is not token-exchange"));
        }
        let token = self
            .one("subject_token")?
            .ok_or(Error::OddBody("subject_token is missing"))?;
        match self.one("subject_token_type")? {
            Some(JWT | ID_TOKEN) => {}
            Some(_) => {
                return Err(Error::OddBody(
                    "subject_token_type is neither jwt nor id_token",
                ));
            }
            None => return Err(Error::OddBody("subject_token_type is missing")),
        }
        if self.one("actor_token")?.is_some() {
            return Err(Error::OddBody("nobody can act for another here"));
        }
        if !matches!(self.one("requested_token_type")?, None | Some(ACCESS_TOKEN)) {
            return Err(Error::OddBody("only an access_token can be requested"));
        }
        // The token is only valid for Tailscale's API; a caller that names another target must
        // learn that.
        let target = (self.0.iter()).find(|(name, _)| name == "resource" || name == "audience");
        if let Some((_, target)) = target {
            return Err(Error::OtherTarget(super::shown(target)));
        }
        let words = |text: Option<&str>| -> Vec<String> {
            text.unwrap_or_default()
                .split(' ')
                .filter(|word| !word.is_empty())
                .map(str::to_owned)
                .collect()
        };
        let scopes = words(self.one("scope")?);
        if scopes.is_empty() {
            return Err(Error::NoScopes);
        }
        Ok(Asked {
            token: token.to_owned(),
            scopes,
            tags: words(self.one("tags")?),
        })
    }

    fn one(&self, name: &str) -> Result<Option<&str>, Error> {
        let mut values = self.0.iter().filter(|(known, _)| known == name);
        match (values.next(), values.next()) {
            (value, None) => Ok(value.map(|(_, value)| value.as_str())),
            _ => Err(Error::OddBody("a parameter stands twice")),
        }
    }
}

async fn answer(
    state: &Exchange,
    dialect: Dialect,
    asked: &Asked,
    peer: Option<String>,
) -> Response {
    let scopes = super::shown(&asked.scopes.join(" "));
    let token = match Token::read(&asked.token) {
        Ok(token) => token,
        Err(error) => {
            let error = Error::from(error);
            state.meter.exchange_refused("", error.code());
            audit!(
                Decision::Refused,
                "exchange",
                reason = error.code(),
                scopes = scopes,
                peer = peer
            );
            return refusal(dialect, error);
        }
    };
    let request = policy::Request {
        scopes: &asked.scopes,
        tags: &asked.tags,
    };
    let claim = |name| super::shown(token.claims.text(name).unwrap_or_default());
    let (issuer, subject, jti) = (claim("iss"), claim("sub"), claim("jti"));
    let kid = token.kid().map(super::shown);
    let outcome = state
        .exchange(&token, request, Timestamp::now(), Instant::now())
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
            success(dialect, &granted)
        }
        Err(Refused {
            error,
            policy,
            verified,
        }) => {
            let concerned = policy.as_deref().unwrap_or_default();
            state.meter.exchange_refused(concerned, error.code());
            // Before the signature is verified, issuer and subject are mere claims.
            audit!(
                Decision::Refused,
                "exchange",
                reason = error.code(),
                cause = crate::telemetry::chain(&error),
                issuer = issuer,
                subject = subject,
                verified = verified,
                policy = policy,
                scopes = scopes,
                tags = super::shown(&asked.tags.join(" ")),
                kid = kid,
                jti = jti,
                peer = peer
            );
            refusal(dialect, error)
        }
    }
}

#[derive(Serialize)]
struct Success<'a> {
    access_token: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    issued_token_type: Option<&'static str>,
    token_type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_in: Option<u64>,
    scope: String,
}

fn success(dialect: Dialect, granted: &Granted) -> Response {
    let token = granted.token.token.reveal();
    let mut response = match dialect {
        // The bare token without a newline: scripts use the whole body.
        Dialect::Plain => (
            [(header::CONTENT_TYPE, "text/plain; charset=utf-8")],
            token.to_owned(),
        )
            .into_response(),
        Dialect::Bearer | Dialect::Exchange => Json(Success {
            access_token: token,
            issued_token_type: (dialect == Dialect::Exchange).then_some(ACCESS_TOKEN),
            token_type: "Bearer",
            expires_in: granted.token.expires_in.map(|left| left.as_secs()),
            scope: granted.grant.scopes.join(" "),
        })
        .into_response(),
    };
    no_store(response.headers_mut());
    response
}

fn refusal(dialect: Dialect, error: Error) -> Response {
    match dialect {
        Dialect::Bearer => return error.bearer().into_response(),
        Dialect::Exchange => return error.exchange().into_response(),
        Dialect::Plain => {}
    }
    let (status, text) = error.plain();
    if status.is_server_error() {
        tracing::error!(target: "sts", code = error.code(), error = crate::telemetry::chain(&error), "exchange failed");
    }
    let mut response = plain(status, text);
    let headers = response.headers_mut();
    if status == StatusCode::UNAUTHORIZED {
        let challenge = match error {
            Error::NoHeader | Error::OddHeader => "Bearer",
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

fn plain(status: StatusCode, text: &str) -> Response {
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

fn is_form(headers: &HeaderMap) -> bool {
    let kind = headers
        .get(header::CONTENT_TYPE)
        .and_then(|kind| kind.to_str().ok());
    kind.and_then(|kind| kind.split(';').next())
        .is_some_and(|kind| {
            kind.trim()
                .eq_ignore_ascii_case("application/x-www-form-urlencoded")
        })
}

/// Whether `Accept` names JSON, with at least the weight of text.
fn wants_json(headers: &HeaderMap) -> bool {
    let (mut json, mut text) = (0.0, 0.0);
    for line in headers.get_all(header::ACCEPT) {
        for range in line.to_str().unwrap_or_default().split(',') {
            let mut parts = range.split(';').map(str::trim);
            let kind = parts.next().unwrap_or_default().to_ascii_lowercase();
            let weight = parts
                .find_map(|part| part.strip_prefix("q=")?.parse::<f32>().ok())
                .unwrap_or(1.0);
            match kind.as_str() {
                "application/json" => json = weight,
                "text/plain" => text = weight,
                _ => {}
            }
        }
    }
    json > 0.0 && json >= text
}

/// The peer's address, for the audit line.
fn peer(extensions: &Extensions) -> Option<String> {
    let tailnet = || Some(extensions.get::<Arc<Connection>>()?.peer().addr);
    let host = || Some(extensions.get::<Remote>()?.0);
    Some(tailnet().or_else(host)?.to_string())
}
