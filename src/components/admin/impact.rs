//! Describes what the removal of a key breaks: for the question to a person before it, and for the
//! refusal if nobody was asked.

use super::proto::Key;
use crate::keys::KeyState;

/// What removing a key would break, for the question asked before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Impact {
    /// The server signs with the key now.
    pub signing: bool,
    /// No other key of the server could sign at once.
    pub last: bool,
    /// Tokens signed with it may still be valid.
    pub tokens_may_be_valid: bool,
}

/// What the removal of a key would break, according to a server's list of keys.
pub fn impact(keys: &[Key], kid: &str) -> Impact {
    let active = |key: &&Key| key.state == KeyState::Active.as_str();
    let key = keys.iter().find(|key| key.key_id == kid);
    Impact {
        signing: key.is_some_and(|key| key.signs_since != 0),
        last: key.as_ref().is_some_and(active)
            && !keys
                .iter()
                .any(|other| other.key_id != kid && active(&other)),
        // Nothing is known about the tokens of another server's key, and older servers report no
        // state.
        tokens_may_be_valid: key.is_some_and(|key| {
            key.state.is_empty()
                || [KeyState::Active, KeyState::Retired]
                    .iter()
                    .any(|state| key.state == state.as_str())
        }),
    }
}

/// One sentence per consequence.
pub fn consequences(kid: &str, impact: Impact) -> Vec<String> {
    let mut sentences = Vec::new();
    match (impact.signing, impact.last) {
        (true, true) => sentences.push(format!(
            "{kid} is the key this server signs with, and no other is ready: retired keys have no private half any more, so no tokens are issued until the next `tailbone keys generate`, and at first verifiers may not know that key; `tailbone keys rotate` beforehand leaves no gap"
        )),
        (true, false) => sentences.push(format!("{kid} is the key this server signs with; another one takes over at once")),
        (false, true) => sentences.push(format!("{kid} is the last key this server could sign with")),
        (false, false) => {}
    }
    if impact.tokens_may_be_valid {
        sentences.push(format!(
            "tokens signed with {kid} that are still valid can no longer be verified"
        ));
    }
    sentences
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(kid: &str, state: &str, signs_since: i64) -> Key {
        Key {
            key_id: kid.to_owned(),
            state: state.to_owned(),
            signs_since,
            ..Key::default()
        }
    }

    #[test]
    fn the_only_active_key_breaks_most_and_an_unpublished_one_nothing() {
        let keys = [
            key("signs", "active", 1),
            key("old", "retired", 0),
            key("next", "pending", 0),
            key("foreign", "", 0),
        ];
        let broken = |kid| {
            let Impact {
                signing,
                last,
                tokens_may_be_valid,
            } = impact(&keys, kid);
            [signing, last, tokens_may_be_valid]
        };
        assert_eq!(broken("signs"), [true, true, true]);
        assert_eq!(broken("old"), [false, false, true]);
        assert_eq!(broken("next"), [false, false, false]);
        assert_eq!(broken("foreign"), [false, false, true]);
        assert_eq!(broken("unknown"), [false, false, false]);
    }

    #[test]
    fn another_active_key_can_take_over() {
        let keys = [key("a", "active", 1), key("b", "active", 0)];
        let of = |kid| (impact(&keys, kid).signing, impact(&keys, kid).last);
        assert_eq!((of("a"), of("b")), ((true, false), (false, false)));
    }
}
