//! HTTP for all components: serving a listener ([`serve`]), listeners
//! on a host address ([`tls`]) and on a unix socket ([`unix`]), the
//! layers around each router ([`layers`]), the one place where an error becomes a status
//! ([`error`]), request rates ([`pace`]) and the accounts that they need ([`accounts`]), health
//! endpoints for probes ([`health`]), and the refusal of requests that a web page must not make
//! ([`host`], [`origin`], [`grpc`]).
//!
//! Components bring their routes, and say which [`error::Kind`] each of their errors is.

pub mod accounts;
pub mod error;
pub mod grpc;
pub mod health;
pub mod host;
pub mod layers;
pub mod origin;
pub mod pace;
mod patience;
mod peers;
pub mod serve;
pub mod tls;
pub mod unix;

pub use error::Error;
