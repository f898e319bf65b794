//! A map with one account per key (peer, identity, client), for accounting what each may use.
//!
//! Invariants
//! - A key has one account: as long as somebody holds it, and afterwards until it is as good as
//!   new.
//! - Memory is bounded: accounts that nobody holds and that are as good as new are dropped whenever
//!   the number of accounts has doubled.
//!
//! The owner of the map decides when an account is as good as new, and does the locking.

use std::{collections::HashMap, fmt, hash::Hash, sync::Arc};

/// Below this number of accounts a sweep is not worth its cost.
pub const SWEEP: usize = 1024;

pub struct Accounts<K, V> {
    all: HashMap<K, Arc<V>>,
    sweep_at: usize,
}

impl<K: Eq + Hash, V: Default> Accounts<K, V> {
    /// Returns the account of `key` and creates it if there is none.
    pub fn of(&mut self, key: K, as_new: impl Fn(&V) -> bool) -> Arc<V> {
        if self.all.len() >= self.sweep_at.max(SWEEP) {
            // An account that somebody holds must stay: a second one for its key would count from
            // zero.
            self.all
                .retain(|_, account| Arc::strong_count(account) > 1 || !as_new(account));
            self.sweep_at = self.all.len() * 2;
        }
        self.all.entry(key).or_default().clone()
    }

    /// The number of accounts.
    pub fn count(&self) -> usize {
        self.all.len()
    }
}

impl<K, V> Default for Accounts<K, V> {
    fn default() -> Self {
        Self {
            all: HashMap::new(),
            sweep_at: 0,
        }
    }
}

/// Leaves the contents out: the keys say who the callers are.
impl<K, V> fmt::Debug for Accounts<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Accounts")
            .field("number", &self.all.len())
            .finish_non_exhaustive()
    }
}
