//! A server on loopback that does what hostile servers do, and what becomes of it.

use std::{
    net::Ipv4Addr,
    sync::atomic::{AtomicUsize, Ordering},
    time::Instant,
};

use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::TlsAcceptor;

use super::*;

/// What the server says for a path, or does.
#[derive(Debug, Clone)]
pub(crate) enum Answer {
    Text(String),
    /// A body without an end.
    Endless,
    /// One byte of the body after the other, and never the last.
    Drip,
    /// Nothing, with the connection open.
    Silence,
}

impl From<&str> for Answer {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Answer {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

pub(crate) fn json_answer(body: &str) -> String {
    typed_answer("application/json", body)
}

pub(crate) fn typed_answer(media_type: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 200 OK\r\ncontent-type: {media_type}\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

#[derive(Default)]
struct Served {
    answers: HashMap<String, Answer>,
    /// Path and body of each request.
    requests: Vec<(String, String)>,
}

/// Serves `https://localhost` with a certificate that [`HostileServer::client`] trusts. A path
/// without an answer is a 404.
pub(crate) struct HostileServer {
    port: u16,
    served: Arc<Mutex<Served>>,
    connections: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for HostileServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn tls_file(name: &str) -> PathBuf {
    PathBuf::from(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests/testkit/tls"
    ))
    .join(name)
}

impl HostileServer {
    pub(crate) async fn start() -> Self {
        let chain = vec![CertificateDer::from_pem_file(tls_file("first.crt")).unwrap()];
        let key = PrivateKeyDer::from_pem_file(tls_file("first.key")).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let served = Arc::new(Mutex::new(Served::default()));
        let connections = Arc::new(AtomicUsize::new(0));
        let task = tokio::spawn({
            let (served, connections) = (served.clone(), connections.clone());
            async move {
                while let Ok((tcp, _)) = listener.accept().await {
                    connections.fetch_add(1, Ordering::SeqCst);
                    tokio::spawn(serve(acceptor.clone(), tcp, served.clone()));
                }
            }
        });
        Self {
            port,
            served,
            connections,
            task,
        }
    }

    pub(crate) fn answer(&self, path: &str, answer: impl Into<Answer>) {
        let mut served = self.served.lock();
        served.answers.insert(path.to_owned(), answer.into());
    }

    /// How often the path was asked for.
    pub(crate) fn count(&self, path: &str) -> usize {
        let served = self.served.lock();
        served.requests.iter().filter(|(p, _)| p == path).count()
    }

    /// The bodies that were sent to the path.
    pub(crate) fn bodies(&self, path: &str) -> Vec<String> {
        let served = self.served.lock();
        let of_path = served.requests.iter().filter(|(p, _)| p == path);
        of_path.map(|(_, body)| body.clone()).collect()
    }

    pub(crate) fn url(&self, path: &str) -> FetchUrl {
        self.url_at("localhost", path)
    }

    fn url_at(&self, host: &str, path: &str) -> FetchUrl {
        FetchUrl::parse(&format!("https://{host}:{}{path}", self.port)).unwrap()
    }

    fn settings() -> FetchSettings {
        FetchSettings {
            private_hosts: PrivateHosts(vec!["localhost".parse().unwrap()]),
            ca_file: Some(tls_file("first.crt")),
            timeout: Duration::from_secs(5),
        }
    }

    /// Reaches `localhost` although it is private, and trusts the certificate.
    pub(crate) fn client(&self) -> GuardedClient {
        GuardedClient::new(&Self::settings()).unwrap()
    }
}

async fn serve(acceptor: TlsAcceptor, tcp: TcpStream, served: Arc<Mutex<Served>>) -> Option<()> {
    let mut tls = acceptor.accept(tcp).await.ok()?;
    let mut text = Vec::new();
    let (head, length) = loop {
        if tls.read_buf(&mut text).await.ok()? == 0 {
            return None;
        }
        let whole = String::from_utf8_lossy(&text).into_owned();
        if let Some(end) = whole.find("\r\n\r\n") {
            let head = whole[..end].to_ascii_lowercase();
            let length = head
                .lines()
                .find_map(|l| l.strip_prefix("content-length: "));
            let length: usize = length.map_or(0, |length| length.parse().unwrap());
            break (end + 4, length);
        }
    };
    while text.len() < head + length {
        tls.read_buf(&mut text).await.ok()?;
    }
    let line = String::from_utf8_lossy(&text[..head]).into_owned();
    let path = line.split(' ').nth(1).unwrap().to_owned();
    let body = String::from_utf8_lossy(&text[head..]).into_owned();
    let answer = {
        let mut served = served.lock();
        served.requests.push((path.clone(), body));
        served.answers.get(&path).cloned()
    };
    let endless = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n";
    match answer {
        None => {
            let none = b"HTTP/1.1 404 no\r\ncontent-length: 0\r\n\r\n";
            tls.write_all(none).await.ok()?;
        }
        Some(Answer::Text(text)) => tls.write_all(text.as_bytes()).await.ok()?,
        Some(Answer::Endless) => {
            tls.write_all(endless.as_bytes()).await.ok()?;
            loop {
                tls.write_all(&[b' '; 8192]).await.ok()?;
            }
        }
        Some(Answer::Drip) => {
            tls.write_all(endless.as_bytes()).await.ok()?;
            loop {
                tls.write_all(b" ").await.ok()?;
                tls.flush().await.ok()?;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        Some(Answer::Silence) => std::future::pending().await,
    }
    tls.shutdown().await.ok()
}

async fn get(client: &GuardedClient, url: &FetchUrl) -> Result<Vec<u8>, FetchError> {
    let wanted = Wanted {
        url,
        content: Content::Json,
        max_bytes: 1000,
        etag: None,
    };
    match client.get(wanted).await? {
        Fetched::New { body, .. } => Ok(body),
        Fetched::Unchanged { .. } => panic!("no version was named"),
    }
}

/// A lookup with one answer after the other; the last one stays.
fn lookup(answers: &[&[&str]]) -> (Lookup, Arc<AtomicUsize>) {
    let answers: Vec<Vec<IpAddr>> = (answers.iter())
        .map(|answer| answer.iter().map(|ip| ip.parse().unwrap()).collect())
        .collect();
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = asked.clone();
    let lookup: Lookup = Arc::new(move |_| {
        let at = counter
            .fetch_add(1, Ordering::SeqCst)
            .min(answers.len() - 1);
        let answer = answers[at].clone();
        Box::pin(async move { Ok(answer) })
    });
    (lookup, asked)
}

#[tokio::test]
async fn a_trusted_server_is_read() {
    let server = HostileServer::start().await;
    server.answer("/a", json_answer("{}"));
    server.answer(
        "/b",
        typed_answer("application/jwk-set+json; charset=utf-8", "[]"),
    );
    server.answer("/c?q", json_answer("1"));
    let client = server.client();
    assert_eq!(get(&client, &server.url("/a")).await.unwrap(), b"{}");
    assert_eq!(get(&client, &server.url("/b")).await.unwrap(), b"[]");
    assert_eq!(
        get(&client, &server.url("/c?q#fragment")).await.unwrap(),
        b"1"
    );
    let error = get(&client, &server.url("/none")).await.unwrap_err();
    assert!(
        matches!(error, FetchError::Status(StatusCode::NOT_FOUND)),
        "{error}"
    );
    assert!(!error.is_transient());
}

#[tokio::test]
async fn a_version_that_is_known_is_not_sent_again() {
    let server = HostileServer::start().await;
    server.answer("/a", "HTTP/1.1 304 same\r\netag: \"1\"\r\n\r\n");
    let url = server.url("/a");
    let mut wanted = Wanted {
        url: &url,
        content: Content::Json,
        max_bytes: 10,
        etag: Some("\"1\""),
    };
    let client = server.client();
    let fetched = client.get(wanted).await.unwrap();
    assert!(matches!(fetched, Fetched::Unchanged { .. }));
    // Without a version, there is nothing that could be unchanged.
    wanted.etag = None;
    let error = client.get(wanted).await.unwrap_err();
    assert!(matches!(error, FetchError::Redirect), "{error}");
}

#[tokio::test]
async fn addresses_that_are_not_https_or_carry_a_password_are_refused() {
    for (text, error) in [
        ("http://a.example/", BadUrl::NotHttps),
        ("file:///etc/passwd", BadUrl::NotHttps),
        ("ftp://a.example/", BadUrl::NotHttps),
        ("javascript:alert(1)", BadUrl::NotHttps),
        ("a.example", BadUrl::Form),
        ("https://", BadUrl::Form),
        ("https://user@a.example/", BadUrl::UserInfo),
        ("https://:word@a.example/", BadUrl::UserInfo),
        (
            &format!("https://a.example/{}", "a".repeat(2048)),
            BadUrl::TooLong,
        ),
    ] {
        assert_eq!(FetchUrl::parse(text), Err(error), "{text}");
    }
}

#[tokio::test]
async fn a_slow_server_is_left_after_the_time() {
    let server = HostileServer::start().await;
    server.answer("/drip", Answer::Drip);
    server.answer("/silence", Answer::Silence);
    let client = GuardedClient::new(&FetchSettings {
        timeout: Duration::from_millis(300),
        ..HostileServer::settings()
    })
    .unwrap();
    for path in ["/drip", "/silence"] {
        let begun = Instant::now();
        let error = get(&client, &server.url(path)).await.unwrap_err();
        assert!(matches!(error, FetchError::TooSlow(_)), "{path}: {error}");
        assert!(begun.elapsed() < Duration::from_secs(3), "{path}");
        assert!(error.is_transient());
    }
}

#[tokio::test]
async fn a_huge_answer_is_left_at_the_limit() {
    let server = HostileServer::start().await;
    server.answer("/endless", Answer::Endless);
    server.answer("/named", json_answer(&" ".repeat(1001)));
    server.answer("/fits", json_answer(&" ".repeat(1000)));
    let headers: String = (0..200).map(|n| format!("x-{n}: y\r\n")).collect();
    server.answer("/headers", format!("HTTP/1.1 200 OK\r\n{headers}\r\n"));
    let client = server.client();
    for path in ["/endless", "/named"] {
        let error = get(&client, &server.url(path)).await.unwrap_err();
        assert!(
            matches!(error, FetchError::TooLarge(1000)),
            "{path}: {error}"
        );
    }
    assert_eq!(
        get(&client, &server.url("/fits")).await.unwrap().len(),
        1000
    );
    let error = get(&client, &server.url("/headers")).await.unwrap_err();
    assert!(matches!(error, FetchError::Request(_)), "{error}");
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let server = HostileServer::start().await;
    server.answer("/target", json_answer("{}"));
    for status in [301, 302, 303, 307, 308] {
        server.answer(
            "/redirect",
            format!("HTTP/1.1 {status} go\r\nlocation: /target\r\ncontent-length: 0\r\n\r\n"),
        );
        let error = get(&server.client(), &server.url("/redirect"))
            .await
            .unwrap_err();
        assert!(matches!(error, FetchError::Redirect), "{error}");
        let posted = (server.client())
            .post_form(&server.url("/redirect"), &[("a", "b")])
            .await;
        assert!(matches!(posted, Err(FetchError::Redirect)));
    }
    assert_eq!(server.count("/target"), 0);
}

#[tokio::test]
async fn a_wrong_content_type_is_refused() {
    let server = HostileServer::start().await;
    let client = server.client();
    for media_type in [
        "text/html",
        "text/plain",
        "application/jsonp",
        "json",
        "image/png",
    ] {
        server.answer("/a", typed_answer(media_type, "{}"));
        let error = get(&client, &server.url("/a")).await.unwrap_err();
        assert!(
            matches!(&error, FetchError::ContentType(t) if t == media_type),
            "{error}"
        );
    }
    server.answer("/a", "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}");
    let error = get(&client, &server.url("/a")).await.unwrap_err();
    assert!(matches!(error, FetchError::ContentType(_)), "{error}");
    server.answer(
        "/a",
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-encoding: gzip\r\n\
         content-length: 2\r\n\r\n{}",
    );
    let error = get(&client, &server.url("/a")).await.unwrap_err();
    assert!(matches!(error, FetchError::ContentType(_)), "{error}");
    for (media_type, is_taken) in [
        (Some("application/jwt"), true),
        (Some("application/oauth-authz-req+jwt"), true),
        (Some("text/plain;charset=utf-8"), true),
        (None, true),
        (Some("text/html"), false),
        (Some("application/json"), false),
    ] {
        assert_eq!(Content::Jwt.takes(media_type), is_taken, "{media_type:?}");
    }
}

#[tokio::test]
async fn a_certificate_that_is_not_trusted_or_of_another_name_is_refused() {
    let server = HostileServer::start().await;
    server.answer("/a", json_answer("{}"));
    let without_ca = GuardedClient::new(&FetchSettings {
        ca_file: None,
        ..HostileServer::settings()
    })
    .unwrap();
    let error = get(&without_ca, &server.url("/a")).await.unwrap_err();
    assert!(matches!(error, FetchError::Request(_)), "{error}");

    let (lookup, _) = lookup(&[&["127.0.0.1"]]);
    let other_name = GuardedClient::with_lookup(
        &FetchSettings {
            private_hosts: PrivateHosts(vec!["other.example".parse().unwrap()]),
            ..HostileServer::settings()
        },
        lookup,
    )
    .unwrap();
    let error = get(&other_name, &server.url_at("other.example", "/a")).await;
    assert!(matches!(error, Err(FetchError::Request(_))));
    assert_eq!(server.count("/a"), 0, "nothing was sent");
}

#[tokio::test]
async fn a_private_address_is_not_connected_to() {
    let server = HostileServer::start().await;
    server.answer("/a", json_answer("{}"));
    let guarded = GuardedClient::new(&FetchSettings {
        private_hosts: PrivateHosts::default(),
        ..HostileServer::settings()
    })
    .unwrap();
    for host in [
        "localhost",
        "127.0.0.1",
        "127.1",
        "0x7f000001",
        "2130706433",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "0.0.0.0",
    ] {
        let error = get(&guarded, &server.url_at(host, "/a")).await.unwrap_err();
        assert!(
            matches!(error, FetchError::PrivateAddress(_)),
            "{host}: {error}"
        );
        assert!(!error.is_transient());
    }
    assert_eq!(server.connections.load(Ordering::SeqCst), 0);
}

/// A name that is public when it is checked, and private when it is connected to.
#[tokio::test]
async fn a_name_that_changes_its_address_gains_nothing() {
    let server = HostileServer::start().await;
    server.answer("/a", json_answer("{}"));
    let settings = FetchSettings {
        private_hosts: PrivateHosts::default(),
        timeout: Duration::from_millis(300),
        ..HostileServer::settings()
    };
    // The second answer would be used by a client that looks up again after its check. Nothing
    // answers at the first one: it is a public address that no test may reach.
    let (rebinding, asked) = lookup(&[&["127.0.0.1"], &["127.0.0.1"]]);
    let client = GuardedClient::with_lookup(&settings, rebinding).unwrap();
    for _ in 0..2 {
        let error = get(&client, &server.url_at("rebind.example", "/a")).await;
        assert!(matches!(error, Err(FetchError::PrivateAddress(_))));
    }
    assert_eq!(asked.load(Ordering::SeqCst), 2, "one lookup for each fetch");

    let (mixed, _) = lookup(&[&["192.0.2.1", "127.0.0.1"]]);
    let permitted = FetchSettings {
        private_hosts: PrivateHosts(vec!["192.0.2.0/24".parse().unwrap()]),
        ..settings.clone()
    };
    let client = GuardedClient::with_lookup(&permitted, mixed).unwrap();
    let error = get(&client, &server.url_at("mixed.example", "/a")).await;
    assert!(
        matches!(error, Err(FetchError::PrivateAddress(_))),
        "one private address is enough"
    );

    // The checked answer is the one that is connected to: the second is never asked for.
    let (changing, asked) = lookup(&[&["127.0.0.2"], &["127.0.0.1"]]);
    let permitted = FetchSettings {
        private_hosts: PrivateHosts(vec!["127.0.0.2".parse().unwrap()]),
        ..settings
    };
    let client = GuardedClient::with_lookup(&permitted, changing).unwrap();
    let error = get(&client, &server.url_at("localhost", "/a"))
        .await
        .unwrap_err();
    assert!(
        matches!(error, FetchError::Request(_) | FetchError::TooSlow(_)),
        "{error}"
    );
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    assert_eq!(server.connections.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_name_without_an_address_is_told() {
    let lookup: Lookup = Arc::new(|_| Box::pin(async { Err(io::Error::other("none")) }));
    let client = GuardedClient::with_lookup(&FetchSettings::default(), lookup).unwrap();
    let url = FetchUrl::parse("https://none.example/").unwrap();
    let error = get(&client, &url).await.unwrap_err();
    assert!(
        matches!(&error, FetchError::NoAddress(name) if name == "none.example"),
        "{error}"
    );
}

#[tokio::test]
async fn a_silent_host_takes_its_own_turns_alone() {
    let server = HostileServer::start().await;
    server.answer("/silence", Answer::Silence);
    server.answer("/a", json_answer("{}"));
    let (lookup, _) = lookup(&[&["127.0.0.1"]]);
    let client = Arc::new(GuardedClient::with_lookup(&HostileServer::settings(), lookup).unwrap());
    let waiting: Vec<_> = (0..MAX_FETCHES_PER_HOST)
        .map(|_| {
            let (client, url) = (client.clone(), server.url("/silence"));
            tokio::spawn(async move { get(&client, &url).await })
        })
        .collect();
    while server.count("/silence") < MAX_FETCHES_PER_HOST {
        tokio::task::yield_now().await;
    }
    let error = get(&client, &server.url("/a")).await.unwrap_err();
    assert!(matches!(error, FetchError::Busy), "{error}");
    // The certificate has another name, which is as far as this host can get.
    let other = get(&client, &server.url_at("127.0.0.1", "/a")).await;
    assert!(!matches!(other, Err(FetchError::Busy)));
    for task in waiting {
        task.abort();
        let _ = task.await;
    }
    assert_eq!(get(&client, &server.url("/a")).await.unwrap(), b"{}");
}

#[tokio::test]
async fn a_form_is_delivered_and_the_status_told() {
    let server = HostileServer::start().await;
    server.answer("/ok", "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
    server.answer("/none", "HTTP/1.1 204 No Content\r\n\r\n");
    server.answer("/bad", "HTTP/1.1 400 no\r\ncontent-length: 0\r\n\r\n");
    let client = server.client();
    let form = [("logout_token", "a.b.c"), ("x", "ä&")];
    client.post_form(&server.url("/ok"), &form).await.unwrap();
    client.post_form(&server.url("/none"), &form).await.unwrap();
    assert_eq!(server.bodies("/ok"), ["logout_token=a.b.c&x=%C3%A4%26"]);
    let error = client
        .post_form(&server.url("/bad"), &form)
        .await
        .unwrap_err();
    assert!(
        matches!(error, FetchError::Status(StatusCode::BAD_REQUEST)),
        "{error}"
    );
}
