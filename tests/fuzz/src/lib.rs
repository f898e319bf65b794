//! Fuzz targets. Each passes arbitrary bytes to one of the program's parsers of foreign input, and
//! panics if the parser breaks a promise: accepted input agrees with an independent parser, output
//! can be parsed again, doubtful input is refused, and no message has more than one line.
//!
//! `scripts/fuzz` runs the targets with libFuzzer, which uses coverage to find inputs that reach
//! new code. `tests/it/fuzz.rs` runs them over the kept corpus in `cargo test`. Inputs are text
//! wherever possible, so that a corpus can be read and written by hand.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation
)]

mod client_address;
mod client_assertion;
mod fence;
mod forwarded;
mod jwks;
mod key_file;
mod path;
mod redirect;
mod request;
mod rules;
mod settings;
mod site;
mod sts_policy;
mod token;

/// Takes any bytes, and panics if a promise is broken.
pub type Target = fn(&[u8]);

/// All targets by name, which is also the name of the corpus.
pub const TARGETS: &[(&str, Target)] = &[
    ("client_address", client_address::run),
    ("client_assertion", client_assertion::run),
    ("fence", fence::run),
    ("forwarded", forwarded::run),
    ("jwks", jwks::run),
    ("key_file", key_file::run),
    ("path", path::run),
    ("redirect", redirect::run),
    ("rules", rules::run),
    ("settings", settings::run),
    ("site", site::run),
    ("sts_policy", sts_policy::run),
    ("token", token::run),
];

fn text(data: &[u8]) -> Option<&str> {
    std::str::from_utf8(data).ok()
}

/// A message for people must fit in one line of a log or a terminal.
#[track_caller]
fn assert_one_line(message: &str) {
    assert!(
        !message.chars().any(char::is_control),
        "a message with a control character in it: {message:?}"
    );
}
