//! Where a value comes from, and what is wrong or odd about it.
//!
//! No secret gets here: a [`Remark`] about one has no value.

use std::{fmt, path::PathBuf};

use tailbone_values::printable;

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ValueOrigin {
    Default,
    /// A config file, and the key in it if the remark is about one.
    File {
        path: PathBuf,
        key: Option<String>,
    },
    /// `--port`
    Flag(String),
    /// `TB_SERVER_PORT`
    Variable(String),
}

impl fmt::Display for ValueOrigin {
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
    pub origin: ValueOrigin,
    /// What was given. Absent for secrets, and where it adds nothing.
    pub value: Option<String>,
    pub sentence: String,
}

impl fmt::Display for Remark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.origin {
            ValueOrigin::Default => f.write_str("default")?,
            ValueOrigin::File { path, key } => {
                f.write_str(&printable(&path.to_string_lossy()))?;
                if let Some(key) = key {
                    write!(f, ": {}", shorten(key))?;
                }
            }
            ValueOrigin::Flag(name) | ValueOrigin::Variable(name) => f.write_str(&shorten(name))?,
        }
        if let Some(value) = &self.value {
            write!(f, "={}", shorten(value))?;
        }
        // The sentence may quote a path or a name.
        write!(f, ": {}", printable(&self.sentence))
    }
}

/// Everything that is wrong, at once.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct InvalidSettings {
    /// What stops the program.
    pub mistakes: Vec<Remark>,
    /// The warnings; one may explain a mistake.
    pub warnings: Vec<Remark>,
}

impl std::error::Error for InvalidSettings {}

impl fmt::Display for InvalidSettings {
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

/// A value, short enough for a message.
fn shorten(text: &str) -> String {
    const MAX_CHARS: usize = 80;
    match text.char_indices().nth(MAX_CHARS) {
        Some((end, _)) => format!("{}…", printable(&text[..end])),
        None => printable(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_short_and_printable() {
        let remark = Remark {
            origin: ValueOrigin::Variable("TB_SERVER_PORT".into()),
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
        let remark = Remark {
            origin: ValueOrigin::File {
                path: "/a\nb".into(),
                key: None,
            },
            value: None,
            sentence: "file \u{1b}[2J is empty".into(),
        };
        assert_eq!(remark.to_string(), "/a\\nb: file \\u{1b}[2J is empty");
    }
}
