//! The life of keys with real files: what is taken over from the Go program, the effects of bad
//! input, and operators' requests.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, sync::Arc, time::Duration};

use jiff::Timestamp;
use jsonwebtoken::{DecodingKey, Validation, jwk::JwkSet};
use tailbone::{
    config::KeySpec,
    jwks::{
        Document, FilePublisher, Publisher as _,
        life::{Housekeeping, KeyLife, LifeError, Outcome, Report},
    },
    keys::{
        KeyPolicy, KeyState, KeyStore, KeyView, NoSigner, PrivateJwk, Signer, SigningQueue,
        disk::Probe,
    },
};
use testkit::{
    eventually,
    fault_proxy::{Fault, FaultProxy},
    publisher_contract,
    s3::{BUCKET, S3Server, publisher_at, publisher_with},
};

use crate::keys_fixture::{
    JWKS, NEW_KID, NEW_PRIVATE, NEW_PUBLIC, OLD_KID, OLD_PRIVATE, OLD_PUBLIC,
};

pub(crate) fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_750_000_000 + seconds).unwrap()
}

pub(crate) fn policy() -> KeyPolicy {
    KeyPolicy {
        token_life: Duration::from_secs(1200),
        cache_time: Duration::from_secs(300),
        skew: Duration::from_secs(60),
        rotate_every: None,
        withdrawn_grace: Duration::from_secs(86_400),
    }
}

/// A server with this directory that publishes to `jwks`, with small keys.
pub(crate) fn life(directory: &Path, jwks: &Path) -> KeyLife {
    with_probe(directory, jwks, &Probe::default())
}

pub(crate) fn with_probe(directory: &Path, jwks: &Path, probe: &Probe) -> KeyLife {
    KeyLife::new(
        KeyStore::new(directory).with_probe(probe.clone()),
        Arc::new(FilePublisher::with_probe(jwks, probe.clone())),
        policy(),
        "tb",
        KeySpec::Es256,
    )
}

pub(crate) fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap().flatten();
    let mut names: Vec<_> = entries
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// All files in a folder, with their contents.
fn contents(folder: &Path) -> Vec<(String, Vec<u8>)> {
    names(folder)
        .into_iter()
        .map(|name| {
            (
                name.clone(),
                fs::read(folder.join(name)).unwrap_or_default(),
            )
        })
        .collect()
}

pub(crate) fn kids(jwks: &Path) -> Vec<String> {
    Document::parse(&fs::read(jwks).unwrap())
        .unwrap()
        .kids()
        .map(str::to_owned)
        .collect()
}

fn view<'a>(report: &'a Report, kid: &str) -> &'a KeyView {
    report
        .keys
        .iter()
        .find(|key| key.kid == kid)
        .unwrap_or_else(|| panic!("{kid} in {report:?}"))
}

/// Verifies as an outsider does, with only the document.
fn verify(token: &str, jwks: &[u8]) -> serde_json::Value {
    let set: JwkSet = serde_json::from_slice(jwks).unwrap();
    let header = jsonwebtoken::decode_header(token).unwrap();
    let jwk = set
        .find(header.kid.as_deref().unwrap())
        .expect("the key is published");
    let mut rules = Validation::new(header.alg);
    rules.required_spec_claims.clear();
    rules.validate_exp = false;
    jsonwebtoken::decode(token, &DecodingKey::from_jwk(jwk).unwrap(), &rules)
        .unwrap()
        .claims
}

/// The key with which the Go program would sign, by its rule: the largest second part in the
/// private files' names.
fn originals_choice(directory: &Path) -> Option<String> {
    let mut best: Option<(i64, String)> = None;
    for name in names(directory) {
        let Some(stem) = name.strip_suffix(".private.jwk") else {
            continue;
        };
        let Some(time) = stem
            .split('-')
            .nth(1)
            .and_then(|part| part.parse::<i64>().ok())
        else {
            continue;
        };
        if time > best.as_ref().map_or(0, |(time, _)| *time) {
            best = Some((time, stem.to_owned()));
        }
    }
    best.map(|(_, stem)| stem)
}

/// An operator's directory as the Go program leaves it.
fn old_directory(folder: &Path) -> (std::path::PathBuf, std::path::PathBuf) {
    let (directory, jwks) = (folder.join("keys"), folder.join("jwks.json"));
    fs::create_dir(&directory).unwrap();
    fs::write(&jwks, JWKS).unwrap();
    for (kid, private, public) in [
        (OLD_KID, OLD_PRIVATE, OLD_PUBLIC),
        (NEW_KID, NEW_PRIVATE, NEW_PUBLIC),
    ] {
        let path = directory.join(format!("{kid}.private.jwk"));
        fs::write(&path, private).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(directory.join(format!("{kid}.public.jwk")), public).unwrap();
    }
    (directory, jwks)
}

#[tokio::test]
async fn an_old_directory_is_taken_over_unchanged_and_stays_readable_by_its_rules() {
    let folder = tempfile::tempdir().unwrap();
    let (directory, jwks) = old_directory(folder.path());
    let before = contents(&directory);
    let life = life(&directory, &jwks);
    let report = life.start(at(0)).await.unwrap();
    assert_eq!(
        (report.skipped.len(), report.trouble.len(), report.failed()),
        (0, 0, false),
        "{report:?}"
    );

    // It signs at once with the same key as the Go program, and verifiers need nothing new.
    let signer = life.current_keys().signer().unwrap();
    assert_eq!(
        (
            signer.kid().as_str(),
            originals_choice(&directory).as_deref()
        ),
        (NEW_KID, Some(NEW_KID))
    );
    let token = signer.sign(br#"{"iss":"tailbone"}"#).unwrap();
    assert_eq!(verify(&token, JWKS.as_bytes())["iss"], "tailbone");

    // Days later nothing has changed, except that there are state files beside.
    for days in [1, 100] {
        life.sync(at(days * 86_400)).await.unwrap();
    }
    assert_eq!(fs::read(&jwks).unwrap(), JWKS.as_bytes());
    let after = contents(&directory);
    assert!(before.iter().all(|file| after.contains(file)));

    // A new key is added; the document and the files equal those that the Go program would write.
    let made = life
        .generate(Some(KeySpec::Rs256 { bits: 2048 }), at(101 * 86_400))
        .await
        .unwrap();
    let text = fs::read_to_string(&jwks).unwrap();
    assert!(
        text.starts_with(JWKS.strip_suffix("]}").unwrap()),
        "old entries are byte for byte what they were"
    );
    assert_eq!(originals_choice(&directory), Some(made.key.kid.clone()));
    let private =
        fs::read_to_string(directory.join(format!("{}.private.jwk", made.key.kid))).unwrap();
    let shape = |text: &str| {
        let members = text
            .lines()
            .filter_map(|line| Some(line.split_once("\": \"")?.0.to_owned()));
        members.collect::<Vec<_>>()
    };
    assert_eq!(shape(&private), shape(NEW_PRIVATE));
    let mode = |name: String| {
        fs::metadata(directory.join(name))
            .unwrap()
            .permissions()
            .mode()
            & 0o777
    };
    assert_eq!(mode(format!("{}.private.jwk", made.key.kid)), 0o600);
    assert_eq!(mode(format!("{}.public.jwk", made.key.kid)), 0o644);
    assert_eq!(mode(format!("{}.state.json", made.key.kid)), 0o600);
    // Not yet: verifiers still have the old document.
    assert_eq!(
        life.current_keys().signer().unwrap().kid().as_str(),
        NEW_KID
    );
}

#[tokio::test]
async fn d10_a_fresh_install_makes_its_directory_and_first_key_and_signs_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let (directory, jwks) = (
        folder.path().join("keys"),
        folder.path().join("keys/jwks.json"),
    );
    let life = life(&directory, &jwks);
    assert_eq!(
        life.current_keys().signer().unwrap_err(),
        NoSigner::NotLoaded
    );
    life.start(at(0)).await.unwrap();
    assert_eq!(
        fs::metadata(&directory).unwrap().permissions().mode() & 0o777,
        0o700
    );
    let signer = life.current_keys().signer().unwrap();
    verify(&signer.sign(b"{}").unwrap(), &fs::read(&jwks).unwrap());
    assert_eq!(
        life.document().unwrap().document.to_bytes(),
        fs::read(&jwks).unwrap()
    );
    // The next start makes no further key.
    let again = self::life(&directory, &jwks);
    again.start(at(10)).await.unwrap();
    assert_eq!(again.current_keys().signer().unwrap().kid(), signer.kid());
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
    );
    // A server's own first key waits until the document can be written.
    proxy.always("PUT", Fault::code(403, "AccessDenied"));
    let report = life.start(at(0)).await.unwrap();
    assert!(report.failed());
    assert!(matches!(
        life.current_keys().signer(),
        Err(NoSigner::Unpublished { .. })
    ));
    proxy.heal();
    one_key_is_left(&life, at(1)).await;
    let first = life.current_keys().signer().unwrap();

    // An operator's new key is withdrawn, whatever went wrong.
    for fault in [Fault::code(403, "AccessDenied"), Fault::status(500)] {
        proxy.always("PUT", fault);
        life.generate(None, at(2)).await.unwrap_err();
        proxy.heal();
        one_key_is_left(&life, at(3)).await;
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
    one_key_is_left(&life, at(5)).await;
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
async fn one_key_is_left(life: &KeyLife, now: Timestamp) {
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
async fn d08_keys_made_in_one_second_on_two_replicas_are_all_there() {
    let folder = tempfile::tempdir().unwrap();
    let jwks = folder.path().join("jwks.json");
    let replicas = ["a", "b"].map(|name| life(&folder.path().join(name), &jwks));
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
        let life = life(
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
async fn d07_housekeeping_deletes_nothing_on_a_missing_emptied_or_clobbered_document() {
    let folder = tempfile::tempdir().unwrap();
    let (directory, jwks) = (folder.path().join("keys"), folder.path().join("jwks.json"));
    let life = life(&directory, &jwks);
    life.start(at(0)).await.unwrap();
    let kid = life.current_keys().signer().unwrap().kid().to_string();
    let good = fs::read(&jwks).unwrap();
    let private = directory.join(format!("{kid}.private.jwk"));
    let key = fs::read(&private).unwrap();
    let clobbered = br#"{"keys":[{"kid":"somebody-else","kty":"oct"}]}"#;
    for (n, bytes) in [
        Some(&b"{\"keys\":[]}"[..]),
        Some(&b"<html>"[..]),
        Some(&b""[..]),
        Some(&clobbered[..]),
    ]
    .iter()
    .enumerate()
    {
        match bytes {
            Some(bytes) => fs::write(&jwks, bytes).unwrap(),
            None => fs::remove_file(&jwks).unwrap(),
        }
        // Repeatedly, for days if no other server's key was published there.
        let days = if n == 3 { 0 } else { 30 };
        for day in 0..=days {
            let report = life
                .housekeeping(Housekeeping::default(), at(1 + day * 86_400))
                .await
                .unwrap();
            assert_eq!(report.done, [], "{report:?}");
        }
        assert_eq!(fs::read(&private).unwrap(), key);
        assert_eq!(
            fs::read(&jwks).unwrap(),
            bytes.unwrap(),
            "and what is there is not overwritten"
        );
    }
    // A lost document is written again, unchanged.
    fs::remove_file(&jwks).unwrap();
    let fresh = self::life(&directory, &jwks);
    fs::write(&jwks, &good).unwrap();
    fresh.sync(at(100)).await.unwrap();
    fs::remove_file(&jwks).unwrap();
    fresh
        .housekeeping(Housekeeping::default(), at(101))
        .await
        .unwrap();
    assert_eq!(fs::read(&jwks).unwrap(), good);
    assert_eq!(fresh.current_keys().signer().unwrap().kid().as_str(), kid);
}

#[tokio::test]
async fn d07_a_dry_run_tells_the_plan_and_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (directory, jwks) = old_directory(folder.path());
    life(&directory, &jwks).sync(at(0)).await.unwrap();
    let before = contents(&directory);
    let later = at(86_400);
    let plan = life(&directory, &jwks)
        .housekeeping(
            Housekeeping {
                dry_run: true,
                first_key: false,
            },
            later,
        )
        .await
        .unwrap();
    assert_eq!(
        (contents(&directory), fs::read(&jwks).unwrap()),
        (before, JWKS.as_bytes().to_vec())
    );
    let planned: Vec<_> = plan
        .done
        .iter()
        .map(|done| (done.action, done.outcome == Outcome::Planned))
        .collect();
    assert!(
        planned.contains(&("expire", true)) && planned.contains(&("delete private half", true)),
        "{planned:?}"
    );
    let json = serde_json::to_value(&plan).unwrap();
    assert_eq!(json["done"][0]["outcome"], "planned");

    // Completed: the superseded key is removed, a copy of the document stays.
    let report = life(&directory, &jwks)
        .housekeeping(Housekeeping::default(), later)
        .await
        .unwrap();
    assert!(!report.failed(), "{report:?}");
    assert_eq!(kids(&jwks), [NEW_KID]);
    assert_eq!(report.backups.len(), 1);
    assert_eq!(fs::read(&report.backups[0]).unwrap(), JWKS.as_bytes());
    assert!(!directory.join(format!("{OLD_KID}.private.jwk")).exists());
}

#[tokio::test]
async fn d18_a_key_removed_on_one_replica_stops_signing_on_the_other() {
    let folder = tempfile::tempdir().unwrap();
    let jwks = folder.path().join("jwks.json");
    let (a, b) = (
        life(&folder.path().join("a"), &jwks),
        life(&folder.path().join("b"), &jwks),
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
    let b = life(&folder.path().join("b"), &jwks);
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
async fn d22_ids_with_path_parts_touch_nothing_outside() {
    let folder = tempfile::tempdir().unwrap();
    let (directory, jwks) = old_directory(folder.path());
    let outside = folder.path().join("outside.private.jwk");
    fs::write(&outside, "precious").unwrap();
    let odd = NEW_PRIVATE.replace(NEW_KID, "../outside");
    fs::write(directory.join("tb-1740300000.private.jwk"), &odd).unwrap();
    fs::write(
        &jwks,
        JWKS.replace("]}", r#",{"kid":"../outside","kty":"oct"}]}"#),
    )
    .unwrap();
    let life = life(&directory, &jwks);
    let report = life.start(at(0)).await.unwrap();
    assert!(
        report
            .skipped
            .iter()
            .any(|skipped| skipped.reason.contains("path separator")),
        "{:?}",
        report.skipped
    );
    assert_eq!(
        life.current_keys().signer().unwrap().kid().as_str(),
        NEW_KID
    );
    // Such an entry of the document can be removed from the document, and nothing else happens.
    life.remove("../outside", at(1)).await.unwrap();
    assert!(matches!(
        life.remove("../../etc/passwd", at(1)).await,
        Err(LifeError::NotFound(_))
    ));
    life.housekeeping(Housekeeping::default(), at(10 * 86_400))
        .await
        .unwrap();
    assert_eq!(fs::read(&outside).unwrap(), b"precious");
    assert_eq!(
        fs::read(directory.join("tb-1740300000.private.jwk")).unwrap(),
        odd.as_bytes()
    );
}

#[tokio::test]
async fn bad_files_are_told_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let (directory, jwks) = old_directory(folder.path());
    let small = include_str!("keys_small_rsa.jwk");
    let bad = [
        ("tb-1740400001.private.jwk", "not json", "not JSON"),
        ("tb-1740400002.private.jwk", "", "ends early"),
        (
            "tb-1740400003.private.jwk",
            r#"{"kty":"oct","k":"AA","kid":"tb-1740400003"}"#,
            "oct",
        ),
        ("tb-1740400004.private.jwk", small, "1024 bits"),
        ("tb-1740400005.private.jwk", NEW_PUBLIC, "`d` is missing"),
        (
            "tb-1740400006.state.json",
            "{\"version\":9}",
            "newer version",
        ),
        ("tb-1740400007.private.jwk", NEW_PRIVATE, "already taken"),
        ("no_time.private.jwk", NEW_PRIVATE, "no time of creation"),
        ("..private.jwk", NEW_PRIVATE, "starts with a dot"),
    ];
    for (name, text, _) in bad {
        fs::write(directory.join(name), text).unwrap();
    }
    fs::write(
        directory.join("tb-1740400008.private.jwk"),
        vec![b' '; 200_000],
    )
    .unwrap();
    fs::create_dir(directory.join("tb-1740400009.private.jwk")).unwrap();
    fs::write(directory.join("README"), "mine").unwrap();
    let before = contents(&directory);
    let life = life(&directory, &jwks);
    let report = life.start(at(0)).await.unwrap();
    for (name, _, words) in bad {
        let told = report
            .skipped
            .iter()
            .any(|skipped| skipped.path.ends_with(name) && skipped.reason.contains(words));
        assert!(told, "{name} should say {words}: {:#?}", report.skipped);
    }
    assert!(
        report
            .skipped
            .iter()
            .any(|skipped| skipped.reason.contains("larger than"))
    );
    assert!(
        report
            .trouble
            .iter()
            .any(|trouble| trouble.contains("chmod 600")),
        "{:?}",
        report.trouble
    );
    let words = serde_json::to_string(&report).unwrap();
    let secret = NEW_PRIVATE
        .split("\"d\": \"")
        .nth(1)
        .unwrap()
        .split('"')
        .next()
        .unwrap();
    assert!(!words.contains(&secret[..16]));
    assert_eq!(
        life.current_keys().signer().unwrap().kid().as_str(),
        NEW_KID
    );
    life.housekeeping(Housekeeping::default(), at(1))
        .await
        .unwrap();
    let after = contents(&directory);
    for file in before.iter().filter(|(name, _)| !name.starts_with(OLD_KID)) {
        assert!(after.contains(file), "{} was touched", file.0);
    }
}

#[test]
fn a_directory_that_cannot_be_written_still_signs() {
    const NOBODY: u32 = 65_534;
    let folder = tempfile::tempdir().unwrap();
    let (directory, jwks) = old_directory(folder.path());
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o500)).unwrap();
    let root = rustix::process::geteuid().is_root();
    if root {
        for path in [folder.path(), &directory, &jwks] {
            std::os::unix::fs::chown(path, Some(NOBODY), None).unwrap();
        }
        for name in names(&directory) {
            std::os::unix::fs::chown(directory.join(name), Some(NOBODY), None).unwrap();
        }
    }
    let before = contents(&directory);
    let (inside, document) = (directory.clone(), jwks.clone());
    // Root may write anywhere, so this thread and its runtime temporarily run as another user.
    std::thread::spawn(move || {
        if root {
            let nobody = rustix::process::Uid::from_raw(NOBODY);
            rustix::thread::set_thread_uid(nobody).unwrap();
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let life = life(&inside, &document);
            let report = life.start(at(0)).await.unwrap();
            assert_eq!(
                life.current_keys().signer().unwrap().kid().as_str(),
                NEW_KID
            );
            assert!(
                report
                    .trouble
                    .iter()
                    .any(|trouble| trouble.contains("cannot be written")),
                "{report:?}"
            );
            assert!(!report.failed(), "{report:?}");
            assert!(matches!(
                life.generate(None, at(1)).await,
                Err(LifeError::ReadOnly)
            ));
            assert!(matches!(
                life.remove(NEW_KID, at(1)).await,
                Err(LifeError::ReadOnly)
            ));
            life.housekeeping(Housekeeping::default(), at(86_400))
                .await
                .unwrap();
        });
    })
    .join()
    .unwrap();
    assert_eq!(
        (contents(&directory), fs::read(&jwks).unwrap()),
        (before, JWKS.as_bytes().to_vec())
    );
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o700)).unwrap();
}

#[tokio::test]
async fn a_change_in_the_directory_is_seen_without_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let (directory, jwks) = old_directory(folder.path());
    let new = directory.join(format!("{NEW_KID}.private.jwk"));
    let hidden = folder.path().join("hidden");
    fs::rename(&new, &hidden).unwrap();
    let life = life(&directory, &jwks);
    life.start(at(0)).await.unwrap();
    assert_eq!(
        life.current_keys().signer().unwrap().kid().as_str(),
        OLD_KID
    );
    assert!(
        life.poll(at(0)).await.unwrap().is_none(),
        "nothing changed, nothing is due"
    );
    fs::rename(&hidden, &new).unwrap();
    assert!(life.poll(at(0)).await.unwrap().is_some());
    assert_eq!(
        life.current_keys().signer().unwrap().kid().as_str(),
        NEW_KID
    );
    // And one that disappears.
    fs::rename(&new, &hidden).unwrap();
    life.poll(at(0)).await.unwrap().unwrap();
    assert_ne!(
        life.current_keys()
            .signer()
            .map(|signer| signer.kid().to_string()),
        Ok(NEW_KID.to_owned())
    );
}

#[tokio::test]
async fn a_first_key_that_the_start_could_not_make_is_made_later_and_no_other() {
    let server = S3Server::start();
    let proxy = FaultProxy::start(server.addr).await;
    let folder = tempfile::tempdir().unwrap();
    let publisher = publisher_with(proxy.addr, BUCKET, Duration::from_millis(300));
    let life = KeyLife::new(
        KeyStore::new(folder.path()),
        Arc::new(publisher),
        policy(),
        "tb",
        KeySpec::Es256,
    );
    proxy.always("GET", Fault::status(500));
    life.start(at(0)).await.unwrap();
    life.sync(at(100)).await.unwrap();
    assert!(life.current_keys().signer().is_err());
    proxy.heal();
    life.sync(at(200)).await.unwrap();
    let kid = life.current_keys().signer().unwrap().kid().clone();
    // An operator who removes the last key wants no key.
    life.remove(kid.as_str(), at(300)).await.unwrap();
    life.sync(at(400)).await.unwrap();
    assert!(life.current_keys().signer().is_err());
}

#[tokio::test]
async fn s3_down_signing_goes_on_with_what_was_last_published() {
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
    );
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
    let (directory, jwks) = old_directory(folder.path());
    life(&directory, &jwks).start(at(0)).await.unwrap();
    // A command line that has never read the document.
    fs::remove_file(&jwks).unwrap();
    let made = life(&directory, &jwks)
        .generate(None, at(10))
        .await
        .unwrap();
    assert_eq!(kids(&jwks), [OLD_KID, NEW_KID, &made.key.kid]);
    fs::remove_file(&jwks).unwrap();
    let removed = life(&directory, &jwks)
        .remove(OLD_KID, at(20))
        .await
        .unwrap();
    assert_eq!(removed.remaining.len(), 2);
    assert_eq!(kids(&jwks), [NEW_KID, &made.key.kid]);
    // Where there was no document, a removal does not create one.
    let empty = tempfile::tempdir().unwrap();
    let nothing = empty.path().join("jwks.json");
    let refused = life(&empty.path().join("keys"), &nothing)
        .remove("tb-1", at(0))
        .await;
    assert!(
        matches!(refused, Err(LifeError::NotFound(_))),
        "{refused:?}"
    );
    assert!(!nothing.exists());
}

#[tokio::test]
async fn d15_signing_reads_nothing_from_the_disk() {
    let folder = tempfile::tempdir().unwrap();
    let (directory, jwks) = old_directory(folder.path());
    let life = life(&directory, &jwks);
    life.start(at(0)).await.unwrap();
    fs::remove_dir_all(&directory).unwrap();
    let token = life.current_keys().signer().unwrap().sign(b"{}").unwrap();
    verify(&token, JWKS.as_bytes());
}

#[tokio::test]
async fn d16_rotate_makes_one_successor_not_two() {
    let folder = tempfile::tempdir().unwrap();
    let (directory, jwks) = (folder.path().join("keys"), folder.path().join("jwks.json"));
    let life = life(&directory, &jwks);
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

#[tokio::test]
async fn d21_what_is_published_verifies_what_is_signed() {
    let folder = tempfile::tempdir().unwrap();
    let (directory, jwks) = (folder.path().join("keys"), folder.path().join("jwks.json"));
    let life = life(&directory, &jwks);
    let queue = SigningQueue::with(1, 16);
    for (n, spec) in [
        KeySpec::Rs256 { bits: 2048 },
        KeySpec::Es256,
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

#[tokio::test]
async fn two_processes_take_turns_and_two_housekeepings_are_safe() {
    let folder = tempfile::tempdir().unwrap();
    let (directory, jwks) = old_directory(folder.path());
    life(&directory, &jwks).sync(at(0)).await.unwrap();
    let passes = (0..6).map(|n| {
        let life = life(&directory, &jwks);
        async move {
            life.housekeeping(Housekeeping::default(), at(86_400 + n))
                .await
                .unwrap();
        }
    });
    futures_util::future::join_all(passes).await;
    assert_eq!(kids(&jwks), [NEW_KID]);
    let life = life(&directory, &jwks);
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

#[test]
fn the_fixture_is_a_key_to_us() {
    let key = PrivateJwk::from_file(NEW_PRIVATE.as_bytes(), &NEW_KID.parse().unwrap()).unwrap();
    assert_eq!(
        key.to_file().as_slice(),
        NEW_PRIVATE.as_bytes(),
        "and we would write it the same"
    );
    assert_eq!(key.public().to_file(), NEW_PUBLIC.as_bytes());
    Signer::new(&key).unwrap();
}
