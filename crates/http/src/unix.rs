//! A unix socket as a listener.
//!
//! Invariants
//! - The file never has a wider mode than the one asked for, not even for a moment.
//! - A socket file that a dead process left is replaced. A socket that somebody answers, and a file
//!   that is no socket, are left alone.
//! - The file is removed at the end, unless another process has taken the name.
//!
//! Done elsewhere: who a caller is. The kernel tells the caller's user and process
//! ([`LocalPeer`]); the component decides what they may do.

use std::{
    fs, io,
    os::{
        fd::OwnedFd,
        unix::{
            fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
            net::UnixStream as BlockingStream,
        },
    },
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::{
    fs::{Mode, fchmod},
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with},
};
use tokio::net::{UnixListener, UnixStream};

use super::serve::Accept;

/// Connections that wait to be accepted; the kernel has its own bound.
const BACKLOG: i32 = 1024;
/// The pause after a failed accept grows from the first to the second value.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const MAX_PAUSE: Duration = Duration::from_secs(1);

/// A process at the other end, as the kernel identifies it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalPeer {
    pub uid: u32,
    pub pid: Option<i32>,
}

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("another process listens there")]
    InUse,
    #[error("a file that is no socket is there, and is left alone")]
    NotASocket,
    #[error(transparent)]
    Io(#[from] io::Error),
}

#[derive(Debug)]
pub struct UnixSocket {
    listener: UnixListener,
    path: PathBuf,
    inode: u64,
}

impl UnixSocket {
    /// Listens at `path`. Needs a tokio runtime.
    pub fn bind(path: &Path, mode: u32) -> Result<Self, BindError> {
        remove_stale(path)?;
        let socket = create(path, mode)?;
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
        let inode = fs::symlink_metadata(path)?.ino();
        Ok(Self {
            listener: UnixListener::from_std(socket.into())?,
            path: path.to_path_buf(),
            inode,
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn create(path: &Path, mode: u32) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // The file that bind creates gets the socket's mode, less the umask.
    fchmod(&socket, Mode::from_raw_mode(mode))?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    listen(&socket, BACKLOG)?;
    Ok(socket)
}

fn remove_stale(path: &Path) -> Result<(), BindError> {
    match fs::symlink_metadata(path) {
        Ok(file) if file.file_type().is_socket() => match BlockingStream::connect(path) {
            Ok(_) => Err(BindError::InUse),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                Ok(fs::remove_file(path)?)
            }
            Err(error) => Err(error.into()),
        },
        Ok(_) => Err(BindError::NotASocket),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error.into()),
    }
}

impl Accept for UnixSocket {
    type Io = UnixStream;
    type Addr = LocalPeer;

    async fn accept(&mut self) -> io::Result<(UnixStream, LocalPeer)> {
        let mut pause = FIRST_PAUSE;
        loop {
            let accepted = self.listener.accept().await;
            // A connection without credentials is dropped; the next one may have them.
            match accepted.and_then(|(stream, _)| Ok((stream.peer_cred()?, stream))) {
                Ok((peer, stream)) => {
                    let (uid, pid) = (peer.uid(), peer.pid());
                    return Ok((stream, LocalPeer { uid, pid }));
                }
                Err(error) => {
                    tracing::warn!(target: "server", socket = %self.path.display(), %error, ?pause, "accepting on a unix socket failed, trying again");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(MAX_PAUSE);
                }
            }
        }
    }
}

impl Drop for UnixSocket {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|file| file.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_dead_socket_is_replaced_a_live_one_and_a_file_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        let first = UnixSocket::bind(&path, 0o660).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o660);
        assert!(matches!(
            UnixSocket::bind(&path, 0o600),
            Err(BindError::InUse)
        ));
        drop(first);
        assert!(!path.exists());

        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "left behind");
        drop(UnixSocket::bind(&path, 0o600).unwrap());

        fs::write(&path, "mine").unwrap();
        assert!(matches!(
            UnixSocket::bind(&path, 0o600),
            Err(BindError::NotASocket)
        ));
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
    }

    #[tokio::test]
    async fn a_name_that_another_process_took_is_left_to_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        let first = UnixSocket::bind(&path, 0o600).unwrap();
        fs::remove_file(&path).unwrap();
        let _second = UnixSocket::bind(&path, 0o600).unwrap();
        drop(first);
        assert!(path.exists());
    }
}
