//! A small HTTP client over any stream, for tests that must choose the connection of a request.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{
    Request, Response,
    client::conn::http1,
    header::{HOST, HeaderValue},
};
use hyper_util::rt::TokioIo;
use tailbone_tailnet::{Node, Stream};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::soon;

/// One connection, kept alive.
pub struct Connection {
    sender: http1::SendRequest<Full<Bytes>>,
    /// The `Host` of requests that do not set one themselves.
    host: String,
}

impl Connection {
    /// A connection from a node to a port of a host.
    pub async fn to(node: &dyn Node, host: &str, port: u16) -> Self {
        let stream = dial(node, &format!("{host}:{port}")).await;
        Self::over(stream).await.host(host)
    }

    pub async fn over<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: S) -> Self {
        let (sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .expect("an HTTP connection");
        tokio::spawn(connection);
        Self {
            sender,
            host: "tailbone".to_owned(),
        }
    }

    /// Uses another name for the server.
    #[must_use]
    pub fn host(mut self, host: &str) -> Self {
        self.host = host.to_owned();
        self
    }

    pub async fn send(&mut self, mut request: Request<Full<Bytes>>) -> Answer {
        let host = HeaderValue::try_from(&self.host).expect("a host");
        request.headers_mut().entry(HOST).or_insert(host);
        // The connection's task may not have finished the previous answer yet.
        soon("a connection", self.sender.ready())
            .await
            .expect("a connection that is open");
        let response = soon("an answer", self.sender.send_request(request))
            .await
            .expect("an answer");
        let (head, body) = response.into_parts();
        let body = soon("the answer's body", body.collect())
            .await
            .expect("a body")
            .to_bytes();
        Answer(Response::from_parts(head, body))
    }

    pub async fn get(&mut self, path: &str) -> Answer {
        self.send(request("GET", path)).await
    }

    pub async fn post(&mut self, path: &str) -> Answer {
        self.send(request("POST", path)).await
    }
}

/// Dials from a node, which must succeed.
pub async fn dial(node: &dyn Node, addr: &str) -> Stream {
    soon("a connection", node.dial(addr, Duration::from_secs(10)))
        .await
        .unwrap_or_else(|error| panic!("no connection to {addr}: {error}"))
}

pub fn request(method: &str, path: &str) -> Request<Full<Bytes>> {
    Request::builder()
        .method(method)
        .uri(path)
        .body(Full::default())
        .expect("a request")
}

/// A whole answer.
#[derive(Debug)]
pub struct Answer(pub Response<Bytes>);

impl Answer {
    pub fn status(&self) -> u16 {
        self.0.status().as_u16()
    }

    pub fn header(&self, name: &str) -> &str {
        self.0
            .headers()
            .get(name)
            .map_or("", |value| value.to_str().expect("text"))
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.0.body().to_vec()).expect("text")
    }

    /// The value of a hidden field of a page.
    pub fn hidden_field(&self, name: &str) -> String {
        assert_eq!(self.status(), 200, "{self:?}");
        let page = self.text();
        let begin = format!("name=\"{name}\" value=\"");
        let (_, rest) = page.split_once(&begin).unwrap_or_else(|| panic!("{page}"));
        let (value, _) = rest.split_once('"').expect("the end of the value");
        value.replace("&amp;", "&")
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(self.0.body())
            .unwrap_or_else(|error| panic!("{error}: {:?}", self.0.body()))
    }

    /// Status and stable code of a refusal.
    pub fn refusal(&self) -> (u16, String) {
        let body = self.json();
        assert_eq!(
            body["request_id"],
            self.header("x-request-id"),
            "the answer and its header name one request"
        );
        (
            self.status(),
            body["error"].as_str().expect("a code").to_owned(),
        )
    }
}
