//! How a user name and an address of mail are made of a login.
//!
//! Logins are not mail addresses everywhere: headscale has `alice`, Tailscale `alice@github` and
//! `alice@passkey`. Rules say what applications are told instead: `PATTERN=TEMPLATE`, where the
//! first rule counts whose pattern matches the login.
//!
//! Invariants
//! - A template with a part that the login does not have, or an empty one, tells nothing: the claim
//!   is left out.
//! - `email_verified` is `true` only for the domains that the settings list, whose mailboxes belong
//!   to the people who log in with them. An address that is made of the host's name is nobody's.

use std::{fmt, str::FromStr};

use tailbone_values::glob;

/// The longest rule.
const MAX_RULE_BYTES: usize = 512;

/// All that the settings say about names and mail.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Mapping {
    /// For `preferred_username` and `username`.
    pub user_names: Vec<MappingRule>,
    pub mail: Vec<MappingRule>,
    /// Domains whose addresses are verified, in lower case.
    pub verified_domains: Vec<MailDomain>,
}

impl Mapping {
    /// The user name; without a rule what stands before the `@`, as in tsidp.
    pub(super) fn user_name(&self, login: &str, host: &str) -> Option<String> {
        match rule_for(&self.user_names, login) {
            Some(rule) => rule.apply(login, host),
            None => {
                let (name, _) = login.split_once('@')?;
                (!name.is_empty()).then(|| name.to_owned())
            }
        }
    }

    /// The address of mail; without a rule the login, if it is one.
    pub(super) fn mail(&self, login: &str, host: &str) -> Option<Mail> {
        if let Some(rule) = rule_for(&self.mail, login) {
            let address = rule.apply(login, host).filter(|text| is_address(text))?;
            return Some(self.known(address));
        }
        if login.ends_with("@github") || login.ends_with("@passkey") {
            // tsidp makes an address of them, to which nobody can write.
            let address = format!("{login}.{host}");
            let verified = Some(false);
            return Some(Mail { address, verified });
        }
        is_address(login).then(|| self.known(login.to_owned()))
    }

    fn known(&self, address: String) -> Mail {
        let domain = address.rsplit_once('@').map_or("", |(_, domain)| domain);
        let mut listed = self.verified_domains.iter();
        let verified = listed.any(|one| one.0.eq_ignore_ascii_case(domain));
        Mail {
            verified: verified.then_some(true),
            address,
        }
    }
}

/// An address of mail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mail {
    pub(super) address: String,
    /// `None`: nobody here knows.
    pub(super) verified: Option<bool>,
}

fn is_address(text: &str) -> bool {
    matches!(text.rsplit_once('@'), Some((name, domain)) if !name.is_empty() && !domain.is_empty())
}

fn rule_for<'a>(rules: &'a [MappingRule], login: &str) -> Option<&'a MappingRule> {
    let login = login.to_lowercase();
    rules
        .iter()
        .find(|rule| glob::matches(&rule.pattern, &login))
}

/// `*@github={name}@users.example.com`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MappingRule {
    /// As it was written.
    text: String,
    /// In lower case: logins are compared without it.
    pattern: String,
    template: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    /// What stands behind the `@`.
    Domain,
    /// The node's full name.
    Host,
    Login,
    /// What stands before the `@`; the whole login where there is none.
    Name,
}

impl MappingRule {
    fn apply(&self, login: &str, host: &str) -> Option<String> {
        let (name, domain) = login.split_once('@').unwrap_or((login, ""));
        let mut made = String::new();
        for part in &self.template {
            let value = match part {
                Part::Text(text) => text,
                Part::Domain => domain,
                Part::Host => host,
                Part::Login => login,
                Part::Name => name,
            };
            if value.is_empty() {
                return None;
            }
            made.push_str(value);
        }
        (!made.is_empty()).then_some(made)
    }
}

impl FromStr for MappingRule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if text.len() > MAX_RULE_BYTES || text.chars().any(char::is_control) {
            return Err(format!(
                "a rule is longer than {MAX_RULE_BYTES} bytes, or has a control character in it"
            ));
        }
        let parts = text.split_once('=');
        let (pattern, template) = parts
            .filter(|(pattern, _)| !pattern.is_empty())
            .ok_or_else(|| {
                format!("{text:?} is not PATTERN=TEMPLATE, such as *@github={{name}}")
            })?;
        Ok(Self {
            text: text.to_owned(),
            pattern: pattern.to_lowercase(),
            template: template_of(template)?,
        })
    }
}

impl fmt::Display for MappingRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn template_of(text: &str) -> Result<Vec<Part>, String> {
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('{') {
        let (word, behind) = after
            .split_once('}')
            .ok_or_else(|| format!("{text:?} has a {{ without its }}"))?;
        if !before.is_empty() {
            parts.push(Part::Text(before.to_owned()));
        }
        parts.push(match word {
            "domain" => Part::Domain,
            "host" => Part::Host,
            "login" => Part::Login,
            "name" => Part::Name,
            _ => {
                return Err(format!(
                    "{{{word}}} is not known: there are {{login}}, {{name}}, {{domain}} and {{host}}"
                ));
            }
        });
        rest = behind;
    }
    if !rest.is_empty() {
        parts.push(Part::Text(rest.to_owned()));
    }
    Ok(parts)
}

/// A domain of mail addresses, in lower case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MailDomain(String);

impl FromStr for MailDomain {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.');
        let fits = text.contains('.')
            && text.bytes().all(plain)
            && text.split('.').all(|label| !label.is_empty());
        if fits {
            Ok(Self(text.to_ascii_lowercase()))
        } else {
            Err(format!("{text:?} is no domain such as example.com"))
        }
    }
}

impl fmt::Display for MailDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(texts: &[&str]) -> Vec<MappingRule> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn the_first_rule_that_matches_makes_the_name() {
        let mapping = Mapping {
            user_names: rules(&[
                "root=",
                "Alice@GitHub=al",
                "*@github={name}-gh",
                "*@*={login}",
                "*={name}",
            ]),
            ..Mapping::default()
        };
        for (login, name) in [
            ("root", None),
            ("alice@github", Some("al")),
            ("bob@github", Some("bob-gh")),
            ("carol@example.com", Some("carol@example.com")),
            ("dave", Some("dave")),
        ] {
            let made = mapping.user_name(login, "h.example");
            assert_eq!(made.as_deref(), name, "{login}");
        }
    }

    #[test]
    fn mail_is_an_address_or_nothing_and_is_verified_where_its_domain_is_listed() {
        let plain = Mapping {
            verified_domains: vec!["Example.com".parse().unwrap()],
            ..Mapping::default()
        };
        let mapped = Mapping {
            mail: rules(&[
                "*@github={name}@example.com",
                "*@passkey=",
                "*@*={login}",
                "*={name}@{domain}",
            ]),
            ..plain.clone()
        };
        let some = |address: &str, verified| {
            let address = address.to_owned();
            Some(Mail { address, verified })
        };
        for (login, without, with) in [
            (
                "a@EXAMPLE.com",
                some("a@EXAMPLE.com", Some(true)),
                some("a@EXAMPLE.com", Some(true)),
            ),
            (
                "a@sub.example.com",
                some("a@sub.example.com", None),
                some("a@sub.example.com", None),
            ),
            (
                "a@github",
                some("a@github.h.example", Some(false)),
                some("a@example.com", Some(true)),
            ),
            ("a@passkey", some("a@passkey.h.example", Some(false)), None),
            ("alice", None, None),
            ("alice@", None, None),
            ("", None, None),
        ] {
            assert_eq!(plain.mail(login, "h.example"), without, "{login}");
            assert_eq!(mapped.mail(login, "h.example"), with, "{login}");
        }
    }

    #[test]
    fn what_is_no_rule_is_refused_with_a_reason() {
        for (text, words) in [
            ("", "is not PATTERN=TEMPLATE"),
            ("=x", "is not PATTERN=TEMPLATE"),
            ("alice", "is not PATTERN=TEMPLATE"),
            ("*={mail}", "{mail} is not known"),
            ("*={name", "has a { without its }"),
            ("*=a\nb", "control character"),
        ] {
            let error = text.parse::<MappingRule>().unwrap_err();
            assert!(error.contains(words), "{text:?}: {error}");
        }
        for wrong in ["", "com", "a@example.com", "*.example.com", "example..com"] {
            assert!(wrong.parse::<MailDomain>().is_err(), "{wrong}");
        }
    }
}
