//! `tailbone wait --ready`: for scripts that start a server and continue once it serves.

use std::time::{Duration, Instant};

use clap::{Arg, ArgAction, ArgMatches, Command};

use super::{
    args,
    ask::{ServerCall, target},
    console::Console,
    exit::Failure,
    status,
};
use crate::{
    admin::AdminClient,
    config::{Environment, duration, table::FlagScope},
};

/// Between two checks.
const PAUSE: Duration = Duration::from_millis(200);

pub(super) fn command() -> Command {
    Command::new("wait")
        .about("Wait until a server is ready; --timeout bounds the whole wait")
        .args(args::of(FlagScope::Keys))
        .arg(
            Arg::new("ready")
                .long("ready")
                .action(ArgAction::SetTrue)
                .help("Wait for readiness; the default, as there is nothing else to wait for"),
        )
}

pub(super) fn run(
    matches: &ArgMatches,
    environment: &Environment,
    console: &mut Console<'_>,
) -> Result<(), Failure> {
    let call = ServerCall::new(matches, environment, console)?;
    let whole = call.settings.timeout;
    let target = target(&call.settings);
    let last = call.runtime.block_on(async {
        let began = Instant::now();
        loop {
            let left = whole.saturating_sub(began.elapsed());
            let last = match AdminClient::new(target.clone(), left).status().await {
                Ok(status) if status.ready => return None,
                Ok(status) => status::held(&status),
                Err(error) => error.message,
            };
            if left <= PAUSE {
                return Some(last);
            }
            tokio::time::sleep(PAUSE).await;
        }
    });
    match last {
        None => Ok(()),
        Some(last) => Err(Failure::failed(format!(
            "not ready within {}: {last}",
            duration::format(whole)
        ))),
    }
}
