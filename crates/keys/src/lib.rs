//! Signing keys: what they are, where they are stored, and which of them signs.
//!
//! A key signs, and its public half goes into a JWKS, with which others verify the token:
//!
//! ```
//! use tailbone_keys::{KeySpec, PrivateJwk, Signer, jwks::Document};
//!
//! let key = PrivateJwk::generate("tb-1".parse()?, KeySpec::Es256)?;
//! let token = Signer::new(&key)?.sign(br#"{"sub":"alice@example.com"}"#)?;
//! assert_eq!(token.split('.').count(), 3);
//!
//! let mut jwks = Document::default();
//! jwks.add(key.public())?;
//! assert!(jwks.find("tb-1").is_some());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A server does not choose keys itself. [`jwks::life::KeyLife`] makes, publishes and retires them,
//! its [`CurrentKeys`] say which one signs now, and a [`SigningQueue`] per process does so. A
//! [`jwks::KeySet`] has such a life for each of several algorithms.
//!
//! - [`KeyId`]: names that are safe as file names; [`PrivateJwk`], [`PublicJwk`]: the two halves
//!   and their written form.
//! - [`Signer`]: a key prepared once; [`SigningQueue`]: limits concurrent RSA signatures;
//!   [`CurrentKeys`]: what signs now, readable without locks.
//! - [`KeyStore`]: the directory; [`History`]: the facts of a key's life; [`rotation`]: the rules,
//!   a pure function of the facts.
//! - [`remote`]: keys whose private half a signing service keeps.
//! - [`sealing`]: private halves that a vault keeps, and [`azure`], the vaults that do.
//! - [`disk`]: atomic files and locks. [`issuer_name`]: the name in tokens, kept beside the keys.
//!   [`tsiam`], [`tsidp`]: the keys of the programs that we replace.
//!
//! Publishing is in [`jwks`], of which the other modules know nothing. Time is always an argument.

pub mod azure;
mod current;
pub mod disk;
mod history;
mod id;
pub mod issuer_name;
mod jwk;
pub mod jwks;
pub mod remote;
pub mod rotation;
pub mod sealing;
mod signer;
mod store;
pub mod tsiam;
pub mod tsidp;

pub use current::{CurrentKeys, KeyView, Snapshot};
pub use history::{History, HistoryError, Publication};
pub use id::{InvalidKeyId, KeyId};
pub use jwk::{
    Algorithm, Curve, JwkError, KeySpec, PrivateJwk, PublicJwk, PublicParts, RSA_SIZES,
    UnknownAlgorithm,
};
pub use rotation::{KeyPolicy, KeyState, NoSigner};
pub use signer::{Batch, SignError, Signer, SigningQueue};
pub use store::{Contents, Fingerprint, KeyStore, Skipped, StoreError, StoredKey};
