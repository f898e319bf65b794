//! Kicks: how Rust tells Go that a connection needs a turn.
//!
//! Invariants
//! - A kick never blocks: it puts the connection's number into a queue and, if the queue was empty,
//!   writes a byte to a pipe that Go reads.
//! - All kicks inside one [`batch_wakeups`] reach Go together, when it ends.

use std::{cell::RefCell, os::fd::OwnedFd, sync::OnceLock};

use parking_lot::Mutex;

thread_local! {
    /// Kicks held back until [`batch_wakeups`] ends; `None` outside of it.
    static BATCH: RefCell<Option<Vec<u64>>> = const { RefCell::new(None) };
}

/// Runs `work` and notifies Go once for all connections that it makes ready. Their futures are
/// polled in Go's turns, so their answers leave the machine together.
pub fn batch_wakeups<T>(work: impl FnOnce() -> T) -> T {
    /// Sends the kicks also if `work` panics.
    struct SendKicks;

    impl Drop for SendKicks {
        fn drop(&mut self) {
            if let Some(ids) = BATCH.take() {
                KICKS.push(&ids);
            }
        }
    }

    if in_batch() {
        return work();
    }
    BATCH.set(Some(Vec::new()));
    let _send = SendKicks;
    work()
}

/// True if this thread is inside [`batch_wakeups`].
pub(super) fn in_batch() -> bool {
    BATCH.with_borrow(Option::is_some)
}

/// Asks for a turn of this connection.
pub(super) fn kick(id: u64) {
    BATCH.with_borrow_mut(|batch| match batch {
        Some(ids) => ids.push(id),
        None => KICKS.push(&[id]),
    });
}

/// Connections that want a turn, and how Go is woken for them.
pub(crate) static KICKS: Kicks = Kicks {
    ids: Mutex::new(Vec::new()),
    pipe: OnceLock::new(),
};

pub(crate) struct Kicks {
    pub(super) ids: Mutex<Vec<u64>>,
    pipe: OnceLock<OwnedFd>,
}

impl Kicks {
    /// Wakes Go by this descriptor from here on.
    pub(crate) fn set_pipe(&self, pipe: OwnedFd) {
        let _ = self.pipe.set(pipe);
    }

    fn push(&self, more: &[u64]) {
        let mut ids = self.ids.lock();
        // Go takes all: only the first have to wake it.
        let first = ids.is_empty() && !more.is_empty();
        ids.extend_from_slice(more);
        drop(ids);
        if let (true, Some(pipe)) = (first, self.pipe.get()) {
            // A full pipe is readable, which is all that is wanted.
            let _ = rustix::io::write(pipe, &[1]);
        }
    }

    /// Fills `sent` with the numbers that wait longest.
    pub(crate) fn take(&self, out: &mut [u64]) -> usize {
        let mut ids = self.ids.lock();
        let n = ids.len().min(out.len());
        for (out, id) in out.iter_mut().zip(ids.drain(..n)) {
            *out = id;
        }
        n
    }
}
