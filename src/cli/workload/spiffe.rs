//! `tailbone workload spiffe`.

use std::{io, path::PathBuf};

use clap::Args;
use tokio::sync::mpsc;

use super::{Connection, Surroundings, WorkloadError, usage};
use crate::{
    config::Limits,
    http::{serve::serve, unix::LocalPeer},
    signals::Signal,
    workload::client::spiffe::{ApiSocket, WorkloadApi, is_trust_domain},
};

#[derive(Debug, Args)]
pub struct Spiffe {
    #[command(flatten)]
    connection: Connection,
    /// Socket to listen at, which workloads find as SPIFFE_ENDPOINT_SOCKET=unix://PATH
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,
    /// Let the group of the socket use it too: mode 0660 in place of 0600
    #[arg(long)]
    group: bool,
    /// Trust domain of the tokens' subjects [default: the host of the issuer's address]
    #[arg(long, value_name = "NAME")]
    trust_domain: Option<String>,
}

impl Spiffe {
    pub(super) async fn run(
        self,
        surroundings: &Surroundings<'_>,
        signals: impl FnOnce() -> io::Result<mpsc::UnboundedReceiver<Signal>>,
    ) -> Result<(), WorkloadError> {
        let issuer = self.connection.issuer(surroundings.variables)?;
        let trust_domain = self
            .trust_domain
            .unwrap_or_else(|| issuer.host().to_owned());
        if !is_trust_domain(&trust_domain) {
            return Err(usage(format!(
                "{trust_domain}: not a trust domain such as example.org; name it with \
                 --trust-domain"
            )));
        }
        let mode = if self.group { 0o660 } else { 0o600 };
        let socket = ApiSocket::bind(&self.socket, mode)
            .map_err(|error| WorkloadError::Socket(self.socket.clone(), error))?;
        let mut signals = signals().map_err(WorkloadError::Signals)?;
        let path = self.socket.display();
        tracing::info!(target: "workload", %path, trust_domain, "serving the Workload API");
        let api = WorkloadApi::new(issuer, trust_domain);
        let identify = |_: LocalPeer| ::http::Extensions::new();
        let router = api.router();
        let mut server = serve(
            "workload-spiffe",
            socket,
            router,
            Limits::default(),
            identify,
        );
        let stop = async { while let Some(Signal::Hangup) = signals.recv().await {} };
        tokio::select! {
            () = stop => Ok(()),
            () = api.keep_keys() => Ok(()),
            error = server.failed() => {
                Err(WorkloadError::Socket(self.socket.clone(), error.into()))
            }
        }
    }
}
