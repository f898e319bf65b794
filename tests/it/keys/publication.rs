//! Keys and the published document: a key signs only when verifiers can know it.

use std::{fs, sync::Arc, time::Duration};

use jiff::Timestamp;
use tailbone::{
    config::KeySpec,
    jwks::{
        Document, FilePublisher, Publisher as _,
        life::{KeyLife, LifeError},
    },
    keys::{KeyPolicy, KeyState, KeyStore, NoSigner, SigningQueue},
};
use testkit::{
    eventually,
    fault_proxy::{Fault, FaultProxy},
    keys::policy,
    publisher_contract,
    s3::{BUCKET, S3Server, publisher_at, publisher_with},
};

use super::{
    at,
    go_directory::go_directory,
    go_fixture::{NEW_KID, OLD_KID},
    key_life, kids, names, verify, view,
};

/// Verifiers cannot know a key before its publication is over, however long making and publishing
/// it took.
#[tokio::test]
async fn the_wait_of_a_key_counts_from_when_it_was_read_back() {
    let server = S3Server::start();
    let proxy = FaultProxy::start(server.addr).await;
    let folder = tempfile::tempdir().unwrap();
    let publisher = Arc::new(publisher_at(proxy.addr));
    let store = KeyStore::new(folder.path());
    let life = KeyLife::new(store, publisher, policy(), "tb", KeySpec::Es256);
    life.start(at(0)).await.unwrap();
    let slow = Duration::from_millis(300);
    proxy.once("PUT", Fault::Delay(slow));
    let made = life.generate(None, at(1)).await.unwrap();
    let waits = policy().cache_time + policy().skew;
    assert!(
        made.key.signs_since.unwrap() >= at(1) + slow + waits,
        "{made:?}"
    );
}

#[tokio::test]
async fn without_waits_a_new_key_signs_when_it_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let publisher = Arc::new(FilePublisher::new(folder.path().join("jwks.json")));
    let no_waits = KeyPolicy {
        cache_time: Duration::ZERO,
        skew: Duration::ZERO,
        ..policy()
    };
    let store = KeyStore::new(folder.path().join("keys"));
    let life = KeyLife::new(store, publisher, no_waits, "tb", KeySpec::Es256);
    life.start(at(0)).await.unwrap();
    let made = life.generate(None, at(1)).await.unwrap();
    let signer = life.current_keys().signer().unwrap();
    assert_eq!(signer.kid().as_str(), made.key.kid);
}

#[tokio::test]
async fn d03_a_key_that_could_not_be_published_leaves_nothing_that_signs() {
    let server = S3Server::start();
    let proxy = FaultProxy::start(server.addr).await;
    let folder = tempfile::tempdir().unwrap();
    let publisher = Arc::new(publisher_with(
        proxy.addr,
        BUCKET,
        Duration::from_millis(300),
    ));
    let life = KeyLife::new(
        KeyStore::new(folder.path()),
        publisher,
        policy(),
        "tb",
        KeySpec::Es256,
    )
    .in_told_time();
    // A server's own first key waits until the document can be written.
    proxy.always("PUT", Fault::code(403, "AccessDenied"));
    let report = life.start(at(0)).await.unwrap();
    assert!(report.failed());
    assert!(matches!(
        life.current_keys().signer(),
        Err(NoSigner::Unpublished { .. })
    ));
    proxy.heal();
    until_one_key_is_left(&life, at(1)).await;
    let first = life.current_keys().signer().unwrap();

    // An operator's new key is withdrawn, whatever went wrong.
    for fault in [Fault::code(403, "AccessDenied"), Fault::status(500)] {
        proxy.always("PUT", fault);
        life.generate(None, at(2)).await.unwrap_err();
        proxy.heal();
        until_one_key_is_left(&life, at(3)).await;
        assert_eq!(
            names(folder.path()).len(),
            4,
            "three files and the lock: {:?}",
            names(folder.path())
        );
    }
    // This includes a write that took effect and failed afterwards.
    proxy.once("PUT", Fault::DropAfter);
    proxy.once("GET", Fault::Delay(Duration::ZERO));
    for _ in 0..70 {
        proxy.once("GET", Fault::status(500));
    }
    life.generate(None, at(4)).await.unwrap_err();
    proxy.heal();
    until_one_key_is_left(&life, at(5)).await;
    assert_eq!(
        Document::parse(&server.object().unwrap())
            .unwrap()
            .keys()
            .len(),
        1
    );
    assert_eq!(life.current_keys().signer().unwrap().kid(), first.kid());
}

/// May take some passes: on a busy machine a pass may exceed its 300 ms, or come before an
/// abandoned write has taken effect.
async fn until_one_key_is_left(life: &KeyLife, now: Timestamp) {
    eventually("one key", async || {
        let pass = life.sync(now).await.unwrap();
        let report = life.list(now).await.unwrap();
        let reached = !pass.failed() && pass.trouble.is_empty();
        (reached && report.keys.len() == 1)
            .then_some(())
            .ok_or(format!("{pass:?} {report:?}"))
    })
    .await;
}

#[tokio::test]
async fn while_the_bucket_is_down_signing_goes_on_with_what_was_last_published() {
    let server = S3Server::start();
    let proxy = FaultProxy::start(server.addr).await;
    let folder = tempfile::tempdir().unwrap();
    let open = |publisher| {
        KeyLife::new(
            KeyStore::new(folder.path()),
            Arc::new(publisher),
            policy(),
            "tb",
            KeySpec::Es256,
        )
        .in_told_time()
    };
    let life = open(publisher_at(proxy.addr));
    life.start(at(0)).await.unwrap();
    let kid = life.current_keys().signer().unwrap().kid().clone();
    let document = life.document().unwrap();
    proxy.always("GET", Fault::status(500));
    for life in [life, open(publisher_at(proxy.addr))] {
        for now in [100, 10_000] {
            life.sync(at(now)).await.unwrap();
            assert_eq!(
                life.current_keys().signer().unwrap().kid(),
                &kid,
                "also after a restart"
            );
            let snapshot = life.current_keys().snapshot();
            assert!(
                snapshot
                    .trouble
                    .iter()
                    .any(|trouble| trouble.contains("not reachable")),
                "{:?}",
                snapshot.trouble
            );
        }
    }
    proxy.heal();
    let life = open(publisher_at(proxy.addr));
    life.sync(at(20_000)).await.unwrap();
    assert!(life.current_keys().snapshot().trouble.is_empty());
    assert_eq!(life.document().unwrap().document, document.document);
}

#[tokio::test]
async fn one_stale_read_does_not_stop_a_key() {
    let server = S3Server::start();
    let proxy = FaultProxy::start(server.addr).await;
    let folder = tempfile::tempdir().unwrap();
    let publisher = Arc::new(publisher_at(proxy.addr));
    publisher
        .write(&publisher_contract::document(&["tb-1"]), None)
        .await
        .unwrap();
    publisher.read().await.unwrap();
    publisher.read().await.unwrap();
    let life = KeyLife::new(
        KeyStore::new(folder.path()),
        publisher,
        policy(),
        "tb",
        KeySpec::Es256,
    )
    .in_told_time();
    life.start(at(0)).await.unwrap();
    life.sync(at(400)).await.unwrap();
    let kid = life.current_keys().signer().unwrap().kid().clone();
    proxy.once("GET", Fault::Replace(br#"{"keys":[]}"#.to_vec()));
    let report = life.sync(at(401)).await.unwrap();
    assert_eq!(life.current_keys().signer().unwrap().kid(), &kid);
    assert_eq!(view(&report, kid.as_str()).state, Some(KeyState::Active));
}

#[tokio::test]
async fn a_lost_document_is_put_back_before_anything_else_is_asked_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let (directory, jwks) = go_directory(folder.path());
    key_life(&directory, &jwks).start(at(0)).await.unwrap();
    // A command line that has never read the document.
    fs::remove_file(&jwks).unwrap();
    let made = key_life(&directory, &jwks)
        .generate(None, at(10))
        .await
        .unwrap();
    assert_eq!(kids(&jwks), [OLD_KID, NEW_KID, &made.key.kid]);
    fs::remove_file(&jwks).unwrap();
    let removed = key_life(&directory, &jwks)
        .remove(OLD_KID, at(20))
        .await
        .unwrap();
    assert_eq!(removed.remaining.len(), 2);
    assert_eq!(kids(&jwks), [NEW_KID, &made.key.kid]);
    // Where there was no document, a removal does not create one.
    let empty = tempfile::tempdir().unwrap();
    let nothing = empty.path().join("jwks.json");
    let refused = key_life(&empty.path().join("keys"), &nothing)
        .remove("tb-1", at(0))
        .await;
    assert!(
        matches!(refused, Err(LifeError::NotFound(_))),
        "{refused:?}"
    );
    assert!(!nothing.exists());
}

#[tokio::test]
async fn d21_what_is_published_verifies_what_is_signed() {
    let folder = tempfile::tempdir().unwrap();
    let (directory, jwks) = (folder.path().join("keys"), folder.path().join("jwks.json"));
    let life = key_life(&directory, &jwks);
    let queue = SigningQueue::with(1, 16);
    for (n, spec) in [
        KeySpec::Rs256 { bits: 2048 },
        KeySpec::Es256,
        KeySpec::Es384,
        KeySpec::EdDsa,
    ]
    .into_iter()
    .enumerate()
    {
        let made = life
            .generate(Some(spec), at(n as i64 * 1000))
            .await
            .unwrap();
        life.sync(at(n as i64 * 1000 + 500)).await.unwrap();
        let signer = life.current_keys().signer().unwrap();
        assert_eq!(signer.kid().as_str(), made.key.kid);
        let token = queue.sign(&signer, br#"{"n":1}"#).await.unwrap();
        assert_eq!(
            verify(&token, &life.document().unwrap().document.to_bytes())["n"],
            1
        );
    }
}
