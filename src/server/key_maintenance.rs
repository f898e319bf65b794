//! Keeps the keys in order while the server runs: checks them every second, logs what changed, and
//! writes an audit line for each change.

use std::{collections::BTreeMap, panic, sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::{
    sync::{Notify, oneshot},
    time::MissedTickBehavior,
};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    jwks::{
        KeySet,
        life::{LifeError, Outcome, Report},
    },
    keys::Algorithm,
    telemetry::meter::Meter,
};

/// The time between two checks of the key directories. `KeySet::poll` checks the published document
/// less often.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// The time before a vault that gave no keys at the start is asked again; it doubles up to the
/// longest.
const FIRST_VAULT_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_VAULT_PAUSE: Duration = Duration::from_secs(15);

/// Keeps the keys of all sets in order; of none if nothing signs. Dropping this ends the tasks, if
/// need be within a pass, which is safe anywhere.
#[derive(Debug, Default)]
pub(super) struct KeyMaintenance {
    tasks: Vec<Maintained>,
}

/// The task of one set.
#[derive(Debug)]
struct Maintained {
    check_requested: Arc<Notify>,
    /// The outcome of the first pass, until it is asked for.
    first_pass: Option<oneshot::Receiver<Result<(), LifeError>>>,
    _task: Option<AbortOnDropHandle<()>>,
}

impl KeyMaintenance {
    /// Loads the keys, makes the first ones where there are none, and then keeps them in order.
    pub(super) fn start(sets: Vec<KeySet>, meter: &Meter) -> Self {
        let several = sets.len() > 1;
        let start = |set: KeySet| {
            let check_requested = Arc::new(Notify::new());
            let (first_pass, outcome) = oneshot::channel();
            let problems = LoggedProblems {
                set: several.then(|| set.name().to_owned()),
                ..LoggedProblems::default()
            };
            let requested = check_requested.clone();
            let task = tokio::spawn(maintain(
                set,
                first_pass,
                requested,
                meter.clone(),
                problems,
            ));
            Maintained {
                check_requested,
                first_pass: Some(outcome),
                _task: Some(AbortOnDropHandle::new(task)),
            }
        };
        Self {
            tasks: sets.into_iter().map(start).collect(),
        }
    }

    /// Waits until all keys are loaded. After an error, nothing keeps those of the set in order.
    /// Cancel safe.
    pub(super) async fn loaded(&mut self) -> Result<(), LifeError> {
        for task in &mut self.tasks {
            let Some(first_pass) = &mut task.first_pass else {
                continue;
            };
            match first_pass.await {
                Ok(outcome) => {
                    task.first_pass = None;
                    outcome?;
                }
                // The sender is dropped only on panic (already logged); propagate it.
                Err(dropped) => panic::resume_unwind(Box::new(dropped)),
            }
        }
        Ok(())
    }

    /// Checks the keys at once, as on a hang-up signal.
    pub(super) fn check_now(&self) {
        for task in &self.tasks {
            task.check_requested.notify_one();
        }
    }
}

async fn maintain(
    set: KeySet,
    first_pass: oneshot::Sender<Result<(), LifeError>>,
    check_requested: Arc<Notify>,
    meter: Meter,
    mut problems: LoggedProblems,
) {
    let loaded = load(&set, &check_requested, &mut problems).await;
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
            _ = ticks.tick() => set.poll(Timestamp::now()).await,
            () = check_requested.notified() => set.sync(Timestamp::now()).await,
        };
        match outcome {
            Ok(reports) if reports.is_empty() => {}
            Ok(reports) => {
                for (_, report) in &reports {
                    meter.jwks_read(report.document_trouble.is_none());
                    for done in &report.done {
                        meter.key_changed(done.action, matches!(done.outcome, Outcome::Done));
                    }
                }
                problems.log_reports(&reports);
            }
            Err(error) => {
                meter.jwks_read(false);
                problems.log_error(&error);
            }
        }
    }
}

/// Reads the keys for the first time. A vault that does not give them is asked again and again, and
/// the readiness latch says why; everything else that is wrong is an error.
async fn load(
    set: &KeySet,
    check_requested: &Notify,
    problems: &mut LoggedProblems,
) -> Result<(), LifeError> {
    let mut pause = FIRST_VAULT_PAUSE;
    let reports = loop {
        match set.start(Timestamp::now()).await {
            Ok(reports) => break reports,
            Err(error) if error.vault_trouble().is_some() => problems.log_error(&error),
            Err(error) => return Err(error),
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => pause = (pause * 2).min(LONGEST_VAULT_PAUSE),
            () = check_requested.notified() => {}
        }
    };
    problems.log_reports(&reports);
    for (_, report) in &reports {
        if report.no_signer.is_none() {
            let set = problems.set.as_deref();
            tracing::info!(target: "keys", set, place = report.place, kid = signing_kid(report), "keys loaded");
        }
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
    /// The set's name, if there are several.
    set: Option<String>,
    /// Those of each life, since not all are due at once; under `None` an error of the last pass.
    problems: BTreeMap<Option<Algorithm>, Vec<String>>,
}

impl LoggedProblems {
    fn log_reports(&mut self, reports: &[(Algorithm, Report)]) {
        let mut now = self.problems.clone();
        now.remove(&None);
        for (algorithm, report) in reports {
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
            now.insert(Some(*algorithm), problems.collect());
        }
        self.log_new(now);
    }

    fn log_error(&mut self, error: &LifeError) {
        self.log_new([(None, vec![error.to_string()])].into());
    }

    fn log_new(&mut self, now: BTreeMap<Option<Algorithm>, Vec<String>>) {
        let mut known: Vec<&String> = self.problems.values().flatten().collect();
        let any_before = !known.is_empty();
        let set = self.set.as_deref();
        for problem in now.values().flatten() {
            if !known.contains(&problem) {
                tracing::warn!(target: "keys", set, "{problem}");
                known.push(problem);
            }
        }
        if any_before && now.values().all(Vec::is_empty) {
            tracing::info!(target: "keys", set, "the problems with the keys are solved");
        }
        self.problems = now;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    };

    use futures_util::{FutureExt as _, future::BoxFuture};
    use prometheus_client::registry::Registry;
    use tracing_subscriber::{Layer, layer::SubscriberExt};
    use zeroize::Zeroizing;

    use super::*;
    use crate::{
        config::{self, KeySpec, Publish},
        jwks::FilePublisher,
        keys::{
            KeyId, KeyPolicy, KeyStore,
            sealing::{SealError, Sealing},
        },
    };

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
            tasks: vec![Maintained {
                check_requested: Arc::default(),
                first_pass: Some(heard),
                _task: None,
            }],
        };
        drop(first_pass);
        let asked = tokio::spawn(async move { maintenance.loaded().await });
        let ended = tokio::time::timeout(Duration::from_secs(20), asked).await;
        assert!(ended.unwrap().unwrap_err().is_panic());
    }

    /// A vault whose sealed keys are the keys.
    #[derive(Debug, Default)]
    struct Vault {
        away: AtomicBool,
    }

    impl Vault {
        fn answer<T: Send + 'static>(&self, answer: T) -> BoxFuture<'_, Result<T, SealError>> {
            let away = self.away.load(Ordering::Relaxed);
            let answer = if away {
                let place = "https://vault.example".to_owned();
                let detail = "503".to_owned();
                Err(SealError::Away { place, detail })
            } else {
                Ok(answer)
            };
            std::future::ready(answer).boxed()
        }
    }

    impl Sealing for Vault {
        fn kind(&self) -> &'static str {
            "test"
        }

        fn place(&self) -> &str {
            "https://vault.example"
        }

        fn seal<'a>(
            &'a self,
            _: &'a KeyId,
            key: &'a [u8],
        ) -> BoxFuture<'a, Result<Vec<u8>, SealError>> {
            self.answer(key.to_vec())
        }

        fn open<'a>(
            &'a self,
            sealed: &'a [u8],
        ) -> BoxFuture<'a, Result<Zeroizing<Vec<u8>>, SealError>> {
            self.answer(Zeroizing::new(sealed.to_vec()))
        }

        fn discard<'a>(&'a self, _: &'a [u8]) -> BoxFuture<'a, Result<(), SealError>> {
            self.answer(())
        }
    }

    #[tokio::test]
    async fn a_vault_that_is_away_at_the_start_is_waited_for() {
        let heard = Heard::default();
        let _here =
            tracing::subscriber::set_default(tracing_subscriber::registry().with(heard.clone()));
        let folder = tempfile::tempdir().unwrap();
        let policy = KeyPolicy {
            token_life: Duration::from_secs(60),
            cache_time: Duration::from_secs(300),
            skew: Duration::ZERO,
            rotate_every: None,
            withdrawn_grace: Duration::ZERO,
        };
        let vault = Arc::new(Vault::default());
        let meter = Meter::default();
        let open = || {
            let store = KeyStore::new(folder.path().join("set")).with_sealing(vault.clone());
            let publisher = Arc::new(FilePublisher::new(folder.path().join("jwks.json")));
            let (spec, store) = (KeySpec::Es256, store.counted_by(&meter));
            KeySet::new("workload", store, publisher, &policy, "tb", spec, &[])
        };
        // Neither the first keys nor those of a restart are had without the vault.
        for _ in 0..2 {
            vault.away.store(true, Ordering::Relaxed);
            let set = open();
            let mut maintenance = KeyMaintenance::start(vec![set.clone()], &meter);
            let reason = "the vault of the private keys cannot be reached";
            becomes_true(|| {
                let refused = set.signer(Algorithm::Es256);
                refused.is_err_and(|refused| refused.to_string() == reason)
            })
            .await;
            vault.away.store(false, Ordering::Relaxed);
            maintenance.check_now();
            maintenance.loaded().await.unwrap();
            becomes_true(|| set.signer(Algorithm::Es256).is_ok()).await;
        }
        for told in [
            "the vault of the private keys cannot be reached",
            "https://vault.example cannot be reached",
            "the problems with the keys are solved",
        ] {
            heard.hears(told).await;
        }
        // What was tried while it was away has left nothing.
        let files = std::fs::read_dir(folder.path().join("set/ES256")).unwrap();
        let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
        assert_eq!(
            names.filter(|name| name.ends_with(".state.json")).count(),
            1
        );
        let mut registry = Registry::default();
        meter.register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for counted in [
            r#"service="test",call="seal",result="away""#,
            r#"service="test",call="seal",result="done""#,
            r#"service="test",call="open",result="away""#,
            r#"service="test",call="open",result="done""#,
        ] {
            assert!(text.contains(counted), "{counted}: {text}");
        }
    }

    async fn becomes_true(reached: impl Fn() -> bool) {
        let reached = async {
            while !reached() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let reached = tokio::time::timeout(Duration::from_secs(20), reached).await;
        reached.unwrap();
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
            signer: config::SignerSettings::default(),
            rotate_every: None,
            cache_time: Duration::from_secs(300),
            publish: Publish::File {
                path: dir.path().join("jwks.json"),
            },
        };
        let broken = dir.path().join("tb-1740172800.private.jwk");
        std::fs::write(&broken, "no key").unwrap();

        let set = KeySet::of("issuer", keys.life());
        let mut maintenance = KeyMaintenance::start(vec![set], &Meter::default());
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
