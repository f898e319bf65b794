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
use jiff::Timestamp;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, Error, HandshakeKind, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use serde_json::{Value, json};
use tailbone::tailnet::{EmbeddedNode, Node as _, Stream};
use tempfile::TempDir;
use testkit::{
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
fn client(roots: &[CertificateDer<'static>], protocols: &[&str]) -> ClientConfig {
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

async fn handshake(
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
async fn ask(daemon: &Daemon, path: &str) -> String {
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
        let mut daemon = start().await;
        daemon.listening(3).await;

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
        let http1 = edge.https(&["http/1.1"]);
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
