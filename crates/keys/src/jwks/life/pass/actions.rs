//! Carries out what the rules say is due.

use std::collections::BTreeSet;

use jiff::Timestamp;

use super::{Done, Outcome, Report, inputs::Inputs};
use crate::{
    History, KeyId, KeySpec, PrivateJwk, PublicJwk,
    jwks::{
        Found, KidTaken,
        life::{KeyLife, LifeError},
        update,
    },
    rotation::{self, Action},
};

impl KeyLife {
    /// Writes the facts that changed.
    pub(super) async fn write_facts(&self, inputs: &Inputs, report: &mut Report) {
        for (record, key) in inputs.records.iter().zip(&inputs.contents.keys) {
            let ours = key.has_state_file || key.has_private_file;
            if !ours || (record.history == key.history && key.has_state_file) {
                continue;
            }
            let (name, history) = (key.name.clone(), record.history.clone());
            if let Err(error) = self
                .disk(move |store| store.write_history(&name, &history))
                .await
            {
                report.add_trouble(error.to_string());
            }
        }
    }

    pub(super) async fn execute(
        &self,
        inputs: &mut Inputs,
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
            self.publish(inputs, &publish, failed, report, now).await;
            // The other actions were decided without these keys in the document: decide again.
            if inputs.document.is_some()
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
            let outcome = match self.execute_one(inputs, &action, report, now).await {
                Ok(()) => Outcome::Done,
                Err(error) => {
                    failed.insert(action.clone());
                    report.not_made = error.as_no_signer().or(report.not_made.take());
                    Outcome::Failed(error.to_string())
                }
            };
            // A renewal is not reported.
            if !(matches!(&action, Action::Activate(kid) if inputs.is_active(kid))
                && outcome == Outcome::Done)
            {
                report.done.push(done(&action, outcome));
            }
            if let Action::Activate(kid) = &action
                && let Some(record) = inputs.records.iter_mut().find(|record| record.kid == *kid)
            {
                // The pass goes on with this fact even if it could not be written: a full disk must
                // not stop the tokens.
                rotation::record_signing(&mut record.history, &self.policy(), now);
            }
        }
    }

    async fn publish(
        &self,
        inputs: &mut Inputs,
        kids: &[KeyId],
        failed: &mut BTreeSet<Action>,
        report: &mut Report,
        now: Timestamp,
    ) {
        let keys: Vec<PublicJwk> = kids
            .iter()
            .filter_map(|kid| {
                inputs
                    .contents
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
                        Outcome::Failed(LifeError::KidTaken(KidTaken(kid.clone())).to_string())
                    } else {
                        Outcome::Done
                    };
                    report
                        .done
                        .push(done(&Action::Publish(kid.clone()), outcome));
                }
                report.document_trouble = None;
                report.unread = None;
                inputs.take(self, updated, report);
            }
            Err(error) => {
                for kid in kids {
                    let action = Action::Publish(kid.clone());
                    report
                        .done
                        .push(done(&action, Outcome::Failed(error.to_string())));
                    failed.insert(action);
                }
            }
        }
    }

    async fn execute_one(
        &self,
        inputs: &mut Inputs,
        action: &Action,
        report: &mut Report,
        now: Timestamp,
    ) -> Result<(), LifeError> {
        let key = |kid: &KeyId| -> Result<(KeyId, History, Option<PublicJwk>), LifeError> {
            let record = inputs.records.iter().find(|record| record.kid == *kid);
            let key = inputs.contents.keys.iter().find(|key| key.kid() == kid);
            match (record, key) {
                (Some(record), Some(key)) => {
                    Ok((key.name.clone(), record.history.clone(), key.public.clone()))
                }
                _ => Err(LifeError::NotFound(kid.to_string())),
            }
        };
        match action {
            Action::Publish(_) => Ok(()),
            Action::RestorePublic(kid) => {
                let (name, _, public) = key(kid)?;
                let public = public.ok_or_else(|| LifeError::NotFound(kid.to_string()))?;
                self.disk(move |store| store.write_public(&name, &public))
                    .await
            }
            Action::Activate(kid) => {
                let (name, mut history, _) = key(kid)?;
                rotation::record_signing(&mut history, &self.policy(), now);
                self.disk(move |store| store.write_history(&name, &history))
                    .await
            }
            Action::Retire(kid) => {
                let (name, mut history, _) = key(kid)?;
                rotation::retire(&mut history, now);
                let written = history.clone();
                self.disk(move |store| store.write_history(&name, &written))
                    .await?;
                if let Some(record) = inputs.records.iter_mut().find(|record| record.kid == *kid) {
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
                if inputs.document.is_some() {
                    let updated = update(&*self.inner.publisher, now, |document, _| {
                        document.remove(kid.as_str());
                        Ok::<_, LifeError>(())
                    })
                    .await?;
                    inputs.take(self, updated, report);
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

    /// Makes a key and writes its files; it is pending then. A process that ends between a signing
    /// service's key and its files leaves a key in the service that nobody uses.
    pub(in crate::jwks::life) async fn make(
        &self,
        spec: KeySpec,
        now: Timestamp,
    ) -> Result<PublicJwk, LifeError> {
        let kid = KeyId::generate(&self.inner.prefix, now)?;
        if let Some(made) = self.inner.remote.make(kid.clone(), spec).await {
            let reference = made?;
            let public = reference.public.clone();
            self.disk(move |store| store.add_reference(&reference, &History::new(now)))
                .await?;
            return Ok(public);
        }
        self.disk(move |store| {
            let key = PrivateJwk::generate(kid, spec)?;
            // With fractions of a second, which the id does not hold: of two keys made in the same
            // second the later one is the newer.
            store.add(&key, &History::new(now))?;
            Ok::<_, LifeError>(key.public().clone())
        })
        .await
    }
}

pub(super) fn done(action: &Action, outcome: Outcome) -> Done {
    let (action, kid) = match action {
        Action::RestorePublic(kid) => ("mend", Some(kid)),
        Action::FinishRemoval(kid) => ("finish removal", Some(kid)),
        Action::Publish(kid) => ("publish", Some(kid)),
        Action::Activate(kid) => ("activate", Some(kid)),
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
