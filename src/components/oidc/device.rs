//! Logins of devices without a browser (RFC 8628): where a device begins, and the page on which a
//! person types its code.
//!
//! Invariants
//! - `GET` looks no code up: a page of somebody else can neither try codes nor use up a person's
//!   tries.
//! - A code is looked up, and a decision counts, if the form was shown to this very browser.
//! - The page shows the code again, so that the person compares it with the device (section 5.4).

use std::fmt::Write as _;

use ::http::{Method, StatusCode, request::Parts};
use axum::{body::Body, response::Response};
use jiff::Timestamp;
use tailbone_oidc::{
    OidcError,
    claims::Identity,
    discovery::DEVICE_PATH,
    provider::{Caller, Decided, DeviceQuestion},
};

use super::{
    answers,
    callers::KnownCaller,
    forms::{decision, form_token, is_own_form, own_path, set_form_token},
    pages::{Page, escaped},
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
    shown.unwrap_or_else(|error| answers::error_page(oidc.errors, &request.headers, &error))
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
    let page = DevicePage {
        action: own_path(&oidc.provider.settings.issuer, DEVICE_PATH),
        token: &token,
        person: &person,
    };
    let typed = form.get("user_code").unwrap_or_default();
    let ours = request.method == Method::POST && is_own_form(oidc, request, &form);
    let now = Timestamp::now();
    let mut response = if !ours || typed.is_empty() {
        page.entry(typed, None)
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
            None => page.entry(typed, Some(UNKNOWN)),
        }
    };
    set_form_token(&mut response, &token);
    Ok(response)
}

const UNKNOWN: &str = "No device waits for this code. It may have expired: let the device show a \
                       new one.";

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

/// What the pages have in common.
struct DevicePage<'a> {
    action: String,
    /// What the browser has as a cookie too.
    token: &'a str,
    person: &'a Identity,
}

impl DevicePage<'_> {
    /// Asks for the code.
    fn entry(&self, typed: &str, trouble: Option<&str>) -> Response {
        let mut body = String::from("<h1>Connect a device</h1>\n");
        if let Some(trouble) = trouble {
            let _ = writeln!(body, "<p role=\"alert\">{}</p>", escaped(trouble));
        }
        let typed: String = typed.chars().take(32).collect();
        let _ = writeln!(
            body,
            "{}<p><label>Code that the device shows: <input name=\"user_code\" value=\"{}\" \
             required autofocus autocomplete=\"off\" autocapitalize=\"characters\" \
             spellcheck=\"false\" maxlength=\"32\"></label></p>\n\
             <button>Continue</button></form>",
            self.form(),
            escaped(&typed)
        );
        shown("Connect a device", body)
    }

    /// Asks whether the person means this device.
    fn question(&self, question: &DeviceQuestion) -> Response {
        let name = escaped(question.client.display_name(&question.client_id));
        let code = escaped(&question.user_code);
        let login = escaped(&self.person.login);
        let mut body = format!(
            "<h1>Log in to {name} on a device</h1>\n\
             <p>The device will be logged in as <b>{login}</b>. Continue only if you see this \
             code on a device of your own: <b>{code}</b></p>\n"
        );
        if !question.resources.is_empty() {
            let resources = escaped(&question.resources.join(", "));
            let _ = writeln!(body, "<p>It asks for access to <b>{resources}</b>.</p>");
        }
        let who = if self.person.name.is_empty() {
            &self.person.login
        } else {
            &self.person.name
        };
        let _ = writeln!(
            body,
            "{}<input type=\"hidden\" name=\"user_code\" value=\"{code}\">\n\
             <button name=\"decision\" value=\"continue\">Continue as {}</button>\n\
             <button name=\"decision\" value=\"cancel\">Cancel</button></form>",
            self.form(),
            escaped(who)
        );
        shown("Connect a device", body)
    }

    fn end(&self, decided: &Decided) -> Response {
        let (title, words) = match decided {
            Decided::Approved { .. } => (
                "The device is connected",
                "It goes on by itself in a few seconds. You can close this page.",
            ),
            Decided::Cancelled { .. } => (
                "The device is not connected",
                "It was told that you refused. You can close this page.",
            ),
            Decided::Denied { client_id, denial } => {
                let (why, ask) = super::denied::reason_and_contact(denial);
                let client_id = escaped(client_id);
                let body = format!(
                    "<h1>The device is not connected</h1>\n<p>You may not log in to this \
                     application (<code>{client_id}</code>). {why}.</p>\n<p>If you need it, ask \
                     {ask}.</p>\n"
                );
                return shown("The device is not connected", body);
            }
            Decided::NotAllowed { .. } => (
                "The device is not connected",
                "It asks for access that the policy of your tailnet does not give you.",
            ),
            Decided::Unknown => return self.entry("", Some(UNKNOWN)),
        };
        shown(title, format!("<h1>{title}</h1>\n<p>{words}</p>\n"))
    }

    /// The beginning of a form.
    fn form(&self) -> String {
        let (action, token) = (escaped(&self.action), escaped(self.token));
        format!(
            "<form method=\"post\" action=\"{action}\">\
             <input type=\"hidden\" name=\"confirm\" value=\"{token}\">\n"
        )
    }
}

fn shown(title: &str, body: String) -> Response {
    let page = Page {
        title,
        body,
        ..Page::default()
    };
    page.answer(StatusCode::OK)
}
