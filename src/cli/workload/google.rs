//! `tailbone workload google-executable` and `tailbone workload serve`.

use std::{
    io::{self, Write},
    net::SocketAddr,
    path::{Path, PathBuf},
};

use clap::Args;
use jiff::Timestamp;
use tokio::sync::mpsc;

use super::{Connection, Surroundings, WorkloadError, agent::loopback, usage};
use crate::{
    config::Limits,
    http::{
        layers,
        serve::serve,
        tcp::{PlainListener, Remote},
    },
    keys::disk::{self, Probe},
    signals::Signal,
    telemetry,
    workload::client::{
        google::{self, ExecutableAnswer, TokenSource},
        issuer::IssuedToken,
    },
};

#[derive(Debug, Args)]
pub struct GoogleExecutable {
    #[command(flatten)]
    connection: Connection,
    /// Who shall accept the token [default: GOOGLE_EXTERNAL_ACCOUNT_AUDIENCE, which the library
    /// sets]
    #[arg(long, value_name = "AUDIENCE")]
    audience: Option<String>,
}

impl GoogleExecutable {
    /// A failure is a result too: libraries drop the words of an executable that fails.
    pub(super) async fn run<W: Write + ?Sized>(
        self,
        surroundings: &Surroundings<'_>,
        out: &mut W,
    ) -> Result<(), WorkloadError> {
        let variables = surroundings.variables;
        let wanted = variables.text("GOOGLE_EXTERNAL_ACCOUNT_TOKEN_TYPE");
        let token_type = wanted.unwrap_or(google::JWT_TYPE);
        let token = self.token(surroundings, token_type).await;
        let answer = match &token {
            Ok(token) => ExecutableAnswer::token(token, token_type),
            Err(error) => {
                let code = match error {
                    WorkloadError::Usage(_) => "configuration",
                    _ => "no_token",
                };
                ExecutableAnswer::failure(code, telemetry::error_chain(error))
            }
        };
        let text = serde_json::to_string(&answer).map_err(io::Error::other)?;
        let file = variables.value("GOOGLE_EXTERNAL_ACCOUNT_OUTPUT_FILE");
        if let (Some(path), Ok(_)) = (file, &token) {
            // The library only reads it to save a call.
            let _ = disk::write(Path::new(path), text.as_bytes(), 0o600, &Probe::default());
        }
        writeln!(out, "{text}")?;
        Ok(out.flush()?)
    }

    async fn token(
        &self,
        surroundings: &Surroundings<'_>,
        token_type: &str,
    ) -> Result<IssuedToken, WorkloadError> {
        if ![google::JWT_TYPE, google::ID_TOKEN_TYPE].contains(&token_type) {
            return Err(usage(format!(
                "the issuer has no tokens of the type {token_type}: set subject_token_type to {}",
                google::JWT_TYPE
            )));
        }
        let variables = surroundings.variables;
        let audience = self
            .audience
            .as_deref()
            .or_else(|| variables.text("GOOGLE_EXTERNAL_ACCOUNT_AUDIENCE"))
            .ok_or_else(|| {
                usage(
                    "no audience: name it with --audience, or let a library of Google start this"
                        .to_owned(),
                )
            })?;
        let issuer = self.connection.issuer(variables)?;
        Ok(issuer.token(audience, Timestamp::now()).await?)
    }
}

#[derive(Debug, Args)]
pub struct Serve {
    #[command(flatten)]
    connection: Connection,
    /// Loopback address to listen at
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9465", value_parser = loopback)]
    listen: SocketAddr,
    /// Audience for which tokens are given; again for more, of which requests name one
    #[arg(long, value_name = "AUDIENCE", required = true)]
    audience: Vec<String>,
    /// File with the secret that requests must show; made if it does not exist
    #[arg(long, value_name = "PATH")]
    secret_file: PathBuf,
}

impl Serve {
    pub(super) async fn run(
        self,
        surroundings: &Surroundings<'_>,
        signals: impl FnOnce() -> io::Result<mpsc::UnboundedReceiver<Signal>>,
    ) -> Result<(), WorkloadError> {
        let issuer = self.connection.issuer(surroundings.variables)?;
        let secret = google::secret(&self.secret_file)
            .map_err(|error| WorkloadError::Secret(self.secret_file.clone(), error))?;
        let tcp = tokio::net::TcpListener::bind(self.listen)
            .await
            .map_err(|error| WorkloadError::Listen(self.listen, error))?;
        let mut signals = signals().map_err(WorkloadError::Signals)?;
        if let Ok(addr) = tcp.local_addr() {
            tracing::info!(target: "workload", %addr, "serving tokens at /token");
        }
        let source = TokenSource::new(issuer, self.audience, secret);
        let mut server = serve(
            "workload-source",
            PlainListener(tcp),
            layers::wrap(source.router(), "workload-source"),
            Limits::default(),
            Remote::identify,
        );
        let stop = async { while let Some(Signal::Hangup) = signals.recv().await {} };
        tokio::select! {
            () = stop => Ok(()),
            error = server.failed() => Err(WorkloadError::Listen(self.listen, error)),
        }
    }
}
