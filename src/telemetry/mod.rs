//! What the program tells about itself: log lines ([`log`], above a terminal's [`foot`]), audit lines ([`audit`]), counts ([`meter`]), spans ([`trace`]), whether it
//! is ready ([`readiness`]), and the way of spans and counts to a collector ([`otlp`]).
//!
//! Invariant: no token, key or secret ever enters an event. Fields that name a key are always spelled `kid`.

pub mod audit;
pub mod foot;
pub mod log;
pub mod meter;
pub mod otlp;
pub mod readiness;
pub mod trace;
mod writer;

/// An error with all its causes in one line.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let words = cause.to_string();
        // Some errors already carry their cause's words in their own.
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        next = cause.source();
    }
    text
}
