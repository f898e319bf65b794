//! Azure Key Vault as the place of private keys: one list of promises for both ways, and whole key
//! sets with them. Microsoft's own clients look at the same vault.

use std::{fs, path::Path, sync::Arc};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use tailbone::{
    config::KeySpec,
    jwks::{FilePublisher, KeySet},
    keys::{
        Algorithm, KeyStore, PrivateJwk,
        azure::{SecretPerKey, SingleSecret, WrappedKeyFile, WrappingKey},
        sealing::{SealError, Sealing},
        tsiam::KeySource,
    },
};
use testkit::{
    key_vault::{KeyVault, VAULT, settings},
    keys::policy,
};

use super::{at, set::TSIAM_KID};

fn wrapping(vault: &KeyVault) -> WrappingKey {
    WrappingKey::new(&settings("wrapper"), &vault.client()).unwrap()
}

fn secrets(vault: &KeyVault) -> SecretPerKey {
    SecretPerKey::new(&settings("tsiam-key"), &vault.client()).unwrap()
}

/// Both ways, each as two processes have it.
fn both(vault: &KeyVault) -> [[Arc<dyn Sealing>; 2]; 2] {
    [
        [Arc::new(wrapping(vault)), Arc::new(wrapping(vault))],
        [Arc::new(secrets(vault)), Arc::new(secrets(vault))],
    ]
}

#[tokio::test]
async fn what_is_sealed_is_given_back_and_to_nobody_else() {
    let vault = KeyVault::start();
    let name = "tb-1740172800-abc_d".parse().unwrap();
    // Longer than any RSA key of the vault could wrap.
    let key = vec![b'k'; 3000];
    let ways = both(&vault);
    let mut all = Vec::new();
    for [one, other] in &ways {
        let sealed = one.seal(&name, &key).await.unwrap();
        assert!(!String::from_utf8_lossy(&sealed).contains("kkkk"));
        assert_eq!(*one.open(&sealed).await.unwrap(), key);
        // The vault's keys are rotated: what was sealed before is opened, and new ones are sealed.
        vault.trouble("rotate").await;
        assert_eq!(*other.open(&sealed).await.unwrap(), key);
        let again = other.seal(&name, &key).await.unwrap();
        assert_ne!(again, sealed);
        assert_eq!(*one.open(&again).await.unwrap(), key);
        // A vault that denies or is away has lost nothing.
        vault.trouble("deny").await;
        let denied = one.open(&sealed).await.unwrap_err();
        assert!(matches!(denied, SealError::Denied { .. }), "{denied}");
        vault.trouble("away").await;
        let away = one.open(&sealed).await.unwrap_err();
        assert!(matches!(away, SealError::Away { .. }), "{away}");
        assert!(!denied.is_final() && !away.is_final());
        vault.trouble("none").await;
        all.push(sealed);
    }
    // The one does not take what the other has sealed, nor what is damaged.
    for ([one, _], foreign) in ways.iter().zip(all.iter().rev()) {
        let refused = one.open(foreign).await.unwrap_err();
        assert!(matches!(refused, SealError::Foreign { .. }), "{refused}");
        assert!(one.open(b"{").await.unwrap_err().is_final());
    }
    let mut envelope: serde_json::Value = serde_json::from_slice(&all[0]).unwrap();
    envelope["nonce"] = URL_SAFE_NO_PAD.encode([0; 12]).into();
    let damaged = ways[0][0].open(envelope.to_string().as_bytes()).await;
    assert!(matches!(damaged.unwrap_err(), SealError::Lost { .. }));
    // Discarding twice is no error, and what was discarded is gone.
    for ([one, _], sealed) in ways.iter().zip(&all) {
        one.discard(sealed).await.unwrap();
        one.discard(sealed).await.unwrap();
    }
    let gone = ways[1][0].open(&all[1]).await.unwrap_err();
    assert!(matches!(gone, SealError::Lost { .. }), "{gone}");
}

#[tokio::test]
async fn microsofts_clients_open_what_is_sealed() {
    let vault = KeyVault::start();
    let name = "tb-1740172800".parse().unwrap();
    let envelope = wrapping(&vault)
        .seal(&name, b"a private key")
        .await
        .unwrap();
    assert_eq!(vault.check(&["open"], &envelope).unwrap(), "a private key");
    let reference = secrets(&vault).seal(&name, b"another one").await.unwrap();
    let reference: serde_json::Value = serde_json::from_slice(&reference).unwrap();
    let part = |member: &str| reference[member].as_str().unwrap();
    let command = ["get", part("secret"), part("secret_version")];
    assert_eq!(vault.check(&command, b"").unwrap(), "another one");
}

fn set(folder: &Path, sealing: Arc<dyn Sealing>, spec: KeySpec) -> KeySet {
    KeySet::new(
        "workload",
        KeyStore::new(folder.join("set")).with_sealing(sealing),
        Arc::new(FilePublisher::new(folder.join("jwks.json"))),
        &policy(),
        "tb",
        spec,
        &[KeySpec::Rs256 { bits: 2048 }],
    )
    .in_told_time()
}

fn kid(set: &KeySet, algorithm: Algorithm) -> String {
    set.signer(algorithm).unwrap().kid().to_string()
}

/// No file of the folder holds a private part.
fn nothing_in_the_clear(folder: &Path) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        if entry.path().is_dir() {
            nothing_in_the_clear(&entry.path());
        } else {
            let text = fs::read_to_string(entry.path()).unwrap_or_default();
            assert!(!text.contains("\"d\""), "{}", entry.path().display());
            let name = entry.file_name().into_string().unwrap();
            assert!(!name.ends_with(".private.jwk"), "{name}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_set_signs_over_restarts_and_goes_on_while_the_vault_is_away() {
    let vault = KeyVault::start();
    for way in 0..2 {
        let folder = tempfile::tempdir().unwrap();
        let open = || set(folder.path(), both(&vault)[way][0].clone(), KeySpec::Es256);
        let first = open();
        first.start(at(0)).await.unwrap();
        let kids = [Algorithm::Es256, Algorithm::Rs256].map(|of| kid(&first, of));
        nothing_in_the_clear(folder.path());
        vault.trouble("rotate").await;
        let second = open();
        second.start(at(10)).await.unwrap();
        for trouble in ["deny", "away"] {
            vault.trouble(trouble).await;
            // A running server has opened its keys.
            second.sync(at(20)).await.unwrap();
            let now = [Algorithm::Es256, Algorithm::Rs256].map(|of| kid(&second, of));
            assert_eq!(now, kids, "{trouble}");
            // One that starts says what is wrong, and makes no other keys.
            let refused = open().start(at(30)).await.unwrap_err().to_string();
            assert!(refused.contains(VAULT), "{refused}");
        }
        vault.trouble("none").await;
        let third = open();
        third.start(at(40)).await.unwrap();
        let now = [Algorithm::Es256, Algorithm::Rs256].map(|of| kid(&third, of));
        assert_eq!(now, kids);
        // A retired key is discarded.
        third.rotate(None, at(50)).await.unwrap();
        third.sync(at(500)).await.unwrap();
        assert_ne!(kid(&third, Algorithm::Es256), kids[0]);
        let sealed = fs::read_dir(folder.path().join("set/ES256")).unwrap();
        let sealed = sealed.flatten().filter(|entry| {
            let name = entry.file_name().into_string().unwrap();
            name.ends_with(".private.sealed.json")
        });
        assert_eq!(sealed.count(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tsiams_keys_in_the_vault_are_taken_over_and_left_there() {
    let vault = KeyVault::start();
    let new = |spec| PrivateJwk::generate(TSIAM_KID.parse().unwrap(), spec).unwrap();
    // A vault key of 2048 bits wraps 190 bytes at most: of tsiam's keys, Ed25519 alone.
    let (wrapped, secret) = (new(KeySpec::EdDsa), new(KeySpec::Es256));
    let blob = vault
        .check(&["wrap", "wrapper"], &wrapped.to_compact())
        .unwrap();
    let blob = URL_SAFE_NO_PAD.decode(blob).unwrap();
    vault
        .check(&["set", "tsiam-key"], &secret.to_compact())
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("key.bin");
    fs::write(&file, &blob).unwrap();
    // tsiam would be locked out from here on.
    vault.trouble("rotate").await;

    let of_file: Arc<dyn KeySource> = Arc::new(WrappedKeyFile::new(&file, wrapping(&vault)));
    let of_secret: Arc<dyn KeySource> = Arc::new(SingleSecret::new(secrets(&vault)));
    for (way, source, key) in [(0, of_file, &wrapped), (1, of_secret, &secret)] {
        let folder = tempfile::tempdir().unwrap();
        let algorithm = key.public().algorithm();
        let spec = KeySpec::new(algorithm, 2048);
        let open = || {
            let sealing = both(&vault)[way][0].clone();
            set(folder.path(), sealing, spec).taking_over(source.clone())
        };
        let first = open();
        first.start(jiff::Timestamp::now()).await.unwrap();
        assert_eq!(kid(&first, algorithm), TSIAM_KID);
        assert_eq!(first.signer(algorithm).unwrap().public(), key.public());
        nothing_in_the_clear(folder.path());
        let again = open();
        again.start(jiff::Timestamp::now()).await.unwrap();
        assert_eq!(kid(&again, algorithm), TSIAM_KID);
    }
    assert_eq!(fs::read(&file).unwrap(), blob);
    let left = vault.check(&["get", "tsiam-key"], b"").unwrap();
    assert_eq!(left.as_bytes(), &**secret.to_compact());

    // A key that is disabled, or a permission that is gone, is no key that is gone.
    vault.trouble("disable").await;
    let source = WrappedKeyFile::new(&file, wrapping(&vault));
    let refused = source.read().await.unwrap_err().to_string();
    assert!(refused.contains("denies"), "{refused}");
    vault.trouble("deny").await;
    let refused = SingleSecret::new(secrets(&vault)).read().await.unwrap_err();
    assert!(refused.to_string().contains("403"), "{refused}");
}
