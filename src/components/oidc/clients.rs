//! tsidp's `/clients/`, for callers with the grant `allow_admin_ui`, and what its pages are for.

use ::http::{Method, StatusCode, request::Parts};
use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use jiff::Timestamp;
use tailbone_oidc::{
    OidcError,
    client::{ClientMetadata, redirect},
    provider::Registrar,
};

use super::{
    answers,
    forms::is_same_origin,
    requests::{form, not_granted, privileged},
    routes::Oidc,
};
use crate::{audit, telemetry::audit::Decision};

pub(super) const CLIENTS_PATH: &str = "/clients/";

/// tsidp's `/clients/`, and what its pages are for.
pub(super) async fn administered(
    oidc: &Oidc,
    request: &Parts,
    body: Body,
    below: Option<&str>,
    internet: bool,
) -> Result<Response, OidcError> {
    let (caller, rules) = privileged(oidc, request, internet).await?;
    if !rules.allow_admin_ui() {
        return Err(not_granted());
    }
    let reads = matches!(request.method, Method::GET | Method::HEAD);
    if !reads && !is_same_origin(oidc, request) {
        let words = "cross-origin request";
        return Err(OidcError::new(
            StatusCode::FORBIDDEN,
            "access_denied",
            words,
        ));
    }
    let missing = || OidcError::new(StatusCode::NOT_FOUND, "not_found", "client not found");
    let provider = &oidc.provider;
    let now = Timestamp::now();
    match (below, &request.method) {
        (None, _) => Err(OidcError::new(
            StatusCode::NOT_FOUND,
            "not_found",
            "not found",
        )),
        (Some(""), &Method::GET) => {
            let clients = provider.list_clients(now).await?;
            Ok(answers::json(StatusCode::OK, &clients))
        }
        (Some("new"), &Method::POST) => {
            let form = form(body).await?;
            let name = form.get("name").unwrap_or_default();
            let uris = lines(form.get("redirect_uri").unwrap_or_default());
            if name.is_empty() || uris.is_empty() {
                return Err(OidcError::invalid_request("missing redirect_uri or name"));
            }
            for uri in &uris {
                redirect::check(uri)
                    .map_err(|why| OidcError::invalid_request(format!("redirect_uri {why}")))?;
            }
            let metadata = ClientMetadata {
                client_name: name.to_owned(),
                redirect_uris: uris,
                ..ClientMetadata::default()
            };
            let client = provider
                .add(metadata, Registrar::Admin, &caller, now)
                .await?;
            audit!(
                Decision::Allowed,
                "added client",
                client_id = client.client_id
            );
            Ok(answers::json(StatusCode::OK, &client))
        }
        (Some(""), _) | (Some("new"), _) => Err(OidcError::method_not_allowed()),
        (Some(id), &Method::GET) => {
            let client = provider.listed_client(id, now).await?.ok_or_else(missing)?;
            Ok(answers::json(StatusCode::OK, &client))
        }
        (Some(id), &Method::DELETE) => {
            if !provider.remove_client(id, now).await? {
                return Err(missing());
            }
            audit!(
                Decision::Allowed,
                "removed client",
                client_id = tailbone_values::excerpt(id)
            );
            Ok(StatusCode::NO_CONTENT.into_response())
        }
        (Some(_), _) => Err(OidcError::method_not_allowed()),
    }
}

/// The lines of a text, trimmed, without empty ones.
fn lines(text: &str) -> Vec<String> {
    let lines = text.lines().map(str::trim);
    lines
        .filter(|line| !line.is_empty())
        .map(str::to_owned)
        .collect()
}
