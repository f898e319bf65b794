//! Key ids: `<prefix>-<unix seconds>-<random>`, and those of the original program, `<prefix>-<unix
//! seconds>`.
//!
//! Invariants
//! - A [`KeyId`] is always a harmless file name and may be joined to the key directory. Text from a
//!   key file, a document or a request becomes a `KeyId`, or is refused, before it is used for
//!   anything else.
//! - Ids made here parse by the original's rule (split on `-`, second part decimal). They do not
//!   collide: 64 random bits follow the seconds.

use std::{fmt, str::FromStr, sync::Arc};

use jiff::Timestamp;

/// Longest id accepted from outside. File names may have 255 bytes, and the id is followed by
/// `.private.jwk.…`.
const MAX_LENGTH: usize = 128;

/// The name of a key: the `kid` in tokens and documents, and the first part of its file names.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(Arc<str>);

/// Why a text is no key id. The message shows the text escaped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidKeyId {
    #[error("key id is empty")]
    Empty,
    #[error("key id {0:?} holds a control character")]
    Control(String),
    #[error("key id {0:?} starts with a dot")]
    Hidden(String),
    #[error("key id of {0} bytes is longer than {MAX_LENGTH}")]
    Long(usize),
    #[error("the machine gives no random bytes")]
    NoRandomness,
    #[error("key id {0:?} holds a path separator")]
    PathPart(String),
}

impl KeyId {
    /// A new id for a key made at `now`. A `-` in the prefix becomes `_`; otherwise the id would
    /// not parse by the original's rule.
    pub fn generate(prefix: &str, now: Timestamp) -> Result<Self, InvalidKeyId> {
        let mut random = [0u8; 8];
        aws_lc_rs::rand::fill(&mut random).map_err(|_| InvalidKeyId::NoRandomness)?;
        let prefix = prefix.replace('-', "_");
        let seconds = now.as_second().max(1);
        format!("{prefix}-{seconds}-{}", base32(&random)).parse()
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// When the key was made, as its id says: the second part, as the original reads it. For
    /// prefixes that contain a `-`, which the original could not read, the first later part that is
    /// a number.
    pub fn created(&self) -> Option<Timestamp> {
        self.0
            .split('-')
            .skip(1)
            .find_map(|part| part.parse::<i64>().ok().filter(|seconds| *seconds > 0))
            .and_then(|seconds| Timestamp::from_second(seconds).ok())
    }
}

impl FromStr for KeyId {
    type Err = InvalidKeyId;

    fn from_str(text: &str) -> Result<Self, InvalidKeyId> {
        let shown = || text.chars().take(MAX_LENGTH).collect::<String>();
        if text.is_empty() {
            return Err(InvalidKeyId::Empty);
        }
        if text.len() > MAX_LENGTH {
            return Err(InvalidKeyId::Long(text.len()));
        }
        if text.contains(['/', '\\']) {
            return Err(InvalidKeyId::PathPart(shown()));
        }
        if text.starts_with('.') {
            return Err(InvalidKeyId::Hidden(shown()));
        }
        if text.chars().any(char::is_control) {
            return Err(InvalidKeyId::Control(shown()));
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

impl serde::Serialize for KeyId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

/// Lower-case base32 (RFC 4648 alphabet) without padding: safe in file names on every system, and
/// selected as one word by a double click.
fn base32(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let mut text = String::with_capacity(bytes.len().div_ceil(5) * 8);
    let (mut held, mut bits) = (0u32, 0u32);
    for byte in bytes {
        held = (held << 8) | u32::from(*byte);
        bits += 8;
        while bits >= 5 {
            bits -= 5;
            text.push(char::from(ALPHABET[(held >> bits) as usize & 31]));
        }
        held &= (1 << bits) - 1;
    }
    if bits > 0 {
        text.push(char::from(ALPHABET[(held << (5 - bits)) as usize & 31]));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    #[test]
    fn the_originals_ids_tell_their_time() {
        let id: KeyId = "tb-1740172800".parse().unwrap();
        assert_eq!(id.created(), Some(at(1_740_172_800)));
        let id: KeyId = "tb-1740172800-whatever-7".parse().unwrap();
        assert_eq!(id.created(), Some(at(1_740_172_800)));
    }

    #[test]
    fn d08_ids_of_one_second_differ_and_parse_by_the_old_rule() {
        let ids: std::collections::BTreeSet<_> = (0..1000)
            .map(|_| KeyId::generate("tb", at(1_740_172_800)).unwrap())
            .collect();
        assert_eq!(ids.len(), 1000);
        for id in ids {
            let second = id.as_str().split('-').nth(1).unwrap();
            assert_eq!(second.parse::<i64>().unwrap(), 1_740_172_800);
        }
    }

    #[test]
    fn d11_a_prefix_with_a_dash_makes_ids_that_parse() {
        let id = KeyId::generate("my-app", at(1_740_172_800)).unwrap();
        assert!(id.as_str().starts_with("my_app-1740172800-"), "{id}");
        // Keys that the original wrote with such a prefix are read as well.
        let old: KeyId = "my-app-1740172800".parse().unwrap();
        assert_eq!(old.created(), Some(at(1_740_172_800)));
    }

    #[test]
    fn d22_ids_with_path_parts_are_refused() {
        for bad in [
            "",
            "..",
            ".",
            ".lock",
            "../../etc/passwd",
            "a/b",
            "a\\b",
            "a\0b",
            "a\nb",
            "/abs",
        ] {
            assert!(bad.parse::<KeyId>().is_err(), "{bad:?}");
        }
        assert!("x".repeat(129).parse::<KeyId>().is_err());
        assert!("no-time".parse::<KeyId>().unwrap().created().is_none());
        assert!("tb--5".parse::<KeyId>().unwrap().created().is_some());
        assert!("tb-0".parse::<KeyId>().unwrap().created().is_none());
    }
}
