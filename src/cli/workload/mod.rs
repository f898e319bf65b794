//! `tailbone workload …`: tokens of an issuer for this machine, for programs that talk to clouds.
//! No server and no node in the process is needed: the issuer is reached through the host's own
//! tailnet or a proxy.
//!
//! Invariants: standard output carries the result and nothing else; a token is printed only by the
//! commands whose result it is.

mod agent;
mod aws;
mod google;
mod recipe;
mod spiffe;
mod token;

use std::{
    io::{self, Write},
    path::PathBuf,
    time::Duration,
};

use clap::{ArgMatches, Args, Command, FromArgMatches, Subcommand};
use tokio::sync::mpsc;

use super::{args, ask, console::Console, exit::Failure};
use crate::{
    config::{
        self, Environment, Log, LogFormat, LogLevel, OutputFormat, RawSettings, Secret,
        table::FlagScope,
    },
    http::{
        client::{Reach, ReachError},
        unix::BindError,
    },
    signals::{Signal, Signals},
    telemetry,
    workload::client::{
        agent::OnceError,
        aws::RoleError,
        google::SecretError,
        issuer::{Issuer, TokenError},
    },
};

#[derive(Debug, Subcommand)]
pub enum Workload {
    /// Print a token for an audience
    Token(token::Token),
    /// Keep token files fresh, as AWS and Azure SDKs read them
    Agent(agent::Agent),
    /// Print credentials of AWS, for credential_process of its SDKs
    AwsCredentials(aws::AwsCredentials),
    /// Print a token as Google's libraries read it from an executable
    GoogleExecutable(google::GoogleExecutable),
    /// Print the commands and policies with which a cloud trusts the issuer
    Recipe(recipe::Recipe),
    /// Answer GET with tokens on loopback, as Google's libraries read them from a URL
    Serve(google::Serve),
    /// Serve SPIFFE's Workload API on a unix socket: JWT-SVIDs and their keys
    Spiffe(spiffe::Spiffe),
}

/// The issuer and the way to it.
#[derive(Debug, Args)]
pub struct Connection {
    // Not a comment of rustdoc, which would want a link.
    #[arg(
        long,
        value_name = "URL",
        help = "Address of the issuer, such as https://tsiam.example.ts.net \
                [TAILBONE_WORKLOAD_SERVER]"
    )]
    server: Option<String>,
    /// File with the certificates (PEM) that alone are trusted [default: the system's]
    #[arg(long, value_name = "PATH")]
    ca_file: Option<PathBuf>,
    /// Proxy to the issuer, such as socks5h://127.0.0.1:1055 of tailscaled [default: what
    /// HTTPS_PROXY, ALL_PROXY and NO_PROXY say]
    #[arg(long, value_name = "URL")]
    proxy: Option<String>,
    /// How long one request may take
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = args::duration)]
    timeout: Duration,
}

/// Why a command failed. Only [`WorkloadError::Usage`] is a mistake in the command line.
#[derive(Debug, thiserror::Error)]
pub enum WorkloadError {
    #[error("{0}")]
    Usage(String),
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error(transparent)]
    Reach(#[from] ReachError),
    #[error(transparent)]
    Once(#[from] OnceError),
    #[error(transparent)]
    Role(#[from] RoleError),
    #[error("there is no socket at {0}")]
    Socket(PathBuf, #[source] BindError),
    #[error("the secret in {0} cannot be used")]
    Secret(PathBuf, #[source] SecretError),
    #[error("there is no listener at {0}")]
    Listen(std::net::SocketAddr, #[source] io::Error),
    #[error(transparent)]
    Output(#[from] io::Error),
    #[error("signals cannot be received")]
    Signals(#[source] io::Error),
}

/// What a command gets beside its arguments.
#[derive(Debug)]
pub struct Surroundings<'a> {
    pub variables: &'a Environment,
    pub format: OutputFormat,
}

pub(super) fn command() -> Command {
    let group = Command::new("workload")
        .about("Get tokens of an issuer for this machine and hand them to cloud SDKs");
    Workload::augment_subcommands(group).subcommand_required(false)
}

pub(super) fn run(
    matches: &ArgMatches,
    environment: &Environment,
    console: &mut Console<'_>,
) -> Result<(), Failure> {
    let Some((_, chosen)) = matches.subcommand() else {
        return super::help(Some("workload"), console);
    };
    // Only the flag counts: these commands need no config file, and a variable must not change
    // what a script reads.
    let flags = args::given(chosen, &[FlagScope::Root]);
    let raw = RawSettings::collect(flags, &Environment::default(), None);
    let (format, _) = console.accept(config::load_output(&raw))?;
    let command = Workload::from_arg_matches(matches)
        .map_err(|error| Failure::with_code(super::exit::USAGE, error.to_string()))?;
    let surroundings = Surroundings {
        variables: environment,
        format,
    };
    if let Some(format) = command.log() {
        let log = Log {
            level: LogLevel::Info,
            format,
            no_color: environment.value("NO_COLOR").is_some(),
        };
        telemetry::log::init(&log, None);
    }
    let runtime = ask::runtime()?;
    let outcome = runtime.block_on(command.run(&surroundings, &mut *console.out, signals));
    // The lookup of a name may take longer than the command has waited for it.
    runtime.shutdown_background();
    outcome.map_err(|error| match error {
        WorkloadError::Usage(sentence) => Failure::with_code(super::exit::USAGE, sentence),
        WorkloadError::Output(error) => Failure::output(error),
        other => {
            let advice = advice(&other);
            Failure::failed(other).advise(advice)
        }
    })
}

/// The signals of the process. A command that ends by itself does not call this, so that a signal
/// kills it as it does any program.
fn signals() -> io::Result<mpsc::UnboundedReceiver<Signal>> {
    let mut signals = Signals::install()?;
    let (sender, receiver) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok(signal) = signals.next().await {
            if sender.send(signal).is_err() {
                return;
            }
        }
    });
    Ok(receiver)
}

fn advice(error: &WorkloadError) -> &'static str {
    let token = match error {
        WorkloadError::Token(error) => error,
        _ => return "",
    };
    match token {
        TokenError::Unreachable { .. } | TokenError::TimedOut { .. } => {
            "Is this machine on the issuer's tailnet? If tailscaled runs without a network device, \
             name its proxy with --proxy"
        }
        _ => "",
    }
}

impl Workload {
    /// The format of the command's log, if it writes one.
    fn log(&self) -> Option<LogFormat> {
        match self {
            Self::AwsCredentials(_)
            | Self::GoogleExecutable(_)
            | Self::Recipe(_)
            | Self::Token(_) => None,
            Self::Agent(agent) => agent.log(),
            Self::Serve(_) | Self::Spiffe(_) => Some(LogFormat::Console),
        }
    }

    /// Runs the command. One that would run for ever calls `signals`, and ends at the first that is
    /// not a hangup, or with the channel.
    pub async fn run<W: Write + ?Sized>(
        self,
        surroundings: &Surroundings<'_>,
        out: &mut W,
        signals: impl FnOnce() -> io::Result<mpsc::UnboundedReceiver<Signal>>,
    ) -> Result<(), WorkloadError> {
        match self {
            Self::Token(token) => token.run(surroundings, out).await,
            Self::Agent(agent) => agent.run(surroundings, signals).await,
            Self::AwsCredentials(aws) => aws.run(surroundings, out).await,
            Self::GoogleExecutable(google) => google.run(surroundings, out).await,
            Self::Recipe(recipe) => recipe.run(surroundings, out).await,
            Self::Serve(serve) => serve.run(surroundings, signals).await,
            Self::Spiffe(spiffe) => spiffe.run(surroundings, signals).await,
        }
    }
}

impl Connection {
    fn issuer(&self, variables: &Environment) -> Result<Issuer, WorkloadError> {
        const VARIABLE: &str = "TAILBONE_WORKLOAD_SERVER";
        let (name, server) = match (&self.server, variables.text(VARIABLE)) {
            (Some(server), _) => ("--server", server.as_str()),
            (None, Some(server)) => (VARIABLE, server),
            (None, None) => {
                return Err(usage(format!(
                    "no issuer: name it with --server or {VARIABLE}"
                )));
            }
        };
        let url = args::server_url(server).ok_or_else(|| {
            usage(format!(
                "{name} {server}: not an address such as https://tsiam.example.ts.net"
            ))
        })?;
        let reach = Reach {
            ca_file: self.ca_file.clone(),
            proxy: self.proxy.as_deref().map(Secret::new),
        };
        Issuer::new(url, self.timeout, &reach).map_err(|error| match error {
            ReachError::Proxy => usage(format!("--proxy: {error}")),
            other => other.into(),
        })
    }
}

fn usage(sentence: String) -> WorkloadError {
    WorkloadError::Usage(sentence)
}
