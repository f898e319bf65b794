//! What the program reports about itself: log lines ([`log`], above a terminal's status line,
//! [`foot`]), audit lines ([`mod@audit`]), counters ([`meter`]), spans ([`trace`]), readiness
//! ([`readiness`]), and the export of spans and counters to a collector ([`otlp`]).
//!
//! Invariant: no token, private key or secret ever enters an event. A field with a key's id is
//! always called `kid`.

pub mod audit;
pub mod foot;
pub mod log;
pub mod meter;
pub mod otlp;
pub mod readiness;
pub mod trace;
mod writer;

/// An error with all of its causes, in one line.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
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
