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

use super::{History, KeyId};

/// How far ahead the permission to sign is recorded. It limits what a clock that is set back can
/// do, and how long another process may go on using a retired key.
const LEASE: Duration = Duration::from_secs(600);

/// The operator's settings for a key's life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
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

impl Policy {
    /// From publishing to signing: by then every verifier has fetched the document again.
    fn wait(&self) -> Duration {
        self.cache_time.saturating_add(self.skew)
    }
}

/// What a pass may do in addition.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Leave {
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
    pub private_file: bool,
    pub public_file: bool,
    /// The public half is known.
    pub public: bool,
    /// There is a state file.
    pub known: bool,
}

impl Record {
    /// True if this directory is responsible for the key. A public half alone, without facts, is a
    /// copy from elsewhere.
    fn ours(&self) -> bool {
        self.known || self.private_file
    }

    /// Superseded before this program took over: nothing of ours ever depended on the key.
    fn superseded_before_us(&self) -> bool {
        self.history.inherited && self.history.activated.is_none()
    }
}

/// What was found at the place of publication.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
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
pub enum State {
    Pending,
    Published,
    Active,
    Retired,
    Withdrawn,
    Removing,
}

impl State {
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

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Something to be done. Actions are carried out in this order.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// Write the public file, which a crash left unwritten.
    MendPublic(KeyId),
    /// Take a key out of the document if it is there, and delete its files: completes a removal, or
    /// undoes a generate that was interrupted.
    FinishRemoval(KeyId),
    /// Put the public half into the document.
    Publish(KeyId),
    /// Record that the key signs: before it begins to, and again before the last entry expires.
    Arm(KeyId),
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
    #[error("there is no signing key yet; make one with `tailbone keys generate`")]
    NoKeys,
    #[error("none of the key files can be used; `tailbone keys list` says why")]
    Unusable,
    #[error("key {kid} is not published yet")]
    Unpublished { kid: KeyId },
    #[error(
        "key {kid} is published and signs from {from}: other servers' keys are in the JWKS, so verifiers may have a copy without this one \
         for keys.cacheTime + keys.skew. A key directory shared with the other servers, or a key made that long before the start \
         (`tailbone keys generate --local`), needs no wait"
    )]
    Waiting { kid: KeyId, from: Timestamp },
    #[error(
        "key {kid} is no longer in the published JWKS; make a new one with `tailbone keys generate`"
    )]
    Withdrawn { kid: KeyId },
}

/// What [`decide`] returns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// The key that signs from now on, after its `Arm`, if there is one, has been carried out.
    pub signer: Result<KeyId, NoSigner>,
    pub actions: Vec<Action>,
}

/// Records what was seen at `place` in the facts. Call before [`decide`].
pub fn observe(records: &mut [Record], place: &str, seen: &Seen, now: Timestamp) {
    let Seen::Document { holds, others, .. } = seen else {
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

/// Decides which key signs and what has to be done.
pub fn decide(
    records: &[Record],
    place: &str,
    seen: &Seen,
    policy: &Policy,
    leave: Leave,
    now: Timestamp,
) -> Decision {
    let ours: Vec<&Record> = records.iter().filter(|record| record.ours()).collect();
    let signer = choose(&ours, place, seen, policy, now);
    let mut actions = Vec::new();
    for record in &ours {
        due(
            record,
            signer,
            place,
            seen,
            policy,
            leave,
            now,
            &mut actions,
        );
    }
    if generate_due(&ours, signer, place, seen, policy, leave, now) {
        actions.push(Action::Generate);
    }
    actions.sort();
    Decision {
        signer: match signer {
            Some(signer) => Ok(signer.kid.clone()),
            None => Err(why_none(records, &ours, place, policy)),
        },
        actions,
    }
}

/// The state of a key at `place`.
pub fn state(record: &Record, place: &str) -> State {
    let history = &record.history;
    let publication = history.at(place);
    if history.removing.is_some() {
        State::Removing
    } else if publication.absent.is_some() {
        State::Withdrawn
    } else if history.retired.is_some() {
        State::Retired
    } else if publication.published.is_none() {
        State::Pending
    } else if history.activated.is_some() {
        State::Active
    } else {
        State::Published
    }
}

/// When a published key begins to sign, unless it is needed earlier.
pub fn signs_from(history: &History, place: &str, policy: &Policy) -> Option<Timestamp> {
    history
        .at(place)
        .published
        .map(|published| later(published, policy.wait()))
}

/// When a retired key may leave the document: every token that it signed has then expired, on every
/// clock and in every cache.
pub fn gone_from(history: &History, policy: &Policy) -> Option<Timestamp> {
    let retired = history.retired?;
    let last = history
        .may_sign_until
        .map_or(retired, |until| until.max(retired));
    let life = history.longest_life.max(policy.token_life);
    Some(later(last, life.saturating_add(policy.wait())))
}

/// Records in the facts that the key signs.
pub fn arm(history: &mut History, policy: &Policy, now: Timestamp) {
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

fn choose<'a>(
    ours: &[&'a Record],
    place: &str,
    seen: &Seen,
    policy: &Policy,
    now: Timestamp,
) -> Option<&'a Record> {
    let candidates: Vec<&Record> = ours
        .iter()
        .copied()
        .filter(|record| {
            record.can_sign && matches!(state(record, place), State::Published | State::Active)
        })
        .collect();
    let in_use = |record: &&&Record| record.history.activated.is_some() || record.history.inherited;
    let waited = |record: &&&Record| {
        signs_from(&record.history, place, policy).is_some_and(|from| from <= now)
    };
    let confirmed = |record: &&&Record| matches!(seen, Seen::Document { holds, .. } if holds.contains(&record.kid));
    let alone = |record: &&&Record| record.history.at(place).alone;
    let newest = |fit: &dyn Fn(&&&Record) -> bool| {
        candidates
            .iter()
            .filter(|record| fit(record))
            .max_by_key(|record| rank(record, policy, now))
            .copied()
    };
    // The signer changes only after the document was read and holds the new key; without that, only
    // if no other key can sign.
    newest(&|record| in_use(record) || (waited(record) && confirmed(record)))
        .or_else(|| newest(&waited))
        .or_else(|| newest(&alone))
}

/// The newer key wins, and a date in the future loses. Of two keys made in the same second the
/// first by name wins, as in the original.
fn rank<'a>(
    record: &'a Record,
    policy: &Policy,
    now: Timestamp,
) -> (bool, Timestamp, Reverse<&'a KeyId>) {
    (
        !is_future(&record.history, policy, now),
        record.history.created,
        Reverse(&record.kid),
    )
}

fn is_future(history: &History, policy: &Policy, now: Timestamp) -> bool {
    history.created > later(now, policy.skew)
}

#[allow(
    clippy::too_many_arguments,
    reason = "one call; a struct would only rename them"
)]
fn due(
    record: &Record,
    signer: Option<&Record>,
    place: &str,
    seen: &Seen,
    policy: &Policy,
    leave: Leave,
    now: Timestamp,
    actions: &mut Vec<Action>,
) {
    let Record { kid, history, .. } = record;
    let kid = || kid.clone();
    let state = state(record, place);
    let seen_at_all = *seen != Seen::Unknown;
    if state == State::Removing {
        if seen_at_all {
            actions.push(Action::FinishRemoval(kid()));
        }
        return;
    }
    // A generate that ended before the private half was written, or files that were deleted by
    // hand.
    if history.retired.is_none()
        && history.activated.is_none()
        && !record.private_file
        && !history.inherited
    {
        if seen_at_all {
            actions.push(Action::FinishRemoval(kid()));
        }
        return;
    }
    if record.can_sign && !record.public_file {
        actions.push(Action::MendPublic(kid()));
    }
    match seen {
        Seen::Document { .. } if state == State::Pending && record.can_sign => {
            actions.push(Action::Publish(kid()));
        }
        // A lost document is no removal of keys.
        Seen::Missing if state != State::Withdrawn && record.public => {
            actions.push(Action::Publish(kid()));
        }
        _ => {}
    }
    let over = gone_from(history, policy).is_some_and(|gone| gone <= now);
    if state == State::Withdrawn {
        let long_ago = history
            .at(place)
            .absent
            .is_some_and(|absent| later(absent, policy.withdrawn_grace) <= now);
        let used_elsewhere = history.places.iter().any(|(other, publication)| {
            other != place && publication.published.is_some() && publication.absent.is_none()
        });
        if !matches!(seen, Seen::Document { empty: false, .. }) {
            return;
        }
        if over && !record.superseded_before_us() {
            // An expiry that was interrupted between the document and the files.
            actions.push(Action::Expire(kid()));
        } else if leave.clean && long_ago && !used_elsewhere {
            actions.push(Action::DeleteWithdrawn(kid()));
        }
        return;
    }
    if let Some(signer) = signer {
        if std::ptr::eq(signer, record) {
            let renew = history
                .may_sign_until
                .is_none_or(|until| until < later(now, LEASE / 2));
            if history.activated.is_none() || renew || history.longest_life < policy.token_life {
                actions.push(Action::Arm(kid()));
            }
        } else if matches!(state, State::Active | State::Published)
            && rank(record, policy, now) < rank(signer, policy, now)
            // Nobody knows why an inherited file is dated in the future: its key does not win, but
            // is not retired either.
            && !(history.inherited && is_future(history, policy, now))
        {
            actions.push(Action::Retire(kid()));
        }
    }
    if state == State::Retired && (leave.clean || !record.superseded_before_us()) {
        if record.private_file {
            actions.push(Action::DeletePrivate(kid()));
        }
        if over && matches!(seen, Seen::Document { empty: false, .. }) {
            actions.push(Action::Expire(kid()));
        }
    }
}

fn generate_due(
    ours: &[&Record],
    signer: Option<&Record>,
    place: &str,
    seen: &Seen,
    policy: &Policy,
    leave: Leave,
    now: Timestamp,
) -> bool {
    if *seen == Seen::Unknown {
        return false;
    }
    let hopeful = |record: &&&Record| {
        record.can_sign
            && matches!(
                state(record, place),
                State::Pending | State::Published | State::Active
            )
    };
    let Some(signer) = signer else {
        return (leave.first_key || policy.rotate_every.is_some())
            && !ours.iter().any(|record| hopeful(&record));
    };
    let successor = ours
        .iter()
        .filter(hopeful)
        .any(|record| rank(record, policy, now) > rank(signer, policy, now));
    let old = |every| later(signer.history.created, every) <= now;
    !successor && policy.rotate_every.is_some_and(old)
}

fn why_none(records: &[Record], ours: &[&Record], place: &str, policy: &Policy) -> NoSigner {
    let newest = |wanted: State| {
        ours.iter()
            .filter(|record| record.can_sign && state(record, place) == wanted)
            .max_by_key(|record| record.history.created)
    };
    if let Some(record) = newest(State::Published) {
        let from = signs_from(&record.history, place, policy).unwrap_or(record.history.created);
        NoSigner::Waiting {
            kid: record.kid.clone(),
            from,
        }
    } else if let Some(record) = newest(State::Pending) {
        NoSigner::Unpublished {
            kid: record.kid.clone(),
        }
    } else if let Some(record) = newest(State::Withdrawn) {
        NoSigner::Withdrawn {
            kid: record.kid.clone(),
        }
    } else if records
        .iter()
        .any(|record| record.private_file && !record.can_sign)
    {
        NoSigner::Unusable
    } else {
        NoSigner::NoKeys
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
