//! The gate's own unix socket, for proxies on the same machine. Any process that can open it is
//! trusted to report client addresses, so access is controlled by its mode alone. The mode is set
//! before the socket gets its final name.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::net::{UnixListener, UnixStream};

use crate::http::serve::Accept;

/// A listening unix socket. Dropping it removes its file.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
    inode: u64,
}

impl Socket {
    /// Listens at `path`. Replaces a socket that a dead process left there, but not one that is in
    /// use.
    pub fn bind(path: &Path, mode: u32) -> io::Result<Self> {
        match std::os::unix::net::UnixStream::connect(path) {
            Ok(_) => {
                return Err(io::Error::new(
                    io::ErrorKind::AddrInUse,
                    "somebody listens there already",
                ));
            }
            Err(error)
                if error.kind() == io::ErrorKind::ConnectionRefused
                    || error.kind() == io::ErrorKind::NotFound => {}
            // Anything but a dead socket belongs to somebody else and is not replaced.
            Err(error) => return Err(error),
        }
        if let Ok(file) = fs::symlink_metadata(path) {
            use std::os::unix::fs::FileTypeExt;
            if !file.file_type().is_socket() {
                return Err(io::Error::new(
                    io::ErrorKind::AlreadyExists,
                    "there is a file that is no socket",
                ));
            }
        }
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}", std::process::id()));
        let made = path.with_file_name(name);
        let _ = fs::remove_file(&made);
        let listener = UnixListener::bind(&made)?;
        let named = fs::set_permissions(&made, fs::Permissions::from_mode(mode))
            .and_then(|()| fs::rename(&made, path))
            .and_then(|()| fs::metadata(path));
        match named {
            Ok(file) => Ok(Self {
                listener,
                path: path.to_path_buf(),
                inode: file.ino(),
            }),
            Err(error) => {
                let _ = fs::remove_file(&made);
                Err(error)
            }
        }
    }
}

impl Accept for Socket {
    type Io = UnixStream;
    type Addr = ();

    async fn accept(&mut self) -> io::Result<(UnixStream, ())> {
        let mut pause = Duration::from_millis(5);
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => return Ok((stream, ())),
                // Too few descriptors, too little memory, or the peer is gone: all of these are
                // temporary.
                Err(error) => {
                    tracing::warn!(target: "gate", error = %error, "accepting on the local socket");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(1));
                }
            }
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Another process may have replaced the file in the meantime.
        if fs::metadata(&self.path).is_ok_and(|file| file.ino() == self.inode) {
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
        let path = dir.path().join("gate.sock");
        let first = Socket::bind(&path, 0o600).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(
            Socket::bind(&path, 0o600).unwrap_err().kind(),
            io::ErrorKind::AddrInUse
        );
        drop(first);
        assert!(!path.exists());

        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "left behind");
        drop(Socket::bind(&path, 0o600).unwrap());

        fs::write(&path, "mine").unwrap();
        assert!(Socket::bind(&path, 0o600).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
    }
}
