//! The provider's state while the server runs: which database has it, whether that answers, how
//! much there is, and the sweep of what has expired.
//!
//! Invariants
//! - A database that is away is no reason to end, nor to refuse to start. Each request tries it
//!   and is told 503; nothing must be restarted when it is back.
//! - That it is away is one line in the log, and that it is back is another, with the number of
//!   calls that failed in between.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use jiff::Timestamp;
use parking_lot::Mutex;
use tailbone_oidc::store::{
    CallKind, Client, LiveRows, Postgres, PostgresSettings, Sqlite, Store, StoreError, Watched,
    Watcher,
};

use super::client_files::FileClients;
use crate::{
    config::{OidcPostgres, OidcSettings, OidcStore},
    part::{PartError, ProviderReport},
    telemetry::{meter::Meter, readiness::LatchState},
};

/// The database in the component's directory.
pub const DATABASE: &str = "oidc.db";

/// For a connection to PostgreSQL, and for each call.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Pause before PostgreSQL is asked again at the start, and before clients are copied again.
pub(super) const AGAIN: Duration = Duration::from_secs(2);

/// How often rows are counted and expired ones looked for, and how many of each kind are deleted at
/// once.
const SWEEP_EVERY: Duration = Duration::from_secs(600);
const SWEEP_ROWS: u32 = 500;
const SWEEP_PAUSE: Duration = Duration::from_millis(100);

/// The store that the settings name, watched.
#[derive(Debug, Clone)]
pub(super) struct State {
    pub(super) store: Arc<dyn Store>,
    health: Arc<Health>,
    /// What is still to be reached for the first time.
    postgres: Option<Arc<Postgres>>,
}

pub(super) type Latch = Box<dyn Fn() -> LatchState + Send + Sync>;

/// Clients of the tsidp that is replaced.
#[derive(Debug)]
pub(super) struct Import {
    pub(super) source: String,
    pub(super) clients: Vec<Client>,
}

impl State {
    /// Opens the file of SQLite. PostgreSQL is asked by [`Self::begin`].
    pub(super) fn open(settings: &OidcSettings, meter: &Meter) -> Result<Self, PartError> {
        let health = |phase| {
            Arc::new(Health {
                phase: Mutex::new(phase),
                imports: AtomicBool::new(false),
                files: AtomicBool::new(false),
                meter: meter.clone(),
            })
        };
        Ok(match &settings.store {
            OidcStore::Sqlite => {
                let database = Arc::new(Sqlite::open(&settings.dir.join(DATABASE))?);
                let health = health(Phase::Answers);
                Self {
                    store: Arc::new(Watched::new(database, health.clone())),
                    health,
                    postgres: None,
                }
            }
            OidcStore::Postgres(address) => {
                let database = Arc::new(Postgres::new(&postgres_settings(address))?);
                let health = health(Phase::Starting);
                Self {
                    store: Arc::new(Watched::new(database.clone(), health.clone())),
                    health,
                    postgres: Some(database),
                }
            }
        })
    }

    /// Reaches the database for the first time, then copies clients and applies those of files, in
    /// a task that tries again until all is done.
    pub(super) fn begin(&self, import: Option<Import>, files: Option<FileClients>) {
        let (store, health) = (self.store.clone(), self.health.clone());
        let postgres = self.postgres.clone();
        if postgres.is_none() && import.is_none() && files.is_none() {
            return;
        }
        health.imports.store(import.is_some(), Ordering::Release);
        health.files.store(files.is_some(), Ordering::Release);
        tokio::spawn(async move {
            if let Some(postgres) = postgres {
                reach(&postgres, store.place()).await;
                *health.phase.lock() = Phase::Answers;
            }
            if let Some(import) = import {
                copy(&*store, &import).await;
                health.imports.store(false, Ordering::Release);
            }
            if let Some(files) = files {
                files.apply(&*store).await;
                health.files.store(false, Ordering::Release);
            }
        });
    }

    /// Whether the database answers, and whether clients are still to be copied.
    pub(super) fn latches(&self) -> [(&'static str, Latch); 2] {
        let (health, copied) = (self.health.clone(), self.health.clone());
        [
            ("oidc-store", Box::new(move || health.latch())),
            ("oidc-clients", Box::new(move || copied.import_latch())),
        ]
    }

    pub(super) fn upkeep(self, report: ProviderReport) -> Upkeep {
        Upkeep {
            state: self,
            report,
            swept: Arc::new(Mutex::new(None)),
        }
    }
}

/// How the store of these settings is reached.
pub fn postgres_settings(address: &OidcPostgres) -> PostgresSettings {
    PostgresSettings {
        address: address.url.clone(),
        password: address.password.clone(),
        authorities: address.ca_file.clone(),
        connections: address.connections,
        timeout: TIMEOUT,
    }
}

/// Returns when the database has the tables of this version.
async fn reach(postgres: &Postgres, place: &str) {
    let mut told = BTreeSet::new();
    let mut failures = 0_u64;
    loop {
        let Err(error) = postgres.prepare().await else {
            break;
        };
        failures += 1;
        // Each reason once: one may give way to another, as when a database starts.
        let words = error.to_string();
        if told.insert(words.clone()) {
            tracing::error!(target: "oidc", error = words, "the store cannot be used yet");
        }
        tokio::time::sleep(AGAIN).await;
    }
    tracing::info!(target: "oidc", store = place, failures, "the store answers");
}

/// Copies clients of tsidp, unless that has happened before. Tries again while the store does not
/// answer.
async fn copy(store: &dyn Store, import: &Import) {
    let Import { source, clients } = import;
    let mut told = String::new();
    loop {
        let imported = store
            .import_clients(source, clients, Timestamp::now())
            .await;
        match imported {
            Ok(imported) => {
                tracing::info!(target: "oidc", source, ?imported, "tsidp's clients are here");
                return;
            }
            Err(error) => {
                let words = error.to_string();
                if words != told {
                    tracing::error!(target: "oidc", source, error = words, "tsidp's clients could not be copied yet");
                    told = words;
                }
                tokio::time::sleep(AGAIN).await;
            }
        }
    }
}

/// Whether the store answers, as its calls say.
#[derive(Debug)]
struct Health {
    phase: Mutex<Phase>,
    /// Clients of tsidp are still to be copied.
    imports: AtomicBool,
    /// Clients of files are still to be applied for the first time.
    files: AtomicBool,
    meter: Meter,
}

#[derive(Debug)]
enum Phase {
    Answers,
    Away {
        since: Instant,
        failures: u64,
        /// Since the last check.
        lately: bool,
    },
    Starting,
}

impl Health {
    fn latch(&self) -> LatchState {
        match &*self.phase.lock() {
            Phase::Answers => LatchState::Released,
            // All replicas have the same database. Whoever asks is told 503, and the documents are
            // still served.
            Phase::Away { .. } => LatchState::Degraded(
                "the database of the OpenID provider does not answer; the log says why".to_owned(),
            ),
            Phase::Starting => LatchState::Held(
                "the database of the OpenID provider was not reached since the start; the log \
                 says why"
                    .to_owned(),
            ),
        }
    }

    fn import_latch(&self) -> LatchState {
        if self.imports.load(Ordering::Acquire) {
            return LatchState::Held("the clients of tsidp are being copied".to_owned());
        }
        if self.files.load(Ordering::Acquire) {
            return LatchState::Held("the clients of files are not applied yet".to_owned());
        }
        LatchState::Released
    }

    fn failed(&self, error: &StoreError) {
        let mut phase = self.phase.lock();
        match &mut *phase {
            Phase::Answers => {
                tracing::error!(target: "oidc", error = %error, "the store does not answer");
                *phase = Phase::Away {
                    since: Instant::now(),
                    failures: 1,
                    lately: true,
                };
            }
            Phase::Away {
                failures, lately, ..
            } => {
                *failures += 1;
                *lately = true;
            }
            Phase::Starting => {}
        }
    }

    /// The check of a tick was answered. With a full disk it is as well, while changes fail: so
    /// nothing else may have failed since the check before.
    fn checked(&self) {
        let mut phase = self.phase.lock();
        if let Phase::Away {
            since,
            failures,
            lately,
        } = &mut *phase
        {
            if std::mem::take(lately) {
                return;
            }
            let seconds = since.elapsed().as_secs();
            tracing::warn!(target: "oidc", failures, seconds, "the store answers again");
            *phase = Phase::Answers;
        }
    }

    fn is_starting(&self) -> bool {
        matches!(*self.phase.lock(), Phase::Starting)
    }
}

impl Watcher for Health {
    fn begin(&self) -> Instant {
        Instant::now()
    }

    fn ended(&self, kind: CallKind, begun: Instant, error: Option<&StoreError>) {
        let (call, measured) = match kind {
            CallKind::Bulk => ("bulk", false),
            CallKind::Read => ("read", true),
            CallKind::Write => ("write", true),
        };
        let result = match error {
            None => "done",
            Some(StoreError::Full { .. }) => "full",
            Some(StoreError::Unavailable { .. }) => "unavailable",
            Some(_) => "failed",
        };
        let took = measured.then(|| begun.elapsed());
        self.meter.oidc_store_called(call, result, took);
        if let Some(error @ (StoreError::Full { .. } | StoreError::Unavailable { .. })) = error {
            self.failed(error);
        }
    }
}

/// Asks whether the store answers, counts what lives there, and deletes what has expired, a little
/// at a time.
#[derive(Clone)]
pub(super) struct Upkeep {
    state: State,
    report: ProviderReport,
    /// When counting and sweeping last began with a store that answered.
    swept: Arc<Mutex<Option<Instant>>>,
}

impl Upkeep {
    /// Comes every few seconds.
    pub(super) fn tick(&self) {
        if self.state.health.is_starting() {
            return;
        }
        let upkeep = self.clone();
        tokio::spawn(async move { upkeep.keep().await });
    }

    async fn keep(&self) {
        if self.state.store.check().await.is_err() {
            return;
        }
        self.state.health.checked();
        if self.is_sweep_due() {
            // Counted first: the sweep takes long if much has expired.
            self.count_all().await;
            self.sweep_all().await;
        }
    }

    /// If so, it is not due again for a while.
    fn is_sweep_due(&self) -> bool {
        let mut swept = self.swept.lock();
        let due = swept.is_none_or(|swept| swept.elapsed() >= SWEEP_EVERY);
        if due {
            *swept = Some(Instant::now());
        }
        due
    }

    async fn count_all(&self) {
        let now = Timestamp::now();
        match self.state.store.count_live(now).await {
            Ok(rows) => {
                self.report.counted(rows, now);
                for (kind, rows) in kinds(&rows) {
                    self.state.health.meter.oidc_rows_counted(kind, rows);
                }
            }
            Err(error) => {
                tracing::debug!(target: "oidc", error = %error, "rows could not be counted");
            }
        }
    }

    async fn sweep_all(&self) {
        let mut rows = 0;
        loop {
            match self.state.store.sweep(SWEEP_ROWS, Timestamp::now()).await {
                Ok(swept) => {
                    rows += swept.rows;
                    self.state.health.meter.oidc_rows_swept(swept.rows);
                    if !swept.more {
                        self.report.swept(rows, Timestamp::now());
                        return;
                    }
                    tokio::time::sleep(SWEEP_PAUSE).await;
                }
                Err(error) => {
                    tracing::debug!(target: "oidc", error = %error, "expired rows could not be deleted");
                    return;
                }
            }
        }
    }
}

/// The kinds of rows, in the words of the metric.
fn kinds(rows: &LiveRows) -> [(&'static str, u64); 7] {
    let LiveRows {
        access_tokens,
        assertions,
        clients,
        devices,
        grants,
        pushed_requests,
        sessions,
    } = *rows;
    [
        ("access-token", access_tokens),
        ("assertion", assertions),
        ("client", clients),
        ("device", devices),
        ("grant", grants),
        ("pushed-request", pushed_requests),
        ("session", sessions),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn health(phase: Phase) -> Health {
        Health {
            phase: Mutex::new(phase),
            imports: AtomicBool::new(false),
            files: AtomicBool::new(false),
            meter: Meter::default(),
        }
    }

    fn away() -> StoreError {
        StoreError::Unavailable {
            place: "postgres:db.example:5432/idp".to_owned(),
            detail: "connection refused".to_owned(),
        }
    }

    #[test]
    fn a_store_that_is_away_degrades_and_is_back_when_a_whole_tick_was_quiet() {
        let health = health(Phase::Answers);
        let call = |error: Option<&StoreError>| {
            health.ended(CallKind::Write, Instant::now(), error);
        };
        call(None);
        assert_eq!(health.latch(), LatchState::Released);
        call(Some(&away()));
        call(Some(&away()));
        let LatchState::Degraded(reason) = health.latch() else {
            panic!("not degraded");
        };
        assert!(!reason.contains("db.example"), "{reason}");
        // A read is answered, and a change was not.
        health.checked();
        assert!(matches!(health.latch(), LatchState::Degraded(_)));
        health.checked();
        assert_eq!(health.latch(), LatchState::Released);
    }

    #[test]
    fn a_store_that_was_never_reached_holds_whatever_its_calls_say() {
        let health = health(Phase::Starting);
        health.ended(CallKind::Read, Instant::now(), Some(&away()));
        health.checked();
        assert!(matches!(health.latch(), LatchState::Held(_)));
    }

    #[test]
    fn what_is_wrong_with_one_request_is_no_trouble_of_the_store() {
        let health = health(Phase::Answers);
        let unsuitable = StoreError::Unsuitable { what: "a name" };
        health.ended(CallKind::Read, Instant::now(), Some(&unsuitable));
        assert_eq!(health.latch(), LatchState::Released);
    }

    #[tokio::test]
    async fn the_first_tick_counts_and_sweeps_and_the_next_one_does_neither() {
        let folder = tempfile::tempdir().unwrap();
        let database = Sqlite::open(&folder.path().join(DATABASE)).unwrap();
        let report = ProviderReport::default();
        report.begin("https://idp.example.ts.net", Store::place(&database));
        let state = State {
            store: Arc::new(database),
            health: Arc::new(health(Phase::Answers)),
            postgres: None,
        };
        let (store, upkeep) = (state.store.clone(), state.upkeep(report.clone()));
        let now = Timestamp::now();
        let use_one = async |name: &str, seconds: i64| {
            let until = now + jiff::SignedDuration::from_secs(seconds);
            let digest = tailbone_oidc::store::Digest::of(name);
            assert!(store.use_assertion(digest, until, now).await.unwrap());
        };
        use_one("alive", 60).await;
        upkeep.keep().await;
        let first = report.get().unwrap();
        let (rows, _) = first.live.unwrap();
        assert_eq!(
            rows,
            LiveRows {
                assertions: 1,
                ..LiveRows::default()
            }
        );
        assert_eq!(first.swept.unwrap().0, 0);
        use_one("alive too", 60).await;
        upkeep.keep().await;
        assert_eq!(report.get().unwrap(), first);
    }
}
