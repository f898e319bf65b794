//! (being written)

pub mod sts;
