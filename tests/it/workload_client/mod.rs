//! `tailbone workload …` against a small issuer.

mod agent;
mod aws;
mod google;
mod issuer;
mod recipe;
mod sdks;
mod spiffe;
mod token;

use std::{io, time::Duration};

use clap::Parser;
use tailbone::{
    cli::workload::{Surroundings, Workload, WorkloadError},
    config::{Environment, OutputFormat},
    signals::Signal,
};
use testkit::{soon, until};
use tokio::sync::mpsc;

use self::issuer::FakeIssuer;

#[derive(Parser)]
struct Line {
    #[command(subcommand)]
    workload: Workload,
}

fn parse(arguments: &[&str]) -> Workload {
    let line = ["workload"].iter().chain(arguments);
    Line::try_parse_from(line).unwrap().workload
}

async fn run_as(
    format: OutputFormat,
    arguments: &[&str],
    variables: &[(&str, &str)],
) -> Result<String, WorkloadError> {
    let variables: Environment = variables.iter().copied().collect();
    let surroundings = Surroundings {
        variables: &variables,
        format,
    };
    let mut out = Vec::new();
    let none = || Err(io::Error::other("this command ends by itself"));
    parse(arguments).run(&surroundings, &mut out, none).await?;
    Ok(String::from_utf8(out).unwrap())
}

async fn run(arguments: &[&str]) -> Result<String, WorkloadError> {
    run_as(OutputFormat::Text, arguments, &[]).await
}

/// A command that runs until it gets a signal.
struct Running {
    signals: mpsc::UnboundedSender<Signal>,
    task: tokio::task::JoinHandle<Result<(), WorkloadError>>,
}

impl Running {
    fn start(arguments: &[&str], variables: &[(&str, &str)]) -> Self {
        let command = parse(arguments);
        let variables: Environment = variables.iter().copied().collect();
        let (signals, receiver) = mpsc::unbounded_channel();
        let task = tokio::spawn(async move {
            let surroundings = Surroundings {
                variables: &variables,
                format: OutputFormat::Text,
            };
            command
                .run(&surroundings, &mut io::sink(), || Ok(receiver))
                .await
        });
        Self { signals, task }
    }

    fn signal(&self, signal: Signal) {
        self.signals.send(signal).unwrap();
    }

    async fn stop(self) -> Result<(), WorkloadError> {
        self.signal(Signal::Terminate);
        soon("the end", self.task).await.unwrap()
    }
}

/// An address on loopback where nobody listens.
fn free_address() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

/// The error with its causes, as the command line prints it.
fn words(error: &WorkloadError) -> String {
    tailbone::telemetry::error_chain(error)
}
