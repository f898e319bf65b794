//! The runtime of the embedded node: its memory limit from the setting, the variable or the cgroup,
//! and the sleep of its threads.

use std::{
    fs,
    path::{Path, PathBuf},
};

use tailbone::tailnet::{RuntimeLimits, limit_runtime, runtime_stats};
use tempfile::TempDir;

use super::{alone, tailbone};

const MIB: u64 = 1 << 20;

#[test]
fn the_runtime_tells_the_limit_that_it_was_given() {
    alone(async {
        let of = |bytes| RuntimeLimits {
            memory_limit: Some(bytes),
            ..RuntimeLimits::default()
        };
        assert_eq!(runtime_stats().await.unwrap().memory_limit, None);
        assert_eq!(
            limit_runtime(of(100 * MIB)).await.unwrap().memory_limit,
            Some(100 * MIB)
        );
        assert_eq!(runtime_stats().await.unwrap().memory_limit, Some(100 * MIB));
        assert_eq!(
            limit_runtime(of(i64::MAX.cast_unsigned()))
                .await
                .unwrap()
                .memory_limit,
            None
        );
        assert_eq!(runtime_stats().await.unwrap().memory_limit, None);
    });
}

#[test]
fn every_thread_sleeps_in_coarse_steps() {
    alone(async {
        runtime_stats().await.unwrap();
        if !rustix::process::geteuid().is_root() {
            println!("skipped: only root may read the timer slack of other threads");
            return;
        }
        let mut threads = 0;
        for task in fs::read_dir("/proc/self/task").unwrap() {
            let task = task.unwrap().file_name();
            let slack = Path::new("/proc").join(task).join("timerslack_ns");
            assert_eq!(fs::read_to_string(slack).unwrap().trim(), "1000000");
            threads += 1;
        }
        // The test's threads, tokio's, and Go's own.
        assert!(threads > 4, "{threads} threads");
    });
}

/// The log line about memory of a server whose control server does not exist: the runtime is
/// configured before that is needed. `cgroup` is where the server runs.
async fn memory_line(cgroup: Option<&Cgroup>, variables: &[(&str, &str)]) -> String {
    let folder = TempDir::new().unwrap();
    let mut start = tailbone(&folder)
        .flags(&["--ts-control-url", "http://127.0.0.1:9"])
        .variable("TB_KEYS_ALGORITHM", "ES256")
        .variables(variables);
    if let Some(Cgroup(path)) = cgroup {
        start = start.after(&format!("echo $$ >{}/cgroup.procs", path.display()));
    }
    let mut daemon = start.start();
    let words = "memory of the node";
    daemon.logs(words).await;
    let log = daemon.log();
    let line = log.lines().find(|line| line.contains(words));
    line.unwrap().to_owned()
}

/// A cgroup with a limit, until dropped.
struct Cgroup(PathBuf);

impl Cgroup {
    /// `Err` says why none can be created here.
    fn new(bytes: u64) -> Result<Self, String> {
        let places = [
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
            ("/sys/fs/cgroup", "memory.max"),
        ];
        let mut why = String::new();
        for (mount, file) in places {
            let dir = Path::new(mount).join(format!("tailbone-test-{}", std::process::id()));
            let made = fs::create_dir(&dir).and_then(|()| {
                let made = Self(dir.clone());
                if !dir.join(file).exists() {
                    return Err(std::io::ErrorKind::Unsupported.into());
                }
                fs::write(dir.join(file), bytes.to_string())?;
                Ok(made)
            });
            match made {
                Ok(made) => return Ok(made),
                Err(error) => why = format!("{why}{}: {error}; ", dir.display()),
            }
        }
        Err(why)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn the_setting_wins_over_the_variable_and_that_over_the_cgroup() {
    alone(async {
        let said = memory_line(
            None,
            &[
                ("TB_SERVER_LIMITS_MEMORY", "64MiB"),
                ("GOMEMLIMIT", "80MiB"),
            ],
        )
        .await;
        assert!(
            said.contains(&format!("bytes={}", 64 * MIB)) && said.contains("server.limits.memory"),
            "{said}"
        );
        let variable = [("GOMEMLIMIT", "80MiB")];
        let said = memory_line(None, &variable).await;
        assert!(
            said.contains(&format!("bytes={}", 80 * MIB)) && said.contains("GOMEMLIMIT"),
            "{said}"
        );

        match Cgroup::new(200 * MIB) {
            Ok(cgroup) => {
                let said = memory_line(Some(&cgroup), &[]).await;
                assert!(
                    said.contains(&format!("bytes={}", 100 * MIB)) && said.contains("cgroup"),
                    "{said}"
                );
                let said = memory_line(Some(&cgroup), &variable).await;
                assert!(said.contains("GOMEMLIMIT"), "{said}");
            }
            Err(why) => eprintln!("the cgroup's part is left out, none can be made here: {why}"),
        }
    });
}
