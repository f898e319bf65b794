//! A backend that reports what it received, and a client that sends bytes as they are. The code
//! under test lies between the two.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::Request,
    response::{IntoResponse, Response},
};
use base64::Engine as _;
use futures_util::StreamExt;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tailbone_http::{
    certificate::CertificateFiles,
    json::Json,
    serve::{Limits, Server, serve},
    tcp::Remote,
    tls::TlsListener,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    task::JoinHandle,
};

use crate::files::certificate_file;

/// A server on loopback. Ends when dropped.
pub struct Backend {
    pub addr: SocketAddr,
    task: JoinHandle<()>,
    _server: Option<Server>,
}

impl Backend {
    /// Speaks HTTP/1.1, and HTTP/2 to clients that begin with it. Knows
    /// - `/sse`: an event at once, and one more for each byte of the request's body;
    /// - `/ws`: accepts any upgrade and echoes what it receives;
    /// - `/trailers`: a body with a trailer;
    /// - `/hop`: an answer with hop-by-hop headers;
    /// - `/413`: that status with a body of its own;
    /// - everything else: method, target, version, headers and body of the request, as JSON.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let app = Router::new().fallback(answer);
        let task = tokio::spawn(async move {
            axum::serve(listener, app).await.unwrap();
        });
        Self {
            addr,
            task,
            _server: None,
        }
    }

    /// As [`Self::start`] with TLS, as `localhost`, with a certificate of the kit.
    pub async fn start_tls(certificate: &str) -> Self {
        Self::serve_tls(certificate, Router::new().fallback(answer)).await
    }

    /// The same with answers of the test's.
    pub async fn serve_tls(certificate: &str, app: Router) -> Self {
        let file = |kind: &str| certificate_file(&format!("{certificate}.{kind}"));
        let files = CertificateFiles::open(file("crt"), file("key")).unwrap();
        let listener = TlsListener::bind("127.0.0.1:0".parse().unwrap(), Arc::new(files));
        let listener = listener.await.unwrap();
        let addr = listener.local_addr().unwrap();
        let server = serve(
            "backend",
            listener,
            app,
            Limits::default(),
            Remote::identify,
        );
        Self {
            addr,
            task: tokio::spawn(async {}),
            _server: Some(server),
        }
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(request: Request) -> Response {
    match request.uri().path() {
        "/sse" => {
            let first = futures_util::stream::once(async { Bytes::from("data: hello\n\n") });
            let rest = request.into_body().into_data_stream().flat_map(|chunk| {
                let bytes = chunk.unwrap_or_default();
                futures_util::stream::iter(
                    bytes
                        .into_iter()
                        .map(|b| Bytes::from(format!("data: {b}\n\n"))),
                )
            });
            let events = first.chain(rest).map(Ok::<_, std::io::Error>);
            (
                [(header::CONTENT_TYPE, "text/event-stream")],
                Body::from_stream(events),
            )
                .into_response()
        }
        "/ws" => websocket(request),
        "/trailers" => {
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", HeaderValue::from_static("0"));
            let body = http_body_util::Full::new(Bytes::from("body"))
                .with_trailers(async move { Some(Ok(trailers)) });
            ([(header::TRAILER, "grpc-status")], Body::new(body)).into_response()
        }
        "/hop" => (
            [
                (header::CONNECTION, "x-secret"),
                (header::HeaderName::from_static("x-secret"), "1"),
                (header::HeaderName::from_static("keep-alive"), "timeout=9"),
                (header::HeaderName::from_static("x-kept"), "1"),
            ],
            "hop",
        )
            .into_response(),
        "/413" => (StatusCode::PAYLOAD_TOO_LARGE, "the upstream's own words").into_response(),
        _ => echo(request).await,
    }
}

async fn echo(request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let headers: Vec<_> = parts
        .headers
        .iter()
        .map(|(name, value)| json!([name.as_str(), String::from_utf8_lossy(value.as_bytes())]))
        .collect();
    let collected = body.collect().await.unwrap_or_default();
    let trailers = collected
        .trailers()
        .is_some_and(|trailers| !trailers.is_empty());
    let body = collected.to_bytes();
    Json(json!({
        "method": parts.method.as_str(),
        "target": parts.uri.to_string(),
        "version": format!("{:?}", parts.version),
        "headers": headers,
        "trailers": trailers,
        "body": String::from_utf8_lossy(&body),
    }))
    .into_response()
}

fn websocket(mut request: Request) -> Response {
    // RFC 6455, 4.2.2: a browser accepts the upgrade only with this proof.
    let key = request.headers().get(header::SEC_WEBSOCKET_KEY);
    let mut told = key.map_or(&b""[..], HeaderValue::as_bytes).to_vec();
    told.extend(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY, &told);
    let accept = base64::engine::general_purpose::STANDARD.encode(hash);
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let Ok(upgraded) = upgrade.await else { return };
        let mut io = hyper_util::rt::TokioIo::new(upgraded);
        let mut buffer = [0; 1024];
        while let Ok(read @ 1..) = io.read(&mut buffer).await {
            if io.write_all(&buffer[..read]).await.is_err() {
                return;
            }
        }
    });
    (
        StatusCode::SWITCHING_PROTOCOLS,
        [
            (header::CONNECTION, "upgrade"),
            (header::UPGRADE, "websocket"),
            (header::SEC_WEBSOCKET_ACCEPT, accept.as_str()),
        ],
    )
        .into_response()
}

/// What a client received.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Answer {
    pub fn parse(bytes: &[u8]) -> Self {
        let text = String::from_utf8_lossy(bytes);
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let mut lines = head.split("\r\n");
        let status = lines
            .next()
            .and_then(|line| line.split(' ').nth(1))
            .and_then(|code| code.parse().ok())
            .unwrap_or(0);
        let headers = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        Self {
            status,
            headers,
            body: body.to_owned(),
        }
    }

    /// The value of a header that occurs once; empty if it is missing.
    pub fn header(&self, name: &str) -> &str {
        let values: Vec<_> = self.headers.iter().filter(|(n, _)| n == name).collect();
        assert!(values.len() <= 1, "{name} is there {} times", values.len());
        values.first().map_or("", |(_, value)| value)
    }

    pub fn json(&self) -> Value {
        let body = self.body.find('{').map_or("", |at| &self.body[at..]);
        let end = body.rfind('}').map_or(0, |at| at + 1);
        serde_json::from_str(&body[..end])
            .unwrap_or_else(|error| panic!("{error} in {} {:?}", self.status, self.body))
    }

    /// The stable code of a refusal.
    pub fn code(&self) -> String {
        self.json()["error"].as_str().unwrap_or_default().to_owned()
    }

    /// Values of a request header as the backend received it.
    pub fn received(&self, name: &str) -> Vec<String> {
        self.json()["headers"]
            .as_array()
            .unwrap_or_else(|| panic!("the backend was not reached: {self:?}"))
            .iter()
            .filter(|pair| pair[0] == name)
            .map(|pair| pair[1].as_str().unwrap().to_owned())
            .collect()
    }

    /// Names and values of all request headers as the backend received them.
    pub fn all_received(&self) -> Vec<(String, String)> {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        self.json()["headers"]
            .as_array()
            .unwrap_or_else(|| panic!("the backend was not reached: {self:?}"))
            .iter()
            .map(|pair| (text(&pair[0]), text(&pair[1])))
            .collect()
    }
}

/// A connection from a given address of this host.
pub async fn connect(from: IpAddr, to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(from, 0)).unwrap();
    socket.connect(to).await.unwrap()
}

/// Sends bytes as they are and reads until the other side closes.
pub async fn send_raw(from: IpAddr, to: SocketAddr, bytes: &[u8]) -> Answer {
    let mut stream = connect(from, to).await;
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    tokio::time::timeout(Duration::from_secs(10), read)
        .await
        .unwrap_or_else(|_| {
            panic!(
                "no end of the answer to {:?}",
                String::from_utf8_lossy(bytes)
            )
        })
        .ok();
    Answer::parse(&answer)
}

/// A request with the given header lines; `Connection: close` is added.
pub fn request(line: &str, headers: &[&str]) -> Vec<u8> {
    let mut text = format!("{line} HTTP/1.1\r\nConnection: close\r\n");
    for header in headers {
        text += header;
        text += "\r\n";
    }
    (text + "\r\n").into_bytes()
}
