//! Texts of others, safe to print.

/// The text without characters that move a terminal's cursor or begin a new line.
pub fn printable(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            safe.extend(c.escape_default());
        } else {
            safe.push(c);
        }
    }
    safe
}

/// The start of a foreign text for a log line or a message: short, and without characters that
/// could begin a new line.
pub fn excerpt(text: &str) -> String {
    const MOST: usize = 256;
    text.chars()
        .take(MOST)
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_escaped_and_letters_stay() {
        assert_eq!(printable("a\x1b[2Jb\nü"), "a\\u{1b}[2Jb\\nü");
    }

    #[test]
    fn an_excerpt_is_short_and_one_line() {
        assert_eq!(excerpt("a\nü"), "a\u{fffd}ü");
        assert_eq!(excerpt(&"x".repeat(1000)).len(), 256);
    }
}
