//! The versions of this build, set by `build.rs`. An unknown one is the word `unknown`.

pub const VERSION: &str = env!("TAILBONE_VERSION");
pub const COMMIT: &str = env!("TAILBONE_COMMIT");
/// The version of Go that built the node.
pub const GO: &str = env!("TAILBONE_GO_VERSION");
/// The version of `tailscale.com` inside.
pub const TSNET: &str = env!("TAILBONE_TSNET_VERSION");
