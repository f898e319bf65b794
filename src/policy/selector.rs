//! The words by which a rule names callers. They are those of Tailscale's own policy file, as far as it has them.

use crate::identity::Caller;

/// One entry of `who`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selector {
    /// `anyone`: with or without identity.
    Anyone,
    /// `*@example.com`: every user with such a login.
    Domain(String),
    /// `*`: everybody whom the tailnet identifies.
    Everybody,
    /// `funnel`: callers from the internet.
    Funnel,
    /// `tag:ci`: machines with this tag, among others.
    Tag(String),
    /// `alice@example.com`: one user. Where logins have no domain (headscale) `alice`, or `alice@` for a login that is also a word
    /// of ours.
    User(String),
}

impl Selector {
    /// Reads one word; the error says what is wrong with it. Groups are the file's business.
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

    /// Whether the word means this caller. Tags alone decide what is a machine: the login of a tagged node is nobody's.
    pub fn is(&self, caller: &Caller) -> bool {
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

/// A word without `@` is a login. That nobody has it cannot be seen here, and in a rule that denies it would let everybody through,
/// so words that were hardly meant as one are refused.
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
