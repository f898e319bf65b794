//! A key set of several algorithms: when the keys of each sign, beside those of the others.

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use tailbone::{
    config::KeySpec,
    jwks::{
        Document, Etag, FilePublisher, KeySet, PublishError, Publisher, Versioned,
        life::{Outcome, Report},
    },
    keys::{Algorithm, KeyState, KeyStore, NoSigner, PrivateJwk, disk::Probe, tsiam::KeyFile},
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
    .in_told_time()
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

/// As tsiam writes it: compact, with an id of 22 characters.
pub(super) const TSIAM_KID: &str = "AAECAwQFBgcICQoLDA0ODw";

/// tsiam's key file in this folder, and its bytes.
pub(super) fn tsiam_key(folder: &Path, spec: KeySpec) -> Vec<u8> {
    let key = PrivateJwk::generate(TSIAM_KID.parse().unwrap(), spec).unwrap();
    fs::write(folder.join("key.json"), &*key.to_compact()).unwrap();
    key.to_compact().to_vec()
}

fn taking_over(folder: &Path, others: &[KeySpec]) -> KeySet {
    set(folder, others).taking_over(Arc::new(KeyFile::new(folder.join("key.json"))))
}

#[tokio::test]
async fn tsiams_key_signs_at_once_under_its_id_and_its_file_stays() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = tsiam_key(folder.path(), KeySpec::Es256);
    let set = taking_over(folder.path(), &[KeySpec::EdDsa]);
    let now = Timestamp::now() + Duration::from_secs(5);
    let reports = set.start(now).await.unwrap();
    assert_eq!(signing(&set, Algorithm::Es256), TSIAM_KID);
    let done: Vec<_> = reports[0].1.done.iter().map(|done| done.action).collect();
    assert_eq!(done, ["take over", "publish"]);
    let jwks = fs::read(folder.path().join("jwks.json")).unwrap();
    let token = set.signer(Algorithm::Es256).unwrap().sign(b"{}").unwrap();
    verify(&token, &jwks);
    // tsiam's verifiers know its key and no other.
    assert!(matches!(
        set.signer(Algorithm::EdDsa),
        Err(NoSigner::Waiting { .. })
    ));
    assert_eq!(fs::read(folder.path().join("key.json")).unwrap(), bytes);

    // Once: with the next start it is there already, and when it is removed it stays away.
    let later = now + Duration::from_secs(1);
    let again = taking_over(folder.path(), &[KeySpec::EdDsa]);
    again.start(later).await.unwrap();
    assert_eq!(signing(&again, Algorithm::Es256), TSIAM_KID);
    assert_eq!(kids(&folder.path().join("jwks.json")).len(), 2);
    again.remove(TSIAM_KID, later).await.unwrap();
    let last = taking_over(folder.path(), &[KeySpec::EdDsa]);
    last.start(later + Duration::from_secs(1)).await.unwrap();
    let published = kids(&folder.path().join("jwks.json"));
    assert!(!published.contains(&TSIAM_KID.to_owned()), "{published:?}");
}

#[tokio::test]
async fn tsiams_key_retires_like_any_other_and_stays_published_for_its_tokens() {
    let folder = tempfile::tempdir().unwrap();
    tsiam_key(folder.path(), KeySpec::Es256);
    let set = taking_over(folder.path(), &[]);
    let start = Timestamp::now();
    let after = |seconds: u64| start + Duration::from_secs(seconds);
    set.start(start).await.unwrap();
    let made = set.rotate(None, after(10)).await.unwrap().key.kid;
    set.sync(after(10 + 360)).await.unwrap();
    assert_eq!(signing(&set, Algorithm::Es256), made);
    // Its last token may live for an hour: longer than ours.
    let jwks = folder.path().join("jwks.json");
    set.sync(after(370 + 3600)).await.unwrap();
    assert!(kids(&jwks).contains(&TSIAM_KID.to_owned()));
    set.sync(after(370 + 3600 + 1200)).await.unwrap();
    assert_eq!(kids(&jwks), [made]);
}

#[tokio::test]
async fn a_key_of_tsiam_that_must_not_sign_ends_the_start_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key.json");
    for (json, words) in [
        (r#"{"alg":"HS256","k":"c2VjcmV0","kty":"oct"}"#, "symmetric"),
        ("{", "not a JWK"),
    ] {
        fs::write(&path, json).unwrap();
        let refused = taking_over(folder.path(), &[]).start(at(0)).await;
        let words_told = refused.unwrap_err().to_string();
        assert!(words_told.contains(words), "{words_told}");
        assert!(words_told.contains("key.json"), "{words_told}");
        assert!(!words_told.contains("c2VjcmV0"), "{words_told}");
    }
    // A key of an algorithm that the set does not have is not left out silently.
    tsiam_key(folder.path(), KeySpec::Es384);
    let refused = taking_over(folder.path(), &[]).start(at(0)).await;
    let words_told = refused.unwrap_err().to_string();
    assert!(words_told.contains("ES384") && words_told.contains("key.json"));
    assert!(!folder.path().join("jwks.json").exists());
    // Where there is no file, the set makes its own key.
    fs::remove_file(&path).unwrap();
    let set = taking_over(folder.path(), &[]);
    set.start(at(0)).await.unwrap();
    signing(&set, Algorithm::Es256);
}

#[tokio::test]
async fn a_set_in_memory_lives_as_any_other_and_writes_nothing() {
    let new = || {
        let others = [KeySpec::EdDsa];
        KeySet::in_memory("workload", &policy(), "tb", KeySpec::Es256, &others).in_told_time()
    };
    let set = new();
    set.start(at(0)).await.unwrap();
    let first = signing(&set, Algorithm::Es256);
    signing(&set, Algorithm::EdDsa);
    let made = set.rotate(None, at(1000)).await.unwrap().key.kid;
    assert_eq!(signing(&set, Algorithm::Es256), first);
    assert_eq!(set.poll(at(1000 + WAIT)).await.unwrap().len(), 2);
    assert_eq!(signing(&set, Algorithm::Es256), made);
    let token = set.signer(Algorithm::Es256).unwrap().sign(b"{}").unwrap();
    verify(&token, &set.document().unwrap().document.to_bytes());
    // The retired key goes when its last token is over; nothing is due then.
    set.sync(at(1000 + WAIT + 3000)).await.unwrap();
    let left: Vec<_> = set.keys().into_iter().map(|key| key.kid).collect();
    assert!(left.len() == 2 && !left.contains(&first), "{left:?}");
    assert!(set.poll(at(1000 + WAIT + 3001)).await.unwrap().is_empty());

    let other = new();
    other.start(at(0)).await.unwrap();
    assert_ne!(signing(&other, Algorithm::Es256), first);
    assert!(!Path::new("(memory)").exists());
}
