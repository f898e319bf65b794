//! The flags, which are made from the table of settings, and the values that were given for them.
//!
//! clap only splits the command line. Every value stays text until `config::load` parses it, so
//! that a wrong flag is reported together with a wrong variable. As in the Go program: of a flag
//! given twice the second counts, `-p80`, `-p=80` and `-p 80` are the same, a switch takes
//! `--switch=false`, and a value may begin with a dash.

use std::{ffi::OsString, path::Path, time::Duration};

use clap::{
    Arg, ArgAction, ArgMatches,
    builder::{PossibleValue, TypedValueParser, ValueParser},
    parser::ValueSource,
};
use url::Url;

use crate::config::{
    Environment, Flags, RawSettings, RawValue, duration,
    table::{self, DefaultValue, Flag, FlagScope, Row, ValueKind},
};

/// The flags of one scope.
pub(super) fn of(scope: FlagScope) -> impl Iterator<Item = Arg> {
    table::ALL.iter().filter_map(move |row| {
        let flag = row.flag_in(&[scope])?;
        Some(arg(row, flag))
    })
}

/// `--config`, which is not a setting itself: it names a file of settings.
pub(super) fn config() -> Arg {
    Arg::new("config")
        .long("config")
        .value_name("PATH")
        .display_order(table::ALL.len())
        // clap would refuse an empty path; here it counts as not given.
        .value_parser(clap::value_parser!(OsString))
        .allow_hyphen_values(true)
        .value_hint(clap::ValueHint::FilePath)
        .help(
            "Config file (.toml, .yaml, .json) [default: .tailbone.json, .toml, .yaml or .yml in \
             the home directory]",
        )
}

/// The values that were typed for a command that takes the flags of `scopes`.
pub(super) fn raw(
    matches: &ArgMatches,
    scopes: &[FlagScope],
    environment: &Environment,
) -> RawSettings {
    let config = matches
        .get_one::<OsString>("config")
        .filter(|path| !path.is_empty());
    RawSettings::collect(given(matches, scopes), environment, config.map(Path::new))
}

pub(super) fn given(matches: &ArgMatches, scopes: &[FlagScope]) -> Flags {
    let mut flags = Flags::default();
    for row in table::ALL {
        let Some(flag) = row.flag_in(scopes) else {
            continue;
        };
        if matches.value_source(row.key) != Some(ValueSource::CommandLine) {
            continue;
        }
        let mut texts: Vec<String> = matches
            .get_many::<String>(row.key)
            .into_iter()
            .flatten()
            .cloned()
            .collect();
        let value = if matches!(row.kind, ValueKind::Words(_)) {
            RawValue::List(texts)
        } else {
            RawValue::Text(texts.pop().unwrap_or_default())
        };
        flags.set(row, format!("--{}", flag.long), value);
    }
    flags
}

/// Parses a value as Go writes durations.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    match duration::parse(text) {
        Ok(duration::GoDuration {
            negative: false,
            size,
        }) => Ok(size),
        Ok(_) => Err("it must not be negative".to_owned()),
        Err(trouble) => Err(trouble.to_string()),
    }
}

/// An address at which a server speaks HTTP.
pub(super) fn server_url(text: &str) -> Option<Url> {
    let url = Url::parse(text).ok()?;
    (matches!(url.scheme(), "http" | "https") && url.has_host()).then_some(url)
}

fn arg(row: &'static Row, flag: &Flag) -> Arg {
    // Help lists a command's flags in the order of the table, at whichever level they are defined.
    let place = table::ALL.iter().position(|other| other.key == row.key);
    let arg = Arg::new(row.key)
        .long(flag.long)
        .display_order(place.unwrap_or(table::ALL.len()))
        .help(help(row, flag))
        .long_help(long_help(row, flag))
        .global(matches!(
            flag.scope,
            FlagScope::Keys | FlagScope::Root | FlagScope::Server
        ));
    let arg = match flag.short {
        Some(short) => arg.short(short),
        None => arg,
    };
    match row.kind {
        ValueKind::Bool => arg
            .action(ArgAction::Set)
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true")
            .value_name(value_name(row.kind))
            .value_parser(ValueParser::string()),
        kind => arg
            .action(if matches!(kind, ValueKind::Words(_)) {
                ArgAction::Append
            } else {
                ArgAction::Set
            })
            .allow_hyphen_values(true)
            .value_name(value_name(kind))
            .value_hint(match kind {
                ValueKind::Path => clap::ValueHint::AnyPath,
                _ => clap::ValueHint::Unknown,
            })
            .value_parser(Suggested(kind)),
    }
}

fn help(row: &Row, flag: &Flag) -> String {
    let default = match row.default {
        // If it is not typed, it is not sent, and the server's own setting counts.
        _ if flag.scope == FlagScope::Make => " [default: the server's setting]".into(),
        DefaultValue::Derived(words) => format!(" [default: {words}]"),
        DefaultValue::Empty | DefaultValue::Text("") => String::new(),
        DefaultValue::Text(_) if matches!(row.kind, ValueKind::Bool) => String::new(),
        DefaultValue::Text(text) => format!(" [default: {text}]"),
    };
    format!("{}{default} [env: {}]", row.help, row.variable())
}

/// Also says what may be typed, if clap does not list it.
fn long_help(row: &Row, flag: &Flag) -> String {
    let bounds = match row.kind {
        ValueKind::Binding
        | ValueKind::Count { .. }
        | ValueKind::Duration { .. }
        | ValueKind::Memory { .. }
        | ValueKind::Port
        | ValueKind::Url => {
            format!("; {}", row.kind.description())
        }
        _ => String::new(),
    };
    format!("{} [key: {}{bounds}]", help(row, flag), row.key)
}

fn value_name(kind: ValueKind) -> &'static str {
    match kind {
        ValueKind::Binding => "ADDRESS",
        ValueKind::Bool => "BOOL",
        ValueKind::Count { .. } => "NUMBER",
        ValueKind::Duration { .. } => "DURATION",
        ValueKind::Memory { .. } => "BYTES",
        ValueKind::Path => "PATH",
        ValueKind::Port => "PORT",
        ValueKind::Secret => "SECRET",
        ValueKind::Size(_) => "BITS",
        ValueKind::Text => "TEXT",
        ValueKind::Url => "URL",
        ValueKind::Word(_) => "WORD",
        ValueKind::Words(_) => "LIST",
    }
}

/// Offers a setting's words to completion and help, and accepts any other: the loader checks them.
#[derive(Clone)]
struct Suggested(ValueKind);

impl TypedValueParser for Suggested {
    type Value = String;

    fn parse_ref(
        &self,
        command: &clap::Command,
        arg: Option<&Arg>,
        value: &std::ffi::OsStr,
    ) -> Result<String, clap::Error> {
        clap::builder::StringValueParser::new().parse_ref(command, arg, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        match self.0 {
            ValueKind::Word(words) | ValueKind::Words(words @ [_, ..]) => {
                Some(Box::new(words.iter().map(PossibleValue::new)))
            }
            _ => None,
        }
    }
}
