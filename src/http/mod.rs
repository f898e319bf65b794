//! HTTP as all components share it: serving a listener ([`serve`], on a host address with [`tls`]), the layers around each router
//! ([`layers`]), and the one place where an error becomes a status ([`error`]); how often somebody may ask ([`pace`]), and what is
//! kept for each who does ([`accounts`]); health for probes ([`health`]); what a web page may not
//! ask for ([`host`], [`origin`], [`grpc`]).
//!
//! Left to the components: their routes, and which of their errors is which [`error::Kind`].

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

pub use error::Error;
