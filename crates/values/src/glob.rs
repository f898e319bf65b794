//! Patterns for texts, as in cloud policies: `*` stands for any number of characters (including
//! none, and including slashes), `?` for one, and a backslash makes the next character literal.

/// Whether `pattern` matches the whole of `text`. Needs linear memory, and at worst time
/// proportional to the product of both lengths: no pattern takes exponential time.
pub fn matches(pattern: &str, text: &str) -> bool {
    let pattern = pieces(pattern);
    let text: Vec<char> = text.chars().collect();
    let (mut pattern_at, mut text_at) = (0, 0);
    // Where to continue after a wrong guess: after the last star, which then covers one more
    // character.
    let mut backtrack: Option<(usize, usize)> = None;
    while text_at < text.len() {
        match pattern.get(pattern_at) {
            Some(Piece::AnyText) => {
                backtrack = Some((pattern_at + 1, text_at));
                pattern_at += 1;
            }
            Some(piece) if piece.matches(text[text_at]) => {
                pattern_at += 1;
                text_at += 1;
            }
            _ => match backtrack {
                Some((after_star, covered_to)) => {
                    backtrack = Some((after_star, covered_to + 1));
                    pattern_at = after_star;
                    text_at = covered_to + 1;
                }
                None => return false,
            },
        }
    }
    pattern[pattern_at..]
        .iter()
        .all(|piece| *piece == Piece::AnyText)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Piece {
    AnyText,
    Literal(char),
    AnyCharacter,
}

impl Piece {
    fn matches(self, c: char) -> bool {
        match self {
            Self::AnyText => false,
            Self::Literal(wanted) => wanted == c,
            Self::AnyCharacter => true,
        }
    }
}

fn pieces(pattern: &str) -> Vec<Piece> {
    let mut chars = pattern.chars();
    let mut pieces = Vec::new();
    while let Some(c) = chars.next() {
        pieces.push(match c {
            '*' => Piece::AnyText,
            '?' => Piece::AnyCharacter,
            '\\' => Piece::Literal(chars.next().unwrap_or('\\')),
            c => Piece::Literal(c),
        });
    }
    pieces
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn stars_questions_and_escapes() {
        assert!(matches(
            "repo:acme/*",
            "repo:acme/infra:ref:refs/heads/main"
        ));
        assert!(!matches("repo:acme/*", "repo:acme-evil/infra"));
        assert!(matches("*", ""));
        assert!(matches("v?", "v1"));
        assert!(!matches("v?", "v"));
        assert!(matches(r"a\*b", "a*b"));
        assert!(!matches(r"a\*b", "axb"));
        assert!(!matches("", "x"));
    }

    #[test]
    fn a_hostile_pattern_is_answered_soon() {
        assert!(!matches(&"*a".repeat(200), &"a".repeat(199)));
        assert!(!matches(
            &format!("{}b", "*a".repeat(50)),
            &"a".repeat(5000)
        ));
    }

    fn slow(pattern: &[Piece], text: &[char]) -> bool {
        match (pattern.split_first(), text.split_first()) {
            (None, None) => true,
            (None, Some(_)) => false,
            (Some((Piece::AnyText, rest)), _) => {
                slow(rest, text)
                    || text
                        .split_first()
                        .is_some_and(|(_, text)| slow(pattern, text))
            }
            (Some((piece, rest)), Some((c, text))) => piece.matches(*c) && slow(rest, text),
            (Some(_), None) => false,
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_definition(pattern in "[ab*?\\\\]{0,8}", text in "[ab*]{0,8}") {
            let chars: Vec<char> = text.chars().collect();
            prop_assert_eq!(matches(&pattern, &text), slow(&pieces(&pattern), &chars));
        }

        #[test]
        fn plain_text_meets_itself_alone(text in "[a-z:/]{0,12}", other in "[a-z:/]{0,12}") {
            prop_assert_eq!(matches(&text, &other), text == other);
        }
    }
}
