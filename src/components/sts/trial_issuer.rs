//! An issuer for experiments: makes a key, prints a token, and publishes what a verifier needs. Its
//! tokens expire.
//!
//! | Route | Answer |
//! |---|---|
//! | `GET /jwks` | the public key |
//! | `GET /.well-known/openid-configuration` | the discovery document |
//! | `GET /token?sub=…&aud=…` | a new token as text |
//!
//! Anybody who reaches the listener gets a token, so it must stay on loopback.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{Query, State},
    response::{IntoResponse, Response},
    routing::get,
};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::json;

use crate::{
    config::KeySpec,
    http::{self, error::Kind, json::Json},
    keys::{InvalidKeyId, JwkError, PrivateJwk, SignError, Signer},
};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrialSettings {
    pub issuer: String,
    pub subject: String,
    /// If empty, the token has no `aud` claim.
    pub audience: String,
    pub kid: String,
    pub life: Duration,
}

#[derive(Debug, thiserror::Error)]
pub enum TrialError {
    #[error(transparent)]
    Id(#[from] InvalidKeyId),
    #[error("the key cannot be made")]
    Key(#[from] JwkError),
}

#[derive(Debug)]
pub struct TrialIssuer {
    settings: TrialSettings,
    signer: Signer,
}

impl TrialIssuer {
    /// Makes an RSA key of 2048 bits, which takes a moment.
    pub fn new(settings: TrialSettings) -> Result<Self, TrialError> {
        let key = PrivateJwk::generate(settings.kid.parse()?, KeySpec::Rs256 { bits: 2048 })?;
        Ok(Self {
            settings,
            signer: Signer::new(&key)?,
        })
    }

    /// A token with the subject and audience of the settings.
    pub fn token(&self, now: Timestamp) -> Result<String, SignError> {
        self.token_for(&self.settings.subject, &self.settings.audience, now)
    }

    fn token_for(
        &self,
        subject: &str,
        audience: &str,
        now: Timestamp,
    ) -> Result<String, SignError> {
        let now = now.as_second();
        let life = i64::try_from(self.settings.life.as_secs()).unwrap_or(i64::MAX);
        let mut claims = json!({
            "iss": self.settings.issuer,
            "sub": subject,
            "iat": now,
            "exp": now.saturating_add(life),
            "jti": uuid::Uuid::new_v4().to_string(),
        });
        if !audience.is_empty() {
            claims["aud"] = audience.into();
        }
        self.signer.sign(claims.to_string().as_bytes())
    }
}

pub fn router(issuer: Arc<TrialIssuer>) -> Router {
    Router::new()
        .route("/jwks", get(jwks))
        .route("/.well-known/openid-configuration", get(configuration))
        .route("/token", get(token))
        .with_state(issuer)
}

async fn jwks(State(issuer): State<Arc<TrialIssuer>>) -> Response {
    Json(json!({"keys": [issuer.signer.public().to_value()]})).into_response()
}

async fn configuration(State(issuer): State<Arc<TrialIssuer>>) -> Response {
    let name = &issuer.settings.issuer;
    let base = name.strip_suffix('/').unwrap_or(name);
    Json(json!({
        "issuer": name,
        "jwks_uri": format!("{base}/jwks"),
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["RS256"],
    }))
    .into_response()
}

#[derive(Deserialize)]
struct Wanted {
    sub: Option<String>,
    aud: Option<String>,
}

async fn token(
    State(issuer): State<Arc<TrialIssuer>>,
    Query(wanted): Query<Wanted>,
) -> Result<String, http::Error> {
    let subject = wanted.sub.as_ref().unwrap_or(&issuer.settings.subject);
    let audience = wanted.aud.as_ref().unwrap_or(&issuer.settings.audience);
    issuer
        .token_for(subject, audience, Timestamp::now())
        .map_err(|cause| http::Error::new(Kind::Internal, "internal", "cannot sign").because(cause))
}
