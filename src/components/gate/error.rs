//! What can be wrong with a gate's settings, and the reasons for which it refuses a request.

use std::time::Duration;

use crate::{
    http::{self, error::Kind, host::Unclear},
    identity::Refusal,
    policy::{self, WhatError},
    web::BadHost,
};

/// Why a gate cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error("gate.auth.clientHeader: {0:?} is no header name")]
    ClientHeader(String),
    #[error("gate.upstream: two upstreams for the same host and path ({0})")]
    DoubleUpstream(String),
    #[error(
        "gate.tokenAudience: the upstream {0} names no host, so callers could choose for whom its tokens are; set it, or name the host in gate.upstream"
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
    #[error("gate.auth.redirect: {0:?} is no http or https address")]
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
pub(super) enum Denied {
    /// A web page of another origin sent it.
    ForeignOrigin,
    /// The caller has no identity, for this reason.
    Identity(Refusal),
    Policy,
    /// It names a host that is unknown here. Holds the answer.
    UnknownHost(Box<http::Error>),
    /// Its host or path cannot be used for a decision.
    Target(WhatError),
    WrongTailnet,
}

impl Denied {
    pub(super) fn code(&self) -> &'static str {
        match self {
            Self::Identity(refusal) => refusal.code(),
            Self::ForeignOrigin => "foreign_origin",
            Self::Policy => "denied_by_policy",
            Self::UnknownHost(error) => error.code,
            Self::Target(_) => "bad_request_target",
            Self::WrongTailnet => "wrong_tailnet",
        }
    }
}

impl From<Denied> for http::Error {
    fn from(denied: Denied) -> Self {
        let code = denied.code();
        match denied {
            Denied::Identity(refusal) => refusal.into(),
            // The operator finds the rule in the audit line; the caller need not know it.
            Denied::Policy => {
                Self::new(Kind::Forbidden, code, "the policy does not let you in here")
            }
            Denied::ForeignOrigin => Self::new(
                Kind::Forbidden,
                code,
                "a web page of another origin may not do this here; where it is meant, add its origin to the setting gate.allowedOrigins",
            ),
            Denied::UnknownHost(error) => *error,
            Denied::Target(what) => Malformed::What(what).into(),
            Denied::WrongTailnet => {
                Self::new(Kind::Forbidden, code, "this service is for another tailnet")
            }
        }
    }
}

/// What is wrong with a request before any rule is evaluated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Malformed {
    AmbiguousHeader,
    AmbiguousHost,
    BadHeader,
    ClientAddressInvalid,
    ClientAddressMissing,
    ClientIsProxy,
    What(WhatError),
}

impl From<Malformed> for http::Error {
    fn from(malformed: Malformed) -> Self {
        let (kind, code, message) = match malformed {
            Malformed::AmbiguousHeader => (
                Kind::BadRequest,
                "ambiguous_header",
                "a header that says what is asked for is there twice".into(),
            ),
            Malformed::AmbiguousHost => (
                Kind::BadRequest,
                "ambiguous_host",
                "the request names no host, or more than one".into(),
            ),
            Malformed::BadHeader => (
                Kind::BadRequest,
                "bad_header",
                "a header has a value that cannot be read".into(),
            ),
            Malformed::ClientAddressInvalid => (
                Kind::Unauthorized,
                "invalid_client_address",
                "the client address that the proxy tells is no IP address".into(),
            ),
            Malformed::ClientAddressMissing => (
                Kind::BadRequest,
                "missing_client_address",
                "the proxy does not tell the client's address: set the header that gate.auth.clientHeader names".into(),
            ),
            Malformed::ClientIsProxy => (
                Kind::Unauthorized,
                "client_is_proxy",
                "the client address is the proxy's own: make the proxy tell the address that it sees".into(),
            ),
            Malformed::What(what) => (Kind::BadRequest, "bad_request_target", what.to_string()),
        };
        Self::new(kind, code, message)
    }
}

impl From<Unclear> for Malformed {
    fn from(unclear: Unclear) -> Self {
        match unclear {
            Unclear::Ambiguous => Self::AmbiguousHost,
            Unclear::Bad => Self::What(WhatError::BadHost),
        }
    }
}

impl From<BadHost> for Malformed {
    fn from(bad: BadHost) -> Self {
        Self::What(bad.into())
    }
}

impl From<WhatError> for Malformed {
    fn from(error: WhatError) -> Self {
        Self::What(error)
    }
}

/// The backend was to get a token, and none could be made. A request without it must not be passed
/// on.
pub(super) fn no_token(error: super::SignError) -> http::Error {
    let kind = Kind::Unavailable {
        retry_after: Duration::from_secs(5),
    };
    http::Error::new(
        kind,
        "no_token",
        "the token for the backend could not be made",
    )
    .because(error)
}
