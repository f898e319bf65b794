//! What the program reports about itself: log lines ([`log`], above a terminal's status line,
//! [`status_line`]), audit lines ([`mod@audit`]), counters ([`meter`]), spans ([`trace`]),
//! readiness ([`readiness`]), and the export of spans and counters to a collector ([`otlp`]).
//!
//! Invariant: no token, private key or secret ever enters an event. A field with a key's id is
//! always called `kid`.
//!
//! A server is ready when every latch says so, and each that does not says why:
//!
//! ```
//! use tailbone_telemetry::readiness::{self, Readiness};
//!
//! let readiness = Readiness::default();
//! let node = readiness.switch("node", "the node has not joined yet");
//! let now = jiff::Timestamp::now();
//! assert_eq!(readiness.check(now)[0].reason, "the node has not joined yet");
//! node.release();
//! assert!(readiness::all(&readiness.check(now)));
//! ```

pub mod audit;
pub mod log;
pub mod meter;
pub mod otlp;
pub mod readiness;
pub mod status_line;
pub mod trace;
mod writer;

/// An error with all of its causes, in one line.
pub fn error_chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let words = cause.to_string();
        // Some errors already include the message of their cause.
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        next = cause.source();
    }
    text
}

/// The innermost cause of an error, for libraries whose outer errors only say that something
/// failed.
pub fn innermost_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}
