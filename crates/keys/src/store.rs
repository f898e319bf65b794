//! The key directory: `<kid>.private.jwk` (0600) and `<kid>.public.jwk` (0644) as the original
//! wrote them, and `<kid>.state.json`. A key that a signing service keeps has `<kid>.remote.json`
//! in place of the private half.
//!
//! Invariants
//! - A file that is not what its name says is reported ([`Skipped`]) and left alone: neither
//!   deleted nor overwritten.
//! - Paths are made from file names found in this directory, never from a `kid` in a file or
//!   request that was not checked ([`KeyId`]).
//! - Every write is atomic (`disk.rs`). Changes of more than one file are made under
//!   [`KeyStore::lock`].
//! - A store in memory holds the same files and writes none of them anywhere. Its keys end with the
//!   process.
//!
//! `rotation.rs` interprets the facts; `jwks::life` decides who writes when.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;
use parking_lot::Mutex;
use tailbone_telemetry::meter::Meter;
use zeroize::Zeroizing;

use super::{
    History, HistoryError, JwkError, KeyId, PrivateJwk, PublicJwk,
    disk::{self, DiskError, Lock, Probe},
    remote::{KeyReference, ReferenceError},
    sealing::{SealError, Sealed, Sealing},
};

const PRIVATE: &str = ".private.jwk";
const PUBLIC: &str = ".public.jwk";
const REMOTE: &str = ".remote.json";
const SEALED: &str = ".private.sealed.json";
const STATE: &str = ".state.json";
const LOCK: &str = ".lock";

/// Size limit of a key file in bytes; an RSA key of 8192 bits takes 7 KiB.
const MAX_FILE: u64 = 64 * 1024;

/// A temporary file of this age was left by a process that died.
const STALE_AFTER: Duration = Duration::from_secs(60);

/// A directory of keys. Cheap to clone; holds no file open.
#[derive(Debug, Clone)]
pub struct KeyStore {
    directory: PathBuf,
    files: FilesIn,
    /// What keeps the private halves of new keys, if the directory does not.
    sealed: Option<Sealed>,
}

/// Where the files are.
#[derive(Debug, Clone)]
enum FilesIn {
    Directory(Probe),
    Memory(Arc<Memory>),
}

/// Files in memory. Clones of a store share them.
#[derive(Default)]
struct Memory {
    files: Mutex<BTreeMap<String, Zeroizing<Vec<u8>>>>,
    /// Goes up with every change.
    changes: AtomicU64,
    locked: Arc<AtomicBool>,
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Memory").finish_non_exhaustive()
    }
}

/// Everything in the directory, read at one time.
#[derive(Debug, Default)]
pub struct Contents {
    /// Oldest first.
    pub keys: Vec<StoredKey>,
    pub skipped: Vec<Skipped>,
    /// Private files that other users than the owner can read.
    pub exposed: Vec<PathBuf>,
}

/// One key of the directory.
#[derive(Debug)]
pub struct StoredKey {
    /// The name in its file names. Not always the `kid` inside the files.
    pub name: KeyId,
    pub public: Option<PublicJwk>,
    pub private: Option<PrivateJwk>,
    /// The reference that stands in place of the private half.
    pub remote: Option<KeyReference>,
    pub history: History,
    /// There is a state file.
    pub has_state_file: bool,
    /// There is a private file or a reference in its place, valid or not.
    pub has_private_file: bool,
    /// There is a public file, valid or not.
    pub has_public_file: bool,
}

impl StoredKey {
    /// The `kid` in tokens and documents. A key of which only the facts are left has the name of
    /// its files.
    pub fn kid(&self) -> &KeyId {
        self.public
            .as_ref()
            .map_or(&self.name, |public| &public.kid)
    }
}

/// A file that is not used, and why.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Skipped {
    pub path: PathBuf,
    pub reason: String,
}

/// Changes when anything in the directory changes. Only to be compared.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fingerprint(Vec<(std::ffi::OsString, u64, u64, i64, i64)>);

/// Why the directory cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("key directory: {0}")]
    Disk(#[from] DiskError),
    #[error(transparent)]
    Seal(#[from] SealError),
    #[error(
        "{0} is damaged or of a newer version; it says which keys were taken over and must not \
         be guessed"
    )]
    Note(PathBuf),
    #[error("key directory {path} cannot be read: {source}")]
    Unreadable { path: PathBuf, source: io::Error },
}

impl KeyStore {
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
            files: FilesIn::Directory(Probe::default()),
            sealed: None,
        }
    }

    /// A store that is never written anywhere.
    pub fn in_memory() -> Self {
        Self {
            directory: PathBuf::from("(memory)"),
            files: FilesIn::Memory(Arc::default()),
            sealed: None,
        }
    }

    /// With calls of the vault counted there. Call after [`Self::with_sealing`].
    #[must_use]
    pub fn counted_by(self, meter: &Meter) -> Self {
        Self {
            sealed: self.sealed.map(|sealed| sealed.counted_by(meter)),
            ..self
        }
    }

    /// Has the private halves of new keys kept there. Those that are in the directory stay in it.
    #[must_use]
    pub fn with_sealing(self, sealing: Arc<dyn Sealing>) -> Self {
        Self {
            sealed: Some(Sealed::new(sealing)),
            ..self
        }
    }

    pub fn is_in_memory(&self) -> bool {
        matches!(self.files, FilesIn::Memory(_))
    }

    /// Reports each step of each write to `probe`, for tests that end the process in the middle.
    pub fn with_probe(self, probe: Probe) -> Self {
        Self {
            files: FilesIn::Directory(probe),
            ..self
        }
    }

    /// A directory below this one. In memory it is a new one at each call.
    pub(crate) fn below(&self, name: &str) -> Self {
        Self {
            directory: self.directory.join(name),
            files: match &self.files {
                FilesIn::Directory(probe) => FilesIn::Directory(probe.clone()),
                FilesIn::Memory(_) => FilesIn::Memory(Arc::default()),
            },
            sealed: self.sealed.clone(),
        }
    }

    /// Reads a file that is no key.
    pub(crate) fn read_note(&self, name: &str) -> Result<Option<Vec<u8>>, DiskError> {
        self.read(name)
    }

    /// Writes a file that is no key.
    pub(crate) fn write_note(&self, name: &str, bytes: &[u8]) -> Result<(), DiskError> {
        self.write(name, bytes, 0o600)
    }

    /// Deletes a file that is no key.
    pub(crate) fn delete_note(&self, name: &str) -> Result<(), DiskError> {
        if self.read(name)?.is_some() {
            self.delete_file(name)?;
        }
        Ok(())
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Makes the directory (0700) if it does not exist.
    pub fn create(&self) -> Result<(), StoreError> {
        match &self.files {
            FilesIn::Directory(_) => Ok(disk::make_directory(&self.directory)?),
            FilesIn::Memory(_) => Ok(()),
        }
    }

    /// Keeps other processes and tasks from changing the directory. Fails at once if another one
    /// holds the lock.
    pub fn lock(&self) -> Result<Lock, StoreError> {
        let path = self.directory.join(LOCK);
        match &self.files {
            FilesIn::Directory(_) => Ok(Lock::take(&path)?),
            FilesIn::Memory(memory) => Ok(Lock::in_memory(&memory.locked, &path)?),
        }
    }

    /// A cheap summary of the directory: names, sizes and times only.
    pub fn fingerprint(&self) -> Result<Fingerprint, StoreError> {
        let mut entries = Vec::new();
        if let FilesIn::Memory(memory) = &self.files {
            let changes = memory.changes.load(Ordering::SeqCst);
            return Ok(Fingerprint(vec![(Default::default(), changes, 0, 0, 0)]));
        }
        for name in self.names()? {
            let Ok(metadata) = fs::metadata(self.directory.join(&name)) else {
                continue;
            };
            entries.push((
                name,
                metadata.ino(),
                metadata.len(),
                metadata.mtime(),
                metadata.mtime_nsec(),
            ));
        }
        Ok(Fingerprint(entries))
    }

    /// Reads all keys. A directory that does not exist holds none.
    pub fn load(&self) -> Result<Contents, StoreError> {
        let mut contents = Contents::default();
        let mut files: BTreeMap<KeyId, Files> = BTreeMap::new();
        for name in self.names()? {
            let path = self.directory.join(&name);
            let kinds = [PRIVATE, PUBLIC, REMOTE, SEALED, STATE];
            let Some((stem, kind)) = name.to_str().and_then(|name| {
                kinds
                    .iter()
                    .find_map(|kind| name.strip_suffix(kind).map(|stem| (stem, *kind)))
            }) else {
                continue;
            };
            match stem.parse::<KeyId>() {
                Ok(id) if id.created().is_some() => {
                    let files = files.entry(id).or_default();
                    match kind {
                        PRIVATE => files.private = true,
                        PUBLIC => files.public = true,
                        REMOTE => files.remote = true,
                        SEALED => files.sealed = true,
                        _ => files.state = true,
                    }
                }
                Ok(_) => contents.skip(
                    path,
                    "its name tells no time of creation (<prefix>-<unix seconds>)",
                ),
                Err(error) => contents.skip(path, error),
            }
        }
        for (name, files) in files {
            self.load_key(name, files, &mut contents)?;
        }
        contents
            .keys
            .sort_by(|a, b| (a.history.created, &a.name).cmp(&(b.history.created, &b.name)));
        Ok(contents)
    }

    /// Writes a new key, the facts first. So a private half without facts was always made by the
    /// original.
    pub fn add(&self, key: &PrivateJwk, history: &History) -> Result<(), StoreError> {
        self.add_as(&key.public().kid, key, history)
    }

    /// As [`Self::add`], for a key whose id is no name of ours: its files have this name, and the
    /// id is in them.
    pub fn add_as(
        &self,
        name: &KeyId,
        key: &PrivateJwk,
        history: &History,
    ) -> Result<(), StoreError> {
        // Before the facts: a vault that is away leaves no files of a key that does not exist.
        let sealed = match &self.sealed {
            Some(vault) => Some(vault.seal(name, &key.to_compact())?),
            None => None,
        };
        self.write_history(name, history)?;
        match sealed {
            Some(sealed) => self.write(&file_name(name, SEALED), &sealed, 0o600)?,
            None => self.write(&file_name(name, PRIVATE), &key.to_file(), 0o600)?,
        }
        self.write_public(name, key.public())
    }

    /// As [`Self::add`], for a key that a signing service keeps.
    pub fn add_reference(&self, key: &KeyReference, history: &History) -> Result<(), StoreError> {
        let name = &key.public.kid;
        self.write_history(name, history)?;
        self.write(&file_name(name, REMOTE), &key.to_file(), 0o600)?;
        self.write_public(name, &key.public)
    }

    pub fn write_public(&self, name: &KeyId, key: &PublicJwk) -> Result<(), StoreError> {
        Ok(self.write(&file_name(name, PUBLIC), &key.to_file(), 0o644)?)
    }

    pub fn write_history(&self, name: &KeyId, history: &History) -> Result<(), StoreError> {
        Ok(self.write(&file_name(name, STATE), &history.to_file(), 0o600)?)
    }

    /// Deletes the private half, or the reference in its place, and returns whether it existed.
    pub fn delete_private(&self, name: &KeyId) -> Result<bool, StoreError> {
        let reference = self.delete_file(&file_name(name, REMOTE))? || self.delete_sealed(name)?;
        Ok(self.delete_file(&file_name(name, PRIVATE))? || reference)
    }

    /// Deletes all files of a key, the facts last.
    pub fn delete(&self, name: &KeyId) -> Result<(), StoreError> {
        self.delete_sealed(name)?;
        for kind in [PRIVATE, REMOTE, PUBLIC, STATE] {
            self.delete_file(&file_name(name, kind))?;
        }
        Ok(())
    }

    /// Has the vault forget the private half, and then deletes what refers to it.
    fn delete_sealed(&self, name: &KeyId) -> Result<bool, StoreError> {
        let file = file_name(name, SEALED);
        let Some(sealed) = self.read(&file)? else {
            return Ok(false);
        };
        if let Some(vault) = &self.sealed {
            match vault.discard(&sealed) {
                Err(error) if !error.is_final() => return Err(error.into()),
                // Another vault's, or gone already.
                Err(_) | Ok(()) => {}
            }
        }
        Ok(self.delete_file(&file)?)
    }

    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, DiskError> {
        match &self.files {
            FilesIn::Directory(_) => disk::read(&self.directory.join(name), MAX_FILE),
            FilesIn::Memory(memory) => {
                let files = memory.files.lock();
                Ok(files.get(name).map(|bytes| bytes.to_vec()))
            }
        }
    }

    fn write(&self, name: &str, bytes: &[u8], mode: u32) -> Result<(), DiskError> {
        match &self.files {
            FilesIn::Directory(probe) => {
                disk::write(&self.directory.join(name), bytes, mode, probe)
            }
            FilesIn::Memory(memory) => {
                let bytes = Zeroizing::new(bytes.to_vec());
                memory.files.lock().insert(name.to_owned(), bytes);
                memory.changes.fetch_add(1, Ordering::SeqCst);
                Ok(())
            }
        }
    }

    fn delete_file(&self, name: &str) -> Result<bool, DiskError> {
        match &self.files {
            FilesIn::Directory(probe) => disk::delete(&self.directory.join(name), probe),
            FilesIn::Memory(memory) => {
                memory.changes.fetch_add(1, Ordering::SeqCst);
                Ok(memory.files.lock().remove(name).is_some())
            }
        }
    }

    /// Deletes what writers left behind when they died. Call with the lock held.
    pub fn sweep(&self, now: Timestamp) -> Result<(), StoreError> {
        let FilesIn::Directory(probe) = &self.files else {
            return Ok(());
        };
        for name in self.names()? {
            if !name
                .to_str()
                .is_some_and(|name| name.starts_with(disk::TEMPORARY_PREFIX))
            {
                continue;
            }
            let path = self.directory.join(&name);
            let modified = fs::metadata(&path)
                .ok()
                .and_then(|metadata| Timestamp::from_second(metadata.mtime()).ok());
            // A file dated in the future is stale as well: its writer's clock was set back.
            if modified
                .is_some_and(|modified| now.duration_since(modified).unsigned_abs() > STALE_AFTER)
            {
                disk::delete(&path, probe)?;
            }
        }
        Ok(())
    }

    fn load_key(
        &self,
        name: KeyId,
        files: Files,
        contents: &mut Contents,
    ) -> Result<(), StoreError> {
        let created = name.created().unwrap_or(Timestamp::UNIX_EPOCH);
        let mut history = History::inherited(created);
        if files.state {
            match self.read_file(&name, STATE, |json| Ok(History::from_file(json)?)) {
                Ok(Some(known)) => history = known,
                Ok(None) => {}
                Err(reason) => {
                    // Without its facts the key might be one that was removed, so it is not used at
                    // all.
                    contents.skip(
                        self.path(&name, STATE),
                        format!("{reason}; the key {name} is not used"),
                    );
                    return Ok(());
                }
            }
        }
        let mut private = None;
        if files.private {
            let path = self.path(&name, PRIVATE);
            match self.read_file(&name, PRIVATE, |json| {
                Ok(PrivateJwk::from_file(json, &name)?)
            }) {
                Ok(key) => private = key,
                Err(reason) => contents.skip(path.clone(), reason),
            }
            if !self.is_in_memory()
                && fs::metadata(&path)
                    .is_ok_and(|metadata| metadata.permissions().mode() & 0o077 != 0)
            {
                contents.exposed.push(path);
            }
        }
        if files.sealed && private.is_none() {
            let opened = self.read_file(&name, SEALED, |sealed| match &self.sealed {
                Some(vault) => Ok(PrivateJwk::from_file(&vault.open(sealed)?, &name)?),
                None => Err(FileError::NoVault),
            });
            match opened {
                Ok(key) => private = key,
                // The key may come back, and must not be replaced meanwhile.
                Err(FileError::Seal(error)) if !error.is_final() => return Err(error.into()),
                Err(reason) => contents.skip(self.path(&name, SEALED), reason),
            }
        }
        let mut public = None;
        if files.public {
            match self.read_file(&name, PUBLIC, |json| Ok(PublicJwk::from_json(json)?)) {
                Ok(key) => public = key,
                Err(reason) => contents.skip(self.path(&name, PUBLIC), reason),
            }
        }
        let mut remote = None;
        if files.remote {
            let path = self.path(&name, REMOTE);
            match self.read_file(&name, REMOTE, |json| Ok(KeyReference::from_file(json)?)) {
                Ok(Some(_)) if files.private => {
                    contents.skip(path, "there is a private key of that name");
                }
                Ok(key) => remote = key,
                Err(reason) => contents.skip(path, reason),
            }
        }
        let signs = private.as_ref().map(PrivateJwk::public);
        if let Some(signs) = signs.or(remote.as_ref().map(|remote| &remote.public)) {
            if public.as_ref().is_some_and(|public| public != signs) {
                contents.skip(
                    self.path(&name, PUBLIC),
                    "it does not belong to the private key of that name",
                );
            }
            // It signs with the private half, so that half is the one that counts.
            public = Some(signs.clone());
        }
        if public.is_none() && !files.state {
            return Ok(());
        }
        let key = StoredKey {
            name,
            public,
            private,
            remote,
            history,
            has_state_file: files.state,
            has_private_file: files.private || files.remote || files.sealed,
            has_public_file: files.public,
        };
        if let Some(other) = contents.keys.iter().find(|other| other.kid() == key.kid()) {
            let reason = format!(
                "key id {} is already taken by the files of {}",
                key.kid(),
                other.name
            );
            contents.skip(self.path(&key.name, PRIVATE), reason);
            return Ok(());
        }
        contents.keys.push(key);
        Ok(())
    }

    fn read_file<T>(
        &self,
        name: &KeyId,
        kind: &str,
        parse: impl FnOnce(&[u8]) -> Result<T, FileError>,
    ) -> Result<Option<T>, FileError> {
        match self.read(&file_name(name, kind))? {
            Some(bytes) => parse(&Zeroizing::new(bytes)).map(Some),
            // Deleted since the directory was listed.
            None => Ok(None),
        }
    }

    fn path(&self, name: &KeyId, kind: &str) -> PathBuf {
        self.directory.join(file_name(name, kind))
    }

    /// All entries, sorted.
    fn names(&self) -> Result<Vec<std::ffi::OsString>, StoreError> {
        if let FilesIn::Memory(memory) = &self.files {
            return Ok(memory.files.lock().keys().map(Into::into).collect());
        }
        let unreadable = |source| StoreError::Unreadable {
            path: self.directory.clone(),
            source,
        };
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(unreadable(error)),
        };
        let mut names = entries
            .map(|entry| entry.map(|entry| entry.file_name()))
            .collect::<Result<Vec<_>, _>>()
            .map_err(unreadable)?;
        names.sort();
        Ok(names)
    }
}

fn file_name(name: &KeyId, kind: &str) -> String {
    format!("{name}{kind}")
}

impl Contents {
    fn skip(&mut self, path: PathBuf, reason: impl std::fmt::Display) {
        self.skipped.push(Skipped {
            path,
            reason: reason.to_string(),
        });
    }
}

#[derive(Default)]
struct Files {
    private: bool,
    public: bool,
    remote: bool,
    sealed: bool,
    state: bool,
}

/// Why one file is skipped.
#[derive(Debug, thiserror::Error)]
enum FileError {
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error(transparent)]
    History(#[from] HistoryError),
    #[error(transparent)]
    Jwk(#[from] JwkError),
    #[error("it is sealed by a vault, and the settings name none")]
    NoVault,
    #[error(transparent)]
    Seal(#[from] SealError),
    #[error(transparent)]
    Reference(#[from] ReferenceError),
}
