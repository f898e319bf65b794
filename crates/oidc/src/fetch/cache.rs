//! What was fetched, by its address: the keys of clients, and the documents that describe clients.
//!
//! A client brings its address; nothing is fetched before it is needed. Invariants:
//! - Callers cause at most one fetch of an address at a time, at most one in
//!   [`CacheBounds::cool_down`] because the known value does not satisfy them, and none while the
//!   last failure is recent.
//! - What could not be fetched or read is not kept. The last good value stays in use for
//!   [`CacheBounds::keep_after_failure`] after its time.
//! - The values together take at most [`CacheBounds::total_bytes`], as they were fetched. The
//!   least recently used go first.

use std::{
    collections::HashMap,
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use ::http::{HeaderMap, header};
use jiff::Timestamp;
use parking_lot::Mutex;
use tailbone_keys::jwks::fetch::{KeySet, SetError, asked_cache_time};

use super::{Content, FetchError, FetchUrl, Fetched, GuardedClient, Wanted};

/// A value that is read from the JSON document at an address.
pub trait Cached: Send + Sync + Sized {
    type Error: std::error::Error + Send + Sync + 'static;

    fn parse(url: &FetchUrl, body: &[u8]) -> Result<Self, Self::Error>;
}

/// The keys of a client, at its `jwks_uri`.
impl Cached for KeySet {
    type Error = SetError;

    fn parse(_: &FetchUrl, body: &[u8]) -> Result<Self, SetError> {
        Self::parse(body)
    }
}

/// The cache of the keys of clients.
pub type KeyCache = FetchCache<KeySet>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheBounds {
    /// Of one document.
    pub body_bytes: usize,
    /// Of all documents together.
    pub total_bytes: usize,
    pub entries: usize,
    /// The shortest time after which a value is fetched again, whatever its headers say.
    pub min_cache_time: Duration,
    /// If the headers say nothing.
    pub default_cache_time: Duration,
    pub max_cache_time: Duration,
    /// Least time between two fetches because the known value does not satisfy a caller.
    pub cool_down: Duration,
    /// Pause after a failure: begins with the first and doubles up to the second.
    pub retry: (Duration, Duration),
    pub keep_after_failure: Duration,
}

impl Default for CacheBounds {
    fn default() -> Self {
        Self {
            body_bytes: 64 << 10,
            total_bytes: 16 << 20,
            entries: 4096,
            min_cache_time: Duration::from_secs(60),
            default_cache_time: Duration::from_secs(15 * 60),
            max_cache_time: Duration::from_secs(3600),
            cool_down: Duration::from_secs(60),
            retry: (Duration::from_secs(5), Duration::from_secs(60)),
            keep_after_failure: Duration::from_secs(24 * 3600),
        }
    }
}

/// Why there is no value.
#[derive(Debug, thiserror::Error)]
pub enum NotFetched<E: std::error::Error + 'static> {
    #[error("{0}")]
    Content(Arc<E>),
    #[error("{0}")]
    Fetch(Arc<FetchError>),
}

impl<E: std::error::Error + 'static> Clone for NotFetched<E> {
    fn clone(&self) -> Self {
        match self {
            Self::Content(error) => Self::Content(error.clone()),
            Self::Fetch(error) => Self::Fetch(error.clone()),
        }
    }
}

type Known<T> = Result<Arc<T>, NotFetched<<T as Cached>::Error>>;

pub struct FetchCache<T: Cached> {
    client: Arc<GuardedClient>,
    bounds: CacheBounds,
    entries: Mutex<Entries<T>>,
}

impl<T: Cached> fmt::Debug for FetchCache<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FetchCache")
            .field("bounds", &self.bounds)
            .field("entries", &self.entries.lock().by_url.len())
            .finish_non_exhaustive()
    }
}

struct Entries<T: Cached> {
    by_url: HashMap<String, Entry<T>>,
    bytes: usize,
    /// Grows with each use.
    clock: u64,
}

struct Entry<T: Cached> {
    /// Held during a fetch: whoever comes meanwhile waits for its end.
    state: Arc<tokio::sync::Mutex<UrlState<T>>>,
    bytes: usize,
    used: u64,
}

struct UrlState<T: Cached> {
    current: Option<Current<T>>,
    etag: Option<String>,
    /// The last fetch because the known value did not satisfy a caller.
    forced: Option<Instant>,
    failure: Option<Failure<T>>,
}

struct Current<T> {
    value: Arc<T>,
    fresh_until: Instant,
}

struct Failure<T: Cached> {
    problem: NotFetched<T::Error>,
    count: u32,
    retry_at: Instant,
}

impl<T: Cached> FetchCache<T> {
    pub fn new(client: Arc<GuardedClient>, bounds: CacheBounds) -> Self {
        Self {
            client,
            bounds,
            entries: Mutex::new(Entries {
                by_url: HashMap::new(),
                bytes: 0,
                clock: 0,
            }),
        }
    }

    /// The value at an address. If the known one does not satisfy `enough`, one fetch is tried,
    /// provided that the cool-down allows it. Then returns the value there is, whether or not it
    /// satisfies `enough`.
    pub async fn get(
        &self,
        url: &FetchUrl,
        enough: impl Fn(&T) -> bool,
        now: Instant,
    ) -> Result<Arc<T>, NotFetched<T::Error>> {
        let state = self.entries.lock().state(url.as_str());
        let mut state = state.lock().await;
        match state.next(enough, now, &self.bounds) {
            Next::Answer(answer) => return answer,
            Next::Fetch { forced: true } => state.forced = Some(now),
            Next::Fetch { forced: false } => {}
        }
        let fetched = self.fetch(url, state.etag.as_deref()).await;
        let (known, bytes) = state.learn(fetched, now, &self.bounds);
        (self.entries.lock()).weigh(url.as_str(), bytes, &self.bounds);
        known
    }

    /// The value while it is fresh. Nothing is fetched.
    pub async fn known(&self, url: &FetchUrl, now: Instant) -> Option<Arc<T>> {
        let state = self.entries.lock().known(url.as_str())?;
        let state = state.lock().await;
        let current = state.current.as_ref();
        let fresh = current.filter(|current| now < current.fresh_until);
        fresh.map(|current| current.value.clone())
    }

    async fn fetch(
        &self,
        url: &FetchUrl,
        etag: Option<&str>,
    ) -> Result<Answer<T>, NotFetched<T::Error>> {
        let wanted = Wanted {
            url,
            content: Content::Json,
            max_bytes: self.bounds.body_bytes,
            etag,
        };
        let fetched = self.client.get(wanted).await;
        match fetched.map_err(|error| NotFetched::Fetch(Arc::new(error)))? {
            Fetched::New { headers, body } => {
                let value = T::parse(url, &body);
                let value = value.map_err(|error| NotFetched::Content(Arc::new(error)))?;
                Ok(Answer {
                    new: Some((Arc::new(value), body.len())),
                    headers,
                })
            }
            Fetched::Unchanged { headers } => Ok(Answer { new: None, headers }),
        }
    }
}

/// What a fetch gave: a value with its size, or that the known one is the newest.
struct Answer<T> {
    new: Option<(Arc<T>, usize)>,
    headers: HeaderMap,
}

enum Next<T: Cached> {
    Answer(Known<T>),
    Fetch { forced: bool },
}

impl<T: Cached> UrlState<T> {
    fn next(&self, enough: impl Fn(&T) -> bool, now: Instant, bounds: &CacheBounds) -> Next<T> {
        let resting = self.failure.as_ref().filter(|last| now < last.retry_at);
        match (&self.current, resting) {
            (None, Some(last)) => Next::Answer(Err(last.problem.clone())),
            (None, None) => Next::Fetch { forced: false },
            (Some(current), Some(last)) => Next::Answer(current.after_failure(last, now, bounds)),
            (Some(current), None) if now >= current.fresh_until => Next::Fetch { forced: false },
            (Some(current), None) => {
                let rested = (self.forced)
                    .is_none_or(|last| now.saturating_duration_since(last) >= bounds.cool_down);
                if enough(&current.value) || !rested {
                    Next::Answer(Ok(current.value.clone()))
                } else {
                    Next::Fetch { forced: true }
                }
            }
        }
    }

    /// Keeps what a fetch gave. The second part is the size of a new value.
    fn learn(
        &mut self,
        fetched: Result<Answer<T>, NotFetched<T::Error>>,
        now: Instant,
        bounds: &CacheBounds,
    ) -> (Known<T>, Option<usize>) {
        let problem = match fetched {
            Ok(Answer { new, headers }) => {
                let bytes = new.as_ref().map(|(_, bytes)| *bytes);
                if bytes.is_some() {
                    let etag = headers.get(header::ETAG);
                    self.etag = etag.and_then(|etag| etag.to_str().ok()).map(str::to_owned);
                }
                let known = self.current.take().map(|current| current.value);
                match new.map(|(value, _)| value).or(known) {
                    Some(value) => {
                        self.failure = None;
                        let asked = asked_cache_time(&headers, Timestamp::now())
                            .unwrap_or(bounds.default_cache_time);
                        let kept = asked.clamp(bounds.min_cache_time, bounds.max_cache_time);
                        self.current = Some(Current {
                            value: value.clone(),
                            fresh_until: now + kept,
                        });
                        return (Ok(value), bytes);
                    }
                    // No version was named, so nothing can be unchanged.
                    None => NotFetched::Fetch(Arc::new(FetchError::Redirect)),
                }
            }
            Err(problem) => problem,
        };
        (self.fail(problem, now, bounds), None)
    }

    fn fail(
        &mut self,
        problem: NotFetched<T::Error>,
        now: Instant,
        bounds: &CacheBounds,
    ) -> Known<T> {
        let count = self.failure.as_ref().map_or(0, |last| last.count);
        let (first, most) = bounds.retry;
        let pause = first.saturating_mul(1 << count.min(16)).min(most);
        let failure = self.failure.insert(Failure {
            problem,
            count: count.saturating_add(1),
            retry_at: now + pause,
        });
        match &self.current {
            Some(current) => current.after_failure(failure, now, bounds),
            None => Err(failure.problem.clone()),
        }
    }
}

impl<T: Cached> Current<T> {
    /// The value, unless newer ones could not be fetched for too long.
    fn after_failure(&self, last: &Failure<T>, now: Instant, bounds: &CacheBounds) -> Known<T> {
        if now < self.fresh_until + bounds.keep_after_failure {
            Ok(self.value.clone())
        } else {
            Err(last.problem.clone())
        }
    }
}

/// What an entry costs besides its document.
const ENTRY_BYTES: usize = 512;

impl<T: Cached> Entries<T> {
    fn known(&mut self, url: &str) -> Option<Arc<tokio::sync::Mutex<UrlState<T>>>> {
        self.clock += 1;
        let entry = self.by_url.get_mut(url)?;
        entry.used = self.clock;
        Some(entry.state.clone())
    }

    fn state(&mut self, url: &str) -> Arc<tokio::sync::Mutex<UrlState<T>>> {
        if let Some(state) = self.known(url) {
            return state;
        }
        let state = Arc::new(tokio::sync::Mutex::new(UrlState {
            current: None,
            etag: None,
            forced: None,
            failure: None,
        }));
        self.by_url.insert(
            url.to_owned(),
            Entry {
                state: state.clone(),
                bytes: ENTRY_BYTES,
                used: self.clock,
            },
        );
        self.bytes += ENTRY_BYTES;
        state
    }

    /// Notes the size of a new document, and drops others if they have become too many.
    fn weigh(&mut self, url: &str, document: Option<usize>, bounds: &CacheBounds) {
        if let (Some(entry), Some(document)) = (self.by_url.get_mut(url), document) {
            self.bytes = self.bytes + ENTRY_BYTES + document - entry.bytes;
            entry.bytes = ENTRY_BYTES + document;
        }
        while self.bytes > bounds.total_bytes || self.by_url.len() > bounds.entries {
            let others = self.by_url.iter().filter(|(other, _)| *other != url);
            let oldest = others.min_by_key(|(_, entry)| entry.used);
            let Some(oldest) = oldest.map(|(oldest, _)| oldest.clone()) else {
                break;
            };
            if let Some(gone) = self.by_url.remove(&oldest) {
                self.bytes -= gone.bytes;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::*, *};

    const MINUTE: Duration = Duration::from_secs(60);

    struct Clock(Instant);

    impl Clock {
        fn after(&self, minutes: u32) -> Instant {
            self.0 + MINUTE * minutes
        }
    }

    fn set_of(kids: &[&str]) -> String {
        let keys: Vec<_> = (kids.iter())
            .map(|kid| {
                serde_json::json!({"kty": "OKP", "crv": "Ed25519", "kid": kid,
                    "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"})
            })
            .collect();
        serde_json::json!({ "keys": keys }).to_string()
    }

    fn cache(server: &HostileServer, bounds: CacheBounds) -> KeyCache {
        KeyCache::new(Arc::new(server.client()), bounds)
    }

    #[tokio::test]
    async fn an_unknown_key_causes_one_fetch_in_a_minute() {
        let server = HostileServer::start().await;
        server.answer("/jwks", json_answer(&set_of(&["a"])));
        let cache = cache(&server, CacheBounds::default());
        let (url, clock) = (server.url("/jwks"), Clock(Instant::now()));
        let has = |kid: &'static str| move |set: &KeySet| set.contains(kid);

        cache.get(&url, has("a"), clock.0).await.unwrap();
        cache.get(&url, has("a"), clock.after(1)).await.unwrap();
        assert_eq!(server.count("/jwks"), 1);

        server.answer("/jwks", json_answer(&set_of(&["a", "b"])));
        let set = cache.get(&url, has("b"), clock.after(1)).await.unwrap();
        assert!(set.contains("b"));
        assert_eq!(server.count("/jwks"), 2);
        for _ in 0..3 {
            let set = cache.get(&url, has("c"), clock.after(1)).await.unwrap();
            assert!(!set.contains("c"));
        }
        assert_eq!(server.count("/jwks"), 2, "within the cool-down");
        cache.get(&url, has("c"), clock.after(2)).await.unwrap();
        assert_eq!(server.count("/jwks"), 3);
    }

    #[tokio::test]
    async fn those_who_wait_share_one_fetch() {
        let server = HostileServer::start().await;
        server.answer("/jwks", json_answer(&set_of(&["a"])));
        let cache = cache(&server, CacheBounds::default());
        let (url, now) = (server.url("/jwks"), Instant::now());
        let all = (0..20).map(|_| cache.get(&url, |set| set.contains("a"), now));
        for keys in futures_util::future::join_all(all).await {
            assert!(keys.unwrap().contains("a"));
        }
        assert_eq!(server.count("/jwks"), 1);
    }

    #[tokio::test]
    async fn a_failure_keeps_the_last_set_and_rests_before_the_next_try() {
        let server = HostileServer::start().await;
        server.answer("/jwks", json_answer(&set_of(&["a"])));
        let cache = cache(&server, CacheBounds::default());
        let (url, clock) = (server.url("/jwks"), Clock(Instant::now()));
        let keys = |minutes| cache.get(&url, |set| set.contains("a"), clock.after(minutes));
        keys(0).await.unwrap();
        server.answer("/jwks", "HTTP/1.1 500 no\r\ncontent-length: 0\r\n\r\n");
        assert!(keys(20).await.unwrap().contains("a"), "stale, and kept");
        assert!(keys(20).await.unwrap().contains("a"));
        assert_eq!(server.count("/jwks"), 2, "no second try at once");
        let error = keys(25 * 60).await.unwrap_err();
        assert!(matches!(error, NotFetched::Fetch(_)), "{error}");
        server.answer("/jwks", json_answer(&set_of(&["a"])));
        assert!(keys(26 * 60).await.unwrap().contains("a"));

        let error = cache.get(&server.url("/none"), |_| true, clock.0).await;
        assert!(error.is_err());
        let error = cache.get(&server.url("/none"), |_| true, clock.0).await;
        assert!(error.is_err());
        assert_eq!(
            server.count("/none"),
            1,
            "a failure without a set rests too"
        );
    }

    #[tokio::test]
    async fn what_is_no_key_set_is_refused_and_told() {
        let server = HostileServer::start().await;
        server.answer(
            "/jwks",
            json_answer(r#"{"keys":[{"kty":"oct","k":"AAAA"}]}"#),
        );
        let cache = cache(&server, CacheBounds::default());
        let error = cache
            .get(&server.url("/jwks"), |_| true, Instant::now())
            .await
            .unwrap_err();
        assert!(matches!(error, NotFetched::Content(_)), "{error}");
    }

    #[tokio::test]
    async fn the_least_recently_used_sets_go_when_they_are_too_many() {
        let server = HostileServer::start().await;
        for path in ["/1", "/2", "/3"] {
            server.answer(path, json_answer(&set_of(&["a"])));
        }
        let bounds = CacheBounds {
            entries: 2,
            ..CacheBounds::default()
        };
        let cache = cache(&server, bounds);
        let now = Instant::now();
        for path in ["/1", "/2", "/1", "/3", "/1", "/2"] {
            cache.get(&server.url(path), |_| true, now).await.unwrap();
        }
        let counts = ["/1", "/2", "/3"].map(|path| server.count(path));
        assert_eq!(counts, [1, 2, 1]);

        let few = CacheBounds {
            total_bytes: ENTRY_BYTES + set_of(&["a"]).len() + 1,
            ..CacheBounds::default()
        };
        let cache = self::cache(&server, few);
        for path in ["/1", "/2", "/1"] {
            cache.get(&server.url(path), |_| true, now).await.unwrap();
        }
        assert_eq!(cache.entries.lock().by_url.len(), 1);
    }
}
