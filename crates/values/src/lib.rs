//! Values that every layer reads: secrets, the names of hosts and the origins of web pages,
//! patterns, texts that are safe to print, and JSON objects.
//!
//! They know nothing of where they come from or what they are for.
//!
//! ```
//! use tailbone_values::{Secret, web::{Host, HostPattern}};
//!
//! let pattern = HostPattern::parse("*.example.com")?;
//! assert!(pattern.matches(&Host::parse("wiki.example.com").map_err(|bad| bad.to_string())?));
//! assert_eq!(format!("{:?}", Secret::new("tskey-auth-1")), "(hidden)");
//! # Ok::<(), String>(())
//! ```

pub mod glob;
mod object;
mod printable;
mod secret;
pub mod web;

pub use object::Object;
pub use printable::{excerpt, printable};
pub use secret::Secret;
