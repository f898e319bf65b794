//! The facts of a key's life, each with its time, and the file that holds them
//! (`<kid>.state.json`).
//!
//! Invariants
//! - Facts are only added; `absent` alone may be taken back. `rotation.rs` derives a key's state
//!   from them.
//! - A file of a newer format, or one that does not parse, is an error and never treated as "no
//!   facts".

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tailbone_values::Object;

/// The format that this program writes. A file with another number is left alone.
const VERSION: u32 = 1;

/// What is known about one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct History {
    pub created: Timestamp,
    /// Not made by this program: there was no state file when the key was first seen.
    pub inherited: bool,
    pub activated: Option<Timestamp>,
    /// Since when the key no longer signs, because a successor does.
    pub retired: Option<Timestamp>,
    /// An operator's removal, or an abandoned generate, has begun.
    pub removing: Option<Timestamp>,
    /// No token is signed with the key after this time unless this fact is renewed first.
    pub may_sign_until: Option<Timestamp>,
    /// The longest life of a token that the key signed.
    pub longest_life: Duration,
    /// Facts for each place of publication.
    pub places: BTreeMap<String, Publication>,
}

/// What is known about a key at one place of publication.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Publication {
    /// When the key was first read back there.
    pub published: Option<Timestamp>,
    /// The document held no other server's key at that time, so no verifier depends on an older
    /// copy of it.
    pub alone: bool,
    /// Since when the key has been missing from a document that could be read.
    pub absent: Option<Timestamp>,
}

/// Why a state file is not used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HistoryError {
    #[error("not a state file: {0}")]
    Json(String),
    #[error("state file of format {0}, made by a newer version of this program")]
    Version(u32),
}

impl History {
    /// A key that this program makes at `created`.
    pub fn new(created: Timestamp) -> Self {
        Self {
            created,
            inherited: false,
            activated: None,
            retired: None,
            removing: None,
            may_sign_until: None,
            longest_life: Duration::ZERO,
            places: BTreeMap::new(),
        }
    }

    /// A key found without a state file.
    pub fn inherited(created: Timestamp) -> Self {
        Self {
            inherited: true,
            ..Self::new(created)
        }
    }

    pub fn at(&self, place: &str) -> Publication {
        self.places.get(place).copied().unwrap_or_default()
    }

    pub fn at_mut(&mut self, place: &str) -> &mut Publication {
        self.places.entry(place.to_owned()).or_default()
    }

    pub fn from_file(json: &[u8]) -> Result<Self, HistoryError> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let json_error = |error: serde_json::Error| HistoryError::Json(error.to_string());
        let Object(Versioned { version }) = serde_json::from_slice(json).map_err(json_error)?;
        if version != VERSION {
            return Err(HistoryError::Version(version));
        }
        let Object(written): Object<HistoryFile> =
            serde_json::from_slice(json).map_err(json_error)?;
        Ok(written.into())
    }

    pub fn to_file(&self) -> Vec<u8> {
        // Plain data with text as map keys, so serialising cannot fail.
        let mut json = serde_json::to_vec_pretty(&HistoryFile::from(self)).unwrap_or_default();
        json.push(b'\n');
        json
    }
}

/// The format of the file. Times are RFC 3339; the life is in whole seconds, rounded up.
#[derive(Serialize, Deserialize)]
struct HistoryFile {
    version: u32,
    created: Time,
    #[serde(default)]
    inherited: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    activated: Option<Time>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    retired: Option<Time>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    removing: Option<Time>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    may_sign_until: Option<Time>,
    #[serde(default)]
    longest_life_seconds: u64,
    #[serde(default)]
    places: BTreeMap<String, PlaceFile>,
}

#[derive(Serialize, Deserialize)]
struct PlaceFile {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    published: Option<Time>,
    #[serde(default)]
    alone: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    absent: Option<Time>,
}

/// A timestamp as text.
#[derive(Clone, Copy)]
struct Time(Timestamp);

impl Serialize for Time {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map(Time).map_err(serde::de::Error::custom)
    }
}

impl From<&History> for HistoryFile {
    fn from(history: &History) -> Self {
        let life = history.longest_life;
        Self {
            version: VERSION,
            created: Time(history.created),
            inherited: history.inherited,
            activated: history.activated.map(Time),
            retired: history.retired.map(Time),
            removing: history.removing.map(Time),
            may_sign_until: history.may_sign_until.map(Time),
            longest_life_seconds: life.as_secs() + u64::from(life.subsec_nanos() > 0),
            places: history
                .places
                .iter()
                .map(|(place, publication)| {
                    let written = PlaceFile {
                        published: publication.published.map(Time),
                        alone: publication.alone,
                        absent: publication.absent.map(Time),
                    };
                    (place.clone(), written)
                })
                .collect(),
        }
    }
}

impl From<HistoryFile> for History {
    fn from(written: HistoryFile) -> Self {
        let plain = |time: Option<Time>| time.map(|Time(time)| time);
        Self {
            created: written.created.0,
            inherited: written.inherited,
            activated: plain(written.activated),
            retired: plain(written.retired),
            removing: plain(written.removing),
            may_sign_until: plain(written.may_sign_until),
            longest_life: Duration::from_secs(written.longest_life_seconds),
            places: written
                .places
                .into_iter()
                .map(|(place, publication)| {
                    let publication = Publication {
                        published: plain(publication.published),
                        alone: publication.alone,
                        absent: plain(publication.absent),
                    };
                    (place, publication)
                })
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_survive_the_file() {
        let at = |seconds| Timestamp::from_second(seconds).unwrap();
        let mut history = History::new(at(1000));
        assert_eq!(History::from_file(&history.to_file()).unwrap(), history);
        history.activated = Some(at(2000));
        history.retired = Some(at(3000));
        history.removing = Some(at(4000));
        history.may_sign_until = Some(at(5000));
        history.longest_life = Duration::from_secs(1200);
        *history.at_mut("file:/x") = Publication {
            published: Some(at(1500)),
            alone: true,
            absent: Some(at(1600)),
        };
        assert_eq!(History::from_file(&history.to_file()).unwrap(), history);
    }

    #[test]
    fn damage_and_newer_formats_are_errors() {
        assert!(matches!(
            History::from_file(b""),
            Err(HistoryError::Json(_))
        ));
        assert!(matches!(
            History::from_file(b"{}"),
            Err(HistoryError::Json(_))
        ));
        assert!(matches!(
            History::from_file(br#"{"version":2,"whatever":true}"#),
            Err(HistoryError::Version(2))
        ));
    }
}
