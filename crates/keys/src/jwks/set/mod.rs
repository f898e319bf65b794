//! A key set of several algorithms: one active key for each, all in one document.
//!
//! Every algorithm has a life of its own ([`KeyLife`]) in a directory of its own below the set's
//! (`<dir>/<ALG>/`), so each is made, rotated and removed as if it were alone. The lives share the
//! document.
//!
//! Invariants
//! - The set alone makes a document that does not exist: the keys of all lives are put there by one
//!   write. If it is the first document of a new set, its keys need not wait for each other
//!   ([`first_keys`]); if it was lost, no life's keys are missing from the new one.
//! - A key for an algorithm that is added later waits until verifiers have fetched the document
//!   again.
//! - [`KeySet::signer`] takes no lock and reads no file.
//!
//! Locks are taken in this order: the set's directory, then the lives' in the order of their names.

mod first_keys;
mod taken_over;

use std::{
    collections::BTreeSet,
    sync::{Arc, OnceLock},
};

use arc_swap::ArcSwapOption;
use futures_util::future::join_all;
use jiff::Timestamp;
use tokio::sync::Mutex;

use super::{
    MemoryPublisher, Publisher, Versioned,
    life::{
        Done, GeneratedKey, Housekeeping, KeyLife, LifeError, NewDocument, Outcome, Removal,
        Report, lock_when_free,
    },
};
use crate::{
    Algorithm, History, KeyId, KeyPolicy, KeySpec, KeyStore, KeyView, NoSigner, PublicJwk, Signer,
    jwks::PublishError,
    remote::RemoteServices,
    tsiam::{self, KeySource, Refused, SourceError},
};

pub(in crate::jwks) use first_keys::FirstKeys;

/// What the lives of a set have in common. A life without a set has the default.
#[derive(Debug, Clone, Default)]
pub(in crate::jwks) struct Shared {
    /// The document as any of them last read it.
    pub(in crate::jwks) document: Arc<ArcSwapOption<Versioned>>,
    pub(in crate::jwks) first_keys: Arc<FirstKeys>,
}

/// Keys of several algorithms at one place of publication. Cheap to clone.
#[derive(Debug, Clone)]
pub struct KeySet {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    name: String,
    /// Sorted by algorithm. Never empty.
    lives: Vec<(Algorithm, KeyLife)>,
    default: Algorithm,
    /// `None` for a set that is a single life: that life needs nothing of what is done here.
    common: Option<Common>,
}

#[derive(Debug)]
struct Common {
    store: KeyStore,
    publisher: Arc<dyn Publisher>,
    prefix: String,
    shared: Shared,
    /// Where the key of the program is that we replace.
    inherited: OnceLock<Arc<dyn KeySource>>,
    /// When to look again for a document that has not been seen yet. One pass of the set at a time.
    next_look: Mutex<Look>,
}

#[derive(Debug, Default)]
enum Look {
    /// Not started.
    #[default]
    Idle,
    At(Timestamp),
    /// The document was seen or made. Its loss is noticed by the lives, which know what it held.
    Done,
}

impl KeySet {
    /// A set that keeps its keys below the directory of `store`. Of two kinds of keys for one
    /// algorithm the last counts. Reads nothing yet.
    pub fn new(
        name: &str,
        store: KeyStore,
        publisher: Arc<dyn Publisher>,
        policy: &KeyPolicy,
        prefix: &str,
        default: KeySpec,
        others: &[KeySpec],
    ) -> Self {
        let shared = Shared {
            document: Arc::default(),
            first_keys: Arc::new(FirstKeys::of(&store)),
        };
        let mut lives: Vec<(Algorithm, KeyLife)> = Vec::new();
        for spec in others.iter().chain([&default]) {
            let algorithm = spec.algorithm();
            let life = KeyLife::in_set(
                store.below(algorithm.as_str()),
                publisher.clone(),
                policy.clone(),
                prefix,
                *spec,
                shared.clone(),
            );
            lives.retain(|(other, _)| *other != algorithm);
            lives.push((algorithm, life));
        }
        lives.sort_by_key(|(algorithm, _)| algorithm.as_str());
        Self {
            inner: Arc::new(Inner {
                name: name.to_owned(),
                lives,
                default: default.algorithm(),
                common: Some(Common {
                    store,
                    publisher,
                    prefix: prefix.to_owned(),
                    shared,
                    next_look: Mutex::default(),
                    inherited: OnceLock::new(),
                }),
            }),
        }
    }

    /// A set whose keys and document are in this process alone: each start makes new keys, and
    /// whoever has cached the document refuses their tokens until the copy is too old.
    pub fn in_memory(
        name: &str,
        policy: &KeyPolicy,
        prefix: &str,
        default: KeySpec,
        others: &[KeySpec],
    ) -> Self {
        let publisher = Arc::new(MemoryPublisher::default());
        let store = KeyStore::in_memory();
        Self::new(name, store, publisher, policy, prefix, default, others)
    }

    /// Takes over the key that is found there when the set starts, once: it signs under its own id
    /// until its successor does, and what is found there is left as it is. The set must have its
    /// algorithm.
    #[must_use]
    pub fn taking_over(self, source: Arc<dyn KeySource>) -> Self {
        if let Some(common) = &self.inner.common {
            // Only a second source would find the place taken.
            let _ = common.inherited.set(source);
        }
        self
    }

    /// The set of one life, which stays as it is: its keys are in its directory itself, and they
    /// may be of any algorithm.
    pub fn of(name: &str, life: KeyLife) -> Self {
        let algorithm = life.spec().algorithm();
        Self {
            inner: Arc::new(Inner {
                name: name.to_owned(),
                lives: vec![(algorithm, life)],
                default: algorithm,
                common: None,
            }),
        }
    }

    /// With keys that signing services keep. For a set that nobody else has yet.
    #[must_use]
    pub fn with_remote(mut self, remote: &RemoteServices) -> Self {
        let inner = Arc::get_mut(&mut self.inner);
        debug_assert!(inner.is_some(), "a clone exists, which has no services");
        if let Some(inner) = inner {
            let lives = std::mem::take(&mut inner.lives).into_iter();
            inner.lives = lives
                .map(|(algorithm, life)| (algorithm, life.with_remote(remote.clone())))
                .collect();
        }
        self
    }

    /// As [`KeyLife::in_told_time`], for each life. For a set that nobody else has yet.
    #[must_use]
    pub fn in_told_time(mut self) -> Self {
        let inner = Arc::get_mut(&mut self.inner);
        debug_assert!(inner.is_some(), "a clone exists, whose time goes on");
        if let Some(inner) = inner {
            let lives = std::mem::take(&mut inner.lives).into_iter();
            inner.lives = lives
                .map(|(algorithm, life)| (algorithm, life.in_told_time()))
                .collect();
        }
        self
    }

    /// The name for people, logs and metrics.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The algorithms of this set's keys, in the order of their names.
    pub fn algorithms(&self) -> impl Iterator<Item = Algorithm> {
        self.inner.lives.iter().map(|(algorithm, _)| *algorithm)
    }

    /// The algorithm of tokens for which no other is asked.
    pub fn default_algorithm(&self) -> Algorithm {
        self.inner.default
    }

    /// The life of one algorithm's keys.
    pub fn life(&self, algorithm: Algorithm) -> Option<&KeyLife> {
        let mut lives = self.inner.lives.iter();
        lives
            .find(|(other, _)| *other == algorithm)
            .map(|(_, life)| life)
    }

    pub fn lives(&self) -> impl Iterator<Item = (Algorithm, &KeyLife)> {
        self.inner
            .lives
            .iter()
            .map(|(algorithm, life)| (*algorithm, life))
    }

    /// The key to sign with now, or the reason why there is none.
    pub fn signer(&self, algorithm: Algorithm) -> Result<Arc<Signer>, NoSigner> {
        let life = self
            .life(algorithm)
            .ok_or(NoSigner::NotInSet { algorithm })?;
        let signer = life.current_keys().signer()?;
        // A file of another algorithm that somebody has put into the directory.
        if self.inner.common.is_some() && signer.algorithm() != algorithm {
            return Err(NoSigner::Unusable);
        }
        Ok(signer)
    }

    /// Waits until the keys have been read once, which only a starting server has not done, or
    /// until some seconds have passed.
    pub async fn loaded(&self) -> &Self {
        for (_, life) in self.lives() {
            life.current_keys().loaded().await;
        }
        self
    }

    /// The document as last read, with other servers' keys.
    pub fn document(&self) -> Option<Arc<Versioned>> {
        self.first().document()
    }

    /// When the document was last read without an error.
    pub fn document_read(&self) -> Option<Timestamp> {
        let read = |(_, life): (Algorithm, &KeyLife)| life.current_keys().snapshot().document_read;
        self.lives().filter_map(read).max()
    }

    /// What is wrong with reading or publishing the keys, in words for an operator.
    pub fn trouble(&self) -> Vec<String> {
        let mut troubles: Vec<String> = Vec::new();
        for (_, life) in self.lives() {
            for trouble in &life.current_keys().snapshot().trouble {
                if !troubles.contains(trouble) {
                    troubles.push(trouble.clone());
                }
            }
        }
        troubles
    }

    /// The name of the place of publication, for people.
    pub fn place(&self) -> &str {
        self.first().place()
    }

    pub fn policy(&self) -> Arc<KeyPolicy> {
        self.first().policy()
    }

    /// Replaces the policy of all lives ([`KeyLife::set_policy`]).
    pub fn set_policy(&self, policy: &KeyPolicy) {
        for (_, life) in self.lives() {
            life.set_policy(policy.clone());
        }
    }

    /// The keys as last read: those in the document in its order, then the rest.
    pub fn keys(&self) -> Vec<KeyView> {
        let views = self
            .lives()
            .map(|(_, life)| life.current_keys().snapshot().keys.clone());
        merge(views)
    }

    /// Reads everything, and makes the first key of each algorithm that has none that can sign.
    ///
    /// After an error because of a vault ([`LifeError::vault_trouble`]) it may be called again.
    pub async fn start(&self, now: Timestamp) -> Result<Vec<(Algorithm, Report)>, LifeError> {
        let started = self.load(now).await;
        if let Err(error) = &started
            && let Some(trouble) = error.vault_trouble()
        {
            for (_, life) in self.lives() {
                let reason = NoSigner::Vault(trouble);
                life.current_keys().not_loaded_because(reason);
            }
        }
        started
    }

    async fn load(&self, now: Timestamp) -> Result<Vec<(Algorithm, Report)>, LifeError> {
        let (mut made, mut taken) = (Vec::new(), None);
        if let Some(common) = &self.inner.common {
            if common.store.is_in_memory() {
                tracing::warn!(
                    target: "keys",
                    set = self.name(),
                    "the signing keys are kept in memory alone: they do not survive a restart"
                );
            }
            let mut next_look = common.next_look.lock().await;
            taken = self.take_over(common, now).await?;
            made = self.look(common, &mut next_look, true, now).await?;
        }
        let mut reports = Vec::new();
        for (algorithm, life) in self.lives() {
            reports.push((algorithm, life.start(now).await?));
        }
        add_done(&mut reports, made);
        if let Some(public) = taken {
            let own = |(algorithm, _): &&mut (Algorithm, Report)| *algorithm == public.algorithm();
            if let Some((_, report)) = reports.iter_mut().find(own) {
                report.done.insert(0, Done::taken_over(&public.kid));
            }
        }
        self.forget_first_keys(&reports).await;
        Ok(reports)
    }

    /// Called by a server about every second. Returns the reports of the passes that were due.
    pub async fn poll(&self, now: Timestamp) -> Result<Vec<(Algorithm, Report)>, LifeError> {
        if let Some(reports) = self.look_again(now).await? {
            return Ok(reports);
        }
        let mut reports = Vec::new();
        for (algorithm, life) in self.lives() {
            let report = life.poll(now).await?;
            reports.extend(report.map(|report| (algorithm, report)));
        }
        Ok(reports)
    }

    /// Reads everything and does whatever is due.
    pub async fn sync(&self, now: Timestamp) -> Result<Vec<(Algorithm, Report)>, LifeError> {
        let made = match &self.inner.common {
            Some(common) => {
                let mut next_look = common.next_look.lock().await;
                let started = matches!(*next_look, Look::At(_));
                self.look(common, &mut next_look, started, now).await?
            }
            None => Vec::new(),
        };
        let mut reports = Vec::new();
        for (algorithm, life) in self.lives() {
            reports.push((algorithm, life.sync(now).await?));
        }
        add_done(&mut reports, made);
        Ok(reports)
    }

    /// Makes a key and publishes it ([`KeyLife::generate`]); one of the default algorithm if none
    /// is named.
    pub async fn generate(
        &self,
        spec: Option<KeySpec>,
        now: Timestamp,
    ) -> Result<GeneratedKey, LifeError> {
        self.put_document_back(now).await?;
        self.life_for(spec)?.generate(spec, now).await
    }

    /// Gives the signing key of an algorithm a successor ([`KeyLife::rotate`]).
    pub async fn rotate(
        &self,
        spec: Option<KeySpec>,
        now: Timestamp,
    ) -> Result<GeneratedKey, LifeError> {
        self.put_document_back(now).await?;
        self.life_for(spec)?.rotate(spec, now).await
    }

    /// Takes a key out of the document and deletes its files ([`KeyLife::remove`]).
    pub async fn remove(&self, kid: &str, now: Timestamp) -> Result<Removal, LifeError> {
        self.put_document_back(now).await?;
        let mut life = self.first();
        for (_, other) in self.lives() {
            let report = other.list(now).await?;
            let ours = |key: &KeyView| key.kid == kid && key.state.is_some();
            if report.keys.iter().any(ours) {
                life = other;
            }
        }
        life.remove(kid, now).await
    }

    /// Every key of the document and the directories, and why the document could not be read.
    /// Changes nothing.
    pub async fn list(
        &self,
        now: Timestamp,
    ) -> Result<(Vec<KeyView>, Option<PublishError>), LifeError> {
        let (keys, reports) = self.survey(now).await?;
        let unread = reports.into_iter().find_map(|report| report.unread);
        Ok((keys, unread))
    }

    /// The same keys, and what the lives say of directories and document. Changes nothing.
    pub async fn survey(&self, now: Timestamp) -> Result<(Vec<KeyView>, Vec<Report>), LifeError> {
        let mut reports = Vec::new();
        for (_, life) in self.lives() {
            reports.push(life.list(now).await?);
        }
        let views = reports.iter().map(|report| report.keys.clone());
        Ok((merge(views), reports))
    }

    /// One pass of every life that may clean up ([`KeyLife::housekeeping`]).
    pub async fn housekeeping(
        &self,
        options: Housekeeping,
        now: Timestamp,
    ) -> Result<Vec<(Algorithm, Report)>, LifeError> {
        let made = match &self.inner.common {
            Some(common) if !options.dry_run => {
                let mut next_look = common.next_look.lock().await;
                self.look(common, &mut next_look, options.first_key, now)
                    .await?
            }
            _ => Vec::new(),
        };
        let mut reports = Vec::new();
        for (algorithm, life) in self.lives() {
            reports.push((algorithm, life.housekeeping(options, now).await?));
        }
        add_done(&mut reports, made);
        Ok(reports)
    }

    fn first(&self) -> &KeyLife {
        // A constructor gives every set at least one life.
        let (_, life) = &self.inner.lives[0];
        life
    }

    fn life_for(&self, spec: Option<KeySpec>) -> Result<&KeyLife, LifeError> {
        let algorithm = spec.map_or(self.inner.default, KeySpec::algorithm);
        match &self.inner.common {
            None => Ok(self.first()),
            Some(_) => self
                .life(algorithm)
                .ok_or(LifeError::NotInSet { algorithm }),
        }
    }

    /// Looks for a document that has not been seen yet, and runs a pass of every life if there is
    /// one now: its keys may sign.
    async fn look_again(
        &self,
        now: Timestamp,
    ) -> Result<Option<Vec<(Algorithm, Report)>>, LifeError> {
        let Some(common) = &self.inner.common else {
            return Ok(None);
        };
        let mut next_look = common.next_look.lock().await;
        if !matches!(*next_look, Look::At(time) if time <= now) {
            return Ok(None);
        }
        let made = self.look(common, &mut next_look, true, now).await?;
        if !matches!(*next_look, Look::Done) {
            return Ok(None);
        }
        let mut reports = Vec::new();
        for (algorithm, life) in self.lives() {
            reports.push((algorithm, life.sync(now).await?));
        }
        add_done(&mut reports, made);
        self.forget_first_keys(&reports).await;
        Ok(Some(reports))
    }

    async fn put_document_back(&self, now: Timestamp) -> Result<(), LifeError> {
        let Some(common) = &self.inner.common else {
            return Ok(());
        };
        let mut next_look = common.next_look.lock().await;
        self.look(common, &mut next_look, false, now)
            .await
            .map(drop)
    }

    /// Makes the document if it is certain that there is none. Returns what was done for each life.
    async fn look(
        &self,
        common: &Common,
        next_look: &mut Look,
        first_keys: bool,
        now: Timestamp,
    ) -> Result<Vec<Vec<Done>>, LifeError> {
        let (seen, done) = self.make_document(common, first_keys, now).await?;
        *next_look = if seen {
            Look::Done
        } else {
            Look::At(self.first().next_read(now))
        };
        Ok(done)
    }

    /// Returns whether the document exists now, or no key is there to be put into it, and what was
    /// done for each life. What else goes wrong is in the reports of the lives, which meet it too.
    async fn make_document(
        &self,
        common: &Common,
        first_keys: bool,
        now: Timestamp,
    ) -> Result<(bool, Vec<Vec<Done>>), LifeError> {
        let nothing = |seen| Ok((seen, Vec::new()));
        let Some(_lock) = lock_when_free(&common.store).await? else {
            return nothing(true);
        };
        let store = common.store.clone();
        let group = common.shared.first_keys.clone();
        let place = self.place().to_owned();
        blocking(move || {
            store.sweep(now)?;
            group.load(&place);
            Ok(())
        })
        .await?;
        match common.publisher.read().await {
            Ok(Some(found)) => {
                if common.shared.first_keys.contradicted_by(&found.document) {
                    self.forget(common).await?;
                }
                return nothing(true);
            }
            Ok(None) => {}
            Err(_) => return nothing(false),
        }
        let mut held = Vec::new();
        for (_, life) in self.lives() {
            match life.lock_directory().await? {
                Some(lock) => held.push(lock),
                None => return nothing(true),
            }
        }
        let lives = self.lives();
        let found = join_all(lives.map(|(_, life)| life.keys_for_new_document(first_keys, now)));
        let found: Result<Vec<NewDocument>, LifeError> = found.await.into_iter().collect();
        let Ok(found) = found else {
            return nothing(false);
        };
        let last = self.document();
        let new = last.is_none() && found.iter().all(|part| part.never_published);
        let mut document = last.map(|last| last.document.clone()).unwrap_or_default();
        for key in found.iter().flat_map(|part| &part.keys) {
            // A taken id is told by the life whose key it is.
            let _ = document.add(key);
        }
        if document.is_empty() {
            return nothing(true);
        }
        if new {
            let group = common.shared.first_keys.clone();
            let place = self.place().to_owned();
            let keys = found.iter().flat_map(|part| &part.keys);
            let kids: BTreeSet<_> = keys.map(|key| key.kid.clone()).collect();
            if blocking(move || Ok(group.record(&place, kids)?))
                .await
                .is_err()
            {
                return nothing(false);
            }
        } else {
            self.forget(common).await?;
        }
        let written = common.publisher.write(&document, None).await.map(drop);
        let mut done: Vec<Vec<Done>> = found.iter().map(|part| part.done(&written)).collect();
        match written {
            Ok(()) => {
                common.shared.first_keys.written();
                Ok((true, done))
            }
            // Another server was quicker. The lives add their keys to its document.
            Err(PublishError::Conflict { .. }) => {
                self.forget(common).await?;
                for part in &mut done {
                    part.retain(|done| done.outcome == Outcome::Done);
                }
                Ok((true, done))
            }
            Err(_) => Ok((false, done)),
        }
    }

    /// Returns the key if it was taken over now.
    async fn take_over(
        &self,
        common: &Common,
        now: Timestamp,
    ) -> Result<Option<PublicJwk>, LifeError> {
        let Some(source) = common.inherited.get() else {
            return Ok(None);
        };
        let Some(found) = source.read().await? else {
            return Ok(None);
        };
        let created = found.created.unwrap_or(now).min(now);
        let name = KeyId::generate(&common.prefix, created)?;
        let refused = |reason| SourceError::Refused {
            place: source.place().to_owned(),
            reason,
        };
        let key = tsiam::parse(&found.json, &name).map_err(refused)?;
        let algorithm = key.public().algorithm();
        let life = self
            .life(algorithm)
            .ok_or_else(|| refused(Refused::NotInSet { algorithm }))?;
        let _lock = life.lock_directory().await?.ok_or(LifeError::ReadOnly)?;
        let history = History {
            // It has signed before, so verifiers know it and it need not wait.
            activated: Some(created),
            longest_life: tsiam::LONGEST_TOKEN_LIFE,
            may_sign_until: Some(now),
            ..History::new(created)
        };
        let store = life.store().clone();
        blocking(move || taken_over::take(&store, &name, key, &history)).await
    }

    async fn forget(&self, common: &Common) -> Result<(), LifeError> {
        let group = common.shared.first_keys.clone();
        blocking(move || Ok(group.forget()?)).await
    }

    /// The file of the first keys is not needed once the facts of every key are written. Left
    /// behind it does no harm.
    async fn forget_first_keys(&self, reports: &[(Algorithm, Report)]) {
        let complete = |(_, report): &(Algorithm, Report)| {
            report.document_trouble.is_none() && report.trouble.is_empty()
        };
        if let Some(common) = &self.inner.common
            && reports.iter().all(complete)
        {
            let _ = self.forget(common).await;
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, crate::StoreError> + Send + 'static,
) -> Result<T, LifeError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(Into::into),
        Err(error) => Err(LifeError::Interrupted(error.to_string())),
    }
}

/// Adds what the set did for each life before the life's own pass.
fn add_done(reports: &mut [(Algorithm, Report)], done: Vec<Vec<Done>>) {
    for ((_, report), done) in reports.iter_mut().zip(done) {
        report.done.splice(0..0, done);
    }
}

/// Every life lists the whole document, and knows the facts of its own keys alone.
fn merge(lists: impl Iterator<Item = Vec<KeyView>>) -> Vec<KeyView> {
    let mut merged: Vec<KeyView> = Vec::new();
    for view in lists.flatten() {
        match merged.iter_mut().find(|other| other.kid == view.kid) {
            Some(other) if other.state.is_none() => *other = view,
            Some(_) => {}
            None => merged.push(view),
        }
    }
    merged.sort_by_key(|view| !view.published);
    merged
}
