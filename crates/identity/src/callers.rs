//! Rate limits per caller, over all nodes, connections and listeners: a user with all their devices
//! is one caller, a tagged machine is its node.
//!
//! Invariants
//! - All connections of a caller share one bucket, which outlives them until it is full
//!   ([`tailbone_http::accounts`]).
//! - The table is only locked when a connection learns who its caller is; a single request only
//!   needs the bucket.
//!
//! Callers without identity (from the internet, or unknown to the tailnet) are only limited by
//! address, in [`tailbone_http::serve`].

use std::{sync::Arc, time::Instant};

use parking_lot::Mutex;

use super::{Caller, Visitor};
use tailbone_http as http;
use tailbone_http::{accounts::Accounts, rate_limit, rate_limit::TokenBucket, serve::LiveLimits};

/// The callers of a server. Clones share one table.
#[derive(Debug, Clone)]
pub struct CallerRates {
    limits: LiveLimits,
    buckets: Arc<Mutex<Accounts<Key, TokenBucket>>>,
}

/// Stable ids: names and logins may change.
#[derive(Debug, PartialEq, Eq, Hash)]
enum Key {
    Node(String),
    User(i64),
}

/// A caller's bucket, and the limits that apply to it.
#[derive(Debug)]
pub(super) struct Allowance {
    bucket: Arc<TokenBucket>,
    limits: LiveLimits,
}

impl CallerRates {
    pub fn new(limits: impl Into<LiveLimits>) -> Self {
        Self {
            limits: limits.into(),
            buckets: Arc::default(),
        }
    }

    pub(super) fn allowance(&self, visitor: &Visitor, now: Instant) -> Option<Allowance> {
        let key = match visitor.caller_any_tailnet() {
            Caller::Funnel(_) => return None,
            Caller::Machine(machine) => Key::Node(machine.id.clone()),
            Caller::User(user) => Key::User(user.id),
        };
        let mut buckets = self.buckets.lock();
        Some(Allowance {
            bucket: buckets.get_or_insert(key, |bucket| bucket.is_idle(now)),
            limits: self.limits.clone(),
        })
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.buckets.lock().count()
    }
}

impl Allowance {
    /// Takes one request. `Err` is the answer, with the time to wait.
    pub(super) fn take(&self, now: Instant) -> Result<(), http::Error> {
        let limits = self.limits.now();
        self.bucket
            .take(limits.caller_rate, limits.caller_burst, now)
            .map_err(rate_limit::too_many_requests)
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, time::Duration};

    use super::*;
    use tailbone_http::{accounts::MIN_SWEEP, error::Kind, serve::Limits};
    use tailbone_tailnet::{WhoIs, WhoIsNode, WhoIsUser};

    fn callers(rate: u32, burst: u32) -> CallerRates {
        CallerRates::new(Limits {
            caller_rate: rate,
            caller_burst: burst,
            ..Limits::default()
        })
    }

    fn visitor(user: i64, node: &str, tags: &[&str]) -> Visitor {
        let whois = WhoIs {
            node: WhoIsNode {
                id: node.into(),
                name: format!("{node}.example.ts.net"),
                tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
                ..WhoIsNode::default()
            },
            user: WhoIsUser {
                id: user,
                login: format!("{user}@example.com"),
                ..WhoIsUser::default()
            },
            caps: BTreeMap::new(),
            same_tailnet: true,
        };
        Visitor::from_whois(whois, "example.ts.net").unwrap()
    }

    #[test]
    fn a_user_is_one_caller_on_all_devices_and_a_machine_is_its_node() {
        let callers = callers(1, 2);
        let now = Instant::now();
        let of = |visitor: &Visitor| callers.allowance(visitor, now).unwrap();
        let (laptop, phone) = (
            of(&visitor(7, "laptop", &[])),
            of(&visitor(7, "phone", &[])),
        );
        assert!(laptop.take(now).is_ok() && phone.take(now).is_ok());
        let error = laptop.take(now).unwrap_err();
        assert_eq!(error.code, "too_many_requests");
        assert_eq!(
            error.kind,
            Kind::TooManyRequests {
                retry_after: Duration::from_secs(1)
            }
        );
        assert!(phone.take(now).is_err());
        assert!(of(&visitor(8, "other", &[])).take(now).is_ok());
        // Two tagged nodes share a profile, but no bucket.
        let (one, two) = (
            of(&visitor(9, "ci-1", &["tag:ci"])),
            of(&visitor(9, "ci-2", &["tag:ci"])),
        );
        assert!((0..2).all(|_| one.take(now).is_ok()));
        assert!(one.take(now).is_err() && two.take(now).is_ok());
    }

    #[test]
    fn a_new_connection_gets_no_new_bucket() {
        let callers = callers(1, 2);
        let now = Instant::now();
        let caller = visitor(7, "laptop", &[]);
        for _ in 0..2 {
            callers.allowance(&caller, now).unwrap().take(now).unwrap();
        }
        assert!(callers.allowance(&caller, now).unwrap().take(now).is_err());
    }

    #[test]
    fn callers_that_left_do_not_pile_up_and_those_that_are_there_stay() {
        let callers = callers(10, 10);
        let now = Instant::now();
        let stays = callers.allowance(&visitor(0, "stays", &[]), now).unwrap();
        for user in 1..100_000 {
            let at = now + Duration::from_millis(user);
            let allowance = callers.allowance(&visitor(user.cast_signed(), "n", &[]), at);
            allowance.unwrap().take(at).unwrap();
        }
        assert!(callers.len() <= 2 * MIN_SWEEP, "{}", callers.len());
        let late = now + Duration::from_secs(100);
        let again = callers.allowance(&visitor(0, "stays", &[]), late).unwrap();
        assert!(Arc::ptr_eq(&stays.bucket, &again.bucket));
    }
}
