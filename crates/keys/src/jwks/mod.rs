//! The published half of the keys: the JWKS document, the places where it is published, and the
//! life of keys in it.
//!
//! - [`life::KeyLife`] is what servers and operators use: `start`, `poll`/`sync`, `generate`,
//!   `list`, `remove`, `rotate`, `housekeeping`. `current_keys()` is for signing; `document()` is
//!   what `/.well-known/jwks.json` serves (`.document.to_bytes()`).
//! - [`KeySet`] is several lives, one for each algorithm, that share one document.
//! - [`Document`]: parse, change, write; foreign content survives.
//! - [`Publisher`]: [`FilePublisher`], [`S3Publisher`], [`MemoryPublisher`]; [`update`] changes a
//!   document without losing anyone's change.
//! - [`fetch`] reads other issuers' documents, to verify their tokens with [`verify`].
//!
//! `jwks` uses `keys`, never the other way round.

mod document;
pub mod fetch;
mod file;
pub mod life;
mod memory;
mod publisher;
mod s3;
mod set;
pub mod verify;

pub use document::{Document, KidTaken, MAX_DOCUMENT, Unreadable};
pub use file::FilePublisher;
pub use memory::MemoryPublisher;
pub use publisher::{
    Etag, Found, PublishError, Publisher, UpdateError, Updated, Versioned, update,
};
pub use s3::{S3Publisher, S3Settings};
pub use set::KeySet;
