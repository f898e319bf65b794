//! Keys as JWKs: the private and the public half, as files and documents hold them.
//!
//! Invariants
//! - Written members are exactly the original's, in alphabetical order, base64url without padding: RSA private
//!   `alg,d,dp,dq,e,kid,kty,n,p,q,qi`, public `alg,e,kid,kty,n`; EC `alg,crv,d,kid,kty,x,y`; Ed25519 `alg,crv,d,kid,kty,x`.
//! - A [`PrivateJwk`] has been through aws-lc once: its parts fit each other, and its kind and size are ones we sign with.
//! - Private parts are wiped when dropped and show in no `Debug`, error or log.
//!
//! Signing is `signer.rs`. RSA keys are made and used by aws-lc alone; `der` and `pkcs1` only take the written form apart.

use std::{fmt, num::NonZero, sync::mpsc, thread};

use aws_lc_rs::{
    encoding::{AsBigEndian, AsDer, EcPrivateKeyBin},
    rsa::{KeyPair as RsaKeyPair, KeyPairComponents, KeySize, PublicKeyComponents},
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use der::{
    Decode as _, Reader as _, SliceReader,
    asn1::{AnyRef, OctetStringRef},
};
use pkcs1::RsaPrivateKeyRef;
use rustix::process::setpriority_process;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::{InvalidKeyId, KeyId};
use crate::config::KeySpec;

/// RSA sizes taken from files. New keys come in 2048, 3072 and 4096.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

/// What a key signs with, by its name in JOSE.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub enum Algorithm {
    #[serde(rename = "EdDSA")]
    EdDsa,
    #[serde(rename = "ES256")]
    Es256,
    #[serde(rename = "RS256")]
    Rs256,
}

impl Algorithm {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::EdDsa => "EdDSA",
            Self::Es256 => "ES256",
            Self::Rs256 => "RS256",
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a JWK is not taken. Never carries a private part.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
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
    #[error("key type {0:?} is not one of RSA, EC (P-256), OKP (Ed25519)")]
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

/// The public half: what verifiers get.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicJwk {
    pub kid: KeyId,
    pub parts: PublicParts,
}

/// The key itself, members as base64url text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PublicParts {
    Ec { x: String, y: String },
    Ed25519 { x: String },
    Rsa { e: String, n: String },
}

impl PublicJwk {
    /// Takes the key out of one JWK object of a file or document; other members are ignored, private ones too.
    pub fn from_json(json: &[u8]) -> Result<Self, JwkError> {
        RawJwk::parse(json)?.public(None)
    }

    pub fn algorithm(&self) -> Algorithm {
        match self.parts {
            PublicParts::Ec { .. } => Algorithm::Es256,
            PublicParts::Ed25519 { .. } => Algorithm::EdDsa,
            PublicParts::Rsa { .. } => Algorithm::Rs256,
        }
    }

    /// The JWK as it stands in a JWKS.
    pub fn to_value(&self) -> serde_json::Value {
        let alg = self.algorithm().as_str();
        let kid = self.kid.as_str();
        match &self.parts {
            PublicParts::Ec { x, y } => {
                serde_json::json!({"alg": alg, "crv": "P-256", "kid": kid, "kty": "EC", "x": x, "y": y})
            }
            PublicParts::Ed25519 { x } => {
                serde_json::json!({"alg": alg, "crv": "Ed25519", "kid": kid, "kty": "OKP", "x": x})
            }
            PublicParts::Rsa { e, n } => {
                serde_json::json!({"alg": alg, "e": e, "kid": kid, "kty": "RSA", "n": n})
            }
        }
    }

    /// The JWK as its file holds it: indented by two blanks.
    pub fn to_file(&self) -> Vec<u8> {
        format!("{:#}", self.to_value()).into_bytes()
    }

    /// Whether `value` of a document is this very key: same id, same public parts. Other members do not matter.
    pub fn same_key(&self, value: &serde_json::Value) -> bool {
        RawJwk::deserialize(value)
            .ok()
            .and_then(|raw| raw.public(None).ok())
            .is_some_and(|other| other == *self)
    }
}

/// Both halves, checked.
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

/// A key pair in the form that signs.
pub(super) enum KeyPair {
    Ec(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
    Rsa(RsaKeyPair),
}

/// How far a search for a key stands back behind the rest: a first one runs beside the join, and its callers need the cores too.
const NICE: i32 = 10;

/// Does it on two cores and gives what is ready first; the other is left to end by itself. How long it takes to find two primes is
/// luck: of 200 keys of 2048 bits half took 46 ms, one in twenty 111, and a first start waits for its key.
fn sooner<T: Send + 'static>(make: impl Fn() -> T + Clone + Send + 'static) -> Option<T> {
    let (done, first) = mpsc::channel();
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    for _ in 0..cores.min(2) {
        let (make, done) = (make.clone(), done.clone());
        // Where no thread can be had the other is enough.
        let _ = thread::Builder::new().spawn(move || {
            // On Linux it is the thread's own. Where it cannot be had, the search takes its full share.
            let _ = setpriority_process(None, NICE);
            done.send(make())
        });
    }
    drop(done);
    first.recv().ok()
}

impl PrivateJwk {
    /// Makes a new key. RSA takes from a tenth of a second to some seconds: keep it off the async workers.
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
            KeySpec::Es256 => {
                let pair =
                    EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).map_err(failed)?;
                let d: EcPrivateKeyBin<'_> = pair.private_key().as_be_bytes().map_err(failed)?;
                // An uncompressed point: 04, x, y.
                let (x, y) = pair
                    .public_key()
                    .as_ref()
                    .split_first()
                    .and_then(|(_, point)| point.split_at_checked(32))
                    .ok_or(JwkError::NotGenerated)?;
                Ok(Self {
                    parts: PrivateParts::Ec {
                        d: text(d.as_ref()),
                    },
                    public: PublicJwk {
                        kid,
                        parts: PublicParts::Ec {
                            x: text(x),
                            y: text(y),
                        },
                    },
                })
            }
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
                let pkcs1 = unwrap_pkcs8(pkcs8.as_ref()).map_err(|_| JwkError::NotGenerated)?;
                let rsa = RsaPrivateKeyRef::from_der(pkcs1).map_err(|_| JwkError::NotGenerated)?;
                Ok(Self {
                    parts: PrivateParts::Rsa {
                        d: text(rsa.private_exponent.as_bytes()),
                        p: text(rsa.prime1.as_bytes()),
                        q: text(rsa.prime2.as_bytes()),
                        dp: text(rsa.exponent1.as_bytes()),
                        dq: text(rsa.exponent2.as_bytes()),
                        qi: text(rsa.coefficient.as_bytes()),
                    },
                    public: PublicJwk {
                        kid,
                        parts: PublicParts::Rsa {
                            e: text(rsa.public_exponent.as_bytes()),
                            n: text(rsa.modulus.as_bytes()),
                        },
                    },
                })
            }
        }
    }

    /// Takes a private key file's text. `name` is the id its file name tells, for files whose JWK holds no `kid`.
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

    pub fn public(&self) -> &PublicJwk {
        &self.public
    }

    /// The JWK as its file holds it: indented by two blanks.
    pub fn to_file(&self) -> Zeroizing<Vec<u8>> {
        // Field order is the members' order on disk: alphabetical.
        #[derive(Serialize)]
        struct Ec<'a> {
            alg: &'a str,
            crv: &'a str,
            d: &'a str,
            kid: &'a str,
            kty: &'a str,
            x: &'a str,
            y: &'a str,
        }
        #[derive(Serialize)]
        struct Okp<'a> {
            alg: &'a str,
            crv: &'a str,
            d: &'a str,
            kid: &'a str,
            kty: &'a str,
            x: &'a str,
        }
        #[derive(Serialize)]
        struct Rsa<'a> {
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
        }
        let alg = self.public.algorithm().as_str();
        let kid = self.public.kid.as_str();
        // Room for the largest key, so that growing leaves no copies of private parts behind.
        let mut file = Zeroizing::new(Vec::with_capacity(16 * 1024));
        let written = match (&self.public.parts, &self.parts) {
            (PublicParts::Ec { x, y }, PrivateParts::Ec { d }) => serde_json::to_writer_pretty(
                &mut *file,
                &Ec {
                    alg,
                    crv: "P-256",
                    d,
                    kid,
                    kty: "EC",
                    x,
                    y,
                },
            ),
            (PublicParts::Ed25519 { x }, PrivateParts::Ed25519 { d }) => {
                serde_json::to_writer_pretty(
                    &mut *file,
                    &Okp {
                        alg,
                        crv: "Ed25519",
                        d,
                        kid,
                        kty: "OKP",
                        x,
                    },
                )
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
            ) => serde_json::to_writer_pretty(
                &mut *file,
                &Rsa {
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
            ),
            _ => Ok(()),
        };
        debug_assert!(written.is_ok() && !file.is_empty());
        file
    }

    /// The pair in aws-lc's hands, which checks that the parts belong together.
    pub(super) fn pair(&self) -> Result<KeyPair, JwkError> {
        match (&self.public.parts, &self.parts) {
            (PublicParts::Ec { x, y }, PrivateParts::Ec { d }) => {
                let mut point = vec![4u8];
                point.extend_from_slice(&fixed::<32>(x, "x")?[..]);
                point.extend_from_slice(&fixed::<32>(y, "y")?[..]);
                EcdsaKeyPair::from_private_key_and_public_key(
                    &ECDSA_P256_SHA256_FIXED_SIGNING,
                    &fixed::<32>(d, "d")?[..],
                    &point,
                )
                .map(KeyPair::Ec)
                .map_err(|rejected| JwkError::Inconsistent(rejected.reason()))
            }
            (PublicParts::Ed25519 { x }, PrivateParts::Ed25519 { d }) => {
                Ed25519KeyPair::from_seed_and_public_key(
                    &fixed::<32>(d, "d")?[..],
                    &fixed::<32>(x, "x")?[..],
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
                let bits = modulus.first().map_or(0, |first| {
                    modulus.len() * 8 - first.leading_zeros() as usize
                });
                if !RSA_BITS.contains(&bits) {
                    return Err(JwkError::Size(bits));
                }
                RsaKeyPair::from_components(&KeyPairComponents {
                    public_key: PublicKeyComponents {
                        n: modulus.as_slice(),
                        e: integer(e, "e")?.as_slice(),
                    },
                    d: integer(d, "d")?.as_slice(),
                    p: integer(p, "p")?.as_slice(),
                    q: integer(q, "q")?.as_slice(),
                    dP: integer(dp, "dp")?.as_slice(),
                    dQ: integer(dq, "dq")?.as_slice(),
                    qInv: integer(qi, "qi")?.as_slice(),
                })
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

/// A JWK as anyone may have written it.
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
        serde_json::from_slice(json).map_err(|error| {
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
        let parts = match (kty, self.crv.as_deref()) {
            ("EC", Some("P-256")) => PublicParts::Ec {
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
            // RFC 9864's name for the same thing.
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

/// What aws-lc says of a key it does not take; its words are fixed and quote nothing.
trait Rejected {
    fn reason(&self) -> &'static str;
}

impl Rejected for aws_lc_rs::error::KeyRejected {
    fn reason(&self) -> &'static str {
        match self.to_string().as_str() {
            "InconsistentComponents" => "they contradict each other",
            "InvalidComponent" | "InvalidEncoding" => "one of them is not valid",
            "TooSmall" => "too small",
            "TooLarge" => "too large",
            _ => "refused by the crypto library",
        }
    }
}

/// A number of any width, without leading zeros.
fn integer(text: &str, member: &'static str) -> Result<Zeroizing<Vec<u8>>, JwkError> {
    let bytes = Zeroizing::new(
        URL_SAFE_NO_PAD
            .decode(text)
            .map_err(|_| JwkError::Encoding(member))?,
    );
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    Ok(Zeroizing::new(bytes[zeros..].to_vec()))
}

/// A value of exactly `N` bytes.
fn fixed<const N: usize>(text: &str, member: &'static str) -> Result<Zeroizing<[u8; N]>, JwkError> {
    let bytes = Zeroizing::new(
        URL_SAFE_NO_PAD
            .decode(text)
            .map_err(|_| JwkError::Encoding(member))?,
    );
    <[u8; N]>::try_from(bytes.as_slice())
        .map(Zeroizing::new)
        .map_err(|_| JwkError::Encoding(member))
}

/// The `RSAPrivateKey` inside a PKCS#8 `PrivateKeyInfo`.
fn unwrap_pkcs8(pkcs8: &[u8]) -> Result<&[u8], der::Error> {
    let mut reader = SliceReader::new(pkcs8)?;
    reader.sequence(|fields| {
        let _version = u8::decode(fields)?;
        let _algorithm = AnyRef::decode(fields)?;
        let key = <&OctetStringRef>::decode(fields)?;
        Ok::<_, der::Error>(key.as_bytes())
    })
}

#[cfg(test)]
mod tests {
    use rustix::process::getpriority_process;

    use super::*;

    #[test]
    fn a_search_stands_back_and_its_caller_does_not() {
        let own = || getpriority_process(None).unwrap();
        let before = own();
        assert_eq!(sooner(own), Some(NICE));
        assert_eq!(own(), before);
    }
}
