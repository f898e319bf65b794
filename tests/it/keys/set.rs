//! A key set of several algorithms: when the keys of each sign, beside those of the others.

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
};

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use tailbone::{
    config::KeySpec,
    jwks::{
        Document, Etag, FilePublisher, KeySet, PublishError, Publisher, Versioned,
        life::{Outcome, Report},
    },
    keys::{Algorithm, KeyState, KeyStore, NoSigner, disk::Probe},
};
use testkit::keys::policy;

use super::{at, kids, verify};

/// Cache time and skew of the policy, in seconds.
const WAIT: i64 = 6 * 60;

/// A set of ES256 and other keys, in a folder that the document is in too.
pub(super) fn key_set(folder: &Path, others: &[KeySpec], probe: &Probe) -> KeySet {
    let publisher = FilePublisher::with_probe(folder.join("jwks.json"), probe.clone());
    let store = KeyStore::new(folder.join("set")).with_probe(probe.clone());
    with_publisher(store, others, Arc::new(publisher))
}

fn with_publisher(store: KeyStore, others: &[KeySpec], publisher: Arc<dyn Publisher>) -> KeySet {
    KeySet::new(
        "workload",
        store,
        publisher,
        &policy(),
        "tb",
        KeySpec::Es256,
        others,
    )
}

fn set(folder: &Path, others: &[KeySpec]) -> KeySet {
    key_set(folder, others, &Probe::default())
}

fn signing(set: &KeySet, algorithm: Algorithm) -> String {
    let signer = set.signer(algorithm).unwrap();
    assert_eq!(signer.algorithm(), algorithm);
    signer.kid().to_string()
}

fn waits(set: &KeySet, algorithm: Algorithm, until: Timestamp) {
    match set.signer(algorithm) {
        Err(NoSigner::Waiting { from, .. }) => assert_eq!(from, until),
        other => panic!("{algorithm} does not wait: {other:?}"),
    }
}

#[tokio::test]
async fn the_first_keys_of_a_new_set_sign_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let set = set(folder.path(), &[KeySpec::EdDsa, KeySpec::Es384]);
    assert!(matches!(
        set.signer(Algorithm::Es256),
        Err(NoSigner::NotLoaded)
    ));
    let reports = set.start(at(0)).await.unwrap();
    let done = |report: &Report| {
        let done = report.done.iter().map(|done| done.action);
        done.collect::<Vec<_>>()
    };
    for (_, report) in &reports {
        assert_eq!(done(report), ["generate", "publish", "activate"]);
    }
    let jwks = fs::read(folder.path().join("jwks.json")).unwrap();
    for algorithm in [Algorithm::Es256, Algorithm::EdDsa, Algorithm::Es384] {
        let signer = set.signer(algorithm).unwrap();
        let token = signer.sign(br#"{"sub":"web"}"#).unwrap();
        assert_eq!(verify(&token, &jwks)["sub"], "web");
        let files = folder.path().join("set").join(algorithm.as_str());
        assert!(files.join(format!("{}.private.jwk", signer.kid())).exists());
    }
    assert_eq!(set.document().unwrap().document.to_bytes(), jwks);
    assert_eq!(set.default_algorithm(), Algorithm::Es256);
    assert!(matches!(
        set.signer(Algorithm::Rs256),
        Err(NoSigner::NotInSet { .. })
    ));
    // Each key is listed once, with its own facts.
    let keys = set.keys();
    assert_eq!(keys.len(), 3);
    assert!(keys.iter().all(|key| key.state == Some(KeyState::Active)));
    assert!(keys.iter().all(|key| key.signing && key.published));
}

#[tokio::test]
async fn an_algorithm_that_is_added_to_a_running_set_waits() {
    let folder = tempfile::tempdir().unwrap();
    let before = set(folder.path(), &[]);
    before.start(at(0)).await.unwrap();
    let first = signing(&before, Algorithm::Es256);

    let set = set(folder.path(), &[KeySpec::EdDsa]);
    set.start(at(10)).await.unwrap();
    assert_eq!(signing(&set, Algorithm::Es256), first);
    waits(&set, Algorithm::EdDsa, at(10 + WAIT));
    set.sync(at(10 + WAIT - 1)).await.unwrap();
    waits(&set, Algorithm::EdDsa, at(10 + WAIT));
    set.poll(at(10 + WAIT + 30)).await.unwrap();
    assert_ne!(signing(&set, Algorithm::EdDsa), first);
    assert_eq!(signing(&set, Algorithm::Es256), first);
}

#[tokio::test]
async fn a_second_servers_set_waits_with_every_key() {
    let folder = tempfile::tempdir().unwrap();
    let place = Arc::new(FilePublisher::new(folder.path().join("jwks.json")));
    let of = |name: &str| {
        let store = KeyStore::new(folder.path().join(name));
        with_publisher(store, &[KeySpec::EdDsa], place.clone())
    };
    let (a, b) = (of("a"), of("b"));
    a.start(at(0)).await.unwrap();
    b.start(at(1)).await.unwrap();
    for algorithm in [Algorithm::Es256, Algorithm::EdDsa] {
        signing(&a, algorithm);
        waits(&b, algorithm, at(1 + WAIT));
    }
    b.poll(at(1 + WAIT)).await.unwrap();
    signing(&b, Algorithm::EdDsa);
    assert_eq!(kids(&folder.path().join("jwks.json")).len(), 4);
}

#[tokio::test]
async fn each_algorithm_rotates_by_itself() {
    let folder = tempfile::tempdir().unwrap();
    let set = set(folder.path(), &[KeySpec::EdDsa]);
    set.start(at(0)).await.unwrap();
    let (old, other) = (
        signing(&set, Algorithm::Es256),
        signing(&set, Algorithm::EdDsa),
    );
    let made = set.rotate(None, at(1000)).await.unwrap();
    assert_eq!(signing(&set, Algorithm::Es256), old, "the successor waits");
    set.sync(at(1000 + WAIT)).await.unwrap();
    assert_eq!(signing(&set, Algorithm::Es256), made.key.kid);
    assert_eq!(signing(&set, Algorithm::EdDsa), other);

    let refused = set.rotate(Some(KeySpec::Es384), at(1001)).await;
    assert!(refused.unwrap_err().to_string().contains("ES384"));
    // A removal finds the life that has the key.
    set.remove(&other, at(2000)).await.unwrap();
    assert!(set.signer(Algorithm::EdDsa).is_err());
    assert_eq!(signing(&set, Algorithm::Es256), made.key.kid);
    let (left, unread) = set.list(at(2001)).await.unwrap();
    assert_eq!(unread, None);
    assert_eq!(left.len(), 2, "the retired key and its successor");
    assert!(left.iter().all(|key| key.kid != other));
}

#[tokio::test]
async fn a_lost_document_is_put_back_with_the_keys_of_all_algorithms() {
    let folder = tempfile::tempdir().unwrap();
    let jwks = folder.path().join("jwks.json");
    let algorithms = [Algorithm::Es256, Algorithm::EdDsa];
    let before = set(folder.path(), &[KeySpec::EdDsa]);
    before.start(at(0)).await.unwrap();
    let old = algorithms.map(|algorithm| signing(&before, algorithm));
    // While the server runs, and while it does not.
    for restart in [false, true] {
        fs::remove_file(&jwks).unwrap();
        let set = if restart {
            set(folder.path(), &[KeySpec::EdDsa])
        } else {
            before.clone()
        };
        set.start(at(1000)).await.unwrap();
        assert_eq!(algorithms.map(|algorithm| signing(&set, algorithm)), old);
        assert_eq!(kids(&jwks).len(), 2, "restarted: {restart}");
    }
}

/// A place that can be made to refuse writes.
#[derive(Debug)]
struct Flaky {
    inner: FilePublisher,
    down: AtomicBool,
    writes: AtomicU32,
}

impl Publisher for Flaky {
    fn place(&self) -> &str {
        self.inner.place()
    }

    fn read(&self) -> BoxFuture<'_, Result<Option<Versioned>, PublishError>> {
        self.inner.read()
    }

    fn write<'a>(
        &'a self,
        document: &'a Document,
        expected: Option<&'a Etag>,
    ) -> BoxFuture<'a, Result<Etag, PublishError>> {
        Box::pin(async move {
            if self.down.load(Ordering::SeqCst) {
                return Err(PublishError::Denied {
                    place: self.place().to_owned(),
                    hint: " (for a test)".to_owned(),
                });
            }
            self.writes.fetch_add(1, Ordering::SeqCst);
            self.inner.write(document, expected).await
        })
    }

    fn back_up<'a>(
        &'a self,
        document: &'a Document,
        now: Timestamp,
    ) -> BoxFuture<'a, Result<String, PublishError>> {
        self.inner.back_up(document, now)
    }
}

fn flaky(folder: &Path) -> Arc<Flaky> {
    Arc::new(Flaky {
        inner: FilePublisher::new(folder.join("jwks.json")),
        down: AtomicBool::new(true),
        writes: AtomicU32::new(0),
    })
}

#[tokio::test]
async fn first_keys_that_could_not_be_published_are_published_together_later() {
    let folder = tempfile::tempdir().unwrap();
    let place = flaky(folder.path());
    let store = KeyStore::new(folder.path().join("set"));
    let set = with_publisher(store, &[KeySpec::EdDsa], place.clone());
    let reports = set.start(at(0)).await.unwrap();
    for (_, report) in &reports {
        let mut failed = report.done.iter().filter_map(|done| match &done.outcome {
            Outcome::Failed(reason) => Some(reason),
            _ => None,
        });
        assert!(failed.next().is_some_and(|why| why.contains("for a test")));
    }
    for algorithm in set.algorithms() {
        assert!(matches!(
            set.signer(algorithm),
            Err(NoSigner::Unpublished { .. })
        ));
    }
    place.down.store(false, Ordering::SeqCst);
    let reports = set.poll(at(31)).await.unwrap();
    assert_eq!(reports.len(), 2);
    let first = ["ES256", "EdDSA"].map(|name| signing(&set, name.parse().unwrap()));
    assert_eq!(place.writes.load(Ordering::SeqCst), 1);
    let mut published = kids(&folder.path().join("jwks.json"));
    published.sort();
    let mut first = first.to_vec();
    first.sort();
    assert_eq!(published, first);
}

/// A set whose first keys are made and recorded, but published nowhere.
async fn abandoned_set(folder: &Path) {
    let store = KeyStore::new(folder.join("set"));
    let abandoned = with_publisher(store, &[KeySpec::EdDsa], flaky(folder));
    abandoned.start(at(0)).await.unwrap();
    assert!(folder.join("set/first-keys.json").exists());
}

#[tokio::test]
async fn a_first_key_that_a_start_with_fewer_algorithms_left_out_waits() {
    let folder = tempfile::tempdir().unwrap();
    abandoned_set(folder.path()).await;
    let alone = set(folder.path(), &[]);
    alone.start(at(1)).await.unwrap();
    assert_eq!(kids(&folder.path().join("jwks.json")).len(), 1);
    let first = signing(&alone, Algorithm::Es256);

    let set = set(folder.path(), &[KeySpec::EdDsa]);
    set.start(at(2)).await.unwrap();
    assert_eq!(signing(&set, Algorithm::Es256), first);
    waits(&set, Algorithm::EdDsa, at(2 + WAIT));
}

/// Whoever wrote the document, and whatever the file says: verifiers may have a copy of it.
#[tokio::test]
async fn a_first_key_that_is_missing_from_the_document_waits() {
    let folder = tempfile::tempdir().unwrap();
    abandoned_set(folder.path()).await;
    let contents = KeyStore::new(folder.path().join("set/ES256"))
        .load()
        .unwrap();
    let mut document = Document::default();
    document
        .add(contents.keys[0].public.as_ref().unwrap())
        .unwrap();
    fs::write(folder.path().join("jwks.json"), document.to_bytes()).unwrap();

    let set = set(folder.path(), &[KeySpec::EdDsa]);
    set.start(at(2)).await.unwrap();
    signing(&set, Algorithm::Es256);
    waits(&set, Algorithm::EdDsa, at(2 + WAIT));
    assert!(!folder.path().join("set/first-keys.json").exists());
}
