//! What the settings mean: checked, typed values with every default filled in. How they were typed is `raw.rs`'s business.
//!
//! Each field names its config key; flags, variables and defaults follow from the table in `table.rs`.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use serde::Serialize;
use url::Url;

use super::Secret;
use crate::web::{Allowed, HostPattern, Origin};

/// Everything `tailbone server …` needs to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// `components`
    pub components: BTreeSet<Component>,
    pub log: Log,
    pub keys: Keys,
    pub server: Server,
    pub admin: Admin,
    pub metrics: Metrics,
    pub gate: Gate,
    pub sts: StsSettings,
}

/// A part of the program that can be switched on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Component {
    Admin,
    Gate,
    Issuer,
    Metrics,
    Sts,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// `log.level`
    pub level: LogLevel,
    /// `log.format`
    pub format: LogFormat,
    /// `log.no_color`
    pub no_color: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Console,
    Json,
}

/// Signing keys and where their public halves are published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keys {
    /// `keys.dir`
    pub dir: PathBuf,
    /// `keys.issuer`: the `iss` claim; left out of tokens when empty.
    pub issuer: String,
    /// `keys.expiry`: life of a token, whole seconds.
    pub expiry: Duration,
    /// `key.prefix`: first part of a new key's id.
    pub prefix: String,
    /// `keys.algorithm` and, for RSA, `keys.size`: what a new key is.
    pub spec: KeySpec,
    /// `keys.rotateEvery`: age at which the signing key gets a successor; off when absent.
    pub rotate_every: Option<Duration>,
    /// `keys.cacheTime`: how long verifiers may keep the JWKS; a new key waits this long before it signs.
    pub cache_time: Duration,
    /// `keys.skew`: how far verifiers' clocks may be off.
    pub skew: Duration,
    pub publish: Publish,
}

/// Where the JWKS is published for verifiers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Publish {
    /// `keys.jwksFile`; the default is `jwks.json` in `keys.dir`.
    File { path: PathBuf },
    /// `keys.bucket`, `keys.keyPath`, `keys.s3.endpoint`, `keys.s3.pathStyle`
    S3 {
        bucket: String,
        key_path: String,
        endpoint: Option<String>,
        path_style: bool,
    },
}

/// What kind of key pair to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KeySpec {
    /// RS256 with a modulus of 2048, 3072 or 4096 bits.
    Rs256 { bits: u32 },
    /// ES256 (P-256).
    Es256,
    /// EdDSA (Ed25519).
    EdDsa,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// `server.port`
    pub port: u16,
    /// `server.binding`
    pub binding: Binding,
    /// `server.allowedHosts`: names of the listeners besides the node's own.
    pub allowed_hosts: Vec<Allowed<HostPattern>>,
    /// `server.allowedOrigins`: whose pages may ask for tokens.
    pub allowed_origins: Vec<Allowed<Origin>>,
    /// `server.grace`: time given to open requests on a stop.
    pub grace: Duration,
    pub limits: Limits,
    /// `server.limits.memory`
    pub memory: Memory,
    pub tailscale: Tailscale,
    /// `server.telemetry.otlp.endpoint`; nothing is exported when absent.
    pub otlp: Option<Otlp>,
}

/// Where traces and metrics are sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Otlp {
    /// `server.telemetry.otlp.endpoint`: without the path of a signal.
    pub endpoint: String,
    /// `server.telemetry.otlp.headers`: names are sound, and so are values.
    pub headers: Vec<(String, Secret)>,
    /// `server.telemetry.otlp.interval`
    pub interval: Duration,
}

/// Bounds of every listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// `server.limits.connections`
    pub connections: u32,
    /// `server.limits.connectionsPerPeer`
    pub connections_per_peer: u32,
    /// `server.limits.requests`
    pub requests: u32,
    /// `server.limits.requestRate`: a second; 0 is no limit.
    pub request_rate: u32,
    /// `server.limits.requestBurst`
    pub request_burst: u32,
    /// `server.limits.callerRate`: a second; 0 is no limit.
    pub caller_rate: u32,
    /// `server.limits.callerBurst`
    pub caller_burst: u32,
    /// `server.limits.headerBytes`
    pub header_bytes: u32,
    /// `server.limits.bodyBytes`
    pub body_bytes: u32,
    /// `server.limits.headerTime`
    pub header_time: Duration,
    /// `server.limits.idleTime`
    pub idle_time: Duration,
    /// `server.limits.requestTime`
    pub request_time: Duration,
    /// `server.limits.callTime`
    pub call_time: Duration,
    /// `server.limits.writeTime`
    pub write_time: Duration,
}

/// How much memory the node inside may take before it collects rather than grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Memory {
    /// What `GOMEMLIMIT` says, else a share of what the cgroup gives.
    Auto,
    Bytes(u64),
    Off,
}

/// Which tailnet address a listener takes. No listener ever takes a host address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Binding {
    /// Every tailnet address of the node (`auto`, or empty).
    Auto,
    /// One tailnet address.
    Addr(IpAddr),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tailscale {
    /// `server.tailscale.authkey`; needed only where there is no state yet.
    pub authkey: Option<Secret>,
    /// `server.tailscale.dir`
    pub dir: PathBuf,
    /// `server.tailscale.hostname`
    pub hostname: String,
    /// `server.tailscale.controlUrl`
    pub control_url: Option<String>,
    /// `server.tailscale.state`
    pub state: NodeState,
    /// `server.tailscale.clientSecret`
    pub client_secret: Option<Secret>,
    /// `server.tailscale.clientId`
    pub client_id: Option<String>,
    /// `server.tailscale.idToken`
    pub id_token: Option<Secret>,
    /// `server.tailscale.audience`
    pub audience: Option<String>,
    /// `server.tailscale.ephemeral`
    pub ephemeral: bool,
    /// `server.tailscale.tags`
    pub tags: Vec<String>,
    /// `server.tailscale.joinTimeout`
    pub join_timeout: Duration,
    /// `server.tailscale.joinRetry`
    pub join_retry: Duration,
    /// `server.tailscale.waitForDir`
    pub wait_for_dir: bool,
    /// `server.tailscale.uploadLogs`
    pub upload_logs: bool,
}

/// Where the node keeps its identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeState {
    /// Files in `server.tailscale.dir`.
    Dir,
    /// A Kubernetes secret of this name.
    Kube(String),
    /// Nowhere: gone with the process.
    Memory,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admin {
    /// `admin.port`
    pub port: u16,
    /// `admin.binding`
    pub binding: Binding,
    /// `admin.authorization`
    pub authorization: Authorization,
    /// `admin.socket`: the local admin socket; the default is `admin.sock` in `server.tailscale.dir`.
    pub socket: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metrics {
    /// `metrics.port`
    pub port: u16,
    /// `metrics.binding`: a loopback address is the machine's own, anything else the tailnet's.
    pub binding: Binding,
}

/// Who may administer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Authorization {
    /// The node's owner, the local socket, or a grant.
    Grant,
    /// Whoever reaches the port, as the original had it.
    Open,
}

/// Identity in front of HTTP services.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gate {
    /// `gate.port`: of the reverse proxy on the tailnet.
    pub port: u16,
    /// `gate.binding`: for both of the gate's ports.
    pub binding: Binding,
    /// `gate.upstream`: the services behind the reverse proxy.
    pub upstreams: Vec<Upstream>,
    /// `gate.upstreamTimeout`: for the beginning of a service's answer; none at zero.
    pub upstream_timeout: Duration,
    /// `gate.upstreamCa`: whose certificates services may have, instead of those that the system trusts.
    pub upstream_ca: Option<PathBuf>,
    /// `gate.policy`: the file of local rules; without one, grants decide alone.
    pub policy: Option<PathBuf>,
    /// `gate.capability`: the grants that speak of us; none are asked for when empty.
    pub capability: String,
    /// `gate.allowedOrigins`: whose pages may change things and open WebSockets here, besides the site's own.
    pub allowed_origins: Vec<Allowed<Origin>>,
    /// `gate.expectedTailnet`: MagicDNS suffix that callers must have.
    pub expected_tailnet: Option<String>,
    /// `gate.forwardCapabilities`: grants that backends are told.
    pub forward_capabilities: Vec<String>,
    /// `gate.token`: whether backends get a token.
    pub token: Option<GateToken>,
    /// `gate.recheck`: how often open streams and WebSockets are decided about again when nothing has changed.
    pub recheck: Duration,
    pub auth: GateAuth,
}

/// A service behind the reverse proxy: `[host][/path=]scheme://address`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upstream {
    /// Empty for every host.
    pub host: String,
    /// Empty for every path.
    pub path: String,
    /// `host:port`
    pub address: String,
    pub scheme: UpstreamScheme,
}

/// How a service behind the reverse proxy is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpstreamScheme {
    Http,
    /// HTTP/2 without TLS, spoken at once.
    H2c,
    Https,
    /// HTTP/2 with TLS.
    H2,
}

impl UpstreamScheme {
    pub const ALL: [Self; 4] = [Self::Http, Self::H2c, Self::Https, Self::H2];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::H2c => "h2c",
            Self::Https => "https",
            Self::H2 => "h2",
        }
    }

    pub fn tls(self) -> bool {
        matches!(self, Self::Https | Self::H2)
    }

    pub fn http2(self) -> bool {
        matches!(self, Self::H2c | Self::H2)
    }
}

impl std::fmt::Display for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            host,
            path,
            address,
            scheme,
        } = self;
        let equals = if host.is_empty() && path.is_empty() {
            ""
        } else {
            "="
        };
        let scheme = scheme.as_str();
        write!(f, "{host}{path}{equals}{scheme}://{address}")
    }
}

/// A token for backends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GateToken {
    /// `gate.tokenIssuer`; the issuer's with `/gate` when empty.
    pub issuer: String,
    /// `gate.tokenAudience`; the host that was asked for when empty.
    pub audience: Option<String>,
    /// `gate.tokenExpiry`
    pub life: Duration,
}

/// Forward-auth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GateAuth {
    /// `gate.auth.port`: on the tailnet, where `proxies` names somebody.
    pub port: u16,
    /// `gate.auth.proxies`: who may ask about others, by tag or login.
    pub proxies: Vec<String>,
    /// `gate.auth.userProxies`: whether those may be users, whose browsers then may ask too.
    pub user_proxies: bool,
    /// `gate.auth.socket`: for proxies on this machine; whoever can open it is trusted.
    pub socket: Option<PathBuf>,
    /// `gate.auth.socketMode`
    pub socket_mode: u32,
    /// `gate.auth.clientHeader`: the header with the client's address; each route has its own when empty.
    pub client_header: Option<String>,
    /// `gate.auth.redirect`: where browsers without identity are sent.
    pub redirect: Option<String>,
}

/// Everything `tailbone keys …` needs to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientSettings {
    /// `admin.client.host`: a name or an address without brackets; empty means the local socket.
    pub host: String,
    /// `admin.client.port`
    pub port: u16,
    /// `admin.client.timeout`: for one call.
    pub timeout: Duration,
    /// `output`
    pub output: OutputFormat,
    /// `no-confirmation`
    pub no_confirmation: bool,
    /// `admin.socket`: the local admin socket of a server with these settings; there may be none.
    pub socket: PathBuf,
    /// `keys.dir`, for `--local`.
    pub keys_dir: PathBuf,
    /// `keys.size`, where it was typed: else the server decides.
    pub key_size: Option<u32>,
    /// `keys.algorithm` in its proper spelling, where it was typed: else the server decides.
    pub key_algorithm: Option<String>,
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputFormat {
    Json,
    Text,
    Yaml,
}

/// The token exchange. What belongs together fits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StsSettings {
    /// `sts.port`
    pub port: u16,
    /// `sts.binding`
    pub binding: Binding,
    /// `sts.policiesDir`
    pub policies_dir: PathBuf,
    /// `sts.strict`
    pub strict: bool,
    /// `sts.clientId` and `sts.clientSecret`; absent where every policy brings its own.
    pub credentials: Option<Credentials>,
    /// `sts.tokenUrl`
    pub token_url: Url,
    /// `sts.timeout`
    pub timeout: Duration,
    /// `sts.cacheTime`; off at zero.
    pub cache_time: Duration,
    /// `sts.leeway`
    pub leeway: Duration,
    /// `sts.jwks.coolDown`
    pub jwks_cool_down: Duration,
    /// `sts.host.*`: a host address too, for callers that are on no tailnet; none unless set.
    pub host: Option<HostListener>,
}

/// An OAuth client of Tailscale's API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    pub id: String,
    pub secret: Secret,
}

/// A listener outside the tailnet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostListener {
    /// `sts.host.listen`
    pub addr: SocketAddr,
    /// `sts.host.cert` and `sts.host.key`; absent only on the loopback, or where `sts.host.plain` says that somebody else ends TLS.
    pub tls: Option<TlsFiles>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    pub cert: PathBuf,
    pub key: PathBuf,
}
