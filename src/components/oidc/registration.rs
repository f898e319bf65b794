//! `/register`, for callers with the grant `allow_dcr` (RFC 7591), and what a client that was
//! registered there does with its registration (RFC 7592), at the address and with the token that
//! it was told.
//!
//! The token is enough: whoever lost the grant to register clients still keeps the ones there are.
//! There is nothing of this through Funnel.

use ::http::{Method, StatusCode, request::Parts};
use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use jiff::Timestamp;
use tailbone_oidc::{OidcError, provider::BearerError};

use super::{
    answers,
    requests::{bearer, identified, not_granted, not_over_funnel, privileged, read},
    routes::Oidc,
};
use crate::{audit, telemetry::audit::Decision};

/// The route, and what stands before the client's id in it.
pub(super) const PATH: &str = "/register/{id}";
pub(super) const BELOW: &str = "/register/";

pub(super) async fn register(
    oidc: &Oidc,
    request: &Parts,
    body: Body,
    internet: bool,
) -> Result<Response, OidcError> {
    let (caller, rules) = privileged(oidc, request, internet).await?;
    if request.method != Method::POST {
        return Err(OidcError::method_not_allowed());
    }
    if !rules.allow_dcr() {
        return Err(not_granted());
    }
    let body = read(body).await?;
    let client = oidc
        .provider
        .register(&body, &caller, Timestamp::now())
        .await?;
    audit!(
        Decision::Allowed,
        "registered client",
        client_id = client.client_id
    );
    Ok(answers::json(StatusCode::CREATED, &client))
}

pub(super) async fn answer(
    oidc: &Oidc,
    request: &Parts,
    body: Body,
    id: &str,
    internet: bool,
) -> Response {
    let answered = managed(oidc, request, body, id, internet).await;
    answered.unwrap_or_else(|error| answers::bearer_error(oidc.errors, &request.headers, &error))
}

async fn managed(
    oidc: &Oidc,
    request: &Parts,
    body: Body,
    id: &str,
    internet: bool,
) -> Result<Response, BearerError> {
    if internet {
        return Err(not_over_funnel().into());
    }
    // Counts the request.
    identified(oidc, request).await?;
    let provider = &oidc.provider;
    let token = bearer(&request.headers);
    let now = Timestamp::now();
    match request.method {
        Method::GET | Method::HEAD => {
            let client = provider.registration(id, token, now).await?;
            Ok(answers::json(StatusCode::OK, &client))
        }
        Method::PUT => {
            let body = read(body).await?;
            let client = provider.replace_registration(id, token, &body, now).await?;
            let client_id = &client.client_id;
            audit!(Decision::Allowed, "changed its registration", client_id);
            Ok(answers::json(StatusCode::OK, &client))
        }
        Method::DELETE => {
            provider.remove_registration(id, token, now).await?;
            audit!(
                Decision::Allowed,
                "removed its registration",
                client_id = id
            );
            Ok(StatusCode::NO_CONTENT.into_response())
        }
        _ => Err(OidcError::method_not_allowed().into()),
    }
}
