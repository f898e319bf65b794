//! The client of the admin API for the command line: over the local admin socket, or over the
//! network to `host:port`.
//!
//! Invariant: every call has a deadline, which includes connecting. Network calls use the machine's
//! own network: to reach a host on the tailnet this machine must be on the tailnet.

use std::{
    fmt, io,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::{
    Code, Response, Status,
    transport::{Channel, Endpoint},
};

use super::{
    oidc_proto::oidc_admin_client::OidcAdminClient,
    proto::{
        GenerateNewKeysRequest, GenerateNewKeysResponse, Key, ListKeysRequest, RecentLogRequest,
        RemoveKeyRequest, RotateKeysRequest, RotateKeysResponse, StatusRequest, StatusResponse,
        WhoIsRequest, WhoIsResponse, admin_service_client::AdminServiceClient,
    },
    socket,
};
use crate::telemetry::{error_chain, innermost_cause};

/// The address of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerAddress {
    Host { host: String, port: u16 },
    Socket(PathBuf),
}

/// A failed call, worded as by Go's gRPC, since scripts look for that.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("rpc error: code = {code:?} desc = {message}")]
pub struct CallError {
    pub code: Code,
    pub message: String,
    /// No server was reached. A server that lacks something itself answers with the same code.
    pub unreachable: bool,
}

/// A client for one server.
#[derive(Debug, Clone)]
pub struct AdminClient {
    server: ServerAddress,
    timeout: Duration,
}

impl AdminClient {
    pub fn new(server: ServerAddress, timeout: Duration) -> Self {
        Self { server, timeout }
    }

    pub async fn generate(
        &self,
        size: i32,
        algorithm: String,
        set: String,
    ) -> Result<GenerateNewKeysResponse, CallError> {
        let request = GenerateNewKeysRequest {
            size,
            algorithm,
            set,
        };
        self.call(async |mut api| api.generate_new_keys(request).await)
            .await
    }

    pub async fn list(&self) -> Result<Vec<Key>, CallError> {
        let answer = self
            .call(async |mut api| api.list_keys(ListKeysRequest {}).await)
            .await?;
        Ok(answer.keys)
    }

    pub async fn remove(&self, key_id: String, force: bool) -> Result<Vec<Key>, CallError> {
        let request = RemoveKeyRequest {
            key_id,
            force: Some(force),
        };
        let answer = self
            .call(async |mut api| api.remove_key(request).await)
            .await?;
        Ok(answer.keys)
    }

    pub async fn rotate(
        &self,
        size: i32,
        algorithm: String,
        set: String,
    ) -> Result<RotateKeysResponse, CallError> {
        let request = RotateKeysRequest {
            size,
            algorithm,
            set,
        };
        self.call(async |mut api| api.rotate_keys(request).await)
            .await
    }

    pub async fn status(&self) -> Result<StatusResponse, CallError> {
        self.call(async |mut api| api.status(StatusRequest {}).await)
            .await
    }

    pub async fn who_is(&self, address: String) -> Result<WhoIsResponse, CallError> {
        let request = WhoIsRequest { address };
        self.call(async |mut api| api.who_is(request).await).await
    }

    pub async fn recent_log(&self) -> Result<Vec<String>, CallError> {
        let answer = self
            .call(async |mut api| api.recent_log(RecentLogRequest {}).await)
            .await?;
        Ok(answer.lines)
    }

    /// A call about the OpenID provider.
    pub async fn oidc<T>(
        &self,
        call: impl AsyncFnOnce(OidcAdminClient<Channel>) -> Result<Response<T>, Status>,
    ) -> Result<T, CallError> {
        let attempt = async {
            let api = OidcAdminClient::new(self.server.connect().await?);
            Ok(call(api).await?.into_inner())
        };
        self.in_time(attempt, "tailbone oidc").await
    }

    async fn call<T>(
        &self,
        call: impl AsyncFnOnce(AdminServiceClient<Channel>) -> Result<Response<T>, Status>,
    ) -> Result<T, CallError> {
        let attempt = async {
            let api = AdminServiceClient::new(self.server.connect().await?);
            Ok(call(api).await?.into_inner())
        };
        self.in_time(attempt, "tailbone keys list").await
    }

    /// Connects and calls, both within the timeout. The request's own deadline is not used, because
    /// tonic would report it as `Cancelled`. `check`: the command that shows whether a change was
    /// made.
    async fn in_time<T>(
        &self,
        attempt: impl Future<Output = Result<T, CallError>>,
        check: &str,
    ) -> Result<T, CallError> {
        tokio::time::timeout(self.timeout, attempt).await.unwrap_or_else(|_| {
            Err(CallError {
                unreachable: false,
                code: Code::DeadlineExceeded,
                message: format!(
                    "no answer from {} within {}; a change may have been made anyway: check with `{check}`",
                    self.server,
                    crate::config::duration::format(self.timeout)
                ),
            })
        })
    }
}

impl ServerAddress {
    async fn connect(&self) -> Result<Channel, CallError> {
        match self {
            Self::Host { host, port } => {
                let authority = match host.parse() {
                    Ok(IpAddr::V6(ip)) => format!("[{ip}]:{port}"),
                    _ => format!("{host}:{port}"),
                };
                let endpoint =
                    Endpoint::from_shared(format!("http://{authority}")).map_err(|error| {
                        CallError {
                            code: Code::InvalidArgument,
                            message: error_chain(&error),
                            unreachable: false,
                        }
                    })?;
                endpoint.connect().await.map_err(|error| CallError {
                    code: Code::Unavailable,
                    message: format!("{authority} cannot be reached: {}", innermost_cause(&error)),
                    unreachable: true,
                })
            }
            Self::Socket(path) => {
                let unreachable = |message| CallError {
                    code: Code::Unavailable,
                    message,
                    unreachable: true,
                };
                let stream = open_socket(path).await.map_err(unreachable)?;
                let mut stream = Some(TokioIo::new(stream));
                let connector = tower::service_fn(move |_| {
                    let stream = stream
                        .take()
                        .ok_or_else(|| io::Error::other("the connection is used up"));
                    std::future::ready(stream)
                });
                // The URL is only used for the request's authority.
                Endpoint::from_static("http://localhost")
                    .connect_with_connector(connector)
                    .await
                    .map_err(|error| unreachable(format!("{self}: {}", innermost_cause(&error))))
            }
        }
    }
}

/// Connects to the local socket, or explains what is wrong and what to do.
async fn open_socket(path: &Path) -> Result<UnixStream, String> {
    socket::check_length(path).map_err(|error| error.to_string())?;
    UnixStream::connect(path).await.map_err(|error| {
        let shown = path.display();
        match error.kind() {
            io::ErrorKind::NotFound => format!(
                "there is no local admin socket at {shown}: start a server with this configuration (`tailbone server start`)"
            ),
            io::ErrorKind::ConnectionRefused => format!(
                "no server answers at the local admin socket {shown}: it has ended; start it again (`tailbone server start`)"
            ),
            io::ErrorKind::PermissionDenied => format!(
                "the local admin socket {shown} is for root and the user that runs the server: run this command as one of them"
            ),
            _ => format!("the local admin socket {shown}: {error}"),
        }
    })
}

impl From<Status> for CallError {
    fn from(status: Status) -> Self {
        Self {
            code: status.code(),
            message: status.message().to_owned(),
            unreachable: false,
        }
    }
}

impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host { host, port } => write!(f, "{host}:{port}"),
            Self::Socket(path) => write!(f, "{}", path.display()),
        }
    }
}
