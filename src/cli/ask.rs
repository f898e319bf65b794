//! Asking a running server: which one the settings mean, and a runtime for the call. By default it is the one at the local admin
//! socket, so no host, home directory or tailnet is needed.

use clap::ArgMatches;
use tokio::runtime::Runtime;

use super::{args, console::Console, exit::Failure};
use crate::{
    admin::{AdminClient, ServerAddress},
    config::{self, ClientSettings, Environment, table::Scope},
};

/// Settings, server and runtime of one command.
pub(super) struct Asking {
    pub(super) settings: ClientSettings,
    pub(super) client: AdminClient,
    pub(super) runtime: Runtime,
}

impl Asking {
    pub(super) fn new(
        matches: &ArgMatches,
        environment: &Environment,
        console: &mut Console<'_>,
    ) -> Result<Self, Failure> {
        let raw = args::raw(matches, &[Scope::Root, Scope::Keys], environment);
        let (settings, _) = console.told(config::load_client(&raw))?;
        Ok(Self {
            client: AdminClient::new(target(&settings), settings.timeout),
            settings,
            runtime: runtime()?,
        })
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
