//! What every place that keeps private keys must do: the key directory and each signing service.

use std::{
    collections::BTreeSet,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use futures_util::{FutureExt as _, future::BoxFuture, future::join_all};
use jiff::{SignedDuration, Timestamp};
use tailbone_keys::{
    KeyId, KeySpec, KeyState, KeyStore, SigningQueue,
    jwks::{FilePublisher, life::KeyLife},
    remote::{KeyReference, KeyService, RemoteLimits, RemoteServices, ServiceError, ServiceKind},
};
use tempfile::TempDir;

use crate::keys::policy;

/// A place that keeps private keys.
pub struct KeyPlace {
    /// `None`: the key directory.
    pub service: Option<Arc<dyn KeyService>>,
    /// What it can make.
    pub specs: Vec<KeySpec>,
}

/// Verifies a token with nothing but the published document: its own library, not ours.
pub type Verify = fn(token: &str, jwks: &[u8]) -> serde_json::Value;

/// The whole list.
pub async fn check_contract(place: &KeyPlace, verify: Verify) {
    for spec in &place.specs {
        let server = Server::new(place, *spec);
        a_token_verifies_and_has_the_usual_header(&server, verify).await;
        another_start_signs_with_the_same_key(&server, verify).await;
        many_callers_at_once_get_tokens(&server, verify).await;
        a_rotation_moves_on_to_another_key(&server, verify).await;
        the_private_half_is_only_where_it_belongs(&server);
    }
}

/// A server's keys in a folder of their own.
struct Server {
    folder: TempDir,
    spec: KeySpec,
    service: Option<Arc<Counted>>,
    life: KeyLife,
}

const CONCURRENCY: usize = 8;

impl Server {
    fn new(place: &KeyPlace, spec: KeySpec) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let counted = |service: &Arc<dyn KeyService>| Arc::new(Counted::new(service.clone()));
        let service = place.service.as_ref().map(counted);
        Self {
            life: life(folder.path(), spec, service.clone()),
            folder,
            spec,
            service,
        }
    }

    async fn sign(&self) -> String {
        let signer = self.life.current_keys().signer().unwrap();
        let queue = SigningQueue::with(2, 1024);
        queue.sign(&signer, br#"{"sub":"alice"}"#).await.unwrap()
    }

    fn published(&self) -> Vec<u8> {
        self.life.document().unwrap().document.to_bytes()
    }
}

fn life(folder: &Path, spec: KeySpec, service: Option<Arc<Counted>>) -> KeyLife {
    let limits = RemoteLimits {
        concurrency: CONCURRENCY,
        timeout: crate::patience(),
    };
    KeyLife::new(
        KeyStore::new(folder.join("keys")),
        Arc::new(FilePublisher::new(folder.join("jwks.json"))),
        policy(),
        "tb",
        spec,
    )
    .in_told_time()
    .with_remote(RemoteServices::new(
        service.map(|service| service as Arc<dyn KeyService>),
        Vec::new(),
        limits,
    ))
}

fn now() -> Timestamp {
    Timestamp::from_second(1_750_000_000).unwrap()
}

async fn a_token_verifies_and_has_the_usual_header(server: &Server, verify: Verify) {
    server.life.start(now()).await.unwrap();
    let signer = server.life.current_keys().signer().unwrap();
    // Several, because the numbers in an ECDSA signature are short now and then.
    for _ in 0..4 {
        let token = server.sign().await;
        assert_eq!(verify(&token, &server.published())["sub"], "alice");
        let header = token.split('.').next().unwrap();
        let header = String::from_utf8(URL_SAFE_NO_PAD.decode(header).unwrap()).unwrap();
        let wanted = format!(
            r#"{{"alg":"{}","kid":"{}","typ":"JWT"}}"#,
            signer.algorithm(),
            signer.kid()
        );
        assert_eq!(header, wanted);
    }
}

async fn another_start_signs_with_the_same_key(server: &Server, verify: Verify) {
    let again = Server {
        folder: tempfile::tempdir().unwrap(),
        life: life(server.folder.path(), server.spec, server.service.clone()),
        spec: server.spec,
        service: server.service.clone(),
    };
    again.life.start(now()).await.unwrap();
    let kid = |life: &KeyLife| life.current_keys().signer().unwrap().kid().clone();
    assert_eq!(kid(&again.life), kid(&server.life));
    verify(&again.sign().await, &server.published());
}

async fn many_callers_at_once_get_tokens(server: &Server, verify: Verify) {
    let tokens = join_all((0..64).map(|_| server.sign())).await;
    for token in &tokens {
        verify(token, &server.published());
    }
    if let Some(service) = &server.service {
        let most = service.most_in_progress.load(Ordering::SeqCst);
        assert!((2..=CONCURRENCY).contains(&most), "{most} at a time");
    }
}

async fn a_rotation_moves_on_to_another_key(server: &Server, verify: Verify) {
    let old = server.sign().await;
    let before = server.life.current_keys().signer().unwrap();
    let later = now() + SignedDuration::from_secs(3600);
    let made = server.life.rotate(None, later).await.unwrap();
    assert_eq!(made.key.state, Some(KeyState::Published));
    let waiting = server.life.current_keys().signer().unwrap();
    assert_eq!(waiting.kid(), before.kid(), "it signs while the next waits");
    let report = server
        .life
        .sync(later + SignedDuration::from_secs(600))
        .await
        .unwrap();
    assert!(!report.failed(), "{report:?}");
    let after = server.life.current_keys().signer().unwrap();
    assert_eq!(after.kid().as_str(), made.key.kid);
    assert_ne!(after.public().parts, before.public().parts);
    verify(&server.sign().await, &server.published());
    verify(&old, &server.published());
}

fn the_private_half_is_only_where_it_belongs(server: &Server) {
    let keys = server.folder.path().join("keys");
    let mut kinds = BTreeSet::new();
    for entry in std::fs::read_dir(keys).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if let Some((_, kind)) = name.split_once('.') {
            kinds.insert(kind.to_owned());
        }
        if server.service.is_some() {
            let text = std::fs::read_to_string(&path).unwrap();
            assert!(!text.contains("\"d\""), "{name}: {text}");
        }
    }
    let (here, elsewhere) = match server.service {
        None => ("private.jwk", "remote.json"),
        Some(_) => ("remote.json", "private.jwk"),
    };
    assert!(kinds.contains(here), "{kinds:?}");
    assert!(!kinds.contains(elsewhere), "{kinds:?}");
}

/// Counts how many signatures are in progress.
#[derive(Debug)]
struct Counted {
    service: Arc<dyn KeyService>,
    in_progress: AtomicUsize,
    most_in_progress: AtomicUsize,
}

impl Counted {
    fn new(service: Arc<dyn KeyService>) -> Self {
        Self {
            service,
            in_progress: AtomicUsize::new(0),
            most_in_progress: AtomicUsize::new(0),
        }
    }
}

impl KeyService for Counted {
    fn kind(&self) -> ServiceKind {
        self.service.kind()
    }

    fn make(&self, kid: KeyId, spec: KeySpec) -> BoxFuture<'_, Result<KeyReference, ServiceError>> {
        self.service.make(kid, spec)
    }

    fn sign<'a>(
        &'a self,
        key: &'a KeyReference,
        message: &'a [u8],
    ) -> BoxFuture<'a, Result<Vec<u8>, ServiceError>> {
        async move {
            let now = self.in_progress.fetch_add(1, Ordering::SeqCst) + 1;
            self.most_in_progress.fetch_max(now, Ordering::SeqCst);
            let outcome = self.service.sign(key, message).await;
            self.in_progress.fetch_sub(1, Ordering::SeqCst);
            outcome
        }
        .boxed()
    }
}
