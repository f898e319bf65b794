//! Why the daemon ended otherwise than asked to, and with which exit code.

use std::{net::SocketAddr, path::PathBuf};

use crate::{
    admin::AdminSocketError,
    http::{certificate::CertificateError, tls::TlsError, unix::BindError},
    jwks::life::LifeError,
    keys::azure::InvalidVault,
    part,
    tailnet::{self, join::JoinError},
    telemetry::otlp::NoCollector,
};

/// A failed start, or a daemon that could not go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    #[error("cannot start the runtime or install the signal handlers: {0}")]
    Runtime(#[source] std::io::Error),
    #[error("traces and metrics cannot be exported (server.telemetry.otlp)")]
    Otlp(#[from] NoCollector),
    #[error("the component {name} cannot be started")]
    Part {
        name: &'static str,
        source: part::PartError,
    },
    #[error("cannot listen at the host address {addr}")]
    HostListener {
        addr: SocketAddr,
        source: std::io::Error,
    },
    #[error("the socket {} for {name} cannot be created", path.display())]
    UnixSocket {
        name: &'static str,
        path: PathBuf,
        source: BindError,
    },
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Vault(#[from] InvalidVault),
    #[error("the signing keys cannot be loaded")]
    Keys(#[from] LifeError),
    #[error(transparent)]
    Join(#[from] JoinError),
    #[error(transparent)]
    AdminSocket(#[from] AdminSocketError),
    #[error("cannot listen for {name} on the tailnet at {addr}")]
    TailnetListener {
        name: &'static str,
        addr: tailnet::ListenAddr,
        source: tailnet::Error,
    },
    #[error("the {name} listener failed")]
    ListenerFailed {
        name: &'static str,
        source: std::io::Error,
    },
}

impl ServerError {
    /// Joining has its own codes (see `tailnet::join`); everything else is 1.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Join(error) => error.exit_code(),
            _ => 1,
        }
    }
}
