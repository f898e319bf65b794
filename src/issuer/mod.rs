//! The issuer: a signed JWT for whoever calls.
//!
//! | Route | Answer |
//! |---|---|
//! | `POST /issue` | 200 `{"token": "<jwt>"}` for the calling user or machine; `Cache-Control: no-store` |
//! | `GET /.well-known/jwks.json` | 200 the published keys (RFC 7517) |
//! | `GET /_healthz` | 200 `{"commit", "ok", "version"}`: the process answers; nothing more |
//!
//! Invariants
//! - The claims come from the connection's identity alone; body, query and headers of the request are not read.
//! - A request that comes while a start still makes its first key waits for it.
//! - On the warm path there is no disk, no lock, no WhoIs and no parsing of keys.
//! - Each token and each refusal is one audit line with `kid` and `jti`; the token itself is never written anywhere.
//!
//! Left to others: who calls ([`crate::identity`]), which key signs ([`crate::keys`]), statuses ([`crate::http`]).

mod claims;
mod routes;

pub use claims::{Claims, TokenRules};
pub use routes::{Issuer, router};
