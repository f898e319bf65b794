//! Tokens by the standards: client credentials (RFC 6749, section 4.4) where the connection is the
//! credential, and token exchange (RFC 8693) where a token of this issuer is swapped for one of
//! another audience. `resource` is that of RFC 8707.
//!
//! Invariants
//! - A subject token adds no right: it must have been given to the very node that calls, and the
//!   new token is decided upon as any other.
//! - A parameter that occurs twice is refused (RFC 6749, section 3.2).

use std::{collections::BTreeMap, time::Duration};

use ::http::{HeaderMap, HeaderValue, StatusCode, header, request::Parts};
use axum::{
    body::{Body, to_bytes},
    response::Response,
};
use jiff::Timestamp;
use serde::Serialize;
use url::form_urlencoded;

use super::{
    routes::{NoCaller, Workload, json_answer, visitor, with_retry_after},
    subject_token,
    tokens::{IssuedToken, NoToken},
};
use crate::{
    audit,
    http::{form::is_form, origin},
    identity::{MAX_AUDIENCE_BYTES, Visitor},
    telemetry::audit::Decision,
};

pub(super) const CLIENT_CREDENTIALS: &str = "client_credentials";
pub(super) const TOKEN_EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";

const ACCESS_TOKEN_TYPE: &str = "urn:ietf:params:oauth:token-type:access_token";
const ID_TOKEN_TYPE: &str = "urn:ietf:params:oauth:token-type:id_token";
const JWT_TYPE: &str = "urn:ietf:params:oauth:token-type:jwt";

/// The largest form. A subject token has a few kilobytes.
const MAX_FORM_BYTES: usize = 64 << 10;

pub(super) async fn token(workload: &Workload, request: &Parts, body: Body) -> Response {
    let form = if is_form(&request.headers) {
        read_form(body).await
    } else {
        Err(OAuthError::invalid_request(
            "the request is not a form (application/x-www-form-urlencoded)",
        ))
    };
    answer(workload, request, form).await
}

/// The parameters of a request. Those without a value count as absent.
#[derive(Debug)]
pub(super) struct Form(BTreeMap<String, String>);

impl Form {
    pub(super) fn has_grant_type(&self) -> bool {
        self.get("grant_type").is_some()
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }
}

pub(super) async fn read_form(body: Body) -> Result<Form, OAuthError> {
    let bytes = to_bytes(body, MAX_FORM_BYTES)
        .await
        .map_err(|_| OAuthError::invalid_request("the form is too large, or was cut off"))?;
    let mut form = BTreeMap::new();
    for (name, value) in form_urlencoded::parse(&bytes) {
        if value.is_empty() {
            continue;
        }
        if form.insert(name.into_owned(), value.into_owned()).is_some() {
            return Err(OAuthError::invalid_request("a parameter occurs twice"));
        }
    }
    Ok(Form(form))
}

pub(super) async fn answer(
    workload: &Workload,
    request: &Parts,
    form: Result<Form, OAuthError>,
) -> Response {
    match issue(workload, request, form).await {
        Ok(answer) => json_answer(StatusCode::OK, &answer),
        Err(error) => error.into_response(),
    }
}

/// RFC 6749, section 5.1, and RFC 8693, section 2.2.1.
#[derive(Debug, Serialize)]
struct TokenAnswer {
    access_token: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    issued_token_type: Option<&'static str>,
    token_type: &'static str,
    expires_in: u64,
    /// There are none; said where some were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    scope: Option<&'static str>,
}

async fn issue(
    workload: &Workload,
    request: &Parts,
    form: Result<Form, OAuthError>,
) -> Result<TokenAnswer, OAuthError> {
    let refused = |error: OAuthError| {
        workload.tokens.meter.token_refused("workload", error.error);
        audit!(
            Decision::Refused,
            "workload token",
            reason = error.error,
            detail = error.description
        );
        error
    };
    by_a_program(&request.headers).map_err(refused)?;
    let visitor = visitor(&request.extensions)
        .await
        .map_err(|error| refused(error.into()))?;
    let form = form.map_err(refused)?;
    let wanted = Wanted::of(&form).map_err(refused)?;
    let audience = audience(&form).map_err(refused)?;
    if let Wanted::Exchange { subject_token, .. } = wanted {
        check_subject_token(workload, subject_token, &visitor).map_err(refused)?;
    }
    let IssuedToken {
        token, lifetime, ..
    } = workload.tokens.token(&visitor, audience).await?;
    let (issued_token_type, token_type) = match wanted {
        Wanted::ClientCredentials => (None, "Bearer"),
        Wanted::Exchange {
            issued: ACCESS_TOKEN_TYPE,
            ..
        } => (Some(ACCESS_TOKEN_TYPE), "Bearer"),
        Wanted::Exchange { issued, .. } => (Some(issued), "N_A"),
    };
    Ok(TokenAnswer {
        access_token: token,
        issued_token_type,
        token_type,
        expires_in: lifetime.as_secs(),
        scope: form.get("scope").map(|_| ""),
    })
}

fn by_a_program(headers: &HeaderMap) -> Result<(), OAuthError> {
    if origin::by_browser(headers) {
        return Err(OAuthError {
            status: StatusCode::FORBIDDEN,
            ..OAuthError::invalid_request("this is for programs, and a browser sent it for a page")
        });
    }
    Ok(())
}

/// What a request asks for, by its grant type.
#[derive(Debug, Clone, Copy)]
enum Wanted<'a> {
    ClientCredentials,
    Exchange {
        subject_token: &'a str,
        /// The type of the new token.
        issued: &'static str,
    },
}

impl<'a> Wanted<'a> {
    fn of(form: &'a Form) -> Result<Self, OAuthError> {
        match form.get("grant_type") {
            None => Err(OAuthError::invalid_request("grant_type is missing")),
            Some(CLIENT_CREDENTIALS) => Ok(Self::ClientCredentials),
            Some(TOKEN_EXCHANGE) => Self::exchange(form),
            Some(_) => Err(OAuthError::new(
                "unsupported_grant_type",
                "grant_type is client_credentials or token exchange (RFC 8693)",
            )),
        }
    }

    fn exchange(form: &'a Form) -> Result<Self, OAuthError> {
        let missing = |words| OAuthError::invalid_request(words);
        let subject_token = form
            .get("subject_token")
            .ok_or_else(|| missing("subject_token is missing"))?;
        match form.get("subject_token_type") {
            Some(JWT_TYPE | ID_TOKEN_TYPE | ACCESS_TOKEN_TYPE) => {}
            None => return Err(missing("subject_token_type is missing")),
            Some(_) => return Err(missing("subject_token_type is not that of a JWT")),
        }
        if form.get("actor_token").is_some() || form.get("actor_token_type").is_some() {
            return Err(missing("there are no actors here: leave actor_token out"));
        }
        let issued = match form.get("requested_token_type") {
            None | Some(JWT_TYPE) => JWT_TYPE,
            Some(ACCESS_TOKEN_TYPE) => ACCESS_TOKEN_TYPE,
            Some(ID_TOKEN_TYPE) => ID_TOKEN_TYPE,
            Some(_) => return Err(missing("requested_token_type is not that of a JWT")),
        };
        Ok(Self::Exchange {
            subject_token,
            issued,
        })
    }
}

fn audience(form: &Form) -> Result<&str, OAuthError> {
    let audience = match (form.get("audience"), form.get("resource")) {
        (None, None) => {
            return Err(OAuthError::invalid_request(
                "audience or resource is missing",
            ));
        }
        (Some(one), Some(other)) if one != other => {
            return Err(OAuthError::new(
                "invalid_target",
                "audience and resource differ, and a token is for one of them",
            ));
        }
        (Some(one), _) | (None, Some(one)) => one,
    };
    if audience.len() > MAX_AUDIENCE_BYTES {
        return Err(OAuthError::new(
            "invalid_target",
            "the audience is longer than 512 bytes",
        ));
    }
    Ok(audience)
}

fn check_subject_token(
    workload: &Workload,
    token: &str,
    visitor: &Visitor,
) -> Result<(), OAuthError> {
    let Some(published) = workload.tokens.keys.document() else {
        return Err(OAuthError::unavailable(Duration::from_secs(10)));
    };
    let issuer = &workload.tokens.issuer;
    let node = subject_token::node(token, &published.document, issuer, Timestamp::now());
    if node.as_deref() == Some(visitor.node_id()) {
        return Ok(());
    }
    Err(OAuthError::invalid_request(
        "the subject token is not a valid token that this issuer gave to the calling node",
    ))
}

/// RFC 6749, section 5.2.
#[derive(Debug)]
pub(super) struct OAuthError {
    status: StatusCode,
    error: &'static str,
    /// Without quotes and backslashes, as the standard requires.
    description: &'static str,
    retry_after: Option<Duration>,
}

impl OAuthError {
    fn new(error: &'static str, description: &'static str) -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            error,
            description,
            retry_after: None,
        }
    }

    fn invalid_request(description: &'static str) -> Self {
        Self::new("invalid_request", description)
    }

    fn unavailable(wait: Duration) -> Self {
        Self {
            status: StatusCode::SERVICE_UNAVAILABLE,
            retry_after: Some(wait),
            ..Self::new(
                "temporarily_unavailable",
                "this server cannot make the token at the moment; its log says why",
            )
        }
    }

    fn into_response(self) -> Response {
        #[derive(Serialize)]
        struct Body {
            error: &'static str,
            error_description: &'static str,
        }
        let body = Body {
            error: self.error,
            error_description: self.description,
        };
        let mut response = json_answer(self.status, &body);
        // RFC 9110 requires a challenge with every 401.
        if self.status == StatusCode::UNAUTHORIZED {
            let challenge = HeaderValue::from_static("Tailnet");
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, challenge);
        }
        with_retry_after(response, self.retry_after)
    }
}

impl From<NoCaller> for OAuthError {
    fn from(refused: NoCaller) -> Self {
        match refused {
            NoCaller::Unknown(_) => Self {
                status: StatusCode::UNAUTHORIZED,
                ..Self::new(
                    "invalid_client",
                    "the tailnet does not vouch for this caller",
                )
            },
            NoCaller::Unavailable(wait) => Self::unavailable(wait),
            NoCaller::TooMany(wait) => Self {
                status: StatusCode::TOO_MANY_REQUESTS,
                retry_after: Some(wait),
                ..Self::invalid_request("the caller makes more requests than it may")
            },
        }
    }
}

impl From<NoToken> for OAuthError {
    fn from(refused: NoToken) -> Self {
        match &refused {
            NoToken::NotListed | NoToken::NotPermitted => Self::new(
                "invalid_target",
                "the caller may not have tokens for this audience",
            ),
            NoToken::NoSubject(_) => Self::new(
                "invalid_target",
                "the caller has no subject for tokens of this audience",
            ),
            NoToken::NoSigner(_) | NoToken::NoSigningService(_) | NoToken::Overloaded => {
                Self::unavailable(refused.retry_after().unwrap_or_default())
            }
            NoToken::Failed(_) => Self {
                status: StatusCode::INTERNAL_SERVER_ERROR,
                ..Self::new("server_error", "the token could not be signed")
            },
        }
    }
}
