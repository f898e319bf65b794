//! Describes what the removal of a key breaks: for the question to a person before it, and for the
//! refusal if nobody was asked.

use super::proto::Key;
use crate::{jwks::life::Impact, keys::State};

/// What the removal of a key would break, according to a server's list of keys.
pub fn impact(keys: &[Key], kid: &str) -> Impact {
    let active = |key: &&Key| key.state == State::Active.as_str();
    let key = keys.iter().find(|key| key.key_id == kid);
    Impact {
        signing: key.is_some_and(|key| key.signs_since != 0),
        last: key.as_ref().is_some_and(active)
            && !keys
                .iter()
                .any(|other| other.key_id != kid && active(&other)),
        // Older servers report no state.
        tokens_may_be_valid: key.is_some_and(|key| {
            key.state.is_empty()
                || [State::Active, State::Retired]
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
