//! Readiness: whether this server can do its work, and if not, which part prevents it.
//!
//! Each part adds a latch: a name and a check of the part's own state. The server is ready if no
//! latch is held. A latch may also be degraded: something is wrong that an operator should see, but
//! the server still works, and taking it out of service would make things worse (all replicas share
//! one bucket, so all of them would be taken out at once).
//!
//! Latches are checked when somebody asks, so an answer is always current. A check must be cheap
//! and must not wait.
//!
//! Anybody who reaches the port can see a latch's texts: they contain no path, no login URL and no
//! secret.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use jiff::Timestamp;
use parking_lot::RwLock;
use serde::Serialize;

/// The result of a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LatchState {
    Released,
    /// Something is wrong, for this reason, but the server should stay in service.
    Degraded(String),
    /// The server cannot do its work, for this reason.
    Held(String),
}

impl From<Result<(), String>> for LatchState {
    fn from(outcome: Result<(), String>) -> Self {
        outcome.map_or_else(Self::Held, |()| Self::Released)
    }
}

type Check = dyn Fn(Timestamp) -> LatchState + Send + Sync;
type NamedCheck = (&'static str, Arc<Check>);

/// All latches of a server. Clones share them and are cheap.
#[derive(Clone, Default)]
pub struct Readiness(Arc<RwLock<Vec<NamedCheck>>>);

/// The state of a latch at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Latch {
    pub name: &'static str,
    pub ready: bool,
    /// Something is wrong, although this latch does not prevent readiness.
    pub degraded: bool,
    /// Why it is held or degraded; otherwise empty.
    pub reason: String,
}

impl Readiness {
    /// Adds a latch, or replaces the latch with that name.
    pub fn latch<S: Into<LatchState>>(
        &self,
        name: &'static str,
        check: impl Fn(Timestamp) -> S + Send + Sync + 'static,
    ) {
        let check = move |now| check(now).into();
        let mut latches = self.0.write();
        latches.retain(|(known, _)| *known != name);
        latches.push((name, Arc::new(check)));
    }

    /// Adds a latch that its owner releases and holds explicitly. It is held at first.
    pub fn switch(&self, name: &'static str, reason: &'static str) -> Switch {
        let open = Arc::new(AtomicBool::new(false));
        let switch = Switch(open.clone());
        self.latch(name, move |_| {
            if open.load(Ordering::Acquire) {
                Ok(())
            } else {
                Err(reason.to_owned())
            }
        });
        switch
    }

    /// All latches, in the order in which they were added.
    pub fn check(&self, now: Timestamp) -> Vec<Latch> {
        // The lock is not held during a check, which is foreign code.
        let latches = self.0.read().clone();
        latches
            .into_iter()
            .map(|(name, check)| {
                let (ready, degraded, reason) = match check(now) {
                    LatchState::Released => (true, false, String::new()),
                    LatchState::Degraded(reason) => (true, true, reason),
                    LatchState::Held(reason) => (false, false, reason),
                };
                Latch {
                    name,
                    ready,
                    degraded,
                    reason,
                }
            })
            .collect()
    }
}

/// Whether all latches are released. Without any latch the server is not ready, since it has not
/// said yet what it needs.
pub fn all(latches: &[Latch]) -> bool {
    !latches.is_empty() && latches.iter().all(|latch| latch.ready)
}

impl std::fmt::Debug for Readiness {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list()
            .entries(self.check(Timestamp::now()))
            .finish()
    }
}

/// Controls a latch.
#[derive(Debug, Clone)]
pub struct Switch(Arc<AtomicBool>);

impl Switch {
    pub fn release(&self) {
        self.0.store(true, Ordering::Release);
    }

    pub fn hold(&self) {
        self.0.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_ready_without_a_latch() {
        assert!(!all(&Readiness::default().check(Timestamp::UNIX_EPOCH)));
    }

    #[test]
    fn one_held_latch_is_enough_and_tells_why() {
        let readiness = Readiness::default();
        let listeners = readiness.switch("listeners", "not listening yet");
        readiness.latch("late", |now| {
            (now.as_second() < 10)
                .then_some(())
                .ok_or_else(|| "too late".to_owned())
        });
        let at = |second| readiness.check(Timestamp::from_second(second).unwrap());
        assert!(!all(&at(0)));
        assert_eq!(at(0)[0].reason, "not listening yet");
        listeners.release();
        assert!(all(&at(9)), "{:?}", at(9));
        assert_eq!(
            at(10)[1],
            Latch {
                name: "late",
                ready: false,
                degraded: false,
                reason: "too late".into()
            }
        );
        listeners.hold();
        assert!(!all(&at(0)));
    }

    #[test]
    fn a_degraded_latch_is_told_and_leaves_the_server_ready() {
        let readiness = Readiness::default();
        readiness.latch("jwks", |_| LatchState::Degraded("old".into()));
        let latches = readiness.check(Timestamp::UNIX_EPOCH);
        assert!(all(&latches));
        assert!(
            latches[0].degraded && latches[0].reason == "old",
            "{latches:?}"
        );
    }

    #[test]
    fn a_latch_of_the_same_name_takes_the_place() {
        let readiness = Readiness::default();
        readiness.latch("x", |_| LatchState::Held("old".into()));
        readiness.latch("x", |_| LatchState::Released);
        assert!(all(&readiness.check(Timestamp::UNIX_EPOCH)));
    }
}
