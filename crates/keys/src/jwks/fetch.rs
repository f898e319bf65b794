//! Fetches and caches the keys of other issuers, to verify their tokens.
//!
//! Each [`KeySource`] has its own task, so trouble with one issuer never affects another. A task
//! fetches at once, again when the answer's cache time has passed (within the limits of
//! [`FetchLimits`]), and earlier if a verifier asks for a key that is missing.
//!
//! Invariants
//! - The last good set is kept until another good one arrives; a failed or unreadable fetch never
//!   empties it.
//! - Verifiers cause at most one fetch per cool-down and source, however many unknown keys they
//!   see, and wait no longer than that fetch may take.
//! - A body has at most [`FetchLimits::body_bytes`], a fetch takes at most [`FetchLimits::time`], a
//!   redirect never leaves the host.
//! - A key is bound to its algorithms when it is read. Only here are type, curve, `alg`, `use`,
//!   `key_ops` and size checked.
//!
//! Callers decide which algorithms an issuer may use, and check every claim.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use ::http::{HeaderMap, StatusCode, header};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::Timestamp;
use jsonwebtoken::{Algorithm, DecodingKey};
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
};
use url::Url;

use tailbone_telemetry::meter::Meter;
use tailbone_values::Object;

/// Where an issuer's keys are found.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KeySource {
    /// In the `jwks_uri` of the issuer's OpenID configuration.
    Discovery { issuer: String },
    /// At this address.
    Jwks { url: String },
}

impl fmt::Display for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Discovery { issuer } => write!(f, "discovery of {issuer}"),
            Self::Jwks { url } => f.write_str(url),
        }
    }
}

/// Limits for fetching.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FetchLimits {
    pub body_bytes: usize,
    /// For one fetch, from the name look-up to the last byte. The two requests of discovery share
    /// it.
    pub time: Duration,
    /// The shortest time after which a set is fetched again, whatever its headers say.
    pub min_cache_time: Duration,
    /// If the headers say nothing.
    pub default_cache_time: Duration,
    pub max_cache_time: Duration,
    /// Least time between two fetches that verifiers ask for.
    pub cool_down: Duration,
    /// Pause after a failure: begins with the first and doubles up to the second.
    pub retry: (Duration, Duration),
}

impl Default for FetchLimits {
    fn default() -> Self {
        Self {
            body_bytes: 1 << 20,
            time: Duration::from_secs(5),
            min_cache_time: Duration::from_secs(60),
            default_cache_time: Duration::from_secs(15 * 60),
            max_cache_time: Duration::from_secs(3600),
            cool_down: Duration::from_secs(60),
            retry: (Duration::from_secs(1), Duration::from_secs(60)),
        }
    }
}

/// Caches the sets of all watched sources. Its tasks end when it is dropped.
#[derive(Debug)]
pub struct Fetcher {
    fetch: Fetch,
    watched: Mutex<BTreeMap<KeySource, Watched>>,
}

/// What verifiers see of a source, and how they ask its task for a fetch.
#[derive(Debug)]
struct Watched {
    view: watch::Receiver<SourceView>,
    request: Arc<FetchRequest>,
    task: JoinHandle<()>,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Debug, Clone, Default)]
struct SourceView {
    set: Option<Arc<KeySet>>,
    /// Number of fetches that have ended, successful or not.
    ended: u64,
    fetching: bool,
    problem: Option<Arc<FetchError>>,
}

#[derive(Debug, Default)]
struct FetchRequest {
    nudge: Notify,
    last: Mutex<Option<LastRequest>>,
}

#[derive(Debug, Clone, Copy)]
struct LastRequest {
    at: Instant,
    /// [`SourceView::ended`] at that time. While it is unchanged, the fetch has not ended yet.
    ended: u64,
}

/// State of a source, for readiness and status.
#[derive(Debug, Clone)]
pub struct SourceState {
    pub source: KeySource,
    /// Number of usable keys in the last good set.
    pub keys: Option<usize>,
    /// The first fetch has ended.
    pub tried: bool,
    /// What was wrong with the last fetch.
    pub problem: Option<String>,
}

/// Why there are no keys to verify with.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Missing {
    #[error("the keys of {0} are not watched")]
    NotWatched(KeySource),
    #[error("the keys of {0} could not be fetched yet")]
    NotFetched(KeySource, #[source] Option<Arc<FetchError>>),
}

impl Fetcher {
    pub fn new(limits: FetchLimits) -> Result<Self, reqwest::Error> {
        let same_host = reqwest::redirect::Policy::custom(|attempt| {
            let from = attempt.previous().last();
            let stays = from.is_some_and(|from| from.origin() == attempt.url().origin());
            if !stays {
                attempt.error("the answer redirects to another host")
            } else if attempt.previous().len() > 3 {
                attempt.error("too many redirects")
            } else {
                attempt.follow()
            }
        });
        let client = reqwest::Client::builder()
            .redirect(same_host)
            .connect_timeout(limits.time)
            .timeout(limits.time)
            .user_agent(concat!("tailbone/", env!("CARGO_PKG_VERSION")))
            .build()?;
        Ok(Self {
            fetch: Fetch {
                client,
                limits,
                meter: Meter::default(),
            },
            watched: Mutex::default(),
        })
    }

    /// Counts the fetches in `meter`, for sources watched from now on.
    #[must_use]
    pub fn with_meter(mut self, meter: Meter) -> Self {
        self.fetch.meter = meter;
        self
    }

    /// Watches exactly these sources: starts a task for each new one and stops those that are gone.
    /// Needs a running tokio runtime.
    pub fn watch(&self, sources: &BTreeSet<KeySource>) {
        let mut watched = self.watched.lock();
        watched.retain(|source, _| sources.contains(source));
        for source in sources {
            watched.entry(source.clone()).or_insert_with(|| {
                let (state, view) = watch::channel(SourceView::default());
                let request = Arc::new(FetchRequest::default());
                let task = tokio::spawn(watch_source(
                    self.fetch.clone(),
                    source.clone(),
                    state,
                    request.clone(),
                ));
                Watched {
                    view,
                    request,
                    task,
                }
            });
        }
    }

    /// The newest set of a source. If it does not satisfy `enough`, waits for one fetch, provided
    /// that the cool-down allows one. Then returns the set there is, whether or not it satisfies
    /// `enough`. `now` is the time for the cool-down.
    pub async fn keys(
        &self,
        source: &KeySource,
        enough: impl Fn(&KeySet) -> bool,
        now: Instant,
    ) -> Result<Arc<KeySet>, Missing> {
        let (mut view, request) = {
            let watched = self.watched.lock();
            let watched = watched
                .get(source)
                .ok_or_else(|| Missing::NotWatched(source.clone()))?;
            (watched.view.clone(), watched.request.clone())
        };
        let seen = view.borrow_and_update().clone();
        if let Some(set) = seen.set.as_ref().filter(|set| enough(set)) {
            return Ok(set.clone());
        }
        // A fetch in progress serves all who wait. The cool-down limits only new ones.
        let coming = seen.fetching
            || seen.ended == 0
            || request.fetch(seen.ended, now, self.fetch.limits.cool_down);
        if coming {
            // The task limits its fetch. This limit is for a runtime that is too busy to run the
            // task.
            let limit = self.fetch.limits.time + Duration::from_secs(1);
            let _ =
                tokio::time::timeout(limit, view.wait_for(|view| view.ended > seen.ended)).await;
        }
        let newest = view.borrow().clone();
        newest
            .set
            .ok_or_else(|| Missing::NotFetched(source.clone(), newest.problem))
    }

    pub fn states(&self) -> Vec<SourceState> {
        self.watched
            .lock()
            .iter()
            .map(|(source, watched)| {
                let view = watched.view.borrow();
                SourceState {
                    source: source.clone(),
                    keys: view.set.as_ref().map(|set| set.keys.len()),
                    tried: view.ended > 0,
                    problem: view.problem.as_ref().map(|problem| problem.to_string()),
                }
            })
            .collect()
    }
}

impl FetchRequest {
    /// Returns true if a fetch is coming: one was asked for already, or this call asks for one
    /// because the cool-down is over.
    fn fetch(&self, ended: u64, now: Instant, cool_down: Duration) -> bool {
        let mut last = self.last.lock();
        match *last {
            Some(asked) if asked.ended == ended => true,
            Some(asked) if now.saturating_duration_since(asked.at) < cool_down => false,
            _ => {
                *last = Some(LastRequest { at: now, ended });
                self.nudge.notify_one();
                true
            }
        }
    }
}

/// The task of one source.
async fn watch_source(
    fetch: Fetch,
    source: KeySource,
    state: watch::Sender<SourceView>,
    request: Arc<FetchRequest>,
) {
    let mut failures = 0;
    let mut etag = None;
    loop {
        state.send_modify(|view| view.fetching = true);
        let outcome = fetch.key_set(&source, etag.as_deref()).await;
        fetch.meter.issuer_keys_fetched(match &outcome {
            Ok(Fetched { set: Some(_), .. }) => "new",
            Ok(_) => "unchanged",
            Err(_) => "failed",
        });
        let wait = match outcome {
            Ok(fetched) => {
                failures = 0;
                let cache_time = fetched.cache_time;
                if fetched.set.is_some() {
                    etag = fetched.etag;
                }
                state.send_modify(|view| {
                    if let Some(set) = fetched.set {
                        tracing::debug!(target: "jwks", source = %source, keys = set.keys.len(), skipped = set.skipped, "keys fetched");
                        view.set = Some(Arc::new(set));
                    }
                    view.problem = None;
                    view.fetching = false;
                    view.ended += 1;
                });
                cache_time
            }
            Err(problem) => {
                let again = back_off(failures, fetch.limits.retry);
                failures = failures.saturating_add(1);
                tracing::warn!(
                    target: "jwks",
                    source = %source,
                    error = tailbone_telemetry::error_chain(&problem),
                    retry_s = again.as_secs(),
                    "keys not fetched; the last good ones stay in use"
                );
                state.send_modify(|view| {
                    view.problem = Some(Arc::new(problem));
                    view.fetching = false;
                    view.ended += 1;
                });
                again
            }
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = request.nudge.notified() => {}
        }
    }
}

fn back_off(failures: u32, (first, most): (Duration, Duration)) -> Duration {
    first.saturating_mul(1 << failures.min(16)).min(most)
}

/// Why a fetch failed.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("the body is larger than {0} bytes")]
    TooLarge(usize),
    #[error("no answer within {0:?}")]
    TooSlow(Duration),
    #[error("{0}")]
    Request(#[source] reqwest::Error),
    #[error("answered {0}")]
    Status(StatusCode),
    #[error("not an OpenID configuration")]
    Configuration(#[source] serde_json::Error),
    #[error("the OpenID configuration names the issuer {found:?}")]
    OtherIssuer { found: String },
    #[error("the OpenID configuration names keys without TLS at {0}")]
    Plain(String),
    #[error("not an address: {0}")]
    Address(String),
    /// Does not show the address, as it contains the password.
    #[error("the address of the keys has a user or a password in it")]
    UserInfo,
    #[error(transparent)]
    Set(#[from] SetError),
}

#[derive(Debug, Clone)]
struct Fetch {
    client: reqwest::Client,
    limits: FetchLimits,
    meter: Meter,
}

struct Fetched {
    /// `None` if the set we have is still the newest.
    set: Option<KeySet>,
    etag: Option<String>,
    cache_time: Duration,
}

impl Fetch {
    async fn key_set(&self, source: &KeySource, etag: Option<&str>) -> Result<Fetched, FetchError> {
        tokio::time::timeout(self.limits.time, self.key_set_unbounded(source, etag))
            .await
            .unwrap_or(Err(FetchError::TooSlow(self.limits.time)))
    }

    async fn key_set_unbounded(
        &self,
        source: &KeySource,
        etag: Option<&str>,
    ) -> Result<Fetched, FetchError> {
        let url = match source {
            KeySource::Discovery { issuer } => self.discover(issuer).await?,
            KeySource::Jwks { url } => address(url)?,
        };
        let mut request = self
            .client
            .get(url)
            .header(header::ACCEPT, "application/json");
        if let Some(etag) = etag {
            request = request.header(header::IF_NONE_MATCH, etag);
        }
        let response = request.send().await.map_err(request_error)?;
        let headers = response.headers().clone();
        let cache_time = cache_time_of(&headers, Timestamp::now(), &self.limits);
        if response.status() == StatusCode::NOT_MODIFIED && etag.is_some() {
            return Ok(Fetched {
                set: None,
                etag: None,
                cache_time,
            });
        }
        let body = self.body(response).await?;
        Ok(Fetched {
            set: Some(KeySet::parse(&body)?),
            etag: text(&headers, header::ETAG).map(str::to_owned),
            cache_time,
        })
    }

    async fn discover(&self, issuer: &str) -> Result<Url, FetchError> {
        #[derive(Deserialize)]
        struct Configuration {
            issuer: String,
            jwks_uri: String,
        }

        let path = "/.well-known/openid-configuration";
        let url = address(&format!(
            "{}{path}",
            issuer.strip_suffix('/').unwrap_or(issuer)
        ))?;
        let response = self.client.get(url.clone()).send().await;
        let body = self.body(response.map_err(request_error)?).await?;
        let found: Configuration = Object::from_bytes(&body).map_err(FetchError::Configuration)?;
        if found.issuer != issuer {
            return Err(FetchError::OtherIssuer {
                found: found.issuer,
            });
        }
        let keys = address(&found.jwks_uri)?;
        if keys.scheme() != "https" && url.scheme() == "https" {
            return Err(FetchError::Plain(found.jwks_uri));
        }
        Ok(keys)
    }

    async fn body(&self, mut response: reqwest::Response) -> Result<Vec<u8>, FetchError> {
        if response.status() != StatusCode::OK {
            return Err(FetchError::Status(response.status()));
        }
        let most = self.limits.body_bytes;
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(request_error)? {
            if body.len() + chunk.len() > most {
                return Err(FetchError::TooLarge(most));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }
}

/// Without the address, which the source shows already.
fn request_error(error: reqwest::Error) -> FetchError {
    FetchError::Request(error.without_url())
}

fn address(text: &str) -> Result<Url, FetchError> {
    let url = Url::parse(text)
        .ok()
        .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
        .ok_or_else(|| FetchError::Address(text.to_owned()))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(FetchError::UserInfo);
    }
    Ok(url)
}

/// How long a set may be kept according to the headers of its answer, within the limits.
fn cache_time_of(headers: &HeaderMap, now: Timestamp, limits: &FetchLimits) -> Duration {
    let asked = asked_cache_time(headers, now).unwrap_or(limits.default_cache_time);
    asked.clamp(
        limits.min_cache_time,
        limits.max_cache_time.max(limits.min_cache_time),
    )
}

/// How long the headers of an answer allow to keep it, if they say so (RFC 9111).
pub fn asked_cache_time(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let mut max_age = None;
    for line in headers.get_all(header::CACHE_CONTROL) {
        for directive in line.to_str().unwrap_or_default().split(',') {
            let directive = directive.trim().to_ascii_lowercase();
            if directive == "no-store" || directive == "no-cache" {
                return Some(Duration::ZERO);
            }
            if let Some(seconds) = directive.strip_prefix("max-age=") {
                max_age = max_age.or(seconds.trim_matches('"').parse::<u64>().ok());
            }
        }
    }
    if let Some(max_age) = max_age {
        let age = text(headers, header::AGE).and_then(|age| age.trim().parse::<u64>().ok());
        return Some(Duration::from_secs(
            max_age.saturating_sub(age.unwrap_or(0)),
        ));
    }
    let expires = text(headers, header::EXPIRES)?;
    // An unreadable date means "expired already" (RFC 9111, 5.3).
    let left = jiff::fmt::rfc2822::parse(expires)
        .map(|expires| expires.timestamp().duration_since(now))
        .ok()
        .and_then(|left| Duration::try_from(left).ok());
    Some(left.unwrap_or_default())
}

fn text(headers: &HeaderMap, name: header::HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

/// The usable keys of a published set.
#[derive(Debug, Default)]
pub struct KeySet {
    keys: Vec<PublicKey>,
    skipped: usize,
}

/// A key, bound to the algorithms that it may verify.
pub struct PublicKey {
    pub kid: Option<String>,
    algorithms: Vec<Algorithm>,
    pub key: DecodingKey,
}

/// Of a public key only the name is worth printing.
impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PublicKey")
            .field("kid", &self.kid)
            .field("algorithms", &self.algorithms)
            .finish_non_exhaustive()
    }
}

/// Why a document is not a key set.
#[derive(Debug, thiserror::Error)]
pub enum SetError {
    #[error("not a JSON Web Key set")]
    Form(#[source] serde_json::Error),
    #[error("none of the {0} keys is usable")]
    NoUsableKey(usize),
}

/// A token without a `kid` is tried with every key that fits, so the number of keys is a cost that
/// the issuer must not choose.
const MAX_KEYS: usize = 256;
const MIN_RSA_BITS: usize = 2048;
const MAX_RSA_BITS: usize = 8192;

impl KeySet {
    /// Skips keys that are broken, of unknown kinds, or unfit for verifying. A set of only such
    /// keys is an error. An empty set is not: the issuer says that it has no keys.
    pub fn parse(document: &[u8]) -> Result<Self, SetError> {
        #[derive(Deserialize)]
        struct Document {
            keys: Vec<serde_json::Value>,
        }

        let document: Document = Object::from_bytes(document).map_err(SetError::Form)?;
        let told = document.keys.len();
        let keys: Vec<_> = document
            .keys
            .into_iter()
            .filter_map(|key| serde_json::from_value::<Object<Jwk>>(key).ok())
            .filter_map(|Object(key)| key.verification_key())
            .take(MAX_KEYS)
            .collect();
        if keys.is_empty() && told > 0 {
            return Err(SetError::NoUsableKey(told));
        }
        Ok(Self {
            skipped: told - keys.len(),
            keys,
        })
    }

    pub fn len(&self) -> usize {
        self.keys.len()
    }

    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    pub fn contains(&self, kid: &str) -> bool {
        self.keys.iter().any(|key| key.kid.as_deref() == Some(kid))
    }

    /// The keys that may verify `algorithm`: those with the id `kid`, or all if the token names
    /// none.
    pub fn candidates<'a>(
        &'a self,
        kid: Option<&'a str>,
        algorithm: Algorithm,
    ) -> impl Iterator<Item = &'a PublicKey> {
        self.keys.iter().filter(move |key| {
            (kid.is_none() || key.kid.as_deref() == kid) && key.algorithms.contains(&algorithm)
        })
    }
}

#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    key_ops: Option<Vec<String>>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

impl Jwk {
    fn verification_key(self) -> Option<PublicKey> {
        let for_signatures = self.usage.as_deref().is_none_or(|usage| usage == "sig");
        let for_verifying =
            (self.key_ops.as_ref()).is_none_or(|ops| ops.iter().any(|op| op == "verify"));
        if !for_signatures || !for_verifying {
            return None;
        }
        let (mut algorithms, key) = self.material()?;
        if let Some(alg) = &self.alg {
            algorithms.retain(|algorithm| {
                alg == name(*algorithm) || (alg == "Ed25519" && *algorithm == Algorithm::EdDSA)
            });
        }
        (!algorithms.is_empty()).then_some(PublicKey {
            kid: self.kid,
            algorithms,
            key,
        })
    }

    fn material(&self) -> Option<(Vec<Algorithm>, DecodingKey)> {
        use Algorithm::*;
        match (self.kty.as_str(), self.crv.as_deref()) {
            ("RSA", _) => {
                let (n, e) = (unbase64(&self.n)?, unbase64(&self.e)?);
                let bits = bits(&n);
                if !(MIN_RSA_BITS..=MAX_RSA_BITS).contains(&bits) {
                    return None;
                }
                let key = DecodingKey::from_rsa_raw_components(&n, &e);
                Some((vec![RS256, RS384, RS512, PS256, PS384, PS512], key))
            }
            ("EC", Some("P-256")) => Some((vec![ES256], self.point(32)?)),
            ("EC", Some("P-384")) => Some((vec![ES384], self.point(48)?)),
            ("OKP", Some("Ed25519")) if unbase64(&self.x)?.len() == 32 => Some((
                vec![EdDSA],
                DecodingKey::from_ed_components(self.x.as_deref()?).ok()?,
            )),
            _ => None,
        }
    }

    fn point(&self, width: usize) -> Option<DecodingKey> {
        let wide = |part: &Option<String>| unbase64(part).is_some_and(|part| part.len() == width);
        if !wide(&self.x) || !wide(&self.y) {
            return None;
        }
        DecodingKey::from_ec_components(self.x.as_deref()?, self.y.as_deref()?).ok()
    }
}

fn unbase64(part: &Option<String>) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(part.as_deref()?).ok()
}

/// Length in bits of a big-endian number, without leading zeros.
fn bits(number: &[u8]) -> usize {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    let significant = &number[zeros..];
    significant.first().map_or(0, |first| {
        significant.len() * 8 - first.leading_zeros() as usize
    })
}

/// An algorithm's name in JOSE.
pub fn name(algorithm: Algorithm) -> &'static str {
    match algorithm {
        Algorithm::HS256 => "HS256",
        Algorithm::HS384 => "HS384",
        Algorithm::HS512 => "HS512",
        Algorithm::ES256 => "ES256",
        Algorithm::ES384 => "ES384",
        Algorithm::RS256 => "RS256",
        Algorithm::RS384 => "RS384",
        Algorithm::RS512 => "RS512",
        Algorithm::PS256 => "PS256",
        Algorithm::PS384 => "PS384",
        Algorithm::PS512 => "PS512",
        Algorithm::EdDSA => "EdDSA",
        _ => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::http::HeaderValue;
    use serde_json::json;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        lines
            .iter()
            .map(|(name, value)| {
                (
                    name.parse::<header::HeaderName>().unwrap(),
                    HeaderValue::from_static(value),
                )
            })
            .collect()
    }

    #[test]
    fn cache_headers_count_within_bounds() {
        let limits = FetchLimits::default();
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let cache_time = |lines: &[(&'static str, &'static str)]| {
            cache_time_of(&headers(lines), now, &limits).as_secs()
        };
        assert_eq!(cache_time(&[]), 900);
        assert_eq!(cache_time(&[("cache-control", "public, max-age=300")]), 300);
        assert_eq!(
            cache_time(&[("cache-control", "max-age=300"), ("age", "100")]),
            200
        );
        assert_eq!(cache_time(&[("cache-control", "max-age=5")]), 60);
        assert_eq!(cache_time(&[("cache-control", "max-age=99999999")]), 3600);
        assert_eq!(
            cache_time(&[("cache-control", "no-store, max-age=600")]),
            60
        );
        assert_eq!(
            cache_time(&[("expires", "Thu, 01 Jan 2026 00:10:00 GMT")]),
            600
        );
        assert_eq!(cache_time(&[("expires", "0")]), 60);
        assert_eq!(cache_time(&[("cache-control", "max-age=nonsense")]), 900);
    }

    #[test]
    fn retries_grow_to_a_bound_and_asking_has_a_cool_down() {
        let retry = FetchLimits::default().retry;
        let waits: Vec<_> = (0..8).map(|n| back_off(n, retry).as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(back_off(u32::MAX, retry).as_secs(), 60);

        let (request, now) = (FetchRequest::default(), Instant::now());
        let minute = Duration::from_secs(60);
        assert!(request.fetch(1, now, minute));
        assert!(
            request.fetch(1, now, minute),
            "the one that is coming serves all"
        );
        assert!(!request.fetch(2, now + minute / 2, minute));
        assert!(request.fetch(2, now + minute, minute));
    }

    #[test]
    fn keys_are_bound_to_their_algorithms_and_unfit_ones_are_skipped() {
        let wide = URL_SAFE_NO_PAD.encode([0xff_u8; 256]);
        let narrow = URL_SAFE_NO_PAD.encode([0xff_u8; 128]);
        let x = URL_SAFE_NO_PAD.encode([1_u8; 32]);
        let document = json!({"keys": [
            {"kty": "RSA", "kid": "any", "n": wide, "e": "AQAB"},
            {"kty": "RSA", "kid": "one", "n": wide, "e": "AQAB", "alg": "RS512", "use": "sig"},
            {"kty": "RSA", "kid": "small", "n": narrow, "e": "AQAB"},
            {"kty": "RSA", "kid": "enc", "n": wide, "e": "AQAB", "use": "enc"},
            {"kty": "RSA", "kid": "ops", "n": wide, "e": "AQAB", "key_ops": ["encrypt"]},
            {"kty": "RSA", "kid": "other", "n": wide, "e": "AQAB", "alg": "RSA-OAEP"},
            {"kty": "EC", "kid": "p256", "crv": "P-256", "x": x, "y": x},
            {"kty": "EC", "kid": "short", "crv": "P-384", "x": x, "y": x},
            {"kty": "oct", "kid": "secret", "k": x},
            ["RSA", "by position", null, null, null, null, wide, "AQAB", null, null],
            {"kty": "RSA"}, 7, {"kty": "PQ", "kid": "new"},
        ]});
        let set = KeySet::parse(document.to_string().as_bytes()).unwrap();
        let fits = |algorithm| -> Vec<_> {
            set.candidates(None, algorithm)
                .filter_map(|key| key.kid.as_deref())
                .collect()
        };
        assert_eq!(fits(Algorithm::RS256), ["any"]);
        assert_eq!(fits(Algorithm::RS512), ["any", "one"]);
        assert_eq!(fits(Algorithm::ES256), ["p256"]);
        assert!(fits(Algorithm::HS256).is_empty());
        assert_eq!(set.skipped, 10);
    }

    #[test]
    fn garbage_is_not_an_empty_set() {
        assert!(KeySet::parse(b"{}").is_err());
        assert!(KeySet::parse(b"[[]]").is_err());
        assert!(KeySet::parse(b"<html>").is_err());
        assert!(KeySet::parse(br#"{"keys":[{"kty":"oct"}]}"#).is_err());
        assert!(KeySet::parse(br#"{"keys":[]}"#).unwrap().is_empty());
    }
}
