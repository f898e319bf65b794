//! The real program from the outside: status, readiness, reload, a control server with faults, too
//! few descriptors.

use std::{os::unix::net::UnixDatagram, time::Duration};

use rustix::process::Signal;
use serde_json::{Value, json};
use tailbone::tailnet::Node;
use tempfile::TempDir;
use testkit::{
    devnet::Devnet,
    eventually,
    http::Connection,
    tailnet::{DevnetTailnet, Owner, Tailnet},
};

use super::{alone, tailbone};

/// Settings of an issuer with metrics.
pub(super) fn settings(host: &str, expiry: &str) -> String {
    format!(
        "components = \"issuer,metrics\"\n[keys]\nexpiry = \"{expiry}\"\nalgorithm = \"ES256\"\n\
         [server.tailscale]\nhostname = \"{host}\"\n"
    )
}

fn claims(token: &str) -> Value {
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
    let body = token.split('.').nth(1).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(body).unwrap()).unwrap()
}

/// The life of a token that the caller gets, in seconds.
async fn life_of_token(node: &dyn Node, host: &str) -> i64 {
    let answer = Connection::to(node, host, 80).await.post("/issue").await;
    assert_eq!(answer.status(), 200, "{answer:?}");
    let claims = claims(answer.json()["token"].as_str().unwrap());
    claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap()
}

#[test]
fn status_readiness_reload_and_supervisor_of_a_running_server() {
    alone(async {
        let tailnet = DevnetTailnet::new();
        let folder = TempDir::new().unwrap();
        let host = tailnet.host("tailbone");
        let supervisor = UnixDatagram::bind(folder.path().join("notify")).unwrap();
        supervisor.set_nonblocking(true).unwrap();
        let mut daemon = tailbone(&folder)
            .joining(tailnet.devnet)
            .await
            .settings(&settings(&host, "20m"))
            .variable("NOTIFY_SOCKET", folder.path().join("notify"))
            .started()
            .await;
        daemon.ready();
        assert!(daemon.run(&["status", "--check"]).status.success());
        let status: Value =
            serde_json::from_slice(&daemon.run(&["status", "-o", "json"]).stdout).unwrap();
        assert_eq!(status["node"]["state"], "running", "{status}");
        assert_eq!(status["ready"], true);
        assert_eq!(status["keys"][0]["state"], "active");
        let listeners: Vec<_> = status["listeners"]
            .as_array()
            .unwrap()
            .iter()
            .map(|l| l["name"].as_str().unwrap())
            .collect();
        assert_eq!(listeners, ["admin socket", "issuer", "metrics"]);

        let alice = tailnet
            .node("alice", Owner::User("alice@example.com"))
            .await;
        assert_eq!(
            Connection::to(&*alice, &host, 80)
                .await
                .get("/readyz")
                .await
                .status(),
            200
        );
        assert_eq!(life_of_token(&*alice, &host).await, 20 * 60);
        let own = alice.watch().borrow().addresses[0].to_string();
        let known = daemon.run(&["whois", &own, "-o", "json"]);
        let known: Value = serde_json::from_slice(&known.stdout).unwrap();
        assert!(
            known["login"]
                .as_str()
                .unwrap()
                .ends_with("alice@example.com"),
            "{known}"
        );
        let metrics = Connection::to(&*alice, &host, 9090)
            .await
            .get("/metrics")
            .await;
        let text = String::from_utf8(metrics.0.body().to_vec()).unwrap();
        assert!(
            text.contains(
                r#"tailbone_tokens_total{component="issuer",result="issued",reason=""} 1"#
            ),
            "{text}"
        );

        let examined = daemon.run(&["doctor", "-o", "json"]);
        let checks: Value = serde_json::from_slice(&examined.stdout).unwrap();
        assert!(examined.status.success(), "{checks:#}");
        for name in [
            "state-dir-writable",
            "keys-dir",
            "control-reachable",
            "join-state",
            "whois-works",
            "jwks-public",
        ] {
            let check = checks
                .as_array()
                .unwrap()
                .iter()
                .find(|check| check["name"] == name)
                .unwrap();
            assert_eq!(check["verdict"], "ok", "{check}");
        }
        let report = daemon.run(&["bugreport"]);
        let report = String::from_utf8(report.stdout).unwrap();
        assert!(
            report.contains("issued token") && report.contains("node.state"),
            "{report}"
        );

        // What can be changed at run time is; anything else is named in the log.
        daemon.set_settings(
            &settings(&host, "5m").replace("[keys]", "[server]\nport = 8080\n[keys]"),
        );
        daemon.signal(Signal::HUP);
        daemon.logs("need a restart").await;
        assert!(daemon.log().contains("server.port"), "{}", daemon.log());
        assert_eq!(life_of_token(&*alice, &host).await, 5 * 60);

        // Invalid settings change nothing.
        daemon.set_settings("[keys]\nexpiry = \"never\"\n");
        daemon.signal(Signal::HUP);
        daemon.logs("not reloaded").await;
        assert_eq!(life_of_token(&*alice, &host).await, 5 * 60);

        let mut heard = String::new();
        let mut piece = [0; 500];
        while let Ok(length) = supervisor.recv(&mut piece) {
            heard += std::str::from_utf8(&piece[..length]).unwrap();
            heard += "\n";
        }
        let (before, after) = heard.split_once("READY=1").unwrap();
        assert!(!before.contains("RELOADING"), "{heard}");
        assert!(after.contains("RELOADING=1\nMONOTONIC_USEC="), "{heard}");
    });
}

#[test]
fn readiness_follows_what_the_control_server_does() {
    alone(async {
        // A fault of the control server affects its whole tailnet, so this test has one of its own.
        let devnet = Devnet::start();
        let folder = TempDir::new().unwrap();
        devnet.control(json!({"mode": "hold"})).await;
        let daemon = tailbone(&folder)
            .joining(&devnet)
            .await
            .settings(&settings("tailbone", "20m"))
            .started()
            .await;
        // The socket exists while the node is joining.
        eventually("the socket answers", async || {
            let output = daemon.run(&["status", "-o", "json"]);
            output
                .status
                .success()
                .then_some(())
                .ok_or_else(|| String::from_utf8_lossy(&output.stderr).into_owned())
        })
        .await;
        let check = daemon.run(&["status", "--check"]);
        assert_eq!(check.status.code(), Some(1));
        let said = String::from_utf8_lossy(&check.stderr).into_owned();
        assert!(
            said.contains("node-running: ") && said.contains("listeners-up: "),
            "{said}"
        );
        let waited = daemon.run(&["wait", "--ready", "--timeout", "500ms"]);
        assert_eq!(waited.status.code(), Some(1));

        devnet.control(json!({"mode": "ok"})).await;
        daemon.ready();

        // A node on the tailnet stays there while its control server fails; a node whose key
        // expires does not.
        devnet.control(json!({"mode": "fail", "status": 500})).await;
        assert!(
            daemon.run(&["status", "--check"]).status.success(),
            "{}",
            daemon.log()
        );
        devnet.control(json!({"mode": "ok"})).await;
        devnet.expire("tailbone").await;
        eventually("not ready", async || {
            let check = daemon.run(&["status", "--check"]);
            (check.status.code() == Some(1))
                .then_some(())
                .ok_or_else(|| daemon.log())
        })
        .await;
        let check = daemon.run(&["status", "--check"]);
        assert!(
            String::from_utf8_lossy(&check.stderr).contains("expired"),
            "{check:?}"
        );
        devnet.unexpire("tailbone").await;
        daemon.ready();
    });
}

#[test]
fn more_callers_than_descriptors_wait_and_leave_the_rest_alive() {
    alone(async {
        let tailnet = DevnetTailnet::new();
        let folder = TempDir::new().unwrap();
        let host = tailnet.host("tailbone");
        let daemon = tailbone(&folder)
            .joining(tailnet.devnet)
            .await
            .settings(&settings(&host, "20m"))
            .after("ulimit -n 256")
            .started()
            .await;
        daemon.ready();
        assert!(
            daemon.log().contains("has too few file descriptors"),
            "{}",
            daemon.log()
        );
        let alice = tailnet
            .node("alice", Owner::User("alice@example.com"))
            .await;
        let mut open = Vec::new();
        for _ in 0..120 {
            let addr = format!("{host}:80");
            if let Ok(stream) = alice.dial(&addr, Duration::from_secs(5)).await {
                open.push(stream);
            }
        }
        assert!(open.len() > 60, "{}", open.len());
        // The listener is full, and the status still works: the local socket is another listener.
        assert!(
            daemon.run(&["status", "--check"]).status.success(),
            "{}",
            daemon.log()
        );
        drop(open);
        // The node recovers by itself.
        eventually("a token", async || {
            let mut connection = Connection::to(&*alice, &host, 80).await;
            match tokio::time::timeout(Duration::from_secs(5), connection.post("/issue")).await {
                Ok(answer) if answer.status() == 200 => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    });
}
