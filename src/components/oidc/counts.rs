//! Requests as metrics: which endpoint, what came of it, and the code of the error.
//!
//! An answer carries what became of its request as an extension, which the place that knows it
//! puts there ([`mark`]). Invariant: every label is a word of the program, so callers add no
//! series.

use ::http::Method;
use axum::response::Response;
use tailbone_oidc::{
    authorize::Answer,
    discovery::{
        AUTHORIZE_PATH, DEVICE_AUTHORIZATION_PATH, DEVICE_PATH, END_SESSION_PATH, INTROSPECT_PATH,
        JWKS_PATH, OAUTH_PATH, OPENID_PATH, PAR_PATH, REGISTER_PATH, REVOKE_PATH, TOKEN_PATH,
        USERINFO_PATH,
    },
};

use super::{login::CONFIRM_PATH, logout::SIGN_OUT_PATH};
use crate::telemetry::meter::Meter;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The person sees a page with a question.
    Asked,
    /// With the code of the error.
    Refused(&'static str),
}

pub(super) fn mark(response: &mut Response, outcome: Outcome) {
    response.extensions_mut().insert(outcome);
}

/// Codes of errors that `/authorize` sends to clients (RFC 6749, section 4.1.2.1; OpenID Connect
/// Core, section 3.1.2.6; RFC 8707; RFC 9396).
const CODES: [&str; 18] = [
    "access_denied",
    "account_selection_required",
    "consent_required",
    "interaction_required",
    "invalid_request",
    "invalid_request_object",
    "invalid_request_uri",
    "invalid_scope",
    "invalid_target",
    "login_required",
    "registration_not_supported",
    "request_not_supported",
    "request_uri_not_supported",
    "server_error",
    "temporarily_unavailable",
    "unauthorized_client",
    "unmet_authentication_requirements",
    "unsupported_response_type",
];

/// The code of an error that the browser brings to the client.
pub(super) fn refused_by(answer: &Answer) -> Outcome {
    let code = match answer {
        Answer::Redirect(to) => {
            let query = to.split_once('?').map_or("", |(_, query)| query);
            let mut pairs = url::form_urlencoded::parse(query.as_bytes());
            // The client's own parameters come first.
            let last = pairs.by_ref().filter(|(name, _)| name == "error").last();
            last.map(|(_, code)| code.into_owned())
        }
        Answer::Form { fields, .. } => {
            let mut fields = fields.iter();
            let error = fields.find(|(name, _)| *name == "error");
            error.map(|(_, code)| code.clone())
        }
    };
    let known = CODES
        .into_iter()
        .find(|known| Some(*known) == code.as_deref());
    Outcome::Refused(known.unwrap_or("other"))
}

/// `None` for what is not counted: a browser that only asks whether it may ask.
pub(super) fn endpoint(method: &Method, path: &str) -> Option<&'static str> {
    if method == Method::OPTIONS {
        return None;
    }
    Some(match path {
        AUTHORIZE_PATH | CONFIRM_PATH => "authorize",
        DEVICE_PATH => "device",
        DEVICE_AUTHORIZATION_PATH => "device_authorization",
        END_SESSION_PATH | SIGN_OUT_PATH => "logout",
        INTROSPECT_PATH => "introspect",
        JWKS_PATH => "jwks",
        OAUTH_PATH | OPENID_PATH => "discovery",
        PAR_PATH => "par",
        REGISTER_PATH => "register",
        REVOKE_PATH => "revoke",
        TOKEN_PATH => "token",
        USERINFO_PATH => "userinfo",
        path if path.starts_with("/register/") => "register",
        _ => "other",
    })
}

pub(super) fn count(meter: &Meter, endpoint: &'static str, response: &Response) {
    let status = response.status();
    let (result, reason) = match response.extensions().get() {
        Some(Outcome::Asked) => ("asked", ""),
        Some(Outcome::Refused(code)) if status.is_server_error() => ("failed", *code),
        Some(Outcome::Refused(code)) => ("refused", *code),
        None if status.is_server_error() => ("failed", "other"),
        None if status.is_client_error() => ("refused", "other"),
        None => ("done", ""),
    };
    meter.oidc_requested(endpoint, result, reason);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_of_a_refusal_is_ours_and_never_the_clients() {
        let told = |to: &str| refused_by(&Answer::Redirect(to.to_owned()));
        assert_eq!(
            told("https://a/cb?error=mine&error=login_required&iss=x"),
            Outcome::Refused("login_required")
        );
        assert_eq!(told("https://a/cb?error=mine"), Outcome::Refused("other"));
        let form = |code: &str| {
            let fields = vec![("error", code.to_owned())];
            refused_by(&Answer::Form {
                action: "https://a/cb".into(),
                fields,
            })
        };
        assert_eq!(form("access_denied"), Outcome::Refused("access_denied"));
    }

    #[test]
    fn a_preflight_is_no_request() {
        assert_eq!(endpoint(&Method::OPTIONS, TOKEN_PATH), None);
        assert_eq!(endpoint(&Method::POST, TOKEN_PATH), Some("token"));
        assert_eq!(endpoint(&Method::GET, "/clients/x"), Some("other"));
    }
}
