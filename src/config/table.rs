//! The table of all settings: what a row says, and what is made from the rows.
//!
//! A row has a setting's key, the flags that carry it, its default, its kind with bounds, and its
//! help. The rows themselves are in `sections/`. The command line's flags, the names of the
//! variables, `config show`, `config check` and `docs/settings.md` are made from them, so they
//! cannot disagree. A row says which texts are valid; the section's reader says what it means.

use std::time::Duration;

use super::{duration, sections};

/// One setting.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// Its name in a config file. Dots separate the names of nested tables.
    pub key: &'static str,
    pub kind: ValueKind,
    pub default: DefaultValue,
    pub help: &'static str,
    pub example: &'static str,
    flags: [Option<Flag>; 3],
    /// Variables of other programs that also carry this setting; the first one that is set counts.
    /// Those of the section `sts` count only if that component runs.
    pub aliases: &'static [&'static str],
}

impl PartialEq for Row {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
    }
}

/// A flag that carries a setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flag {
    pub long: &'static str,
    pub short: Option<char>,
    pub scope: FlagScope,
}

/// The commands that take a flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FlagScope {
    /// `keys …`, also before the last word.
    Keys,
    /// `keys generate` and `keys rotate`.
    Make,
    /// `oidc …`.
    Oidc,
    /// `policy …`.
    Policy,
    /// `keys remove`.
    Remove,
    /// Every command.
    Root,
    /// `server …`, also before the last word.
    Server,
    /// `server start`.
    Start,
}

/// Which texts are valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValueKind {
    Binding,
    Bool,
    /// A whole number within bounds, both included.
    Count {
        least: u32,
        most: u32,
    },
    /// A Go duration within bounds, both included.
    Duration {
        least: Duration,
        most: Duration,
        /// Whether `off` and `0` are allowed too; they mean the same.
        off: bool,
        /// Whether a number without a unit is allowed and means nanoseconds, as in the Go program.
        bare: bool,
    },
    /// `auto`, `off`, or bytes as the Go runtime reads them: a whole number, then nothing, `B`,
    /// `KiB`, `MiB`, `GiB` or `TiB`.
    Memory {
        least: u64,
    },
    Path,
    Port,
    Secret,
    Size(&'static [u32]),
    Text,
    Url,
    /// One of these words.
    Word(&'static [&'static str]),
    /// Words from this list, or any words if it is empty, separated by commas or blanks.
    Words(&'static [&'static str]),
}

/// The value of a setting that is not set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DefaultValue {
    /// Made from another setting; the text says how.
    Derived(&'static str),
    Empty,
    Text(&'static str),
}

pub(super) const MINUTE: Duration = Duration::from_secs(60);
pub(super) const HOUR: Duration = Duration::from_secs(3600);
pub(super) const DAY: Duration = Duration::from_secs(24 * 3600);
pub(super) const MONTH: Duration = Duration::from_secs(30 * 24 * 3600);
pub(super) const YEAR: Duration = Duration::from_secs(366 * 24 * 3600);

/// Longest value of any setting, in bytes.
pub const MAX_VALUE_BYTES: usize = 4096;

/// Makes the rows of a section, and its list of them.
macro_rules! rows {
    ($($name:ident = $row:expr;)*) => {
        $(pub static $name: $crate::config::table::Row = $row;)*

        /// The rows of this section, in the order in which they are shown.
        pub const ROWS: &[&$crate::config::table::Row] = &[$(&$name),*];
    };
}
pub(super) use rows;

/// The whole table, in the order in which it is shown.
pub static ALL: &[&Row] = &concatenated::<{ count_of(sections::ROWS) }>(sections::ROWS);

const fn count_of(sections: &[&[&Row]]) -> usize {
    let mut count = 0;
    let mut section = 0;
    while section < sections.len() {
        count += sections[section].len();
        section += 1;
    }
    count
}

/// All rows of the sections in one list. `N` is their number.
const fn concatenated<const N: usize>(sections: &[&[&'static Row]]) -> [&'static Row; N] {
    let mut all = [sections[0][0]; N];
    let mut next = 0;
    let mut section = 0;
    while section < sections.len() {
        let mut row = 0;
        while row < sections[section].len() {
            all[next] = sections[section][row];
            next += 1;
            row += 1;
        }
        section += 1;
    }
    all
}

/// A duration that the Go program had as a setting too.
pub(super) const fn legacy_duration(least: Duration, most: Duration) -> ValueKind {
    ValueKind::Duration {
        least,
        most,
        off: false,
        bare: true,
    }
}

pub(super) const fn count(least: u32, most: u32) -> ValueKind {
    ValueKind::Count { least, most }
}

pub(super) const fn duration(least: Duration, most: Duration) -> ValueKind {
    ValueKind::Duration {
        least,
        most,
        off: false,
        bare: false,
    }
}

pub(super) const fn duration_or_off(least: Duration, most: Duration) -> ValueKind {
    ValueKind::Duration {
        least,
        most,
        off: true,
        bare: false,
    }
}

pub(super) const fn row(key: &'static str, kind: ValueKind) -> Row {
    Row {
        key,
        kind,
        default: DefaultValue::Empty,
        help: "",
        example: "",
        flags: [None, None, None],
        aliases: &[],
    }
}

impl Row {
    pub(super) const fn flag(self, long: &'static str, scope: FlagScope) -> Self {
        self.with(Flag {
            long,
            short: None,
            scope,
        })
    }

    pub(super) const fn short(self, long: &'static str, short: char, scope: FlagScope) -> Self {
        self.with(Flag {
            long,
            short: Some(short),
            scope,
        })
    }

    const fn with(mut self, flag: Flag) -> Self {
        let mut free = 0;
        while self.flags[free].is_some() {
            // A flag too many is an index out of bounds, which is an error of the build.
            free += 1;
        }
        self.flags[free] = Some(flag);
        self
    }

    pub(super) const fn default(mut self, text: &'static str) -> Self {
        self.default = DefaultValue::Text(text);
        self
    }

    pub(super) const fn derived(mut self, text: &'static str) -> Self {
        self.default = DefaultValue::Derived(text);
        self
    }

    pub(super) const fn aliases(mut self, variables: &'static [&'static str]) -> Self {
        self.aliases = variables;
        self
    }

    pub(super) const fn example(mut self, text: &'static str) -> Self {
        self.example = text;
        self
    }

    pub(super) const fn help(mut self, text: &'static str) -> Self {
        self.help = text;
        self
    }

    pub fn flags(&self) -> impl Iterator<Item = &Flag> {
        self.flags.iter().flatten()
    }

    /// The flag of a command that has the flags of `scopes`.
    pub fn flag_in(&self, scopes: &[FlagScope]) -> Option<&Flag> {
        self.flags().find(|flag| scopes.contains(&flag.scope))
    }

    /// `TB_` and the key in capitals, with `_` in place of dots and dashes.
    pub fn variable(&self) -> String {
        variable(self.key)
    }

    /// The variable that names a file with the value. Only secrets have one.
    pub fn file_variable(&self) -> Option<String> {
        matches!(self.kind, ValueKind::Secret).then(|| format!("{}_FILE", self.variable()))
    }
}

/// The variable of a key, or of a group of keys.
pub fn variable(key: &str) -> String {
    format!("TB_{}", key.to_ascii_uppercase().replace(['.', '-'], "_"))
}

/// The setting with this key; capitals do not matter.
pub fn find(key: &str) -> Option<&'static Row> {
    ALL.iter()
        .copied()
        .find(|row| row.key.eq_ignore_ascii_case(key))
}

/// All groups of settings: `server`, `server.tailscale`, ...
pub fn groups() -> Vec<&'static str> {
    let mut groups: Vec<_> = ALL
        .iter()
        .flat_map(|row| row.key.match_indices('.').map(|(at, _)| &row.key[..at]))
        .collect();
    groups.sort_unstable();
    groups.dedup();
    groups
}

impl ValueKind {
    /// The valid texts, for help and for error sentences.
    pub fn description(&self) -> String {
        match self {
            Self::Binding => "auto or an IP address".into(),
            Self::Bool => "true or false".into(),
            Self::Count { least, most } => format!("number, {least} to {most}"),
            Self::Duration {
                least, most, off, ..
            } => {
                let bounds = format!(
                    "{} to {}",
                    duration::format(*least),
                    duration::format(*most)
                );
                if *off {
                    format!("duration, off or {bounds}")
                } else {
                    format!("duration, {bounds}")
                }
            }
            Self::Memory { least } => {
                format!("auto, off, or bytes such as {}MiB and more", least >> 20)
            }
            Self::Path => "path".into(),
            Self::Port => "port, 1-65535".into(),
            Self::Secret => "secret".into(),
            Self::Size(sizes) => sizes
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join(", "),
            Self::Text => "text".into(),
            Self::Url => "http or https address".into(),
            Self::Word(words) => words.join(", "),
            Self::Words([]) => "list".into(),
            Self::Words(words) => format!("list of {}", words.join(", ")),
        }
    }
}

/// The table as a page: `docs/settings.md`.
pub fn settings_page() -> String {
    let mut page = String::from(
        "# Settings\n\n\
         Made from the tables in `src/config/sections/`; a test fails when this page is stale.\n\n\
         Flags win over variables, variables over the config file, the file over defaults. \
         An empty variable counts as unset.\n\
         Durations are written as in Go (`90s`, `1h30m`). \
         `docs/compatibility.md` lists what differs from the Go program.\n\n\
         | Key | Variable | Flag | Default | Valid values | Meaning |\n\
         |---|---|---|---|---|---|\n",
    );
    for row in ALL {
        let flags = row
            .flags()
            .map(|flag| match flag.short {
                Some(short) => format!(
                    "`-{short}`, `--{}` ({})",
                    flag.long,
                    flag.scope.description()
                ),
                None => format!("`--{}` ({})", flag.long, flag.scope.description()),
            })
            .collect::<Vec<_>>()
            .join("<br>");
        let mut variables = format!("`{}`", row.variable());
        if let Some(file) = row.file_variable() {
            variables += &format!("<br>`{file}`");
        }
        let default = match row.default {
            DefaultValue::Derived(text) => text.to_owned(),
            DefaultValue::Empty | DefaultValue::Text("") => "empty".into(),
            DefaultValue::Text(text) => format!("`{text}`"),
        };
        let example = if row.example.is_empty() {
            String::new()
        } else {
            format!(" Example: `{}`.", row.example)
        };
        page += &format!(
            "| `{}` | {variables} | {flags} | {default} | {} | {}.{example} |\n",
            row.key,
            row.kind.description(),
            row.help,
        );
    }
    page
}

impl FlagScope {
    /// The commands, in words.
    pub fn description(self) -> &'static str {
        match self {
            Self::Keys => "keys",
            Self::Make => "keys generate, keys rotate",
            Self::Oidc => "oidc",
            Self::Policy => "policy",
            Self::Remove => "keys remove",
            Self::Root => "all commands",
            Self::Server => "server",
            Self::Start => "server start",
        }
    }
}
