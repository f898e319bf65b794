//! The one error map: what went wrong ([`Kind`]) decides the status, of HTTP and of gRPC; the answer is JSON, or a gRPC status,
//! and names a stable code.
//!
//! ```json
//! {"error": "unknown_peer", "error_description": "…", "request_id": "…"}
//! ```
//!
//! The shape is RFC 6749's (`error`, `error_description`) with the request's id, which the log and audit lines of the same
//! request carry. gRPC has the same three as `tb-error`, `grpc-message` and `x-request-id`. The cause is for the log alone and never leaves the process.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;

/// Who is to blame, and for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A service that we depend on failed or refused us.
    BadGateway,
    /// The request makes no sense.
    BadRequest,
    /// The route takes a bearer token, and this one is worth nothing.
    BearerInvalid,
    /// The route takes a bearer token, and there is none.
    BearerMissing,
    /// Somebody else's change came in between: the same request may succeed next time.
    Conflict,
    /// A bug or a broken machine of ours.
    Internal,
    /// A service that we depend on took too long.
    GatewayTimeout,
    /// Known, and refused.
    Forbidden,
    /// The route exists for another method.
    MethodNotAllowed {
        allow: &'static str,
    },
    /// The request is for another server.
    Misdirected,
    NotFound,
    /// The request makes sense, but not as things stand; repeating it does not help.
    Precondition,
    /// The request took too long to arrive or to be answered.
    Timeout,
    TooLarge,
    /// This caller asks more often than it may.
    TooManyRequests {
        retry_after: Duration,
    },
    /// We cannot tell who calls.
    Unauthorized,
    /// Trouble of ours that may pass.
    Unavailable {
        retry_after: Duration,
    },
    /// There is no such method.
    Unimplemented,
    /// The body is not of a kind that is taken here.
    UnsupportedMediaType,
}

impl Kind {
    /// Trouble of ours or of what is behind us, which the log has to tell: no caller can help it.
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
            // What is behind us failed; the caller can do nothing but come again.
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

/// An error on its way to the caller.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{code}: {message}")]
pub struct Error {
    pub kind: Kind,
    /// Stable, for programs.
    pub code: &'static str,
    /// For people: what is wrong and what to do; no path, no inner error.
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

    /// The status for a gRPC client. It carries the stable code too; the id is added where it is known.
    pub fn grpc(&self) -> tonic::Status {
        let mut metadata = tonic::metadata::MetadataMap::new();
        metadata.insert(
            "tb-error",
            tonic::metadata::MetadataValue::from_static(self.code),
        );
        tonic::Status::with_metadata(self.kind.grpc(), &self.message, metadata)
    }

    /// The answer, with the id under which the log knows the request.
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
            // RFC 6750, 3.1: without credentials the challenge carries no error.
            Kind::BearerMissing => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            Kind::BearerInvalid => {
                headers.insert(
                    header::WWW_AUTHENTICATE,
                    HeaderValue::from_static("Bearer error=\"invalid_token\""),
                );
            }
            // RFC 9110 wants a challenge with each 401. Ours cannot be met by a header: identity is the connection.
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

/// Parks the error in the response; [`super::layers`] writes the answer, since only there the request's id is known.
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
    fn trouble_of_ours_says_when_to_come_back() {
        let kind = Kind::Unavailable {
            retry_after: Duration::from_millis(200),
        };
        assert_eq!(
            Error::new(kind, "x", "y").answer("r").headers()[header::RETRY_AFTER],
            "1"
        );
    }

    #[test]
    fn too_often_says_when_to_come_back_too() {
        let kind = Kind::TooManyRequests {
            retry_after: Duration::from_secs(3),
        };
        let answer = Error::new(kind, "x", "y").answer("r");
        assert_eq!(answer.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(answer.headers()[header::RETRY_AFTER], "3");
    }
}
