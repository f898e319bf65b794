//! Signing keys: what they are, where they lie, which of them signs.
//!
//! For issuing, three things are enough:
//!
//! ```text
//! let life = jwks::life::KeyLife::open(&settings.keys);
//! life.start(now).await?;                          // makes and publishes the first key
//! // every second: life.poll(now).await
//! let signer = life.ring().loaded().await.signer()?; // or why there is none: NoSigner
//! let jwt = queue.sign(&signer, claims_json).await?; // SigningQueue::new(), one per process
//! ```
//!
//! - [`KeyId`]: names, safe as file names; [`PrivateJwk`], [`PublicJwk`]: the two halves and their written form.
//! - [`Signer`]: a key prepared once; [`SigningQueue`]: RSA in turn; [`Ring`]: what signs now, without locks.
//! - [`KeyStore`]: the directory; [`History`]: facts of a key's life; [`rotation`]: the rules, a pure function of them.
//! - [`disk`]: atomic files and locks.
//!
//! Publishing is `jwks`; this module knows nothing of it. Time is always an argument.

pub mod disk;
mod history;
mod id;
mod jwk;
mod ring;
pub mod rotation;
mod signer;
mod store;

pub use history::{History, HistoryError, Publication};
pub use id::{InvalidKeyId, KeyId};
pub use jwk::{Algorithm, JwkError, PrivateJwk, PublicJwk, PublicParts};
pub use ring::{KeyView, Ring, Snapshot};
pub use rotation::{NoSigner, Policy, State};
pub use signer::{SignError, Signer, SigningQueue};
pub use store::{Contents, Fingerprint, KeyStore, Skipped, StoreError, StoredKey};
