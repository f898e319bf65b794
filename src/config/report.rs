//! Where a value comes from, and what is wrong or odd about it.
//!
//! No secret gets here: a [`Remark`] about one has no value.

use std::{fmt, path::PathBuf};

use tailbone_values::printable;

/// Where a value is typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
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
    /// What is typed. Absent for secrets, and where it adds nothing.
    pub value: Option<String>,
    pub sentence: String,
}

/// Something that stops the program.
pub type Mistake = Remark;

/// Something that people should know and that stops nothing.
pub type Warning = Remark;

impl fmt::Display for Remark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.origin {
            Origin::Default => f.write_str("default")?,
            Origin::File { path, key } => {
                f.write_str(&printable(&path.to_string_lossy()))?;
                if let Some(key) = key {
                    write!(f, ": {}", short(key))?;
                }
            }
            Origin::Flag(name) | Origin::Variable(name) => f.write_str(&short(name))?,
        }
        if let Some(value) = &self.value {
            write!(f, "={}", short(value))?;
        }
        // The sentence may quote a path or a name.
        write!(f, ": {}", printable(&self.sentence))
    }
}

/// Everything that is wrong, at once.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Mistakes {
    pub mistakes: Vec<Mistake>,
    /// The warnings; one may explain a mistake.
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

/// A value, short enough for a message.
fn short(text: &str) -> String {
    const MOST: usize = 80;
    match text.char_indices().nth(MOST) {
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
        let remark = Remark {
            origin: Origin::File {
                path: "/a\nb".into(),
                key: None,
            },
            value: None,
            sentence: "file \u{1b}[2J is empty".into(),
        };
        assert_eq!(remark.to_string(), "/a\\nb: file \\u{1b}[2J is empty");
    }
}
