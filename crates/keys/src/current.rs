//! What a server signs with at this moment: one snapshot, replaced as a whole.
//!
//! Invariants
//! - Reading takes no lock, no disk access and no parsing: `signer` runs for every token.
//! - A signer gets here only after `rotation.rs` chose it and its facts are written. If there is
//!   none, the reason is here.
//! - A server that is still making its first key refuses nobody for that: requests wait a little
//!   ([`CurrentKeys::loaded`]).
//!
//! `jwks::life` writes the snapshots.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::SetOnce;

use super::{Algorithm, KeyId, KeyState, NoSigner, Signer, Skipped};

/// How long a request waits for the first snapshot. Long enough to make most first keys and to read
/// a bucket that answers.
const FIRST_LOAD_TIMEOUT: Duration = Duration::from_secs(5);

/// The keys of a running server. Cheap to clone.
#[derive(Debug, Clone)]
pub struct CurrentKeys {
    current: Arc<ArcSwap<Snapshot>>,
    loaded: Arc<SetOnce<()>>,
}

/// The directory and the document at one moment.
#[derive(Debug)]
pub struct Snapshot {
    pub signer: Result<Arc<Signer>, NoSigner>,
    /// Keys of this directory and of the document: those in the document in its order, then the
    /// rest.
    pub keys: Vec<KeyView>,
    /// Problems in words for an operator: an unreadable document, a read-only directory, …
    pub trouble: Vec<String>,
    /// Files of the directory that are not used, and why.
    pub skipped: Vec<Skipped>,
    /// When the document was last read without an error.
    pub document_read: Option<Timestamp>,
}

/// One key, for lists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KeyView {
    /// As the document has it; not always a valid [`KeyId`].
    pub kid: String,
    /// The `alg` of the JWK; empty if it has none.
    pub algorithm: String,
    /// Length of an RSA key's modulus; 0 for other keys.
    pub bits: u32,
    /// As the id says.
    #[serde(serialize_with = "seconds")]
    pub created: Option<Timestamp>,
    /// `None`: the key of another server.
    pub state: Option<KeyState>,
    /// The document held the key when it was last read.
    pub published: bool,
    /// This server signs with the key now.
    pub signing: bool,
    /// When the key began, or will begin, to sign.
    #[serde(serialize_with = "seconds")]
    pub signs_since: Option<Timestamp>,
    /// When the key will leave the document.
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

impl Default for CurrentKeys {
    fn default() -> Self {
        Self {
            current: Arc::new(ArcSwap::from_pointee(Snapshot::nothing(
                NoSigner::NotLoaded,
            ))),
            loaded: Arc::default(),
        }
    }
}

impl CurrentKeys {
    /// Waits until directory and document have been read once, which only a starting server has not
    /// done. After 5 seconds it returns anyway, and [`Self::signer`] then gives
    /// [`NoSigner::NotLoaded`].
    pub async fn loaded(&self) -> &Self {
        self.loaded_within(FIRST_LOAD_TIMEOUT).await
    }

    async fn loaded_within(&self, timeout: Duration) -> &Self {
        if !self.loaded.initialized() {
            let _ = tokio::time::timeout(timeout, self.loaded.wait()).await;
        }
        self
    }

    /// The key to sign with now, or the reason why there is none.
    pub fn signer(&self) -> Result<Arc<Signer>, NoSigner> {
        self.current.load().signer.clone()
    }

    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    pub fn replace(&self, snapshot: Snapshot) {
        self.current.store(Arc::new(snapshot));
        // An error means that it is set already.
        let _ = self.loaded.set(());
    }

    /// Says why the keys are not loaded. What was loaded stays.
    pub(crate) fn not_loaded_because(&self, reason: NoSigner) {
        let signer = self.signer();
        if let Err(NoSigner::NotLoaded | NoSigner::Vault(_)) = signer {
            self.replace(Snapshot::nothing(reason));
        }
    }
}

impl Snapshot {
    fn nothing(reason: NoSigner) -> Self {
        Self {
            signer: Err(reason),
            keys: Vec::new(),
            trouble: Vec::new(),
            skipped: Vec::new(),
            document_read: None,
        }
    }

    /// The id and algorithm of the signing key, for status pages.
    pub fn signing(&self) -> Option<(&KeyId, Algorithm)> {
        self.signer
            .as_ref()
            .ok()
            .map(|signer| (signer.kid(), signer.algorithm()))
    }
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use super::*;

    #[tokio::test]
    async fn the_first_load_is_awaited_within_a_bound() {
        let keys = CurrentKeys::default();
        let waited = keys.loaded_within(Duration::from_millis(1)).await.signer();
        assert_eq!(waited.unwrap_err(), NoSigner::NotLoaded);

        let mut waiting = Box::pin(keys.loaded());
        assert!(futures_util::poll!(&mut waiting).is_pending());
        keys.replace(Snapshot::nothing(NoSigner::NoKeys));
        let looked = futures_util::poll!(&mut waiting).map(CurrentKeys::signer);
        assert!(matches!(looked, Poll::Ready(Err(NoSigner::NoKeys))));
    }
}
