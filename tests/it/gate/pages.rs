//! Web pages: under a name that is not ours (DNS rebinding), and of another origin than the site
//! that they send requests to.

use axum::{Router, routing::post};
use serde_json::json;
use tailbone::{
    gate::{Gate, GateError, GateLayer},
    identity::Directory,
    policy::{CAPABILITY, Rules},
    telemetry::meter::Meter,
    web::{Allowed, Origin},
};
use testkit::backend::{request, send_raw};
use tokio::io::AsyncWriteExt as _;

use super::{
    refused,
    reverse::read_until,
    server::{ALLOW_OWN, GateServer, upstream},
};

const NAMED: &str = "[[rule]]\nname = \"wiki\"\ndecision = \"allow\"\nhosts = [\"wiki.example.com\"]\n\
    [[rule]]\nname = \"public\"\ndecision = \"anonymous\"\npaths = [\"/public\"]\n\
    [[rule]]\nname = \"own\"\ndecision = \"allow\"\n";

fn origins(words: &[&str]) -> Vec<Allowed<Origin>> {
    words
        .iter()
        .map(|word| Allowed::parse(word, Origin::parse).unwrap())
        .collect()
}

async fn at(server: &GateServer, peer: &str, host: &str, path: &str) -> (u16, String) {
    let host = format!("Host: {host}");
    let answer = server.send(peer, &format!("GET {path}"), &[&host]).await;
    match answer.status {
        200 => (200, String::new()),
        _ => refused(&answer),
    }
}

#[tokio::test]
async fn a_request_for_an_unknown_host_reaches_no_upstream() {
    let server = GateServer::with_own_names_only(NAMED, |gate| {
        let addr = gate.upstreams[0].address.parse().unwrap();
        gate.upstreams
            .push(upstream("*.lab.example.com", "/", addr));
    })
    .await;
    let grant = json!({ "hosts": ["granted.example.com"] });
    server.world.tailnet.update("bob", |identity| {
        let values = identity.caps.entry(CAPABILITY.into()).or_default();
        values.push(grant);
    });
    let node = server.world.node.ip().to_string();
    for host in ["tailbone", "tailbone.fake-tailnet.ts.net.:8080", &node] {
        assert_eq!(at(&server, "alice", host, "/").await.0, 200, "{host}");
    }
    for host in ["wiki.example.com", "a.lab.example.com:8080"] {
        assert_eq!(at(&server, "alice", host, "/").await.0, 200, "{host}");
    }
    // Only bob's grant names this host.
    let granted = "granted.example.com";
    assert_eq!(at(&server, "bob", granted, "/").await.0, 200);
    let unknown = (421, "unknown_host".to_owned());
    assert_eq!(at(&server, "alice", granted, "/").await, unknown);
    for host in [
        "evil.example",
        "evil.example:8080",
        "wiki.example.com.evil.example",
        "localhost",
    ] {
        assert_eq!(at(&server, "alice", host, "/").await, unknown, "{host}");
        // What everybody on the tailnet may read is still not readable for outside pages.
        assert_eq!(
            at(&server, "alice", host, "/public").await,
            unknown,
            "{host}"
        );
    }
}

/// The status of an upgrade to WebSocket.
async fn upgrade(server: &GateServer, headers: &str) -> String {
    let mut stream = server.connect("alice").await;
    let head = format!(
        "GET /ws HTTP/1.1\r\nHost: app.example.com:8080\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n{headers}\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let head = read_until(&mut stream, "\r\n\r\n").await;
    head.split(' ').nth(1).unwrap().to_owned()
}

#[tokio::test]
async fn a_websocket_is_for_pages_of_its_own_site() {
    let server = GateServer::start(ALLOW_OWN).await;
    for own in ["", "Origin: http://app.example.com:8080\r\n"] {
        assert_eq!(upgrade(&server, own).await, "101", "{own}");
    }
    for other in [
        "Origin: http://evil.example\r\n",
        "Origin: http://app.example.com\r\n",
        "Origin: http://app.example.com:8080.evil.example\r\n",
        "Origin: null\r\n",
        "Origin: http://app.example.com:8080\r\nOrigin: http://evil.example\r\n",
        "Origin: http://app.example.com:8080\r\nSec-Fetch-Site: cross-site\r\n",
    ] {
        assert_eq!(upgrade(&server, other).await, "403", "{other}");
    }
    let meant = GateServer::with(ALLOW_OWN, |gate| {
        gate.allowed_origins = origins(&["https://chat.example.com", "null"]);
    })
    .await;
    for origin in ["https://chat.example.com", "null"] {
        let header = format!("Origin: {origin}\r\n");
        assert_eq!(upgrade(&meant, &header).await, "101", "{origin}");
    }
    assert_eq!(
        upgrade(&meant, "Origin: http://evil.example\r\n").await,
        "403"
    );
}

#[tokio::test]
async fn a_page_of_another_site_changes_nothing() {
    let server = GateServer::start(ALLOW_OWN).await;
    let host = "Host: app.example.com";
    let evil = "Origin: http://evil.example";
    for method in ["POST", "PUT", "PATCH", "DELETE", "PROPFIND"] {
        let line = format!("{method} /");
        for marks in [
            &[host, evil][..],
            &[host, "Origin: null"],
            &[host, "Sec-Fetch-Site: same-site"],
        ] {
            let answer = server.send("alice", &line, marks).await;
            assert_eq!(
                refused(&answer),
                (403, "foreign_origin".into()),
                "{line} {marks:?}"
            );
        }
        for marks in [
            &[host][..],
            &[host, "Origin: http://app.example.com"],
            &[host, "Origin: https://app.example.com"],
            &[host, "Origin: null", "Sec-Fetch-Site: same-origin"],
        ] {
            let answer = server.send("alice", &line, marks).await;
            assert_eq!(answer.status, 200, "{line} {marks:?}");
        }
    }
    // Requests whose answer the browser hides from the page, or that change nothing.
    for method in ["GET", "HEAD", "OPTIONS"] {
        let line = format!("{method} /");
        assert_eq!(
            server.send("alice", &line, &[host, evil]).await.status,
            200,
            "{method}"
        );
    }
    let meant = GateServer::with(ALLOW_OWN, |gate| gate.allowed_origins = origins(&["*"])).await;
    assert_eq!(
        meant.send("alice", "POST /", &[host, evil]).await.status,
        200
    );
}

#[tokio::test]
async fn the_layer_has_the_same_rule() {
    let mut server = GateServer::start(ALLOW_OWN).await;
    let rules = || Rules::parse(ALLOW_OWN, CAPABILITY).unwrap();
    let app = |gate: GateLayer| Router::new().route("/", post(async || "done")).layer(gate);
    let meant = GateLayer::new(rules()).allow_origins(origins(&["http://meant.example"]));
    let to = server.serve_at(app(meant)).await;
    for (origin, status) in [
        ("http://own", 200),
        ("http://meant.example", 200),
        ("http://evil.example", 403),
        ("null", 403),
    ] {
        let origin = format!("Origin: {origin}");
        let text = request("POST /", &["Host: own", "Content-Length: 0", &origin]);
        let answer = send_raw(server.source("alice"), to, &text).await;
        assert_eq!(answer.status, status, "{origin}");
    }
}

#[tokio::test]
async fn forward_auth_says_no_to_pages_of_another_site_too() {
    let server = GateServer::start(ALLOW_OWN).await;
    let alice = server.ip("alice");
    let forwarded = format!("X-Forwarded-For: {alice}");
    let remote = format!("Remote-Addr: {alice}");
    let foreign = (403, "foreign_origin".to_owned());
    let ask = async |path: &str, headers: &[&str]| {
        let answer = server.ask(path, headers).await;
        match answer.status {
            200 | 204 => (answer.status, String::new()),
            _ => refused(&answer),
        }
    };
    let told = |method: &'static str, origin: &'static str| {
        vec![
            "X-Forwarded-Host: app.example.com",
            method,
            origin,
            "X-Forwarded-Proto: https",
            "X-Forwarded-Uri: /x",
        ]
    };
    for (method, origin, expected) in [
        (
            "X-Forwarded-Method: POST",
            "Origin: https://app.example.com",
            (200, String::new()),
        ),
        // The proxy does not report the port.
        (
            "X-Forwarded-Method: POST",
            "Origin: https://app.example.com:8443",
            (200, String::new()),
        ),
        (
            "X-Forwarded-Method: POST",
            "Origin: http://evil.example",
            foreign.clone(),
        ),
        (
            "X-Forwarded-Method: GET",
            "Origin: http://evil.example",
            (200, String::new()),
        ),
    ] {
        let mut headers = told(method, origin);
        headers.push(&forwarded);
        assert_eq!(
            ask("/auth/forwarded", &headers).await,
            expected,
            "{method} {origin}"
        );
        headers.push("Upgrade: websocket");
        let upgrade = ask("/auth/forwarded", &headers).await;
        let evil = origin.contains("evil");
        assert_eq!(upgrade.0, if evil { 403 } else { 200 }, "{method} {origin}");
    }
    // If no method is reported, it may be any.
    for (origin, expected) in [
        ("Origin: http://app.example.com", (204, String::new())),
        ("Origin: http://evil.example", foreign.clone()),
    ] {
        let told = ask("/auth/nginx", &[&remote, origin]).await;
        assert_eq!(told, expected, "{origin}");
        let get = ask("/auth/nginx", &[&remote, origin, "X-Original-Method: GET"]).await;
        assert_eq!(get.0, 204, "{origin}");
    }
}

#[tokio::test]
async fn backend_tokens_need_a_named_host() {
    let server = GateServer::start(ALLOW_OWN).await;
    let sign: tailbone::gate::SignFn = std::sync::Arc::new(|_| Box::pin(async { Ok("t".into()) }));
    let build = |host: &str, audience: Option<&str>| {
        let mut settings = server.settings.clone();
        settings.upstreams[0].host = host.into();
        settings.token = Some(tailbone::config::GateTokenSettings {
            issuer: "tailbone/gate".into(),
            audience: audience.map(str::to_owned),
            life: std::time::Duration::from_secs(60),
        });
        let directory = Directory::new(server.world.faulty.clone());
        Gate::build(&settings, directory, Some(sign.clone()), Meter::default()).map(|_| ())
    };
    assert!(matches!(build("", None), Err(GateError::NoAudience(_))));
    assert!(build("", Some("wiki")).is_ok());
    assert!(build("wiki.example.com", None).is_ok());
    assert!(build("*.example.com", None).is_ok());
}
