//! Raw declarations of the tailnet node that is linked into the program.
//!
//! The node is Tailscale's userspace node (tsnet, Go), built from `../libtailscale` as a static
//! archive behind a small C ABI. `../libtailscale/tailscale.h` says who owns which pointer and what
//! each call waits for; [`bindings`](self) are generated from that header (`scripts/bindings`,
//! checked by `scripts/bindings --check`).
//!
//! This crate adds nothing to them: no types of its own, no safety. Those are up to the crate that
//! uses it.
//!
//! Only one Go runtime can live in a process, and it does not survive a fork without exec.
#![no_std]
#![allow(non_camel_case_types, non_upper_case_globals)]

mod bindings;

pub use bindings::*;
