//! Tokens for machines that the clouds trust.

pub mod client;
