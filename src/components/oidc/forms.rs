//! Forms of our pages, which count only from the browser that they were shown to.
//!
//! Invariant: a form is taken if no page of another origin sent it, and if it has the token that
//! the browser has as a cookie too.

use ::http::{HeaderValue, header, request::Parts};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use axum::response::Response;
use tailbone_oidc::{OidcError, Params, provider::Confirmation, store::random_token};

use super::{
    requests::{cookie, set_cookie},
    routes::Oidc,
};
use crate::{http::host::requested_host, web::Origin};

/// Its name keeps it to this host and to TLS.
const FORM_COOKIE: &str = "__Host-oidc-confirm";

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
    let same = cookie(&request.headers, FORM_COOKIE)
        .is_some_and(|cookie| verify_slices_are_equal(cookie.as_bytes(), token.as_bytes()).is_ok());
    same && is_same_origin(oidc, request)
}

/// The token of a page with a form. Two pages of one browser have one, so that both can be
/// answered.
pub(super) fn form_token(request: &Parts) -> Result<String, OidcError> {
    let known = cookie(&request.headers, FORM_COOKIE).filter(|token| token.len() == 32);
    match known {
        Some(token) => Ok(token.to_owned()),
        None => Ok(random_token()
            .map_err(|_| OidcError::unavailable())?
            .to_string()),
    }
}

/// Gives the browser the token of the page. A link of another site brings it along, so that the
/// page of that link has the same one; the form of another site does not.
pub(super) fn set_form_token(response: &mut Response, token: &str) {
    set_cookie(response, FORM_COOKIE, token, "SameSite=Lax");
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

/// A path of ours, below that of the issuer.
pub(super) fn own_path(issuer: &str, path: &str) -> String {
    let issuer = url::Url::parse(issuer).map_or(String::new(), |url| url.path().to_owned());
    format!("{}{path}", issuer.trim_end_matches('/'))
}
