//! Keeps the keys in order while the server runs: checks them every second, logs what changed, and
//! writes an audit line for each change.

use std::{panic, sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::{
    sync::{Notify, oneshot},
    time::MissedTickBehavior,
};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    jwks::life::{KeyLife, LifeError, Outcome, Report},
    telemetry::meter::Meter,
};

/// The time between two checks of the key directory. `KeyLife::poll` checks the published document
/// less often.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// The task that keeps the keys in order; there is none if nothing signs. Dropping this ends the
/// task, if need be within a pass, which is safe anywhere.
#[derive(Debug, Default)]
pub(super) struct KeyMaintenance {
    check_requested: Arc<Notify>,
    /// The outcome of the first pass, until it is asked for.
    first_pass: Option<oneshot::Receiver<Result<(), LifeError>>>,
    _task: Option<AbortOnDropHandle<()>>,
}

impl KeyMaintenance {
    /// Loads the keys, makes the first one if there is none, and then keeps them in order.
    pub(super) fn start(life: KeyLife, meter: Meter) -> Self {
        let check_requested = Arc::new(Notify::new());
        let (first_pass, outcome) = oneshot::channel();
        let task = tokio::spawn(maintain(life, first_pass, check_requested.clone(), meter));
        Self {
            check_requested,
            first_pass: Some(outcome),
            _task: Some(AbortOnDropHandle::new(task)),
        }
    }

    /// Waits until the keys are loaded. After an error, nothing keeps them in order. Cancel safe.
    pub(super) async fn loaded(&mut self) -> Result<(), LifeError> {
        let Some(first_pass) = &mut self.first_pass else {
            return Ok(());
        };
        match first_pass.await {
            Ok(outcome) => {
                self.first_pass = None;
                outcome
            }
            // The sender is dropped only on panic (already logged); propagate it.
            Err(dropped) => panic::resume_unwind(Box::new(dropped)),
        }
    }

    /// Checks the keys at once, as on a hang-up signal.
    pub(super) fn check_now(&self) {
        self.check_requested.notify_one();
    }
}

async fn maintain(
    life: KeyLife,
    first_pass: oneshot::Sender<Result<(), LifeError>>,
    check_requested: Arc<Notify>,
    meter: Meter,
) {
    let mut problems = LoggedProblems::default();
    let loaded = load(&life, &mut problems).await;
    let failed = loaded.is_err();
    // If the handle was dropped, this task ends too, and nobody needs the outcome.
    let _ = first_pass.send(loaded);
    if failed {
        return;
    }
    let mut ticks = tokio::time::interval(CHECK_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let outcome = tokio::select! {
            _ = ticks.tick() => life.poll(Timestamp::now()).await.transpose(),
            () = check_requested.notified() => Some(life.sync(Timestamp::now()).await),
        };
        match &outcome {
            Some(Ok(report)) => {
                meter.jwks_read(report.document_trouble.is_none());
                for done in &report.done {
                    meter.key_changed(done.action, matches!(done.outcome, Outcome::Done));
                }
            }
            Some(Err(_)) => meter.jwks_read(false),
            None => {}
        }
        match outcome {
            None => {}
            Some(Ok(report)) => problems.log_report(&report),
            Some(Err(error)) => problems.log_new(vec![error.to_string()]),
        }
    }
}

async fn load(life: &KeyLife, problems: &mut LoggedProblems) -> Result<(), LifeError> {
    let report = life.start(Timestamp::now()).await?;
    problems.log_report(&report);
    if report.no_signer.is_none() {
        tracing::info!(target: "keys", place = report.place, kid = signing_kid(&report), "keys loaded");
    }
    Ok(())
}

fn signing_kid(report: &Report) -> &str {
    report
        .keys
        .iter()
        .find(|key| key.signing)
        .map_or("", |key| &key.kid)
}

/// The problems that were logged last, so that a lasting problem is one line and not one per
/// minute.
#[derive(Debug, Default)]
struct LoggedProblems {
    problems: Vec<String>,
}

impl LoggedProblems {
    fn log_report(&mut self, report: &Report) {
        report.audit();
        let skipped = report
            .skipped
            .iter()
            .map(|file| format!("{} is not used: {}", file.path.display(), file.reason));
        let problems = report
            .document_trouble
            .iter()
            .chain(&report.trouble)
            .chain(&report.no_signer)
            .cloned()
            .chain(skipped);
        self.log_new(problems.collect());
    }

    fn log_new(&mut self, now: Vec<String>) {
        for problem in now
            .iter()
            .filter(|problem| !self.problems.contains(problem))
        {
            tracing::warn!(target: "keys", "{problem}");
        }
        if now.is_empty() && !self.problems.is_empty() {
            tracing::info!(target: "keys", "the problems with the keys are solved");
        }
        self.problems = now;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tracing_subscriber::{Layer, layer::SubscriberExt};

    use super::*;
    use crate::config::{self, KeySpec, Publish};

    /// The words of every event.
    #[derive(Clone, Default)]
    struct Heard(Arc<Mutex<Vec<String>>>);

    impl<S: tracing::Subscriber> Layer<S> for Heard {
        fn on_event(
            &self,
            event: &tracing::Event<'_>,
            _: tracing_subscriber::layer::Context<'_, S>,
        ) {
            struct Message(String);
            impl tracing::field::Visit for Message {
                fn record_debug(
                    &mut self,
                    field: &tracing::field::Field,
                    value: &dyn std::fmt::Debug,
                ) {
                    if field.name() == "message" {
                        self.0 = format!("{value:?}");
                    }
                }
            }
            let mut message = Message(String::new());
            event.record(&mut message);
            self.0.lock().unwrap().push(message.0);
        }
    }

    impl Heard {
        fn times(&self, words: &str) -> usize {
            let heard = self.0.lock().unwrap();
            heard.iter().filter(|line| line.contains(words)).count()
        }

        async fn hears(&self, words: &str) {
            let heard = async {
                while self.times(words) == 0 {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            let heard = tokio::time::timeout(Duration::from_secs(20), heard).await;
            assert!(heard.is_ok(), "{words}: only {:?}", self.0.lock().unwrap());
        }
    }

    #[tokio::test]
    async fn a_panic_while_loading_is_no_endless_start() {
        let (first_pass, heard) = oneshot::channel();
        let mut maintenance = KeyMaintenance {
            first_pass: Some(heard),
            ..KeyMaintenance::default()
        };
        drop(first_pass);
        let asked = tokio::spawn(async move { maintenance.loaded().await });
        let ended = tokio::time::timeout(Duration::from_secs(20), asked).await;
        assert!(ended.unwrap().unwrap_err().is_panic());
    }

    #[tokio::test]
    async fn trouble_at_the_start_is_said_once_and_its_end_too() {
        let heard = Heard::default();
        let _here =
            tracing::subscriber::set_default(tracing_subscriber::registry().with(heard.clone()));
        let dir = tempfile::TempDir::new().unwrap();
        let keys = config::KeySettings {
            dir: dir.path().to_owned(),
            token: config::TokenSettings {
                issuer: String::new(),
                expiry: Duration::from_secs(60),
                skew: Duration::ZERO,
            },
            prefix: "tb".to_owned(),
            spec: KeySpec::Es256,
            rotate_every: None,
            cache_time: Duration::from_secs(300),
            publish: Publish::File {
                path: dir.path().join("jwks.json"),
            },
        };
        let broken = dir.path().join("tb-1740172800.private.jwk");
        std::fs::write(&broken, "no key").unwrap();

        let life = keys.life();
        let mut maintenance = KeyMaintenance::start(life, Meter::default());
        maintenance.loaded().await.unwrap();
        assert_eq!(heard.times("is not used"), 1);
        // Once a second broken file is reported, a pass with the first trouble still there is over.
        std::fs::write(dir.path().join("tb-1740172801.private.jwk"), "no key").unwrap();
        maintenance.check_now();
        heard.hears("tb-1740172801.private.jwk is not used").await;
        assert_eq!(heard.times("tb-1740172800.private.jwk is not used"), 1);

        std::fs::remove_file(&broken).unwrap();
        std::fs::remove_file(dir.path().join("tb-1740172801.private.jwk")).unwrap();
        maintenance.check_now();
        heard.hears("the problems with the keys are solved").await;
        assert_eq!(heard.times("the problems with the keys are solved"), 1);
    }
}
