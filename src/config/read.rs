//! Reads rows: what is typed for a setting, or its default, becomes a checked value.
//!
//! Every row is read, whatever was wrong before it, so that all mistakes are reported at once. A
//! reading method returns `None` after it has recorded a mistake. Where the Go program accepted a
//! wrong value in silence, the reader accepts it with a warning or refuses it with a reason;
//! `docs/compatibility.md` lists which. Nothing is opened here except files that hold secrets:
//! whether a directory or a bucket exists is for the components to find out.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::Value as Json;

use super::{
    Secret, duration,
    meaning::{
        Binding, HIDDEN, Reading, binding, boolean, bounded, count, fit, known_word, path, port,
        secret_file, strange_word, text, url, whole_secret,
    },
    raw::{Raw, Typed, Value},
    report::{Mistakes, Origin, Remark, Warning},
    table::{self, Default, Row},
};
use crate::web::Allowed;

/// Where every effective value comes from.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Origins {
    /// The config file that was read.
    pub file: Option<PathBuf>,
    pub entries: Vec<Entry>,
}

/// One effective value. For a secret it is the word `(hidden)`.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    pub row: &'static Row,
    pub value: Json,
    pub origin: Origin,
}

/// Settings with their origins and warnings, or everything that is wrong.
pub type Loaded<T> = Result<(T, Origins, Vec<Warning>), Mistakes>;

/// Reads rows, and keeps the mistakes, warnings and values that it finds.
pub(super) struct Reader<'a> {
    pub(super) raw: &'a Raw,
    mistakes: Vec<Remark>,
    warnings: Vec<Remark>,
    pub(super) entries: Vec<Entry>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(raw: &'a Raw) -> Self {
        Self {
            raw,
            mistakes: raw.mistakes.clone(),
            warnings: raw.warnings.clone(),
            entries: Vec::new(),
        }
    }

    /// What was read, or all mistakes if there are any.
    pub(super) fn done<T>(mut self, settings: Option<T>) -> Loaded<T> {
        // Two loads may have rows in common.
        distinct(&mut self.mistakes);
        distinct(&mut self.warnings);
        distinct(&mut self.entries);
        match settings {
            Some(settings) if self.mistakes.is_empty() => {
                let position =
                    |entry: &Entry| table::ALL.iter().position(|row| row.key == entry.row.key);
                self.entries.sort_by_key(position);
                let origins = Origins {
                    file: self.raw.path.clone(),
                    entries: self.entries,
                };
                Ok((settings, origins, self.warnings))
            }
            _ => Err(Mistakes {
                mistakes: self.mistakes,
                warnings: self.warnings,
            }),
        }
    }

    pub(super) fn port(&mut self, row: &'static Row) -> Option<u16> {
        self.read(row, port)
    }

    pub(super) fn binding(&mut self, row: &'static Row) -> Option<Binding> {
        self.read(row, binding)
    }

    pub(super) fn bool(&mut self, row: &'static Row) -> Option<bool> {
        self.read(row, boolean)
    }

    pub(super) fn path(&mut self, row: &'static Row) -> Option<PathBuf> {
        self.read(row, path)
    }

    pub(super) fn url(&mut self, row: &'static Row) -> Option<Option<String>> {
        self.read(row, url)
    }

    pub(super) fn duration(&mut self, row: &'static Row) -> Option<Duration> {
        let kind = row.kind;
        self.read(row, |typed, origin| bounded(kind, typed, origin))
    }

    pub(super) fn count(&mut self, row: &'static Row) -> Option<u32> {
        let kind = row.kind;
        self.read(row, |typed, _| count(kind, typed))
    }

    /// A duration that is a number of seconds on the wire.
    pub(super) fn whole_seconds(&mut self, row: &'static Row) -> Option<Duration> {
        let kind = row.kind;
        self.read(row, |typed, origin| {
            let mut reading = bounded(kind, typed, origin)?;
            let whole = Duration::from_secs(reading.meaning.as_secs());
            if whole != reading.meaning {
                let shown = duration::show(whole);
                reading.odd = Some(format!("only whole seconds count: taken as {shown}"));
                reading.meaning = whole;
                reading.plain = shown.into();
            }
            Ok(reading)
        })
    }

    /// A path, or `None` if it is empty.
    pub(super) fn optional_path(&mut self, row: &'static Row) -> Option<Option<PathBuf>> {
        self.read(row, |typed, origin| {
            let path = |text: String| (!text.is_empty()).then(|| PathBuf::from(text));
            Ok(text(typed, origin)?.map(path))
        })
    }

    /// A text, or `None` if it is empty.
    pub(super) fn optional_text(&mut self, row: &'static Row) -> Option<Option<String>> {
        self.read(row, |typed, origin| {
            Ok(text(typed, origin)?.map(|text| Some(text).filter(|text| !text.is_empty())))
        })
    }

    /// One of the row's words; any other is a mistake.
    pub(super) fn word(&mut self, row: &'static Row) -> Option<&'static str> {
        self.read(row, |typed, _| {
            let word = known_word(row, typed).ok_or_else(|| strange_word(row, typed))?;
            Ok(Reading::new(word, word))
        })
    }

    /// One of the row's words. Any other word means `fallback`, as in the Go program, and is warned
    /// about.
    pub(super) fn lenient_word(
        &mut self,
        row: &'static Row,
        fallback: &'static str,
    ) -> Option<&'static str> {
        self.read(row, |typed, _| {
            Ok(match known_word(row, typed) {
                Some(word) => Reading::new(word, word),
                None => Reading::new(fallback, fallback).odd(Some(format!(
                    "{}; taken as {fallback}",
                    strange_word(row, typed)
                ))),
            })
        })
    }

    /// A list separated by commas or blanks; in a file it may also be a list of the file's format.
    pub(super) fn words<T>(
        &mut self,
        row: &'static Row,
        meaning: impl Fn(&str) -> Result<T, String>,
    ) -> Option<Vec<T>>
    where
        T: ToString,
    {
        let typed = self.typed(row);
        let texts = match &typed.value {
            Value::List(list) => list.clone(),
            Value::Text(text) => vec![text.clone()],
        };
        let mut words = Vec::new();
        let mut fine = true;
        for word in texts
            .iter()
            .flat_map(|text| text.split([',', ' ', '\t', '\n', '\r']))
            .filter(|word| !word.is_empty())
        {
            match fit(word).and_then(|()| meaning(word)) {
                Ok(word) => words.push(word),
                Err(sentence) => {
                    fine = false;
                    self.mistakes.push(Remark {
                        origin: typed.origin.clone(),
                        value: Some(word.to_owned()),
                        sentence,
                    });
                }
            }
        }
        self.entries.push(Entry {
            row,
            value: words.iter().map(ToString::to_string).collect(),
            origin: typed.origin,
        });
        fine.then_some(words)
    }

    /// A list of what is allowed; `*` allows everything.
    pub(super) fn allowed<T: std::fmt::Display>(
        &mut self,
        row: &'static Row,
        one: impl Fn(&str) -> Result<T, String>,
    ) -> Option<Vec<Allowed<T>>> {
        let allowed = self.words(row, |word| Allowed::parse(word, &one))?;
        if allowed.iter().any(|one| matches!(one, Allowed::Any)) {
            let sentence = "* switches this protection off: any web page may then use its \
                            visitor's identity here; name those that are meant";
            self.warn(self.typed(row).origin, sentence.into());
        }
        Some(allowed)
    }

    /// A secret, or `file:PATH` of a file that holds it. No remark contains its text.
    pub(super) fn secret(&mut self, row: &'static Row) -> Option<Option<Secret>> {
        self.any_secret(row, false)
    }

    /// A secret that may contain blanks.
    pub(super) fn secret_with_blanks(&mut self, row: &'static Row) -> Option<Option<Secret>> {
        self.any_secret(row, true)
    }

    fn any_secret(&mut self, row: &'static Row, blanks: bool) -> Option<Option<Secret>> {
        let typed = self.typed(row);
        let Value::Text(text) = &typed.value else {
            self.mistakes.push(Remark {
                origin: typed.origin,
                value: None,
                sentence: "one value, not a list".into(),
            });
            return None;
        };
        let read = match text.strip_prefix("file:") {
            Some(path) => secret_file(Path::new(path)),
            None => {
                if let Origin::Flag(_) = typed.origin
                    && !text.is_empty()
                {
                    self.warnings.push(Remark {
                        origin: typed.origin.clone(),
                        value: None,
                        sentence: format!(
                            "everybody on this machine can read it in the list of processes; \
                             use {} or file:PATH",
                            row.file_variable().unwrap_or_default()
                        ),
                    });
                }
                Ok(Secret::new(text.trim_end_matches(['\r', '\n'])))
            }
        };
        match read.and_then(|secret| whole_secret(&secret, blanks).map(|()| secret)) {
            Ok(secret) => {
                let secret = Some(secret).filter(|secret| !secret.reveal().is_empty());
                self.entries.push(Entry {
                    row,
                    value: if secret.is_some() { HIDDEN } else { "" }.into(),
                    origin: typed.origin,
                });
                Some(secret)
            }
            Err(sentence) => {
                self.mistakes.push(Remark {
                    origin: typed.origin,
                    value: None,
                    sentence,
                });
                None
            }
        }
    }

    /// Reads a row whose value is one text.
    pub(super) fn read<T>(
        &mut self,
        row: &'static Row,
        meaning: impl FnOnce(&str, &Origin) -> Result<Reading<T>, String>,
    ) -> Option<T> {
        let typed = self.typed(row);
        let (value, result) = match &typed.value {
            Value::List(_) => (None, Err("one value, not a list".to_owned())),
            Value::Text(text) => (
                Some(text.clone()),
                fit(text).and_then(|()| meaning(text, &typed.origin)),
            ),
        };
        let remark = |sentence| Remark {
            origin: typed.origin.clone(),
            value,
            sentence,
        };
        match result {
            Ok(reading) => {
                if let Some(odd) = reading.odd {
                    self.warnings.push(remark(odd));
                }
                self.entries.push(Entry {
                    row,
                    value: reading.plain,
                    origin: typed.origin,
                });
                Some(reading.meaning)
            }
            Err(sentence) => {
                self.mistakes.push(remark(sentence));
                None
            }
        }
    }

    /// Whether the setting is typed anywhere. If not, its default applies.
    pub(super) fn is_typed(&self, row: &Row) -> bool {
        self.raw.typed(row).is_some()
    }

    /// What is typed for the setting, or its default.
    pub(super) fn typed(&self, row: &Row) -> Typed {
        let default = match row.default {
            Default::Text(text) => text,
            Default::Derived(_) | Default::Empty => "",
        };
        self.raw.typed(row).cloned().unwrap_or(Typed {
            value: default.into(),
            origin: Origin::Default,
        })
    }

    /// Records the value of a setting that is made from others.
    pub(super) fn derived(&mut self, row: &'static Row, value: &str) {
        self.entries.push(Entry {
            row,
            value: value.into(),
            origin: Origin::Default,
        });
    }

    pub(super) fn warn(&mut self, origin: Origin, sentence: String) {
        self.warnings.push(Remark {
            origin,
            value: None,
            sentence,
        });
    }

    pub(super) fn mistake(&mut self, row: &Row, value: Option<String>, sentence: String) {
        self.mistakes.push(Remark {
            origin: self.typed(row).origin,
            value,
            sentence,
        });
    }
}

fn distinct<T: PartialEq>(list: &mut Vec<T>) {
    let mut seen: Vec<T> = Vec::new();
    for item in list.drain(..) {
        if !seen.contains(&item) {
            seen.push(item);
        }
    }
    *list = seen;
}
