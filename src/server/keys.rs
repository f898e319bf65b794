//! The keys while the server runs: a look every second, a line in the log for what changed, an audit line for each change.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::{sync::Notify, task::JoinHandle, time::MissedTickBehavior};

use crate::{
    config::Settings,
    jwks::life::{KeyLife, LifeError, Outcome, Report},
    telemetry::meter::Meter,
};

/// Between two looks at the key directory. The document is looked at less often; `KeyLife::poll` knows when.
const TICK: Duration = Duration::from_secs(1);

/// The running task that keeps the keys in order. Dropping it ends the task between two passes or within one; a pass may be cut
/// anywhere.
#[derive(Debug)]
pub(super) struct Keeper {
    look: Arc<Notify>,
    task: JoinHandle<()>,
}

/// Opens the keys as the settings say. Where something `signs`, they are loaded, and the first one is made where there is none.
pub(super) async fn open(settings: &Settings, signs: bool) -> Result<KeyLife, LifeError> {
    let life = KeyLife::open(&settings.keys).await;
    if !signs {
        return Ok(life);
    }
    let report = life.start(Timestamp::now()).await?;
    let mut told = Told::default();
    told.tell(&report);
    if report.no_signer.is_none() {
        tracing::info!(target: "keys", place = report.place, kid = signing(&report), "keys loaded");
    }
    Ok(life)
}

impl Keeper {
    pub(super) fn start(life: KeyLife, meter: Meter) -> Self {
        let look = Arc::new(Notify::new());
        let task = tokio::spawn(keep(life, look.clone(), meter));
        Self { look, task }
    }

    /// Looks at once, as on a hang-up signal.
    pub(super) fn look(&self) {
        self.look.notify_one();
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn keep(life: KeyLife, look: Arc<Notify>, meter: Meter) {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told = Told::default();
    loop {
        let outcome = tokio::select! {
            _ = ticks.tick() => life.poll(Timestamp::now()).await.transpose(),
            () = look.notified() => Some(life.sync(Timestamp::now()).await),
        };
        match &outcome {
            Some(Ok(report)) => {
                meter.jwks_looked(report.document_trouble.is_none());
                for done in &report.done {
                    meter.key_changed(done.action, matches!(done.outcome, Outcome::Done));
                }
            }
            Some(Err(_)) => meter.jwks_looked(false),
            None => {}
        }
        match outcome {
            None => {}
            Some(Ok(report)) => told.tell(&report),
            Some(Err(error)) => told.trouble(vec![error.to_string()]),
        }
    }
}

fn signing(report: &Report) -> &str {
    report
        .keys
        .iter()
        .find(|key| key.signing)
        .map_or("", |key| &key.kid)
}

/// What was said last, so that lasting trouble is one line and not one a minute.
#[derive(Debug, Default)]
struct Told {
    trouble: Vec<String>,
}

impl Told {
    fn tell(&mut self, report: &Report) {
        report.audit();
        let skipped = report
            .skipped
            .iter()
            .map(|file| format!("{} is not used: {}", file.path.display(), file.reason));
        let trouble = report
            .document_trouble
            .iter()
            .chain(&report.trouble)
            .chain(&report.no_signer)
            .cloned()
            .chain(skipped);
        self.trouble(trouble.collect());
    }

    fn trouble(&mut self, now: Vec<String>) {
        for words in now.iter().filter(|words| !self.trouble.contains(words)) {
            tracing::warn!(target: "keys", "{words}");
        }
        if now.is_empty() && !self.trouble.is_empty() {
            tracing::info!(target: "keys", "the trouble with the keys is over");
        }
        self.trouble = now;
    }
}
