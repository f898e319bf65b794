//! One pass: read the directory and the document, carry out what is due, and give the server its
//! new snapshot of the keys.

mod actions;
mod inputs;
mod snapshot;

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde::Serialize;
use tailbone_telemetry::{audit, audit::Decision};

pub(in crate::jwks) use self::inputs::NewDocument;
use self::{actions::done, inputs::Inputs};
use super::{KeyLife, LifeError, PassState, present};
use crate::{
    KeyId, KeyView, NoSigner, Skipped,
    disk::Lock,
    jwks::{PublishError, Updated},
    rotation::{Action, KeyPlan, Observation, PassOptions, View},
};

/// Upper limit of decide-and-act rounds in one pass. A new key needs five (generate, publish,
/// activate, retire, and one that finds nothing left to do); one is spare.
const ROUNDS: usize = 6;

/// What a pass may change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// The directory and the document.
    Apply,
    /// Nothing. The report is the plan.
    DryRun,
    /// The document alone, since the directory cannot be written.
    ReadOnly,
}

impl Mode {
    pub(super) fn of(lock: Option<&Lock>) -> Self {
        if lock.is_some() {
            Self::Apply
        } else {
            Self::ReadOnly
        }
    }
}

/// What a pass did, or would do.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub place: String,
    /// Nothing was changed: this is the plan.
    pub dry_run: bool,
    /// Why the document could not be read, or that it does not exist.
    pub document_trouble: Option<String>,
    /// The same as an error value, if there may be a document that could not be read.
    #[serde(skip)]
    pub unread: Option<PublishError>,
    pub done: Vec<Done>,
    /// Where copies of the document were kept before keys were taken out.
    pub backups: Vec<String>,
    /// Other trouble: backups that could not be made, a read-only directory, writes that were lost.
    pub trouble: Vec<String>,
    pub skipped: Vec<Skipped>,
    /// The keys after the pass.
    pub keys: Vec<KeyView>,
    /// Why no key signs.
    pub no_signer: Option<String>,
    /// Why a service or a vault let no key be made.
    #[serde(skip)]
    pub not_made: Option<NoSigner>,
}

/// One action and its outcome.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Done {
    /// `publish`, `activate`, `retire`, `delete private half`, `expire`, `delete`, `finish
    /// removal`, `mend`, `generate`, `take over`
    pub action: &'static str,
    pub kid: Option<KeyId>,
    #[serde(flatten)]
    pub outcome: Outcome,
}

impl Done {
    /// The key of another program is in the directory now.
    pub(in crate::jwks) fn taken_over(kid: &KeyId) -> Self {
        Self {
            action: "take over",
            kid: Some(kid.clone()),
            outcome: Outcome::Done,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase", tag = "outcome", content = "reason")]
pub enum Outcome {
    Done,
    Failed(String),
    Planned,
}

impl KeyLife {
    /// Reads everything and does whatever is due. A server calls it at its ticks.
    pub async fn sync(&self, now: Timestamp) -> Result<Report, LifeError> {
        self.run(PassOptions::default(), now).await
    }

    /// As [`Self::sync`], and makes a key if there is none that can sign. If that fails now, a
    /// later pass makes it. A server calls it once at its start.
    pub async fn start(&self, now: Timestamp) -> Result<Report, LifeError> {
        let options = PassOptions {
            first_key: true,
            ..PassOptions::default()
        };
        self.run(options, now).await
    }

    pub(super) async fn run(
        &self,
        options: PassOptions,
        now: Timestamp,
    ) -> Result<Report, LifeError> {
        let asked = self.asked();
        let mut pass_state = self.inner.pass_state.lock().await;
        pass_state.asked = asked;
        let lock = self.lock_directory().await?;
        let options = PassOptions {
            first_key: options.first_key || pass_state.first_key_pending,
            ..options
        };
        let mode = Mode::of(lock.as_ref());
        let report = self.pass(&mut pass_state, mode, options, now).await;
        drop(lock);
        report
    }

    /// Call with both locks held.
    pub(super) async fn pass(
        &self,
        pass_state: &mut PassState,
        mode: Mode,
        options: PassOptions,
        now: Timestamp,
    ) -> Result<Report, LifeError> {
        let mut report = Report {
            place: self.place().to_owned(),
            dry_run: mode == Mode::DryRun,
            document_trouble: None,
            unread: None,
            done: Vec::new(),
            backups: Vec::new(),
            trouble: Vec::new(),
            skipped: Vec::new(),
            keys: Vec::new(),
            no_signer: None,
            not_made: None,
        };
        match mode {
            Mode::Apply => self.disk(move |store| store.sweep(now)).await?,
            Mode::DryRun => {}
            Mode::ReadOnly => report.trouble.push(format!(
                "{} cannot be written: keys are used as they are and nothing can be rotated",
                self.inner.store.directory().display()
            )),
        }
        let asked = pass_state.asked;
        let mut inputs = self.read_inputs(now, asked, &mut report).await?;
        let mut failed: BTreeSet<Action> = BTreeSet::new();
        let mut plan = self.decide(&inputs, options, present(now, asked));
        for _ in 0..ROUNDS {
            if mode == Mode::DryRun {
                report.done = plan
                    .actions
                    .iter()
                    .map(|action| done(action, Outcome::Planned))
                    .collect();
                break;
            }
            if mode == Mode::Apply {
                self.write_facts(&inputs, &mut report).await;
            }
            let due: Vec<Action> = plan
                .actions
                .iter()
                .filter(|action| {
                    !failed.contains(action)
                        && (mode == Mode::Apply || matches!(action, Action::Publish(_)))
                        && !self.left_to_the_set(action, &inputs)
                })
                .cloned()
                .collect();
            if due.is_empty() {
                break;
            }
            self.execute(&mut inputs, due, &mut failed, &mut report, now)
                .await;
            self.reread(&mut inputs, now, asked).await?;
            plan = self.decide(&inputs, options, present(now, asked));
        }
        if mode != Mode::DryRun {
            let none = matches!(plan.signer, Err(NoSigner::NoKeys));
            pass_state.first_key_pending = options.first_key && none;
        }
        let now = present(now, asked);
        self.publish_snapshot(pass_state, inputs, plan.signer, mode, &mut report, now)
            .await;
        Ok(report)
    }

    /// A set puts the first keys of all its lives into a new document at once.
    fn left_to_the_set(&self, action: &Action, inputs: &Inputs) -> bool {
        matches!(action, Action::Publish(_))
            && inputs.observation == Observation::Missing
            && self.inner.shared.first_keys.unwritten()
    }

    fn decide(&self, inputs: &Inputs, options: PassOptions, now: Timestamp) -> KeyPlan {
        let view = View {
            place: self.place(),
            observation: &inputs.observation,
            policy: &self.policy(),
            options,
            now,
        };
        view.decide(&inputs.records)
    }
}

impl Report {
    /// Adds a message unless it is there already.
    pub(super) fn add_trouble(&mut self, trouble: String) {
        if !self.trouble.contains(&trouble) {
            self.trouble.push(trouble);
        }
    }

    /// Writes an audit line for each change that was made, and a log line for each that failed.
    pub fn audit(&self) {
        for done in &self.done {
            let kid = done.kid.as_ref().map(|kid| kid.as_str());
            match &done.outcome {
                Outcome::Done => audit!(
                    Decision::Allowed,
                    "key change",
                    change = done.action,
                    kid,
                    place = self.place
                ),
                Outcome::Failed(reason) => {
                    tracing::warn!(target: "keys", change = done.action, kid, reason, "a change of the keys failed; it is tried again");
                }
                Outcome::Planned => {}
            }
        }
        for backup in &self.backups {
            tracing::info!(target: "keys", backup, "the JWKS was kept before keys were taken out");
        }
    }

    /// True if something that was due could not be done.
    pub fn failed(&self) -> bool {
        self.done
            .iter()
            .any(|done| matches!(done.outcome, Outcome::Failed(_)))
    }
}

impl Updated {
    pub(super) fn tell(&self, report: &mut Report) {
        match &self.backup {
            Some(Ok(place)) => report.backups.push(place.clone()),
            Some(Err(error)) => {
                report.add_trouble(format!("no copy of the document could be kept: {error}"))
            }
            None => {}
        }
        if self.lost_writes > 0 {
            report.add_trouble(format!(
                "{} of our writes were overwritten by someone who does not look first, or the place ignores If-Match",
                self.lost_writes
            ));
        }
    }
}

/// Used by the operations beside this file.
pub(super) fn unavailable(error: &LifeError) -> bool {
    matches!(error, LifeError::Publish(PublishError::Unavailable { .. }))
}
