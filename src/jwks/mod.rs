//! (being written)

pub mod fetch;
