//! A peer that resets its connections as soon as they are established, while another caller must
//! not notice anything.

use std::time::{Duration, Instant};

use tailbone::tailnet::Node;
use tempfile::TempDir;
use testkit::{devnet::Devnet, soon, tailnet::users_node};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{alone, tailbone};

/// The ports of issuer, admin and metrics.
const PORTS: [u16; 3] = [80, 50051, 9090];
const STORM: Duration = Duration::from_secs(2);

#[test]
fn connections_that_are_reset_refuse_nobody_else() {
    alone(async {
        let devnet = Devnet::with_peers(&["mallory=mallory@example.com"]);
        let folders = [TempDir::new().unwrap(), TempDir::new().unwrap()];
        let key = devnet.ready_key().await;
        let components = ["--components", "issuer,admin,metrics"];
        let mut daemon = tailbone(&folders[0])
            .on(&devnet)
            .host("tailbone")
            .auth_key(&key)
            .flags(&components)
            .start();
        daemon.listening(1).await;
        let alice = users_node(&devnet, folders[1].path(), "alice").await;
        devnet.ping("mallory", "tailbone").await;

        for port in PORTS {
            let addr = format!("tailbone:{port}");
            let storm = devnet.resets("mallory", "tailbone", port, STORM);
            let (reset, answers) = tokio::join!(storm, count_answers(&alice, &addr, STORM));
            eprintln!("port {port}: {answers} answers beside {reset} resets");
            assert!(reset > 100, "the storm on port {port} was {reset} resets");
            assert!(answers > 20, "{answers} answers on port {port}");
        }
        let said = daemon.log();
        assert!(!said.contains("accept failed"), "{said}");
        assert_eq!(daemon.stop().code(), Some(0));
    });
}

/// Sends requests on new connections and counts them. Each must be answered.
async fn count_answers(node: &dyn Node, addr: &str, during: Duration) -> u32 {
    let began = Instant::now();
    let mut answers = 0;
    // At least one request after the storm.
    while began.elapsed() < during + Duration::from_millis(200) {
        let dialled = soon("a connection", node.dial(addr, Duration::from_secs(10))).await;
        let mut stream = dialled.unwrap_or_else(|e| panic!("after {answers} answers: {e}"));
        let request = "GET / HTTP/1.1\r\nHost: tailbone\r\nConnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        soon("an answer", stream.read_to_end(&mut answer))
            .await
            .unwrap();
        assert!(
            answer.starts_with(b"HTTP/1.1 "),
            "{}",
            answer.escape_ascii()
        );
        answers += 1;
    }
    answers
}
