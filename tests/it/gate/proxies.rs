//! Real proxies in front of a backend, called with real curl. They use the recipes in `deploy/`
//! over the gate's local socket.

use std::{
    net::IpAddr,
    process::{Command, Stdio},
};

use testkit::{
    backend::{Answer, request, send_raw},
    proxies::{Gate, Proxy, ProxySetup, free_addr},
    spoof,
};

use super::server::GateServer;

const POLICY: &str = "[[rule]]\nname = \"public\"\ndecision = \"anonymous\"\npaths = [\"/public\"]\n\
    [[rule]]\nname = \"admin\"\ndecision = \"deny\"\npaths = [\"/admin\"]\n\
    [[rule]]\nname = \"readonly\"\ndecision = \"allow\"\nwho = [\"bob@example.com\", \"tag:ci\"]\nmethods = [\"GET\"]\n\
    [[rule]]\nname = \"alice\"\ndecision = \"allow\"\nwho = [\"alice@example.com\"]\n";

const EVIL: &str = "Origin: http://evil.example";
const OWN: &str = "Origin: http://app.example.com";

#[tokio::test]
async fn nginx_with_auth_request() {
    check_proxy("nginx").await;
}

#[tokio::test]
async fn caddy_with_forward_auth() {
    check_proxy("caddy").await;
}

#[tokio::test]
async fn haproxy_with_the_script_that_is_delivered() {
    check_proxy("haproxy").await;
}

#[tokio::test]
async fn envoy_with_ext_authz() {
    check_proxy("envoy").await;
}

/// The requirements that every proxy must meet.
async fn check_proxy(name: &str) {
    let server = &GateServer::start(POLICY).await;
    let setup = ProxySetup {
        listen: free_addr(),
        gate: Gate::Socket(&server.socket),
        backend: server.backend.addr,
    };
    let proxy = &Proxy::named(name, server.dir.path(), setup).await;
    // The caller's identity.
    let answer = curl(server, proxy, "alice", &["/x?y=1"]).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    for (header, value) in [
        ("tailscale-user", "alice@example.com"),
        ("tailscale-user-login", "alice@example.com"),
        ("tailscale-login", "alice"),
        ("tailscale-tailnet", "fake-tailnet.ts.net"),
    ] {
        assert_eq!(answer.received(header), [value], "{header}");
    }
    assert_eq!(answer.json()["target"], "/x?y=1");
    let machine = curl(server, proxy, "robot", &["/x"]).await;
    assert_eq!(machine.received("tailscale-tags"), ["tag:ci,tag:prod"]);

    // The caller's rights.
    for (peer, arguments, status) in [
        ("alice", &["/admin"][..], 403),
        ("alice", &["--path-as-is", "/x/../admin"], 403),
        ("alice", &["--path-as-is", "/x/%2e%2e/admin"], 403),
        ("alice", &["--path-as-is", "//admin"], 403),
        ("alice", &["/%61dmin"], 403),
        ("alice", &["-d", "body", "/x"], 200),
        ("bob", &["/x"], 200),
        ("bob", &["-d", "body", "/x"], 403),
        (
            "bob",
            &[
                "-d",
                "body",
                "-H",
                "X-Original-Method: GET",
                "-H",
                "X-Forwarded-Method: GET",
                "/x",
            ],
            403,
        ),
        (
            "bob",
            &[
                "/admin",
                "-H",
                "X-Original-URI: /x",
                "-H",
                "X-Forwarded-Uri: /x",
                "-H",
                "X-Original-URL: /x",
                "-H",
                "Original-URI: /x",
            ],
            403,
        ),
        // Requests of pages of another origin that could change something or open a WebSocket.
        ("alice", &["-d", "body", "-H", EVIL, "/x"], 403),
        (
            "alice",
            &["-H", EVIL, "-H", "Sec-WebSocket-Key: x", "/x"],
            403,
        ),
        ("alice", &["-H", EVIL, "/x"], 200),
        ("alice", &["-d", "body", "-H", OWN, "/x"], 200),
        ("sharee", &["/x"], 403),
        ("sharee", &["/public/x"], 200),
    ] {
        let answer = curl(server, proxy, peer, arguments).await;
        assert_eq!(answer.status, status, "{peer} {arguments:?}: {answer:?}");
    }
    let body = curl(server, proxy, "alice", &["-d", "the body", "/x"]).await;
    assert_eq!(
        body.json()["body"],
        "the body",
        "the question took nothing of it"
    );
    // A caller that the tailnet does not know: the host itself.
    let stranger = send_raw(
        [127, 0, 0, 1].into(),
        proxy.addr,
        &request("GET /x", &["Host: app"]),
    )
    .await;
    assert_eq!(stranger.status, 401);
    let probe = send_raw(
        [127, 0, 0, 1].into(),
        proxy.addr,
        &request("GET /public", &["Host: app"]),
    )
    .await;
    assert_eq!(probe.status, 200);

    // Spoofing: headers in which a client claims to be somebody else, or somewhere else.
    let tricks = spoof::tricks(&[server.source("alice"), server.ip("alice")]);
    // The host, at an address that Envoy passes on unchanged; for 127.0.0.1 it reports another
    // address of the machine.
    let host = IpAddr::from([127, 0, 0, 2]);
    let mut passed = Vec::new();
    for trick in &tricks {
        let mut headers = vec!["Host: app.example.com"];
        headers.extend(trick.iter().map(String::as_str));
        let ask = async |from, line| send_raw(from, proxy.addr, &request(line, &headers)).await;
        // bob is allowed, as bob; the host's own address has no identity and may only see what is
        // public.
        let bob = ask(server.source("bob"), "GET /x").await;
        let believed = match bob.status {
            200 => spoof::deception(&bob, "bob@example.com", server.source("bob")),
            // A proxy may refuse what looks odd to it.
            400 | 403 => None,
            other => Some(other.to_string()),
        };
        passed.extend(believed.map(|seen| format!("bob {trick:?}: {seen}")));
        if ask(host, "GET /x").await.status == 200 {
            passed.push(format!("nobody {trick:?}"));
        }
        let public = ask(host, "GET /public").await;
        if public.status == 200 {
            let believed = spoof::deception(&public, "", host);
            passed.extend(believed.map(|seen| format!("public {trick:?}: {seen}")));
        }
    }
    assert_eq!(passed, Vec::<String>::new(), "{} tricks", tricks.len());
}

/// Runs real curl from a peer's address. The last argument is the path, wherever it goes.
async fn curl(server: &GateServer, proxy: &Proxy, peer: &str, arguments: &[&str]) -> Answer {
    let mut command = Command::new("curl");
    command
        .args([
            "--silent",
            "--show-error",
            "--include",
            "--max-time",
            "20",
            "--noproxy",
            "*",
        ])
        .args(["-H", "Host: app.example.com", "-H", "Expect:"])
        .arg("--interface")
        .arg(server.source(peer).to_string())
        .stdin(Stdio::null());
    for argument in arguments {
        if argument.starts_with('/') {
            command.arg(format!("http://{}{argument}", proxy.addr));
        } else {
            command.arg(argument);
        }
    }
    let output = tokio::task::spawn_blocking(move || command.output())
        .await
        .unwrap()
        .expect("curl is not installed: run scripts/setup --tests");
    assert!(
        output.status.success(),
        "{arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Answer::parse(&output.stdout)
}
