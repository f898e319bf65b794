//! Audit lines: one for each token, refusal, key change and administrative call, in the log under the component `audit`.
//!
//! A line names the decision, who asked, and the reason code; it carries `kid` and `jti`, never a token.
//!
//! Invariants
//! - What was done has a line each time. Refusals are as many as callers like to make, so those of
//!   one action, caller and reason have a few lines in a while, and the others are counted: in the
//!   next line, or in one of their own ([`tell_repeated`]).
//! - What is kept for that is bounded, and so is the number of lines.

use std::{
    collections::HashMap,
    sync::{LazyLock, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// The target of audit lines.
pub(super) const TARGET: &str = "audit";
/// How many refusals like this one had no line.
pub(super) const REPEATED: &str = "repeated";

/// Lines of refusals that are alike, in this time.
const EACH: u32 = 10;
const WINDOW: Duration = Duration::from_secs(10);
/// Different ones that are told apart in that time; further ones count as alike.
const APART: usize = 500;
/// Bytes of a word that tell one from another.
const WORD: usize = 200;

/// What was decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    Allowed,
    Refused,
}

impl Decision {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Refused => "refused",
        }
    }
}

/// Writes an audit line: `audit!(Decision::Allowed, "issue", caller = …, kid = …)`.
#[macro_export]
macro_rules! audit {
    ($decision:expr, $action:expr $(, $($field:tt)+)?) => {
        ::tracing::info!(target: "audit", decision = $decision.as_str(), $($($field)+,)? "{}", $action)
    };
}

/// Those of the process, as the log is.
pub(super) static REFUSALS: LazyLock<Refusals> = LazyLock::new(Refusals::default);

/// Writes how many refusals had no line, for those whose time is over; to be called every few
/// seconds. At the end, `all`.
pub fn tell_repeated(now: Instant, all: bool) {
    for (like, repeated) in REFUSALS.over(now, all) {
        let Like {
            action,
            caller,
            reason,
        } = like;
        audit!(Decision::Refused, action, caller, reason, repeated);
    }
}

/// What makes refusals alike.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Like {
    action: String,
    caller: String,
    reason: String,
}

impl Like {
    pub(super) fn new(action: &str, caller: &str, reason: &str) -> Self {
        let cut = |text: &str| {
            let end = text.floor_char_boundary(WORD);
            text.get(..end).unwrap_or_default().to_owned()
        };
        Self {
            action: cut(action),
            caller: cut(caller),
            reason: cut(reason),
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Refusals(Mutex<HashMap<Like, Count>>);

#[derive(Debug)]
struct Count {
    since: Instant,
    written: u32,
    unwritten: u64,
}

impl Refusals {
    /// One more. `None`: it has no line of its own. Else how many before it had none.
    pub(super) fn take(&self, like: Like, now: Instant) -> Option<u64> {
        let mut counts = self.counts();
        let like = if counts.len() < APART || counts.contains_key(&like) {
            like
        } else {
            Like::new(&like.action, "various callers", "various reasons")
        };
        let count = counts.entry(like).or_insert(Count {
            since: now,
            written: 0,
            unwritten: 0,
        });
        if now.saturating_duration_since(count.since) >= WINDOW {
            let unwritten = count.unwritten;
            *count = Count {
                since: now,
                written: 1,
                unwritten: 0,
            };
            return Some(unwritten);
        }
        if count.written < EACH {
            count.written += 1;
            return Some(0);
        }
        count.unwritten += 1;
        None
    }

    /// Forgets those whose time is over, and gives what was not told of them.
    fn over(&self, now: Instant, all: bool) -> Vec<(Like, u64)> {
        let over = |count: &Count| all || now.saturating_duration_since(count.since) >= WINDOW;
        self.counts()
            .extract_if(|_, count| over(count))
            .filter(|(_, count)| count.unwritten > 0)
            .map(|(like, count)| (like, count.unwritten))
            .collect()
    }

    fn counts(&self) -> MutexGuard<'_, HashMap<Like, Count>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(caller: &str) -> Like {
        Like::new("gate", caller, "denied_by_policy")
    }

    #[test]
    fn refusals_that_are_alike_are_counted_and_none_is_forgotten() {
        let refusals = Refusals::default();
        let now = Instant::now();
        let mut written = 0;
        for _ in 0..1000 {
            written += u32::from(refusals.take(of("mallory"), now).is_some());
        }
        assert_eq!(written, EACH);
        // Others have lines of their own.
        assert_eq!(refusals.take(of("alice"), now), Some(0));
        assert_eq!(
            refusals.take(Like::new("issue", "mallory", "denied_by_policy"), now),
            Some(0)
        );
        // The next one tells of them, or nobody came and the end of the time does.
        let later = now + WINDOW;
        assert_eq!(
            refusals.take(of("mallory"), later),
            Some(u64::from(1000 - EACH))
        );
        for _ in 0..EACH {
            refusals.take(of("mallory"), later);
        }
        assert_eq!(refusals.over(later, false), []);
        assert_eq!(refusals.over(later + WINDOW, false), [(of("mallory"), 1)]);
        assert!(refusals.counts().is_empty());
    }

    #[test]
    fn different_ones_do_not_pile_up() {
        let refusals = Refusals::default();
        let now = Instant::now();
        let lines = (0..100_000)
            .filter(|n| refusals.take(of(&format!("caller {n}")), now).is_some())
            .count();
        assert!(lines <= APART + EACH as usize, "{lines} lines");
        assert!(refusals.counts().len() <= APART + 1);
        let told: u64 = refusals.over(now, true).iter().map(|(_, n)| n).sum();
        assert_eq!(told + lines as u64, 100_000);
    }
}
