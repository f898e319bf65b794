//! Calls to a running server: which server the settings name, and a runtime for the call. By
//! default it is the server at the local admin socket, so neither a host, a home directory nor the
//! tailnet is needed.

use std::os::unix::net::UnixStream;

use clap::ArgMatches;
use tokio::runtime::Runtime;
use tonic::Code;

use super::{args, console::Console, exit::Failure};
use crate::{
    admin::{AdminClient, CallError, ServerAddress},
    config::{self, ClientSettings, Environment, table::Scope},
};

/// Settings, server and runtime of one command.
pub(super) struct ServerCall {
    pub(super) settings: ClientSettings,
    pub(super) client: AdminClient,
    pub(super) runtime: Runtime,
}

impl ServerCall {
    pub(super) fn new(
        matches: &ArgMatches,
        environment: &Environment,
        console: &mut Console<'_>,
    ) -> Result<Self, Failure> {
        let raw = args::raw(matches, &[Scope::Root, Scope::Keys], environment);
        let (settings, _) = console.accept(config::load_client(&raw))?;
        Ok(Self {
            client: AdminClient::new(target(&settings), settings.timeout),
            settings,
            runtime: runtime()?,
        })
    }

    /// Makes one call and waits for its answer. The error has no gRPC code: no program needs it.
    pub(super) fn wait<T>(
        &self,
        call: impl AsyncFnOnce(&AdminClient) -> Result<T, CallError>,
    ) -> Result<T, Failure> {
        self.runtime.block_on(call(&self.client)).map_err(|error| {
            if is_no_server(&error, &self.settings) {
                Failure::failed(format!("{}. {OTHER_SERVER}", error.message))
            } else {
                Failure::failed(error.message)
            }
        })
    }
}

/// For errors of commands that can ask another server than the one at the local socket.
pub(super) const OTHER_SERVER: &str =
    "Or name another server with --host (admin.client.host, TB_ADMIN_CLIENT_HOST)";

/// Whether a call failed because there is no server at the local socket. A server that lacks
/// something itself answers with the same code.
pub(super) fn is_no_server(error: &CallError, settings: &ClientSettings) -> bool {
    error.code == Code::Unavailable
        && settings.host.is_empty()
        && UnixStream::connect(&settings.socket).is_err()
}

pub(super) fn target(settings: &ClientSettings) -> ServerAddress {
    if settings.host.is_empty() {
        ServerAddress::Socket(settings.socket.clone())
    } else {
        ServerAddress::Host {
            host: settings.host.clone(),
            port: settings.port,
        }
    }
}

pub(super) fn runtime() -> Result<Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failure::failed)
}
