//! The admin API: create, list, rotate and remove signing keys, and inspect the server. It is gRPC
//! in plain text (h2c), on the tailnet and on the local admin socket.
//!
//! | Method | Right | Effect |
//! |---|---|---|
//! | `/proto.AdminService/GenerateNewKeys` | `generate` | makes and publishes a key |
//! | `/proto.AdminService/ListKeys` | `list` | the published keys, then this server's other keys |
//! | `/proto.AdminService/RemoveKey` | `remove` | removes a key from document and server |
//! | `/proto.AdminService/RotateKeys` | `rotate` | makes a successor for the signing key |
//! | `/proto.AdminService/Status` | `list` | node, signing key, problems with the document |
//! | `/proto.AdminService/WhoIs` | `list` | the identity behind a tailnet address, as we see it |
//! | `/proto.AdminService/RecentLog` | `list` | the last log lines; only on the local socket |
//! | `/tailbone.oidc.v1.OidcAdmin/*` that read | `oidc-view` | clients, sessions, grants |
//! | the others of `/tailbone.oidc.v1.OidcAdmin/*` | `oidc-edit` | changes them |
//! | `/grpc.health.v1.Health/*` | | open to everybody |
//! | `/grpc.reflection.*` | | open to everybody |
//!
//! A new key signs as soon as verifiers can know it.
//!
//! Invariants
//! - A method only runs if `authorize` allows it, and each call is one audit line with requester,
//!   method, what it was about, decision and rule.
//! - Only gRPC calls of programs are considered: no request of a web page reaches a method.
//! - A call that has begun is completed and audited, even if the caller disconnects.
//! - The names and numbers in `proto/admin.proto` are a wire format; clients of the Go program use
//!   the first three methods.
//!
//! Done elsewhere: operations on keys ([`crate::jwks::life`]) and on the OpenID provider
//! ([`tailbone_oidc::provider::Provider`]), identification
//! ([`crate::identity`]), status codes of errors ([`crate::http::error`]), serving
//! ([`crate::http::serve`]).

mod api;
mod authorize;
mod client;
mod impact;
mod key_errors;
mod new_key;
mod oidc_api;
mod socket;

/// Code generated from `proto/admin.proto`.
#[allow(
    missing_debug_implementations,
    unreachable_pub,
    clippy::all,
    clippy::pedantic
)]
pub mod proto {
    tonic::include_proto!("proto");

    pub const DESCRIPTORS: &[u8] =
        include_bytes!(concat!(env!("OUT_DIR"), "/admin_descriptors.bin"));
}

/// Code generated from `proto/oidc.proto`.
#[allow(
    missing_debug_implementations,
    unreachable_pub,
    clippy::all,
    clippy::pedantic
)]
pub mod oidc_proto {
    tonic::include_proto!("tailbone.oidc.v1");
}

pub use api::{AdminApi, key_of, part, router, wire_key};
pub use authorize::{
    ADMIN_CAPABILITY, Access, AccessDecision, AccessRule, AccessRules, DECLARED_METHODS, METHODS,
    Requester, Right, access, authorize,
};
pub use client::{AdminClient, CallError, ServerAddress};
pub use impact::{Impact, consequences, impact};
pub use new_key::{named_set, requested_spec_in};
pub use socket::{AdminSocket, AdminSocketError};
