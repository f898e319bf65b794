//! What the exchange needs to know. How it was typed, and whether it fits together, is [`crate::config`]'s business.

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
    /// `sts.port`: on the tailnet.
    pub port: u16,
    /// `sts.binding`: which tailnet address.
    pub binding: Binding,
    /// `sts.host.*`: a host address too, for callers that are on no tailnet; none unless set.
    pub host: Option<HostListener>,
    /// `sts.policiesDir`
    pub policies_dir: PathBuf,
    /// `sts.strict`: refuse policies that load with a warning.
    pub strict: bool,
    /// `sts.clientId` and `sts.clientSecret`; absent where every policy brings its own.
    pub credentials: Option<Credentials>,
    /// `sts.tokenUrl`
    pub token_url: Url,
    /// `sts.timeout`: for one call of the token endpoint.
    pub timeout: Duration,
    /// `sts.cacheTime`: how long an access token may be given to further callers of the same policy, scopes and tags; off at zero.
    pub cache_time: Duration,
    /// `sts.leeway`: how far issuers' clocks may be off.
    pub leeway: Duration,
    /// `sts.jwks.coolDown` and its siblings.
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

    /// The defaults, with these policies and this client.
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
