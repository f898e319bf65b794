//! Config files: which one is read, and its text as a flat list of keys.
//!
//! TOML, YAML and JSON become the same tree first, so that they mean the same. A key may be nested
//! or written with dots. No message quotes a line of the file, because that line may contain the
//! auth key. `raw.rs` looks the keys up, and `read.rs` reads the values.

use std::{
    ffi::OsStr,
    fmt,
    io::Read,
    path::{Path, PathBuf},
};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor},
};

use super::{
    raw::RawValue,
    report::{Remark, ValueOrigin},
};

/// The extensions that the Go program looks for in the home directory, in its order. `None`: we do
/// not read that format.
const EXTENSIONS: [(&str, Option<FileFormat>); 12] = [
    ("json", Some(FileFormat::Json)),
    ("toml", Some(FileFormat::Toml)),
    ("yaml", Some(FileFormat::Yaml)),
    ("yml", Some(FileFormat::Yaml)),
    ("properties", None),
    ("props", None),
    ("prop", None),
    ("hcl", None),
    ("tfvars", None),
    ("dotenv", None),
    ("env", None),
    ("ini", None),
];

/// A larger config file is not read; it was hardly meant to be one.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FileFormat {
    Json,
    Toml,
    Yaml,
}

/// The config file to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ConfigFile {
    pub(super) path: PathBuf,
    pub(super) format: FileFormat,
}

/// One setting of a file, with its key as written there.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct FileEntry {
    pub(super) key: String,
    pub(super) value: RawValue,
}

/// Finds the file that `--config` names, or else the first one in the home directory.
pub(super) fn locate(
    config: Option<&Path>,
    home: Option<&OsStr>,
    warnings: &mut Vec<Remark>,
) -> Result<Option<ConfigFile>, Remark> {
    if let Some(path) = config {
        let extension = path
            .extension()
            .map(|extension| extension.to_string_lossy().to_ascii_lowercase());
        let format = EXTENSIONS
            .iter()
            .find(|(known, _)| extension.as_deref() == Some(known))
            .and_then(|(_, format)| *format);
        return match format {
            Some(format) => Ok(Some(ConfigFile {
                path: path.to_owned(),
                format,
            })),
            None => Err(Remark {
                origin: ValueOrigin::Flag("--config".into()),
                value: Some(path.display().to_string()),
                sentence: "not a config file that can be read: its name must end in .toml, .yaml \
                           (.yml) or .json"
                    .into(),
            }),
        };
    }
    let Some(home) = home.filter(|home| !home.is_empty()) else {
        return Ok(None);
    };
    for (extension, format) in EXTENSIONS {
        let path = Path::new(home).join(format!(".tailbone.{extension}"));
        if !path.is_file() {
            continue;
        }
        match format {
            Some(format) => return Ok(Some(ConfigFile { path, format })),
            None => {
                // The Go program reads it, so its owner must learn that we do not.
                warnings.push(Remark {
                    origin: ValueOrigin::File { path, key: None },
                    value: None,
                    sentence: "is not read: a config file is .tailbone.json, .toml, .yaml or .yml"
                        .into(),
                });
                return Ok(None);
            }
        }
    }
    Ok(None)
}

/// All settings of a text that have a value.
pub(super) fn entries(found: &ConfigFile, text: &str) -> Result<Vec<FileEntry>, Remark> {
    parse(text, found.format).map_err(|sentence| broken(&found.path, sentence))
}

/// The text of a config file.
pub(super) fn text_of(path: &Path) -> Result<String, Remark> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes))
        .map_err(|error| broken(path, format!("cannot be read: {error}")))?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(broken(path, "is larger than 1 MiB".into()));
    }
    let text = String::from_utf8(bytes);
    let text = text.map_err(|_| broken(path, "is not text in UTF-8".into()))?;
    Ok(match text.strip_prefix('\u{feff}') {
        Some(rest) => rest.to_owned(),
        None => text,
    })
}

pub(super) fn broken(path: &Path, sentence: String) -> Remark {
    Remark {
        origin: ValueOrigin::File {
            path: path.to_owned(),
            key: None,
        },
        value: None,
        sentence,
    }
}

pub(super) fn parse(text: &str, format: FileFormat) -> Result<Vec<FileEntry>, String> {
    let tree = match format {
        FileFormat::Json => serde_json::from_str(text).map_err(|error| {
            format!(
                "is not JSON (line {}, column {})",
                error.line(),
                error.column()
            )
        }),
        FileFormat::Toml => toml::from_str(text).map_err(|error| {
            let line = error
                .span()
                .map(|span| 1 + text[..span.start.min(text.len())].matches('\n').count());
            match line {
                Some(line) => format!("is not TOML (line {line}): {}", error.message()),
                None => format!("is not TOML: {}", error.message()),
            }
        }),
        FileFormat::Yaml => yaml_serde::from_str(text).map_err(|error| match error.location() {
            Some(place) => format!(
                "is not YAML (line {}, column {})",
                place.line(),
                place.column()
            ),
            None => "is not YAML".into(),
        }),
    }?;
    let mut items = Vec::new();
    match tree {
        Tree::Table(entries) => flatten("", entries, &mut items)?,
        Tree::Nothing => {}
        Tree::List(_) | Tree::Scalar(_) => {
            return Err("contains no settings: its top level must be a table of keys".into());
        }
    }
    Ok(items)
}

fn flatten(
    group: &str,
    entries: Vec<(String, Tree)>,
    items: &mut Vec<FileEntry>,
) -> Result<(), String> {
    for (name, tree) in entries {
        let key = if group.is_empty() {
            name
        } else {
            format!("{group}.{name}")
        };
        match tree {
            // A key without a value is unset, as in the Go program.
            Tree::Nothing => {}
            Tree::Table(entries) => flatten(&key, entries, items)?,
            Tree::Scalar(text) => items.push(FileEntry {
                key,
                value: RawValue::Text(text),
            }),
            Tree::List(trees) => {
                let mut list = Vec::new();
                for tree in trees {
                    match tree {
                        Tree::Scalar(text) => list.push(text),
                        Tree::List(_) | Tree::Nothing | Tree::Table(_) => {
                            return Err(format!("{key} is not a list of plain values"));
                        }
                    }
                }
                items.push(FileEntry {
                    key,
                    value: RawValue::List(list),
                });
            }
        }
    }
    Ok(())
}

/// The contents of a file, whatever its format.
enum Tree {
    List(Vec<Tree>),
    Nothing,
    Scalar(String),
    Table(Vec<(String, Tree)>),
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TreeVisitor)
    }
}

struct TreeVisitor;

impl<'de> Visitor<'de> for TreeVisitor {
    type Value = Tree;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a table, a list or a plain value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Tree, E> {
        Ok(Tree::Scalar(value.to_string()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Tree, E> {
        Ok(Tree::Scalar(value.to_string()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Tree, E> {
        Ok(Tree::Scalar(value.to_string()))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Tree, E> {
        Ok(Tree::Scalar(value.to_string()))
    }

    fn visit_u128<E>(self, value: u128) -> Result<Tree, E> {
        Ok(Tree::Scalar(value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Tree, E> {
        Ok(Tree::Scalar(value.to_string()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Tree, E> {
        Ok(Tree::Scalar(value.to_owned()))
    }

    fn visit_unit<E>(self) -> Result<Tree, E> {
        Ok(Tree::Nothing)
    }

    fn visit_none<E>(self) -> Result<Tree, E> {
        Ok(Tree::Nothing)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Tree, D::Error> {
        Tree::deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Tree, A::Error> {
        let mut trees = Vec::new();
        while let Some(tree) = list.next_element()? {
            trees.push(tree);
        }
        Ok(Tree::List(trees))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tree, A::Error> {
        let mut entries = Vec::new();
        while let Some(KeyName(name)) = map.next_key()? {
            entries.push((name, map.next_value()?));
        }
        // The TOML parser presents a date as a table with one key of its own. No setting is a date;
        // as a text it gets the error of the setting that it was given for.
        if let [(name, Tree::Scalar(date))] = entries.as_slice()
            && name.starts_with("$__toml_private")
        {
            return Ok(Tree::Scalar(date.clone()));
        }
        Ok(Tree::Table(entries))
    }
}

/// A key. YAML also has keys that are not strings.
struct KeyName(String);

impl<'de> Deserialize<'de> for KeyName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Tree::deserialize(deserializer)? {
            Tree::Scalar(text) => Ok(Self(text)),
            Tree::List(_) | Tree::Nothing | Tree::Table(_) => {
                Err(serde::de::Error::custom("a key that is not a word"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flat(text: &str, format: FileFormat) -> Vec<(String, RawValue)> {
        parse(text, format)
            .expect(text)
            .into_iter()
            .map(|item| (item.key, item.value))
            .collect()
    }

    #[test]
    fn the_three_formats_mean_the_same() {
        let toml = flat(
            "components = ['issuer', 'admin']\n[server]\nport = 8080\n[server.tailscale]\nephemeral = true\nhostname = 'x'",
            FileFormat::Toml,
        );
        let yaml = flat(
            "components: [issuer, admin]\nserver:\n  port: 8080\n  tailscale:\n    ephemeral: true\n    hostname: x\n    authkey:\n",
            FileFormat::Yaml,
        );
        let json = flat(
            r#"{"components":["issuer","admin"],"server":{"port":8080,"tailscale.ephemeral":true,"tailscale":{"hostname":"x","authkey":null}}}"#,
            FileFormat::Json,
        );
        assert_eq!(toml, yaml);
        assert_eq!(toml, json);
        assert_eq!(toml.len(), 4);
    }

    #[test]
    fn odd_values_are_texts_for_the_loader_to_judge() {
        let one = |text, format| flat(text, format).remove(0).1;
        assert_eq!(one("a = 2026-01-02", FileFormat::Toml), "2026-01-02".into());
        assert_eq!(one("a = 80.0", FileFormat::Toml), "80".into());
        for format in [FileFormat::Yaml, FileFormat::Json] {
            let text = match format {
                FileFormat::Yaml => "a: 99999999999999999999",
                _ => r#"{"a": 99999999999999999999}"#,
            };
            assert!(
                matches!(one(text, format), RawValue::Text(text) if text.starts_with('9') || text.starts_with('1'))
            );
        }
        assert_eq!(flat("80: x", FileFormat::Yaml)[0].0, "80");
    }

    #[test]
    fn an_empty_file_has_no_settings() {
        assert_eq!(flat("", FileFormat::Toml), []);
        assert_eq!(flat("", FileFormat::Yaml), []);
        assert_eq!(flat("{}", FileFormat::Json), []);
        assert!(parse("", FileFormat::Json).is_err());
    }

    #[test]
    fn a_broken_file_is_told_without_its_lines() {
        for (text, format) in [
            (
                "[server.tailscale]\nauthkey = tskey-auth-secret\n",
                FileFormat::Toml,
            ),
            (
                "[server.tailscale]\nauthkey = \"tskey-auth-secret\n",
                FileFormat::Toml,
            ),
            (
                "server:\n  tailscale:\n    authkey: *tskey-auth-secret\n",
                FileFormat::Yaml,
            ),
            (
                "server:\n  authkey: \"tskey-auth-secret\n",
                FileFormat::Yaml,
            ),
            ("server: !tskey-auth-secret {a: [}\n", FileFormat::Yaml),
            (
                "{\"server\": {\"authkey\": tskey-auth-secret}}",
                FileFormat::Json,
            ),
            ("{\"tskey-auth-secret\"}", FileFormat::Json),
            ("tskey-auth-secret", FileFormat::Yaml),
            ("[1, 2]", FileFormat::Json),
            ("keys: [[tskey-auth-secret]]", FileFormat::Yaml),
        ] {
            let error = parse(text, format).err().expect(text);
            assert!(!error.contains("tskey"), "{error}");
        }
    }
}
