//! The issuer's routes, which only combine caller, claims and key.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use ::http::{HeaderMap, HeaderValue, header};
use arc_swap::ArcSwap;
use axum::{
    Router,
    body::Body,
    extract::State,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use jiff::Timestamp;
use serde::Serialize;
use tracing::Instrument;
use uuid::Uuid;

use super::IssuerClaims;
use crate::{
    audit,
    config::{Settings, TokenSettings},
    http::{Error, error::Kind, health, json::Json, layers, origin, public_document},
    identity::{Caller, Refusal},
    jwks::life::KeyLife,
    keys::{NoSigner, SignError, SigningQueue, remote::RemoteFailure},
    part::{Context, Lifecycle, Part, PartError, Routes},
    telemetry::{audit::Decision, meter::Meter},
    version,
    web::{Allowed, Origin},
};

/// The state of the routes.
#[derive(Debug, Clone)]
pub struct Issuer {
    /// May be replaced while the server runs.
    pub token: Arc<ArcSwap<TokenSettings>>,
    pub keys: KeyLife,
    pub signing: Arc<SigningQueue>,
    /// How long verifiers may cache the published keys.
    pub cache_time: Duration,
    /// The origins whose web pages may ask for tokens.
    pub origins: Arc<[Allowed<Origin>]>,
    pub meter: Meter,
}

/// The component, at its listeners.
pub fn part(settings: &Settings, context: &Context) -> Result<Part, PartError> {
    let token_settings = Arc::new(ArcSwap::from_pointee(settings.keys.token.clone()));
    let issuer = Issuer {
        token: token_settings.clone(),
        keys: context.keys.clone(),
        signing: context.signing.clone(),
        cache_time: settings.keys.cache_time,
        origins: settings.server.allowed_origins.clone().into(),
        meter: context.meter.clone(),
    };
    let internet = layers::wrap(internet_router(issuer.clone()), "issuer");
    let routes = router(issuer).merge(health::router(context.state.readiness.clone()));
    let routes = Routes::new("issuer", layers::wrap(routes, "issuer")).on_the_internet(internet);
    Ok(Part::new("issuer")
        .serve("issuer", settings.server.listen.clone(), &routes)
        .lifecycle(ReloadedTokenSettings(token_settings)))
}

struct ReloadedTokenSettings(Arc<ArcSwap<TokenSettings>>);

impl Lifecycle for ReloadedTokenSettings {
    fn reload(&self, settings: &Settings) {
        self.0.store(Arc::new(settings.keys.token.clone()));
    }
}

pub fn router(issuer: Issuer) -> Router {
    let origins = issuer.origins.clone();
    let routes = Router::new()
        .route(
            "/issue",
            post(issue).fallback(|| method_not_allowed("POST")),
        )
        .route(
            "/.well-known/jwks.json",
            get(jwks).fallback(|| method_not_allowed("GET, HEAD")),
        )
        .route(
            "/_healthz",
            get(health).fallback(|| method_not_allowed("GET, HEAD")),
        )
        .with_state(Arc::new(issuer));
    origin::share(routes, &origins)
}

/// What verifiers outside of the tailnet read, and nothing else.
pub fn internet_router(issuer: Issuer) -> Router {
    Router::new()
        .route(
            "/.well-known/jwks.json",
            get(jwks).fallback(|| method_not_allowed("GET, HEAD")),
        )
        .with_state(Arc::new(issuer))
}

async fn method_not_allowed(allow: &'static str) -> Error {
    Error::method_not_allowed(allow)
}

async fn issue(
    State(issuer): State<Arc<Issuer>>,
    request: HeaderMap,
    caller: Result<Caller, Error>,
) -> Result<Response, Error> {
    // The connection identifies the caller, and any web page can use its visitor's connection.
    let for_programs = origin::for_programs(&request, &issuer.origins);
    let caller = for_programs.and(caller).inspect_err(|error| {
        issuer.meter.token_refused("issuer", error.code);
        audit!(
            Decision::Refused,
            "issue",
            reason = error.code,
            detail = error.message
        );
    })?;
    let token = token(&issuer, &caller).await.inspect_err(|error| {
        issuer.meter.token_refused("issuer", error.code);
        audit!(Decision::Refused, "issue", caller = %caller, reason = error.code);
    })?;
    let headers = [
        (
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        ),
        // RFC 6749, section 5.1: an answer with a token must not be cached.
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ];
    // A token needs no escaping in JSON: it consists of base64url and dots.
    let body = ["{\"token\":\"", &token, "\"}"].concat();
    Ok((headers, Body::from(body)).into_response())
}

/// Bytes that most claims fit into; larger ones cost a copy.
const CLAIMS_CAPACITY: usize = 512;

async fn token(issuer: &Issuer, caller: &Caller) -> Result<String, Error> {
    let current_keys = issuer.keys.current_keys().loaded().await;
    let signer = current_keys.signer().map_err(no_signing_key)?;
    let token_settings = issuer.token.load_full();
    let claims = IssuerClaims::new(caller, &token_settings, Timestamp::now(), Uuid::new_v4())
        .ok_or(Refusal::Funnel)?;
    let mut bytes = Vec::with_capacity(CLAIMS_CAPACITY);
    serde_json::to_writer(&mut bytes, &claims).map_err(signing_failed)?;
    let started = Instant::now();
    let token = issuer
        .signing
        .sign(&signer, &bytes)
        .instrument(tracing::debug_span!("sign"))
        .await
        .map_err(|error| match error {
            SignError::Overloaded => overloaded(),
            SignError::Remote(failure) => signer_unavailable(failure),
            other => signing_failed(other),
        })?;
    issuer.meter.token_issued("issuer", started.elapsed());
    audit!(
        Decision::Allowed,
        "issued token",
        caller = %caller,
        sub = claims.subject(),
        kid = signer.kid().as_str(),
        jti = claims.jti()
    );
    Ok(token)
}

fn no_signing_key(cause: NoSigner) -> Error {
    let kind = Kind::Unavailable {
        retry_after: Duration::from_secs(10),
    };
    Error::new(
        kind,
        "no_signing_key",
        "this server has no key to sign with; its log says why",
    )
    .because(cause)
}

fn overloaded() -> Error {
    let kind = Kind::Unavailable {
        retry_after: Duration::from_secs(1),
    };
    Error::new(
        kind,
        "overloaded",
        "this server cannot sign as many tokens as are requested; try again",
    )
}

fn signer_unavailable(failure: RemoteFailure) -> Error {
    let kind = Kind::Unavailable {
        retry_after: failure.retry_after,
    };
    Error::new(kind, "signer_unavailable", failure.to_string())
}

fn signing_failed(cause: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(
        Kind::Internal,
        "signing_failed",
        "the token could not be signed; the log has the cause under this id",
    )
    .because(cause)
}

/// The published document as last read, with the keys of other servers, so that verifiers get the
/// same keys here as at the place of publication.
async fn jwks(State(issuer): State<Arc<Issuer>>, request: HeaderMap) -> Result<Response, Error> {
    issuer.keys.current_keys().loaded().await;
    let Some(published) = issuer.keys.document() else {
        let kind = Kind::Unavailable {
            retry_after: Duration::from_secs(10),
        };
        return Err(Error::new(
            kind,
            "no_jwks",
            "the published keys could not be read yet; the server's log says why",
        ));
    };
    Ok(public_document::answer(
        &request,
        "application/json",
        published.etag.0.trim_matches('"'),
        issuer.cache_time,
        published.document.to_bytes(),
    ))
}

/// Says that the process answers, and its version. Readiness is reported elsewhere.
async fn health() -> Json<Health> {
    Json(Health {
        commit: version::COMMIT,
        ok: true,
        version: version::VERSION,
    })
}

#[derive(Serialize)]
struct Health {
    commit: &'static str,
    ok: bool,
    version: &'static str,
}
