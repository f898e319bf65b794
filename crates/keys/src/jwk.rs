//! Keys as JWKs: the private and the public half, as files and documents hold them.
//!
//! Invariants
//! - Written members are exactly the original's, in alphabetical order, base64url without padding:
//!   RSA private `alg,d,dp,dq,e,kid,kty,n,p,q,qi`, public `alg,e,kid,kty,n`; EC
//!   `alg,crv,d,kid,kty,x,y`; Ed25519 `alg,crv,d,kid,kty,x`. Members of EC keys have the full
//!   length of their curve's field, with leading zeros (RFC 7518, 6.2).
//! - A [`PrivateJwk`] has been checked once, RSA by the `rsa` crate and every kind by aws-lc: its
//!   parts fit together, and its kind and size are ones that we sign with.
//! - Private parts are wiped when dropped and appear in no `Debug` output, error or log.
//!
//! `signer.rs` signs. aws-lc alone makes RSA keys and signs with them; the `rsa` crate represents
//! and checks them, and no private operation uses it.

use std::{fmt, num::NonZero, str::FromStr, sync::mpsc, thread, time::Duration};

use aws_lc_rs::{
    digest::{SHA256, digest},
    encoding::{AsBigEndian, AsDer, EcPrivateKeyBin},
    rsa::{KeyPair as RsaKeyPair, KeySize},
    signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING,
        ECDSA_P521_SHA512_FIXED_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm, Ed25519KeyPair,
        KeyPair as _,
    },
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use rsa::{
    BoxedUint, PrivateKey as RsaPrivateKey,
    pkcs1::{DecodeRsaPrivateKey as _, EncodeRsaPrivateKey as _},
    pkcs8::DecodePrivateKey as _,
    traits::{PrivateKeyParts as _, PublicKeyParts as _},
};
use rustix::process::setpriority_process;
use serde::{Deserialize, Serialize};
use tailbone_values::Object;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::{InvalidKeyId, KeyId};

/// RSA sizes in bits accepted from files. New keys have one of the [`RSA_SIZES`].
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

/// Sizes that a new RSA key may have, in bits.
pub const RSA_SIZES: &[u32] = &[2048, 3072, 4096];

/// What kind of key pair to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KeySpec {
    /// RS256 with a modulus of one of the [`RSA_SIZES`].
    Rs256 { bits: u32 },
    /// ES256 (P-256).
    Es256,
    /// ES384 (P-384).
    Es384,
    /// ES512 (P-521).
    Es512,
    /// EdDSA (Ed25519).
    EdDsa,
}

impl KeySpec {
    /// A key for this algorithm; an RSA key has `rsa_bits`.
    pub fn new(algorithm: Algorithm, rsa_bits: u32) -> Self {
        match algorithm {
            Algorithm::EdDsa => Self::EdDsa,
            Algorithm::Es256 => Self::Es256,
            Algorithm::Es384 => Self::Es384,
            Algorithm::Es512 => Self::Es512,
            Algorithm::Rs256 => Self::Rs256 { bits: rsa_bits },
        }
    }

    pub fn algorithm(self) -> Algorithm {
        match self {
            Self::EdDsa => Algorithm::EdDsa,
            Self::Es256 => Algorithm::Es256,
            Self::Es384 => Algorithm::Es384,
            Self::Es512 => Algorithm::Es512,
            Self::Rs256 { .. } => Algorithm::Rs256,
        }
    }
}

/// Signature algorithms under their JOSE names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum Algorithm {
    #[serde(rename = "EdDSA")]
    EdDsa,
    #[serde(rename = "ES256")]
    Es256,
    #[serde(rename = "ES384")]
    Es384,
    #[serde(rename = "ES512")]
    Es512,
    #[serde(rename = "RS256")]
    Rs256,
}

impl Algorithm {
    /// All of them, in the order in which people are offered them.
    pub const ALL: [Self; 5] = [
        Self::Rs256,
        Self::Es256,
        Self::Es384,
        Self::Es512,
        Self::EdDsa,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::EdDsa => "EdDSA",
            Self::Es256 => "ES256",
            Self::Es384 => "ES384",
            Self::Es512 => "ES512",
            Self::Rs256 => "RS256",
        }
    }
}

/// No algorithm that we sign with has this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not one of RS256, ES256, ES384, ES512, EdDSA")]
pub struct UnknownAlgorithm(pub String);

impl FromStr for Algorithm {
    type Err = UnknownAlgorithm;

    fn from_str(name: &str) -> Result<Self, UnknownAlgorithm> {
        Self::ALL
            .into_iter()
            .find(|algorithm| algorithm.as_str() == name)
            .ok_or_else(|| UnknownAlgorithm(name.chars().take(64).collect()))
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A curve of EC keys. Each is used with one algorithm alone (RFC 7518, 3.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Curve {
    P256,
    P384,
    P521,
}

impl Curve {
    const ALL: [Self; 3] = [Self::P256, Self::P384, Self::P521];

    /// The name in JWKs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::P256 => "P-256",
            Self::P384 => "P-384",
            Self::P521 => "P-521",
        }
    }

    pub fn algorithm(self) -> Algorithm {
        match self {
            Self::P256 => Algorithm::Es256,
            Self::P384 => Algorithm::Es384,
            Self::P521 => Algorithm::Es512,
        }
    }

    /// Length in bytes of a coordinate, and of a private key.
    pub fn length(self) -> usize {
        match self {
            Self::P256 => 32,
            Self::P384 => 48,
            Self::P521 => 66,
        }
    }

    fn signing(self) -> &'static EcdsaSigningAlgorithm {
        match self {
            Self::P256 => &ECDSA_P256_SHA256_FIXED_SIGNING,
            Self::P384 => &ECDSA_P384_SHA384_FIXED_SIGNING,
            Self::P521 => &ECDSA_P521_SHA512_FIXED_SIGNING,
        }
    }
}

/// Why a JWK is refused. Never contains a private part.
#[derive(Debug, thiserror::Error)]
pub enum JwkError {
    #[error("algorithm {alg:?} does not fit a key of type {kty}")]
    Algorithm { alg: String, kty: String },
    #[error("member `{0}` is not base64url without padding")]
    Encoding(&'static str),
    #[error(transparent)]
    Id(#[from] InvalidKeyId),
    #[error("its parts do not make a key: {0}")]
    Inconsistent(&'static str),
    #[error("not a JWK: {0}")]
    Json(&'static str),
    #[error("key type {0:?} is not one of RSA, EC (P-256, P-384, P-521), OKP (Ed25519)")]
    Kind(String),
    #[error("member `{0}` is missing")]
    Missing(&'static str),
    #[error("the crypto library could not make a key")]
    NotGenerated,
    #[error("RSA key of {0} bits; at least 2048 and at most 8192 are needed")]
    Size(usize),
    #[error("RSA keys are made with 2048, 3072 or 4096 bits, not {0}")]
    UnusualSize(u32),
}

/// The public half, which verifiers get.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicJwk {
    pub kid: KeyId,
    pub parts: PublicParts,
}

/// The key itself; members are base64url text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PublicParts {
    Ec { curve: Curve, x: String, y: String },
    Ed25519 { x: String },
    Rsa { e: String, n: String },
}

impl PublicJwk {
    /// Parses the public key in one JWK object of a file or document. Other members are ignored,
    /// private ones too.
    pub fn from_json(json: &[u8]) -> Result<Self, JwkError> {
        RawJwk::parse(json)?.public(None)
    }

    pub fn algorithm(&self) -> Algorithm {
        match self.parts {
            PublicParts::Ec { curve, .. } => curve.algorithm(),
            PublicParts::Ed25519 { .. } => Algorithm::EdDsa,
            PublicParts::Rsa { .. } => Algorithm::Rs256,
        }
    }

    /// The JWK as an entry of a JWKS.
    pub fn to_value(&self) -> serde_json::Value {
        let alg = self.algorithm().as_str();
        let kid = self.kid.as_str();
        match &self.parts {
            PublicParts::Ec { curve, x, y } => {
                let crv = curve.as_str();
                serde_json::json!({"alg": alg, "crv": crv, "kid": kid, "kty": "EC", "x": x, "y": y})
            }
            PublicParts::Ed25519 { x } => {
                serde_json::json!({"alg": alg, "crv": "Ed25519", "kid": kid, "kty": "OKP", "x": x})
            }
            PublicParts::Rsa { e, n } => {
                serde_json::json!({"alg": alg, "e": e, "kid": kid, "kty": "RSA", "n": n})
            }
        }
    }

    /// The JWK as its file holds it, indented by two spaces.
    pub fn to_file(&self) -> Vec<u8> {
        format!("{:#}", self.to_value()).into_bytes()
    }

    /// The SHA-256 thumbprint of the key (RFC 7638) in base64url, whatever its id is.
    pub fn thumbprint(&self) -> String {
        // The required members in alphabetical order, without white space.
        let members = match &self.parts {
            PublicParts::Ec { curve, x, y } => format!(
                r#"{{"crv":"{}","kty":"EC","x":"{x}","y":"{y}"}}"#,
                curve.as_str()
            ),
            PublicParts::Ed25519 { x } => {
                format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{x}"}}"#)
            }
            PublicParts::Rsa { e, n } => format!(r#"{{"e":"{e}","kty":"RSA","n":"{n}"}}"#),
        };
        URL_SAFE_NO_PAD.encode(digest(&SHA256, members.as_bytes()))
    }

    /// True if `value`, an entry of a document, is this very key: the same id and public parts.
    /// Other members do not matter.
    pub fn same_key(&self, value: &serde_json::Value) -> bool {
        RawJwk::deserialize(value)
            .ok()
            .and_then(|raw| raw.public(None).ok())
            .is_some_and(|other| other == *self)
    }
}

/// Both halves, checked to fit together.
pub struct PrivateJwk {
    public: PublicJwk,
    parts: PrivateParts,
}

#[derive(Zeroize, ZeroizeOnDrop)]
enum PrivateParts {
    Ec {
        d: String,
    },
    Ed25519 {
        d: String,
    },
    Rsa {
        d: String,
        p: String,
        q: String,
        dp: String,
        dq: String,
        qi: String,
    },
}

/// A key pair in the form that aws-lc signs with.
pub(super) enum KeyPair {
    Ec(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
    Rsa(RsaKeyPair),
}

/// Niceness of the first threads that look for a key. The first key is made while the node joins,
/// and its callers need the cores too.
const NICE: i32 = 10;

/// How long those threads have the search for themselves. On a busy machine they get next to
/// nothing of the cores, and callers wait for the key. (RSA 2048, 200 keys on one idle thread:
/// median 46 ms, 95th percentile 111 ms.)
const NICE_TIME: Duration = Duration::from_millis(300);

/// Runs `make` on two threads and returns the first result; the other threads end by themselves.
/// How long it takes to find two primes is a matter of luck, and a first start waits for its key.
fn sooner<T: Send + 'static>(make: impl Fn() -> T + Clone + Send + 'static) -> Option<T> {
    let (done, first) = mpsc::channel();
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    for _ in 0..cores.min(2) {
        let make = make.clone();
        search(done.clone(), move || {
            // On Linux the niceness is the thread's own. If it cannot be set, the search takes a
            // full share of the processor.
            let _ = setpriority_process(None, NICE);
            make()
        });
    }
    if let Ok(found) = first.recv_timeout(NICE_TIME) {
        return Some(found);
    }
    search(done, make);
    first.recv().ok()
}

fn search<T: Send + 'static>(done: mpsc::Sender<T>, make: impl FnOnce() -> T + Send + 'static) {
    // If no thread can be started, another one is enough.
    let _ = thread::Builder::new().spawn(move || done.send(make()));
}

impl PrivateJwk {
    /// Makes a new key. RSA takes from a tenth of a second to some seconds, so call this off the
    /// async workers.
    pub fn generate(kid: KeyId, spec: KeySpec) -> Result<Self, JwkError> {
        let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let failed = |_| JwkError::NotGenerated;
        match spec {
            KeySpec::EdDsa => {
                let pair = Ed25519KeyPair::generate().map_err(failed)?;
                let seed = pair
                    .seed()
                    .and_then(|seed| seed.as_be_bytes())
                    .map_err(failed)?;
                Ok(Self {
                    parts: PrivateParts::Ed25519 {
                        d: text(seed.as_ref()),
                    },
                    public: PublicJwk {
                        kid,
                        parts: PublicParts::Ed25519 {
                            x: text(pair.public_key().as_ref()),
                        },
                    },
                })
            }
            KeySpec::Es256 => Self::generate_ec(kid, Curve::P256),
            KeySpec::Es384 => Self::generate_ec(kid, Curve::P384),
            KeySpec::Es512 => Self::generate_ec(kid, Curve::P521),
            KeySpec::Rs256 { bits } => {
                let size = match bits {
                    2048 => KeySize::Rsa2048,
                    3072 => KeySize::Rsa3072,
                    4096 => KeySize::Rsa4096,
                    other => return Err(JwkError::UnusualSize(other)),
                };
                let pair = sooner(move || RsaKeyPair::generate(size))
                    .ok_or(JwkError::NotGenerated)?
                    .map_err(failed)?;
                let pkcs8 = pair.as_der().map_err(failed)?;
                let key = RsaPrivateKey::from_pkcs8_der(pkcs8.as_ref())
                    .map_err(|_| JwkError::NotGenerated)?;
                let (public, parts) = rsa_members(&key).ok_or(JwkError::NotGenerated)?;
                Ok(Self {
                    parts,
                    public: PublicJwk { kid, parts: public },
                })
            }
        }
    }

    fn generate_ec(kid: KeyId, curve: Curve) -> Result<Self, JwkError> {
        let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let failed = |_| JwkError::NotGenerated;
        let pair = EcdsaKeyPair::generate(curve.signing()).map_err(failed)?;
        let d: EcPrivateKeyBin<'_> = pair.private_key().as_be_bytes().map_err(failed)?;
        // An uncompressed point: 04, x, y.
        let (x, y) = pair
            .public_key()
            .as_ref()
            .split_first()
            .and_then(|(_, point)| point.split_at_checked(curve.length()))
            .ok_or(JwkError::NotGenerated)?;
        Ok(Self {
            parts: PrivateParts::Ec {
                d: text(d.as_ref()),
            },
            public: PublicJwk {
                kid,
                parts: PublicParts::Ec {
                    curve,
                    x: text(x),
                    y: text(y),
                },
            },
        })
    }

    /// Parses the text of a private key file. `name` is the id in the file's name, for a JWK
    /// without `kid`.
    pub fn from_file(json: &[u8], name: &KeyId) -> Result<Self, JwkError> {
        let mut raw = RawJwk::parse(json)?;
        let public = raw.public(Some(name))?;
        let take = |member: &mut Option<String>, name| {
            member
                .take()
                .filter(|text| !text.is_empty())
                .ok_or(JwkError::Missing(name))
        };
        let parts = match public.parts {
            PublicParts::Ec { .. } => PrivateParts::Ec {
                d: take(&mut raw.d, "d")?,
            },
            PublicParts::Ed25519 { .. } => PrivateParts::Ed25519 {
                d: take(&mut raw.d, "d")?,
            },
            PublicParts::Rsa { .. } => PrivateParts::Rsa {
                d: take(&mut raw.d, "d")?,
                p: take(&mut raw.p, "p")?,
                q: take(&mut raw.q, "q")?,
                dp: take(&mut raw.dp, "dp")?,
                dq: take(&mut raw.dq, "dq")?,
                qi: take(&mut raw.qi, "qi")?,
            },
        };
        let key = Self { public, parts };
        key.pair()?;
        Ok(key)
    }

    /// An RSA key as PKCS#1 has it.
    pub fn from_pkcs1(kid: KeyId, der: &[u8]) -> Result<Self, JwkError> {
        let key = RsaPrivateKey::from_pkcs1_der(der)
            .map_err(|_| JwkError::Inconsistent("no RSA key in PKCS#1"))?;
        let (public, parts) = rsa_members(&key).ok_or(JwkError::Inconsistent(CONTRADICT))?;
        let key = Self {
            parts,
            public: PublicJwk { kid, parts: public },
        };
        key.pair()?;
        Ok(key)
    }

    pub fn public(&self) -> &PublicJwk {
        &self.public
    }

    /// The JWK as its file holds it, indented by two spaces.
    pub fn to_file(&self) -> Zeroizing<Vec<u8>> {
        self.write(|json, members| serde_json::to_writer_pretty(json, members))
    }

    /// The same members without white space.
    pub fn to_compact(&self) -> Zeroizing<Vec<u8>> {
        self.write(|json, members| serde_json::to_writer(json, members))
    }

    fn write(
        &self,
        write: impl FnOnce(&mut Vec<u8>, &PrivateMembers<'_>) -> serde_json::Result<()>,
    ) -> Zeroizing<Vec<u8>> {
        let alg = self.public.algorithm().as_str();
        let kid = self.public.kid.as_str();
        // Room for the largest key: growing would leave copies of private parts behind.
        let mut file = Zeroizing::new(Vec::with_capacity(16 * 1024));
        let members = match (&self.public.parts, &self.parts) {
            (PublicParts::Ec { curve, x, y }, PrivateParts::Ec { d }) => PrivateMembers::Ec {
                alg,
                crv: curve.as_str(),
                d,
                kid,
                kty: "EC",
                x,
                y,
            },
            (PublicParts::Ed25519 { x }, PrivateParts::Ed25519 { d }) => PrivateMembers::Okp {
                alg,
                crv: "Ed25519",
                d,
                kid,
                kty: "OKP",
                x,
            },
            (
                PublicParts::Rsa { e, n },
                PrivateParts::Rsa {
                    d,
                    p,
                    q,
                    dp,
                    dq,
                    qi,
                },
            ) => PrivateMembers::Rsa {
                alg,
                d,
                dp,
                dq,
                e,
                kid,
                kty: "RSA",
                n,
                p,
                q,
                qi,
            },
            // A key's halves are of one kind.
            _ => return file,
        };
        let written = write(&mut file, &members);
        debug_assert!(written.is_ok() && !file.is_empty());
        file
    }

    /// The key pair as aws-lc represents it. aws-lc checks that the parts belong together.
    pub(super) fn pair(&self) -> Result<KeyPair, JwkError> {
        match (&self.public.parts, &self.parts) {
            (PublicParts::Ec { curve, x, y }, PrivateParts::Ec { d }) => {
                let length = curve.length();
                let mut point = vec![4u8];
                point.extend_from_slice(&fixed(x, "x", length)?);
                point.extend_from_slice(&fixed(y, "y", length)?);
                EcdsaKeyPair::from_private_key_and_public_key(
                    curve.signing(),
                    &fixed(d, "d", length)?,
                    &point,
                )
                .map(KeyPair::Ec)
                .map_err(|rejected| JwkError::Inconsistent(rejected.reason()))
            }
            (PublicParts::Ed25519 { x }, PrivateParts::Ed25519 { d }) => {
                Ed25519KeyPair::from_seed_and_public_key(
                    &fixed(d, "d", ED25519_LENGTH)?,
                    &fixed(x, "x", ED25519_LENGTH)?,
                )
                .map(KeyPair::Ed25519)
                .map_err(|rejected| JwkError::Inconsistent(rejected.reason()))
            }
            (
                PublicParts::Rsa { e, n },
                PrivateParts::Rsa {
                    d,
                    p,
                    q,
                    dp,
                    dq,
                    qi,
                },
            ) => {
                let modulus = integer(n, "n")?;
                let bits = modulus.bit_width_vartime() as usize;
                if !RSA_BITS.contains(&bits) {
                    return Err(JwkError::Size(bits));
                }
                let key = RsaPrivateKey::from_components(
                    modulus,
                    integer(e, "e")?,
                    integer(d, "d")?,
                    vec![integer(p, "p")?, integer(q, "q")?],
                )
                .map_err(|_| JwkError::Inconsistent(CONTRADICT))?;
                // The members that follow from the others must be correct as well: another program
                // may sign with them.
                let follows = key.dp() == Some(&integer(dp, "dp")?)
                    && key.dq() == Some(&integer(dq, "dq")?)
                    && key.crt_coefficient() == Some(integer(qi, "qi")?);
                if !follows {
                    return Err(JwkError::Inconsistent(CONTRADICT));
                }
                let der = key
                    .to_pkcs1_der()
                    .map_err(|_| JwkError::Inconsistent(CONTRADICT))?;
                RsaKeyPair::from_der(der.as_bytes())
                    .map(KeyPair::Rsa)
                    .map_err(|rejected| JwkError::Inconsistent(rejected.reason()))
            }
            _ => Err(JwkError::Inconsistent("halves of different kinds")),
        }
    }
}

impl fmt::Debug for PrivateJwk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PrivateJwk")
            .field("public", &self.public)
            .finish_non_exhaustive()
    }
}

/// The members of a private JWK. The order of the fields is that of the members in the file:
/// alphabetical.
#[derive(Serialize)]
#[serde(untagged)]
enum PrivateMembers<'a> {
    Ec {
        alg: &'a str,
        crv: &'a str,
        d: &'a str,
        kid: &'a str,
        kty: &'a str,
        x: &'a str,
        y: &'a str,
    },
    Okp {
        alg: &'a str,
        crv: &'a str,
        d: &'a str,
        kid: &'a str,
        kty: &'a str,
        x: &'a str,
    },
    Rsa {
        alg: &'a str,
        d: &'a str,
        dp: &'a str,
        dq: &'a str,
        e: &'a str,
        kid: &'a str,
        kty: &'a str,
        n: &'a str,
        p: &'a str,
        q: &'a str,
        qi: &'a str,
    },
}

/// A JWK as any program may have written it.
#[derive(Deserialize)]
struct RawJwk {
    alg: Option<String>,
    crv: Option<String>,
    d: Option<String>,
    dp: Option<String>,
    dq: Option<String>,
    e: Option<String>,
    kid: Option<String>,
    kty: Option<String>,
    n: Option<String>,
    p: Option<String>,
    q: Option<String>,
    qi: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

impl RawJwk {
    fn parse(json: &[u8]) -> Result<Self, JwkError> {
        // The parser's own message may quote the text, which may be a private key.
        let read = serde_json::from_slice::<Object<Self>>(json);
        read.map(|Object(key)| key).map_err(|error| {
            JwkError::Json(match error.classify() {
                serde_json::error::Category::Data => "members of unexpected types",
                serde_json::error::Category::Eof => "the text ends early",
                serde_json::error::Category::Io | serde_json::error::Category::Syntax => "not JSON",
            })
        })
    }

    fn public(&self, name: Option<&KeyId>) -> Result<PublicJwk, JwkError> {
        let kid = match (self.kid.as_deref().filter(|kid| !kid.is_empty()), name) {
            (Some(kid), _) => kid.parse()?,
            (None, Some(name)) => name.clone(),
            (None, None) => return Err(JwkError::Missing("kid")),
        };
        let have = |member: &Option<String>, name| {
            member
                .clone()
                .filter(|text| !text.is_empty())
                .ok_or(JwkError::Missing(name))
        };
        let kty = self.kty.as_deref().ok_or(JwkError::Missing("kty"))?;
        let curve = |name: &str| Curve::ALL.into_iter().find(|curve| curve.as_str() == name);
        let parts = match (kty, self.crv.as_deref()) {
            ("EC", Some(crv)) if let Some(curve) = curve(crv) => PublicParts::Ec {
                curve,
                x: have(&self.x, "x")?,
                y: have(&self.y, "y")?,
            },
            ("OKP", Some("Ed25519")) => PublicParts::Ed25519 {
                x: have(&self.x, "x")?,
            },
            ("RSA", _) => PublicParts::Rsa {
                e: have(&self.e, "e")?,
                n: have(&self.n, "n")?,
            },
            (kty, Some(crv)) => return Err(JwkError::Kind(format!("{kty} {crv}"))),
            (kty, None) => return Err(JwkError::Kind(kty.to_owned())),
        };
        let key = PublicJwk { kid, parts };
        match self.alg.as_deref() {
            None | Some("") => Ok(key),
            Some(alg) if alg == key.algorithm().as_str() => Ok(key),
            // RFC 9864's name for the same algorithm.
            Some("Ed25519") if key.algorithm() == Algorithm::EdDsa => Ok(key),
            Some(alg) => Err(JwkError::Algorithm {
                alg: alg.to_owned(),
                kty: kty.to_owned(),
            }),
        }
    }
}

impl Drop for RawJwk {
    fn drop(&mut self) {
        for member in [
            &mut self.d,
            &mut self.dp,
            &mut self.dq,
            &mut self.p,
            &mut self.q,
            &mut self.qi,
        ] {
            member.zeroize();
        }
    }
}

/// Length in bytes of both halves of an Ed25519 key.
const ED25519_LENGTH: usize = 32;

const CONTRADICT: &str = "they contradict each other";

/// The members of an RSA key's JWK.
fn rsa_members(key: &RsaPrivateKey) -> Option<(PublicParts, PrivateParts)> {
    let [p, q] = key.primes() else {
        return None;
    };
    let public = PublicParts::Rsa {
        e: number(key.e()),
        n: number(key.n()),
    };
    let private = PrivateParts::Rsa {
        d: number(key.d()),
        p: number(p),
        q: number(q),
        dp: number(key.dp()?),
        dq: number(key.dq()?),
        qi: number(&key.crt_coefficient()?),
    };
    Some((public, private))
}

/// A number as JWKs hold it: without leading zeros (RFC 7518, 6.3).
fn number(number: &BoxedUint) -> String {
    let bytes = Zeroizing::new(number.to_be_bytes());
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    URL_SAFE_NO_PAD.encode(bytes.get(zeros..).unwrap_or_default())
}

/// Why aws-lc refuses a key. Its messages are fixed texts that quote nothing.
trait Rejected {
    fn reason(&self) -> &'static str;
}

impl Rejected for aws_lc_rs::error::KeyRejected {
    fn reason(&self) -> &'static str {
        match self.to_string().as_str() {
            "InconsistentComponents" => CONTRADICT,
            "InvalidComponent" | "InvalidEncoding" => "one of them is not valid",
            "TooSmall" => "too small",
            "TooLarge" => "too large",
            _ => "refused by the crypto library",
        }
    }
}

/// Parses a number of any length; leading zeros are accepted.
fn integer(text: &str, member: &'static str) -> Result<BoxedUint, JwkError> {
    let bytes = Zeroizing::new(
        URL_SAFE_NO_PAD
            .decode(text)
            .map_err(|_| JwkError::Encoding(member))?,
    );
    Ok(BoxedUint::from_be_slice_vartime(&bytes))
}

/// Parses a value of exactly `length` bytes.
fn fixed(text: &str, member: &'static str, length: usize) -> Result<Zeroizing<Vec<u8>>, JwkError> {
    let bytes = Zeroizing::new(
        URL_SAFE_NO_PAD
            .decode(text)
            .map_err(|_| JwkError::Encoding(member))?,
    );
    if bytes.len() == length {
        Ok(bytes)
    } else {
        Err(JwkError::Encoding(member))
    }
}

#[cfg(test)]
mod tests {
    use rustix::process::getpriority_process;

    use super::*;

    #[test]
    fn an_rsa_key_whose_parts_contradict_each_other_is_refused_whichever_it_is() {
        let kid: KeyId = "tb-1".parse().unwrap();
        let key = PrivateJwk::generate(kid.clone(), KeySpec::Rs256 { bits: 2048 }).unwrap();
        let whole: serde_json::Value = serde_json::from_slice(&key.to_file()).unwrap();
        let read =
            |value: &serde_json::Value| PrivateJwk::from_file(value.to_string().as_bytes(), &kid);
        read(&whole).unwrap();
        let other = PrivateJwk::generate(kid.clone(), KeySpec::Rs256 { bits: 2048 }).unwrap();
        let other: serde_json::Value = serde_json::from_slice(&other.to_file()).unwrap();
        for member in ["n", "d", "p", "q", "dp", "dq", "qi"] {
            let mut mixed = whole.clone();
            mixed[member] = other[member].clone();
            let error = read(&mixed).unwrap_err();
            assert!(
                matches!(error, JwkError::Inconsistent(_)),
                "{member}: {error}"
            );
        }
        for (member, odd) in [
            ("e", "Aw"),
            ("e", "AA"),
            ("e", "Ag"),
            ("p", "AQ"),
            ("q", "AA"),
            ("qi", "AA"),
        ] {
            let mut mixed = whole.clone();
            mixed[member] = odd.into();
            let error = read(&mixed).unwrap_err();
            assert!(
                matches!(error, JwkError::Inconsistent(_)),
                "{member}: {error}"
            );
        }
        // Leading zeros do not change a number.
        let mut padded = whole.clone();
        for member in ["n", "d", "p", "q", "dp", "dq", "qi", "e"] {
            let bytes = URL_SAFE_NO_PAD
                .decode(whole[member].as_str().unwrap())
                .unwrap();
            assert_ne!(bytes[0], 0, "{member} is written without leading zeros");
            padded[member] = URL_SAFE_NO_PAD
                .encode([&[0, 0][..], &bytes].concat())
                .into();
        }
        read(&padded).unwrap();
    }

    /// Half of all P-521 coordinates begin with a byte of zeros, and a P-256 one in 256.
    #[test]
    fn members_of_ec_keys_have_the_full_length_of_their_curve() {
        let kid: KeyId = "tb-1".parse().unwrap();
        let mut with_zeros = 0;
        for curve in Curve::ALL {
            for _ in 0..32 {
                let key = PrivateJwk::generate_ec(kid.clone(), curve).unwrap();
                let file: serde_json::Value = serde_json::from_slice(&key.to_file()).unwrap();
                assert_eq!(file["crv"], curve.as_str());
                assert_eq!(file["alg"], curve.algorithm().as_str());
                for member in ["d", "x", "y"] {
                    let bytes = URL_SAFE_NO_PAD
                        .decode(file[member].as_str().unwrap())
                        .unwrap();
                    assert_eq!(bytes.len(), curve.length(), "{member} of {curve:?}");
                    with_zeros += usize::from(bytes[0] == 0);
                    // Without its leading zeros it is no member of an EC key.
                    let mut short = file.clone();
                    short[member] = URL_SAFE_NO_PAD.encode(&bytes[1..]).into();
                    let refused = PrivateJwk::from_file(short.to_string().as_bytes(), &kid);
                    assert!(matches!(refused, Err(JwkError::Encoding(name)) if name == member));
                }
            }
        }
        assert!(with_zeros > 0, "no key of this test begins with zeros");
    }

    /// The example of RFC 7638, 3.1.
    #[test]
    fn a_thumbprint_is_that_of_the_rfc() {
        let key = concat!(
            r#"{"kty":"RSA","n":"0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK"#,
            r#"7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf"#,
            r#"0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD0"#,
            r#"8qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJz"#,
            r#"KnqDKgw","e":"AQAB","alg":"RS256","kid":"2011-04-29"}"#,
        );
        let key = PublicJwk::from_json(key.as_bytes()).unwrap();
        assert_eq!(
            key.thumbprint(),
            "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"
        );
    }

    #[test]
    fn an_ec_key_is_of_its_curves_algorithm_alone() {
        let kid: KeyId = "tb-1".parse().unwrap();
        for curve in Curve::ALL {
            let key = PrivateJwk::generate_ec(kid.clone(), curve).unwrap();
            let file: serde_json::Value = serde_json::from_slice(&key.to_file()).unwrap();
            for other in Curve::ALL.into_iter().filter(|other| *other != curve) {
                let mut mixed = file.clone();
                mixed["alg"] = other.algorithm().as_str().into();
                let refused = PrivateJwk::from_file(mixed.to_string().as_bytes(), &kid);
                assert!(matches!(refused, Err(JwkError::Algorithm { .. })));
                mixed["crv"] = other.as_str().into();
                let refused = PrivateJwk::from_file(mixed.to_string().as_bytes(), &kid);
                assert!(matches!(refused, Err(JwkError::Encoding(_))), "{refused:?}");
            }
        }
    }

    #[test]
    fn a_search_has_low_priority_and_its_caller_keeps_its_own() {
        let own = || getpriority_process(None).unwrap();
        let before = own();
        assert_eq!(sooner(own), Some(NICE));
        assert_eq!(own(), before);
    }

    #[test]
    fn a_starved_search_continues_at_normal_priority() {
        let own = || getpriority_process(None).unwrap();
        let before = own();
        let starved = move || {
            let nice = own();
            if nice == NICE {
                thread::sleep(Duration::from_secs(60));
            }
            nice
        };
        assert_eq!(sooner(starved), Some(before));
    }
}
