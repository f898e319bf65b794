//! Whether a service is asked: a function of what its last calls gave and of the time.
//!
//! A service that said clearly that it cannot sign, or that failed three times in a row, is not
//! asked by callers any more. They are refused at once, and told when the next probe is due. A
//! probe that gets a signature ends this.

use std::time::{Duration, Instant};

use super::{RemoteFailure, Trouble};

/// Failures in a row after which callers are refused, where a single one says little.
const FAILURES: u32 = 3;

/// The time before the first probe; it doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
pub(super) struct Breaker {
    open: Option<Open>,
    /// Failures since the last signature.
    failures: u32,
    /// Counts the times that it opened, so that a probe knows whether it is still needed.
    pub(super) opened: u64,
}

#[derive(Debug, Clone, Copy)]
struct Open {
    trouble: Trouble,
    pause: Duration,
    probe_at: Instant,
}

/// What an outcome changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    Closed,
    None,
    Opened,
    /// Still open, but for another reason.
    Other,
}

impl Breaker {
    /// Whether a caller may ask the service.
    pub(super) fn admit(&self, now: Instant) -> Result<(), RemoteFailure> {
        match self.open {
            None => Ok(()),
            Some(open) => {
                let until = open.probe_at.saturating_duration_since(now);
                // `Retry-After` counts whole seconds.
                let seconds = until.as_millis().div_ceil(1000).max(1);
                Err(RemoteFailure {
                    trouble: open.trouble,
                    retry_after: Duration::from_secs(u64::try_from(seconds).unwrap_or(u64::MAX)),
                })
            }
        }
    }

    /// Why callers are refused, if they are.
    pub(super) fn trouble(&self) -> Option<Trouble> {
        self.open.map(|open| open.trouble)
    }

    /// The time until the next probe, if there must be one.
    pub(super) fn next_probe(&self, now: Instant) -> Option<Duration> {
        self.open
            .map(|open| open.probe_at.saturating_duration_since(now))
    }

    /// The outcome of a caller's call. One that began before the service was found away says
    /// nothing about the next probe.
    pub(super) fn record(&mut self, outcome: Result<(), Trouble>, now: Instant) -> Change {
        match (outcome, self.open) {
            (Ok(()), _) => self.close(),
            (Err(_), Some(_)) => Change::None,
            (Err(trouble), None) => {
                self.failures += 1;
                if !trouble.is_clear() && self.failures < FAILURES {
                    return Change::None;
                }
                self.opened += 1;
                self.open = Some(Open {
                    trouble,
                    pause: FIRST_PAUSE,
                    probe_at: now + FIRST_PAUSE,
                });
                Change::Opened
            }
        }
    }

    /// The outcome of a probe.
    pub(super) fn record_probe(&mut self, outcome: Result<(), Trouble>, now: Instant) -> Change {
        match (outcome, &mut self.open) {
            (Ok(()), _) => self.close(),
            (Err(_), None) => Change::None,
            (Err(trouble), Some(open)) => {
                let other = open.trouble != trouble;
                let pause = (open.pause * 2).min(LONGEST_PAUSE);
                *open = Open {
                    trouble,
                    pause,
                    probe_at: now + pause,
                };
                if other { Change::Other } else { Change::None }
            }
        }
    }

    fn close(&mut self) -> Change {
        self.failures = 0;
        match self.open.take() {
            Some(_) => Change::Closed,
            None => Change::None,
        }
    }
}

impl Trouble {
    /// True if the service itself said that it will not sign until an operator does something.
    fn is_clear(self) -> bool {
        match self {
            Self::Disabled | Self::Forbidden | Self::Mismatch | Self::Sealed => true,
            Self::Away | Self::Refused | Self::Slow | Self::Throttled => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AWAY: Result<(), Trouble> = Err(Trouble::Away);

    #[test]
    fn callers_are_refused_after_three_failures_in_a_row() {
        let start = Instant::now();
        let mut breaker = Breaker::default();
        for _ in 0..2 {
            assert_eq!(breaker.record(AWAY, start), Change::None);
            assert_eq!(breaker.admit(start), Ok(()));
        }
        // A signature in between begins the row anew.
        assert_eq!(breaker.record(Ok(()), start), Change::None);
        for _ in 0..2 {
            assert_eq!(breaker.record(AWAY, start), Change::None);
        }
        assert_eq!(breaker.record(AWAY, start), Change::Opened);
        let refused = breaker.admit(start).unwrap_err();
        assert_eq!(refused.trouble, Trouble::Away);
        assert_eq!(refused.retry_after, FIRST_PAUSE);
    }

    #[test]
    fn one_clear_word_is_enough() {
        for trouble in [
            Trouble::Disabled,
            Trouble::Forbidden,
            Trouble::Mismatch,
            Trouble::Sealed,
        ] {
            let mut breaker = Breaker::default();
            let opened = breaker.record(Err(trouble), Instant::now());
            assert_eq!(opened, Change::Opened, "{trouble}");
        }
    }

    #[test]
    fn probes_come_less_often_until_one_gets_a_signature() {
        let mut now = Instant::now();
        let mut breaker = Breaker::default();
        breaker.record(Err(Trouble::Sealed), now);
        let mut pauses = Vec::new();
        for _ in 0..7 {
            let pause = breaker.next_probe(now).unwrap();
            pauses.push(pause.as_secs());
            now += pause;
            assert_eq!(
                breaker.record_probe(Err(Trouble::Sealed), now),
                Change::None
            );
        }
        assert_eq!(pauses, [1, 2, 4, 5, 5, 5, 5]);
        // The reason is the newest.
        assert_eq!(breaker.record_probe(AWAY, now), Change::Other);
        assert_eq!(breaker.trouble(), Some(Trouble::Away));
        assert_eq!(breaker.admit(now).unwrap_err().retry_after.as_secs(), 5);
        assert_eq!(breaker.record_probe(Ok(()), now), Change::Closed);
        assert_eq!(breaker.admit(now), Ok(()));
        assert_eq!(breaker.next_probe(now), None);
        // The next time begins with the first pause.
        breaker.record(Err(Trouble::Sealed), now);
        assert_eq!(breaker.next_probe(now), Some(FIRST_PAUSE));
    }

    #[test]
    fn calls_that_began_earlier_do_not_put_the_probe_off() {
        let start = Instant::now();
        let mut breaker = Breaker::default();
        breaker.record(Err(Trouble::Sealed), start);
        let later = start + FIRST_PAUSE / 2;
        assert_eq!(breaker.record(AWAY, later), Change::None);
        assert_eq!(breaker.next_probe(later), Some(FIRST_PAUSE / 2));
    }
}
