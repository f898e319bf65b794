//! Connections to the services behind the reverse proxy: TLS and timeouts.

use std::{net::SocketAddr, time::Duration};

use tailbone::config::{self, UpstreamScheme};
use testkit::{
    backend::{Answer, Backend},
    counts::counts,
    files::certificate_file,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use super::{
    reverse::{UPGRADE, read_until},
    server::{ALLOW_OWN, GateServer, upstream},
};

/// Much longer than anything here takes, and short enough to wait for.
const LIMIT: Duration = Duration::from_secs(1);

/// A server whose gate connects to `addr` with a scheme, as `host`.
async fn gate_to(
    addr: SocketAddr,
    scheme: UpstreamScheme,
    host: &str,
    trusted: Option<&str>,
) -> GateServer {
    let port = addr.port();
    let upstream = config::UpstreamSettings {
        scheme,
        address: format!("{host}:{port}"),
        ..upstream("", "", addr)
    };
    GateServer::with(ALLOW_OWN, |gate| {
        gate.upstreams = vec![upstream];
        gate.upstream_ca = trusted.map(certificate_file);
        gate.upstream_timeout = LIMIT;
    })
    .await
}

#[tokio::test]
async fn services_with_tls_are_spoken_to_as_the_scheme_says() {
    let backend = Backend::start_tls("first").await;
    for (scheme, version) in [
        (UpstreamScheme::Https, "HTTP/1.1"),
        (UpstreamScheme::H2, "HTTP/2.0"),
    ] {
        let server = gate_to(backend.addr, scheme, "localhost", Some("first.crt")).await;
        let answer = server.get("alice", "/x?y=1").await;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.json()["version"], version);
        assert_eq!(answer.received("tailscale-user"), ["alice@example.com"]);
        assert_eq!(answer.received("x-forwarded-host"), ["app.example.com"]);
    }
    let server = gate_to(
        backend.addr,
        UpstreamScheme::Https,
        "localhost",
        Some("first.crt"),
    )
    .await;
    let mut stream = server.connect("alice").await;
    stream.write_all(UPGRADE).await.unwrap();
    let head = read_until(&mut stream, "\r\n\r\n").await;
    assert_eq!(Answer::parse(head.as_bytes()).status, 101);
    stream.write_all(b"through TLS").await.unwrap();
    read_until(&mut stream, "through TLS").await;
}

#[tokio::test]
async fn a_service_that_cannot_show_who_it_is_gets_nothing() {
    let backend = Backend::start_tls("first").await;
    for (host, trusted) in [
        // Signed by another authority; for another name; by an authority that the system does not
        // trust.
        ("localhost", Some("second.crt")),
        ("127.0.0.1", Some("first.crt")),
        ("localhost", None),
    ] {
        let server = gate_to(backend.addr, UpstreamScheme::Https, host, trusted).await;
        let answer = server.get("alice", "/").await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (502, "upstream_failed"),
            "{host} {trusted:?}"
        );
    }
}

#[tokio::test]
async fn an_answer_that_does_not_begin_is_504_with_an_id() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let silent = tokio::spawn(async move {
        let mut open = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            open.push(stream);
        }
    });
    let server = gate_to(addr, UpstreamScheme::Http, "127.0.0.1", None).await;
    let answer = server.get("alice", "/").await;
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (504, "upstream_timeout")
    );
    let id = answer.json()["request_id"].as_str().unwrap().to_owned();
    assert!(!id.is_empty() && answer.header("x-request-id") == id);
    assert_eq!(
        counts(&server.meter, "gate_upstreams_total"),
        [r#"gate_upstreams_total{result="upstream_timeout"} 1"#]
    );
    silent.abort();
}

#[tokio::test]
async fn uploads_and_answers_may_take_longer_than_the_timeout() {
    let backend = Backend::start().await;
    let server = gate_to(backend.addr, UpstreamScheme::Http, "127.0.0.1", None).await;
    // The service answers after the whole upload: as long as parts arrive, the gate does not give
    // up.
    let mut upload = server.connect("alice").await;
    upload
        .write_all(b"POST /x HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 4\r\n\r\n")
        .await
        .unwrap();
    // This answer begins at once and goes on.
    let mut events = server.connect("alice").await;
    events
        .write_all(b"POST /sse HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        .await
        .unwrap();
    read_until(&mut events, "data: hello\n\n").await;
    for letter in *b"abcd" {
        // This test is about the passing of time.
        tokio::time::sleep(LIMIT * 2 / 5).await;
        upload.write_all(&[letter]).await.unwrap();
    }
    let mut answer = Vec::new();
    upload.read_to_end(&mut answer).await.unwrap();
    let answer = Answer::parse(&answer);
    assert_eq!(
        (answer.status, &answer.json()["body"]),
        (200, &"abcd".into())
    );
    events.write_all(b"1\r\nz\r\n").await.unwrap();
    read_until(&mut events, "data: 122\n\n").await;
}
