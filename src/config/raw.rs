//! What was given, with its origin; `read.rs` asks what it means.
//!
//! There are three layers: flags win over the environment, the environment over the file. Defaults
//! are in the table.
//!
//! Invariants
//! - An empty variable counts as unset.
//! - A key or variable that the table does not have is reported, with the name that was probably
//!   meant.
//! - Neither `Debug` nor a remark shows a value that may be a secret.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fmt,
    path::{Path, PathBuf},
};

use tailbone_telemetry::otlp::Signals;

use super::{
    file::{self, ConfigFile, FileFormat},
    report::{Remark, ValueOrigin},
    sections::{
        components::{self, Component},
        sts, tailscale,
    },
    table::{self, Row},
    tsiam::{self, Owner},
};

/// The value of a setting, as it was given.
#[derive(Clone, PartialEq, Eq)]
pub enum RawValue {
    List(Vec<String>),
    Text(String),
}

/// Shows the shape only, because the value may be a secret.
impl fmt::Debug for RawValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::List(_) => "List(…)",
            Self::Text(_) => "Text(…)",
        })
    }
}

impl From<&str> for RawValue {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

/// A value and where it comes from.
#[derive(Clone, PartialEq, Eq)]
pub struct GivenValue {
    pub value: RawValue,
    pub origin: ValueOrigin,
}

/// Shows the origin only, because the value may be a secret.
impl fmt::Debug for GivenValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Typed({})", self.origin)
    }
}

/// The environment of the process, or that of a test.
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

    /// The same as text; a value that is not UTF-8 counts as unset.
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

/// Shows the names only, because a value may be a secret.
impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// The flags that were given.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Flags(BTreeMap<&'static str, GivenValue>);

impl Flags {
    /// `name` is the flag as it was typed, with its dashes.
    pub fn set(&mut self, row: &'static Row, name: impl Into<String>, value: RawValue) {
        self.0.insert(
            row.key,
            GivenValue {
                value,
                origin: ValueOrigin::Flag(name.into()),
            },
        );
    }
}

impl fmt::Debug for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        show_origins(&self.0, f)
    }
}

/// Variables that tell other tsnet programs how to log in; this one does not read them for that.
/// Two of them are also TailSTS's, with another meaning.
static TSNET_VARIABLES: [(&str, &Row); 5] = [
    ("TS_AUDIENCE", &tailscale::AUDIENCE),
    ("TS_CLIENT_ID", &tailscale::CLIENT_ID),
    ("TS_CLIENT_SECRET", &tailscale::CLIENT_SECRET),
    ("TS_CONTROL_URL", &tailscale::CONTROL_URL),
    ("TS_ID_TOKEN", &tailscale::ID_TOKEN),
];

const TAILSTS_VARIABLES: [&str; 2] = ["TS_CLIENT_ID", "TS_CLIENT_SECRET"];

/// The three layers.
#[derive(Clone, Default)]
pub struct RawSettings {
    flags: BTreeMap<&'static str, GivenValue>,
    variables: BTreeMap<&'static str, GivenValue>,
    file: BTreeMap<&'static str, GivenValue>,
    pub(super) no_color: bool,
    pub(super) json_logging: bool,
    pub(super) otlp_signals: Signals,
    /// Those of [`TSNET_VARIABLES`] that are set, each with the setting to use in its place.
    pub(super) unread_variables: Vec<(&'static str, &'static Row)>,
    pub(super) path: Option<PathBuf>,
    pub(super) mistakes: Vec<Remark>,
    pub(super) warnings: Vec<Remark>,
}

impl fmt::Debug for RawSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for layer in [&self.flags, &self.variables, &self.file] {
            show_origins(layer, f)?;
        }
        Ok(())
    }
}

fn show_origins(
    layer: &BTreeMap<&'static str, GivenValue>,
    f: &mut fmt::Formatter<'_>,
) -> fmt::Result {
    f.debug_map()
        .entries(
            layer
                .iter()
                .map(|(key, given)| (key, given.origin.to_string())),
        )
        .finish()
}

impl RawSettings {
    /// Reads the environment and the file: `config`, or else the one in the home directory, or else
    /// tsiam's if the component runs that replaces it. Mistakes in them are kept for the reader,
    /// which reports them together with all others.
    pub fn collect(flags: Flags, environment: &Environment, config: Option<&Path>) -> Self {
        let mut raw = Self {
            flags: flags.0,
            no_color: environment.value("NO_COLOR").is_some(),
            ..Self::default()
        };
        raw.take_variables(environment);
        raw.warn_of_unknown_variables(environment);
        match file::locate(config, environment.value("HOME"), &mut raw.warnings) {
            Ok(Some(found)) => raw.take_file(&found, environment),
            Ok(None) if raw.runs(Component::Workload) => raw.search_tsiam(environment),
            Ok(None) => {}
            Err(mistake) => raw.mistakes.push(mistake),
        }
        raw.take_aliases(environment);
        raw
    }

    /// The same with the text of a file in place of one on a disk, for tests/fuzz.
    pub(super) fn of_text(text: &str, found: &ConfigFile, environment: &Environment) -> Self {
        let mut raw = Self::default();
        raw.take_variables(environment);
        raw.take_text(found, text, environment);
        raw.take_aliases(environment);
        raw
    }

    /// What tsiam's file alone says: `config`, or else the one that tsiam would find. `None`: there
    /// is none.
    pub(super) fn of_tsiam(environment: &Environment, config: Option<&Path>) -> Option<Self> {
        let mut raw = Self::default();
        match config {
            Some(path) => raw.take_tsiam(path),
            None => raw.search_tsiam(environment),
        }
        (raw.path.is_some() || !raw.mistakes.is_empty()).then_some(raw)
    }

    /// Whether neither a variable nor a file has said anything, not even a mistake.
    pub(super) fn is_untouched(&self) -> bool {
        self.variables.is_empty() && self.file.is_empty() && self.mistakes.is_empty()
    }

    /// Reads the variables of other programs: OpenTelemetry's (`otel.rs`), tsnet's names of the
    /// auth key, and TailSTS's, for those who replace it with our `sts` component. Some names of
    /// TailSTS are so common (`PORT`) that they are read only if that component runs.
    fn take_aliases(&mut self, environment: &Environment) {
        self.take_otel(environment);
        // Every tsnet program reads these; they apply if none of our credentials is set.
        let ours = [
            &tailscale::AUTHKEY,
            &tailscale::CLIENT_ID,
            &tailscale::CLIENT_SECRET,
        ];
        if ours.iter().all(|row| self.given(row).is_none()) {
            self.take_alias(&tailscale::AUTHKEY, environment);
        }
        if self.runs(Component::Oidc) {
            self.take_tsidp(environment);
        }
        let sts = self.runs(Component::Sts);
        self.unread_variables = TSNET_VARIABLES
            .into_iter()
            .filter(|(name, _)| !(sts && TAILSTS_VARIABLES.contains(name)))
            .filter(|(name, _)| environment.value(name).is_some())
            .collect();
        if !sts {
            return;
        }
        let json = environment.text("JSON_LOGGING");
        self.json_logging =
            json.is_some_and(|word| matches!(word, "1" | "t" | "T" | "true" | "TRUE" | "True"));
        for row in sts::ROWS {
            self.take_alias(row, environment);
        }
    }

    /// Whether the component is named. None of those that are asked for here runs by default.
    fn runs(&self, component: Component) -> bool {
        let named = |text: &String| {
            text.split(|c: char| c == ',' || c.is_whitespace())
                .any(|word| word.eq_ignore_ascii_case(component.name()))
        };
        match self
            .given(&components::COMPONENTS)
            .map(|given| &given.value)
        {
            Some(RawValue::Text(text)) => named(text),
            Some(RawValue::List(texts)) => texts.iter().any(named),
            None => false,
        }
    }

    pub(super) fn take_alias(&mut self, row: &'static Row, environment: &Environment) {
        let given = row
            .aliases
            .iter()
            .find_map(|name| Some((name, environment.text(name)?)));
        if let Some((name, text)) = given {
            self.variables.entry(row.key).or_insert_with(|| GivenValue {
                value: RawValue::Text(text.to_owned()),
                origin: ValueOrigin::Variable((*name).to_owned()),
            });
        }
    }

    /// Adds what a variable of another program says, unless one of ours says something.
    pub(super) fn add_variable(&mut self, row: &'static Row, given: GivenValue) {
        self.variables.entry(row.key).or_insert(given);
    }

    /// What was given for a setting, from the strongest layer that has it.
    pub(super) fn given(&self, row: &Row) -> Option<&GivenValue> {
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
                        origin: ValueOrigin::Variable(plain),
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
            let origin = ValueOrigin::Variable(name);
            match value {
                Some(text) => {
                    let value = RawValue::Text(text);
                    self.variables.insert(row.key, GivenValue { value, origin });
                }
                None => self.mistakes.push(Remark {
                    origin,
                    value: None,
                    sentence: "not text in UTF-8".into(),
                }),
            }
        }
    }

    /// Warns of variables that no setting has, because the setting that somebody meant does not
    /// apply. They are no mistakes, because other programs may have names that begin with `TB_`:
    /// Kubernetes makes a dozen for a service called `tb`.
    fn warn_of_unknown_variables(&mut self, environment: &Environment) {
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
                    "names the group {group}, not a setting, and is not read (the Go program lost \
                     the group's settings over it)"
                ),
                (None, Some(meant)) => format!("no such setting, not read; did you mean {meant}?"),
                (None, None) if name == "TB_CONFIG" => {
                    "not read; name the config file with --config".into()
                }
                (None, None) => "no such setting, not read".into(),
            };
            self.warnings.push(Remark {
                origin: ValueOrigin::Variable(name.to_owned()),
                value: None,
                sentence,
            });
        }
    }

    fn take_file(&mut self, found: &ConfigFile, environment: &Environment) {
        match file::text_of(&found.path) {
            Ok(text) => self.take_text(found, &text, environment),
            Err(mistake) => self.mistakes.push(mistake),
        }
    }

    fn take_text(&mut self, found: &ConfigFile, text: &str, environment: &Environment) {
        let items = match file::entries(found, text) {
            Ok(items) => items,
            Err(mistake) => return self.mistakes.push(mistake),
        };
        self.path = Some(found.path.clone());
        match tsiam::owner(&items) {
            Ok(Owner::Tsiam) if found.format != FileFormat::Toml => {
                return self.take_tsiam_text(&found.path, text);
            }
            Ok(_) => {}
            Err(sentence) => return self.mistakes.push(file::broken(&found.path, sentence)),
        }
        for item in items {
            let origin = ValueOrigin::File {
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
            let given = GivenValue {
                value: item.value,
                origin: origin.clone(),
            };
            if self.file.insert(row.key, given).is_some() {
                self.mistakes.push(Remark {
                    origin,
                    value: None,
                    sentence: "set twice in this file".into(),
                });
            }
        }
        if self.runs(Component::Workload) && environment.value(tsiam::VARIABLE).is_some() {
            self.warnings.push(Remark {
                origin: ValueOrigin::Variable(tsiam::VARIABLE.into()),
                value: None,
                sentence: format!(
                    "not read, since the settings are in {}",
                    found.path.display()
                ),
            });
        }
    }

    fn search_tsiam(&mut self, environment: &Environment) {
        match tsiam::locate(environment, &mut self.warnings) {
            Ok(Some(path)) => self.take_tsiam(&path),
            Ok(None) => {}
            Err(mistake) => self.mistakes.push(mistake),
        }
    }

    /// Reads a file that only tsiam's settings may be in.
    fn take_tsiam(&mut self, path: &Path) {
        self.path = Some(path.to_owned());
        let text = match file::text_of(path) {
            Ok(text) => text,
            Err(mistake) => return self.mistakes.push(mistake),
        };
        // A file that cannot be parsed is reported below.
        let items = file::parse(&text, FileFormat::Yaml).unwrap_or_default();
        match tsiam::owner(&items) {
            Ok(Owner::Tailbone) => self.mistakes.push(file::broken(
                path,
                "has settings of tailbone, not of tsiam: name it with --config".into(),
            )),
            Ok(Owner::Neither | Owner::Tsiam) => self.take_tsiam_text(path, &text),
            Err(sentence) => self.mistakes.push(file::broken(path, sentence)),
        }
    }

    fn take_tsiam_text(&mut self, path: &Path, text: &str) {
        let reading = tsiam::read(path, text);
        self.mistakes.extend(reading.mistakes);
        self.warnings.extend(reading.warnings);
        for (row, given) in reading.values {
            self.file.insert(row.key, given);
        }
        if !self.file.is_empty() && !self.runs(Component::Workload) {
            self.mistakes.push(file::broken(
                path,
                "is a config file of tsiam, which the component workload replaces: add workload \
                 to the components"
                    .into(),
            ));
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

/// The known name that was probably meant, if one is similar enough.
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
        flags.set(&tailscale::AUTHKEY, "--ts-authkey", "tskey-one".into());
        let environment: Environment = [("TB_SERVER_TAILSCALE_AUTHKEY", "tskey-two")]
            .into_iter()
            .collect();
        let shown = format!("{flags:?} {environment:?}");
        let raw = format!("{:?}", RawSettings::collect(flags, &environment, None));
        assert!(shown.contains("TB_SERVER_TAILSCALE_AUTHKEY"), "{shown}");
        assert!(raw.contains("flag --ts-authkey"), "{raw}");
        assert!(
            !shown.contains("tskey") && !raw.contains("tskey"),
            "{shown} {raw}"
        );
    }
}
