//! Several servers with the same keys.

use tailbone::{
    jwks::life::{Housekeeping, LifeError},
    keys::{KeyState, KeyView, NoSigner},
};

use super::{at, go_directory::go_directory, go_fixture::NEW_KID, key_life, kids, names, view};

#[tokio::test]
async fn d08_keys_made_in_one_second_on_two_replicas_are_all_there() {
    let folder = tempfile::tempdir().unwrap();
    let jwks = folder.path().join("jwks.json");
    let replicas = ["a", "b"].map(|name| key_life(&folder.path().join(name), &jwks));
    let made = futures_util::future::join_all(
        replicas
            .iter()
            .flat_map(|life| (0..4).map(|_| life.generate(None, at(0)))),
    )
    .await;
    let mut wanted: Vec<_> = made.into_iter().map(|made| made.unwrap().key.kid).collect();
    let mut found = kids(&jwks);
    wanted.sort();
    found.sort();
    wanted.dedup();
    assert_eq!((wanted.len(), &wanted), (8, &found));
}

#[tokio::test]
async fn d08_of_two_keys_made_in_one_second_the_later_one_takes_over() {
    // In about half of all cases the later key's name sorts before the earlier one's, so a few
    // tries cover both.
    for _ in 0..8 {
        let folder = tempfile::tempdir().unwrap();
        let life = key_life(
            &folder.path().join("keys"),
            &folder.path().join("jwks.json"),
        );
        life.start(at(0)).await.unwrap();
        let in_a_moment = at(0) + jiff::SignedDuration::from_millis(300);
        let later = life.generate(None, in_a_moment).await.unwrap().key.kid;
        life.sync(at(1000)).await.unwrap();
        assert_eq!(life.current_keys().signer().unwrap().kid().as_str(), later);
    }
}

#[tokio::test]
async fn d18_a_key_removed_on_one_replica_stops_signing_on_the_other() {
    let folder = tempfile::tempdir().unwrap();
    let jwks = folder.path().join("jwks.json");
    let (a, b) = (
        key_life(&folder.path().join("a"), &jwks),
        key_life(&folder.path().join("b"), &jwks),
    );
    a.start(at(0)).await.unwrap();
    b.start(at(0)).await.unwrap();
    b.sync(at(1000)).await.unwrap();
    let victim = b.current_keys().signer().unwrap().kid().to_string();
    let snapshot = b.current_keys().snapshot();
    let signing: Vec<_> = snapshot.keys.iter().filter(|key| key.signing).collect();
    let active = |key: &&KeyView| key.state == Some(KeyState::Active);
    assert_eq!(snapshot.keys.iter().filter(active).count(), 1);
    assert!(signing.len() == 1 && signing[0].kid == victim && active(&signing[0]));
    let removed = a.remove(&victim, at(1001)).await.unwrap();
    assert_eq!(removed.remaining.len(), 1);
    assert!(!kids(&jwks).contains(&victim));
    b.poll(at(1100)).await.unwrap().expect("a look is due");
    assert!(
        matches!(b.current_keys().signer(), Err(NoSigner::Withdrawn { kid }) if kid.as_str() == victim)
    );
    // It is never published again, not even after a restart.
    let b = key_life(&folder.path().join("b"), &jwks);
    b.sync(at(1101)).await.unwrap();
    assert!(!kids(&jwks).contains(&victim));
    assert!(matches!(
        a.remove(&victim, at(1102)).await,
        Err(LifeError::NotFound(_))
    ));
    // A day later housekeeping deletes the rest of it.
    let report = b
        .housekeeping(Housekeeping::default(), at(1101 + 86_400))
        .await
        .unwrap();
    assert_eq!(report.done.len(), 1, "{report:?}");
    assert_eq!(names(&folder.path().join("b")), [".lock"]);
}

#[tokio::test]
async fn two_processes_take_turns_and_two_housekeepings_are_safe() {
    let folder = tempfile::tempdir().unwrap();
    let (directory, jwks) = go_directory(folder.path());
    key_life(&directory, &jwks).sync(at(0)).await.unwrap();
    let passes = (0..6).map(|n| {
        let life = key_life(&directory, &jwks);
        async move {
            life.housekeeping(Housekeeping::default(), at(86_400 + n))
                .await
                .unwrap();
        }
    });
    futures_util::future::join_all(passes).await;
    assert_eq!(kids(&jwks), [NEW_KID]);
    let life = key_life(&directory, &jwks);
    let report = life.sync(at(86_500)).await.unwrap();
    assert_eq!(
        (report.done.len(), report.failed()),
        (0, false),
        "{report:?}"
    );
    assert_eq!(
        life.current_keys().signer().unwrap().kid().as_str(),
        NEW_KID
    );
}

#[tokio::test]
async fn d16_rotate_makes_one_successor_not_two() {
    let folder = tempfile::tempdir().unwrap();
    let (directory, jwks) = (folder.path().join("keys"), folder.path().join("jwks.json"));
    let life = key_life(&directory, &jwks);
    life.start(at(0)).await.unwrap();
    let first = life.current_keys().signer().unwrap().kid().to_string();
    let made = life.rotate(None, at(100)).await.unwrap();
    assert!(!made.existed && made.key.state == Some(KeyState::Published) && !made.key.signing);
    assert_eq!(made.key.signs_since, Some(at(100 + 360)));
    let again = life.rotate(None, at(101)).await.unwrap();
    assert!(again.existed && again.key.kid == made.key.kid);
    let report = life.sync(at(460)).await.unwrap();
    assert!(view(&report, &made.key.kid).signing);
    assert_eq!(view(&report, &first).state, Some(KeyState::Retired));
    assert!(!directory.join(format!("{first}.private.jwk")).exists());
    assert!(directory.join(format!("{first}.public.jwk")).exists());
}
