//! The issuer: a signed JWT for each caller.
//!
//! | Route | Answer |
//! |---|---|
//! | `POST /issue` | 200 `{"token": "<jwt>"}` for the calling user or machine |
//! | `GET /.well-known/jwks.json` | 200 and the published keys (RFC 7517) |
//! | `GET /_healthz` | 200 `{"commit", "ok", "version"}`, without any checks |
//!
//! Through Funnel there is only the document with the keys.
//!
//! Invariants
//! - The claims come only from the connection's identity; body, query and headers of the request do
//!   not influence them.
//! - A request that arrives while the first key is being made at the start waits for it.
//! - Normally a request needs no disk access, no lock, no WhoIs call and no parsing of keys.
//! - Each token and each refusal is one audit line, with `kid` and `jti` for a token; the token
//!   itself is never written anywhere.
//!
//! Done elsewhere: identification ([`crate::identity`]), choice of the key ([`crate::keys`]),
//! statuses ([`crate::http`]).

mod claims;
mod routes;

pub use claims::IssuerClaims;
pub use routes::{Issuer, internet_router, part, router};
