//! The pages, as plain as they can be.
//!
//! Invariants
//! - Everything that a client or a person named is escaped.
//! - No page can be framed, and none runs a script but the one that posts a form, which its hash
//!   names.

use std::fmt::Write as _;

use ::http::{HeaderValue, StatusCode, header};
use aws_lc_rs::digest::{SHA256, digest};
use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use tailbone_oidc::{OidcError, provider::Question};

/// Posts the only form of its page.
const POST_FORM: &str = "document.forms[0].submit()";

/// A page, and what besides itself it needs.
#[derive(Default)]
pub(super) struct Page<'a> {
    pub(super) title: &'a str,
    /// HTML.
    pub(super) body: String,
    pub(super) script: bool,
    /// The origin of a picture.
    pub(super) pictures: Option<String>,
}

impl Page<'_> {
    pub(super) fn answer(self, status: StatusCode) -> Response {
        let script = self.script.then(|| {
            let hash = STANDARD.encode(digest(&SHA256, POST_FORM.as_bytes()));
            format!(" script-src 'sha256-{hash}';")
        });
        let pictures = self.pictures.map(|origin| format!(" img-src {origin};"));
        let policy = format!(
            "default-src 'none';{}{} base-uri 'none'; frame-ancestors 'none'",
            script.unwrap_or_default(),
            pictures.unwrap_or_default(),
        );
        let html = format!(
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\">\
             <meta name=\"viewport\" content=\"width=device-width\">\
             <title>{}</title></head>\n<body>\n{}</body>\n</html>\n",
            escaped(self.title),
            self.body
        );
        let policy = HeaderValue::try_from(policy);
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
}

/// An error that only the person can do something about.
pub(super) fn error(error: &OidcError) -> Response {
    let (code, description) = (escaped(error.code), escaped(&error.description));
    let page = Page {
        title: "This login does not work",
        body: format!(
            "<h1>This login does not work</h1>\n<p>The application sent a request that cannot be \
             answered: {description}.</p>\n<p><code>{code}</code></p>\n"
        ),
        script: false,
        pictures: None,
    };
    page.answer(error.status)
}

/// The same for a request to sign out.
pub(super) fn sign_out_error(error: &OidcError) -> Response {
    let (code, description) = (escaped(error.code), escaped(&error.description));
    let page = Page {
        title: "Signing out does not work",
        body: format!(
            "<h1>Signing out does not work</h1>\n<p>You are still signed in. The application sent \
             a request that cannot be answered: {description}.</p>\n<p><code>{code}</code></p>\n"
        ),
        script: false,
        pictures: None,
    };
    page.answer(error.status)
}

/// Asks the person whether they mean to sign out. `login`: who they are, where that is known.
pub(super) fn sign_out_question(login: Option<&str>, form: &QuestionForm<'_>) -> Response {
    let who = login.map_or(String::new(), |login| {
        format!(", <b>{}</b>", escaped(login))
    });
    let page = Page {
        title: "Sign out",
        body: format!(
            "<h1>Sign out?</h1>\n<p>Do you want to sign out in this browser{who}? Applications \
             that you logged in to from here are told.</p>\n\
             <form method=\"post\" action=\"{}\">\
             <input type=\"hidden\" name=\"request\" value=\"{}\">\
             <input type=\"hidden\" name=\"confirm\" value=\"{}\">\n\
             <button name=\"decision\" value=\"continue\" autofocus>Sign out</button>\n\
             <button name=\"decision\" value=\"cancel\">Stay signed in</button></form>\n",
            escaped(form.action),
            escaped(form.request),
            escaped(form.token)
        ),
        script: false,
        pictures: None,
    };
    page.answer(StatusCode::OK)
}

/// The end of a request to sign out that leads nowhere else.
pub(super) fn signed_out() -> Response {
    sentence(
        "Signed out",
        "You are signed out in this browser. Applications may ask who you are again.",
    )
}

/// The person was asked, and does not want to sign out.
pub(super) fn still_signed_in() -> Response {
    sentence("Signed in", "You are still signed in.")
}

fn sentence(title: &str, sentence: &str) -> Response {
    let page = Page {
        title,
        body: format!("<h1>{title}</h1>\n<p>{sentence}</p>\n"),
        script: false,
        pictures: None,
    };
    page.answer(StatusCode::OK)
}

/// What the form of a question carries.
pub(super) struct QuestionForm<'a> {
    pub(super) action: &'a str,
    /// The request that is asked about, as a query.
    pub(super) request: &'a str,
    /// What the browser has as a cookie too.
    pub(super) token: &'a str,
}

/// Asks the person whether they mean to log in.
pub(super) fn question(question: &Question, form: &QuestionForm<'_>) -> Response {
    let client = &question.client;
    let name = escaped(client.display_name(&question.client_id));
    let login = escaped(&question.login);
    let mut body = format!("<h1>Log in to {name}</h1>\n");
    let logo = Some(client.logo_uri.as_str()).filter(|uri| uri.starts_with("https://"));
    if let Some(logo) = logo {
        let logo = escaped(logo);
        let _ = writeln!(
            body,
            "<p><img src=\"{logo}\" alt=\"\" height=\"64\" referrerpolicy=\"no-referrer\"></p>"
        );
    }
    let target = escaped(&target_of(&question.redirect_uri));
    let _ = writeln!(
        body,
        "<p>The application will learn that you are <b>{login}</b>. You go on to \
         <b>{target}</b>.</p>"
    );
    if let Some(host) = &question.described_by {
        let host = escaped(host);
        let _ = writeln!(
            body,
            "<p>What this page says about the application comes from <b>{host}</b>.</p>"
        );
        if question.on_own_device {
            body.push_str(
                "<p>The application runs on your own device, where every program can pretend to \
                 be it. Continue only if you have just begun to log in there.</p>\n",
            );
        }
    }
    if let Some(expected) = &question.expected {
        let expected = escaped(expected);
        let _ = writeln!(
            body,
            "<p>It expects <b>{expected}</b>. On this device you are <b>{login}</b>.</p>"
        );
    }
    for (uri, words) in [
        (&client.client_uri, "About the application"),
        (&client.policy_uri, "Its privacy policy"),
        (&client.tos_uri, "Its terms of service"),
    ] {
        if !uri.is_empty() {
            let uri = escaped(uri);
            let _ = writeln!(
                body,
                "<p><a href=\"{uri}\" rel=\"noreferrer noopener\" target=\"_blank\">{words}</a></p>"
            );
        }
    }
    let who = if question.name.is_empty() {
        &question.login
    } else {
        &question.name
    };
    let _ = writeln!(
        body,
        "<form method=\"post\" action=\"{}\">\
         <input type=\"hidden\" name=\"request\" value=\"{}\">\
         <input type=\"hidden\" name=\"confirm\" value=\"{}\">\n\
         <button name=\"decision\" value=\"continue\" autofocus>Continue as {}</button>\n\
         <button name=\"decision\" value=\"cancel\">Cancel</button></form>",
        escaped(form.action),
        escaped(form.request),
        escaped(form.token),
        escaped(who)
    );
    let page = Page {
        title: "Log in",
        body,
        script: false,
        pictures: logo.and_then(origin_of),
    };
    page.answer(StatusCode::OK)
}

/// Sends an answer to the client as a form, or a request of another site as one of our own.
pub(super) fn posted_form<N: AsRef<str>>(action: &str, fields: &[(N, String)]) -> Response {
    let mut body = form_of(action, fields);
    let _ = write!(
        body,
        "<noscript><button>Continue</button></noscript>\n</form>\n<script>{POST_FORM}</script>\n"
    );
    let page = Page {
        title: "Continue",
        body,
        script: true,
        pictures: None,
    };
    page.answer(StatusCode::OK)
}

/// The open tag of a form, with the fields of an answer.
pub(super) fn form_of<N: AsRef<str>>(action: &str, fields: &[(N, String)]) -> String {
    let mut form = format!("<form method=\"post\" action=\"{}\">\n", escaped(action));
    for (name, value) in fields {
        let (name, value) = (escaped(name.as_ref()), escaped(value));
        let _ = writeln!(
            form,
            "<input type=\"hidden\" name=\"{name}\" value=\"{value}\">"
        );
    }
    form
}

/// The place that a person knows by name: a host, or the scheme of an application.
fn target_of(uri: &str) -> String {
    match url::Url::parse(uri) {
        Ok(url) => match url.host_str() {
            Some(host) if matches!(url.scheme(), "http" | "https") => host.to_owned(),
            _ => format!("{}:", url.scheme()),
        },
        Err(_) => uri.to_owned(),
    }
}

fn origin_of(uri: &str) -> Option<String> {
    let url = url::Url::parse(uri).ok()?;
    Some(url.origin().ascii_serialization())
}

/// Safe as text and inside of a quoted attribute.
pub(super) fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            c => safe.push(c),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_stays_text() {
        let text = "<script>\"'&";
        assert_eq!(escaped(text), "&lt;script&gt;&quot;&#39;&amp;");
        assert_eq!(target_of("https://a.example.com:8443/x"), "a.example.com");
        assert_eq!(target_of("cursor://anysphere.cursor/x"), "cursor:");
        assert_eq!(target_of("com.example:/x"), "com.example:");
    }
}
