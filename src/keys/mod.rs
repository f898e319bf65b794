//! Signing keys: what they are, where they lie, which of them signs.
//!
//! - [`KeyId`]: names, safe as file names; [`PrivateJwk`], [`PublicJwk`]: the two halves and their written form.
//! - [`Signer`]: a key prepared once; `signer.sign(claims) -> jwt`. [`SigningPool`]: the same off the async workers.
//! - [`disk`]: atomic files.
//!
//! Publishing is `jwks`; this module knows nothing of it.

pub mod disk;
mod history;
mod id;
mod jwk;
mod signer;
mod store;

pub use history::{History, HistoryError, Publication};
pub use id::{InvalidKeyId, KeyId};
pub use jwk::{Algorithm, JwkError, PrivateJwk, PublicJwk, PublicParts};
pub use signer::{SignError, Signer, SigningPool};
pub use store::{Contents, Fingerprint, KeyStore, Skipped, StoreError, StoredKey};
