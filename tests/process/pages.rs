//! What a web page can do in a real browser on the machine of a user who may do everything.
//!
//! Every name leads the browser to this machine (`--host-resolver-rules`), to ports that forward to
//! the server as alice's node: the browser runs on alice's machine. The same port first delivers
//! the page and then forwards to the server. That is the effect of DNS rebinding for a page: its
//! own origin becomes the server.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use serde_json::{Value, json};
use tailbone::tailnet::Node;
use tempfile::TempDir;
use testkit::{
    backend::Backend,
    devnet::Key,
    eventually,
    http::{Connection, dial},
    soon,
    tailnet::{DevnetTailnet, Owner, Tailnet},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};

use super::{alone, tailbone};

const RULES: &str = "[[rule]]\nname = \"own\"\ndecision = \"allow\"\n";

/// A port on this machine that forwards to one of the server's ports as a node would reach it,
/// except for the page itself and its report.
async fn site(
    listener: TcpListener,
    node: Arc<dyn Node>,
    to: String,
    page: String,
    reports: mpsc::UnboundedSender<Value>,
) {
    while let Ok((browser, _)) = listener.accept().await {
        let (node, to, page, reports) = (node.clone(), to.clone(), page.clone(), reports.clone());
        tokio::spawn(async move {
            // A browser closes connections at any time.
            let _ = visit(browser, &*node, &to, &page, &reports).await;
        });
    }
}

async fn visit(
    mut browser: TcpStream,
    node: &dyn Node,
    to: &str,
    page: &str,
    reports: &mpsc::UnboundedSender<Value>,
) -> std::io::Result<()> {
    let mut seen = Vec::new();
    let head = loop {
        if let Some(at) = seen.windows(4).position(|end| end == b"\r\n\r\n") {
            break String::from_utf8_lossy(&seen[..at + 4]).into_owned();
        }
        if browser.read_buf(&mut seen).await? == 0 {
            return Ok(());
        }
    };
    let target = head.split(' ').nth(1).unwrap_or_default();
    match target {
        "/page" => {
            let length = page.len();
            let answer = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{page}"
            );
            browser.write_all(answer.as_bytes()).await
        }
        "/report" => {
            let length = |line: &str| {
                let (name, value) = line.split_once(':')?;
                let length = name.eq_ignore_ascii_case("content-length");
                length.then(|| value.trim().parse::<usize>().unwrap())
            };
            let length = head.lines().find_map(length).unwrap_or_default();
            while seen.len() < head.len() + length {
                browser.read_buf(&mut seen).await?;
            }
            let _ = reports.send(serde_json::from_slice(&seen[head.len()..]).unwrap());
            let answer = b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n";
            browser.write_all(answer).await
        }
        "/favicon.ico" => {
            let answer =
                b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
            browser.write_all(answer).await
        }
        _ => {
            let mut server = dial(node, to).await;
            // The next request on this connection may be for the page again.
            let once = head.replacen("Connection: keep-alive", "Connection: close", 1);
            server.write_all(once.as_bytes()).await?;
            server.write_all(&seen[head.len()..]).await?;
            tokio::io::copy_bidirectional(&mut browser, &mut server).await?;
            Ok(())
        }
    }
}

/// A page that performs each of these steps, reports the results, and then goes to another page.
fn page(steps: &[(&str, String)], next: &str) -> String {
    let mut script = String::new();
    for (name, step) in steps {
        script += &format!(
            "try {{ out[{name:?}] = await (async () => {{ {step} }})(); }} catch (e) {{ out[{name:?}] = e.name; }}\n"
        );
    }
    format!(
        "<!doctype html><script>(async () => {{ const out = {{}};\n{script}\
         await fetch('/report', {{ method: 'POST', body: JSON.stringify(out) }});\n\
         if ({next:?}) location = {next:?}; }})();</script>"
    )
}

/// The result of a fetch: the status and the code of a refusal, or `token`; `opaque` if the page
/// must not see it.
fn fetched(target: &str, options: &str) -> String {
    format!(
        "const r = await fetch({target:?}, {{ {options} }}); if (r.type === 'opaque') return 'opaque'; \
         const text = await r.text(); let body = {{}}; try {{ body = JSON.parse(text); }} catch (e) {{}} \
         return r.status + ' ' + (body.error || Object.keys(body)[0] || '');"
    )
}

fn websocket(target: &str) -> String {
    format!(
        "return await new Promise(done => {{ const w = new WebSocket({target:?}); \
         w.onopen = () => {{ done('open'); w.close(); }}; w.onerror = () => done('error'); }});"
    )
}

struct Browser(Child);

impl Browser {
    fn open(home: &Path, url: &str) -> Self {
        let output = fs::File::create(home.join("browser.log")).unwrap();
        let child = Command::new("chromium")
            .args([
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                "--no-first-run",
                "--no-proxy-server",
                "--host-resolver-rules=MAP * 127.0.0.1",
                // The browser's protection of private networks against pages of the internet is
                // another defence, which not every browser has.
                "--disable-features=LocalNetworkAccessChecks,BlockInsecurePrivateNetworkRequests,HttpsUpgrades,HttpsFirstBalancedModeAutoEnable",
                "--remote-debugging-port=0",
            ])
            .arg(format!("--user-data-dir={}", home.join("profile").display()))
            .arg(url)
            .env("HOME", home)
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .unwrap_or_else(|error| panic!("chromium: {error}: run scripts/setup --tests"));
        Self(child)
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn kids(node: &dyn Node, host: &str) -> Vec<String> {
    let answer = Connection::to(node, host, 80)
        .await
        .get("/.well-known/jwks.json")
        .await;
    let document = answer.json();
    let keys = document["keys"].as_array().cloned().unwrap_or_default();
    keys.iter()
        .map(|key| key["kid"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn a_page_in_a_browser_gets_no_token_no_key_and_no_socket() {
    alone(async {
        let tailnet = DevnetTailnet::new();
        let folder = TempDir::new().unwrap();
        let backend = Backend::start().await;
        let rules = folder.path().join("policy.toml");
        fs::write(&rules, RULES).unwrap();
        let host = tailnet.host("pages");
        // Alice owns the server, so her connections may do everything.
        let key = Key {
            preauthorized: true,
            login: tailnet.login("alice@example.com"),
            ..Key::default()
        };
        let key = tailnet.devnet.key(&key).await;
        let alice = tailnet
            .node("alice", Owner::User("alice@example.com"))
            .await;
        let upstream = format!("http://{}", backend.addr);
        let more = [
            "--components",
            "issuer,admin,gate",
            "--gate-upstream",
            &upstream,
            "--gate-policy",
            rules.to_str().unwrap(),
        ];
        let mut daemon = tailbone(&folder)
            .on(tailnet.devnet)
            .host(&host)
            .auth_key(&key)
            .flags(&more)
            .start();
        daemon.listening(3).await;
        let before = eventually("a key", async || {
            let kids = kids(&*alice, &host).await;
            (kids.len() == 1)
                .then(|| kids.clone())
                .ok_or_else(|| format!("{kids:?}"))
        })
        .await;

        let listen = async || TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (issuer, admin, gate, own) = (
            listen().await,
            listen().await,
            listen().await,
            listen().await,
        );
        let port = |listener: &TcpListener| listener.local_addr().unwrap().port();
        let (issuer_port, own_port) = (port(&issuer), port(&own));
        let at = |listener: &TcpListener| format!("{host}:{}", port(listener));
        let (at_issuer, at_admin, at_gate, at_own) = (at(&issuer), at(&admin), at(&gate), at(&own));

        let post = "method: 'POST', mode: 'no-cors'";
        let empty = "method: 'POST', mode: 'no-cors', body: new Uint8Array(5)";
        let remove = format!(
            "method: 'POST', mode: 'no-cors', body: new Blob([new Uint8Array([0,0,0,0,{}, 10, {}]), {:?}])",
            before[0].len() + 2,
            before[0].len(),
            before[0],
        );
        let method = |name: &str| format!("http://{at_admin}/proto.AdminService/{name}");
        // Somebody else's page, whose name then leads to the server.
        let evil = page(
            &[
                (
                    "keys",
                    fetched(&format!("http://{at_issuer}/.well-known/jwks.json"), ""),
                ),
                ("rebound", fetched("/issue", "method: 'POST'")),
                (
                    "across",
                    fetched(&format!("http://{at_issuer}/issue"), post),
                ),
                ("generate", fetched(&method("GenerateNewKeys"), empty)),
                ("remove", fetched(&method("RemoveKey"), &remove)),
                ("post", fetched(&format!("http://{at_gate}/change"), post)),
                ("websocket", websocket(&format!("ws://{at_gate}/ws"))),
            ],
            &format!("http://{at_own}/page"),
        );
        // A page under the server's own name.
        let same = page(
            &[("issue", fetched("/issue", "method: 'POST'"))],
            &format!("http://{at_gate}/page"),
        );
        // A page of the service behind the gate, which may do its work.
        let wiki = page(
            &[
                ("post", fetched("/change", "method: 'POST'")),
                ("websocket", websocket(&format!("ws://{at_gate}/ws"))),
            ],
            "",
        );
        let (reports, mut reported) = mpsc::unbounded_channel();
        let to = |port: u16| format!("{host}:{port}");
        tokio::spawn(site(issuer, alice.clone(), to(80), evil, reports.clone()));
        tokio::spawn(site(
            admin,
            alice.clone(),
            to(50051),
            String::new(),
            reports.clone(),
        ));
        tokio::spawn(site(own, alice.clone(), to(80), same, reports.clone()));
        tokio::spawn(site(gate, alice.clone(), to(8082), wiki, reports.clone()));
        assert_ne!(issuer_port, own_port);

        let _browser = Browser::open(
            folder.path(),
            &format!("http://evil.example:{issuer_port}/page"),
        );
        let mut next = async |what: &str| {
            let report = tokio::time::timeout(Duration::from_secs(60), reported.recv()).await;
            let log = fs::read_to_string(folder.path().join("browser.log")).unwrap();
            report
                .unwrap_or_else(|_| panic!("{what}: no report\n{log}\n{}", daemon.log()))
                .unwrap()
        };
        assert_eq!(
            next("a page of anybody").await,
            json!({
                "keys": "200 keys",
                "rebound": "421 unknown_host",
                "across": "opaque",
                "generate": "opaque",
                "remove": "opaque",
                "post": "opaque",
                "websocket": "error",
            })
        );
        assert_eq!(
            next("a page of the server's name").await,
            json!({ "issue": "403 browser_request" })
        );
        assert_eq!(
            next("a page of the service").await,
            json!({ "post": "200 body", "websocket": "open" })
        );

        assert_eq!(kids(&*alice, &host).await, before);
        let answer = soon("a token", async {
            Connection::to(&*alice, &host, 80)
                .await
                .post("/issue")
                .await
        });
        assert_eq!(answer.await.status(), 200, "there is a key to sign with");
        // The forbidden requests were really sent.
        let said = daemon.log();
        let audited = |code: &str| said.matches(code).count();
        let tried = (
            audited("not_grpc"),
            audited("foreign_origin"),
            audited("browser_request"),
        );
        assert_eq!(tried, (2, 2, 2), "{said}");
        assert_eq!(daemon.stop().code(), Some(0), "{}", daemon.log());
    });
}

#[test]
fn metrics_on_loopback_are_for_loopback_names_alone() {
    alone(async {
        let tailnet = DevnetTailnet::new();
        let folder = TempDir::new().unwrap();
        let key = tailnet.devnet.ready_key().await;
        let port = TcpListener::bind("127.0.0.1:0")
            .await
            .unwrap()
            .local_addr()
            .unwrap()
            .port()
            .to_string();
        let more = [
            "--components",
            "issuer,metrics",
            "--metrics-binding",
            "127.0.0.1",
            "--metrics-port",
            &port,
            "--allowed-hosts",
            "metrics.example.com",
        ];
        let mut daemon = tailbone(&folder)
            .on(tailnet.devnet)
            .host(&tailnet.host("numbers"))
            .auth_key(&key)
            .flags(&more)
            .start();
        daemon.listening(2).await;
        for (host, status) in [
            ("localhost", 200),
            ("127.0.0.1", 200),
            ("metrics.example.com", 200),
            ("evil.example", 421),
            // The node's name leads to the tailnet.
            ("numbers", 421),
        ] {
            let stream = TcpStream::connect(format!("127.0.0.1:{port}"))
                .await
                .unwrap();
            let host = format!("{host}:{port}");
            let answer = Connection::over(stream)
                .await
                .host(&host)
                .get("/metrics")
                .await;
            assert_eq!(answer.status(), status, "{host}");
        }
        assert_eq!(daemon.stop().code(), Some(0), "{}", daemon.log());
    });
}
