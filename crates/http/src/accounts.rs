//! A map with one account per key (peer, identity, client), for accounting what each may use.
//!
//! Invariants
//! - A key has one account: as long as somebody holds it, and afterwards until it is idle.
//! - Memory is bounded: idle accounts that nobody holds are dropped whenever
//!   the number of accounts has doubled.
//!
//! An account is idle if forgetting it changes nothing. The owner of the map decides that, and does
//! the locking.

use std::{collections::HashMap, fmt, hash::Hash, sync::Arc};

/// Below this number of accounts a sweep is not worth its cost.
pub const MIN_SWEEP: usize = 1024;

pub struct Accounts<K, V> {
    all: HashMap<K, Arc<V>>,
    sweep_at: usize,
}

impl<K: Eq + Hash, V: Default> Accounts<K, V> {
    /// Returns the account of `key` and creates it if there is none.
    pub fn get_or_insert(&mut self, key: K, is_idle: impl Fn(&V) -> bool) -> Arc<V> {
        if self.all.len() >= self.sweep_at.max(MIN_SWEEP) {
            // An account that somebody holds must stay: a second one for its key would count from
            // zero.
            self.all
                .retain(|_, account| Arc::strong_count(account) > 1 || !is_idle(account));
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
