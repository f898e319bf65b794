//! What the exchange needs to know, checked. How it was typed is [`crate::config`]'s business.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use url::Url;

use crate::{
    config::{Binding, Secret, StsSettings},
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
    /// `sts.host.cert` and `sts.host.key`; absent only where `sts.host.plain` says that somebody else ends TLS.
    pub tls: Option<TlsFiles>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// What is wrong with settings that are sound one by one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    #[error(
        "sts.clientId is set without sts.clientSecret, or the other way round; both are needed"
    )]
    HalfCredentials,
    #[error("sts.host.cert is set without sts.host.key, or the other way round; both are needed")]
    HalfTls,
    #[error("sts.host.cert and sts.host.key mean nothing without sts.host.listen")]
    TlsWithoutListener,
    #[error(
        "sts.host.listen={0}: outside the loopback tokens need TLS: set sts.host.cert and sts.host.key, or sts.host.plain where a proxy in front ends TLS"
    )]
    Plain(SocketAddr),
    #[error("sts.tokenUrl is neither an http nor an https address")]
    TokenUrl,
}

impl Settings {
    /// What was set, made one. Every misfit is told, not only the first.
    pub fn of(set: &StsSettings) -> Result<Self, Vec<SettingsError>> {
        let mut misfits = Vec::new();
        let credentials = Credentials::both(&set.client_id, set.client_secret.clone());
        let host = HostListener::checked(
            set.host_listen,
            set.host_cert.clone(),
            set.host_key.clone(),
            set.host_plain,
        );
        let token_url = token_url(&set.token_url);
        let credentials = credentials.map_err(|misfit| misfits.push(misfit));
        let host = host.map_err(|misfit| misfits.push(misfit));
        let token_url = token_url.map_err(|misfit| misfits.push(misfit));
        let (Ok(credentials), Ok(host), Ok(token_url)) = (credentials, host, token_url) else {
            return Err(misfits);
        };
        Ok(Self {
            port: set.port,
            binding: set.binding,
            host,
            policies_dir: set.policies_dir.clone(),
            strict: set.strict,
            credentials,
            token_url,
            timeout: set.timeout,
            cache_time: set.cache_time,
            leeway: set.leeway,
            jwks: fetch::Rules {
                cool_down: set.jwks_cool_down,
                ..fetch::Rules::default()
            },
        })
    }

    /// The defaults, with these policies and this client.
    pub fn new(
        policies_dir: PathBuf,
        credentials: Option<Credentials>,
    ) -> Result<Self, SettingsError> {
        Ok(Self {
            port: PORT,
            binding: Binding::Auto,
            host: None,
            policies_dir,
            strict: false,
            credentials,
            token_url: token_url(TOKEN_URL)?,
            timeout: Duration::from_secs(10),
            cache_time: Duration::ZERO,
            leeway: Duration::ZERO,
            jwks: fetch::Rules::default(),
        })
    }
}

impl Credentials {
    /// Both or neither; an empty text is none.
    pub fn both(id: &str, secret: Option<Secret>) -> Result<Option<Self>, SettingsError> {
        let secret = secret.filter(|secret| !secret.reveal().is_empty());
        match (id, secret) {
            ("", None) => Ok(None),
            ("", Some(_)) | (_, None) => Err(SettingsError::HalfCredentials),
            (id, Some(secret)) => Ok(Some(Self {
                id: id.to_owned(),
                secret,
            })),
        }
    }
}

impl HostListener {
    pub fn checked(
        listen: Option<SocketAddr>,
        cert: Option<PathBuf>,
        key: Option<PathBuf>,
        plain: bool,
    ) -> Result<Option<Self>, SettingsError> {
        let tls = match (cert, key) {
            (Some(cert), Some(key)) => Some(TlsFiles { cert, key }),
            (None, None) => None,
            _ => return Err(SettingsError::HalfTls),
        };
        match (listen, tls) {
            (None, None) => Ok(None),
            (None, Some(_)) => Err(SettingsError::TlsWithoutListener),
            (Some(addr), None) if !plain && !addr.ip().is_loopback() => {
                Err(SettingsError::Plain(addr))
            }
            (Some(addr), tls) => Ok(Some(Self { addr, tls })),
        }
    }
}

pub fn token_url(text: &str) -> Result<Url, SettingsError> {
    Url::parse(text)
        .ok()
        .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
        .ok_or(SettingsError::TokenUrl)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_listener_needs_tls_or_a_word() {
        let public: SocketAddr = "0.0.0.0:8443".parse().unwrap();
        let local: SocketAddr = "127.0.0.1:8080".parse().unwrap();
        let file = || Some(PathBuf::from("x.pem"));
        assert_eq!(HostListener::checked(None, None, None, false), Ok(None));
        assert!(HostListener::checked(Some(local), None, None, false).is_ok());
        assert!(HostListener::checked(Some(public), None, None, true).is_ok());
        assert!(HostListener::checked(Some(public), file(), file(), false).is_ok());
        let wrong =
            |listen, cert, key| HostListener::checked(listen, cert, key, false).unwrap_err();
        assert_eq!(
            wrong(Some(public), None, None),
            SettingsError::Plain(public)
        );
        assert_eq!(wrong(Some(public), file(), None), SettingsError::HalfTls);
        assert_eq!(
            wrong(None, file(), file()),
            SettingsError::TlsWithoutListener
        );
    }

    #[test]
    fn half_credentials_are_told() {
        let secret = || Some(Secret::new("tskey-client-x"));
        assert_eq!(Credentials::both("", None), Ok(None));
        assert!(Credentials::both("id", secret()).unwrap().is_some());
        assert!(Credentials::both("id", None).is_err());
        assert!(Credentials::both("", secret()).is_err());
        let shown = format!("{:?}", Credentials::both("id", secret()));
        assert!(!shown.contains("tskey"), "{shown}");
    }
}
