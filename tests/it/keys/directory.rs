//! The key directory: its first key, bad files, and changes by others.

use std::{fs, os::unix::fs::PermissionsExt as _, sync::Arc, time::Duration};

use tailbone::{
    config::KeySpec,
    jwks::life::{Housekeeping, KeyLife, LifeError},
    keys::{KeyStore, NoSigner},
};
use testkit::{
    fault_proxy::{Fault, FaultProxy},
    keys::policy,
    s3::{BUCKET, S3Server, publisher_with},
};

use super::{
    at, contents,
    go_directory::go_directory,
    go_fixture::{JWKS, NEW_KID, NEW_PRIVATE, NEW_PUBLIC, OLD_KID},
    key_life, names, verify,
};

#[tokio::test]
async fn d10_a_fresh_install_makes_its_directory_and_first_key_and_signs_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let (directory, jwks) = (
        folder.path().join("keys"),
        folder.path().join("keys/jwks.json"),
    );
    let life = key_life(&directory, &jwks);
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
    let again = self::key_life(&directory, &jwks);
    again.start(at(10)).await.unwrap();
    assert_eq!(again.current_keys().signer().unwrap().kid(), signer.kid());
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
    )
    .in_told_time();
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
async fn d22_ids_with_path_parts_touch_nothing_outside() {
    let folder = tempfile::tempdir().unwrap();
    let (directory, jwks) = go_directory(folder.path());
    let outside = folder.path().join("outside.private.jwk");
    fs::write(&outside, "precious").unwrap();
    let odd = NEW_PRIVATE.replace(NEW_KID, "../outside");
    fs::write(directory.join("tb-1740300000.private.jwk"), &odd).unwrap();
    fs::write(
        &jwks,
        JWKS.replace("]}", r#",{"kid":"../outside","kty":"oct"}]}"#),
    )
    .unwrap();
    let life = key_life(&directory, &jwks);
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
async fn bad_files_are_reported_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let (directory, jwks) = go_directory(folder.path());
    let small = include_str!("small_rsa.jwk");
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
    let life = key_life(&directory, &jwks);
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
    let (directory, jwks) = go_directory(folder.path());
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
            let life = key_life(&inside, &document);
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
    let (directory, jwks) = go_directory(folder.path());
    let new = directory.join(format!("{NEW_KID}.private.jwk"));
    let hidden = folder.path().join("hidden");
    fs::rename(&new, &hidden).unwrap();
    let life = key_life(&directory, &jwks);
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
async fn d15_signing_reads_nothing_from_the_disk() {
    let folder = tempfile::tempdir().unwrap();
    let (directory, jwks) = go_directory(folder.path());
    let life = key_life(&directory, &jwks);
    life.start(at(0)).await.unwrap();
    fs::remove_dir_all(&directory).unwrap();
    let token = life.current_keys().signer().unwrap().sign(b"{}").unwrap();
    verify(&token, JWKS.as_bytes());
}
