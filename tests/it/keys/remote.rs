//! Keys that signing services keep: one list of promises for all of them, and what happens when a
//! service is away, sealed, or no longer lets us sign.

use std::{path::Path, sync::Arc, time::Duration};

use futures_util::{FutureExt as _, future::BoxFuture};
use prometheus_client::{encoding::text::encode, registry::Registry};
use reqwest::Method;
use serde_json::json;
use tailbone::{
    config::KeySpec,
    jwks::{FilePublisher, KeySet, life::KeyLife},
    keys::{
        History, KeyId, KeyStore, NoSigner, SignError, SigningQueue,
        remote::{
            KeyLocation, KeyReference, KeyService, RemoteLimits, RemoteServices, ServiceError,
            ServiceKind, Trouble,
            azure::{self, KeyVaultSettings},
            vault::{Vault, VaultSettings, VaultToken},
        },
    },
    telemetry::meter::Meter,
};
use testkit::{
    eventually,
    fault_proxy::{Fault, FaultProxy},
    key_vault::{self, KeyVault, VAULT},
    keys::policy,
    moto::{self, Moto},
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

#[tokio::test(flavor = "multi_thread")]
async fn aws_kms_keeps_the_list() {
    let moto = Moto::start();
    let place = KeyPlace {
        service: Some(Arc::new(moto.service())),
        specs: vec![KeySpec::Es256, KeySpec::Es384, RSA],
    };
    check_contract(&place, verify).await;
    let folder = tempfile::tempdir().unwrap();
    let life = life_with(folder.path(), Arc::new(moto.service()));
    let error = life.generate(Some(KeySpec::EdDsa), at(0)).await;
    let error = error.unwrap_err().to_string();
    assert!(error.contains("keys.algorithm"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_kms_says_is_told() {
    let moto = Moto::start();
    let proxy = FaultProxy::start(moto.addr).await;
    let folder = tempfile::tempdir().unwrap();
    let life = life_with(folder.path(), Arc::new(moto::service_at(proxy.addr)));
    life.start(at(0)).await.unwrap();
    signs_again(&life).await;
    let answer = |status, code: &str| Fault::Answer {
        status,
        body: json!({"__type": code, "message": "x"}).to_string().into(),
    };
    for (fault, trouble) in [
        (answer(400, "DisabledException"), Trouble::Disabled),
        (answer(400, "KMSInvalidStateException"), Trouble::Disabled),
        (answer(400, "AccessDeniedException"), Trouble::Forbidden),
        (answer(400, "ThrottlingException"), Trouble::Throttled),
        (answer(500, "KMSInternalException"), Trouble::Away),
        (Fault::DropAfter, Trouble::Away),
        (Fault::Delay(Duration::from_secs(60)), Trouble::Slow),
    ] {
        proxy.always("POST", fault);
        refused_for(&life, trouble).await;
        proxy.heal();
        signs_again(&life).await;
    }
    // A single throttled call is repeated, and the caller does not notice.
    proxy.once("POST", answer(400, "ThrottlingException"));
    sign(&life).await.unwrap();
}

fn key_vault(vault: &KeyVault) -> Arc<dyn KeyService> {
    let settings = KeyVaultSettings {
        vault: VAULT.into(),
        key: "tailbone-{algorithm}".into(),
    };
    Arc::new(azure::KeyVault::with_client(
        settings,
        key_vault::identity(),
        vault.client(),
    ))
}

#[tokio::test(flavor = "multi_thread")]
async fn azure_key_vault_keeps_the_list() {
    let vault = KeyVault::start();
    let place = KeyPlace {
        service: Some(key_vault(&vault)),
        specs: vec![KeySpec::Es256, KeySpec::Es384, RSA],
    };
    check_contract(&place, verify).await;
    // Microsoft's own client signs with the keys that were made, and verifies that.
    for (algorithm, bytes) in [("ES256", 32), ("ES384", 48), ("RS256", 32)] {
        let name = format!("tailbone-{}", algorithm.to_lowercase());
        let digest = "ab".repeat(bytes);
        let told = vault.check(&["sign", &name, algorithm, &digest], b"");
        assert_eq!(told.as_deref(), Ok("True"), "{algorithm}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_azure_key_vault_says_is_told() {
    let vault = KeyVault::start();
    let folder = tempfile::tempdir().unwrap();
    let life = life_with(folder.path(), key_vault(&vault));
    life.start(at(0)).await.unwrap();
    signs_again(&life).await;
    for (what, trouble, end) in [
        ("deny", Trouble::Forbidden, "none"),
        ("away", Trouble::Away, "none"),
        ("disable", Trouble::Disabled, "enable"),
    ] {
        vault.trouble(what).await;
        refused_for(&life, trouble).await;
        vault.trouble(end).await;
        signs_again(&life).await;
    }
    // Another version of the vault's key changes nothing for the one that signs.
    vault.trouble("rotate").await;
    sign(&life).await.unwrap();
}

/// What the meter shows for this series.
fn counted(meter: &Meter, series: &str) -> u64 {
    let mut registry = Registry::default();
    meter.register(&mut registry);
    let mut text = String::new();
    encode(&mut text, &registry).unwrap();
    let value = text.lines().find_map(|line| line.strip_prefix(series));
    value.map_or(0, |value| value.trim().parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_set_whose_service_is_away_at_the_start_says_so_and_gets_its_keys_later() {
    let vault = KeyVault::start();
    let folder = tempfile::tempdir().unwrap();
    let meter = Meter::default();
    let limits = RemoteLimits::default();
    let services = RemoteServices::new(Some(key_vault(&vault)), Vec::new(), limits);
    let set = KeySet::new(
        "workload",
        KeyStore::new(folder.path().join("set")),
        Arc::new(FilePublisher::new(folder.path().join("jwks.json"))),
        &policy(),
        "tb",
        KeySpec::Es256,
        &[KeySpec::Es384],
    )
    .in_told_time()
    .with_remote(&services.counted_by(&meter));
    vault.trouble("away").await;
    let reports = set.start(at(0)).await.unwrap();
    assert_eq!(reports.len(), 2);
    for (algorithm, report) in &reports {
        let refused = set.signer(*algorithm).unwrap_err();
        assert_eq!(refused, NoSigner::NotMade(Trouble::Away), "{algorithm}");
        let words = "the signing service made no key: the signing service cannot be reached";
        assert_eq!(report.no_signer.as_deref(), Some(words), "{algorithm}");
    }
    let made = r#"key_service_calls_total{service="azure",call="make",result="#;
    assert!(counted(&meter, &format!("{made}\"away\"}}")) >= 2);

    // A pass of the running server makes both, and neither waits for the other.
    vault.trouble("none").await;
    set.poll(at(60)).await.unwrap();
    let queue = SigningQueue::with(1, 64);
    for (algorithm, _) in reports {
        let signer = set.signer(algorithm).unwrap();
        let token = queue.sign(&signer, b"{}").await.unwrap();
        verify(&token, &set.document().unwrap().document.to_bytes());
    }
    assert_eq!(counted(&meter, &format!("{made}\"done\"}}")), 2);
    let signed = r#"key_service_calls_total{service="azure",call="sign",result="done"}"#;
    assert_eq!(counted(&meter, signed), 2);

    // One key's callers are refused, which is told until its probe gets a signature.
    let refusing = r#"key_service_refusing{service="azure"}"#;
    assert_eq!(counted(&meter, refusing), 0);
    vault.trouble("deny").await;
    let signer = set.signer(set.default_algorithm()).unwrap();
    queue.sign(&signer, b"{}").await.unwrap_err();
    assert_eq!(counted(&meter, refusing), 1);
    vault.trouble("none").await;
    eventually("a probe", async || match counted(&meter, refusing) {
        0 => Ok(()),
        _ => Err("still refused".to_owned()),
    })
    .await;
    let probed = r#"key_service_calls_total{service="azure",call="probe",result="done"}"#;
    assert_eq!(counted(&meter, probed), 1);
    let time = r#"key_service_call_seconds_count{service="azure",call="sign"}"#;
    assert_eq!(counted(&meter, time), 3);
}

/// A server's keys in a folder, which Vault makes.
fn vault_life(folder: &Path, settings: VaultSettings) -> KeyLife {
    life_with(folder, Arc::new(Vault::new(settings)))
}

fn life_with(folder: &Path, service: Arc<dyn KeyService>) -> KeyLife {
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
    .in_told_time()
    .with_remote(RemoteServices::new(Some(service), Vec::new(), limits))
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

/// What a token costs beside the service's own time. Run by hand, on a quiet machine:
/// `cargo test --release --test it -- --ignored --nocapture added_time`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures; docs/design/remote-signers.md has the figures"]
async fn added_time_of_a_remote_signature() {
    const MESSAGE: &[u8] = &[b'a'; 400];
    let bao = OpenBao::start().await;
    let vault: Arc<dyn KeyService> = Arc::new(Vault::new(bao.settings()));
    for (name, service) in [
        ("5 ms away", Arc::new(Distant::new()) as Arc<dyn KeyService>),
        ("OpenBao on this machine", vault),
    ] {
        let made = service.make("tb-1750000000".parse().unwrap(), KeySpec::Es256);
        let key = made.await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let store = KeyStore::new(folder.path().join("keys"));
        store.create().unwrap();
        store.add_reference(&key, &History::new(at(0))).unwrap();
        let life = KeyLife::new(
            store,
            Arc::new(FilePublisher::new(folder.path().join("jwks.json"))),
            policy(),
            "tb",
            KeySpec::Es256,
        )
        .in_told_time()
        .with_remote(RemoteServices::new(
            Some(service.clone()),
            Vec::new(),
            RemoteLimits::default(),
        ));
        life.start(at(0)).await.unwrap();
        let signer = life.current_keys().signer().unwrap();
        let queue = Arc::new(SigningQueue::with(2, 1024));
        for callers in [1, 8, 64] {
            // In turns, so that what else the machine does meets both.
            let (mut own, mut whole) = (Vec::new(), Vec::new());
            for _ in 0..5 {
                let (service, key) = (service.clone(), Arc::new(key.clone()));
                own.extend(
                    times(callers, move || {
                        let (service, key) = (service.clone(), key.clone());
                        async move { drop(service.sign(&key, MESSAGE).await.unwrap()) }
                    })
                    .await,
                );
                let (queue, signer) = (queue.clone(), signer.clone());
                whole.extend(
                    times(callers, move || {
                        let (queue, signer) = (queue.clone(), signer.clone());
                        async move { drop(queue.sign(&signer, MESSAGE).await.unwrap()) }
                    })
                    .await,
                );
            }
            let [own, whole] = [own, whole].map(median);
            println!(
                "{name}, {callers} callers: {own:?} alone, {whole:?} with us: {:?} added",
                whole.saturating_sub(own)
            );
        }
    }
}

/// The time of each call, by this number of callers at once.
async fn times<F>(callers: usize, call: impl Fn() -> F + Clone + Send + 'static) -> Vec<Duration>
where
    F: Future<Output = ()> + Send,
{
    let caller = || {
        let call = call.clone();
        tokio::spawn(async move {
            let mut times = Vec::new();
            for _ in 0..(1024 / callers).max(32) {
                let began = std::time::Instant::now();
                call().await;
                times.push(began.elapsed());
            }
            times
        })
    };
    let callers: Vec<_> = (0..callers).map(|_| caller()).collect();
    let mut times = Vec::new();
    for caller in callers {
        times.extend(caller.await.unwrap());
    }
    times
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// A service that signs 5 ms away, at whatever rate it is asked.
#[derive(Debug)]
struct Distant(ecdsa::Pair);

impl Distant {
    fn new() -> Self {
        Self(ecdsa::Pair::new())
    }
}

impl KeyService for Distant {
    fn kind(&self) -> ServiceKind {
        ServiceKind::Vault
    }

    fn make(&self, kid: KeyId, _: KeySpec) -> BoxFuture<'_, Result<KeyReference, ServiceError>> {
        let location = KeyLocation {
            key: "distant".into(),
            service: ServiceKind::Vault,
            version: "1".into(),
        };
        let public = self.0.public(kid);
        async { Ok(KeyReference { location, public }) }.boxed()
    }

    fn sign<'a>(
        &'a self,
        _: &'a KeyReference,
        message: &'a [u8],
    ) -> BoxFuture<'a, Result<Vec<u8>, ServiceError>> {
        async {
            tokio::time::sleep(Duration::from_millis(5)).await;
            Ok(self.0.sign(message))
        }
        .boxed()
    }
}

/// A key pair that signs any message, as a service does.
mod ecdsa {
    use aws_lc_rs::{
        rand::SystemRandom,
        signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
    };
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
    use tailbone::keys::{KeyId, PublicJwk};

    #[derive(Debug)]
    pub(super) struct Pair(EcdsaKeyPair);

    impl Pair {
        pub(super) fn new() -> Self {
            Self(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap())
        }

        pub(super) fn public(&self, kid: KeyId) -> PublicJwk {
            let point = self.0.public_key().as_ref();
            let [x, y] = [&point[1..33], &point[33..]].map(|part| URL_SAFE_NO_PAD.encode(part));
            let jwk = serde_json::json!({"kid": kid.as_str(), "kty": "EC", "crv": "P-256", "x": x, "y": y});
            PublicJwk::from_json(jwk.to_string().as_bytes()).unwrap()
        }

        pub(super) fn sign(&self, message: &[u8]) -> Vec<u8> {
            let signature = self.0.sign(&SystemRandom::new(), message).unwrap();
            signature.as_ref().to_vec()
        }
    }
}
