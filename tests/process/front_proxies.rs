//! nginx, HAProxy, Caddy and Envoy on a host of a tailnet, in front of a service, asking the gate
//! about each request: the recipes in `deploy/`, called by devnet's peers with real curl.
//!
//! The host is a node `web` whose tailnet addresses are also the machine's (`own_network`), so
//! that the proxies see their callers' addresses, as they do beside a tailscaled with a TUN device.

use std::{
    fmt::Write as _,
    fs,
    net::{IpAddr, SocketAddr},
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use tailbone::tailnet::{ListenAddr, Node};
use tempfile::TempDir;
use testkit::{
    backend::{Answer, Backend},
    devnet::{Devnet, Key},
    proxies::{Gate, Proxy, ProxySetup},
    spoof,
    tailnet::{config, running},
};
use tokio::net::{TcpListener, TcpSocket};

use super::{own_network, tailbone};

const RULES: &str = r#"
[[rule]]
name = "public"
decision = "anonymous"
paths = ["/public"]

[[rule]]
name = "robots"
decision = "allow"
who = ["tag:ci"]
methods = ["GET"]
"#;

const NGINX: u16 = 8001;
const HAPROXY: u16 = 8002;
const CADDY: u16 = 8003;
const ENVOY: u16 = 8004;
/// The gate's default port for forward-auth.
const AUTH: u16 = 8083;

#[test]
fn real_proxies_know_a_tailnets_callers_and_believe_none_of_their_words() {
    own_network(async {
        let devnet = Devnet::with_peers(&[
            "alice=alice@example.com",
            "robot=tag:ci",
            "eve=eve@example.com",
        ]);
        let folder = TempDir::new().unwrap();
        let backend = Backend::start().await;
        let policy = folder.path().join("policy.toml");
        fs::write(&policy, RULES).unwrap();

        // The host on which the proxies run.
        let key = devnet
            .key(&Key {
                tags: vec!["tag:web".into()],
                preauthorized: true,
                ..Key::default()
            })
            .await;
        let web: Arc<dyn Node> = Arc::new(
            tailbone::tailnet::EmbeddedNode::start(&config(&devnet, folder.path(), "web", &key))
                .await
                .unwrap(),
        );
        let ip = running(&*web)
            .await
            .addresses
            .iter()
            .copied()
            .find(IpAddr::is_ipv4)
            .unwrap();
        for port in [NGINX, HAPROXY, CADDY, ENVOY] {
            hand_to_the_host(web.clone(), SocketAddr::new(ip, port)).await;
        }

        // The gate in the real program. It trusts processes that can open its socket, and the host.
        let socket = folder.path().join("gate.sock");
        let key = devnet.ready_key().await;
        let more = [
            "--components",
            "gate",
            "--gate-policy",
            policy.to_str().unwrap(),
            "--gate-auth-socket",
            socket.to_str().unwrap(),
            "--gate-auth-proxies",
            "tag:web",
        ];
        let mut gate = tailbone(&folder)
            .on(&devnet)
            .host("gate")
            .auth_key(&key)
            .flags(&more)
            .start();
        gate.listening(2).await;
        devnet
            .grant(
                "alice",
                "gate",
                "tailbone.dev/cap/gate",
                serde_json::json!({ "paths": ["/docs"] }),
            )
            .await;
        let at_gate = SocketAddr::new(address(&devnet, "gate").await, AUTH);
        reach_the_tailnet(web.clone(), at_gate).await;

        let mut fronts = Vec::new();
        for (name, port, gate) in [
            ("nginx", NGINX, Gate::Socket(&socket)),
            ("haproxy", HAPROXY, Gate::Socket(&socket)),
            ("caddy", CADDY, Gate::At(at_gate)),
            ("envoy", ENVOY, Gate::Socket(&socket)),
        ] {
            let dir = folder.path().join(name);
            fs::create_dir(&dir).unwrap();
            let setup = ProxySetup {
                listen: SocketAddr::new(ip, port),
                gate,
                backend: backend.addr,
            };
            fronts.push((name, port, Proxy::named(name, &dir, setup).await));
        }
        for peer in ["alice", "robot", "eve"] {
            devnet.ping(peer, "web").await;
        }

        for (name, port, proxy) in &fronts {
            let curl = async |peer: &str, asks: &[CurlRequest]| {
                curl(&devnet, folder.path(), peer, *port, asks).await
            };

            // A user with a grant for one path.
            let alice = curl(
                "alice",
                &[
                    CurlRequest::get("/docs/x?y=1"),
                    CurlRequest::get("/docs"),
                    CurlRequest::get("/docs/../other").with("path-as-is"),
                    CurlRequest::get("/other"),
                    CurlRequest::get("/docs/x").with("data = \"the body\""),
                ],
            )
            .await;
            assert_eq!(
                statuses(&alice),
                [200, 200, 403, 403, 200],
                "{name}: {alice:?}\n{}\n{}",
                proxy.said(),
                gate.log()
            );
            assert_eq!(
                alice[0].received("tailscale-user-login"),
                ["alice@example.com"],
                "{name}"
            );
            assert_eq!(
                alice[0].received("x-forwarded-for"),
                [devnet.ready.peers["alice"].ip.clone()],
                "{name}"
            );
            assert_eq!(alice[0].json()["target"], "/docs/x?y=1", "{name}");
            assert_eq!(alice[4].json()["body"], "the body", "{name}");

            // A machine that may only read.
            let robot = curl(
                "robot",
                &[
                    CurlRequest::get("/any"),
                    CurlRequest::get("/any").with("data = \"x\""),
                ],
            )
            .await;
            assert_eq!(statuses(&robot), [200, 403], "{name}: {robot:?}");
            assert_eq!(robot[0].received("tailscale-tags"), ["tag:ci"], "{name}");

            // A known user without a grant; and a page that is open to everybody.
            let eve = curl(
                "eve",
                &[CurlRequest::get("/docs/x"), CurlRequest::get("/public")],
            )
            .await;
            assert_eq!(statuses(&eve), [403, 200], "{name}: {eve:?}");

            // The host itself: from an address outside any tailnet, and from its own, a node's
            // without rights.
            let host = [
                ("127.0.0.2", 401),
                (&ip.to_string(), if *name == "caddy" { 401 } else { 403 }),
            ];
            for (from, status) in host {
                let own = CurlRequest::get("/docs/x").with(&format!("interface = \"{from}\""));
                let answer = direct(folder.path(), SocketAddr::new(ip, *port), &own).await;
                assert_eq!(answer.status, status, "{name} from {from}: {answer:?}");
            }

            // Nobody can pass for alice by claiming so, nor alice for anybody else.
            let somebody: Vec<IpAddr> = ["alice", "robot"]
                .map(|peer| devnet.ready.peers[peer].ip.parse().unwrap())
                .into();
            let tricks = spoof::tricks(&somebody);
            let asks = |path: &str| -> Vec<CurlRequest> {
                tricks
                    .iter()
                    .map(|headers| CurlRequest::get(path).headers(headers))
                    .collect()
            };
            let mut passed = Vec::new();
            for (peer, path, login) in [
                ("eve", "/docs/x", None),
                ("eve", "/public", Some("")),
                ("alice", "/docs/x", Some("alice@example.com")),
            ] {
                let from = devnet.ready.peers[peer].ip.parse().unwrap();
                for (answer, trick) in curl(peer, &asks(path)).await.iter().zip(&tricks) {
                    let wrong = match (answer.status, login) {
                        (200, Some(login)) => spoof::deception(answer, login, from),
                        // A proxy may refuse what looks odd to it.
                        (400 | 403, None) | (400, Some(_)) => None,
                        _ => Some(format!("{answer:?}")),
                    };
                    passed
                        .extend(wrong.map(|why| format!("{name}, {peer} {path} {trick:?}: {why}")));
                }
            }
            assert_eq!(passed, Vec::<String>::new(), "of {} tricks", tricks.len());
        }
        drop(fronts);
        assert_eq!(gate.stop().code(), Some(0), "{}", gate.log());
        web.close().await;
    });
}

/// Does what tailscaled does with connections to its node's address: they reach the host from the
/// caller's address.
async fn hand_to_the_host(node: Arc<dyn Node>, at: SocketAddr) {
    let mut listener = node.listen(ListenAddr::Port(at.port())).await.unwrap();
    tokio::spawn(async move {
        while let Ok((mut outside, peer)) = listener.accept().await {
            tokio::spawn(async move {
                let socket = TcpSocket::new_v4().unwrap();
                socket.bind(SocketAddr::new(peer.addr.ip(), 0)).unwrap();
                if let Ok(mut inside) = socket.connect(at).await {
                    let _ = tokio::io::copy_bidirectional(&mut outside, &mut inside).await;
                }
            });
        }
    });
}

/// The other direction: connections from the host to a tailnet address.
async fn reach_the_tailnet(node: Arc<dyn Node>, at: SocketAddr) {
    let listener = TcpListener::bind(at).await.unwrap();
    tokio::spawn(async move {
        while let Ok((mut inside, _)) = listener.accept().await {
            let node = node.clone();
            tokio::spawn(async move {
                let outside = node.dial(&at.to_string(), Duration::from_secs(10)).await;
                let _ = tokio::io::copy_bidirectional(&mut inside, &mut outside.unwrap()).await;
            });
        }
    });
}

async fn address(devnet: &Devnet, host: &str) -> IpAddr {
    let nodes = devnet.nodes().await;
    let named = |name: &str| name.split('.').next() == Some(host);
    let node = nodes
        .iter()
        .find(|node| node["name"].as_str().is_some_and(named));
    node.unwrap()["ip"].as_str().unwrap().parse().unwrap()
}

/// A request, in the form of lines for curl's configuration.
struct CurlRequest {
    path: String,
    lines: Vec<String>,
}

impl CurlRequest {
    fn get(path: &str) -> Self {
        Self {
            path: path.into(),
            lines: Vec::new(),
        }
    }

    fn with(mut self, line: &str) -> Self {
        self.lines.push(line.into());
        self
    }

    fn headers(mut self, headers: &[String]) -> Self {
        for header in headers {
            let quoted = header.replace('\\', "\\\\").replace('"', "\\\"");
            self.lines.push(format!("header = \"{quoted}\""));
        }
        self
    }
}

fn statuses(answers: &[Answer]) -> Vec<u16> {
    answers.iter().map(|answer| answer.status).collect()
}

/// Runs real curl as a peer, for any number of requests to a port of the host.
async fn curl(
    devnet: &Devnet,
    folder: &std::path::Path,
    peer: &str,
    port: u16,
    asks: &[CurlRequest],
) -> Vec<Answer> {
    let proxy = format!("proxy = \"{}\"", devnet.ready.peers[peer].proxy);
    call(folder, &format!("http://web:{port}"), &proxy, asks).await
}

/// Sends a request from the host itself.
async fn direct(folder: &std::path::Path, to: SocketAddr, ask: &CurlRequest) -> Answer {
    let (base, way) = (format!("http://{to}"), "noproxy = \"*\"");
    call(folder, &base, way, std::slice::from_ref(ask))
        .await
        .remove(0)
}

async fn call(
    folder: &std::path::Path,
    base: &str,
    way: &str,
    asks: &[CurlRequest],
) -> Vec<Answer> {
    let answers = TempDir::new_in(folder).unwrap();
    let mut text = String::new();
    for (number, CurlRequest { path, lines }) in asks.iter().enumerate() {
        let file = answers.path().join(number.to_string());
        writeln!(
            text,
            "url = \"{base}{path}\"\n{way}\nsilent\nshow-error\ninclude\nmax-time = 20\noutput = \"{}\"\n{}\nnext",
            file.display(),
            lines.join("\n")
        )
        .unwrap();
    }
    let text = text.strip_suffix("next\n").unwrap();
    let config = answers.path().join("curlrc");
    fs::write(&config, text).unwrap();
    let mut command = Command::new("curl");
    command
        .arg("--config")
        .arg(config)
        .stdin(Stdio::null())
        .env_remove("NO_PROXY")
        .env_remove("no_proxy");
    let output = tokio::task::spawn_blocking(move || command.output())
        .await
        .unwrap()
        .expect("curl is not installed: run scripts/setup --tests");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "curl: {said}\n{text}");
    (0..asks.len())
        .map(|number| Answer::parse(&fs::read(answers.path().join(number.to_string())).unwrap()))
        .collect()
}
