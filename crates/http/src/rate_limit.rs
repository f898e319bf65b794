//! Rate limits: a token bucket, kept as an instant.
//!
//! Invariants
//! - A bucket is one instant: the time until which the rate has been used up by the requests so
//!   far. It costs the same at any rate. A bucket whose instant is in the past is full
//!   and may be forgotten.
//! - Time is an argument; the rule never reads a clock. The clock is a monotonic one: setting the
//!   machine's date neither adds nor removes requests.
//!
//! Buckets are kept per peer address in `peers.rs`, per identity in the crate `identity`, and per
//! client of a proxy in [`ClientRates`].

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use ::http::Extensions;
use parking_lot::Mutex;

use super::{Error, accounts::Accounts, error::Kind, layers::limits};

#[derive(Debug, Default)]
pub struct TokenBucket(Mutex<Option<Instant>>);

impl TokenBucket {
    /// Takes one request: `rate` per second in the long run, `burst` of them at once; a rate of 0
    /// is no limit. `Err` has the time to wait before the next try.
    pub fn take(&self, rate: u32, burst: u32, now: Instant) -> Result<(), Duration> {
        if rate == 0 {
            return Ok(());
        }
        let one = Duration::from_secs(1) / rate;
        let mut paid = self.0.lock();
        let next = paid.filter(|until| *until > now).unwrap_or(now) + one;
        let ahead = next - now;
        let allowed = one.saturating_mul(burst.max(1));
        if ahead > allowed {
            return Err(ahead - allowed);
        }
        *paid = Some(next);
        Ok(())
    }

    /// Whether the bucket is full, so that forgetting it changes nothing.
    pub fn is_idle(&self, now: Instant) -> bool {
        self.0.lock().is_none_or(|until| until <= now)
    }
}

/// The clients on whose behalf a proxy asks, by address. The proxy itself is one peer, or cannot be
/// told from others: its own bucket would count everybody's requests together, or nobody's.
#[derive(Debug, Default)]
pub struct ClientRates(Mutex<Accounts<IpAddr, TokenBucket>>);

impl ClientRates {
    /// Takes one request of a client, at the rate that the listener allows one of its peers. `Err`
    /// is the answer to a client that asks too often.
    pub fn count_request(
        &self,
        client: IpAddr,
        proxied: &Extensions,
        now: Instant,
    ) -> Result<(), Error> {
        let limits = limits(proxied);
        let bucket = self
            .0
            .lock()
            .get_or_insert(client.to_canonical(), |bucket| bucket.is_idle(now));
        bucket
            .take(limits.request_rate, limits.request_burst, now)
            .map_err(too_many_requests)
    }
}

/// The answer to a caller that asks too often.
pub fn too_many_requests(retry_after: Duration) -> Error {
    // Rounded up, so that a caller that comes back at the given second is not refused again.
    let seconds = retry_after.as_secs_f64().ceil().max(1.0);
    let kind = Kind::TooManyRequests {
        retry_after: Duration::from_secs_f64(seconds),
    };
    Error::new(
        kind,
        "too_many_requests",
        "more requests than one caller may make; come back after the time in Retry-After",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_at_once_then_the_rate() {
        let bucket = TokenBucket::default();
        let now = Instant::now();
        for request in 0..10 {
            assert_eq!(bucket.take(5, 10, now), Ok(()), "request {request}");
        }
        assert_eq!(bucket.take(5, 10, now), Err(Duration::from_millis(200)));
        let later = now + Duration::from_millis(200);
        assert_eq!(bucket.take(5, 10, later), Ok(()));
        assert!(bucket.take(5, 10, later).is_err());
        // A refused request does not count.
        assert_eq!(
            bucket.take(5, 10, later + Duration::from_millis(200)),
            Ok(())
        );
    }

    #[test]
    fn a_long_pause_saves_up_no_more_than_the_burst() {
        let bucket = TokenBucket::default();
        let now = Instant::now();
        bucket.take(5, 2, now).unwrap();
        let later = now + Duration::from_secs(3600);
        assert!(bucket.take(5, 2, later).is_ok() && bucket.take(5, 2, later).is_ok());
        assert!(bucket.take(5, 2, later).is_err());
    }

    #[test]
    fn no_rate_is_no_limit() {
        let bucket = TokenBucket::default();
        let now = Instant::now();
        assert!((0..10_000).all(|_| bucket.take(0, 0, now).is_ok()));
    }

    #[test]
    fn clients_of_one_proxy_are_told_apart() {
        let clients = ClientRates::default();
        let now = Instant::now();
        let rate_limit =
            |client: &str| clients.count_request(client.parse().unwrap(), &Extensions::new(), now);
        let burst = crate::serve::Limits::default().request_burst;
        assert!((0..burst).all(|_| rate_limit("100.64.0.1").is_ok()));
        let refused = rate_limit("::ffff:100.64.0.1").unwrap_err();
        assert_eq!(refused.code, "too_many_requests");
        assert!(rate_limit("100.64.0.2").is_ok());
    }

    #[test]
    fn a_bucket_is_idle_once_it_is_refilled() {
        let bucket = TokenBucket::default();
        let now = Instant::now();
        assert!(bucket.is_idle(now));
        bucket.take(2, 2, now).unwrap();
        assert!(!bucket.is_idle(now));
        assert!(bucket.is_idle(now + Duration::from_millis(500)));
    }
}
