//! A small issuer: signs with ES256, counts its tokens, and fails on demand.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use axum::{
    Json, Router,
    extract::{Query, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};
use tailbone::{
    config::Limits,
    http::{
        serve::{Server, serve},
        tcp::{PlainListener, Remote},
    },
};

pub(super) struct FakeIssuer {
    pub(super) url: String,
    pub(super) state: Arc<IssuerState>,
    _server: Server,
}

pub(super) struct IssuerState {
    pub(super) url: String,
    /// The issuer in the discovery document.
    pub(super) named: Mutex<String>,
    pub(super) subject: String,
    pub(super) life: AtomicU64,
    pub(super) tokens: AtomicU64,
    pub(super) away: AtomicBool,
    /// The last key signs.
    keys: Mutex<Vec<(String, EncodingKey, Value)>>,
}

impl FakeIssuer {
    pub(super) async fn start() -> Self {
        Self::with_subject("web.tail1234.ts.net").await
    }

    pub(super) async fn with_subject(subject: &str) -> Self {
        let tcp = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", tcp.local_addr().unwrap());
        let (key, jwk) = key_pair("k1");
        let state = Arc::new(IssuerState {
            url: url.clone(),
            named: Mutex::new(url.clone()),
            subject: subject.to_owned(),
            life: AtomicU64::new(300),
            tokens: AtomicU64::new(0),
            away: AtomicBool::new(false),
            keys: Mutex::new(vec![("k1".to_owned(), key, jwk)]),
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
        let (key, jwk) = key_pair(kid);
        let mut keys = self.state.keys.lock().unwrap();
        keys.push((kid.to_owned(), key, jwk));
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
        "iss": state.url, "sub": state.subject, "aud": [audience], "iat": now, "nbf": now,
        "exp": expires, "jti": number.to_string(),
    });
    let mut header = Header::new(Algorithm::ES256);
    let keys = state.keys.lock().unwrap();
    let (kid, key, _) = keys.last().unwrap();
    header.kid = Some(kid.clone());
    let token = jsonwebtoken::encode(&header, &claims, key).unwrap();
    Json(json!({
        "access_token": token, "token_type": "Bearer", "expires_in": life.to_string(),
        "expires_on": expires.to_string(), "not_before": now.to_string(),
    }))
    .into_response()
}

async fn discovery(State(state): State<Arc<IssuerState>>) -> Json<Value> {
    let url = &state.url;
    Json(json!({
        "issuer": *state.named.lock().unwrap(),
        "jwks_uri": format!("{url}/.well-known/jwks.json"),
        "token_endpoint": format!("{url}/token"),
        "id_token_signing_alg_values_supported": ["ES256"],
    }))
}

async fn jwks(State(state): State<Arc<IssuerState>>) -> Json<Value> {
    let keys = state.keys.lock().unwrap();
    let jwks: Vec<_> = keys.iter().map(|(_, _, jwk)| jwk.clone()).collect();
    Json(json!({"keys": jwks}))
}

fn key_pair(kid: &str) -> (EncodingKey, Value) {
    use aws_lc_rs::{
        rand::SystemRandom,
        signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
    };
    let document =
        EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new())
            .unwrap();
    let pair =
        EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, document.as_ref()).unwrap();
    let point = pair.public_key().as_ref();
    let (x, y) = point[1..].split_at(32);
    let jwk = json!({
        "kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": kid,
        "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y),
    });
    (EncodingKey::from_ec_der(document.as_ref()), jwk)
}
