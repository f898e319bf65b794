//! The admin API of the real program: its local socket through kills and restarts, and its port on
//! a real tailnet.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Output},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use rustix::process::Signal;
use tailbone::{
    admin::proto::{ListKeysRequest, admin_service_client::AdminServiceClient},
    tailnet::Node,
};
use tempfile::TempDir;
use testkit::{
    devnet::{Devnet, Key},
    eventually, soon,
    world::{EmbeddedWorld, Who, World},
};
use tonic::{Code, transport::Endpoint};

use crate::server::Daemon;

/// `tailbone keys list` in a server's folder.
fn list(folder: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tailbone"))
        .args(["keys", "list", "-o", "json"])
        .current_dir(folder)
        .env_clear()
        .output()
        .unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The list as soon as it contains the first key: the socket exists before the keys do.
async fn listed(folder: &Path) -> Output {
    eventually("a key that signs", async || {
        let listed = list(folder);
        assert!(listed.status.success(), "{}", said(&listed));
        let keys = String::from_utf8_lossy(&listed.stdout).into_owned();
        keys.contains(r#""state": "active""#)
            .then_some(listed)
            .ok_or(keys)
    })
    .await
}

async fn opened(daemon: &Daemon, times: usize) {
    eventually("the socket is open", async || {
        let said = daemon.said();
        (said.matches("local admin socket open").count() >= times)
            .then_some(())
            .ok_or(said)
    })
    .await;
}

alone! {
    async fn d12_the_socket_is_there_before_the_join_and_survives_a_kill() {
        let folder = TempDir::new().unwrap();
        let more = ["--ts-control-url", "http://127.0.0.1:9"];
        let start = || Daemon::start(folder.path(), Devnet::shared(), "early", Some("tskey-auth-x"), &more);
        let socket = folder.path().join(".tsnet/admin.sock");

        let mut first = start();
        opened(&first, 1).await;
        let mode = fs::metadata(&socket).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600);
        let first_list = listed(folder.path()).await;

        // A second server with the same state is refused, and the first one continues.
        let mut second = start();
        assert_eq!(second.ended().code(), Some(1), "{}", second.said());
        assert!(second.said().contains("another tailbone server has the local admin socket"), "{}", second.said());
        assert!(list(folder.path()).status.success());

        first.signal(Signal::KILL);
        first.ended();
        assert!(socket.exists(), "nobody was there to delete it");
        let refused = list(folder.path());
        assert_eq!(refused.status.code(), Some(1));
        assert!(said(&refused).contains("its server is gone"), "{}", said(&refused));

        let mut third = start();
        opened(&third, 2).await;
        let again = listed(folder.path()).await;
        assert_eq!(again.stdout, first_list.stdout, "{}", said(&again));
        third.stopped();
        assert!(!socket.exists(), "it goes away with its server");
    }
}

alone! {
    async fn d05_on_a_real_tailnet_the_owner_administers_and_others_do_not() {
        let world = EmbeddedWorld::new();
        let folder = TempDir::new().unwrap();
        let host = world.host("tailbone");
        let owner = world.login("owner@example.com");
        let key = Key { preauthorized: true, login: owner, ..Key::default() };
        let key = world.devnet.key(&key).await;
        let desk = world.node("desk", Who::User("owner@example.com")).await;
        let laptop = world.node("laptop", Who::User("bob@example.com")).await;
        let more = ["--components", "issuer,admin"];
        let mut daemon = Daemon::start(folder.path(), world.devnet, &host, Some(&key), &more);
        daemon.listening(2).await;

        eventually("a key in the list", async || {
            let keys = call(&*desk, &host).await.unwrap();
            (keys == 1).then_some(()).ok_or_else(|| keys.to_string())
        })
        .await;
        let refused = call(&*laptop, &host).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied);
        assert!(refused.message().contains("tailbone.dev/cap/admin"), "{refused:?}");

        let status = laptop.watch().borrow().clone();
        let nodes = world.devnet.nodes().await;
        let server = nodes.iter().find(|node| node["host"] == host.as_str()).unwrap();
        let server = server["id"].as_str().unwrap();
        let grant = serde_json::json!({"methods": ["list"]});
        world.devnet.grant(&status.id, server, "tailbone.dev/cap/admin", grant).await;
        eventually("the grant counts", async || call(&*laptop, &host).await.map_err(|status| status.to_string())).await;
        assert_eq!(daemon.stopped().code(), Some(0), "{}", daemon.said());
    }
}

/// The number of keys that the server lists.
async fn call(node: &dyn Node, host: &str) -> Result<usize, tonic::Status> {
    let addr = format!("{host}:50051");
    let stream = soon("a connection", node.dial(&addr, Duration::from_secs(10))).await;
    let mut stream = Some(TokioIo::new(stream.unwrap()));
    let once = tower::service_fn(move |_| {
        let stream = stream.take().ok_or(std::io::ErrorKind::NotConnected);
        std::future::ready(stream.map_err(std::io::Error::from))
    });
    let endpoint = Endpoint::try_from(format!("http://{host}")).unwrap();
    let channel = endpoint.connect_with_connector(once);
    let mut api = AdminServiceClient::new(soon("a channel", channel).await.unwrap());
    let answer = soon("an answer", api.list_keys(ListKeysRequest {})).await?;
    Ok(answer.into_inner().keys.len())
}
