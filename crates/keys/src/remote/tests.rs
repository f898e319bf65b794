//! The engine with a service of the tests' own. `tests/it/keys/remote` has the real ones.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use futures_util::{FutureExt as _, future::BoxFuture, future::join_all};
use parking_lot::Mutex;

use super::*;
use crate::{PrivateJwk, SignError, Signer, SigningQueue};

/// What the service does with a call.
#[derive(Clone)]
enum Act {
    Fail(ServiceError),
    Hang,
    Sign,
    SignAfter(Duration),
}

/// A service that signs with a local key, unless it was told to do something else.
struct Scripted {
    signer: Signer,
    /// For the next calls.
    script: Mutex<VecDeque<Act>>,
    /// For all calls after those.
    then: Mutex<Act>,
    calls: AtomicUsize,
    in_progress: AtomicUsize,
    most_in_progress: AtomicUsize,
}

impl fmt::Debug for Scripted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Scripted")
    }
}

impl Scripted {
    fn new() -> Arc<Self> {
        let key = PrivateJwk::generate("tb-1".parse().unwrap(), KeySpec::Es256).unwrap();
        Arc::new(Self {
            signer: Signer::new(&key).unwrap(),
            script: Mutex::default(),
            then: Mutex::new(Act::Sign),
            calls: AtomicUsize::new(0),
            in_progress: AtomicUsize::new(0),
            most_in_progress: AtomicUsize::new(0),
        })
    }

    fn next(&self, acts: &[Act]) {
        self.script.lock().extend(acts.iter().cloned());
    }

    fn always(&self, act: Act) {
        *self.then.lock() = act;
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    async fn act(&self, message: &[u8]) -> Result<Vec<u8>, ServiceError> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        let now = self.in_progress.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_in_progress.fetch_max(now, Ordering::SeqCst);
        let act = self.script.lock().pop_front();
        let outcome = match act.unwrap_or_else(|| self.then.lock().clone()) {
            Act::Fail(error) => Err(error),
            Act::Hang => std::future::pending().await,
            Act::Sign => Ok(self.signer.sign_raw(message)),
            Act::SignAfter(pause) => {
                tokio::time::sleep(pause).await;
                Ok(self.signer.sign_raw(message))
            }
        };
        self.in_progress.fetch_sub(1, Ordering::SeqCst);
        outcome
    }
}

impl KeyService for Scripted {
    fn kind(&self) -> ServiceKind {
        ServiceKind::Vault
    }

    fn make(&self, _: KeyId, _: KeySpec) -> BoxFuture<'_, Result<KeyReference, ServiceError>> {
        async { Err(failure(Trouble::Refused)) }.boxed()
    }

    fn sign<'a>(
        &'a self,
        _: &'a KeyReference,
        message: &'a [u8],
    ) -> BoxFuture<'a, Result<Vec<u8>, ServiceError>> {
        self.act(message).boxed()
    }
}

fn failure(trouble: Trouble) -> ServiceError {
    ServiceError::new(trouble, "in a test")
}

fn reference(public: &PublicJwk) -> KeyReference {
    KeyReference {
        location: KeyLocation {
            key: "test".into(),
            service: ServiceKind::Vault,
            version: "1".into(),
        },
        public: public.clone(),
    }
}

fn signer(service: &Arc<Scripted>, limits: RemoteLimits) -> Arc<Signer> {
    signer_of(service, limits, service.signer.public())
}

fn signer_of(service: &Arc<Scripted>, limits: RemoteLimits, public: &PublicJwk) -> Arc<Signer> {
    let services = RemoteServices::new(None, vec![service.clone()], limits);
    let key = services.key(&reference(public)).unwrap().unwrap();
    Arc::new(Signer::remote(key))
}

async fn sign(signer: &Arc<Signer>) -> Result<String, SignError> {
    SigningQueue::with(1, 1).sign(signer, b"{}").await
}

fn trouble(outcome: Result<String, SignError>) -> Trouble {
    match outcome {
        Err(SignError::Remote(failure)) => failure.trouble,
        other => panic!("{other:?}"),
    }
}

const QUICK: RemoteLimits = RemoteLimits {
    concurrency: 4,
    timeout: Duration::from_millis(300),
};

#[tokio::test]
async fn the_token_has_the_header_of_a_local_one_and_its_own_type() {
    let service = Scripted::new();
    let signer = signer(&service, RemoteLimits::default());
    let token = sign(&signer).await.unwrap();
    let local = service.signer.sign(b"{}").unwrap();
    let unsigned = |token: &str| token.rsplit_once('.').unwrap().0.to_owned();
    assert_eq!(unsigned(&token), unsigned(&local));
    let queue = SigningQueue::with(1, 1);
    let typed = queue.sign_as(&signer, "gate+jwt", b"{}").await.unwrap();
    let local = service.signer.sign_as("gate+jwt", b"{}").unwrap();
    assert_eq!(unsigned(&typed), unsigned(&local));
    assert_eq!(signer.sign(b"{}"), Err(SignError::NotHere));
}

#[tokio::test]
async fn callers_are_bounded_and_all_get_their_token() {
    let service = Scripted::new();
    service.always(Act::SignAfter(Duration::from_millis(5)));
    let limits = RemoteLimits {
        concurrency: 4,
        timeout: Duration::from_secs(20),
    };
    let signer = signer(&service, limits);
    let tokens = join_all((0..64).map(|_| sign(&signer))).await;
    assert!(tokens.iter().all(Result::is_ok), "{tokens:?}");
    assert_eq!(service.most_in_progress.load(Ordering::SeqCst), 4);
    // More than can wait are refused at once.
    let tokens = join_all((0..80).map(|_| sign(&signer))).await;
    let shed = tokens
        .iter()
        .filter(|token| **token == Err(SignError::Overloaded))
        .count();
    assert_eq!(shed, 80 - 4 * 17);
}

#[tokio::test]
async fn a_call_that_may_be_repeated_is_repeated() {
    let service = Scripted::new();
    let signer = signer(&service, RemoteLimits::default());
    let busy = Act::Fail(failure(Trouble::Throttled).retry_after(Duration::from_millis(1)));
    service.next(&[busy.clone(), busy.clone()]);
    sign(&signer).await.unwrap();
    assert_eq!(service.calls(), 3);
    // But not for ever.
    service.next(&[busy.clone(), busy.clone(), busy]);
    assert_eq!(trouble(sign(&signer).await), Trouble::Throttled);
    assert_eq!(service.calls(), 6);
    // Nor where the pause would last longer than the caller waits.
    let later = failure(Trouble::Throttled).retry_after(Duration::from_secs(60));
    service.next(&[Act::Fail(later)]);
    let refused = sign(&signer).await;
    let Err(SignError::Remote(refused)) = refused else {
        panic!("{refused:?}")
    };
    assert_eq!(refused.retry_after, Duration::from_secs(60));
    assert_eq!(service.calls(), 7);
    // Nor where the service said nothing of the kind.
    service.next(&[Act::Fail(failure(Trouble::Refused))]);
    assert_eq!(trouble(sign(&signer).await), Trouble::Refused);
    assert_eq!(service.calls(), 8);
}

#[tokio::test]
async fn a_hanging_service_costs_a_caller_its_time_limit_and_later_ones_nothing() {
    let service = Scripted::new();
    let signer = signer(&service, QUICK);
    service.always(Act::Hang);
    let started = std::time::Instant::now();
    let slow = join_all((0..3).map(|_| sign(&signer))).await;
    assert!(started.elapsed() >= QUICK.timeout);
    for one in slow {
        assert_eq!(trouble(one), Trouble::Slow);
    }
    assert_eq!(signer.trouble(), Some(Trouble::Slow.to_string()));
    let calls = service.calls();
    assert_eq!(trouble(sign(&signer).await), Trouble::Slow);
    assert_eq!(service.calls(), calls, "it was not asked");
}

#[tokio::test]
async fn after_a_clear_word_callers_are_refused_until_a_probe_gets_a_signature() {
    let service = Scripted::new();
    let signer = signer(&service, QUICK);
    service.always(Act::Fail(failure(Trouble::Sealed)));
    let refused = sign(&signer).await;
    let Err(SignError::Remote(refused)) = refused else {
        panic!("{refused:?}")
    };
    assert_eq!(refused.trouble, Trouble::Sealed);
    assert!(refused.retry_after >= Duration::from_secs(1));
    assert_eq!(
        signer.trouble().unwrap(),
        "the signing service is sealed",
        "in words for readiness"
    );
    assert_eq!(trouble(sign(&signer).await), Trouble::Sealed);
    assert_eq!(service.calls(), 1, "callers do not ask");
    service.always(Act::Sign);
    let again = async {
        while signer.trouble().is_some() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let again = tokio::time::timeout(Duration::from_secs(20), again).await;
    again.expect("nobody asks the service again");
    assert_eq!(service.calls(), 2, "one probe");
    sign(&signer).await.unwrap();
}

#[tokio::test]
async fn a_signature_of_another_key_becomes_no_token() {
    let service = Scripted::new();
    let published = PrivateJwk::generate("tb-1".parse().unwrap(), KeySpec::Es256).unwrap();
    let signer = signer_of(&service, QUICK, published.public());
    assert_eq!(trouble(sign(&signer).await), Trouble::Mismatch);
    assert!(signer.trouble().unwrap().contains("another key"));
}

#[tokio::test]
async fn a_caller_that_goes_away_gives_its_place_back() {
    let service = Scripted::new();
    let limits = RemoteLimits {
        concurrency: 1,
        timeout: Duration::from_secs(20),
    };
    let signer = signer(&service, limits);
    service.next(&[Act::SignAfter(Duration::from_millis(20))]);
    let first = tokio::spawn({
        let signer = signer.clone();
        async move { sign(&signer).await }
    });
    while service.calls() == 0 {
        tokio::task::yield_now().await;
    }
    let mut waiting: Vec<_> = (0..16).map(|_| Box::pin(sign(&signer))).collect();
    for one in &mut waiting {
        assert!(futures_util::poll!(one).is_pending());
    }
    assert_eq!(sign(&signer).await, Err(SignError::Overloaded));
    drop(waiting);
    sign(&signer).await.unwrap();
    first.await.unwrap().unwrap();
}

#[test]
fn a_reference_file_gives_the_reference_back_and_has_no_private_member() {
    let service = Scripted::new();
    let reference = reference(service.signer.public());
    let file = reference.to_file();
    assert_eq!(KeyReference::from_file(&file).unwrap(), reference);
    let file: serde_json::Value = serde_json::from_slice(&file).unwrap();
    assert_eq!(file["service"], "vault");
    assert_eq!(file["key"], "test");
    assert_eq!(file["version"], "1");
    assert_eq!(file["jwk"], service.signer.public().to_value());
}

#[test]
fn a_reference_file_that_is_none_is_refused_in_words() {
    type Change = fn(&mut serde_json::Value);
    let good = |change: Change| {
        let service = Scripted::new();
        let file = reference(service.signer.public()).to_file();
        let mut file: serde_json::Value = serde_json::from_slice(&file).unwrap();
        change(&mut file);
        KeyReference::from_file(file.to_string().as_bytes())
    };
    good(|_| {}).unwrap();
    let cases: [(Change, &str); 4] = [
        (|file| file["service"] = "sealing wax".into(), "unknown"),
        (|file| file["key"] = 7.into(), "unknown"),
        (|file| file["jwk"]["kid"] = "../x".into(), "separator"),
        (|file| file["jwk"]["x"] = "AAAA".into(), "not valid"),
    ];
    for (change, words) in cases {
        let error = good(change).unwrap_err().to_string();
        assert!(error.contains(words), "{error} should say {words}");
    }
    let error = KeyReference::from_file(b"{").unwrap_err().to_string();
    assert!(error.contains("not JSON"), "{error}");
}

impl Signer {
    /// The signature of `message` alone.
    fn sign_raw(&self, message: &[u8]) -> Vec<u8> {
        let message = std::str::from_utf8(message).unwrap();
        let token = self.sign_unsigned(message.to_owned()).unwrap();
        let (_, signature) = token.rsplit_once('.').unwrap();
        URL_SAFE_NO_PAD.decode(signature).unwrap()
    }
}
