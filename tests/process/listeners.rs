//! Components at listeners of every kind, as the `listen` settings say.

use std::{fs, sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use rustls::{
    ClientConfig, HandshakeKind, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use tailbone::tailnet::Stream;
use tempfile::TempDir;
use testkit::{
    files::certificate_file,
    http::{Answer, Connection, request},
    proxies::free_addr,
    soon,
    tailnet::{DevnetTailnet, Owner, Tailnet as _},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
};
use tokio_rustls::TlsConnector;

use super::{alone, tailbone};

const RULES: &str = "[[rule]]\nname = \"open\"\ndecision = \"anonymous\"\npaths = [\"/open\"]\n";

async fn get(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, path: &str) -> Answer {
    let answer = async {
        Connection::over(stream)
            .await
            .host("localhost")
            .get(path)
            .await
    };
    soon("an answer", answer).await
}

async fn post(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, path: &str) -> Answer {
    let answer = async {
        Connection::over(stream)
            .await
            .host("localhost")
            .post(path)
            .await
    };
    soon("an answer", answer).await
}

/// Trusts the certificate `first` of the kit, which is for `localhost`, and keeps its sessions.
pub(super) fn https() -> TlsConnector {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_file(certificate_file("first.crt")).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    TlsConnector::from(Arc::new(config))
}

/// The answer to one request over TLS, and how the handshake went.
async fn over_tls(
    https: &TlsConnector,
    stream: Stream,
    method: &str,
    path: &str,
) -> (Answer, HandshakeKind) {
    let name = ServerName::try_from("localhost").unwrap();
    let stream = soon("a handshake", https.connect(name, stream))
        .await
        .unwrap();
    let kind = stream.get_ref().1.handshake_kind().unwrap();
    let mut connection = Connection::over(stream).await.host("localhost");
    let answer = soon("an answer", connection.send(request(method, path))).await;
    (answer, kind)
}

#[test]
fn a_caller_over_tls_on_the_tailnet_is_known_too() {
    alone(async {
        let tailnet = DevnetTailnet::new();
        let folder = TempDir::new().unwrap();
        let (cert, key) = (certificate_file("first.crt"), certificate_file("first.key"));
        let listen = format!(
            "tailnet+tls://:443?cert={}&key={},redirect://:80",
            cert.display(),
            key.display()
        );
        let host = tailnet.host("tls");
        let key = tailnet.devnet.ready_key().await;
        let metrics = format!("unix://{}", folder.path().join("metrics").display());
        let more = [
            "--components",
            "issuer,metrics",
            "--listen",
            &listen,
            "--metrics-listen",
            &metrics,
        ];
        let mut daemon = tailbone(&folder)
            .on(tailnet.devnet)
            .host(&host)
            .auth_key(&key)
            .flags(&more)
            .start();
        daemon.listening(3).await;
        let alice = tailnet
            .node("alice", Owner::User("alice@example.com"))
            .await;
        let dial = async |port: u16| {
            alice
                .dial(&format!("{host}:{port}"), Duration::from_secs(10))
                .await
                .unwrap()
        };

        let https = https();
        let (answer, kind) = over_tls(&https, dial(443).await, "POST", "/issue").await;
        assert_eq!(answer.status(), 200, "{}", daemon.log());
        let token = answer.json()["token"].as_str().unwrap().to_owned();
        let claims = URL_SAFE_NO_PAD
            .decode(token.split('.').nth(1).unwrap())
            .unwrap();
        let claims: serde_json::Value = serde_json::from_slice(&claims).unwrap();
        assert_eq!(
            claims["user"],
            tailnet.login("alice@example.com"),
            "{claims}"
        );
        assert_eq!(kind, HandshakeKind::Full);
        let (answer, kind) =
            over_tls(&https, dial(443).await, "GET", "/.well-known/jwks.json").await;
        assert_eq!((answer.status(), kind), (200, HandshakeKind::Resumed));

        // Callers of http are sent to https at the name by which they called.
        let mut plain = Connection::over(dial(80).await).await.host(&host);
        let answer = soon("an answer", plain.post("/issue?audience=a")).await;
        assert_eq!(answer.status(), 308, "{}", daemon.log());
        assert_eq!(
            answer.header("location"),
            format!("https://{host}/issue?audience=a")
        );

        // The certificate of the kit ends on 29 October 2126.
        let metrics = async || {
            UnixStream::connect(folder.path().join("metrics"))
                .await
                .unwrap()
        };
        let numbers = get(metrics().await, "/metrics").await;
        let numbers = String::from_utf8_lossy(numbers.0.body()).into_owned();
        let end = "tailbone_certificate_end_timestamp_seconds{listener=\"issuer\"} 4948938078.0";
        assert!(numbers.contains(end), "{numbers}");
        let latches = get(metrics().await, "/readyz?verbose").await;
        let latches = String::from_utf8_lossy(latches.0.body()).into_owned();
        assert!(latches.contains("certificates"), "{latches}");

        // A handshake that never comes does not hold up the stop.
        let silent = dial(443).await;
        let began = std::time::Instant::now();
        assert_eq!(daemon.stop().code(), Some(0), "{}", daemon.log());
        assert!(
            began.elapsed() < Duration::from_secs(8),
            "{:?}",
            began.elapsed()
        );
        drop(silent);
        tailnet.end().await;
    });
}

#[test]
fn any_component_stands_on_any_kind_of_listener() {
    alone(async {
        let tailnet = DevnetTailnet::new();
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join("policy.toml"), RULES).unwrap();
        let socket = |name: &str| folder.path().join(name);
        let host = free_addr();
        let issuer = format!(
            "tailnet://:80,http://{host},unix://{}?mode=0600",
            socket("issuer").display()
        );
        let metrics = format!("unix://{}", socket("metrics").display());
        let auth = format!("unix://{}?mode=0660", socket("auth").display());
        let key = tailnet.devnet.ready_key().await;
        let more = [
            "--components",
            "issuer,metrics,gate",
            "--listen",
            &issuer,
            "--metrics-listen",
            &metrics,
            "--gate-auth-listen",
            &auth,
            "--gate-policy",
            "policy.toml",
        ];
        let mut daemon = tailbone(&folder)
            .on(tailnet.devnet)
            .host(&tailnet.host("kinds"))
            .auth_key(&key)
            .flags(&more)
            .start();
        daemon.listening(5).await;

        // The keys are for everybody, tokens for the tailnet alone.
        let at_host = async || TcpStream::connect(host).await.unwrap();
        let at = async |name: &str| UnixStream::connect(socket(name)).await.unwrap();
        assert_eq!(
            get(at_host().await, "/.well-known/jwks.json")
                .await
                .status(),
            200
        );
        assert_eq!(
            get(at("issuer").await, "/.well-known/jwks.json")
                .await
                .status(),
            200
        );
        for answer in [
            post(at_host().await, "/issue").await,
            post(at("issuer").await, "/issue").await,
        ] {
            assert_eq!(answer.refusal(), (403, "no_identity".to_owned()));
        }
        let numbers = get(at("metrics").await, "/metrics").await;
        assert_eq!(numbers.status(), 200);

        // Whoever can open the gate's socket asks about others.
        let stream = at("auth").await;
        let mut asked = request("GET", "/auth/nginx");
        for (name, value) in [("remote-addr", "192.0.2.1"), ("x-original-uri", "/open")] {
            asked.headers_mut().insert(name, value.parse().unwrap());
        }
        let answer = async {
            Connection::over(stream)
                .await
                .host("wiki")
                .send(asked)
                .await
        };
        let answer = soon("an answer", answer).await;
        assert_eq!(answer.status(), 204, "{}", daemon.log());

        assert_eq!(daemon.stop().code(), Some(0), "{}", daemon.log());
        for name in ["issuer", "metrics", "auth"] {
            assert!(!socket(name).exists(), "{name} was left behind");
        }
    });
}
