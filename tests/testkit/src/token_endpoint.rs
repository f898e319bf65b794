//! Tailscale's token endpoint for tests. It checks form and credentials as the contract says. The
//! token that it returns names what was asked for, so that a test sees whose grant it holds.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    response::{IntoResponse, Response},
    routing::any,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use http::{HeaderMap, Method, StatusCode, header};
use serde_json::json;
use tailbone_http::{
    json::Json,
    serve::{Limits, Server, serve},
    tcp::{PlainListener, Remote},
};
use url::form_urlencoded;

pub const ID: &str = "k&id";
pub const SECRET: &str = "tskey-client-k%id+secret";

/// What the endpoint does instead of granting, once each.
#[derive(Debug, Clone)]
pub enum Trouble {
    Answer(u16, &'static str),
    /// Never answers.
    Hang,
    Throttle(u64),
}

pub struct TokenEndpoint {
    pub url: String,
    state: Arc<Shared>,
    _server: Server,
}

#[derive(Default)]
struct Shared {
    requests: Mutex<Vec<TokenRequest>>,
    troubles: Mutex<VecDeque<Trouble>>,
    form_only: bool,
    policy: Mutex<Option<Policy>>,
}

/// The tailnet's policy file, as the API tells it.
struct Policy {
    status: u16,
    body: String,
}

/// A request as it arrived, valid or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRequest {
    pub basic: bool,
    pub form: Vec<(String, String)>,
}

impl TokenRequest {
    pub fn value(&self, name: &str) -> Option<&str> {
        let found = self.form.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }
}

impl TokenEndpoint {
    pub async fn start() -> Self {
        Self::start_with(false).await
    }

    /// An endpoint that takes credentials only in the form.
    pub async fn start_form_only() -> Self {
        Self::start_with(true).await
    }

    async fn start_with(form_only: bool) -> Self {
        let state = Arc::new(Shared {
            form_only,
            ..Shared::default()
        });
        let router = Router::new()
            .route("/api/v2/oauth/token", any(token))
            .route("/api/v2/tailnet/-/acl", any(policy_file))
            .with_state(state.clone());
        let tcp = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/api/v2/oauth/token", tcp.local_addr().unwrap());
        let server = serve(
            "tokens",
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

    /// What the API answers to whoever may read the policy file.
    pub fn set_policy(&self, status: u16, body: impl Into<String>) {
        let body = body.into();
        *self.state.policy.lock().unwrap() = Some(Policy { status, body });
    }

    /// The API without a path.
    pub fn api(&self) -> &str {
        self.url.strip_suffix("/api/v2/oauth/token").unwrap()
    }

    pub fn trouble(&self, trouble: Trouble) {
        self.state.troubles.lock().unwrap().push_back(trouble);
    }

    pub fn requests(&self) -> Vec<TokenRequest> {
        self.state.requests.lock().unwrap().clone()
    }

    /// The token for these scopes and tags.
    pub fn token_for(scopes: &str, tags: &str) -> String {
        let plain = |text: &str| text.replace(' ', "+");
        format!("tskey-api-{}/{}", plain(scopes), plain(tags))
    }
}

async fn policy_file(
    State(state): State<Arc<Shared>>,
    method: Method,
    headers: HeaderMap,
) -> Response {
    let of = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let token = TokenEndpoint::token_for("policy_file:read", "");
    if of(header::AUTHORIZATION) != Some(&format!("Bearer {token}")) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    // Without this header the API tells the file with its comments, which is no JSON.
    if method != Method::GET || of(header::ACCEPT) != Some("application/json") {
        return "// HuJSON\n{}".into_response();
    }
    match &*state.policy.lock().unwrap() {
        Some(Policy { status, body }) => {
            (StatusCode::from_u16(*status).unwrap(), body.clone()).into_response()
        }
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

async fn token(
    State(state): State<Arc<Shared>>,
    method: Method,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let form: Vec<(String, String)> = form_urlencoded::parse(&body).into_owned().collect();
    let basic = headers.get(header::AUTHORIZATION).cloned();
    let seen = TokenRequest {
        basic: basic.is_some(),
        form,
    };
    state.requests.lock().unwrap().push(seen.clone());
    let trouble = state.troubles.lock().unwrap().pop_front();
    match trouble {
        Some(Trouble::Answer(status, body)) => {
            let json = [(header::CONTENT_TYPE, "application/json")];
            return (StatusCode::from_u16(status).unwrap(), json, body).into_response();
        }
        Some(Trouble::Hang) => tokio::time::sleep(Duration::from_secs(3600)).await,
        Some(Trouble::Throttle(seconds)) => {
            let wait = [(header::RETRY_AFTER, seconds.to_string())];
            return (StatusCode::TOO_MANY_REQUESTS, wait, "{}").into_response();
        }
        None => {}
    }
    if method != Method::POST {
        return StatusCode::METHOD_NOT_ALLOWED.into_response();
    }
    let kind = headers.get(header::CONTENT_TYPE);
    if kind.is_none_or(|kind| kind != "application/x-www-form-urlencoded") {
        return refused(400, "invalid_request");
    }
    let credentials = match basic {
        _ if state.form_only && basic.is_some() => None,
        Some(value) => unbasic(value.to_str().unwrap()),
        None => (seen.value("client_id").zip(seen.value("client_secret")))
            .map(|(id, secret)| (id.to_owned(), secret.to_owned())),
    };
    if credentials.is_none_or(|(id, secret)| id != ID || secret != SECRET) {
        return refused(401, "invalid_client");
    }
    if seen.value("grant_type") != Some("client_credentials") {
        return refused(400, "unsupported_grant_type");
    }
    let scopes = seen.value("scope").unwrap_or_default();
    if scopes.is_empty() || scopes.contains("forbidden") {
        return refused(400, "invalid_scope");
    }
    // Lets other tasks run in between, as would happen on a network.
    for _ in 0..scopes.len() % 7 {
        tokio::task::yield_now().await;
    }
    let token = TokenEndpoint::token_for(scopes, seen.value("tags").unwrap_or_default());
    let answer =
        json!({"access_token": token, "token_type": "Bearer", "expires_in": 3600, "scope": scopes});
    ([(header::CACHE_CONTROL, "no-store")], Json(answer)).into_response()
}

fn refused(status: u16, error: &str) -> Response {
    let answer = json!({"error": error, "error_description": "as the test has it"});
    (StatusCode::from_u16(status).unwrap(), Json(answer)).into_response()
}

fn unbasic(value: &str) -> Option<(String, String)> {
    let pair = STANDARD.decode(value.strip_prefix("Basic ")?).ok()?;
    let pair = String::from_utf8(pair).ok()?;
    let (id, secret) = pair.split_once(':')?;
    let decoded = |text: &str| -> String {
        let parsed = form_urlencoded::parse(text.as_bytes()).next();
        parsed
            .map(|(name, _)| name.into_owned())
            .unwrap_or_default()
    };
    Some((decoded(id), decoded(secret)))
}
