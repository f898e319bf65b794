//! One connection over the tailnet.

/// (the fence is being written)
#[derive(Debug)]
pub struct Stream {}
