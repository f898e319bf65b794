//! Keys that signing services keep: one list of promises for all of them, and what happens when a
//! service is away, sealed, or no longer lets us sign.

use std::{path::Path, sync::Arc, time::Duration};

use reqwest::Method;
use serde_json::json;
use tailbone::{
    config::KeySpec,
    jwks::{FilePublisher, life::KeyLife},
    keys::{
        KeyStore, NoSigner, SignError, SigningQueue,
        remote::{
            RemoteLimits, RemoteServices, Trouble,
            vault::{Vault, VaultSettings, VaultToken},
        },
    },
};
use testkit::{
    eventually,
    keys::policy,
    openbao::OpenBao,
    signer_contract::{KeyPlace, check_contract},
};

use super::{at, names, verify};

const RSA: KeySpec = KeySpec::Rs256 { bits: 2048 };

#[tokio::test(flavor = "multi_thread")]
async fn the_key_directory_keeps_the_list() {
    let place = KeyPlace {
        service: None,
        specs: vec![KeySpec::Es256, KeySpec::Es384, RSA, KeySpec::EdDsa],
    };
    check_contract(&place, verify).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn openbao_keeps_the_list() {
    let bao = OpenBao::start().await;
    let place = KeyPlace {
        service: Some(Arc::new(Vault::new(bao.settings()))),
        specs: vec![KeySpec::Es256, KeySpec::Es384, RSA, KeySpec::EdDsa],
    };
    check_contract(&place, verify).await;
}

/// A server's keys in a folder, which Vault makes.
fn vault_life(folder: &Path, settings: VaultSettings) -> KeyLife {
    let limits = RemoteLimits {
        concurrency: 8,
        timeout: Duration::from_secs(2),
    };
    KeyLife::new(
        KeyStore::new(folder.join("keys")),
        Arc::new(FilePublisher::new(folder.join("jwks.json"))),
        policy(),
        "tb",
        KeySpec::Es256,
    )
    .with_remote(RemoteServices::new(
        Some(Arc::new(Vault::new(settings))),
        Vec::new(),
        limits,
    ))
}

async fn sign(life: &KeyLife) -> Result<String, SignError> {
    let signer = life.current_keys().signer().unwrap();
    SigningQueue::with(1, 64).sign(&signer, b"{}").await
}

/// Asks until it is refused for this reason.
async fn refused_for(life: &KeyLife, wanted: Trouble) {
    eventually(&format!("{wanted}"), async || match sign(life).await {
        Err(SignError::Remote(failure)) if failure.trouble == wanted => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
}

/// Asks until there is a token again, which a probe must have found out.
async fn signs_again(life: &KeyLife) {
    let token = eventually("a token", async || {
        sign(life).await.map_err(|error| error.to_string())
    })
    .await;
    verify(&token, &life.document().unwrap().document.to_bytes());
    let signer = life.current_keys().signer().unwrap();
    assert_eq!(signer.trouble(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vault_that_is_sealed_killed_or_loses_the_key_is_told_and_forgiven() {
    let mut bao = OpenBao::start().await;
    let folder = tempfile::tempdir().unwrap();
    let life = vault_life(folder.path(), bao.settings());
    life.start(at(0)).await.unwrap();
    signs_again(&life).await;

    bao.seal().await;
    refused_for(&life, Trouble::Sealed).await;
    let signer = life.current_keys().signer().unwrap();
    assert_eq!(signer.trouble().unwrap(), "the signing service is sealed");
    // A rotation fails, and the key that signs stays.
    let error = life.rotate(None, at(3600)).await.unwrap_err().to_string();
    assert!(error.contains("sealed"), "{error}");
    assert!(life.current_keys().signer().is_ok());
    bao.unseal().await;
    signs_again(&life).await;

    bao.kill();
    refused_for(&life, Trouble::Away).await;
    // A server that starts meanwhile knows its keys and publishes them.
    let other = vault_life(folder.path(), bao.settings());
    other.start(at(3600)).await.unwrap();
    refused_for(&other, Trouble::Away).await;
    bao.run().await;
    bao.unseal().await;
    signs_again(&life).await;
    signs_again(&other).await;

    // The version that signs is disabled.
    let rotate = "transit/keys/tailbone-es256/rotate";
    bao.ok(Method::POST, rotate, json!({})).await;
    let config = "transit/keys/tailbone-es256/config";
    let least = json!({"min_encryption_version": 2});
    bao.ok(Method::POST, config, least).await;
    refused_for(&life, Trouble::Disabled).await;
    let least = json!({"min_encryption_version": 0});
    bao.ok(Method::POST, config, least).await;
    signs_again(&life).await;

    // Another key takes the name.
    let deletable = json!({"deletion_allowed": true});
    bao.ok(Method::POST, config, deletable).await;
    let key = "transit/keys/tailbone-es256";
    bao.ok(Method::DELETE, key, json!({})).await;
    refused_for(&life, Trouble::Disabled).await;
    bao.ok(Method::POST, key, json!({"type": "ecdsa-p256"}))
        .await;
    refused_for(&life, Trouble::Mismatch).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vault_token_may_lose_its_permission_and_its_file_may_change() {
    let bao = OpenBao::start().await;
    let folder = tempfile::tempdir().unwrap();
    let sign_only: &[(&str, &[&str])] = &[("transit/sign/+", &["update"])];
    bao.allow(sign_only).await;
    let file = folder.path().join("token");
    std::fs::write(&file, format!("{}\n", bao.token().await)).unwrap();
    let settings = VaultSettings {
        token: VaultToken::File(file.clone()),
        ..bao.settings()
    };
    let life = vault_life(folder.path(), settings);

    // It may not make keys.
    let report = life.start(at(0)).await.unwrap();
    assert!(report.failed());
    let Err(none) = life.current_keys().signer() else {
        panic!("a key")
    };
    assert_eq!(none, NoSigner::NotMade(Trouble::Forbidden));
    assert!(!folder.path().join("jwks.json").exists());

    // The next pass tries again.
    bao.allow(&[
        ("transit/sign/+", &["update"]),
        ("transit/keys/+", &["read", "create", "update"]),
        ("transit/keys/+/rotate", &["update"]),
    ])
    .await;
    life.sync(at(1)).await.unwrap();
    signs_again(&life).await;

    // From now on it needs the permission to sign alone.
    bao.allow(sign_only).await;
    signs_again(&life).await;
    let error = life.rotate(None, at(3600)).await.unwrap_err().to_string();
    assert!(error.contains("permission denied"), "{error}");
    signs_again(&life).await;

    bao.allow(&[("transit/*", &["deny"])]).await;
    refused_for(&life, Trouble::Forbidden).await;
    bao.allow(sign_only).await;
    signs_again(&life).await;

    // The token ends; whoever keeps the file fresh writes the next one.
    let old = std::fs::read_to_string(&file).unwrap();
    let next = bao.token().await;
    std::fs::write(&file, &next).unwrap();
    let revoke = json!({"token": old.trim()});
    bao.ok(Method::POST, "auth/token/revoke", revoke).await;
    sign(&life).await.unwrap();
    let remark = |name: &String| std::fs::read_to_string(folder.path().join("keys").join(name));
    for name in names(&folder.path().join("keys")) {
        assert!(!remark(&name).unwrap().contains(&next), "{name}");
    }
}
