//! What a request says, and who sends it, for every endpoint alike.

use ::http::{HeaderMap, HeaderValue, Method, StatusCode, header, request::Parts};
use axum::{
    body::{Body, to_bytes},
    response::Response,
};
use tailbone_oidc::{OidcError, Params, capability::Rules, provider::Caller};

use super::{
    callers::{KnownCaller, known_caller},
    forms::is_same_origin,
    routes::Oidc,
};
use crate::http::{form::is_form, layers::RequestId};

/// The browser's session. The name keeps it to this host and to TLS.
pub(super) const SESSION_COOKIE: &str = "__Host-oidc-session";

/// The largest form or registration.
const MAX_BODY: usize = 256 << 10;

pub(super) async fn identified(oidc: &Oidc, request: &Parts) -> Result<KnownCaller, OidcError> {
    let known = known_caller(&request.extensions, &oidc.capability, &oidc.groups).await;
    known.map_err(|_| {
        let words = "the caller makes more requests than it may";
        OidcError::new(StatusCode::TOO_MANY_REQUESTS, "invalid_request", words)
    })
}

/// The caller of an endpoint where clients show secrets: one that the network does not know may
/// call as well. For a page of another origin the network's word does not count, since the person
/// or machine at whose browser it is did not send the request.
pub(super) async fn caller_for_secrets(
    oidc: &Oidc,
    request: &Parts,
    internet: bool,
) -> Result<Caller, OidcError> {
    if internet || !is_same_origin(oidc, request) {
        return Ok(Caller::Unknown);
    }
    Ok(identified(oidc, request).await?.caller)
}

/// The caller of an endpoint that needs rights, and its rules; in tsidp's order and words.
pub(super) async fn privileged(
    oidc: &Oidc,
    request: &Parts,
    internet: bool,
) -> Result<(Caller, Rules), OidcError> {
    if internet {
        return Err(not_over_funnel());
    }
    let KnownCaller { caller, grants } = identified(oidc, request).await?;
    if caller == Caller::Unknown {
        return Err(OidcError::server_error("Error getting WhoIs"));
    }
    let rules = Rules::parse(&grants)
        .map_err(|_| OidcError::server_error("failed unmarshaling app cap rule"))?;
    Ok((caller, rules))
}

pub(super) fn not_granted() -> OidcError {
    let words = "application capability not granted";
    OidcError::new(StatusCode::FORBIDDEN, "access_denied", words)
}

pub(super) fn not_over_funnel() -> OidcError {
    let words = "not available over funnel";
    OidcError::new(StatusCode::UNAUTHORIZED, "access_denied", words)
}

/// The parameters of the query, and of the form of a `POST`.
pub(super) async fn params_of(request: &Parts, body: Body) -> Result<Params, OidcError> {
    match (&request.method, is_form(&request.headers)) {
        (&Method::GET | &Method::HEAD, _) | (&Method::POST, false) => Ok(query(request)),
        (&Method::POST, true) => form(body).await.map(|mut params| {
            params.add(request.uri.query().unwrap_or_default().as_bytes());
            params
        }),
        _ => Err(OidcError::method_not_allowed()),
    }
}

pub(super) fn query(request: &Parts) -> Params {
    Params::parse(request.uri.query().unwrap_or_default().as_bytes())
}

pub(super) async fn form(body: Body) -> Result<Params, OidcError> {
    Ok(Params::parse(&read(body).await?))
}

pub(super) async fn read(body: Body) -> Result<bytes::Bytes, OidcError> {
    to_bytes(body, MAX_BODY)
        .await
        .map_err(|_| OidcError::invalid_request("the body is too large, or was cut off"))
}

pub(super) fn authorization(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::AUTHORIZATION)?.to_str().ok()
}

/// The token of a request that bears one.
pub(super) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = authorization(headers)?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token)
}

/// The id that log and audit know the request by.
pub(super) fn request_id(request: &Parts) -> &str {
    let id = request.extensions.get::<RequestId>();
    id.map_or("", |RequestId(id)| id)
}

/// Whether a browser shows the answer as a page.
pub(super) fn is_navigation(request: &Parts) -> bool {
    let mode = request.headers.get("sec-fetch-mode");
    mode.is_some_and(|mode| mode == "navigate")
}

/// The value of a cookie.
pub(super) fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let lines = headers.get_all(header::COOKIE).iter();
    lines
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find(|(known, _)| *known == name)
        .map(|(_, value)| value)
}

pub(super) fn set_cookie(response: &mut Response, name: &str, value: &str, rest: &str) {
    let cookie = format!("{name}={value}; Path=/; Secure; HttpOnly; {rest}");
    if let Ok(cookie) = HeaderValue::try_from(cookie) {
        response.headers_mut().append(header::SET_COOKIE, cookie);
    }
}
