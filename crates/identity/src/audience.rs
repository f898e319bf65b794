//! Audiences of tokens, and patterns of them.

use std::fmt;

use tailbone_values::glob;

/// The most bytes of an audience.
pub const MAX_AUDIENCE_BYTES: usize = 512;

/// An audience, or a pattern of audiences with `*` (and then `?`, and `\` before a character that
/// stands for itself).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AudiencePattern(String);

impl AudiencePattern {
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if text.is_empty() {
            return Err("an audience is empty".into());
        }
        if text.len() > MAX_AUDIENCE_BYTES {
            return Err(format!(
                "an audience is longer than {MAX_AUDIENCE_BYTES} bytes"
            ));
        }
        if text.chars().any(char::is_control) {
            return Err(format!("{text:?} has a control character in it"));
        }
        Ok(Self(text.to_owned()))
    }

    /// The pattern of this audience alone.
    pub fn exactly(audience: &str) -> Result<Self, String> {
        Self::parse(&audience.replace('\\', "\\\\").replace('*', "\\*"))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn matches(&self, audience: &str) -> bool {
        if self.0.contains(['*', '\\']) {
            glob::matches(&self.0, audience)
        } else {
            self.0 == audience
        }
    }
}

/// As it was written.
impl fmt::Display for AudiencePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_exact_unless_it_has_a_star() {
        let matches = |pattern: &str, audience: &str| {
            AudiencePattern::parse(pattern).unwrap().matches(audience)
        };
        assert!(matches("https://a", "https://a"));
        assert!(!matches("https://a", "https://a/"));
        assert!(!matches("https://a", "https://A"));
        assert!(!matches("https://a?b", "https://a-b"));
        assert!(matches("https://*.example.com", "https://a.example.com"));
        assert!(!matches("https://*.example.com", "https://example.com"));
        let star = AudiencePattern::exactly("*").unwrap();
        assert!(star.matches("*") && !star.matches("a"));
    }

    #[test]
    fn what_no_audience_is() {
        for wrong in ["", "  ", "a\nb", &"a".repeat(513)] {
            assert!(AudiencePattern::parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
