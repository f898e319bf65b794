//! The memory limit of Go's runtime, set before the node starts.
//!
//! Without a limit Go lets its heap grow to twice the live size before it collects, which may get a
//! container killed. The limit is soft: Go collects more often near it, and exceeds it rather than
//! fail.
//!
//! Invariants
//! - The setting wins over `GOMEMLIMIT`, and that over the cgroup.
//! - A share of the cgroup's memory is left to the Rust half and to the kernel's buffers, which Go
//!   does not count.
//! - If a limit cannot be found or set, the server starts without one.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use crate::{
    config::MemoryLimit,
    tailnet::{self, RuntimeLimits, limit_runtime},
};

/// The least that is left to everything but Go: what the Rust half has written (30 MiB when a
/// thousand connections ask and do not read), the program's own pages (40 to 55 MiB), which the
/// kernel could take back, but only to read them again at once, and what Go exceeds its limit by.
const RUST_MINIMUM: u64 = 112 << 20;

/// The smallest limit that is set.
const GO_MINIMUM: u64 = 16 << 20;

/// Cgroups of version 1 write a number beyond this for "no limit".
const NO_LIMIT: u64 = 1 << 60;

/// Where a limit came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LimitSource {
    Cgroup,
    Environment,
    None,
    Setting,
}

/// Sets the limit and logs it.
pub(in crate::server) async fn limit_memory(setting: MemoryLimit) {
    let (bytes, source) = choose_limit(
        setting,
        env::var_os("GOMEMLIMIT").is_some_and(|text| !text.is_empty()),
        || cgroup_limit(Path::new("/")),
    );
    match set_limit(bytes).await {
        Ok(Some(bytes)) => {
            tracing::info!(target: "server", bytes, from = source.name(), "memory of the node limited");
        }
        Ok(None) => {
            tracing::debug!(target: "server", from = source.name(), "memory of the node not limited");
        }
        Err(error) => {
            tracing::warn!(target: "server", %error, "memory of the node not limited");
        }
    }
}

/// Returns the limit in force.
async fn set_limit(bytes: Option<u64>) -> Result<Option<u64>, tailnet::Error> {
    let limits = RuntimeLimits {
        memory_limit: bytes,
        ..RuntimeLimits::default()
    };
    Ok(limit_runtime(limits).await?.memory_limit)
}

/// The limit to set. `None` leaves the runtime as it is: it has read `GOMEMLIMIT` itself.
fn choose_limit(
    setting: MemoryLimit,
    set_by_environment: bool,
    cgroup: impl FnOnce() -> Option<u64>,
) -> (Option<u64>, LimitSource) {
    match setting {
        MemoryLimit::Bytes(bytes) => (Some(bytes), LimitSource::Setting),
        // Go's own word for no limit.
        MemoryLimit::Off => (Some(i64::MAX.cast_unsigned()), LimitSource::Setting),
        MemoryLimit::Auto if set_by_environment => (None, LimitSource::Environment),
        MemoryLimit::Auto => match cgroup() {
            Some(limit) => (Some(go_share(limit)), LimitSource::Cgroup),
            None => (None, LimitSource::None),
        },
    }
}

/// The memory of the whole process, Go and the rest, as far as it is known.
pub(in crate::server) fn process_memory(setting: MemoryLimit) -> Option<u64> {
    match setting {
        MemoryLimit::Bytes(go) => Some(go.saturating_add((go / 3).max(RUST_MINIMUM).min(go))),
        MemoryLimit::Auto | MemoryLimit::Off => cgroup_limit(Path::new("/")),
    }
}

/// Go's share: three quarters, since TCP and WireGuard buffer on Go's side. In a small cgroup the
/// Rust half gets its minimum first, but never more than half.
fn go_share(limit: u64) -> u64 {
    let rust = (limit / 4).max(RUST_MINIMUM).min(limit / 2);
    (limit - rust).max(GO_MINIMUM)
}

/// The smallest limit of the process's cgroup and its ancestors (version 2 or 1), as far as they
/// are visible. In a container only the innermost is, at the root of the mount.
fn cgroup_limit(root: &Path) -> Option<u64> {
    let text = fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
    text.lines()
        .filter_map(|line| limit_of_hierarchy(root, line))
        .min()
}

/// The limit from one line of `/proc/self/cgroup`: `id:controllers:path`.
fn limit_of_hierarchy(root: &Path, line: &str) -> Option<u64> {
    let mut parts = line.splitn(3, ':');
    let (id, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
    let (mount, names): (_, &[_]) = if id == "0" && controllers.is_empty() {
        ("sys/fs/cgroup", &["memory.max", "memory.high"])
    } else if controllers.split(',').any(|name| name == "memory") {
        ("sys/fs/cgroup/memory", &["memory.limit_in_bytes"])
    } else {
        return None;
    };
    let mount = root.join(mount);
    // A path outside of the process's cgroup namespace (`/../..`) does not exist in this mount.
    let inner: PathBuf = path
        .split('/')
        .filter(|name| !name.is_empty())
        .take_while(|name| *name != "..")
        .collect();
    inner
        .ancestors()
        .flat_map(|inner| {
            let directory = mount.join(inner);
            names.iter().map(move |file| directory.join(file))
        })
        .filter_map(|file| parse_limit(&fs::read_to_string(file).ok()?))
        .min()
}

/// `None` for "no limit": the word `max` in version 2, a huge number in version 1.
fn parse_limit(text: &str) -> Option<u64> {
    text.trim().parse().ok().filter(|bytes| *bytes < NO_LIMIT)
}

impl LimitSource {
    fn name(self) -> &'static str {
        match self {
            Self::Cgroup => "cgroup",
            Self::Environment => "GOMEMLIMIT",
            Self::None => "no cgroup with a limit",
            Self::Setting => "server.limits.memory",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// Path and text of each.
    type FileTexts<'a> = &'a [(&'a str, &'a str)];

    /// A machine with these files.
    fn machine(files: FileTexts<'_>) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    #[test]
    fn the_limit_of_each_kind_of_cgroup_is_found() {
        let cases: &[(&str, FileTexts<'_>, Option<u64>)] = &[
            (
                "version 2 in a container: the path is the top",
                &[
                    ("proc/self/cgroup", "0::/\n"),
                    ("sys/fs/cgroup/memory.max", "268435456\n"),
                ],
                Some(256 * MIB),
            ),
            (
                "version 2 in a service: the least of those around counts",
                &[
                    ("proc/self/cgroup", "0::/system.slice/tailbone.service\n"),
                    (
                        "sys/fs/cgroup/system.slice/tailbone.service/memory.max",
                        "max\n",
                    ),
                    (
                        "sys/fs/cgroup/system.slice/tailbone.service/memory.high",
                        "201326592\n",
                    ),
                    ("sys/fs/cgroup/system.slice/memory.max", "536870912\n"),
                ],
                Some(192 * MIB),
            ),
            (
                "version 2 without a limit",
                &[
                    ("proc/self/cgroup", "0::/user.slice\n"),
                    ("sys/fs/cgroup/user.slice/memory.max", "max\n"),
                ],
                None,
            ),
            (
                "version 1, where the path is the host's and not mounted",
                &[
                    (
                        "proc/self/cgroup",
                        "11:cpu,cpuacct:/x\n4:memory:/docker/abc\n0::/docker/abc\n",
                    ),
                    ("sys/fs/cgroup/memory/memory.limit_in_bytes", "134217728\n"),
                ],
                Some(128 * MIB),
            ),
            (
                "version 1 without a limit",
                &[
                    ("proc/self/cgroup", "4:memory:/\n"),
                    (
                        "sys/fs/cgroup/memory/memory.limit_in_bytes",
                        "9223372036854771712\n",
                    ),
                ],
                None,
            ),
            (
                "a path out of sight",
                &[
                    ("proc/self/cgroup", "0::/../../other\n"),
                    ("sys/fs/cgroup/memory.max", "67108864\n"),
                ],
                Some(64 * MIB),
            ),
            ("no cgroups at all", &[], None),
            (
                "nonsense",
                &[
                    ("proc/self/cgroup", "memory\n:::\n0::/\n"),
                    ("sys/fs/cgroup/memory.max", "much\n"),
                ],
                None,
            ),
        ];
        for (what, files, limit) in cases {
            assert_eq!(cgroup_limit(machine(files).path()), *limit, "{what}");
        }
    }

    #[test]
    fn what_the_operator_said_holds() {
        let cgroup = || Some(256 * MIB);
        let not_consulted = || -> Option<u64> { panic!("nobody asked for the cgroup") };
        assert_eq!(
            choose_limit(MemoryLimit::Bytes(64 * MIB), true, not_consulted),
            (Some(64 * MIB), LimitSource::Setting)
        );
        assert_eq!(
            choose_limit(MemoryLimit::Auto, true, not_consulted),
            (None, LimitSource::Environment)
        );
        assert_eq!(
            choose_limit(MemoryLimit::Auto, false, cgroup),
            (Some(144 * MIB), LimitSource::Cgroup)
        );
        assert_eq!(
            choose_limit(MemoryLimit::Auto, false, || None),
            (None, LimitSource::None)
        );
    }

    #[test]
    fn a_small_cgroup_leaves_both_halves_something() {
        for (limit, share) in [
            (1024, 768),
            (448, 336),
            (384, 272),
            (256, 144),
            (200, 100),
            (128, 64),
            (64, 32),
        ] {
            assert_eq!(go_share(limit * MIB), share * MIB, "{limit} MiB");
            // Who sets Go's share has the same process as who sets the cgroup's limit.
            let process = process_memory(MemoryLimit::Bytes(share * MIB));
            assert_eq!(process, Some(limit * MIB), "{limit} MiB");
        }
        assert_eq!(go_share(20 * MIB), GO_MINIMUM);
    }
}
