//! The reverse proxy: what reaches the backend, what comes back, and what must never do so.

use std::{net::SocketAddr, time::Duration};

use http_body_util::BodyExt;
use tailbone::{config, gate::Gate, gate::GateError, identity::Directory, telemetry::meter::Meter};
use testkit::{
    backend::{Answer, Backend},
    soon,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::server::{ALLOW_OWN, GateServer, PROXY_PORT, upstream};

#[tokio::test]
async fn a_backend_learns_its_caller_and_the_forwarded_host() {
    let server = GateServer::start(ALLOW_OWN).await;
    let answer = server
        .send(
            "alice",
            "GET /a/%20b?x=%2F&y",
            &["Host: app.example.com:8080"],
        )
        .await;
    assert_eq!(answer.status, 200);
    assert_eq!(
        answer.json()["target"],
        "/a/%20b?x=%2F&y",
        "passed on as it came"
    );
    let ip = server.ip("alice").to_string();
    for (header, value) in [
        ("host", "app.example.com:8080"),
        ("tailscale-user", "alice@example.com"),
        ("tailscale-user-login", "alice@example.com"),
        ("x-forwarded-for", &ip),
        ("x-real-ip", &ip),
        ("x-forwarded-host", "app.example.com:8080"),
        ("x-forwarded-proto", "http"),
        (
            "forwarded",
            &format!("for={ip};host=\"app.example.com:8080\";proto=http"),
        ),
    ] {
        assert_eq!(answer.received(header), [value], "{header}");
    }
    assert_eq!(
        answer.received("x-request-id"),
        [answer.header("x-request-id")]
    );
    assert!(answer.received("connection").is_empty());
}

#[tokio::test]
async fn a_machine_is_named_by_its_tags_and_never_by_a_user() {
    let server = GateServer::start(ALLOW_OWN).await;
    let answer = server
        .send(
            "robot",
            "GET /",
            &["Host: x", "Tailscale-User: alice@example.com"],
        )
        .await;
    assert_eq!(answer.received("tailscale-tags"), ["tag:ci,tag:prod"]);
    assert!(
        answer.received("tailscale-user").is_empty()
            && answer.received("tailscale-user-login").is_empty()
    );
}

#[tokio::test]
async fn capabilities_are_forwarded_where_configured() {
    let server = GateServer::with(ALLOW_OWN, |gate| {
        gate.forward_capabilities = vec!["example.com/cap/wiki".into()];
    })
    .await;
    server.world.tailnet.update("alice", |identity| {
        *identity = identity
            .clone()
            .cap(
                "example.com/cap/wiki",
                serde_json::json!({"role": "reader"}),
            )
            .cap("example.com/cap/secret", serde_json::json!({}));
    });
    let answer = server.get("alice", "/").await;
    assert_eq!(
        answer.received("tailscale-app-capabilities"),
        [r#"{"example.com/cap/wiki":[{"role":"reader"}]}"#]
    );
    // The gate's layer around a service of our own reports the same.
    let told = async |headers: http::HeaderMap| {
        let told = headers.get("tailscale-app-capabilities");
        told.map_or("nothing".into(), |value| value.to_str().unwrap().to_owned())
    };
    let app = axum::Router::new()
        .route("/", axum::routing::get(told))
        .layer(server.gate.layer());
    let answer = server.serve_own(app, "alice", "/").await;
    assert_eq!(
        answer.body,
        r#"{"example.com/cap/wiki":[{"role":"reader"}]}"#
    );
}

/// All known ways of pretending to be somebody else. `SPOOF` must never reach the backend.
const SPOOFS: &[&[&str]] = &[
    &["Tailscale-User: SPOOF"],
    &["Tailscale-User: SPOOF", "Tailscale-User: SPOOF2"],
    &["tAiLsCaLe-UsEr-LoGiN: SPOOF"],
    &["TAILSCALE-USER-NAME: SPOOF"],
    &["Tailscale_User: SPOOF"],
    &["Tailscale_User_Login: SPOOF"],
    &["tailscale-user_login: SPOOF"],
    &["Tailscale.User.Login: SPOOF"],
    &["HTTP_TAILSCALE_USER_LOGIN: SPOOF"],
    &["Tailscale-Tags: SPOOF"],
    &["Tailscale-App-Capabilities: {\"SPOOF\":[]}"],
    &["Tailscale-Headers-Info: SPOOF"],
    &["Tailscale-Funnel-Request: SPOOF"],
    &["Tailscale-Whatever-Comes-Next: SPOOF"],
    &["Tailbone-Token: SPOOF"],
    &["X-Webauth-User: SPOOF"],
    &["X_Webauth_User: SPOOF"],
    &["Remote-User: SPOOF"],
    &["Remote_User: SPOOF"],
    &["X-Remote-User: SPOOF"],
    &["X-Forwarded-User: SPOOF"],
    &["X-Auth-Request-Email: SPOOF"],
    &["X-Forwarded-For: SPOOF"],
    &["X-Forwarded-For: 10.0.0.1", "X-Forwarded-For: SPOOF"],
    &["X_Forwarded_For: SPOOF"],
    &["X-Forwarded-Host: SPOOF", "X-Forwarded-Proto: SPOOF"],
    &["Forwarded: for=SPOOF;host=SPOOF"],
    &["Forwarded: for=1.1.1.1, for=\"SPOOF\";by=SPOOF"],
    &["X-Real-IP: SPOOF"],
    &["True-Client-IP: SPOOF"],
    &["X-Original-URL: /SPOOF"],
    &["X-Rewrite-URL: /SPOOF"],
    &["Connection: close, Tailscale-User", "Tailscale-User: SPOOF"],
    &["Connection: Tailscale-User-Login, X-Forwarded-For"],
    &["Keep-Alive: Tailscale-User", "Proxy-Connection: SPOOF"],
    &["Tailscale-User: =?utf-8?q?SPOOF?="],
    &["Tailscale-User:\tSPOOF"],
    &["Transfer-Encoding: chunked", "Trailer: Tailscale-User"],
    &["TE: SPOOF, trailers"],
    &["Upgrade: SPOOF", "Connection: upgrade"],
    &[
        "Upgrade: h2c",
        "HTTP2-Settings: SPOOF",
        "Connection: upgrade, http2-settings",
    ],
];

#[tokio::test]
async fn no_header_from_outside_makes_anybody_somebody_else() {
    let server = GateServer::start(ALLOW_OWN).await;
    for (peer, login) in [("alice", Some("alice@example.com")), ("robot", None)] {
        for spoof in SPOOFS {
            let mut headers = vec!["Host: app.example.com"];
            headers.extend(*spoof);
            let chunked = spoof
                .iter()
                .any(|header| header.starts_with("Transfer-Encoding"));
            let mut bytes = testkit::backend::request("GET /", &headers);
            if chunked {
                bytes.extend(b"0\r\nTailscale-User: SPOOF\r\n\r\n");
            }
            let answer =
                testkit::backend::send_raw(server.source(peer), server.proxy_addr(), &bytes).await;
            assert_eq!(answer.status, 200, "{spoof:?}: {answer:?}");
            for (name, value) in answer.all_received() {
                assert!(
                    !value.contains("SPOOF") && !name.contains("spoof"),
                    "{spoof:?}: {name}: {value}"
                );
            }
            let seen = answer.received("tailscale-user");
            assert_eq!(seen.first().map(String::as_str), login, "{spoof:?}");
            assert_eq!(
                answer
                    .received("tailscale-user-login")
                    .first()
                    .map(String::as_str),
                login,
                "{spoof:?}"
            );
            assert_eq!(
                answer.received("x-forwarded-for"),
                [server.ip(peer).to_string()],
                "{spoof:?}"
            );
        }
    }
}

#[tokio::test]
async fn requests_that_can_be_read_in_two_ways_are_refused() {
    let server = GateServer::start(
        "[[rule]]\ndecision = \"deny\"\npaths = [\"/admin\"]\n[[rule]]\ndecision = \"allow\"\n",
    )
    .await;
    for (line, headers, status) in [
        ("GET /", &["Host: a", "Host: b"][..], 400),
        ("GET /", &[], 400),
        ("GET http://a.example.com/", &["Host: b.example.com"], 400),
        ("GET /%00", &["Host: a"], 400),
        ("GET /", &["Host: a/b"], 400),
        ("GET /x/../admin", &["Host: a"], 403),
        ("GET //admin", &["Host: a"], 403),
        ("GET /x%2f..%2fadmin", &["Host: a"], 403),
        ("GET /%61dmin/x", &["Host: a"], 403),
        ("GET /ADMIN", &["Host: a"], 403),
        ("TRACE /", &["Host: a"], 405),
        ("CONNECT a:80", &["Host: a:80"], 405),
    ] {
        let answer = server.send("alice", line, headers).await;
        assert_eq!(answer.status, status, "{line} {headers:?}: {answer:?}");
    }
}

#[tokio::test]
async fn a_method_cannot_be_replaced_where_rules_speak_of_methods() {
    let server = GateServer::start("[[rule]]\ndecision = \"allow\"\nmethods = [\"POST\"]\n").await;
    let answer = server
        .send(
            "alice",
            "POST /",
            &[
                "Host: a",
                "Content-Length: 0",
                "X-HTTP-Method-Override: DELETE",
                "X_HTTP_Method: DELETE",
            ],
        )
        .await;
    assert_eq!(answer.status, 200);
    assert!(
        answer
            .all_received()
            .iter()
            .all(|(_, value)| value != "DELETE")
    );
    assert_eq!(
        server.send("alice", "DELETE /", &["Host: a"]).await.status,
        403
    );
}

#[tokio::test]
async fn several_upstreams_by_host_and_path() {
    let other = Backend::start().await;
    let addr = other.addr;
    let server = GateServer::with(ALLOW_OWN, |gate| {
        gate.upstreams.push(upstream("wiki.example.com", "", addr));
        gate.upstreams.push(upstream("", "/hidden", addr));
    })
    .await;
    // The first backend is stopped, which tells the two apart.
    let first = server.get("alice", "/").await;
    assert_eq!(first.status, 200);
    drop(other);
    let wiki = server
        .send("alice", "GET /", &["Host: WIKI.example.com."])
        .await;
    assert_eq!(wiki.status, 502);
    assert_eq!(server.get("alice", "/hidden/x").await.status, 502);
    assert_eq!(server.get("alice", "/hiddenx").await.status, 200);
    assert_eq!(server.get("alice", "/hidden/../x").await.status, 400);
}

#[tokio::test]
async fn an_upstream_that_is_down_is_502_with_an_id() {
    let server = GateServer::with(ALLOW_OWN, |gate| {
        gate.upstreams = vec![upstream("", "", SocketAddr::from(([127, 0, 0, 1], 1)))];
    })
    .await;
    let answer = server.get("alice", "/").await;
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (502, "upstream_failed")
    );
    let id = answer.json()["request_id"].as_str().unwrap().to_owned();
    assert!(!id.is_empty() && answer.header("x-request-id") == id);
    assert!(
        !answer.body.contains("127.0.0.1"),
        "where the upstream is, is nobody's business"
    );
    assert_eq!(
        server.get("sharee", "/").await.status,
        403,
        "the policy comes first"
    );
}

#[tokio::test]
async fn an_upstream_that_speaks_no_http_is_502() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(b"SSH-2.0-nonsense\r\n").await;
        }
    });
    let server = GateServer::with(ALLOW_OWN, |gate| {
        gate.upstreams = vec![upstream("", "", addr)]
    })
    .await;
    assert_eq!(server.get("alice", "/").await.status, 502);
}

#[tokio::test]
async fn answers_of_the_upstream_are_its_own_but_for_its_connection() {
    let server = GateServer::start(ALLOW_OWN).await;
    let answer = server.get("alice", "/hop").await;
    assert_eq!(answer.header("x-kept"), "1");
    assert_eq!(
        (answer.header("x-secret"), answer.header("keep-alive")),
        ("", "")
    );
    let answer = server.get("alice", "/413").await;
    assert_eq!(answer.status, 413);
    assert!(answer.body.contains("the upstream's own words"));
}

#[tokio::test]
async fn bodies_of_any_size_pass() {
    let server = GateServer::start(ALLOW_OWN).await;
    let size = 3 << 20;
    let mut bytes =
        testkit::backend::request("POST /", &["Host: x", &format!("Content-Length: {size}")]);
    bytes.extend(std::iter::repeat_n(b'x', size));
    let answer =
        testkit::backend::send_raw(server.source("alice"), server.proxy_addr(), &bytes).await;
    assert_eq!(answer.status, 200);
    assert!(answer.body.len() > size);
}

#[tokio::test]
async fn events_come_while_the_request_is_still_being_sent() {
    let server = GateServer::start(ALLOW_OWN).await;
    let mut stream = server.connect("alice").await;
    stream
        .write_all(b"POST /sse HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        .await
        .unwrap();
    read_until(&mut stream, "data: hello\n\n").await;
    for letter in *b"ab" {
        stream
            .write_all(&[b"1\r\n", &[letter][..], b"\r\n"].concat())
            .await
            .unwrap();
        read_until(&mut stream, &format!("data: {letter}\n\n")).await;
    }
}

#[tokio::test]
async fn trailers_pass() {
    let server = GateServer::start(ALLOW_OWN).await;
    let answer = server
        .send("alice", "GET /trailers", &["Host: x", "TE: trailers"])
        .await;
    assert_eq!(answer.status, 200);
    assert!(answer.body.contains("body"), "{answer:?}");
}

pub(super) const UPGRADE: &[u8] = b"GET /ws HTTP/1.1\r\nHost: app.example.com\r\nConnection: Upgrade, Tailscale-User\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n\r\n";

#[tokio::test]
async fn a_websocket_becomes_a_tunnel() {
    let server = GateServer::start(ALLOW_OWN).await;
    let mut stream = server.connect("alice").await;
    stream.write_all(UPGRADE).await.unwrap();
    let head = read_until(&mut stream, "\r\n\r\n").await;
    assert_eq!(Answer::parse(head.as_bytes()).status, 101);
    for word in ["one", "two"] {
        stream.write_all(word.as_bytes()).await.unwrap();
        read_until(&mut stream, word).await;
    }
    // A tunnel outlives its request, but not the gate.
    server.stop().await;
    ends(&mut stream).await;
}

#[tokio::test]
async fn a_tunnel_ends_when_its_caller_is_no_longer_let_through() {
    let server =
        GateServer::start("[[rule]]\ndecision = \"allow\"\nwho = [\"alice@example.com\"]\n").await;
    let mut stream = server.connect("alice").await;
    stream.write_all(UPGRADE).await.unwrap();
    read_until(&mut stream, "\r\n\r\n").await;
    tokio::time::sleep(Duration::from_millis(60)).await;
    stream.write_all(b"still").await.unwrap();
    read_until(&mut stream, "still").await;
    server.world.tailnet.update("alice", |identity| {
        identity.login = "mallory@example.com".into()
    });
    ends(&mut stream).await;
}

#[tokio::test]
async fn only_websockets_may_upgrade() {
    let server = GateServer::start(ALLOW_OWN).await;
    // The backend would accept any upgrade, but must never be asked.
    for upgrade in [
        "Upgrade: h2c",
        "Upgrade: websocket\r\nUpgrade: h2c",
        "Upgrade: foo",
    ] {
        let answer = server
            .send(
                "alice",
                "GET /ws",
                &["Host: x", "Connection: upgrade", upgrade],
            )
            .await;
        assert_eq!(
            answer.status, 502,
            "{upgrade}: switched unasked, {answer:?}"
        );
    }
}

#[tokio::test]
async fn http2_upstreams_are_spoken_to_at_once_and_trailers_pass() {
    let server = GateServer::with(ALLOW_OWN, |gate| {
        gate.upstreams[0].scheme = config::UpstreamScheme::H2c
    })
    .await;
    let answer = server.get("alice", "/x").await;
    assert_eq!(answer.json()["version"], "HTTP/2.0");
    assert_eq!(answer.received("tailscale-user"), ["alice@example.com"]);
    assert_eq!(answer.received("x-forwarded-host"), ["app.example.com"]);
    // Like gRPC: HTTP/2 all the way, with trailers in the answer. Trailers of a request are
    // dropped.
    let io = hyper_util::rt::TokioIo::new(server.connect("alice").await);
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(hyper_util::rt::TokioExecutor::new(), io)
            .await
            .unwrap();
    let driver = tokio::spawn(connection);
    let mut spoof = http::HeaderMap::new();
    spoof.insert("tailscale-user", http::HeaderValue::from_static("SPOOF"));
    for (path, expected) in [("/trailers", Some("0")), ("/x", None)] {
        let trailers = Box::pin(std::future::ready(Some(Ok(spoof.clone()))));
        let body = http_body_util::Full::new(bytes::Bytes::from("x")).with_trailers(trailers);
        let request = http::Request::post(format!("http://app.example.com{path}"))
            .body(body)
            .unwrap();
        let answer = sender
            .send_request(request)
            .await
            .unwrap()
            .into_body()
            .collect()
            .await
            .unwrap();
        let status = answer
            .trailers()
            .and_then(|trailers| trailers.get("grpc-status"))
            .cloned();
        assert_eq!(
            status.as_ref().and_then(|value| value.to_str().ok()),
            expected
        );
        if expected.is_none() {
            let told: serde_json::Value = serde_json::from_slice(&answer.to_bytes()).unwrap();
            assert_eq!(
                (&told["trailers"], &told["body"]),
                (&false.into(), &"x".into())
            );
        }
    }
    driver.abort();
}

#[tokio::test]
async fn a_gate_that_cannot_work_is_not_built() {
    let server = GateServer::start(ALLOW_OWN).await;
    let settings = |change: fn(&mut config::GateSettings)| {
        let mut gate = config::GateSettings {
            listen: Vec::new(),
            upstreams: vec![upstream("", "", SocketAddr::from(([127, 0, 0, 1], 1)))],
            upstream_timeout: Duration::ZERO,
            upstream_ca: None,
            rules: config::RuleSource {
                file: None,
                capability: "x".into(),
            },
            allowed_origins: Vec::new(),
            expected_tailnet: None,
            forward_capabilities: Vec::new(),
            token: None,
            recheck: Duration::from_secs(1),
            auth: config::GateAuthSettings {
                listen: Vec::new(),
                proxies: Vec::new(),
                user_proxies: false,
                client_header: None,
                redirect: None,
            },
        };
        change(&mut gate);
        let directory = Directory::new(server.world.faulty.clone());
        Gate::build(&gate, directory, None, Meter::default()).map(|_| ())
    };
    assert!(settings(|_| {}).is_ok());
    assert!(matches!(
        settings(|g| g.upstreams.clear()),
        Err(GateError::NothingToDo)
    ));
    assert!(matches!(
        settings(|g| g.upstreams[0].address = "a b".into()),
        Err(GateError::Upstream(_))
    ));
    assert!(matches!(
        settings(|g| g.upstreams[0].path = "/a/../b".into()),
        Err(GateError::Upstream(_))
    ));
    assert!(matches!(
        settings(|g| g.auth.proxies = vec!["*".into()]),
        Err(GateError::Proxies(_))
    ));
    assert!(matches!(
        settings(|g| {
            g.auth.proxies = vec!["tag:x".into()];
            g.auth.client_header = Some("a b".into());
        }),
        Err(GateError::ClientHeader(_))
    ));
    let no_ca = [
        settings(|g| g.upstream_ca = Some("/nowhere".into())),
        settings(|g| g.upstream_ca = Some("Cargo.toml".into())),
    ];
    for (told, file) in no_ca.into_iter().zip(["/nowhere", "Cargo.toml"]) {
        let told = told.unwrap_err().to_string();
        assert!(
            told.contains(&format!("gate.upstreamCa={file}: ")),
            "{told}"
        );
    }
    assert!(matches!(
        settings(|g| g.rules.file = Some("/nowhere".into())),
        Err(GateError::Policy(_))
    ));
    let token = |g: &mut config::GateSettings| {
        g.token = Some(config::GateTokenSettings {
            issuer: "x".into(),
            audience: None,
            life: Duration::from_secs(1),
        });
    };
    assert!(matches!(settings(token), Err(GateError::NoSigner)));
    // A user's browser can be made to send requests as the proxy.
    assert!(matches!(
        settings(|g| g.auth.proxies = vec!["alice@example.com".into()]),
        Err(GateError::UserProxy(_))
    ));
    let meant = settings(|g| {
        g.auth.proxies = vec!["alice@example.com".into()];
        g.auth.user_proxies = true;
    });
    assert!(meant.is_ok(), "{meant:?}");
}

pub(super) async fn read_until(stream: &mut tokio::net::TcpStream, end: &str) -> String {
    let mut seen = Vec::new();
    soon(end, async {
        while !seen
            .windows(end.len())
            .any(|window| window == end.as_bytes())
        {
            let mut buffer = [0; 512];
            let read = stream.read(&mut buffer).await.unwrap();
            assert!(
                read > 0,
                "ended before {end:?}: {:?}",
                String::from_utf8_lossy(&seen)
            );
            seen.extend(&buffer[..read]);
        }
    })
    .await;
    String::from_utf8(seen).unwrap()
}

async fn ends(stream: &mut tokio::net::TcpStream) {
    let mut rest = Vec::new();
    // A reset counts as an end.
    let _ = soon("the end of the tunnel", stream.read_to_end(&mut rest)).await;
}

/// Everything that can go on for a caller, started and with its first data received.
async fn open_streams(server: &GateServer) -> Vec<(&'static str, TcpStream)> {
    let mut all = Vec::new();
    for (what, request, until) in [
        ("a WebSocket", UPGRADE, "\r\n\r\n"),
        // The backend sends an event for each byte of an endless upload.
        (
            "events",
            &b"POST /sse HTTP/1.1\r\nhost: app.example.com\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n"[..],
            "data: 120",
        ),
        // The backend answers when the upload is complete, which never happens.
        (
            "an upload",
            &b"POST /x HTTP/1.1\r\nhost: app.example.com\r\ncontent-length: 9\r\n\r\nx"[..],
            "",
        ),
    ] {
        let mut stream = server.connect("alice").await;
        stream.write_all(request).await.unwrap();
        if !until.is_empty() {
            read_until(&mut stream, until).await;
        }
        all.push((what, stream));
    }
    // Gives the upload time to reach the backend.
    tokio::time::sleep(Duration::from_millis(50)).await;
    all
}

/// Each ends soon, long before the next regular check, and no more of an answer arrives.
async fn all_end(streams: Vec<(&'static str, TcpStream)>) {
    for (what, mut stream) in streams {
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(Duration::from_secs(3), stream.read_to_end(&mut rest));
        let ended = ended.await.unwrap_or_else(|_| panic!("{what} goes on"));
        let rest = String::from_utf8_lossy(&rest);
        assert!(
            ended.is_err()
                || rest.is_empty()
                || what == "an upload" && rest.starts_with("HTTP/1.1 403 "),
            "{what}: {rest:?}"
        );
    }
}

async fn rechecking_seldom(policy: &str) -> GateServer {
    GateServer::with(policy, |gate| gate.recheck = Duration::from_secs(3600)).await
}

const ALICE_ALONE: &str = "[[rule]]\ndecision = \"allow\"\nwho = [\"alice@example.com\"]\n";

#[tokio::test]
async fn open_streams_end_when_the_policy_refuses_their_caller() {
    let server = rechecking_seldom(ALICE_ALONE).await;
    let streams = open_streams(&server).await;
    // Another rule that also admits her changes nothing.
    server.policy(&format!("{ALICE_ALONE}\n# more\n"));
    let mut events = server.connect("alice").await;
    events
        .write_all(b"POST /sse HTTP/1.1\r\nhost: app.example.com\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n")
        .await
        .unwrap();
    read_until(&mut events, "data: 120").await;
    server.policy(&format!("{ALICE_ALONE}\n# still more\n"));
    events.write_all(b"1\r\ny\r\n").await.unwrap();
    read_until(&mut events, "data: 121").await;
    server.policy("[[rule]]\ndecision = \"allow\"\nwho = [\"bob@example.com\"]\n");
    all_end(streams).await;
    all_end(vec![("events", events)]).await;
}

#[tokio::test]
async fn open_streams_end_when_the_tailnet_changes_their_caller() {
    let server = rechecking_seldom(ALICE_ALONE).await;
    let streams = open_streams(&server).await;
    server.world.tailnet.update("alice", |identity| {
        identity.login = "mallory@example.com".into()
    });
    all_end(streams).await;
}

#[tokio::test]
async fn open_streams_end_with_the_network_access_whatever_the_rules_say() {
    let server = rechecking_seldom("[[rule]]\ndecision = \"anonymous\"\n").await;
    let streams = open_streams(&server).await;
    server
        .world
        .tailnet
        .update("alice", |identity| identity.closed_ports = vec![PROXY_PORT]);
    all_end(streams).await;
}

#[tokio::test]
async fn open_streams_end_with_the_key_of_the_callers_node() {
    let server = rechecking_seldom(ALICE_ALONE).await;
    let expiry = jiff::Timestamp::now() + Duration::from_millis(1500);
    server
        .world
        .tailnet
        .update("alice", |identity| identity.key_expiry = Some(expiry));
    let streams = open_streams(&server).await;
    all_end(streams).await;
    assert!(jiff::Timestamp::now() >= expiry);
}
