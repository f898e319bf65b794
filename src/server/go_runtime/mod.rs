//! The limits of Go's runtime inside this process: its memory, and its share of the cores.

mod memory;
mod processors;

pub(super) use memory::{limit_memory, process_memory};
pub(super) use processors::limit_processors;
