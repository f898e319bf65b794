//! Signing: a key prepared once, and the queue that keeps slow RSA signatures from delaying
//! everything else.
//!
//! Invariants
//! - A [`Signer`] parses nothing when it signs: key and header are ready. It holds the only copy of
//!   the private key in use, unless a signing service keeps it.
//! - The header is `{"alg","kid","typ":"JWT"}`, in this order. Tokens that must not pass for the
//!   issuer's have another `typ` ([`Signer::sign_as`]).
//! - [`SigningQueue::sign`] never waits for room: a full queue is an error at once
//!   ([`SignError::Overloaded`]). Work whose caller has gone is skipped.
//! - While more callers wait, tokens are handed over in batches. None waits longer than a
//!   millisecond and one signature for its batch.
//! - Between two slow signatures an async worker runs other ready tasks, so nothing waits for more
//!   than one signature.
//!
//! `rotation.rs` and `current.rs` decide whether a signer may be used now.

use std::{
    collections::VecDeque,
    fmt,
    num::NonZero,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use aws_lc_rs::{rand::SystemRandom, signature::RSA_PKCS1_SHA256};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::{
    Algorithm, JwkError, KeyId, PrivateJwk, PublicJwk,
    jwk::KeyPair,
    remote::{RemoteFailure, RemoteKey},
};

/// Why there is no token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SignError {
    #[error("the crypto library refused to sign")]
    Crypto,
    #[error("more tokens are asked for than this machine can sign")]
    Overloaded,
    #[error(transparent)]
    Remote(RemoteFailure),
    #[error("the private key is with a signing service, which only a queue of signatures asks")]
    NotHere,
}

/// One private key, ready to sign.
pub struct Signer {
    public: PublicJwk,
    engine: Engine,
    /// The header in base64url, followed by a dot.
    header: String,
}

/// What makes the signatures.
enum Engine {
    Local(KeyPair),
    Remote(RemoteKey),
}

impl Signer {
    pub fn new(key: &PrivateJwk) -> Result<Self, JwkError> {
        let public = key.public().clone();
        Ok(Self {
            engine: Engine::Local(key.pair()?),
            header: header(&public, "JWT"),
            public,
        })
    }

    /// With a key that a signing service keeps. Only a [`SigningQueue`] signs with it.
    pub(crate) fn remote(key: RemoteKey) -> Self {
        let public = key.public().clone();
        Self {
            header: header(&public, "JWT"),
            engine: Engine::Remote(key),
            public,
        }
    }

    /// Why the key cannot sign now although it may, in words for readiness.
    pub fn trouble(&self) -> Option<String> {
        match &self.engine {
            Engine::Local(_) => None,
            Engine::Remote(key) => key.trouble().map(|trouble| trouble.to_string()),
        }
    }

    pub fn kid(&self) -> &KeyId {
        &self.public.kid
    }

    pub fn algorithm(&self) -> Algorithm {
        self.public.algorithm()
    }

    pub fn public(&self) -> &PublicJwk {
        &self.public
    }

    /// True if signing takes long enough (about a millisecond) to need a [`SigningQueue`].
    pub fn is_slow(&self) -> bool {
        matches!(self.engine, Engine::Local(KeyPair::Rsa(_)))
    }

    /// The compact JWS over `claims`, a JSON object.
    pub fn sign(&self, claims: &[u8]) -> Result<String, SignError> {
        self.sign_with_header(&self.header, claims)
    }

    /// As [`Self::sign`], with another `typ` (RFC 8725, 3.11) of letters, digits, `+`, `-` and `.`.
    pub fn sign_as(&self, typ: &str, claims: &[u8]) -> Result<String, SignError> {
        self.sign_with_header(&header(&self.public, typ), claims)
    }

    fn sign_with_header(&self, header: &str, claims: &[u8]) -> Result<String, SignError> {
        self.sign_unsigned(unsigned(header, claims))
    }

    /// Appends the signature.
    pub(crate) fn sign_unsigned(&self, mut token: String) -> Result<String, SignError> {
        let Engine::Local(pair) = &self.engine else {
            return Err(SignError::NotHere);
        };
        let message = token.as_bytes();
        let signature = match pair {
            KeyPair::Ec(pair) => URL_SAFE_NO_PAD.encode(
                pair.sign(&SystemRandom::new(), message)
                    .map_err(|_| SignError::Crypto)?,
            ),
            KeyPair::Ed25519(pair) => {
                URL_SAFE_NO_PAD.encode(pair.try_sign(message).map_err(|_| SignError::Crypto)?)
            }
            KeyPair::Rsa(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(
                    &RSA_PKCS1_SHA256,
                    &SystemRandom::new(),
                    message,
                    &mut signature,
                )
                .map_err(|_| SignError::Crypto)?;
                URL_SAFE_NO_PAD.encode(signature)
            }
        };
        token.push('.');
        token.push_str(&signature);
        Ok(token)
    }
}

/// What is signed: the header, which ends in a dot, and the claims in base64url. Has room for the
/// signature.
fn unsigned(header: &str, claims: &[u8]) -> String {
    let mut text = String::with_capacity(header.len() + (claims.len() + 512) * 4 / 3 + 8);
    text.push_str(header);
    URL_SAFE_NO_PAD.encode_string(claims, &mut text);
    text
}

/// The header in base64url, followed by a dot.
fn header(public: &PublicJwk, typ: &str) -> String {
    let kid = serde_json::Value::from(public.kid.as_str());
    let typ = serde_json::Value::from(typ);
    let header = format!(
        r#"{{"alg":"{}","kid":{kid},"typ":{typ}}}"#,
        public.algorithm()
    );
    let mut header = URL_SAFE_NO_PAD.encode(header);
    header.push('.');
    header
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer")
            .field("public", &self.public)
            .finish_non_exhaustive()
    }
}

/// A bounded queue and concurrency limit for slow (RSA) signatures.
///
/// Tokio tasks sign, as many as there are turns, while there is work: the thread that serves the
/// request may be one of Go's, which must not be held for long. While more callers wait, several
/// tokens are handed over in one [`Batch`]. Requests and answers then travel in batches, as they
/// do for fast keys. One by one they cost the network half as much again.
#[derive(Debug)]
pub struct SigningQueue(Arc<Queue>);

#[derive(Debug)]
struct Queue {
    jobs: Mutex<Jobs>,
    /// Tokens that wait or are being signed.
    reserved: AtomicUsize,
    capacity: usize,
    concurrency: usize,
    batch_timeout: Duration,
    batch: Batch,
}

/// Calls the function that hands several tokens over and so wakes their callers. Whoever polls the
/// callers may wake them as one.
pub type Batch = fn(&mut dyn FnMut());

#[derive(Debug, Default)]
struct Jobs {
    waiting: VecDeque<Job>,
    /// Number of tasks that are signing.
    signing: usize,
}

#[derive(Debug)]
struct Job {
    signer: Arc<Signer>,
    typ: Option<&'static str>,
    claims: Vec<u8>,
    answer: oneshot::Sender<Result<String, SignError>>,
}

/// How long a signed token may wait for its batch, not counting the signature in progress when the
/// time is up.
const BATCH_TIMEOUT: Duration = Duration::from_millis(1);

impl SigningQueue {
    /// One turn per core, and room for about a second's worth of tokens for each.
    pub fn new(batch: Batch) -> Self {
        let cores = thread::available_parallelism().map_or(1, NonZero::get);
        Self::build(cores, cores * 1024, BATCH_TIMEOUT, batch)
    }

    /// `concurrency` signatures at a time, and room for `capacity` tokens in all.
    pub fn with(concurrency: usize, capacity: usize) -> Self {
        Self::build(concurrency, capacity, BATCH_TIMEOUT, |work| work())
    }

    fn build(concurrency: usize, capacity: usize, batch_timeout: Duration, batch: Batch) -> Self {
        Self(Arc::new(Queue {
            jobs: Mutex::default(),
            reserved: AtomicUsize::new(0),
            capacity,
            concurrency,
            batch_timeout,
            batch,
        }))
    }

    /// Signs `claims`. Slow keys wait for their turn; fast ones sign at once on this thread. For a
    /// remote key its service is asked, within limits of its own ([`crate::remote`]).
    pub async fn sign(&self, signer: &Arc<Signer>, claims: &[u8]) -> Result<String, SignError> {
        self.sign_typed(signer, None, claims).await
    }

    /// As [`Self::sign`], with another `typ`.
    pub async fn sign_as(
        &self,
        signer: &Arc<Signer>,
        typ: &'static str,
        claims: &[u8],
    ) -> Result<String, SignError> {
        self.sign_typed(signer, Some(typ), claims).await
    }

    async fn sign_typed(
        &self,
        signer: &Arc<Signer>,
        typ: Option<&'static str>,
        claims: &[u8],
    ) -> Result<String, SignError> {
        if let Engine::Remote(key) = &signer.engine {
            let input = match typ {
                Some(typ) => unsigned(&header(&signer.public, typ), claims),
                None => unsigned(&signer.header, claims),
            };
            return key.sign(input).await;
        }
        if !signer.is_slow() {
            return sign(signer, typ, claims);
        }
        let _slot = self.0.reserve()?;
        let (answer, token) = oneshot::channel();
        self.0.put(Job {
            signer: Arc::clone(signer),
            typ,
            claims: claims.to_vec(),
            answer,
        });
        token.await.unwrap_or(Err(SignError::Crypto))
    }
}

fn sign(signer: &Signer, typ: Option<&str>, claims: &[u8]) -> Result<String, SignError> {
    match typ {
        Some(typ) => signer.sign_as(typ, claims),
        None => signer.sign(claims),
    }
}

impl Queue {
    fn reserve(&self) -> Result<QueueSlot<'_>, SignError> {
        let slot = QueueSlot(&self.reserved);
        let before = self.reserved.fetch_add(1, Ordering::AcqRel);
        if before < self.capacity {
            Ok(slot)
        } else {
            Err(SignError::Overloaded)
        }
    }

    fn put(self: &Arc<Self>, job: Job) {
        let mut jobs = self.jobs.lock();
        if jobs.waiting.len() >= self.capacity {
            // A caller that has gone has given its place back but left its job in the queue.
            jobs.waiting.retain(|job| !job.answer.is_closed());
        }
        jobs.waiting.push_back(job);
        if jobs.signing < self.concurrency {
            jobs.signing += 1;
            drop(jobs);
            let task = SigningTask {
                queue: Arc::clone(self),
                finished: false,
            };
            tokio::spawn(task.sign());
        }
    }
}

/// The right to sign, until the queue is empty.
struct SigningTask {
    queue: Arc<Queue>,
    finished: bool,
}

impl SigningTask {
    async fn sign(mut self) {
        while let Some(most) = self.batch_size() {
            let began = Instant::now();
            let mut signed = Vec::new();
            for _ in 0..most {
                // The worker first runs other ready tasks: a signature never follows another one
                // directly.
                tokio::task::yield_now().await;
                let Some(job) = self.queue.jobs.lock().waiting.pop_front() else {
                    break;
                };
                if !job.answer.is_closed() {
                    signed.push((sign(&job.signer, job.typ, &job.claims), job.answer));
                }
                if began.elapsed() >= self.queue.batch_timeout {
                    break;
                }
            }
            (self.queue.batch)(&mut || {
                for (token, answer) in signed.drain(..) {
                    // A caller that has gone meanwhile needs no token.
                    let _ = answer.send(token);
                }
            });
        }
    }

    /// How many of the waiting jobs to sign for the next batch: half of this turn's part, so that
    /// the other half is waiting while the answers travel. `None` ends the turn.
    fn batch_size(&mut self) -> Option<usize> {
        let mut jobs = self.queue.jobs.lock();
        let waiting = jobs.waiting.len();
        if waiting == 0 {
            // Done under the lock, so the next job to come begins a new turn.
            jobs.signing -= 1;
            self.finished = true;
        }
        (waiting > 0).then(|| waiting.div_ceil(2 * self.queue.concurrency))
    }
}

impl Drop for SigningTask {
    fn drop(&mut self) {
        if !self.finished {
            self.queue.jobs.lock().signing -= 1;
        }
    }
}

/// A place in the queue, held until dropped.
struct QueueSlot<'a>(&'a AtomicUsize);

impl Drop for QueueSlot<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{Arc, OnceLock},
        task::Poll,
    };

    use aws_lc_rs::signature::{ECDSA_P521_SHA512_FIXED, UnparsedPublicKey};
    use futures_util::future::join_all;
    use jsonwebtoken::{DecodingKey, Validation, jwk::Jwk};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::KeySpec;

    fn rsa() -> &'static PrivateJwk {
        static KEY: OnceLock<PrivateJwk> = OnceLock::new();
        KEY.get_or_init(|| {
            PrivateJwk::generate(
                "tb-1740172800".parse().unwrap(),
                KeySpec::Rs256 { bits: 2048 },
            )
            .unwrap()
        })
    }

    fn generate(spec: KeySpec) -> PrivateJwk {
        PrivateJwk::generate("tb-1740172800-x\"y".parse().unwrap(), spec).unwrap()
    }

    /// Verifies with another library, from nothing but the published JWK.
    fn verify(token: &str, public: &PublicJwk) -> serde_json::Value {
        if public.algorithm() == Algorithm::Es512 {
            return verify_es512(token, public);
        }
        let jwk: Jwk = serde_json::from_value(public.to_value()).unwrap();
        let mut rules = Validation::new(public.algorithm().as_str().parse().unwrap());
        rules.required_spec_claims.clear();
        rules.validate_exp = false;
        jsonwebtoken::decode::<serde_json::Value>(
            token,
            &DecodingKey::from_jwk(&jwk).unwrap(),
            &rules,
        )
        .unwrap()
        .claims
    }

    /// The library above does not know ES512. `tests/it/keys` has a foreign verifier for it.
    fn verify_es512(token: &str, public: &PublicJwk) -> serde_json::Value {
        let bytes = |text: &str| URL_SAFE_NO_PAD.decode(text).unwrap();
        let jwk = public.to_value();
        let [x, y] = ["x", "y"].map(|member| bytes(jwk[member].as_str().unwrap()));
        let (message, signature) = token.rsplit_once('.').unwrap();
        UnparsedPublicKey::new(&ECDSA_P521_SHA512_FIXED, [&[4], &x[..], &y].concat())
            .verify(message.as_bytes(), &bytes(signature))
            .unwrap();
        serde_json::from_slice(&bytes(message.split('.').nth(1).unwrap())).unwrap()
    }

    /// One key of every algorithm.
    fn one_of_each() -> Vec<PrivateJwk> {
        Algorithm::ALL
            .into_iter()
            .map(|algorithm| {
                let key = generate(KeySpec::new(algorithm, 2048));
                assert_eq!(key.public().algorithm(), algorithm);
                key
            })
            .collect()
    }

    #[test]
    fn tokens_of_every_kind_verify_elsewhere_and_their_header_is_exact() {
        for key in &one_of_each() {
            let signer = Signer::new(key).unwrap();
            let token = signer.sign(br#"{"iss":"tailbone"}"#).unwrap();
            assert_eq!(verify(&token, key.public())["iss"], "tailbone");
            let header = URL_SAFE_NO_PAD
                .decode(token.split('.').next().unwrap())
                .unwrap();
            let kid = serde_json::to_string(key.public().kid.as_str()).unwrap();
            assert_eq!(
                String::from_utf8(header).unwrap(),
                format!(
                    r#"{{"alg":"{}","kid":{kid},"typ":"JWT"}}"#,
                    key.public().algorithm()
                )
            );
        }
    }

    #[test]
    fn a_file_gives_back_the_key_and_holds_the_originals_members() {
        let members = |json: &[u8]| {
            let text = std::str::from_utf8(json).unwrap().to_owned();
            text.lines()
                .filter_map(|line| {
                    line.strip_prefix("  \"")?
                        .split('"')
                        .next()
                        .map(str::to_owned)
                })
                .collect::<Vec<_>>()
        };
        let name = rsa().public().kid.clone();
        let file = rsa().to_file();
        assert_eq!(
            members(&file),
            [
                "alg", "d", "dp", "dq", "e", "kid", "kty", "n", "p", "q", "qi"
            ]
        );
        assert_eq!(
            members(&rsa().public().to_file()),
            ["alg", "e", "kid", "kty", "n"]
        );
        let ec = ["alg", "crv", "d", "kid", "kty", "x", "y"];
        for spec in [KeySpec::Es256, KeySpec::Es384, KeySpec::Es512] {
            assert_eq!(members(&generate(spec).to_file()), ec);
        }
        for key in &one_of_each() {
            let again = PrivateJwk::from_file(&key.to_file(), &name).unwrap();
            assert_eq!(again.public(), key.public());
            assert_eq!(again.to_file(), key.to_file());
            assert_eq!(
                &PublicJwk::from_json(&key.public().to_file()).unwrap(),
                key.public()
            );
            let token = Signer::new(&again).unwrap().sign(b"{}").unwrap();
            verify(&token, key.public());
        }
    }

    #[test]
    fn keys_of_the_wrong_kind_or_size_are_refused_in_words_without_secrets() {
        let name = rsa().public().kid.clone();
        let refused = |json: &str| {
            PrivateJwk::from_file(json.as_bytes(), &name)
                .unwrap_err()
                .to_string()
        };
        let text = String::from_utf8(rsa().to_file().to_vec()).unwrap();
        let d = text
            .split("\"d\": \"")
            .nth(1)
            .unwrap()
            .split('"')
            .next()
            .unwrap();
        let broken = [
            refused(&text.replace("\"RS256\"", "\"RS512\"")),
            refused(&text.replace("\"RSA\"", "\"oct\"")),
            refused(&text.replace("\"dp\"", "\"xx\"")),
            refused(&text.replace(d, &format!("{d}=="))),
            refused(&text.replace(d, &d.replace('A', "B"))),
            refused(&text[..text.len() / 2]),
            refused(&text.replace("tb-1740172800", "../../tb-1740172800")),
            refused(&text.replace(
                &text.split("\"n\": \"").nth(1).unwrap()[..300],
                "AQAB\",\"z\":\"",
            )),
        ];
        for (message, words) in broken.iter().zip([
            "RS512",
            "oct",
            "`dp` is missing",
            "`d` is not base64url",
            "contradict",
            "ends early",
            "path separator",
            "bits",
        ]) {
            assert!(message.contains(words), "{message} should say {words}");
            assert!(!message.contains(&d[..20]), "{message}");
        }
        assert!(!format!("{:?}", rsa()).contains(&d[..20]));
        assert!(!format!("{:?}", Signer::new(rsa()).unwrap()).contains(&d[..20]));
    }

    #[test]
    fn d09_sizes_are_honoured_within_bounds() {
        let kid = || "tb-1".parse().unwrap();
        for bits in [0, 512, 1024, 2047, 8192, 16384] {
            let error = PrivateJwk::generate(kid(), KeySpec::Rs256 { bits }).unwrap_err();
            assert!(matches!(error, JwkError::UnusualSize(n) if n == bits));
        }
    }

    #[tokio::test]
    async fn the_queue_signs_and_refuses_when_full() {
        let signer = Arc::new(Signer::new(rsa()).unwrap());
        let queue = SigningQueue::with(1, 2);
        let tokens = join_all((0..50).map(|_| queue.sign(&signer, b"{}"))).await;
        let (signed, shed): (Vec<_>, Vec<_>) = tokens.into_iter().partition(Result::is_ok);
        assert_eq!(signed.len(), 2, "the queue holds two");
        assert!(shed.contains(&Err(SignError::Overloaded)));
        for token in signed {
            verify(&token.unwrap(), signer.public());
        }
        // When a turn has ended, another one can begin.
        let again = async {
            while queue.0.jobs.lock().signing > 0 {
                tokio::task::yield_now().await;
            }
            queue.sign(&signer, b"{}").await
        };
        let again = tokio::time::timeout(Duration::from_secs(20), again).await;
        again.expect("the turn does not end").unwrap();
        // Fast keys need no turn and are never refused.
        let quick = Arc::new(Signer::new(&generate(KeySpec::EdDsa)).unwrap());
        let tokens = join_all((0..50).map(|_| queue.sign(&quick, b"{}"))).await;
        assert!(tokens.iter().all(Result::is_ok));
    }

    #[tokio::test]
    async fn an_abandoned_request_frees_its_slot() {
        let signer = Arc::new(Signer::new(rsa()).unwrap());
        let queue = SigningQueue::with(1, 2);
        let mut gone: Vec<_> = (0..2)
            .map(|_| Box::pin(queue.sign(&signer, b"{}")))
            .collect();
        for one in &mut gone {
            assert!(futures_util::poll!(one).is_pending());
        }
        let refused = queue.sign(&signer, b"{}").await;
        assert_eq!(refused, Err(SignError::Overloaded));
        drop(gone);
        assert!(queue.sign(&signer, b"{}").await.is_ok());
        for _ in 0..100 {
            let gone = Box::pin(queue.sign(&signer, b"{}"));
            assert!(futures_util::poll!(gone).is_pending());
        }
        let kept = queue.0.jobs.lock().waiting.len();
        assert!(kept <= 2, "{kept} jobs that nobody waits for");
    }

    /// The batch is half of the waiting tokens, but a single one if signing takes long.
    #[tokio::test]
    async fn tokens_are_delivered_in_batches() {
        let signer = Arc::new(Signer::new(rsa()).unwrap());
        for (batch_timeout, at_once) in [
            (Duration::from_secs(3600), vec![4, 6, 7, 8]),
            (Duration::ZERO, (1..=8).collect()),
        ] {
            let queue = SigningQueue::build(1, 8, batch_timeout, |work| work());
            let mut waiting: Vec<_> = (0..8)
                .map(|_| Box::pin(queue.sign(&signer, b"{}")))
                .collect();
            let (mut done, mut seen) = (0, Vec::new());
            while done < 8 {
                let mut left = Vec::new();
                for mut one in waiting {
                    match futures_util::poll!(&mut one) {
                        Poll::Ready(token) => drop(token.unwrap()),
                        Poll::Pending => left.push(one),
                    }
                }
                if done < 8 - left.len() {
                    done = 8 - left.len();
                    seen.push(done);
                }
                waiting = left;
                tokio::task::yield_now().await;
            }
            assert_eq!(seen, at_once, "{batch_timeout:?}");
        }
    }

    /// One worker, a queue full of signatures, and a client on a socket that needs none.
    #[tokio::test]
    async fn others_are_served_between_two_signatures() {
        const SIGNATURES: usize = 64;
        let signer = Arc::new(Signer::new(rsa()).unwrap());
        let queue = Arc::new(SigningQueue::with(2, SIGNATURES));
        let done = Arc::new(AtomicUsize::new(0));
        for _ in 0..SIGNATURES {
            let (signer, queue, done) = (signer.clone(), queue.clone(), done.clone());
            tokio::spawn(async move {
                queue.sign(&signer, b"{}").await.unwrap();
                done.fetch_add(1, Ordering::Relaxed);
            });
        }
        let (mut near, mut far) = tokio::net::UnixStream::pair().unwrap();
        tokio::spawn(async move {
            let mut byte = [0];
            while far.read_exact(&mut byte).await.is_ok() {
                far.write_all(&byte).await.unwrap();
            }
        });
        for _ in 0..8 {
            near.write_all(b"x").await.unwrap();
            near.read_exact(&mut [0]).await.unwrap();
        }
        let done = done.load(Ordering::Relaxed);
        assert!((1..SIGNATURES).contains(&done), "{done} signed meanwhile");
    }
}
