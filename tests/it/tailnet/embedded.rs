//! The embedded node with a real control server: everything that the fake node cannot show.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{Router, body::Body, routing::get};
use futures_util::StreamExt;
use tailbone::{
    config::Secret,
    http::{
        layers,
        serve::{Limits, serve},
    },
    identity::{Caller, Directory, TailnetListener},
    tailnet::{
        BackendState, CLOSE_WITHIN, Config, EmbeddedNode, Error, ListenAddr, Node, Stream,
        engine_version, runtime_stats,
    },
};
use testkit::{
    devnet::Devnet,
    soon,
    tailnet::{DevnetTailnet, Owner, Tailnet, config, running, status_becomes, users_node},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_on_old_state_needs_no_key_and_keeps_the_name() {
    let tailnet = DevnetTailnet::new();
    let key = tailnet.devnet.ready_key().await;
    let first = tailnet.start(&tailnet.config("restart", &key)).await;
    let was = running(&*first).await;
    first.close().await;

    let second = tailnet.start(&tailnet.config("restart", "")).await;
    let is = running(&*second).await;
    assert_eq!(
        (&is.id, &is.name, &is.addresses),
        (&was.id, &was.name, &was.addresses)
    );
    second.close().await;

    // A key that is no longer valid does no harm, since existing state wins.
    let third = tailnet.start(&tailnet.config("restart", &key)).await;
    assert_eq!(running(&*third).await.id, was.id);
    tailnet.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_nodes_own_status_is_complete() {
    let tailnet = DevnetTailnet::new();
    let node = tailnet
        .node("picture", Owner::User("alice@example.com"))
        .await;
    let is = running(&*node).await;
    assert_eq!(is.hostname, tailnet.host("picture"));
    assert!(
        is.name.starts_with(&is.hostname) && is.name.ends_with(&is.tailnet),
        "{is:?}"
    );
    assert_eq!(is.owner, tailnet.login("alice@example.com"));
    assert!(
        is.in_map_poll && !is.expired && is.key_expiry.is_some(),
        "{is:?}"
    );
    assert_eq!(is.addresses.len(), 2);
    assert!(is.generation > 0 && node.generation() >= is.generation);
    assert_eq!((is.error.as_str(), is.control_error.as_str()), ("", ""));
    tailnet.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_detailed_status_has_the_peers() {
    let tailnet = DevnetTailnet::new();
    let key = tailnet.devnet.ready_key().await;
    let node = tailnet.start(&tailnet.config("picture", &key)).await;
    running(&*node).await;
    let picture = node.status_with_peers().await.unwrap();
    assert!(picture["peers"].is_array(), "{picture}");
    assert_eq!(picture["state"], "Running");
    tailnet.end().await;
    assert!(matches!(node.status_with_peers().await, Err(Error::Closed)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn close_during_join_is_bounded() {
    // Joining can be stuck in three ways: no answer, refusal of every request, and waiting for a
    // person.
    for trouble in [
        serde_json::json!({ "mode": "hold" }),
        serde_json::json!({ "mode": "down" }),
        serde_json::json!({ "mode": "ok" }),
    ] {
        let devnet = Devnet::start();
        devnet
            .configure(serde_json::json!({ "require_auth": true }))
            .await;
        devnet.control(trouble.clone()).await;
        let state = tempfile::tempdir().unwrap();
        for wait in [0, 30, 300] {
            let began = Instant::now();
            let node = soon(
                "start",
                EmbeddedNode::start(&config(&devnet, state.path(), "joining", "")),
            )
            .await
            .unwrap();
            let started = began.elapsed();
            tokio::time::sleep(Duration::from_millis(wait)).await;
            let began = Instant::now();
            node.close().await;
            eprintln!(
                "{trouble}, after {wait} ms: started in {started:?}, closed in {:?}",
                began.elapsed()
            );
            assert!(
                began.elapsed() < CLOSE_WITHIN,
                "{trouble}: {:?}",
                began.elapsed()
            );
            assert_eq!(node.watch().borrow().state, BackendState::Stopped);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn close_during_dial_ends_it() {
    let tailnet = DevnetTailnet::new();
    let node = tailnet
        .node("dialling", Owner::User("alice@example.com"))
        .await;
    let gone = tailnet.node("gone", Owner::User("alice@example.com")).await;
    let ip = running(&*gone).await.addresses[0];
    status_becomes(&*node, "aware", |_| true).await;
    // Its packets are lost from here on, so the dial waits.
    gone.close().await;
    let dialling = {
        let node = Arc::clone(&node);
        tokio::spawn(async move {
            node.dial(&format!("{ip}:80"), Duration::from_secs(60))
                .await
                .map(drop)
        })
    };
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!dialling.is_finished(), "{:?}", dialling.await);
    let began = Instant::now();
    node.close().await;
    let outcome = soon("dial", dialling).await.unwrap();
    assert!(matches!(outcome, Err(Error::Closed)), "{outcome:?}");
    assert!(began.elapsed() < CLOSE_WITHIN);
    tailnet.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dial_ends_when_it_is_dropped_or_takes_too_long() {
    let tailnet = DevnetTailnet::new();
    let node = tailnet
        .node("patient", Owner::User("alice@example.com"))
        .await;
    let gone = tailnet.node("gone", Owner::User("alice@example.com")).await;
    let addr = format!("{}:80", running(&*gone).await.addresses[0]);
    gone.close().await;
    let late = node.dial(&addr, Duration::from_millis(200)).await;
    assert!(matches!(late, Err(Error::Timeout(_))), "{late:?}");
    // A dial that is given up leaves the node unharmed.
    let given_up = tokio::time::timeout(
        Duration::from_millis(50),
        node.dial(&addr, Duration::from_secs(60)),
    )
    .await;
    assert!(given_up.is_err());
    assert!(node.listen(ListenAddr::Port(80)).await.is_ok());
    tailnet.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_in_one_process_are_two() {
    let tailnet = DevnetTailnet::new();
    let (a, b) = tokio::join!(
        tailnet.node("one", Owner::User("alice@example.com")),
        tailnet.node("two", Owner::Tag("tag:two")),
    );
    let (is_a, is_b) = (running(&*a).await, running(&*b).await);
    assert_ne!(is_a.id, is_b.id);
    assert!(is_a.addresses.iter().all(|ip| !is_b.addresses.contains(ip)));
    let _on_a = a.listen(ListenAddr::Port(443)).await.unwrap();
    let mut on_b = b.listen(ListenAddr::Port(443)).await.unwrap();
    a.close().await;
    assert_eq!(b.watch().borrow().state, BackendState::Running);
    let waiting = tokio::time::timeout(Duration::from_millis(50), on_b.accept()).await;
    assert!(
        waiting.is_err(),
        "closing one ended the other's listener: {waiting:?}"
    );
    tailnet.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invalid_settings_are_refused_and_never_cut() {
    let tailnet = DevnetTailnet::new();
    let good = || tailnet.config("settings", "");
    let long = "x".repeat(100_000);
    let mut cases: Vec<(&str, Config)> = Vec::new();
    for text in ["a\0b", long.as_str()] {
        cases.extend([
            (
                "hostname",
                Config {
                    hostname: text.into(),
                    ..good()
                },
            ),
            (
                "dir",
                Config {
                    dir: format!("/tmp/{text}").into(),
                    ..good()
                },
            ),
            (
                "auth key",
                Config {
                    auth_key: Some(Secret::new(text)),
                    ..good()
                },
            ),
            (
                "control URL",
                Config {
                    control_url: Some(format!("http://127.0.0.1:1/{text}")),
                    ..good()
                },
            ),
            (
                "tag",
                Config {
                    tags: vec![format!("tag:{text}")],
                    ..good()
                },
            ),
            (
                "client id",
                Config {
                    client_id: Some(text.into()),
                    ..good()
                },
            ),
            (
                "client secret",
                Config {
                    client_secret: Some(Secret::new(text)),
                    ..good()
                },
            ),
        ]);
    }
    cases.extend([
        (
            "tag without its prefix",
            Config {
                tags: vec!["robot".into()],
                ..good()
            },
        ),
        (
            "URL",
            Config {
                control_url: Some("ftp://x".into()),
                ..good()
            },
        ),
        (
            "empty dir",
            Config {
                dir: "".into(),
                ..good()
            },
        ),
    ]);
    for (what, config) in cases {
        let refused = EmbeddedNode::start(&config).await;
        assert!(
            matches!(refused, Err(Error::Invalid(_))),
            "{what}: {refused:?}"
        );
        let words = refused.unwrap_err().to_string();
        assert!(words.len() < 1000, "{what}: the words repeat the setting");
    }
    tailnet.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_impossible_state_directory_fails_the_start() {
    let tailnet = DevnetTailnet::new();
    let file = tempfile::NamedTempFile::new().unwrap();
    let refused = EmbeddedNode::start(&Config {
        dir: file.path().join("below-a-file"),
        ..tailnet.config("dir", "")
    })
    .await;
    assert!(
        matches!(refused, Err(Error::Io(_) | Error::Start(_))),
        "{refused:?}"
    );

    let state = tempfile::tempdir().unwrap();
    std::fs::write(state.path().join("tailscaled.state"), b"{\"half\": ").unwrap();
    let refused = EmbeddedNode::start(&Config {
        dir: state.path().into(),
        ..tailnet.config("half", "")
    })
    .await;
    assert!(
        matches!(refused, Err(Error::Io(_) | Error::Start(_))),
        "{refused:?}"
    );
    tailnet.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_versions_of_go_and_tsnet_are_known() {
    let version = engine_version().await.unwrap();
    assert!(version.tsnet.starts_with("1."), "{version:?}");
    assert!(version.go.starts_with("go1."), "{version:?}");
    assert!(runtime_stats().await.unwrap().goroutines > 0);
}

/// A real node applies the packet filter only to the first packet of a connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kept_connection_ends_when_its_port_is_taken_out_of_the_filter() {
    let devnet = Devnet::start();
    let state = tempfile::tempdir().unwrap();
    let server = Arc::new(users_node(&devnet, state.path(), "server").await);
    let caller = users_node(&devnet, state.path(), "caller").await;
    let ip = running(&*server).await.addresses[0];
    let directory = Directory::new(server.clone());
    let routes = Router::new()
        .route("/", get(|caller: Caller| async move { caller.to_string() }))
        .route(
            "/endless",
            get(|caller: Caller| async move {
                let first =
                    futures_util::stream::iter([Ok::<_, std::io::Error>(caller.to_string())]);
                Body::from_stream(first.chain(futures_util::stream::pending()))
            }),
        );
    let mut servers = Vec::new();
    for port in [80, 81] {
        let listener = server.listen(ListenAddr::Port(port)).await.unwrap();
        let (routes, directory) = (routes.clone(), directory.clone());
        let routes = layers::wrap_streaming(routes, "test");
        servers.push(serve(
            "test",
            TailnetListener(listener),
            routes,
            Limits::default(),
            move |peer| directory.identify(peer),
        ));
    }
    let ask = async |stream: &mut Stream, path: &str| {
        let request = format!("GET {path} HTTP/1.1\r\nhost: server\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        while !text.contains("user:caller@example.com") {
            let mut bytes = [0; 1024];
            let read = soon("an answer", stream.read(&mut bytes)).await.unwrap();
            assert_ne!(read, 0, "{path} ended after {text:?}");
            text.push_str(&String::from_utf8_lossy(&bytes[..read]));
        }
    };
    let connect = async |port: u16| {
        let addr = format!("{ip}:{port}");
        let stream = caller.dial(&addr, Duration::from_secs(20)).await;
        stream.unwrap()
    };
    let (mut kept, mut endless, mut other) =
        (connect(80).await, connect(80).await, connect(81).await);
    ask(&mut kept, "/").await;
    ask(&mut endless, "/endless").await;
    ask(&mut other, "/").await;

    let began = Instant::now();
    devnet.access(&[("caller", "server", "81")]).await;
    for (what, stream) in [
        ("the kept connection", &mut kept),
        ("the stream", &mut endless),
    ] {
        let mut rest = Vec::new();
        // No request is sent on it. A reset counts as an end.
        let _ = soon(what, stream.read_to_end(&mut rest)).await;
        assert_eq!(String::from_utf8_lossy(&rest), "", "{what}");
        eprintln!("{what} ended after {:?}", began.elapsed());
    }
    assert!(
        began.elapsed() < Duration::from_secs(3),
        "{:?}",
        began.elapsed()
    );
    ask(&mut other, "/").await;
    let refused = caller
        .dial(&format!("{ip}:80"), Duration::from_secs(1))
        .await;
    assert!(matches!(refused, Err(Error::Timeout(_))), "{refused:?}");

    devnet.access(&[("*", "*", "*")]).await;
    let mut again = connect(80).await;
    ask(&mut again, "/").await;
    caller.close().await;
    server.close().await;
}
