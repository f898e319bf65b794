//! Hours of rotation, while verifiers with copies of the JWKS that last five minutes keep checking
//! every token. Time is injected.

use std::{path::Path, sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use jsonwebtoken::{DecodingKey, Validation, jwk::JwkSet};
use tailbone::{
    config::KeySpec,
    jwks::{FilePublisher, life::KeyLife},
    keys::{KeyPolicy, KeyStore},
};
use testkit::keys::policy;

use super::{at, kids};

const STEP: i64 = 15;
const CACHE: i64 = 300;
const LIFE: i64 = 1200;

/// Somebody else's service: fetches the document when its copy expires, never because of an unknown
/// key.
struct Verifier {
    set: JwkSet,
    fetched: Timestamp,
    seen: usize,
}

struct Token {
    jwt: String,
    kid: String,
    ends: Timestamp,
}

/// Servers, verifiers, and all tokens so far, while hours pass.
struct Simulation {
    jwks: std::path::PathBuf,
    replicas: Vec<KeyLife>,
    verifiers: Vec<Verifier>,
    tokens: Vec<Token>,
    checks: usize,
    refused: usize,
}

fn replica(directory: &Path, jwks: &Path, rotate_every: Option<u64>) -> KeyLife {
    let policy = KeyPolicy {
        rotate_every: rotate_every.map(Duration::from_secs),
        ..policy()
    };
    KeyLife::new(
        KeyStore::new(directory),
        Arc::new(FilePublisher::new(jwks)),
        policy,
        "tb",
        KeySpec::EdDsa,
    )
    .in_told_time()
}

impl Simulation {
    async fn new(folder: &Path, replicas: Vec<KeyLife>) -> Self {
        let jwks = folder.join("jwks.json");
        for life in &replicas {
            life.start(at(0)).await.unwrap();
        }
        let set: JwkSet = serde_json::from_slice(&std::fs::read(&jwks).unwrap()).unwrap();
        // Their copies expire at different times.
        let verifiers = (0..4).map(|n| Verifier {
            set: set.clone(),
            fetched: at(0) - SignedDuration::from_secs(n * 70),
            seen: 0,
        });
        Self {
            verifiers: verifiers.collect(),
            jwks,
            replicas,
            tokens: Vec::new(),
            checks: 0,
            refused: 0,
        }
    }

    /// One step: servers check their keys, tokens are issued, all verifiers check all tokens.
    async fn step(&mut self, now: Timestamp) {
        self.step_off(now, SignedDuration::ZERO).await;
    }

    /// The same while the servers' clock is off. A token must be valid for its lifetime, counted
    /// from the real time of issue.
    async fn step_off(&mut self, now: Timestamp, off: SignedDuration) {
        let theirs = now + off;
        for life in &self.replicas {
            life.poll(theirs).await.unwrap();
            let Ok(signer) = life.current_keys().signer() else {
                self.refused += 1;
                continue;
            };
            let jwt = signer
                .sign(format!(r#"{{"iat":{}}}"#, theirs.as_second()).as_bytes())
                .unwrap();
            self.tokens.push(Token {
                jwt,
                kid: signer.kid().to_string(),
                ends: now + SignedDuration::from_secs(LIFE),
            });
        }
        for verifier in &mut self.verifiers {
            if now.duration_since(verifier.fetched) >= SignedDuration::from_secs(CACHE) {
                verifier.set = serde_json::from_slice(&std::fs::read(&self.jwks).unwrap()).unwrap();
                verifier.fetched = now;
            }
            for token in self.tokens.iter().filter(|token| token.ends > now) {
                assert!(
                    verifier.set.find(&token.kid).is_some(),
                    "at {now} a verifier does not know {}",
                    token.kid
                );
                self.checks += 1;
            }
            for token in &self.tokens[verifier.seen..] {
                let key = DecodingKey::from_jwk(verifier.set.find(&token.kid).unwrap()).unwrap();
                let mut rules = Validation::new(jsonwebtoken::Algorithm::EdDSA);
                rules.required_spec_claims.clear();
                rules.validate_exp = false;
                jsonwebtoken::decode::<serde_json::Value>(&token.jwt, &key, &rules).unwrap();
            }
            verifier.seen = self.tokens.len();
        }
    }

    fn keys_used(&self) -> usize {
        let mut kids: Vec<_> = self.tokens.iter().map(|token| &token.kid).collect();
        kids.sort();
        kids.dedup();
        kids.len()
    }
}

#[tokio::test]
async fn d16_verifiers_never_meet_an_unknown_key_while_keys_rotate() {
    let folder = tempfile::tempdir().unwrap();
    let jwks = folder.path().join("jwks.json");
    let mut simulation = Simulation::new(
        folder.path(),
        vec![replica(&folder.path().join("a"), &jwks, Some(3600))],
    )
    .await;
    for step in 0..6 * 3600 / STEP {
        simulation.step(at(step * STEP)).await;
    }
    assert_eq!(simulation.refused, 0);
    assert!(simulation.keys_used() >= 5, "{}", simulation.keys_used());
    assert!(kids(&jwks).len() <= 3, "old keys go: {:?}", kids(&jwks));
    assert!(simulation.checks > 100_000);
}

#[tokio::test]
async fn d16_verifiers_know_every_key_over_restarts_and_rotations_by_hand() {
    let folder = tempfile::tempdir().unwrap();
    let (directory, jwks) = (folder.path().join("a"), folder.path().join("jwks.json"));
    let mut simulation =
        Simulation::new(folder.path(), vec![replica(&directory, &jwks, None)]).await;
    for step in 0..4 * 3600 / STEP {
        let now = at(step * STEP);
        if step % 7 == 3 {
            simulation.replicas[0] = replica(&directory, &jwks, None);
            simulation.replicas[0].start(now).await.unwrap();
        }
        if step % 150 == 20 {
            simulation.replicas[0].rotate(None, now).await.unwrap();
        }
        simulation.step(now).await;
    }
    assert_eq!(simulation.refused, 0);
    assert!(simulation.keys_used() >= 6, "{}", simulation.keys_used());
}

#[tokio::test]
async fn d16_verifiers_know_every_key_of_two_replicas_with_directories_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let jwks = folder.path().join("jwks.json");
    let mut simulation = Simulation::new(
        folder.path(),
        vec![replica(&folder.path().join("a"), &jwks, Some(2400))],
    )
    .await;
    for step in 0..4 * 3600 / STEP {
        let now = at(step * STEP);
        if step == 100 {
            // The second server joins while the first one signs: it waits until verifiers can know
            // its key.
            let second = replica(&folder.path().join("b"), &jwks, Some(3000));
            second.start(now).await.unwrap();
            assert!(second.current_keys().signer().is_err());
            simulation.replicas.push(second);
        }
        if step == 400 {
            simulation.replicas[1] = replica(&folder.path().join("b"), &jwks, Some(3000));
            simulation.replicas[1].start(now).await.unwrap();
        }
        simulation.step(now).await;
    }
    assert_eq!(
        i64::try_from(simulation.refused).unwrap(),
        (300 + 60) / STEP,
        "it refused while it waited, no longer"
    );
    assert!(simulation.keys_used() >= 8, "{}", simulation.keys_used());
}

#[tokio::test]
async fn d16_verifiers_know_every_key_of_two_replicas_that_share_a_directory() {
    let folder = tempfile::tempdir().unwrap();
    let (directory, jwks) = (
        folder.path().join("shared"),
        folder.path().join("jwks.json"),
    );
    let both = vec![
        replica(&directory, &jwks, Some(2400)),
        replica(&directory, &jwks, Some(2400)),
    ];
    let mut simulation = Simulation::new(folder.path(), both).await;
    for step in 0..4 * 3600 / STEP {
        simulation.step(at(step * STEP)).await;
        let signers: Vec<_> = simulation
            .replicas
            .iter()
            .map(|life| life.current_keys().signer().unwrap().kid().clone())
            .collect();
        if signers[0] != signers[1] {
            // The first server to check has switched already; the other one follows at its next
            // check.
            simulation.replicas[0].poll(at(step * STEP)).await.unwrap();
            simulation.replicas[1].poll(at(step * STEP)).await.unwrap();
        }
    }
    assert_eq!(simulation.refused, 0);
    let used = simulation.keys_used();
    assert!(
        (5..=8).contains(&used),
        "one successor at a time, not one of each: {used}"
    );
}

#[tokio::test]
async fn d16_a_clock_that_steps_a_day_and_comes_back_refuses_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let jwks = folder.path().join("jwks.json");
    let servers = vec![replica(&folder.path().join("a"), &jwks, Some(2400))];
    let mut simulation = Simulation::new(folder.path(), servers).await;
    // A little more than an hour with each clock. The clock steps when only tokens of the current
    // key are left: to a clock that is a day ahead, all others have expired, and their key is
    // removed (docs/design/key-life.md).
    let day = SignedDuration::from_hours(24);
    let zero = SignedDuration::ZERO;
    for (span, off) in [zero, day, zero, -day, zero].into_iter().enumerate() {
        let begin = 4200 * i64::try_from(span).unwrap();
        for second in (begin..begin + 4200).step_by(STEP as usize) {
            simulation.step_off(at(second), off).await;
        }
    }
    assert_eq!(simulation.refused, 0);
    // A key from a wrong future signs until that time has come; then it is rotated like any other.
    let before = simulation.keys_used();
    for second in (2 * 86_400..2 * 86_400 + 2 * 3600).step_by(STEP as usize) {
        simulation.step(at(second)).await;
    }
    assert_eq!(simulation.refused, 0);
    assert!(simulation.keys_used() >= before + 2, "{before}");
}

#[tokio::test]
async fn d16_a_clock_set_back_loses_no_token() {
    let folder = tempfile::tempdir().unwrap();
    let (directory, jwks) = (folder.path().join("a"), folder.path().join("jwks.json"));
    let life = replica(&directory, &jwks, None);
    life.start(at(100_000)).await.unwrap();
    life.sync(at(100_500)).await.unwrap();
    let old = life.current_keys().signer().unwrap().kid().to_string();
    // A token issued now ends at 101 700. The clock goes back a day, the server restarts, and the
    // key is rotated.
    let life = replica(&directory, &jwks, None);
    life.start(at(14_100)).await.unwrap();
    assert_eq!(life.current_keys().signer().unwrap().kid().as_str(), old);
    life.rotate(None, at(14_200)).await.unwrap();
    life.sync(at(15_000)).await.unwrap();
    assert_ne!(life.current_keys().signer().unwrap().kid().as_str(), old);
    for now in [20_000, 100_400, 101_700] {
        life.sync(at(now)).await.unwrap();
        assert!(kids(&jwks).contains(&old), "at {now}");
    }
    life.sync(at(100_500 + 600 + 1200 + 360)).await.unwrap();
    assert!(!kids(&jwks).contains(&old));
}
