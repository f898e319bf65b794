//! The local admin socket: gives access to processes of our own user and of root, as identified by
//! the kernel.
//!
//! Invariants
//! - Its mode is 0600, and its directory is created with 0700 if it is missing. The mode is not the
//!   protection: `authorize` checks the peer's credentials, so even a wider mode lets nobody in.
//! - Only one process uses a path. It holds an `flock` on a file beside the socket as long as it
//!   lives, so a socket file left by a dead process can be told from a live one without connecting.
//! - A process removes its own socket file at the end, and no other.

use std::{
    io,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use tokio::net::UnixStream;

use super::authorize::Requester;
use crate::{
    config::MAX_SOCKET_PATH_BYTES,
    http::{
        serve::Accept,
        unix::{BindError, LocalPeer, UnixSocket},
    },
    keys::disk::{self, DiskError, Lock},
};

const MODE: u32 = 0o600;

/// Why the socket could not be created.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdminSocketError {
    #[error("the local admin socket {path} cannot be created")]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "another tailbone server has the local admin socket {path}: stop it, or give this one its own server.tailscale.dir or \
         admin.socket"
    )]
    InUse { path: PathBuf },
    #[error(
        "the local admin socket cannot be created at {path}: a file that is not a socket is there, and is left alone"
    )]
    NotASocket { path: PathBuf },
    #[error("the directory of the local admin socket cannot be written")]
    Directory(#[source] DiskError),
    #[error(
        "the path of the local admin socket is {length} bytes long and the system takes {MAX_SOCKET_PATH_BYTES}: set admin.socket \
         (--admin-socket, TB_ADMIN_SOCKET) to a shorter one than {path}"
    )]
    TooLong { path: PathBuf, length: usize },
}

/// The socket, with the lock that tells a live one from one that a dead process left.
#[derive(Debug)]
pub struct AdminSocket {
    socket: UnixSocket,
    _lock: Lock,
}

impl AdminSocket {
    /// Listens at `path`. Needs a tokio runtime.
    pub fn bind(path: &Path) -> Result<Self, AdminSocketError> {
        check_length(path)?;
        let in_use = || AdminSocketError::InUse {
            path: path.to_path_buf(),
        };
        if let Some(directory) = path
            .parent()
            .filter(|directory| !directory.as_os_str().is_empty())
        {
            disk::make_directory(directory).map_err(AdminSocketError::Directory)?;
        }
        let lock = Lock::take(&lock_path(path)).map_err(|error| match error {
            DiskError::Locked { .. } => in_use(),
            other => AdminSocketError::Directory(other),
        })?;
        let socket = UnixSocket::bind(path, MODE).map_err(|error| match error {
            BindError::InUse => in_use(),
            BindError::NotASocket => AdminSocketError::NotASocket {
                path: path.to_path_buf(),
            },
            BindError::Io(source) => AdminSocketError::Io {
                path: path.to_path_buf(),
                source,
            },
        })?;
        Ok(Self {
            socket,
            _lock: lock,
        })
    }

    pub fn path(&self) -> &Path {
        self.socket.path()
    }
}

impl Accept for AdminSocket {
    type Io = UnixStream;
    type Addr = Requester;

    async fn accept(&mut self) -> io::Result<(UnixStream, Requester)> {
        let (stream, LocalPeer { uid, pid }) = self.socket.accept().await?;
        Ok((stream, Requester::Local { uid, pid }))
    }
}

/// Clients check this too: for a path that is too long, the kernel's error does not explain
/// anything.
pub(super) fn check_length(path: &Path) -> Result<(), AdminSocketError> {
    let length = path.as_os_str().as_bytes().len();
    if length > MAX_SOCKET_PATH_BYTES {
        return Err(AdminSocketError::TooLong {
            path: path.to_path_buf(),
            length,
        });
    }
    Ok(())
}

fn lock_path(path: &Path) -> PathBuf {
    let mut lock = path.as_os_str().to_owned();
    lock.push(".lock");
    lock.into()
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use tokio::net::UnixListener;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[tokio::test]
    async fn it_is_private_and_goes_away_with_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state").join("admin.sock");
        let mut socket = AdminSocket::bind(&path).unwrap();
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));

        let client = UnixStream::connect(&path);
        let (client, accepted) = tokio::join!(client, socket.accept());
        let own = rustix::process::geteuid().as_raw();
        assert_eq!(
            accepted.unwrap().1,
            Requester::Local {
                uid: own,
                pid: Some(std::process::id().cast_signed())
            }
        );
        drop((client, socket));
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_socket_in_use_is_refused_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.sock");
        let first = AdminSocket::bind(&path).unwrap();
        let error = AdminSocket::bind(&path).unwrap_err();
        assert!(matches!(error, AdminSocketError::InUse { .. }));
        assert!(
            error
                .to_string()
                .contains("another tailbone server has the local admin socket"),
            "{error}"
        );
        UnixStream::connect(&path).await.unwrap();
        // Removing the socket file does not release the path.
        fs::remove_file(&path).unwrap();
        assert!(matches!(
            AdminSocket::bind(&path),
            Err(AdminSocketError::InUse { .. })
        ));
        drop(first);
        AdminSocket::bind(&path).unwrap();
    }

    #[tokio::test]
    async fn a_listener_without_the_lock_is_in_use_too() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.sock");
        let _other = UnixListener::bind(&path).unwrap();
        assert!(matches!(
            AdminSocket::bind(&path),
            Err(AdminSocketError::InUse { .. })
        ));
        assert!(path.exists());
    }

    #[tokio::test]
    async fn the_socket_of_a_dead_process_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "left behind");
        let _socket = AdminSocket::bind(&path).unwrap();
        UnixStream::connect(&path).await.unwrap();
    }

    #[tokio::test]
    async fn a_successor_keeps_its_file_when_the_predecessor_ends_late() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.sock");
        let first = AdminSocket::bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let _successor = UnixListener::bind(&path).unwrap();
        drop(first);
        assert!(path.exists());
    }

    #[tokio::test]
    async fn a_file_that_is_no_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.sock");
        fs::write(&path, "mine").unwrap();
        assert!(matches!(
            AdminSocket::bind(&path),
            Err(AdminSocketError::NotASocket { .. })
        ));
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
    }

    #[tokio::test]
    async fn a_path_too_long_names_the_setting_and_both_lengths() {
        let dir = tempfile::tempdir().unwrap();
        let path_of_length = |length: usize| {
            dir.path()
                .join("x".repeat(length - dir.path().as_os_str().len() - 1))
        };
        AdminSocket::bind(&path_of_length(MAX_SOCKET_PATH_BYTES)).unwrap();
        let words = AdminSocket::bind(&path_of_length(MAX_SOCKET_PATH_BYTES + 1))
            .unwrap_err()
            .to_string();
        for part in ["108 bytes", "107", "admin.socket", "TB_ADMIN_SOCKET"] {
            assert!(words.contains(part), "{part}: {words}");
        }
    }
}
