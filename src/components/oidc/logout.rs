//! Signing out: the endpoint to which applications send the browser (OpenID Connect RP-Initiated
//! Logout 1.0), and the answer of its page.
//!
//! The session is the browser's, by its cookie. Who calls by the network has no say in it, so
//! signing out works through Funnel as well, where nobody can log in.

use ::http::{Method, request::Parts};
use axum::{body::Body, response::Response};
use jiff::Timestamp;
use tailbone_oidc::{
    OidcError, Params,
    discovery::END_SESSION_PATH,
    provider::{Caller, Confirmation, SignOut, SignOutRequest},
};

use super::{
    answers,
    forms::{decision, form_token, is_own_form, is_same_origin, own_path, set_form_token},
    login::redirect,
    pages::{self, Place, QuestionForm},
    requests::{SESSION_COOKIE, caller_for_secrets, cookie, form, params_of, set_cookie},
    routes::Oidc,
};
use crate::{audit, telemetry::audit::Decision};

pub(super) const SIGN_OUT_PATH: &str = "/logout/confirm";

/// A request of an application, or of a person who typed the address.
pub(super) async fn end_session(
    oidc: &Oidc,
    request: &Parts,
    body: Body,
    internet: bool,
) -> Response {
    let shown = async {
        // A program that only looks whether something is there must not sign anybody out.
        if request.method == Method::HEAD {
            return Err(OidcError::method_not_allowed());
        }
        let params = params_of(request, body).await?;
        // Browsers send no cookie with the form of another site. Sent once more by a page of ours,
        // the form brings it along.
        let no_cookie = cookie(&request.headers, SESSION_COOKIE).is_none();
        if request.method == Method::POST && no_cookie && !is_same_origin(oidc, request) {
            let action = own_path(&oidc.provider.settings.issuer, END_SESSION_PATH);
            return Ok(pages::posted_form(&action, &params.pairs()));
        }
        signed_out(oidc, request, &params, false, internet).await
    };
    let shown = shown.await;
    shown.unwrap_or_else(|error| answers::error_page(oidc.errors, request, Place::SignOut, &error))
}

/// The person's answer to the page. One that comes from elsewhere shows the page again.
pub(super) async fn confirm(oidc: &Oidc, request: &Parts, body: Body, internet: bool) -> Response {
    let shown = async {
        if request.method != Method::POST {
            return Err(OidcError::method_not_allowed());
        }
        let form = form(body).await?;
        let params = Params::parse(form.get("request").unwrap_or_default().as_bytes());
        match decision(&form).filter(|_| is_own_form(oidc, request, &form)) {
            Some(Confirmation::Cancelled) => Ok(pages::still_signed_in()),
            decision => {
                let confirmed = decision == Some(Confirmation::Confirmed);
                signed_out(oidc, request, &params, confirmed, internet).await
            }
        }
    };
    let shown = shown.await;
    shown.unwrap_or_else(|error| answers::error_page(oidc.errors, request, Place::SignOut, &error))
}

async fn signed_out(
    oidc: &Oidc,
    request: &Parts,
    params: &Params,
    confirmed: bool,
    internet: bool,
) -> Result<Response, OidcError> {
    let caller = caller_for_secrets(oidc, request, internet).await?;
    let wanted = SignOutRequest {
        params,
        cookie: cookie(&request.headers, SESSION_COOKIE),
        confirmed,
    };
    match oidc.provider.sign_out(wanted, Timestamp::now()).await? {
        SignOut::Ask => {
            let token = form_token(request)?;
            let form = QuestionForm {
                action: &own_path(&oidc.provider.settings.issuer, SIGN_OUT_PATH),
                request: &params.encode(),
                token: &token,
            };
            let login = match &caller {
                Caller::Person(identity) => Some(identity.login.as_str()),
                _ => None,
            };
            let mut response = pages::sign_out_question(login, &form);
            set_form_token(&mut response, &token);
            Ok(response)
        }
        SignOut::Done { return_to, subject } => {
            if let Some(subject) = subject {
                audit!(Decision::Allowed, "signed out", caller = subject);
            }
            let mut response = match return_to {
                Some(to) => redirect(request, &to),
                None => pages::signed_out(),
            };
            set_cookie(&mut response, SESSION_COOKIE, "", "SameSite=Lax; Max-Age=0");
            Ok(response)
        }
    }
}
