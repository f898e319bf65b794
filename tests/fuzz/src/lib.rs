//! Fuzz targets. Each hands any bytes to one of the program's readers of foreign input and panics
//! where the reader breaks a promise: what it accepts agrees with an independent reading, what it
//! prints it reads again, doubt is refused, and no message has room for a second line.
//!
//! `scripts/fuzz` runs them with libFuzzer, which learns from coverage which bytes lead further;
//! `tests/it/fuzz.rs` runs them over the kept corpus in `cargo test`. An input is text wherever
//! possible, so that a corpus can be read and written by hand.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation
)]

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

/// Takes any bytes; panics where a promise is broken.
pub type Target = fn(&[u8]);

/// Every target by its name, which is also the name of its corpus.
pub const TARGETS: &[(&str, Target)] = &[
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

/// A message for people fits in one line of a log or a terminal.
#[track_caller]
fn assert_one_line(message: &str) {
    assert!(
        !message.chars().any(char::is_control),
        "a message with a control character in it: {message:?}"
    );
}
