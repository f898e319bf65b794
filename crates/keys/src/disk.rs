//! File writes that leave either the old file or the new one, even if the power fails.
//!
//! Invariants
//! - A write makes a temporary file in the same directory with its final mode, syncs it, renames
//!   it, and syncs the directory. Readers never see half a file, and a file that was reported as
//!   written is there after a crash.
//! - A lock is an `flock` on a file of its own. It excludes other processes as well as other tasks
//!   and ends with its holder.
//! - No path leaves its directory: file names are made from a [`super::KeyId`] or are constants.
//!
//! Every step is reported to a [`Probe`], so that a test can end the process between any two of
//! them.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use rustix::fs::FlockOperation;

/// Names of temporary files start with this.
pub const TEMPORARY_PREFIX: &str = ".tmp-";

/// What went wrong with a file or directory, worded so that an operator knows what to do.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{path} is in use by another tailbone process")]
    Locked { path: PathBuf },
    #[error("{path} cannot be written: no space left on the device")]
    NoSpace { path: PathBuf },
    #[error("{path} cannot be written: read-only, or not allowed for this user")]
    ReadOnly { path: PathBuf },
    #[error("{path} is larger than {limit} bytes")]
    TooLarge { path: PathBuf, limit: u64 },
}

impl DiskError {
    fn at(path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| {
            let path = path.to_path_buf();
            match source.kind() {
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                    Self::ReadOnly { path }
                }
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace { path },
                _ => Self::Io { path, source },
            }
        }
    }
}

/// Reading needs no hint about permissions, which "not allowed" gets when writing.
fn reading(path: &Path) -> impl FnOnce(io::Error) -> DiskError {
    move |source| DiskError::Io {
        path: path.to_path_buf(),
        source,
    }
}

/// The steps of a write, in order, as a [`Probe`] sees them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteStep {
    /// The temporary file exists and is half written.
    HalfWritten,
    /// The temporary file is complete and on the disk.
    Synced,
    /// The new file is in place.
    Renamed,
    /// A file is about to be deleted.
    Deleting,
    /// The file is deleted.
    Deleted,
}

/// Called at each step before the next one. The default does nothing; a test may end the process in
/// it.
#[derive(Clone, Default)]
pub struct Probe(Option<Arc<Callback>>);

type Callback = dyn Fn(WriteStep, &Path) + Send + Sync;

impl Probe {
    pub fn new(callback: impl Fn(WriteStep, &Path) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(callback)))
    }

    fn report(&self, step: WriteStep, path: &Path) {
        if let Some(callback) = &self.0 {
            callback(step, path);
        }
    }
}

impl std::fmt::Debug for Probe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() {
            "Probe(set)"
        } else {
            "Probe(none)"
        })
    }
}

/// Puts `bytes` at `path`, replacing what is there. The file gets `mode` whatever the umask is.
pub fn write(path: &Path, bytes: &[u8], mode: u32, probe: &Probe) -> Result<(), DiskError> {
    let directory = parent(path);
    let temporary = directory.join(format!("{TEMPORARY_PREFIX}{}", random_name()));
    let written = (|| {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&temporary)?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        let (first, rest) = bytes.split_at(bytes.len() / 2);
        file.write_all(first)?;
        probe.report(WriteStep::HalfWritten, path);
        file.write_all(rest)?;
        file.sync_all()?;
        probe.report(WriteStep::Synced, path);
        fs::rename(&temporary, path)?;
        probe.report(WriteStep::Renamed, path);
        sync_directory(directory)
    })();
    written.map_err(|error| {
        // Nothing refers to it. If it cannot be deleted now, `KeyStore::sweep` does it later.
        let _ = fs::remove_file(&temporary);
        DiskError::at(path)(error)
    })
}

/// Deletes a file and returns whether it existed.
pub fn delete(path: &Path, probe: &Probe) -> Result<bool, DiskError> {
    probe.report(WriteStep::Deleting, path);
    match fs::remove_file(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(DiskError::at(path)(error)),
    }
    sync_directory(parent(path)).map_err(DiskError::at(path))?;
    probe.report(WriteStep::Deleted, path);
    Ok(true)
}

/// Reads a file of at most `limit` bytes; `None` if it does not exist. Anything but an ordinary
/// file is an error.
pub fn read(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, DiskError> {
    // Non-blocking, because opening a named pipe would wait for its writer.
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path);
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(reading(path)(error)),
    };
    let metadata = file.metadata().map_err(reading(path))?;
    if !metadata.is_file() {
        return Err(reading(path)(io::Error::other("not an ordinary file")));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(metadata.len().min(limit)).unwrap_or(0) + 1);
    file.take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(reading(path))?;
    if bytes.len() as u64 > limit {
        return Err(DiskError::TooLarge {
            path: path.to_path_buf(),
            limit,
        });
    }
    Ok(Some(bytes))
}

/// Makes the directory and its parents, each with mode 0700. A directory that exists stays as it
/// is.
pub fn make_directory(path: &Path) -> Result<(), DiskError> {
    if path.is_dir() {
        return Ok(());
    }
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(DiskError::at(path))?;
    sync_directory(parent(path)).map_err(DiskError::at(path))
}

/// Holds an `flock` until dropped, or a lock in memory.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "held until dropped")] Held);

#[derive(Debug)]
enum Held {
    #[expect(dead_code, reason = "held until dropped")]
    File(File),
    Memory(Arc<AtomicBool>),
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Self::Memory(locked) = self {
            locked.store(false, Ordering::Release);
        }
    }
}

impl Lock {
    /// Takes the lock at `path`, or fails with [`DiskError::Locked`] if it is held. The file stays:
    /// deleting it would let two holders in.
    pub fn take(path: &Path) -> Result<Self, DiskError> {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(DiskError::at(path))?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self(Held::File(file))),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(DiskError::Locked {
                path: path.to_path_buf(),
            }),
            Err(errno) => Err(DiskError::at(path)(errno.into())),
        }
    }

    /// The same for what is in memory alone; `path` is its name for people.
    pub(crate) fn in_memory(locked: &Arc<AtomicBool>, path: &Path) -> Result<Self, DiskError> {
        if locked.swap(true, Ordering::Acquire) {
            return Err(DiskError::Locked {
                path: path.to_path_buf(),
            });
        }
        Ok(Self(Held::Memory(locked.clone())))
    }
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

fn random_name() -> String {
    let mut random = [0u8; 9];
    // Need not be secret, only different: the file is opened with `create_new`.
    if aws_lc_rs::rand::fill(&mut random).is_err() {
        random[..4].copy_from_slice(&std::process::id().to_le_bytes());
    }
    URL_SAFE_NO_PAD.encode(random)
}
