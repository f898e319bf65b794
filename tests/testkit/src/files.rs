//! Files that tests use: those of the tree, and what `scripts/setup` has prepared.

use std::{
    env,
    path::{Path, PathBuf},
};

/// A file of the tree.
pub fn tree(path: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).join(path)
}

/// A certificate for `localhost` or its key, which are only for tests.
pub fn certificate_file(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tls")).join(name)
}

/// A file of the Python environment.
pub fn venv(file: &str) -> PathBuf {
    cache(&format!("venv/{file}"))
}

/// A file that `scripts/setup` has put into its cache.
pub fn cache(file: &str) -> PathBuf {
    let cache = env::var_os("TAILBONE_CACHE").map(PathBuf::from);
    let xdg = env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = || env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let cache = cache.or_else(|| Some(xdg.or_else(home)?.join("tailbone")));
    let path = cache.unwrap_or_default().join(file);
    assert!(
        path.exists(),
        "there is no {}: run scripts/setup --tests",
        path.display()
    );
    path
}
