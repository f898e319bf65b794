//! Calls of a running server's administration of the OpenID provider.

use clap::{ArgMatches, Command};
use tokio::runtime::Runtime;
use tonic::{Code, Response, Status, transport::Channel};

use crate::{
    admin::{AdminClient, oidc_proto::oidc_admin_client::OidcAdminClient},
    cli::{
        args, ask,
        console::Console,
        exit::Failure,
        output::{self, Output},
    },
    config::{self, ClientSettings, Environment, table::FlagScope},
};

/// With the flags that say which server is meant. Those that name a store say nothing here.
pub(super) fn at_server(command: Command) -> Command {
    let store = args::of(FlagScope::Oidc).map(|arg| arg.global(true).hide(true));
    let server = args::of(FlagScope::Keys).map(|arg| {
        let hidden = arg.get_id() == "keys.dir";
        arg.hide(hidden)
    });
    command.args(store).args(server).subcommand_required(true)
}

/// The text of an argument; empty if it was not given.
pub(super) fn text(matches: &ArgMatches, name: &str) -> String {
    matches.get_one::<String>(name).cloned().unwrap_or_default()
}

/// Settings, server and runtime of one command.
pub(super) struct AdminCall {
    pub(super) settings: ClientSettings,
    client: AdminClient,
    runtime: Runtime,
}

impl AdminCall {
    pub(super) fn new(
        matches: &ArgMatches,
        environment: &Environment,
        console: &mut Console<'_>,
    ) -> Result<Self, Failure> {
        let scopes = [FlagScope::Root, FlagScope::Keys];
        Self::with(matches, &scopes, environment, console)
    }

    /// For a command with `--yes`.
    pub(super) fn confirming(
        matches: &ArgMatches,
        environment: &Environment,
        console: &mut Console<'_>,
    ) -> Result<Self, Failure> {
        let scopes = [FlagScope::Root, FlagScope::Keys, FlagScope::Remove];
        Self::with(matches, &scopes, environment, console)
    }

    fn with(
        matches: &ArgMatches,
        scopes: &[FlagScope],
        environment: &Environment,
        console: &mut Console<'_>,
    ) -> Result<Self, Failure> {
        let raw = args::raw(matches, scopes, environment);
        let (settings, _) = console.accept(config::load_client(&raw))?;
        Ok(Self {
            client: AdminClient::new(ask::target(&settings), settings.timeout),
            settings,
            runtime: ask::runtime()?,
        })
    }

    /// Makes one call and waits for its answer.
    pub(super) fn wait<T>(
        &self,
        call: impl AsyncFnOnce(OidcAdminClient<Channel>) -> Result<Response<T>, Status>,
    ) -> Result<T, Failure> {
        let answer = self.runtime.block_on(self.client.oidc(call));
        answer.map_err(|error| {
            let advice = match ask::advice(&error, &self.settings) {
                Some(advice) => advice,
                None if error.code == Code::Unimplemented => {
                    "The server is older than this command"
                }
                None => "",
            };
            Failure::failed(error.message).advise(advice)
        })
    }

    pub(super) fn print<T: Output>(
        &self,
        console: &mut Console<'_>,
        result: &T,
    ) -> Result<(), Failure> {
        output::print(console, self.settings.output, result)
    }
}
