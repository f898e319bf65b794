//! The gate in the real program, on a real tailnet: who calls is the node at the other end, whatever the request says.

use std::fs;

use rustix::process::Signal;
use tailbone::tailnet::Node;
use tempfile::TempDir;

use super::server::{Daemon, dialled};
use crate::support::{
    backend::Backend,
    http::{Connection, request},
    world::{EmbeddedWorld, Who, World},
};

const RULES: &str = r#"
[[rule]]
name = "staff"
decision = "allow"
who = ["*@staff.example.com", "tag:ci"]
"#;

/// The gate's default port.
async fn at_the_gate(node: &dyn Node, host: &str) -> Connection {
    Connection::over(dialled(node, &format!("{host}:8082")).await).await
}

alone! {
    async fn peers_of_a_tailnet_are_who_they_are_and_not_who_they_say() {
        let world = EmbeddedWorld::new();
        let folder = TempDir::new().unwrap();
        let backend = Backend::start().await;
        let policy = folder.path().join("policy.toml");
        fs::write(&policy, RULES).unwrap();
        let upstream = format!("http://{}", backend.addr);
        let host = world.host("wiki");
        let key = world.devnet.ready_key().await;
        let alice = world.node("alice", Who::User("alice@staff.example.com")).await;
        let robot = world.node("robot", Who::Tag("tag:ci")).await;
        let eve = world.node("eve", Who::User("eve@example.com")).await;

        let more = [
            "--components", "gate", "--gate-upstream", &upstream, "--gate-policy", policy.to_str().unwrap(),
        ];
        let mut daemon = Daemon::start(folder.path(), world.devnet, &host, Some(&key), &more);
        daemon.listening(1).await;
        assert!(!folder.path().join("keys").exists(), "nothing signs, so there are no keys");

        // A user, with headers that claim to be somebody else, in three spellings.
        let mut forged = request("GET", "/page");
        for name in ["tailscale-user-login", "Tailscale_User_Login", "tailscale-user"] {
            forged.headers_mut().insert(
                ::http::HeaderName::from_bytes(name.as_bytes()).unwrap(),
                "root@example.com".parse().unwrap(),
            );
        }
        let answer = at_the_gate(&*alice, &host).await.send(forged).await;
        assert_eq!(answer.status(), 200, "{answer:?}");
        let told = String::from_utf8_lossy(answer.0.body()).into_owned();
        assert!(told.contains(&world.login("alice@staff.example.com")), "{told}");
        assert!(!told.contains("root@example.com"), "{told}");

        // A machine, by its tag.
        assert_eq!(at_the_gate(&*robot, &host).await.get("/page").await.status(), 200);

        // Somebody else.
        let answer = at_the_gate(&*eve, &host).await.get("/page").await;
        assert_eq!(answer.status(), 403, "{answer:?}");

        // The rules change while the server runs.
        fs::write(&policy, RULES.replace("*@staff.example.com", "*@example.com")).unwrap();
        daemon.signal(Signal::HUP);
        crate::support::eventually("the new rules hold", async || {
            match at_the_gate(&*eve, &host).await.get("/page").await.status() {
                200 => Ok(()),
                other => Err(other.to_string()),
            }
        })
        .await;
        assert_eq!(daemon.stopped().code(), Some(0), "{}", daemon.said());
    }
}
