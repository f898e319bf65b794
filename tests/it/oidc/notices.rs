//! What applications hear when a session ends: which of them, when, and who waits for it.

use std::{collections::HashMap, sync::Mutex, time::Instant};

use axum::{
    Router,
    body::to_bytes,
    extract::{Request as Received, State},
};
use prometheus_client::{encoding::text::encode, registry::Registry};
use tailbone::http::{
    certificate::CertificateFiles,
    serve::{Limits, serve},
    tcp::Remote,
    tls::TlsListener,
};
use tailbone_oidc::{
    fetch::{PrivateHost, PrivateHosts},
    provider::SessionEnds,
    store::{EndedSession, Session, SessionId},
};
use testkit::files::certificate_file;
use tokio::sync::mpsc;

use super::{
    logout::{is_signed_out, log_in, logout},
    pages::Browser,
    *,
};

/// What applications were sent: a path, and the fields of the form.
type Heard = (String, Vec<(String, String)>);

/// `https://localhost` with a certificate of the kit, where applications wait to be told.
pub(super) struct Applications {
    port: u16,
    state: Arc<Answers>,
    heard: mpsc::UnboundedReceiver<Heard>,
    pub(super) meter: Meter,
    _server: Server,
}

struct Answers {
    /// Other answers than 200; 0 is none at all.
    statuses: Mutex<HashMap<&'static str, u16>>,
    heard: mpsc::UnboundedSender<Heard>,
}

impl Applications {
    pub(super) async fn with_server() -> (Self, OidcServer) {
        let (told, heard) = mpsc::unbounded_channel();
        let state = Arc::new(Answers {
            statuses: Mutex::default(),
            heard: told,
        });
        let file = certificate_file;
        let files = CertificateFiles::open(file("first.crt"), file("first.key")).unwrap();
        let listener = TlsListener::bind("127.0.0.1:0".parse().unwrap(), Arc::new(files));
        let listener = listener.await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let routes = Router::new().fallback(hear).with_state(state.clone());
        let limits = Limits::default();
        let meter = Meter::default();
        let ends = notices(reaching_localhost(), meter.clone());
        let server = OidcServer::changed(|provider| provider.session_ends = Arc::new(ends)).await;
        let applications = Self {
            port,
            state,
            heard,
            meter,
            _server: serve("applications", listener, routes, limits, Remote::identify),
        };
        (applications, server)
    }

    pub(super) fn url(&self, path: &str) -> String {
        format!("https://localhost:{}{path}", self.port)
    }

    fn answer(&self, path: &'static str, status: u16) {
        self.state.statuses.lock().unwrap().insert(path, status);
    }

    /// The next one that is told.
    pub(super) async fn heard(&mut self) -> Heard {
        let heard = tokio::time::timeout(Duration::from_secs(20), self.heard.recv());
        heard.await.expect("an application is told").unwrap()
    }

    /// Nothing more is on its way when the counts are complete.
    async fn counted(&self, series: &str, expected: u64) {
        let until = Instant::now() + Duration::from_secs(20);
        while counted(&self.meter, series) < expected {
            assert!(
                Instant::now() < until,
                "{series} did not come to {expected}"
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(counted(&self.meter, series), expected);
    }
}

fn reaching_localhost() -> FetchSettings {
    FetchSettings {
        private_hosts: PrivateHosts(vec!["localhost".parse::<PrivateHost>().unwrap()]),
        ca_file: Some(certificate_file("first.crt")),
        ..FetchSettings::default()
    }
}

async fn hear(State(answers): State<Arc<Answers>>, request: Received) -> StatusCode {
    let path = request.uri().path().to_owned();
    let body = to_bytes(request.into_body(), 1 << 16).await.unwrap();
    let form = url::form_urlencoded::parse(&body).into_owned().collect();
    let status = answers.statuses.lock().unwrap().get(path.as_str()).copied();
    let _ = answers.heard.send((path, form));
    match status {
        None => StatusCode::OK,
        Some(0) => std::future::pending().await,
        Some(status) => StatusCode::from_u16(status).unwrap(),
    }
}

/// What the meter shows for this result.
fn counted(meter: &Meter, result: &str) -> u64 {
    let mut registry = Registry::default();
    meter.register(&mut registry);
    let mut text = String::new();
    encode(&mut text, &registry).unwrap();
    let series = format!("oidc_logout_notices_total{{result=\"{result}\"}}");
    let value = text.lines().find_map(|line| line.strip_prefix(&series));
    value.map_or(0, |value| value.trim().parse().unwrap())
}

impl OidcServer {
    /// A client that wants to hear of logouts here.
    async fn add_told(&self, id: &str, url: String) {
        self.add_with(id, AuthMethod::ClientSecretBasic, |metadata| {
            metadata.backchannel_logout_uri = Some(url);
            metadata.login = Some(Login::Silent);
        })
        .await;
    }
}

#[tokio::test]
async fn nobody_waits_for_an_application_that_does_not_answer() {
    let (mut applications, server) = Applications::with_server().await;
    for (id, path, status) in [("slow", "/slow", 0), ("no", "/no", 400), ("ok", "/ok", 200)] {
        applications.answer(path, status);
        server.add_told(id, applications.url(path)).await;
    }
    let mut alice = Browser::of(&server, "alice").await;
    let mut hint = Value::Null;
    for client in ["slow", "no", "ok", "silent"] {
        hint = log_in(&mut alice, client).await["id_token"].clone();
    }
    let began = Instant::now();
    let answer = alice
        .get(&logout(&[("id_token_hint", hint.as_str().unwrap())]))
        .await;
    assert!(is_signed_out(&answer), "{answer:?}");
    // The first try of `slow` alone takes five seconds.
    assert!(began.elapsed() < Duration::from_secs(5));
    let mut paths = Vec::new();
    for _ in 0..3 {
        paths.push(applications.heard().await.0);
    }
    paths.sort();
    assert_eq!(
        paths,
        ["/no", "/ok", "/slow"],
        "each is told, and the silent one has no address"
    );
}

#[tokio::test]
async fn what_became_of_each_notice_is_counted() {
    let (mut applications, server) = Applications::with_server().await;
    applications.answer("/no", 400);
    for (id, path) in [("no", "/no"), ("ok", "/ok")] {
        server.add_told(id, applications.url(path)).await;
    }
    server
        .add_told("far", "https://127.0.0.1:1/logout".into())
        .await;
    let mut alice = Browser::of(&server, "alice").await;
    let mut hint = Value::Null;
    for client in ["no", "ok", "far"] {
        hint = log_in(&mut alice, client).await["id_token"].clone();
    }
    alice
        .get(&logout(&[("id_token_hint", hint.as_str().unwrap())]))
        .await;
    for (result, count) in [("told", 1), ("status", 1), ("private_address", 1)] {
        applications.counted(result, count).await;
    }
    // A client that says 400 is asked once.
    let paths = [applications.heard().await.0, applications.heard().await.0];
    assert!(
        paths.contains(&"/no".into()) && paths.contains(&"/ok".into()),
        "{paths:?}"
    );
    assert!(applications.heard.try_recv().is_err());
}

#[tokio::test]
async fn a_session_that_ends_otherwise_is_told_as_well() {
    let (mut applications, server) = Applications::with_server().await;
    server.add_told("told", applications.url("/told")).await;
    // Somebody else logs in in the same browser.
    let mut alice = Browser::of(&server, "alice").await;
    let tokens = log_in(&mut alice, "told").await;
    let mine = server.verified(tokens["id_token"].as_str().unwrap()).await;
    let mut bob = Browser::of(&server, "bob").await;
    bob.cookies = alice.cookies.clone();
    log_in(&mut bob, "silent").await;
    let (_, form) = applications.heard().await;
    let claims = server.verified(&form[0].1).await;
    assert_eq!(
        (&claims["sid"], &claims["sub"]),
        (&mine["sid"], &mine["sub"])
    );

    // The tailnet does not know the device any more.
    let mut carol = Browser::of(&server, "carol").await;
    let tokens = log_in(&mut carol, "told").await;
    let hers = server.verified(tokens["id_token"].as_str().unwrap()).await;
    assert!(server.world.tailnet.remove("carol"));
    let refreshed = form_of_refresh(&tokens);
    let refused = server.outside().await.send(refreshed).await;
    assert_eq!(refusal(&refused).1, "invalid_grant");
    let (_, form) = applications.heard().await;
    let claims = server.verified(&form[0].1).await;
    assert_eq!(claims["sid"], hers["sid"]);
}

fn form_of_refresh(tokens: &Value) -> Request<Full<Bytes>> {
    let token = tokens["refresh_token"].as_str().unwrap();
    let pairs = [("grant_type", "refresh_token"), ("refresh_token", token)];
    with(form("/token", &pairs), "authorization", &basic("told"))
}

#[tokio::test]
async fn more_notices_than_may_wait_are_dropped_and_counted() {
    let server = OidcServer::open().await;
    let meter = Meter::default();
    let client = GuardedClient::new(&FetchSettings::default()).unwrap();
    let notices = LogoutNotices::with_limit(client, meter.clone(), 1);
    let now = Timestamp::now();
    let session = Session {
        id: SessionId::random().unwrap(),
        cookie: Digest::of("cookie"),
        subject: "userid:1".into(),
        authenticated_at: now,
        created_at: now,
        expires_at: now,
        details: "{}".into(),
    };
    let clients = vec!["one".into(), "two".into()];
    notices.ended(&server.provider, EndedSession { session, clients });
    assert_eq!(counted(&meter, "too_many"), 2);
}
