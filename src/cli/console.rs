//! The streams of a command, and the person at the terminal if there is one.
//!
//! Only results go to `out`, so that they can be piped; messages go to `err`.

use std::io::{self, BufRead, IsTerminal, Write};

use super::{exit::Failure, layout::Layout};
use crate::config::{LoadResult, Remark, ValueOrigins};

pub struct Console<'a> {
    pub out: &'a mut dyn Write,
    pub err: &'a mut dyn Write,
    /// Answers questions; absent if there is no terminal.
    pub person: Option<&'a mut dyn BufRead>,
    /// How results for people are laid out on `out`.
    pub layout: Layout,
}

impl std::fmt::Debug for Console<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Console")
            .field("person", &self.person.is_some())
            .finish_non_exhaustive()
    }
}

impl Console<'_> {
    /// Takes the settings out of a load, after the config file's name and the warnings.
    pub fn accept<T>(&mut self, loaded: LoadResult<T>) -> Result<(T, ValueOrigins), Failure> {
        match loaded {
            Ok((settings, origins, warnings)) => {
                if let Some(file) = &origins.file {
                    self.say(&format!("Using config file: {}", file.display()));
                }
                self.warn(&warnings);
                Ok((settings, origins))
            }
            Err(mistakes) => {
                self.warn(&mistakes.warnings);
                Err(mistakes.into())
            }
        }
    }

    /// Prints one line of a message. If that fails, nobody is reading messages.
    pub fn say(&mut self, line: &str) {
        let _ = writeln!(self.err, "{line}");
    }

    /// Prints a part of the result.
    pub fn print(&mut self, text: &str) -> Result<(), Failure> {
        self.out
            .write_all(text.as_bytes())
            .and_then(|()| self.out.flush())
            .map_err(Failure::output)
    }

    pub(super) fn warn(&mut self, warnings: &[Remark]) {
        for warning in warnings {
            self.say(&format!("Warning: {warning}"));
        }
    }
}

/// Whether a question can be asked and answered.
pub(super) fn can_ask() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}
