//! Signals, in a process that contains a Go runtime.
//!
//! Go's threads exist before `main` and do not inherit our signal mask, so a signalfd would miss
//! what is delivered to one of them. Go also demands that every handler runs on an alternate stack
//! (`SA_ONSTACK`), which tokio's own handlers do not. So this module installs its own handlers,
//! once. A handler only writes the signal's number into a pipe, which a task reads.
//!
//! One of the two files in `src/` that hold unsafe code.
#![allow(unsafe_code)]

use std::{
    io,
    os::fd::AsRawFd,
    sync::atomic::{AtomicI32, Ordering},
};

use rustix::pipe::{PipeFlags, pipe_with};
use tokio::{io::AsyncReadExt, net::unix::pipe::Receiver};

/// A signal that the daemon acts on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// Reload settings and keys.
    Hangup,
    /// Stop: Ctrl-C.
    Interrupt,
    /// Stop: sent by a supervisor.
    Terminate,
}

impl Signal {
    const ALL: [(Self, libc::c_int); 3] = [
        (Self::Hangup, libc::SIGHUP),
        (Self::Interrupt, libc::SIGINT),
        (Self::Terminate, libc::SIGTERM),
    ];
}

/// The signals of this process, in the order of their arrival.
#[derive(Debug)]
pub struct Signals {
    pipe: Receiver,
}

/// Where the handler writes. -1 until installed; after that the descriptor stays open for the life
/// of the process.
static PIPE: AtomicI32 = AtomicI32::new(-1);

impl Signals {
    /// Takes over the signals of the process, once. Needs a tokio runtime.
    pub fn install() -> io::Result<Self> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        let pipe = Receiver::from_owned_fd(read)?;
        if PIPE
            .compare_exchange(-1, write.as_raw_fd(), Ordering::SeqCst, Ordering::SeqCst)
            .is_err()
        {
            return Err(io::Error::other("signals are taken already"));
        }
        // The handler may run as long as the process lives, so the descriptor must never be closed.
        std::mem::forget(write);
        for (_, number) in Signal::ALL {
            handle(number)?;
        }
        Ok(Self { pipe })
    }

    /// The next signal.
    pub async fn next(&mut self) -> io::Result<Signal> {
        loop {
            let number = libc::c_int::from(self.pipe.read_u8().await?);
            if let Some((signal, _)) = Signal::ALL.into_iter().find(|(_, known)| *known == number) {
                return Ok(signal);
            }
        }
    }
}

fn handle(number: libc::c_int) -> io::Result<()> {
    // SAFETY: an all-zero sigaction is a valid value of that plain C struct; it is ours and lives
    // on this stack.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_signal as extern "C" fn(libc::c_int) as usize;
    // Go requires `SA_ONSTACK` of foreign handlers. `SA_RESTART` restarts the system calls that it
    // can.
    action.sa_flags = libc::SA_ONSTACK | libc::SA_RESTART;
    // SAFETY: both pointers are to `action`, initialised above and alive during the calls; no old
    // action is asked for. The handler is async-signal-safe on any thread: see `on_signal`.
    let failed = unsafe {
        libc::sigemptyset(&raw mut action.sa_mask) != 0
            || libc::sigaction(number, &raw const action, std::ptr::null_mut()) != 0
    };
    if failed {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Runs on whatever thread the kernel picks, Go's too. It only reads an atomic, calls `write`, and
/// restores errno. When the pipe is full, with thousands of signals waiting, the signal is lost.
extern "C" fn on_signal(number: libc::c_int) {
    let fd = PIPE.load(Ordering::Relaxed);
    let Ok(byte) = u8::try_from(number) else {
        return;
    };
    // SAFETY: errno is this thread's own; `byte` lives during the call and one byte of it is
    // written; `fd` is never closed.
    unsafe {
        let errno = libc::__errno_location();
        let before = *errno;
        libc::write(fd, (&raw const byte).cast(), 1);
        *errno = before;
    }
}
