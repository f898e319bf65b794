//! From what was typed to what it means.
//!
//! Every row is read, however many are wrong before it, so that all mistakes are told at once. Where the Go program took a wrong
//! value in silence, this either takes it with a warning or refuses it with a sentence; `docs/compatibility.md` lists which.
//! Nothing is opened here but the file that holds a secret: whether a directory or a bucket exists is the components' business.

use std::{
    collections::BTreeSet,
    fmt,
    io::Read,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::Value as Json;

use super::{
    duration,
    raw::{Raw, Typed, Value, suggestion},
    report::{Mistakes, Origin, Remark, Warning},
    secret::Secret,
    settings::{
        Admin, Authorization, Binding, ClientSettings, Component, Gate, GateAuth, GateToken,
        KeySpec, Keys, Log, LogFormat, LogLevel, OutputFormat, Publish, Server, Settings,
        Tailscale, Upstream,
    },
    table::{self, Default, Kind, LONGEST, Row},
};

/// What the settings are loaded for. It decides what is not needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// One pass over the keys: no node, so no auth key is looked for.
    Housekeeping,
    Start,
}

/// Where every effective value came from.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Origins {
    /// The config file that was read.
    pub file: Option<PathBuf>,
    pub entries: Vec<Entry>,
}

/// One effective value; a secret's is the word `(hidden)`.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    pub row: &'static Row,
    pub value: Json,
    pub origin: Origin,
}

impl PartialEq for Row {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
    }
}

/// Loads the settings of `tailbone server …`.
pub fn load(raw: &Raw, purpose: Purpose) -> Result<(Settings, Origins, Vec<Warning>), Mistakes> {
    let mut reader = Reader::new(raw);
    let settings = reader.server(purpose);
    reader.done(settings)
}

/// Loads the settings of `tailbone keys …`. Mistakes in settings that only a server reads do not stop it.
pub fn load_client(raw: &Raw) -> Result<(ClientSettings, Origins, Vec<Warning>), Mistakes> {
    let mut reader = Reader::new(raw);
    let settings = reader.client();
    reader.done(settings)
}

/// Loads everything there is, for `tailbone config …`.
pub fn load_all(
    raw: &Raw,
) -> Result<((Settings, ClientSettings), Origins, Vec<Warning>), Mistakes> {
    let mut reader = Reader::new(raw);
    let server = reader.server(Purpose::Start);
    let client = reader.client();
    reader.done(server.zip(client))
}

/// How results are printed, for a command that needs no other setting.
pub fn load_output(raw: &Raw) -> Result<(OutputFormat, Origins, Vec<Warning>), Mistakes> {
    let mut reader = Reader::new(raw);
    let format = reader.output();
    reader.done(format)
}

/// Reads rows and keeps what there is to tell about them. A reading method answers `None` when it has noted a mistake.
struct Reader<'a> {
    raw: &'a Raw,
    mistakes: Vec<Remark>,
    warnings: Vec<Remark>,
    entries: Vec<Entry>,
}

/// What a text means, and what is odd about the text.
struct Reading<T> {
    meaning: T,
    /// The value in the plainest spelling, for `config show`.
    plain: Json,
    odd: Option<String>,
}

impl<T> Reading<T> {
    fn new(meaning: T, plain: impl Into<Json>) -> Self {
        Self {
            meaning,
            plain: plain.into(),
            odd: None,
        }
    }

    fn odd(mut self, sentence: Option<String>) -> Self {
        self.odd = sentence;
        self
    }
}

impl<'a> Reader<'a> {
    fn new(raw: &'a Raw) -> Self {
        Self {
            raw,
            mistakes: raw.mistakes.clone(),
            warnings: raw.warnings.clone(),
            entries: Vec::new(),
        }
    }

    fn done<T>(mut self, settings: Option<T>) -> Result<(T, Origins, Vec<Warning>), Mistakes> {
        // A row that two loads have in common is told once.
        distinct(&mut self.mistakes);
        distinct(&mut self.warnings);
        distinct(&mut self.entries);
        match settings {
            Some(settings) if self.mistakes.is_empty() => {
                let place =
                    |entry: &Entry| table::ALL.iter().position(|row| row.key == entry.row.key);
                self.entries.sort_by_key(place);
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

    fn server(&mut self, purpose: Purpose) -> Option<Settings> {
        let components = self.components();
        let log = self.log();
        let keys = self.keys();
        let port = self.port(&table::SERVER_PORT);
        let binding = self.binding(&table::SERVER_BINDING);
        let grace = self.duration(&table::SERVER_GRACE);
        let tailscale = self.tailscale(purpose);
        let state = tailscale.as_ref().map(|tailscale| tailscale.dir.clone());
        let admin = self.admin(state.as_deref());
        let gate = self.gate();
        let settings = Settings {
            components: components?,
            log: log?,
            keys: keys?,
            server: Server {
                port: port?,
                binding: binding?,
                grace: grace?,
                tailscale: tailscale?,
            },
            admin: admin?,
            gate: gate?,
        };
        self.compare_listeners(&settings);
        Some(settings)
    }

    fn client(&mut self) -> Option<ClientSettings> {
        let host = self.read(&table::CLIENT_HOST, host);
        let port = self.port(&table::CLIENT_PORT);
        let timeout = self.duration(&table::CLIENT_TIMEOUT);
        let output = self.output();
        let no_confirmation = self.bool(&table::NO_CONFIRMATION);
        let state = self.path(&table::TS_DIR);
        let socket = self.socket(state.as_deref());
        let keys_dir = self.path(&table::KEYS_DIR);
        // The server decides where nothing was typed here, so that its own setting counts.
        let size_typed = self.raw.typed(&table::KEYS_SIZE).is_some();
        let size = self.read(&table::KEYS_SIZE, size);
        let algorithm_typed = self.raw.typed(&table::KEYS_ALGORITHM).is_some();
        let algorithm = self.algorithm();
        Some(ClientSettings {
            host: host?,
            port: port?,
            timeout: timeout?,
            output: output?,
            no_confirmation: no_confirmation?,
            socket: socket?,
            keys_dir: keys_dir?,
            key_size: size.map(|bits| size_typed.then_some(bits))?,
            key_algorithm: algorithm.map(|name| algorithm_typed.then(|| name.to_owned()))?,
        })
    }

    fn output(&mut self) -> Option<OutputFormat> {
        let format = self.lenient_word(&table::OUTPUT, "text")?;
        Some(match format {
            "json" => OutputFormat::Json,
            "yaml" | "yml" => OutputFormat::Yaml,
            _ => OutputFormat::Text,
        })
    }

    fn components(&mut self) -> Option<BTreeSet<Component>> {
        let words = self.words(&table::COMPONENTS, |word| {
            match word.to_ascii_lowercase().as_str() {
                "admin" => Ok("admin"),
                "gate" => Ok("gate"),
                "issuer" => Ok("issuer"),
                lower => Err(
                    match suggestion(lower, ["admin", "gate", "issuer"].into_iter()) {
                        Some(meant) => format!("no component {lower}; did you mean {meant}?"),
                        None => format!("no component {lower}; there are issuer, admin and gate"),
                    },
                ),
            }
        })?;
        if words.is_empty() {
            self.mistake(
                &table::COMPONENTS,
                None,
                "no component, so nothing would run: name one of issuer, admin and gate".into(),
            );
            return None;
        }
        Some(
            words
                .into_iter()
                .map(|word| match word {
                    "admin" => Component::Admin,
                    "gate" => Component::Gate,
                    _ => Component::Issuer,
                })
                .collect(),
        )
    }

    fn log(&mut self) -> Option<Log> {
        let level = self.lenient_word(&table::LOG_LEVEL, "info");
        let format = self.lenient_word(&table::LOG_FORMAT, "console");
        let no_color = self.no_color();
        Some(Log {
            level: match level? {
                "trace" => LogLevel::Trace,
                "debug" => LogLevel::Debug,
                "warn" => LogLevel::Warn,
                "error" => LogLevel::Error,
                _ => LogLevel::Info,
            },
            format: match format? {
                "json" => LogFormat::Json,
                _ => LogFormat::Console,
            },
            no_color: no_color?,
        })
    }

    /// `NO_COLOR` (no-color.org) holds where the setting itself was not typed.
    fn no_color(&mut self) -> Option<bool> {
        let row = &table::LOG_NO_COLOR;
        if self.raw.typed(row).is_none() && self.raw.no_color {
            self.entries.push(Entry {
                row,
                value: true.into(),
                origin: Origin::Variable("NO_COLOR".into()),
            });
            return Some(true);
        }
        self.bool(row)
    }

    fn keys(&mut self) -> Option<Keys> {
        let dir = self.path(&table::KEYS_DIR);
        let issuer = self.read(&table::KEYS_ISSUER, text);
        let expiry = self.whole_seconds(&table::KEYS_EXPIRY);
        let prefix = self.read(&table::KEY_PREFIX, prefix);
        let algorithm = self.algorithm();
        let bits = self.read(&table::KEYS_SIZE, size);
        let rotate_every = self.duration(&table::KEYS_ROTATE_EVERY);
        let cache_time = self.duration(&table::KEYS_CACHE_TIME);
        let skew = self.duration(&table::KEYS_SKEW);
        let publish = self.publish(dir.as_deref());
        if let (Some(every), Some(cache)) = (rotate_every, cache_time)
            && !every.is_zero()
            && every <= cache
        {
            self.mistake(
                &table::KEYS_ROTATE_EVERY,
                Some(duration::show(every)),
                format!(
                    "a new key waits {} (keys.cacheTime) before it signs, so it would be replaced before it signs",
                    duration::show(cache)
                ),
            );
        }
        let bits = bits?;
        Some(Keys {
            dir: dir?,
            issuer: issuer?,
            expiry: expiry?,
            prefix: prefix?,
            spec: match algorithm? {
                "ES256" => KeySpec::Es256,
                "EdDSA" => KeySpec::EdDsa,
                _ => KeySpec::Rs256 { bits },
            },
            rotate_every: Some(rotate_every?).filter(|every| !every.is_zero()),
            cache_time: cache_time?,
            skew: skew?,
            publish: publish?,
        })
    }

    fn algorithm(&mut self) -> Option<&'static str> {
        self.word(&table::KEYS_ALGORITHM)
    }

    fn publish(&mut self, keys_dir: Option<&Path>) -> Option<Publish> {
        let bucket = self.read(&table::KEYS_BUCKET, bucket);
        let key_path = self.read(&table::KEYS_KEY_PATH, |typed, origin| {
            let mut reading = text(typed, origin)?;
            if reading.meaning.is_empty()
                && let Default::Text(default) = table::KEYS_KEY_PATH.default
            {
                reading.meaning = default.to_owned();
                reading.plain = default.into();
            }
            Ok(reading)
        });
        let endpoint = self.url(&table::KEYS_S3_ENDPOINT);
        let path_style = self.bool(&table::KEYS_S3_PATH_STYLE);
        let file = self.raw.typed(&table::KEYS_JWKS_FILE).is_some();
        let (bucket, key_path, endpoint, path_style) = (bucket?, key_path?, endpoint?, path_style?);
        if bucket.is_empty() {
            for row in [&table::KEYS_S3_ENDPOINT, &table::KEYS_S3_PATH_STYLE] {
                if let Some(typed) = self.raw.typed(row) {
                    self.warnings.push(Remark {
                        origin: typed.origin.clone(),
                        value: None,
                        sentence: "has no effect without keys.bucket".into(),
                    });
                }
            }
            let path = if file {
                self.path(&table::KEYS_JWKS_FILE)?
            } else {
                let path = keys_dir?.join("jwks.json");
                self.derived(&table::KEYS_JWKS_FILE, &path);
                path
            };
            return Some(Publish::File { path });
        }
        if file {
            let other = self
                .raw
                .typed(&table::KEYS_BUCKET)
                .map_or_else(String::new, |typed| format!(" ({})", typed.origin));
            self.mistake(
                &table::KEYS_JWKS_FILE,
                None,
                format!("keys.bucket{other} is set too: the JWKS is published in one place"),
            );
            return None;
        }
        Some(Publish::S3 {
            bucket,
            key_path,
            endpoint,
            path_style,
        })
    }

    fn tailscale(&mut self, purpose: Purpose) -> Option<Tailscale> {
        let authkey = match purpose {
            Purpose::Housekeeping => Some(None),
            Purpose::Start => self.secret(&table::TS_AUTHKEY),
        };
        let dir = self.path(&table::TS_DIR);
        let hostname = self.read(&table::TS_HOSTNAME, hostname);
        let control_url = self.url(&table::TS_CONTROL_URL);
        let ephemeral = self.bool(&table::TS_EPHEMERAL);
        let tags = self.words(&table::TS_TAGS, tag);
        let join_timeout = self.duration(&table::TS_JOIN_TIMEOUT);
        let join_retry = self.duration(&table::TS_JOIN_RETRY);
        let upload_logs = self.bool(&table::TS_UPLOAD_LOGS);
        Some(Tailscale {
            authkey: authkey?,
            dir: dir?,
            hostname: hostname?,
            control_url: control_url?,
            ephemeral: ephemeral?,
            tags: tags?,
            join_timeout: join_timeout?,
            join_retry: join_retry?,
            upload_logs: upload_logs?,
        })
    }

    fn admin(&mut self, state: Option<&Path>) -> Option<Admin> {
        let port = self.port(&table::ADMIN_PORT);
        let binding = self.binding(&table::ADMIN_BINDING);
        let authorization = self.word(&table::ADMIN_AUTHORIZATION);
        let socket = self.socket(state);
        Some(Admin {
            port: port?,
            binding: binding?,
            authorization: match authorization? {
                "open" => Authorization::Open,
                _ => Authorization::Grant,
            },
            socket: socket?,
        })
    }

    fn gate(&mut self) -> Option<Gate> {
        let port = self.port(&table::GATE_PORT);
        let binding = self.binding(&table::GATE_BINDING);
        let upstreams = self.words(&table::GATE_UPSTREAM, upstream);
        let policy = self.optional_path(&table::GATE_POLICY);
        let capability = self.read(&table::GATE_CAPABILITY, text);
        let expected_tailnet = self.optional_text(&table::GATE_EXPECTED_TAILNET);
        let forward_capabilities =
            self.words(
                &table::GATE_FORWARD_CAPABILITIES,
                |word| Ok(word.to_owned()),
            );
        let token = self.bool(&table::GATE_TOKEN);
        let audience = self.optional_text(&table::GATE_TOKEN_AUDIENCE);
        let life = self.whole_seconds(&table::GATE_TOKEN_EXPIRY);
        let recheck = self.duration(&table::GATE_RECHECK);
        let auth = self.gate_auth();
        let token = match token? {
            true => Some(GateToken {
                audience: audience?,
                life: life?,
            }),
            false => None,
        };
        Some(Gate {
            port: port?,
            binding: binding?,
            upstreams: upstreams?,
            policy: policy?,
            capability: capability?,
            expected_tailnet: expected_tailnet?,
            forward_capabilities: forward_capabilities?,
            token,
            recheck: recheck?,
            auth: auth?,
        })
    }

    fn gate_auth(&mut self) -> Option<GateAuth> {
        let port = self.port(&table::GATE_AUTH_PORT);
        let proxies = self.words(&table::GATE_AUTH_PROXIES, proxy);
        let socket = self.optional_path(&table::GATE_AUTH_SOCKET);
        let socket_mode = self.read(&table::GATE_AUTH_SOCKET_MODE, socket_mode);
        let client_header = self.optional_text(&table::GATE_AUTH_CLIENT_HEADER);
        let redirect = self.url(&table::GATE_AUTH_REDIRECT);
        Some(GateAuth {
            port: port?,
            proxies: proxies?,
            socket: socket?,
            socket_mode: socket_mode?,
            client_header: client_header?,
            redirect: redirect?,
        })
    }

    fn optional_path(&mut self, row: &'static Row) -> Option<Option<PathBuf>> {
        self.read(row, |typed, origin| {
            let Reading {
                meaning,
                plain,
                odd,
            } = text(typed, origin)?;
            let path = (!meaning.is_empty()).then(|| PathBuf::from(meaning));
            Ok(Reading::new(path, plain).odd(odd))
        })
    }

    fn optional_text(&mut self, row: &'static Row) -> Option<Option<String>> {
        self.read(row, |typed, origin| {
            let Reading {
                meaning,
                plain,
                odd,
            } = text(typed, origin)?;
            Ok(Reading::new(Some(meaning).filter(|text| !text.is_empty()), plain).odd(odd))
        })
    }

    fn socket(&mut self, state: Option<&Path>) -> Option<PathBuf> {
        let row = &table::ADMIN_SOCKET;
        if self.raw.typed(row).is_none() {
            let socket = state?.join("admin.sock");
            self.derived(row, &socket);
            return Some(socket);
        }
        self.read(row, |typed, origin| {
            // The system's own limit: sun_path has 108 bytes, the last one a NUL.
            if typed.len() > 107 {
                return Err("longer than a Unix socket's path can be (107 bytes)".into());
            }
            path(typed, origin)
        })
    }

    fn compare_listeners(&mut self, settings: &Settings) {
        let both = settings.components.contains(&Component::Issuer)
            && settings.components.contains(&Component::Admin);
        let overlap = match (settings.server.binding, settings.admin.binding) {
            (Binding::Addr(one), Binding::Addr(other)) => one == other,
            (Binding::Auto, _) | (_, Binding::Auto) => true,
        };
        if both && overlap && settings.server.port == settings.admin.port {
            let origin = |row| {
                self.raw
                    .typed(row)
                    .map_or(Origin::Default, |typed: &Typed| typed.origin.clone())
            };
            let (server, admin) = (origin(&table::SERVER_PORT), origin(&table::ADMIN_PORT));
            let (row, other) = if server == Origin::Default {
                (&table::ADMIN_PORT, format!("server.port ({server})"))
            } else {
                (&table::SERVER_PORT, format!("admin.port ({admin})"))
            };
            self.mistake(
                row,
                Some(settings.server.port.to_string()),
                format!("{other} is the same: issuer and admin API need two ports"),
            );
        }
    }

    fn port(&mut self, row: &'static Row) -> Option<u16> {
        self.read(row, port)
    }

    fn binding(&mut self, row: &'static Row) -> Option<Binding> {
        self.read(row, binding)
    }

    fn bool(&mut self, row: &'static Row) -> Option<bool> {
        self.read(row, boolean)
    }

    fn path(&mut self, row: &'static Row) -> Option<PathBuf> {
        self.read(row, path)
    }

    fn url(&mut self, row: &'static Row) -> Option<Option<String>> {
        self.read(row, url)
    }

    fn duration(&mut self, row: &'static Row) -> Option<Duration> {
        let kind = row.kind;
        self.read(row, |typed, origin| bounded(kind, typed, origin))
    }

    /// For what ends up as a count of seconds on the wire.
    fn whole_seconds(&mut self, row: &'static Row) -> Option<Duration> {
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

    /// One of the row's words; any other is a mistake.
    fn word(&mut self, row: &'static Row) -> Option<&'static str> {
        self.read(row, |typed, _| {
            let word = known_word(row, typed).ok_or_else(|| strange_word(row, typed))?;
            Ok(Reading::new(word, word))
        })
    }

    /// One of the row's words; any other means `fallback`, as in the original, with a warning.
    fn lenient_word(&mut self, row: &'static Row, fallback: &'static str) -> Option<&'static str> {
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

    /// A list by commas or blanks, in a file also a list proper.
    fn words<T>(
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

    /// A secret, itself or as `file:PATH`. Its text is in no remark.
    fn secret(&mut self, row: &'static Row) -> Option<Option<Secret>> {
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
                            "everybody on this machine can read it in the list of processes; use {} or file:PATH",
                            row.file_variable().unwrap_or_default()
                        ),
                    });
                }
                Ok(Secret::new(text.trim_end_matches(['\r', '\n'])))
            }
        };
        match read.and_then(|secret| whole_secret(&secret).map(|()| secret)) {
            Ok(secret) => {
                let secret = Some(secret).filter(|secret| !secret.reveal().is_empty());
                self.entries.push(Entry {
                    row,
                    value: if secret.is_some() { "(hidden)" } else { "" }.into(),
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

    /// Reads a row that is one text.
    fn read<T>(
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

    fn typed(&self, row: &Row) -> Typed {
        let default = match row.default {
            Default::Text(text) => text,
            Default::Derived(_) | Default::Empty => "",
        };
        self.raw.typed(row).cloned().unwrap_or(Typed {
            value: default.into(),
            origin: Origin::Default,
        })
    }

    fn derived(&mut self, row: &'static Row, path: &Path) {
        self.entries.push(Entry {
            row,
            value: path.display().to_string().into(),
            origin: Origin::Default,
        });
    }

    fn mistake(&mut self, row: &Row, value: Option<String>, sentence: String) {
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

/// What no setting may hold: it would be cut or misread further down (a NUL ends a C string, a newline forges a log line).
fn fit(text: &str) -> Result<(), String> {
    if text.len() > LONGEST {
        return Err(format!("longer than {LONGEST} bytes"));
    }
    if text
        .trim_end_matches(['\r', '\n'])
        .chars()
        .any(char::is_control)
    {
        return Err("holds a control character".into());
    }
    Ok(())
}

/// A text as it is. A newline at the end, which a value that was read from a file often has, is no part of it.
fn text(typed: &str, _: &Origin) -> Result<Reading<String>, String> {
    let text = typed.trim_end_matches(['\r', '\n']);
    Ok(Reading::new(text.to_owned(), text))
}

/// `[host][/path]=http://host:port`, with `h2c` for HTTP/2 without TLS. What host and path may be is the gate's business.
fn upstream(word: &str) -> Result<Upstream, String> {
    let (place, url) = match word.split_once('=') {
        Some((place, url)) => (place, url),
        None => ("", word),
    };
    let (address, h2c) = match (url.strip_prefix("http://"), url.strip_prefix("h2c://")) {
        (Some(address), _) => (address, false),
        (_, Some(address)) => (address, true),
        _ => {
            return Err(
                "not http://host:port or h2c://host:port, after host, /path or both and =".into(),
            );
        }
    };
    let address = address.strip_suffix('/').unwrap_or(address);
    if address.is_empty() || address.contains(['/', '?', '#', '@']) {
        return Err("an upstream's address is host:port, without path and user".into());
    }
    let (host, path) = match place.find('/') {
        Some(at) => place.split_at(at),
        None => (place, ""),
    };
    Ok(Upstream {
        host: host.to_owned(),
        path: path.to_owned(),
        address: address.to_owned(),
        h2c,
    })
}

/// A proxy is named by what only it has.
fn proxy(word: &str) -> Result<String, String> {
    let fits = word.starts_with("tag:") || word.contains('@') && !word.contains('*');
    if fits {
        Ok(word.to_owned())
    } else {
        Err("a proxy is named by its tag (tag:name) or its user's login".into())
    }
}

fn socket_mode(typed: &str, _: &Origin) -> Result<Reading<u32>, String> {
    let mode = u32::from_str_radix(typed.trim(), 8)
        .ok()
        .filter(|mode| *mode <= 0o777)
        .ok_or("not a file mode in octal, such as 0660")?;
    Ok(Reading::new(mode, format!("{mode:04o}")))
}

fn path(typed: &str, origin: &Origin) -> Result<Reading<PathBuf>, String> {
    let text = text(typed, origin)?.meaning;
    if text.is_empty() {
        return Err("an empty path".into());
    }
    Ok(Reading::new(PathBuf::from(&text), text))
}

fn boolean(typed: &str, _: &Origin) -> Result<Reading<bool>, String> {
    // Go's own words for it, no others.
    let value = match typed.trim() {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => true,
        "0" | "f" | "F" | "false" | "FALSE" | "False" => false,
        _ => return Err("not true or false".into()),
    };
    Ok(Reading::new(value, value))
}

/// An integer as the Go program read it: `80`, `0x50`, `0o120`, `0b1010000`, `0120` (octal), `8_0` only with a prefix, `80.0`.
fn integer(typed: &str) -> Option<i64> {
    let text = typed.trim();
    let text = match text.split_once('.') {
        Some((whole, zeros)) if zeros.bytes().all(|byte| byte == b'0') => whole,
        Some(_) => return None,
        None => text,
    };
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let lower = digits.to_ascii_lowercase();
    let (base, rest) = if let Some(rest) = lower.strip_prefix("0x") {
        (16, rest)
    } else if let Some(rest) = lower.strip_prefix("0b") {
        (2, rest)
    } else if let Some(rest) = lower.strip_prefix("0o") {
        (8, rest)
    } else if lower.len() > 1 && lower.starts_with('0') {
        (8, &lower[1..])
    } else {
        (10, lower.as_str())
    };
    // Go lets one underscore stand between two digits, or between prefix and digit.
    let between = if base == 10 {
        rest
    } else {
        rest.strip_prefix('_').unwrap_or(rest)
    };
    let sound = !between.is_empty()
        && between
            .split('_')
            .all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric()));
    if !sound {
        return None;
    }
    let value = i64::from_str_radix(&between.replace('_', ""), base).ok()?;
    Some(if negative { -value } else { value })
}

/// A leading zero makes a number octal in Go, which few expect.
fn octal(typed: &str, value: i64) -> Option<String> {
    let digits = typed.trim().trim_start_matches(['+', '-']);
    (digits.len() > 1
        && digits
            .bytes()
            .all(|byte| byte.is_ascii_digit() || byte == b'_')
        && digits.starts_with('0'))
    .then(|| format!("the leading 0 makes it octal: taken as {value}"))
}

fn port(typed: &str, origin: &Origin) -> Result<Reading<u16>, String> {
    if typed.starts_with("tcp://") && matches!(origin, Origin::Variable(_)) {
        // Kubernetes puts the address of every service into such variables.
        return Err(
            "not a port (1-65535); Kubernetes made this variable for a service of that name: set enableServiceLinks to false or rename the service"
                .into(),
        );
    }
    let number = integer(typed);
    let port = number
        .and_then(|number| u16::try_from(number).ok())
        .filter(|port| *port != 0)
        .ok_or("not a port (1-65535)")?;
    Ok(Reading::new(port, port).odd(octal(typed, i64::from(port))))
}

fn size(typed: &str, _: &Origin) -> Result<Reading<u32>, String> {
    let size = integer(typed)
        .and_then(|number| u32::try_from(number).ok())
        .filter(|size| table::SIZES.contains(size))
        .ok_or("not the size of an RSA key: 2048, 3072 or 4096")?;
    Ok(Reading::new(size, size).odd(octal(typed, i64::from(size))))
}

fn binding(typed: &str, _: &Origin) -> Result<Reading<Binding>, String> {
    let text = typed.trim();
    if text.is_empty() || text.eq_ignore_ascii_case("auto") {
        return Ok(Reading::new(Binding::Auto, "auto"));
    }
    let bare = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'))
        .unwrap_or(text);
    let address: IpAddr = bare.parse().map_err(|_| {
        "not auto or an IP address; a host name cannot be bound on the tailnet".to_owned()
    })?;
    if address.is_unspecified() {
        return Ok(Reading::new(Binding::Auto, "auto").odd(Some(
            "no tailnet address; taken as auto (the Go program listened and nothing reached it)"
                .into(),
        )));
    }
    Ok(Reading::new(Binding::Addr(address), address.to_string()))
}

fn bounded(kind: Kind, typed: &str, origin: &Origin) -> Result<Reading<Duration>, String> {
    let (least, most, off) = match kind {
        Kind::Duration { least, most, off } => (least, most, off),
        _ => (Duration::ZERO, Duration::MAX, false),
    };
    let text = typed.trim();
    if off && text.eq_ignore_ascii_case("off") {
        return Ok(Reading::new(Duration::ZERO, "off"));
    }
    // The Go program's flags refused a bare number; in variables and files it meant nanoseconds.
    let bare = match origin {
        Origin::Flag(_) => None,
        _ if text == "0" => None,
        _ => duration::parse_bare(text),
    };
    let bare_number = bare.is_some();
    let read = bare
        .unwrap_or_else(|| duration::parse(text))
        .map_err(|trouble| trouble.to_string())?;
    let shown = duration::show(read.size);
    let bounds = format!("{} to {}", duration::show(least), duration::show(most));
    let meant = if bare_number {
        format!("a number without a unit is nanoseconds ({shown}); ")
    } else {
        String::new()
    };
    if read.negative {
        return Err(format!("{meant}negative; it may be {bounds}"));
    }
    if off && read.size.is_zero() {
        return Ok(Reading::new(Duration::ZERO, "off"));
    }
    if read.size < least || read.size > most {
        return Err(format!("{meant}out of bounds; it may be {bounds}"));
    }
    let odd = bare_number.then(|| {
        format!("a number without a unit is nanoseconds: taken as {shown}; write {shown}")
    });
    Ok(Reading::new(read.size, shown).odd(odd))
}

fn url(typed: &str, _: &Origin) -> Result<Reading<Option<String>>, String> {
    let text = typed.trim();
    if text.is_empty() {
        return Ok(Reading::new(None, ""));
    }
    let fine = text
        .parse::<http::Uri>()
        .ok()
        .filter(|uri| matches!(uri.scheme_str(), Some("http" | "https")))
        .and_then(|uri| uri.authority().cloned())
        .filter(|authority| !authority.host().is_empty());
    match fine {
        None => Err("not an address such as https://host".into()),
        Some(authority) if authority.as_str().contains('@') => {
            // It would show in logs and errors.
            Err("an address with a name or password in it is not taken".into())
        }
        Some(_) => Ok(Reading::new(Some(text.to_owned()), text)),
    }
}

fn prefix(typed: &str, origin: &Origin) -> Result<Reading<String>, String> {
    let reading = text(typed, origin)?;
    let prefix = &reading.meaning;
    if prefix.contains('-') {
        return Err("a - in the prefix makes key ids that cannot be read back: the time is what follows the first -".into());
    }
    let fine = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
    if prefix.is_empty() || prefix.len() > 64 || !prefix.chars().all(fine) {
        return Err("not a prefix: 1 to 64 letters, digits, _ or .".into());
    }
    Ok(reading)
}

fn bucket(typed: &str, origin: &Origin) -> Result<Reading<String>, String> {
    let reading = text(typed, origin)?;
    if reading.meaning.contains("://") || reading.meaning.contains(char::is_whitespace) {
        return Err("not the name of a bucket; write the name alone".into());
    }
    Ok(reading)
}

fn hostname(typed: &str, origin: &Origin) -> Result<Reading<String>, String> {
    let reading = text(typed, origin)?;
    let name = &reading.meaning;
    if name.is_empty() {
        return Err("an empty host name".into());
    }
    if name.len() > 63 {
        return Err("longer than a host name can be (63 bytes)".into());
    }
    let plain = name
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-');
    let odd = (!plain).then(|| {
        "not of letters, digits and - alone: the control server gives the node another name"
            .to_owned()
    });
    Ok(reading.odd(odd))
}

fn host(typed: &str, origin: &Origin) -> Result<Reading<String>, String> {
    let reading = text(typed, origin)?;
    let host = reading.meaning.trim();
    // The Go program needed brackets around an IPv6 address; both ways are right here.
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host);
    if bare.parse::<IpAddr>().is_err() {
        if bare.contains("://") || bare.contains('/') || bare.contains(char::is_whitespace) {
            return Err("not a host name or an IP address".into());
        }
        if bare.contains(':') {
            return Err(
                "not a host name or an IP address; the port is another setting (admin.client.port)"
                    .into(),
            );
        }
    }
    Ok(Reading::new(bare.to_owned(), bare))
}

fn tag(word: &str) -> Result<String, String> {
    let name = word
        .strip_prefix("tag:")
        .ok_or_else(|| format!("not a tag; did you mean tag:{word}?"))?;
    let fine = name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    if fine {
        Ok(word.to_owned())
    } else {
        Err("not a tag: tag: and a letter, then letters, digits and -".into())
    }
}

fn known_word(row: &Row, typed: &str) -> Option<&'static str> {
    let Kind::Word(words) = row.kind else {
        return None;
    };
    words
        .iter()
        .find(|word| word.eq_ignore_ascii_case(typed.trim()))
        .copied()
}

fn strange_word(row: &Row, typed: &str) -> String {
    let Kind::Word(words) = row.kind else {
        return "not known".into();
    };
    match suggestion(typed, words.iter().copied()) {
        Some(meant) => format!("not one of {}; did you mean {meant}?", words.join(", ")),
        None => format!("not one of {}", words.join(", ")),
    }
}

fn secret_file(path: &Path) -> Result<Secret, String> {
    let trouble =
        |error: &dyn fmt::Display| format!("file {} cannot be read: {error}", path.display());
    let mut bytes = zeroize::Zeroizing::new(Vec::with_capacity(LONGEST + 1));
    std::fs::File::open(path)
        .and_then(|file| file.take(LONGEST as u64 + 1).read_to_end(&mut bytes))
        .map_err(|error| trouble(&error))?;
    if bytes.len() > LONGEST {
        return Err(format!(
            "file {} is longer than {LONGEST} bytes",
            path.display()
        ));
    }
    let text = std::str::from_utf8(&bytes).map_err(|_| trouble(&"not text in UTF-8"))?;
    let text = text.trim_end_matches(['\r', '\n']);
    if text.is_empty() {
        return Err(format!("file {} is empty", path.display()));
    }
    Ok(Secret::new(text))
}

fn whole_secret(secret: &Secret) -> Result<(), String> {
    if secret.reveal().len() > LONGEST {
        return Err(format!("longer than {LONGEST} bytes"));
    }
    if secret
        .reveal()
        .contains(|c: char| c.is_control() || c.is_whitespace())
    {
        return Err("holds blanks, line ends or control characters".into());
    }
    Ok(())
}
