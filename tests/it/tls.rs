//! Handshakes at a listener with the certificate of the node's name, and clients that misbehave.

use std::{
    io::{ErrorKind, Write as _},
    net::SocketAddr,
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{Router, routing::get};
use jiff::{SignedDuration, Timestamp};
use rustls::{
    AlertDescription, ClientConfig, Error, RootCertStore,
    pki_types::{CertificateDer, ServerName},
};
use tailbone::http::{
    certificate::CertificateSource as _,
    node_certificate::NodeCertificate,
    serve::{Limits, Server, serve},
    tcp::Remote,
    tls::TlsListener,
};
use testkit::{certificates::self_signed, soon};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

const NAME: &str = "tailbone.example.ts.net";

/// A listener that answers "here", with a certificate that a test may put in.
struct Edge {
    certificate: Arc<NodeCertificate>,
    addr: SocketAddr,
    _server: Server,
}

impl Edge {
    async fn new() -> Self {
        Self::limited(Limits::default()).await
    }

    async fn limited(limits: Limits) -> Self {
        let certificate = Arc::new(NodeCertificate::default());
        let any = "127.0.0.1:0".parse().unwrap();
        let listener = TlsListener::bind(any, certificate.clone()).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let slow = async || {
            tokio::time::sleep(Duration::from_millis(50)).await;
            "here"
        };
        let routes = Router::new()
            .route("/", get(async || "here"))
            .route("/slow", get(slow));
        let server = serve("edge", listener, routes, limits, Remote::identify);
        Self {
            certificate,
            addr,
            _server: server,
        }
    }

    /// Puts in a certificate and returns a client that trusts it.
    fn show(&self, name: &str) -> Arc<ClientConfig> {
        let now = Timestamp::now();
        let day = SignedDuration::from_hours(24);
        let pair = self_signed(&[name], now - day, now + day * 80);
        self.certificate
            .show(name, pair.cert.as_bytes(), pair.key.as_bytes())
            .unwrap();
        client(CertificateDer::from(pair.der))
    }

    async fn connect(
        &self,
        client: &Arc<ClientConfig>,
        name: &str,
    ) -> Result<TlsStream<TcpStream>, Error> {
        let tcp = TcpStream::connect(self.addr).await.unwrap();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let connecting = TlsConnector::from(client.clone()).connect(name, tcp);
        let connected = soon("the end of a handshake", connecting).await;
        connected.map_err(|error| {
            let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
            Error::clone(inner.unwrap_or_else(|| panic!("{error}")))
        })
    }
}

fn client(root: CertificateDer<'static>) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(root).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider);
    let config = config.with_safe_default_protocol_versions().unwrap();
    Arc::new(config.with_root_certificates(roots).with_no_client_auth())
}

/// Asks for a path on a connection that the client then closes, and reads to the end.
async fn ask(mut stream: TlsStream<TcpStream>, path: &str) -> String {
    let head = format!("GET {path} HTTP/1.1\r\nhost: {NAME}\r\nconnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut text = String::new();
    soon("the answer", stream.read_to_string(&mut text))
        .await
        .unwrap();
    text
}

#[tokio::test]
async fn without_a_certificate_a_handshake_ends_at_once_and_with_one_it_is_served() {
    let edge = Edge::new().await;
    let other = client(CertificateDer::from(
        self_signed(&[NAME], Timestamp::now(), Timestamp::now()).der,
    ));
    let began = Instant::now();
    for name in [NAME, "tailbone", "127.0.0.1"] {
        let refused = edge.connect(&other, name).await.unwrap_err();
        let expected = Error::AlertReceived(AlertDescription::InternalError);
        assert_eq!(refused, expected, "{name}");
    }
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "{:?}",
        began.elapsed()
    );

    let first = edge.show(NAME);
    let stream = edge.connect(&first, NAME).await.unwrap();
    assert!(ask(stream, "/").await.ends_with("here"));
    let refused = edge.connect(&first, "elsewhere.example.ts.net").await;
    assert_eq!(
        refused.unwrap_err(),
        Error::AlertReceived(AlertDescription::UnrecognisedName)
    );

    // A connection goes on under the certificate that it began with.
    let open = edge.connect(&first, NAME).await.unwrap();
    let second = edge.show(NAME);
    let stream = edge.connect(&second, NAME).await.unwrap();
    assert!(ask(stream, "/").await.ends_with("here"));
    assert!(ask(open, "/").await.ends_with("here"));
    let old = edge.connect(&client_without_sessions(&first), NAME).await;
    assert!(matches!(old, Err(Error::InvalidCertificate(_))), "{old:?}");

    // A pair that cannot be used changes nothing.
    let torn = edge.certificate.show(NAME, b"torn", b"torn");
    assert!(torn.is_err());
    let stream = edge.connect(&second, NAME).await.unwrap();
    assert!(ask(stream, "/").await.ends_with("here"));
    assert_eq!(edge.certificate.facts().unwrap().names, [NAME]);
}

/// The same client before it has met the server.
fn client_without_sessions(client: &ClientConfig) -> Arc<ClientConfig> {
    let mut client = client.clone();
    client.resumption = rustls::client::Resumption::disabled();
    Arc::new(client)
}

#[tokio::test]
async fn a_client_that_half_closes_or_breaks_off_holds_nothing() {
    let edge = Edge::new().await;
    let client = edge.show(NAME);
    for path in ["/", "/slow"] {
        // The end of the client's direction comes with its request.
        let mut stream = edge.connect(&client, NAME).await.unwrap();
        let head = format!("GET {path} HTTP/1.1\r\nhost: {NAME}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        let read = soon("the end", stream.read_to_end(&mut answer)).await;
        let gone = [ErrorKind::UnexpectedEof, ErrorKind::ConnectionReset];
        let is_other = |error: &std::io::Error| !gone.contains(&error.kind());
        assert!(!read.as_ref().is_err_and(is_other), "{read:?}");
    }
    // The handshake is left in the middle of its first message.
    for sent in [
        &b"\x16"[..],
        b"\x16\x03\x01\x00\xf0\x01",
        b"\x16\x03\x01\xff\xff",
        b"\0",
    ] {
        let mut raw = TcpStream::connect(edge.addr).await.unwrap();
        raw.write_all(sent).await.unwrap();
        raw.shutdown().await.unwrap();
        let mut said = Vec::new();
        let _ = soon("the end", raw.read_to_end(&mut said)).await;
        assert!(said.len() <= 7, "an alert at most: {said:?}");
    }
    let stream = edge.connect(&client, NAME).await.unwrap();
    assert!(ask(stream, "/slow").await.ends_with("here"));
}

#[tokio::test]
async fn a_client_that_renegotiates_gets_nothing_and_ends_with_the_time_for_a_head() {
    let limits = Limits {
        header_time: Duration::from_millis(500),
        ..Limits::default()
    };
    let edge = Edge::limited(limits).await;
    let client = edge.show(NAME);
    let address = edge.addr.to_string();
    let mut command = Command::new("openssl");
    command.args(["s_client", "-connect", &address, "-servername", NAME]);
    command.args(["-tls1_2", "-no_ign_eof"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let Ok(mut openssl) = command.stderr(Stdio::piped()).spawn() else {
        println!("a_client_that_renegotiates NOT RUN: there is no openssl here");
        return;
    };
    // The first line is a command to it, which it takes once the handshake is done.
    openssl.stdin.as_mut().unwrap().write_all(b"R\n").unwrap();
    let said = soon(
        "the end of openssl",
        tokio::task::spawn_blocking(|| openssl.wait_with_output().unwrap()),
    )
    .await
    .unwrap();
    let said = [said.stdout, said.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(said.contains("RENEGOTIATING"), "{said}");
    assert_eq!(
        said.matches("verify return:1").count(),
        2,
        "one handshake: {said}"
    );
    let stream = edge.connect(&client, NAME).await.unwrap();
    assert!(ask(stream, "/").await.ends_with("here"));
}
