//! Reports the server's state to a supervisor: systemd's notification protocol (`sd_notify(3)`), if
//! `NOTIFY_SOCKET` is set.
//!
//! Sending never waits: a supervisor that does not read its socket must not delay the server.

use std::{
    ffi::{OsStr, OsString},
    io,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            ffi::OsStrExt,
            net::{SocketAddr, UnixDatagram},
        },
    },
};

use rustix::time::{ClockId, clock_gettime};

/// The supervisor, if there is one.
#[derive(Debug, Clone, Default)]
pub(super) struct Supervisor {
    socket: Option<OsString>,
}

impl Supervisor {
    /// The supervisor that started this process.
    pub(super) fn from_environment() -> Self {
        Self {
            socket: std::env::var_os("NOTIFY_SOCKET").filter(|path| !path.is_empty()),
        }
    }

    pub(super) fn ready(&self) {
        self.notify("READY=1\nSTATUS=serving");
    }

    /// The monotonic clock tells the supervisor which of its reloads this answers.
    pub(super) fn reloading(&self) {
        let now = clock_gettime(ClockId::Monotonic);
        let micros = i128::from(now.tv_sec) * 1_000_000 + i128::from(now.tv_nsec) / 1000;
        self.notify(&format!("RELOADING=1\nMONOTONIC_USEC={micros}"));
    }

    pub(super) fn stopping(&self) {
        self.notify("STOPPING=1\nSTATUS=stopping");
    }

    pub(super) fn status(&self, words: &str) {
        let words: String = words.chars().filter(|c| !c.is_control()).collect();
        self.notify(&format!("STATUS={words}"));
    }

    fn notify(&self, message: &str) {
        let Some(socket) = &self.socket else {
            return;
        };
        if let Err(error) = send(socket, message.as_bytes()) {
            tracing::debug!(target: "server", %error, "cannot notify the supervisor");
        }
    }
}

fn send(socket: &OsStr, message: &[u8]) -> io::Result<()> {
    // A path, or a name in Linux' abstract namespace after @.
    let addr = match socket.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(socket)?,
    };
    let ours = UnixDatagram::unbound()?;
    ours.set_nonblocking(true)?;
    ours.send_to_addr(message, &addr).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_supervisor_hears_of_start_reload_and_stop() {
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("notify");
        let theirs = UnixDatagram::bind(&path).unwrap();
        let supervisor = Supervisor {
            socket: Some(path.into()),
        };
        let heard = || {
            let mut text = [0; 200];
            let length = theirs.recv(&mut text).unwrap();
            String::from_utf8(text[..length].to_vec()).unwrap()
        };
        supervisor.ready();
        assert!(heard().starts_with("READY=1\n"));
        supervisor.reloading();
        let said = heard();
        let micros = said.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap();
        assert!(micros.parse::<u64>().unwrap() > 0);
        supervisor.stopping();
        assert!(heard().starts_with("STOPPING=1\n"));
        supervisor.status("a\nREADY=1");
        assert_eq!(heard(), "STATUS=aREADY=1");
    }

    #[test]
    fn without_a_supervisor_or_with_a_dead_one_nothing_happens() {
        Supervisor::default().ready();
        Supervisor {
            socket: Some("/nonexistent/notify".into()),
        }
        .ready();
    }
}
