//! A small issuer: counts its tokens, and fails on demand.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use axum::{
    Router,
    extract::{Query, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde_json::{Value, json};
use tailbone::{
    config::Limits,
    http::{
        json::Json,
        serve::{Server, serve},
        tcp::{PlainListener, Remote},
    },
    keys::{KeySpec, Signer},
};
use testkit::jwks_server::signer;

pub(super) struct FakeIssuer {
    pub(super) url: String,
    pub(super) state: Arc<IssuerState>,
    _server: Server,
}

pub(super) struct IssuerState {
    /// The issuer in tokens and in the discovery document.
    pub(super) named: Mutex<String>,
    pub(super) subject: String,
    pub(super) life: AtomicU64,
    pub(super) tokens: AtomicU64,
    pub(super) away: AtomicBool,
    /// The last key signs.
    keys: Mutex<Vec<Signer>>,
}

impl FakeIssuer {
    pub(super) async fn start() -> Self {
        Self::with_subject("web.tail1234.ts.net").await
    }

    pub(super) async fn with_subject(subject: &str) -> Self {
        Self::build(subject, KeySpec::Es256, None).await
    }

    /// `name` is the issuer's name, if it is not the address.
    pub(super) async fn build(subject: &str, spec: KeySpec, name: Option<&str>) -> Self {
        let tcp = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", tcp.local_addr().unwrap());
        let state = Arc::new(IssuerState {
            named: Mutex::new(name.unwrap_or(&url).to_owned()),
            subject: subject.to_owned(),
            life: AtomicU64::new(300),
            tokens: AtomicU64::new(0),
            away: AtomicBool::new(false),
            keys: Mutex::new(vec![signer("k1", spec)]),
        });
        let router = Router::new()
            .route("/token", post(token))
            .route("/.well-known/openid-configuration", get(discovery))
            .route("/.well-known/jwks.json", get(jwks))
            .with_state(state.clone());
        let server = serve(
            "issuer",
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

    pub(super) fn tokens(&self) -> u64 {
        self.state.tokens.load(Ordering::SeqCst)
    }

    pub(super) fn set_away(&self, away: bool) {
        self.state.away.store(away, Ordering::SeqCst);
    }

    /// Signs with a new key from now on.
    pub(super) fn rotate(&self, kid: &str) {
        let key = signer(kid, KeySpec::Es256);
        self.state.keys.lock().unwrap().push(key);
    }

    pub(super) fn set_life(&self, seconds: u64) {
        self.state.life.store(seconds, Ordering::SeqCst);
    }
}

/// As the contract has it: header guard, audience, numbers as texts.
async fn token(
    State(state): State<Arc<IssuerState>>,
    Query(query): Query<HashMap<String, String>>,
    headers: HeaderMap,
) -> Response {
    let refuse = |status: StatusCode, code: &str, message: &str| {
        (status, Json(json!({"code": code, "message": message}))).into_response()
    };
    if state.away.load(Ordering::SeqCst) {
        return refuse(StatusCode::SERVICE_UNAVAILABLE, "away", "Try again later");
    }
    if headers.get("x-tsiam").is_none() {
        return refuse(StatusCode::FORBIDDEN, "no_browser", "Set X-Tsiam");
    }
    let Some(audience) = query.get("resource") else {
        return refuse(StatusCode::BAD_REQUEST, "missing_audience", "Missing");
    };
    if audience == "forbidden" {
        let message = "The requested audience is not allowed by service configuration";
        return refuse(StatusCode::FORBIDDEN, "audience_not_allowed", message);
    }
    let number = state.tokens.fetch_add(1, Ordering::SeqCst) + 1;
    let now = jiff::Timestamp::now().as_second();
    let life = state.life.load(Ordering::SeqCst);
    let expires = now + i64::try_from(life).unwrap();
    let claims = json!({
        "iss": *state.named.lock().unwrap(), "sub": state.subject, "aud": [audience], "iat": now, "nbf": now,
        "exp": expires, "jti": number.to_string(),
    });
    let keys = state.keys.lock().unwrap();
    let token = keys
        .last()
        .unwrap()
        .sign(claims.to_string().as_bytes())
        .unwrap();
    Json(json!({
        "access_token": token, "token_type": "Bearer", "expires_in": life.to_string(),
        "expires_on": expires.to_string(), "not_before": now.to_string(),
    }))
    .into_response()
}

async fn discovery(State(state): State<Arc<IssuerState>>) -> Json<Value> {
    let url = state.named.lock().unwrap();
    Json(json!({
        "issuer": *url,
        "jwks_uri": format!("{url}/.well-known/jwks.json"),
        "token_endpoint": format!("{url}/token"),
        "id_token_signing_alg_values_supported": ["ES256"],
    }))
}

async fn jwks(State(state): State<Arc<IssuerState>>) -> Json<Value> {
    let keys = state.keys.lock().unwrap();
    let jwks: Vec<_> = keys.iter().map(|key| key.public().to_value()).collect();
    Json(json!({"keys": jwks}))
}
