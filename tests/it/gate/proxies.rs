//! Real proxies in front of a backend, with real curl: those of the recipes in `docs/gate.md`, over the gate's local socket.

use std::process::{Command, Stdio};

use super::world::World;
use crate::support::{
    backend::{Answer, raw, request},
    proxies::{Proxy, free_port},
};

const POLICY: &str = "[[rule]]\nname = \"public\"\ndecision = \"anonymous\"\npaths = [\"/public\"]\n\
    [[rule]]\nname = \"admin\"\ndecision = \"deny\"\npaths = [\"/admin\"]\n\
    [[rule]]\nname = \"readonly\"\ndecision = \"allow\"\nwho = [\"bob@example.com\", \"tag:ci\"]\nmethods = [\"GET\"]\n\
    [[rule]]\nname = \"alice\"\ndecision = \"allow\"\nwho = [\"alice@example.com\"]\n";

const IDENTITY: [&str; 15] = [
    "Tailscale-User",
    "Tailscale-Login",
    "Tailscale-Name",
    "Tailscale-Profile-Picture",
    "Tailscale-Tailnet",
    "Tailscale-User-Login",
    "Tailscale-User-Name",
    "Tailscale-User-Profile-Pic",
    "Tailscale-Headers-Info",
    "Tailscale-App-Capabilities",
    "Tailscale-Funnel-Request",
    "Tailscale-Node-Id",
    "Tailscale-Node-Name",
    "Tailscale-Tags",
    "Tailbone-Token",
];

#[tokio::test]
async fn nginx_with_auth_request() {
    let world = World::start(POLICY).await;
    let port = free_port();
    let mut copied = String::new();
    for name in IDENTITY {
        let variable = name.to_ascii_lowercase().replace('-', "_");
        copied += &format!(
            "auth_request_set $g_{variable} $upstream_http_{variable};\nproxy_set_header {name} $g_{variable};\n"
        );
    }
    let server = format!(
        "underscores_in_headers off;\n\
         server {{\n\
         listen 127.0.0.1:{port};\n\
         location = /tailbone-auth {{\n\
           internal;\n\
           proxy_pass http://unix:{socket}:/auth/nginx;\n\
           proxy_pass_request_body off;\n\
           proxy_set_header Content-Length \"\";\n\
           proxy_set_header Host $http_host;\n\
           proxy_set_header Remote-Addr $remote_addr;\n\
           proxy_set_header Remote-Port $remote_port;\n\
           proxy_set_header X-Original-URI $request_uri;\n\
           proxy_set_header X-Original-Method $request_method;\n\
           proxy_set_header Original-URI \"\";\n\
           proxy_set_header X-Original-URL \"\";\n\
           proxy_set_header Expected-Tailnet \"\";\n\
         }}\n\
         location / {{\n\
           auth_request /tailbone-auth;\n\
           {copied}\n\
           proxy_set_header Host $http_host;\n\
           proxy_set_header X-Forwarded-For $remote_addr;\n\
           proxy_pass http://{backend};\n\
         }}\n\
         }}",
        socket = world.socket.display(),
        backend = world.backend.addr,
    );
    let nginx = Proxy::nginx(world.dir.path(), port, &server).await;
    behaves(&world, &nginx, Unknown::As401).await;
}

#[tokio::test]
async fn caddy_with_forward_auth() {
    let world = World::start(POLICY).await;
    let port = free_port();
    let site = format!(
        "http://:{port} {{\n\
         \tbind 127.0.0.1\n\
         \troute {{\n\
         \t\trequest_header -Tailscale*\n\
         \t\trequest_header -Tailbone*\n\
         \t\trequest_header Connection (?i)tail(scale|bone)[^,]* close\n\
         \t\tforward_auth unix/{socket} {{\n\
         \t\t\turi /auth/forwarded\n\
         \t\t\theader_up X-Forwarded-For {{remote_host}}\n\
         \t\t\tcopy_headers {names}\n\
         \t\t}}\n\
         \t\treverse_proxy {backend}\n\
         \t}}\n\
         }}",
        socket = world.socket.display(),
        names = IDENTITY.join(" "),
        backend = world.backend.addr,
    );
    let caddy = Proxy::caddy(world.dir.path(), port, &site).await;
    behaves(&world, &caddy, Unknown::As401).await;
}

#[tokio::test]
async fn haproxy_with_the_script_that_is_delivered() {
    let world = World::start(POLICY).await;
    let port = free_port();
    let script = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/deploy/haproxy/tailbone-auth.lua"
    );
    let config = format!(
        "global\n  setenv TAILBONE_GATE_SOCKET {socket}\n  lua-load-per-thread {script}\n\
         defaults\n  mode http\n  timeout connect 5s\n  timeout client 30s\n  timeout server 30s\n\
         frontend web\n  bind 127.0.0.1:{port}\n\
         \x20 http-request lua.tailbone-auth\n\
         \x20 http-request return status 401 if {{ var(txn.tailbone_status) -m int 401 }}\n\
         \x20 http-request return status 403 if {{ var(txn.tailbone_status) -m int 400 403 }}\n\
         \x20 http-request return status 503 unless {{ var(txn.tailbone_allowed) -m bool }}\n\
         \x20 http-request set-header X-Forwarded-For %[src]\n\
         \x20 default_backend app\n\
         backend app\n  server app {backend}\n",
        socket = world.socket.display(),
        backend = world.backend.addr,
    );
    let haproxy = Proxy::haproxy(world.dir.path(), port, &config).await;
    behaves(&world, &haproxy, Unknown::As401).await;
}

enum Unknown {
    As401,
}

/// What every one of them must do.
async fn behaves(world: &World, proxy: &Proxy, unknown: Unknown) {
    let Unknown::As401 = unknown;
    // Who calls.
    let answer = curl(world, proxy, "alice", &["/x?y=1"]).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    for (header, value) in [
        ("tailscale-user", "alice@example.com"),
        ("tailscale-user-login", "alice@example.com"),
        ("tailscale-login", "alice"),
        ("tailscale-tailnet", "fake-tailnet.ts.net"),
    ] {
        assert_eq!(answer.seen(header), [value], "{header}");
    }
    assert_eq!(answer.json()["target"], "/x?y=1");
    let machine = curl(world, proxy, "robot", &["/x"]).await;
    assert_eq!(machine.seen("tailscale-tags"), ["tag:ci,tag:prod"]);

    // What they may do.
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
        ("sharee", &["/x"], 403),
        ("sharee", &["/public/x"], 200),
    ] {
        let answer = curl(world, proxy, peer, arguments).await;
        assert_eq!(answer.status, status, "{peer} {arguments:?}: {answer:?}");
    }
    let body = curl(world, proxy, "alice", &["-d", "the body", "/x"]).await;
    assert_eq!(
        body.json()["body"],
        "the body",
        "the question took nothing of it"
    );
    // Somebody whom the tailnet does not know: the host itself.
    let stranger = raw(
        [127, 0, 0, 1].into(),
        proxy.addr,
        &request("GET /x", &["Host: app"]),
    )
    .await;
    assert_eq!(stranger.status, 401);
    let probe = raw(
        [127, 0, 0, 1].into(),
        proxy.addr,
        &request("GET /public", &["Host: app"]),
    )
    .await;
    assert_eq!(probe.status, 200);

    // Spoofing: a client's own words about who it is, or about where it is.
    let alice = format!("{}", world.source("alice"));
    let tailnet_ip = format!("{}", world.ip("alice"));
    let mut tricks: Vec<Vec<String>> = Vec::new();
    for name in IDENTITY {
        let lower = name.to_ascii_lowercase();
        tricks.push(vec![format!("{name}: SPOOF")]);
        tricks.push(vec![
            format!("{lower}: SPOOF"),
            format!("{}: SPOOF", name.to_ascii_uppercase()),
        ]);
        tricks.push(vec![format!("{}: SPOOF", name.replace('-', "_"))]);
        tricks.push(vec![
            format!("{name}: SPOOF"),
            format!("Connection: close, {name}"),
        ]);
    }
    for address in [&alice, &tailnet_ip] {
        for header in ["X-Forwarded-For", "Remote-Addr", "X-Real-IP", "Client-IP"] {
            tricks.push(vec![format!("{header}: {address}")]);
            tricks.push(vec![
                format!("{header}: {address}"),
                format!("{header}: {address}"),
            ]);
            tricks.push(vec![
                format!("{header}: {address}"),
                format!("Connection: close, {header}"),
            ]);
        }
        tricks.push(vec![format!("Forwarded: for={address}")]);
        tricks.push(vec![format!("X-Forwarded-For: {address}, {address}")]);
    }
    let mut passed = Vec::new();
    for trick in &tricks {
        let mut headers = vec!["Host: app.example.com"];
        headers.extend(trick.iter().map(String::as_str));
        // bob may be here, as bob; the host's own address is nobody, and may see what is public.
        let bob = raw(
            world.source("bob"),
            proxy.addr,
            &request("GET /x", &headers),
        )
        .await;
        // A proxy may refuse what it finds odd.
        if bob.status == 200 {
            let seen = bob.all_seen();
            let spoofed = seen.iter().any(|(_, value)| value.contains("SPOOF"));
            if spoofed || bob.seen("tailscale-user") != ["bob@example.com"] {
                passed.push(format!("bob {trick:?}: {seen:?}"));
            }
        } else if bob.status != 400 && bob.status != 403 {
            passed.push(format!("bob {trick:?}: {}", bob.status));
        }
        let nobody = raw(
            [127, 0, 0, 1].into(),
            proxy.addr,
            &request("GET /x", &headers),
        )
        .await;
        if nobody.status == 200 {
            passed.push(format!("nobody {trick:?}"));
        }
        let public = raw(
            [127, 0, 0, 1].into(),
            proxy.addr,
            &request("GET /public", &headers),
        )
        .await;
        if public.status == 200 {
            let claims = |name: &str| name.replace('_', "-").starts_with("tailscale-");
            let seen = public.all_seen();
            if seen
                .iter()
                .any(|(name, value)| claims(name) && !value.is_empty())
            {
                passed.push(format!("public {trick:?}: {seen:?}"));
            }
        }
    }
    assert_eq!(passed, Vec::<String>::new(), "{} tricks", tricks.len());
}

/// Real curl, from a peer's address. The last argument is the target's path, wherever it stands.
async fn curl(world: &World, proxy: &Proxy, peer: &str, arguments: &[&str]) -> Answer {
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
        .arg(world.source(peer).to_string())
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
