//! The runtime of the embedded node: its memory limit from the setting, the variable or the cgroup,
//! and the sleep of its threads.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use tailbone::tailnet::{RuntimeLimits, limit_runtime, runtime_stats};
use tempfile::TempDir;
use testkit::eventually;

const MIB: u64 = 1 << 20;

alone! {
    async fn the_runtime_tells_the_limit_that_it_was_given() {
        let of = |bytes| RuntimeLimits { memory_limit: Some(bytes), ..RuntimeLimits::default() };
        assert_eq!(runtime_stats().await.unwrap().memory_limit, None);
        assert_eq!(limit_runtime(of(100 * MIB)).await.unwrap().memory_limit, Some(100 * MIB));
        assert_eq!(runtime_stats().await.unwrap().memory_limit, Some(100 * MIB));
        assert_eq!(limit_runtime(of(i64::MAX.cast_unsigned())).await.unwrap().memory_limit, None);
        assert_eq!(runtime_stats().await.unwrap().memory_limit, None);
    }
}

alone! {
    async fn every_thread_sleeps_in_coarse_steps() {
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
    }
}

/// A server whose control server does not exist: the runtime is configured before it is needed.
struct Starting {
    child: Child,
    folder: TempDir,
}

impl Starting {
    fn new(cgroup: Option<&Path>, variables: &[(&str, &str)]) -> Self {
        let folder = TempDir::new().unwrap();
        let log = fs::File::create(folder.path().join("log")).unwrap();
        let enter = cgroup.map_or(String::new(), |cgroup| {
            format!("echo $$ >{}/cgroup.procs && ", cgroup.display())
        });
        let child = Command::new("/bin/sh")
            .args(["-c", &format!("{enter}exec \"$0\" \"$@\"")])
            .arg(env!("CARGO_BIN_EXE_tailbone"))
            .args(["server", "start", "--ts-control-url", "http://127.0.0.1:9"])
            .current_dir(folder.path())
            .env_clear()
            .env("TB_KEYS_ALGORITHM", "ES256")
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        Self { child, folder }
    }

    /// The log line about memory.
    async fn told(&self) -> String {
        eventually("it tells of its memory", async || {
            let said = fs::read_to_string(self.folder.path().join("log")).unwrap();
            let line = said
                .lines()
                .find(|line| line.contains("memory of the node"));
            line.map(str::to_owned).ok_or(said)
        })
        .await
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
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

alone! {
    async fn the_setting_wins_over_the_variable_and_that_over_the_cgroup() {
        let said = Starting::new(None, &[("TB_SERVER_LIMITS_MEMORY", "64MiB"), ("GOMEMLIMIT", "80MiB")]).told().await;
        assert!(said.contains(&format!("bytes={}", 64 * MIB)) && said.contains("server.limits.memory"), "{said}");
        let variable = [("GOMEMLIMIT", "80MiB")];
        let said = Starting::new(None, &variable).told().await;
        assert!(said.contains(&format!("bytes={}", 80 * MIB)) && said.contains("GOMEMLIMIT"), "{said}");

        match Cgroup::new(200 * MIB) {
            Ok(cgroup) => {
                let said = Starting::new(Some(&cgroup.0), &[]).told().await;
                assert!(said.contains(&format!("bytes={}", 150 * MIB)) && said.contains("cgroup"), "{said}");
                let said = Starting::new(Some(&cgroup.0), &variable).told().await;
                assert!(said.contains("GOMEMLIMIT"), "{said}");
            }
            Err(why) => eprintln!("the cgroup's part is left out, none can be made here: {why}"),
        }
    }
}
