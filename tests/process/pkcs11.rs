//! Keys on a token of SoftHSM. SoftHSM finds its tokens by a variable of the process.

use std::{process::Command, sync::Arc, time::Duration};

use jsonwebtoken::{DecodingKey, Validation, jwk::JwkSet};
use tailbone::{
    config::{KeySpec, Secret},
    jwks::{FilePublisher, life::KeyLife},
    keys::{
        KeyStore, SignError, SigningQueue,
        remote::{
            KeyService as _, RemoteLimits, RemoteServices, ServiceError, Trouble,
            pkcs11::{Pkcs11Settings, Token},
        },
    },
};
use testkit::{
    keys::policy,
    signer_contract::{KeyPlace, check_contract},
    softhsm,
};

use super::run_again;

/// Verifies as an outsider does, with only the document.
fn verify(token: &str, jwks: &[u8]) -> serde_json::Value {
    let set: JwkSet = serde_json::from_slice(jwks).unwrap();
    let header = jsonwebtoken::decode_header(token).unwrap();
    let jwk = set.find(header.kid.as_deref().unwrap()).unwrap();
    let mut rules = Validation::new(header.alg);
    rules.required_spec_claims.clear();
    rules.validate_exp = false;
    jsonwebtoken::decode(token, &DecodingKey::from_jwk(jwk).unwrap(), &rules)
        .unwrap()
        .claims
}

fn with_softhsm(body: impl Future<Output = ()>) {
    let folder = tempfile::tempdir().unwrap();
    let (name, path) = softhsm::variable(folder.path());
    let mut again = Command::new(std::env::current_exe().unwrap());
    again.env(name, path);
    run_again(again, body);
}

#[test]
fn a_token_keeps_the_list() {
    with_softhsm(async {
        let place = KeyPlace {
            service: Some(Arc::new(Token::new(softhsm::new_token()))),
            specs: vec![
                KeySpec::Es256,
                KeySpec::Es384,
                KeySpec::Rs256 { bits: 2048 },
            ],
        };
        check_contract(&place, verify).await;
    });
}

#[test]
fn what_is_wrong_with_a_token_is_told() {
    with_softhsm(async {
        let settings = softhsm::new_token();
        let other = softhsm::new_token();
        let make = async |settings: Pkcs11Settings| {
            let kid = "tb-1750000000".parse().unwrap();
            Token::new(settings).make(kid, KeySpec::Es256).await
        };
        let told = |outcome: Result<_, ServiceError>| match outcome {
            Err(error) => (error.trouble, error.detail),
            Ok(_) => panic!("a key"),
        };
        let (trouble, words) = told(
            make(Pkcs11Settings {
                module: "/nowhere.so".into(),
                ..settings.clone()
            })
            .await,
        );
        assert_eq!(trouble, Trouble::Away);
        assert!(words.contains("/nowhere.so"), "{words}");
        let (trouble, words) = told(
            make(Pkcs11Settings {
                token: "another".into(),
                ..settings.clone()
            })
            .await,
        );
        assert_eq!(trouble, Trouble::Away);
        assert!(words.contains("another"), "{words}");

        // A PIN that is wrong is tried once, however often a signature is asked for.
        let wrong = Token::new(Pkcs11Settings {
            pin: Secret::new("9999"),
            ..settings.clone()
        });
        let kid = || "tb-1750000000".parse().unwrap();
        let (trouble, words) = told(wrong.make(kid(), KeySpec::Es256).await);
        assert_eq!(trouble, Trouble::Forbidden);
        assert!(words.contains("PinIncorrect"), "{words}");
        let (trouble, words) = told(wrong.make(kid(), KeySpec::Es256).await);
        assert_eq!(trouble, Trouble::Forbidden);
        assert!(words.contains("not tried again"), "{words}");
        assert!(!words.contains("9999"), "{words}");

        // A token that does not have the key.
        let key = make(settings).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let store = KeyStore::new(folder.path().join("keys"));
        store.create().unwrap();
        let now = jiff::Timestamp::from_second(1_750_000_000).unwrap();
        let history = tailbone::keys::History::new(now);
        store.add_reference(&key, &history).unwrap();
        let limits = RemoteLimits {
            concurrency: 4,
            timeout: Duration::from_secs(10),
        };
        let publisher = Arc::new(FilePublisher::new(folder.path().join("jwks.json")));
        let life = KeyLife::new(store, publisher, policy(), "tb", KeySpec::Es256).with_remote(
            RemoteServices::new(Some(Arc::new(Token::new(other))), Vec::new(), limits),
        );
        life.start(now).await.unwrap();
        let signer = life.current_keys().signer().unwrap();
        match SigningQueue::with(1, 8).sign(&signer, b"{}").await {
            Err(SignError::Remote(failure)) => assert_eq!(failure.trouble, Trouble::Disabled),
            other => panic!("{other:?}"),
        }
    });
}
