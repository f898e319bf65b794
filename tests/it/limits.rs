//! The bounds of requests and connections that settings move, on the fake node: sizes, times, requests in hand, requests per caller.

use std::{sync::Arc, time::Duration};

use axum::{Router, body::Bytes, extract::Request, http::StatusCode, routing::get};
use hyper_util::rt::TokioIo;
use tailbone::{
    http::serve::{Limits, LiveLimits},
    identity::Callers,
    tailnet::{Node, fake::Identity},
    telemetry::meter::Meter,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::Semaphore,
};

use crate::{
    inside::{World, call, who},
    support::{eventually, http::request, soon},
};

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
    let _server = world
        .serve(80, echo, limits.clone(), Meter::default())
        .await;
    let alice = world.peer("alice");
    let sent = async |length: usize| {
        let mut request = request("GET", "/");
        *request.body_mut() = vec![b'x'; length].into();
        call(&alice, 80).await.send(request).await
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
    let _server = world.serve(80, slow, limits, Meter::default()).await;
    let mut alice = call(&world.peer("alice"), 80).await;
    assert_eq!(alice.get("/").await.status(), 200);
    assert_eq!(
        alice.get("/never").await.refusal(),
        (408, "timeout".to_owned())
    );
}

#[tokio::test]
async fn more_requests_than_may_be_in_hand_are_refused_at_once() {
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
    let _server = world.serve(80, waits, limits, Meter::default()).await;
    let alice = world.peer("alice");
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut connection = call(&alice, 80).await;
        held.push(tokio::spawn(
            async move { connection.get("/").await.status() },
        ));
    }
    soon("both are in hand", arrived.acquire_many(2))
        .await
        .unwrap()
        .forget();
    let mut third = call(&alice, 80).await;
    let answer = third.get("/").await;
    assert_eq!(answer.refusal(), (503, "overloaded".to_owned()));
    assert_eq!(answer.header("retry-after"), "1");

    gate.add_permits(3);
    for held in held {
        assert_eq!(held.await.unwrap(), 200);
    }
    // What was refused and what is done count no longer.
    assert_eq!(third.get("/").await.status(), 200);
}

#[tokio::test]
async fn silence_between_requests_has_a_bound_of_its_own() {
    let world = World::new();
    let limits = Limits {
        header_time: Duration::from_secs(300),
        idle_time: Duration::from_millis(300),
        ..Limits::default()
    };
    // An answer that takes longer than the silence may last, in its beginning and in its body.
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
    let server = world.serve(80, slow, limits, Meter::default()).await;
    let alice = world.peer("alice");
    // Nothing was asked yet: that is not silence between two requests.
    let quiet = alice
        .dial("tailbone:80", Duration::from_secs(5))
        .await
        .unwrap();
    let mut kept = call(&alice, 80).await;
    let answer = kept.get("/").await;
    assert_eq!(answer.0.body().as_ref(), b"piece piece piece piece ");
    assert_eq!(server.load().open(), 2);
    eventually("the silent one is let go", async || {
        match server.load().open() {
            1 => Ok(()),
            open => Err(open.to_string()),
        }
    })
    .await;
    drop(quiet);
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
    let _server = world.serve(80, routes, limits, Meter::default()).await;
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
    // Several times what either bound allows.
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
    let routes = who().route("/open", get(|| async {}));
    let _server = world
        .serve(80, routes, limits.clone(), Meter::default())
        .await;
    let laptop = world
        .net
        .join("laptop", Identity::user("alice@example.com"));
    let phone = world.net.join("phone", Identity::user("alice@example.com"));
    let bob = world.peer("bob");
    let machines: Vec<_> = ["ci-1", "ci-2"]
        .map(|host| world.net.join(host, Identity::tagged(["tag:ci"])))
        .into();

    // A new connection each: what counts is who asks.
    for device in [&laptop, &phone, &laptop] {
        assert_eq!(call(device, 80).await.get("/").await.status(), 200);
    }
    let mut refused = call(&phone, 80).await;
    let answer = refused.get("/").await;
    assert_eq!(answer.refusal(), (429, "too_many_requests".to_owned()));
    assert!(answer.header("retry-after").parse::<u64>().unwrap() >= 1);
    // Nobody asked who they are: nothing to count.
    assert_eq!(refused.get("/open").await.status(), 200);
    assert_eq!(call(&bob, 80).await.get("/").await.status(), 200);
    for machine in &machines {
        for _ in 0..3 {
            assert_eq!(call(machine, 80).await.get("/").await.status(), 200);
        }
    }
    assert_eq!(call(&machines[0], 80).await.get("/").await.status(), 429);

    // A new network map asks anew who they are, and forgets nothing.
    world.net.join("new", Identity::user("carol@example.com"));
    assert_eq!(call(&laptop, 80).await.get("/").await.status(), 429);

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
    let callers = Callers::new(limits);
    let first = world.serve_paced(80, who(), limits, callers.clone()).await;
    let second = world.serve_paced(81, who(), limits, callers).await;
    let alice = world.peer("alice");
    assert_eq!(call(&alice, 80).await.get("/").await.status(), 200);
    assert_eq!(call(&alice, 81).await.get("/").await.status(), 200);
    assert_eq!(call(&alice, 80).await.get("/").await.status(), 429);
    assert_eq!(call(&alice, 81).await.get("/").await.status(), 429);
    drop((first, second));
}
