//! How often somebody may try something.
//!
//! Invariants
//! - Who has none left is refused until the window ends, whatever they try.
//! - Memory is bounded: while [`MAX_KNOWN`] others are counted, a new one is refused.
//!
//! Counts are of this process, and end with it: replicas count each for themselves.

use std::collections::HashMap;

use jiff::Timestamp;
use parking_lot::Mutex;

/// Of a device's wait, see [`super::LIFETIME`].
const LIFETIME_SECONDS: i64 = super::LIFETIME.as_secs().cast_signed();

/// The most who are counted at once.
const MAX_KNOWN: usize = 10_000;

/// Tries of many, each counted for a window of time.
#[derive(Debug)]
pub struct Tries {
    /// In each window.
    limit: u32,
    /// Seconds.
    window: i64,
    known: Mutex<HashMap<String, Window>>,
}

#[derive(Debug, Clone, Copy)]
struct Window {
    /// In seconds.
    ends: i64,
    tries: u32,
}

impl Tries {
    /// Wrong user codes of a person. Of 20⁸ codes, ten in the life of one find nothing.
    pub fn of_user_codes() -> Self {
        Self::new(10, LIFETIME_SECONDS)
    }

    /// Devices that a caller lets wait for a person, all of which are stored.
    pub fn of_new_devices() -> Self {
        Self::new(100, LIFETIME_SECONDS)
    }

    /// Requests that a client without credentials sends ahead, all of which are stored.
    pub fn of_pushed_requests() -> Self {
        Self::new(300, LIFETIME_SECONDS)
    }

    pub fn new(limit: u32, window: i64) -> Self {
        Self {
            limit,
            window,
            known: Mutex::default(),
        }
    }

    /// Takes one try; `false` if none is left.
    pub fn take(&self, who: &str, now: Timestamp) -> bool {
        let at = now.as_second();
        let mut known = self.known.lock();
        if !known.contains_key(who) && known.len() >= MAX_KNOWN {
            known.retain(|_, window| window.ends > at);
            if known.len() >= MAX_KNOWN {
                return false;
            }
        }
        let fresh = Window {
            ends: at.saturating_add(self.window),
            tries: 0,
        };
        let window = known.entry(who.to_owned()).or_insert(fresh);
        if window.ends <= at {
            *window = fresh;
        }
        let left = window.tries < self.limit;
        window.tries += u32::from(left);
        left
    }

    /// Gives one back that was right.
    pub fn give_back(&self, who: &str) {
        let mut known = self.known.lock();
        if let Some(window) = known.get_mut(who) {
            window.tries = window.tries.saturating_sub(1);
            if window.tries == 0 {
                known.remove(who);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn each_has_their_own_tries_until_the_window_ends() {
        let tries = Tries::new(2, 60);
        let take = |who: &str, second| tries.take(who, at(second));
        assert!(take("alice", 0) && take("alice", 10));
        assert!(!take("alice", 20), "two are used up");
        assert!(take("bob", 20), "bob has his own");
        assert!(!take("alice", 59), "trying again prolongs nothing");
        assert!(take("alice", 60), "a new window");
        tries.give_back("alice");
        assert!(take("alice", 61) && take("alice", 61) && !take("alice", 61));
        tries.give_back("nobody");
    }

    #[test]
    fn strangers_do_not_fill_the_memory() {
        let tries = Tries::new(1, 60);
        for number in 0..MAX_KNOWN {
            assert!(tries.take(&number.to_string(), at(0)));
        }
        assert!(!tries.take("one more", at(1)));
        assert!(!tries.take("0", at(1)), "those who are counted still are");
        assert!(tries.take("one more", at(60)), "the others are forgotten");
        assert_eq!(tries.known.lock().len(), 1);
    }
}
