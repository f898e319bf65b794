//! The services that the program offers, one folder each. None imports another one; what two of
//! them need lies further down. Each hands the server a [`Part`](crate::part::Part).

pub mod admin;
pub mod gate;
pub mod issuer;
pub mod metrics;
pub mod oidc;
pub mod sts;
pub mod workload;
