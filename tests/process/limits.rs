//! What the whole program can bear: a log that nobody reads, and peers that send and do not read.

use std::{io::Read, process::Stdio, time::Duration};

use futures_util::future::join_all;
use rustix::process::Signal;
use tailbone::tailnet::Node;
use tempfile::TempDir;
use testkit::{devnet::Devnet, eventually, http::Connection, soon, tailnet::users_node};
use tokio::io::AsyncWriteExt;

use super::{alone, tailbone};

async fn call(peer: &dyn Node) -> Option<Connection> {
    let stream = peer
        .dial("tailbone:80", Duration::from_secs(10))
        .await
        .ok()?;
    Some(Connection::over(stream).await)
}

async fn connection_once_up(peer: &dyn Node) -> Connection {
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

#[test]
fn a_log_that_nobody_reads_holds_up_nobody_and_loses_no_line_of_a_token() {
    alone(async {
        let devnet = Devnet::start();
        let folder = TempDir::new().unwrap();
        // Every token has a log line, and the node has many more: far more than a pipe can hold.
        let mut daemon = tailbone(&folder)
            .joining(&devnet)
            .await
            .host("tailbone")
            .variable("TB_KEYS_ALGORITHM", "ES256")
            .variable("TB_LOG_LEVEL", "trace")
            .output(Stdio::piped(), Stdio::inherit())
            .start();
        let alice = users_node(&devnet, folder.path(), "alice").await;
        let mut connection = connection_once_up(&alice).await;
        for _ in 0..4000 {
            assert_eq!(connection.post("/issue").await.status(), 200);
        }
        let mut log = daemon.child.stdout.take().unwrap();
        daemon.signal(Signal::TERM);
        let read = std::thread::spawn(move || {
            let mut text = Vec::new();
            log.read_to_end(&mut text).unwrap();
            String::from_utf8_lossy(&text).into_owned()
        });
        let text = tokio::task::spawn_blocking(|| read.join().unwrap());
        let text = soon("the end of the log", text).await.unwrap();
        assert!(daemon.end().success());
        // Every completed action has its line.
        let tokens = text
            .lines()
            .filter(|line| line.contains("issued token"))
            .count();
        assert_eq!(tokens, 4000);
        alice.close().await;
    });
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

#[test]
fn a_thousand_connections_that_ask_and_do_not_read_fit_into_256_mib() {
    alone(async {
        const MEMORY: u64 = 256 << 20;
        let devnet = Devnet::start();
        let folder = TempDir::new().unwrap();
        // What a container with 256 MiB leaves to Go.
        let limit = "144MiB";
        let daemon = tailbone(&folder)
            .joining(&devnet)
            .await
            .host("tailbone")
            .variable("TB_KEYS_ALGORITHM", "ES256")
            .variable("TB_SERVER_LIMITS_MEMORY", limit)
            .start();
        let greedy = users_node(&devnet, folder.path(), "greedy").await;
        let alice = users_node(&devnet, folder.path(), "alice").await;
        let mut kept = connection_once_up(&alice).await;
        drop(connection_once_up(&greedy).await);
        let before = daemon.peak_memory();
        let flood = join_all((0..1000).map(|_| asks_and_does_not_read(&greedy)));
        let _ = tokio::time::timeout(Duration::from_secs(20), flood).await;
        let peak = daemon.peak_memory();
        println!("{} MiB before, {} MiB at most", before >> 20, peak >> 20);
        assert!(peak < MEMORY, "{} MiB", peak >> 20);
        assert_eq!(kept.get("/livez").await.status(), 200);
        alice.close().await;
        greedy.close().await;
    });
}
