//! The document as a file, for deployments without a bucket.
//!
//! Invariants
//! - Readers of the file never see half of it (`keys::disk`). Writers exclude each other (`flock`
//!   on `<path>.lock`) and compare the content hash of what they read with that of the file.
//! - Before keys are taken out, a copy is kept as `<path>.bak-<time>`; the newest [`BACKUPS`]
//!   copies stay.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use aws_lc_rs::digest::{SHA256, digest};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use futures_util::{FutureExt as _, future::BoxFuture};
use jiff::Timestamp;

use super::{
    Document, Etag, PublishError, Publisher, Unreadable, Versioned, document::MAX_DOCUMENT,
};
use crate::disk::{self, DiskError, Lock, Probe};

const BACKUPS: usize = 10;

/// How long a writer waits for another one; a write takes milliseconds.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);
const LOCK_POLL: Duration = Duration::from_millis(2);

/// Publishes into a file.
#[derive(Debug, Clone)]
pub struct FilePublisher {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    place: String,
    probe: Probe,
}

impl FilePublisher {
    /// `path` need not exist; the first write makes its directory (0700).
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self::with_probe(path, Probe::default())
    }

    /// As [`Self::new`], reporting each step of each write to `probe`.
    pub fn with_probe(path: impl Into<PathBuf>, probe: Probe) -> Self {
        let path = path.into();
        let whole = std::path::absolute(&path).unwrap_or_else(|_| path.clone());
        Self {
            inner: Arc::new(Inner {
                place: format!("file:{}", whole.display()),
                path,
                probe,
            }),
        }
    }

    /// Runs `work` where it may block.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T, PublishError> + Send + 'static,
    ) -> Result<T, PublishError> {
        let inner = self.inner.clone();
        let place = self.inner.place.clone();
        tokio::task::spawn_blocking(move || work(&inner))
            .await
            .unwrap_or_else(|error| {
                Err(PublishError::Unavailable {
                    place,
                    detail: error.to_string(),
                })
            })
    }
}

impl Publisher for FilePublisher {
    fn place(&self) -> &str {
        &self.inner.place
    }

    fn read(&self) -> BoxFuture<'_, Result<Option<Versioned>, PublishError>> {
        self.blocking(Inner::read).boxed()
    }

    fn write<'a>(
        &'a self,
        document: &'a Document,
        expected: Option<&'a Etag>,
    ) -> BoxFuture<'a, Result<Etag, PublishError>> {
        let bytes = document.to_bytes();
        let expected = expected.cloned();
        async move {
            // The waiting is asynchronous, because many waiting writers would occupy all blocking
            // threads.
            let mut waited = Duration::ZERO;
            let lock = loop {
                match self.blocking(Inner::lock).await? {
                    Some(lock) => break lock,
                    None if waited >= LOCK_TIMEOUT => {
                        return Err(PublishError::Unavailable {
                            place: self.inner.place.clone(),
                            detail: "another process keeps its lock".to_owned(),
                        });
                    }
                    None => {
                        tokio::time::sleep(LOCK_POLL).await;
                        waited += LOCK_POLL;
                    }
                }
            };
            self.blocking(move |inner| {
                let written = inner.swap(&bytes, expected.as_ref());
                drop(lock);
                written
            })
            .await
        }
        .boxed()
    }

    fn back_up<'a>(
        &'a self,
        document: &'a Document,
        now: Timestamp,
    ) -> BoxFuture<'a, Result<String, PublishError>> {
        let bytes = document.to_bytes();
        self.blocking(move |inner| inner.back_up(&bytes, now))
            .boxed()
    }
}

impl Inner {
    fn read(&self) -> Result<Option<Versioned>, PublishError> {
        let Some(bytes) = self.bytes()? else {
            return Ok(None);
        };
        let document = Document::parse(&bytes).map_err(|reason| self.unreadable(reason))?;
        Ok(Some(Versioned {
            document,
            etag: etag(&bytes),
        }))
    }

    fn bytes(&self) -> Result<Option<Vec<u8>>, PublishError> {
        disk::read(&self.path, MAX_DOCUMENT as u64).map_err(|error| match error {
            DiskError::TooLarge { .. } => self.unreadable(Unreadable::TooLarge),
            DiskError::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                self.denied("")
            }
            other => self.unavailable(&other),
        })
    }

    fn lock(&self) -> Result<Option<Lock>, PublishError> {
        self.make_directory()?;
        match Lock::take(&with_suffix(&self.path, ".lock")) {
            Ok(lock) => Ok(Some(lock)),
            Err(DiskError::Locked { .. }) => Ok(None),
            Err(other) => Err(self.write_error(other)),
        }
    }

    /// Call with the lock held.
    fn swap(&self, bytes: &[u8], expected: Option<&Etag>) -> Result<Etag, PublishError> {
        let found = self.bytes()?.map(|bytes| etag(&bytes));
        if found.as_ref() != expected {
            return Err(PublishError::Conflict {
                place: self.place.clone(),
            });
        }
        // World-readable: it is public, and a web server of another user may serve it.
        disk::write(&self.path, bytes, 0o644, &self.probe)
            .map_err(|error| self.write_error(error))?;
        Ok(etag(bytes))
    }

    fn back_up(&self, bytes: &[u8], now: Timestamp) -> Result<String, PublishError> {
        let stem = with_suffix(&self.path, ".bak-");
        let time = now.strftime("%Y%m%dT%H%M%S%.9fZ").to_string();
        let path = with_suffix(&stem, &time);
        disk::write(&path, bytes, 0o644, &self.probe).map_err(|error| self.write_error(error))?;
        self.delete_old_backups(&stem);
        Ok(path.display().to_string())
    }

    /// Deletes all but the newest backups. One that cannot be deleted does no harm.
    fn delete_old_backups(&self, stem: &Path) {
        let (Some(directory), Some(stem)) = (
            stem.parent(),
            stem.file_name().and_then(|name| name.to_str()),
        ) else {
            return;
        };
        let directory = if directory.as_os_str().is_empty() {
            Path::new(".")
        } else {
            directory
        };
        let Ok(entries) = fs::read_dir(directory) else {
            return;
        };
        let mut backups: Vec<_> = entries
            .flatten()
            .filter(|entry| {
                entry
                    .file_name()
                    .to_str()
                    .is_some_and(|name| name.starts_with(stem))
            })
            .map(|entry| entry.path())
            .collect();
        backups.sort();
        let surplus = backups.len().saturating_sub(BACKUPS);
        for path in backups.into_iter().take(surplus) {
            let _ = disk::delete(&path, &self.probe);
        }
    }

    fn make_directory(&self) -> Result<(), PublishError> {
        match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => {
                disk::make_directory(parent).map_err(|error| self.write_error(error))
            }
            _ => Ok(()),
        }
    }

    fn write_error(&self, error: DiskError) -> PublishError {
        match error {
            DiskError::ReadOnly { .. } => {
                self.denied(": it, or its directory, is read-only for this user")
            }
            other => self.unavailable(&other),
        }
    }

    fn denied(&self, hint: &str) -> PublishError {
        PublishError::Denied {
            place: self.place.clone(),
            hint: hint.to_owned(),
        }
    }

    fn unreadable(&self, reason: Unreadable) -> PublishError {
        PublishError::Unreadable {
            place: self.place.clone(),
            reason,
        }
    }

    fn unavailable(&self, error: &DiskError) -> PublishError {
        PublishError::Unavailable {
            place: self.place.clone(),
            detail: error.to_string(),
        }
    }
}

fn etag(bytes: &[u8]) -> Etag {
    Etag(URL_SAFE_NO_PAD.encode(digest(&SHA256, bytes)).into())
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut whole = path.as_os_str().to_owned();
    whole.push(suffix);
    whole.into()
}
