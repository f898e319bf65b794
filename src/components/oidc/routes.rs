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

use ::http::{HeaderValue, Method, StatusCode, header, request::Parts};
use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    response::{IntoResponse, Response},
    routing::{MethodRouter, any},
};
use tailbone_oidc::{
    OidcError,
    discovery::{
        AUTHORIZE_PATH, DEVICE_AUTHORIZATION_PATH, DEVICE_PATH, END_SESSION_PATH, INTROSPECT_PATH,
        JWKS_PATH, Metadata, OAUTH_PATH, OPENID_PATH, PAR_PATH, REGISTER_PATH, REVOKE_PATH, Reader,
        TOKEN_PATH, USERINFO_PATH,
    },
    provider::Provider,
};

use super::{
    answers::{self, JSON},
    clients::{self, CLIENTS_PATH},
    counts, device,
    groups::Groups,
    keys::ServedKeys,
    login::{self, CONFIRM_PATH},
    logout::{self, SIGN_OUT_PATH},
    pages::Place,
    par, registration, tokens,
};
use crate::{config::OidcErrorFormat as ErrorFormat, telemetry::meter::Meter};

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
            let place = match request.uri.path() {
                DEVICE_PATH => Place::Device,
                _ => Place::Login,
            };
            let words = "not allowed over funnel";
            let refused = OidcError::new(StatusCode::UNAUTHORIZED, "access_denied", words);
            answers::error_page(oidc.errors, &request, place, &refused)
        }
        AUTHORIZE_PATH => login::authorize(oidc, &request, body).await,
        CONFIRM_PATH => login::confirm(oidc, &request, body).await,
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
            let response = tokens::token(oidc, &request, body, internet).await;
            answers::share(response, "POST, OPTIONS", "*")
        }
        USERINFO_PATH => {
            let (methods, headers) = ("GET, POST, OPTIONS", "Authorization, Content-Type");
            if preflight {
                return answers::preflight(methods, headers);
            }
            answers::share(
                tokens::userinfo(oidc, &request, body).await,
                methods,
                headers,
            )
        }
        INTROSPECT_PATH => {
            let told = tokens::introspect(oidc, &request, body, internet).await;
            told.unwrap_or_else(|error| answers::error(oidc.errors, &request.headers, &error))
        }
        REVOKE_PATH => {
            if preflight {
                return answers::preflight("POST, OPTIONS", "*");
            }
            let response = match tokens::revoke(oidc, &request, body).await {
                Ok(()) => StatusCode::OK.into_response(),
                Err(error) => answers::error(oidc.errors, &request.headers, &error),
            };
            answers::share(response, "POST, OPTIONS", "*")
        }
        REGISTER_PATH => {
            if preflight && !internet {
                return answers::preflight("POST, OPTIONS", "*");
            }
            let response = match registration::register(oidc, &request, body, internet).await {
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
            let told = clients::administered(oidc, &request, body, below, internet).await;
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
