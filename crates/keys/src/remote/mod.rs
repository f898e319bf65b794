//! Keys that a signing service keeps: the private half never reaches this process.
//!
//! Such a key has the same life as a local one. In the key directory a [`KeyReference`] stands in
//! place of the private half: which service, which key, which version, and the public JWK. So the
//! key can be published, waited for and retired while the service is away.
//!
//! Invariants
//! - A token whose signature does not verify with the published JWK is never handed out: a key that
//!   was replaced behind its name is an error ([`Trouble::Mismatch`]), not a token.
//! - At most [`RemoteLimits::concurrency`] signatures of a service are in progress, and a caller
//!   waits at most [`RemoteLimits::timeout`], retries included.
//! - While a service cannot sign, callers are refused at once (`breaker.rs`); one probe at a time
//!   finds out when it can again.
//! - Words for callers and readiness ([`Trouble`]) name no address, path or key; those for the log
//!   do ([`ServiceError`]). Neither holds a credential.
//!
//! `rotation.rs` decides which key signs and knows nothing of services.

pub mod awskms;
pub mod azure;
mod breaker;
mod engine;
pub mod pkcs11;
mod public;
mod services;
pub mod vault;

use std::{fmt, time::Duration};

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

use super::{KeyId, KeySpec, PublicJwk};

pub(crate) use engine::RemoteKey;
pub use services::RemoteServices;

/// A kind of signing service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServiceKind {
    #[serde(rename = "awskms")]
    AwsKms,
    #[serde(rename = "azure")]
    Azure,
    #[serde(rename = "pkcs11")]
    Pkcs11,
    #[serde(rename = "vault")]
    Vault,
}

impl ServiceKind {
    /// The value of `keys.signer` and of the reference files.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AwsKms => "awskms",
            Self::Azure => "azure",
            Self::Pkcs11 => "pkcs11",
            Self::Vault => "vault",
        }
    }
}

impl fmt::Display for ServiceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AwsKms => "AWS KMS",
            Self::Azure => "Azure Key Vault",
            Self::Pkcs11 => "a PKCS#11 token",
            Self::Vault => "Vault",
        })
    }
}

/// A service that makes keys and signs with them.
///
/// Implementations neither retry nor limit their calls: the engine does both for all of them.
pub trait KeyService: fmt::Debug + Send + Sync {
    fn kind(&self) -> ServiceKind;

    /// Makes a key, or the next version of one.
    fn make(&self, kid: KeyId, spec: KeySpec) -> BoxFuture<'_, Result<KeyReference, ServiceError>>;

    /// How long that may take.
    fn make_timeout(&self) -> Duration {
        Duration::from_secs(30)
    }

    /// The signature over `message` as a JWS holds it (RFC 7518, section 3; R ‖ S for ECDSA).
    fn sign<'a>(
        &'a self,
        key: &'a KeyReference,
        message: &'a [u8],
    ) -> BoxFuture<'a, Result<Vec<u8>, ServiceError>>;
}

/// A key of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyReference {
    pub location: KeyLocation,
    pub public: PublicJwk,
}

/// Where a service has a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyLocation {
    /// In the words of the service.
    pub key: String,
    pub service: ServiceKind,
    /// Empty where keys have no versions.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub version: String,
}

/// Limits for calls of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RemoteLimits {
    /// Signatures in progress at one time.
    pub concurrency: usize,
    /// How long a caller waits for a signature, retries included.
    pub timeout: Duration,
}

impl Default for RemoteLimits {
    fn default() -> Self {
        Self {
            concurrency: 64,
            timeout: Duration::from_secs(3),
        }
    }
}

/// Why a service does not sign, for callers and readiness.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    #[error("the signing service cannot be reached")]
    Away,
    #[error("the signing service has disabled or deleted the key")]
    Disabled,
    #[error("the signing service denies this server the permission to sign")]
    Forbidden,
    #[error("the signing service has another key under this name than the published one")]
    Mismatch,
    #[error("the signing service answers in an unexpected way")]
    Refused,
    #[error("the signing service is sealed")]
    Sealed,
    #[error("the signing service does not answer in time")]
    Slow,
    #[error("the signing service is asked for more than it allows")]
    Throttled,
}

impl Trouble {
    /// The label of metrics.
    fn as_str(self) -> &'static str {
        match self {
            Self::Away => "away",
            Self::Disabled => "disabled",
            Self::Forbidden => "forbidden",
            Self::Mismatch => "mismatch",
            Self::Refused => "refused",
            Self::Sealed => "sealed",
            Self::Slow => "slow",
            Self::Throttled => "throttled",
        }
    }
}

/// What went wrong with a call of a service.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{trouble}: {detail}")]
pub struct ServiceError {
    pub trouble: Trouble,
    /// For the log: what was asked where, and what the service said.
    pub detail: String,
    /// The call may be repeated after this pause.
    pub retry_after: Option<Duration>,
}

impl ServiceError {
    pub fn new(trouble: Trouble, detail: impl Into<String>) -> Self {
        Self {
            trouble,
            detail: detail.into(),
            retry_after: None,
        }
    }

    #[must_use]
    pub fn retry_after(self, pause: Duration) -> Self {
        Self {
            retry_after: Some(pause),
            ..self
        }
    }
}

/// Why there is no signature, for the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{trouble}")]
pub struct RemoteFailure {
    pub trouble: Trouble,
    /// When the caller may try again.
    pub retry_after: Duration,
}

/// Why a reference file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ReferenceError {
    #[error("not a reference to a key of a signing service: {0}")]
    Json(&'static str),
    #[error(transparent)]
    Jwk(#[from] super::JwkError),
}

#[derive(Serialize, Deserialize)]
struct ReferenceFile<J> {
    jwk: J,
    #[serde(flatten)]
    location: KeyLocation,
}

impl KeyReference {
    /// Parses the text of a reference file.
    pub fn from_file(json: &[u8]) -> Result<Self, ReferenceError> {
        let file: ReferenceFile<serde_json::Value> =
            serde_json::from_slice(json).map_err(|error| {
                ReferenceError::Json(match error.classify() {
                    serde_json::error::Category::Data => "a member is missing or unknown",
                    _ => "not JSON",
                })
            })?;
        let public = PublicJwk::from_json(file.jwk.to_string().as_bytes())?;
        // A key that is not one would be published, and verify nothing.
        public::Verifier::new(&public.parts)?;
        Ok(Self {
            location: file.location,
            public,
        })
    }

    /// The reference as its file holds it, indented by two spaces.
    pub fn to_file(&self) -> Vec<u8> {
        let file = ReferenceFile {
            jwk: self.public.to_value(),
            location: self.location.clone(),
        };
        serde_json::to_value(file)
            .map(|value| format!("{value:#}").into_bytes())
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests;
