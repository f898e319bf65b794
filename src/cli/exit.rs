//! The end of a command: its exit code and its one message.
//!
//! | Code  | Meaning                                                                         |
//! |-------|---------------------------------------------------------------------------------|
//! | 0     | done; also if the reader of our output went away                                |
//! | 1     | failed                                                                          |
//! | 2     | the command line was not understood, or a question was not answered with yes    |
//! | 3     | a dry run found something that would change                                     |
//! | 10–20 | the node did not join the tailnet; the table is in [`crate::tailnet::join`]     |
//! | 64    | a setting is wrong (`EX_USAGE` of sysexits.h)                                   |

use std::{error::Error, io};

use crate::{config::InvalidSettings, telemetry};

pub const DONE: u8 = 0;
pub const FAILED: u8 = 1;
pub const USAGE: u8 = 2;
pub const WOULD_CHANGE: u8 = 3;
pub const SETTINGS: u8 = 64;

/// Why a command failed.
#[derive(Debug)]
pub struct Failure {
    code: u8,
    /// Absent if everything was said already, or nobody reads it.
    error: Option<Box<dyn Error + Send + Sync>>,
    /// What the person can do about it.
    advice: String,
}

impl Failure {
    /// The command was tried, and failed.
    pub fn failed(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::with_code(FAILED, error)
    }

    /// The command was not tried, because nobody confirmed it.
    pub fn refused(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::with_code(USAGE, error)
    }

    pub fn with_code(code: u8, error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self {
            code,
            error: Some(error.into()),
            advice: String::new(),
        }
    }

    /// What there is to say was said already.
    pub fn told(code: u8) -> Self {
        Self {
            code,
            error: None,
            advice: String::new(),
        }
    }

    /// Adds what the person can do about it: a sentence without its final dot.
    #[must_use]
    pub fn advise(self, advice: impl Into<String>) -> Self {
        Self {
            advice: advice.into(),
            ..self
        }
    }

    /// Our own output could not be written. `tailbone … | head` closes the pipe, which is no
    /// failure.
    pub fn output(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::told(DONE);
        }
        Self::failed(error)
    }

    pub fn code(&self) -> u8 {
        self.code
    }

    /// The whole chain of causes and the advice in one line, if there is anything to say.
    pub fn message(&self) -> Option<String> {
        let error: &(dyn Error + 'static) = self.error.as_deref()?;
        let mut message = telemetry::error_chain(error);
        if !self.advice.is_empty() {
            message.push_str(". ");
            message.push_str(&self.advice);
        }
        Some(message)
    }
}

impl From<InvalidSettings> for Failure {
    fn from(mistakes: InvalidSettings) -> Self {
        Self::with_code(SETTINGS, mistakes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("reading the key")]
    struct Outer(#[source] Middle);

    #[derive(Debug, thiserror::Error)]
    #[error("opening: {0}")]
    struct Middle(#[source] io::Error);

    #[test]
    fn the_chain_is_one_line_and_repeats_nothing() {
        let cause = io::Error::new(io::ErrorKind::NotFound, "no such file");
        assert_eq!(
            Failure::failed(Outer(Middle(cause))).message().as_deref(),
            Some("reading the key: opening: no such file")
        );
        let cause = io::Error::new(io::ErrorKind::NotFound, "no such file");
        let failure = Failure::failed(Outer(Middle(cause))).advise("Make one");
        assert_eq!(
            failure.message().as_deref(),
            Some("reading the key: opening: no such file. Make one")
        );
    }

    #[test]
    fn only_a_closed_pipe_of_our_own_is_success() {
        let closed = || io::Error::from(io::ErrorKind::BrokenPipe);
        assert_eq!(Failure::output(closed()).code(), DONE);
        assert_eq!(Failure::output(closed()).message(), None);
        assert_eq!(Failure::failed(closed()).code(), FAILED);
        assert_eq!(
            Failure::output(io::Error::other("disk full")).code(),
            FAILED
        );
    }
}
