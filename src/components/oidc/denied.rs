//! The page for people whom the rules keep out.

use std::fmt::Write as _;

use ::http::StatusCode;
use axum::response::Response;
use tailbone_oidc::{
    authorize::Answer,
    provider::{Denial, DeniedLogin},
};

use super::pages::{Page, escaped, form_of};

/// Tells a person that the rules keep them out, by which rule, and whom to ask. From here they go
/// back to the client, which hears `access_denied`.
pub(super) fn page(denied: &DeniedLogin) -> Response {
    let name = escaped(denied.client.display_name(&denied.client_id));
    let login = escaped(&denied.login);
    let (reason, ask) = reason_and_contact(&denied.denial);
    let client_id = escaped(&denied.client_id);
    let mut body = format!(
        "<h1>You may not log in to {name}</h1>\n<p>You are <b>{login}</b>. {reason}.</p>\n\
         <p>If you need the application (<code>{client_id}</code>), ask {ask}.</p>\n"
    );
    match &denied.answer {
        Answer::Redirect(to) => {
            let to = escaped(to);
            let _ = writeln!(
                body,
                "<p><a href=\"{to}\" rel=\"noreferrer\">Back to the application</a></p>"
            );
        }
        Answer::Form { action, fields } => {
            body.push_str(&form_of(action, fields));
            body.push_str("<button>Back to the application</button>\n</form>\n");
        }
    }
    let page = Page {
        title: "You may not log in",
        body,
        ..Page::default()
    };
    page.answer(StatusCode::FORBIDDEN)
}

/// Why somebody may not log in, and whom to ask, as HTML.
pub(super) fn reason_and_contact(denial: &Denial) -> (String, String) {
    let reason = match denial.rule.as_str() {
        "end" => "No rule of this server allows it".to_owned(),
        rule => {
            let rule = escaped(rule);
            format!("This rule of the server decided so: <code>{rule}</code>")
        }
    };
    let ask = match denial.contact.as_deref() {
        Some(contact) => link_to(contact),
        None => "those who run this server".to_owned(),
    };
    (reason, ask)
}

/// An address of mail or of the web becomes a link, everything else is text.
fn link_to(contact: &str) -> String {
    let shown = escaped(contact);
    let mail = contact.contains('@') && !contact.contains(|c: char| c.is_whitespace() || c == ':');
    if contact.starts_with("https://") {
        format!("<a href=\"{shown}\" rel=\"noreferrer\">{shown}</a>")
    } else if mail {
        format!("<a href=\"mailto:{shown}\">{shown}</a>")
    } else {
        shown
    }
}
