//! Audit lines: one for each token, refusal, key change and administrative call, in the log under
//! the component `audit`.
//!
//! A line has the decision, the caller and the reason code, and `kid` and `jti` where they apply,
//! but never a token.
//!
//! Invariants
//! - Every action that was carried out has a line. Callers can cause any number of refusals, so
//!   refusals of the same action, caller and reason only have a few lines per period. The others
//!   are counted; the count is in the next line, or in a line of its own ([`report_repeated`]).
//! - The memory for this is bounded, and so is the number of lines.

use std::{
    collections::HashMap,
    sync::LazyLock,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

/// The log target of audit lines.
pub(super) const TARGET: &str = "audit";
/// The field with the number of similar refusals that had no line.
pub(super) const REPEATED: &str = "repeated";

/// The number of lines for similar refusals in one period.
const LINES_PER_WINDOW: u32 = 10;
const WINDOW: Duration = Duration::from_secs(10);
/// Different refusals that are counted separately in one period; all others are counted together.
const MAX_KEYS: usize = 500;
/// Bytes of a text that are compared.
const MAX_TEXT: usize = 200;

/// The decision that an audit line reports.
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

/// The counts of this process, like the log.
pub(super) static REFUSALS: LazyLock<Refusals> = LazyLock::new(Refusals::default);

/// Writes the number of refusals without a line for each period that has ended. To be called every
/// few seconds, and once with `all` at the end of the process.
pub fn report_repeated(now: Instant, all: bool) {
    for (key, repeated) in REFUSALS.ended(now, all) {
        let RefusalKey {
            action,
            caller,
            reason,
        } = key;
        audit!(Decision::Refused, action, caller, reason, repeated);
    }
}

/// Refusals that agree in these fields count as similar.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct RefusalKey {
    action: String,
    caller: String,
    reason: String,
}

impl RefusalKey {
    pub(super) fn new(action: &str, caller: &str, reason: &str) -> Self {
        let cut = |text: &str| {
            let end = text.floor_char_boundary(MAX_TEXT);
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
pub(super) struct Refusals(Mutex<HashMap<RefusalKey, Count>>);

#[derive(Debug)]
struct Count {
    since: Instant,
    written: u32,
    unwritten: u64,
}

impl Refusals {
    /// Counts a refusal. `None` if it gets no line, otherwise the number of similar ones before it
    /// that got none.
    pub(super) fn take(&self, key: RefusalKey, now: Instant) -> Option<u64> {
        let mut counts = self.0.lock();
        let key = if counts.len() < MAX_KEYS || counts.contains_key(&key) {
            key
        } else {
            RefusalKey::new(&key.action, "various callers", "various reasons")
        };
        let count = counts.entry(key).or_insert(Count {
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
        if count.written < LINES_PER_WINDOW {
            count.written += 1;
            return Some(0);
        }
        count.unwritten += 1;
        None
    }

    /// Removes counts whose period has ended, and returns those with refusals that had no line.
    fn ended(&self, now: Instant, all: bool) -> Vec<(RefusalKey, u64)> {
        let ended = |count: &Count| all || now.saturating_duration_since(count.since) >= WINDOW;
        self.0
            .lock()
            .extract_if(|_, count| ended(count))
            .filter(|(_, count)| count.unwritten > 0)
            .map(|(key, count)| (key, count.unwritten))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(caller: &str) -> RefusalKey {
        RefusalKey::new("gate", caller, "denied_by_policy")
    }

    #[test]
    fn refusals_that_are_alike_are_counted_and_none_is_forgotten() {
        let refusals = Refusals::default();
        let now = Instant::now();
        let mut written = 0;
        for _ in 0..1000 {
            written += u32::from(refusals.take(of("mallory"), now).is_some());
        }
        assert_eq!(written, LINES_PER_WINDOW);
        // Refusals of another caller have their own lines.
        assert_eq!(refusals.take(of("alice"), now), Some(0));
        assert_eq!(
            refusals.take(RefusalKey::new("issue", "mallory", "denied_by_policy"), now),
            Some(0)
        );
        // The count is reported by the next refusal, or at the end of the period if there is none.
        let later = now + WINDOW;
        assert_eq!(
            refusals.take(of("mallory"), later),
            Some(u64::from(1000 - LINES_PER_WINDOW))
        );
        for _ in 0..LINES_PER_WINDOW {
            refusals.take(of("mallory"), later);
        }
        assert_eq!(refusals.ended(later, false), []);
        assert_eq!(refusals.ended(later + WINDOW, false), [(of("mallory"), 1)]);
        assert!(refusals.0.lock().is_empty());
    }

    #[test]
    fn different_ones_do_not_pile_up() {
        let refusals = Refusals::default();
        let now = Instant::now();
        let lines = (0..100_000)
            .filter(|n| refusals.take(of(&format!("caller {n}")), now).is_some())
            .count();
        assert!(
            lines <= MAX_KEYS + LINES_PER_WINDOW as usize,
            "{lines} lines"
        );
        assert!(refusals.0.lock().len() <= MAX_KEYS + 1);
        let told: u64 = refusals.ended(now, true).iter().map(|(_, n)| n).sum();
        assert_eq!(told + lines as u64, 100_000);
    }
}
