//! Reads policy files: one TOML document is one policy.
//!
//! A file in the directory is a policy if its name ends with `.toml` or has no dot; policies are
//! read in the order of their names. Hidden entries, backups of editors, directories and
//! `….example.toml` are ignored; any other ending is left out with a warning. Links are followed,
//! so a mounted Kubernetes volume works.
//!
//! Invariants
//! - All mistakes in all files are reported at once, each with its file and field. After a single
//!   mistake nothing is loaded.
//! - [`ExchangePolicy`] values only exist for files that passed all checks.
//! - Files of every earlier form can be loaded: field names in any case, one `algorithm` in any
//!   case, a list of issuers, scopes as a table of `read` and `write`.

use std::{fmt, io, path::Path, time::Duration};

use jsonwebtoken::Algorithm;
use serde_json::Value as Json;
use toml::{Table, Value};
use url::Url;

use super::{Audience, ClaimCondition, ClaimPattern, ExchangePolicy, grants_tags};
use crate::{
    config::{Credentials, Secret, duration, printable},
    jwks::fetch::KeySource,
};

/// The policies, with warnings for the operator.
#[derive(Debug, Clone, Default)]
pub struct LoadedPolicies {
    pub policies: Vec<ExchangePolicy>,
    pub warnings: Vec<PolicyMistake>,
}

/// A sentence about one field of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyMistake {
    pub file: String,
    pub field: Option<String>,
    pub sentence: String,
}

impl fmt::Display for PolicyMistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&printable(&self.file))?;
        if let Some(field) = &self.field {
            // The field may be a key of the file, with any characters.
            write!(f, ": {}", printable(field))?;
        }
        write!(f, ": {}", printable(&self.sentence))
    }
}

/// Why policies could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum PolicyLoadError {
    #[error("failed to read directory {directory}")]
    Directory {
        directory: String,
        #[source]
        cause: io::Error,
    },
    #[error("no policies found in directory {0}")]
    Empty(String),
    #[error("{}", list_mistakes(.0))]
    Mistakes(Vec<PolicyMistake>),
}

fn list_mistakes(mistakes: &[PolicyMistake]) -> String {
    let mut text = format!("{} mistakes in the policies", mistakes.len());
    if let [_] = mistakes {
        text = "a mistake in the policies".to_owned();
    }
    for mistake in mistakes {
        text.push_str("\n  ");
        text.push_str(&mistake.to_string());
    }
    text
}

const MAX_FILE_BYTES: u64 = 1 << 20;

/// Loads every policy in a directory. With `strict`, warnings count as mistakes.
pub fn load(directory: &Path, strict: bool) -> Result<LoadedPolicies, PolicyLoadError> {
    let unreadable = |cause| PolicyLoadError::Directory {
        directory: directory.display().to_string(),
        cause,
    };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(unreadable)? {
        names.push(entry.map_err(unreadable)?.file_name());
    }
    names.sort();

    let mut findings = Findings::default();
    let mut skipped = Vec::new();
    let mut policies = Vec::new();
    for name in names {
        let path = directory.join(&name);
        let name = name.to_string_lossy().into_owned();
        match file_kind(&name) {
            FileKind::Policy if path.is_dir() => {}
            FileKind::Policy => {
                let mut file = PolicyReader::new(&name);
                policies.extend(file.read(&path));
                findings.append(file.findings);
            }
            FileKind::Unexpected if path.is_file() => skipped.push(mistake(
                &name,
                None,
                "ignored: only files named ….toml or without a dot are policies",
            )),
            FileKind::Unexpected | FileKind::Ignored => {}
        }
    }
    if strict {
        findings.mistakes.append(&mut findings.warnings);
    }
    if !findings.mistakes.is_empty() {
        return Err(PolicyLoadError::Mistakes(findings.mistakes));
    }
    if policies.is_empty() {
        return Err(PolicyLoadError::Empty(directory.display().to_string()));
    }
    findings.warnings.append(&mut skipped);
    Ok(LoadedPolicies {
        policies,
        warnings: findings.warnings,
    })
}

/// Parses the text of one file.
pub(super) fn parse(
    name: &str,
    text: &str,
    directory: &Path,
) -> Result<LoadedPolicies, Vec<PolicyMistake>> {
    let mut reader = PolicyReader::new(name);
    match reader.parse(text, directory) {
        Some(policy) => Ok(LoadedPolicies {
            policies: vec![policy],
            warnings: reader.findings.warnings,
        }),
        None => Err(reader.findings.mistakes),
    }
}

enum FileKind {
    Ignored,
    Unexpected,
    Policy,
}

fn file_kind(name: &str) -> FileKind {
    let lower = name.to_ascii_lowercase();
    let backup = [".bak", ".orig", ".rej", ".swp", ".swo", ".tmp", "~"];
    if lower.starts_with(['.', '#']) || backup.iter().any(|end| lower.ends_with(end)) {
        FileKind::Ignored
    } else if lower.ends_with(".example.toml") {
        FileKind::Unexpected
    } else if lower.ends_with(".toml") || !lower.contains('.') {
        FileKind::Policy
    } else {
        FileKind::Unexpected
    }
}

#[derive(Debug, Default)]
struct Findings {
    mistakes: Vec<PolicyMistake>,
    warnings: Vec<PolicyMistake>,
}

impl Findings {
    fn warn(&mut self, file: &str, field: Option<&str>, sentence: impl Into<String>) {
        self.warnings.push(mistake(file, field, sentence));
    }

    fn append(&mut self, mut other: Self) {
        self.mistakes.append(&mut other.mistakes);
        self.warnings.append(&mut other.warnings);
    }
}

fn mistake(file: &str, field: Option<&str>, sentence: impl Into<String>) -> PolicyMistake {
    PolicyMistake {
        file: file.to_owned(),
        field: field.map(str::to_owned),
        sentence: sentence.into(),
    }
}

const FIELDS: [&str; 14] = [
    "issuer",
    "algorithm",
    "algorithms",
    "subject",
    "audience",
    "jwks_url",
    "allowed_scopes",
    "claims",
    "max_token_age",
    "require_exp",
    "tags",
    "client_id",
    "client_secret_file",
    "description",
];

/// Parses one file. Its methods return `None` after noting a mistake, and parsing continues.
struct PolicyReader<'a> {
    file: &'a str,
    fields: Table,
    findings: Findings,
}

impl<'a> PolicyReader<'a> {
    fn new(file: &'a str) -> Self {
        Self {
            file,
            fields: Table::new(),
            findings: Findings::default(),
        }
    }

    fn read(&mut self, path: &Path) -> Option<ExchangePolicy> {
        match read_text(path) {
            Ok(text) => self.parse(&text, path.parent().unwrap_or(Path::new("."))),
            Err(error) => self.mistake(None, format!("failed to read file: {error}")),
        }
    }

    /// Other files that the text names are read from `directory`.
    fn parse(&mut self, text: &str, directory: &Path) -> Option<ExchangePolicy> {
        let table: Table = match text.parse() {
            Ok(table) => table,
            Err(error) => {
                let sentence = format!("failed to unmarshal TOML: {}", toml_message(&error));
                return self.mistake(None, sentence);
            }
        };
        for (name, value) in table {
            let lower = name.to_ascii_lowercase();
            if !FIELDS.contains(&lower.as_str()) {
                let sentence = match similar_field(&lower) {
                    Some(meant) => format!("unknown field; did you mean {meant}?"),
                    None => "unknown field".to_owned(),
                };
                let _: Option<()> = self.mistake(Some(&name), sentence);
            } else if self.fields.insert(lower, value).is_some() {
                let _: Option<()> = self.mistake(Some(&name), "occurs twice");
            }
        }
        self.policy(directory)
    }

    fn policy(&mut self, directory: &Path) -> Option<ExchangePolicy> {
        let issuers = self.issuers();
        let algorithms = self.algorithms();
        let subject = self.subject();
        let audience = self.audience();
        let source = self.source(issuers.as_deref());
        let scopes = self.scopes();
        let conditions = self.conditions();
        let max_age = self.max_age();
        let require_exp = self.require_exp();
        let tags = self.tags();
        let credentials = self.credentials(directory);
        let policy = ExchangePolicy {
            name: self.file.to_owned(),
            issuers: issuers?,
            algorithms: algorithms?,
            subject: subject?,
            audience: audience?,
            source: source?,
            scopes: scopes?,
            conditions: conditions?,
            max_age: max_age?,
            require_exp: require_exp?,
            any_tags: tags.as_ref()?.is_none(),
            tags: tags?.unwrap_or_default(),
            credentials: credentials?,
        };
        if policy.tags.is_empty()
            && !policy.any_tags
            && let Some(scope) = policy.scopes.iter().find(|scope| grants_tags(scope))
        {
            let sentence = format!(
                "the scope {scope} is refused to everybody: without tags it would be good for all of the OAuth client's; name \
                 those that are meant, or say tags = \"any\""
            );
            self.warn("tags", &sentence);
        }
        let narrows_subject =
            policy.subject.is_some() || policy.conditions.iter().any(|one| !one.wanted.is_empty());
        if !narrows_subject {
            self.warn(
                "subject",
                "any token of this issuer is accepted: the policy requires neither a subject nor claims",
            );
        }
        self.findings.mistakes.is_empty().then_some(policy)
    }

    fn issuers(&mut self) -> Option<Vec<String>> {
        let issuers = match self.fields.get("issuer") {
            None => return self.mistake(Some("issuer"), "no issuer"),
            Some(_) => self.texts("issuer")?,
        };
        if issuers.is_empty() || issuers.iter().any(String::is_empty) {
            return self.mistake(Some("issuer"), "no issuer");
        }
        Some(issuers)
    }

    fn algorithms(&mut self) -> Option<Vec<Algorithm>> {
        let field = match (
            self.fields.contains_key("algorithm"),
            self.fields.contains_key("algorithms"),
        ) {
            (true, true) => {
                return self.mistake(
                    Some("algorithms"),
                    "conflicts with algorithm; keep one of the two",
                );
            }
            (true, false) => "algorithm",
            (false, true) => "algorithms",
            (false, false) => {
                return self.mistake(
                    Some("algorithm"),
                    "unsupported algorithm: none is named; write for example \"RS256\"",
                );
            }
        };
        let names = self.texts(field)?;
        let mut algorithms = Vec::new();
        let mut valid = true;
        for name in &names {
            match algorithm(name) {
                Some(algorithm) => algorithms.push(algorithm),
                None => {
                    valid = false;
                    let supported = "RS256/384/512, PS256/384/512, ES256/384 or EdDSA";
                    let _: Option<()> = self.mistake(
                        Some(field),
                        format!("unsupported algorithm {name:?}; it may be {supported}"),
                    );
                }
            }
        }
        if names.is_empty() {
            return self.mistake(Some(field), "unsupported algorithm: the list is empty");
        }
        valid.then_some(algorithms)
    }

    fn subject(&mut self) -> Option<Option<String>> {
        self.text("subject")
    }

    fn audience(&mut self) -> Option<Audience> {
        match self.fields.get("audience") {
            None => {
                self.warn(
                    "audience",
                    "tokens made for any service are accepted: name ours, or say audience = \"any\"",
                );
                Some(Audience::Any)
            }
            Some(Value::String(any)) if any == "any" => Some(Audience::Any),
            Some(_) => {
                let audiences = self.texts("audience")?;
                if audiences.is_empty() || audiences.iter().any(String::is_empty) {
                    return self.mistake(Some("audience"), "an audience must not be empty");
                }
                if audiences.iter().any(|audience| audience == "any") {
                    return self.mistake(Some("audience"), "\"any\" cannot be in a list");
                }
                Some(Audience::OneOf(audiences))
            }
        }
    }

    fn source(&mut self, issuers: Option<&[String]>) -> Option<KeySource> {
        let Some(url) = self.text("jwks_url")? else {
            return match issuers? {
                [issuer] => {
                    self.check_key_url("issuer", issuer, "no JWKS URL, and the issuer is not an address whose OpenID configuration could name one")?;
                    Some(KeySource::Discovery {
                        issuer: issuer.clone(),
                    })
                }
                _ => self.mistake(Some("jwks_url"), "no JWKS URL: several issuers require one"),
            };
        };
        if url.is_empty() {
            return self.mistake(Some("jwks_url"), "no JWKS URL");
        }
        self.check_key_url("jwks_url", &url, "unparsable JWKS URL")?;
        Some(KeySource::Jwks { url })
    }

    /// Checks a URL for fetching keys. Without TLS it is accepted with a warning, on loopback
    /// without one.
    fn check_key_url(&mut self, field: &str, text: &str, sentence: &str) -> Option<()> {
        let url = Url::parse(text)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
        let Some(url) = url else {
            return self.mistake(Some(field), sentence);
        };
        if !url.username().is_empty() || url.password().is_some() {
            return self.mistake(
                Some(field),
                "a user or a password is in the address: it would be in the log; keys are public and need none",
            );
        }
        if url.scheme() == "http" && !is_loopback(&url) {
            self.warn(
                field,
                "keys are fetched without TLS: anybody on the path can forge tokens",
            );
        }
        Some(())
    }

    fn scopes(&mut self) -> Option<Vec<String>> {
        const FIELD: &str = "allowed_scopes";
        let scopes = match self.fields.get(FIELD) {
            None => return self.mistake(Some(FIELD), "no scopes"),
            Some(Value::Table(table)) => match scopes_of_access_table(table) {
                Ok(scopes) => scopes,
                Err(sentence) => return self.mistake(Some(FIELD), sentence),
            },
            Some(_) => self.texts(FIELD)?,
        };
        if scopes.is_empty() {
            return self.mistake(Some(FIELD), "no scopes");
        }
        // Scopes are sent in one string, separated by blanks: a blank inside would add another
        // scope.
        if let Some(odd) = scopes.iter().find(|scope| !is_scope(scope)) {
            let sentence =
                format!("{odd:?} is not a scope: letters, digits and signs without blanks");
            return self.mistake(Some(FIELD), sentence);
        }
        Some(scopes)
    }

    fn conditions(&mut self) -> Option<Vec<ClaimCondition>> {
        let table = match self.fields.get("claims") {
            None => return Some(Vec::new()),
            Some(Value::Table(table)) => table.clone(),
            Some(_) => return self.mistake(Some("claims"), "not a table"),
        };
        let mut conditions = Vec::new();
        let mut valid = true;
        for (claim, wanted) in table {
            match patterns(&wanted) {
                Ok(wanted) => conditions.push(ClaimCondition { claim, wanted }),
                Err(sentence) => {
                    valid = false;
                    let _: Option<()> = self.mistake(Some(&format!("claims.{claim}")), sentence);
                }
            }
        }
        valid.then_some(conditions)
    }

    fn max_age(&mut self) -> Option<Option<Duration>> {
        let Some(text) = self.text("max_token_age")? else {
            return Some(None);
        };
        match duration(&text) {
            Some(age) if !age.is_zero() => Some(Some(age)),
            _ => self.mistake(
                Some("max_token_age"),
                "not a duration such as 90s, 10m or 1h",
            ),
        }
    }

    fn require_exp(&mut self) -> Option<bool> {
        match self.fields.get("require_exp") {
            None => Some(true),
            Some(Value::Boolean(required)) => Some(*required),
            Some(_) => self.mistake(Some("require_exp"), "neither true nor false"),
        }
    }

    /// `Some(None)` means any tags.
    fn tags(&mut self) -> Option<Option<Vec<String>>> {
        match self.fields.get("tags") {
            None => return Some(Some(Vec::new())),
            Some(Value::String(any)) if any == "any" => return Some(None),
            Some(_) => {}
        }
        let tags = self.texts("tags")?;
        if let Some(odd) = tags.iter().find(|tag| !is_tag(tag)) {
            let sentence = format!("{odd:?} is not a tag such as tag:ci");
            return self.mistake(Some("tags"), sentence);
        }
        Some(Some(tags))
    }

    fn credentials(&mut self, directory: &Path) -> Option<Option<Credentials>> {
        let id = self.text("client_id")?;
        let file = self.text("client_secret_file")?;
        let (id, file) = match (id, file) {
            (None, None) => return Some(None),
            (Some(id), Some(file)) if !id.is_empty() => (id, file),
            (Some(_), Some(_)) => return self.mistake(Some("client_id"), "empty"),
            (Some(_), None) => {
                return self.mistake(Some("client_secret_file"), "required with client_id");
            }
            (None, Some(_)) => {
                return self.mistake(Some("client_id"), "required with client_secret_file");
            }
        };
        match read_text(&directory.join(file)) {
            Ok(secret) if !secret.trim().is_empty() => Some(Some(Credentials {
                id,
                secret: Secret::new(secret.trim()),
            })),
            Ok(_) => self.mistake(Some("client_secret_file"), "the file is empty"),
            Err(error) => self.mistake(
                Some("client_secret_file"),
                format!("failed to read file: {error}"),
            ),
        }
    }

    /// `Some(None)` if the field is absent.
    fn text(&mut self, field: &str) -> Option<Option<String>> {
        match self.fields.get(field) {
            None => Some(None),
            Some(Value::String(text)) => Some(Some(text.clone())),
            Some(_) => self.mistake(Some(field), "not a text"),
        }
    }

    /// A string or a list of strings.
    fn texts(&mut self, field: &str) -> Option<Vec<String>> {
        let texts = match self.fields.get(field) {
            Some(Value::String(one)) => Some(vec![one.clone()]),
            Some(Value::Array(many)) => many
                .iter()
                .map(|one| one.as_str().map(str::to_owned))
                .collect(),
            _ => None,
        };
        match texts {
            Some(texts) => Some(texts),
            None => self.mistake(Some(field), "neither a text nor a list of texts"),
        }
    }

    fn mistake<T>(&mut self, field: Option<&str>, sentence: impl Into<String>) -> Option<T> {
        self.findings
            .mistakes
            .push(mistake(self.file, field, sentence));
        None
    }

    fn warn(&mut self, field: &str, sentence: &str) {
        self.findings.warn(self.file, Some(field), sentence);
    }
}

fn read_text(path: &Path) -> io::Result<String> {
    use io::Read;
    let mut text = String::new();
    let file = std::fs::File::open(path)?;
    file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(io::Error::other("larger than 1 MiB"));
    }
    Ok(text)
}

/// The parser's message without the quoted line, which could contain a secret.
fn toml_message(error: &toml::de::Error) -> String {
    error.message().to_owned()
}

fn similar_field(name: &str) -> Option<&'static str> {
    FIELDS
        .into_iter()
        .map(|field| (strsim::damerau_levenshtein(field, name), field))
        .min()
        .filter(|(distance, _)| *distance <= 3)
        .map(|(_, field)| field)
}

fn algorithm(name: &str) -> Option<Algorithm> {
    let algorithm = match name.to_ascii_uppercase().as_str() {
        "EDDSA" | "ED25519" => Algorithm::EdDSA,
        // With a shared secret, everybody who can verify can also sign.
        symmetric if symmetric.starts_with("HS") => return None,
        upper => upper.parse().ok()?,
    };
    Some(algorithm)
}

/// The oldest form: an access level per scope, where writing includes reading.
fn scopes_of_access_table(table: &Table) -> Result<Vec<String>, String> {
    let mut scopes = Vec::new();
    for (scope, access) in table {
        let access = access.as_str().map(str::to_ascii_lowercase);
        match access.as_deref() {
            Some("read") => scopes.push(format!("{scope}:read")),
            Some("write") => scopes.extend([scope.clone(), format!("{scope}:read")]),
            _ => return Err(format!("{scope}: neither \"read\" nor \"write\"")),
        }
    }
    Ok(scopes)
}

fn patterns(wanted: &Value) -> Result<Vec<ClaimPattern>, String> {
    match wanted {
        Value::Array(list) if list.is_empty() => Err("an empty list is never met".to_owned()),
        Value::Array(list) => list.iter().map(pattern).collect(),
        one => Ok(vec![pattern(one)?]),
    }
}

fn pattern(wanted: &Value) -> Result<ClaimPattern, String> {
    match wanted {
        Value::String(text) => Ok(ClaimPattern::Exact(Json::from(text.as_str()))),
        Value::Boolean(yes) => Ok(ClaimPattern::Exact(Json::from(*yes))),
        Value::Integer(number) => Ok(ClaimPattern::Exact(Json::from(*number))),
        Value::Table(table) => match (table.get("glob"), table.len()) {
            (Some(Value::String(glob)), 1) => Ok(ClaimPattern::Glob(glob.clone())),
            _ => Err("a table here is { glob = \"…\" }".to_owned()),
        },
        _ => Err("not a text, number, truth value, { glob = \"…\" }, or a list of them".to_owned()),
    }
}

fn is_scope(scope: &str) -> bool {
    let is_scope_character = |c: u8| matches!(c, 0x21 | 0x23..=0x5b | 0x5d..=0x7e);
    !scope.is_empty() && scope.bytes().all(is_scope_character)
}

fn is_tag(tag: &str) -> bool {
    tag.strip_prefix("tag:").is_some_and(|name| {
        name.starts_with(|c: char| c.is_ascii_alphabetic())
            && name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-')
    })
}

pub(in crate::components::sts) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
        Some(url::Host::Ipv6(ip)) => ip.is_loopback(),
        None => false,
    }
}

fn duration(text: &str) -> Option<Duration> {
    let parsed = duration::parse(text).ok()?;
    (!parsed.negative).then_some(parsed.size)
}
