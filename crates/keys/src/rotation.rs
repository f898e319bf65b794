//! Decides which key signs and what has to be done: a pure function of the facts, the document, the
//! policy and the time.
//!
//! Invariants (held by the property tests below)
//! - A key that signs has been read back from where verifiers read, is not known to have left
//!   there, is not retired, and its waiting time (cache time + skew) has passed. Only the very
//!   first key does not wait.
//! - A key stays published while a token that it signed may be valid, unless an operator removed
//!   it. A clock that is set back does not shorten that.
//! - A key that was published and has left the document is never published again.
//! - A key dated in the future signs only if no other key can.
//! - Nothing is taken out or deleted because a document is missing, empty or unreadable.
//!
//! This file alone decides. `jwks::life` gathers the facts and carries out the actions.

use std::{cmp::Reverse, collections::BTreeSet, time::Duration};

use jiff::{SignedDuration, Timestamp};

use super::{Algorithm, History, KeyId, remote::Trouble, sealing::VaultTrouble};

/// How far ahead the permission to sign is recorded. It limits what a clock that is set back can
/// do, and how long another process may go on using a retired key.
const LEASE: Duration = Duration::from_secs(600);

/// The operator's settings for a key's life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyPolicy {
    /// Life of a token.
    pub token_life: Duration,
    /// How long verifiers may cache a document.
    pub cache_time: Duration,
    /// How far apart clocks may be.
    pub skew: Duration,
    /// Age at which the signing key gets a successor.
    pub rotate_every: Option<Duration>,
    /// How long the files of a withdrawn key are kept before housekeeping deletes them.
    pub withdrawn_grace: Duration,
}

impl KeyPolicy {
    /// From publishing to signing: by then every verifier has fetched the document again.
    fn wait(&self) -> Duration {
        self.cache_time.saturating_add(self.skew)
    }
}

/// What a pass may do in addition.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PassOptions {
    /// Make a key if none can sign, now or later (when a server starts).
    pub first_key: bool,
    /// Delete withdrawn keys, and inherited keys that are superseded (housekeeping).
    pub clean: bool,
}

/// One key as the rules see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub kid: KeyId,
    pub history: History,
    /// The private half is here and can sign.
    pub can_sign: bool,
    /// There is a private file, valid or not.
    pub has_private_file: bool,
    pub has_public_file: bool,
    /// The public half is known.
    pub public: bool,
    /// There is a state file.
    pub has_state_file: bool,
}

impl Record {
    /// True if this directory is responsible for the key. A public half alone, without facts, is a
    /// copy from elsewhere.
    fn ours(&self) -> bool {
        self.has_state_file || self.has_private_file
    }

    /// Superseded before this program took over: nothing of ours ever depended on the key.
    fn superseded_before_us(&self) -> bool {
        self.history.inherited && self.history.activated.is_none()
    }
}

/// What was found at the place of publication.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Observation {
    Document {
        /// Ids of our keys in the document, if the key under that id is ours.
        holds: BTreeSet<KeyId>,
        /// The document holds keys that are not in this directory.
        others: bool,
        empty: bool,
    },
    /// It is certain that there is no document.
    Missing,
    /// The document could not be read, or is not a JWKS.
    Unknown,
}

/// A key's state, derived from its facts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyState {
    Pending,
    Published,
    Active,
    Retired,
    Withdrawn,
    Removing,
}

impl KeyState {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Published => "published",
            Self::Active => "active",
            Self::Retired => "retired",
            Self::Withdrawn => "withdrawn",
            Self::Removing => "removing",
        }
    }
}

impl std::fmt::Display for KeyState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Something to be done. Actions are carried out in this order.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// Write the public file, which a crash left unwritten.
    RestorePublic(KeyId),
    /// Take a key out of the document if it is there, and delete its files: completes a removal, or
    /// undoes a generate that was interrupted.
    FinishRemoval(KeyId),
    /// Put the public half into the document.
    Publish(KeyId),
    /// Record that the key signs: before it begins to, and again before the last entry expires.
    Activate(KeyId),
    /// Record that the key no longer signs.
    Retire(KeyId),
    DeletePrivate(KeyId),
    /// The last token of a retired key has expired: take the key out of the document and delete its
    /// files.
    Expire(KeyId),
    /// Delete the files of a key that left the document long ago.
    DeleteWithdrawn(KeyId),
    /// Make a new key.
    Generate,
}

/// Why no key signs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoSigner {
    #[error("the keys are still being loaded, or the first one made")]
    NotLoaded,
    #[error("this key set has no keys for {algorithm}")]
    NotInSet { algorithm: Algorithm },
    #[error("there is no signing key yet; make one with `tailbone keys generate`")]
    NoKeys,
    #[error("the signing service made no key: {0}")]
    NotMade(Trouble),
    #[error("{0}")]
    Vault(VaultTrouble),
    #[error("none of the key files can be used; `tailbone keys list` says why")]
    Unusable,
    #[error("key {kid} is not published yet")]
    Unpublished { kid: KeyId },
    #[error(
        "key {kid} is published and signs from {from}: other keys are in the JWKS, so verifiers may have a copy without this one \
         for keys.cacheTime + keys.skew. A key directory shared with the other servers, or a key made that long before the start \
         (`tailbone keys generate --local`), needs no wait"
    )]
    Waiting { kid: KeyId, from: Timestamp },
    #[error(
        "key {kid} is no longer in the published JWKS; make a new one with `tailbone keys generate`"
    )]
    Withdrawn { kid: KeyId },
}

/// What [`View::decide`] returns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyPlan {
    /// The key that signs from now on, after its `Activate`, if there is one, has been carried out.
    pub signer: Result<KeyId, NoSigner>,
    pub actions: Vec<Action>,
}

/// Records what was seen at `place` in the facts. Call before [`View::decide`].
pub fn observe(records: &mut [Record], place: &str, observation: &Observation, now: Timestamp) {
    let Observation::Document { holds, others, .. } = observation else {
        return;
    };
    for record in records.iter_mut().filter(|record| record.ours()) {
        let Record { kid, history, .. } = record;
        let mut publication = history.at(place);
        if holds.contains(kid) {
            publication.absent = None;
            if publication.published.is_none() {
                // A key that the original published has been there since it was made.
                let since = if history.inherited {
                    history.created.min(now)
                } else {
                    now
                };
                publication.published = Some(since);
                publication.alone = !others;
            }
        } else if publication.published.is_some() || history.inherited {
            publication.absent.get_or_insert(now);
        }
        if publication != history.at(place) {
            *history.at_mut(place) = publication;
        }
    }
}

/// What the rules look at: one place of publication, at one time.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    pub place: &'a str,
    pub observation: &'a Observation,
    pub policy: &'a KeyPolicy,
    pub options: PassOptions,
    pub now: Timestamp,
}

/// The state of a key at `place`.
pub fn state(record: &Record, place: &str) -> KeyState {
    let history = &record.history;
    let publication = history.at(place);
    if history.removing.is_some() {
        KeyState::Removing
    } else if publication.absent.is_some() {
        KeyState::Withdrawn
    } else if history.retired.is_some() {
        KeyState::Retired
    } else if publication.published.is_none() {
        KeyState::Pending
    } else if history.activated.is_some() {
        KeyState::Active
    } else {
        KeyState::Published
    }
}

/// When a published key begins to sign, unless it is needed earlier.
pub fn signs_from(history: &History, place: &str, policy: &KeyPolicy) -> Option<Timestamp> {
    history
        .at(place)
        .published
        .map(|published| later(published, policy.wait()))
}

/// When a retired key may leave the document: every token that it signed has then expired, on every
/// clock and in every cache.
pub fn gone_from(history: &History, policy: &KeyPolicy) -> Option<Timestamp> {
    let retired = history.retired?;
    let last = history
        .may_sign_until
        .map_or(retired, |until| until.max(retired));
    let life = history.longest_life.max(policy.token_life);
    Some(later(last, life.saturating_add(policy.wait())))
}

/// Records in the facts that the key signs.
pub fn record_signing(history: &mut History, policy: &KeyPolicy, now: Timestamp) {
    history.activated.get_or_insert(now);
    let until = later(now, LEASE);
    history.may_sign_until = Some(
        history
            .may_sign_until
            .map_or(until, |before| before.max(until)),
    );
    history.longest_life = history.longest_life.max(policy.token_life);
}

/// Records in the facts that the key no longer signs.
pub fn retire(history: &mut History, now: Timestamp) {
    history.retired.get_or_insert(now);
}

impl View<'_> {
    /// Decides which key signs and what has to be done.
    pub fn decide(&self, records: &[Record]) -> KeyPlan {
        let ours: Vec<&Record> = records.iter().filter(|record| record.ours()).collect();
        let signer = self.choose_signer(&ours);
        let mut actions = Vec::new();
        for record in &ours {
            self.add_due(record, signer, &mut actions);
        }
        if self.generate_is_due(&ours, signer) {
            actions.push(Action::Generate);
        }
        actions.sort();
        KeyPlan {
            signer: match signer {
                Some(signer) => Ok(signer.kid.clone()),
                None => Err(self.explain_no_signer(records, &ours)),
            },
            actions,
        }
    }

    fn choose_signer<'r>(&self, ours: &[&'r Record]) -> Option<&'r Record> {
        let candidates: Vec<&Record> = ours
            .iter()
            .copied()
            .filter(|record| {
                record.can_sign
                    && matches!(
                        state(record, self.place),
                        KeyState::Published | KeyState::Active
                    )
            })
            .collect();
        let in_use =
            |record: &&&Record| record.history.activated.is_some() || record.history.inherited;
        let waited = |record: &&&Record| {
            signs_from(&record.history, self.place, self.policy)
                .is_some_and(|from| from <= self.now)
        };
        let confirmed = |record: &&&Record| matches!(self.observation, Observation::Document { holds, .. } if holds.contains(&record.kid));
        let alone = |record: &&&Record| record.history.at(self.place).alone;
        let newest = |fit: &dyn Fn(&&&Record) -> bool| {
            candidates
                .iter()
                .filter(|record| fit(record))
                .max_by_key(|record| self.rank(record))
                .copied()
        };
        // The signer changes only after the document was read and holds the new key; without that,
        // only if no other key can sign.
        newest(&|record| in_use(record) || (waited(record) && confirmed(record)))
            .or_else(|| newest(&waited))
            .or_else(|| newest(&alone))
    }

    /// The newer key wins, and a date in the future loses. Of two keys made in the same second the
    /// first by name wins, as in the original.
    fn rank<'r>(&self, record: &'r Record) -> (bool, Timestamp, Reverse<&'r KeyId>) {
        (
            !self.is_future(&record.history),
            record.history.created,
            Reverse(&record.kid),
        )
    }

    fn is_future(&self, history: &History) -> bool {
        history.created > later(self.now, self.policy.skew)
    }

    fn add_due(&self, record: &Record, signer: Option<&Record>, actions: &mut Vec<Action>) {
        let Record { kid, history, .. } = record;
        let kid = || kid.clone();
        let state = state(record, self.place);
        let certain = *self.observation != Observation::Unknown;
        if state == KeyState::Removing {
            if certain {
                actions.push(Action::FinishRemoval(kid()));
            }
            return;
        }
        // A generate that ended before the private half was written, or files that were deleted by
        // hand.
        if history.retired.is_none()
            && history.activated.is_none()
            && !record.has_private_file
            && !history.inherited
        {
            if certain {
                actions.push(Action::FinishRemoval(kid()));
            }
            return;
        }
        if record.can_sign && !record.has_public_file {
            actions.push(Action::RestorePublic(kid()));
        }
        match self.observation {
            Observation::Document { .. } if state == KeyState::Pending && record.can_sign => {
                actions.push(Action::Publish(kid()));
            }
            // A lost document is no removal of keys.
            Observation::Missing if state != KeyState::Withdrawn && record.public => {
                actions.push(Action::Publish(kid()));
            }
            _ => {}
        }
        let over = gone_from(history, self.policy).is_some_and(|gone| gone <= self.now);
        if state == KeyState::Withdrawn {
            let long_ago = history
                .at(self.place)
                .absent
                .is_some_and(|absent| later(absent, self.policy.withdrawn_grace) <= self.now);
            let used_elsewhere = history.places.iter().any(|(other, publication)| {
                other != self.place
                    && publication.published.is_some()
                    && publication.absent.is_none()
            });
            if !matches!(self.observation, Observation::Document { empty: false, .. }) {
                return;
            }
            if over && !record.superseded_before_us() {
                // An expiry that was interrupted between the document and the files.
                actions.push(Action::Expire(kid()));
            } else if self.options.clean && long_ago && !used_elsewhere {
                actions.push(Action::DeleteWithdrawn(kid()));
            }
            return;
        }
        if let Some(signer) = signer {
            if std::ptr::eq(signer, record) {
                let renew = history
                    .may_sign_until
                    .is_none_or(|until| until < later(self.now, LEASE / 2));
                if history.activated.is_none()
                    || renew
                    || history.longest_life < self.policy.token_life
                {
                    actions.push(Action::Activate(kid()));
                }
            } else if matches!(state, KeyState::Active | KeyState::Published)
            && self.rank(record) < self.rank(signer)
            // Nobody knows why an inherited file is dated in the future: its key does not win, but
            // is not retired either.
            && !(history.inherited && self.is_future(history))
            {
                actions.push(Action::Retire(kid()));
            }
        }
        if state == KeyState::Retired && (self.options.clean || !record.superseded_before_us()) {
            if record.has_private_file {
                actions.push(Action::DeletePrivate(kid()));
            }
            if over && matches!(self.observation, Observation::Document { empty: false, .. }) {
                actions.push(Action::Expire(kid()));
            }
        }
    }

    fn generate_is_due(&self, ours: &[&Record], signer: Option<&Record>) -> bool {
        if *self.observation == Observation::Unknown {
            return false;
        }
        let hopeful = |record: &&&Record| {
            record.can_sign
                && matches!(
                    state(record, self.place),
                    KeyState::Pending | KeyState::Published | KeyState::Active
                )
        };
        let Some(signer) = signer else {
            return (self.options.first_key || self.policy.rotate_every.is_some())
                && !ours.iter().any(|record| hopeful(&record));
        };
        let successor = ours
            .iter()
            .filter(hopeful)
            .any(|record| self.rank(record) > self.rank(signer));
        let old = |every| later(signer.history.created, every) <= self.now;
        !successor && self.policy.rotate_every.is_some_and(old)
    }

    fn explain_no_signer(&self, records: &[Record], ours: &[&Record]) -> NoSigner {
        let newest = |wanted: KeyState| {
            ours.iter()
                .filter(|record| record.can_sign && state(record, self.place) == wanted)
                .max_by_key(|record| record.history.created)
        };
        if let Some(record) = newest(KeyState::Published) {
            let from = signs_from(&record.history, self.place, self.policy)
                .unwrap_or(record.history.created);
            NoSigner::Waiting {
                kid: record.kid.clone(),
                from,
            }
        } else if let Some(record) = newest(KeyState::Pending) {
            NoSigner::Unpublished {
                kid: record.kid.clone(),
            }
        } else if let Some(record) = newest(KeyState::Withdrawn) {
            NoSigner::Withdrawn {
                kid: record.kid.clone(),
            }
        } else if records
            .iter()
            .any(|record| record.has_private_file && !record.can_sign)
        {
            NoSigner::Unusable
        } else {
            NoSigner::NoKeys
        }
    }
}

/// `time` + `span`, at most the largest time there is.
fn later(time: Timestamp, span: Duration) -> Timestamp {
    SignedDuration::try_from(span)
        .ok()
        .and_then(|span| time.checked_add(span).ok())
        .unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests;
