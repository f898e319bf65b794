//! What the loader has to tell people: where a value came from, and what is wrong or odd about it.
//!
//! Invariant: a secret never gets here. Whoever makes a [`Remark`] leaves the value out for one.

use std::{fmt, path::PathBuf};

/// Where a value was typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    Default,
    /// A config file, and the key in it where the remark is about one.
    File {
        path: PathBuf,
        key: Option<String>,
    },
    /// `--port`
    Flag(String),
    /// `TB_SERVER_PORT`
    Variable(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, key: None } => write!(f, "file {}", path.display()),
            Self::File {
                path,
                key: Some(key),
            } => write!(f, "file {}: {key}", path.display()),
            Self::Flag(name) => write!(f, "flag {name}"),
            Self::Variable(name) => write!(f, "variable {name}"),
        }
    }
}

/// One sentence about one setting, with its origin: `TB_SERVER_PORT=abc: not a port (1-65535)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remark {
    pub origin: Origin,
    /// What was typed; absent for secrets and where it adds nothing.
    pub value: Option<String>,
    pub sentence: String,
}

/// Something that stops the program.
pub type Mistake = Remark;

/// Something that people should know, but that stops nothing.
pub type Warning = Remark;

impl fmt::Display for Remark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.origin {
            Origin::Default => f.write_str("default")?,
            Origin::File { path, key } => {
                write!(f, "{}", path.display())?;
                if let Some(key) = key {
                    write!(f, ": {}", printable(key))?;
                }
            }
            Origin::Flag(name) | Origin::Variable(name) => f.write_str(&printable(name))?,
        }
        if let Some(value) = &self.value {
            write!(f, "={}", printable(value))?;
        }
        write!(f, ": {}", self.sentence)
    }
}

/// Everything that is wrong, told at once.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Mistakes {
    pub mistakes: Vec<Mistake>,
    /// What would have been warned about; it may explain a mistake.
    pub warnings: Vec<Warning>,
}

impl std::error::Error for Mistakes {}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.mistakes.as_slice() {
            [one] => write!(f, "{one}"),
            many => {
                write!(f, "{} mistakes in the settings", many.len())?;
                for mistake in many {
                    write!(f, "\n  {mistake}")?;
                }
                Ok(())
            }
        }
    }
}

/// A value as it may stand in a message: short, and without anything that moves a terminal's cursor.
fn printable(text: &str) -> String {
    const MOST: usize = 80;
    let mut short: String = text
        .chars()
        .take(MOST)
        .flat_map(|c| -> Box<dyn Iterator<Item = char>> {
            if c.is_control() {
                Box::new(c.escape_default())
            } else {
                Box::new(std::iter::once(c))
            }
        })
        .collect();
    if text.chars().nth(MOST).is_some() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_short_and_printable() {
        let remark = Remark {
            origin: Origin::Variable("TB_SERVER_PORT".into()),
            value: Some(format!("\u{1b}[2J\n{}", "x".repeat(200))),
            sentence: "not a port".into(),
        };
        let text = remark.to_string();
        assert!(
            text.starts_with("TB_SERVER_PORT=\\u{1b}[2J\\nxxx"),
            "{text}"
        );
        assert!(text.ends_with("x…: not a port"), "{text}");
        assert!(text.len() < 130, "{text}");
    }
}
