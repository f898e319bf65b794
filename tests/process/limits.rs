//! What the whole program can bear: a log that nobody reads, and peers that send and do not read.

use std::{
    fs,
    io::Read,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use futures_util::future::join_all;
use rustix::process::{Pid, Signal, kill_process};
use tailbone::tailnet::Node;
use tempfile::TempDir;
use testkit::{devnet::Devnet, eventually, http::Connection, soon, world::person};
use tokio::io::AsyncWriteExt;

/// A server whose output goes where the test says.
struct Daemon(Child);

impl Daemon {
    async fn start(
        folder: &Path,
        devnet: &Devnet,
        output: Stdio,
        variables: &[(&str, &str)],
    ) -> Self {
        let errors = fs::File::create(folder.join("stderr")).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_tailbone"))
            .args(["server", "start", "--ts-hostname", "tailbone"])
            .current_dir(folder)
            .env_clear()
            .env("TB_COMPONENTS", "issuer")
            .env("TB_KEYS_ALGORITHM", "ES256")
            .env("TB_SERVER_TAILSCALE_CONTROLURL", &devnet.ready.control_url)
            .env("TB_SERVER_TAILSCALE_AUTHKEY", devnet.ready_key().await)
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .spawn()
            .unwrap();
        Self(child)
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.0)
    }

    /// The peak of its memory, in bytes.
    fn peak(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with("VmHWM:"))
            .unwrap();
        let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        kib << 10
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn call(peer: &dyn Node) -> Option<Connection> {
    let stream = peer
        .dial("tailbone:80", Duration::from_secs(10))
        .await
        .ok()?;
    Some(Connection::over(stream).await)
}

async fn answers(peer: &dyn Node) -> Connection {
    eventually("the server answers", async || {
        let mut connection = call(peer).await.ok_or("no connection".to_owned())?;
        match connection.get("/livez").await.status() {
            200 => Ok(()),
            status => Err(status.to_string()),
        }
    })
    .await;
    call(peer).await.unwrap()
}

alone! {
    async fn a_log_that_nobody_reads_holds_up_nobody_and_what_was_lost_is_counted() {
        let devnet = Devnet::start();
        let folder = TempDir::new().unwrap();
        // Every token has a log line, and the node has many more: far more than a pipe can hold.
        let variables = [("TB_LOG_LEVEL", "trace")];
        let mut daemon = Daemon::start(folder.path(), &devnet, Stdio::piped(), &variables).await;
        let alice = person(&devnet, folder.path(), "alice").await;
        let mut connection = answers(&alice).await;
        for _ in 0..4000 {
            assert_eq!(connection.post("/issue").await.status(), 200);
        }
        let mut log = daemon.0.stdout.take().unwrap();
        kill_process(daemon.pid(), Signal::TERM).unwrap();
        let read = std::thread::spawn(move || {
            let mut text = Vec::new();
            log.read_to_end(&mut text).unwrap();
            String::from_utf8_lossy(&text).into_owned()
        });
        let text = tokio::task::spawn_blocking(|| read.join().unwrap());
        let text = soon("the end of the log", text).await.unwrap();
        assert!(daemon.0.wait().unwrap().success());
        // Every completed action has its line.
        let tokens = text.lines().filter(|line| line.contains("issued token")).count();
        assert_eq!(tokens, 4000);
        alice.close().await;
    }
}

/// A peer that requests a megabyte again and again, and never reads.
async fn asks_and_does_not_read(peer: &dyn Node) {
    let Ok(mut stream) = peer.dial("tailbone:80", Duration::from_secs(20)).await else {
        return;
    };
    let questions =
        b"GET /.well-known/jwks.json HTTP/1.1\r\nhost: tailbone\r\n\r\n".repeat((1 << 20) / 56);
    // Ends when the server closes the connection, or with the test.
    let _ = stream.write_all(&questions).await;
    std::future::pending::<()>().await;
}

alone! {
    async fn a_thousand_connections_that_ask_and_do_not_read_fit_into_256_mib() {
        const MEMORY: u64 = 256 << 20;
        let devnet = Devnet::start();
        let folder = TempDir::new().unwrap();
        let log = fs::File::create(folder.path().join("log")).unwrap();
        // Three quarters of a container with 256 MiB.
        let variables = [("TB_SERVER_LIMITS_MEMORY", "192MiB")];
        let daemon = Daemon::start(folder.path(), &devnet, log.into(), &variables).await;
        let greedy = person(&devnet, folder.path(), "greedy").await;
        let alice = person(&devnet, folder.path(), "alice").await;
        let mut kept = answers(&alice).await;
        drop(answers(&greedy).await);
        let before = daemon.peak();
        let flood = join_all((0..1000).map(|_| asks_and_does_not_read(&greedy)));
        let _ = tokio::time::timeout(Duration::from_secs(20), flood).await;
        let peak = daemon.peak();
        println!("{} MiB before, {} MiB at most", before >> 20, peak >> 20);
        assert!(peak < MEMORY, "{} MiB", peak >> 20);
        assert_eq!(kept.get("/livez").await.status(), 200);
        alice.close().await;
        greedy.close().await;
    }
}
