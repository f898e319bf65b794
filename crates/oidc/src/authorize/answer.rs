//! The answer to an authorization request, and how it gets to the client: in the query of the
//! redirect URI, or in a form that the browser posts there.

use serde::{Deserialize, Serialize};

use crate::client::redirect;

/// Where parameters of an answer stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResponseMode {
    #[default]
    Query,
    /// OAuth 2.0 Form Post Response Mode.
    FormPost,
}

impl ResponseMode {
    pub const NAMES: [&str; 2] = ["query", "form_post"];

    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "query" => Some(Self::Query),
            "form_post" => Some(Self::FormPost),
            _ => None,
        }
    }
}

/// Where answers to one request go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplyTo {
    pub redirect_uri: String,
    pub mode: ResponseMode,
    pub state: Option<String>,
}

/// An answer on its way to the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// 302 or 303 to this address.
    Redirect(String),
    /// A page whose form the browser posts to this address.
    Form {
        action: String,
        fields: Vec<(&'static str, String)>,
    },
}

impl ReplyTo {
    pub fn code(&self, issuer: &str, code: &str) -> Answer {
        self.send(issuer, [("code", code), ("", "")])
    }

    pub fn error(&self, issuer: &str, code: &str, description: &str) -> Answer {
        self.send(
            issuer,
            [("error", code), ("error_description", description)],
        )
    }

    /// With the parameters in alphabetical order, as tsidp sends them.
    fn send(&self, issuer: &str, fields: [(&'static str, &str); 2]) -> Answer {
        let state = self.state.as_deref().unwrap_or_default();
        let fields: Vec<(&'static str, &str)> = fields
            .into_iter()
            .chain([("iss", issuer), ("state", state)])
            .filter(|(name, value)| !name.is_empty() && !value.is_empty())
            .collect();
        match self.mode {
            ResponseMode::Query => {
                Answer::Redirect(redirect::with_params(&self.redirect_uri, fields))
            }
            ResponseMode::FormPost => Answer::Form {
                action: self.redirect_uri.clone(),
                fields: fields
                    .into_iter()
                    .map(|(name, value)| (name, value.to_owned()))
                    .collect(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_modes_have_the_same_fields() {
        let mut to = ReplyTo {
            redirect_uri: "https://a/cb?x=1".into(),
            mode: ResponseMode::Query,
            state: Some("s&".into()),
        };
        assert_eq!(
            to.code("https://i", "c"),
            Answer::Redirect("https://a/cb?x=1&code=c&iss=https%3A%2F%2Fi&state=s%26".into())
        );
        to.mode = ResponseMode::FormPost;
        to.state = None;
        assert_eq!(
            to.error("https://i", "login_required", "no session"),
            Answer::Form {
                action: "https://a/cb?x=1".into(),
                fields: vec![
                    ("error", "login_required".into()),
                    ("error_description", "no session".into()),
                    ("iss", "https://i".into()),
                ],
            }
        );
    }
}
