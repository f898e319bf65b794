//! The admin API: make, list, rotate and remove signing keys, and see how the server does. gRPC in plain text (h2c), on the tailnet
//! and at the local admin socket.
//!
//! | Method | Right | Does |
//! |---|---|---|
//! | `/proto.AdminService/GenerateNewKeys` | `generate` | makes and publishes a key; it signs once verifiers can know it |
//! | `/proto.AdminService/ListKeys` | `list` | the keys of the document, then those of this server that are not in it |
//! | `/proto.AdminService/RemoveKey` | `remove` | takes a key out of the document and its files off this server |
//! | `/proto.AdminService/RotateKeys` | `rotate` | gives the signing key a successor |
//! | `/proto.AdminService/Status` | `list` | node, signing key, trouble with the document |
//! | `/proto.AdminService/WhoIs` | `list` | who is behind a tailnet address, and what that caller would be to us |
//! | `/proto.AdminService/RecentLog` | `list`, and the local socket | the last lines of the log |
//! | `/grpc.health.v1.Health/*`, `/grpc.reflection.*` | | for everybody |
//!
//! Invariants
//! - No method runs that `authorize` did not let in, and each call is one audit line: who, method, kid, decision, rule.
//! - Only gRPC calls of programs get that far: a web page that its visitor's browser lets send requests here reaches no method.
//! - What was begun is finished and audited, also when the caller hangs up.
//! - Names and numbers of `proto/admin.proto` are wire format: clients of the Go program know the first three methods.
//!
//! Left to others: what happens to keys ([`crate::jwks::life`]), who a caller is ([`crate::identity`]), which code an error gets
//! ([`crate::http::error`]), serving ([`crate::http::serve`]).

mod authorize;
mod client;
mod impact;
mod service;
mod socket;
mod status;

/// Code made from `proto/admin.proto`.
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

pub use authorize::{
    Access, CAPABILITY, DECLARED, Decision, METHODS, Requester, Right, Rule, Rules, access,
    authorize,
};
pub use client::{CallError, Client, Target};
pub use impact::{consequences, impact};
pub use service::{Admin, Membership, OwnNode, key, router};
pub use socket::{LONGEST_PATH, Socket, SocketError};
