//! How the endpoints answer: errors as JSON, as tsidp's text or as a page, challenges, CORS.

use std::time::Duration;

use ::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header, request::Parts};
use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use serde::Serialize;
use tailbone_oidc::{OidcError, describable, provider::BearerError};

use super::{
    counts::{self, Outcome},
    pages::{self, Place},
    requests::request_id,
};
use crate::config::OidcErrorFormat as ErrorFormat;

pub(super) const JSON: HeaderValue = HeaderValue::from_static("application/json");
const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");

/// When to come back after a fault of ours.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// An error for a program.
pub(super) fn error(format: ErrorFormat, request: &HeaderMap, error: &OidcError) -> Response {
    log(error);
    let mut response = if format == ErrorFormat::Json || accepts(request, "application/json") {
        #[derive(Serialize)]
        struct Body<'a> {
            error: &'a str,
            error_description: &'a str,
        }
        json(
            error.status,
            &Body {
                error: error.code,
                error_description: &describable(&error.description),
            },
        )
    } else {
        let status = error.status.as_u16();
        let text = format!("Error {status}: {} - {}", error.code, error.description);
        (error.status, text).into_response()
    };
    add_headers(&mut response, error);
    response
}

/// The same for a person, where nothing may be sent to the client.
pub(super) fn error_page(
    format: ErrorFormat,
    request: &Parts,
    place: Place,
    error: &OidcError,
) -> Response {
    if !accepts(&request.headers, "text/html") {
        return self::error(format, &request.headers, error);
    }
    log(error);
    let mut response = pages::error(place, error, request_id(request));
    add_headers(&mut response, error);
    response
}

fn log(error: &OidcError) {
    let OidcError {
        status,
        code,
        description,
    } = error;
    let status = status.as_u16();
    match status {
        // What is in the way has told its own reason, once.
        503 => tracing::debug!(target: "oidc", status, code, %description, "a request failed"),
        500.. => {
            tracing::error!(target: "oidc", status, code, %description, "a request failed");
        }
        401 | 403 => {
            tracing::warn!(target: "oidc", status, code, %description, "a request was refused");
        }
        _ => tracing::debug!(target: "oidc", status, code, %description, "a request was refused"),
    }
}

fn add_headers(response: &mut Response, error: &OidcError) {
    counts::mark(response, Outcome::Refused(error.code));
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, NO_STORE);
    headers.insert(header::PRAGMA, HeaderValue::from_static("no-cache"));
    match error.status {
        // RFC 9110 requires a challenge with every 401.
        StatusCode::UNAUTHORIZED => {
            let challenge = if error.code == "invalid_client" {
                "Basic realm=\"oidc\""
            } else {
                "Tailnet"
            };
            let challenge = HeaderValue::from_static(challenge);
            headers.insert(header::WWW_AUTHENTICATE, challenge);
        }
        StatusCode::SERVICE_UNAVAILABLE => {
            let seconds = HeaderValue::from(RETRY_AFTER.as_secs());
            headers.insert(header::RETRY_AFTER, seconds);
        }
        _ => {}
    }
}

/// Whether `Accept` names this type. What is meant by `*/*` is the endpoint's own choice.
fn accepts(request: &HeaderMap, media_type: &str) -> bool {
    let mut values = request.get_all(header::ACCEPT).iter();
    values.any(|value| value.to_str().is_ok_and(|text| text.contains(media_type)))
}

/// The refusal of a bearer token: a challenge without a body.
pub(super) fn bearer_error(
    format: ErrorFormat,
    request: &HeaderMap,
    refused: &BearerError,
) -> Response {
    match refused {
        BearerError::Other(other) => error(format, request, other),
        BearerError::Challenge {
            status,
            code,
            description,
        } => {
            let challenge = format!("Bearer error=\"{code}\", error_description=\"{description}\"");
            let challenge = HeaderValue::try_from(challenge);
            let challenge = challenge.unwrap_or(HeaderValue::from_static("Bearer"));
            let headers = [
                (header::WWW_AUTHENTICATE, challenge),
                (header::CACHE_CONTROL, NO_STORE),
            ];
            let mut response = (*status, headers).into_response();
            counts::mark(&mut response, Outcome::Refused(code));
            response
        }
    }
}

/// JSON with a newline at the end, for nobody to keep.
pub(super) fn json(status: StatusCode, body: &impl Serialize) -> Response {
    let headers = [
        (header::CONTENT_TYPE, JSON),
        (header::CACHE_CONTROL, NO_STORE),
        (header::PRAGMA, HeaderValue::from_static("no-cache")),
    ];
    match serde_json::to_vec(body) {
        Ok(mut text) => {
            text.push(b'\n');
            (status, headers, Body::from(text)).into_response()
        }
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// A signed answer, for nobody to keep.
pub(super) fn jwt(token: String) -> Response {
    let headers = [
        (
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/jwt"),
        ),
        (header::CACHE_CONTROL, NO_STORE),
    ];
    (headers, Body::from(token)).into_response()
}

/// Pages of every origin may read the answer: it depends on no cookie.
pub(super) fn share(
    mut response: Response,
    methods: &'static str,
    headers: &'static str,
) -> Response {
    let all = response.headers_mut();
    for (name, value) in cors(methods, headers) {
        all.insert(name, HeaderValue::from_static(value));
    }
    response
}

/// The answer to a browser that asks whether a page may send a request.
pub(super) fn preflight(methods: &'static str, headers: &'static str) -> Response {
    share(StatusCode::NO_CONTENT.into_response(), methods, headers)
}

fn cors(methods: &'static str, headers: &'static str) -> [(HeaderName, &'static str); 3] {
    [
        (header::ACCESS_CONTROL_ALLOW_ORIGIN, "*"),
        (header::ACCESS_CONTROL_ALLOW_METHODS, methods),
        (header::ACCESS_CONTROL_ALLOW_HEADERS, headers),
    ]
}
