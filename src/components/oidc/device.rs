//! Logins of devices without a browser (RFC 8628): where a device begins, and the page on which a
//! person types its code.
//!
//! Invariants
//! - `GET` looks no code up: a page of somebody else can neither try codes nor use up a person's
//!   tries.
//! - A code is looked up, and a decision counts, if the form was shown to this very browser.
//! - The page shows the code again, so that the person compares it with the device (section 5.4).

use ::http::{Method, StatusCode, request::Parts};
use axum::{body::Body, response::Response};
use jiff::Timestamp;
use tailbone_oidc::{
    OidcError,
    claims::Identity,
    discovery::DEVICE_PATH,
    provider::{Caller, Decided},
};

use super::{
    answers,
    callers::KnownCaller,
    forms::{decision, form_token, is_own_form, own_path, set_form_token},
    pages::{DevicePages, Place},
    requests::{authorization, caller_for_secrets, form, identified, query},
    routes::Oidc,
};
use crate::{audit, telemetry::audit::Decision};

/// `POST /device_authorization`.
pub(super) async fn begin(
    oidc: &Oidc,
    request: &Parts,
    body: Body,
    internet: bool,
) -> Result<Response, OidcError> {
    if request.method != Method::POST {
        return Err(OidcError::method_not_allowed());
    }
    let form = form(body).await?;
    let caller = caller_for_secrets(oidc, request, internet).await?;
    let authorization = authorization(&request.headers);
    let now = Timestamp::now();
    let begun = oidc
        .provider
        .start_device(&form, authorization, &caller, now);
    Ok(answers::json(StatusCode::OK, &begun.await?))
}

/// `/device`.
pub(super) async fn page(oidc: &Oidc, request: &Parts, body: Body) -> Response {
    let shown = answer(oidc, request, body).await;
    shown.unwrap_or_else(|error| answers::error_page(oidc.errors, request, Place::Device, &error))
}

async fn answer(oidc: &Oidc, request: &Parts, body: Body) -> Result<Response, OidcError> {
    let form = match request.method {
        Method::GET | Method::HEAD => query(request),
        Method::POST => form(body).await?,
        _ => return Err(OidcError::method_not_allowed()),
    };
    form.check_duplicates()?;
    let KnownCaller { caller, .. } = identified(oidc, request).await?;
    let person = person_of(caller)?;
    let token = form_token(request)?;
    let page = DevicePages {
        action: own_path(&oidc.provider.settings.issuer, DEVICE_PATH),
        token: &token,
        person: &person,
    };
    let typed = form.get("user_code").unwrap_or_default();
    let ours = request.method == Method::POST && is_own_form(oidc, request, &form);
    let now = Timestamp::now();
    let mut response = if !ours || typed.is_empty() {
        page.entry(typed)
    } else if let Some(confirmation) = decision(&form) {
        let decided = oidc
            .provider
            .decide_device(typed, &person, confirmation, now);
        let decided = decided.await?;
        audit_decision(&decided, &person);
        page.end(&decided)
    } else {
        let question = oidc.provider.device_question(typed, &person, now);
        match question.await? {
            Some(question) => page.question(&question),
            None => page.unknown(typed),
        }
    };
    set_form_token(&mut response, &token);
    Ok(response)
}

fn person_of(caller: Caller) -> Result<Box<Identity>, OidcError> {
    match caller {
        Caller::Person(person) => Ok(person),
        Caller::Machine { .. } => {
            let words = "tagged devices have no user who could log in";
            Err(OidcError::new(
                StatusCode::FORBIDDEN,
                "access_denied",
                words,
            ))
        }
        Caller::Unknown => {
            let words = "failed to authenticate user with WhoIs";
            Err(OidcError::server_error(words))
        }
    }
}

fn audit_decision(decided: &Decided, person: &Identity) {
    let caller = person.login.as_str();
    match decided {
        Decided::Approved { client_id } => {
            audit!(Decision::Allowed, "device login", caller, client_id);
        }
        Decided::Cancelled { client_id } | Decided::NotAllowed { client_id } => {
            audit!(Decision::Refused, "device login", caller, client_id);
        }
        Decided::Denied { client_id, denial } => {
            let rule = denial.rule.as_str();
            audit!(Decision::Refused, "device login", caller, client_id, rule);
        }
        Decided::Unknown => audit!(Decision::Refused, "device login", caller),
    }
}
