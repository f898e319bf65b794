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
    discovery::AUTHORIZE_PATH,
    provider::{
        AuthorizeRequest, Authorized, Browser, Caller, Confirmation, NewSession, Question,
        SESSION_LIFETIME,
    },
};

use super::{
    answers,
    callers::KnownCaller,
    counts::{self, Outcome},
    forms::{decision, form_token, is_own_form, is_same_origin, own_path, set_form_token},
    pages::{self, Place, QuestionForm},
    requests::{
        SESSION_COOKIE, cookie, form, identified, is_navigation, params_of, request_id, set_cookie,
    },
    routes::Oidc,
};
use crate::{audit, config::OidcErrorFormat as ErrorFormat, telemetry::audit::Decision};

pub(super) const CONFIRM_PATH: &str = "/authorize/confirm";

/// The longest query that every browser and proxy takes.
const MAX_QUERY: usize = 4096;

pub(super) async fn authorize(oidc: &Oidc, request: &Parts, body: Body) -> Response {
    let shown = match params_of(request, body).await {
        Ok(params) => match as_own(oidc, request, &params) {
            Some(response) => Ok(response),
            None => authorized(oidc, request, &params, None).await,
        },
        Err(error) => Err(error),
    };
    shown.unwrap_or_else(|error| answers::error_page(oidc.errors, request, Place::Login, &error))
}

/// Browsers send no cookie with the form of another site, so that a session seems to be missing.
/// Sent once more, as a link or as a form of ours, the request brings it along.
fn as_own(oidc: &Oidc, request: &Parts, params: &Params) -> Option<Response> {
    let cookie = cookie(&request.headers, SESSION_COOKIE);
    let foreign = request.method == Method::POST && !is_same_origin(oidc, request);
    if !foreign || cookie.is_some() || !is_navigation(request) {
        return None;
    }
    let path = own_path(&oidc.provider.settings.issuer, AUTHORIZE_PATH);
    let query = params.encode();
    if query.len() > MAX_QUERY {
        return Some(pages::posted_form(&path, &params.pairs()));
    }
    Some(redirect(request, &format!("{path}?{query}")))
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
    shown.unwrap_or_else(|error| answers::error_page(oidc.errors, request, Place::Login, &error))
}

async fn authorized(
    oidc: &Oidc,
    request: &Parts,
    params: &Params,
    confirmation: Option<Confirmation>,
) -> Result<Response, OidcError> {
    let KnownCaller { caller, .. } = identified(oidc, request).await?;
    let wanted = AuthorizeRequest {
        params,
        caller: &caller,
        browser: Browser {
            cookie: cookie(&request.headers, SESSION_COOKIE),
            navigates: is_navigation(request),
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
            Ok(pages::denied(&denied, request_id(request)))
        }
        Authorized::Machine(machine) => {
            let client_id = &machine.client_id;
            audit!(Decision::Refused, "login", caller = name_of(&caller), client_id = %client_id);
            Ok(pages::machine(&machine, request_id(request)))
        }
        Authorized::Answer {
            answer,
            granted,
            session,
        } => {
            let login = name_of(&caller);
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

/// As the audit names them.
fn name_of(caller: &Caller) -> &str {
    match caller {
        Caller::Person(identity) => &identity.login,
        Caller::Machine { node, .. } => node,
        Caller::Unknown => "",
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
