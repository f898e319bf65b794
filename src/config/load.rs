//! From what was typed to what it means.
//!
//! Every row is read, however many are wrong before it, so that all mistakes are told at once. Where the Go program took a wrong
//! value in silence, this either takes it with a warning or refuses it with a sentence; `docs/compatibility.md` lists which.
//! Nothing is opened here but the file that holds a secret: whether a directory or a bucket exists is the components' business.

mod listeners;
mod otlp;
mod sts;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::Value as Json;

use super::{
    duration,
    meaning::{
        HIDDEN, Reading, binding, boolean, bounded, bucket, count, fit, host, hostname, known_word,
        memory, path, port, prefix, proxy, secret_file, size, socket_mode, strange_word, tag, text,
        upstream, url, whole_secret,
    },
    raw::{Raw, Typed, Value, suggestion},
    report::{Mistakes, Origin, Remark, Warning},
    secret::Secret,
    settings::{
        Admin, Authorization, Binding, ClientSettings, Component, Gate, GateAuth, GateToken,
        KeySpec, Keys, Limits, Log, LogFormat, LogLevel, Metrics, NodeState, OutputFormat, Publish,
        Server, Settings, Tailscale,
    },
    table::{self, Default, Row},
};
use crate::web::{self, Allowed, HostPattern};

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

/// Settings with where they came from and what is odd about them, or everything that is wrong.
pub type Loaded<T> = Result<(T, Origins, Vec<Warning>), Mistakes>;

/// Loads the settings of `tailbone server …`.
pub fn load(raw: &Raw, purpose: Purpose) -> Loaded<Settings> {
    let mut reader = Reader::new(raw);
    let settings = reader.server(purpose);
    reader.done(settings)
}

/// Loads the settings of `tailbone keys …`. Mistakes in settings that only a server reads do not stop it.
pub fn load_client(raw: &Raw) -> Loaded<ClientSettings> {
    let mut reader = Reader::new(raw);
    let settings = reader.client();
    reader.done(settings)
}

/// Loads what `tailbone policy …` reads: the file of rules, the capability of grants, and how results are printed.
pub fn load_policy(raw: &Raw) -> Loaded<(Option<PathBuf>, String, OutputFormat)> {
    let mut reader = Reader::new(raw);
    let file = reader.optional_path(&table::GATE_POLICY);
    let capability = reader.read(&table::GATE_CAPABILITY, text);
    let format = reader.output();
    let settings = file.zip(capability).zip(format);
    reader.done(settings.map(|((file, capability), format)| (file, capability, format)))
}

/// Loads everything there is, for `tailbone config …`.
pub fn load_all(raw: &Raw) -> Loaded<(Settings, ClientSettings)> {
    let mut reader = Reader::new(raw);
    let server = reader.server(Purpose::Start);
    let client = reader.client();
    reader.done(server.zip(client))
}

/// Loads the settings of a `tailbone server …` command that prints a result.
pub fn load_with_output(raw: &Raw, purpose: Purpose) -> Loaded<(Settings, OutputFormat)> {
    let mut reader = Reader::new(raw);
    let settings = reader.server(purpose);
    let format = reader.output();
    reader.done(settings.zip(format))
}

/// How results are printed, for a command that needs no other setting.
pub fn load_output(raw: &Raw) -> Loaded<OutputFormat> {
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

impl<'a> Reader<'a> {
    fn new(raw: &'a Raw) -> Self {
        Self {
            raw,
            mistakes: raw.mistakes.clone(),
            warnings: raw.warnings.clone(),
            entries: Vec::new(),
        }
    }

    fn done<T>(mut self, settings: Option<T>) -> Loaded<T> {
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
        let allowed_hosts = self.allowed(&table::SERVER_ALLOWED_HOSTS, HostPattern::parse);
        let allowed_origins = self.allowed(&table::SERVER_ALLOWED_ORIGINS, web::Origin::parse);
        let grace = self.duration(&table::SERVER_GRACE);
        let limits = self.limits();
        let memory = self.read(&table::LIMIT_MEMORY, |typed, _| {
            memory(table::LIMIT_MEMORY.kind, typed)
        });
        let tailscale = self.tailscale(purpose);
        let otlp = self.otlp(purpose);
        let state = tailscale.as_ref().map(|tailscale| tailscale.dir.clone());
        let admin = self.admin(state.as_deref());
        let metrics = self.metrics();
        let gate = self.gate(keys.as_ref().map(|keys| keys.issuer.as_str()));
        let exchanges = |components: &BTreeSet<Component>| components.contains(&Component::Sts);
        let sts = self.sts(components.as_ref().is_some_and(exchanges));
        let settings = Settings {
            components: components?,
            log: log?,
            keys: keys?,
            server: Server {
                port: port?,
                binding: binding?,
                allowed_hosts: allowed_hosts?,
                allowed_origins: allowed_origins?,
                grace: grace?,
                limits: limits?,
                memory: memory?,
                tailscale: tailscale?,
                otlp: otlp?,
            },
            admin: admin?,
            metrics: metrics?,
            gate: gate?,
            sts: sts?,
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
                "metrics" => Ok("metrics"),
                "sts" => Ok("sts"),
                lower => Err(
                    match suggestion(lower, ["admin", "gate", "issuer", "metrics", "sts"].into_iter()) {
                        Some(meant) => format!("no component {lower}; did you mean {meant}?"),
                        None => {
                            format!("no component {lower}; there are issuer, admin, gate, sts and metrics")
                        }
                    },
                ),
            }
        })?;
        if words.is_empty() {
            self.mistake(
                &table::COMPONENTS,
                None,
                "no component, so nothing would run: name issuer, admin, gate, sts or metrics"
                    .into(),
            );
            return None;
        }
        Some(
            words
                .into_iter()
                .map(|word| match word {
                    "admin" => Component::Admin,
                    "metrics" => Component::Metrics,
                    "gate" => Component::Gate,
                    "sts" => Component::Sts,
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
                // TailSTS's switch holds where our setting was not typed.
                _ if self.raw.json_logging && self.raw.typed(&table::LOG_FORMAT).is_none() => {
                    LogFormat::Json
                }
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
                self.derived(&table::KEYS_JWKS_FILE, &path.display().to_string());
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
        // Housekeeping joins nothing, so a secret that it may not even read is no mistake of its own.
        let mut secret = |row| match purpose {
            Purpose::Housekeeping => Some(None),
            Purpose::Start => self.secret(row),
        };
        let authkey = secret(&table::TS_AUTHKEY);
        let client_secret = secret(&table::TS_CLIENT_SECRET);
        let id_token = secret(&table::TS_ID_TOKEN);
        let client_id = self.optional_text(&table::TS_CLIENT_ID);
        let audience = self.optional_text(&table::TS_AUDIENCE);
        let state = self.node_state();
        let dir = self.path(&table::TS_DIR);
        let hostname = self.read(&table::TS_HOSTNAME, hostname);
        let control_url = self.url(&table::TS_CONTROL_URL);
        let ephemeral = self.bool(&table::TS_EPHEMERAL);
        let tags = self.words(&table::TS_TAGS, tag);
        let join_timeout = self.duration(&table::TS_JOIN_TIMEOUT);
        let join_retry = self.duration(&table::TS_JOIN_RETRY);
        let wait_for_dir = self.bool(&table::TS_WAIT_FOR_DIR);
        let upload_logs = self.bool(&table::TS_UPLOAD_LOGS);
        let not_read = match purpose {
            Purpose::Housekeeping => &[][..],
            Purpose::Start => &self.raw.of_tsnet,
        };
        for (name, row) in not_read {
            self.warnings.push(Remark {
                origin: Origin::Variable((*name).to_owned()),
                value: None,
                sentence: format!("not read; for the node it is {}", row.variable()),
            });
        }
        if state == Some(NodeState::Memory) && ephemeral == Some(false) {
            self.mistake(
                &table::TS_STATE,
                Some("mem".into()),
                "a node that forgets itself must be ephemeral: set server.tailscale.ephemeral"
                    .into(),
            );
            return None;
        }
        Some(Tailscale {
            authkey: authkey?,
            state: state?,
            client_secret: client_secret?,
            client_id: client_id?,
            id_token: id_token?,
            audience: audience?,
            dir: dir?,
            hostname: hostname?,
            control_url: control_url?,
            ephemeral: ephemeral?,
            tags: tags?,
            join_timeout: join_timeout?,
            join_retry: join_retry?,
            wait_for_dir: wait_for_dir?,
            upload_logs: upload_logs?,
        })
    }

    fn node_state(&mut self) -> Option<NodeState> {
        self.read(&table::TS_STATE, |typed, origin| {
            let Reading {
                meaning,
                plain,
                odd,
            } = text(typed, origin)?;
            let state = match meaning.as_str() {
                "dir" => NodeState::Dir,
                "mem" => NodeState::Memory,
                other => match other.strip_prefix("kube:") {
                    Some(name) if !name.is_empty() => NodeState::Kube(name.to_owned()),
                    _ => return Err("no place for state; there are dir, mem and kube:NAME".into()),
                },
            };
            Ok(Reading::new(state, plain).odd(odd))
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

    fn metrics(&mut self) -> Option<Metrics> {
        let port = self.port(&table::METRICS_PORT);
        let binding = self.binding(&table::METRICS_BINDING);
        Some(Metrics {
            port: port?,
            binding: binding?,
        })
    }

    fn limits(&mut self) -> Option<Limits> {
        let connections = self.count(&table::LIMIT_CONNECTIONS);
        let connections_per_peer = self.count(&table::LIMIT_CONNECTIONS_PER_PEER);
        let requests = self.count(&table::LIMIT_REQUESTS);
        let request_rate = self.count(&table::LIMIT_REQUEST_RATE);
        let request_burst = self.count(&table::LIMIT_REQUEST_BURST);
        let caller_rate = self.count(&table::LIMIT_CALLER_RATE);
        let caller_burst = self.count(&table::LIMIT_CALLER_BURST);
        let header_bytes = self.count(&table::LIMIT_HEADER_BYTES);
        let body_bytes = self.count(&table::LIMIT_BODY_BYTES);
        let header_time = self.duration(&table::LIMIT_HEADER_TIME);
        let idle_time = self.duration(&table::LIMIT_IDLE_TIME);
        let request_time = self.duration(&table::LIMIT_REQUEST_TIME);
        let call_time = self.duration(&table::LIMIT_CALL_TIME);
        let write_time = self.duration(&table::LIMIT_WRITE_TIME);
        Some(Limits {
            connections: connections?,
            connections_per_peer: connections_per_peer?,
            requests: requests?,
            request_rate: request_rate?,
            request_burst: request_burst?,
            caller_rate: caller_rate?,
            caller_burst: caller_burst?,
            header_bytes: header_bytes?,
            body_bytes: body_bytes?,
            header_time: header_time?,
            idle_time: idle_time?,
            request_time: request_time?,
            call_time: call_time?,
            write_time: write_time?,
        })
    }

    fn count(&mut self, row: &'static Row) -> Option<u32> {
        let kind = row.kind;
        self.read(row, |typed, _| count(kind, typed))
    }

    fn gate(&mut self, issuer: Option<&str>) -> Option<Gate> {
        let port = self.port(&table::GATE_PORT);
        let binding = self.binding(&table::GATE_BINDING);
        let upstreams = self.words(&table::GATE_UPSTREAM, upstream);
        let upstream_timeout = self.duration(&table::GATE_UPSTREAM_TIMEOUT);
        let upstream_ca = self.optional_path(&table::GATE_UPSTREAM_CA);
        let policy = self.optional_path(&table::GATE_POLICY);
        let capability = self.read(&table::GATE_CAPABILITY, text);
        let allowed_origins = self.allowed(&table::GATE_ALLOWED_ORIGINS, web::Origin::parse);
        let expected_tailnet = self.optional_text(&table::GATE_EXPECTED_TAILNET);
        let forward_capabilities =
            self.words(
                &table::GATE_FORWARD_CAPABILITIES,
                |word| Ok(word.to_owned()),
            );
        let token = self.bool(&table::GATE_TOKEN);
        let issuer = self.token_issuer(issuer);
        let audience = self.optional_text(&table::GATE_TOKEN_AUDIENCE);
        let life = self.whole_seconds(&table::GATE_TOKEN_EXPIRY);
        let recheck = self.duration(&table::GATE_RECHECK);
        let auth = self.gate_auth();
        let token = match token? {
            true => Some(GateToken {
                issuer: issuer?,
                audience: audience?,
                life: life?,
            }),
            false => None,
        };
        Some(Gate {
            port: port?,
            binding: binding?,
            upstreams: upstreams?,
            upstream_timeout: upstream_timeout?,
            upstream_ca: upstream_ca?,
            policy: policy?,
            capability: capability?,
            allowed_origins: allowed_origins?,
            expected_tailnet: expected_tailnet?,
            forward_capabilities: forward_capabilities?,
            token,
            recheck: recheck?,
            auth: auth?,
        })
    }

    /// Another than the issuer's, unless somebody means it: whoever reads the issuer's tokens looks at nothing else, often.
    fn token_issuer(&mut self, issuer: Option<&str>) -> Option<String> {
        let row = &table::GATE_TOKEN_ISSUER;
        if self.raw.typed(row).is_none() {
            let derived = match issuer? {
                "" => "gate".to_owned(),
                issuer => format!("{issuer}/gate"),
            };
            self.derived(row, &derived);
            return Some(derived);
        }
        let same = "is keys.issuer: whoever takes tokens of the issuer then takes those of the gate too, made for any backend";
        self.read(row, |typed, origin| {
            let reading = text(typed, origin)?;
            if reading.meaning.is_empty() {
                return Err("an empty iss claim".into());
            }
            let odd = (Some(reading.meaning.as_str()) == issuer).then(|| same.to_owned());
            Ok(reading.odd(odd))
        })
    }

    fn gate_auth(&mut self) -> Option<GateAuth> {
        let port = self.port(&table::GATE_AUTH_PORT);
        let proxies = self.words(&table::GATE_AUTH_PROXIES, proxy);
        let user_proxies = self.bool(&table::GATE_AUTH_USER_PROXIES);
        let socket = self.optional_path(&table::GATE_AUTH_SOCKET);
        let socket_mode = self.read(&table::GATE_AUTH_SOCKET_MODE, socket_mode);
        let client_header = self.optional_text(&table::GATE_AUTH_CLIENT_HEADER);
        let redirect = self.url(&table::GATE_AUTH_REDIRECT);
        Some(GateAuth {
            port: port?,
            proxies: proxies?,
            user_proxies: user_proxies?,
            socket: socket?,
            socket_mode: socket_mode?,
            client_header: client_header?,
            redirect: redirect?,
        })
    }

    /// What is allowed; `*` is everything.
    fn allowed<T: std::fmt::Display>(
        &mut self,
        row: &'static Row,
        one: impl Fn(&str) -> Result<T, String>,
    ) -> Option<Vec<Allowed<T>>> {
        self.words(row, |word| Allowed::parse(word, &one))
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
            self.derived(row, &socket.display().to_string());
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

    /// Each two listeners that there are want two ports, unless they are at different addresses.
    fn compare_listeners(&mut self, settings: &Settings) {
        let listeners = listeners::listeners(settings);
        for (at, one) in listeners.iter().enumerate() {
            for other in listeners.iter().skip(at + 1) {
                if one.port != other.port || !one.place.overlaps(other.place) {
                    continue;
                }
                let origin = |row| {
                    self.raw
                        .typed(row)
                        .map_or(Origin::Default, |typed: &Typed| typed.origin.clone())
                };
                let (first, second) = (origin(one.row), origin(other.row));
                let (told, named) = if first == Origin::Default {
                    (other.row, format!("{} ({first})", one.row.key))
                } else {
                    (one.row, format!("{} ({second})", other.row.key))
                };
                self.mistake(
                    told,
                    Some(one.port.to_string()),
                    format!(
                        "{named} is the same: {} and {} need two ports",
                        one.name, other.name
                    ),
                );
            }
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
        // Headers hold schemes and names besides secrets, and so blanks.
        let blanks = row.key == table::OTLP_HEADERS.key;
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

    fn derived(&mut self, row: &'static Row, value: &str) {
        self.entries.push(Entry {
            row,
            value: value.into(),
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
