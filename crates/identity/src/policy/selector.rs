//! The names by which a rule selects callers, as in Tailscale's own policy file where that has
//! them.

use crate::Caller;

/// One entry of `who`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selector {
    /// `anyone`: every caller, with or without identity.
    Anyone,
    /// `*@example.com`: every user with such a login.
    Domain(String),
    /// `*`: every caller that the tailnet identifies.
    Everybody,
    /// `funnel`: callers from the internet.
    Funnel,
    /// `tag:ci`: machines that have this tag.
    Tag(String),
    /// `alice@example.com`: one user. Where logins have no domain (headscale): `alice`, or `alice@`
    /// if the login is also a keyword here.
    User(String),
}

impl Selector {
    /// Parses one name; the error says what is wrong with it. Groups are resolved by the file's
    /// reader.
    pub fn parse(word: &str) -> Result<Self, String> {
        match word {
            "*" => return Ok(Self::Everybody),
            "anyone" => return Ok(Self::Anyone),
            "funnel" => return Ok(Self::Funnel),
            _ => {}
        }
        if word.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err(format!("{word:?} has a blank in it"));
        }
        if let Some(name) = word.strip_prefix("tag:") {
            let letters = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
            return if letters && name.starts_with(|c: char| c.is_ascii_alphabetic()) {
                Ok(Self::Tag(word.to_owned()))
            } else {
                Err(format!(
                    "{word:?} is no tag: a letter first, then letters, digits and -"
                ))
            };
        }
        match word.split_once('@') {
            Some(("*", domain)) if plain(domain) => Ok(Self::Domain(domain.to_ascii_lowercase())),
            Some((user, domain)) if plain(user) && plain(domain) => {
                Ok(Self::User(word.to_ascii_lowercase()))
            }
            Some((user, "")) if plain(user) => Ok(Self::User(user.to_ascii_lowercase())),
            None if plain(word) => bare(word),
            _ => Err(format!("{word:?} {NOBODY}")),
        }
    }

    /// Whether this selects the caller. Only tags make a caller a machine: the login of a tagged
    /// node is nobody's.
    pub fn matches(&self, caller: &Caller) -> bool {
        match (self, caller) {
            (Self::Anyone, _) | (Self::Funnel, Caller::Funnel(_)) => true,
            (Self::Everybody, caller) => !matches!(caller, Caller::Funnel(_)),
            (Self::Domain(domain), Caller::User(user)) => user
                .login
                .rsplit_once('@')
                .is_some_and(|(_, of)| of.eq_ignore_ascii_case(domain)),
            (Self::Tag(tag), Caller::Machine(machine)) => machine.tags.contains(tag),
            (Self::User(login), Caller::User(user)) => user.login.eq_ignore_ascii_case(login),
            _ => false,
        }
    }
}

const NOBODY: &str = "names nobody: use a login (alice@example.com; alice where logins have no domain), *@domain, tag:name, \
     group:name, * or anyone";

/// A name without `@` is a login. Whether it exists cannot be checked here, and in a denying rule a
/// login of nobody would let everybody through. So names that were probably not meant as logins are
/// refused.
fn bare(word: &str) -> Result<Selector, String> {
    let lower = word.to_ascii_lowercase();
    let meant = if word.parse::<std::net::Ipv4Addr>().is_ok() {
        "is an address; callers are named by login or tag"
    } else if lower == "tagged-devices" {
        "is what all machines with tags are called; name their tags"
    } else if ["all", "any", "anybody", "everybody", "everyone"].contains(&lower.as_str()) {
        "is not a word of rules; everybody with an identity is *, and with or without is anyone"
    } else if ["nobody", "none"].contains(&lower.as_str()) {
        "is not a word of rules; leave the rule out"
    } else if let Some(near) = ["anyone", "funnel"]
        .into_iter()
        .find(|near| strsim::damerau_levenshtein(near, &lower) <= 1)
    {
        return Err(format!(
            "{word:?} is not a word of rules; did you mean {near:?}? A user with that login is \"{word}@\""
        ));
    } else {
        return Ok(Selector::User(lower));
    };
    Err(format!(
        "{word:?} {meant}. A user with that login is \"{word}@\""
    ))
}

fn plain(part: &str) -> bool {
    !part.is_empty() && !part.contains(['*', '@', ',', '/', ':'])
}
