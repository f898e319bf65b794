//! What the node costs the process, and what the process can do to the node.

mod leaks;
mod limits;
mod load;
mod log;
mod signals;

use std::{
    fmt, fs,
    time::{Duration, Instant},
};

use tailbone::tailnet::runtime_stats;

/// The process's resources at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Resources {
    fds: usize,
    threads: usize,
    /// Without those of our call threads: Go counts each of our threads that has ever called it, as
    /// long as the thread lives.
    goroutines: u64,
    conns: u64,
    nodes: u64,
}

impl Resources {
    async fn now() -> Self {
        let stats = runtime_stats().await.unwrap();
        Self {
            fds: fs::read_dir("/proc/self/fd").unwrap().count(),
            threads: fs::read_dir("/proc/self/task").unwrap().count(),
            goroutines: stats.goroutines.saturating_sub(call_threads()),
            conns: stats.conns,
            nodes: stats.nodes,
        }
    }

    /// Waits until no more is held than in `before`, give or take [`GOROUTINE_TOLERANCE`]. Go may
    /// have created a few more threads under load, and never ends one. More than a few would be
    /// ours.
    async fn back_to(before: Self, patience: Duration) -> Self {
        let began = Instant::now();
        loop {
            let now = Self::now().await;
            let back = now.fds <= before.fds
                && now.threads <= before.threads + 6
                && now.goroutines <= before.goroutines + GOROUTINE_TOLERANCE
                && now.conns <= before.conns
                && now.nodes <= before.nodes;
            if back {
                eprintln!("before: {before}; after {:?}: {now}", began.elapsed());
                return now;
            }
            assert!(began.elapsed() < patience, "before: {before}; still: {now}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// A call thread only counts as a goroutine after it has made a call, so the number subtracted may
/// be too large by the threads that were created and not used. A leak shows in each round of a
/// test, and there are more rounds than this.
const GOROUTINE_TOLERANCE: u64 = 2;

fn call_threads() -> u64 {
    fs::read_dir("/proc/self/task")
        .unwrap()
        .filter(|task| {
            let name = task.as_ref().unwrap().path().join("comm");
            fs::read_to_string(name).is_ok_and(|name| name.starts_with("tailnet-go-"))
        })
        .count() as u64
}

impl fmt::Display for Resources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} fds, {} threads, {} goroutines, {} connections, {} nodes",
            self.fds, self.threads, self.goroutines, self.conns, self.nodes
        )
    }
}
