//! What is kept for each of many who come and go.
//!
//! Invariants
//! - One key has one account: while somebody holds it, and afterwards until it is as good as new.
//! - Accounts cost bounded memory: those that nobody holds and that are as good as new are swept out whenever their number has
//!   doubled.
//!
//! Who keeps them says what is as good as new, and has the lock.

use std::{collections::HashMap, fmt, hash::Hash, sync::Arc};

/// Fewer accounts than this are not worth sweeping.
pub(crate) const SWEEP: usize = 1024;

pub struct Accounts<K, V> {
    all: HashMap<K, Arc<V>>,
    sweep_at: usize,
}

impl<K: Eq + Hash, V: Default> Accounts<K, V> {
    /// That of `key`; a new one where there is none.
    pub fn of(&mut self, key: K, as_new: impl Fn(&V) -> bool) -> Arc<V> {
        if self.all.len() >= self.sweep_at.max(SWEEP) {
            // Held, it is not forgotten: the next one would get another.
            self.all
                .retain(|_, account| Arc::strong_count(account) > 1 || !as_new(account));
            self.sweep_at = self.all.len() * 2;
        }
        self.all.entry(key).or_default().clone()
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
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

/// Without what is in them: that is who calls.
impl<K, V> fmt::Debug for Accounts<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Accounts")
            .field("number", &self.all.len())
            .finish_non_exhaustive()
    }
}
