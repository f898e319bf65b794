//! The pages of logins: the question, and the refusals from which people go back to the client.

use ::http::StatusCode;
use askama::Template;
use axum::response::Response;
use serde_json::{Map, Value};
use tailbone_oidc::{
    authorize::Answer,
    provider::{Denial, DeniedLogin, MachineLogin, Question},
};
use tailbone_values::excerpt;

use super::{Forms, Page, QuestionForm};

/// The most claims that a page lists one by one.
const MAX_FACTS: usize = 20;

#[derive(Template)]
#[template(path = "question.html")]
struct QuestionPage<'a> {
    question: &'a Question,
    name: &'a str,
    target: &'a str,
    logo: Option<&'a str>,
    facts: String,
    links: Vec<(&'static str, &'a str)>,
    who: &'a str,
    form: &'a QuestionForm<'a>,
}

/// Asks the person whether they mean to log in.
pub(in super::super) fn question(question: &Question, form: &QuestionForm<'_>) -> Response {
    let client = &question.client;
    let logo = Some(client.logo_uri.as_str()).filter(|uri| uri.starts_with("https://"));
    let links = [
        ("About the application", client.client_uri.as_str()),
        ("Its privacy policy", &client.policy_uri),
        ("Its terms of service", &client.tos_uri),
    ];
    let main = facts(&question.told, &question.resources).and_then(|facts| {
        let main = QuestionPage {
            question,
            name: client.display_name(&question.client_id),
            target: &target_of(&question.redirect_uri),
            logo,
            facts,
            links: links.into_iter().filter(|(_, uri)| is_web(uri)).collect(),
            who: name_of(&question.name, &question.login),
            form,
        };
        main.render()
    });
    let page = Page {
        title: "Log in",
        pictures: logo.and_then(origin_of),
        forms: Forms::Anywhere,
        ..Page::default()
    };
    page.answer(StatusCode::OK, main)
}

/// What a person calls themselves.
pub(super) fn name_of<'a>(name: &'a str, login: &'a str) -> &'a str {
    if name.is_empty() { login } else { name }
}

/// One line of what a client is told.
struct Fact {
    name: String,
    value: String,
}

/// What a client is told and may use, in words, as HTML.
pub(super) fn facts(told: &Map<String, Value>, resources: &[String]) -> askama::Result<String> {
    #[derive(Template)]
    #[template(path = "told.html")]
    struct Facts<'a> {
        told: Vec<Fact>,
        resources: &'a [String],
    }
    let told = told_in_words(told);
    Facts { told, resources }.render()
}

fn told_in_words(told: &Map<String, Value>) -> Vec<Fact> {
    let mut facts = Vec::new();
    let mut add = |name: &str, value: String| {
        let name = name.to_owned();
        facts.push(Fact { name, value });
    };
    let first = |names: &[&str]| names.iter().find_map(|name| told.get(*name)).map(words);
    for (name, claims) in [
        ("Your name", &["name"][..]),
        ("Your mail address", &["email"]),
        ("Your user name", &["preferred_username", "username"]),
        ("Your groups", &["groups"]),
    ] {
        if let Some(value) = first(claims) {
            add(name, value);
        }
    }
    if told.contains_key("picture") {
        add("Your picture", "The one of your account".into());
    }
    if let Some(node) = first(&["node", "nid"]) {
        let node = node.trim_end_matches('.');
        add("Your device", format!("{node}, with its addresses and key"));
    }
    if let Some(number) = first(&["sub"]) {
        add("Your number on this tailnet", number);
    }
    let others = told
        .iter()
        .filter(|(name, _)| !NAMED.contains(&name.as_str()));
    let (shown, hidden) = (others.clone().take(MAX_FACTS), others.skip(MAX_FACTS));
    for (name, value) in shown {
        add(&format!("Also: {}", excerpt(name)), words(value));
    }
    match hidden.count() {
        0 => {}
        more => add(
            "And",
            format!("{more} more facts that rules of the tailnet add"),
        ),
    }
    facts
}

/// The claims that have a line of their own, or are told with another one.
const NAMED: [&str; 15] = [
    "addresses",
    "email",
    "email_verified",
    "groups",
    "key",
    "name",
    "nid",
    "node",
    "picture",
    "preferred_username",
    "sub",
    "tailnet",
    "uid",
    "user",
    "username",
];

/// A claim's value for people.
fn words(value: &Value) -> String {
    match value {
        Value::String(text) => excerpt(text),
        Value::Array(values) => {
            let values: Vec<_> = values.iter().take(MAX_FACTS).map(words).collect();
            values.join(", ")
        }
        other => excerpt(&other.to_string()),
    }
}

/// Tells a person that the rules keep them out, by which rule, and whom to ask. From here they go
/// back to the client, which hears `access_denied`.
pub(in super::super) fn denied(denied: &DeniedLogin, request_id: &str) -> Response {
    #[derive(Template)]
    #[template(path = "denied.html")]
    struct Denied<'a> {
        denied: &'a DeniedLogin,
        name: &'a str,
        reason: String,
        contact: String,
        request_id: &'a str,
        back: String,
    }
    let main = parts(&denied.denial, &denied.answer).and_then(|(reason, contact, back)| {
        let main = Denied {
            denied,
            name: denied.client.display_name(&denied.client_id),
            reason,
            contact,
            request_id,
            back,
        };
        main.render()
    });
    refusal("You may not log in", main)
}

/// Tells whoever looks at the browser of a tagged machine that it has no user.
pub(in super::super) fn machine(machine: &MachineLogin, request_id: &str) -> Response {
    #[derive(Template)]
    #[template(path = "machine.html")]
    struct Machine<'a> {
        name: &'a str,
        request_id: &'a str,
        back: String,
    }
    let main = back(&machine.answer).and_then(|back| {
        let name = machine.client.display_name(&machine.client_id);
        let main = Machine {
            name,
            request_id,
            back,
        };
        main.render()
    });
    refusal("You cannot log in from this machine", main)
}

fn refusal(title: &str, main: askama::Result<String>) -> Response {
    let page = Page {
        title,
        forms: Forms::Anywhere,
        ..Page::default()
    };
    page.answer(StatusCode::FORBIDDEN, main)
}

fn parts(denial: &Denial, answer: &Answer) -> askama::Result<(String, String, String)> {
    let (reason, contact) = reason_and_contact(denial)?;
    Ok((reason, contact, back(answer)?))
}

/// The way back to the client, as HTML.
fn back(answer: &Answer) -> askama::Result<String> {
    #[derive(Template)]
    #[template(path = "back.html")]
    struct Back<'a> {
        answer: &'a Answer,
    }
    Back { answer }.render()
}

/// Why somebody may not log in, and whom to ask, as HTML.
pub(super) fn reason_and_contact(denial: &Denial) -> askama::Result<(String, String)> {
    #[derive(Template)]
    #[template(
        source = "{% if rule == \"end\" %}No rule of this server allows it.{% else %}This rule of \
                  the server decided so: <code>{{ rule }}</code>.{% endif %}",
        ext = "html"
    )]
    struct Reason<'a> {
        rule: &'a str,
    }
    #[derive(Template)]
    #[template(
        source = "{% if web %}<a href=\"{{ contact }}\" rel=\"noreferrer\">{{ contact }}</a>\
                  {% else if mail %}<a href=\"mailto:{{ contact }}\">{{ contact }}</a>\
                  {% else %}{{ contact }}{% endif %}",
        ext = "html"
    )]
    struct Contact<'a> {
        contact: &'a str,
        web: bool,
        mail: bool,
    }
    let contact = denial.contact.as_deref();
    let contact = contact.unwrap_or("those who run this server");
    // An address of mail or of the web becomes a link, everything else is text.
    let (web, mail) = (
        contact.starts_with("https://"),
        contact.contains('@') && !contact.contains(|c: char| c.is_whitespace() || c == ':'),
    );
    let rule = &denial.rule;
    let contact = Contact { contact, web, mail };
    Ok((Reason { rule }.render()?, contact.render()?))
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

/// Whether a link leads to a page, and runs nothing here.
fn is_web(uri: &str) -> bool {
    url::Url::parse(uri).is_ok_and(|url| matches!(url.scheme(), "http" | "https"))
}

fn origin_of(uri: &str) -> Option<String> {
    let url = url::Url::parse(uri).ok()?;
    Some(url.origin().ascii_serialization())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_target_is_a_name_that_people_know() {
        assert_eq!(target_of("https://a.example.com:8443/x"), "a.example.com");
        assert_eq!(target_of("cursor://anysphere.cursor/x"), "cursor:");
        assert_eq!(target_of("com.example:/x"), "com.example:");
    }

    #[test]
    fn a_link_runs_nothing() {
        assert!(is_web("https://a.example.com/x") && is_web("http://a.example.com"));
        for other in [
            "",
            "javascript:alert(1)",
            " javascript:alert(1)",
            "data:text/html,x",
        ] {
            assert!(!is_web(other), "{other}");
        }
    }

    #[test]
    fn claims_are_told_in_words() {
        let told = json!({
            "sub": "userid:1", "uid": 1, "email": "a@example.com", "groups": ["x", "y"],
            "node": "laptop.tail.ts.net.", "key": "nodekey:1", "role": {"level": 3},
        });
        let told = told_in_words(told.as_object().unwrap());
        let told: Vec<_> = told
            .iter()
            .map(|fact| (fact.name.as_str(), fact.value.as_str()))
            .collect();
        assert_eq!(
            told,
            [
                ("Your mail address", "a@example.com"),
                ("Your groups", "x, y"),
                (
                    "Your device",
                    "laptop.tail.ts.net, with its addresses and key"
                ),
                ("Your number on this tailnet", "userid:1"),
                ("Also: role", "{\"level\":3}"),
            ]
        );
    }
}
