//! Housekeeping, which deletes keys that nobody needs any more.

use std::fs;

use tailbone::jwks::life::{Housekeeping, Outcome};

use super::{
    at, contents,
    go_directory::go_directory,
    go_fixture::{JWKS, NEW_KID, OLD_KID},
    key_life, kids,
};

#[tokio::test]
async fn d07_housekeeping_deletes_nothing_on_a_missing_emptied_or_clobbered_document() {
    let folder = tempfile::tempdir().unwrap();
    let (directory, jwks) = (folder.path().join("keys"), folder.path().join("jwks.json"));
    let life = key_life(&directory, &jwks);
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
    let fresh = self::key_life(&directory, &jwks);
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
    let (directory, jwks) = go_directory(folder.path());
    key_life(&directory, &jwks).sync(at(0)).await.unwrap();
    let before = contents(&directory);
    let later = at(86_400);
    let plan = key_life(&directory, &jwks)
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
    let report = key_life(&directory, &jwks)
        .housekeeping(Housekeeping::default(), later)
        .await
        .unwrap();
    assert!(!report.failed(), "{report:?}");
    assert_eq!(kids(&jwks), [NEW_KID]);
    assert_eq!(report.backups.len(), 1);
    assert_eq!(fs::read(&report.backups[0]).unwrap(), JWKS.as_bytes());
    assert!(!directory.join(format!("{OLD_KID}.private.jwk")).exists());
}
