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
    daemon::Daemon,
    devnet::{Devnet, Key},
    eventually, soon,
    tailnet::{DevnetTailnet, Owner, Tailnet},
};
use tonic::{Code, transport::Endpoint};

use super::{alone, tailbone};

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

async fn opened(daemon: &mut Daemon, times: usize) {
    daemon.logs_times("local admin socket open", times).await;
}

#[test]
fn d12_the_socket_is_there_before_the_join_and_survives_a_kill() {
    alone(async {
        let folder = TempDir::new().unwrap();
        let more = ["--ts-control-url", "http://127.0.0.1:9"];
        let start = || {
            tailbone(&folder)
                .on(Devnet::shared())
                .host("early")
                .auth_key("tskey-auth-x")
                .flags(&more)
                .start()
        };
        let socket = folder.path().join(".tsnet/admin.sock");

        let mut first = start();
        opened(&mut first, 1).await;
        let mode = fs::metadata(&socket).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600);
        let first_list = listed(folder.path()).await;

        // A second server with the same state is refused, and the first one continues.
        let mut second = start();
        assert_eq!(second.end().code(), Some(1), "{}", second.log());
        assert!(
            second
                .log()
                .contains("another tailbone server has the local admin socket"),
            "{}",
            second.log()
        );
        assert!(list(folder.path()).status.success());

        first.signal(Signal::KILL);
        first.end();
        assert!(socket.exists(), "nobody was there to delete it");
        let refused = list(folder.path());
        assert_eq!(refused.status.code(), Some(1));
        assert!(
            said(&refused).contains("it has ended; start it again"),
            "{}",
            said(&refused)
        );

        let mut third = start();
        opened(&mut third, 2).await;
        let again = listed(folder.path()).await;
        assert_eq!(again.stdout, first_list.stdout, "{}", said(&again));
        third.stop();
        assert!(!socket.exists(), "it goes away with its server");
    });
}

#[test]
fn d05_on_a_real_tailnet_the_owner_administers_and_others_do_not() {
    alone(async {
        let tailnet = DevnetTailnet::new();
        let folder = TempDir::new().unwrap();
        let host = tailnet.host("tailbone");
        let owner = tailnet.login("owner@example.com");
        let key = Key {
            preauthorized: true,
            login: owner,
            ..Key::default()
        };
        let key = tailnet.devnet.key(&key).await;
        let desk = tailnet.node("desk", Owner::User("owner@example.com")).await;
        let laptop = tailnet.node("laptop", Owner::User("bob@example.com")).await;
        let more = ["--components", "issuer,admin"];
        let mut daemon = tailbone(&folder)
            .on(tailnet.devnet)
            .host(&host)
            .auth_key(&key)
            .flags(&more)
            .start();
        daemon.listening(2).await;

        eventually("a key in the list", async || {
            let keys = call(&*desk, &host).await.unwrap();
            (keys == 1).then_some(()).ok_or_else(|| keys.to_string())
        })
        .await;
        let refused = call(&*laptop, &host).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied);
        assert!(
            refused.message().contains("tailbone.dev/cap/admin"),
            "{refused:?}"
        );

        let status = laptop.watch().borrow().clone();
        let nodes = tailnet.devnet.nodes().await;
        let server = nodes
            .iter()
            .find(|node| node["host"] == host.as_str())
            .unwrap();
        let server = server["id"].as_str().unwrap();
        let grant = serde_json::json!({"methods": ["list"]});
        tailnet
            .devnet
            .grant(&status.id, server, "tailbone.dev/cap/admin", grant)
            .await;
        eventually("the grant counts", async || {
            call(&*laptop, &host)
                .await
                .map_err(|status| status.to_string())
        })
        .await;
        assert_eq!(daemon.stop().code(), Some(0), "{}", daemon.log());
    });
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
