//! What a pass decides on: the directory and the document, read at one time.

use jiff::Timestamp;

use super::Report;
use crate::{
    Contents, History, KeyId, StoredKey,
    jwks::{
        Document, Updated, Versioned,
        life::{KeyLife, LifeError},
    },
    rotation::{self, Observation, Record},
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
        report: &mut Report,
    ) -> Result<Inputs, LifeError> {
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
        let (document, observation) = match read {
            Ok(Some(versioned)) => {
                let observation = observation(&contents, &versioned.document);
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
        rotation::observe(&mut inputs.records, self.place(), &inputs.observation, now);
        Ok(inputs)
    }

    /// Reads the directory again, and takes the document as the last change left it.
    pub(super) async fn reread(
        &self,
        inputs: &mut Inputs,
        now: Timestamp,
    ) -> Result<(), LifeError> {
        let facts: Vec<(KeyId, History)> = inputs
            .records
            .iter()
            .map(|record| (record.kid.clone(), record.history.clone()))
            .collect();
        inputs.contents = self.disk(|store| store.load()).await?;
        inputs.records = records(&inputs.contents);
        // Facts that could not be written (the disk is full or read-only) still hold for this pass.
        for record in &mut inputs.records {
            if let Some((_, history)) = facts.iter().find(|(kid, _)| *kid == record.kid) {
                record.history.clone_from(history);
            }
        }
        if let Some(versioned) = &inputs.document {
            inputs.observation = observation(&inputs.contents, &versioned.document);
        }
        rotation::observe(&mut inputs.records, self.place(), &inputs.observation, now);
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
                    .is_some_and(|public| !document.contains(public))
        })
    }
}

impl Inputs {
    pub(super) fn is_active(&self, kid: &KeyId) -> bool {
        self.records
            .iter()
            .any(|record| record.kid == *kid && record.history.activated.is_some())
    }

    /// Takes over the document as an update left it.
    pub(super) fn take(&mut self, updated: Updated, report: &mut Report) {
        updated.tell(report);
        self.observation = match &updated.document {
            Some(versioned) => observation(&self.contents, &versioned.document),
            None => Observation::Missing,
        };
        self.document = updated.document;
    }
}

pub(super) fn record_is_ours(record: &Record) -> bool {
    record.has_state_file || record.has_private_file
}

fn records(contents: &Contents) -> Vec<Record> {
    let record = |key: &StoredKey| Record {
        kid: key.kid().clone(),
        history: key.history.clone(),
        can_sign: key.private.is_some(),
        has_private_file: key.has_private_file,
        has_public_file: key.has_public_file,
        public: key.public.is_some(),
        has_state_file: key.has_state_file,
    };
    contents.keys.iter().map(record).collect()
}

fn observation(contents: &Contents, document: &Document) -> Observation {
    let ours = |kid: &str| contents.keys.iter().find(|key| key.kid().as_str() == kid);
    Observation::Document {
        holds: contents
            .keys
            .iter()
            .filter(|key| {
                key.public
                    .as_ref()
                    .is_some_and(|public| document.contains(public))
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
