//! `sts.*`: the token exchange. If it is switched on, settings that do not fit together (an OAuth
//! client without its secret, TLS without an address) are reported with all other mistakes.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use url::Url;

use crate::config::{
    Secret,
    listen::Listen,
    parse::{ParsedValue, text},
    read::SettingsReader,
    table::{FlagScope, HOUR, ValueKind, duration, duration_or_off, row, rows},
};

rows! {
    PORT = row("sts.port", ValueKind::Port)
        .flag("sts-port", FlagScope::Start)
        .aliases(&["PORT"])
        .default("8080")
        .help("Port of the token exchange on the tailnet");
    BINDING = row("sts.binding", ValueKind::Binding)
        .flag("sts-binding", FlagScope::Start)
        .default("auto")
        .help(
            "Tailnet address of the token exchange; auto means every address of the node",
        );
    LISTEN = row("sts.listen", ValueKind::Words(&[]))
        .flag("sts-listen", FlagScope::Start)
        .example("tailnet://:8080,http://127.0.0.1:8080")
        .help(
            "Where the token exchange listens, separated by commas or blanks, instead of \
             sts.port, sts.binding and sts.host.*; docs/reference/listeners.md lists the forms",
        );
    POLICIES_DIR = row("sts.policiesDir", ValueKind::Path)
        .flag("sts-policies-dir", FlagScope::Start)
        .aliases(&["POLICIES_DIR"])
        .default("policies")
        .help("Directory of the exchange's policies");
    STRICT = row("sts.strict", ValueKind::Bool)
        .flag("sts-strict", FlagScope::Start)
        .default("false")
        .help("Refuse policies that would load with a warning, such as those without an audience");
    CLIENT_ID = row("sts.clientId", ValueKind::Text)
        .flag("sts-client-id", FlagScope::Start)
        .aliases(&["TS_CLIENT_ID"])
        .example("k123456CNTRL")
        .help("OAuth client for Tailscale's API; a policy may name its own");
    CLIENT_SECRET = row("sts.clientSecret", ValueKind::Secret)
        .flag("sts-client-secret", FlagScope::Start)
        .aliases(&["TS_CLIENT_SECRET"])
        .example("file:/run/secrets/client")
        .help("Secret of that client");
    TOKEN_URL = row("sts.tokenUrl", ValueKind::Url)
        .flag("sts-token-url", FlagScope::Start)
        .aliases(&["TS_TOKEN_URL"])
        .default("https://api.tailscale.com/api/v2/oauth/token")
        .help("Token endpoint of Tailscale's API");
    TIMEOUT = row("sts.timeout", duration(Duration::from_millis(100), HOUR))
        .flag("sts-timeout", FlagScope::Start)
        .default("10s")
        .help("Time limit of one call of the token endpoint");
    CACHE_TIME = row("sts.cacheTime", duration_or_off(Duration::from_secs(1), HOUR))
        .flag("sts-cache-time", FlagScope::Start)
        .default("off")
        .example("5m")
        .help(
            "How long an access token is reused for callers with the same policy, scopes and \
             tags",
        );
    LEEWAY = row("sts.leeway", duration(Duration::ZERO, HOUR))
        .flag("sts-leeway", FlagScope::Start)
        .default("0s")
        .help("How far issuers' clocks may be off");
    JWKS_COOL_DOWN = row("sts.jwks.coolDown", duration(Duration::from_secs(1), HOUR))
        .flag("sts-jwks-cool-down", FlagScope::Start)
        .default("1m")
        .help(
            "Minimum time between two fetches of an issuer's keys that are caused by unknown \
             keys",
        );
    HOST_LISTEN = row("sts.host.listen", ValueKind::Text)
        .flag("sts-host-listen", FlagScope::Start)
        .example("0.0.0.0:8443")
        .help(
            "Host address where the exchange also listens, for callers outside the tailnet; \
             none if empty",
        );
    HOST_CERT = row("sts.host.cert", ValueKind::Text)
        .flag("sts-host-cert", FlagScope::Start)
        .example("/etc/tls/tls.crt")
        .help("Certificate chain of that listener (PEM); read again when it changes");
    HOST_KEY = row("sts.host.key", ValueKind::Text)
        .flag("sts-host-key", FlagScope::Start)
        .example("/etc/tls/tls.key")
        .help("File with the key of that certificate (PEM)");
    HOST_PLAIN = row("sts.host.plain", ValueKind::Bool)
        .flag("sts-host-plain", FlagScope::Start)
        .default("false")
        .help(
            "That listener has no TLS, because a proxy in front of it terminates TLS",
        );
}

/// The token exchange.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StsSettings {
    pub listen: Vec<Listen>,
    pub policies_dir: PathBuf,
    /// Refuse policies that load with a warning.
    pub strict: bool,
    /// `sts.clientId` and `sts.clientSecret`; absent if every policy has its own.
    pub credentials: Option<Credentials>,
    pub token_url: Url,
    /// For one call of the token endpoint.
    pub timeout: Duration,
    /// How long an access token may be given to further callers with the same policy, scopes and
    /// tags; zero turns this off.
    pub cache_time: Duration,
    /// By how much an issuer's clock may be off.
    pub leeway: Duration,
    /// Least time between two fetches of an issuer's keys that unknown keys cause.
    pub jwks_cool_down: Duration,
}

/// An OAuth client of Tailscale's API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    pub id: String,
    pub secret: Secret,
}

/// Certificate chain and key of a listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    pub cert: PathBuf,
    pub key: PathBuf,
}

impl SettingsReader<'_> {
    /// `on`: the exchange is switched on.
    pub(in crate::config) fn sts(&mut self, on: bool) -> Option<StsSettings> {
        let port = self.port(&PORT);
        let binding = self.binding(&BINDING);
        let policies_dir = self.path(&POLICIES_DIR);
        let strict = self.bool(&STRICT);
        let credentials = self.credentials(on);
        let token_url = self.token_url();
        let timeout = self.duration(&TIMEOUT);
        let cache_time = self.duration(&CACHE_TIME);
        let leeway = self.duration(&LEEWAY);
        let jwks_cool_down = self.duration(&JWKS_COOL_DOWN);
        let host = self.host_listener(on);
        let tailnet = Listen::tailnet(binding, port);
        let older = tailnet.zip(host).map(|(tailnet, host)| {
            let tailnet = [tailnet].into_iter();
            tailnet.chain(host).collect()
        });
        let rows: &[_] = &[
            &PORT,
            &BINDING,
            &HOST_LISTEN,
            &HOST_CERT,
            &HOST_KEY,
            &HOST_PLAIN,
        ];
        let listen = self.listen(&LISTEN, rows, older);
        Some(StsSettings {
            listen: listen?,
            policies_dir: policies_dir?,
            strict: strict?,
            credentials: credentials?,
            token_url: token_url?,
            timeout: timeout?,
            cache_time: cache_time?,
            leeway: leeway?,
            jwks_cool_down: jwks_cool_down?,
        })
    }

    fn credentials(&mut self, on: bool) -> Option<Option<Credentials>> {
        let id = self.read(&CLIENT_ID, text);
        let secret = self.secret(&CLIENT_SECRET);
        let (id, secret) = (id?, secret?);
        let (row, missing) = match (id.is_empty(), secret) {
            (false, Some(secret)) => return Some(Some(Credentials { id, secret })),
            (true, None) => return Some(None),
            (false, None) => (&CLIENT_ID, "sts.clientSecret"),
            (true, Some(_)) => (&CLIENT_SECRET, "sts.clientId"),
        };
        if !on {
            return Some(None);
        }
        self.mistake(
            row,
            None,
            format!("{missing} is missing: an OAuth client is both"),
        );
        None
    }

    fn token_url(&mut self) -> Option<Url> {
        let input = self.url(&TOKEN_URL)?.unwrap_or_default();
        if let Ok(url) = Url::parse(&input) {
            return Some(url);
        }
        self.mistake(
            &TOKEN_URL,
            Some(input),
            "not an http or https address".into(),
        );
        None
    }

    /// `sts.host.*`: an additional listener on a host address, for callers outside the tailnet.
    fn host_listener(&mut self, on: bool) -> Option<Option<Listen>> {
        let addr = self.read(&HOST_LISTEN, |input, _| {
            let input = input.trim();
            if input.is_empty() {
                return Ok(ParsedValue::new(None, ""));
            }
            match input.parse::<SocketAddr>() {
                Ok(addr) => Ok(ParsedValue::new(Some(addr), input)),
                Err(_) => Err("not an address with a port such as 0.0.0.0:8443".into()),
            }
        });
        let cert = self.read(&HOST_CERT, text);
        let key = self.read(&HOST_KEY, text);
        let shown = self.bool(&HOST_PLAIN);
        let (addr, cert, key, shown) = (addr?, cert?, key?, shown?);
        if !on {
            return Some(None);
        }
        let both = "sts.host.cert and sts.host.key are both needed";
        let file = |text: String| (!text.is_empty()).then(|| PathBuf::from(text));
        let (row, trouble) = match (addr, file(cert), file(key)) {
            (None, None, None) => return Some(None),
            (Some(addr), Some(cert), Some(key)) => {
                let tls = Some(TlsFiles { cert, key });
                return Some(Some(Listen::Host { addr, tls }));
            }
            (Some(addr), None, None) if shown || addr.ip().is_loopback() => {
                return Some(Some(Listen::Host { addr, tls: None }));
            }
            (Some(_), None, None) => (
                &HOST_LISTEN,
                "outside the loopback tokens need TLS: set sts.host.cert and sts.host.key, or \
                 sts.host.plain where a proxy in front ends TLS",
            ),
            (_, Some(_), None) => (&HOST_CERT, both),
            (_, None, Some(_)) => (&HOST_KEY, both),
            (None, Some(_), Some(_)) => (&HOST_CERT, "means nothing without sts.host.listen"),
        };
        let value = addr.filter(|_| row.key == HOST_LISTEN.key);
        self.mistake(row, value.map(|addr| addr.to_string()), trouble.into());
        None
    }
}
