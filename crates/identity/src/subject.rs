//! The subject of a caller's tokens: a template that names the calling node.
//!
//! | In the template | Becomes |
//! |---|---|
//! | `{id}` | the stable node id, which survives renames and is never given to another node |
//! | `{name}` | the full MagicDNS name, as in tsiam; it may pass to another node |
//! | `{label}` | the first label of that name |
//! | `{tag}` | the node's tag without `tag:`; a node with several tags, or none, gets no token |
//! | `{user}` | the login of the node's owner; a tagged node gets no token |
//! | `{tailnet}` | the MagicDNS suffix of the node's tailnet |
//!
//! Everything else stands for itself. A template that begins with `spiffe://` makes SPIFFE IDs, and
//! a subject that is none is refused.

use std::fmt;

use super::{Caller, Visitor};

/// The most bytes that a SPIFFE ID may have. Azure takes 600 characters, Google Cloud 127.
const MAX_BYTES: usize = 2048;

/// A checked template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubjectTemplate {
    text: String,
    pieces: Vec<Piece>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Literal(String),
    Id,
    Label,
    Name,
    Tag,
    Tailnet,
    User,
}

/// Why a caller has no subject.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoSubject {
    #[error("the subject is made of the node's tag, and this node has {0} tags, not one")]
    NotOneTag(usize),
    #[error("the subject is made of the node's owner, and this node is tagged")]
    NoUser,
    #[error("the subject is made of the node's tailnet, which is not known")]
    NoTailnet,
    #[error("{0:?} is not a SPIFFE ID")]
    NotSpiffe(String),
    #[error("the subject would be longer than {MAX_BYTES} bytes")]
    TooLong,
}

impl SubjectTemplate {
    /// The error says what is wrong with the template.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some(open) = rest.find('{') {
            let (literal, after) = rest.split_at(open);
            let (word, after) = after
                .get(1..)
                .and_then(|after| after.split_once('}'))
                .ok_or("a { has no } after it")?;
            pieces.push(Piece::Literal(literal.to_owned()));
            pieces.push(match word {
                "id" => Piece::Id,
                "label" => Piece::Label,
                "name" => Piece::Name,
                "tag" => Piece::Tag,
                "tailnet" => Piece::Tailnet,
                "user" => Piece::User,
                _ => {
                    return Err(format!(
                        "{{{word}}} is not known: there are {{id}}, {{name}}, {{label}}, {{tag}}, {{user}} and {{tailnet}}"
                    ));
                }
            });
            rest = after;
        }
        pieces.push(Piece::Literal(rest.to_owned()));
        pieces.retain(|piece| !matches!(piece, Piece::Literal(text) if text.is_empty()));
        let tells_callers_apart =
            |piece: &Piece| !matches!(piece, Piece::Literal(_) | Piece::Tailnet);
        if !pieces.iter().any(tells_callers_apart) {
            return Err("all callers would have the same subject: put {id}, {name}, {label}, {tag} or {user} into it".into());
        }
        if text.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err("a subject has no blanks in it".into());
        }
        Ok(Self {
            text: text.to_owned(),
            pieces,
        })
    }

    /// The subject of this caller.
    pub fn of(&self, visitor: &Visitor) -> Result<String, NoSubject> {
        let mut subject = String::new();
        for piece in &self.pieces {
            match piece {
                Piece::Literal(text) => subject.push_str(text),
                Piece::Id => subject.push_str(visitor.node_id()),
                Piece::Name => subject.push_str(visitor.node_name()),
                Piece::Label => subject.push_str(first_label(visitor.node_name())),
                Piece::Tag => subject.push_str(only_tag(visitor.caller_any_tailnet())?),
                Piece::User => match visitor.caller_any_tailnet() {
                    Caller::User(user) => subject.push_str(&user.login),
                    _ => return Err(NoSubject::NoUser),
                },
                Piece::Tailnet if visitor.tailnet().is_empty() => {
                    return Err(NoSubject::NoTailnet);
                }
                Piece::Tailnet => subject.push_str(visitor.tailnet()),
            }
        }
        if subject.len() > MAX_BYTES {
            return Err(NoSubject::TooLong);
        }
        if self.text.starts_with(SPIFFE) && !is_spiffe_id(&subject) {
            return Err(NoSubject::NotSpiffe(subject));
        }
        Ok(subject)
    }
}

/// As it was written.
impl fmt::Display for SubjectTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn first_label(name: &str) -> &str {
    name.split('.').next().unwrap_or_default()
}

fn only_tag(caller: &Caller) -> Result<&str, NoSubject> {
    let tags = match caller {
        Caller::Machine(machine) => machine.tags.as_slice(),
        _ => &[],
    };
    match tags {
        [tag] => Ok(tag.strip_prefix("tag:").unwrap_or(tag)),
        tags => Err(NoSubject::NotOneTag(tags.len())),
    }
}

const SPIFFE: &str = "spiffe://";

/// The SPIFFE ID standard, section 2: a trust domain in lower case, and a path whose segments are
/// neither empty nor relative.
fn is_spiffe_id(text: &str) -> bool {
    let Some(rest) = text.strip_prefix(SPIFFE) else {
        return false;
    };
    let (domain, path) = match rest.split_once('/') {
        Some((domain, path)) => (domain, Some(path)),
        None => (rest, None),
    };
    let in_domain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b".-_".contains(&b);
    let in_path = |b: u8| b.is_ascii_alphanumeric() || b".-_".contains(&b);
    let segment =
        |segment: &str| !matches!(segment, "" | "." | "..") && segment.bytes().all(in_path);
    (1..=255).contains(&domain.len())
        && domain.bytes().all(in_domain)
        && path.is_none_or(|path| path.split('/').all(segment))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tailbone_tailnet::{WhoIs, WhoIsNode, WhoIsUser};

    fn node(tags: &[&str]) -> Visitor {
        let whois = WhoIs {
            node: WhoIsNode {
                id: "nABC123CNTRL".into(),
                name: "web.tail1.ts.net".into(),
                tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
                ..WhoIsNode::default()
            },
            user: WhoIsUser {
                id: 1,
                login: "alice@example.com".into(),
                ..WhoIsUser::default()
            },
            same_tailnet: true,
            ..WhoIs::default()
        };
        Visitor::from_whois(whois, "tail1.ts.net").unwrap()
    }

    fn subject(template: &str, tags: &[&str]) -> Result<String, NoSubject> {
        SubjectTemplate::parse(template).unwrap().of(&node(tags))
    }

    #[test]
    fn every_word_of_a_template() {
        let web = &["tag:web"];
        let of = |template| subject(template, web).unwrap();
        assert_eq!(of("{name}"), "web.tail1.ts.net");
        assert_eq!(of("{id}"), "nABC123CNTRL");
        assert_eq!(of("{tailnet}/{label}"), "tail1.ts.net/web");
        assert_eq!(of("tag:{tag}"), "tag:web");
        assert_eq!(
            of("spiffe://{tailnet}/node/{id}"),
            "spiffe://tail1.ts.net/node/nABC123CNTRL"
        );
        assert_eq!(subject("{user}", &[]).unwrap(), "alice@example.com");
    }

    #[test]
    fn a_caller_without_the_part_that_is_asked_for_has_no_subject() {
        let several = &["tag:web", "tag:ci"];
        assert_eq!(subject("{tag}", several), Err(NoSubject::NotOneTag(2)));
        assert_eq!(subject("{tag}", &[]), Err(NoSubject::NotOneTag(0)));
        assert_eq!(subject("{user}", &["tag:web"]), Err(NoSubject::NoUser));
        let id = "spiffe://tail1.ts.net/alice@example.com".to_owned();
        assert_eq!(
            subject("spiffe://{tailnet}/{user}", &[]),
            Err(NoSubject::NotSpiffe(id))
        );
    }

    #[test]
    fn a_template_must_tell_callers_apart() {
        for wrong in ["", "everybody", "{tailnet}", "{nmae}", "{id", "a b{id}"] {
            assert!(SubjectTemplate::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn spiffe_ids() {
        for good in ["spiffe://a", "spiffe://a.b-c_d/x/Y.z"] {
            assert!(is_spiffe_id(good), "{good}");
        }
        for bad in [
            "spiffe://",
            "spiffe://A/x",
            "spiffe://a/",
            "spiffe://a//b",
            "spiffe://a/../b",
            "spiffe://a:1/b",
            "spiffe://a/b%20",
            "https://a/b",
        ] {
            assert!(!is_spiffe_id(bad), "{bad}");
        }
    }
}
