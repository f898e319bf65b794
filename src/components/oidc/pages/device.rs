//! The pages of `/device`.

use ::http::StatusCode;
use askama::Template;
use axum::response::Response;
use tailbone_oidc::{
    claims::Identity,
    provider::{Decided, DeviceQuestion},
};

use super::{
    Forms, Page,
    login::{facts, name_of, reason_and_contact},
    message,
};

const NOT_CONNECTED: &str = "The device is not connected";

const UNKNOWN: &str = "No device waits for this code. It may have expired: let the device show a \
                       new one.";

/// What the pages have in common.
pub(in super::super) struct DevicePages<'a> {
    pub(in super::super) action: String,
    /// What the browser has as a cookie too.
    pub(in super::super) token: &'a str,
    pub(in super::super) person: &'a Identity,
}

impl DevicePages<'_> {
    /// Asks for the code.
    pub(in super::super) fn entry(&self, typed: &str) -> Response {
        self.asked(typed, None)
    }

    /// Asks again for a code that no device waits for.
    pub(in super::super) fn unknown(&self, typed: &str) -> Response {
        self.asked(typed, Some(UNKNOWN))
    }

    fn asked(&self, typed: &str, trouble: Option<&str>) -> Response {
        #[derive(Template)]
        #[template(path = "device_code.html")]
        struct Code<'a> {
            trouble: Option<&'a str>,
            typed: &'a str,
            action: &'a str,
            token: &'a str,
        }
        let typed: String = typed.chars().take(32).collect();
        let code = Code {
            trouble,
            typed: &typed,
            action: &self.action,
            token: self.token,
        };
        shown(code.render())
    }

    /// Asks whether the person means this device.
    pub(in super::super) fn question(&self, question: &DeviceQuestion) -> Response {
        #[derive(Template)]
        #[template(path = "device_question.html")]
        struct Asked<'a> {
            name: &'a str,
            login: &'a str,
            code: &'a str,
            facts: String,
            action: &'a str,
            token: &'a str,
            who: &'a str,
        }
        let main = facts(&question.told, &question.resources).and_then(|facts| {
            let asked = Asked {
                name: question.client.display_name(&question.client_id),
                login: &self.person.login,
                code: &question.user_code,
                facts,
                action: &self.action,
                token: self.token,
                who: name_of(&self.person.name, &self.person.login),
            };
            asked.render()
        });
        shown(main)
    }

    pub(in super::super) fn end(&self, decided: &Decided) -> Response {
        #[derive(Template)]
        #[template(path = "device_denied.html")]
        struct Denied<'a> {
            client_id: &'a str,
            reason: String,
            contact: String,
        }
        let (title, words) = match decided {
            Decided::Approved { .. } => (
                "The device is connected",
                "It goes on by itself in a few seconds. You can close this page.",
            ),
            Decided::Cancelled { .. } => (
                NOT_CONNECTED,
                "It was told that you refused. You can close this page.",
            ),
            Decided::Denied { client_id, denial } => {
                let main = reason_and_contact(denial).and_then(|(reason, contact)| {
                    let denied = Denied {
                        client_id,
                        reason,
                        contact,
                    };
                    denied.render()
                });
                return shown(main);
            }
            Decided::NotAllowed { .. } => (
                NOT_CONNECTED,
                "It asks for access that the policy of your tailnet does not give you.",
            ),
            Decided::Unknown => return self.unknown(""),
        };
        message(title, words)
    }
}

fn shown(main: askama::Result<String>) -> Response {
    let page = Page {
        title: "Connect a device",
        forms: Forms::Own,
        ..Page::default()
    };
    page.answer(StatusCode::OK, main)
}
