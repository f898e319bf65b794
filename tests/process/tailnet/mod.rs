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

/// What the process holds at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Held {
    fds: usize,
    threads: usize,
    /// Without those that stand for our call threads: Go counts each thread of ours that has ever called it, as long as it lives.
    goroutines: u64,
    conns: u64,
    nodes: u64,
}

impl Held {
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

    /// Waits until no more is held than `before`, give or take [`UNSURE`]. Threads are Go's to keep: it may have made a few more while busy, and never
    /// ends one. More than a few would be ours.
    async fn back_to(before: Self, patience: Duration) -> Self {
        let began = Instant::now();
        loop {
            let now = Self::now().await;
            let back = now.fds <= before.fds
                && now.threads <= before.threads + 6
                && now.goroutines <= before.goroutines + UNSURE
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

/// A call thread counts as a goroutine only once it has made a call, so what is subtracted may be too much by those that were made
/// but not used. What leaks does so with each round of a test, and there are more rounds than this.
const UNSURE: u64 = 2;

fn call_threads() -> u64 {
    fs::read_dir("/proc/self/task")
        .unwrap()
        .filter(|task| {
            let name = task.as_ref().unwrap().path().join("comm");
            fs::read_to_string(name).is_ok_and(|name| name.starts_with("tailnet-go-"))
        })
        .count() as u64
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} fds, {} threads, {} goroutines, {} connections, {} nodes",
            self.fds, self.threads, self.goroutines, self.conns, self.nodes
        )
    }
}
