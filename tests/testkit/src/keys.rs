//! Keys as a server has them, with the times of the defaults.

use std::{path::Path, sync::Arc, time::Duration};

use tailbone_keys::{
    KeyPolicy, KeySpec, KeyStore,
    jwks::{FilePublisher, life::KeyLife},
};

pub fn policy() -> KeyPolicy {
    KeyPolicy {
        token_life: Duration::from_secs(20 * 60),
        cache_time: Duration::from_secs(5 * 60),
        skew: Duration::from_secs(60),
        rotate_every: None,
        withdrawn_grace: Duration::from_secs(24 * 60 * 60),
    }
}

/// Keys in a folder, which are published in a file there. They are small and quickly made.
pub fn key_life(folder: &Path) -> KeyLife {
    KeyLife::new(
        KeyStore::new(folder.join("keys")),
        Arc::new(FilePublisher::new(folder.join("jwks.json"))),
        policy(),
        "tb",
        KeySpec::Es256,
    )
    .in_told_time()
}
