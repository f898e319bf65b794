//! A client in another language, written from the contract's table alone.

use std::{
    process::{Command, Stdio},
    time::Duration,
};

use serde_json::{Value, json};
use tailbone::tailnet::{
    Node as _,
    fake::{FakeNode, Identity},
};
use testkit::{files::venv, soon};
use tokio::net::TcpListener;

use super::{AdminServer, PORT};

/// Runs the client and reads its lines.
async fn run(target: &str) -> Vec<Value> {
    let mut command = Command::new(venv("bin/python"));
    command
        .arg("tests/python/old_client.py")
        .arg(target)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit());
    let output = tokio::task::spawn_blocking(move || command.output());
    let output = soon("the client", output).await.unwrap().unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// A loopback port that leads to the admin API in the name of `node`.
async fn forward_from(node: FakeNode) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let to = format!("tailbone:{PORT}");
            let mut far = node.dial(&to, Duration::from_secs(5)).await.unwrap();
            tokio::spawn(async move {
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            });
        }
    });
    addr
}

fn does_everything(server: &AdminServer, before: &[String], lines: &[Value]) {
    let ids = |line: &Value| -> Vec<String> {
        let keys = line["keys"]
            .as_array()
            .unwrap_or_else(|| panic!("{lines:#?}"));
        keys.iter()
            .map(|key| key["key_id"].as_str().unwrap().to_owned())
            .collect()
    };
    let [list, generate, again, remove, gone, last] = lines else {
        panic!("{lines:#?}")
    };
    assert_eq!(ids(list), before);
    let made = ids(generate);
    assert_eq!(generate["keys"][0]["algorithm"], "ES256");
    assert!(generate["keys"][0]["created_at"].as_i64().unwrap() > 1_700_000_000);
    assert_eq!(ids(again), [before, &made].concat());
    assert_eq!(ids(remove), before);
    assert_eq!(gone["code"], "NOT_FOUND");
    assert_eq!(
        gone["details"],
        json!(format!(
            "failed to remove key from JWKS: key {} not found",
            made[0]
        ))
    );
    assert_eq!(ids(last), before);
    assert_eq!(server.published(), before);
    for key in lines
        .iter()
        .filter_map(|line| line["keys"].as_array())
        .flatten()
    {
        let unknown: Vec<_> = key["unknown"]
            .as_array()
            .unwrap()
            .iter()
            .map(|n| n.as_i64().unwrap())
            .collect();
        assert!(
            unknown.iter().all(|number| (5..=8).contains(number)),
            "{key}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_client_generates_lists_and_removes() {
    let server = AdminServer::new().await;
    let before = server.published();
    let owner = server
        .world
        .tailnet
        .join("desk", Identity::user("owner@example.com"));
    let lines = run(&forward_from(owner).await).await;
    does_everything(&server, &before, &lines);
    let lines = run(&format!("unix:{}", server.socket().display())).await;
    does_everything(&server, &before, &lines);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d05_an_old_client_without_a_right_changes_nothing_and_reads_why() {
    let server = AdminServer::new().await;
    let before = server.published();
    let bob = server
        .world
        .tailnet
        .join("laptop", Identity::user("bob@example.com"));
    let lines = run(&forward_from(bob).await).await;
    assert_eq!(lines.len(), 6);
    for line in lines {
        assert_eq!(line["code"], "PERMISSION_DENIED", "{line}");
        assert!(
            line["details"]
                .as_str()
                .unwrap()
                .contains("tailbone.dev/cap/admin"),
            "{line}"
        );
    }
    assert_eq!(server.published(), before);
}
