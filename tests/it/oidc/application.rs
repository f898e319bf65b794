//! An application with a web server of its own, from which the provider fetches what the
//! application names.

use std::{collections::HashMap, sync::Mutex};

use axum::{
    Router,
    body::Body,
    extract::{Request as Received, State},
    response::{IntoResponse, Response},
};
use tailbone::http::{
    certificate::CertificateFiles,
    serve::{Limits, serve},
    tcp::Remote,
    tls::TlsListener,
};
use tailbone_oidc::{
    documents::{DocumentHost, DocumentHosts},
    fetch::{PrivateHost, PrivateHosts},
};
use testkit::files::certificate_file;

use super::*;

/// For documents of clients.
pub(super) fn every_host() -> Option<DocumentHosts> {
    DocumentHosts::of(&[DocumentHost::All])
}

/// What is at a path.
#[derive(Clone)]
pub(super) enum At {
    /// More bytes than anybody should read.
    Huge,
    Json(Value),
    Redirect(String),
    /// No answer, with the connection open.
    Silence,
    Text(&'static str, String),
}

/// `https://localhost` with a certificate of the kit.
pub(super) struct Application {
    port: u16,
    served: Arc<Served>,
    _server: Server,
}

#[derive(Default)]
struct Served {
    answers: Mutex<HashMap<String, At>>,
    requests: Mutex<Vec<String>>,
}

impl Application {
    pub(super) async fn start() -> Self {
        let file = |name| certificate_file(name);
        let files = CertificateFiles::open(file("first.crt"), file("first.key")).unwrap();
        let listener = TlsListener::bind("127.0.0.1:0".parse().unwrap(), Arc::new(files));
        let listener = listener.await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let served = Arc::new(Served::default());
        let routes = Router::new().fallback(answer).with_state(served.clone());
        let limits = Limits::default();
        Self {
            port,
            served,
            _server: serve("application", listener, routes, limits, Remote::identify),
        }
    }

    /// A client that reaches it although it is private, and trusts its certificate.
    pub(super) fn reached_within(timeout: Duration) -> Arc<Foreign> {
        let settings = FetchSettings {
            private_hosts: PrivateHosts(vec!["localhost".parse::<PrivateHost>().unwrap()]),
            ca_file: Some(certificate_file("first.crt")),
            timeout,
        };
        Arc::new(Foreign::new(&settings, every_host()).unwrap())
    }

    pub(super) fn reached() -> Arc<Foreign> {
        Self::reached_within(Duration::from_secs(5))
    }

    pub(super) fn url(&self, path: &str) -> String {
        format!("https://localhost:{}{path}", self.port)
    }

    pub(super) fn answer(&self, path: &str, at: At) {
        let mut answers = self.served.answers.lock().unwrap();
        answers.insert(path.to_owned(), at);
    }

    pub(super) fn answer_json(&self, path: &str, value: Value) {
        self.answer(path, At::Json(value));
    }

    /// How often the path was asked for.
    pub(super) fn requests(&self, path: &str) -> usize {
        let requests = self.served.requests.lock().unwrap();
        requests.iter().filter(|one| *one == path).count()
    }
}

async fn answer(State(served): State<Arc<Served>>, request: Received) -> Response {
    let path = request.uri().path().to_owned();
    served.requests.lock().unwrap().push(path.clone());
    let at = served.answers.lock().unwrap().get(&path).cloned();
    let typed = |media_type: &'static str, body: Body| {
        ([(header::CONTENT_TYPE, media_type)], body).into_response()
    };
    match at {
        None => StatusCode::NOT_FOUND.into_response(),
        Some(At::Huge) => {
            let chunk = Bytes::from(vec![b' '; 64 << 10]);
            let chunks = std::iter::repeat_n(chunk, 1 << 10).map(Ok::<_, std::io::Error>);
            typed(
                "application/json",
                Body::from_stream(tokio_stream::iter(chunks)),
            )
        }
        Some(At::Json(value)) => typed("application/json", Body::from(value.to_string())),
        Some(At::Redirect(to)) => (StatusCode::FOUND, [(header::LOCATION, to)]).into_response(),
        Some(At::Silence) => std::future::pending().await,
        Some(At::Text(media_type, text)) => typed(media_type, Body::from(text)),
    }
}
