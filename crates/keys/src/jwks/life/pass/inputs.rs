//! What a pass decides on: the directory and the document, read at one time.

use std::time::Instant;

use jiff::Timestamp;

use super::{Done, Outcome, Report};
use crate::{
    Contents, History, KeyId, PublicJwk, StoreError, StoredKey,
    jwks::{
        Document, PublishError, Updated, Versioned,
        life::{KeyLife, LifeError, present},
    },
    remote::{KeyReference, RemoteServices},
    rotation::{self, Action, Observation, PassOptions, Record, View},
};

/// The directory and the document, read at one time.
pub(super) struct Inputs {
    pub(super) contents: Contents,
    pub(super) records: Vec<Record>,
    pub(super) document: Option<Versioned>,
    pub(super) observation: Observation,
}

impl KeyLife {
    pub(super) async fn read_inputs(
        &self,
        now: Timestamp,
        asked: Option<Instant>,
        report: &mut Report,
    ) -> Result<Inputs, LifeError> {
        let contents = self.disk(|store| store.load()).await?;
        let records = records(&contents, &self.inner.remote);
        let mut read = self.inner.publisher.read().await;
        // If a key of ours is missing from the document, read it again: a copy of the object may be
        // stale.
        if let Ok(Some(versioned)) = &read
            && self.misses_a_key(&contents, &versioned.document)
        {
            read = self.inner.publisher.read().await;
        }
        let (document, observation) = match read {
            Ok(Some(versioned)) => {
                self.check_first_keys(&versioned.document).await?;
                let observation = self.observation(&contents, &versioned.document);
                (Some(versioned), observation)
            }
            Ok(None) => {
                report.document_trouble = Some(format!("{}: there is no JWKS yet", self.place()));
                (None, Observation::Missing)
            }
            Err(error) => {
                report.document_trouble = Some(error.to_string());
                report.unread = Some(error);
                (None, Observation::Unknown)
            }
        };
        let mut inputs = Inputs {
            contents,
            records,
            document,
            observation,
        };
        let seen = present(now, asked);
        rotation::observe(&mut inputs.records, self.place(), &inputs.observation, seen);
        Ok(inputs)
    }

    /// Reads the directory again, and takes the document as the last change left it.
    pub(super) async fn reread(
        &self,
        inputs: &mut Inputs,
        now: Timestamp,
        asked: Option<Instant>,
    ) -> Result<(), LifeError> {
        let facts: Vec<(KeyId, History)> = inputs
            .records
            .iter()
            .map(|record| (record.kid.clone(), record.history.clone()))
            .collect();
        inputs.contents = self.disk(|store| store.load()).await?;
        inputs.records = records(&inputs.contents, &self.inner.remote);
        // Facts that could not be written (the disk is full or read-only) still hold for this pass.
        for record in &mut inputs.records {
            if let Some((_, history)) = facts.iter().find(|(kid, _)| *kid == record.kid) {
                record.history.clone_from(history);
            }
        }
        if let Some(versioned) = &inputs.document {
            inputs.observation = self.observation(&inputs.contents, &versioned.document);
        }
        let seen = present(now, asked);
        rotation::observe(&mut inputs.records, self.place(), &inputs.observation, seen);
        Ok(())
    }

    /// Keys of a set did not come together if one of them is missing from the document.
    async fn check_first_keys(&self, document: &Document) -> Result<(), LifeError> {
        let first_keys = &self.inner.shared.first_keys;
        if first_keys.contradicted_by(document) {
            let first_keys = first_keys.clone();
            self.disk(move |_| first_keys.forget().map_err(StoreError::from))
                .await?;
        }
        Ok(())
    }

    pub(super) fn observation(&self, contents: &Contents, document: &Document) -> Observation {
        let find = |kid: &str| contents.keys.iter().find(|key| key.kid().as_str() == kid);
        let held: Vec<&StoredKey> = contents
            .keys
            .iter()
            .filter(|key| {
                key.public
                    .as_ref()
                    .is_some_and(|public| document.contains(public))
            })
            .collect();
        // The keys of a set that were put there by the same write as ours: no verifier has a copy
        // of the document with theirs and without ours.
        let mut together = self.inner.shared.first_keys.kids();
        let new = |key: &&&StoredKey| key.history.at(self.place()).published.is_none();
        if !held
            .iter()
            .filter(new)
            .all(|key| together.contains(key.kid()))
        {
            together.clear();
        }
        Observation::Document {
            holds: held.iter().map(|key| key.kid().clone()).collect(),
            others: document.keys().iter().any(|value| {
                value
                    .get("kid")
                    .and_then(serde_json::Value::as_str)
                    .is_none_or(|kid| {
                        find(kid).is_none() && !together.iter().any(|first| first.as_str() == kid)
                    })
            }),
            empty: document.is_empty(),
        }
    }

    /// What this directory's keys are for a document that does not exist. Makes the first key if
    /// that is asked for and due. Call with the directory's lock held.
    pub(in crate::jwks) async fn keys_for_new_document(
        &self,
        first_key: bool,
        now: Timestamp,
    ) -> Result<NewDocument, LifeError> {
        let options = PassOptions {
            first_key,
            ..PassOptions::default()
        };
        let plan = |contents: &Contents| {
            let view = View {
                place: self.place(),
                observation: &Observation::Missing,
                policy: &self.policy(),
                options,
                now,
            };
            view.decide(&records(contents, &self.inner.remote)).actions
        };
        let mut contents = self.disk(|store| store.load()).await?;
        let made = plan(&contents).contains(&Action::Generate);
        if made {
            self.make(self.inner.spec, now).await?;
            contents = self.disk(|store| store.load()).await?;
        }
        let due = plan(&contents);
        let mut keys = Vec::new();
        for key in &contents.keys {
            if let Some(public) = &key.public
                && due.contains(&Action::Publish(key.kid().clone()))
            {
                keys.push(public.clone());
            }
        }
        let unpublished = |key: &StoredKey| {
            let History {
                inherited,
                activated,
                ..
            } = key.history;
            let publication = key.history.at(self.place());
            !inherited && activated.is_none() && publication.published.is_none()
        };
        Ok(NewDocument {
            made,
            keys,
            never_published: contents.keys.iter().all(unpublished),
        })
    }

    fn misses_a_key(&self, contents: &Contents, document: &Document) -> bool {
        contents.keys.iter().any(|key| {
            let publication = key.history.at(self.place());
            publication.published.is_some()
                && publication.absent.is_none()
                && key
                    .public
                    .as_ref()
                    .is_some_and(|public| !document.contains(public))
        })
    }
}

/// One directory's part of a document that does not exist.
#[derive(Debug)]
pub(in crate::jwks) struct NewDocument {
    /// One of them was made for it.
    pub(in crate::jwks) made: bool,
    pub(in crate::jwks) keys: Vec<PublicJwk>,
    /// None of the directory's keys was ever published there.
    pub(in crate::jwks) never_published: bool,
}

impl NewDocument {
    /// What has been done when the attempt to write the document is over.
    pub(in crate::jwks) fn done(&self, written: &Result<(), PublishError>) -> Vec<Done> {
        let mut done = Vec::new();
        if self.made {
            done.push(super::actions::done(&Action::Generate, Outcome::Done));
        }
        done.extend(self.keys.iter().map(|key| {
            let outcome = match written {
                Ok(()) => Outcome::Done,
                Err(error) => Outcome::Failed(error.to_string()),
            };
            super::actions::done(&Action::Publish(key.kid.clone()), outcome)
        }));
        done
    }
}

impl Inputs {
    pub(super) fn is_active(&self, kid: &KeyId) -> bool {
        self.records
            .iter()
            .any(|record| record.kid == *kid && record.history.activated.is_some())
    }

    /// Takes over the document as an update left it.
    pub(super) fn take(&mut self, life: &KeyLife, updated: Updated, report: &mut Report) {
        updated.tell(report);
        self.observation = match &updated.document {
            Some(versioned) => life.observation(&self.contents, &versioned.document),
            None => Observation::Missing,
        };
        self.document = updated.document;
    }
}

pub(super) fn record_is_ours(record: &Record) -> bool {
    record.has_state_file || record.has_private_file
}

fn records(contents: &Contents, remote: &RemoteServices) -> Vec<Record> {
    let there = |reference: &KeyReference| remote.has(reference.location.service);
    let record = |key: &StoredKey| Record {
        kid: key.kid().clone(),
        history: key.history.clone(),
        can_sign: key.private.is_some() || key.remote.as_ref().is_some_and(there),
        has_private_file: key.has_private_file,
        has_public_file: key.has_public_file,
        public: key.public.is_some(),
        has_state_file: key.has_state_file,
    };
    contents.keys.iter().map(record).collect()
}
