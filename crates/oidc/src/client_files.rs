//! Clients that files describe: what a file says, and what a change of files changes, in words.
//!
//! A file has the members of a registration (RFC 7591) and some of ours: `access`, `client_id`,
//! `client_secret` and `login`. How the files are found and written is for the program; the store
//! applies them ([`crate::store::Store::apply_clients`]).
//!
//! Invariants
//! - A file has no secret in plain text, only where one is. No sentence has a secret either.
//! - A member that means nothing is a mistake: it was written for a reason.

use std::path::Path;

use jiff::Timestamp;
use serde::{
    Deserialize as _, Deserializer,
    de::{Error as _, Visitor, value},
    forward_to_deserialize_any,
};
use serde_json::{Map, Value};
use tailbone_values::Secret;

use crate::{
    client::{BadMetadata, ClientMetadata, Offered},
    store::{Client, ClientChange, ClientOrigin, ClientSecret, Digest, MAX_NAME},
};

const CLIENT_ID: &str = "client_id";
const CLIENT_SECRET: &str = "client_secret";

/// Bytes of a secret. Its digest is stored without salt, so it must not be a word.
const MIN_SECRET: usize = 16;

/// Secrets of one client: the one of now, and its successors.
const MAX_SECRETS: usize = 8;

/// Why a file describes no client. The file's name and the line are added by its reader.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadClient {
    #[error("{member} {what}")]
    Member { member: String, what: String },
    #[error("{0}")]
    Missing(String),
    #[error("{member} is not among the members of a client")]
    Unknown { member: String },
}

impl BadClient {
    /// The member of the file that is wrong.
    pub fn member(&self) -> Option<&str> {
        match self {
            Self::Member { member, .. } | Self::Unknown { member } => Some(member),
            Self::Missing(_) => None,
        }
    }
}

/// The names that a file may use.
pub fn members() -> impl Iterator<Item = &'static str> {
    [CLIENT_ID, CLIENT_SECRET]
        .into_iter()
        .chain(metadata_members())
}

/// The client of a file of this name. `secret` finds the secret of a reference.
pub fn read(
    file: &str,
    mut file_members: Map<String, Value>,
    offered: Offered<'_>,
    secret: impl Fn(&str) -> Result<Secret, String>,
    now: Timestamp,
) -> Result<Client, BadClient> {
    file_members.retain(|_, value| !value.is_null());
    if let Some(member) = file_members
        .keys()
        .find(|member| !members().any(|known| known == member.as_str()))
    {
        let member = member.clone();
        return Err(BadClient::Unknown { member });
    }
    let id = id(file, file_members.remove(CLIENT_ID))?;
    let secrets = match file_members.remove(CLIENT_SECRET) {
        Some(given) => secrets(given, secret, now)?,
        None => Vec::new(),
    };
    for (member, value) in &file_members {
        check_kind(member, value)?;
    }
    let metadata =
        ClientMetadata::described(file_members, offered).map_err(|error| bad_metadata(&error))?;
    let method = metadata.token_endpoint_auth_method;
    if method.has_secret() && secrets.is_empty() {
        return Err(BadClient::Missing(
            "client_secret is missing: name the file of the secret (file:PATH) or a variable of \
             the environment (env:NAME), or set token_endpoint_auth_method to none or \
             private_key_jwt"
                .to_owned(),
        ));
    }
    if !method.has_secret() && !secrets.is_empty() {
        let what = "is for clients that authenticate by client_secret_basic or client_secret_post";
        return Err(bad(CLIENT_SECRET, what));
    }
    let metadata = metadata
        .to_stored()
        .map_err(|error| BadClient::Missing(error.to_string()))?;
    Ok(Client {
        id,
        origin: ClientOrigin::File,
        owner: Some(file.to_owned()),
        secrets,
        registration_token: None,
        metadata,
        created_at: now,
        updated_at: now,
        expires_at: None,
        version: 1,
    })
}

fn bad(member: &str, what: impl Into<String>) -> BadClient {
    BadClient::Member {
        member: member.to_owned(),
        what: what.into(),
    }
}

/// As the file says, or the file's name without its extension.
fn id(file: &str, given: Option<Value>) -> Result<String, BadClient> {
    let id = match given {
        Some(Value::String(id)) => id,
        Some(_) => return Err(bad(CLIENT_ID, "is not a text")),
        None => {
            let stem = Path::new(file).file_stem().unwrap_or_default();
            stem.to_string_lossy().into_owned()
        }
    };
    // RFC 6749, appendix A.1, without the blank.
    let printable = !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_graphic());
    if printable && id.len() <= MAX_NAME {
        return Ok(id);
    }
    let what = "is not made of letters, digits and punctuation of ASCII; without it the file's \
                name is the id";
    Err(bad(CLIENT_ID, what))
}

/// One reference, or a list of them while a secret is exchanged for another.
fn secrets(
    given: Value,
    secret: impl Fn(&str) -> Result<Secret, String>,
    now: Timestamp,
) -> Result<Vec<ClientSecret>, BadClient> {
    let references = match given {
        Value::String(reference) => vec![Value::String(reference)],
        Value::Array(references) if references.len() <= MAX_SECRETS => references,
        _ => {
            let what = format!("is one reference, or a list of at most {MAX_SECRETS}");
            return Err(bad(CLIENT_SECRET, what));
        }
    };
    let mut secrets: Vec<ClientSecret> = Vec::new();
    for reference in references {
        let reference = reference.as_str().unwrap_or_default();
        let secret = secret(reference).map_err(|what| bad(CLIENT_SECRET, what))?;
        if secret.reveal().len() < MIN_SECRET {
            let what = format!("is shorter than {MIN_SECRET} bytes, so it can be guessed");
            return Err(bad(CLIENT_SECRET, what));
        }
        let digest = Digest::of(secret.reveal());
        if secrets.iter().all(|known| known.digest != digest) {
            secrets.push(ClientSecret {
                digest,
                created_at: now,
                expires_at: None,
            });
        }
    }
    Ok(secrets)
}

/// Whether a member of the metadata has a value of its kind; what serde says repeats the value.
fn check_kind(member: &str, value: &Value) -> Result<(), BadClient> {
    let alone = Map::from_iter([(member.to_owned(), value.clone())]);
    let Err(error) = ClientMetadata::deserialize(Value::Object(alone)) else {
        return Ok(());
    };
    let error = error.to_string();
    let expected = error.rsplit_once("expected ").map(|(_, kind)| kind);
    let kind = match expected {
        Some("a sequence") => "a list of texts",
        Some("a string") => "a text",
        Some("a boolean") => "true or false",
        Some("u64") => "a whole number that is not negative",
        Some(kind) => kind,
        None => "something else",
    };
    Err(bad(
        member,
        format!("has a value of the wrong kind: it must be {kind}"),
    ))
}

/// Most sentences about a registration begin with the member.
fn bad_metadata(error: &BadMetadata) -> BadClient {
    let sentence = error.to_string();
    match error {
        BadMetadata::NoRedirectUri => return BadClient::Missing(sentence),
        BadMetadata::RedirectUri { number, why } => {
            return bad("redirect_uris", format!("number {number} {why}"));
        }
        BadMetadata::NotJson | BadMetadata::Other(_) => {}
    }
    for member in metadata_members() {
        if let Some(what) = sentence.strip_prefix(member)
            && let Some(what) = what.strip_prefix(' ')
        {
            return bad(member, what);
        }
    }
    BadClient::Missing(sentence)
}

/// The members of [`ClientMetadata`], as serde knows them.
fn metadata_members() -> impl Iterator<Item = &'static str> {
    let mut names = Names(&[]);
    // It reads nothing, so it fails; only the names count.
    let _ = ClientMetadata::deserialize(&mut names);
    names.0.iter().copied()
}

struct Names(&'static [&'static str]);

impl<'de> Deserializer<'de> for &mut Names {
    type Error = value::Error;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Self::Error> {
        Err(value::Error::custom("nothing to read"))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Self::Error> {
        self.0 = fields;
        Err(value::Error::custom("nothing to read"))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option
        unit unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

/// One line of a diff.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberChange {
    pub member: String,
    pub before: Option<Value>,
    pub after: Option<Value>,
}

/// What a change does to the members of a client; empty for one that is kept or unchanged. Secrets
/// are counted, and never told.
pub fn differences(change: &ClientChange) -> Vec<MemberChange> {
    let (before, after) = match change {
        ClientChange::Added(after) => (None, Some(after)),
        ClientChange::Changed { before, after } => (Some(&**before), Some(&**after)),
        ClientChange::Removed(before) => (Some(before), None),
        ClientChange::Kept(_) | ClientChange::Unchanged(_) => return Vec::new(),
    };
    let (mut old, mut new) = (shown(before), shown(after));
    if let (Some(before), Some(after)) = (before, after) {
        let is_new = |secret: &&ClientSecret| {
            let mut known = before.secrets.iter();
            known.all(|known| known.digest != secret.digest)
        };
        let count = after.secrets.iter().filter(is_new).count();
        if count > 0 {
            let words = format!("{} ({count} new)", secret_count(after));
            new.insert(CLIENT_SECRET.to_owned(), words.into());
        }
    } else {
        // Who owns it is a change only where somebody else did.
        old.remove("owner");
        new.remove("owner");
    }
    let mut names: Vec<String> = old.keys().chain(new.keys()).cloned().collect();
    names.sort_unstable();
    names.dedup();
    let changes = names.into_iter().map(|member| MemberChange {
        before: old.remove(&member),
        after: new.remove(&member),
        member,
    });
    changes.filter(|one| one.before != one.after).collect()
}

/// A client's members for people.
fn shown(client: Option<&Client>) -> Map<String, Value> {
    let Some(client) = client else {
        return Map::new();
    };
    let mut members: Map<String, Value> =
        serde_json::from_str(&client.metadata).unwrap_or_default();
    members.insert("owner".to_owned(), client.origin.owner().into());
    if client.origin == ClientOrigin::File {
        members.insert("file".to_owned(), client.owner.clone().into());
    }
    if !client.secrets.is_empty() {
        members.insert(CLIENT_SECRET.to_owned(), secret_count(client).into());
    }
    members
}

fn secret_count(client: &Client) -> String {
    match client.secrets.len() {
        1 => "1 secret".to_owned(),
        count => format!("{count} secrets"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::discovery;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;
    const SECRET: &str = "0123456789abcdef";

    fn offered() -> Offered<'static> {
        Offered {
            auth_methods: &discovery::AUTH_METHODS,
            grant_types: &["authorization_code", "refresh_token", "client_credentials"],
            id_token_algorithms: &["RS256", "ES256"],
        }
    }

    fn read(file: &str, members: Value) -> Result<Client, BadClient> {
        let Value::Object(members) = members else {
            panic!("{members}");
        };
        let secret = |reference: &str| match reference {
            "env:APP" => Ok(Secret::new(SECRET)),
            "env:NEXT" => Ok(Secret::new(SECRET.repeat(2))),
            "env:SHORT" => Ok(Secret::new("hunter2")),
            _ => Err("is no reference".to_owned()),
        };
        super::read(file, members, offered(), secret, NOW)
    }

    fn app(member: &str, value: Value) -> Value {
        let mut all = json!({"redirect_uris": ["https://a/cb"], "client_secret": "env:APP"});
        all[member] = value;
        all
    }

    #[test]
    fn a_file_describes_a_client() {
        let members = app("login", json!("silent"));
        let client = read("grafana.yaml", members).unwrap();
        assert_eq!(client.id, "grafana");
        assert_eq!(client.origin, ClientOrigin::File);
        assert_eq!(client.owner.as_deref(), Some("grafana.yaml"));
        assert!(client.secrets[0].digest.matches(SECRET));
        let metadata: Value = serde_json::from_str(&client.metadata).unwrap();
        assert_eq!(
            metadata,
            json!({"redirect_uris": ["https://a/cb"], "login": "silent",
                "token_endpoint_auth_method": "client_secret_basic", "application_type": "web",
                "grant_types": ["authorization_code"], "response_types": ["code"]})
        );
        let named = read("x.toml", app("client_id", json!("other"))).unwrap();
        assert_eq!(named.id, "other");
        let null = read("x.toml", app("client_name", Value::Null)).unwrap();
        assert!(!null.metadata.contains("client_name"));
    }

    #[test]
    fn a_client_may_have_two_secrets_for_a_while_or_none() {
        let both = app("client_secret", json!(["env:APP", "env:NEXT", "env:APP"]));
        assert_eq!(read("a.toml", both).unwrap().secrets.len(), 2);
        let public = json!({"redirect_uris": ["x:/cb"], "token_endpoint_auth_method": "none"});
        assert_eq!(read("a.toml", public).unwrap().secrets, []);
    }

    #[test]
    fn a_mistake_names_its_member_and_no_secret() {
        for (members, member, words) in [
            (
                app("redirect_uri", json!("https://a")),
                Some("redirect_uri"),
                "not among",
            ),
            (
                app("registration_access_token", json!("t")),
                Some("registration_access_token"),
                "",
            ),
            (
                app("redirect_uris", json!("https://a")),
                Some("redirect_uris"),
                "a list of texts",
            ),
            (
                app("redirect_uris", json!(["javascript:1"])),
                Some("redirect_uris"),
                "number 1 ",
            ),
            (
                app("client_name", json!(1)),
                Some("client_name"),
                "must be a text",
            ),
            (
                app("login", json!("never")),
                Some("login"),
                "`confirm` or `silent`",
            ),
            (
                app("default_max_age", json!(-1)),
                Some("default_max_age"),
                "a whole number",
            ),
            (
                app("grant_types", json!(["password"])),
                Some("grant_types"),
                "is one of",
            ),
            (
                app("token_endpoint_auth_method", json!("tls_client_auth")),
                Some("token_endpoint_auth_method"),
                "is one of",
            ),
            (
                app("token_endpoint_auth_method", json!("none")),
                Some("client_secret"),
                "is for",
            ),
            (
                app("client_secret", json!("hunter2hunter2hunter2")),
                Some("client_secret"),
                "",
            ),
            (
                app("client_secret", json!("env:SHORT")),
                Some("client_secret"),
                "16 bytes",
            ),
            (
                app("client_secret", json!({"a": 1})),
                Some("client_secret"),
                "a list of at most 8",
            ),
            (
                app("client_secret", json!([])),
                None,
                "client_secret is missing",
            ),
            (
                app("client_secret", Value::Null),
                None,
                "client_secret is missing",
            ),
            (
                app("redirect_uris", Value::Null),
                None,
                "redirect_uris is required",
            ),
            (app("client_id", json!("a b")), Some("client_id"), "ASCII"),
            (app("client_id", json!("")), Some("client_id"), "ASCII"),
            (
                app("client_id", json!(7)),
                Some("client_id"),
                "is not a text",
            ),
        ] {
            let error = read("a.toml", members.clone()).expect_err(&members.to_string());
            let said = error.to_string();
            assert_eq!(error.member(), member, "{said}");
            assert!(said.contains(words), "{said}");
            assert!(!said.contains("hunter2"), "{said}");
        }
        assert_eq!(
            read("ä.toml", json!({})).unwrap_err().member(),
            Some(CLIENT_ID)
        );
    }

    #[test]
    fn the_names_are_those_of_the_metadata_and_ours() {
        let names: Vec<_> = members().collect();
        for name in [
            "client_id",
            "client_secret",
            "login",
            "redirect_uris",
            "jwks_uri",
        ] {
            assert!(names.contains(&name), "{names:?}");
        }
    }

    #[test]
    fn a_diff_tells_each_member_and_counts_secrets() {
        let lines = |change: &ClientChange| -> Vec<String> {
            let text = |value: Option<Value>| value.map_or("-".to_owned(), |one| one.to_string());
            let changes = differences(change)
                .into_iter()
                .map(|one| format!("{} {} {}", one.member, text(one.before), text(one.after)));
            changes.collect()
        };
        let before = read("a.toml", app("client_name", json!("A"))).unwrap();
        let mut after = read("a.toml", app("scope", json!("openid"))).unwrap();
        after.secrets.push(ClientSecret {
            digest: Digest::of("another"),
            ..after.secrets[0]
        });
        let added = lines(&ClientChange::Added(before.clone()));
        assert!(
            added.contains(&r#"client_secret - "1 secret""#.to_owned()),
            "{added:?}"
        );
        assert!(
            added.contains(&r#"file - "a.toml""#.to_owned()),
            "{added:?}"
        );
        assert!(
            !added.iter().any(|line| line.starts_with("owner")),
            "{added:?}"
        );
        let change = |before: &Client, after: &Client| ClientChange::Changed {
            before: Box::new(before.clone()),
            after: Box::new(after.clone()),
        };
        assert_eq!(
            lines(&change(&before, &after)),
            [
                r#"client_name "A" -"#,
                r#"client_secret "1 secret" "2 secrets (1 new)""#,
                r#"scope - "openid""#,
            ]
        );
        let registered = Client {
            origin: ClientOrigin::Registered,
            owner: Some("alice".to_owned()),
            secrets: vec![ClientSecret {
                digest: Digest::of("old"),
                ..before.secrets[0]
            }],
            ..before.clone()
        };
        assert_eq!(
            lines(&change(&registered, &before)),
            [
                r#"client_secret "1 secret" "1 secret (1 new)""#,
                r#"file - "a.toml""#,
                r#"owner "registered" "file""#,
            ]
        );
        assert_eq!(lines(&ClientChange::Unchanged(before.clone())), [""; 0]);
        assert!(lines(&ClientChange::Removed(before)).contains(&r#"file "a.toml" -"#.to_owned()));
    }
}
