//! Values that every layer reads: secrets, the names of hosts and the origins of web pages, and
//! texts that are safe to print.
//!
//! They know nothing of where they come from or what they are for.

mod printable;
mod secret;
pub mod web;

pub use printable::printable;
pub use secret::Secret;
