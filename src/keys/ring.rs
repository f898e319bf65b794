//! TEMPORARY until the key life is merged.
use super::{SignError, Signer, SigningPool};
use arc_swap::ArcSwapOption;
use std::sync::Arc;

#[derive(Debug)]
pub struct KeyRing {
    pub current: ArcSwapOption<Signer>,
    pub pool: SigningPool,
    pub document: arc_swap::ArcSwap<Vec<u8>>,
}
#[derive(Debug, Clone, thiserror::Error)]
#[error("no key")]
pub struct NoSigner;
impl KeyRing {
    pub fn signer(&self) -> Result<Arc<Signer>, NoSigner> {
        self.current.load_full().ok_or(NoSigner)
    }
    pub async fn sign(&self, signer: &Arc<Signer>, claims: Vec<u8>) -> Result<String, SignError> {
        self.pool.sign(signer, claims).await
    }
    pub fn look(&self) {}
    pub fn document(&self) -> Arc<Vec<u8>> {
        self.document.load_full()
    }
}
