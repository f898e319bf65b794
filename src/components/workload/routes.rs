//! The routes of tsiam, with its checks in its order, and its answers byte for byte. The endpoint
//! of the standards is next door ([`super::oauth`]).
//!
//! | Request | On the tailnet | Through Funnel |
//! |---|---|---|
//! | `POST /token?resource=AUDIENCE`, `X-Tsiam: 1` | a token, or an error in JSON | 404 |
//! | `POST /token` or `/oauth/token`, a form | as RFC 6749 and 8693 say | 404 |
//! | `GET` of what is below `/.well-known/` | the documents | the same |
//! | `GET /healthz` | 204 | 404 |
//! | `GET /` | a greeting | 404 |
//!
//! What is at no route is answered as Go's router does: 404 in text for GET, 405 for other methods.

use std::{sync::Arc, time::Duration};

use ::http::{
    Extensions, HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header, request::Parts,
};
use aws_lc_rs::digest::{SHA256, digest};
use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    response::{IntoResponse, Response},
    routing::{MethodRouter, any},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Serialize;
use serde_json::Value;

use super::{
    documents::{
        self, DISCOVERY_PATH, JWKS_PATH, OAUTH_METADATA_PATH, OAUTH_TOKEN_PATH, TOKEN_PATH,
    },
    oauth, query,
    tokens::{IssuedToken, NoToken, TokenMaker},
};
use crate::{
    audit,
    http::{error::Kind, form::is_form, public_document},
    identity::{Connection, MAX_AUDIENCE_BYTES, Visitor},
    telemetry::{audit::Decision, error_chain},
};

/// The state of the routes.
#[derive(Debug)]
pub struct Workload {
    pub(super) tokens: TokenMaker,
    /// The discovery document.
    discovery: Vec<u8>,
    /// How long verifiers may cache the documents.
    cache_time: Duration,
}

impl Workload {
    pub fn new(tokens: TokenMaker, cache_time: Duration) -> Self {
        let algorithms: Vec<_> = tokens.keys.algorithms().collect();
        Self {
            discovery: documents::discovery(&tokens.issuer, &algorithms),
            tokens,
            cache_time,
        }
    }
}

pub fn router(workload: Arc<Workload>) -> Router {
    routes(any(on_the_tailnet), workload)
}

/// What verifiers outside of the tailnet read, and nothing else.
pub fn internet_router(workload: Arc<Workload>) -> Router {
    routes(any(on_the_internet), workload)
}

/// Each path has its route, for traces; what becomes of a request is one table for all of them.
fn routes(handler: MethodRouter<Arc<Workload>>, workload: Arc<Workload>) -> Router {
    let paths = [
        "/",
        TOKEN_PATH,
        OAUTH_TOKEN_PATH,
        DISCOVERY_PATH,
        OAUTH_METADATA_PATH,
        JWKS_PATH,
        "/healthz",
        "/{*path}",
    ];
    let routes = paths.into_iter().fold(Router::new(), |router, path| {
        router.route(path, handler.clone())
    });
    routes.with_state(workload)
}

async fn on_the_tailnet(State(workload): State<Arc<Workload>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    match (&parts.method, parts.uri.path()) {
        (&Method::POST, TOKEN_PATH) => token(&workload, &parts, body).await,
        (&Method::POST, OAUTH_TOKEN_PATH) => oauth::token(&workload, &parts, body).await,
        (&Method::GET | &Method::HEAD, "/healthz") => StatusCode::NO_CONTENT.into_response(),
        (&Method::GET | &Method::HEAD, "/") => greeting(),
        _ => document_or_nothing(&workload, &parts).await,
    }
}

async fn on_the_internet(State(workload): State<Arc<Workload>>, request: Request) -> Response {
    let (parts, _) = request.into_parts();
    match (&parts.method, parts.uri.path()) {
        (&Method::POST, TOKEN_PATH | OAUTH_TOKEN_PATH) => not_found(),
        _ => document_or_nothing(&workload, &parts).await,
    }
}

async fn document_or_nothing(workload: &Workload, request: &Parts) -> Response {
    match (&request.method, request.uri.path()) {
        (&Method::GET | &Method::HEAD, DISCOVERY_PATH | OAUTH_METADATA_PATH) => {
            document(workload, &request.headers, workload.discovery.clone())
        }
        (&Method::GET | &Method::HEAD, JWKS_PATH) => jwks(workload, &request.headers).await,
        (method, _) => elsewhere(method, &request.uri),
    }
}

/// The same waving hand as tsiam's.
fn greeting() -> Response {
    let text = HeaderValue::from_static("text/plain; charset=utf-8");
    ([(header::CONTENT_TYPE, text)], "\u{1f44b}").into_response()
}

/// As Go's router answers what none of its patterns is about.
fn elsewhere(method: &Method, uri: &Uri) -> Response {
    if let Some(clean) = clean_path(uri.path()) {
        let query = uri
            .query()
            .map_or_else(String::new, |query| format!("?{query}"));
        if let Ok(location) = HeaderValue::from_str(&format!("{clean}{query}")) {
            return (
                StatusCode::TEMPORARY_REDIRECT,
                [(header::LOCATION, location)],
            )
                .into_response();
        }
    }
    if matches!(*method, Method::GET | Method::HEAD) {
        return not_found();
    }
    let posts = matches!(uri.path(), TOKEN_PATH | OAUTH_TOKEN_PATH);
    let allow = if posts {
        "GET, HEAD, POST"
    } else {
        "GET, HEAD"
    };
    let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed\n");
    let headers = response.headers_mut();
    headers.insert(header::ALLOW, HeaderValue::from_static(allow));
    response
}

fn not_found() -> Response {
    text(StatusCode::NOT_FOUND, "404 page not found\n")
}

fn text(status: StatusCode, words: &'static str) -> Response {
    let headers = [
        (
            header::CONTENT_TYPE,
            HeaderValue::from_static("text/plain; charset=utf-8"),
        ),
        (
            header::X_CONTENT_TYPE_OPTIONS,
            HeaderValue::from_static("nosniff"),
        ),
    ];
    (status, headers, words).into_response()
}

/// The path without doubled slashes and relative segments, if it has any.
fn clean_path(path: &str) -> Option<String> {
    let odd = |segment: &&str| matches!(*segment, "" | "." | "..");
    let inner = path.strip_prefix('/').unwrap_or(path);
    let inner = inner.strip_suffix('/').unwrap_or(inner);
    if inner.is_empty() && path.len() < 2 || !inner.split('/').any(|segment| odd(&segment)) {
        return None;
    }
    let mut clean: Vec<&str> = Vec::new();
    for segment in inner.split('/') {
        match segment {
            "" | "." => {}
            ".." => {
                clean.pop();
            }
            segment => clean.push(segment),
        }
    }
    let slash = if path.ends_with('/') && !clean.is_empty() {
        "/"
    } else {
        ""
    };
    Some(format!("/{}{slash}", clean.join("/")))
}

async fn token(workload: &Workload, request: &Parts, body: Body) -> Response {
    if is_form(&request.headers) {
        let form = oauth::read_form(body).await;
        if form.as_ref().is_ok_and(|form| form.has_grant_type()) {
            return oauth::answer(workload, request, form).await;
        }
    }
    match tsiam_token(workload, request).await {
        Ok(issued) => json_answer(StatusCode::OK, &TsiamToken::new(&issued)),
        Err(refused) => refused.into_response(),
    }
}

async fn tsiam_token(workload: &Workload, request: &Parts) -> Result<IssuedToken, TsiamError> {
    let refused = |error: TsiamError| {
        workload.tokens.meter.token_refused("workload", error.code);
        audit!(
            Decision::Refused,
            "workload token",
            reason = error.code,
            detail = error.detail.as_ref().or(error.inner.as_ref())
        );
        error
    };
    by_a_program(&request.headers).map_err(refused)?;
    let visitor = visitor(&request.extensions)
        .await
        .map_err(|error| refused(error.into()))?;
    let audience = audience(request.uri.query().unwrap_or_default()).map_err(refused)?;
    Ok(workload.tokens.token(&visitor, &audience).await?)
}

const X_TSIAM: HeaderName = HeaderName::from_static("x-tsiam");

/// The headers by which tsiam knows a browser, in the order in which it looks for them.
const BROWSER_HEADERS: [(HeaderName, &str); 5] = [
    (header::ORIGIN, "Origin"),
    (HeaderName::from_static("sec-fetch-site"), "Sec-Fetch-Site"),
    (HeaderName::from_static("sec-fetch-mode"), "Sec-Fetch-Mode"),
    (HeaderName::from_static("sec-fetch-dest"), "Sec-Fetch-Dest"),
    (HeaderName::from_static("sec-fetch-user"), "Sec-Fetch-User"),
];

/// Any page that a user visits can send requests from the user's machine, but not with a header of
/// its own choice, unless it asks first. A browser's header counts also where it is empty.
fn by_a_program(headers: &HeaderMap) -> Result<(), TsiamError> {
    let browser = |inner: String| TsiamError {
        inner: Some(inner),
        ..TsiamError::new(
            StatusCode::FORBIDDEN,
            "no_browser",
            "To prevent web browsers from accessing protected endpoints, make sure to include the \
             'X-Tsiam: 1' header in the request. Additionally, headers typically set by web \
             browsers are forbidden.",
        )
    };
    if let Some((_, name)) = BROWSER_HEADERS
        .iter()
        .find(|(name, _)| headers.contains_key(name))
    {
        return Err(browser(format!("found browser header '{name}'")));
    }
    if headers.get(X_TSIAM).is_none_or(HeaderValue::is_empty) {
        return Err(browser("missing header X-Tsiam".to_owned()));
    }
    Ok(())
}

/// Why the caller has no identity here, or no more requests.
#[derive(Debug)]
pub(super) enum NoCaller {
    /// The tailnet does not know the caller, or refuses it.
    Unknown(crate::http::Error),
    /// A fault of ours.
    Unavailable(Duration),
    TooMany(Duration),
}

/// Who calls, from any tailnet; the call is counted.
pub(super) async fn visitor(extensions: &Extensions) -> Result<Arc<Visitor>, NoCaller> {
    let known = async {
        let connection = Connection::of(extensions)?;
        let visitor = connection.visitor().await?;
        connection.count_request()?;
        Ok::<_, crate::http::Error>(visitor)
    };
    known.await.map_err(|error| match error.kind {
        Kind::TooManyRequests { retry_after } => NoCaller::TooMany(retry_after),
        Kind::Unavailable { retry_after } => {
            tracing::error!(target: "workload", error = error_chain(&error), "the caller could not be identified");
            NoCaller::Unavailable(retry_after)
        }
        _ => NoCaller::Unknown(error),
    })
}

impl From<NoCaller> for TsiamError {
    fn from(refused: NoCaller) -> Self {
        let words = "Could not determine the Tailscale node's identity";
        match refused {
            NoCaller::Unknown(cause) => Self {
                // For the audit; the caller learns no more than from tsiam.
                detail: Some(cause.to_string()),
                ..Self::new(StatusCode::FORBIDDEN, "node_identity", words)
            },
            NoCaller::Unavailable(wait) => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "node_identity", words).after(wait)
            }
            NoCaller::TooMany(wait) => Self::new(
                StatusCode::TOO_MANY_REQUESTS,
                "too_many_requests",
                "The caller makes more requests than it may",
            )
            .after(wait),
        }
    }
}

fn audience(text: &str) -> Result<String, TsiamError> {
    let (resource, audience) = (
        query::first(text, "resource"),
        query::first(text, "audience"),
    );
    let bad = |code, words| Err(TsiamError::new(StatusCode::BAD_REQUEST, code, words));
    let one = match (resource.is_empty(), audience.is_empty()) {
        (false, false) if resource != audience => {
            return bad(
                "audience_conflict",
                "Conflicting query parameters: 'resource' and 'audience' have different values; \
                 only one should be provided",
            );
        }
        (true, true) => {
            return bad(
                "missing_audience",
                "Missing required query parameter 'resource'",
            );
        }
        (true, false) => audience,
        (false, _) => resource,
    };
    if one.len() > MAX_AUDIENCE_BYTES {
        return bad(
            "audience_too_long",
            "Invalid audience: value exceeds maximum length of 512 characters",
        );
    }
    Ok(one)
}

/// An answer with a token. The numbers are strings, as in Azure's metadata service.
#[derive(Serialize)]
struct TsiamToken<'a> {
    access_token: &'a str,
    token_type: &'static str,
    expires_in: String,
    expires_on: String,
    not_before: String,
}

impl<'a> TsiamToken<'a> {
    fn new(issued: &'a IssuedToken) -> Self {
        Self {
            access_token: &issued.token,
            token_type: "Bearer",
            expires_in: issued.lifetime.as_secs().to_string(),
            expires_on: issued.validity.until.to_string(),
            not_before: issued.validity.from.to_string(),
        }
    }
}

/// An error in the words of tsiam.
#[derive(Debug)]
struct TsiamError {
    status: StatusCode,
    code: &'static str,
    message: &'static str,
    inner: Option<String>,
    /// For the audit alone.
    detail: Option<String>,
    retry_after: Option<Duration>,
}

impl TsiamError {
    fn new(status: StatusCode, code: &'static str, message: &'static str) -> Self {
        Self {
            status,
            code,
            message,
            inner: None,
            detail: None,
            retry_after: None,
        }
    }

    fn after(self, wait: Duration) -> Self {
        Self {
            retry_after: Some(wait),
            ..self
        }
    }
}

impl From<NoToken> for TsiamError {
    fn from(refused: NoToken) -> Self {
        let wait = refused.retry_after();
        let (status, code, message) = match &refused {
            NoToken::NotListed => (
                StatusCode::FORBIDDEN,
                "audience_not_allowed",
                "The requested audience is not allowed by service configuration",
            ),
            NoToken::NotPermitted => (
                StatusCode::FORBIDDEN,
                "audience_not_permitted",
                "The caller does not have permission to request tokens for this audience",
            ),
            NoToken::NoSubject(_) => (
                StatusCode::FORBIDDEN,
                "no_subject",
                "The caller has no subject for tokens of this audience",
            ),
            NoToken::NoSigner(_) => (
                StatusCode::SERVICE_UNAVAILABLE,
                "no_signing_key",
                "No key can sign tokens of this audience at the moment",
            ),
            NoToken::NoSigningService(_) => (
                StatusCode::SERVICE_UNAVAILABLE,
                "signer_unavailable",
                "The signing service cannot sign at the moment",
            ),
            NoToken::Overloaded => (
                StatusCode::SERVICE_UNAVAILABLE,
                "overloaded",
                "There are more requests than this server can sign tokens for",
            ),
            NoToken::Failed(_) => (
                StatusCode::INTERNAL_SERVER_ERROR,
                "internal",
                "Internal error",
            ),
        };
        if status.is_server_error() {
            tracing::error!(target: "workload", error = error_chain(&refused), code, "no token");
        }
        let inner = matches!(refused, NoToken::NoSubject(_)).then(|| error_chain(&refused));
        Self {
            inner,
            retry_after: wait,
            ..Self::new(status, code, message)
        }
    }
}

impl IntoResponse for TsiamError {
    fn into_response(self) -> Response {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Body<'a> {
            code: &'a str,
            message: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            inner_error: Option<String>,
        }
        let body = Body {
            code: self.code,
            message: self.message,
            inner_error: self.inner,
        };
        with_retry_after(json_answer(self.status, &body), self.retry_after)
    }
}

/// JSON as Go's encoder writes it, with a newline at the end, for nobody to keep.
pub(super) fn json_answer(status: StatusCode, body: &impl Serialize) -> Response {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static(JSON)),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ];
    let Ok(mut text) = serde_json::to_vec(body) else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    text.push(b'\n');
    (status, headers, text).into_response()
}

pub(super) fn with_retry_after(mut response: Response, wait: Option<Duration>) -> Response {
    if let Some(wait) = wait {
        let seconds = HeaderValue::from(wait.as_secs().max(1));
        response.headers_mut().insert(header::RETRY_AFTER, seconds);
    }
    response
}

const JSON: &str = "application/json; charset=utf-8";

/// The keys as last read from where they are published, those of other servers among them, with
/// what verifiers expect of each.
async fn jwks(workload: &Workload, headers: &HeaderMap) -> Response {
    let keys = workload.tokens.keys.loaded().await;
    let Some(published) = keys.document() else {
        let error = TsiamError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "no_jwks",
            "The published keys could not be read yet",
        );
        return error.after(Duration::from_secs(10)).into_response();
    };
    let keys: Vec<Value> = published
        .document
        .keys()
        .iter()
        .map(for_signatures)
        .collect();
    let text = serde_json::json!({ "keys": keys }).to_string();
    document(workload, headers, text.into_bytes())
}

/// The key with `use: sig`, which Google Cloud requires where keys are uploaded.
fn for_signatures(key: &Value) -> Value {
    let mut key = key.clone();
    if let Some(members) = key.as_object_mut() {
        members.entry("use").or_insert_with(|| "sig".into());
    }
    key
}

fn document(workload: &Workload, request: &HeaderMap, bytes: Vec<u8>) -> Response {
    let etag = URL_SAFE_NO_PAD.encode(digest(&SHA256, &bytes));
    public_document::answer(request, JSON, &etag, workload.cache_time, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_cleaned_as_go_cleans_them() {
        for (path, clean) in [
            ("//token", Some("/token")),
            ("/a/../token", Some("/token")),
            ("/./token/", Some("/token/")),
            ("//", Some("/")),
            ("/", None),
            ("/token", None),
            ("/token/", None),
        ] {
            assert_eq!(clean_path(path).as_deref(), clean, "{path}");
        }
    }

    #[test]
    fn the_audience_of_a_request() {
        let of = |query: &str| audience(query).map_err(|error| error.code);
        for query in [
            "resource=a",
            "audience=a",
            "resource=a&audience=a",
            "resource=%20a",
        ] {
            assert_eq!(of(query), Ok("a".to_owned()), "{query}");
        }
        assert_eq!(of("resource=a&audience=b"), Err("audience_conflict"));
        assert_eq!(of("resource=&audience=+"), Err("missing_audience"));
        assert!(of(&format!("resource={}", "a".repeat(512))).is_ok());
        assert_eq!(
            of(&format!("resource={}", "a".repeat(513))),
            Err("audience_too_long")
        );
    }

    #[test]
    fn browsers_are_known_by_their_headers_also_by_empty_ones() {
        let check = |list: &[(&'static str, &'static str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in list {
                headers.append(*name, HeaderValue::from_static(value));
            }
            by_a_program(&headers).map_err(|error| error.inner.unwrap())
        };
        for value in ["1", "true", "anything"] {
            assert_eq!(
                check(&[("x-tsiam", value), ("user-agent", "curl/8")]),
                Ok(())
            );
        }
        let missing = Err("missing header X-Tsiam".to_owned());
        assert_eq!(check(&[]), missing);
        assert_eq!(check(&[("x-tsiam", "")]), missing);
        for (name, shown) in BROWSER_HEADERS {
            for value in ["x", ""] {
                let mut headers = HeaderMap::new();
                headers.insert(X_TSIAM, HeaderValue::from_static("1"));
                headers.insert(name.clone(), HeaderValue::from_static(value));
                let inner = by_a_program(&headers).unwrap_err().inner.unwrap();
                assert_eq!(inner, format!("found browser header '{shown}'"));
            }
        }
    }
}
