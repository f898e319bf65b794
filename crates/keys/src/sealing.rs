//! Private halves that the key directory alone does not give away.
//!
//! The directory then holds `<kid>.private.sealed.json` in place of the private half: what a vault
//! needs to give it back. It is opened once per process, so a vault that is away later stops
//! nothing.
//!
//! Invariants
//! - A vault that does not answer, or denies, is never taken for a key that is gone
//!   ([`SealError::is_final`]): no successor is made for a key that may come back.
//! - What is sealed is not written anywhere in the clear.

use std::{collections::HashMap, fmt, sync::Arc, time::Instant};

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tailbone_telemetry::meter::Meter;
use zeroize::Zeroizing;

use super::KeyId;

/// Why a vault gives no private halves, for callers and readiness: the words name no address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum VaultTrouble {
    #[error("the vault of the private keys cannot be reached")]
    Away,
    #[error("the vault of the private keys denies them to this server")]
    Denied,
}

/// Keeps private halves. Implementations: [`crate::azure::WrappingKey`] and
/// [`crate::azure::SecretPerKey`]; both pass the same list of tests.
pub trait Sealing: Send + Sync + fmt::Debug + 'static {
    /// What metrics call it.
    fn kind(&self) -> &'static str;

    /// Names the vault for people. Never contains a secret.
    fn place(&self) -> &str;

    /// Takes a private half, and returns what the directory holds in place of it.
    fn seal<'a>(
        &'a self,
        name: &'a KeyId,
        key: &'a [u8],
    ) -> BoxFuture<'a, Result<Vec<u8>, SealError>>;

    /// Gives the private half back.
    fn open<'a>(&'a self, sealed: &'a [u8])
    -> BoxFuture<'a, Result<Zeroizing<Vec<u8>>, SealError>>;

    /// Forgets the private half. Succeeds if that was done before.
    fn discard<'a>(&'a self, sealed: &'a [u8]) -> BoxFuture<'a, Result<(), SealError>>;
}

/// Why a private half could not be sealed, opened or discarded. Never contains a part of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// It may work later.
    #[error("{place} cannot be reached: {detail}")]
    Away { place: String, detail: String },
    /// It works when an operator has changed something there.
    #[error("{place} denies this server its keys: {detail}")]
    Denied { place: String, detail: String },
    #[error("it was not sealed by {place}")]
    Foreign { place: String },
    #[error("{place} no longer has what it was sealed with: {detail}")]
    Lost { place: String, detail: String },
}

impl SealError {
    /// Nothing will bring the key back.
    pub fn is_final(&self) -> bool {
        self.trouble().is_none()
    }

    /// What may pass, unless it is final.
    pub fn trouble(&self) -> Option<VaultTrouble> {
        match self {
            Self::Away { .. } => Some(VaultTrouble::Away),
            Self::Denied { .. } => Some(VaultTrouble::Denied),
            Self::Foreign { .. } | Self::Lost { .. } => None,
        }
    }

    /// The label of metrics.
    fn code(&self) -> &'static str {
        match self {
            Self::Away { .. } => "away",
            Self::Denied { .. } => "forbidden",
            Self::Foreign { .. } => "foreign",
            Self::Lost { .. } => "lost",
        }
    }
}

/// A vault, and what it has opened for this process.
#[derive(Clone)]
pub(crate) struct Sealed {
    sealing: Arc<dyn Sealing>,
    opened: Arc<Mutex<Opened>>,
    meter: Meter,
}

/// Private halves by what the directory holds in place of them.
type Opened = HashMap<Vec<u8>, Zeroizing<Vec<u8>>>;

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Sealed").field(&self.sealing).finish()
    }
}

/// Blocks the thread until the vault has answered: the key directory is read and written where that
/// is allowed.
impl Sealed {
    pub(crate) fn new(sealing: Arc<dyn Sealing>) -> Self {
        Self {
            sealing,
            opened: Arc::default(),
            meter: Meter::default(),
        }
    }

    pub(crate) fn counted_by(self, meter: &Meter) -> Self {
        Self {
            meter: meter.clone(),
            ..self
        }
    }

    pub(crate) fn seal(&self, name: &KeyId, key: &[u8]) -> Result<Vec<u8>, SealError> {
        let sealed = self.wait("seal", self.sealing.seal(name, key))?;
        self.remember(&sealed, key);
        Ok(sealed)
    }

    pub(crate) fn open(&self, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealError> {
        if let Some(key) = self.opened.lock().get(sealed) {
            return Ok(key.clone());
        }
        let key = self.wait("open", self.sealing.open(sealed))?;
        self.remember(sealed, &key);
        Ok(key)
    }

    pub(crate) fn discard(&self, sealed: &[u8]) -> Result<(), SealError> {
        self.opened.lock().remove(sealed);
        self.wait("discard", self.sealing.discard(sealed))
    }

    fn remember(&self, sealed: &[u8], key: &[u8]) {
        let key = Zeroizing::new(key.to_vec());
        self.opened.lock().insert(sealed.to_vec(), key);
    }

    fn wait<T>(
        &self,
        call: &'static str,
        answer: BoxFuture<'_, Result<T, SealError>>,
    ) -> Result<T, SealError> {
        let began = Instant::now();
        let outcome = match tokio::runtime::Handle::try_current() {
            Ok(runtime) => runtime.block_on(answer),
            Err(error) => Err(SealError::Away {
                place: self.sealing.place().to_owned(),
                detail: error.to_string(),
            }),
        };
        let result = outcome.as_ref().map_or_else(SealError::code, |_| "done");
        let service = self.sealing.kind();
        self.meter
            .key_service_called(service, call, result, began.elapsed());
        outcome
    }
}
