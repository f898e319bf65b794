//! `tailbone workload agent`.

use std::{collections::BTreeSet, io, net::SocketAddr, path::PathBuf};

use clap::Args;
use tokio::sync::{mpsc, watch};

use super::{Connection, Surroundings, WorkloadError, usage};
use crate::{
    config::{Limits, LogFormat},
    http::{
        layers,
        serve::{Server, serve},
        tcp::{PlainListener, Remote},
    },
    signals::Signal,
    workload::client::agent::{self, AgentSettings, TokenFile},
};

#[derive(Debug, Args)]
pub struct Agent {
    #[command(flatten)]
    connection: Connection,
    /// Keep a token for the audience in the file; again for more
    #[arg(long, value_name = "AUDIENCE=PATH", required = true, value_parser = token_file)]
    write: Vec<TokenFile>,
    /// Let the group of the file read it too: mode 0640 in place of 0600
    #[arg(long)]
    group_read: bool,
    /// Write each file once and end
    #[arg(long)]
    once: bool,
    /// Write the state of all files to this file, as JSON
    #[arg(long, value_name = "PATH")]
    health_file: Option<PathBuf>,
    /// Serve /metrics and /healthz at this loopback address, such as 127.0.0.1:9464
    #[arg(long, value_name = "ADDRESS", value_parser = loopback)]
    metrics: Option<SocketAddr>,
    /// Format of the log lines
    #[arg(long, value_name = "WORD", default_value = "console", value_parser = ["console", "json"])]
    log_format: String,
}

impl Agent {
    /// A program that runs for long logs; one that ends soon says how it ended.
    pub(super) fn log(&self) -> Option<LogFormat> {
        let format = match self.log_format.as_str() {
            "json" => LogFormat::Json,
            _ => LogFormat::Console,
        };
        (!self.once).then_some(format)
    }

    pub(super) async fn run(
        self,
        surroundings: &Surroundings<'_>,
        signals: impl FnOnce() -> io::Result<mpsc::UnboundedReceiver<Signal>>,
    ) -> Result<(), WorkloadError> {
        let paths: BTreeSet<_> = self.write.iter().map(|file| &file.path).collect();
        if paths.len() < self.write.len() {
            return Err(usage("--write: two tokens for the same file".to_owned()));
        }
        let issuer = self.connection.issuer(surroundings.variables)?;
        let settings = AgentSettings {
            files: self.write,
            mode: if self.group_read { 0o640 } else { 0o600 },
            health_file: self.health_file,
        };
        let agent = agent::Agent::new(issuer, settings);
        if self.once {
            return Ok(agent.once().await?);
        }
        let signals = signals().map_err(WorkloadError::Signals)?;
        let mut metrics = match self.metrics {
            Some(addr) => Some(serve_metrics(&agent, addr).await?),
            None => None,
        };
        let failed = async {
            match (&mut metrics, self.metrics) {
                (Some(server), Some(addr)) => WorkloadError::Listen(addr, server.failed().await),
                _ => std::future::pending().await,
            }
        };
        let (renew, changes) = watch::channel(0);
        tokio::select! {
            () = agent.run(changes) => Ok(()),
            () = until_told_to_stop(signals, renew) => Ok(()),
            error = failed => Err(error),
        }
    }
}

async fn serve_metrics(agent: &agent::Agent, addr: SocketAddr) -> Result<Server, WorkloadError> {
    let tcp = tokio::net::TcpListener::bind(addr)
        .await
        .map_err(|error| WorkloadError::Listen(addr, error))?;
    if let Ok(addr) = tcp.local_addr() {
        tracing::info!(target: "workload", %addr, "serving metrics");
    }
    Ok(serve(
        "workload-agent",
        PlainListener(tcp),
        layers::wrap(agent.router(), "workload-agent"),
        Limits::default(),
        Remote::identify,
    ))
}

/// A hangup renews all tokens now.
async fn until_told_to_stop(
    mut signals: mpsc::UnboundedReceiver<Signal>,
    renew: watch::Sender<u64>,
) {
    while let Some(Signal::Hangup) = signals.recv().await {
        renew.send_modify(|count| *count += 1);
    }
}

/// An audience may contain an equals sign.
fn token_file(text: &str) -> Result<TokenFile, String> {
    match text.rsplit_once('=') {
        Some((audience, path)) if !audience.is_empty() && !path.is_empty() => Ok(TokenFile {
            audience: audience.to_owned(),
            path: path.into(),
        }),
        _ => Err("not AUDIENCE=PATH, such as sts.amazonaws.com=/run/aws-token".to_owned()),
    }
}

pub(super) fn loopback(text: &str) -> Result<SocketAddr, String> {
    match text.parse::<SocketAddr>() {
        Ok(addr) if addr.ip().is_loopback() => Ok(addr),
        Ok(_) => Err("only loopback addresses can be used: nothing protects this listener".into()),
        Err(_) => Err("not an address with a port, such as 127.0.0.1:9464".into()),
    }
}
