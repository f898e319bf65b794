//! Why an operation on the keys was not done.

use crate::jwks::{KidTaken, PublishError, UpdateError};
use crate::{
    Algorithm, InvalidKeyId, JwkError, NoSigner, StoreError, remote::ServiceError,
    sealing::VaultTrouble, tsiam::SourceError,
};

#[derive(Debug, thiserror::Error)]
pub enum LifeError {
    #[error("interrupted: {0}")]
    Interrupted(String),
    #[error("key {0} not found")]
    NotFound(String),
    #[error("this key set has no keys for {algorithm}")]
    NotInSet { algorithm: Algorithm },
    #[error(transparent)]
    Id(#[from] InvalidKeyId),
    #[error(transparent)]
    Jwk(#[from] JwkError),
    #[error(transparent)]
    KidTaken(#[from] KidTaken),
    #[error(transparent)]
    Publish(#[from] PublishError),
    #[error("the signing service made no key: {0}")]
    Remote(#[from] ServiceError),
    #[error("the key directory cannot be written, so no key can be made or removed here")]
    ReadOnly,
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl LifeError {
    /// What is wrong with the vault of the private halves, if that is the trouble. It may pass, so
    /// a server waits for it.
    pub fn vault_trouble(&self) -> Option<VaultTrouble> {
        match self {
            Self::Source(SourceError::Vault { error, .. })
            | Self::Store(StoreError::Seal(error)) => error.trouble(),
            _ => None,
        }
    }

    /// Why nothing signs, where the key that was to be the first one was not made.
    pub(super) fn as_no_signer(&self) -> Option<NoSigner> {
        match self {
            Self::Remote(error) => Some(NoSigner::NotMade(error.trouble)),
            other => other.vault_trouble().map(NoSigner::Vault),
        }
    }
}

impl<E: Into<LifeError>> From<UpdateError<E>> for LifeError {
    fn from(error: UpdateError<E>) -> Self {
        match error {
            UpdateError::Change(change) => change.into(),
            UpdateError::Publish(publish) => Self::Publish(publish),
        }
    }
}
