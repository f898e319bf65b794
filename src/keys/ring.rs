//! What a server signs with at this moment: one snapshot, swapped whole.
//!
//! Invariants
//! - Reading it takes no lock, no disk, no parsing: `current_signer` is the warm path of every token.
//! - A signer is put here only after `rotation.rs` chose it and its facts are written; where there is none the reason is here.
//!
//! Who fills it is `jwks::life`.

use std::sync::Arc;

use arc_swap::ArcSwap;
use jiff::Timestamp;
use serde::Serialize;

use super::{Algorithm, KeyId, NoSigner, Signer, Skipped, State};

/// The keys as a running server has them. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Ring {
    current: Arc<ArcSwap<Snapshot>>,
}

/// The picture of one look at directory and document.
#[derive(Debug)]
pub struct Snapshot {
    pub signer: Result<Arc<Signer>, NoSigner>,
    /// Keys of this directory and of the document: those of the document in its order, then the rest.
    pub keys: Vec<KeyView>,
    /// What stands in the way, in words for an operator: unreadable document, read-only directory, …
    pub trouble: Vec<String>,
    /// Files of the directory that are not used.
    pub skipped: Vec<Skipped>,
    /// When the document was last read without trouble.
    pub document_read: Option<Timestamp>,
}

/// One key, for lists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KeyView {
    /// As it stands in the document; not always fit for a [`KeyId`].
    pub kid: String,
    /// The `alg` of the JWK; empty if it has none.
    pub algorithm: String,
    /// As the id tells it.
    #[serde(serialize_with = "seconds")]
    pub created: Option<Timestamp>,
    /// `None`: another server's.
    pub state: Option<State>,
    /// In the document when it was last read.
    pub published: bool,
    /// The one this server signs with.
    pub signing: bool,
    /// When it began, or will begin, to sign.
    #[serde(serialize_with = "seconds")]
    pub signs_since: Option<Timestamp>,
    /// When it will leave the document.
    #[serde(serialize_with = "seconds")]
    pub gone_from: Option<Timestamp>,
}

#[allow(clippy::ref_option, reason = "the shape serde asks for")]
fn seconds<S: serde::Serializer>(
    time: &Option<Timestamp>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    time.map(Timestamp::as_second).serialize(serializer)
}

impl Default for Ring {
    fn default() -> Self {
        Self {
            current: Arc::new(ArcSwap::from_pointee(Snapshot {
                signer: Err(NoSigner::NotLoaded),
                keys: Vec::new(),
                trouble: Vec::new(),
                skipped: Vec::new(),
                document_read: None,
            })),
        }
    }
}

impl Ring {
    /// The key to sign with now.
    pub fn current_signer(&self) -> Option<Arc<Signer>> {
        self.current.load().signer.as_ref().ok().cloned()
    }

    /// The key to sign with now, or why there is none.
    pub fn signer(&self) -> Result<Arc<Signer>, NoSigner> {
        self.current.load().signer.clone()
    }

    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    pub fn replace(&self, snapshot: Snapshot) {
        self.current.store(Arc::new(snapshot));
    }
}

impl Snapshot {
    /// The id and kind of the signing key, for status pages.
    pub fn signing(&self) -> Option<(&KeyId, Algorithm)> {
        self.signer
            .as_ref()
            .ok()
            .map(|signer| (signer.kid(), signer.algorithm()))
    }
}
