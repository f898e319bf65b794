//! What a command talks to: output, messages, and a person where there is one.
//!
//! Results go to `out` and nothing else does, so that they can be piped; everything said about them goes to `err`.

use std::io::{self, BufRead, IsTerminal, Write};

use super::exit::Failure;
use crate::config::{Loaded, Origins, Warning};

pub struct Console<'a> {
    pub out: &'a mut dyn Write,
    pub err: &'a mut dyn Write,
    /// The person to ask; absent where there is no terminal.
    pub person: Option<&'a mut dyn BufRead>,
}

impl std::fmt::Debug for Console<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Console")
            .field("person", &self.person.is_some())
            .finish_non_exhaustive()
    }
}

impl Console<'_> {
    /// Takes the settings out of a load and says on the way what there is to say about them.
    pub fn told<T>(&mut self, loaded: Loaded<T>) -> Result<(T, Origins), Failure> {
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

    /// One line to the person at the messages' end. Whoever closed it does not want to read it.
    pub fn say(&mut self, line: &str) {
        let _ = writeln!(self.err, "{line}");
    }

    /// A piece of the result.
    pub fn print(&mut self, text: &str) -> Result<(), Failure> {
        self.out
            .write_all(text.as_bytes())
            .and_then(|()| self.out.flush())
            .map_err(Failure::output)
    }

    fn warn(&mut self, warnings: &[Warning]) {
        for warning in warnings {
            self.say(&format!("Warning: {warning}"));
        }
    }
}

/// Whether a question can be asked and answered.
pub(super) fn person_is_there() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}
