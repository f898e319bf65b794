//! The gate on a fake tailnet. `docs/compatibility/gate.md` says what is done differently from a
//! published WhoIs middleware, and why.

pub(crate) mod command;
mod decisions;
/// The published example must work.
#[allow(dead_code, unreachable_pub)]
#[path = "../../../examples/whoami.rs"]
mod example;
mod gaps;
mod pages;
mod proxies;
mod reverse;
mod server;
mod upstreams;
mod whois_rules;

use testkit::backend::Answer;

/// Status and stable code of a refusal.
fn refused(answer: &Answer) -> (u16, String) {
    (answer.status, answer.code())
}
