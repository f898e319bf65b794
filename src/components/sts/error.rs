//! Every way in which a request can fail, and its name on the wire.
//!
//! The statuses and texts of the plain dialect are TailSTS's and cannot change. The JSON dialects
//! use the error map of [`crate::http`]. Before a signature has been verified the JSON dialects
//! reveal nothing about policies and issuers; the log does.

use std::time::Duration;

use ::http::StatusCode;

use super::policy::RefusalReason;
use crate::{
    http::{self, error::Kind},
    jwks::verify::MalformedToken,
    token_endpoint::TokenEndpointError,
};

#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    #[error("no Authorization header")]
    MissingAuthorization,
    #[error("the Authorization header contains no bearer token")]
    MalformedAuthorization,
    #[error("the request body is invalid: {0}")]
    MalformedBody(&'static str),
    #[error("the body is too large")]
    BodyTooLarge,
    #[error("no scopes are requested")]
    MissingScopes,
    #[error("tokens for {0} are not issued here")]
    UnsupportedTarget(String),
    #[error(transparent)]
    MalformedToken(#[from] MalformedToken),
    #[error("{0}")]
    Refused(RefusalReason),
    #[error("Tailscale issued no token")]
    TokenEndpoint(#[from] TokenEndpointError),
}

impl ExchangeError {
    /// A stable code for logs, audit lines and metrics.
    pub fn code(&self) -> &'static str {
        match self {
            Self::MissingAuthorization => "no_authorization",
            Self::MalformedAuthorization => "odd_authorization",
            Self::MalformedBody(_) => "odd_body",
            Self::BodyTooLarge => "body_too_large",
            Self::MissingScopes => "no_scope",
            Self::UnsupportedTarget(_) => "other_target",
            Self::MalformedToken(_) => "unreadable_token",
            Self::Refused(reason) => reason.code(),
            Self::TokenEndpoint(error) => match error {
                TokenEndpointError::GrantRefused(_) => "upstream_refused_grant",
                TokenEndpointError::ClientRefused(_) => "upstream_refused_client",
                TokenEndpointError::Throttled(_) => "upstream_throttled",
                TokenEndpointError::Busy => "busy",
                TokenEndpointError::TimedOut(_) => "upstream_too_slow",
                TokenEndpointError::Unreachable(_) => "upstream_unreachable",
                TokenEndpointError::Status(_) => "upstream_failed",
                TokenEndpointError::InvalidAnswer(_) => "upstream_nonsense",
            },
        }
    }

    /// The answer in TailSTS's format.
    pub fn plain_answer(&self) -> (StatusCode, &'static str) {
        const UNAUTHORIZED: StatusCode = StatusCode::UNAUTHORIZED;
        match self {
            Self::MissingAuthorization => (UNAUTHORIZED, "missing Authorization header"),
            Self::MalformedAuthorization => (UNAUTHORIZED, "invalid Authorization header"),
            Self::MalformedBody(_) | Self::UnsupportedTarget(_) => {
                (StatusCode::BAD_REQUEST, "invalid request")
            }
            Self::BodyTooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "request too large"),
            Self::MissingScopes => (StatusCode::BAD_REQUEST, "missing scopes"),
            Self::MalformedToken(_) => (UNAUTHORIZED, "invalid token"),
            Self::Refused(reason) => match reason {
                RefusalReason::NoPolicy => (UNAUTHORIZED, "no matching policy"),
                RefusalReason::Algorithm | RefusalReason::Signature => {
                    (UNAUTHORIZED, "invalid signature")
                }
                RefusalReason::Expired | RefusalReason::NotYetValid | RefusalReason::TooOld => {
                    (UNAUTHORIZED, "token expired or not yet valid")
                }
                RefusalReason::NoKeys
                | RefusalReason::UnknownKey
                | RefusalReason::Malformed(_)
                | RefusalReason::NoExpiry
                | RefusalReason::NoIssueTime
                | RefusalReason::Audience => (UNAUTHORIZED, "cannot handle this token"),
                RefusalReason::Subject => (StatusCode::FORBIDDEN, "subject mismatch"),
                RefusalReason::Claim(_)
                | RefusalReason::NoScope
                | RefusalReason::Scope(_)
                | RefusalReason::Tag(_)
                | RefusalReason::Untagged(_) => (StatusCode::FORBIDDEN, "request denied"),
            },
            Self::TokenEndpoint(_) => (
                StatusCode::INTERNAL_SERVER_ERROR,
                "failed to get tailscale token",
            ),
        }
    }

    /// The time after which another try makes sense, if known.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused(RefusalReason::NoKeys)
            | Self::TokenEndpoint(TokenEndpointError::Busy) => Some(Duration::from_secs(5)),
            Self::TokenEndpoint(TokenEndpointError::Throttled(wait)) => Some(*wait),
            _ => None,
        }
    }

    /// The answer to a bearer request for JSON, by RFC 6749 and RFC 6750.
    pub fn into_bearer_error(self) -> http::Error {
        let (kind, code) = match &self {
            Self::MissingAuthorization | Self::MalformedAuthorization => {
                (Kind::BearerMissing, "invalid_request")
            }
            Self::MalformedBody(_) => (Kind::BadRequest, "invalid_request"),
            Self::MalformedToken(_) => (Kind::BearerInvalid, "invalid_token"),
            Self::Refused(reason) => match reason {
                RefusalReason::Subject | RefusalReason::Claim(_) => {
                    (Kind::Forbidden, "access_denied")
                }
                RefusalReason::NoScope | RefusalReason::Scope(_) => {
                    (Kind::Forbidden, "invalid_scope")
                }
                RefusalReason::Tag(_) | RefusalReason::Untagged(_) => {
                    (Kind::Forbidden, "invalid_target")
                }
                RefusalReason::NoKeys => self.temporary_kind_and_code(),
                _ => (Kind::BearerInvalid, "invalid_token"),
            },
            _ => self.shared_kind_and_code(),
        };
        self.into_http_error(kind, code)
    }

    /// The answer by RFC 8693: a subject token that is invalid or unacceptable for any reason makes
    /// the request invalid.
    pub fn into_token_exchange_error(self) -> http::Error {
        let (kind, code) = match &self {
            Self::Refused(RefusalReason::NoScope | RefusalReason::Scope(_)) => {
                (Kind::BadRequest, "invalid_scope")
            }
            Self::Refused(RefusalReason::Tag(_) | RefusalReason::Untagged(_)) => {
                (Kind::BadRequest, "invalid_target")
            }
            Self::Refused(RefusalReason::NoKeys) => self.temporary_kind_and_code(),
            Self::MissingAuthorization
            | Self::MalformedAuthorization
            | Self::MalformedBody(_)
            | Self::MalformedToken(_)
            | Self::Refused(_) => (Kind::BadRequest, "invalid_request"),
            _ => self.shared_kind_and_code(),
        };
        self.into_http_error(kind, code)
    }

    fn shared_kind_and_code(&self) -> (Kind, &'static str) {
        match self {
            Self::MissingScopes | Self::TokenEndpoint(TokenEndpointError::GrantRefused(_)) => {
                (Kind::BadRequest, "invalid_scope")
            }
            Self::UnsupportedTarget(_) => (Kind::BadRequest, "invalid_target"),
            Self::BodyTooLarge => (Kind::TooLarge, "invalid_request"),
            Self::TokenEndpoint(TokenEndpointError::Busy | TokenEndpointError::Throttled(_)) => {
                self.temporary_kind_and_code()
            }
            Self::TokenEndpoint(_) => (Kind::BadGateway, "server_error"),
            _ => (Kind::BadRequest, "invalid_request"),
        }
    }

    fn temporary_kind_and_code(&self) -> (Kind, &'static str) {
        let retry_after = self.retry_after().unwrap_or(Duration::from_secs(5));
        (Kind::Unavailable { retry_after }, "temporarily_unavailable")
    }

    fn into_http_error(self, kind: Kind, code: &'static str) -> http::Error {
        let message = match &self {
            Self::Refused(reason) if reason.precedes_verification() => {
                "the token is not accepted here; the log says why".to_owned()
            }
            Self::TokenEndpoint(TokenEndpointError::GrantRefused(_)) => {
                "the server's own client may not request these scopes or tags".to_owned()
            }
            Self::TokenEndpoint(TokenEndpointError::Throttled(wait)) => {
                format!("Tailscale asks to wait {} s", wait.as_secs().max(1))
            }
            other => other.to_string(),
        };
        let error = http::Error::new(kind, code, message);
        match self {
            Self::TokenEndpoint(cause) => error.because(cause),
            _ => error,
        }
    }
}
