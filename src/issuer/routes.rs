//! The issuer's routes: thin; they bring together caller, claims and key.

use std::{sync::Arc, time::Duration};

use ::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::{
    Json, Router,
    extract::State,
    response::{IntoResponse, Response},
    routing::{any, get, post},
};
use jiff::Timestamp;
use uuid::Uuid;

use super::{Claims, TokenRules};
use crate::{
    audit,
    http::{Error, error::Kind},
    identity::{Caller, Refusal},
    keys::{self, KeyRing},
    telemetry::audit::Decision,
};

/// What the routes need.
#[derive(Debug, Clone)]
pub struct Issuer {
    pub rules: Arc<TokenRules>,
    pub keys: Arc<KeyRing>,
}

pub fn router(issuer: Issuer) -> Router {
    let only = |allow: &'static str| any(move || async move { Error::method_not_allowed(allow) });
    Router::new()
        .route("/issue", post(issue).fallback_service(only("POST")))
        .route(
            "/.well-known/jwks.json",
            get(jwks).fallback_service(only("GET, HEAD")),
        )
        .route("/_healthz", get(health).fallback_service(only("GET, HEAD")))
        .with_state(issuer)
}

async fn issue(
    State(issuer): State<Issuer>,
    caller: Result<Caller, Error>,
) -> Result<Response, Error> {
    let caller = caller.inspect_err(|error| {
        audit!(
            Decision::Refused,
            "issue",
            reason = error.code,
            cause = error.message
        );
    })?;
    match token(&issuer, &caller).await {
        Ok(token) => {
            let no_store = [(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))];
            Ok((no_store, Json(Answer { token })).into_response())
        }
        Err(error) => {
            audit!(Decision::Refused, "issue", caller = %caller, reason = error.code);
            Err(error)
        }
    }
}

#[derive(serde::Serialize)]
struct Answer {
    token: String,
}

async fn token(issuer: &Issuer, caller: &Caller) -> Result<String, Error> {
    let signer = issuer.keys.signer(Timestamp::now()).map_err(no_key)?;
    let claims = Claims::new(caller, &issuer.rules, Timestamp::now(), Uuid::new_v4())
        .ok_or(Refusal::Funnel)?;
    let bytes = serde_json::to_vec(&claims).map_err(internal)?;
    let token = signer.sign(&bytes).await.map_err(signing)?;
    audit!(
        Decision::Allowed,
        "issued token",
        caller = %caller,
        sub = claims.subject(),
        kid = signer.kid(),
        jti = claims.jti()
    );
    Ok(token)
}
