//! HTTP for all components: serving a listener ([`serve`]), listeners on a host address ([`tcp`])
//! and on a unix socket ([`unix`]), TLS on any of them ([`tls`]) with its certificates
//! ([`certificate`], [`node_certificate`]), redirects to it ([`redirect`]), the layers around each
//! router ([`layers`]), the one place where an error becomes a status ([`error`]), request rates
//! ([`rate_limit`]) and the accounts that they need ([`accounts`]), health endpoints for probes
//! ([`health`]), the refusal of requests that a web page must not make ([`host`], [`origin`],
//! [`grpc`]), forms ([`form`]), answers in JSON ([`json`]), documents that everybody may keep
//! ([`public_document`]), and requests to one other server ([`client`]).
//!
//! Components bring their routes, and say which [`error::Kind`] each of their errors is.
//!
//! ```
//! use axum::{Router, routing::get};
//! use tailbone_http::{layers, serve::{Limits, serve}, tcp::{PlainListener, Remote}};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let tcp = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
//! let routes = layers::wrap(Router::new().route("/", get(async || "hello")), "hello");
//! let server = serve("hello", PlainListener(tcp), routes, Limits::default(), Remote::identify);
//! // Until a signal comes.
//! server.stop(std::time::Duration::from_secs(1)).await;
//! # Ok(())
//! # }
//! ```

pub mod accounts;
pub mod certificate;
pub mod client;
pub mod error;
pub mod form;
pub mod grpc;
pub mod health;
pub mod host;
pub mod json;
pub mod layers;
pub mod node_certificate;
pub mod origin;
mod peers;
pub mod public_document;
pub mod rate_limit;
pub mod redirect;
pub mod serve;
pub mod tcp;
mod timeouts;
pub mod tls;
pub mod unix;

pub use error::Error;
