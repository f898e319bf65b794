//! An issuer's web server for tests: publishes keys, and misbehaves on request.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::State,
    response::{IntoResponse, Response},
    routing::get,
};
use http::{HeaderMap, StatusCode, header};
use serde_json::{Value, json};
use tailbone_http::{
    serve::{Limits, Server, serve},
    tcp::{PlainListener, Remote},
};
use tailbone_keys::KeySpec;
use tailbone_keys::{PrivateJwk, Signer};

/// How the server answers a request for its keys.
#[derive(Debug, Clone)]
pub enum Behaviour {
    Keys(Vec<Value>),
    /// Never answers.
    Hang,
    /// Sends more bytes than any client should read.
    Huge,
    Redirect(String),
    Status(u16),
    Text(&'static str),
}

pub struct JwksServer {
    pub url: String,
    state: Arc<Shared>,
    _server: Server,
}

struct Shared {
    behaviour: Mutex<Behaviour>,
    /// The discovery document; `None` is answered with 404.
    configuration: Mutex<Option<Value>>,
    hits: AtomicUsize,
    not_modified: AtomicUsize,
}

impl JwksServer {
    pub async fn start(behaviour: Behaviour) -> Self {
        let state = Arc::new(Shared {
            behaviour: Mutex::new(behaviour),
            configuration: Mutex::default(),
            hits: AtomicUsize::new(0),
            not_modified: AtomicUsize::new(0),
        });
        let router = Router::new()
            .route("/jwks", get(keys))
            .route("/.well-known/openid-configuration", get(configuration))
            .with_state(state.clone());
        let tcp = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", tcp.local_addr().unwrap());
        let server = serve(
            "jwks",
            PlainListener(tcp),
            router,
            Limits::default(),
            Remote::identify,
        );
        Self {
            url,
            state,
            _server: server,
        }
    }

    pub async fn of(signers: &[&Signer]) -> Self {
        Self::start(Behaviour::keys(signers)).await
    }

    pub fn jwks_url(&self) -> String {
        format!("{}/jwks", self.url)
    }

    pub fn behave(&self, behaviour: Behaviour) {
        *self.state.behaviour.lock().unwrap() = behaviour;
    }

    pub fn configure(&self, configuration: Value) {
        *self.state.configuration.lock().unwrap() = Some(configuration);
    }

    /// Number of requests for the keys so far.
    pub fn hits(&self) -> usize {
        self.state.hits.load(Ordering::SeqCst)
    }

    pub fn not_modified(&self) -> usize {
        self.state.not_modified.load(Ordering::SeqCst)
    }
}

impl Behaviour {
    pub fn keys(signers: &[&Signer]) -> Self {
        Self::Keys(
            signers
                .iter()
                .map(|signer| signer.public().to_value())
                .collect(),
        )
    }
}

async fn keys(State(state): State<Arc<Shared>>, headers: HeaderMap) -> Response {
    state.hits.fetch_add(1, Ordering::SeqCst);
    let behaviour = state.behaviour.lock().unwrap().clone();
    match behaviour {
        Behaviour::Keys(keys) => {
            let body = json!({"keys": keys}).to_string();
            let etag = format!("\"{}\"", body.len());
            if headers
                .get(header::IF_NONE_MATCH)
                .is_some_and(|known| known == etag.as_str())
            {
                state.not_modified.fetch_add(1, Ordering::SeqCst);
                return StatusCode::NOT_MODIFIED.into_response();
            }
            ([(header::ETAG, etag)], body).into_response()
        }
        Behaviour::Hang => {
            tokio::time::sleep(Duration::from_secs(3600)).await;
            StatusCode::GATEWAY_TIMEOUT.into_response()
        }
        Behaviour::Huge => {
            let chunk = bytes::Bytes::from(vec![b' '; 64 << 10]);
            let chunks = std::iter::repeat_n(chunk, 1 << 14).map(Ok::<_, std::io::Error>);
            Body::from_stream(tokio_stream::iter(chunks)).into_response()
        }
        Behaviour::Redirect(to) => (StatusCode::FOUND, [(header::LOCATION, to)]).into_response(),
        Behaviour::Status(status) => StatusCode::from_u16(status).unwrap().into_response(),
        Behaviour::Text(text) => text.into_response(),
    }
}

async fn configuration(State(state): State<Arc<Shared>>) -> Response {
    match &*state.configuration.lock().unwrap() {
        Some(document) => document.to_string().into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

/// A key pair named `kid`.
pub fn signer(kid: &str, spec: KeySpec) -> Signer {
    Signer::new(&PrivateJwk::generate(kid.parse().unwrap(), spec).unwrap()).unwrap()
}
