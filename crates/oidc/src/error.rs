//! An error as it goes to a client: a status, an OAuth code and a sentence.
//!
//! How it is written (JSON, text, a page, a redirect) is for the component to say. Invariants: the
//! sentence has no quote and no backslash outside of what RFC 6749, section 5.2, allows, and no
//! secret.

use std::borrow::Cow;

use http::StatusCode;

/// RFC 6749, section 5.2, and its relatives.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {description}")]
pub struct OidcError {
    pub status: StatusCode,
    pub code: &'static str,
    pub description: Cow<'static, str>,
}

impl OidcError {
    pub fn new(
        status: StatusCode,
        code: &'static str,
        description: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self {
            status,
            code,
            description: description.into(),
        }
    }

    /// 400 with this code.
    pub fn bad(code: &'static str, description: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, description)
    }

    pub fn invalid_request(description: impl Into<Cow<'static, str>>) -> Self {
        Self::bad("invalid_request", description)
    }

    pub fn invalid_grant(description: impl Into<Cow<'static, str>>) -> Self {
        Self::bad("invalid_grant", description)
    }

    /// tsidp's words for every failed authentication of a client.
    pub fn invalid_client(status: StatusCode) -> Self {
        Self::new(status, "invalid_client", "client authentication failed")
    }

    pub fn method_not_allowed() -> Self {
        let status = StatusCode::METHOD_NOT_ALLOWED;
        Self::new(status, "invalid_request", "method not allowed")
    }

    /// A fault of ours that may pass: the answer says when to come back.
    pub fn unavailable() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "temporarily_unavailable",
            "this server cannot answer at the moment; its log says why",
        )
    }

    pub fn server_error(description: impl Into<Cow<'static, str>>) -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "server_error",
            description,
        )
    }
}

/// The characters of a description (RFC 6749, section 5.2): a text from outside, without others.
pub fn describable(text: &str) -> String {
    let fits = |c: &char| matches!(c, ' '..='~') && !matches!(c, '"' | '\\');
    text.chars().filter(fits).take(100).collect()
}
