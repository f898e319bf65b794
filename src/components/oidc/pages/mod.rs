//! The pages that people see: templates (`../templates`), one stylesheet, and the headers around
//! them.
//!
//! Invariants
//! - Everything that a client, a tailnet or a person named is escaped. Templates escape by
//!   themselves; `safe` stands only behind what another template has made, the stylesheet and the
//!   script.
//! - No page can be framed or needs a script, and none runs one but the one that posts a form. The
//!   policy names that script and the stylesheet by their hashes.
//! - A page makes no request of its own, but for the picture of a client.
//!
//! `login.rs` has the pages of logins, `device.rs` those of devices, `error.rs` those of errors.

mod device;
mod error;
mod login;

use std::{fmt, sync::LazyLock};

use ::http::{HeaderValue, StatusCode, header};
use askama::Template;
use aws_lc_rs::digest::{SHA256, digest};
use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};

pub(super) use self::{
    device::DevicePages,
    error::{Place, error},
    login::{denied, machine, question},
};

const STYLE: &str = include_str!("../templates/style.css");

/// Posts the only form of its page.
const POST_FORM: &str = "document.forms[0].submit()";

static STYLE_SOURCE: LazyLock<String> = LazyLock::new(|| source_of(STYLE));
static SCRIPT_SOURCE: LazyLock<String> = LazyLock::new(|| source_of(POST_FORM));

/// A text of the page, as a policy allows it.
fn source_of(text: &str) -> String {
    let hash = STANDARD.encode(digest(&SHA256, text.as_bytes()));
    format!("'sha256-{hash}'")
}

/// A page, and what besides itself it needs.
#[derive(Default)]
struct Page<'a> {
    title: &'a str,
    script: bool,
    /// The origin of a picture.
    pictures: Option<String>,
    forms: Forms,
}

/// Where the forms of a page lead, redirects included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Forms {
    /// A client says where, so that no policy can.
    Anywhere,
    #[default]
    None,
    Own,
}

#[derive(Template)]
#[template(path = "page.html")]
struct Frame<'a> {
    title: &'a str,
    style: &'static str,
    main: &'a str,
}

impl Page<'_> {
    fn answer(self, status: StatusCode, main: askama::Result<String>) -> Response {
        let html = main.and_then(|main| {
            let (title, style) = (self.title, STYLE);
            Frame {
                title,
                style,
                main: &main,
            }
            .render()
        });
        let Ok(html) = html else {
            return StatusCode::INTERNAL_SERVER_ERROR.into_response();
        };
        let policy = HeaderValue::try_from(self.policy());
        let headers = [
            (
                header::CONTENT_TYPE,
                HeaderValue::from_static("text/html; charset=utf-8"),
            ),
            (
                header::CONTENT_SECURITY_POLICY,
                policy.unwrap_or(HeaderValue::from_static(
                    "default-src 'none'; frame-ancestors 'none'",
                )),
            ),
            (
                header::X_CONTENT_TYPE_OPTIONS,
                HeaderValue::from_static("nosniff"),
            ),
            (header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
            (
                header::REFERRER_POLICY,
                HeaderValue::from_static("no-referrer"),
            ),
            (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        ];
        (status, headers, Body::from(html)).into_response()
    }

    fn policy(&self) -> String {
        let mut policy = format!("default-src 'none'; style-src {};", *STYLE_SOURCE);
        let mut add = |directive: &str, value: &str| {
            policy.push_str(&format!(" {directive} {value};"));
        };
        if self.script {
            add("script-src", &SCRIPT_SOURCE);
        }
        if let Some(origin) = &self.pictures {
            add("img-src", origin);
        }
        match self.forms {
            Forms::Anywhere => {}
            Forms::None => add("form-action", "'none'"),
            Forms::Own => add("form-action", "'self'"),
        }
        policy + " base-uri 'none'; frame-ancestors 'none'"
    }
}

/// What the form of a question carries.
pub(super) struct QuestionForm<'a> {
    pub(super) action: &'a str,
    /// The request that is asked about, as a query.
    pub(super) request: &'a str,
    /// What the browser has as a cookie too.
    pub(super) token: &'a str,
}

/// Asks the person whether they mean to sign out. `login`: who they are, where that is known.
pub(super) fn sign_out_question(login: Option<&str>, form: &QuestionForm<'_>) -> Response {
    #[derive(Template)]
    #[template(path = "sign_out.html")]
    struct SignOut<'a> {
        login: Option<&'a str>,
        form: &'a QuestionForm<'a>,
    }
    let page = Page {
        title: "Sign out",
        forms: Forms::Anywhere,
        ..Page::default()
    };
    page.answer(StatusCode::OK, SignOut { login, form }.render())
}

/// The end of a request to sign out that leads nowhere else.
pub(super) fn signed_out() -> Response {
    let words = "You are signed out in this browser. Applications may ask who you are again. You \
                 can close this page.";
    message("Signed out", words)
}

/// The person was asked, and does not want to sign out.
pub(super) fn still_signed_in() -> Response {
    let words = "You are still signed in. You can close this page.";
    message("Signed in", words)
}

fn message(title: &str, words: &str) -> Response {
    #[derive(Template)]
    #[template(path = "message.html")]
    struct Message<'a> {
        title: &'a str,
        words: &'a str,
    }
    let page = Page {
        title,
        ..Page::default()
    };
    page.answer(StatusCode::OK, Message { title, words }.render())
}

/// Sends an answer to the client as a form, or a request of another site as one of our own.
pub(super) fn posted_form<N: AsRef<str>>(action: &str, fields: &[(N, String)]) -> Response {
    #[derive(Template)]
    #[template(path = "posted.html")]
    struct Posted<'a> {
        action: &'a str,
        fields: &'a [(&'a str, &'a str)],
        script: &'static str,
    }
    let fields = fields.iter();
    let fields = fields.map(|(name, value)| (name.as_ref(), value.as_str()));
    let posted = Posted {
        action,
        fields: &fields.collect::<Vec<_>>(),
        script: POST_FORM,
    };
    let page = Page {
        title: "Continue",
        script: true,
        forms: Forms::Anywhere,
        ..Page::default()
    };
    page.answer(StatusCode::OK, posted.render())
}

/// Writes text so that it is text, also inside of a quoted attribute.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Escaper;

impl askama::filters::Escaper for Escaper {
    fn write_escaped_str<W: fmt::Write>(&self, mut to: W, text: &str) -> fmt::Result {
        let mut plain = text;
        while let Some(at) = plain.find(['&', '<', '>', '"', '\'']) {
            let (before, special) = plain.split_at(at);
            to.write_str(before)?;
            to.write_str(match special.as_bytes().first() {
                Some(b'&') => "&amp;",
                Some(b'<') => "&lt;",
                Some(b'>') => "&gt;",
                Some(b'"') => "&quot;",
                _ => "&#39;",
            })?;
            plain = special.get(1..).unwrap_or_default();
        }
        to.write_str(plain)
    }
}

#[cfg(test)]
mod tests {
    use askama::filters::Escaper as _;

    use super::*;

    #[test]
    fn text_stays_text() {
        let mut written = String::new();
        let text = "a<script>\"'&é";
        Escaper.write_escaped_str(&mut written, text).unwrap();
        assert_eq!(written, "a&lt;script&gt;&quot;&#39;&amp;é");
    }

    #[test]
    fn every_page_is_small() {
        assert!(STYLE.len() < 6000, "{}", STYLE.len());
    }
}
