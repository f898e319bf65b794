//! The active rules, and how new ones replace them while requests are being decided.
//!
//! A file that cannot be read or has mistakes changes nothing: the previous rules stay active.
//! Nothing here watches the file by itself: the caller's timer calls [`RuleFile::tick`], and
//! SIGHUP leads to [`RuleFile::reload`].

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::{Notify, futures::Notified};

use super::{Mistakes, RuleList, Scope};

/// Nobody writes that many rules by hand; a larger file is the wrong file.
const FILE_BYTES: u64 = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("{}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("{}: mistakes in the policy:\n{source}", path.display())]
    Mistakes { path: PathBuf, source: Mistakes },
    #[error("{}: larger than {FILE_BYTES} bytes", path.display())]
    TooLarge { path: PathBuf },
}

/// The result of a check of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    Loaded,
    Unchanged,
}

/// The source of the rules, and the active rules.
#[derive(Debug)]
pub struct RuleFile<S: Scope> {
    path: Option<PathBuf>,
    capability: String,
    rules: ArcSwap<RuleList<S>>,
    changed: Notify,
    /// The state at the last check. The lock also keeps two reloads from overtaking each other.
    last_check: Mutex<LastCheck>,
}

#[derive(Debug, Default)]
struct LastCheck {
    version: Option<FileVersion>,
    text: String,
}

/// Tells a changed file from an unchanged one. The inode shows a replacement within the resolution
/// of the file system's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FileVersion {
    inode: u64,
    length: u64,
    modified: (i64, i64),
}

impl<S: Scope> RuleFile<S> {
    /// Loads the rules for the first time. Without a file only the tailnet's grants decide.
    pub fn open(path: Option<&Path>, capability: &str) -> Result<Self, LoadError> {
        let store = Self {
            path: path.map(Path::to_path_buf),
            capability: capability.to_owned(),
            rules: ArcSwap::from_pointee(RuleList::grants_only(capability)),
            changed: Notify::new(),
            last_check: Mutex::default(),
        };
        store.reload()?;
        Ok(store)
    }

    /// Given rules, without a file.
    pub fn fixed(rules: RuleList<S>) -> Self {
        Self {
            path: None,
            capability: String::new(),
            rules: ArcSwap::from_pointee(rules),
            changed: Notify::new(),
            last_check: Mutex::default(),
        }
    }

    pub fn rules(&self) -> Arc<RuleList<S>> {
        self.rules.load_full()
    }

    /// Resolves when the active rules have changed after this call.
    pub fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }

    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Reads and checks the file, and activates its rules.
    pub fn reload(&self) -> Result<Change, LoadError> {
        self.check(true)
    }

    /// Reads the file if it has changed since the last check. Mistakes in a file are reported once,
    /// not at each tick.
    pub fn tick(&self) -> Result<Change, LoadError> {
        self.check(false)
    }

    fn check(&self, force: bool) -> Result<Change, LoadError> {
        let Some(path) = &self.path else {
            return Ok(Change::Unchanged);
        };
        let mut last_check = self.last_check.lock();
        let failed = |source| LoadError::File {
            path: path.clone(),
            source,
        };
        let version = match version(path) {
            Ok(version) => version,
            Err(_) if !force && last_check.version.is_none() => return Ok(Change::Unchanged),
            Err(error) => {
                last_check.version = None;
                return Err(failed(error));
            }
        };
        if !force && last_check.version == Some(version) {
            return Ok(Change::Unchanged);
        }
        last_check.version = Some(version);
        if version.length > FILE_BYTES {
            return Err(LoadError::TooLarge { path: path.clone() });
        }
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) => {
                // The file exists and may become readable before the next tick.
                last_check.version = None;
                return Err(failed(error));
            }
        };
        let rules =
            RuleList::parse(&text, &self.capability).map_err(|source| LoadError::Mistakes {
                path: path.clone(),
                source,
            })?;
        if text == last_check.text && !text.is_empty() {
            return Ok(Change::Unchanged);
        }
        last_check.text = text;
        self.rules.store(Arc::new(rules));
        self.changed.notify_waiters();
        Ok(Change::Loaded)
    }
}

fn version(path: &Path) -> io::Result<FileVersion> {
    let file = fs::metadata(path)?;
    Ok(FileVersion {
        inode: file.ino(),
        length: file.len(),
        modified: (file.mtime(), file.mtime_nsec()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::RuleStore;

    const ALLOW: &str = "[[rule]]\ndecision = \"allow\"\n";

    #[test]
    fn a_change_is_loaded_once_and_a_broken_one_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("policy.toml");
        fs::write(&path, ALLOW).unwrap();
        let store = RuleStore::open(Some(&path), "").unwrap();
        let first = store.rules();
        assert_eq!(store.tick().unwrap(), Change::Unchanged);

        fs::write(&path, "[[rule]]\ndecision = \"alow\"\n").unwrap();
        assert!(matches!(store.tick(), Err(LoadError::Mistakes { .. })));
        assert_eq!(store.rules(), first, "the rules before it stay");
        assert_eq!(store.tick().unwrap(), Change::Unchanged, "told once");

        fs::write(&path, "[[rule]]\ndecision = \"deny\"\n").unwrap();
        assert_eq!(store.tick().unwrap(), Change::Loaded);
        assert_ne!(store.rules(), first);

        fs::remove_file(&path).unwrap();
        let denies = store.rules();
        assert!(matches!(store.tick(), Err(LoadError::File { .. })));
        assert_eq!(store.tick().unwrap(), Change::Unchanged, "told once");
        assert_eq!(store.rules(), denies);
        fs::write(&path, ALLOW).unwrap();
        assert_eq!(store.tick().unwrap(), Change::Loaded);
        assert_eq!(store.rules(), first);
    }

    #[test]
    fn a_file_that_is_swapped_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("policy.toml");
        fs::write(&path, ALLOW).unwrap();
        let store = RuleStore::open(Some(&path), "").unwrap();
        let new = dir.path().join("new");
        fs::write(&new, "[[rule]]\ndecision = \"deny\" \n").unwrap();
        fs::rename(&new, &path).unwrap();
        assert_eq!(store.tick().unwrap(), Change::Loaded);
    }

    #[test]
    fn a_missing_file_is_an_error_at_the_start() {
        assert!(matches!(
            RuleStore::open(Some(Path::new("/nowhere/policy.toml")), ""),
            Err(LoadError::File { .. })
        ));
    }
}
