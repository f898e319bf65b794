//! The composition root of `tailbone server …`: what is built in which order, and how it ends. The only place that names every
//! component.
//!
//! Order of the start: signals, then node and keys side by side (joining waits for the network, a first key for the processor),
//! then listeners, then "listening" in the log. A listener exists only once what it serves is ready.
//!
//! Order of the end: listeners stop accepting, open requests get the grace time, the keys' task ends, the node logs out if it is
//! ephemeral and closes. A second signal ends the process at once.
//!
//! Left to others: joining ([`crate::tailnet::join`]), serving ([`crate::http::serve`]), which key signs ([`crate::jwks`]).

mod error;
mod node;

use std::{process::ExitCode, sync::Arc};

pub use error::StartError;
