//! Keeps token files fresh, one for each audience, for programs that read
//! `AWS_WEB_IDENTITY_TOKEN_FILE`, `AZURE_FEDERATED_TOKEN_FILE` or the like again and again.
//!
//! Invariants
//! - A reader finds the old token or the new one, never a part of one: files are exchanged
//!   atomically.
//! - A token is renewed before two thirds of its life are over. While the issuer is away the old
//!   file stays, and attempts become rarer, at most `MAX_PAUSE` apart.
//! - Files do not wait for each other.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use ::http::header;
use axum::{Router, extract::State, response::IntoResponse, routing::get};
use futures_util::future::join_all;
use jiff::Timestamp;
use parking_lot::Mutex;
use prometheus_client::{
    encoding::text,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use serde::Serialize;
use tokio::sync::watch;

use super::issuer::{IssuedToken, Issuer, TokenError, unverified_claims};
use crate::{
    http::json::Json,
    keys::disk::{self, DiskError, Probe},
    telemetry,
};

/// The pause after the first failed attempt, doubled after each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// The longest wait that an issuer's `Retry-After` can ask for.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(60);
/// A machine that slept has timers that did not run, so the clock is read this often.
const CLOCK_CHECK: Duration = Duration::from_secs(15);
const MAX_TOKEN_BYTES: u64 = 1 << 20;

/// A file that holds a token for an audience.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenFile {
    pub audience: String,
    pub path: PathBuf,
}

#[derive(Debug, Clone)]
pub struct AgentSettings {
    pub files: Vec<TokenFile>,
    /// Permissions of the token files.
    pub mode: u32,
    /// Where the agent writes how it is, as JSON.
    pub health_file: Option<PathBuf>,
}

/// Why a file was not renewed.
#[derive(Debug, thiserror::Error)]
pub enum RenewalError {
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error("the token cannot be written")]
    Write(#[from] DiskError),
}

/// Some files have no new token; `cause` is the first one's.
#[derive(Debug, thiserror::Error)]
#[error("{failed} of {all} token files were not written; {path}")]
pub struct OnceError {
    failed: usize,
    all: usize,
    path: String,
    #[source]
    cause: RenewalError,
}

/// How all files are, and the word for it.
#[derive(Debug, Clone, Serialize)]
pub struct AgentStatus {
    pub status: AgentHealth,
    pub files: Vec<FileStatus>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AgentHealth {
    /// Each file holds a valid token, although a renewal fails at present.
    Failing,
    /// A file holds no valid token.
    Down,
    /// Each file holds a valid token.
    Ok,
}

/// One file. Times are Unix seconds.
#[derive(Debug, Clone, Serialize)]
pub struct FileStatus {
    pub audience: String,
    pub path: PathBuf,
    pub expires_on: Option<i64>,
    pub renewed_on: Option<i64>,
    pub renew_on: Option<i64>,
    /// Failed attempts since the last renewal.
    pub failures: u32,
    pub error: Option<String>,
    #[serde(skip)]
    renewals: u64,
    #[serde(skip)]
    all_failures: u64,
}

impl FileStatus {
    /// What is known before the first attempt: a file of an earlier run may still be good.
    fn of_file(file: &TokenFile) -> Self {
        let old = disk::read(&file.path, MAX_TOKEN_BYTES).ok().flatten();
        let claims = old.and_then(|token| unverified_claims(std::str::from_utf8(&token).ok()?));
        Self {
            audience: file.audience.clone(),
            path: file.path.clone(),
            expires_on: claims.and_then(|claims| claims.get("exp")?.as_i64()),
            renewed_on: None,
            renew_on: None,
            failures: 0,
            error: None,
            renewals: 0,
            all_failures: 0,
        }
    }
}

/// The files and their issuer. Clones share the state of the files.
#[derive(Debug, Clone)]
pub struct Agent {
    issuer: Issuer,
    settings: Arc<AgentSettings>,
    files: Arc<Mutex<Vec<FileStatus>>>,
}

impl Agent {
    pub fn new(issuer: Issuer, settings: AgentSettings) -> Self {
        let files = settings.files.iter().map(FileStatus::of_file).collect();
        Self {
            issuer,
            settings: Arc::new(settings),
            files: Arc::new(Mutex::new(files)),
        }
    }

    pub fn status(&self, now: Timestamp) -> AgentStatus {
        let files = self.files.lock().clone();
        let valid = |file: &FileStatus| file.expires_on.is_some_and(|end| end > now.as_second());
        let status = if !files.iter().all(valid) {
            AgentHealth::Down
        } else if files.iter().any(|file| file.failures > 0) {
            AgentHealth::Failing
        } else {
            AgentHealth::Ok
        };
        AgentStatus { status, files }
    }

    /// Renews each file once, without retries.
    pub async fn once(&self) -> Result<(), OnceError> {
        let all = self.settings.files.len();
        let renewals = (0..all).map(|index| self.renew(index));
        let mut failed: Vec<_> = join_all(renewals)
            .await
            .into_iter()
            .enumerate()
            .filter_map(|(index, renewal)| Some((index, renewal.err()?)))
            .collect();
        self.write_health();
        if failed.is_empty() {
            return Ok(());
        }
        let count = failed.len();
        let (index, cause) = failed.swap_remove(0);
        Err(OnceError {
            failed: count,
            all,
            path: self.settings.files[index].path.display().to_string(),
            cause,
        })
    }

    /// Renews the files for ever. A change of `renew` renews all of them now.
    pub async fn run(&self, renew: watch::Receiver<u64>) {
        let all = self.settings.files.len();
        join_all((0..all).map(|index| self.keep_fresh(index, renew.clone()))).await;
    }

    async fn keep_fresh(&self, index: usize, mut renew: watch::Receiver<u64>) {
        let file = &self.settings.files[index];
        let (audience, path) = (&file.audience, file.path.display());
        loop {
            renew.mark_unchanged();
            let outcome = self.renew(index).await;
            let pause = match &outcome {
                Ok(token) => renewal_pause(token.life, random()),
                Err(error) => {
                    let failures = self.files.lock()[index].failures;
                    failure_pause(failures, retry_after(error), random())
                }
            };
            let due = Due::in_(pause);
            self.files.lock()[index].renew_on = Some(due.at.as_second());
            self.write_health();
            match outcome {
                Ok(token) => {
                    let end = token.expires;
                    tracing::info!(target: "workload", audience, %path, %end, "renewed the token");
                }
                Err(error) => {
                    let error = telemetry::error_chain(&error);
                    let seconds = pause.as_secs_f32();
                    tracing::warn!(
                        target: "workload", audience, %path, error, "the token is not renewed; \
                         trying again in {seconds:.1} s"
                    );
                }
            }
            due.wait(&mut renew).await;
        }
    }

    /// One attempt, whose outcome is in the file's state afterwards.
    async fn renew(&self, index: usize) -> Result<IssuedToken, RenewalError> {
        let file = &self.settings.files[index];
        let outcome = self.fetch_and_write(file).await;
        let now = Timestamp::now().as_second();
        let mut files = self.files.lock();
        let state = &mut files[index];
        match &outcome {
            Ok(token) => {
                state.expires_on = Some(token.expires.as_second());
                state.renewed_on = Some(now);
                state.renewals += 1;
                state.failures = 0;
                state.error = None;
            }
            Err(error) => {
                state.failures = state.failures.saturating_add(1);
                state.all_failures += 1;
                state.error = Some(telemetry::error_chain(error));
            }
        }
        outcome
    }

    async fn fetch_and_write(&self, file: &TokenFile) -> Result<IssuedToken, RenewalError> {
        let token = self.issuer.token(&file.audience, Timestamp::now()).await?;
        // No line end: some readers send the file as it is.
        let bytes = token.token.reveal().as_bytes();
        disk::write(&file.path, bytes, self.settings.mode, &Probe::default())?;
        Ok(token)
    }

    fn write_health(&self) {
        let Some(path) = &self.settings.health_file else {
            return;
        };
        let status = self.status(Timestamp::now());
        let written = serde_json::to_vec(&status)
            .map_err(|error| error.to_string())
            .and_then(|bytes| {
                disk::write(path, &bytes, 0o644, &Probe::default())
                    .map_err(|error| telemetry::error_chain(&error))
            });
        if let Err(error) = written {
            tracing::warn!(target: "workload", error, "the health file cannot be written");
        }
    }

    /// `GET /metrics` in Prometheus' format and `GET /healthz`.
    pub fn router(&self) -> Router {
        Router::new()
            .route("/metrics", get(scrape))
            .route("/healthz", get(health))
            .with_state(self.clone())
    }

    fn registry(&self) -> Registry {
        let renewals = Family::<Vec<(&str, String)>, Counter>::default();
        let ends = Family::<Vec<(&str, String)>, Gauge>::default();
        for file in self.files.lock().iter() {
            let labels = |result: Option<&str>| {
                let path = file.path.display().to_string();
                let mut labels = vec![("audience", file.audience.clone()), ("path", path)];
                labels.extend(result.map(|result| ("result", result.to_owned())));
                labels
            };
            let count = |result, count| {
                renewals.get_or_create(&labels(Some(result))).inc_by(count);
            };
            count("ok", file.renewals);
            count("failed", file.all_failures);
            if let Some(end) = file.expires_on {
                ends.get_or_create(&labels(None)).set(end);
            }
        }
        let mut root = Registry::with_prefix("tailbone_workload_agent");
        root.register("renewals", "Attempts to renew a token file", renewals);
        root.register(
            "token_expiry_timestamp_seconds",
            "When the token in the file expires",
            ends,
        );
        root
    }
}

async fn scrape(State(agent): State<Agent>) -> impl IntoResponse {
    const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let mut body = String::new();
    match text::encode(&mut body, &agent.registry()) {
        Ok(()) => Ok(([(header::CONTENT_TYPE, CONTENT_TYPE)], body)),
        Err(_) => Err(::http::StatusCode::INTERNAL_SERVER_ERROR),
    }
}

/// 200 while each file holds a valid token.
async fn health(State(agent): State<Agent>) -> impl IntoResponse {
    let status = agent.status(Timestamp::now());
    let code = match status.status {
        AgentHealth::Down => ::http::StatusCode::SERVICE_UNAVAILABLE,
        AgentHealth::Failing | AgentHealth::Ok => ::http::StatusCode::OK,
    };
    (code, Json(status))
}

fn retry_after(error: &RenewalError) -> Option<Duration> {
    match error {
        RenewalError::Token(error) => error.retry_after(),
        RenewalError::Write(_) => None,
    }
}

/// A moment, by the clock and by the timer: whichever comes first counts.
struct Due {
    at: Timestamp,
    timer: Instant,
}

impl Due {
    fn in_(pause: Duration) -> Self {
        let now = Timestamp::now();
        Self {
            at: now.checked_add(pause).unwrap_or(Timestamp::MAX),
            timer: Instant::now() + pause,
        }
    }

    /// Returns at the moment, or when `renew` changes.
    async fn wait(&self, renew: &mut watch::Receiver<u64>) {
        loop {
            let left = self.timer.saturating_duration_since(Instant::now());
            if left.is_zero() || Timestamp::now() >= self.at {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(left.min(CLOCK_CHECK)) => {}
                changed = renew.changed() => match changed {
                    Ok(()) => return,
                    // Nobody can ask for a renewal any more.
                    Err(_) => tokio::time::sleep(left.min(CLOCK_CHECK)).await,
                },
            }
        }
    }
}

/// From half of the life to three fifths, so that many agents do not ask at the same moment.
/// `random` is from 0 to 1.
fn renewal_pause(life: Duration, random: f64) -> Duration {
    life.mul_f64(0.5 + 0.1 * random)
}

/// `failures` counts from 1.
fn failure_pause(failures: u32, retry_after: Option<Duration>, random: f64) -> Duration {
    let doublings = failures.saturating_sub(1).min(5);
    let pause = (FIRST_PAUSE * (1 << doublings)).min(MAX_PAUSE);
    let pause = pause.mul_f64(0.5 + 0.5 * random);
    pause.max(retry_after.unwrap_or_default().min(MAX_RETRY_AFTER))
}

/// From 0 to 1.
fn random() -> f64 {
    let mut byte = [128];
    // Without random numbers the pause is in the middle.
    let _ = aws_lc_rs::rand::fill(&mut byte);
    f64::from(byte[0]) / 255.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_renewed_before_two_thirds_of_its_life() {
        for seconds in [1, 60, 300, 3600, 86_400] {
            let life = Duration::from_secs(seconds);
            for random in [0.0, 0.3, 1.0] {
                let pause = renewal_pause(life, random);
                assert!(
                    pause >= life / 2 && pause < life * 2 / 3,
                    "{pause:?} of {life:?}"
                );
            }
        }
    }

    #[test]
    fn attempts_become_rarer_up_to_a_bound() {
        let pauses: Vec<_> = (1..=8)
            .map(|failures| failure_pause(failures, None, 1.0).as_secs())
            .collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30, 30]);
        assert_eq!(failure_pause(u32::MAX, None, 0.0), MAX_PAUSE / 2);
        assert_eq!(
            failure_pause(1, Some(Duration::from_secs(20)), 0.0),
            Duration::from_secs(20)
        );
        assert_eq!(
            failure_pause(1, Some(Duration::from_secs(86_400)), 0.0),
            MAX_RETRY_AFTER
        );
    }

    #[tokio::test]
    async fn a_clock_that_jumped_ends_the_wait() {
        let (_renew, mut changes) = watch::channel(0);
        let due = Due {
            at: Timestamp::UNIX_EPOCH,
            timer: Instant::now() + Duration::from_secs(3600),
        };
        due.wait(&mut changes).await;
    }
}
