//! Every setting once: its key, the flags that carry it, its default, its kind with bounds, and its help.
//!
//! The command line's flags, the names of the variables, `config show`, `config check` and `docs/settings.md` are made from this
//! table, so they cannot disagree. What a text means is decided in `load.rs`; here is only what may be typed where.

use std::time::Duration;

/// One setting.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// Name in a config file; nesting is written with dots.
    pub key: &'static str,
    pub kind: Kind,
    pub default: Default,
    pub help: &'static str,
    pub example: &'static str,
    flags: [Option<Flag>; 3],
    /// Variables of other programs that the setting took over, the first that is set counts; those of settings of `sts` count only
    /// where that component runs.
    pub aliases: &'static [&'static str],
}

/// A flag that carries a setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flag {
    pub long: &'static str,
    pub short: Option<char>,
    pub scope: Scope,
}

/// The commands that take a flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// `keys …`, also before the last word.
    Keys,
    /// `keys generate` and `keys rotate`.
    Make,
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

/// What may be typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
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
        /// Also `off` and `0`, which mean the same.
        off: bool,
        /// The Go program had this setting, and took a number without a unit for nanoseconds.
        bare: bool,
    },
    /// `auto`, `off`, or bytes as the Go runtime reads them: `B`, `KiB`, `MiB`, `GiB` and `TiB` after a whole number.
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
    /// Words from this list, or any where it is empty; by commas or blanks.
    Words(&'static [&'static str]),
}

/// What holds where nothing was typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Default {
    /// Made from another setting; the words say how.
    Derived(&'static str),
    Empty,
    Text(&'static str),
}

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
const MONTH: Duration = Duration::from_secs(30 * 24 * 3600);
const YEAR: Duration = Duration::from_secs(366 * 24 * 3600);

/// Sizes of an RSA modulus that are made.
pub const SIZES: &[u32] = &[2048, 3072, 4096];

/// Longest value of any setting, in bytes.
pub const LONGEST: usize = 4096;

macro_rules! rows {
    ($($name:ident = $row:expr;)*) => {
        $(pub static $name: Row = $row;)*

        /// The whole table, in the order in which it is shown.
        pub static ALL: &[&Row] = &[$(&$name),*];
    };
}

rows! {
    COMPONENTS = row("components", Kind::Words(&["issuer", "admin", "gate", "sts", "metrics"]))
        .flag("components", Scope::Start)
        .default("issuer,admin")
        .help("Parts of the program to run, by commas or blanks");
    OUTPUT = row("output", Kind::Word(&["text", "table", "json", "yaml", "yml"]))
        .short("output", 'o', Scope::Root)
        .default("text")
        .help("How results are printed; text and table are the same");
    NO_CONFIRMATION = row("no-confirmation", Kind::Bool)
        .short("yes", 'y', Scope::Remove)
        .default("false")
        .help("Do not ask before a key is removed");

    LOG_LEVEL = row("log.level", Kind::Word(&["trace", "debug", "info", "warn", "error"]))
        .flag("log-level", Scope::Server)
        .default("info")
        .help("Least level that is logged");
    LOG_FORMAT = row("log.format", Kind::Word(&["console", "json"]))
        .flag("log-format", Scope::Server)
        .default("console")
        .help("Form of the log lines");
    LOG_NO_COLOR = row("log.no_color", Kind::Bool)
        .flag("no-color", Scope::Server)
        .default("false")
        .help("No colours in console log lines; a non-empty NO_COLOR does the same");

    KEYS_DIR = row("keys.dir", Kind::Path)
        .flag("dir", Scope::Server)
        .flag("dir", Scope::Keys)
        .default("keys")
        .help("Directory of the signing keys");
    KEYS_BUCKET = row("keys.bucket", Kind::Text)
        .flag("bucket", Scope::Server)
        .default("")
        .example("acme-jwks")
        .help("S3 bucket where the JWKS is published; without one it is a file");
    KEYS_KEY_PATH = row("keys.keyPath", Kind::Text)
        .flag("key-path", Scope::Server)
        .default(".well-known/jwks.json")
        .help("Name of the JWKS object in the bucket");
    KEYS_S3_ENDPOINT = row("keys.s3.endpoint", Kind::Url)
        .flag("s3-endpoint", Scope::Server)
        .example("https://s3.example.com")
        .help("Address of an S3-compatible store; without it the AWS rules hold");
    KEYS_S3_PATH_STYLE = row("keys.s3.pathStyle", Kind::Bool)
        .flag("s3-path-style", Scope::Server)
        .default("false")
        .help("Put the bucket into the path instead of the host name");
    KEYS_JWKS_FILE = row("keys.jwksFile", Kind::Path)
        .flag("jwks-file", Scope::Server)
        .derived("jwks.json in keys.dir, unless there is a bucket")
        .example("/srv/www/jwks.json")
        .help("File where the JWKS is published");
    KEYS_ISSUER = row("keys.issuer", Kind::Text)
        .flag("issuer", Scope::Start)
        .default("tailbone")
        .help("The iss claim; left out of tokens when empty");
    KEYS_EXPIRY = row("keys.expiry", old_duration(Duration::from_secs(1), MONTH))
        .flag("expiry", Scope::Server)
        .default("20m")
        .help("Life of a token, in whole seconds");
    KEYS_ALGORITHM = row("keys.algorithm", Kind::Word(&["RS256", "ES256", "EdDSA"]))
        .flag("key-algorithm", Scope::Server)
        .flag("algorithm", Scope::Make)
        .default("RS256")
        .help("Algorithm of new keys; a Go server on the same directory signs with RS256 alone");
    KEYS_SIZE = row("keys.size", Kind::Size(SIZES))
        .flag("key-size", Scope::Server)
        .short("size", 's', Scope::Make)
        .default("2048")
        .help("Bits of a new RSA key: 2048, 3072 or 4096");
    KEYS_ROTATE_EVERY = row("keys.rotateEvery", duration_or_off(MINUTE, YEAR))
        .flag("rotate-every", Scope::Server)
        .default("off")
        .example("720h")
        .help("Age at which the signing key gets a successor");
    KEYS_CACHE_TIME = row("keys.cacheTime", duration(Duration::ZERO, DAY))
        .flag("cache-time", Scope::Server)
        .default("5m")
        .help("How long verifiers may keep the JWKS; a new key waits this long before it signs");
    KEYS_SKEW = row("keys.skew", duration(Duration::ZERO, HOUR))
        .flag("clock-skew", Scope::Server)
        .default("1m")
        .help("How far verifiers' clocks may be off");
    KEY_PREFIX = row("key.prefix", Kind::Text)
        .flag("key-prefix", Scope::Server)
        .default("tb")
        .help("First part of a new key's id: letters, digits, underscore, dot");

    SERVER_PORT = row("server.port", Kind::Port)
        .short("port", 'p', Scope::Start)
        .default("80")
        .help("Port of the issuer on the tailnet");
    SERVER_BINDING = row("server.binding", Kind::Binding)
        .short("binding", 'b', Scope::Start)
        .default("auto")
        .help("Tailnet address of the issuer; auto takes all of the node's");
    SERVER_ALLOWED_HOSTS = row("server.allowedHosts", Kind::Words(&[]))
        .flag("allowed-hosts", Scope::Start)
        .example("tailbone.example.com")
        .help("Names of one's own under which the listeners are called, besides the node's names and addresses; *.name takes all below it, * every host");
    SERVER_ALLOWED_ORIGINS = row("server.allowedOrigins", Kind::Words(&[]))
        .flag("allowed-origins", Scope::Start)
        .example("https://app.example.com")
        .help("Origins whose web pages may ask for tokens, at the issuer and at the exchange; * is every page");
    SERVER_GRACE = row("server.grace", duration(Duration::ZERO, HOUR))
        .flag("grace", Scope::Start)
        .default("10s")
        .help("Time given to open requests on a stop");
    LIMIT_CONNECTIONS = row("server.limits.connections", count(1, 1_000_000))
        .flag("limit-connections", Scope::Start)
        .default("16384")
        .help("Connections of one listener at once; further ones wait");
    LIMIT_CONNECTIONS_PER_PEER = row("server.limits.connectionsPerPeer", count(1, 1_000_000))
        .flag("limit-connections-per-peer", Scope::Start)
        .default("1024")
        .help("Connections of one peer to one listener; further ones get 503");
    LIMIT_REQUESTS = row("server.limits.requests", count(1, 1_000_000))
        .flag("limit-requests", Scope::Start)
        .default("4096")
        .help("Requests in hand of one listener at once; further ones get 503");
    LIMIT_REQUEST_RATE = row("server.limits.requestRate", count(0, 1_000_000))
        .flag("limit-request-rate", Scope::Start)
        .default("1000")
        .help("Requests a second of one peer in the long run, then 429; 0 is no limit");
    LIMIT_REQUEST_BURST = row("server.limits.requestBurst", count(1, 1_000_000))
        .flag("limit-request-burst", Scope::Start)
        .default("5000")
        .help("Requests of one peer at once before the rate counts");
    LIMIT_CALLER_RATE = row("server.limits.callerRate", count(0, 1_000_000))
        .flag("limit-caller-rate", Scope::Start)
        .default("2000")
        .help("Requests a second of one caller (a user with all devices, or a tagged machine), then 429; 0 is no limit");
    LIMIT_CALLER_BURST = row("server.limits.callerBurst", count(1, 1_000_000))
        .flag("limit-caller-burst", Scope::Start)
        .default("10000")
        .help("Requests of one caller at once before that rate counts");
    LIMIT_HEADER_BYTES = row("server.limits.headerBytes", count(8 << 10, 1 << 20))
        .flag("limit-header-bytes", Scope::Start)
        .default("16384")
        .help("Bytes of a request's head; a longer one gets 431");
    LIMIT_BODY_BYTES = row("server.limits.bodyBytes", count(1 << 10, 64 << 20))
        .flag("limit-body-bytes", Scope::Start)
        .default("65536")
        .help("Bytes of a request's body, but for what passes through the gate; a longer one gets 413");
    LIMIT_HEADER_TIME = row("server.limits.headerTime", duration(Duration::from_millis(100), HOUR))
        .flag("limit-header-time", Scope::Start)
        .default("60s")
        .help("Time for the head of a request, and for the first one of a connection");
    LIMIT_IDLE_TIME = row("server.limits.idleTime", duration(Duration::from_millis(100), HOUR))
        .flag("limit-idle-time", Scope::Start)
        .default("60s")
        .help("Silence between two requests of a connection; over HTTP/2 the time after which a ping asks whether somebody is there");
    LIMIT_REQUEST_TIME = row("server.limits.requestTime", duration(Duration::from_millis(100), HOUR))
        .flag("limit-request-time", Scope::Start)
        .default("30s")
        .help("Time for answering a request, its body included, but for what passes through the gate; then 408");
    LIMIT_CALL_TIME = row("server.limits.callTime", duration(Duration::from_secs(1), HOUR))
        .flag("limit-call-time", Scope::Start)
        .default("2m")
        .help("The same for a call of the admin API, which may wait for key changes of others");
    LIMIT_WRITE_TIME = row("server.limits.writeTime", duration(Duration::from_millis(100), HOUR))
        .flag("limit-write-time", Scope::Start)
        .default("30s")
        .help("The longest that an answer waits for its reader");
    OTLP_ENDPOINT = row("server.telemetry.otlp.endpoint", Kind::Url)
        .flag("otlp-endpoint", Scope::Start)
        .aliases(&["OTEL_EXPORTER_OTLP_ENDPOINT"])
        .example("http://127.0.0.1:4318")
        .help("Collector that traces and metrics are sent to (OTLP, http/protobuf); none without it. OTEL_EXPORTER_OTLP_ENDPOINT does the same");
    OTLP_HEADERS = row("server.telemetry.otlp.headers", Kind::Secret)
        .flag("otlp-headers", Scope::Start)
        .aliases(&["OTEL_EXPORTER_OTLP_HEADERS"])
        .example("file:/run/secrets/otlp-headers")
        .help("Headers for the collector, name=value by commas, or file:PATH of a file that holds them. OTEL_EXPORTER_OTLP_HEADERS does the same");
    OTLP_INTERVAL = row("server.telemetry.otlp.interval", duration(Duration::from_millis(100), HOUR))
        .flag("otlp-interval", Scope::Start)
        .default("1m")
        .help("Time between two exports of the metrics");
    LIMIT_MEMORY = row("server.limits.memory", Kind::Memory { least: 32 << 20 })
        .flag("limit-memory", Scope::Start)
        .default("auto")
        .example("192MiB")
        .help("Memory of the node inside (Go), above which it collects rather than grows: auto is GOMEMLIMIT, else three quarters of the cgroup's limit");
    TS_AUTHKEY = row("server.tailscale.authkey", Kind::Secret)
        .flag("ts-authkey", Scope::Start)
        .aliases(&["TS_AUTHKEY", "TS_AUTH_KEY"])
        .example("file:/run/secrets/authkey")
        .help("Auth key for the first join, or file:PATH of a file that holds it; TS_AUTHKEY means the same where nothing else to log in with is typed");
    TS_CONTROL_URL = row("server.tailscale.controlUrl", Kind::Url)
        .flag("ts-control-url", Scope::Start)
        .example("https://headscale.example.com")
        .help("Control server; without it Tailscale's own");
    TS_HOSTNAME = row("server.tailscale.hostname", Kind::Text)
        .flag("ts-hostname", Scope::Start)
        .default("tailbone")
        .help("Name of the node on the tailnet");
    TS_DIR = row("server.tailscale.dir", Kind::Path)
        .flag("ts-dir", Scope::Start)
        .default(".tsnet")
        .help("Directory of the node's state");
    TS_STATE = row("server.tailscale.state", Kind::Text)
        .flag("ts-state", Scope::Start)
        .default("dir")
        .example("kube:tailbone-state")
        .help("Where the node's state is kept: dir, mem (gone with the process, ephemeral nodes only), or kube:NAME of a Kubernetes secret");
    TS_CLIENT_SECRET = row("server.tailscale.clientSecret", Kind::Secret)
        .flag("ts-client-secret", Scope::Start)
        .example("file:/run/secrets/client")
        .help("OAuth client secret to join with instead of an auth key; needs tags");
    TS_CLIENT_ID = row("server.tailscale.clientId", Kind::Text)
        .flag("ts-client-id", Scope::Start)
        .default("")
        .example("k123456CNTRL")
        .help("Client of a federated identity to join with, with an ID token or an audience; needs tags");
    TS_ID_TOKEN = row("server.tailscale.idToken", Kind::Secret)
        .flag("ts-id-token", Scope::Start)
        .example("file:/run/secrets/id-token")
        .help("ID token of that identity, or file:PATH of a file that holds it");
    TS_AUDIENCE = row("server.tailscale.audience", Kind::Text)
        .flag("ts-audience", Scope::Start)
        .default("")
        .help("Audience to ask the cloud's own token endpoint for, instead of an ID token");
    TS_EPHEMERAL = row("server.tailscale.ephemeral", Kind::Bool)
        .flag("ts-ephemeral", Scope::Start)
        .default("false")
        .help("Let the control server forget the node when it goes away");
    TS_TAGS = row("server.tailscale.tags", Kind::Words(&[]))
        .flag("ts-tags", Scope::Start)
        .example("tag:tailbone")
        .help("Tags the node asks for, by commas or blanks");
    TS_JOIN_TIMEOUT = row("server.tailscale.joinTimeout", old_duration(Duration::from_millis(100), DAY))
        .flag("ts-join-timeout", Scope::Start)
        .default("60s")
        .help("Time given to the join before it is a failure");
    TS_JOIN_RETRY = row("server.tailscale.joinRetry", old_duration(Duration::from_millis(10), HOUR))
        .flag("ts-join-retry", Scope::Start)
        .default("1s")
        .help("Wait between two attempts to join");
    TS_WAIT_FOR_DIR = row("server.tailscale.waitForDir", Kind::Bool)
        .flag("ts-wait-for-dir", Scope::Start)
        .default("false")
        .help("Keep trying while the state directory cannot be made or written, for a volume that comes later; otherwise the start ends at once");
    TS_UPLOAD_LOGS = row("server.tailscale.uploadLogs", Kind::Bool)
        .flag("ts-upload-logs", Scope::Start)
        .default("false")
        .help("Send the node's own log to Tailscale");

    ADMIN_PORT = row("admin.port", Kind::Port)
        .flag("admin-port", Scope::Start)
        .default("50051")
        .help("Port of the admin API on the tailnet");
    ADMIN_BINDING = row("admin.binding", Kind::Binding)
        .flag("admin-binding", Scope::Start)
        .default("auto")
        .help("Tailnet address of the admin API; auto takes all of the node's");
    ADMIN_AUTHORIZATION = row("admin.authorization", Kind::Word(&["grant", "open"]))
        .flag("admin-authorization", Scope::Start)
        .default("grant")
        .help("Who may administer: owner, local socket or grant; or whoever reaches the port");
    ADMIN_SOCKET = row("admin.socket", Kind::Path)
        .flag("admin-socket", Scope::Start)
        .flag("admin-socket", Scope::Keys)
        .flag("admin-socket", Scope::Policy)
        .derived("admin.sock in server.tailscale.dir")
        .example("/run/tailbone/admin.sock")
        .help("Local admin socket");
    METRICS_PORT = row("metrics.port", Kind::Port)
        .flag("metrics-port", Scope::Start)
        .default("9090")
        .help("Port of the metrics");
    METRICS_BINDING = row("metrics.binding", Kind::Binding)
        .flag("metrics-binding", Scope::Start)
        .default("auto")
        .example("127.0.0.1")
        .help("Tailnet address of the metrics; auto takes all of the node's, a loopback address the machine's own");
    CLIENT_HOST = row("admin.client.host", Kind::Text)
        .flag("host", Scope::Keys)
        .default("")
        .example("tailbone")
        .help("Server to administer; without one the local admin socket");
    CLIENT_PORT = row("admin.client.port", Kind::Port)
        .flag("port", Scope::Keys)
        .default("50051")
        .help("Port of that server's admin API");
    CLIENT_TIMEOUT = row("admin.client.timeout", duration(Duration::from_millis(100), HOUR))
        .flag("timeout", Scope::Keys)
        .default("30s")
        .help("Time given to one call of the admin API");

    GATE_PORT = row("gate.port", Kind::Port)
        .flag("gate-port", Scope::Start)
        .default("8082")
        .help("Port of the gate's reverse proxy on the tailnet");
    GATE_BINDING = row("gate.binding", Kind::Binding)
        .flag("gate-binding", Scope::Start)
        .default("auto")
        .help("Tailnet address of the gate; auto takes all of the node's");
    GATE_UPSTREAM = row("gate.upstream", Kind::Words(&[]))
        .flag("gate-upstream", Scope::Start)
        .example("http://127.0.0.1:3000")
        .help("Services behind the reverse proxy: http, https, h2c or h2 (HTTP/2 with TLS) and address, after host, path or both and = where there are several");
    GATE_UPSTREAM_TIMEOUT = row("gate.upstreamTimeout", duration_or_off(Duration::from_millis(10), DAY))
        .flag("gate-upstream-timeout", Scope::Start)
        .default("5m")
        .help("Time given to a service until its answer begins, or off; for uploads the clock begins anew with each part");
    GATE_UPSTREAM_CA = row("gate.upstreamCa", Kind::Path)
        .flag("gate-upstream-ca", Scope::Start)
        .example("/etc/tailbone/upstream-ca.pem")
        .help("PEM file of those who may have signed the certificates of https and h2 services; without one, whom the system trusts");
    GATE_POLICY = row("gate.policy", Kind::Path)
        .flag("gate-policy", Scope::Start)
        .flag("policy", Scope::Policy)
        .example("/etc/tailbone/policy.toml")
        .help("File of rules that say who may do what; without one, grants of the tailnet decide alone");
    GATE_CAPABILITY = row("gate.capability", Kind::Text)
        .flag("gate-capability", Scope::Start)
        .flag("capability", Scope::Policy)
        .default("tailbone.dev/cap/gate")
        .help("Capability of the grants that are asked before the file");
    GATE_ALLOWED_ORIGINS = row("gate.allowedOrigins", Kind::Words(&[]))
        .flag("gate-allowed-origins", Scope::Start)
        .example("https://app.example.com")
        .help("Origins whose web pages may open WebSockets and send other methods than GET, HEAD and OPTIONS to the services behind the gate, besides each service's own pages; * is every page");
    GATE_EXPECTED_TAILNET = row("gate.expectedTailnet", Kind::Text)
        .flag("gate-expected-tailnet", Scope::Start)
        .default("")
        .example("tailnet-x.ts.net")
        .help("MagicDNS suffix that callers must have");
    GATE_FORWARD_CAPABILITIES = row("gate.forwardCapabilities", Kind::Words(&[]))
        .flag("gate-forward-capabilities", Scope::Start)
        .example("example.com/cap/wiki")
        .help("Capabilities whose values backends are told, in Tailscale-App-Capabilities");
    GATE_TOKEN = row("gate.token", Kind::Bool)
        .flag("gate-token", Scope::Start)
        .default("false")
        .help("Give backends a signed JWT about the caller, in Tailbone-Token");
    GATE_TOKEN_ISSUER = row("gate.tokenIssuer", Kind::Text)
        .flag("gate-token-issuer", Scope::Start)
        .derived("keys.issuer and /gate")
        .example("tailbone/gate")
        .help("The iss claim of that token; another than keys.issuer, so that nobody takes it for a token of the issuer");
    GATE_TOKEN_AUDIENCE = row("gate.tokenAudience", Kind::Text)
        .flag("gate-token-audience", Scope::Start)
        .default("")
        .help("The aud claim of that token; the host that was asked for when empty, which every upstream must then name");
    GATE_TOKEN_EXPIRY = row("gate.tokenExpiry", duration(Duration::from_secs(1), HOUR))
        .flag("gate-token-expiry", Scope::Start)
        .default("1m")
        .help("Life of that token, in whole seconds");
    GATE_RECHECK = row("gate.recheck", duration(Duration::from_millis(10), HOUR))
        .flag("gate-recheck", Scope::Start)
        .default("10s")
        .help("How often open streams and WebSockets are decided about again when nothing has changed");
    GATE_AUTH_PORT = row("gate.auth.port", Kind::Port)
        .flag("gate-auth-port", Scope::Start)
        .default("8083")
        .help("Port of forward-auth on the tailnet, where gate.auth.proxies names somebody");
    GATE_AUTH_PROXIES = row("gate.auth.proxies", Kind::Words(&[]))
        .flag("gate-auth-proxies", Scope::Start)
        .example("tag:proxy")
        .help("Proxies on the tailnet that may ask about others, by tag; by login only with gate.auth.userProxies");
    GATE_AUTH_USER_PROXIES = row("gate.auth.userProxies", Kind::Bool)
        .flag("gate-auth-user-proxies", Scope::Start)
        .default("false")
        .help("Take logins in gate.auth.proxies too, although web pages in those users' browsers may then ask about others");
    GATE_AUTH_SOCKET = row("gate.auth.socket", Kind::Path)
        .flag("gate-auth-socket", Scope::Start)
        .example("/run/tailbone/gate.sock")
        .help("Unix socket for proxies on this machine; whoever can open it may ask about others");
    GATE_AUTH_SOCKET_MODE = row("gate.auth.socketMode", Kind::Text)
        .flag("gate-auth-socket-mode", Scope::Start)
        .default("0660")
        .help("File mode of that socket, in octal");
    GATE_AUTH_CLIENT_HEADER = row("gate.auth.clientHeader", Kind::Text)
        .flag("gate-auth-client-header", Scope::Start)
        .default("")
        .example("X-Real-IP")
        .help("Header in which proxies tell the client's address; Remote-Addr or X-Forwarded-For, by route, when empty");
    GATE_AUTH_REDIRECT = row("gate.auth.redirect", Kind::Url)
        .flag("gate-auth-redirect", Scope::Start)
        .example("https://join.example.com/")
        .help("Page to which browsers without identity are sent instead of a 401");

    STS_PORT = row("sts.port", Kind::Port)
        .flag("sts-port", Scope::Start)
        .aliases(&["PORT"])
        .default("8080")
        .help("Port of the token exchange on the tailnet");
    STS_BINDING = row("sts.binding", Kind::Binding)
        .flag("sts-binding", Scope::Start)
        .default("auto")
        .help("Tailnet address of the token exchange; auto takes all of the node's");
    STS_POLICIES_DIR = row("sts.policiesDir", Kind::Path)
        .flag("sts-policies-dir", Scope::Start)
        .aliases(&["POLICIES_DIR"])
        .default("policies")
        .help("Directory of the exchange's policies");
    STS_STRICT = row("sts.strict", Kind::Bool)
        .flag("sts-strict", Scope::Start)
        .default("false")
        .help("Refuse policies that would load with a warning, such as those without an audience");
    STS_CLIENT_ID = row("sts.clientId", Kind::Text)
        .flag("sts-client-id", Scope::Start)
        .aliases(&["TS_CLIENT_ID"])
        .example("k123456CNTRL")
        .help("OAuth client of Tailscale's API; a policy may bring its own");
    STS_CLIENT_SECRET = row("sts.clientSecret", Kind::Secret)
        .flag("sts-client-secret", Scope::Start)
        .aliases(&["TS_CLIENT_SECRET"])
        .example("file:/run/secrets/client")
        .help("Secret of that client");
    STS_TOKEN_URL = row("sts.tokenUrl", Kind::Url)
        .flag("sts-token-url", Scope::Start)
        .aliases(&["TS_TOKEN_URL"])
        .default("https://api.tailscale.com/api/v2/oauth/token")
        .help("Token endpoint of Tailscale's API");
    STS_TIMEOUT = row("sts.timeout", duration(Duration::from_millis(100), HOUR))
        .flag("sts-timeout", Scope::Start)
        .default("10s")
        .help("Time given to one call of the token endpoint");
    STS_CACHE_TIME = row("sts.cacheTime", duration_or_off(Duration::from_secs(1), HOUR))
        .flag("sts-cache-time", Scope::Start)
        .default("off")
        .example("5m")
        .help("How long an access token is given to further callers with the same policy, scopes and tags");
    STS_LEEWAY = row("sts.leeway", duration(Duration::ZERO, HOUR))
        .flag("sts-leeway", Scope::Start)
        .default("0s")
        .help("How far issuers' clocks may be off");
    STS_JWKS_COOL_DOWN = row("sts.jwks.coolDown", duration(Duration::from_secs(1), HOUR))
        .flag("sts-jwks-cool-down", Scope::Start)
        .default("1m")
        .help("Least time between two fetches of an issuer's keys that unknown keys cause");
    STS_HOST_LISTEN = row("sts.host.listen", Kind::Text)
        .flag("sts-host-listen", Scope::Start)
        .example("0.0.0.0:8443")
        .help("Host address where the exchange listens too, for callers outside the tailnet; none without it");
    STS_HOST_CERT = row("sts.host.cert", Kind::Text)
        .flag("sts-host-cert", Scope::Start)
        .example("/etc/tls/tls.crt")
        .help("Certificate chain of that listener (PEM); read anew when it changes");
    STS_HOST_KEY = row("sts.host.key", Kind::Text)
        .flag("sts-host-key", Scope::Start)
        .example("/etc/tls/tls.key")
        .help("File with the key of that certificate (PEM)");
    STS_HOST_PLAIN = row("sts.host.plain", Kind::Bool)
        .flag("sts-host-plain", Scope::Start)
        .default("false")
        .help("That listener has no TLS, because a proxy in front ends it");
}

/// A duration of a setting that the Go program had, too.
const fn old_duration(least: Duration, most: Duration) -> Kind {
    Kind::Duration {
        least,
        most,
        off: false,
        bare: true,
    }
}

const fn count(least: u32, most: u32) -> Kind {
    Kind::Count { least, most }
}

const fn duration(least: Duration, most: Duration) -> Kind {
    Kind::Duration {
        least,
        most,
        off: false,
        bare: false,
    }
}

const fn duration_or_off(least: Duration, most: Duration) -> Kind {
    Kind::Duration {
        least,
        most,
        off: true,
        bare: false,
    }
}

const fn row(key: &'static str, kind: Kind) -> Row {
    Row {
        key,
        kind,
        default: Default::Empty,
        help: "",
        example: "",
        flags: [None, None, None],
        aliases: &[],
    }
}

impl Row {
    const fn flag(self, long: &'static str, scope: Scope) -> Self {
        self.with(Flag {
            long,
            short: None,
            scope,
        })
    }

    const fn short(self, long: &'static str, short: char, scope: Scope) -> Self {
        self.with(Flag {
            long,
            short: Some(short),
            scope,
        })
    }

    const fn with(mut self, flag: Flag) -> Self {
        let mut free = 0;
        while self.flags[free].is_some() {
            // Past the last place this is an error of the build, and no flag takes another's place.
            free += 1;
        }
        self.flags[free] = Some(flag);
        self
    }

    const fn default(mut self, text: &'static str) -> Self {
        self.default = Default::Text(text);
        self
    }

    const fn derived(mut self, words: &'static str) -> Self {
        self.default = Default::Derived(words);
        self
    }

    const fn aliases(mut self, variables: &'static [&'static str]) -> Self {
        self.aliases = variables;
        self
    }

    const fn example(mut self, text: &'static str) -> Self {
        self.example = text;
        self
    }

    const fn help(mut self, words: &'static str) -> Self {
        self.help = words;
        self
    }

    pub fn flags(&self) -> impl Iterator<Item = &Flag> {
        self.flags.iter().flatten()
    }

    /// The flag for a command that takes the flags of `scopes`.
    pub fn flag_in(&self, scopes: &[Scope]) -> Option<&Flag> {
        self.flags().find(|flag| scopes.contains(&flag.scope))
    }

    /// `TB_` and the key in capitals, with `_` for what a variable's name cannot hold.
    pub fn variable(&self) -> String {
        variable(self.key)
    }

    /// The variable that names a file with the value: secrets only.
    pub fn file_variable(&self) -> Option<String> {
        matches!(self.kind, Kind::Secret).then(|| format!("{}_FILE", self.variable()))
    }
}

/// The variable of a key, or of a group of keys.
pub fn variable(key: &str) -> String {
    format!("TB_{}", key.to_ascii_uppercase().replace(['.', '-'], "_"))
}

/// The setting of a key as it may stand in a file: capitals do not matter.
pub fn find(key: &str) -> Option<&'static Row> {
    ALL.iter()
        .copied()
        .find(|row| row.key.eq_ignore_ascii_case(key))
}

/// Every group of settings: `server`, `server.tailscale`, ...
pub fn groups() -> Vec<&'static str> {
    let mut groups: Vec<_> = ALL
        .iter()
        .flat_map(|row| row.key.match_indices('.').map(|(at, _)| &row.key[..at]))
        .collect();
    groups.sort_unstable();
    groups.dedup();
    groups
}

impl Kind {
    /// What may be typed, for help and for error sentences.
    pub fn words(&self) -> String {
        match self {
            Self::Binding => "auto or an IP address".into(),
            Self::Bool => "true or false".into(),
            Self::Count { least, most } => format!("number, {least} to {most}"),
            Self::Duration {
                least, most, off, ..
            } => {
                let bounds = format!(
                    "{} to {}",
                    super::duration::show(*least),
                    super::duration::show(*most)
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
pub fn page() -> String {
    let mut page = String::from(
        "# Settings\n\n\
         Made from `src/config/table.rs`; a test fails when this page is stale.\n\n\
         Flags win over variables, variables over the config file, the file over defaults. An empty variable counts as unset.\n\
         Durations are written as in Go (`90s`, `1h30m`). `docs/compatibility.md` tells what differs from the Go program.\n\n\
         | Key | Variable | Flag | Default | What may be typed | Meaning |\n\
         |---|---|---|---|---|---|\n",
    );
    for row in ALL {
        let flags = row
            .flags()
            .map(|flag| match flag.short {
                Some(short) => format!("`-{short}`, `--{}` ({})", flag.long, flag.scope.words()),
                None => format!("`--{}` ({})", flag.long, flag.scope.words()),
            })
            .collect::<Vec<_>>()
            .join("<br>");
        let mut variables = format!("`{}`", row.variable());
        if let Some(file) = row.file_variable() {
            variables += &format!("<br>`{file}`");
        }
        let default = match row.default {
            Default::Derived(words) => words.to_owned(),
            Default::Empty | Default::Text("") => "empty".into(),
            Default::Text(text) => format!("`{text}`"),
        };
        let example = if row.example.is_empty() {
            String::new()
        } else {
            format!(" Example: `{}`.", row.example)
        };
        page += &format!(
            "| `{}` | {variables} | {flags} | {default} | {} | {}.{example} |\n",
            row.key,
            row.kind.words(),
            row.help,
        );
    }
    page
}

impl Scope {
    /// The commands, for the page.
    pub fn words(self) -> &'static str {
        match self {
            Self::Keys => "keys",
            Self::Make => "keys generate, keys rotate",
            Self::Policy => "policy",
            Self::Remove => "keys remove",
            Self::Root => "all commands",
            Self::Server => "server",
            Self::Start => "server start",
        }
    }
}
