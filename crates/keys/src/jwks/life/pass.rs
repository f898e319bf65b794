//! One pass: read directory and document, carry out what is due, give the ring its new snapshot.

use std::{collections::BTreeSet, sync::Arc};

use jiff::Timestamp;
use serde::Serialize;

use super::{KeyLife, LifeError, Memory};
use crate::jwks::{
    Document, Found, PublishError, Updated, Versioned, document::modulus_bits, update,
};
use crate::{
    Contents, History, KeyId, KeyView, NoSigner, PrivateJwk, PublicJwk, Signer, Skipped, Snapshot,
    State, StoredKey,
    rotation::{self, Action, Leave, Record, Seen},
};
use tailbone_telemetry::audit;
use tailbone_telemetry::audit::Decision;

/// Upper limit of decide-and-act rounds in one pass. A new key needs five: generate, publish,
/// activate, retire, and one that finds nothing left to do.
const ROUNDS: usize = 6;

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
}

/// One action and its outcome.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Done {
    /// `publish`, `activate`, `retire`, `delete private half`, `expire`, `delete`, `finish
    /// removal`, `mend`, `generate`
    pub action: &'static str,
    pub kid: Option<KeyId>,
    #[serde(flatten)]
    pub outcome: Outcome,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase", tag = "outcome", content = "reason")]
pub enum Outcome {
    Done,
    Failed(String),
    Planned,
}

/// The directory and the document, read at one time.
struct Look {
    contents: Contents,
    records: Vec<Record>,
    document: Option<Versioned>,
    seen: Seen,
}

impl KeyLife {
    /// Reads everything and does whatever is due. A server calls it at its ticks.
    pub async fn sync(&self, now: Timestamp) -> Result<Report, LifeError> {
        self.run(Leave::default(), false, now).await
    }

    /// As [`Self::sync`], and makes a key if there is none that can sign. If that fails now, a
    /// later pass makes it. A server calls it once at its start.
    pub async fn start(&self, now: Timestamp) -> Result<Report, LifeError> {
        self.run(
            Leave {
                first_key: true,
                clean: false,
            },
            false,
            now,
        )
        .await
    }

    pub(super) async fn run(
        &self,
        leave: Leave,
        dry_run: bool,
        now: Timestamp,
    ) -> Result<Report, LifeError> {
        let mut memory = self.inner.memory.lock().await;
        let lock = self.lock_directory().await?;
        let leave = Leave {
            first_key: leave.first_key || memory.first_key_owed,
            ..leave
        };
        let report = self
            .pass(&mut memory, lock.is_some(), leave, dry_run, now)
            .await;
        drop(lock);
        report
    }

    /// Call with both locks held.
    pub(super) async fn pass(
        &self,
        memory: &mut Memory,
        writable: bool,
        leave: Leave,
        dry_run: bool,
        now: Timestamp,
    ) -> Result<Report, LifeError> {
        let mut report = Report {
            place: self.place().to_owned(),
            dry_run,
            document_trouble: None,
            unread: None,
            done: Vec::new(),
            backups: Vec::new(),
            trouble: Vec::new(),
            skipped: Vec::new(),
            keys: Vec::new(),
            no_signer: None,
        };
        if writable && !dry_run {
            self.disk(move |store| store.sweep(now)).await?;
        }
        if !writable {
            report.trouble.push(format!(
                "{} cannot be written: keys are used as they are and nothing can be rotated",
                self.inner.store.directory().display()
            ));
        }
        let mut look = self.look(now, &mut report).await?;
        let mut failed: BTreeSet<Action> = BTreeSet::new();
        let mut decision = self.decide(&look, leave, now);
        for _ in 0..ROUNDS {
            if dry_run {
                report.done = decision
                    .actions
                    .iter()
                    .map(|action| told(action, Outcome::Planned))
                    .collect();
                break;
            }
            self.remember(&look, writable, &mut report).await;
            let due: Vec<Action> = decision
                .actions
                .iter()
                .filter(|action| {
                    !failed.contains(action) && (writable || matches!(action, Action::Publish(_)))
                })
                .cloned()
                .collect();
            if due.is_empty() {
                break;
            }
            self.carry_out(&mut look, due, &mut failed, &mut report, now)
                .await;
            self.look_again(&mut look, now).await?;
            decision = self.decide(&look, leave, now);
        }
        if !dry_run {
            let none = matches!(decision.signer, Err(NoSigner::NoKeys));
            memory.first_key_owed = leave.first_key && none;
        }
        self.finish(memory, look, decision.signer, dry_run, &mut report, now)
            .await;
        Ok(report)
    }

    fn decide(&self, look: &Look, leave: Leave, now: Timestamp) -> rotation::Decision {
        rotation::decide(
            &look.records,
            self.place(),
            &look.seen,
            &self.policy(),
            leave,
            now,
        )
    }

    async fn look(&self, now: Timestamp, report: &mut Report) -> Result<Look, LifeError> {
        let contents = self.disk(|store| store.load()).await?;
        let records = records(&contents);
        let mut read = self.inner.publisher.read().await;
        // If a key of ours is missing from the document, read it again: a copy of the object may be
        // stale.
        if let Ok(Some(versioned)) = &read
            && self.misses_a_key(&contents, &versioned.document)
        {
            read = self.inner.publisher.read().await;
        }
        let (document, seen) = match read {
            Ok(Some(versioned)) => {
                let seen = seen(&contents, &versioned.document);
                (Some(versioned), seen)
            }
            Ok(None) => {
                report.document_trouble = Some(format!("{}: there is no JWKS yet", self.place()));
                (None, Seen::Missing)
            }
            Err(error) => {
                report.document_trouble = Some(error.to_string());
                report.unread = Some(error);
                (None, Seen::Unknown)
            }
        };
        let mut look = Look {
            contents,
            records,
            document,
            seen,
        };
        rotation::observe(&mut look.records, self.place(), &look.seen, now);
        Ok(look)
    }

    /// Reads the directory again, and takes the document as the last change left it.
    async fn look_again(&self, look: &mut Look, now: Timestamp) -> Result<(), LifeError> {
        let facts: Vec<(KeyId, History)> = look
            .records
            .iter()
            .map(|record| (record.kid.clone(), record.history.clone()))
            .collect();
        look.contents = self.disk(|store| store.load()).await?;
        look.records = records(&look.contents);
        // Facts that could not be written (the disk is full or read-only) still hold for this pass.
        for record in &mut look.records {
            if let Some((_, history)) = facts.iter().find(|(kid, _)| *kid == record.kid) {
                record.history.clone_from(history);
            }
        }
        if let Some(versioned) = &look.document {
            look.seen = seen(&look.contents, &versioned.document);
        }
        rotation::observe(&mut look.records, self.place(), &look.seen, now);
        Ok(())
    }

    fn misses_a_key(&self, contents: &Contents, document: &Document) -> bool {
        contents.keys.iter().any(|key| {
            let publication = key.history.at(self.place());
            publication.published.is_some()
                && publication.absent.is_none()
                && key
                    .public
                    .as_ref()
                    .is_some_and(|public| !document.holds(public))
        })
    }

    /// Writes the facts that changed.
    async fn remember(&self, look: &Look, writable: bool, report: &mut Report) {
        if !writable {
            return;
        }
        for (record, key) in look.records.iter().zip(&look.contents.keys) {
            let ours = key.known || key.private_file;
            if !ours || (record.history == key.history && key.known) {
                continue;
            }
            let (name, history) = (key.name.clone(), record.history.clone());
            if let Err(error) = self
                .disk(move |store| store.write_history(&name, &history))
                .await
            {
                report.complain(error.to_string());
            }
        }
    }

    async fn carry_out(
        &self,
        look: &mut Look,
        due: Vec<Action>,
        failed: &mut BTreeSet<Action>,
        report: &mut Report,
        now: Timestamp,
    ) {
        let publish: Vec<KeyId> = due
            .iter()
            .filter_map(|action| match action {
                Action::Publish(kid) => Some(kid.clone()),
                _ => None,
            })
            .collect();
        if !publish.is_empty() {
            self.publish(look, &publish, failed, report, now).await;
            // The other actions were decided without these keys in the document: decide again.
            if look.document.is_some()
                && !publish
                    .iter()
                    .all(|kid| failed.contains(&Action::Publish(kid.clone())))
            {
                return;
            }
        }
        for action in due {
            if matches!(action, Action::Publish(_)) {
                continue;
            }
            let outcome = match self.act(look, &action, report, now).await {
                Ok(()) => Outcome::Done,
                Err(error) => {
                    failed.insert(action.clone());
                    Outcome::Failed(error.to_string())
                }
            };
            // A renewal is not reported.
            if !(matches!(&action, Action::Arm(kid) if look.is_armed(kid))
                && outcome == Outcome::Done)
            {
                report.done.push(told(&action, outcome));
            }
            if let Action::Arm(kid) = &action
                && let Some(record) = look.records.iter_mut().find(|record| record.kid == *kid)
            {
                // The pass goes on with this fact even if it could not be written: a full disk must
                // not stop the tokens.
                rotation::arm(&mut record.history, &self.policy(), now);
            }
        }
    }

    async fn publish(
        &self,
        look: &mut Look,
        kids: &[KeyId],
        failed: &mut BTreeSet<Action>,
        report: &mut Report,
        now: Timestamp,
    ) {
        let keys: Vec<PublicJwk> = kids
            .iter()
            .filter_map(|kid| {
                look.contents
                    .keys
                    .iter()
                    .find(|key| key.kid() == kid)?
                    .public
                    .clone()
            })
            .collect();
        let last = self.document();
        let mut taken: BTreeSet<KeyId> = BTreeSet::new();
        let updated = update(&*self.inner.publisher, now, |document, found| {
            if let (Found::Missing, Some(last)) = (found, &last) {
                // The document was lost: the keys of all servers are restored, as they were when
                // last read.
                *document = last.document.clone();
            }
            for key in &keys {
                if document.add(key).is_err() {
                    taken.insert(key.kid.clone());
                }
            }
            Ok::<_, LifeError>(())
        })
        .await
        .map_err(LifeError::from);
        match updated {
            Ok(updated) => {
                for kid in kids {
                    let outcome = if taken.contains(kid) {
                        failed.insert(Action::Publish(kid.clone()));
                        Outcome::Failed(
                            LifeError::KidTaken(crate::jwks::KidTaken(kid.clone())).to_string(),
                        )
                    } else {
                        Outcome::Done
                    };
                    report
                        .done
                        .push(told(&Action::Publish(kid.clone()), outcome));
                }
                report.document_trouble = None;
                report.unread = None;
                look.take(updated, report);
            }
            Err(error) => {
                for kid in kids {
                    let action = Action::Publish(kid.clone());
                    report
                        .done
                        .push(told(&action, Outcome::Failed(error.to_string())));
                    failed.insert(action);
                }
            }
        }
    }

    async fn act(
        &self,
        look: &mut Look,
        action: &Action,
        report: &mut Report,
        now: Timestamp,
    ) -> Result<(), LifeError> {
        let key = |kid: &KeyId| -> Result<(KeyId, History, Option<PublicJwk>), LifeError> {
            let record = look.records.iter().find(|record| record.kid == *kid);
            let key = look.contents.keys.iter().find(|key| key.kid() == kid);
            match (record, key) {
                (Some(record), Some(key)) => {
                    Ok((key.name.clone(), record.history.clone(), key.public.clone()))
                }
                _ => Err(LifeError::NotFound(kid.to_string())),
            }
        };
        match action {
            Action::Publish(_) => Ok(()),
            Action::MendPublic(kid) => {
                let (name, _, public) = key(kid)?;
                let public = public.ok_or_else(|| LifeError::NotFound(kid.to_string()))?;
                self.disk(move |store| store.write_public(&name, &public))
                    .await
            }
            Action::Arm(kid) => {
                let (name, mut history, _) = key(kid)?;
                rotation::arm(&mut history, &self.policy(), now);
                self.disk(move |store| store.write_history(&name, &history))
                    .await
            }
            Action::Retire(kid) => {
                let (name, mut history, _) = key(kid)?;
                rotation::retire(&mut history, now);
                let written = history.clone();
                self.disk(move |store| store.write_history(&name, &written))
                    .await?;
                if let Some(record) = look.records.iter_mut().find(|record| record.kid == *kid) {
                    record.history = history;
                }
                Ok(())
            }
            Action::DeletePrivate(kid) => {
                let (name, ..) = key(kid)?;
                self.disk(move |store| store.delete_private(&name))
                    .await
                    .map(drop)
            }
            Action::FinishRemoval(kid) | Action::Expire(kid) => {
                let (name, ..) = key(kid)?;
                if look.document.is_some() {
                    let updated = update(&*self.inner.publisher, now, |document, _| {
                        document.remove(kid.as_str());
                        Ok::<_, LifeError>(())
                    })
                    .await?;
                    look.take(updated, report);
                }
                self.disk(move |store| store.delete(&name)).await
            }
            Action::DeleteWithdrawn(kid) => {
                let (name, ..) = key(kid)?;
                self.disk(move |store| store.delete(&name)).await
            }
            Action::Generate => self.make(self.inner.spec, now).await.map(drop),
        }
    }

    /// Makes a key and writes its files; it is pending then.
    pub(super) async fn make(
        &self,
        spec: crate::KeySpec,
        now: Timestamp,
    ) -> Result<PublicJwk, LifeError> {
        let kid = KeyId::generate(&self.inner.prefix, now)?;
        self.disk(move |store| {
            let key = PrivateJwk::generate(kid, spec)?;
            // With fractions of a second, which the id does not hold: of two keys made in the same
            // second the later one is the newer.
            store.add(&key, &History::new(now))?;
            Ok::<_, LifeError>(key.public().clone())
        })
        .await
    }

    async fn finish(
        &self,
        memory: &mut Memory,
        look: Look,
        signer: Result<KeyId, NoSigner>,
        dry_run: bool,
        report: &mut Report,
        now: Timestamp,
    ) {
        let mut signer = signer.and_then(|kid| {
            if let Some(same) = memory.signer.as_ref().filter(|same| *same.kid() == kid) {
                let public = look
                    .contents
                    .keys
                    .iter()
                    .find(|key| *key.kid() == kid)
                    .and_then(|key| key.public.as_ref());
                if public == Some(same.public()) {
                    return Ok(same.clone());
                }
            }
            look.contents
                .keys
                .iter()
                .find(|key| *key.kid() == kid)
                .and_then(|key| key.private.as_ref())
                .and_then(|private| Signer::new(private).ok())
                .map(Arc::new)
                .ok_or(NoSigner::Unusable)
        });
        report.skipped.clone_from(&look.contents.skipped);
        for path in &look.contents.exposed {
            report.complain(format!(
                "{} can be read by others than its owner: chmod 600 it",
                path.display()
            ));
        }
        report.keys = self.views(&look, signer.as_ref().ok().map(|signer| signer.kid()));
        report.no_signer = signer.as_ref().err().map(ToString::to_string);
        if dry_run {
            return;
        }
        memory.signer = signer.as_ref().ok().cloned();
        memory.fingerprint = self.disk(|store| store.fingerprint()).await.ok();
        memory.next_look = Some(self.next_look(now));
        if let Some(versioned) = look.document {
            memory.document_read = Some(now);
            self.inner.document.store(Some(Arc::new(versioned)));
        }
        if let Err(NoSigner::NoKeys) = signer
            && !report.skipped.is_empty()
        {
            signer = Err(NoSigner::Unusable);
        }
        let mut trouble = report.trouble.clone();
        trouble.extend(report.document_trouble.clone());
        self.inner.ring.replace(Snapshot {
            signer,
            keys: report.keys.clone(),
            trouble,
            skipped: report.skipped.clone(),
            document_read: memory.document_read,
        });
    }

    /// The document's keys in its order, then those of the directory that are not in it.
    fn views(&self, look: &Look, signing: Option<&KeyId>) -> Vec<KeyView> {
        let last = self.document();
        let document = look
            .document
            .as_ref()
            .or(last.as_deref())
            .map(|versioned| &versioned.document);
        let text = |value: &serde_json::Value, member: &str| {
            value
                .get(member)
                .and_then(serde_json::Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        let ours = |kid: &str| {
            look.records
                .iter()
                .find(|record| record.kid.as_str() == kid && record_is_ours(record))
        };
        let view = |jwk: &serde_json::Value, kid, created, published| KeyView {
            kid,
            algorithm: text(jwk, "alg"),
            bits: modulus_bits(jwk),
            created,
            state: None,
            published,
            signing: false,
            signs_since: None,
            gone_from: None,
        };
        let mut views = Vec::new();
        for value in document.map(Document::keys).unwrap_or_default() {
            let kid = text(value, "kid");
            let created = kid.parse().ok().and_then(|id: KeyId| id.created());
            let view = view(value, kid, created, true);
            views.push(match ours(&view.kid) {
                Some(record) => self.with_facts(view, record, signing),
                None => view,
            });
        }
        for record in look.records.iter().filter(|record| record_is_ours(record)) {
            if views.iter().any(|view| view.kid == record.kid.as_str()) {
                continue;
            }
            let jwk = look
                .contents
                .keys
                .iter()
                .find(|key| *key.kid() == record.kid)
                .and_then(|key| key.public.as_ref())
                .map(PublicJwk::to_value)
                .unwrap_or_default();
            let created = Some(record.history.created);
            let view = view(&jwk, record.kid.to_string(), created, false);
            views.push(self.with_facts(view, record, signing));
        }
        views
    }

    fn with_facts(&self, view: KeyView, record: &Record, signing: Option<&KeyId>) -> KeyView {
        let state = rotation::state(record, self.place());
        let signs_since = match state {
            State::Active => record.history.activated,
            State::Published => rotation::signs_from(&record.history, self.place(), &self.policy()),
            _ => record.history.activated,
        };
        KeyView {
            state: Some(state),
            signing: signing == Some(&record.kid),
            signs_since,
            gone_from: rotation::gone_from(&record.history, &self.policy()),
            ..view
        }
    }
}

impl Report {
    /// Adds a message unless it is there already.
    pub(super) fn complain(&mut self, trouble: String) {
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

impl Look {
    fn is_armed(&self, kid: &KeyId) -> bool {
        self.records
            .iter()
            .any(|record| record.kid == *kid && record.history.activated.is_some())
    }

    /// Takes over the document as an update left it.
    fn take(&mut self, updated: Updated, report: &mut Report) {
        updated.tell(report);
        self.seen = match &updated.document {
            Some(versioned) => seen(&self.contents, &versioned.document),
            None => Seen::Missing,
        };
        self.document = updated.document;
    }
}

impl Updated {
    pub(super) fn tell(&self, report: &mut Report) {
        match &self.backup {
            Some(Ok(place)) => report.backups.push(place.clone()),
            Some(Err(error)) => {
                report.complain(format!("no copy of the document could be kept: {error}"))
            }
            None => {}
        }
        if self.lost_writes > 0 {
            report.complain(format!(
                "{} of our writes were overwritten by someone who does not look first, or the place ignores If-Match",
                self.lost_writes
            ));
        }
    }
}

fn record_is_ours(record: &Record) -> bool {
    record.known || record.private_file
}

fn records(contents: &Contents) -> Vec<Record> {
    let record = |key: &StoredKey| Record {
        kid: key.kid().clone(),
        history: key.history.clone(),
        can_sign: key.private.is_some(),
        private_file: key.private_file,
        public_file: key.public_file,
        public: key.public.is_some(),
        known: key.known,
    };
    contents.keys.iter().map(record).collect()
}

fn seen(contents: &Contents, document: &Document) -> Seen {
    let ours = |kid: &str| contents.keys.iter().find(|key| key.kid().as_str() == kid);
    Seen::Document {
        holds: contents
            .keys
            .iter()
            .filter(|key| {
                key.public
                    .as_ref()
                    .is_some_and(|public| document.holds(public))
            })
            .map(|key| key.kid().clone())
            .collect(),
        others: document.keys().iter().any(|value| {
            value
                .get("kid")
                .and_then(serde_json::Value::as_str)
                .is_none_or(|kid| ours(kid).is_none())
        }),
        empty: document.is_empty(),
    }
}

fn told(action: &Action, outcome: Outcome) -> Done {
    let (action, kid) = match action {
        Action::MendPublic(kid) => ("mend", Some(kid)),
        Action::FinishRemoval(kid) => ("finish removal", Some(kid)),
        Action::Publish(kid) => ("publish", Some(kid)),
        Action::Arm(kid) => ("activate", Some(kid)),
        Action::Retire(kid) => ("retire", Some(kid)),
        Action::DeletePrivate(kid) => ("delete private half", Some(kid)),
        Action::Expire(kid) => ("expire", Some(kid)),
        Action::DeleteWithdrawn(kid) => ("delete", Some(kid)),
        Action::Generate => ("generate", None),
    };
    Done {
        action,
        kid: kid.cloned(),
        outcome,
    }
}

/// Used by the operations beside this file.
pub(super) fn unavailable(error: &LifeError) -> bool {
    matches!(error, LifeError::Publish(PublishError::Unavailable { .. }))
}
