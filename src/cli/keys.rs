//! `tailbone keys …`: signing keys of a running server, or of a directory with `--local`.
//!
//! This file has the commands, the question before a removal, and the shapes of the results.
//! `admin::Client` makes the calls; with `--local`, `jwks::life` does the same without a server.

use clap::{Arg, ArgAction, ArgMatches, Command};
use jiff::{SignedDuration, Timestamp, tz::TimeZone};
use serde::Serialize;
use tonic::Code;

use super::{
    args, ask,
    console::Console,
    exit::Failure,
    layout::Layout,
    output::{self, Output, Table},
    prompt,
};
use crate::{
    admin::{
        self, AdminClient, CallError, Impact,
        proto::{self, RotateKeysResponse},
    },
    config::{self, ClientSettings, Environment, OutputFormat, Purpose, table::FlagScope},
    http,
    jwks::{
        KeySet,
        life::{KeyLife, LifeError, Report},
    },
    server::LocalKeys,
};

pub(super) fn command() -> Command {
    Command::new("keys")
        .alias("key")
        .about("Make, list, rotate and remove signing keys")
        .args(args::of(FlagScope::Keys))
        .subcommand(
            Command::new("generate")
                .about("Make a signing key and publish its public half")
                .args(args::of(FlagScope::Make))
                .arg(set())
                .arg(local()),
        )
        .subcommand(
            Command::new("list")
                .visible_alias("ls")
                .about("List the published keys")
                .arg(local()),
        )
        .subcommand(
            Command::new("remove")
                .about("Remove a key; tokens it signed can no longer be verified")
                .args(args::of(FlagScope::Remove))
                .arg(
                    Arg::new("keyID")
                        .required(true)
                        .value_name("keyID")
                        .help("Id of the key, as listed"),
                )
                .arg(local()),
        )
        .subcommand(
            Command::new("rotate")
                .about("Make the successor of the signing key; it signs once verifiers know it")
                .args(args::of(FlagScope::Make))
                .arg(set())
                .arg(local()),
        )
}

fn set() -> Arg {
    Arg::new("set")
        .long("set")
        .value_name("component")
        .help("The component whose own keys are meant, as listed; else those of issuer and gate")
}

fn local() -> Arg {
    Arg::new("local")
        .long("local")
        .action(ArgAction::SetTrue)
        .help("Work on the key directory and the published JWKS instead of asking a server")
}

pub(super) fn run(
    matches: &ArgMatches,
    environment: &Environment,
    console: &mut Console<'_>,
) -> Result<(), Failure> {
    let Some((name, matches)) = matches.subcommand() else {
        return super::help(Some("keys"), console);
    };
    let mut scopes = vec![FlagScope::Root, FlagScope::Keys];
    match name {
        "generate" | "rotate" => scopes.push(FlagScope::Make),
        "remove" => scopes.push(FlagScope::Remove),
        _ => {}
    }
    let raw = args::raw(matches, &scopes, environment);
    let (settings, _) = console.accept(config::load_client(&raw))?;
    let keys = if matches.get_flag("local") {
        // The place of publication is a setting of the server. The warnings were printed above.
        let (server, ..) = config::load(&raw, Purpose::Housekeeping)?;
        let LocalKeys { issuer, sets } = LocalKeys::new(&server).map_err(Failure::failed)?;
        Keys::Local {
            listed: issuer.is_some(),
            life: issuer.unwrap_or_else(|| server.keys.life()),
            sets,
            spec: server.keys.spec,
        }
    } else {
        Keys::Server(AdminClient::new(ask::target(&settings), settings.timeout))
    };
    let command = Invocation {
        keys,
        set: matches
            .try_get_one::<String>("set")
            .ok()
            .flatten()
            .cloned()
            .unwrap_or_default(),
        settings,
        runtime: ask::runtime()?,
    };
    match name {
        "generate" => command.generate(console),
        "list" => command.list(console),
        "remove" => command.remove(
            matches
                .get_one::<String>("keyID")
                .map_or("", String::as_str),
            console,
        ),
        _ => command.rotate(console),
    }
}

/// The keys that a command works on.
enum Keys {
    /// Those of the key directory, without a server.
    Local {
        life: KeyLife,
        /// Something needs the keys of `life`.
        listed: bool,
        sets: Vec<KeySet>,
        spec: config::KeySpec,
    },
    /// Those of a running server.
    Server(AdminClient),
}

/// Why the keys were not listed or changed.
#[derive(Debug, thiserror::Error)]
enum KeysError {
    #[error(transparent)]
    Call(#[from] CallError),
    #[error(transparent)]
    Life(#[from] LifeError),
    #[error(transparent)]
    Request(#[from] http::Error),
}

/// The advice for an id that no key has.
const KNOWN_KEYS: &str = "`tailbone keys list` shows the keys";

/// One command with everything that it needs.
struct Invocation {
    keys: Keys,
    /// The component whose keys are meant; empty for issuer and gate.
    set: String,
    settings: ClientSettings,
    runtime: tokio::runtime::Runtime,
}

impl Invocation {
    fn generate(&self, console: &mut Console<'_>) -> Result<(), Failure> {
        let (size, algorithm) = self.requested();
        let made = self.wait(async |keys| match keys {
            Keys::Server(client) => {
                let made = client.generate(size, algorithm, self.set.clone()).await?;
                Ok((made.key, None))
            }
            Keys::Local {
                life, sets, spec, ..
            } => {
                let now = Timestamp::now();
                let set = admin::named_set(sets, &self.set)?;
                let made = match set {
                    Some(set) => set.generate(Some(self.spec_in(set)?), now).await?,
                    None => life.generate(Some(*spec), now).await?,
                };
                Ok((Some(admin::key_of(set, &made.key)), Some(made.report)))
            }
        });
        let (key, report) =
            made.map_err(|error| self.failed("failed to generate keys: ", &error))?;
        warn(&report, false, console);
        show_generated(
            console,
            self.settings.output,
            &key.unwrap_or_default().into(),
        )
    }

    fn list(&self, console: &mut Console<'_>) -> Result<(), Failure> {
        let listed = self
            .listed()
            .inspect_err(|_| console.say("Failed to list keys"))?;
        warn(&listed.1, false, console);
        show_listed(
            console,
            self.settings.output,
            &shapes(listed.0),
            Timestamp::now(),
        )
    }

    /// Says what the removal breaks, asks, and removes the key. The server is only allowed to break
    /// what was said and confirmed.
    fn remove(&self, kid: &str, console: &mut Console<'_>) -> Result<(), Failure> {
        let failed = |error| self.failed("failed to remove key: ", &error);
        let yes = self.settings.no_confirmation;
        // A list that cannot be fetched does not stop a removal that was confirmed beforehand.
        // Without a confirmation, or anybody to give it, that is the error to report.
        let impact = match self.impact(kid) {
            Ok(impact) => Some(impact),
            Err(_) if yes || console.person.is_none() => None,
            Err(error) => return Err(failed(error)),
        };
        for sentence in impact
            .map(|impact| admin::consequences(kid, impact))
            .unwrap_or_default()
        {
            console.say(&format!("Warning: {sentence}"));
        }
        prompt::confirm(console, &format!("Remove key {kid}?"), yes)?;
        let force = yes || impact.is_some_and(|impact| impact.signing || impact.last);
        let removed = self.wait(async |keys| match keys {
            Keys::Server(client) => Ok((client.remove(kid.to_owned(), force).await?, None)),
            Keys::Local { life, sets, .. } => {
                let set = set_with(sets, kid).await?;
                let removed = match set {
                    Some(set) => set.remove(kid, Timestamp::now()).await?,
                    None => life.remove(kid, Timestamp::now()).await?,
                };
                let remaining = removed.remaining.iter();
                let remaining = remaining.map(|key| admin::key_of(set, key)).collect();
                Ok((remaining, Some(removed.report)))
            }
        });
        let (remaining, report) = removed.map_err(failed)?;
        warn(&report, false, console);
        show_remaining(
            console,
            self.settings.output,
            &shapes(remaining),
            Timestamp::now(),
        )
    }

    fn rotate(&self, console: &mut Console<'_>) -> Result<(), Failure> {
        let (size, algorithm) = self.requested();
        let made = self.wait(async |keys| match keys {
            Keys::Server(client) => {
                let answer = client.rotate(size, algorithm, self.set.clone()).await?;
                Ok((answer, None))
            }
            Keys::Local {
                life, sets, spec, ..
            } => {
                let now = Timestamp::now();
                let set = admin::named_set(sets, &self.set)?;
                let made = match set {
                    Some(set) => set.rotate(Some(self.spec_in(set)?), now).await?,
                    None => life.rotate(Some(*spec), now).await?,
                };
                let signs_from = made.key.signs_since.map(Timestamp::as_second);
                let answer = RotateKeysResponse {
                    key: Some(admin::key_of(set, &made.key)),
                    signs_from: signs_from.unwrap_or_default(),
                    existed: made.existed,
                };
                Ok((answer, Some(made.report)))
            }
        });
        let (answer, report) =
            made.map_err(|error| self.failed("failed to rotate keys: ", &error))?;
        warn(&report, false, console);
        if answer.existed {
            console.say("A successor is waiting already; no other is made");
        }
        show_rotated(
            console,
            self.settings.output,
            &answer.key.unwrap_or_default().into(),
            answer.signs_from,
        )
    }

    fn impact(&self, kid: &str) -> Result<Impact, KeysError> {
        let (keys, _) = self.wait(list)?;
        Ok(admin::impact(&keys, kid))
    }

    fn listed(&self) -> Result<(Vec<proto::Key>, Vec<Report>), Failure> {
        self.wait(list).map_err(|error| self.failed("", &error))
    }

    /// gRPC's wording stays in the message, for scripts that look for it.
    fn failed(&self, what: &str, error: &KeysError) -> Failure {
        let advice = match error {
            KeysError::Call(error) => match ask::advice(error, &self.settings) {
                Some(advice) if self.settings.host.is_empty() => {
                    format!("{advice}, or work on the key directory with --local")
                }
                Some(advice) => advice.to_owned(),
                None if error.code == Code::NotFound => KNOWN_KEYS.to_owned(),
                None => String::new(),
            },
            KeysError::Life(LifeError::NotFound(_)) => KNOWN_KEYS.to_owned(),
            KeysError::Life(_) | KeysError::Request(_) => String::new(),
        };
        Failure::failed(format!("{what}{error}")).advise(advice)
    }

    /// Size and algorithm that were typed for a new key. Zero and nothing leave them to the server.
    fn requested(&self) -> (i32, String) {
        let size = self
            .settings
            .key_size
            .and_then(|bits| i32::try_from(bits).ok())
            .unwrap_or_default();
        (
            size,
            self.settings.key_algorithm.clone().unwrap_or_default(),
        )
    }

    /// The new key of a set, as a server would choose it.
    fn spec_in(&self, set: &KeySet) -> Result<config::KeySpec, http::Error> {
        let (size, algorithm) = self.requested();
        admin::requested_spec_in(size, &algorithm, set)
    }

    fn wait<T>(
        &self,
        work: impl AsyncFnOnce(&Keys) -> Result<T, KeysError>,
    ) -> Result<T, KeysError> {
        self.runtime.block_on(work(&self.keys))
    }
}

async fn list(keys: &Keys) -> Result<(Vec<proto::Key>, Vec<Report>), KeysError> {
    match keys {
        Keys::Server(client) => Ok((client.list().await?, Vec::new())),
        Keys::Local {
            life, listed, sets, ..
        } => {
            let (mut keys, mut reports) = (Vec::new(), Vec::new());
            if *listed {
                let report = life.list(Timestamp::now()).await?;
                keys.extend(report.keys.iter().map(admin::wire_key));
                reports.push(report);
            }
            for set in sets {
                let (own, of_set) = set.survey(Timestamp::now()).await?;
                keys.extend(own.iter().map(|key| admin::key_of(Some(set), key)));
                reports.extend(of_set);
            }
            Ok((keys, reports))
        }
    }
}

/// The set that has this key in its directories.
async fn set_with<'a>(sets: &'a [KeySet], kid: &str) -> Result<Option<&'a KeySet>, LifeError> {
    for set in sets {
        let (keys, _) = set.survey(Timestamp::now()).await?;
        if keys.iter().any(|key| key.kid == kid && key.state.is_some()) {
            return Ok(Some(set));
        }
    }
    Ok(None)
}

/// Prints as warnings what a server would write into its log; `signing`: also why no key signs.
pub(super) fn warn<'a>(
    reports: impl IntoIterator<Item = &'a Report>,
    signing: bool,
    console: &mut Console<'_>,
) {
    let mut told: Vec<String> = Vec::new();
    for report in reports {
        let skipped = report
            .skipped
            .iter()
            .map(|file| format!("{} is not used: {}", file.path.display(), file.reason));
        let no_signer = report.no_signer.iter().filter(|_| signing);
        for words in report
            .document_trouble
            .iter()
            .chain(&report.trouble)
            .chain(no_signer)
            .cloned()
            .chain(skipped)
        {
            // The lives of a set read the same document.
            if !told.contains(&words) {
                console.say(&format!("Warning: {words}"));
                told.push(words);
            }
        }
    }
}

fn shapes(keys: Vec<proto::Key>) -> Vec<Key> {
    keys.into_iter().map(Key::from).collect()
}

/// A key as the admin API returns it. In JSON, fields without a value are left out, as by Go's
/// `omitempty`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Key {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub key_id: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub algorithm: String,
    /// Unix seconds.
    #[serde(skip_serializing_if = "is_zero")]
    pub created_at: i64,
    /// Empty for a key of another server. Older servers send neither this nor what follows.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub state: String,
    /// Unix seconds; 0 if the server does not sign with it.
    #[serde(skip_serializing_if = "is_zero")]
    pub signs_since: i64,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub published: bool,
    #[serde(skip_serializing_if = "is_zero")]
    pub size: i64,
    /// The component whose own key it is.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub set: String,
}

/// The same in YAML: names in small letters without underscores. The members that the Go program
/// had are always present.
#[derive(Debug, Serialize)]
struct YamlKey<'a> {
    keyid: &'a str,
    algorithm: &'a str,
    createdat: i64,
    #[serde(skip_serializing_if = "str::is_empty")]
    state: &'a str,
    #[serde(skip_serializing_if = "is_zero")]
    signssince: i64,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    published: bool,
    #[serde(skip_serializing_if = "is_zero")]
    size: i64,
    #[serde(skip_serializing_if = "str::is_empty")]
    set: &'a str,
}

impl Key {
    fn yaml(&self) -> YamlKey<'_> {
        YamlKey {
            keyid: &self.key_id,
            algorithm: &self.algorithm,
            createdat: self.created_at,
            state: &self.state,
            signssince: self.signs_since,
            published: self.published,
            size: self.size,
            set: &self.set,
        }
    }

    /// Whether the server that returned it tells more than the Go program did.
    fn has_state(&self) -> bool {
        self.published || !self.state.is_empty()
    }
}

impl From<proto::Key> for Key {
    fn from(key: proto::Key) -> Self {
        Self {
            key_id: key.key_id,
            algorithm: key.algorithm,
            created_at: key.created_at,
            state: key.state,
            signs_since: key.signs_since,
            published: key.published,
            size: key.size.into(),
            set: key.set,
        }
    }
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "the signature that serde requires"
)]
fn is_zero(number: &i64) -> bool {
    *number == 0
}

/// The result of `generate` and `rotate`: a list of one key.
#[derive(Debug, Serialize)]
struct Generated<'a>([NewKey<'a>; 1]);

#[derive(Debug, Serialize)]
struct NewKey<'a> {
    key: &'a Key,
    /// `rotate` only.
    #[serde(skip_serializing_if = "is_zero")]
    signs_from: i64,
}

#[derive(Debug, Serialize)]
struct YamlNewKey<'a> {
    key: YamlKey<'a>,
    #[serde(skip_serializing_if = "is_zero")]
    signsfrom: i64,
}

impl Output for Generated<'_> {
    fn text(&self, layout: Layout) -> String {
        let [NewKey { key, signs_from }] = &self.0;
        if *signs_from == 0 {
            let mut table = Table::new(["KeyId", "Algorithm"]);
            table.row([key.key_id.clone(), key.algorithm.clone()]);
            return table.text(layout);
        }
        let mut table = Table::new(["KeyId", "Algorithm", "State", "Signs from"]);
        let from = local_time(*signs_from, &TimeZone::system());
        table.row([
            key.key_id.clone(),
            key.algorithm.clone(),
            key.state.clone(),
            from,
        ]);
        table.text(layout)
    }

    fn yaml(&self) -> impl Serialize {
        let [NewKey { key, signs_from }] = &self.0;
        [YamlNewKey {
            key: key.yaml(),
            signsfrom: *signs_from,
        }]
    }
}

/// The result of `list` and `remove`. No keys are `null` in JSON, as a nil slice is in Go.
#[derive(Debug, Serialize)]
#[serde(transparent)]
struct Listed<'a> {
    keys: Option<&'a [Key]>,
    #[serde(skip)]
    now: Timestamp,
}

impl Output for Listed<'_> {
    /// The columns of the Go program come first, for scripts that count them. Older servers fill no
    /// others.
    fn text(&self, layout: Layout) -> String {
        let keys = self.keys.unwrap_or_default();
        let zone = TimeZone::system();
        let old = |key: &Key| {
            [
                key.key_id.clone(),
                key.algorithm.clone(),
                local_time(key.created_at, &zone),
            ]
        };
        if !keys.iter().any(Key::has_state) {
            let mut table = Table::new(["KeyId", "Algorithm", "Created"]);
            for key in keys {
                table.row(old(key));
            }
            return table.text(layout);
        }
        let names = [
            "KeyId",
            "Algorithm",
            "Created",
            "State",
            "Age",
            "Signs since",
            "Published",
        ];
        let in_sets = keys.iter().any(|key| !key.set.is_empty());
        let mut table = if in_sets {
            let [id, algorithm, created, state, age, since, published] = names;
            let set = "Keys of";
            Table::new([id, algorithm, created, state, age, since, published, set])
        } else {
            Table::new(names)
        };
        for key in keys {
            let [id, algorithm, created] = old(key);
            let since = if key.signs_since == 0 {
                "-".to_owned()
            } else {
                local_time(key.signs_since, &zone)
            };
            let state = if key.state.is_empty() {
                "of another server".to_owned()
            } else {
                key.state.clone()
            };
            let published = if key.published { "yes" } else { "no" };
            let age = age(key.created_at, self.now);
            let published = published.to_owned();
            if in_sets {
                let set = if key.set.is_empty() {
                    "issuer".to_owned()
                } else {
                    key.set.clone()
                };
                table.row([id, algorithm, created, state, age, since, published, set]);
            } else {
                table.row([id, algorithm, created, state, age, since, published]);
            }
        }
        table.text(layout)
    }

    fn yaml(&self) -> impl Serialize {
        self.keys
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
    show_rotated(console, format, key, 0)
}

/// Prints the successor, and the time (Unix seconds) from which it signs.
pub fn show_rotated(
    console: &mut Console<'_>,
    format: OutputFormat,
    key: &Key,
    signs_from: i64,
) -> Result<(), Failure> {
    output::print(console, format, &Generated([NewKey { key, signs_from }]))
}

/// Prints the keys. None at all is no failure, and nothing goes to stdout.
pub fn show_listed(
    console: &mut Console<'_>,
    format: OutputFormat,
    keys: &[Key],
    now: Timestamp,
) -> Result<(), Failure> {
    if keys.is_empty() {
        console.say("No keys found");
        return Ok(());
    }
    show_remaining(console, format, keys, now)
}

/// Prints the keys that are left after a removal.
pub fn show_remaining(
    console: &mut Console<'_>,
    format: OutputFormat,
    keys: &[Key],
    now: Timestamp,
) -> Result<(), Failure> {
    let keys = Some(keys).filter(|keys| !keys.is_empty());
    if keys.is_none() && format == OutputFormat::Text {
        console.say("No keys are left");
    }
    output::print(console, format, &Listed { keys, now })
}

/// In the two largest units; nothing if the id contains no time.
fn age(created: i64, now: Timestamp) -> String {
    let Some(created) = Timestamp::from_second(created)
        .ok()
        .filter(|created| created.as_second() != 0)
    else {
        return "-".to_owned();
    };
    let seconds = now
        .duration_since(created)
        .max(SignedDuration::ZERO)
        .as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m{}s", seconds % 60),
        (0, ..) => format!("{hours}h{}m", minutes % 60),
        _ => format!("{days}d{}h", hours % 24),
    }
}

/// RFC 3339 as Go writes it: `Z` for UTC.
pub(super) fn local_time(seconds: i64, zone: &TimeZone) -> String {
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

    const NOW: i64 = 1_740_172_800 + 3 * 86_400 + 4 * 3600 + 5;

    fn now() -> Timestamp {
        Timestamp::from_second(NOW).expect("a time")
    }

    fn keys() -> Vec<Key> {
        vec![
            Key {
                key_id: "tb-1740172800".into(),
                algorithm: "RS256".into(),
                created_at: 1_740_172_800,
                ..Key::default()
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
            layout: Layout::PIPE,
        })
        .expect("shown");
        (
            String::from_utf8(out).expect("text"),
            String::from_utf8(err).expect("text"),
        )
    }

    fn keys_with_state() -> Vec<Key> {
        let mut keys = keys();
        keys[0] = Key {
            state: "active".into(),
            signs_since: NOW - 60,
            published: true,
            size: 2048,
            ..keys[0].clone()
        };
        keys
    }

    #[test]
    fn a_terminal_without_room_for_the_table_gets_a_record_per_key() {
        let keys = keys_with_state();
        let listed = Listed {
            keys: Some(&keys),
            now: now(),
        };
        let wide = listed.text(Layout::PIPE);
        assert_eq!(listed.text(Layout::terminal(200)), wide);
        let text = listed.text(Layout::terminal(80));
        let expected = "tb-1740172800\n  Algorithm    RS256\n  Created      2025-02-21T";
        assert!(text.starts_with(expected), "{text}");
        assert!(text.contains("\nforeign\n"), "{text}");
        let narrow = listed.text(Layout::terminal(40));
        for (text, columns) in [(text, 80), (narrow, 40)] {
            let widest = text.lines().map(|line| line.chars().count()).max();
            assert!(widest <= Some(columns), "{text}");
        }
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
        let show = |format| shown(|console| show_listed(console, format, &keys, now())).0;
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
    fn keys_of_a_component_name_it_and_all_rows_have_the_column() {
        let mut keys = keys_with_state();
        keys.push(Key {
            key_id: "tb-1740172900".into(),
            set: "workload".into(),
            ..keys[0].clone()
        });
        let show = |format| shown(|console| show_listed(console, format, &keys, now())).0;
        let table = show(OutputFormat::Text);
        let ends: Vec<_> = table.lines().map(|line| line.trim_end()).collect();
        assert!(ends[0].ends_with("Published  Keys of"), "{table}");
        assert!(ends[1].ends_with("issuer"), "{table}");
        assert!(ends[3].ends_with("workload"), "{table}");
        assert_eq!(show(OutputFormat::Json).matches("\"set\"").count(), 1);
        assert_eq!(show(OutputFormat::Yaml).matches("set: workload").count(), 1);
    }

    #[test]
    fn no_keys_are_told_apart_from_none_left() {
        assert_eq!(
            shown(|console| show_listed(console, OutputFormat::Json, &[], now())),
            (String::new(), "No keys found\n".into())
        );
        assert_eq!(
            shown(|console| show_remaining(console, OutputFormat::Text, &[], now())),
            (String::new(), "No keys are left\n".into())
        );
        assert_eq!(
            shown(|console| show_remaining(console, OutputFormat::Json, &[], now())).0,
            "null"
        );
        assert_eq!(
            shown(|console| show_remaining(console, OutputFormat::Yaml, &[], now())).0,
            "[]\n"
        );
    }

    #[test]
    fn more_is_told_after_the_old_columns_and_members() {
        let keys = keys_with_state();
        let show = |format| shown(|console| show_listed(console, format, &keys, now())).0;
        let table = show(OutputFormat::Text);
        let header: Vec<_> = table
            .lines()
            .next()
            .unwrap_or_default()
            .split_whitespace()
            .collect();
        assert_eq!(
            header,
            [
                "KeyId",
                "Algorithm",
                "Created",
                "State",
                "Age",
                "Signs",
                "since",
                "Published"
            ]
        );
        let row: Vec<_> = table
            .lines()
            .nth(1)
            .unwrap_or_default()
            .split_whitespace()
            .collect();
        assert_eq!(
            (row[0], row[1], row[3], row[4], row[6]),
            ("tb-1740172800", "RS256", "active", "3d4h", "yes")
        );
        assert!(show(OutputFormat::Json).contains(
            "\"created_at\": 1740172800,\n    \"state\": \"active\",\n    \"signs_since\": 1740446345,\n    \"published\": true,\n    \"size\": 2048\n"
        ));
        assert!(show(OutputFormat::Yaml).starts_with(
            "- keyid: tb-1740172800\n  algorithm: RS256\n  createdat: 1740172800\n  state: active\n  signssince: 1740446345\n  published: true\n  size: 2048\n"
        ));
    }

    #[test]
    fn an_age_has_two_units_and_is_never_negative() {
        let old = |seconds| age(NOW - seconds, now());
        assert_eq!(
            [old(-5), old(0), old(59), old(61), old(3_661), old(90_061)],
            ["0s", "0s", "59s", "1m1s", "1h1m", "1d1h"]
        );
        assert_eq!(age(0, now()), "-");
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
