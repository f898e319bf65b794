//! The settings of the exchange. What does not fit together (half a client, TLS without an address) is told with all other
//! mistakes, where the exchange is on.

use std::{net::SocketAddr, path::PathBuf};

use url::Url;

use super::{Reader, Reading, text};
use crate::config::{Credentials, HostListener, StsSettings, TlsFiles, table};

impl Reader<'_> {
    pub(super) fn sts(&mut self, on: bool) -> Option<StsSettings> {
        let port = self.port(&table::STS_PORT);
        let binding = self.binding(&table::STS_BINDING);
        let policies_dir = self.path(&table::STS_POLICIES_DIR);
        let strict = self.bool(&table::STS_STRICT);
        let credentials = self.credentials(on);
        let token_url = self.token_url();
        let timeout = self.duration(&table::STS_TIMEOUT);
        let cache_time = self.duration(&table::STS_CACHE_TIME);
        let leeway = self.duration(&table::STS_LEEWAY);
        let jwks_cool_down = self.duration(&table::STS_JWKS_COOL_DOWN);
        let host = self.host_listener(on);
        Some(StsSettings {
            port: port?,
            binding: binding?,
            policies_dir: policies_dir?,
            strict: strict?,
            credentials: credentials?,
            token_url: token_url?,
            timeout: timeout?,
            cache_time: cache_time?,
            leeway: leeway?,
            jwks_cool_down: jwks_cool_down?,
            host: host?,
        })
    }

    fn credentials(&mut self, on: bool) -> Option<Option<Credentials>> {
        let id = self.read(&table::STS_CLIENT_ID, text);
        let secret = self.secret(&table::STS_CLIENT_SECRET);
        let (id, secret) = (id?, secret?);
        let secret = secret.filter(|secret| !secret.reveal().is_empty());
        let (row, missing) = match (id.is_empty(), secret) {
            (false, Some(secret)) => return Some(Some(Credentials { id, secret })),
            (true, None) => return Some(None),
            (false, None) => (&table::STS_CLIENT_ID, "sts.clientSecret"),
            (true, Some(_)) => (&table::STS_CLIENT_SECRET, "sts.clientId"),
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
        let row = &table::STS_TOKEN_URL;
        let typed = self.url(row)?.unwrap_or_default();
        if let Ok(url) = Url::parse(&typed) {
            return Some(url);
        }
        self.mistake(row, Some(typed), "not an http or https address".into());
        None
    }

    fn host_listener(&mut self, on: bool) -> Option<Option<HostListener>> {
        let addr = self.read(&table::STS_HOST_LISTEN, |typed, _| {
            let typed = typed.trim();
            if typed.is_empty() {
                return Ok(Reading::new(None, ""));
            }
            match typed.parse::<SocketAddr>() {
                Ok(addr) => Ok(Reading::new(Some(addr), typed)),
                Err(_) => Err("not an address with a port such as 0.0.0.0:8443".into()),
            }
        });
        let cert = self.read(&table::STS_HOST_CERT, text);
        let key = self.read(&table::STS_HOST_KEY, text);
        let plain = self.bool(&table::STS_HOST_PLAIN);
        let (addr, cert, key, plain) = (addr?, cert?, key?, plain?);
        if !on {
            return Some(None);
        }
        let both = "sts.host.cert and sts.host.key are both needed";
        let file = |text: String| (!text.is_empty()).then(|| PathBuf::from(text));
        let (row, told) = match (addr, file(cert), file(key)) {
            (None, None, None) => return Some(None),
            (Some(addr), Some(cert), Some(key)) => {
                let tls = Some(TlsFiles { cert, key });
                return Some(Some(HostListener { addr, tls }));
            }
            (Some(addr), None, None) if plain || addr.ip().is_loopback() => {
                return Some(Some(HostListener { addr, tls: None }));
            }
            (Some(_), None, None) => (
                &table::STS_HOST_LISTEN,
                "outside the loopback tokens need TLS: set sts.host.cert and sts.host.key, or sts.host.plain where a proxy in front ends TLS",
            ),
            (_, Some(_), None) => (&table::STS_HOST_CERT, both),
            (_, None, Some(_)) => (&table::STS_HOST_KEY, both),
            (None, Some(_), Some(_)) => (
                &table::STS_HOST_CERT,
                "means nothing without sts.host.listen",
            ),
        };
        let value = addr.filter(|_| row.key == table::STS_HOST_LISTEN.key);
        self.mistake(row, value.map(|addr| addr.to_string()), told.into());
        None
    }
}
