//! A key directory of the Go program: it is taken over unchanged, and stays readable by that
//! program's rules.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use tailbone::{
    config::KeySpec,
    keys::{PrivateJwk, Signer},
};

use super::{
    at, contents,
    go_fixture::{JWKS, NEW_KID, NEW_PRIVATE, NEW_PUBLIC, OLD_KID, OLD_PRIVATE, OLD_PUBLIC},
    key_life, names, verify,
};

/// The key with which the Go program would sign, by its rule: the largest second part in the
/// private files' names.
fn choice_of_the_go_program(directory: &Path) -> Option<String> {
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
pub(super) fn go_directory(folder: &Path) -> (std::path::PathBuf, std::path::PathBuf) {
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
    let (directory, jwks) = go_directory(folder.path());
    let before = contents(&directory);
    let life = key_life(&directory, &jwks);
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
            choice_of_the_go_program(&directory).as_deref()
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
    assert_eq!(
        choice_of_the_go_program(&directory),
        Some(made.key.kid.clone())
    );
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

#[test]
fn a_key_of_the_go_program_is_read_and_written_the_same() {
    let key = PrivateJwk::from_file(NEW_PRIVATE.as_bytes(), &NEW_KID.parse().unwrap()).unwrap();
    assert_eq!(
        key.to_file().as_slice(),
        NEW_PRIVATE.as_bytes(),
        "and we would write it the same"
    );
    assert_eq!(key.public().to_file(), NEW_PUBLIC.as_bytes());
    Signer::new(&key).unwrap();
}
