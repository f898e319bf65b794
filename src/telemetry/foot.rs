//! The last line of a terminal, which changes in place while other lines go by above it.
//!
//! Invariant: there is one terminal, and whoever writes a line to it while there may be a foot does so through [`above`]; so no line
//! is torn, and none is left behind by the foot.

use std::{
    io::Write as _,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// What stands there now, on standard error.
static FOOT: Mutex<Option<String>> = Mutex::new(None);

/// Back to the begin of the line, and nothing on it.
const ERASE: &str = "\r\x1b[2K";

/// Puts a text there, or in the place of the one before. It must fit on one line: what has wrapped cannot be taken back.
pub fn set(text: &str) {
    let mut foot = foot();
    write(&format!("{ERASE}{text}"));
    *foot = Some(text.to_owned());
}

/// Takes it away.
pub fn clear() {
    if foot().take().is_some() {
        write(ERASE);
    }
}

/// Writes whole lines where the foot is, and the foot below them.
pub fn above<T>(lines: impl FnOnce() -> T) -> T {
    let foot = foot();
    if foot.is_some() {
        write(ERASE);
    }
    let done = lines();
    if let Some(text) = foot.as_deref() {
        write(text);
    }
    done
}

fn foot() -> MutexGuard<'static, Option<String>> {
    FOOT.lock().unwrap_or_else(PoisonError::into_inner)
}

fn write(text: &str) {
    let mut terminal = std::io::stderr().lock();
    // There is nowhere to say that the terminal is gone.
    let _ = terminal
        .write_all(text.as_bytes())
        .and_then(|()| terminal.flush());
}
