//! What the program tells about itself: log lines ([`log`]) and audit lines ([`audit`]).
//!
//! Invariant: no token, key or secret ever enters an event. Fields that name a key are always spelled `kid`.

pub mod audit;
pub mod log;
