//! The host listener with TLS. The certificates in `tests/testkit/tls` are for `localhost` and only
//! for these tests.

use std::net::SocketAddr;

use axum::Router;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tailbone::http::{
    certificate::{CertificateError, CertificateFiles},
    tcp::PlainListener,
    tls::{TlsError, TlsListener},
};
use testkit::files::certificate_file;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
};

use super::*;

pub(super) async fn bind(addr: SocketAddr) -> Result<TlsListener<PlainListener>, TlsError> {
    let files = (certificate_file("first.crt"), certificate_file("first.key"));
    let files = CertificateFiles::open(files.0, files.1).unwrap();
    TlsListener::bind(addr, Arc::new(files)).await
}

/// Connects with TLS, trusting one certificate only, and sends one POST.
async fn post(addr: SocketAddr, trusted: &str) -> std::io::Result<String> {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_file(certificate_file(trusted)).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let tcp = TcpStream::connect(addr).await?;
    let name = ServerName::try_from("localhost").unwrap();
    let mut tls = tokio_rustls::TlsConnector::from(Arc::new(config))
        .connect(name, tcp)
        .await?;
    tls.write_all(
        b"POST / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
    )
    .await?;
    let mut text = String::new();
    tls.read_to_string(&mut text).await?;
    Ok(text)
}

#[tokio::test]
async fn certificates_are_read_anew_and_a_silent_peer_delays_nobody() {
    let exchange = Exchange::new().await.policy("p.toml", &["acls"], "");
    let dir = tempfile::tempdir().unwrap();
    let (cert, key) = (dir.path().join("tls.crt"), dir.path().join("tls.key"));
    let put = |name: &str| {
        std::fs::copy(certificate_file(&format!("{name}.crt")), &cert).unwrap();
        std::fs::copy(certificate_file(&format!("{name}.key")), &key).unwrap();
    };
    put("first");
    let files = Arc::new(CertificateFiles::open(cert.clone(), key.clone()).unwrap());
    let listener = TlsListener::bind("127.0.0.1:0".parse().unwrap(), files.clone())
        .await
        .unwrap();
    let addr = listener.local_addr().unwrap();
    let sts = TokenExchange::start(&exchange.settings, Meter::default()).unwrap();
    let _server = serve(
        "sts",
        listener,
        layers::wrap_own_errors(sts::router(sts.state()), "sts"),
        Limits::default(),
        Remote::identify,
    );

    // These connections never send anything.
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(TcpStream::connect(addr).await.unwrap());
    }
    let answer = post(addr, "first.crt").await.unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 401 ") && answer.contains("missing Authorization header"),
        "{answer}"
    );
    assert!(post(addr, "second.crt").await.is_err());

    assert!(!files.reload().unwrap(), "nothing changed");
    put("second");
    // Both files may have the same length and, with a coarse clock, the same time; the file
    // system's clock is not tested here.
    std::fs::File::open(&key)
        .unwrap()
        .set_modified(std::time::SystemTime::UNIX_EPOCH)
        .unwrap();
    assert!(files.reload().unwrap());
    post(addr, "second.crt").await.unwrap();

    std::fs::copy(certificate_file("first.crt"), &cert).unwrap();
    std::fs::File::open(&cert)
        .unwrap()
        .set_modified(std::time::SystemTime::UNIX_EPOCH)
        .unwrap();
    assert!(
        matches!(files.reload(), Err(CertificateError::Pair(_))),
        "a key of another certificate"
    );
    post(addr, "second.crt").await.unwrap();
}

/// A listener that answers "here", and its address.
async fn greeter() -> (Server, SocketAddr) {
    let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let addr = listener.local_addr().unwrap();
    let routes = Router::new().route("/", axum::routing::post(|| async { "here" }));
    let limits = Limits::default();
    (
        serve("greeter", listener, routes, limits, Remote::identify),
        addr,
    )
}

/// Connects from a loopback address.
async fn silent_from(from: [u8; 4], to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((from, 0).into()).unwrap();
    socket.connect(to).await.unwrap()
}

/// Whether the listener has closed a connection.
fn let_go(stream: &TcpStream) -> bool {
    !matches!(stream.try_read(&mut [0]), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
}

#[tokio::test]
async fn hundreds_of_silent_connections_delay_nobody_however_often_they_are_renewed() {
    // All from the caller's address, or each from another address.
    let sources: [fn(u8, u8) -> [u8; 4]; 2] = [|_, _| [127, 0, 0, 1], |x, y| [127, 1, x, y + 1]];
    for source in sources {
        let (server, addr) = greeter().await;
        let source = |at: usize| source((at / 200) as u8, (at % 200) as u8);
        let mut silent = Vec::new();
        for at in 0..600 {
            silent.push(silent_from(source(at), addr).await);
        }
        for round in 0..3 {
            let answer = tokio::time::timeout(Duration::from_secs(1), post(addr, "first.crt"))
                .await
                .unwrap_or_else(|_| panic!("round {round}: not within a second"));
            assert!(answer.unwrap().ends_with("here"), "round {round}");
            for (at, stream) in silent.iter_mut().enumerate() {
                if let_go(stream) {
                    *stream = silent_from(source(at), addr).await;
                }
            }
        }
        drop((silent, server));
    }
}

#[tokio::test]
async fn one_address_has_a_share_of_the_handshakes() {
    let (_server, addr) = greeter().await;
    let waits = silent_from([127, 2, 0, 1], addr).await;
    let mut greedy = Vec::new();
    for _ in 0..600 {
        greedy.push(silent_from([127, 2, 0, 2], addr).await);
    }
    let left = testkit::eventually("all but a share are let go", async || {
        match greedy.iter().filter(|stream| !let_go(stream)).count() {
            left @ 1..50 => Ok(left),
            left => Err(left.to_string()),
        }
    })
    .await;
    assert!(!let_go(&greedy[599]), "{left}: the newest stays");
    assert!(!let_go(&waits), "the oldest of all, but of another address");
}

#[test]
fn broken_files_are_told_by_name() {
    let told = |cert: &str, key: &str| {
        CertificateFiles::open(certificate_file(cert), certificate_file(key))
            .unwrap_err()
            .to_string()
    };
    assert!(told("none.crt", "first.key").contains("none.crt: cannot be read"));
    assert!(told("first.key", "first.key").contains("first.key: no certificate"));
    assert!(told("first.crt", "second.crt").contains("second.crt: no certificate or key"));
}
