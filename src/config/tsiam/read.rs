//! Reads the text of tsiam's file: its keys, their types, tsiam's own check, and what each value is
//! among our settings.
//!
//! The only other file that is opened is the key's, for the name of its algorithm.

use std::{
    collections::BTreeMap,
    io::Read as _,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;
use tailbone_identity::{AudiencePattern, MAX_AUDIENCE_BYTES};
use yaml_serde::{Mapping, Value};
use zeroize::Zeroizing;

use crate::config::{
    duration,
    raw::{GivenValue, RawValue, suggestion},
    report::{Remark, ValueOrigin},
    sections::{
        components::{self, Component},
        log, tailscale, workload,
    },
    table::Row,
};

/// What a value must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Type {
    Bool,
    /// A text with a unit: Go's decoder refuses numbers.
    Duration,
    List,
    /// Go's decoder also takes numbers and switches as texts.
    Text,
}

const KEYS: [(&str, Type); 26] = [
    ("logs.json", Type::Bool),
    ("logs.level", Type::Text),
    ("logs.omitHealthChecks", Type::Bool),
    ("signingKey.algorithm", Type::Text),
    ("signingKey.azureKeyVaultKeys.clientId", Type::Text),
    ("signingKey.azureKeyVaultKeys.clientSecret", Type::Text),
    ("signingKey.azureKeyVaultKeys.keyName", Type::Text),
    ("signingKey.azureKeyVaultKeys.storagePath", Type::Text),
    ("signingKey.azureKeyVaultKeys.tenantId", Type::Text),
    ("signingKey.azureKeyVaultKeys.vaultUrl", Type::Text),
    ("signingKey.azureKeyVaultSecrets.clientId", Type::Text),
    ("signingKey.azureKeyVaultSecrets.clientSecret", Type::Text),
    ("signingKey.azureKeyVaultSecrets.secretName", Type::Text),
    ("signingKey.azureKeyVaultSecrets.tenantId", Type::Text),
    ("signingKey.azureKeyVaultSecrets.vaultUrl", Type::Text),
    ("signingKey.curve", Type::Text),
    ("signingKey.file.storagePath", Type::Text),
    ("signingKey.storage", Type::Text),
    ("tokens.allowEmptyNodeCapability", Type::Bool),
    ("tokens.allowedAudiences", Type::List),
    ("tokens.lifetime", Type::Duration),
    ("tsnet.authKey", Type::Text),
    ("tsnet.ephemeral", Type::Bool),
    ("tsnet.funnel", Type::Bool),
    ("tsnet.hostname", Type::Text),
    ("tsnet.stateDir", Type::Text),
];

/// Case matters, as in tsiam.
const ALGORITHMS: [&str; 5] = ["RS256", "ES256", "ES384", "ES512", "EdDSA"];

const LEVELS: [&str; 4] = ["debug", "info", "warn", "error"];

/// No private key is larger.
const MAX_KEY_BYTES: u64 = 64 * 1024;

/// What tsiam's file says, in our settings.
#[derive(Debug, Default)]
pub(in crate::config) struct Reading {
    path: PathBuf,
    pub(in crate::config) values: Vec<(&'static Row, GivenValue)>,
    pub(in crate::config) mistakes: Vec<Remark>,
    pub(in crate::config) warnings: Vec<Remark>,
}

#[derive(Debug, Clone, PartialEq)]
enum TsiamValue {
    Bool(bool),
    List(Vec<String>),
    Text(String),
}

/// Reads `text`, which is that of the file at `path`.
pub(in crate::config) fn read(path: &Path, text: &str) -> Reading {
    let mut reading = Reading {
        path: path.to_owned(),
        ..Reading::default()
    };
    match yaml_serde::from_str(text) {
        Ok(Value::Mapping(top)) => {
            let values = reading.typed(top);
            reading.interpret(&values);
        }
        // tsiam ends here too: to its decoder an empty file is a file that ends too early.
        Ok(Value::Null) => {
            reading.refuse_file("is empty; tsiam's settings are expected here".into())
        }
        Ok(_) => reading
            .refuse_file("contains no settings: its top level must be a table of keys".into()),
        // The decoder's own words may quote a line.
        Err(error) => reading.refuse_file(match error.location() {
            Some(place) => format!(
                "is not YAML, or has a key twice (line {}, column {})",
                place.line(),
                place.column()
            ),
            None => "is not YAML, or has a key twice".into(),
        }),
    }
    reading
}

impl Reading {
    /// The values by their keys. Unknown keys and wrong types are mistakes; a key without a value
    /// is unset.
    fn typed(&mut self, top: Mapping) -> BTreeMap<&'static str, TsiamValue> {
        let mut values = BTreeMap::new();
        self.take_group("", top, &mut values);
        values
    }

    fn take_group(
        &mut self,
        group: &str,
        entries: Mapping,
        values: &mut BTreeMap<&'static str, TsiamValue>,
    ) {
        for (name, value) in entries {
            let Value::String(name) = name else {
                self.refuse_file("has a key that is not a word".into());
                continue;
            };
            let key = if group.is_empty() {
                name.clone()
            } else {
                format!("{group}.{name}")
            };
            let known = KEYS
                .iter()
                .find(|(known, _)| *known == key && !name.contains('.'));
            let is_group = KEYS.iter().any(|(known, _)| {
                known
                    .strip_prefix(&key)
                    .is_some_and(|rest| rest.starts_with('.'))
            });
            match (known, value) {
                (Some(_), Value::Null) => {}
                (Some((known, wanted)), value) => match typed(*wanted, value) {
                    Ok(value) => {
                        values.insert(known, value);
                    }
                    Err(sentence) => self.refuse(known, sentence),
                },
                (None, Value::Null) if is_group => {}
                (None, Value::Mapping(entries)) if is_group => {
                    self.take_group(&key, entries, values);
                }
                (None, _) if is_group => {
                    self.refuse(&key, "is a group of settings, not a setting".into())
                }
                (None, _) => {
                    let meant = suggestion(&key, KEYS.iter().map(|(known, _)| *known));
                    self.refuse(
                        &key,
                        match meant {
                            Some(meant) => {
                                format!("tsiam has no such setting; did you mean {meant}?")
                            }
                            None => "tsiam has no such setting".into(),
                        },
                    );
                }
            }
        }
    }

    fn interpret(&mut self, values: &BTreeMap<&'static str, TsiamValue>) {
        let text = |key: &str| match values.get(key) {
            Some(TsiamValue::Text(text)) => Some(text.as_str()).filter(|text| !text.is_empty()),
            _ => None,
        };
        let bool = |key: &str| match values.get(key) {
            Some(TsiamValue::Bool(value)) => Some(*value),
            _ => None,
        };
        let origin = self.origin("what tsiam is");
        self.put(
            &components::COMPONENTS,
            Component::Workload.name().into(),
            origin,
        );
        self.node(&text, &bool);
        self.logs(&text, &bool);
        match values.get("tokens.lifetime") {
            Some(TsiamValue::Text(lifetime)) => self.lifetime(lifetime),
            _ => self.set_default(&workload::LIFETIME, "5m", "tokens.lifetime"),
        }
        self.audiences(values);
        if let Some(allowed) = bool("tokens.allowEmptyNodeCapability") {
            let key = "tokens.allowEmptyNodeCapability";
            self.set(&workload::ALLOW_WITHOUT_GRANT, &allowed.to_string(), key);
        }
        let origin = self.origin("the sub claim of tsiam");
        self.put(&workload::SUBJECT, "{name}".into(), origin);
        self.signing_key(&text);
    }

    fn node<'a>(
        &mut self,
        text: &impl Fn(&str) -> Option<&'a str>,
        bool: &impl Fn(&str) -> Option<bool>,
    ) {
        match text("tsnet.hostname") {
            Some(name) => self.set(&tailscale::HOSTNAME, name, "tsnet.hostname"),
            None => self.set_default(&tailscale::HOSTNAME, "tsiam", "tsnet.hostname"),
        }
        if let Some(key) = text("tsnet.authKey") {
            self.set(&tailscale::AUTHKEY, key, "tsnet.authKey");
        }
        let dir = self.state_dir(text);
        match text("tsnet.stateDir") {
            Some(dir) => self.set(&tailscale::DIR, dir, "tsnet.stateDir"),
            None => self.set_default(&tailscale::DIR, &dir.to_string_lossy(), "tsnet.stateDir"),
        }
        if let Some(ephemeral) = bool("tsnet.ephemeral") {
            self.set(
                &tailscale::EPHEMERAL,
                &ephemeral.to_string(),
                "tsnet.ephemeral",
            );
        }
        if bool("tsnet.funnel") == Some(true) {
            let both = "tailnet+tls://:443,funnel://:443";
            self.set(&workload::LISTEN, both, "tsnet.funnel");
        }
    }

    fn logs<'a>(
        &mut self,
        text: &impl Fn(&str) -> Option<&'a str>,
        bool: &impl Fn(&str) -> Option<bool>,
    ) {
        if let Some(word) = text("logs.level") {
            match LEVELS.iter().find(|level| level.eq_ignore_ascii_case(word)) {
                Some(level) => self.set(&log::LEVEL, level, "logs.level"),
                None => self.refuse_value("logs.level", word, not_one_of(&LEVELS)),
            }
        }
        if let Some(json) = bool("logs.json") {
            let format = if json { "json" } else { "console" };
            self.set(&log::FORMAT, format, "logs.json");
        }
        if bool("logs.omitHealthChecks") == Some(false) {
            self.warn(
                "logs.omitHealthChecks",
                "has no effect: the log has no line for each request, but one for each token and \
                 each refusal"
                    .into(),
            );
        }
    }

    /// tsiam cuts it to whole seconds before it checks the bounds.
    fn lifetime(&mut self, given: &str) {
        let key = "tokens.lifetime";
        let read = match duration::parse(given) {
            Ok(read) => read,
            Err(trouble) => return self.refuse_value(key, given, trouble.to_string()),
        };
        let whole = Duration::from_secs(read.size.as_secs());
        if read.negative || whole < Duration::from_secs(60) {
            self.refuse_value(key, given, "must be at least 1 minute".into());
        } else if whole > Duration::from_secs(3600) {
            self.refuse_value(key, given, "must not be more than 60 minutes".into());
        } else {
            self.set(&workload::LIFETIME, &duration::format(whole), key);
        }
    }

    fn audiences(&mut self, values: &BTreeMap<&'static str, TsiamValue>) {
        let key = "tokens.allowedAudiences";
        let list = match values.get(key) {
            Some(TsiamValue::List(list)) => list.as_slice(),
            // A value of another type has been reported.
            None if self
                .mistakes
                .iter()
                .any(|mistake| mistake.origin == self.origin(key)) =>
            {
                return;
            }
            _ => &[],
        };
        if list.is_empty() {
            return self.refuse(key, "must contain at least one audience".into());
        }
        let mut patterns = Vec::new();
        for audience in list {
            let audience = audience.trim();
            if audience.is_empty() {
                self.refuse(key, "contains an empty audience".into());
            } else if audience.len() > MAX_AUDIENCE_BYTES {
                let sentence = "contains an audience of more than 512 bytes";
                self.refuse(key, sentence.into());
            } else {
                match AudiencePattern::exactly(audience) {
                    Ok(pattern) => patterns.push(pattern.to_string()),
                    Err(sentence) => self.refuse(key, sentence),
                }
            }
        }
        let origin = self.origin(key);
        self.put(&workload::AUDIENCES, RawValue::List(patterns), origin);
    }

    fn signing_key<'a>(&mut self, text: &impl Fn(&str) -> Option<&'a str>) {
        let algorithm = self.algorithm(text);
        let storage = text("signingKey.storage").unwrap_or("file");
        match storage.to_ascii_lowercase().as_str() {
            "file" => {
                let key = "signingKey.file.storagePath";
                let Some(path) = self.needed(key, "file", text) else {
                    return;
                };
                let path = Path::new(path);
                let stored = self.stored_algorithm(path);
                if let (Some((stored, origin)), Some((wanted, _))) = (&stored, &algorithm)
                    && stored != wanted
                    && text("signingKey.algorithm").is_some()
                {
                    let sentence = format!(
                        "the key there is for {stored}, so tokens are signed with {stored} as tsiam \
                         does, and not with {wanted} (signingKey.algorithm)"
                    );
                    self.warnings.push(Remark {
                        origin: origin.clone(),
                        value: None,
                        sentence,
                    });
                }
                self.use_algorithm(stored.or(algorithm));
                self.set_key_file(path, key);
            }
            "memory" => {
                self.use_algorithm(algorithm);
                self.set(&workload::KEYS_STORAGE, "memory", "signingKey.storage");
            }
            "azurekeyvaultkeys" => {
                self.use_algorithm(algorithm);
                let (storage, group) = ("AzureKeyVaultKeys", "signingKey.azureKeyVaultKeys");
                self.vault(storage, group, "keyName", text);
                let key = format!("{group}.storagePath");
                if let Some(path) = self.needed(&key, storage, text) {
                    self.set_key_file(Path::new(path), &key);
                }
            }
            "azurekeyvaultsecrets" => {
                self.use_algorithm(algorithm);
                let (storage, group) = ("AzureKeyVaultSecrets", "signingKey.azureKeyVaultSecrets");
                self.vault(storage, group, "secretName", text);
                // tsiam needs no directory for it, and that of its config may be read-only.
                let dir = self.state_dir(text).join("workload-keys");
                let key = "signingKey.storage";
                self.set_default(&workload::KEYS_DIR, &dir.to_string_lossy(), key);
            }
            _ => self.refuse_value(
                "signingKey.storage",
                storage,
                not_one_of(&[
                    "file",
                    "memory",
                    "AzureKeyVaultKeys",
                    "AzureKeyVaultSecrets",
                ]),
            ),
        }
    }

    fn state_dir<'a>(&self, text: &impl Fn(&str) -> Option<&'a str>) -> PathBuf {
        match text("tsnet.stateDir") {
            Some(dir) => dir.into(),
            None => self.path.parent().unwrap_or(Path::new("")).join("tsnet"),
        }
    }

    /// A file with a key, which is taken over into a directory beside it.
    fn set_key_file(&mut self, path: &Path, key: &str) {
        let dir = path.parent().unwrap_or(Path::new("")).join("workload-keys");
        self.set(&workload::KEYS_DIR, &dir.to_string_lossy(), key);
        self.set(&workload::KEYS_TAKE_OVER, &path.to_string_lossy(), key);
    }

    /// A value that the chosen storage cannot do without.
    fn needed<'a>(
        &mut self,
        key: &str,
        storage: &str,
        text: &impl Fn(&str) -> Option<&'a str>,
    ) -> Option<&'a str> {
        let value = text(key);
        if value.is_none() {
            let sentence = format!("must be set when signingKey.storage is {storage}");
            self.refuse(key, sentence);
        }
        value
    }

    /// One of the two groups about Azure Key Vault. `name`: which of its keys has the name.
    fn vault<'a>(
        &mut self,
        storage: &str,
        group: &str,
        name: &str,
        text: &impl Fn(&str) -> Option<&'a str>,
    ) {
        self.set(&workload::KEYS_STORAGE, storage, "signingKey.storage");
        for (row, key) in [
            (&workload::AZURE_VAULT, "vaultUrl"),
            (&workload::AZURE_NAME, name),
        ] {
            let key = format!("{group}.{key}");
            if let Some(value) = self.needed(&key, storage, text) {
                self.set(row, value, &key);
            }
        }
        for (row, key) in [
            (&workload::AZURE_TENANT, "tenantId"),
            (&workload::AZURE_CLIENT, "clientId"),
            (&workload::AZURE_CLIENT_SECRET, "clientSecret"),
        ] {
            let key = format!("{group}.{key}");
            if let Some(value) = text(&key) {
                self.set(row, value, &key);
            }
        }
    }

    /// That of a new key; `None` after a mistake.
    fn algorithm<'a>(
        &mut self,
        text: &impl Fn(&str) -> Option<&'a str>,
    ) -> Option<(&'static str, ValueOrigin)> {
        let key = "signingKey.algorithm";
        let word = text(key);
        let known = word.map(|word| ALGORITHMS.iter().find(|known| **known == word));
        let algorithm = match (word, known) {
            (Some(word), Some(None)) => {
                self.refuse_value(key, word, not_one_of(&ALGORITHMS));
                return None;
            }
            (_, Some(Some(known))) => (*known, self.origin(key)),
            _ => ("ES256", self.default_origin(key)),
        };
        if let Some(curve) = text("signingKey.curve") {
            let key = "signingKey.curve";
            if algorithm.0 != "EdDSA" {
                let sentence = "may only be set when signingKey.algorithm is EdDSA";
                self.refuse_value(key, curve, sentence.into());
            } else if curve != "Ed25519" {
                self.refuse_value(key, curve, "there is only Ed25519".into());
            }
        }
        Some(algorithm)
    }

    /// The algorithm of a key that tsiam has kept, which counts more than `signingKey.algorithm`.
    /// `None` if there is no such key, or one that cannot be used, which the key set reports.
    fn stored_algorithm(&self, path: &Path) -> Option<(&'static str, ValueOrigin)> {
        #[derive(Deserialize)]
        struct StoredKey {
            alg: String,
        }
        let mut json = Zeroizing::new(Vec::with_capacity(4096));
        let file = std::fs::File::open(path).ok()?;
        file.take(MAX_KEY_BYTES).read_to_end(&mut json).ok()?;
        let stored: StoredKey = serde_json::from_slice(&json).ok()?;
        let known = ALGORITHMS.iter().find(|known| **known == stored.alg)?;
        Some((known, self.origin("signingKey.file.storagePath")))
    }

    fn use_algorithm(&mut self, algorithm: Option<(&'static str, ValueOrigin)>) {
        let Some((algorithm, origin)) = algorithm else {
            return;
        };
        self.put(&workload::ALGORITHM, algorithm.into(), origin.clone());
        self.put(&workload::KEYS_ALGORITHMS, algorithm.into(), origin);
    }

    fn set(&mut self, row: &'static Row, value: &str, key: &str) {
        let origin = self.origin(key);
        self.put(row, value.into(), origin);
    }

    /// A default of tsiam that differs from ours, or that may one day.
    fn set_default(&mut self, row: &'static Row, value: &str, key: &str) {
        let origin = self.default_origin(key);
        self.put(row, value.into(), origin);
    }

    fn put(&mut self, row: &'static Row, value: RawValue, origin: ValueOrigin) {
        self.values.push((row, GivenValue { value, origin }));
    }

    fn origin(&self, key: &str) -> ValueOrigin {
        ValueOrigin::File {
            path: self.path.clone(),
            key: Some(key.to_owned()),
        }
    }

    fn default_origin(&self, key: &str) -> ValueOrigin {
        self.origin(&format!("{key} (tsiam's default)"))
    }

    fn refuse(&mut self, key: &str, sentence: String) {
        let origin = self.origin(key);
        self.mistakes.push(Remark {
            origin,
            value: None,
            sentence,
        });
    }

    /// For values that are no secrets.
    fn refuse_value(&mut self, key: &str, value: &str, sentence: String) {
        let origin = self.origin(key);
        self.mistakes.push(Remark {
            origin,
            value: Some(value.to_owned()),
            sentence,
        });
    }

    fn refuse_file(&mut self, sentence: String) {
        self.mistakes.push(Remark {
            origin: ValueOrigin::File {
                path: self.path.clone(),
                key: None,
            },
            value: None,
            sentence,
        });
    }

    fn warn(&mut self, key: &str, sentence: String) {
        let origin = self.origin(key);
        self.warnings.push(Remark {
            origin,
            value: None,
            sentence,
        });
    }
}

/// A value of the wanted type, as Go's decoder of YAML takes it. No sentence quotes the value,
/// which may be a secret.
fn typed(wanted: Type, value: Value) -> Result<TsiamValue, String> {
    let text = |value: Value| match value {
        Value::String(text) => Some(text),
        Value::Bool(value) => Some(value.to_string()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    };
    match (wanted, value) {
        (Type::Bool, Value::Bool(value)) => Ok(TsiamValue::Bool(value)),
        (Type::Bool, Value::String(word)) => match word.as_str() {
            "y" | "Y" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" => Ok(TsiamValue::Bool(true)),
            "n" | "N" | "no" | "No" | "NO" | "off" | "Off" | "OFF" => Ok(TsiamValue::Bool(false)),
            _ => Err("not true or false".into()),
        },
        (Type::Bool, _) => Err("not true or false".into()),
        (Type::Duration, Value::String(text)) => Ok(TsiamValue::Text(text)),
        (Type::Duration, Value::Number(_)) => {
            Err("a number without a unit; write for example 300s or 5m".into())
        }
        (Type::Duration, _) => Err("not a duration such as 300s or 5m".into()),
        (Type::List, Value::Sequence(items)) => items
            .into_iter()
            .map(text)
            .collect::<Option<Vec<_>>>()
            .map(TsiamValue::List)
            .ok_or_else(|| "a list of texts is expected, and one of its values is none".into()),
        (Type::List, _) => Err("not a list; write each value in a line of its own after - ".into()),
        (Type::Text, value) => text(value)
            .map(TsiamValue::Text)
            .ok_or_else(|| "one value is expected here".into()),
    }
}

fn not_one_of(words: &[&str]) -> String {
    format!("not one of {}", words.join(", "))
}
