//! What was typed, with its origin, before anybody asks what it means.
//!
//! Three layers: flags win over the environment, the environment over the file. Defaults are not a layer here: they belong to the
//! table. Invariants: an empty variable counts as unset; a key or variable that no row of the table has is told, with the name
//! that was probably meant; neither `Debug` nor a remark shows a value that may be a secret.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fmt,
    path::{Path, PathBuf},
};

use super::{
    file::{self, Found},
    report::{Origin, Remark},
    table::{self, Row},
};

/// The value of a setting as typed.
#[derive(Clone, PartialEq, Eq)]
pub enum Value {
    List(Vec<String>),
    Text(String),
}

/// The shape alone: the value may be a secret.
impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::List(_) => "List(…)",
            Self::Text(_) => "Text(…)",
        })
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

/// A value and where it was typed.
#[derive(Clone, PartialEq, Eq)]
pub struct Typed {
    pub value: Value,
    pub origin: Origin,
}

/// The origin alone: the value may be a secret.
impl fmt::Debug for Typed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Typed({})", self.origin)
    }
}

/// The environment of the process, or what a test puts in its place.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Environment(BTreeMap<OsString, OsString>);

impl Environment {
    pub fn of_process() -> Self {
        Self(std::env::vars_os().collect())
    }

    /// The value of a variable; an empty one counts as unset.
    pub fn value(&self, name: &str) -> Option<&OsStr> {
        self.0
            .get(OsStr::new(name))
            .map(OsString::as_os_str)
            .filter(|value| !value.is_empty())
    }

    /// The same as text; bytes that are none count as unset.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.value(name)?.to_str()
    }
}

impl<K: Into<OsString>, V: Into<OsString>> FromIterator<(K, V)> for Environment {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(variables: I) -> Self {
        Self(
            variables
                .into_iter()
                .map(|(name, value)| (name.into(), value.into()))
                .collect(),
        )
    }
}

/// The names alone: a value may be a secret.
impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// The flags that were given.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Flags(BTreeMap<&'static str, Typed>);

impl Flags {
    /// `name` is the flag as typed, with its dashes.
    pub fn give(&mut self, row: &'static Row, name: impl Into<String>, value: Value) {
        self.0.insert(
            row.key,
            Typed {
                value,
                origin: Origin::Flag(name.into()),
            },
        );
    }
}

impl fmt::Debug for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        show_origins(&self.0, f)
    }
}

/// Variables by which a tsnet program is told how to log in. Two of them are TailSTS's as well, with another meaning.
static NOT_READ: [(&str, &Row); 5] = [
    ("TS_AUDIENCE", &table::TS_AUDIENCE),
    ("TS_CLIENT_ID", &table::TS_CLIENT_ID),
    ("TS_CLIENT_SECRET", &table::TS_CLIENT_SECRET),
    ("TS_CONTROL_URL", &table::TS_CONTROL_URL),
    ("TS_ID_TOKEN", &table::TS_ID_TOKEN),
];

const OF_TAILSTS: [&str; 2] = ["TS_CLIENT_ID", "TS_CLIENT_SECRET"];

/// The three layers.
#[derive(Clone, Default)]
pub struct Raw {
    flags: BTreeMap<&'static str, Typed>,
    variables: BTreeMap<&'static str, Typed>,
    file: BTreeMap<&'static str, Typed>,
    pub(super) no_color: bool,
    pub(super) json_logging: bool,
    /// Variables of tsnet's that are set and not read, each with the setting that stands in its place.
    pub(super) of_tsnet: Vec<(&'static str, &'static Row)>,
    pub(super) path: Option<PathBuf>,
    pub(super) mistakes: Vec<Remark>,
    pub(super) warnings: Vec<Remark>,
}

impl fmt::Debug for Raw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for layer in [&self.flags, &self.variables, &self.file] {
            show_origins(layer, f)?;
        }
        Ok(())
    }
}

fn show_origins(layer: &BTreeMap<&'static str, Typed>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    f.debug_map()
        .entries(
            layer
                .iter()
                .map(|(key, typed)| (key, typed.origin.to_string())),
        )
        .finish()
}

impl Raw {
    /// Reads the environment and the file (`config`, else the one in the home directory). What is wrong with them is kept for the
    /// loader, which tells it together with everything else.
    pub fn collect(flags: Flags, environment: &Environment, config: Option<&Path>) -> Self {
        let mut raw = Self {
            flags: flags.0,
            no_color: environment.value("NO_COLOR").is_some(),
            ..Self::default()
        };
        raw.take_variables(environment);
        raw.warn_of_strange_variables(environment);
        match file::locate(config, environment.value("HOME"), &mut raw.warnings) {
            Ok(Some(found)) => raw.take_file(&found),
            Ok(None) => {}
            Err(mistake) => raw.mistakes.push(mistake),
        }
        raw.take_aliases(environment);
        raw
    }

    /// The key by the names that tsnet gives it. TailSTS's variables, for those who swap it for our `sts` component. Their names are so common (`PORT`) that they mean nothing
    /// where that component does not run. And OpenTelemetry's ([`super::otel`]).
    fn take_aliases(&mut self, environment: &Environment) {
        self.take_otel(environment);
        // What every tsnet program reads, where nothing to log in with was typed for this one.
        let ours = [
            &table::TS_AUTHKEY,
            &table::TS_CLIENT_ID,
            &table::TS_CLIENT_SECRET,
        ];
        if ours.iter().all(|row| self.typed(row).is_none()) {
            self.take_alias(&table::TS_AUTHKEY, environment);
        }
        let components = self.typed(&table::COMPONENTS).map(|typed| &typed.value);
        let runs = |text: &String| {
            text.split(|c: char| c == ',' || c.is_whitespace())
                .any(|word| word.eq_ignore_ascii_case("sts"))
        };
        let sts = match components {
            Some(Value::Text(text)) => runs(text),
            Some(Value::List(texts)) => texts.iter().any(runs),
            None => false,
        };
        self.of_tsnet = NOT_READ
            .into_iter()
            .filter(|(name, _)| !(sts && OF_TAILSTS.contains(name)))
            .filter(|(name, _)| environment.value(name).is_some())
            .collect();
        if !sts {
            return;
        }
        let json = environment.text("JSON_LOGGING");
        self.json_logging =
            json.is_some_and(|word| matches!(word, "1" | "t" | "T" | "true" | "TRUE" | "True"));
        for row in table::ALL.iter().filter(|row| row.key.starts_with("sts.")) {
            self.take_alias(row, environment);
        }
    }

    pub(super) fn take_alias(&mut self, row: &'static Row, environment: &Environment) {
        let typed = row
            .aliases
            .iter()
            .find_map(|name| Some((name, environment.text(name)?)));
        if let Some((name, text)) = typed {
            self.variables.entry(row.key).or_insert_with(|| Typed {
                value: Value::Text(text.to_owned()),
                origin: Origin::Variable((*name).to_owned()),
            });
        }
    }

    /// What was typed for a setting, from the strongest layer that has it.
    pub(super) fn typed(&self, row: &Row) -> Option<&Typed> {
        [&self.flags, &self.variables, &self.file]
            .into_iter()
            .find_map(|layer| layer.get(row.key))
    }

    fn take_variables(&mut self, environment: &Environment) {
        for row in table::ALL {
            let plain = row.variable();
            let file = row
                .file_variable()
                .filter(|name| environment.value(name).is_some());
            let (name, value) = match (environment.value(&plain), file) {
                (None, None) => continue,
                (Some(_), Some(file)) => {
                    self.mistakes.push(Remark {
                        origin: Origin::Variable(plain),
                        value: None,
                        sentence: format!("{file} is set too: keep one of the two"),
                    });
                    continue;
                }
                (Some(value), None) => (plain, value.to_str().map(str::to_owned)),
                (None, Some(name)) => {
                    let path = environment.value(&name).and_then(OsStr::to_str);
                    let value = path.map(|path| format!("file:{path}"));
                    (name, value)
                }
            };
            let origin = Origin::Variable(name);
            match value {
                Some(text) => {
                    let value = Value::Text(text);
                    self.variables.insert(row.key, Typed { value, origin });
                }
                None => self.mistakes.push(Remark {
                    origin,
                    value: None,
                    sentence: "not text in UTF-8".into(),
                }),
            }
        }
    }

    /// A misspelt variable is a setting that silently does not hold, so it is told. It is no mistake: others may own names that
    /// begin with `TB_` (a Kubernetes service called `tb` makes a dozen).
    fn warn_of_strange_variables(&mut self, environment: &Environment) {
        let mut known: Vec<String> = table::ALL.iter().map(|row| row.variable()).collect();
        known.extend(table::ALL.iter().filter_map(|row| row.file_variable()));
        let groups = table::groups();
        for name in environment.0.keys() {
            let Some(name) = name.to_str().filter(|name| name.starts_with("TB_")) else {
                continue;
            };
            if known.iter().any(|known| known == name) || environment.value(name).is_none() {
                continue;
            }
            let group = groups.iter().find(|group| table::variable(group) == name);
            let sentence = match (group, suggestion(name, known.iter().map(String::as_str))) {
                (Some(group), _) => format!(
                    "names the group {group}, not a setting, and is not read (the Go program lost the group's settings over it)"
                ),
                (None, Some(meant)) => format!("no such setting, not read; did you mean {meant}?"),
                (None, None) if name == "TB_CONFIG" => {
                    "not read; name the config file with --config".into()
                }
                (None, None) => "no such setting, not read".into(),
            };
            self.warnings.push(Remark {
                origin: Origin::Variable(name.to_owned()),
                value: None,
                sentence,
            });
        }
    }

    fn take_file(&mut self, found: &Found) {
        let items = match file::read(found) {
            Ok(items) => items,
            Err(mistake) => {
                self.mistakes.push(mistake);
                return;
            }
        };
        self.path = Some(found.path.clone());
        for item in items {
            let origin = Origin::File {
                path: found.path.clone(),
                key: Some(item.key.clone()),
            };
            let Some(row) = table::find(&item.key) else {
                self.mistakes.push(Remark {
                    origin,
                    value: None,
                    sentence: unknown_key(&item.key),
                });
                continue;
            };
            let typed = Typed {
                value: item.value,
                origin: origin.clone(),
            };
            if self.file.insert(row.key, typed).is_some() {
                self.mistakes.push(Remark {
                    origin,
                    value: None,
                    sentence: "set twice in this file".into(),
                });
            }
        }
    }
}

fn unknown_key(key: &str) -> String {
    let lower = key.to_ascii_lowercase();
    if table::groups()
        .iter()
        .any(|group| group.eq_ignore_ascii_case(key))
    {
        return "is a group of settings, not a setting".into();
    }
    match suggestion(&lower, table::ALL.iter().map(|row| row.key)) {
        Some(meant) => format!("no such setting; did you mean {meant}?"),
        None => "no such setting".into(),
    }
}

/// The known name that was probably meant, if one is near enough.
pub(super) fn suggestion<'a>(
    typed: &str,
    known: impl Iterator<Item = &'a str> + Clone,
) -> Option<&'a str> {
    let plain = |name: &str| name.to_ascii_lowercase().replace(['.', '-', '_'], "");
    let wanted = plain(typed);
    let near = known
        .clone()
        .map(|name| (strsim::osa_distance(&wanted, &plain(name)), name))
        .min_by_key(|(distance, _)| *distance)
        .filter(|(distance, _)| *distance <= (wanted.len() / 4).clamp(1, 4))
        .map(|(_, name)| name);
    // The right word in the wrong group: server.hostname for server.tailscale.hostname.
    let last = |name: &str| {
        name.rsplit(['.', '_'])
            .next()
            .unwrap_or_default()
            .to_ascii_lowercase()
    };
    near.or_else(|| {
        let mut same = known.filter(|name| last(name) == last(typed));
        same.next().filter(|_| same.next().is_none())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suggests_what_was_probably_meant() {
        let keys = || table::ALL.iter().map(|row| row.key);
        for (typed, meant) in [
            ("server.prot", Some("server.port")),
            ("keys.key-path", Some("keys.keyPath")),
            (
                "server.tailscale.auth_key",
                Some("server.tailscale.authkey"),
            ),
            ("server.hostname", Some("server.tailscale.hostname")),
            ("loglevel", Some("log.level")),
            ("colour", None),
        ] {
            assert_eq!(suggestion(typed, keys()), meant, "{typed}");
        }
    }

    #[test]
    fn debug_shows_no_value() {
        let mut flags = Flags::default();
        flags.give(&table::TS_AUTHKEY, "--ts-authkey", "tskey-one".into());
        let environment: Environment = [("TB_SERVER_TAILSCALE_AUTHKEY", "tskey-two")]
            .into_iter()
            .collect();
        let shown = format!("{flags:?} {environment:?}");
        let raw = format!("{:?}", Raw::collect(flags, &environment, None));
        assert!(shown.contains("TB_SERVER_TAILSCALE_AUTHKEY"), "{shown}");
        assert!(raw.contains("flag --ts-authkey"), "{raw}");
        assert!(
            !shown.contains("tskey") && !raw.contains("tskey"),
            "{shown} {raw}"
        );
    }
}
