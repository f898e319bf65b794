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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_escaped_and_letters_stay() {
        assert_eq!(printable("a\x1b[2Jb\nü"), "a\\u{1b}[2Jb\\nü");
    }
}
