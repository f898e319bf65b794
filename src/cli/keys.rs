//! `tailbone keys …`: signing keys of a running server, or of a directory with `--local`.
//!
//! Here are the commands and the shapes of what they print; the calls to the server are left to the admin client.

use clap::{Arg, ArgAction, ArgMatches, Command};
use jiff::{Timestamp, tz::TimeZone};
use serde::Serialize;

use super::{
    args,
    console::Console,
    exit::Failure,
    output::{self, Output, Table},
    prompt,
};
use crate::config::{self, ClientSettings, Environment, OutputFormat, table::Scope};

pub(super) fn command() -> Command {
    Command::new("keys")
        .alias("key")
        .about("Make, list, rotate and remove signing keys")
        .args(args::of(Scope::Keys))
        .subcommand(
            Command::new("generate")
                .about("Make a signing key and publish its public half")
                .args(args::of(Scope::Make)),
        )
        .subcommand(
            Command::new("list")
                .visible_alias("ls")
                .about("List the published keys")
                .arg(
                    Arg::new("local")
                        .long("local")
                        .action(ArgAction::SetTrue)
                        .help("Read the key directory instead of asking a server"),
                ),
        )
        .subcommand(
            Command::new("remove")
                .about("Remove a key; tokens it signed can no longer be verified")
                .args(args::of(Scope::Remove))
                .arg(
                    Arg::new("keyID")
                        .required(true)
                        .value_name("keyID")
                        .help("Id of the key, as listed"),
                ),
        )
        .subcommand(
            Command::new("rotate")
                .about("Make the successor of the signing key; it signs once verifiers know it")
                .args(args::of(Scope::Make)),
        )
}

pub(super) fn run(
    matches: &ArgMatches,
    environment: &Environment,
    console: &mut Console<'_>,
) -> Result<(), Failure> {
    let Some((name, matches)) = matches.subcommand() else {
        return super::help(Some("keys"), console);
    };
    let mut scopes = vec![Scope::Root, Scope::Keys];
    match name {
        "generate" | "rotate" => scopes.push(Scope::Make),
        "remove" => scopes.push(Scope::Remove),
        _ => {}
    }
    let raw = args::raw(matches, &scopes, environment);
    let (settings, _) = console.told(config::load_client(&raw))?;
    match name {
        "generate" => generate(&settings, console),
        "list" => list(&settings, matches.get_flag("local"), console),
        "remove" => {
            let id = matches
                .get_one::<String>("keyID")
                .map_or("", String::as_str);
            prompt::confirm(
                console,
                &format!("Remove key {id}?"),
                settings.no_confirmation,
            )?;
            remove(&settings, id, console)
        }
        _ => rotate(&settings, console),
    }
}

// PLACEHOLDER: the next four become calls of the admin API; their results are printed with the functions below.

fn generate(_settings: &ClientSettings, _console: &mut Console<'_>) -> Result<(), Failure> {
    Err(Failure::failed(
        "keys generate is not wired to the admin API yet",
    ))
}

fn list(
    _settings: &ClientSettings,
    _local: bool,
    _console: &mut Console<'_>,
) -> Result<(), Failure> {
    Err(Failure::failed(
        "keys list is not wired to the admin API yet",
    ))
}

fn remove(
    _settings: &ClientSettings,
    _id: &str,
    _console: &mut Console<'_>,
) -> Result<(), Failure> {
    Err(Failure::failed(
        "keys remove is not wired to the admin API yet",
    ))
}

fn rotate(_settings: &ClientSettings, _console: &mut Console<'_>) -> Result<(), Failure> {
    Err(Failure::failed(
        "keys rotate is not wired to the admin API yet",
    ))
}

/// A key as the admin API tells it. In JSON, fields without a value are left out, as Go's `omitempty` does.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Key {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub key_id: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub algorithm: String,
    /// Unix seconds.
    #[serde(skip_serializing_if = "is_zero")]
    pub created_at: i64,
}

/// The same in YAML: names in small letters without underscores, and nothing is left out.
#[derive(Debug, Serialize)]
struct YamlKey<'a> {
    keyid: &'a str,
    algorithm: &'a str,
    createdat: i64,
}

impl Key {
    fn yaml(&self) -> YamlKey<'_> {
        YamlKey {
            keyid: &self.key_id,
            algorithm: &self.algorithm,
            createdat: self.created_at,
        }
    }
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "the shape that serde asks for"
)]
fn is_zero(number: &i64) -> bool {
    *number == 0
}

/// What `generate` and `rotate` print: a list of one answer.
#[derive(Debug, Serialize)]
struct Generated<'a>([Answer<'a>; 1]);

#[derive(Debug, Serialize)]
struct Answer<'a> {
    key: &'a Key,
}

#[derive(Debug, Serialize)]
struct YamlAnswer<'a> {
    key: YamlKey<'a>,
}

impl Output for Generated<'_> {
    fn table(&self) -> Table {
        let mut table = Table::new(["KeyId", "Algorithm"]);
        let [Answer { key }] = &self.0;
        table.row([key.key_id.clone(), key.algorithm.clone()]);
        table
    }

    fn yaml(&self) -> impl Serialize {
        let [Answer { key }] = &self.0;
        [YamlAnswer { key: key.yaml() }]
    }
}

/// What `list` and `remove` print. No keys are `null` in JSON: a nil slice of the Go program.
#[derive(Debug, Serialize)]
#[serde(transparent)]
struct Listed<'a>(Option<&'a [Key]>);

impl Output for Listed<'_> {
    fn table(&self) -> Table {
        let mut table = Table::new(["KeyId", "Algorithm", "Created"]);
        for key in self.0.unwrap_or_default() {
            table.row([
                key.key_id.clone(),
                key.algorithm.clone(),
                local_time(key.created_at, &TimeZone::system()),
            ]);
        }
        table
    }

    fn yaml(&self) -> impl Serialize {
        self.0
            .unwrap_or_default()
            .iter()
            .map(Key::yaml)
            .collect::<Vec<_>>()
    }
}

/// Prints the key that was made.
pub fn show_generated(
    console: &mut Console<'_>,
    format: OutputFormat,
    key: &Key,
) -> Result<(), Failure> {
    output::print(console, format, &Generated([Answer { key }]))
}

/// Prints the keys there are. None at all is no failure, and nothing goes to stdout.
pub fn show_listed(
    console: &mut Console<'_>,
    format: OutputFormat,
    keys: &[Key],
) -> Result<(), Failure> {
    if keys.is_empty() {
        console.say("No keys found");
        return Ok(());
    }
    show_remaining(console, format, keys)
}

/// Prints the keys that are left after a removal.
pub fn show_remaining(
    console: &mut Console<'_>,
    format: OutputFormat,
    keys: &[Key],
) -> Result<(), Failure> {
    let keys = Some(keys).filter(|keys| !keys.is_empty());
    output::print(console, format, &Listed(keys))
}

/// RFC 3339 as Go writes it: `Z` where the zone is UTC.
fn local_time(seconds: i64, zone: &TimeZone) -> String {
    match Timestamp::from_second(seconds) {
        Ok(time) => {
            let time = time.to_zoned(zone.clone());
            if time.offset().is_zero() {
                time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
            } else {
                time.strftime("%Y-%m-%dT%H:%M:%S%:z").to_string()
            }
        }
        Err(_) => seconds.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> Vec<Key> {
        vec![
            Key {
                key_id: "tb-1740172800".into(),
                algorithm: "RS256".into(),
                created_at: 1_740_172_800,
            },
            Key {
                key_id: "foreign".into(),
                ..Key::default()
            },
        ]
    }

    fn shown(show: impl FnOnce(&mut Console<'_>) -> Result<(), Failure>) -> (String, String) {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        show(&mut Console {
            out: &mut out,
            err: &mut err,
            person: None,
        })
        .expect("shown");
        (
            String::from_utf8(out).expect("text"),
            String::from_utf8(err).expect("text"),
        )
    }

    #[test]
    fn generate_prints_the_contracts_shapes() {
        let key = &keys()[0];
        let show = |format| shown(|console| show_generated(console, format, key)).0;
        assert_eq!(
            show(OutputFormat::Text),
            " KeyId          Algorithm \n tb-1740172800  RS256     \n"
        );
        assert_eq!(
            show(OutputFormat::Json),
            "[\n  {\n    \"key\": {\n      \"key_id\": \"tb-1740172800\",\n      \"algorithm\": \"RS256\",\n      \"created_at\": 1740172800\n    }\n  }\n]"
        );
        assert_eq!(
            show(OutputFormat::Yaml),
            "- key:\n    keyid: tb-1740172800\n    algorithm: RS256\n    createdat: 1740172800\n"
        );
    }

    #[test]
    fn list_prints_the_contracts_shapes() {
        let keys = keys();
        let show = |format| shown(|console| show_listed(console, format, &keys)).0;
        assert!(show(OutputFormat::Text).starts_with(" KeyId          Algorithm  Created"));
        assert_eq!(
            show(OutputFormat::Json),
            "[\n  {\n    \"key_id\": \"tb-1740172800\",\n    \"algorithm\": \"RS256\",\n    \"created_at\": 1740172800\n  },\n  {\n    \"key_id\": \"foreign\"\n  }\n]"
        );
        assert_eq!(
            show(OutputFormat::Yaml),
            "- keyid: tb-1740172800\n  algorithm: RS256\n  createdat: 1740172800\n- keyid: foreign\n  algorithm: ''\n  createdat: 0\n"
        );
    }

    #[test]
    fn no_keys_are_told_apart_from_none_left() {
        assert_eq!(
            shown(|console| show_listed(console, OutputFormat::Json, &[])),
            (String::new(), "No keys found\n".into())
        );
        assert_eq!(
            shown(|console| show_remaining(console, OutputFormat::Json, &[])).0,
            "null"
        );
        assert_eq!(
            shown(|console| show_remaining(console, OutputFormat::Yaml, &[])).0,
            "[]\n"
        );
    }

    #[test]
    fn created_is_rfc_3339_in_the_local_zone() {
        let east = TimeZone::fixed(jiff::tz::offset(2));
        assert_eq!(
            local_time(1_740_172_800, &TimeZone::UTC),
            "2025-02-21T21:20:00Z"
        );
        assert_eq!(
            local_time(1_740_172_800, &east),
            "2025-02-21T23:20:00+02:00"
        );
        assert_eq!(local_time(i64::MAX, &east), i64::MAX.to_string());
    }
}
