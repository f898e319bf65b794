//! The place of the document: reading it, and changing it without losing anyone's change.
//!
//! Invariants
//! - A [`Publisher`] writes only if it would overwrite exactly what was read (compare-and-swap).
//! - [`update`] alone reads, changes and writes. It repeats after a conflict, and a write counts
//!   only when the change is seen in what is read back.
//! - Every error says what it means for the caller. A failed read is never an absent document.

use std::{fmt, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use tracing::Instrument;

use super::{Document, Unreadable, document::MAX_DOCUMENT};

/// Attempts of one update. With the pauses below they last about a minute, enough for eight writers
/// at the same time.
const MAX_ATTEMPTS: u32 = 60;
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const MAX_PAUSE: Duration = Duration::from_millis(400);

/// Names one version of the document; only to be compared.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Etag(pub Arc<str>);

/// A document, and the version that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versioned {
    pub document: Document,
    pub etag: Etag,
}

/// What went wrong at the place of publication.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// The document was changed by someone else between read and write. Nothing was written.
    #[error("{place}: changed by someone else meanwhile")]
    Conflict { place: String },
    #[error("{place}: access denied{hint}")]
    Denied { place: String, hint: String },
    /// The place itself (bucket, directory) does not exist. Not used for a missing document.
    #[error("{place}: there is no such place: {detail}")]
    NotFound { place: String, detail: String },
    /// There is a document, but not one that we can read; it is left alone.
    #[error("{place}: the JWKS there cannot be used and is left alone: {reason}")]
    Unreadable { place: String, reason: Unreadable },
    /// It may work later. Whether a write took effect is not known.
    #[error("{place}: not reachable: {detail}")]
    Unavailable { place: String, detail: String },
}

/// A place of publication. Implementations: [`super::FilePublisher`], [`super::S3Publisher`]; both
/// pass the same list of tests.
pub trait Publisher: Send + Sync + fmt::Debug + 'static {
    /// Names the place for people, logs and state files (`s3://bucket/key`, `file:/path`). Never
    /// contains a secret.
    fn place(&self) -> &str;

    /// The current document; `None` only if it is certain that there is none.
    fn read(&self) -> BoxFuture<'_, Result<Option<Versioned>, PublishError>>;

    /// Replaces the version `expected`, or makes the document if `None`; otherwise
    /// [`PublishError::Conflict`].
    fn write<'a>(
        &'a self,
        document: &'a Document,
        expected: Option<&'a Etag>,
    ) -> BoxFuture<'a, Result<Etag, PublishError>>;

    /// Keeps a copy of a document that is about to lose keys, and returns where.
    fn back_up<'a>(
        &'a self,
        document: &'a Document,
        now: Timestamp,
    ) -> BoxFuture<'a, Result<String, PublishError>>;
}

/// What an update did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Updated {
    /// The document as last read, with the change in it; `None` if there is none and the change
    /// needs none.
    pub document: Option<Versioned>,
    /// There was something to change.
    pub changed: bool,
    /// Where a copy was kept before keys were taken out, or why none could be made.
    pub backup: Option<Result<String, PublishError>>,
    /// How often a write was accepted and then not found: the place ignores conditions, or another
    /// program writes without them.
    pub lost_writes: u32,
}

/// Why an update did not happen.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError<E> {
    /// The change itself failed; nothing was written for it.
    #[error(transparent)]
    Change(E),
    #[error(transparent)]
    Publish(#[from] PublishError),
}

/// Applies `change` to the document until it holds there. A document that does not exist counts as
/// new and empty.
///
/// `change` must be idempotent: it is applied again to what is read back, and the update is done
/// when that changes nothing.
pub async fn update<E>(
    publisher: &dyn Publisher,
    now: Timestamp,
    mut change: impl FnMut(&mut Document, Found) -> Result<(), E> + Send,
) -> Result<Updated, UpdateError<E>> {
    let mut pause = Pause::new();
    let mut result = Updated {
        document: None,
        changed: false,
        backup: None,
        lost_writes: 0,
    };
    let mut wrote = false;
    let mut last_error = None;
    for _ in 0..MAX_ATTEMPTS {
        // Before the first write an error is final. After it, an error only means that the outcome
        // is not known yet.
        let before = match publisher.read().await {
            Ok(before) => before,
            Err(error @ PublishError::Unavailable { .. }) if wrote || last_error.is_some() => {
                last_error = Some(error);
                pause.unavailable();
                if pause.exhausted() {
                    break;
                }
                pause.wait().await;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let found = if before.is_some() {
            Found::Present
        } else {
            Found::Missing
        };
        let mut after = before
            .as_ref()
            .map(|before| before.document.clone())
            .unwrap_or_default();
        change(&mut after, found).map_err(UpdateError::Change)?;
        if let Some(before) = &before
            && before.document == after
        {
            result.document = Some(before.clone());
            result.changed = wrote;
            return Ok(result);
        }
        if before.is_none() && after == Document::default() {
            // There is nothing, and nothing to write: an empty document would claim more than is
            // known.
            result.changed = wrote;
            return Ok(result);
        }
        if after.to_bytes().len() > MAX_DOCUMENT {
            // A document that is too large to read is not written.
            return Err(UpdateError::Publish(PublishError::Unreadable {
                place: publisher.place().to_owned(),
                reason: Unreadable::TooLarge,
            }));
        }
        if wrote {
            result.lost_writes += 1;
        }
        if let Some(before) = &before
            && result.backup.is_none()
            && before.document.kids().any(|kid| after.find(kid).is_none())
        {
            result.backup = Some(publisher.back_up(&before.document, now).await);
        }
        match publisher
            .write(&after, before.as_ref().map(|before| &before.etag))
            .instrument(tracing::debug_span!("publish"))
            .await
        {
            Ok(_) => {
                wrote = true;
                last_error = None;
                // Read back at once: only then is it published.
                continue;
            }
            Err(error @ PublishError::Conflict { .. }) => last_error = Some(error),
            // The write may have taken effect; reading will show.
            Err(error @ PublishError::Unavailable { .. }) => {
                wrote = true;
                pause.unavailable();
                last_error = Some(error);
            }
            Err(error) => return Err(error.into()),
        }
        if pause.exhausted() {
            break;
        }
        pause.wait().await;
    }
    Err(UpdateError::Publish(last_error.unwrap_or_else(|| {
        PublishError::Unavailable {
            place: publisher.place().to_owned(),
            detail: "what is written there is not found again: something else keeps overwriting it"
                .to_owned(),
        }
    })))
}

/// Whether a change is applied to a document or to the absence of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    Missing,
    Present,
}

/// Pauses between attempts. They grow and vary at random, so that writers who collided once do not
/// collide again.
struct Pause {
    next: Duration,
    unavailable: u32,
}

impl Pause {
    fn new() -> Self {
        Self {
            next: FIRST_PAUSE,
            unavailable: 0,
        }
    }

    fn unavailable(&mut self) {
        self.unavailable += 1;
    }

    /// A place that failed this often is down. The caller tries again at its own time.
    fn exhausted(&self) -> bool {
        self.unavailable >= 3
    }

    async fn wait(&mut self) {
        let mut random = [0u8; 2];
        // Without randomness the pause is only less varied.
        let _ = aws_lc_rs::rand::fill(&mut random);
        let share = f64::from(u16::from_le_bytes(random)) / f64::from(u16::MAX);
        tokio::time::sleep(self.next.mul_f64(0.2 + 0.8 * share)).await;
        self.next = (self.next * 2).min(MAX_PAUSE);
    }
}
