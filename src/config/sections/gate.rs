//! `gate.*`: the reverse proxy, forward-auth, and the tokens for the services behind them.

use std::{fmt, path::PathBuf, time::Duration};

use crate::{
    config::{
        RuleSource,
        listen::{Listen, file_mode},
        parse::{Binding, ParsedValue, text},
        read::SettingsReader,
        report,
        table::{DAY, FlagScope, HOUR, ValueKind, duration, duration_or_off, row, rows},
    },
    web::{Allowed, Origin},
};

rows! {
    PORT = row("gate.port", ValueKind::Port)
        .flag("gate-port", FlagScope::Start)
        .default("8082")
        .help("Port of the gate's reverse proxy on the tailnet");
    BINDING = row("gate.binding", ValueKind::Binding)
        .flag("gate-binding", FlagScope::Start)
        .default("auto")
        .help("Tailnet address of the gate; auto means every address of the node");
    LISTEN = row("gate.listen", ValueKind::Words(&[]))
        .flag("gate-listen", FlagScope::Start)
        .example("tailnet://:8082")
        .help(
            "Where the reverse proxy listens, separated by commas or blanks, instead of \
             gate.port and gate.binding; docs/reference/listeners.md lists the forms",
        );
    UPSTREAM = row("gate.upstream", ValueKind::Words(&[]))
        .flag("gate-upstream", FlagScope::Start)
        .example("http://127.0.0.1:3000")
        .help(
            "Services behind the reverse proxy, as scheme://address with the scheme http, \
             https, h2c or h2 (HTTP/2 with TLS); several services need a host, a path or both \
             and = before it",
        );
    UPSTREAM_TIMEOUT = row("gate.upstreamTimeout", duration_or_off(Duration::from_millis(10), DAY))
        .flag("gate-upstream-timeout", FlagScope::Start)
        .default("5m")
        .help(
            "Time limit until a service begins its answer, or off; it starts again with each \
             part of an upload that the service reads",
        );
    UPSTREAM_CA = row("gate.upstreamCa", ValueKind::Path)
        .flag("gate-upstream-ca", FlagScope::Start)
        .example("/etc/tailbone/upstream-ca.pem")
        .help(
            "PEM file with the authorities that sign the certificates of https and h2 services; \
             those of the system if empty",
        );
    POLICY = row("gate.policy", ValueKind::Path)
        .flag("gate-policy", FlagScope::Start)
        .flag("policy", FlagScope::Policy)
        .example("/etc/tailbone/policy.toml")
        .help(
            "File of access rules; without one, only grants in the tailnet's policy give access",
        );
    CAPABILITY = row("gate.capability", ValueKind::Text)
        .flag("gate-capability", FlagScope::Start)
        .flag("capability", FlagScope::Policy)
        .default(tailbone_identity::policy::CAPABILITY)
        .help("Capability whose grants are evaluated before the file");
    ALLOWED_ORIGINS = row("gate.allowedOrigins", ValueKind::Words(&[]))
        .flag("gate-allowed-origins", FlagScope::Start)
        .example("https://app.example.com")
        .help(
            "Origins whose web pages may open WebSockets and send other methods than GET, HEAD \
             and OPTIONS to the services behind the gate, besides each service's own pages; * \
             allows every page",
        );
    EXPECTED_TAILNET = row("gate.expectedTailnet", ValueKind::Text)
        .flag("gate-expected-tailnet", FlagScope::Start)
        .default("")
        .example("tailnet-x.ts.net")
        .help("MagicDNS suffix of the tailnet that callers must belong to");
    FORWARD_CAPABILITIES = row("gate.forwardCapabilities", ValueKind::Words(&[]))
        .flag("gate-forward-capabilities", FlagScope::Start)
        .example("example.com/cap/wiki")
        .help(
            "Capabilities whose values are sent to backends in Tailscale-App-Capabilities",
        );
    TOKEN = row("gate.token", ValueKind::Bool)
        .flag("gate-token", FlagScope::Start)
        .default("false")
        .help("Send backends a signed JWT about the caller in Tailbone-Token");
    TOKEN_ISSUER = row("gate.tokenIssuer", ValueKind::Text)
        .flag("gate-token-issuer", FlagScope::Start)
        .derived("keys.issuer and /gate")
        .example("tailbone/gate")
        .help(
            "The iss claim of that token; it should differ from keys.issuer, or the token could \
             be mistaken for one of the issuer",
        );
    TOKEN_AUDIENCE = row("gate.tokenAudience", ValueKind::Text)
        .flag("gate-token-audience", FlagScope::Start)
        .default("")
        .help(
            "The aud claim of that token; if empty, the requested host, and then every upstream \
             must name its host",
        );
    TOKEN_EXPIRY = row("gate.tokenExpiry", duration(Duration::from_secs(1), HOUR))
        .flag("gate-token-expiry", FlagScope::Start)
        .default("1m")
        .help("Lifetime of that token, in whole seconds");
    RECHECK = row("gate.recheck", duration(Duration::from_millis(10), HOUR))
        .flag("gate-recheck", FlagScope::Start)
        .default("10s")
        .help(
            "How often the access of open streams and WebSockets is checked again if nothing \
             has changed",
        );
    AUTH_PORT = row("gate.auth.port", ValueKind::Port)
        .flag("gate-auth-port", FlagScope::Start)
        .default("8083")
        .help(
            "Port of forward-auth on the tailnet; it only listens if gate.auth.proxies is not \
             empty",
        );
    AUTH_LISTEN = row("gate.auth.listen", ValueKind::Words(&[]))
        .flag("gate-auth-listen", FlagScope::Start)
        .example("unix:///run/tailbone/gate.sock?mode=0660")
        .help(
            "Where forward-auth listens, separated by commas or blanks, instead of \
             gate.auth.port, gate.binding and gate.auth.socket; docs/reference/listeners.md \
             lists the forms",
        );
    AUTH_PROXIES = row("gate.auth.proxies", ValueKind::Words(&[]))
        .flag("gate-auth-proxies", FlagScope::Start)
        .example("tag:proxy")
        .help(
            "Proxies on the tailnet that may ask about other callers, by tag; by login only \
             with gate.auth.userProxies",
        );
    AUTH_USER_PROXIES = row("gate.auth.userProxies", ValueKind::Bool)
        .flag("gate-auth-user-proxies", FlagScope::Start)
        .default("false")
        .help(
            "Allow logins in gate.auth.proxies too, although web pages in those users' browsers \
             can then ask about other callers",
        );
    AUTH_SOCKET = row("gate.auth.socket", ValueKind::Path)
        .flag("gate-auth-socket", FlagScope::Start)
        .example("/run/tailbone/gate.sock")
        .help(
            "Unix socket for proxies on this machine; every process that can open it may ask \
             about other callers",
        );
    AUTH_SOCKET_MODE = row("gate.auth.socketMode", ValueKind::Text)
        .flag("gate-auth-socket-mode", FlagScope::Start)
        .default("0660")
        .help("File mode of that socket, in octal");
    AUTH_CLIENT_HEADER = row("gate.auth.clientHeader", ValueKind::Text)
        .flag("gate-auth-client-header", FlagScope::Start)
        .default("")
        .example("X-Real-IP")
        .help(
            "Header in which proxies report the client's address; if empty, Remote-Addr or \
             X-Forwarded-For, depending on the route",
        );
    AUTH_REDIRECT = row("gate.auth.redirect", ValueKind::Url)
        .flag("gate-auth-redirect", FlagScope::Start)
        .example("https://join.example.com/")
        .help(
            "Page to which browsers without an identity are redirected instead of getting a 401",
        );
}

/// Identity in front of HTTP services.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GateSettings {
    /// The listeners of the reverse proxy.
    pub listen: Vec<Listen>,
    /// The services behind the reverse proxy.
    pub upstreams: Vec<UpstreamSettings>,
    /// The longest time until a service begins to answer; zero is no limit.
    pub upstream_timeout: Duration,
    /// Authorities whose certificates services may have, in place of those that the system trusts.
    pub upstream_ca: Option<PathBuf>,
    pub rules: RuleSource,
    /// Whose pages may change things and open WebSockets here, besides the service's own pages.
    pub allowed_origins: Vec<Allowed<Origin>>,
    /// The MagicDNS suffix that callers must have.
    pub expected_tailnet: Option<String>,
    /// The capabilities whose values are sent to services.
    pub forward_capabilities: Vec<String>,
    /// `gate.token`: the token that services get, if any.
    pub token: Option<GateTokenSettings>,
    /// How often open streams and WebSockets are checked again if nothing has changed.
    pub recheck: Duration,
    pub auth: GateAuthSettings,
}

/// A service behind the reverse proxy: `[host][/path=]scheme://address`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamSettings {
    /// Empty for every host.
    pub host: String,
    /// Empty for every path.
    pub path: String,
    /// `host:port`
    pub address: String,
    pub scheme: UpstreamScheme,
}

/// The protocol of a service behind the reverse proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpstreamScheme {
    Http,
    /// HTTP/2 without TLS, with prior knowledge.
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

impl fmt::Display for UpstreamSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
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

/// The token for the services behind the gate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GateTokenSettings {
    /// The `iss` claim; the default is `keys.issuer` with `/gate`.
    pub issuer: String,
    /// The `aud` claim; if it is absent, the host of the request.
    pub audience: Option<String>,
    pub life: Duration,
}

/// Forward-auth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GateAuthSettings {
    /// Callers on a unix socket are proxies of this machine, so every process that can open one is
    /// trusted. Other callers must be among `proxies`.
    pub listen: Vec<Listen>,
    /// Who may ask about others, by tag or login.
    pub proxies: Vec<String>,
    /// Whether `proxies` may contain logins, although those users' browsers may then ask too.
    pub user_proxies: bool,
    /// The header that has the client's address. If it is absent, each route has its own header.
    pub client_header: Option<String>,
    /// Where browsers without identity are sent.
    pub redirect: Option<String>,
}

impl SettingsReader<'_> {
    /// `issuer` is `keys.issuer`.
    pub(in crate::config) fn gate(&mut self, issuer: Option<&str>) -> Option<GateSettings> {
        let port = self.port(&PORT);
        let binding = self.binding(&BINDING);
        let older = Listen::tailnet(binding, port).map(|listen| vec![listen]);
        let listen = self.listen(&LISTEN, &[&PORT], older);
        let upstreams = self.words(&UPSTREAM, upstream);
        // Without a service behind it, the reverse proxy does not run.
        let runs = upstreams.as_ref().is_some_and(|all| !all.is_empty());
        let listen = listen.map(|listen| if runs { listen } else { Vec::new() });
        let upstream_timeout = self.duration(&UPSTREAM_TIMEOUT);
        let upstream_ca = self.optional_path(&UPSTREAM_CA);
        let rules = self.gate_rules();
        let allowed_origins = self.allowed(&ALLOWED_ORIGINS, Origin::parse);
        let expected_tailnet = self.optional_text(&EXPECTED_TAILNET);
        let forward_capabilities = self.words(&FORWARD_CAPABILITIES, |word| Ok(word.to_owned()));
        let token = self.bool(&TOKEN);
        let issuer = self.token_issuer(issuer);
        let audience = self.optional_text(&TOKEN_AUDIENCE);
        let life = self.whole_seconds(&TOKEN_EXPIRY);
        let recheck = self.duration(&RECHECK);
        let auth = self.gate_auth(binding);
        let token = match token? {
            true => Some(GateTokenSettings {
                issuer: issuer?,
                audience: audience?,
                life: life?,
            }),
            false => None,
        };
        Some(GateSettings {
            listen: listen?,
            upstreams: upstreams?,
            upstream_timeout: upstream_timeout?,
            upstream_ca: upstream_ca?,
            rules: rules?,
            allowed_origins: allowed_origins?,
            expected_tailnet: expected_tailnet?,
            forward_capabilities: forward_capabilities?,
            token,
            recheck: recheck?,
            auth: auth?,
        })
    }

    pub(in crate::config) fn gate_rules(&mut self) -> Option<RuleSource> {
        let file = self.optional_path(&POLICY);
        let capability = self.read(&CAPABILITY, text);
        Some(RuleSource {
            file: file?,
            capability: capability?,
        })
    }

    /// The default differs from the issuer's `iss`, because many verifiers check nothing else.
    fn token_issuer(&mut self, issuer: Option<&str>) -> Option<String> {
        if !self.is_set(&TOKEN_ISSUER) {
            let derived = match issuer? {
                "" => "gate".to_owned(),
                issuer => format!("{issuer}/gate"),
            };
            self.derived(&TOKEN_ISSUER, &derived);
            return Some(derived);
        }
        let same = "is keys.issuer: whoever takes tokens of the issuer then takes those of the \
                    gate too, made for any backend";
        self.read(&TOKEN_ISSUER, |input, origin| {
            let reading = text(input, origin)?;
            if reading.value.is_empty() {
                return Err("an empty iss claim".into());
            }
            let warning = (Some(reading.value.as_str()) == issuer).then(|| same.to_owned());
            Ok(reading.with_warning(warning))
        })
    }

    /// `binding` is `gate.binding`.
    fn gate_auth(&mut self, binding: Option<Binding>) -> Option<GateAuthSettings> {
        let port = self.port(&AUTH_PORT);
        let proxies = self.words(&AUTH_PROXIES, proxy);
        let user_proxies = self.bool(&AUTH_USER_PROXIES);
        let socket = self.optional_path(&AUTH_SOCKET);
        let socket_mode = self.read(&AUTH_SOCKET_MODE, socket_mode);
        let tailnet = Listen::tailnet(binding, port);
        let named = proxies.as_ref().map(|proxies| !proxies.is_empty());
        let older = match (tailnet, named, socket, socket_mode) {
            (Some(tailnet), Some(named), Some(socket), Some(mode)) => {
                let tailnet = named.then_some(tailnet);
                let socket = socket.map(|path| Listen::Unix { path, mode });
                Some(tailnet.into_iter().chain(socket).collect())
            }
            _ => None,
        };
        let rows: &[_] = &[&AUTH_PORT, &AUTH_SOCKET, &AUTH_SOCKET_MODE];
        let listen = self.listen(&AUTH_LISTEN, rows, older);
        let client_header = self.optional_text(&AUTH_CLIENT_HEADER);
        let redirect = self.url(&AUTH_REDIRECT);
        Some(GateAuthSettings {
            listen: listen?,
            proxies: proxies?,
            user_proxies: user_proxies?,
            client_header: client_header?,
            redirect: redirect?,
        })
    }
}

/// Reads `[host][/path]=scheme://host:port`. The gate itself checks the host and the path.
fn upstream(word: &str) -> Result<UpstreamSettings, String> {
    let (place, url) = match word.split_once('=') {
        Some((place, url)) => (place, url),
        None => ("", word),
    };
    let known = url.split_once("://").and_then(|(scheme, address)| {
        let named = |known: &UpstreamScheme| known.as_str() == scheme;
        Some((UpstreamScheme::ALL.into_iter().find(named)?, address))
    });
    let Some((scheme, address)) = known else {
        return Err(
            "not scheme://host:port with http, https, h2c or h2, after host, /path or both and ="
                .into(),
        );
    };
    let address = address.strip_suffix('/').unwrap_or(address);
    if address.is_empty() || address.contains(['/', '?', '#', '@']) {
        return Err("an upstream's address is host:port, without path and user".into());
    }
    let (host, path) = match place.find('/') {
        Some(at) => place.split_at(at),
        None => (place, ""),
    };
    Ok(UpstreamSettings {
        host: host.to_owned(),
        path: path.to_owned(),
        address: address.to_owned(),
        scheme,
    })
}

/// Patterns such as `*@example.com` are refused: they would trust every user of a domain.
fn proxy(word: &str) -> Result<String, String> {
    let fits = word.starts_with("tag:") || word.contains('@') && !word.contains('*');
    if fits {
        Ok(word.to_owned())
    } else {
        Err("a proxy is named by its tag (tag:name) or its user's login".into())
    }
}

fn socket_mode(input: &str, _: &report::ValueOrigin) -> Result<ParsedValue<u32>, String> {
    let mode = file_mode(input)?;
    Ok(ParsedValue::new(mode, format!("{mode:04o}")))
}
