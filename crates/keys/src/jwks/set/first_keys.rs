//! Which keys one write put into a document that did not exist: the first keys of a set.
//!
//! A key waits before it signs if other keys stood in the document when it was published, because
//! verifiers may hold a copy without it. The first keys of a set get into the document together,
//! so no such copy exists, and none of them has to wait for another. This file
//! (`first-keys.json`) says so across a crash, until each key's own facts say when it was
//! published.
//!
//! Invariants
//! - The file is written before the document. It counts for nothing once a document was seen that
//!   lacks one of its keys: then the keys did not come together.
//! - A file that cannot be read counts as none: its keys wait.

use std::{collections::BTreeSet, sync::Arc};

use arc_swap::ArcSwap;
use serde::{Deserialize, Serialize};
use tailbone_values::Object;

use crate::{KeyId, KeyStore, disk::DiskError, jwks::Document};

const NAME: &str = "first-keys.json";
const VERSION: u32 = 1;

/// The first keys of a set. The default belongs to a life without a set, and is always empty.
#[derive(Debug, Default)]
pub(in crate::jwks) struct FirstKeys {
    store: Option<KeyStore>,
    group: ArcSwap<Group>,
}

#[derive(Debug, Default)]
struct Group {
    kids: BTreeSet<KeyId>,
    /// The document does not exist yet, and the set alone makes it.
    unwritten: bool,
}

#[derive(Serialize, Deserialize)]
struct File {
    version: u32,
    place: String,
    kids: Vec<String>,
}

impl FirstKeys {
    /// Those of the set in this directory. Reads nothing yet.
    pub(super) fn of(store: &KeyStore) -> Self {
        Self {
            store: Some(store.clone()),
            group: ArcSwap::default(),
        }
    }

    pub(super) fn load(&self, place: &str) {
        let kids = self.store.as_ref().and_then(|store| {
            let bytes = store.read_note(NAME).ok()??;
            let Object(file) = serde_json::from_slice::<Object<File>>(&bytes).ok()?;
            if file.version != VERSION || file.place != place {
                return None;
            }
            file.kids.iter().map(|kid| kid.parse().ok()).collect()
        });
        self.group.store(Arc::new(Group {
            kids: kids.unwrap_or_default(),
            unwritten: false,
        }));
    }

    /// These keys are about to be published together, at a place without a document.
    pub(super) fn record(&self, place: &str, kids: BTreeSet<KeyId>) -> Result<(), DiskError> {
        if let Some(store) = &self.store {
            let file = File {
                version: VERSION,
                place: place.to_owned(),
                kids: kids.iter().map(KeyId::to_string).collect(),
            };
            // Plain data, so serialising cannot fail.
            let mut json = serde_json::to_vec_pretty(&file).unwrap_or_default();
            json.push(b'\n');
            store.write_note(NAME, &json)?;
        }
        self.group.store(Arc::new(Group {
            kids,
            unwritten: true,
        }));
        Ok(())
    }

    /// The document exists, with these keys or without them.
    pub(super) fn written(&self) {
        let kids = self.group.load().kids.clone();
        self.group.store(Arc::new(Group {
            kids,
            unwritten: false,
        }));
    }

    /// The keys did not come together, or their facts are recorded.
    pub(in crate::jwks) fn forget(&self) -> Result<(), DiskError> {
        self.group.store(Arc::default());
        if let Some(store) = &self.store {
            store.delete_note(NAME)?;
        }
        Ok(())
    }

    /// True until the set has written the document: no life may do it alone.
    pub(in crate::jwks) fn unwritten(&self) -> bool {
        self.group.load().unwritten
    }

    pub(in crate::jwks) fn contradicted_by(&self, document: &Document) -> bool {
        let group = self.group.load();
        group
            .kids
            .iter()
            .any(|kid| document.find(kid.as_str()).is_none())
    }

    pub(in crate::jwks) fn kids(&self) -> BTreeSet<KeyId> {
        self.group.load().kids.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_recorded_is_loaded_again_for_the_same_place_alone() {
        let folder = tempfile::tempdir().unwrap();
        let kids: BTreeSet<KeyId> = ["tb-1", "tb-2"].map(|kid| kid.parse().unwrap()).into();
        let first = FirstKeys::of(&KeyStore::new(folder.path()));
        first.load("here");
        assert!(first.kids().is_empty() && !first.unwritten());
        first.record("here", kids.clone()).unwrap();
        assert!(first.unwritten());
        first.written();
        assert!(!first.unwritten());

        let again = FirstKeys::of(&KeyStore::new(folder.path()));
        again.load("elsewhere");
        assert!(again.kids().is_empty());
        again.load("here");
        assert_eq!(again.kids(), kids);
        std::fs::write(folder.path().join(NAME), "{").unwrap();
        again.load("here");
        assert!(again.kids().is_empty());
        again.forget().unwrap();
        assert!(!folder.path().join(NAME).exists());
        again.forget().unwrap();
    }

    #[test]
    fn a_document_without_one_of_the_keys_contradicts() {
        let first = FirstKeys::default();
        let document = |kids: &[&str]| {
            let keys: Vec<_> = kids
                .iter()
                .map(|kid| serde_json::json!({"kid": kid}))
                .collect();
            Document::parse(serde_json::json!({"keys": keys}).to_string().as_bytes()).unwrap()
        };
        assert!(!first.contradicted_by(&document(&[])));
        let kids = ["tb-1", "tb-2"].map(|kid| kid.parse().unwrap()).into();
        first.record("here", kids).unwrap();
        assert!(first.contradicted_by(&document(&["tb-1"])));
        assert!(!first.contradicted_by(&document(&["tb-2", "x", "tb-1"])));
    }
}
