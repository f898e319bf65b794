//! Requests that a web page can make the owner's browser send. None of them may have an effect.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tailbone::{
    admin::proto::{GenerateNewKeysRequest, RemoveKeyRequest},
    tailnet::{
        Node as _,
        fake::{FakeNode, Identity},
    },
};
use testkit::{
    http::{Answer, Connection},
    soon,
};

use super::{AdminServer, PORT, list};

/// A message in gRPC's framing: uncompressed, length, bytes.
fn frame(message: &impl prost::Message) -> Bytes {
    let message = message.encode_to_vec();
    let mut frame = vec![0];
    frame.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
    frame.extend(message);
    frame.into()
}

/// The two most harmful methods, with the messages that a page would send.
fn calls(server: &AdminServer) -> [(&'static str, Bytes); 2] {
    let remove = RemoveKeyRequest {
        key_id: server.published()[0].clone(),
        force: None,
    };
    [
        ("GenerateNewKeys", frame(&GenerateNewKeysRequest::default())),
        ("RemoveKey", frame(&remove)),
    ]
}

fn post(method: &str, body: Bytes, headers: &[(&str, &str)]) -> Request<Full<Bytes>> {
    let mut request = Request::post(format!("http://tailbone:50051/proto.AdminService/{method}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Full::new(body)).unwrap()
}

async fn over_http1(owner: &FakeNode, request: Request<Full<Bytes>>) -> Answer {
    let addr = format!("tailbone:{PORT}");
    let stream = owner.dial(&addr, Duration::from_secs(5)).await.unwrap();
    Connection::over(stream).await.send(request).await
}

async fn over_http2(owner: &FakeNode, request: Request<Full<Bytes>>) -> Answer {
    let addr = format!("tailbone:{PORT}");
    let stream = owner.dial(&addr, Duration::from_secs(5)).await.unwrap();
    let io = TokioIo::new(stream);
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    let answer = soon("an answer", sender.send_request(request))
        .await
        .unwrap();
    let (head, body) = answer.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    Answer(hyper::Response::from_parts(head, body))
}

fn refused(answer: &Answer, status: u16, code: &str) {
    assert_eq!(answer.status(), status, "{answer:?}");
    assert_eq!(answer.json()["error"], code, "{answer:?}");
}

#[tokio::test]
async fn a_page_can_neither_make_nor_remove_a_key() {
    let server = AdminServer::new().await;
    let before = server.published();
    let owner = server
        .world
        .tailnet
        .join("desk", Identity::user("owner@example.com"));
    for (method, body) in calls(&server) {
        // fetch(…, {method: "POST", mode: "no-cors"}): a page may send this anywhere without a
        // preflight.
        let simple = [
            ("host", "tailbone:50051"),
            ("origin", "http://evil.example"),
            ("content-type", "text/plain"),
        ];
        let request = post(method, body.clone(), &simple);
        refused(&over_http1(&owner, request).await, 415, "not_grpc");

        // After DNS rebinding a page has our origin and may set any content type, but cannot choose
        // the HTTP version.
        let rebound = [
            ("host", "tailbone:50051"),
            ("origin", "http://tailbone:50051"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
        ];
        let request = post(method, body.clone(), &rebound);
        refused(&over_http1(&owner, request).await, 415, "not_grpc");

        // HTTP/2, as it would arrive with TLS in front.
        for mark in [
            ("origin", "https://tailbone"),
            ("sec-fetch-site", "same-origin"),
        ] {
            let headers = [
                ("content-type", "application/grpc"),
                ("te", "trailers"),
                mark,
            ];
            let request = post(method, body.clone(), &headers);
            refused(&over_http2(&owner, request).await, 403, "browser_request");
        }
        let plain = [("content-type", "text/plain"), ("te", "trailers")];
        let request = post(method, body.clone(), &plain);
        refused(&over_http2(&owner, request).await, 415, "not_grpc");
    }
    assert_eq!(server.published(), before);
}

#[tokio::test]
async fn the_same_bytes_from_a_program_are_a_call() {
    let server = AdminServer::new().await;
    let owner = server
        .world
        .tailnet
        .join("desk", Identity::user("owner@example.com"));
    let headers = [("content-type", "application/grpc"), ("te", "trailers")];
    let (method, body) = calls(&server)[0].clone();
    let answer = over_http2(&owner, post(method, body, &headers)).await;
    assert_eq!(answer.status(), 200, "{answer:?}");
    let mut api = server.owner().await;
    assert_eq!(list(&mut api).await.len(), 2);
}
