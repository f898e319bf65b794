//! What can be wrong with a gate's settings, and the reasons for which it refuses a request.

use std::time::Duration;

use crate::{
    http::{self, error::Kind, host::UnclearHost},
    identity::Refusal,
    policy::{self, TargetError},
    web::BadHost,
};

/// Why a gate cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    #[error("gate.auth.clientHeader: {0:?} is not a header name")]
    ClientHeader(String),
    #[error("gate.upstream: two upstreams for the same host and path ({0})")]
    DuplicateUpstream(String),
    #[error(
        "gate.tokenAudience is empty and the upstream {0} names no host, so callers could choose the audience of its tokens; set gate.tokenAudience, or name the host in gate.upstream"
    )]
    NoAudience(String),
    #[error("gate.token is on, but there is no key to sign with")]
    NoSigner,
    #[error("the gate has nothing to do: set gate.upstream, gate.auth.proxies or gate.auth.socket")]
    NothingToDo,
    #[error("gate.policy: {0}")]
    Policy(#[from] policy::LoadError),
    #[error("gate.auth.proxies: {0}")]
    Proxies(String),
    #[error("gate.auth.redirect: {0:?} is not an http or https address")]
    Redirect(String),
    #[error("gate.upstream: {0}")]
    Upstream(String),
    #[error(
        "gate.auth.proxies: {0} is a user, and any web page that this user visits could ask about others; name the proxy's machine by a tag, or set gate.auth.userProxies"
    )]
    UserProxy(String),
    #[error("TLS to the services behind the gate: {0}")]
    UpstreamTls(String),
}

/// Why a request is refused.
#[derive(Debug, Clone)]
pub(super) enum Denial {
    /// A web page of another origin sent it.
    CrossOrigin,
    /// The caller has no identity, for this reason.
    Identity(Refusal),
    Policy,
    /// It names a host that is unknown here. Holds the answer.
    UnknownHost(Box<http::Error>),
    /// Its host or path cannot be used for a decision.
    Target(TargetError),
    WrongTailnet,
}

impl Denial {
    pub(super) fn code(&self) -> &'static str {
        match self {
            Self::Identity(refusal) => refusal.code(),
            Self::CrossOrigin => "foreign_origin",
            Self::Policy => "denied_by_policy",
            Self::UnknownHost(error) => error.code,
            Self::Target(_) => "bad_request_target",
            Self::WrongTailnet => "wrong_tailnet",
        }
    }
}

impl From<Denial> for http::Error {
    fn from(denial: Denial) -> Self {
        let code = denial.code();
        match denial {
            Denial::Identity(refusal) => refusal.into(),
            // The operator finds the rule in the audit line; the caller need not know it.
            Denial::Policy => Self::new(
                Kind::Forbidden,
                code,
                "the policy does not allow this request",
            ),
            Denial::CrossOrigin => Self::new(
                Kind::Forbidden,
                code,
                "a web page of another origin may not send this request; to allow it, add its origin to the setting gate.allowedOrigins",
            ),
            Denial::UnknownHost(error) => *error,
            Denial::Target(error) => MalformedRequest::Target(error).into(),
            Denial::WrongTailnet => {
                Self::new(Kind::Forbidden, code, "this service is for another tailnet")
            }
        }
    }
}

/// What is wrong with a request before any rule is evaluated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MalformedRequest {
    AmbiguousHeader,
    AmbiguousHost,
    BadHeader,
    ClientAddressInvalid,
    ClientAddressMissing,
    ClientIsProxy,
    Target(TargetError),
}

impl From<MalformedRequest> for http::Error {
    fn from(malformed: MalformedRequest) -> Self {
        let (kind, code, message) = match malformed {
            MalformedRequest::AmbiguousHeader => (
                Kind::BadRequest,
                "ambiguous_header",
                "a header that describes the request occurs twice".into(),
            ),
            MalformedRequest::AmbiguousHost => (
                Kind::BadRequest,
                "ambiguous_host",
                "the request names no host, or more than one".into(),
            ),
            MalformedRequest::BadHeader => (
                Kind::BadRequest,
                "bad_header",
                "a header has a value that cannot be read".into(),
            ),
            MalformedRequest::ClientAddressInvalid => (
                Kind::Unauthorized,
                "invalid_client_address",
                "the client address that the proxy reports is not an IP address".into(),
            ),
            MalformedRequest::ClientAddressMissing => (
                Kind::BadRequest,
                "missing_client_address",
                "the proxy does not report the client's address: make it set the header that gate.auth.clientHeader names".into(),
            ),
            MalformedRequest::ClientIsProxy => (
                Kind::Unauthorized,
                "client_is_proxy",
                "the client address is the proxy's own: make the proxy report its client's address".into(),
            ),
            MalformedRequest::Target(error) => (Kind::BadRequest, "bad_request_target", error.to_string()),
        };
        Self::new(kind, code, message)
    }
}

impl From<UnclearHost> for MalformedRequest {
    fn from(unclear: UnclearHost) -> Self {
        match unclear {
            UnclearHost::Ambiguous => Self::AmbiguousHost,
            UnclearHost::Bad => Self::Target(TargetError::BadHost),
        }
    }
}

impl From<BadHost> for MalformedRequest {
    fn from(bad: BadHost) -> Self {
        Self::Target(bad.into())
    }
}

impl From<TargetError> for MalformedRequest {
    fn from(error: TargetError) -> Self {
        Self::Target(error)
    }
}

/// The backend was to get a token, and none could be made. A request without it must not be passed
/// on.
pub(super) fn token_unavailable(error: super::BackendTokenError) -> http::Error {
    let kind = Kind::Unavailable {
        retry_after: Duration::from_secs(5),
    };
    http::Error::new(kind, "no_token", "no token for the backend could be signed").because(error)
}
