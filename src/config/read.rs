//! Reads rows: what was given for a setting, or its default, becomes a checked value.
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
    parse::{
        Binding, HIDDEN, ParsedValue, binding, boolean, bounded, check_secret, check_text, count,
        match_word, path, port, secret_file, text, unknown_word, url,
    },
    raw::{GivenValue, RawSettings, RawValue},
    report::{InvalidSettings, Remark, ValueOrigin},
    table::{self, DefaultValue, Row},
};
use crate::web::Allowed;

/// Where every effective value comes from.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ValueOrigins {
    /// The config file that was read.
    pub file: Option<PathBuf>,
    pub entries: Vec<EffectiveValue>,
}

/// One effective value. For a secret it is the word `(hidden)`.
#[derive(Debug, Clone, PartialEq)]
pub struct EffectiveValue {
    pub row: &'static Row,
    pub value: Json,
    pub origin: ValueOrigin,
}

/// Settings with their origins and warnings, or everything that is wrong.
pub type LoadResult<T> = Result<(T, ValueOrigins, Vec<Remark>), InvalidSettings>;

/// Reads rows, and keeps the mistakes, warnings and values that it finds.
pub(super) struct SettingsReader<'a> {
    pub(super) raw: &'a RawSettings,
    mistakes: Vec<Remark>,
    warnings: Vec<Remark>,
    pub(super) entries: Vec<EffectiveValue>,
}

impl<'a> SettingsReader<'a> {
    pub(super) fn new(raw: &'a RawSettings) -> Self {
        Self {
            raw,
            mistakes: raw.mistakes.clone(),
            warnings: raw.warnings.clone(),
            entries: Vec::new(),
        }
    }

    /// What was read, or all mistakes if there are any.
    pub(super) fn done<T>(mut self, settings: Option<T>) -> LoadResult<T> {
        // Two loads may have rows in common.
        distinct(&mut self.mistakes);
        distinct(&mut self.warnings);
        distinct(&mut self.entries);
        match settings {
            Some(settings) if self.mistakes.is_empty() => {
                let position = |entry: &EffectiveValue| {
                    table::ALL.iter().position(|row| row.key == entry.row.key)
                };
                self.entries.sort_by_key(position);
                let origins = ValueOrigins {
                    file: self.raw.path.clone(),
                    entries: self.entries,
                };
                Ok((settings, origins, self.warnings))
            }
            _ => Err(InvalidSettings {
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
        self.read(row, |input, origin| bounded(kind, input, origin))
    }

    pub(super) fn count(&mut self, row: &'static Row) -> Option<u32> {
        let kind = row.kind;
        self.read(row, |input, _| count(kind, input))
    }

    /// A duration that is a number of seconds on the wire.
    pub(super) fn whole_seconds(&mut self, row: &'static Row) -> Option<Duration> {
        let kind = row.kind;
        self.read(row, |input, origin| {
            let mut parsed = bounded(kind, input, origin)?;
            let whole = Duration::from_secs(parsed.value.as_secs());
            if whole != parsed.value {
                let shown = duration::format(whole);
                parsed.warning = Some(format!("only whole seconds count: taken as {shown}"));
                parsed.value = whole;
                parsed.shown = shown.into();
            }
            Ok(parsed)
        })
    }

    /// A path, or `None` if it is empty.
    pub(super) fn optional_path(&mut self, row: &'static Row) -> Option<Option<PathBuf>> {
        self.read(row, |input, origin| {
            let path = |text: String| (!text.is_empty()).then(|| PathBuf::from(text));
            Ok(text(input, origin)?.map(path))
        })
    }

    /// A text, or `None` if it is empty.
    pub(super) fn optional_text(&mut self, row: &'static Row) -> Option<Option<String>> {
        self.read(row, |input, origin| {
            Ok(text(input, origin)?.map(|text| Some(text).filter(|text| !text.is_empty())))
        })
    }

    /// One of the row's words; any other is a mistake.
    pub(super) fn word(&mut self, row: &'static Row) -> Option<&'static str> {
        self.read(row, |input, _| {
            let word = match_word(row, input).ok_or_else(|| unknown_word(row, input))?;
            Ok(ParsedValue::new(word, word))
        })
    }

    /// One of the row's words. Any other word means `fallback`, as in the Go program, and is warned
    /// about.
    pub(super) fn word_or(
        &mut self,
        row: &'static Row,
        fallback: &'static str,
    ) -> Option<&'static str> {
        self.read(row, |input, _| {
            Ok(match match_word(row, input) {
                Some(word) => ParsedValue::new(word, word),
                None => ParsedValue::new(fallback, fallback).with_warning(Some(format!(
                    "{}; taken as {fallback}",
                    unknown_word(row, input)
                ))),
            })
        })
    }

    /// A list separated by commas or blanks; in a file it may also be a list of the file's format.
    pub(super) fn words<T>(
        &mut self,
        row: &'static Row,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<Vec<T>>
    where
        T: ToString,
    {
        self.list(row, false, parse)
    }

    /// The same, but each value of a list in a file is taken as it is, with commas and blanks.
    pub(super) fn whole_words<T>(
        &mut self,
        row: &'static Row,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<Vec<T>>
    where
        T: ToString,
    {
        self.list(row, true, parse)
    }

    fn list<T>(
        &mut self,
        row: &'static Row,
        whole: bool,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<Vec<T>>
    where
        T: ToString,
    {
        let given = self.lookup(row);
        let split = |text: &String| {
            text.split([',', ' ', '\t', '\n', '\r'])
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        let texts: Vec<String> = match (&given.value, &given.origin) {
            (RawValue::List(list), ValueOrigin::File { .. }) if whole => list.clone(),
            (RawValue::List(list), _) => list.iter().flat_map(split).collect(),
            (RawValue::Text(text), _) => split(text),
        };
        let mut words = Vec::new();
        let mut fine = true;
        for word in texts.iter().filter(|word| !word.is_empty()) {
            match check_text(word).and_then(|()| parse(word)) {
                Ok(word) => words.push(word),
                Err(sentence) => {
                    fine = false;
                    self.mistakes.push(Remark {
                        origin: given.origin.clone(),
                        value: Some(word.to_owned()),
                        sentence,
                    });
                }
            }
        }
        self.entries.push(EffectiveValue {
            row,
            value: words.iter().map(ToString::to_string).collect(),
            origin: given.origin,
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
            self.warn(self.lookup(row).origin, sentence.into());
        }
        Some(allowed)
    }

    /// A secret, or `file:PATH` of a file that holds it. No remark contains its text.
    pub(super) fn secret(&mut self, row: &'static Row) -> Option<Option<Secret>> {
        self.read_secret(row, false)
    }

    /// A secret that may contain blanks.
    pub(super) fn secret_with_blanks(&mut self, row: &'static Row) -> Option<Option<Secret>> {
        self.read_secret(row, true)
    }

    fn read_secret(&mut self, row: &'static Row, blanks: bool) -> Option<Option<Secret>> {
        let given = self.lookup(row);
        let RawValue::Text(text) = &given.value else {
            self.mistakes.push(Remark {
                origin: given.origin,
                value: None,
                sentence: "one value, not a list".into(),
            });
            return None;
        };
        let read = match text.strip_prefix("file:") {
            Some(path) => secret_file(Path::new(path)),
            None => {
                if let ValueOrigin::Flag(_) = given.origin
                    && !text.is_empty()
                {
                    self.warnings.push(Remark {
                        origin: given.origin.clone(),
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
        match read.and_then(|secret| check_secret(&secret, blanks).map(|()| secret)) {
            Ok(secret) => {
                let secret = Some(secret).filter(|secret| !secret.reveal().is_empty());
                self.entries.push(EffectiveValue {
                    row,
                    value: if secret.is_some() { HIDDEN } else { "" }.into(),
                    origin: given.origin,
                });
                Some(secret)
            }
            Err(sentence) => {
                self.mistakes.push(Remark {
                    origin: given.origin,
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
        parse: impl FnOnce(&str, &ValueOrigin) -> Result<ParsedValue<T>, String>,
    ) -> Option<T> {
        let given = self.lookup(row);
        let (value, result) = match &given.value {
            RawValue::List(_) => (None, Err("one value, not a list".to_owned())),
            RawValue::Text(text) => (
                Some(text.clone()),
                check_text(text).and_then(|()| parse(text, &given.origin)),
            ),
        };
        let remark = |sentence| Remark {
            origin: given.origin.clone(),
            value,
            sentence,
        };
        match result {
            Ok(parsed) => {
                if let Some(warning) = parsed.warning {
                    self.warnings.push(remark(warning));
                }
                self.entries.push(EffectiveValue {
                    row,
                    value: parsed.shown,
                    origin: given.origin,
                });
                Some(parsed.value)
            }
            Err(sentence) => {
                self.mistakes.push(remark(sentence));
                None
            }
        }
    }

    /// Whether the setting is given anywhere. If not, its default applies.
    pub(super) fn is_set(&self, row: &Row) -> bool {
        self.raw.given(row).is_some()
    }

    /// What was given for the setting, or its default.
    pub(super) fn lookup(&self, row: &Row) -> GivenValue {
        let default = match row.default {
            DefaultValue::Text(text) => text,
            DefaultValue::Derived(_) | DefaultValue::Empty => "",
        };
        self.raw.given(row).cloned().unwrap_or(GivenValue {
            value: default.into(),
            origin: ValueOrigin::Default,
        })
    }

    /// Records the value of a setting that is made from others.
    pub(super) fn derived(&mut self, row: &'static Row, value: &str) {
        self.entries.push(EffectiveValue {
            row,
            value: value.into(),
            origin: ValueOrigin::Default,
        });
    }

    pub(super) fn warn(&mut self, origin: ValueOrigin, sentence: String) {
        self.warnings.push(Remark {
            origin,
            value: None,
            sentence,
        });
    }

    pub(super) fn mistake(&mut self, row: &Row, value: Option<String>, sentence: String) {
        self.mistakes.push(Remark {
            origin: self.lookup(row).origin,
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
