//! The document in memory, for a server that alone gives it to verifiers and keeps no keys.

use std::sync::Arc;

use futures_util::{FutureExt as _, future::BoxFuture};
use jiff::Timestamp;
use parking_lot::Mutex;

use super::{Document, Etag, PublishError, Publisher, Versioned};

/// Publishes nowhere but in this process. Clones share the document.
#[derive(Debug, Clone, Default)]
pub struct MemoryPublisher(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    document: Option<Versioned>,
    versions: u64,
    backups: Vec<Document>,
}

/// Copies of documents that lost keys; older ones are dropped.
const BACKUPS: usize = 10;

impl Publisher for MemoryPublisher {
    fn place(&self) -> &'static str {
        "memory"
    }

    fn read(&self) -> BoxFuture<'_, Result<Option<Versioned>, PublishError>> {
        std::future::ready(Ok(self.0.lock().document.clone())).boxed()
    }

    fn write<'a>(
        &'a self,
        document: &'a Document,
        expected: Option<&'a Etag>,
    ) -> BoxFuture<'a, Result<Etag, PublishError>> {
        let mut state = self.0.lock();
        let present = state.document.as_ref().map(|versioned| &versioned.etag);
        let written = if present == expected {
            state.versions += 1;
            let etag = Etag(state.versions.to_string().into());
            state.document = Some(Versioned {
                document: document.clone(),
                etag: etag.clone(),
            });
            Ok(etag)
        } else {
            Err(PublishError::Conflict {
                place: self.place().to_owned(),
            })
        };
        std::future::ready(written).boxed()
    }

    fn back_up<'a>(
        &'a self,
        document: &'a Document,
        now: Timestamp,
    ) -> BoxFuture<'a, Result<String, PublishError>> {
        let mut state = self.0.lock();
        state.backups.push(document.clone());
        let excess = state.backups.len().saturating_sub(BACKUPS);
        state.backups.drain(..excess);
        std::future::ready(Ok(format!("memory of {now}"))).boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_write_wants_what_it_replaces() {
        let publisher = MemoryPublisher::default();
        assert_eq!(publisher.read().await.unwrap(), None);
        let first = publisher.write(&Document::default(), None).await.unwrap();
        let refused = publisher.write(&Document::default(), None).await;
        assert!(matches!(refused, Err(PublishError::Conflict { .. })));
        let second = publisher.write(&Document::default(), Some(&first)).await;
        let second = second.unwrap();
        assert_ne!(first, second);
        assert_eq!(publisher.read().await.unwrap().unwrap().etag, second);
        let refused = publisher.write(&Document::default(), Some(&first)).await;
        assert!(matches!(refused, Err(PublishError::Conflict { .. })));
    }
}
