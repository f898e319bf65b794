//! The settings of the exchange. Whether they fit each other (half a client, TLS without an address) is its own business.

use std::path::PathBuf;

use super::{Reader, Reading, text};
use crate::config::{StsSettings, table};

impl Reader<'_> {
    pub(super) fn sts(&mut self) -> Option<StsSettings> {
        let port = self.port(&table::STS_PORT);
        let binding = self.binding(&table::STS_BINDING);
        let policies_dir = self.path(&table::STS_POLICIES_DIR);
        let strict = self.bool(&table::STS_STRICT);
        let client_id = self.read(&table::STS_CLIENT_ID, text);
        let client_secret = self.secret(&table::STS_CLIENT_SECRET);
        let token_url = self.url(&table::STS_TOKEN_URL);
        let timeout = self.duration(&table::STS_TIMEOUT);
        let cache_time = self.duration(&table::STS_CACHE_TIME);
        let leeway = self.duration(&table::STS_LEEWAY);
        let jwks_cool_down = self.duration(&table::STS_JWKS_COOL_DOWN);
        let host_listen = self.read(&table::STS_HOST_LISTEN, |typed, _| {
            let typed = typed.trim();
            if typed.is_empty() {
                return Ok(Reading::new(None, ""));
            }
            match typed.parse() {
                Ok(addr) => Ok(Reading::new(Some(addr), typed)),
                Err(_) => Err("not an address with a port such as 0.0.0.0:8443".into()),
            }
        });
        let host_cert = self.read(&table::STS_HOST_CERT, text);
        let host_key = self.read(&table::STS_HOST_KEY, text);
        let host_plain = self.bool(&table::STS_HOST_PLAIN);
        let file = |text: String| (!text.is_empty()).then(|| PathBuf::from(text));
        Some(StsSettings {
            port: port?,
            binding: binding?,
            policies_dir: policies_dir?,
            strict: strict?,
            client_id: client_id?,
            client_secret: client_secret?,
            token_url: token_url?.unwrap_or_default(),
            timeout: timeout?,
            cache_time: cache_time?,
            leeway: leeway?,
            jwks_cool_down: jwks_cool_down?,
            host_listen: host_listen?,
            host_cert: file(host_cert?),
            host_key: file(host_key?),
            host_plain: host_plain?,
        })
    }
}
