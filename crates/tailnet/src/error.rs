//! Errors between us and the node: one variant for each code of the C ABI, with the message of that
//! very call.

/// An error of the node.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Invalid(String),
    #[error("the node is closed")]
    Closed,
    #[error("{0}")]
    State(String),
    #[error("no such peer on the tailnet")]
    NotFound,
    #[error("{0}")]
    InUse(String),
    #[error("timed out: {0}")]
    Timeout(String),
    #[error("canceled")]
    Canceled,
    #[error("{0}")]
    Refused(String),
    #[error("{0}")]
    Unreachable(String),
    #[error("{0}")]
    Io(String),
    #[error("the node would not start: {0}")]
    Start(String),
    #[error("panic inside the node: {0}")]
    Panic(String),
    #[error("{0}")]
    Internal(String),
    /// The tailnet's policy does not let a peer reach an address of ours.
    #[error("{0}")]
    Forbidden(String),
    /// The tailnet does not let this node use Funnel, or not any more.
    #[error("{message}")]
    NoFunnel { lack: FunnelLack, message: String },
}

/// What a tailnet lacks for a listener of Funnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FunnelLack {
    /// The node has not the attribute `funnel`.
    Attribute,
    /// HTTPS is not enabled.
    Https,
    /// The port is not one of those that the node may use; the message names those.
    Port,
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error.to_string())
    }
}
