//! The published half of the keys: the JWKS document, the places it is published at, and the life of keys in it.
//!
//! - [`Document`]: parse, change, write; foreign content survives.
//! - [`Publisher`]: [`FilePublisher`]; [`update`] changes a document without losing anyone's change.
//!
//! `jwks` uses `keys`, never the other way.

mod document;
mod file;
mod publisher;

pub use document::{Document, KidTaken, LARGEST, Unreadable};
pub use file::FilePublisher;
pub use publisher::{
    Etag, Found, PublishError, Publisher, UpdateError, Updated, Versioned, update,
};
