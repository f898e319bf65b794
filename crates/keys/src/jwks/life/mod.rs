//! The life of this directory's keys at their place of publication: regular passes, and what people
//! and cron jobs ask for.
//!
//! It is part of `jwks` because it needs both keys and publishing: `keys` must not know of
//! publishing, and the components must not each do it themselves.
//!
//! Invariants
//! - One pass at a time for a directory: tasks queue here, processes wait for the directory's lock.
//! - A pass only gathers facts and carries out what `keys::rotation` says is due; it decides
//!   nothing itself.
//! - What is written comes before what depends on it: facts before the signer is used, the document
//!   before files are deleted. Each sequence may be interrupted anywhere
//!   (`docs/design/key-life.md`).
//! - Skipped files and unreadable documents stop nothing: signing goes on with what was last known.

mod error;
mod operations;
mod pass;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use jiff::{SignedDuration, Timestamp};
use tokio::sync::Mutex;

use super::{Publisher, Versioned, set::Shared};
use crate::KeySpec;
use crate::{
    CurrentKeys, Fingerprint, KeyPolicy, KeyStore, Signer, disk::Lock, remote::RemoteServices,
};

pub use error::LifeError;
pub use operations::{GeneratedKey, Housekeeping, Removal};
pub(in crate::jwks) use pass::NewDocument;
pub use pass::{Done, Outcome, Report};

/// How long one process waits for another that holds the directory's lock.
const LOCK_TIMEOUT: Duration = Duration::from_secs(15);
const LOCK_POLL: Duration = Duration::from_millis(20);

/// Longest time between two reads of the document.
const MAX_READ_INTERVAL: Duration = Duration::from_secs(30);

/// Keys of one directory at one place of publication. Cheap to clone.
#[derive(Debug, Clone)]
pub struct KeyLife {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    store: KeyStore,
    publisher: Arc<dyn Publisher>,
    policy: ArcSwap<KeyPolicy>,
    prefix: String,
    spec: KeySpec,
    remote: RemoteServices,
    current_keys: CurrentKeys,
    shared: Shared,
    real_time: bool,
    pass_state: Mutex<PassState>,
}

/// What one pass keeps for the next.
#[derive(Debug, Default)]
struct PassState {
    /// When the caller asked, whose time is an argument; `None` in told time.
    asked: Option<Instant>,
    signer: Option<Arc<Signer>>,
    fingerprint: Option<Fingerprint>,
    next_read: Option<Timestamp>,
    document_read: Option<Timestamp>,
    /// A start was allowed to make the first key and could not: the disk was full, or the document
    /// could not be reached.
    first_key_pending: bool,
}

impl KeyLife {
    /// Reads nothing yet.
    pub fn new(
        store: KeyStore,
        publisher: Arc<dyn Publisher>,
        policy: KeyPolicy,
        prefix: &str,
        spec: KeySpec,
    ) -> Self {
        Self::in_set(store, publisher, policy, prefix, spec, Shared::default())
    }

    /// As [`Self::new`], for a life beside others.
    pub(in crate::jwks) fn in_set(
        store: KeyStore,
        publisher: Arc<dyn Publisher>,
        policy: KeyPolicy,
        prefix: &str,
        spec: KeySpec,
        shared: Shared,
    ) -> Self {
        Self {
            inner: Arc::new(Inner {
                store,
                publisher,
                policy: ArcSwap::from_pointee(policy),
                prefix: prefix.to_owned(),
                spec,
                remote: RemoteServices::default(),
                current_keys: CurrentKeys::default(),
                shared,
                real_time: true,
                pass_state: Mutex::default(),
            }),
        }
    }

    /// Time is the argument alone, for tests that say what time it is. Otherwise it goes on while a
    /// pass runs, as it does for verifiers: the wait of a key counts from when it was read back,
    /// and not from the start of the pass that made and published it. For a life that nobody else
    /// has yet.
    #[must_use]
    pub fn in_told_time(mut self) -> Self {
        let inner = Arc::get_mut(&mut self.inner);
        debug_assert!(inner.is_some(), "a clone exists, whose time goes on");
        if let Some(inner) = inner {
            inner.real_time = false;
        }
        self
    }

    /// With keys that signing services keep. For a life that nobody else has yet.
    #[must_use]
    pub fn with_remote(mut self, remote: RemoteServices) -> Self {
        let inner = Arc::get_mut(&mut self.inner);
        debug_assert!(inner.is_some(), "a clone exists, which has no services");
        if let Some(inner) = inner {
            inner.remote = remote;
        }
        self
    }

    /// What this server signs with.
    pub fn current_keys(&self) -> &CurrentKeys {
        &self.inner.current_keys
    }

    /// The document as last read, with other servers' keys: what `/.well-known/jwks.json` serves.
    pub fn document(&self) -> Option<Arc<Versioned>> {
        self.inner.shared.document.load_full()
    }

    /// The name of the place of publication, for people.
    pub fn place(&self) -> &str {
        self.inner.publisher.place()
    }

    /// Call when the caller asks, before any wait.
    fn asked(&self) -> Option<Instant> {
        self.inner.real_time.then(Instant::now)
    }

    pub(in crate::jwks) fn store(&self) -> &KeyStore {
        &self.inner.store
    }

    /// What a new key is if nothing else is asked for.
    pub fn spec(&self) -> KeySpec {
        self.inner.spec
    }

    pub fn policy(&self) -> Arc<KeyPolicy> {
        self.inner.policy.load_full()
    }

    /// Replaces the policy of the running server; the next pass uses it. The life of tokens never
    /// gets shorter, because the keys of tokens issued under a longer life must stay published.
    pub fn set_policy(&self, policy: KeyPolicy) {
        let token_life = policy.token_life.max(self.policy().token_life);
        self.inner.policy.store(Arc::new(KeyPolicy {
            token_life,
            ..policy
        }));
    }

    /// Called by a server about every second. Checks whether the directory changed, and runs a pass
    /// if it did or if the document is due to be read. `None`: nothing was due.
    pub async fn poll(&self, now: Timestamp) -> Result<Option<Report>, LifeError> {
        let due = {
            let pass_state = self.inner.pass_state.lock().await;
            let changed = self.disk(KeyStore::fingerprint).await?
                != pass_state.fingerprint.clone().unwrap_or_default();
            // A clock that is set back must not postpone the next read.
            let far = |next: Timestamp| next.duration_since(now) > SignedDuration::from_secs(3600);
            changed
                || pass_state
                    .next_read
                    .is_none_or(|next| next <= now || far(next))
        };
        if due {
            self.sync(now).await.map(Some)
        } else {
            Ok(None)
        }
    }

    /// Runs `work` on the directory where it may block.
    async fn disk<T: Send + 'static, E: Into<LifeError> + Send + 'static>(
        &self,
        work: impl FnOnce(&KeyStore) -> Result<T, E> + Send + 'static,
    ) -> Result<T, LifeError> {
        on_disk(&self.inner.store, work).await
    }

    /// The directory's lock. `None` if the directory cannot be written: then no other process
    /// changes it either.
    pub(in crate::jwks) async fn lock_directory(&self) -> Result<Option<Lock>, LifeError> {
        lock_when_free(&self.inner.store).await
    }

    pub(in crate::jwks) fn next_read(&self, now: Timestamp) -> Timestamp {
        let every = (self.policy().cache_time / 4).clamp(Duration::from_secs(1), MAX_READ_INTERVAL);
        SignedDuration::try_from(every)
            .ok()
            .and_then(|every| now.checked_add(every).ok())
            .unwrap_or(now)
    }
}

/// The present, where `now` was the time when the caller asked.
fn present(now: Timestamp, asked: Option<Instant>) -> Timestamp {
    let passed = asked.and_then(|asked| SignedDuration::try_from(asked.elapsed()).ok());
    passed
        .and_then(|passed| now.checked_add(passed).ok())
        .unwrap_or(now)
}

/// Runs `work` on a directory where it may block.
async fn on_disk<T: Send + 'static, E: Into<LifeError> + Send + 'static>(
    store: &KeyStore,
    work: impl FnOnce(&KeyStore) -> Result<T, E> + Send + 'static,
) -> Result<T, LifeError> {
    let store = store.clone();
    match tokio::task::spawn_blocking(move || work(&store)).await {
        Ok(result) => result.map_err(Into::into),
        Err(error) => Err(LifeError::Interrupted(error.to_string())),
    }
}

/// Waits for the directory's lock. `None` if the directory cannot be written: then no other process
/// changes it either.
pub(in crate::jwks) async fn lock_when_free(store: &KeyStore) -> Result<Option<Lock>, LifeError> {
    use crate::{StoreError, disk::DiskError};
    let mut waited = Duration::ZERO;
    loop {
        let taken = on_disk(store, |store| store.create().and_then(|()| store.lock())).await;
        match taken {
            Ok(lock) => return Ok(Some(lock)),
            Err(LifeError::Store(StoreError::Disk(DiskError::ReadOnly { .. }))) => {
                return Ok(None);
            }
            Err(LifeError::Store(StoreError::Disk(DiskError::Locked { .. })))
                if waited < LOCK_TIMEOUT =>
            {
                tokio::time::sleep(LOCK_POLL).await;
                waited += LOCK_POLL;
            }
            Err(other) => return Err(other),
        }
    }
}
