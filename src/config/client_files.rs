//! The folder of `oidc.clientsDir`: one file describes one client of the OpenID provider.
//!
//! Invariants
//! - All files are read, or none counts: a folder with mistakes gives nothing but them.
//! - A mistake has its file, and its line where there is one. None of them has a secret.
//! - Secrets stand in files or variables of their own, which is what `client_secret` names.

use std::{
    collections::BTreeMap,
    fmt, fs,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use serde::{
    Deserializer,
    de::{DeserializeSeed, IgnoredAny, MapAccess, Visitor},
};
use serde_json::{Map, Value};
use tailbone_identity::policy::Selector;
use tailbone_keys::Algorithm;
use tailbone_oidc::{
    client::Offered,
    client_files::{self, BadClient},
    discovery::AUTH_METHODS,
    store::Client,
    token::{Offers, REFRESH_TOKEN},
};

use super::{
    Environment, Secret,
    file::{self, FileFormat},
    parse::{check_secret, secret_file},
    printable,
    raw::suggestion,
};

/// More files than a folder of clients has.
const MAX_FILES: usize = 10_000;

/// Where the files are, and what clients may choose from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientFolder {
    pub dir: PathBuf,
    pub algorithms: Vec<Algorithm>,
    pub token_exchange: bool,
}

/// Everything that is wrong with the files, a line each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadClientFiles(pub Vec<String>);

/// A word of `access`: whom a client admits.
#[derive(Debug, PartialEq, Eq)]
pub enum AccessWord<'a> {
    /// A group of the file of rules.
    Group(&'a str),
    /// A login, `*@domain` or `*`.
    Login(Selector),
}

impl<'a> AccessWord<'a> {
    /// The error says what is wrong with the word.
    pub fn parse(word: &'a str) -> Result<Self, String> {
        match word.strip_prefix("group:") {
            Some("") => return Err(format!("{word:?} names no group")),
            Some(group) => return Ok(Self::Group(group)),
            None => {}
        }
        match Selector::parse(word)? {
            Selector::Anyone | Selector::Funnel | Selector::Tag(_) => {
                Err(format!("{word:?} names no person"))
            }
            login @ (Selector::Domain(_) | Selector::Everybody | Selector::User(_)) => {
                Ok(Self::Login(login))
            }
        }
    }
}

impl fmt::Display for BadClientFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for BadClientFiles {}

impl ClientFolder {
    /// Reads all files: those whose names end in `.yaml`, `.yml`, `.toml` or `.json` and do not
    /// begin with a dot.
    pub fn read(
        &self,
        environment: &Environment,
        now: Timestamp,
    ) -> Result<Vec<Client>, BadClientFiles> {
        let mut mistakes = Vec::new();
        let mut clients: BTreeMap<String, Client> = BTreeMap::new();
        let files = self
            .files()
            .map_err(|mistake| BadClientFiles(vec![mistake]))?;
        for (name, format) in files {
            match self.client(&name, format, environment, now) {
                Ok(client) => {
                    if let Some(other) = clients.get(&client.id) {
                        let other = other.owner.as_deref().unwrap_or_default();
                        mistakes.push(format!(
                            "{}: describes the client {:?}, as {other} does",
                            self.dir.join(&name).display(),
                            client.id
                        ));
                    } else {
                        clients.insert(client.id.clone(), client);
                    }
                }
                Err(mistake) => mistakes.push(mistake),
            }
        }
        if mistakes.is_empty() {
            return Ok(clients.into_values().collect());
        }
        Err(BadClientFiles(mistakes))
    }

    /// In the order of their names.
    fn files(&self) -> Result<Vec<(String, FileFormat)>, String> {
        let dir = self.dir.display();
        let failed = |error| format!("{dir}: the folder of clients cannot be read: {error}");
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let Some(format) = format_of(&path).filter(|_| path.is_file()) else {
                continue;
            };
            match path.file_name().and_then(|name| name.to_str()) {
                Some(name) if name.starts_with('.') => {}
                Some(name) => files.push((name.to_owned(), format)),
                None => return Err(format!("{}: the name is not UTF-8", path.display())),
            }
            if files.len() > MAX_FILES {
                return Err(format!("{dir}: has more than {MAX_FILES} files of clients"));
            }
        }
        files.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        Ok(files)
    }

    fn client(
        &self,
        name: &str,
        format: FileFormat,
        environment: &Environment,
        now: Timestamp,
    ) -> Result<Client, String> {
        let path = self.dir.join(name);
        let text =
            file::text_of(&path).map_err(|bad| format!("{}: {}", path.display(), bad.sentence))?;
        let secret = |reference: &str| self.secret(reference, environment);
        self.described(name, &text, format, secret, now)
            .map_err(|(line, sentence)| match line {
                Some(line) => format!("{}, line {line}: {sentence}", path.display()),
                None => format!("{}: {sentence}", path.display()),
            })
    }

    /// The client of a text; otherwise the line, if there is one, and what is wrong there.
    fn described(
        &self,
        name: &str,
        text: &str,
        format: FileFormat,
        secret: impl Fn(&str) -> Result<Secret, String>,
        now: Timestamp,
    ) -> Result<Client, (Option<usize>, String)> {
        let members = members(text, format)?;
        let words = members.get("access").and_then(Value::as_array);
        if words.is_some_and(Vec::is_empty) {
            let line = line_of(text, format, "access", 1);
            let sentence = "access: an empty list names nobody: leave it out to admit whom the \
                            rules admit";
            return Err((line, sentence.to_owned()));
        }
        let words = words.into_iter().flatten().filter_map(Value::as_str);
        for word in words {
            if let Err(why) = AccessWord::parse(word) {
                let line = line_of(text, format, "access", 1);
                return Err((line, format!("access: {}", printable(&why))));
            }
        }
        let algorithms: Vec<&str> = self.algorithms.iter().map(|one| one.as_str()).collect();
        let offers = Offers {
            token_exchange: self.token_exchange,
        };
        let mut grant_types = offers.grant_types();
        grant_types.push(REFRESH_TOKEN);
        let offered = Offered {
            auth_methods: &AUTH_METHODS,
            grant_types: &grant_types,
            id_token_algorithms: &algorithms,
        };
        client_files::read(name, members, offered, secret, now).map_err(|bad| {
            let line = bad
                .member()
                .and_then(|member| line_of(text, format, member, 1));
            (line, sentence(&bad))
        })
    }

    fn secret(&self, reference: &str, environment: &Environment) -> Result<Secret, String> {
        let secret = if let Some(path) = reference.strip_prefix("file:") {
            secret_file(&self.dir.join(path)).map_err(|why| format!("cannot be had: {why}"))?
        } else if let Some(name) = reference.strip_prefix("env:") {
            let text = environment.text(name).ok_or_else(|| {
                format!("names the variable {}, which is not set", printable(name))
            })?;
            Secret::new(text.trim_end_matches(['\r', '\n']))
        } else {
            return Err(
                "is no secret, but names the file of one (file:PATH) or a variable of the \
                 environment (env:NAME)"
                    .to_owned(),
            );
        };
        check_secret(&secret, false).map_err(|why| format!("names no secret: it {why}"))?;
        Ok(secret)
    }
}

fn sentence(bad: &BadClient) -> String {
    match bad {
        BadClient::Unknown { member } => {
            let known: Vec<_> = client_files::members().collect();
            let member = printable(member);
            match suggestion(&member, known.into_iter()) {
                Some(meant) => {
                    format!("{member} is not among the members of a client; did you mean {meant}?")
                }
                None => format!("{member} is not among the members of a client"),
            }
        }
        BadClient::Member { .. } | BadClient::Missing(_) => bad.to_string(),
    }
}

fn format_of(path: &Path) -> Option<FileFormat> {
    match path.extension()?.to_str()? {
        "json" => Some(FileFormat::Json),
        "toml" => Some(FileFormat::Toml),
        "yaml" | "yml" => Some(FileFormat::Yaml),
        _ => None,
    }
}

/// The members of a file. What its parser says is not repeated: it may quote the file.
fn members(text: &str, format: FileFormat) -> Result<Map<String, Value>, (Option<usize>, String)> {
    let words = match format {
        FileFormat::Json => "is not JSON, or no object",
        FileFormat::Toml => "is not TOML",
        FileFormat::Yaml => "is not YAML, or no mapping of names to values",
    };
    let Members(list) =
        deserialize(text, format, MembersSeed).map_err(|line| (line, words.to_owned()))?;
    let mut members = Map::new();
    for (name, value) in list {
        if members.contains_key(&name) {
            let line = line_of(text, format, &name, 2);
            return Err((line, format!("{} stands there twice", printable(&name))));
        }
        members.insert(name, value);
    }
    Ok(members)
}

/// The line of a member of the top, by the parser itself: it reads until it meets the name for the
/// `nth` time.
fn line_of(text: &str, format: FileFormat, member: &str, nth: usize) -> Option<usize> {
    deserialize(text, format, Seek { member, nth })
        .err()
        .flatten()
}

/// Reads a text; otherwise the line at which that ended.
fn deserialize<S, T>(text: &str, format: FileFormat, seed: S) -> Result<T, Option<usize>>
where
    S: for<'de> DeserializeSeed<'de, Value = T>,
{
    match format {
        FileFormat::Json => {
            let mut reader = serde_json::Deserializer::from_str(text);
            let read = seed
                .deserialize(&mut reader)
                .and_then(|read| reader.end().map(|()| read));
            read.map_err(|error| Some(error.line()).filter(|line| *line > 0))
        }
        FileFormat::Toml => {
            let line = |at: usize| {
                1 + text.as_bytes()[..at.min(text.len())]
                    .iter()
                    .filter(|b| **b == b'\n')
                    .count()
            };
            let read = toml::Deserializer::parse(text).and_then(|reader| seed.deserialize(reader));
            read.map_err(|error| error.span().map(|span| line(span.start)))
        }
        FileFormat::Yaml => {
            let read = seed.deserialize(yaml_serde::Deserializer::from_str(text));
            read.map_err(|error| error.location().map(|place| place.line()))
        }
    }
}

/// In the order of the file, with those that stand there twice.
struct Members(Vec<(String, Value)>);

struct MembersSeed;

impl<'de> DeserializeSeed<'de> for MembersSeed {
    type Value = Members;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Members, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for MembersSeed {
    type Value = Members;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("members of a client")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
        let mut members = Vec::new();
        while let Some(entry) = map.next_entry()? {
            members.push(entry);
        }
        Ok(Members(members))
    }
}

/// Fails at the name of a member.
struct Seek<'a> {
    member: &'a str,
    nth: usize,
}

impl<'de> DeserializeSeed<'de> for Seek<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Seek<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("members of a client")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        while let Some(()) = map.next_key_seed(KeyOf(&mut self))? {
            map.next_value::<IgnoredAny>()?;
        }
        Ok(())
    }
}

struct KeyOf<'a, 's>(&'a mut Seek<'s>);

impl<'de> DeserializeSeed<'de> for KeyOf<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for KeyOf<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a member")
    }

    fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<(), E> {
        if name == self.0.member {
            self.0.nth -= 1;
            if self.0.nth == 0 {
                return Err(E::custom("here"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    const SECRET: &str = "a-secret-of-24-characters";

    fn folder(files: &[(&str, &str)]) -> (TempDir, ClientFolder) {
        let dir = TempDir::new().unwrap();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        let folder = ClientFolder {
            dir: dir.path().to_owned(),
            algorithms: vec![Algorithm::Rs256],
            token_exchange: false,
        };
        (dir, folder)
    }

    fn read(files: &[(&str, &str)]) -> Result<Vec<Client>, String> {
        let (dir, folder) = folder(files);
        let environment = Environment::from_iter([("APP", SECRET)]);
        let read = folder.read(&environment, Timestamp::UNIX_EPOCH);
        let place = format!("{}/", dir.path().display());
        read.map_err(|bad| bad.to_string().replace(&place, ""))
    }

    #[test]
    fn the_three_formats_mean_the_same_and_other_files_nothing() {
        let clients = read(&[
            ("a.toml", "redirect_uris = ['https://a/cb']\nclient_secret = 'env:APP'\nrequire_auth_time = true\ndefault_max_age = 60\n"),
            ("b.yaml", "redirect_uris: [https://a/cb]\nclient_secret: file:secret\nrequire_auth_time: true\ndefault_max_age: 60\n"),
            ("c.json", r#"{"redirect_uris": ["https://a/cb"], "client_secret": "env:APP", "require_auth_time": true, "default_max_age": 60}"#),
            ("d.yml", "client_id: other\nredirect_uris:\n- https://a/cb\nclient_secret: env:APP\nrequire_auth_time: true\ndefault_max_age: 60\n"),
            ("secret", &format!("{SECRET}\n")),
            (".hidden.toml", "x = 1"),
            ("README.md", "# Clients"),
        ])
        .unwrap();
        let ids: Vec<_> = clients.iter().map(|client| client.id.as_str()).collect();
        assert_eq!(ids, ["a", "b", "c", "other"]);
        for client in &clients {
            assert_eq!(client.metadata, clients[0].metadata, "{}", client.id);
            assert!(client.secrets[0].digest.matches(SECRET), "{}", client.id);
        }
        assert_eq!(read(&[]).unwrap(), []);
    }

    #[test]
    fn a_mistake_has_its_file_and_line_and_no_value() {
        let public = "token_endpoint_auth_method";
        for (name, text, said) in [
            (
                "a.yaml",
                "scope: a\naccess: [alice@example.com, tag:ci]",
                "a.yaml, line 2: access: \"tag:ci\" names no person",
            ),
            (
                "a.yaml",
                "access: [all]",
                "a.yaml, line 1: access: \"all\" is not a word of rules",
            ),
            (
                "a.yaml",
                "access: ['group:']",
                "a.yaml, line 1: access: \"group:\" names no group",
            ),
            (
                "a.yaml",
                "access: []",
                "a.yaml, line 1: access: an empty list names nobody",
            ),
            (
                "a.yaml",
                "access: alice@example.com",
                "a.yaml, line 1: access has a value of the wrong kind",
            ),
            (
                "a.toml",
                "redirect_uris = []\nclient_secret = 'hunter2hunter2'\n",
                "a.toml, line 2: client_secret is no secret, but names the file of one (file:PATH) or a variable of the environment (env:NAME)",
            ),
            (
                "a.yaml",
                "# a\n\nredirect_uri: hunter2\n",
                "a.yaml, line 3: redirect_uri is not among the members of a client; did you mean redirect_uris?",
            ),
            (
                "a.json",
                "{\n \"scope\": {\"a\": 1},\n \"redirect_uris\": \"hunter2\"\n}",
                "a.json, line 3: redirect_uris has a value of the wrong kind: it must be a list of texts",
            ),
            (
                "a.json",
                "{\n\"scope\": \"hunter2\",\n\"scope\": 1}",
                "a.json, line 3: scope stands there twice",
            ),
            (
                "a.yaml",
                "scope: a\nscope: hunter2\n",
                "a.yaml, line 2: scope stands there twice",
            ),
            (
                "a.toml",
                "scope = 'a'\nscope = 'hunter2'\n",
                "a.toml, line 2: is not TOML",
            ),
            ("a.toml", "\n\nhunter2\n", "a.toml, line 3: is not TOML"),
            ("a.yaml", "scope: x\na: [hunter2\n", "a.yaml, line "),
            (
                "a.yaml",
                "- hunter2",
                "a.yaml, line 1: is not YAML, or no mapping of names to values",
            ),
            (
                "a.json",
                "{\n\"hunter2\"}",
                "a.json, line 2: is not JSON, or no object",
            ),
            (
                "a.json",
                "{} hunter2",
                "a.json, line 1: is not JSON, or no object",
            ),
            (
                "a.toml",
                "redirect_uris = ['https://a']",
                "a.toml: client_secret is missing: ",
            ),
            (
                "a.toml",
                "client_secret = 'env:NONE'",
                "a.toml, line 1: client_secret names the variable NONE, which is not set",
            ),
            (
                "a.toml",
                "client_secret = 'file:none'",
                "a.toml, line 1: client_secret cannot be had: file ",
            ),
            (
                "a.yaml",
                "redirect_uris: ['https://a']\nclient_name: 2026-01-02\nid_token_signed_response_alg: ES512\ntoken_endpoint_auth_method: none",
                "a.yaml, line 3: id_token_signed_response_alg is one of RS256",
            ),
            (
                "a.toml",
                "redirect_uris = ['https://a']\n\ntoken_endpoint_auth_method = 'magic'",
                "a.toml, line 3: token_endpoint_auth_method is one of ",
            ),
            (
                "a.toml",
                "client_name = 2026-01-02",
                "a.toml, line 1: client_name has a value of the wrong kind: it must be a text",
            ),
        ] {
            let error = read(&[(name, text)]).expect_err(text);
            assert!(error.starts_with(said), "{error}\n{said}");
            assert!(!error.contains("hunter2"), "{error}");
        }
        let both = [
            ("a.json", r#"{"token_endpoint_auth_method": "none"}"#),
            ("b.json", "{"),
        ];
        let error = read(&both).unwrap_err();
        assert_eq!(error.lines().count(), 2, "{error}");
        let good = format!("redirect_uris: ['https://a']\n{public}: none\nclient_id: x\n");
        let error = read(&[("a.yaml", &good), ("b.yaml", &good)]).unwrap_err();
        assert_eq!(error, "b.yaml: describes the client \"x\", as a.yaml does");
    }

    #[test]
    fn a_folder_that_is_not_there_is_no_empty_folder() {
        let (dir, folder) = folder(&[]);
        drop(dir);
        let error = folder
            .read(&Environment::default(), Timestamp::UNIX_EPOCH)
            .unwrap_err();
        assert!(
            error
                .to_string()
                .contains("the folder of clients cannot be read"),
            "{error}"
        );
    }
}
