//! A JWT with a short life that tells the backend about the caller. Signing happens elsewhere: a
//! [`SignFn`] is passed in.
//!
//! The key may be the issuer's, so our tokens must not be mistaken for the issuer's: otherwise any
//! backend could pass for the caller elsewhere. Therefore they have their own type and `iss` (RFC
//! 8725, sections 3.8 and 3.11), and an `aud` that the operator set: where an upstream names no
//! host, the caller could choose it.

use std::sync::Arc;

use ::http::HeaderValue;
use futures_util::{FutureExt as _, future::BoxFuture};
use jiff::Timestamp;
use serde::Serialize;
use uuid::Uuid;

use super::Admitted;
use crate::{config, identity::Caller, part::Context};

/// Signs claims (a JSON object) with [`BACKEND_TOKEN_TYPE`] as the type, and returns the token.
pub type SignFn =
    Arc<dyn Fn(Vec<u8>) -> BoxFuture<'static, Result<String, BackendTokenError>> + Send + Sync>;

/// The `typ` of these tokens.
pub const BACKEND_TOKEN_TYPE: &str = "gate+jwt";

/// Why a token could not be made.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BackendTokenError(pub String);

/// Signs with the key that the issuer would use.
pub(super) fn sign_with_active_key(context: &Context) -> SignFn {
    let (keys, queue) = (context.keys.clone(), context.signing.clone());
    Arc::new(move |claims| {
        let (keys, queue) = (keys.clone(), queue.clone());
        async move {
            let failed = |why: &dyn std::fmt::Display| BackendTokenError(why.to_string());
            let signer = keys.current_keys().loaded().await.signer();
            let signer = signer.map_err(|why| failed(&why))?;
            queue
                .sign_as(&signer, BACKEND_TOKEN_TYPE, &claims)
                .await
                .map_err(|why| failed(&why))
        }
        .boxed()
    })
}

/// Makes tokens for backends.
pub(super) struct BackendTokens {
    settings: config::GateTokenSettings,
    sign: SignFn,
}

impl std::fmt::Debug for BackendTokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokens")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

#[derive(Serialize)]
struct BackendClaims<'a> {
    iss: &'a str,
    sub: String,
    aud: &'a str,
    iat: i64,
    nbf: i64,
    exp: i64,
    jti: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    login: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    tags: &'a [String],
    node: &'a str,
    tailnet: &'a str,
}

/// Seconds by which a backend's clock may be behind ours.
const CLOCK_SKEW: i64 = 30;

impl BackendTokens {
    pub(super) fn new(settings: &config::GateTokenSettings, sign: SignFn) -> Self {
        Self {
            settings: settings.clone(),
            sign,
        }
    }

    /// A token for an identified caller; `None` for others. `host` is the audience, if the setting
    /// names none.
    pub(super) async fn token(
        &self,
        admitted: &Admitted,
        host: &str,
        now: Timestamp,
    ) -> Result<Option<HeaderValue>, BackendTokenError> {
        let Some(claims) = self.claims(admitted, host, now)? else {
            return Ok(None);
        };
        let token = (self.sign)(claims).await?;
        let mut value =
            HeaderValue::try_from(token).map_err(|error| BackendTokenError(error.to_string()))?;
        value.set_sensitive(true);
        Ok(Some(value))
    }

    fn claims(
        &self,
        admitted: &Admitted,
        host: &str,
        now: Timestamp,
    ) -> Result<Option<Vec<u8>>, BackendTokenError> {
        let Some(visitor) = admitted.visitor() else {
            return Ok(None);
        };
        let aud = self.settings.audience.as_deref().unwrap_or(host);
        if aud.is_empty() {
            // A token without an audience would be valid for everybody.
            return Err(BackendTokenError(
                "the request names no host, and gate.tokenAudience is not set".into(),
            ));
        }
        let (sub, login, name, tags) = match visitor.caller_any_tailnet() {
            Caller::User(user) => (
                format!("user-{}", user.id),
                Some(user.login.as_str()),
                Some(user.display_name.as_str()),
                &[][..],
            ),
            Caller::Machine(machine) => (
                format!("node-{}", machine.id),
                None,
                None,
                machine.tags.as_slice(),
            ),
            Caller::Funnel(_) => return Ok(None),
        };
        let iat = now.as_second();
        let life = i64::try_from(self.settings.life.as_secs()).unwrap_or(i64::MAX);
        let claims = BackendClaims {
            iss: &self.settings.issuer,
            sub,
            aud,
            iat,
            nbf: iat.saturating_sub(CLOCK_SKEW),
            exp: iat.saturating_add(life),
            jti: Uuid::new_v4().simple().to_string(),
            login,
            name,
            tags,
            node: visitor.node_name(),
            tailnet: visitor.tailnet(),
        };
        serde_json::to_vec(&claims)
            .map(Some)
            .map_err(|error| BackendTokenError(error.to_string()))
    }
}
