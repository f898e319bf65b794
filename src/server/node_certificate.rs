//! Keeps the certificate of the node's name: fetches it, renews it when two thirds of its life are
//! over, and says why there is none.
//!
//! Invariants
//! - Nothing waits for a certificate, neither the start nor a handshake. A pair that the node keeps
//!   is there within milliseconds, without the network.
//! - The old certificate stays in use until there is a new one.
//! - How often the authority may be asked is decided and remembered by the node alone
//!   (`vendor/libtailscale/node/order_record.go`); here is only when to ask the node again.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use tokio::{
    sync::{Notify, watch},
    task::AbortHandle,
    time::sleep,
};

use crate::{
    http::{
        certificate::CertificateFacts,
        node_certificate::{NodeCertificate, RenewalTrouble},
    },
    tailnet::{BackendState, CertificateError, CertificatePair, CertificateRefusal, Node, Status},
    telemetry::error_chain,
};

/// Any pair that the node keeps, however long ago it has ended (10 years, the most that the node
/// takes).
const ANY_KEPT_PAIR: SignedDuration = SignedDuration::from_hours(-10 * 365 * 24);

/// When the node is asked again after a failure that does not say when: without a certificate that
/// is valid, and with one.
const RETRY_WITHOUT: Duration = Duration::from_secs(60);
const RETRY_WITH: Duration = Duration::from_secs(10 * 60);

/// The clock of the machine may jump, so it is read again after this time at the latest.
const MAX_SLEEP: Duration = Duration::from_secs(60 * 60);

/// The node's certificate and the task that renews it, which runs from the first listener on that
/// uses the certificate until this is dropped.
#[derive(Debug)]
pub(super) struct CertificateRenewal {
    node: Arc<dyn Node>,
    certificate: Arc<NodeCertificate>,
    retry: Arc<Notify>,
    task: OnceLock<AbortHandle>,
}

impl CertificateRenewal {
    pub(super) fn new(node: Arc<dyn Node>) -> Self {
        Self {
            node,
            certificate: Arc::default(),
            retry: Arc::default(),
            task: OnceLock::new(),
        }
    }

    /// The certificate, for a listener.
    pub(super) fn certificate(&self) -> Arc<NodeCertificate> {
        self.task.get_or_init(|| {
            let (node, certificate) = (self.node.clone(), self.certificate.clone());
            tokio::spawn(renew(node, certificate, self.retry.clone())).abort_handle()
        });
        self.certificate.clone()
    }

    /// Asks again now, if the last try failed.
    pub(super) fn retry_now(&self) {
        self.retry.notify_one();
    }
}

impl Drop for CertificateRenewal {
    fn drop(&mut self) {
        if let Some(task) = self.task.get() {
            task.abort();
        }
    }
}

/// Renews the certificate until the node is gone.
async fn renew(node: Arc<dyn Node>, certificate: Arc<NodeCertificate>, retry: Arc<Notify>) {
    let mut watch = node.watch();
    let mut logged = None;
    loop {
        let place = Place::of(&watch.borrow_and_update());
        let facts = certificate.facts_for(&place.name);
        let min_validity = match next_step(facts.as_deref(), Timestamp::now()) {
            Step::Ask { min_validity } => min_validity,
            Step::Wait(time) => {
                tokio::select! {
                    () = sleep(time) => {}
                    () = moved(&mut watch, &place) => {}
                }
                continue;
            }
        };
        let outcome = node.certificate(&place.name, min_validity).await;
        let outcome = outcome.and_then(|pair| show(&certificate, &place.name, &pair, &facts));
        let Err(error) = outcome else {
            certificate.set_trouble(None);
            logged = None;
            continue;
        };
        if error.reason == CertificateRefusal::NodeGone {
            return;
        }
        let has_valid = facts.is_some_and(|facts| Timestamp::now() < facts.not_after);
        let pause = error
            .retry_after
            .unwrap_or(if has_valid { RETRY_WITH } else { RETRY_WITHOUT });
        let next_try = whole_seconds(Timestamp::now() + pause);
        // The same trouble is logged once; the latch shows it while it lasts.
        if logged.replace(error.reason) != Some(error.reason) {
            tracing::warn!(target: "server", name = place.name, %error, %next_try, "no new certificate for the node's name");
        }
        certificate.set_trouble(Some(RenewalTrouble {
            name: place.name.clone(),
            why: why(&error),
            next_try,
        }));
        tokio::select! {
            () = sleep(pause) => {}
            () = moved(&mut watch, &place) => {}
            () = retry.notified() => {}
        }
    }
}

/// What decides for which name a certificate can be had, and whether.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    name: String,
    https: bool,
    state: BackendState,
}

impl Place {
    fn of(status: &Status) -> Self {
        let domains = &status.cert_domains;
        // A tailnet may have more names for a node than the one by which it is known. Without
        // HTTPS the node is asked all the same: it may keep a pair, and says what is missing.
        let name = match domains.first() {
            Some(first) if !domains.contains(&status.name) => first,
            _ => &status.name,
        };
        Self {
            name: name.trim_end_matches('.').to_owned(),
            https: !domains.is_empty(),
            state: status.state,
        }
    }
}

/// Waits until the node is somewhere else. It never is once the node is gone: the next question
/// will say so.
async fn moved(watch: &mut watch::Receiver<Arc<Status>>, place: &Place) {
    let moved = watch.wait_for(|status| Place::of(status) != *place);
    let gone = moved.await.is_err();
    if gone {
        std::future::pending::<()>().await;
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Step {
    Ask { min_validity: SignedDuration },
    Wait(Duration),
}

fn next_step(facts: Option<&CertificateFacts>, now: Timestamp) -> Step {
    let Some(facts) = facts else {
        return Step::Ask {
            min_validity: ANY_KEPT_PAIR,
        };
    };
    let left = facts.renew_at().duration_since(now);
    if left.is_positive() {
        return Step::Wait(left.unsigned_abs().min(MAX_SLEEP));
    }
    // One that lasts exactly this long would be the one that is due.
    Step::Ask {
        min_validity: facts.life() / 3 + SignedDuration::from_secs(1),
    }
}

/// Puts a pair to use. `old` is the one before, for the same name.
fn show(
    certificate: &NodeCertificate,
    name: &str,
    pair: &CertificatePair,
    old: &Option<Arc<CertificateFacts>>,
) -> Result<(), CertificateError> {
    let unusable = |message| CertificateError {
        reason: CertificateRefusal::Own,
        message,
        retry_after: None,
    };
    let facts = certificate
        .show(name, pair.chain.as_bytes(), pair.key.reveal().as_bytes())
        .map_err(|error| unusable(error_chain(&error)))?;
    if old.as_ref() != Some(&facts) {
        let (names, issuer) = (facts.names.join(", "), &facts.issuer);
        tracing::info!(target: "server", names, issuer, end = %facts.not_after, "certificate of the node's name in use");
    }
    // A kept pair may be due. One that has just been asked for is not, unless the clock is wrong.
    if old.is_some() && facts.renew_at() <= Timestamp::now() {
        return Err(unusable(format!(
            "the new certificate is valid until {} only; is the clock right?",
            facts.not_after
        )));
    }
    Ok(())
}

/// The reason and what to do, for everybody to read.
fn why(error: &CertificateError) -> String {
    let message = error.message.trim_end_matches('.');
    let advice = match error.reason {
        // It names paths.
        CertificateRefusal::Own => {
            return "something is wrong on this machine, as the log says".to_owned();
        }
        CertificateRefusal::Authority { status: Some(429) } => "wait, the limit passes by itself",
        CertificateRefusal::Authority { .. } => {
            "if this goes on, see whether the tailnet's name resolves in the public DNS"
        }
        CertificateRefusal::Control => {
            "if the control server does not offer HTTPS, give the listener files with cert= and key="
        }
        CertificateRefusal::NotRunning => "the latch node-running says what to do",
        CertificateRefusal::Unreachable => {
            "see whether this machine may open connections to it over https"
        }
        CertificateRefusal::Interrupted
        | CertificateRefusal::NoHttps
        | CertificateRefusal::NodeGone
        | CertificateRefusal::OtherName => return message.to_owned(),
    };
    format!("{message} ({advice})")
}

fn whole_seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    };

    use tailbone_values::Secret;
    use testkit::{certificates::self_signed, until};

    use super::*;
    use crate::{
        http::certificate::CertificateSource as _,
        tailnet::fake::{FakeNode, FakeTailnet, Identity},
    };

    const DAY: SignedDuration = SignedDuration::from_hours(24);

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    /// A pair for the name that began and ends so many days from now.
    fn pair(name: &str, from: i32, to: i32) -> CertificatePair {
        let now = Timestamp::now();
        let made = self_signed(&[name], now + DAY * from, now + DAY * to);
        CertificatePair {
            chain: made.cert,
            key: Secret::new(made.key),
        }
    }

    fn refused(reason: CertificateRefusal, retry_after: Option<Duration>) -> CertificateError {
        CertificateError {
            reason,
            message: "the authority said no".to_owned(),
            retry_after,
        }
    }

    fn node() -> FakeNode {
        FakeTailnet::new().join("tailbone", Identity::user("owner@example.com"))
    }

    fn renewal(node: &FakeNode) -> CertificateRenewal {
        CertificateRenewal::new(Arc::new(node.clone()))
    }

    /// Lets the renewal run until it waits for something.
    async fn settle() {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    }

    #[test]
    fn a_certificate_is_renewed_after_two_thirds_of_its_life() {
        let facts = CertificateFacts {
            names: vec!["tailbone.example.ts.net".into()],
            issuer: "CN=test".into(),
            not_before: at("2026-01-01T00:00:00Z"),
            not_after: at("2026-04-01T00:00:00Z"),
        };
        let wait = |time| next_step(Some(&facts), at(time));
        assert_eq!(wait("2026-01-01T00:00:00Z"), Step::Wait(MAX_SLEEP));
        assert_eq!(
            wait("2026-03-01T23:59:59Z"),
            Step::Wait(Duration::from_secs(1))
        );
        // The node must not give the same one again: it lasts for 30 days now.
        let ask = Step::Ask {
            min_validity: SignedDuration::from_hours(30 * 24) + SignedDuration::from_secs(1),
        };
        assert_eq!(wait("2026-03-02T00:00:00Z"), ask);
        assert_eq!(wait("2026-05-01T00:00:00Z"), ask, "after its end");
        // With the clock before its beginning, another certificate would not be better.
        assert_eq!(wait("2025-12-01T00:00:00Z"), Step::Wait(MAX_SLEEP));
    }

    #[tokio::test]
    async fn a_kept_pair_is_used_at_once_and_renewed_if_it_is_due() {
        for (kept, asked) in [((-10, 80), 1), ((-80, 10), 2), ((-90, -1), 2)] {
            let node = node();
            let asks = Arc::new(Mutex::new(Vec::new()));
            let seen = asks.clone();
            node.enable_https(move |name, min_validity| {
                let mut seen = seen.lock().unwrap();
                seen.push(min_validity);
                Ok(match seen.len() {
                    1 => pair(name, kept.0, kept.1),
                    _ => pair(name, 0, 90),
                })
            });
            let renewal = renewal(&node);
            let certificate = renewal.certificate();
            settle().await;
            let asks = asks.lock().unwrap().clone();
            assert_eq!(asks.len(), asked, "{kept:?}: {asks:?}");
            assert!(asks[0] < DAY * -3000, "the first takes what is kept");
            let facts = certificate.facts().unwrap();
            assert!(facts.not_after > Timestamp::now() + DAY * 79);
            assert_eq!(certificate.trouble(Timestamp::now()), None);
        }
    }

    #[tokio::test]
    async fn a_refusal_is_not_repeated_before_the_node_allows_it() {
        const WAIT: Duration = Duration::from_millis(200);
        let node = node();
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        let began = std::time::Instant::now();
        node.enable_https(move |name, _| match count.fetch_add(1, Ordering::SeqCst) {
            0 => Ok(pair(name, -80, 10)),
            _ => Err(refused(
                CertificateRefusal::Authority { status: Some(429) },
                Some(WAIT),
            )),
        });
        let renewal = renewal(&node);
        let certificate = renewal.certificate();
        settle().await;
        let trouble = certificate.trouble(Timestamp::now()).unwrap();
        for words in [
            "is used until it ends at",
            "could not be renewed: the authority said no (wait,",
            "the next try is at",
        ] {
            assert!(trouble.contains(words), "{words}: {trouble}");
        }
        let end = certificate.facts().unwrap().not_after;
        let later = certificate.trouble(end + DAY).unwrap();
        assert!(later.contains("ended at"), "{later}");

        until("the next question", || asked.load(Ordering::SeqCst) == 3).await;
        assert!(began.elapsed() >= WAIT, "{:?}", began.elapsed());
        // An operator may ask at any time.
        renewal.retry_now();
        settle().await;
        assert_eq!(asked.load(Ordering::SeqCst), 4);
    }

    #[tokio::test]
    async fn https_that_is_enabled_later_leads_to_a_certificate() {
        let node = node();
        let renewal = renewal(&node);
        let certificate = renewal.certificate();
        settle().await;
        let trouble = certificate.trouble(Timestamp::now()).unwrap();
        assert!(
            trouble.contains("refuse all callers: HTTPS is not enabled"),
            "{trouble}"
        );
        node.enable_https(|name, _| Ok(pair(name, 0, 90)));
        settle().await;
        assert_eq!(certificate.trouble(Timestamp::now()), None);
        assert!(certificate.facts().is_some());
    }

    #[tokio::test]
    async fn a_node_that_is_renamed_gets_a_certificate_for_its_new_name() {
        let node = node();
        let allowed = Arc::new(AtomicUsize::new(0));
        let count = allowed.clone();
        node.enable_https(move |name, _| {
            if name.starts_with("tailbone.") || count.load(Ordering::SeqCst) > 0 {
                return Ok(pair(name, 0, 90));
            }
            Err(refused(CertificateRefusal::Unreachable, None))
        });
        let renewal = renewal(&node);
        let certificate = renewal.certificate();
        settle().await;
        let old = "tailbone.fake-tailnet.ts.net";
        assert_eq!(certificate.facts().unwrap().names, [old]);

        let new = "other.fake-tailnet.ts.net";
        node.set_status(|status| {
            status.name = new.to_owned();
            status.cert_domains = vec![new.to_owned()];
        });
        settle().await;
        let trouble = certificate.trouble(Timestamp::now()).unwrap();
        assert!(
            trouble.contains(old) && trouble.contains(&format!("there is none for {new}")),
            "{trouble}"
        );
        assert_eq!(
            certificate.refusal(Some(old)),
            None,
            "the old one serves on"
        );

        allowed.store(1, Ordering::SeqCst);
        renewal.retry_now();
        settle().await;
        assert_eq!(certificate.facts().unwrap().names, [new]);
        assert_eq!(certificate.trouble(Timestamp::now()), None);
        for (name, taken) in [
            (Some(new), true),
            (Some("OTHER"), true),
            (None, true),
            (Some(old), false),
            (Some("tailbone"), false),
        ] {
            assert_eq!(certificate.refusal(name).is_none(), taken, "{name:?}");
        }
    }

    #[tokio::test]
    async fn a_new_certificate_that_ends_at_once_is_not_ordered_again_and_again() {
        let node = node();
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        node.enable_https(move |name, _| {
            count.fetch_add(1, Ordering::SeqCst);
            Ok(pair(name, -100, -10))
        });
        let renewal = renewal(&node);
        let certificate = renewal.certificate();
        settle().await;
        assert_eq!(asked.load(Ordering::SeqCst), 2);
        assert!(certificate.facts().is_some());
        let trouble = certificate.trouble(Timestamp::now()).unwrap();
        assert!(trouble.contains("as the log says"), "{trouble}");
    }

    #[tokio::test]
    async fn a_node_that_is_closed_is_not_asked_any_more() {
        let node = node();
        let renewal = renewal(&node);
        renewal.certificate();
        settle().await;
        node.close().await;
        settle().await;
        assert!(renewal.task.get().unwrap().is_finished());
    }

    #[test]
    fn the_reason_for_everybody_has_no_path() {
        let own = CertificateError {
            reason: CertificateRefusal::Own,
            message: "open /var/lib/tailbone/certs: permission denied".to_owned(),
            retry_after: None,
        };
        assert!(!why(&own).contains('/'));
    }
}
