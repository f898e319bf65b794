//! The signing key as tsiam keeps it: one private JWK as compact JSON, in a file or a vault.
//!
//! Invariants
//! - A key that is no key pair for signatures, or too weak for them, is refused with a sentence
//!   that says why. tsiam itself published the secret of a symmetric key.
//! - What is read here is never written, changed or deleted there.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use futures_util::{FutureExt as _, future::BoxFuture};
use jiff::Timestamp;
use serde::Deserialize;
use tailbone_values::Object;
use zeroize::Zeroizing;

use crate::{
    Algorithm, JwkError, KeyId, PrivateJwk,
    disk::{self, DiskError},
    sealing::SealError,
};

/// Size limit in bytes; an RSA key of 8192 bits takes 7 KiB.
pub(crate) const MAX_KEY: u64 = 64 * 1024;

/// tsiam's tokens live an hour at most. Its keys stay published that long after their last one.
pub const LONGEST_TOKEN_LIFE: std::time::Duration = std::time::Duration::from_secs(3600);

/// Why a key is not used.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error("it names no algorithm: its member `alg` is missing")]
    NoAlgorithm,
    #[error(
        "it is for {algorithm}, and this key set has no keys for that: name it in the settings \
         (signingKey.algorithm of tsiam, or workload.keys.algorithms)"
    )]
    NotInSet { algorithm: Algorithm },
    #[error("it is not a file of tsidp's key: {0}")]
    NotTsidp(&'static str),
    #[error("it is not a key that we can sign with: {0}")]
    Other(JwkError),
    #[error("it is a public key alone, which cannot sign: its member `d` is missing")]
    PublicOnly,
    #[error("it is a symmetric key, whose secret every verifier would have to be given")]
    Symmetric,
    #[error("it is a weak RSA key: {0} bits, of which at least 2048 are needed")]
    Weak(usize),
}

/// Parses a key. `name` becomes its id if it has none.
pub fn parse(json: &[u8], name: &KeyId) -> Result<PrivateJwk, Refused> {
    #[derive(Deserialize)]
    struct Kind {
        alg: Option<String>,
        kty: Option<String>,
        d: Option<serde::de::IgnoredAny>,
    }
    if let Ok(Object(Kind { alg, kty, d })) = serde_json::from_slice(json) {
        let alg = alg.unwrap_or_default();
        if kty.is_some_and(|kty| kty == "oct") || alg.starts_with("HS") {
            return Err(Refused::Symmetric);
        }
        if alg.is_empty() {
            return Err(Refused::NoAlgorithm);
        }
        if d.is_none() {
            return Err(Refused::PublicOnly);
        }
    }
    PrivateJwk::from_file(json, name).map_err(Refused::from)
}

impl From<JwkError> for Refused {
    fn from(error: JwkError) -> Self {
        match error {
            JwkError::Size(bits) if bits < 2048 => Self::Weak(bits),
            other => Self::Other(other),
        }
    }
}

/// A key that another program made and may have signed with.
pub struct Found {
    pub json: Zeroizing<Vec<u8>>,
    /// When it was made, as far as its place knows.
    pub created: Option<Timestamp>,
}

impl fmt::Debug for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Found")
            .field("created", &self.created)
            .finish_non_exhaustive()
    }
}

/// Why a key was not read. Never contains a part of it.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error("{place}: {reason}")]
    Refused { place: String, reason: Refused },
    #[error("{place}: {detail}")]
    Unavailable { place: String, detail: String },
    #[error("{place}: {error}")]
    Vault { place: String, error: SealError },
}

/// A place where tsiam or tsidp keeps its key.
pub trait KeySource: Send + Sync + fmt::Debug + 'static {
    /// Names the place for people. Never contains a secret.
    fn place(&self) -> &str;

    /// The key; `None` only if it is certain that there is none.
    fn read(&self) -> BoxFuture<'_, Result<Option<Found>, SourceError>>;
}

/// tsiam's storage `file`.
#[derive(Debug)]
pub struct KeyFile {
    path: PathBuf,
    place: String,
}

impl KeyFile {
    pub fn new(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        Self {
            place: path.display().to_string(),
            path,
        }
    }
}

impl KeySource for KeyFile {
    fn place(&self) -> &str {
        &self.place
    }

    fn read(&self) -> BoxFuture<'_, Result<Option<Found>, SourceError>> {
        let path = self.path.clone();
        async move {
            match tokio::task::spawn_blocking(move || read_file(&path)).await {
                Ok(found) => Ok(found?),
                Err(error) => Err(SourceError::Unavailable {
                    place: self.place.clone(),
                    detail: error.to_string(),
                }),
            }
        }
        .boxed()
    }
}

pub(crate) fn read_file(path: &Path) -> Result<Option<Found>, DiskError> {
    let Some(json) = disk::read(path, MAX_KEY)? else {
        return Ok(None);
    };
    let modified = std::fs::metadata(path).and_then(|metadata| metadata.modified());
    Ok(Some(Found {
        json: Zeroizing::new(json),
        created: modified.ok().and_then(|time| time.try_into().ok()),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::KeySpec;

    fn name() -> KeyId {
        "tb-1".parse().unwrap()
    }

    /// The lengths that tsiam's own keys have, with its ids of 22 characters.
    #[test]
    fn the_compact_form_is_tsiams_byte_for_byte() {
        for (spec, length) in [
            (KeySpec::EdDsa, 174),
            (KeySpec::Es256, 221),
            (KeySpec::Es384, 284),
            (KeySpec::Es512, 356),
        ] {
            let kid = "AAECAwQFBgcICQoLDA0ODw".parse().unwrap();
            let key = PrivateJwk::generate(kid, spec).unwrap();
            let json = key.to_compact();
            assert_eq!(json.len(), length, "{spec:?}");
            let again = parse(&json, &name()).unwrap();
            assert_eq!(again.public(), key.public());
            assert_eq!(again.to_compact(), json);
        }
    }

    #[test]
    fn keys_that_must_not_sign_are_refused_with_the_reason() {
        let of = |algorithm| {
            let key = PrivateJwk::generate(name(), KeySpec::new(algorithm, 2048)).unwrap();
            let json = key.to_compact();
            serde_json::from_slice::<serde_json::Value>(&json).unwrap()
        };
        let without = |mut key: serde_json::Value, member: &str| {
            key.as_object_mut().unwrap().remove(member);
            key
        };
        // It protects nothing.
        let weak =
            serde_json::from_str(include_str!("../../../tests/it/keys/small_rsa.jwk")).unwrap();
        for (key, words) in [
            (
                serde_json::json!({"kty": "oct", "k": "c2VjcmV0", "alg": "HS256"}),
                "symmetric",
            ),
            (without(of(Algorithm::Es256), "alg"), "`alg` is missing"),
            (without(of(Algorithm::Es256), "d"), "public key alone"),
            (without(of(Algorithm::Rs256), "d"), "public key alone"),
            (weak, "weak RSA key: 1024 bits"),
            (
                serde_json::json!({"kty": "EC", "crv": "secp256k1", "alg": "ES256K", ("d"): "AA"}),
                "secp256k1",
            ),
            (serde_json::json!([]), "not a JWK"),
        ] {
            let refused = parse(key.to_string().as_bytes(), &name()).unwrap_err();
            assert!(refused.to_string().contains(words), "{refused}");
        }
    }

    #[tokio::test]
    async fn a_file_that_is_not_there_is_no_key_and_one_that_cannot_be_read_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let absent = KeyFile::new(folder.path().join("key.json"));
        assert!(absent.read().await.unwrap().is_none());
        let directory = KeyFile::new(folder.path());
        assert!(matches!(directory.read().await, Err(SourceError::Disk(_))));
    }
}
