//! A store whose calls somebody watches, for metrics and for the question whether it answers.

use std::{fmt, path::Path, sync::Arc, time::Instant};

use futures_util::FutureExt as _;

use super::{
    Answer, StoreError,
    database::{Database, Kind, Operation},
};

/// Hears how each call ended. One whose caller has left is not heard of.
pub trait Watcher: fmt::Debug + Send + Sync + 'static {
    /// The moment at which a call begins, by the watcher's clock.
    fn begin(&self) -> Instant;

    fn ended(&self, kind: CallKind, begun: Instant, error: Option<&StoreError>);
}

/// What a call does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallKind {
    /// A migration, a dump, a load or a copy, which may take minutes.
    Bulk,
    Read,
    Write,
}

impl From<Kind> for CallKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Bulk | Kind::Snapshot => Self::Bulk,
            Kind::Read => Self::Read,
            Kind::Statement | Kind::Transaction => Self::Write,
        }
    }
}

/// A database with its watcher.
#[derive(Debug)]
pub struct Watched<D> {
    database: Arc<D>,
    watcher: Arc<dyn Watcher>,
}

impl<D: Database> Watched<D> {
    pub fn new(database: Arc<D>, watcher: Arc<dyn Watcher>) -> Self {
        Self { database, watcher }
    }

    async fn watch<T>(&self, kind: CallKind, call: Answer<'_, T>) -> Result<T, StoreError> {
        let begun = self.watcher.begin();
        let answer = call.await;
        self.watcher.ended(kind, begun, answer.as_ref().err());
        answer
    }
}

impl<D: Database> Database for Watched<D> {
    fn place(&self) -> &str {
        self.database.place()
    }

    fn run<P, T>(&self, kind: Kind, parameters: P, operation: Operation<P, T>) -> Answer<'_, T>
    where
        P: Send + Sync + 'static,
        T: Send + 'static,
    {
        let call = self.database.run(kind, parameters, operation);
        self.watch(kind.into(), call).boxed()
    }

    fn back_up<'a>(&'a self, to: &'a Path) -> Answer<'a, ()> {
        let call = self.database.back_up(to);
        self.watch(CallKind::Bulk, call).boxed()
    }
}
