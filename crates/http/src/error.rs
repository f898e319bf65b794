//! The only place where an error becomes a status. The [`Kind`] of an error decides the HTTP status
//! and the gRPC status; the answer is JSON or a gRPC status, and carries a stable code.
//!
//! ```json
//! {"error": "unknown_peer", "error_description": "…", "request_id": "…"}
//! ```
//!
//! The fields `error` and `error_description` follow RFC 6749. `request_id` is the id that the log
//! and audit lines of this request carry. gRPC answers have the same three values as `tb-error`,
//! `grpc-message` and `x-request-id`. The cause of an error goes to the log only, never to the
//! caller.

use std::{sync::Arc, time::Duration};

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;

use super::json::Json;

/// What went wrong, and on which side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A service that we depend on failed or refused us.
    BadGateway,
    /// The request is malformed or contradicts itself.
    BadRequest,
    /// The route requires a bearer token, and the request's token is invalid.
    BearerInvalid,
    /// The route requires a bearer token, and the request has none.
    BearerMissing,
    /// Another change came in between; the same request may succeed if it is repeated.
    Conflict,
    /// A bug, or a fault of the machine that we run on.
    Internal,
    /// A service that we depend on took too long.
    GatewayTimeout,
    /// The caller is known, and may not do this.
    Forbidden,
    /// The route exists, but not for this method.
    MethodNotAllowed {
        allow: &'static str,
    },
    /// The request is meant for another server.
    Misdirected,
    NotFound,
    /// The request is valid but not possible in the current state; repeating it does not help.
    Precondition,
    /// The request took too long to arrive or to be handled.
    Timeout,
    TooLarge,
    /// The caller makes more requests than it may.
    TooManyRequests {
        retry_after: Duration,
    },
    /// The caller cannot be identified.
    Unauthorized,
    /// A temporary fault on our side.
    Unavailable {
        retry_after: Duration,
    },
    /// There is no such method.
    Unimplemented,
    /// The body's content type is not accepted here.
    UnsupportedMediaType,
}

impl Kind {
    /// True for faults of ours or of a service behind us. They are logged as errors, since no
    /// caller can fix them.
    pub(super) fn is_ours(self) -> bool {
        matches!(
            self,
            Self::BadGateway | Self::GatewayTimeout | Self::Internal | Self::Unavailable { .. }
        )
    }

    fn status(self) -> StatusCode {
        match self {
            Self::BadGateway => StatusCode::BAD_GATEWAY,
            Self::BadRequest => StatusCode::BAD_REQUEST,
            Self::BearerInvalid | Self::BearerMissing => StatusCode::UNAUTHORIZED,
            Self::Conflict => StatusCode::CONFLICT,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Self::GatewayTimeout => StatusCode::GATEWAY_TIMEOUT,
            Self::Forbidden => StatusCode::FORBIDDEN,
            Self::MethodNotAllowed { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Self::Misdirected => StatusCode::MISDIRECTED_REQUEST,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::Precondition => StatusCode::PRECONDITION_FAILED,
            Self::Timeout => StatusCode::REQUEST_TIMEOUT,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::TooManyRequests { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::Unavailable { .. } => StatusCode::SERVICE_UNAVAILABLE,
            Self::Unimplemented => StatusCode::NOT_IMPLEMENTED,
            Self::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
        }
    }

    fn grpc(self) -> tonic::Code {
        match self {
            // A service behind us failed; the caller can only try again.
            Self::BadGateway | Self::Unavailable { .. } => tonic::Code::Unavailable,
            Self::BadRequest | Self::UnsupportedMediaType => tonic::Code::InvalidArgument,
            Self::BearerInvalid | Self::BearerMissing | Self::Unauthorized => {
                tonic::Code::Unauthenticated
            }
            Self::Conflict => tonic::Code::Aborted,
            Self::Internal => tonic::Code::Internal,
            Self::Forbidden => tonic::Code::PermissionDenied,
            Self::MethodNotAllowed { .. } | Self::Unimplemented => tonic::Code::Unimplemented,
            Self::NotFound => tonic::Code::NotFound,
            Self::Misdirected | Self::Precondition => tonic::Code::FailedPrecondition,
            Self::GatewayTimeout | Self::Timeout => tonic::Code::DeadlineExceeded,
            Self::TooLarge | Self::TooManyRequests { .. } => tonic::Code::ResourceExhausted,
        }
    }
}

/// An error as the caller will see it.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{code}: {message}")]
pub struct Error {
    pub kind: Kind,
    /// A stable code, for programs.
    pub code: &'static str,
    /// For people: what is wrong and what to do. No paths, no inner errors.
    pub message: String,
    #[source]
    pub cause: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    pub fn new(kind: Kind, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            kind,
            code,
            message: message.into(),
            cause: None,
        }
    }

    pub fn because(mut self, cause: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.cause = Some(Arc::new(cause));
        self
    }

    pub fn not_found() -> Self {
        Self::new(Kind::NotFound, "not_found", "no such path here")
    }

    pub fn method_not_allowed(allow: &'static str) -> Self {
        Self::new(
            Kind::MethodNotAllowed { allow },
            "method_not_allowed",
            format!("use {allow}"),
        )
    }

    /// The status for a gRPC client, with the stable code. The request's id is added where it is
    /// known.
    pub fn grpc(&self) -> tonic::Status {
        let mut metadata = tonic::metadata::MetadataMap::new();
        metadata.insert(
            "tb-error",
            tonic::metadata::MetadataValue::from_static(self.code),
        );
        tonic::Status::with_metadata(self.kind.grpc(), &self.message, metadata)
    }

    /// The HTTP answer, with the id under which the log knows the request.
    pub fn answer(&self, request_id: &str) -> Response {
        let body = Body {
            error: self.code,
            error_description: &self.message,
            request_id,
        };
        let mut response = (self.kind.status(), Json(body)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        match self.kind {
            Kind::MethodNotAllowed { allow } => {
                headers.insert(header::ALLOW, HeaderValue::from_static(allow));
            }
            Kind::TooManyRequests { retry_after } | Kind::Unavailable { retry_after } => {
                headers.insert(
                    header::RETRY_AFTER,
                    HeaderValue::from(retry_after.as_secs().max(1)),
                );
            }
            // RFC 6750, section 3.1: a challenge to a request without credentials carries no error.
            Kind::BearerMissing => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            Kind::BearerInvalid => {
                headers.insert(
                    header::WWW_AUTHENTICATE,
                    HeaderValue::from_static("Bearer error=\"invalid_token\""),
                );
            }
            // RFC 9110 requires a challenge with every 401. No header can satisfy ours: identity
            // comes from the connection.
            Kind::Unauthorized => {
                headers.insert(
                    header::WWW_AUTHENTICATE,
                    HeaderValue::from_static("Tailnet"),
                );
            }
            _ => {}
        }
        response
    }
}

#[derive(Serialize)]
struct Body<'a> {
    error: &'a str,
    error_description: &'a str,
    request_id: &'a str,
}

/// Stores the error in the response's extensions. [`super::layers`] writes the answer, since the
/// request's id is known only there.
impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let mut response = self.kind.status().into_response();
        response.extensions_mut().insert(self);
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_names_the_allowed_method_and_never_the_cause() {
        let error =
            Error::method_not_allowed("POST").because(std::io::Error::other("/secret/path"));
        let response = error.answer("r-1");
        assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(response.headers()[header::ALLOW], "POST");
        let body = futures_util::FutureExt::now_or_never(http_body_util::BodyExt::collect(
            response.into_body(),
        ));
        let text = String::from_utf8(body.unwrap().unwrap().to_bytes().to_vec()).unwrap();
        assert_eq!(
            text,
            r#"{"error":"method_not_allowed","error_description":"use POST","request_id":"r-1"}"#
        );
    }

    #[test]
    fn server_errors_have_retry_after() {
        let kind = Kind::Unavailable {
            retry_after: Duration::from_millis(200),
        };
        assert_eq!(
            Error::new(kind, "x", "y").answer("r").headers()[header::RETRY_AFTER],
            "1"
        );
    }

    #[test]
    fn too_many_requests_have_retry_after() {
        let kind = Kind::TooManyRequests {
            retry_after: Duration::from_secs(3),
        };
        let answer = Error::new(kind, "x", "y").answer("r");
        assert_eq!(answer.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(answer.headers()[header::RETRY_AFTER], "3");
    }
}
