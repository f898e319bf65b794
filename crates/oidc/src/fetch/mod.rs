//! Fetches what clients name: their keys, request objects, documents and logout endpoints.
//!
//! Whoever registers a client chooses these addresses, so they are hostile until the opposite is
//! proven: they may point into the network of the operator, at a server that never answers, or at
//! one that never ends.
//!
//! Invariants
//! - Only `https`, and the server's certificate must be trusted.
//! - A connection is made only to an address that [`PrivateHosts`] permits. The check is applied to
//!   the answer of the very lookup whose addresses are connected to, so a name that changes its
//!   answer between two lookups gains nothing. One forbidden address forbids the name.
//! - No proxy from the environment: it would look names up itself.
//! - A redirect is an error, and so is every status but 200 (204 where nothing is expected).
//! - A fetch takes at most [`FetchSettings::timeout`], reads at most the bytes that its caller
//!   allows, and gives nothing of a wrong content type.
//! - At most [`MAX_FETCHES`] run at a time, and [`MAX_FETCHES_PER_HOST`] for one host. More are
//!   refused at once, so slow servers delay only those who named them.
//! - An error never contains the answer, and no password: an address with one is refused.

mod cache;
mod private;
mod sector;
#[cfg(test)]
pub(crate) mod tests;

use std::{
    collections::HashMap,
    error::Error as StdError,
    fmt,
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use ::http::{HeaderMap, StatusCode, header};
use parking_lot::Mutex;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tailbone_http::client::{self, ReachError};
use tailbone_values::excerpt;
use tokio::sync::Semaphore;
use url::{Host, Url};

pub use cache::{CacheBounds, Cached, FetchCache, KeyCache, NotFetched};
pub use private::{BadPrivateHost, PrivateHost, PrivateHosts};
pub use sector::{SectorError, check_sector};

/// Fetches that run at the same time.
pub const MAX_FETCHES: usize = 64;

/// The same for one host.
pub const MAX_FETCHES_PER_HOST: usize = 4;

/// Longer addresses are refused. RFC 9101 lets servers stop at 512 for `request_uri`.
const MAX_URL_BYTES: usize = 2048;

/// Header lines of an answer.
const MAX_HEADERS: usize = 64;

/// How the client of foreign addresses behaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchSettings {
    /// Hosts and networks that are permitted although their addresses are private.
    pub private_hosts: PrivateHosts,
    /// Certificates in PEM that are trusted besides those of the system.
    pub ca_file: Option<PathBuf>,
    /// For one fetch, from the lookup of the name to the last byte.
    pub timeout: Duration,
}

impl Default for FetchSettings {
    fn default() -> Self {
        Self {
            private_hosts: PrivateHosts::default(),
            ca_file: None,
            timeout: Duration::from_secs(5),
        }
    }
}

/// An address that may be fetched, as far as its text tells.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct FetchUrl(Url);

/// Why a text is no address that is fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadUrl {
    #[error("it is not a URL")]
    Form,
    #[error("it does not begin with https://")]
    NotHttps,
    #[error("it is longer than {MAX_URL_BYTES} bytes")]
    TooLong,
    /// Does not show the address, which contains the password.
    #[error("it has a user or a password in it")]
    UserInfo,
}

impl FetchUrl {
    pub fn parse(text: &str) -> Result<Self, BadUrl> {
        if text.len() > MAX_URL_BYTES {
            return Err(BadUrl::TooLong);
        }
        let url = Url::parse(text).map_err(|_| BadUrl::Form)?;
        if url.scheme() != "https" {
            return Err(BadUrl::NotHttps);
        }
        if !url.has_host() {
            return Err(BadUrl::Form);
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(BadUrl::UserInfo);
        }
        Ok(Self(url))
    }

    pub fn url(&self) -> &Url {
        &self.0
    }

    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    pub fn host(&self) -> &str {
        self.0.host_str().unwrap_or_default()
    }

    /// The address as it is sent: a fragment stays with the client.
    pub fn without_fragment(&self) -> Self {
        let mut url = self.0.clone();
        url.set_fragment(None);
        Self(url)
    }
}

impl fmt::Display for FetchUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str())
    }
}

/// What an answer may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// `application/json`, or a type that ends in `+json`.
    Json,
    /// `application/jwt`, or a type that ends in `+jwt`. Also `text/plain`, `application/jose`, or
    /// none: the contents are signed.
    Jwt,
}

impl Content {
    fn accept(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Jwt => "application/oauth-authz-req+jwt, application/jwt;q=0.9",
        }
    }

    fn takes(self, media_type: Option<&str>) -> bool {
        let Some(media_type) = media_type else {
            return self == Self::Jwt;
        };
        let essence = media_type.split(';').next().unwrap_or_default().trim();
        let essence = essence.to_ascii_lowercase();
        let Some((kind, subtype)) = essence.split_once('/') else {
            return false;
        };
        match (self, kind) {
            (Self::Json, "application") => subtype == "json" || subtype.ends_with("+json"),
            (Self::Jwt, "application") => {
                subtype == "jwt" || subtype == "jose" || subtype.ends_with("+jwt")
            }
            (Self::Jwt, "text") => subtype == "plain",
            _ => false,
        }
    }
}

/// What to fetch.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    pub url: &'a FetchUrl,
    pub content: Content,
    pub max_bytes: usize,
    /// Of the version that the caller has.
    pub etag: Option<&'a str>,
}

/// An answer with the status 200, or 304 where the caller has the newest version.
#[derive(Debug)]
pub enum Fetched {
    New { headers: HeaderMap, body: Vec<u8> },
    Unchanged { headers: HeaderMap },
}

/// Why there is no answer. Safe to show to whoever named the address.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("this server fetches as much as it can at the moment; try again")]
    Busy,
    #[error("the answer's type is {0:?}")]
    ContentType(String),
    #[error("the name {0} cannot be looked up")]
    NoAddress(String),
    #[error(
        "the host {0} has a private address, and the settings of this server do not permit that"
    )]
    PrivateAddress(String),
    #[error("the answer is a redirect, which is not followed")]
    Redirect,
    #[error("the server cannot be reached, or its certificate is not trusted")]
    Request(#[source] reqwest::Error),
    #[error("the server answered {0}")]
    Status(StatusCode),
    #[error("the answer is larger than {0} bytes")]
    TooLarge(usize),
    #[error("the server did not answer within {0:?}")]
    TooSlow(Duration),
}

impl FetchError {
    /// A stable code, for logs, audit lines and metrics.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Busy => "busy",
            Self::ContentType(_) => "content_type",
            Self::NoAddress(_) => "no_address",
            Self::PrivateAddress(_) => "private_address",
            Self::Redirect => "redirect",
            Self::Request(_) => "unreachable",
            Self::Status(_) => "status",
            Self::TooLarge(_) => "too_large",
            Self::TooSlow(_) => "too_slow",
        }
    }

    /// Whether the same request may succeed a little later without a change at the other side.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Busy | Self::NoAddress(_) | Self::Request(_) | Self::TooSlow(_) => true,
            Self::Status(status) => {
                status.is_server_error() || *status == StatusCode::TOO_MANY_REQUESTS
            }
            Self::ContentType(_) | Self::PrivateAddress(_) | Self::Redirect | Self::TooLarge(_) => {
                false
            }
        }
    }
}

/// The addresses of a name.
pub(crate) type Lookup = Arc<dyn Fn(String) -> LookupFuture + Send + Sync>;
type LookupFuture = Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send>>;

/// The client of foreign addresses.
pub struct GuardedClient {
    client: reqwest::Client,
    private_hosts: Arc<PrivateHosts>,
    timeout: Duration,
    running: Semaphore,
    per_host: Mutex<HashMap<String, usize>>,
}

impl fmt::Debug for GuardedClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuardedClient")
            .field("private_hosts", &self.private_hosts)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

impl GuardedClient {
    pub fn new(settings: &FetchSettings) -> Result<Self, ReachError> {
        let system: Lookup = Arc::new(|name| {
            Box::pin(async move {
                let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
                Ok(found.map(|address| address.ip()).collect())
            })
        });
        Self::with_lookup(settings, system)
    }

    pub(crate) fn with_lookup(
        settings: &FetchSettings,
        lookup: Lookup,
    ) -> Result<Self, ReachError> {
        let private_hosts = Arc::new(settings.private_hosts.clone());
        let mut builder = client::builder(settings.timeout)
            .no_proxy()
            .https_only(true)
            .http1_only()
            .http1_max_headers(MAX_HEADERS)
            // An idle connection per foreign host would be memory that clients choose.
            .pool_max_idle_per_host(0)
            .referer(false)
            .dns_resolver(Arc::new(CheckedLookup {
                lookup,
                private_hosts: private_hosts.clone(),
                running: Arc::new(Semaphore::new(MAX_FETCHES)),
            }));
        if let Some(path) = &settings.ca_file {
            builder = builder.tls_certs_merge(client::certificates(path)?);
        }
        Ok(Self {
            client: builder.build().map_err(ReachError::Client)?,
            private_hosts,
            timeout: settings.timeout,
            running: Semaphore::new(MAX_FETCHES),
            per_host: Mutex::default(),
        })
    }

    pub async fn get(&self, wanted: Wanted<'_>) -> Result<Fetched, FetchError> {
        let url = wanted.url.without_fragment();
        let mut request = (self.client)
            .get(url.0.clone())
            .header(header::ACCEPT, wanted.content.accept());
        if let Some(etag) = wanted.etag {
            request = request.header(header::IF_NONE_MATCH, etag);
        }
        self.guarded(&url, async {
            let response = request.send().await.map_err(request_error)?;
            let headers = response.headers().clone();
            match response.status() {
                StatusCode::OK => {}
                StatusCode::NOT_MODIFIED if wanted.etag.is_some() => {
                    return Ok(Fetched::Unchanged { headers });
                }
                status if status.is_redirection() => return Err(FetchError::Redirect),
                status => return Err(FetchError::Status(status)),
            }
            check_content(&headers, wanted.content)?;
            let body = client::read_body_up_to(response, wanted.max_bytes)
                .await
                .map_err(request_error)?
                .ok_or(FetchError::TooLarge(wanted.max_bytes))?;
            Ok(Fetched::New { headers, body })
        })
        .await
    }

    /// Sends a form. The answer's status alone counts: 200, or 204.
    pub async fn post_form(&self, url: &FetchUrl, form: &[(&str, &str)]) -> Result<(), FetchError> {
        let url = url.without_fragment();
        let request = self.client.post(url.0.clone()).form(form);
        self.guarded(&url, async {
            match request.send().await.map_err(request_error)?.status() {
                StatusCode::OK | StatusCode::NO_CONTENT => Ok(()),
                status if status.is_redirection() => Err(FetchError::Redirect),
                status => Err(FetchError::Status(status)),
            }
        })
        .await
    }

    /// Runs `fetch` within the limits of all fetches and of the host.
    async fn guarded<T>(
        &self,
        url: &FetchUrl,
        fetch: impl Future<Output = Result<T, FetchError>>,
    ) -> Result<T, FetchError> {
        // The resolver is not asked for addresses that stand in the URL.
        let literal = match url.0.host() {
            Some(Host::Ipv4(address)) => Some(IpAddr::V4(address)),
            Some(Host::Ipv6(address)) => Some(IpAddr::V6(address)),
            _ => None,
        };
        if literal.is_some_and(|address| !self.private_hosts.permit(url.host(), address)) {
            return Err(FetchError::PrivateAddress(url.host().to_owned()));
        }
        let _running = self.running.try_acquire().map_err(|_| FetchError::Busy)?;
        let _for_host = HostTurn::take(&self.per_host, url.host()).ok_or(FetchError::Busy)?;
        match tokio::time::timeout(self.timeout, fetch).await {
            Ok(result) => result,
            Err(_) => Err(FetchError::TooSlow(self.timeout)),
        }
        .map_err(|error| match error {
            FetchError::Request(error) if error.is_timeout() => FetchError::TooSlow(self.timeout),
            other => other,
        })
    }
}

/// One of the fetches that may run for a host.
struct HostTurn<'a> {
    per_host: &'a Mutex<HashMap<String, usize>>,
    host: &'a str,
}

impl<'a> HostTurn<'a> {
    fn take(per_host: &'a Mutex<HashMap<String, usize>>, host: &'a str) -> Option<Self> {
        let mut running = per_host.lock();
        let count = running.entry(host.to_owned()).or_default();
        if *count == MAX_FETCHES_PER_HOST {
            return None;
        }
        *count += 1;
        Some(Self { per_host, host })
    }
}

impl Drop for HostTurn<'_> {
    fn drop(&mut self) {
        let mut running = self.per_host.lock();
        if let Some(count) = running.get_mut(self.host) {
            *count -= 1;
            if *count == 0 {
                running.remove(self.host);
            }
        }
    }
}

fn check_content(headers: &HeaderMap, content: Content) -> Result<(), FetchError> {
    let text = |name| {
        headers
            .get(name)
            .map(|value| String::from_utf8_lossy(::http::HeaderValue::as_bytes(value)))
    };
    let media_type = text(header::CONTENT_TYPE);
    if !content.takes(media_type.as_deref()) {
        return Err(FetchError::ContentType(excerpt(
            &media_type.unwrap_or_default(),
        )));
    }
    // None was asked for.
    match text(header::CONTENT_ENCODING) {
        Some(coding) if !coding.eq_ignore_ascii_case("identity") => {
            Err(FetchError::ContentType(excerpt(&coding)))
        }
        _ => Ok(()),
    }
}

/// Without the address, which the caller knows. A refusal of the lookup lies among the sources.
fn request_error(error: reqwest::Error) -> FetchError {
    let mut source: Option<&(dyn StdError + 'static)> = error.source();
    while let Some(cause) = source {
        if let Some(refused) = cause.downcast_ref::<LookupRefused>() {
            return match refused {
                LookupRefused::Busy => FetchError::Busy,
                LookupRefused::NoAddress(name) => FetchError::NoAddress(name.clone()),
                LookupRefused::PrivateAddress(name) => FetchError::PrivateAddress(name.clone()),
            };
        }
        source = cause.source();
    }
    FetchError::Request(error.without_url())
}

/// Looks names up, and gives the addresses only if all of them are permitted.
struct CheckedLookup {
    lookup: Lookup,
    private_hosts: Arc<PrivateHosts>,
    /// A lookup occupies a thread until the system answers, even if nobody waits any more.
    running: Arc<Semaphore>,
}

#[derive(Debug, Clone, thiserror::Error)]
enum LookupRefused {
    #[error("too many lookups")]
    Busy,
    #[error("{0} cannot be looked up")]
    NoAddress(String),
    #[error("{0} has a private address")]
    PrivateAddress(String),
}

impl Resolve for CheckedLookup {
    fn resolve(&self, name: Name) -> Resolving {
        let name = name.as_str().to_owned();
        let Ok(turn) = self.running.clone().try_acquire_owned() else {
            return Box::pin(async { Err(LookupRefused::Busy.into()) });
        };
        let answer = (self.lookup)(name.clone());
        let private_hosts = self.private_hosts.clone();
        Box::pin(async move {
            let answer = tokio::spawn(async move {
                let _turn = turn;
                answer.await
            });
            let addresses = match answer.await {
                Ok(Ok(addresses)) if !addresses.is_empty() => addresses,
                _ => return Err(LookupRefused::NoAddress(name).into()),
            };
            if !addresses.iter().all(|ip| private_hosts.permit(&name, *ip)) {
                return Err(LookupRefused::PrivateAddress(name).into());
            }
            // The port 0 stands for that of the URL.
            let addresses = addresses.into_iter().map(|ip| SocketAddr::new(ip, 0));
            Ok(Box::new(addresses) as Addrs)
        })
    }
}
