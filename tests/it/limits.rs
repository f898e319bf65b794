//! Limits of requests and connections that settings change, on the fake node: sizes, times,
//! concurrent requests, requests per caller.

use std::{sync::Arc, time::Duration};

use axum::{Router, body::Bytes, extract::Request, http::StatusCode, routing::get};
use futures_util::future::join_all;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tailbone::{
    http::{
        layers,
        serve::{Limits, LiveLimits, Server},
    },
    identity::CallerRates,
    tailnet::{Node, fake::Identity},
};
use testkit::{
    eventually,
    http::request,
    soon,
    world::{Serving, World, caller_routes},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::Semaphore,
};

/// Waits until the server has this many open connections.
async fn until_open(server: &Server, connections: usize) {
    eventually("connections", async || match server.load().open() {
        open if open == connections => Ok(()),
        open => Err(open.to_string()),
    })
    .await;
}

#[tokio::test]
async fn a_peer_that_asks_too_often_gets_429_and_others_are_served() {
    let world = World::new();
    let limits = LiveLimits::from(Limits {
        request_rate: 1,
        request_burst: 3,
        ..Limits::default()
    });
    let _server = world
        .serve_limited(80, caller_routes(), limits.clone())
        .await;
    let (greedy, modest) = (world.peer("greedy"), world.peer("modest"));
    for _ in 0..3 {
        // Each request has a connection of its own, but the account is the peer's.
        assert_eq!(world.call(&greedy, 80).await.get("/").await.status(), 200);
    }
    let answer = world.call(&greedy, 80).await.get("/").await;
    assert_eq!(answer.refusal(), (429, "too_many_requests".to_owned()));
    assert!(answer.header("retry-after").parse::<u64>().unwrap() >= 1);
    assert_eq!(world.call(&modest, 80).await.get("/").await.status(), 200);

    // New limits apply at once, also to open connections.
    let mut open = world.call(&greedy, 80).await;
    limits.set(Limits {
        request_rate: 0,
        ..Limits::default()
    });
    for _ in 0..10 {
        assert_eq!(open.get("/").await.status(), 200);
    }
}

#[tokio::test]
async fn a_peer_with_too_many_connections_gets_503_and_others_are_served() {
    let world = World::new();
    let limits = Limits {
        connections_per_peer: 2,
        ..Limits::default()
    };
    let server = world.serve_limited(80, caller_routes(), limits).await;
    let (greedy, modest) = (world.peer("greedy"), world.peer("modest"));
    let mut first = world.call(&greedy, 80).await;
    let mut second = world.call(&greedy, 80).await;
    assert_eq!(first.get("/").await.status(), 200);
    assert_eq!(second.get("/").await.status(), 200);

    let mut third = greedy
        .dial("tailbone:80", Duration::from_secs(5))
        .await
        .unwrap();
    let mut said = Vec::new();
    // The connection may be reset instead of closed, since nobody reads what it sends.
    let _ = soon("the end", third.read_to_end(&mut said)).await;
    let said = String::from_utf8(said).unwrap();
    assert!(
        said.starts_with("HTTP/1.1 503 ") && said.contains("retry-after: 1"),
        "{said}"
    );
    assert_eq!(server.load().refused(), 1);
    assert_eq!(world.call(&modest, 80).await.get("/").await.status(), 200);

    // Released connections can be used again.
    drop(first);
    until_open(&server, 1).await;
    assert_eq!(world.call(&greedy, 80).await.get("/").await.status(), 200);
}

#[tokio::test]
async fn d14_a_thousand_slow_connections_hold_up_nobody() {
    let world = World::new();
    let limits = Limits {
        header_time: Duration::from_secs(300),
        ..Limits::default()
    };
    let server = world.serve_limited(80, caller_routes(), limits).await;
    let slow: Vec<_> = (0..4).map(|at| world.peer(&format!("slow{at}"))).collect();
    let mut stuck = Vec::new();
    for at in 0..1000 {
        let mut stream = slow[at % slow.len()]
            .dial("tailbone:80", Duration::from_secs(20))
            .await
            .unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHo").await.unwrap();
        stuck.push(stream);
    }
    until_open(&server, 1000).await;
    let alice = world.peer("alice");
    let mut kept = world.call(&alice, 80).await;
    for _ in 0..20 {
        assert_eq!(kept.get("/").await.status(), 200);
        assert_eq!(world.call(&alice, 80).await.get("/").await.status(), 200);
    }
    // None of them was closed for the new one.
    assert!(server.load().open() >= 1001, "{}", server.load().open());
    drop(stuck);
}

#[tokio::test]
async fn a_peer_that_does_not_read_its_answer_is_disconnected() {
    let world = World::new();
    let limits = Limits {
        write_time: Duration::from_millis(200),
        ..Limits::default()
    };
    let large = Router::new().route("/", get(|| async { vec![b'x'; 64 << 20] }));
    let server = world.serve_limited(80, large, limits).await;
    let peer = world.peer("lazy");
    let mut stream = peer
        .dial("tailbone:80", Duration::from_secs(5))
        .await
        .unwrap();
    stream
        .write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    until_open(&server, 1).await;
    until_open(&server, 0).await;
    drop(stream);
}

#[tokio::test]
async fn a_body_is_bounded_whether_its_length_is_told_or_not() {
    let world = World::new();
    let limits = LiveLimits::from(Limits {
        body_bytes: 1000,
        ..Limits::default()
    });
    let echo = Router::new().route(
        "/",
        get(|body: Bytes| async move { body.len().to_string() }),
    );
    let _server = world.serve_limited(80, echo, limits.clone()).await;
    let alice = world.peer("alice");
    let sent = async |length: usize| {
        let mut request = request("GET", "/");
        *request.body_mut() = vec![b'x'; length].into();
        world.call(&alice, 80).await.send(request).await
    };
    assert_eq!(sent(1000).await.status(), 200);
    let answer = sent(1001).await;
    assert_eq!(answer.refusal(), (413, "body_too_large".to_owned()));
    assert!(
        answer.json()["error_description"]
            .as_str()
            .unwrap()
            .contains("1000 bytes")
    );

    let mut stream = alice
        .dial("tailbone:80", Duration::from_secs(5))
        .await
        .unwrap();
    let chunk = format!("2bc\r\n{}\r\n", "x".repeat(700));
    let head = "GET / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n";
    stream
        .write_all(format!("{head}{chunk}{chunk}").as_bytes())
        .await
        .unwrap();
    let mut said = Vec::new();
    let _ = soon("the refusal", stream.read_to_end(&mut said)).await;
    assert!(
        said.starts_with(b"HTTP/1.1 413 "),
        "{}",
        String::from_utf8_lossy(&said)
    );

    limits.set(Limits::default());
    assert_eq!(sent(1001).await.status(), 200);
}

#[tokio::test]
async fn a_request_is_answered_in_its_time_or_with_408() {
    let world = World::new();
    let limits = Limits {
        request_time: Duration::from_millis(200),
        ..Limits::default()
    };
    let slow = Router::new()
        .route("/never", get(std::future::pending::<()>))
        .route("/", get(|| async {}));
    let _server = world.serve_limited(80, slow, limits).await;
    let mut alice = world.call(&world.peer("alice"), 80).await;
    assert_eq!(alice.get("/").await.status(), 200);
    assert_eq!(
        alice.get("/never").await.refusal(),
        (408, "timeout".to_owned())
    );
}

#[tokio::test]
async fn requests_beyond_the_limit_are_refused_at_once() {
    let world = World::new();
    let limits = Limits {
        requests: 2,
        ..Limits::default()
    };
    let (gate, arrived) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let waits = {
        let (gate, arrived) = (gate.clone(), arrived.clone());
        Router::new().route(
            "/",
            get(async move || {
                arrived.add_permits(1);
                gate.acquire().await.unwrap().forget();
            }),
        )
    };
    let _server = world.serve_limited(80, waits, limits).await;
    let alice = world.peer("alice");
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut connection = world.call(&alice, 80).await;
        held.push(tokio::spawn(
            async move { connection.get("/").await.status() },
        ));
    }
    soon("both are in hand", arrived.acquire_many(2))
        .await
        .unwrap()
        .forget();
    let mut third = world.call(&alice, 80).await;
    let answer = third.get("/").await;
    assert_eq!(answer.refusal(), (503, "overloaded".to_owned()));
    assert_eq!(answer.header("retry-after"), "1");

    gate.add_permits(3);
    for held in held {
        assert_eq!(held.await.unwrap(), 200);
    }
    // Refused and completed requests no longer count.
    assert_eq!(third.get("/").await.status(), 200);
}

#[tokio::test]
async fn silence_between_requests_has_a_timeout_of_its_own() {
    let world = World::new();
    let limits = Limits {
        header_time: Duration::from_secs(300),
        idle_time: Duration::from_millis(300),
        ..Limits::default()
    };
    // An answer that takes longer than the idle timeout, at its beginning and in its body.
    let slow = Router::new().route(
        "/",
        get(async || {
            let pieces = futures_util::stream::unfold(0, async |piece| {
                tokio::time::sleep(Duration::from_millis(250)).await;
                (piece < 4).then(|| (Ok::<_, std::io::Error>("piece "), piece + 1))
            });
            tokio::time::sleep(Duration::from_millis(600)).await;
            axum::body::Body::from_stream(pieces)
        }),
    );
    let server = world.serve_limited(80, slow, limits).await;
    let alice = world.peer("alice");
    // Before the first request, the silence is not that between two requests.
    let quiet = alice
        .dial("tailbone:80", Duration::from_secs(5))
        .await
        .unwrap();
    let mut kept = world.call(&alice, 80).await;
    let answer = kept.get("/").await;
    assert_eq!(answer.0.body().as_ref(), b"piece piece piece piece ");
    assert_eq!(server.load().open(), 2);
    until_open(&server, 1).await;
    drop(quiet);
}

/// The first bytes of an HTTP/2 connection.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

#[tokio::test]
async fn a_part_of_the_http2_preface_does_not_hold_a_connection() {
    let world = World::new();
    let limits = Limits {
        header_time: Duration::from_millis(300),
        ..Limits::default()
    };
    let server = world.serve_limited(80, caller_routes(), limits).await;
    let alice = world.peer("alice");
    let mut held = Vec::new();
    for length in 1..PREFACE.len() {
        let mut stream = alice
            .dial("tailbone:80", Duration::from_secs(5))
            .await
            .unwrap();
        stream.write_all(&PREFACE[..length]).await.unwrap();
        held.push(stream);
    }
    for (at, stream) in held.iter_mut().enumerate() {
        let mut rest = Vec::new();
        let ended = soon("the end", stream.read_to_end(&mut rest)).await;
        assert!(ended.is_err() || rest.is_empty(), "{} bytes", at + 1);
    }
    until_open(&server, 0).await;
}

#[tokio::test]
async fn one_peer_cannot_have_all_connections_of_a_small_process() {
    let world = World::new();
    // The setting gives one peer far more than the process can hold.
    let limits = Limits {
        connections: 20,
        connections_per_peer: 1024,
        header_time: Duration::from_secs(300),
        ..Limits::default()
    };
    let server = world.serve_limited(80, caller_routes(), limits).await;
    let greedy = world.peer("greedy");
    let mut held = Vec::new();
    for _ in 0..limits.connections + 5 {
        let mut stream = greedy
            .dial("tailbone:80", Duration::from_secs(5))
            .await
            .unwrap();
        // A refused connection may be closed already.
        let _ = stream.write_all(b"PRI ").await;
        held.push(stream);
    }
    let mut alice = soon("a connection", world.call(&world.peer("alice"), 80)).await;
    assert_eq!(soon("an answer", alice.get("/")).await.status(), 200);
    assert_eq!(server.load().open(), limits.share() + 1);
    drop(held);
}

/// An HTTP/2 connection whose streams have a window of this many bytes until the caller reads.
async fn call_http2(peer: &dyn Node, window: u32) -> http2::SendRequest<Empty<Bytes>> {
    let stream = peer
        .dial("tailbone:80", Duration::from_secs(5))
        .await
        .unwrap();
    let (sender, connection) = http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(window)
        .handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    sender
}

fn ask() -> hyper::Request<Empty<Bytes>> {
    hyper::Request::get("http://tailbone/")
        .body(Empty::new())
        .unwrap()
}

#[tokio::test]
async fn answers_without_a_window_do_not_hold_an_http2_connection() {
    let world = World::new();
    let limits = Limits {
        write_time: Duration::from_millis(300),
        ..Limits::default()
    };
    let routes = Router::new().route("/", get(|| async { "x".repeat(700) }));
    let server = world.serve_limited(80, routes, limits).await;
    let alice = world.peer("alice");
    // No window at all, and a window for a part of the answer.
    for window in [0, 1, 699] {
        let sender = call_http2(&alice, window).await;
        let asked = (0..200).map(|_| {
            let mut sender = sender.clone();
            async move { sender.send_request(ask()).await }
        });
        // Heads need no window. A late request may find the connection closed.
        let answers = soon("the heads", join_all(asked)).await;
        assert!(answers.iter().any(Result::is_ok), "window {window}");
        until_open(&server, 0).await;
    }
}

#[tokio::test]
async fn a_slow_reader_of_an_http2_answer_gets_all_of_it() {
    let world = World::new();
    let limits = Limits {
        write_time: Duration::from_secs(1),
        ..Limits::default()
    };
    const LENGTH: usize = 400_000;
    let routes = Router::new().route("/", get(|| async { vec![b'x'; LENGTH] }));
    let server = world.serve_limited(80, routes, limits).await;
    let alice = world.peer("alice");
    let mut sender = call_http2(&alice, 16 << 10).await;
    let mut body = sender.send_request(ask()).await.unwrap().into_body();
    let (mut got, mut slow) = (0, Duration::ZERO);
    while let Some(frame) = soon("a frame", body.frame()).await {
        got += frame.unwrap().into_data().unwrap().len();
        if slow < 3 * limits.write_time {
            tokio::time::sleep(limits.write_time / 8).await;
            slow += limits.write_time / 8;
        }
    }
    assert_eq!(got, LENGTH);
    // Nothing is waiting now: a connection without requests has no unread answer.
    tokio::time::sleep(2 * limits.write_time).await;
    assert_eq!(server.load().open(), 1);
    assert_eq!(sender.send_request(ask()).await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_connection_that_was_upgraded_may_be_silent() {
    let world = World::new();
    let limits = Limits {
        header_time: Duration::from_millis(100),
        idle_time: Duration::from_millis(100),
        ..Limits::default()
    };
    let echo = async |mut request: Request| {
        let upgraded = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut stream = TokioIo::new(upgraded.await.unwrap());
            let mut byte = [0];
            while stream.read_exact(&mut byte).await.is_ok() {
                stream.write_all(&byte).await.unwrap();
            }
        });
        let headers = [("connection", "upgrade"), ("upgrade", "echo")];
        (StatusCode::SWITCHING_PROTOCOLS, headers)
    };
    let routes = Router::new().route("/", get(echo));
    let _server = world.serve_limited(80, routes, limits).await;
    let alice = world.peer("alice");
    let mut stream = alice
        .dial("tailbone:80", Duration::from_secs(5))
        .await
        .unwrap();
    stream
        .write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n")
        .await
        .unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(soon("the answer", stream.read_u8()).await.unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 101 "));
    // Several times as long as either limit.
    tokio::time::sleep(Duration::from_millis(500)).await;
    stream.write_all(b"x").await.unwrap();
    assert_eq!(soon("the echo", stream.read_u8()).await.unwrap(), b'x');
}

#[tokio::test]
async fn a_person_with_several_devices_is_one_caller() {
    let world = World::new();
    let limits = LiveLimits::from(Limits {
        caller_rate: 1,
        caller_burst: 3,
        ..Limits::default()
    });
    let routes = caller_routes().route("/open", get(|| async {}));
    let _server = world.serve_limited(80, routes, limits.clone()).await;
    let laptop = world.join("laptop", Identity::user("alice@example.com"));
    let phone = world.join("phone", Identity::user("alice@example.com"));
    let bob = world.peer("bob");
    let machines: Vec<_> = ["ci-1", "ci-2"]
        .map(|host| world.join(host, Identity::tagged(["tag:ci"])))
        .into();

    // A new connection each time: the caller counts, not the connection.
    for device in [&laptop, &phone, &laptop] {
        assert_eq!(world.call(device, 80).await.get("/").await.status(), 200);
    }
    let mut refused = world.call(&phone, 80).await;
    let answer = refused.get("/").await;
    assert_eq!(answer.refusal(), (429, "too_many_requests".to_owned()));
    assert!(answer.header("retry-after").parse::<u64>().unwrap() >= 1);
    // This route does not identify its callers, so it counts nothing.
    assert_eq!(refused.get("/open").await.status(), 200);
    assert_eq!(world.call(&bob, 80).await.get("/").await.status(), 200);
    for machine in &machines {
        for _ in 0..3 {
            assert_eq!(world.call(machine, 80).await.get("/").await.status(), 200);
        }
    }
    assert_eq!(
        world.call(&machines[0], 80).await.get("/").await.status(),
        429
    );

    // A new network map leads to a new WhoIs call, but the counts stay.
    world.join("new", Identity::user("carol@example.com"));
    assert_eq!(world.call(&laptop, 80).await.get("/").await.status(), 429);

    limits.set(Limits {
        caller_rate: 0,
        ..Limits::default()
    });
    for _ in 0..10 {
        assert_eq!(refused.get("/").await.status(), 200);
    }
}

#[tokio::test]
async fn one_caller_is_counted_over_all_listeners() {
    let world = World::new();
    let limits = Limits {
        caller_rate: 1,
        caller_burst: 2,
        ..Limits::default()
    };
    let callers = CallerRates::new(limits);
    let serve = async |port| {
        let serving = Serving {
            limits: limits.into(),
            callers: Some(callers.clone()),
            ..Serving::default()
        };
        let routes = layers::wrap(caller_routes(), "test");
        world.serve_with(port, routes, serving).await
    };
    let servers = [serve(80).await, serve(81).await];
    let alice = world.peer("alice");
    assert_eq!(world.call(&alice, 80).await.get("/").await.status(), 200);
    assert_eq!(world.call(&alice, 81).await.get("/").await.status(), 200);
    assert_eq!(world.call(&alice, 80).await.get("/").await.status(), 429);
    assert_eq!(world.call(&alice, 81).await.get("/").await.status(), 429);
    drop(servers);
}
