//! `/authorize` and the answer of its page: where people log in.

use ::http::{HeaderValue, Method, StatusCode, header, request::Parts};
use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use jiff::Timestamp;
use tailbone_oidc::{
    OidcError, Params,
    authorize::Answer,
    provider::{
        AuthorizeRequest, Authorized, Browser, Caller, Confirmation, NewSession, Question,
        SESSION_LIFETIME,
    },
};

use super::{
    answers,
    callers::KnownCaller,
    counts::{self, Outcome},
    denied,
    forms::{decision, form_token, is_own_form, own_path, set_form_token},
    pages::{self, QuestionForm},
    requests::{SESSION_COOKIE, cookie, form, identified, params_of, set_cookie},
    routes::Oidc,
};
use crate::{audit, config::OidcErrorFormat as ErrorFormat, telemetry::audit::Decision};

pub(super) const CONFIRM_PATH: &str = "/authorize/confirm";

pub(super) async fn authorize(oidc: &Oidc, request: &Parts, body: Body) -> Response {
    let shown = match params_of(request, body).await {
        Ok(params) => authorized(oidc, request, &params, None).await,
        Err(error) => Err(error),
    };
    shown.unwrap_or_else(|error| answers::error_page(oidc.errors, &request.headers, &error))
}

/// The person's answer to the page. It counts if the page was shown to this very browser, which has
/// the page's token as a cookie too; otherwise the page is shown again.
pub(super) async fn confirm(oidc: &Oidc, request: &Parts, body: Body) -> Response {
    let shown = async {
        if request.method != Method::POST {
            return Err(OidcError::method_not_allowed());
        }
        let form = form(body).await?;
        let params = Params::parse(form.get("request").unwrap_or_default().as_bytes());
        let confirmation = decision(&form).filter(|_| is_own_form(oidc, request, &form));
        authorized(oidc, request, &params, confirmation).await
    };
    let shown = shown.await;
    shown.unwrap_or_else(|error| answers::error_page(oidc.errors, &request.headers, &error))
}

async fn authorized(
    oidc: &Oidc,
    request: &Parts,
    params: &Params,
    confirmation: Option<Confirmation>,
) -> Result<Response, OidcError> {
    let KnownCaller { caller, .. } = identified(oidc, request).await?;
    let navigates = request
        .headers
        .get("sec-fetch-mode")
        .is_some_and(|mode| mode == "navigate");
    let wanted = AuthorizeRequest {
        params,
        caller: &caller,
        browser: Browser {
            cookie: cookie(&request.headers, SESSION_COOKIE),
            navigates,
        },
        confirmation,
    };
    let now = Timestamp::now();
    match oidc.provider.authorize(wanted, now).await? {
        Authorized::Ask(question) => ask(oidc, request, &question),
        Authorized::Denied(denied) => {
            let (login, client_id) = (&denied.login, &denied.client_id);
            let rule = &denied.denial.rule;
            audit!(Decision::Refused, "login", caller = %login, client_id = %client_id, rule = %rule);
            Ok(denied::page(&denied))
        }
        Authorized::Answer {
            answer,
            granted,
            session,
        } => {
            let login = match &caller {
                Caller::Person(identity) => identity.login.as_str(),
                Caller::Machine { node, .. } => node,
                Caller::Unknown => "",
            };
            let client_id = params.get("client_id");
            if granted {
                audit!(Decision::Allowed, "login", caller = login, client_id);
            } else {
                audit!(Decision::Refused, "login", caller = login, client_id);
            }
            let refused = (!granted).then(|| counts::refused_by(&answer));
            let mut response = match answer {
                Answer::Redirect(to) => redirect(request, &to),
                Answer::Form { action, fields } => pages::posted_form(&action, &fields),
            };
            if let Some(refused) = refused {
                counts::mark(&mut response, refused);
            }
            if let Some(NewSession { cookie }) = session {
                let lax = format!("SameSite=Lax; Max-Age={SESSION_LIFETIME}");
                set_cookie(&mut response, SESSION_COOKIE, &cookie, &lax);
            }
            Ok(response)
        }
    }
}

pub(super) fn redirect(request: &Parts, to: &str) -> Response {
    let Ok(to) = HeaderValue::try_from(to) else {
        let error = OidcError::server_error("invalid redirect URI");
        return answers::error(ErrorFormat::Json, &request.headers, &error);
    };
    let status = if request.method == Method::POST {
        StatusCode::SEE_OTHER
    } else {
        StatusCode::FOUND
    };
    let headers = [
        (header::LOCATION, to),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ];
    (status, headers).into_response()
}

fn ask(oidc: &Oidc, request: &Parts, question: &Question) -> Result<Response, OidcError> {
    let token = form_token(request)?;
    let form = QuestionForm {
        action: &own_path(&oidc.provider.settings.issuer, CONFIRM_PATH),
        request: &question.request,
        token: &token,
    };
    let mut response = pages::question(question, &form);
    counts::mark(&mut response, Outcome::Asked);
    set_form_token(&mut response, &token);
    Ok(response)
}
