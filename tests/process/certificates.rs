//! The certificate of the node's name, through the whole program and from a real certificate
//! authority.

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use jiff::{SignedDuration, Timestamp};
use rustix::process::Signal;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, Error, HandshakeKind, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use serde_json::{Value, json};
use tailbone::tailnet::{EmbeddedNode, Node as _, Stream};
use tempfile::TempDir;
use testkit::{
    certificates::{SelfSigned, self_signed},
    daemon::{Daemon, Start},
    devnet::{Devnet, Key},
    eventually,
    http::{Answer, Connection, dial, request},
    soon,
    tailnet::users_node,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{alone, tailbone};

const SUFFIX: &str = "example-devnet.ts.net";

/// A client that trusts these authorities and offers these protocols.
pub(super) fn client(roots: &[CertificateDer<'static>], protocols: &[&str]) -> ClientConfig {
    let mut store = RootCertStore::empty();
    for root in roots {
        store.add(root.clone()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider);
    let config = config.with_safe_default_protocol_versions().unwrap();
    let mut config = config.with_root_certificates(store).with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|p| p.as_bytes().to_vec()).collect();
    config
}

pub(super) async fn handshake(
    config: &Arc<ClientConfig>,
    name: &str,
    stream: Stream,
) -> Result<TlsStream<Stream>, Error> {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let connecting = TlsConnector::from(config.clone()).connect(name, stream);
    let connected = soon("the end of a handshake", connecting).await;
    connected.map_err(|error| {
        let inner = error
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<Error>());
        inner.unwrap_or_else(|| panic!("{error}")).clone()
    })
}

/// The program on a devnet, and somebody who calls it.
struct Edge {
    devnet: Devnet,
    folder: TempDir,
    alice: EmbeddedNode,
}

impl Edge {
    async fn new() -> Self {
        let devnet = Devnet::with_https();
        let folder = TempDir::new().unwrap();
        let alice = users_node(&devnet, folder.path(), "alice").await;
        Self {
            devnet,
            folder,
            alice,
        }
    }

    fn root(&self) -> CertificateDer<'static> {
        let acme = self.devnet.ready.acme.as_ref().unwrap();
        CertificateDer::from_pem_file(&acme.root_file).unwrap()
    }

    fn https(&self, protocols: &[&str]) -> Arc<ClientConfig> {
        Arc::new(client(&[self.root()], protocols))
    }

    /// A server with a folder of its own.
    async fn server(&self, host: &str, key: &Key) -> Start {
        let folder = self.folder.path().join(format!("server-{host}"));
        std::fs::create_dir_all(&folder).unwrap();
        let key = self.devnet.key(key).await;
        let metrics = format!("unix://{}", folder.join("metrics").display());
        let flags = [
            "--components",
            "issuer,metrics",
            "--listen",
            "tailnet+tls://:443,redirect://:80",
            "--metrics-listen",
            &metrics,
        ];
        tailbone(&folder)
            .on(&self.devnet)
            .host(host)
            .auth_key(&key)
            .flags(&flags)
    }

    async fn dial(&self, host: &str, port: u16) -> Stream {
        dial(&self.alice, &format!("{host}:{port}")).await
    }

    /// Without a certificate a handshake ends with an alert, and does not wait for one.
    async fn refuses_at_once(&self, host: &str, config: &Arc<ClientConfig>, name: &str) {
        let began = Instant::now();
        let refused = handshake(config, name, self.dial(host, 443).await).await;
        let Err(Error::AlertReceived(AlertDescription::InternalError)) = refused else {
            panic!("{refused:?}");
        };
        assert!(
            began.elapsed() < Duration::from_secs(5),
            "{:?}",
            began.elapsed()
        );
    }

    async fn end(self) {
        self.alice.close().await;
    }
}

fn reusable() -> Key {
    Key {
        reusable: true,
        preauthorized: true,
        ..Key::default()
    }
}

/// What the server says at its metrics socket.
pub(super) async fn ask(daemon: &Daemon, path: &str) -> String {
    let stream = UnixStream::connect(daemon.path("metrics")).await.unwrap();
    let mut connection = Connection::over(stream).await.host("localhost");
    let answer = connection.get(path).await;
    String::from_utf8_lossy(answer.0.body()).into_owned()
}

/// The reason of the latch `certificates`, once it contains all these words. Without words, the
/// latch is free of trouble.
async fn trouble(daemon: &Daemon, words: &[&str]) -> String {
    eventually(&format!("the latch with {words:?}"), async || {
        let all: Value = serde_json::from_str(&ask(daemon, "/readyz?verbose").await).unwrap();
        let latches = all["latches"].as_array().unwrap();
        let latch = latches
            .iter()
            .find(|latch| latch["name"] == "certificates")
            .unwrap();
        assert_eq!(latch["ready"], true, "the server serves on: {all}");
        let reason = latch["reason"].as_str().unwrap();
        assert_eq!(latch["degraded"], !reason.is_empty(), "{all}");
        let found = words.iter().all(|words| reason.contains(words));
        if found && reason.is_empty() == words.is_empty() {
            return Ok(reason.to_owned());
        }
        Err(format!("{reason}\n{}", daemon.log()))
    })
    .await
}

fn status(daemon: &Daemon) -> Value {
    let output = daemon.run(&["status", "-o", "json"]);
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The listener with TLS in the status, once it has a certificate.
async fn certificate(daemon: &Daemon) -> Value {
    eventually("a certificate", async || {
        let status = status(daemon);
        let listeners = status["listeners"].as_array().unwrap();
        let certificate = listeners
            .iter()
            .map(|l| &l["certificate"])
            .find(|c| !c["names"].is_null());
        match certificate {
            Some(found) if !found["not_after"].is_null() => Ok(found.clone()),
            _ => Err(format!("{status}\n{}", daemon.log())),
        }
    })
    .await
}

async fn issue_over_http2(stream: TlsStream<Stream>, host: &str) -> Value {
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let io = TokioIo::new(stream);
    let begun =
        hyper::client::conn::http2::handshake::<_, _, Full<Bytes>>(TokioExecutor::new(), io);
    let (mut sender, connection) = soon("HTTP/2", begun).await.unwrap();
    tokio::spawn(connection);
    let asked = request("POST", &format!("https://{host}/issue"));
    let answer = soon("an answer", sender.send_request(asked)).await.unwrap();
    assert_eq!(answer.status(), 200);
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    serde_json::from_slice(&body).unwrap()
}

async fn issue_over_http1(stream: TlsStream<Stream>, host: &str) -> Answer {
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    let mut connection = Connection::over(stream).await.host(host);
    soon("an answer", connection.post("/issue")).await
}

/// Whom a token is for.
fn user(answer: &Value) -> String {
    let token = answer["token"].as_str().unwrap();
    let claims = token.split('.').nth(1).unwrap();
    let claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).unwrap()).unwrap();
    claims["user"].as_str().unwrap().to_owned()
}

#[test]
fn the_nodes_name_has_a_certificate_that_outlives_restarts() {
    alone(async {
        let edge = Edge::new().await;
        let name = format!("edge.{SUFFIX}");
        let start = async || edge.server("edge", &reusable()).await.start();
        let http1 = edge.https(&["http/1.1"]);

        // Neither the start nor a handshake waits for an authority that does not answer.
        edge.devnet.set_acme_fault(json!({ "mode": "hold" })).await;
        let mut daemon = start().await;
        daemon.listening(3).await;
        daemon.ready();
        trouble(&daemon, &["no certificate yet"]).await;
        edge.refuses_at_once("edge", &http1, &name).await;
        edge.devnet.set_acme_fault(json!({ "mode": "ok" })).await;

        // As people and monitors see it.
        let shown = certificate(&daemon).await;
        assert_eq!(shown["names"], json!([name]), "{shown}");
        assert!(
            shown["issuer"].as_str().unwrap().contains("Pebble"),
            "{shown}"
        );
        assert_eq!(shown.get("trouble"), None, "{shown}");
        trouble(&daemon, &[]).await;
        let end: Timestamp = shown["not_after"].as_str().unwrap().parse().unwrap();
        let numbers = ask(&daemon, "/metrics").await;
        let line = format!(
            "tailbone_certificate_end_timestamp_seconds{{listener=\"issuer\"}} {}.0",
            end.as_second()
        );
        assert!(numbers.contains(&line), "{line}: {numbers}");

        // The caller is known in both versions of HTTP, and sessions are resumed.
        let http2 = edge.https(&["h2", "http/1.1"]);
        for kind in [HandshakeKind::Full, HandshakeKind::Resumed] {
            let stream = edge.dial("edge", 443).await;
            let stream = handshake(&http2, &name, stream).await.unwrap();
            assert_eq!(stream.get_ref().1.handshake_kind(), Some(kind));
            let token = issue_over_http2(stream, &name).await;
            assert_eq!(user(&token), "alice@example.com");
        }
        let stream = handshake(&http1, &name, edge.dial("edge", 443).await).await;
        let answer = issue_over_http1(stream.unwrap(), &name).await;
        assert_eq!(user(&answer.json()), "alice@example.com");

        // Clients that stall, or speak something else, hold nobody up.
        let mut stalled = Vec::new();
        for _ in 0..5 {
            stalled.push(edge.dial("edge", 443).await);
        }
        let mut junk = edge.dial("edge", 443).await;
        junk.write_all(b"GET / HTTP/1.1\r\nhost: edge\r\n\r\n")
            .await
            .unwrap();
        let mut said = Vec::new();
        let _: io::Result<_> = soon("the end", junk.read_to_end(&mut said)).await;
        assert_eq!(said.first(), Some(&21), "an alert: {said:?}");
        let began = Instant::now();

        // The names of the server.
        let refused = handshake(&http1, "edge", edge.dial("edge", 443).await).await;
        let Err(Error::InvalidCertificate(CertificateError::NotValidForNameContext { .. })) =
            refused
        else {
            panic!("the single-label name is shown the certificate: {refused:?}");
        };
        let wrong = handshake(&http1, "other.ts.net", edge.dial("edge", 443).await).await;
        let Err(Error::AlertReceived(AlertDescription::UnrecognisedName)) = wrong else {
            panic!("{wrong:?}");
        };
        let mut nameless = client(&[edge.root()], &[]);
        nameless.enable_sni = false;
        let nameless = handshake(&Arc::new(nameless), &name, edge.dial("edge", 443).await).await;
        assert!(nameless.is_ok(), "{nameless:?}");
        assert!(
            began.elapsed() < Duration::from_secs(5),
            "{:?}",
            began.elapsed()
        );
        drop(stalled);

        // Restarts order nothing.
        let orders = edge.devnet.acme_counts().await;
        assert_eq!(orders.orders, 1, "{orders:?}");
        for restart in 1..=2 {
            assert_eq!(daemon.stop().code(), Some(0), "{}", daemon.log());
            daemon = start().await;
            daemon.listening(3 * (restart + 1)).await;
            let kept = certificate(&daemon).await;
            assert_eq!(kept, shown);
            let stream = handshake(&http1, &name, edge.dial("edge", 443).await).await;
            let answer = issue_over_http1(stream.unwrap(), &name).await;
            assert_eq!(answer.status(), 200);
        }
        assert_eq!(edge.devnet.acme_counts().await, orders);
        edge.end().await;
    });
}

#[test]
fn a_tailnet_without_https_says_so_and_https_that_comes_later_is_used_at_once() {
    alone(async {
        let edge = Edge::new().await;
        edge.devnet.configure(json!({ "https": false })).await;
        let mut daemon = edge.server("late", &reusable()).await.start();
        daemon.listening(3).await;
        daemon.ready();

        let said = trouble(&daemon, &["HTTPS is not enabled", "refuse all callers"]).await;
        for words in ["\"HTTPS Certificates\"", "/admin/dns", "next try"] {
            assert!(said.contains(words), "{said}");
        }
        assert!(
            daemon
                .log()
                .contains("no new certificate for the node's name")
        );
        let http1 = edge.https(&["http/1.1"]);
        let name = format!("late.{SUFFIX}");
        edge.refuses_at_once("late", &http1, &name).await;
        // Callers without TLS are served.
        let mut plain = Connection::over(edge.dial("late", 80).await)
            .await
            .host("late");
        let answer = plain.get("/issue").await;
        let location = answer.header("location");
        assert_eq!(
            (answer.status(), location),
            (308, format!("https://{name}/issue").as_str())
        );
        assert_eq!(
            examined(&daemon, &["https-enabled", "certificates"]),
            ["fail", "fail"],
            "{}",
            daemon.log()
        );

        edge.devnet.configure(json!({ "https": true })).await;
        trouble(&daemon, &[]).await;
        let stream = handshake(&http1, &name, edge.dial("late", 443).await).await;
        let answer = issue_over_http1(stream.unwrap(), &name).await;
        assert_eq!(user(&answer.json()), "alice@example.com");
        assert_eq!(
            examined(&daemon, &["https-enabled", "certificates"]),
            ["ok", "ok"],
            "{}",
            daemon.log()
        );
        assert_eq!(daemon.stop().code(), Some(0), "{}", daemon.log());
        edge.end().await;
    });
}

/// The verdicts of the doctor, who takes the flags of the server.
fn examined(daemon: &Daemon, names: &[&str]) -> Vec<String> {
    let flags = ["--listen", "tailnet+tls://:443"];
    let verdict = |name: &&str| {
        let check = daemon.examined(&flags, name);
        check["verdict"].as_str().unwrap().to_owned()
    };
    names.iter().map(verdict).collect()
}

/// A pair for the host that began and ends so many days from now, kept by its server.
fn kept(edge: &Edge, host: &str, from: i32, to: i32) -> SelfSigned {
    const DAY: SignedDuration = SignedDuration::from_hours(24);
    let name = format!("{host}.{SUFFIX}");
    let now = Timestamp::now();
    let pair = self_signed(&[&name], now + DAY * from, now + DAY * to);
    let folder = edge.folder.path().join(format!("server-{host}"));
    pair.keep(&folder.join(".tsnet"), &name);
    pair
}

#[test]
fn while_renewals_fail_the_old_certificate_serves_on_and_restarts_order_nothing() {
    alone(async {
        let edge = Edge::new().await;

        // The authority is down.
        let (start, name) = (
            edge.server("old", &reusable()).await,
            format!("old.{SUFFIX}"),
        );
        let old = kept(&edge, "old", -80, 10);
        let trusting_old = Arc::new(client(&[CertificateDer::from(old.der)], &["http/1.1"]));
        edge.devnet.set_acme_fault(json!({ "mode": "down" })).await;
        let mut daemon = start.start();
        daemon.listening(3).await;
        let said = [
            "cannot be reached",
            "is used until it ends at",
            "the next try is at",
        ];
        trouble(&daemon, &said).await;
        daemon.ready();
        let stream = handshake(&trusting_old, &name, edge.dial("old", 443).await).await;
        let answer = issue_over_http1(stream.unwrap(), &name).await;
        assert_eq!(user(&answer.json()), "alice@example.com");
        let shown = certificate(&daemon).await;
        assert_eq!(shown["issuer"], "CN=test", "{shown}");
        assert!(
            shown["trouble"]
                .as_str()
                .unwrap()
                .contains("cannot be reached"),
            "{shown}"
        );
        assert_eq!(
            examined(&daemon, &["certificates"]),
            ["warn"],
            "{}",
            daemon.log()
        );

        // It is back, and a reload asks it at once.
        edge.devnet.set_acme_fault(json!({ "mode": "ok" })).await;
        daemon.signal(Signal::HUP);
        trouble(&daemon, &[]).await;
        let stream = handshake(&edge.https(&[]), &name, edge.dial("old", 443).await).await;
        assert!(stream.is_ok(), "{stream:?}");
        assert_eq!(edge.devnet.acme_counts().await.orders, 1);
        assert_eq!(daemon.stop().code(), Some(0), "{}", daemon.log());

        // The authority has a limit, and the certificate has ended while the node was off.
        let host = "ended";
        let name = format!("{host}.{SUFFIX}");
        let start = async || edge.server(host, &reusable()).await;
        let first = start().await;
        let ended = kept(&edge, host, -91, -1);
        let trusting_ended = Arc::new(client(&[CertificateDer::from(ended.der)], &["http/1.1"]));
        let limit = json!({ "mode": "fail", "status": 429, "retry_after": 3600 });
        edge.devnet.set_acme_fault(limit).await;
        let said = [
            "429 (rate limit)",
            "ended at",
            "could not be renewed",
            "the next try is at",
        ];
        let mut daemon = first.start();
        daemon.listening(3).await;
        trouble(&daemon, &said).await;
        let before = edge.devnet.acme_counts().await;
        // Without the fault, the wait holds all the same.
        edge.devnet.set_acme_fault(json!({ "mode": "ok" })).await;
        daemon.signal(Signal::HUP);
        trouble(&daemon, &["waits for", "429 (rate limit)"]).await;
        assert_eq!(daemon.stop().code(), Some(0), "{}", daemon.log());
        for restart in 1..=3 {
            daemon = start().await.start();
            daemon.listening(3 * (restart + 1)).await;
            trouble(&daemon, &["waits for", "429 (rate limit)", "ended at"]).await;
            let shown = handshake(&trusting_ended, &name, edge.dial(host, 443).await).await;
            let Err(Error::InvalidCertificate(CertificateError::ExpiredContext { .. })) = shown
            else {
                panic!("the ended one is shown: {shown:?}");
            };
            assert_eq!(
                examined(&daemon, &["certificates"]),
                ["fail"],
                "{}",
                daemon.log()
            );
            assert_eq!(daemon.stop().code(), Some(0), "{}", daemon.log());
        }
        assert_eq!(edge.devnet.acme_counts().await, before, "nothing was asked");
        edge.end().await;
    });
}

#[test]
fn a_node_without_state_keeps_its_certificate_while_it_has_its_name() {
    alone(async {
        let edge = Edge::new().await;
        let key = Key {
            ephemeral: true,
            ..reusable()
        };
        let flags = ["--ts-state", "mem", "--ts-ephemeral"];
        for start in 1..=2 {
            let mut daemon = edge.server("fleeting", &key).await.flags(&flags).start();
            daemon.listening(3 * start).await;
            let shown = certificate(&daemon).await;
            assert_eq!(
                shown["names"],
                json!([format!("fleeting.{SUFFIX}")]),
                "{shown}"
            );
            assert_eq!(daemon.stop().code(), Some(0), "{}", daemon.log());
        }
        assert_eq!(edge.devnet.acme_counts().await.orders, 1);
        edge.end().await;
    });
}

#[test]
fn an_order_that_a_kill_interrupts_is_not_repeated_at_once() {
    alone(async {
        let edge = Edge::new().await;
        let held = json!({ "mode": "hold", "path": "/order-plz" });
        edge.devnet.set_acme_fault(held).await;
        let mut daemon = edge.server("killed", &reusable()).await.start();
        daemon.listening(3).await;
        eventually("an order", async || {
            let state = std::fs::read_to_string(daemon.path(".tsnet/tailscaled.state"));
            let state = state.map_err(|error| error.to_string())?;
            let is_written = state.contains("_tailbone-cert-");
            is_written.then_some(()).ok_or_else(|| daemon.log())
        })
        .await;
        daemon.signal(Signal::KILL);
        daemon.end();

        edge.devnet.set_acme_fault(json!({ "mode": "ok" })).await;
        let before = edge.devnet.acme_counts().await;
        daemon = edge.server("killed", &reusable()).await.start();
        daemon.listening(6).await;
        trouble(&daemon, &["the last order was interrupted", "waits for"]).await;
        assert_eq!(edge.devnet.acme_counts().await.orders, before.orders);
        assert_eq!(daemon.stop().code(), Some(0), "{}", daemon.log());
        edge.end().await;
    });
}
