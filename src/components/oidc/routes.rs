//! The endpoints, with tsidp's checks in its order.
//!
//! | Request | On the tailnet | Through Funnel |
//! |---|---|---|
//! | `GET` of what is below `/.well-known/` | the documents | the same, without registration |
//! | `GET`, `POST /authorize` | a code, a question or an error | 401 |
//! | `POST /authorize/confirm` | the answer of the question's page | 401 |
//! | `GET`, `POST /logout`, `POST /logout/confirm` | the end of the browser's session | the same |
//! | `POST /par`, `/token`, `/introspect`, `/revoke` | as the standards say | the same |
//! | `GET`, `POST /userinfo` | claims about the person | the same |
//! | `POST /device_authorization` | codes for a device | the same |
//! | `GET`, `POST /device` | the page that takes a device's code | 401 |
//! | `POST /register` | a new client, with `allow_dcr` | 401 |
//! | `GET`, `PUT`, `DELETE` below `/register/` | a client's own registration, by its token | 401 |
//! | `/clients/` | tsidp's API, with `allow_admin_ui` | 401 |
//!
//! Everything else is refused as tsidp's pages are: 403 to those who do not administer, 404 to
//! those who do.

use std::sync::Arc;

use ::http::{HeaderMap, HeaderValue, Method, StatusCode, header, request::Parts};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use axum::{
    Router,
    body::{Body, to_bytes},
    extract::{Request, State},
    response::{IntoResponse, Response},
    routing::{MethodRouter, any},
};
use jiff::Timestamp;
use serde_json::json;
use tailbone_oidc::{
    OidcError, Params,
    authorize::Answer,
    capability::Rules,
    client::ClientMetadata,
    discovery::{
        AUTHORIZE_PATH, DEVICE_AUTHORIZATION_PATH, DEVICE_PATH, END_SESSION_PATH, INTROSPECT_PATH,
        JWKS_PATH, Metadata, OAUTH_PATH, OPENID_PATH, PAR_PATH, REGISTER_PATH, REVOKE_PATH, Reader,
        TOKEN_PATH, USERINFO_PATH,
    },
    provider::{
        AuthorizeRequest, Authorized, Browser, Caller, Confirmation, NewSession, Provider,
        Registrar, SESSION_LIFETIME, UserInfo,
    },
    store::random_token,
};

use super::{
    answers::{self, JSON},
    callers::{KnownCaller, known_caller},
    counts::{self, Outcome},
    denied, device,
    groups::Groups,
    keys::ServedKeys,
    logout::{self, SIGN_OUT_PATH},
    pages::{self, QuestionForm},
    par, registration,
};
use crate::{
    audit,
    config::OidcErrorFormat as ErrorFormat,
    http::{form::is_form, host::requested_host},
    telemetry::{audit::Decision, meter::Meter},
    web::Origin,
};

pub(super) const CONFIRM_PATH: &str = "/authorize/confirm";
const CLIENTS_PATH: &str = "/clients/";

/// The cookies. Their names keep them to this host and to TLS.
pub(super) const SESSION_COOKIE: &str = "__Host-oidc-session";
const CONFIRM_COOKIE: &str = "__Host-oidc-confirm";

/// The largest form or registration.
const MAX_BODY: usize = 256 << 10;

/// The state of the routes.
#[derive(Debug)]
pub struct Oidc {
    pub provider: Provider,
    /// Whose values are the rules of callers.
    pub capability: Arc<str>,
    pub groups: Arc<Groups>,
    pub errors: ErrorFormat,
    /// How long verifiers may cache the published keys.
    pub cache_time: std::time::Duration,
    pub served_keys: ServedKeys,
    pub meter: Meter,
}

pub fn router(oidc: Arc<Oidc>) -> Router {
    routes(any(on_the_tailnet), oidc)
}

/// What applications outside of the tailnet need.
pub fn internet_router(oidc: Arc<Oidc>) -> Router {
    routes(any(on_the_internet), oidc)
}

/// Each path has its route, for traces; what becomes of a request is one table for all of them.
fn routes(handler: MethodRouter<Arc<Oidc>>, oidc: Arc<Oidc>) -> Router {
    let paths = [
        "/",
        AUTHORIZE_PATH,
        CONFIRM_PATH,
        END_SESSION_PATH,
        SIGN_OUT_PATH,
        PAR_PATH,
        TOKEN_PATH,
        USERINFO_PATH,
        INTROSPECT_PATH,
        REVOKE_PATH,
        DEVICE_AUTHORIZATION_PATH,
        DEVICE_PATH,
        REGISTER_PATH,
        registration::PATH,
        OPENID_PATH,
        OAUTH_PATH,
        JWKS_PATH,
        "/{*path}",
    ];
    let routes = paths.into_iter().fold(Router::new(), |router, path| {
        router.route(path, handler.clone())
    });
    routes.with_state(oidc)
}

async fn on_the_tailnet(State(oidc): State<Arc<Oidc>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    // Tailscale's own proxy marks requests from the internet. Whoever sends the mark themselves
    // loses rights by it, and gains none.
    let marked = parts.headers.get("tailscale-funnel-request");
    let reader = if marked.is_some_and(|mark| !mark.is_empty()) {
        Reader::Internet
    } else {
        Reader::Tailnet
    };
    counted(&oidc, reader, parts, body).await
}

async fn on_the_internet(State(oidc): State<Arc<Oidc>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    counted(&oidc, Reader::Internet, parts, body).await
}

async fn counted(oidc: &Oidc, reader: Reader, request: Parts, body: Body) -> Response {
    let endpoint = counts::endpoint(&request.method, request.uri.path());
    let response = answer(oidc, reader, request, body).await;
    if let Some(endpoint) = endpoint {
        counts::count(&oidc.meter, endpoint, &response);
    }
    response
}

async fn answer(oidc: &Oidc, reader: Reader, request: Parts, body: Body) -> Response {
    let internet = reader == Reader::Internet;
    let preflight = request.method == Method::OPTIONS;
    match request.uri.path() {
        path @ (OPENID_PATH | OAUTH_PATH | JWKS_PATH) => {
            if preflight {
                return answers::preflight("GET, OPTIONS", "*");
            }
            let response = match path {
                JWKS_PATH => oidc.served_keys.answer(oidc, &request.headers).await,
                _ => discovery(oidc, reader, path),
            };
            answers::share(response, "GET, OPTIONS", "*")
        }
        AUTHORIZE_PATH | CONFIRM_PATH | DEVICE_PATH if internet => {
            let words = "not allowed over funnel";
            let refused = OidcError::new(StatusCode::UNAUTHORIZED, "access_denied", words);
            answers::error_page(oidc.errors, &request.headers, &refused)
        }
        AUTHORIZE_PATH => authorize(oidc, &request, body).await,
        CONFIRM_PATH => confirm(oidc, &request, body).await,
        DEVICE_PATH => device::page(oidc, &request, body).await,
        DEVICE_AUTHORIZATION_PATH => {
            if preflight {
                return answers::preflight("POST, OPTIONS", "*");
            }
            let response = match device::begin(oidc, &request, body, internet).await {
                Ok(response) => response,
                Err(error) => answers::error(oidc.errors, &request.headers, &error),
            };
            answers::share(response, "POST, OPTIONS", "*")
        }
        END_SESSION_PATH => logout::end_session(oidc, &request, body, internet).await,
        SIGN_OUT_PATH => logout::confirm(oidc, &request, body, internet).await,
        PAR_PATH => {
            if preflight {
                return answers::preflight("POST, OPTIONS", "*");
            }
            let response = par::push(oidc, &request, body, internet).await;
            answers::share(response, "POST, OPTIONS", "*")
        }
        TOKEN_PATH => {
            if preflight {
                return answers::preflight("POST, OPTIONS", "*");
            }
            let response = token(oidc, &request, body, internet).await;
            answers::share(response, "POST, OPTIONS", "*")
        }
        USERINFO_PATH => {
            let (methods, headers) = ("GET, POST, OPTIONS", "Authorization, Content-Type");
            if preflight {
                return answers::preflight(methods, headers);
            }
            answers::share(userinfo(oidc, &request, body).await, methods, headers)
        }
        INTROSPECT_PATH => {
            let told = introspect(oidc, &request, body, internet).await;
            told.unwrap_or_else(|error| answers::error(oidc.errors, &request.headers, &error))
        }
        REVOKE_PATH => {
            if preflight {
                return answers::preflight("POST, OPTIONS", "*");
            }
            let response = match revoke(oidc, &request, body).await {
                Ok(()) => StatusCode::OK.into_response(),
                Err(error) => answers::error(oidc.errors, &request.headers, &error),
            };
            answers::share(response, "POST, OPTIONS", "*")
        }
        REGISTER_PATH => {
            if preflight && !internet {
                return answers::preflight("POST, OPTIONS", "*");
            }
            let response = match register(oidc, &request, body, internet).await {
                Ok(response) => response,
                Err(error) => answers::error(oidc.errors, &request.headers, &error),
            };
            answers::share(response, "POST, OPTIONS", "*")
        }
        "/clients" => {
            let to = HeaderValue::from_static(CLIENTS_PATH);
            (StatusCode::MOVED_PERMANENTLY, [(header::LOCATION, to)]).into_response()
        }
        path if let Some(id) = path.strip_prefix(registration::BELOW) => {
            let (methods, headers) = ("GET, PUT, DELETE, OPTIONS", "Authorization, Content-Type");
            if preflight && !internet {
                return answers::preflight(methods, headers);
            }
            let response = registration::answer(oidc, &request, body, id, internet).await;
            answers::share(response, methods, headers)
        }
        path => {
            let below = path.strip_prefix(CLIENTS_PATH);
            let told = administered(oidc, &request, body, below, internet).await;
            told.unwrap_or_else(|error| answers::error(oidc.errors, &request.headers, &error))
        }
    }
}

fn discovery(oidc: &Oidc, reader: Reader, path: &str) -> Response {
    let provider = &oidc.provider;
    let metadata = Metadata {
        issuer: &provider.settings.issuer,
        algorithms: provider.keys.algorithms().map(|one| one.as_str()).collect(),
        offers: provider.settings.offers,
        client_documents: provider.foreign.document_hosts.is_some(),
    };
    let document = match path {
        OAUTH_PATH => metadata.oauth(reader),
        _ => metadata.openid(reader),
    };
    let headers = [
        (header::CONTENT_TYPE, JSON),
        (
            header::CACHE_CONTROL,
            HeaderValue::from_static("public, max-age=300"),
        ),
    ];
    (headers, Body::from(document)).into_response()
}

async fn authorize(oidc: &Oidc, request: &Parts, body: Body) -> Response {
    let shown = match params_of(request, body).await {
        Ok(params) => authorized(oidc, request, &params, None).await,
        Err(error) => Err(error),
    };
    shown.unwrap_or_else(|error| answers::error_page(oidc.errors, &request.headers, &error))
}

/// The parameters of the query, and of the form of a `POST`.
pub(super) async fn params_of(request: &Parts, body: Body) -> Result<Params, OidcError> {
    match (&request.method, is_form(&request.headers)) {
        (&Method::GET | &Method::HEAD, _) | (&Method::POST, false) => Ok(query(request)),
        (&Method::POST, true) => form(body).await.map(|mut params| {
            params.add(request.uri.query().unwrap_or_default().as_bytes());
            params
        }),
        _ => Err(OidcError::method_not_allowed()),
    }
}

/// The person's answer to the page. It counts if the page was shown to this very browser, which has
/// the page's token as a cookie too; otherwise the page is shown again.
async fn confirm(oidc: &Oidc, request: &Parts, body: Body) -> Response {
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

/// What the person has pressed.
pub(super) fn decision(form: &Params) -> Option<Confirmation> {
    match form.get("decision") {
        Some("continue") => Some(Confirmation::Confirmed),
        Some("cancel") => Some(Confirmation::Cancelled),
        _ => None,
    }
}

/// Whether the form is on a page that was shown to this very browser, which has the page's token as
/// a cookie too.
pub(super) fn is_own_form(oidc: &Oidc, request: &Parts, form: &Params) -> bool {
    let token = form.get("confirm").unwrap_or_default();
    let same = cookie(&request.headers, CONFIRM_COOKIE)
        .is_some_and(|cookie| verify_slices_are_equal(cookie.as_bytes(), token.as_bytes()).is_ok());
    same && is_same_origin(oidc, request)
}

/// The token of a page with a form. Two pages of one browser have one, so that both can be
/// answered.
pub(super) fn form_token(request: &Parts) -> Result<String, OidcError> {
    let known = cookie(&request.headers, CONFIRM_COOKIE).filter(|token| token.len() == 32);
    match known {
        Some(token) => Ok(token.to_owned()),
        None => Ok(random_token()
            .map_err(|_| OidcError::unavailable())?
            .to_string()),
    }
}

/// Gives the browser the token of the page.
pub(super) fn set_form_token(response: &mut Response, token: &str) {
    set_cookie(response, CONFIRM_COOKIE, token, "SameSite=Strict");
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

fn ask(
    oidc: &Oidc,
    request: &Parts,
    question: &tailbone_oidc::provider::Question,
) -> Result<Response, OidcError> {
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

/// A path of ours, below that of the issuer.
pub(super) fn own_path(issuer: &str, path: &str) -> String {
    let issuer = url::Url::parse(issuer).map_or(String::new(), |url| url.path().to_owned());
    format!("{}{path}", issuer.trim_end_matches('/'))
}

async fn token(oidc: &Oidc, request: &Parts, body: Body, internet: bool) -> Response {
    let answered = async {
        if request.method != Method::POST {
            return Err(OidcError::method_not_allowed());
        }
        let form = form(body).await?;
        let caller = caller_for_secrets(oidc, request, internet).await?;
        let authorization = authorization(&request.headers);
        let now = Timestamp::now();
        let provider = &oidc.provider;
        let answer = provider.token(&form, authorization, &caller, now).await;
        let grant_type = tailbone_values::excerpt(form.get("grant_type").unwrap_or_default());
        match &answer {
            Ok(_) => audit!(Decision::Allowed, "issued oidc tokens", grant_type),
            Err(error) => audit!(
                Decision::Refused,
                "oidc tokens",
                grant_type,
                reason = error.code,
                detail = %error.description
            ),
        }
        answer
    };
    match answered.await {
        Ok(answer) => answers::json(StatusCode::OK, &answer),
        Err(error) => answers::error(oidc.errors, &request.headers, &error),
    }
}

async fn userinfo(oidc: &Oidc, request: &Parts, body: Body) -> Response {
    let posted = match request.method {
        Method::GET | Method::HEAD => None,
        Method::POST if is_form(&request.headers) => match form(body).await {
            Ok(form) => form.get("access_token").map(str::to_owned),
            Err(error) => return answers::error(oidc.errors, &request.headers, &error),
        },
        Method::POST => None,
        _ => {
            let error = OidcError::method_not_allowed();
            return answers::error(oidc.errors, &request.headers, &error);
        }
    };
    let token = match (bearer(&request.headers), posted.as_deref()) {
        (Some(_), Some(_)) => {
            let error = OidcError::invalid_request("the token is in two places");
            return answers::error(oidc.errors, &request.headers, &error);
        }
        (bearer, posted) => bearer.or(posted),
    };
    match oidc.provider.userinfo(token, Timestamp::now()).await {
        Ok(UserInfo::Claims(claims)) => answers::json(StatusCode::OK, &claims),
        Ok(UserInfo::Signed(token)) => answers::jwt(token),
        Err(refused) => answers::bearer_error(oidc.errors, &request.headers, &refused),
    }
}

async fn introspect(
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
    let provider = &oidc.provider;
    let inspector = provider
        .inspector(&form, authorization, &caller, now)
        .await?;
    let told = provider.introspect(&form, inspector.as_ref(), now).await?;
    Ok(match told {
        Some(claims) => answers::json(StatusCode::OK, &claims),
        None => answers::json(StatusCode::OK, &json!({"active": false})),
    })
}

async fn revoke(oidc: &Oidc, request: &Parts, body: Body) -> Result<(), OidcError> {
    if request.method != Method::POST {
        return Err(OidcError::method_not_allowed());
    }
    let form = form(body).await?;
    let authorization = authorization(&request.headers);
    oidc.provider
        .revoke(&form, authorization, Timestamp::now())
        .await
}

async fn register(
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

/// tsidp's `/clients/`, and what its pages are for.
async fn administered(
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
                tailbone_oidc::client::redirect::check(uri)
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

pub(super) fn not_over_funnel() -> OidcError {
    let words = "not available over funnel";
    OidcError::new(StatusCode::UNAUTHORIZED, "access_denied", words)
}

fn not_granted() -> OidcError {
    let words = "application capability not granted";
    OidcError::new(StatusCode::FORBIDDEN, "access_denied", words)
}

/// The caller of an endpoint that needs rights, and its rules; in tsidp's order and words.
async fn privileged(
    oidc: &Oidc,
    request: &Parts,
    internet: bool,
) -> Result<(Caller, Rules), OidcError> {
    if internet {
        return Err(not_over_funnel());
    }
    let KnownCaller { caller, grants } = identified(oidc, request).await?;
    if caller == Caller::Unknown {
        return Err(OidcError::server_error("Error getting WhoIs"));
    }
    let rules = Rules::parse(&grants)
        .map_err(|_| OidcError::server_error("failed unmarshaling app cap rule"))?;
    Ok((caller, rules))
}

pub(super) async fn identified(oidc: &Oidc, request: &Parts) -> Result<KnownCaller, OidcError> {
    let known = known_caller(&request.extensions, &oidc.capability, &oidc.groups).await;
    known.map_err(|_| {
        let words = "the caller makes more requests than it may";
        OidcError::new(StatusCode::TOO_MANY_REQUESTS, "invalid_request", words)
    })
}

/// The caller of an endpoint where clients show secrets: one that the network does not know may
/// call as well. For a page of another origin the network's word does not count, since the person
/// or machine at whose browser it is did not send the request.
pub(super) async fn caller_for_secrets(
    oidc: &Oidc,
    request: &Parts,
    internet: bool,
) -> Result<Caller, OidcError> {
    if internet || !is_same_origin(oidc, request) {
        return Ok(Caller::Unknown);
    }
    Ok(identified(oidc, request).await?.caller)
}

/// Whether no page of another origin sent the request (tsidp's rule, that of Go's
/// `CrossOriginProtection`).
pub(super) fn is_same_origin(oidc: &Oidc, request: &Parts) -> bool {
    let headers = &request.headers;
    let origin = headers.get(header::ORIGIN).map(HeaderValue::to_str);
    let own = |origin: &str| origin == oidc.provider.settings.issuer.trim_end_matches('/');
    match headers.get("sec-fetch-site").map(HeaderValue::as_bytes) {
        Some(b"same-origin" | b"none") => true,
        Some(site) if !site.is_empty() => matches!(origin, Some(Ok(origin)) if own(origin)),
        _ => match origin {
            None => true,
            Some(Err(_)) => false,
            Some(Ok(origin)) => {
                let host = requested_host(request.version, &request.uri, headers);
                let host = host.ok().flatten();
                own(origin)
                    || Origin::parse(origin).is_ok_and(|origin| {
                        host.is_some_and(|(host, port)| origin.is_own_server(&host, port))
                    })
            }
        },
    }
}

pub(super) fn query(request: &Parts) -> Params {
    Params::parse(request.uri.query().unwrap_or_default().as_bytes())
}

pub(super) async fn read(body: Body) -> Result<bytes::Bytes, OidcError> {
    to_bytes(body, MAX_BODY)
        .await
        .map_err(|_| OidcError::invalid_request("the body is too large, or was cut off"))
}

pub(super) async fn form(body: Body) -> Result<Params, OidcError> {
    Ok(Params::parse(&read(body).await?))
}

pub(super) fn authorization(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::AUTHORIZATION)?.to_str().ok()
}

/// The token of a request that bears one.
pub(super) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = authorization(headers)?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token)
}

/// The value of a cookie.
pub(super) fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let lines = headers.get_all(header::COOKIE).iter();
    lines
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find(|(known, _)| *known == name)
        .map(|(_, value)| value)
}

pub(super) fn set_cookie(response: &mut Response, name: &str, value: &str, rest: &str) {
    let cookie = format!("{name}={value}; Path=/; Secure; HttpOnly; {rest}");
    if let Ok(cookie) = HeaderValue::try_from(cookie) {
        response.headers_mut().append(header::SET_COOKIE, cookie);
    }
}
