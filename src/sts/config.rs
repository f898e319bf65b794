//! The settings of the exchange. [`crate::config`] reads them and checks that they fit together.

use std::{path::PathBuf, time::Duration};

use url::Url;

pub use crate::config::{Credentials, HostListener, TlsFiles};
use crate::{
    config::{Binding, StsSettings},
    jwks::fetch,
};

pub const TOKEN_URL: &str = "https://api.tailscale.com/api/v2/oauth/token";
pub const PORT: u16 = 8080;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// `sts.port`, on the tailnet.
    pub port: u16,
    /// `sts.binding`: the tailnet address to listen on.
    pub binding: Binding,
    /// `sts.host.*`: an additional listener on a host address, for callers outside the tailnet.
    pub host: Option<HostListener>,
    /// `sts.policiesDir`
    pub policies_dir: PathBuf,
    /// `sts.strict`: refuse policies that load with a warning.
    pub strict: bool,
    /// `sts.clientId` and `sts.clientSecret`; absent if every policy has its own.
    pub credentials: Option<Credentials>,
    /// `sts.tokenUrl`
    pub token_url: Url,
    /// `sts.timeout`, for one call of the token endpoint.
    pub timeout: Duration,
    /// `sts.cacheTime`: how long an access token may be given to further callers with the same
    /// policy, scopes and tags; zero turns this off.
    pub cache_time: Duration,
    /// `sts.leeway`: by how much an issuer's clock may be off.
    pub leeway: Duration,
    /// `sts.jwks.coolDown` and the other settings in `sts.jwks`.
    pub jwks: fetch::Rules,
}

impl Settings {
    pub fn of(set: &StsSettings) -> Self {
        Self {
            port: set.port,
            binding: set.binding,
            host: set.host.clone(),
            policies_dir: set.policies_dir.clone(),
            strict: set.strict,
            credentials: set.credentials.clone(),
            token_url: set.token_url.clone(),
            timeout: set.timeout,
            cache_time: set.cache_time,
            leeway: set.leeway,
            jwks: fetch::Rules {
                cool_down: set.jwks_cool_down,
                ..fetch::Rules::default()
            },
        }
    }

    /// The default settings with these policies and this client.
    pub fn new(
        policies_dir: PathBuf,
        credentials: Option<Credentials>,
    ) -> Result<Self, url::ParseError> {
        Ok(Self {
            port: PORT,
            binding: Binding::Auto,
            host: None,
            policies_dir,
            strict: false,
            credentials,
            token_url: Url::parse(TOKEN_URL)?,
            timeout: Duration::from_secs(10),
            cache_time: Duration::ZERO,
            leeway: Duration::ZERO,
            jwks: fetch::Rules::default(),
        })
    }
}
