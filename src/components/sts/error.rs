//! Every way in which a request can fail, and its name on the wire.
//!
//! The statuses and texts of the plain dialect are TailSTS's and cannot change. The JSON dialects
//! use the error map of [`crate::http`]. Before a signature has been verified the JSON dialects
//! reveal nothing about policies and issuers; the log does.

use std::time::Duration;

use ::http::StatusCode;

use super::{exchange::ExchangeError, policy::Reason, verify::Unreadable};
use crate::http::{self, error::Kind};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no Authorization header")]
    NoHeader,
    #[error("the Authorization header holds no bearer token")]
    OddHeader,
    #[error("the body is not what it should be: {0}")]
    OddBody(&'static str),
    #[error("the body is too large")]
    TooLarge,
    #[error("no scopes are asked for")]
    NoScopes,
    #[error("the token cannot be for {0}")]
    OtherTarget(String),
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    #[error("{0}")]
    Refused(Reason),
    #[error("Tailscale gave no token")]
    Exchange(#[from] ExchangeError),
}

impl Error {
    /// A stable code for logs, audit lines and metrics.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NoHeader => "no_authorization",
            Self::OddHeader => "odd_authorization",
            Self::OddBody(_) => "odd_body",
            Self::TooLarge => "body_too_large",
            Self::NoScopes => "no_scope",
            Self::OtherTarget(_) => "other_target",
            Self::Unreadable(_) => "unreadable_token",
            Self::Refused(reason) => reason.code(),
            Self::Exchange(error) => match error {
                ExchangeError::GrantRefused(_) => "upstream_refused_grant",
                ExchangeError::ClientRefused(_) => "upstream_refused_client",
                ExchangeError::Throttled(_) => "upstream_throttled",
                ExchangeError::Busy => "busy",
                ExchangeError::TooSlow(_) => "upstream_too_slow",
                ExchangeError::Unreachable(_) => "upstream_unreachable",
                ExchangeError::Status(_) => "upstream_failed",
                ExchangeError::Nonsense(_) => "upstream_nonsense",
            },
        }
    }

    /// The answer in TailSTS's format.
    pub fn plain(&self) -> (StatusCode, &'static str) {
        const UNAUTHORIZED: StatusCode = StatusCode::UNAUTHORIZED;
        match self {
            Self::NoHeader => (UNAUTHORIZED, "missing Authorization header"),
            Self::OddHeader => (UNAUTHORIZED, "invalid Authorization header"),
            Self::OddBody(_) | Self::OtherTarget(_) => (StatusCode::BAD_REQUEST, "invalid request"),
            Self::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "request too large"),
            Self::NoScopes => (StatusCode::BAD_REQUEST, "missing scopes"),
            Self::Unreadable(_) => (UNAUTHORIZED, "invalid token"),
            Self::Refused(reason) => match reason {
                Reason::NoPolicy => (UNAUTHORIZED, "no matching policy"),
                Reason::Algorithm | Reason::Signature => (UNAUTHORIZED, "invalid signature"),
                Reason::Expired | Reason::NotYetValid | Reason::TooOld => {
                    (UNAUTHORIZED, "token expired or not yet valid")
                }
                Reason::NoKeys
                | Reason::UnknownKey
                | Reason::Malformed(_)
                | Reason::NoExpiry
                | Reason::NoIssueTime
                | Reason::Audience => (UNAUTHORIZED, "cannot handle this token"),
                Reason::Subject => (StatusCode::FORBIDDEN, "subject mismatch"),
                Reason::Claim(_)
                | Reason::NoScope
                | Reason::Scope(_)
                | Reason::Tag(_)
                | Reason::Untagged(_) => (StatusCode::FORBIDDEN, "request denied"),
            },
            Self::Exchange(_) => (
                StatusCode::INTERNAL_SERVER_ERROR,
                "failed to get tailscale token",
            ),
        }
    }

    /// The time after which another try makes sense, if known.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused(Reason::NoKeys) | Self::Exchange(ExchangeError::Busy) => {
                Some(Duration::from_secs(5))
            }
            Self::Exchange(ExchangeError::Throttled(wait)) => Some(*wait),
            _ => None,
        }
    }

    /// The answer to a bearer request for JSON, by RFC 6749 and RFC 6750.
    pub fn bearer(self) -> http::Error {
        let (kind, code) = match &self {
            Self::NoHeader | Self::OddHeader => (Kind::BearerMissing, "invalid_request"),
            Self::OddBody(_) => (Kind::BadRequest, "invalid_request"),
            Self::Unreadable(_) => (Kind::BearerInvalid, "invalid_token"),
            Self::Refused(reason) => match reason {
                Reason::Subject | Reason::Claim(_) => (Kind::Forbidden, "access_denied"),
                Reason::NoScope | Reason::Scope(_) => (Kind::Forbidden, "invalid_scope"),
                Reason::Tag(_) | Reason::Untagged(_) => (Kind::Forbidden, "invalid_target"),
                Reason::NoKeys => self.passing(),
                _ => (Kind::BearerInvalid, "invalid_token"),
            },
            _ => self.common(),
        };
        self.told(kind, code)
    }

    /// The answer by RFC 8693: a subject token that is invalid or unacceptable for any reason makes
    /// the request invalid.
    pub fn exchange(self) -> http::Error {
        let (kind, code) = match &self {
            Self::Refused(Reason::NoScope | Reason::Scope(_)) => {
                (Kind::BadRequest, "invalid_scope")
            }
            Self::Refused(Reason::Tag(_) | Reason::Untagged(_)) => {
                (Kind::BadRequest, "invalid_target")
            }
            Self::Refused(Reason::NoKeys) => self.passing(),
            Self::NoHeader
            | Self::OddHeader
            | Self::OddBody(_)
            | Self::Unreadable(_)
            | Self::Refused(_) => (Kind::BadRequest, "invalid_request"),
            _ => self.common(),
        };
        self.told(kind, code)
    }

    fn common(&self) -> (Kind, &'static str) {
        match self {
            Self::NoScopes | Self::Exchange(ExchangeError::GrantRefused(_)) => {
                (Kind::BadRequest, "invalid_scope")
            }
            Self::OtherTarget(_) => (Kind::BadRequest, "invalid_target"),
            Self::TooLarge => (Kind::TooLarge, "invalid_request"),
            Self::Exchange(ExchangeError::Busy | ExchangeError::Throttled(_)) => self.passing(),
            Self::Exchange(_) => (Kind::BadGateway, "server_error"),
            _ => (Kind::BadRequest, "invalid_request"),
        }
    }

    fn passing(&self) -> (Kind, &'static str) {
        let retry_after = self.retry_after().unwrap_or(Duration::from_secs(5));
        (Kind::Unavailable { retry_after }, "temporarily_unavailable")
    }

    fn told(self, kind: Kind, code: &'static str) -> http::Error {
        let message = match &self {
            Self::Refused(reason) if reason.is_before_trust() => {
                "the token is not accepted here; the log says why".to_owned()
            }
            Self::Exchange(ExchangeError::GrantRefused(_)) => {
                "the server's own client may not have these scopes or tags".to_owned()
            }
            Self::Exchange(ExchangeError::Throttled(wait)) => {
                format!("Tailscale asks to wait {} s", wait.as_secs().max(1))
            }
            other => other.to_string(),
        };
        let error = http::Error::new(kind, code, message);
        match self {
            Self::Exchange(cause) => error.because(cause),
            _ => error,
        }
    }
}
