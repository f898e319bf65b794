//! What people ask for: make, list, remove and rotate keys, and the housekeeping of a cron job.
//!
//! Used by the gRPC admin API, by `keys … --local` and by `server housekeeping`, which add nothing
//! to it.

use jiff::Timestamp;

use super::{
    KeyLife, LifeError,
    pass::{Mode, Report, unavailable},
    present,
};
use crate::KeySpec;
use crate::jwks::update;
use crate::{KeyState, KeyView, rotation::PassOptions};

/// A key that was made, or found waiting.
#[derive(Debug, Clone)]
pub struct GeneratedKey {
    pub key: KeyView,
    /// The key existed already and waits to take over (`rotate` only).
    pub existed: bool,
    pub report: Report,
}

/// A removal.
#[derive(Debug, Clone)]
pub struct Removal {
    /// The keys left in the document, in its order.
    pub remaining: Vec<KeyView>,
    pub report: Report,
}

/// What a housekeeping pass may do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Housekeeping {
    /// Report what is due and change nothing.
    pub dry_run: bool,
    /// Make a key if none can sign, now or later.
    pub first_key: bool,
}

impl KeyLife {
    /// Makes a key and publishes it. It takes over when every verifier has seen it, or at once if
    /// nothing else can sign.
    ///
    /// If it cannot be published it is deleted again: after an error no key is left that would sign
    /// some day.
    pub async fn generate(
        &self,
        spec: Option<KeySpec>,
        now: Timestamp,
    ) -> Result<GeneratedKey, LifeError> {
        let asked = self.asked();
        let mut pass_state = self.inner.pass_state.lock().await;
        pass_state.asked = asked;
        let lock = self.lock_directory().await?.ok_or(LifeError::ReadOnly)?;
        // Fails before a key is made if there is no usable document.
        self.inner.publisher.read().await?;
        // Restores a lost document first, or the new key would be alone in it.
        self.pass(&mut pass_state, Mode::Apply, PassOptions::default(), now)
            .await?;
        let public = self.make(spec.unwrap_or(self.inner.spec), now).await?;
        let last = self.document();
        let published = update(&*self.inner.publisher, now, |document, found| {
            if let (crate::jwks::Found::Missing, Some(last)) = (found, &last) {
                *document = last.document.clone();
            }
            document.add(&public).map(drop).map_err(LifeError::from)
        })
        .await
        .map_err(LifeError::from);
        if let Err(error) = published {
            self.undo_generate(&public.kid, &error, now).await?;
            return Err(error);
        }
        let report = self
            .pass(&mut pass_state, Mode::Apply, PassOptions::default(), now)
            .await?;
        drop(lock);
        let key = find(&report, public.kid.as_str())?;
        Ok(GeneratedKey {
            key,
            existed: false,
            report,
        })
    }

    /// Every key of the document and the directory; changes nothing.
    pub async fn list(&self, now: Timestamp) -> Result<Report, LifeError> {
        let asked = self.asked();
        let mut pass_state = self.inner.pass_state.lock().await;
        pass_state.asked = asked;
        self.pass(&mut pass_state, Mode::DryRun, PassOptions::default(), now)
            .await
    }

    /// Gives the signing key a successor, unless one is waiting already.
    pub async fn rotate(
        &self,
        spec: Option<KeySpec>,
        now: Timestamp,
    ) -> Result<GeneratedKey, LifeError> {
        let asked = self.asked();
        let report = self.sync(now).await?;
        let waiting = report
            .keys
            .iter()
            .rev()
            .find(|key| key.state == Some(KeyState::Published));
        match waiting.cloned() {
            Some(key) => Ok(GeneratedKey {
                key,
                existed: true,
                report,
            }),
            None => self.generate(spec, present(now, asked)).await,
        }
    }

    /// Takes a key out of the document and deletes its files in this directory. Other servers that
    /// hold it stop signing with it at their next pass.
    pub async fn remove(&self, kid: &str, now: Timestamp) -> Result<Removal, LifeError> {
        let asked = self.asked();
        let mut pass_state = self.inner.pass_state.lock().await;
        pass_state.asked = asked;
        let lock = self.lock_directory().await?;
        self.inner.publisher.read().await?;
        // Restores a lost document first, or the removal would leave a document of only what this
        // directory knows.
        self.pass(
            &mut pass_state,
            Mode::of(lock.as_ref()),
            PassOptions::default(),
            now,
        )
        .await?;
        let contents = self.disk(|store| store.load()).await?;
        let local = contents
            .keys
            .iter()
            .find(|key| key.kid().as_str() == kid && (key.has_state_file || key.has_private_file))
            .map(|key| (key.name.clone(), key.history.clone()));
        if local.is_some() && lock.is_none() {
            return Err(LifeError::ReadOnly);
        }
        if let Some((name, history)) = &local {
            let (name, mut history) = (name.clone(), history.clone());
            history.removing = Some(now);
            self.disk(move |store| store.write_history(&name, &history))
                .await?;
        }
        let mut existed = false;
        let updated = update(&*self.inner.publisher, now, |document, _| {
            existed |= document.remove(kid);
            if existed || local.is_some() {
                Ok(())
            } else {
                Err(LifeError::NotFound(kid.to_owned()))
            }
        })
        .await
        .map_err(LifeError::from);
        let updated = match updated {
            Ok(updated) => updated,
            Err(error) => {
                // Reported as failed, so it must not happen later. If it took effect after all, the
                // next pass finds the key absent.
                if let Some((name, history)) = local {
                    self.disk(move |store| store.write_history(&name, &history))
                        .await?;
                }
                return Err(error);
            }
        };
        if let Some((name, _)) = local {
            self.disk(move |store| store.delete(&name)).await?;
        }
        let mut report = self
            .pass(
                &mut pass_state,
                Mode::of(lock.as_ref()),
                PassOptions::default(),
                now,
            )
            .await?;
        updated.tell(&mut report);
        drop(lock);
        let remaining = report
            .keys
            .iter()
            .filter(|key| key.published)
            .cloned()
            .collect();
        Ok(Removal { remaining, report })
    }

    /// One pass that may clean up: keys withdrawn long ago, and inherited keys that are superseded.
    pub async fn housekeeping(
        &self,
        options: Housekeeping,
        now: Timestamp,
    ) -> Result<Report, LifeError> {
        let Housekeeping { dry_run, first_key } = options;
        let options = PassOptions {
            first_key,
            clean: true,
        };
        if dry_run {
            let asked = self.asked();
            let mut pass_state = self.inner.pass_state.lock().await;
            pass_state.asked = asked;
            return self.pass(&mut pass_state, Mode::DryRun, options, now).await;
        }
        self.run(options, now).await
    }

    /// Undoes a generate whose key could not be published.
    async fn undo_generate(
        &self,
        kid: &crate::KeyId,
        error: &LifeError,
        now: Timestamp,
    ) -> Result<(), LifeError> {
        let name = kid.clone();
        let perhaps_published = unavailable(error);
        let created = kid.created().unwrap_or(now);
        self.disk(move |store| {
            if perhaps_published {
                // If the key got into the document, the next pass that can read it takes the key
                // out.
                let mut history = crate::History::new(created);
                history.removing = Some(now);
                store.write_history(&name, &history)?;
                store.delete_private(&name).map(drop)
            } else {
                store.delete(&name)
            }
        })
        .await
    }
}

fn find(report: &Report, kid: &str) -> Result<KeyView, LifeError> {
    report
        .keys
        .iter()
        .find(|key| key.kid == kid)
        .cloned()
        .ok_or_else(|| LifeError::NotFound(kid.to_owned()))
}
