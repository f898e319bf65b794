//! Signing keys: what they are, where they are stored, and which of them signs.
//!
//! An issuer needs three things:
//!
//! ```text
//! let life = jwks::life::KeyLife::new(store, publisher, policy, "tb", spec);
//! life.start(now).await?;                          // makes and publishes the first key
//! // every second: life.poll(now).await
//! let signer = life.ring().loaded().await.signer()?; // or why there is none: NoSigner
//! let jwt = queue.sign(&signer, claims_json).await?; // SigningQueue::new(batch), one per process
//! ```
//!
//! - [`KeyId`]: names that are safe as file names; [`PrivateJwk`], [`PublicJwk`]: the two halves
//!   and their written form.
//! - [`Signer`]: a key prepared once; [`SigningQueue`]: limits concurrent RSA signatures; [`Ring`]:
//!   what signs now, readable without locks.
//! - [`KeyStore`]: the directory; [`History`]: the facts of a key's life; [`rotation`]: the rules,
//!   a pure function of the facts.
//! - [`disk`]: atomic files and locks.
//!
//! Publishing is in [`jwks`], of which the other modules know nothing. Time is always an argument.

pub mod disk;
mod history;
mod id;
mod jwk;
pub mod jwks;
mod ring;
pub mod rotation;
mod signer;
mod store;

pub use history::{History, HistoryError, Publication};
pub use id::{InvalidKeyId, KeyId};
pub use jwk::{Algorithm, JwkError, KeySpec, PrivateJwk, PublicJwk, PublicParts, RSA_SIZES};
pub use ring::{KeyView, Ring, Snapshot};
pub use rotation::{NoSigner, Policy, State};
pub use signer::{Batch, SignError, Signer, SigningQueue};
pub use store::{Contents, Fingerprint, KeyStore, Skipped, StoreError, StoredKey};
