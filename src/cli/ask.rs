//! Calls to a running server: which server the settings name, and a runtime for the call. By
//! default it is the server at the local admin socket, so neither a host, a home directory nor the
//! tailnet is needed.

use clap::ArgMatches;
use tokio::runtime::Runtime;

use super::{args, console::Console, exit::Failure};
use crate::{
    admin::{AdminClient, CallError, ServerAddress},
    config::{self, ClientSettings, Environment, table::FlagScope},
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
        let raw = args::raw(matches, &[FlagScope::Root, FlagScope::Keys], environment);
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
        let answer = self.runtime.block_on(call(&self.client));
        answer.map_err(|error| {
            let advice = advice(&error, &self.settings).unwrap_or_default();
            Failure::failed(error.message).advise(advice)
        })
    }
}

/// What to do if there is no server, for commands that can ask another than the one at the local
/// socket.
pub(super) fn advice(error: &CallError, settings: &ClientSettings) -> Option<&'static str> {
    match (error.unreachable, settings.host.is_empty()) {
        (false, _) => None,
        (true, true) => {
            Some("Or name another server with --host (admin.client.host, TB_ADMIN_CLIENT_HOST)")
        }
        (true, false) => {
            Some("Check name and port, and whether this machine is on the tailnet of the server")
        }
    }
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
