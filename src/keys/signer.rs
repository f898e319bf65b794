//! Signing: a key prepared once, and the threads that keep RSA off the async workers.
//!
//! Invariants
//! - A [`Signer`] parses nothing when it signs: key and header are ready. It holds the only copy of the private key in use.
//! - The header is `{"alg","kid","typ":"JWT"}`, in this order.
//! - [`SigningPool::sign`] never waits for room: a full queue is an error at once ([`SignError::Overloaded`]), and work whose
//!   caller has gone is not done.
//!
//! Whether a signer may be used now is not decided here: see `rotation.rs` and `ring.rs`.

use std::{
    collections::VecDeque,
    fmt,
    num::NonZero,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
};

use aws_lc_rs::{rand::SystemRandom, signature::RSA_PKCS1_SHA256};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use tokio::sync::oneshot;

use super::{Algorithm, JwkError, KeyId, PrivateJwk, PublicJwk, jwk::KeyPair};

/// Why no token came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SignError {
    #[error("the signing threads have ended")]
    Closed,
    #[error("the crypto library refused to sign")]
    Crypto,
    #[error("more tokens are asked for than this machine can sign")]
    Overloaded,
}

/// One private key, ready to sign.
pub struct Signer {
    public: PublicJwk,
    pair: KeyPair,
    /// The header in base64url with its dot.
    head: String,
}

impl Signer {
    pub fn new(key: &PrivateJwk) -> Result<Self, JwkError> {
        let public = key.public().clone();
        let kid = serde_json::Value::from(public.kid.as_str());
        let header = format!(
            r#"{{"alg":"{}","kid":{kid},"typ":"JWT"}}"#,
            public.algorithm()
        );
        let mut head = URL_SAFE_NO_PAD.encode(header);
        head.push('.');
        Ok(Self {
            pair: key.pair()?,
            head,
            public,
        })
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

    /// Whether signing takes long enough (about a millisecond) to belong on a [`SigningPool`].
    pub fn is_slow(&self) -> bool {
        matches!(self.pair, KeyPair::Rsa(_))
    }

    /// The compact JWS over `claims`, a JSON object.
    pub fn sign(&self, claims: &[u8]) -> Result<String, SignError> {
        let mut token = String::with_capacity(self.head.len() + (claims.len() + 512) * 4 / 3 + 8);
        token.push_str(&self.head);
        URL_SAFE_NO_PAD.encode_string(claims, &mut token);
        let message = token.as_bytes();
        let signature = match &self.pair {
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

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer")
            .field("public", &self.public)
            .finish_non_exhaustive()
    }
}

/// A few threads that sign, with a queue that has an end. Dropping it ends the threads; what still waits gets `Closed`.
pub struct SigningPool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    queue: Mutex<Queue>,
    work: Condvar,
    room: usize,
}

struct Queue {
    jobs: VecDeque<Job>,
    closed: bool,
}

struct Job {
    signer: Arc<Signer>,
    claims: Vec<u8>,
    reply: oneshot::Sender<Result<String, SignError>>,
}

impl SigningPool {
    /// One thread per core, and room for a second's worth of tokens each.
    pub fn new() -> std::io::Result<Self> {
        let cores = thread::available_parallelism().map_or(1, NonZero::get);
        Self::with(cores, cores * 1024)
    }

    /// `threads` threads and room for `room` waiting tokens.
    pub fn with(threads: usize, room: usize) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            queue: Mutex::new(Queue {
                jobs: VecDeque::new(),
                closed: false,
            }),
            work: Condvar::new(),
            room,
        });
        let threads = (0..threads)
            .map(|n| {
                let shared = shared.clone();
                thread::Builder::new()
                    .name(format!("tb-sign-{n}"))
                    .spawn(move || shared.serve())
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { shared, threads })
    }

    /// Signs `claims`: slow keys on the pool's threads, fast ones here and now.
    pub async fn sign(&self, signer: &Arc<Signer>, claims: Vec<u8>) -> Result<String, SignError> {
        if !signer.is_slow() {
            return signer.sign(&claims);
        }
        let (reply, answer) = oneshot::channel();
        {
            let mut queue = self.shared.lock();
            if queue.closed {
                return Err(SignError::Closed);
            }
            if queue.jobs.len() >= self.shared.room {
                return Err(SignError::Overloaded);
            }
            queue.jobs.push_back(Job {
                signer: signer.clone(),
                claims,
                reply,
            });
        }
        self.shared.work.notify_one();
        answer.await.unwrap_or(Err(SignError::Closed))
    }
}

impl Drop for SigningPool {
    fn drop(&mut self) {
        {
            let mut queue = self.shared.lock();
            queue.closed = true;
            queue.jobs.clear();
        }
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            // A thread that panicked has already said so; each other one ends after at most one signature.
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for SigningPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningPool")
            .field("threads", &self.threads.len())
            .finish_non_exhaustive()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self) {
        while let Some(job) = self.next() {
            if !job.reply.is_closed() {
                let _ = job.reply.send(job.signer.sign(&job.claims));
            }
        }
    }

    fn next(&self) -> Option<Job> {
        let mut queue = self.lock();
        loop {
            if let Some(job) = queue.jobs.pop_front() {
                return Some(job);
            }
            if queue.closed {
                return None;
            }
            queue = self
                .work
                .wait(queue)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::OnceLock;

    use jsonwebtoken::{DecodingKey, Validation, jwk::Jwk};

    use super::*;
    use crate::config::KeySpec;

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

    #[test]
    fn tokens_of_every_kind_verify_elsewhere_and_their_header_is_exact() {
        for key in [rsa(), &generate(KeySpec::Es256), &generate(KeySpec::EdDsa)] {
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
        for key in [rsa(), &generate(KeySpec::Es256), &generate(KeySpec::EdDsa)] {
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
    async fn the_pool_signs_sheds_and_ends() {
        let signer = Arc::new(Signer::new(rsa()).unwrap());
        let pool = SigningPool::with(1, 2).unwrap();
        let tokens =
            futures_util::future::join_all((0..50).map(|_| pool.sign(&signer, b"{}".to_vec())))
                .await;
        let signed = tokens.iter().flatten().count();
        assert!(signed >= 2, "the queue holds two");
        assert!(
            tokens.contains(&Err(SignError::Overloaded)),
            "50 at once do not fit"
        );
        for token in tokens.iter().flatten() {
            verify(token, signer.public());
        }
        // Quick keys need no thread and are never shed.
        let quick = Arc::new(Signer::new(&generate(KeySpec::EdDsa)).unwrap());
        let tokens =
            futures_util::future::join_all((0..50).map(|_| pool.sign(&quick, b"{}".to_vec())))
                .await;
        assert!(tokens.iter().all(Result::is_ok));
        drop(pool);

        let none = SigningPool::with(0, 8).unwrap();
        let waiting = none.sign(&signer, b"{}".to_vec());
        let mut waiting = std::pin::pin!(waiting);
        assert!(futures_util::poll!(&mut waiting).is_pending());
        none.shared.lock().jobs.clear();
        assert_eq!(waiting.await, Err(SignError::Closed));
    }
}
