//! A status line at the bottom of a terminal. It changes in place while other lines are printed
//! above it.
//!
//! Invariant: while there may be a status line, every line for the terminal is written inside
//! [`print_above`]. So no line is torn, and no remains of the status line are left.

use std::io::Write as _;

use parking_lot::Mutex;

/// The current status line, on standard error.
static STATUS_LINE: Mutex<Option<String>> = Mutex::new(None);

/// Moves to the beginning of the line and clears it.
const ERASE: &str = "\r\x1b[2K";

/// Shows a text or replaces the previous one. It must fit on one line: a wrapped line could not be
/// cleared.
pub fn set(text: &str) {
    let mut status_line = STATUS_LINE.lock();
    write(&format!("{ERASE}{text}"));
    *status_line = Some(text.to_owned());
}

/// Removes the status line.
pub fn clear() {
    if STATUS_LINE.lock().take().is_some() {
        write(ERASE);
    }
}

/// Writes complete lines in place of the status line, and the status line below them.
pub fn print_above<T>(lines: impl FnOnce() -> T) -> T {
    let status_line = STATUS_LINE.lock();
    if status_line.is_some() {
        write(ERASE);
    }
    let done = lines();
    if let Some(text) = status_line.as_deref() {
        write(text);
    }
    done
}

fn write(text: &str) {
    let mut terminal = std::io::stderr().lock();
    // If the terminal is gone, there is nowhere to report it.
    let _ = terminal
        .write_all(text.as_bytes())
        .and_then(|()| terminal.flush());
}
