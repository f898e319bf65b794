//! What this build is, as `build.rs` stamped it. A part that is not known is the word `unknown`.

pub const VERSION: &str = env!("TAILBONE_VERSION");
pub const COMMIT: &str = env!("TAILBONE_COMMIT");
/// Version of Go that built the node.
pub const GO: &str = env!("TAILBONE_GO_VERSION");
/// Version of `tailscale.com` inside.
pub const TSNET: &str = env!("TAILBONE_TSNET_VERSION");
