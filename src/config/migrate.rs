//! tsiam's config file, or tsidp's variables, as a config file of ours, for `tailbone config
//! migrate`.

use std::path::Path;

use tailbone_values::printable;

use super::{
    load::load_all,
    parse::boolean,
    raw::{Environment, RawSettings, RawValue},
    report::{InvalidSettings, Remark, ValueOrigin},
    sections::workload,
    table::{self, Row, ValueKind},
};

/// A file of ours that says the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Migration {
    /// TOML, with a comment for each thing that has no setting.
    pub text: String,
    pub warnings: Vec<Remark>,
}

/// Makes a file of ours from tsiam's: from `config`, or else from the one that tsiam would find. If
/// there is none, from the variables of tsidp. Contains no secret.
pub fn migrate(
    environment: &Environment,
    config: Option<&Path>,
) -> Result<Migration, InvalidSettings> {
    let given = RawSettings::of_tsiam(environment, config)
        .or_else(|| RawSettings::of_tsidp(environment).filter(|_| config.is_none()));
    let Some(raw) = given else {
        return Err(InvalidSettings {
            mistakes: vec![Remark {
                origin: ValueOrigin::Flag("--config".into()),
                value: None,
                sentence: "names no config file of tsiam, and there is none where tsiam looks: \
                           TSIAM_CONFIG, and config.yaml or config.yml in the working directory, \
                           ~/.tsiam and /etc/tsiam; nor is a variable of tsidp set"
                    .into(),
            }],
            warnings: Vec::new(),
        });
    };
    let (_, origins, warnings) = load_all(&raw)?;
    let text = match origins.file {
        Some(path) => {
            let source = format!("tsiam's {}", printable(&path.to_string_lossy()));
            let dir = path.parent().unwrap_or(Path::new(""));
            toml(&raw, &source, "tsiam's key", dir, &warnings)
        }
        None => {
            let dir = environment.text("TS_STATE_DIR").unwrap_or_default();
            let (source, names) = ("tsidp's variables", "tsidp's variable");
            toml(&raw, source, names, Path::new(dir), &warnings)
        }
    };
    Ok(Migration { text, warnings })
}

/// `names` says what stands behind each value; secrets are expected in files of `dir`.
fn toml(raw: &RawSettings, source: &str, names: &str, dir: &Path, warnings: &[Remark]) -> String {
    let mut text = format!(
        "# Settings of tailbone, made from {source} by tailbone config migrate.\n\
         # Behind each value is {names}.\n"
    );
    for warning in warnings {
        text += &format!("# {warning}\n");
    }
    let mut group = "";
    for row in table::ALL {
        let Some(given) = raw.given(row) else {
            if row == &&workload::CAP_MAP && raw.path.is_some() {
                text += &cap_map();
            }
            continue;
        };
        let (parent, name) = row.key.rsplit_once('.').unwrap_or(("", row.key));
        if parent != group {
            text += &format!("\n[{parent}]\n");
            group = parent;
        } else if group.is_empty() {
            text.push('\n');
        }
        let (ValueOrigin::File { key: Some(key), .. } | ValueOrigin::Variable(key)) = &given.origin
        else {
            continue;
        };
        let value = match row.kind {
            ValueKind::Secret => {
                let (name, comment) = secret_file(row);
                let file = dir.join(name);
                text += comment;
                quoted(&format!("file:{}", file.display()))
            }
            _ => toml_value(row, &given.value),
        };
        text += &format!("{name} = {value}  # {key}\n");
    }
    text
}

/// tsiam cannot leave it out, and we leave it out unless it is asked for.
fn cap_map() -> String {
    "# tsiam's tokens carry all capabilities of the caller, which tells verifiers about the tailnet's\n\
     # policy. If one of them reads capMap:\n\
     # capMap = true\n"
        .into()
}

/// The file in which a secret is expected afterwards, and the comment that says so.
fn secret_file(row: &Row) -> (&'static str, &'static str) {
    if row.key == workload::AZURE_CLIENT_SECRET.key {
        (
            "azure-client-secret",
            "# This is a secret, so it is not printed. Write it into this file.\n",
        )
    } else {
        (
            "authkey",
            "# The key is a secret, so it is not printed. Write it into this file, or leave the\n\
             # line out if the node has joined: its state has the login.\n",
        )
    }
}

fn toml_value(row: &Row, value: &RawValue) -> String {
    match (row.kind, value) {
        (ValueKind::Bool, RawValue::Text(text)) => {
            // Go has more words for it than TOML.
            let parsed = boolean(text, &ValueOrigin::Default);
            parsed.map_or_else(|_| text.clone(), |parsed| parsed.value.to_string())
        }
        (ValueKind::Words(_), RawValue::Text(text)) => {
            list(text.split([',', ' ']).filter(|word| !word.is_empty()))
        }
        (_, RawValue::Text(text)) => quoted(text),
        (_, RawValue::List(texts)) => list(texts.iter().map(String::as_str)),
    }
}

fn list<'a>(texts: impl Iterator<Item = &'a str>) -> String {
    let texts: Vec<_> = texts.map(quoted).collect();
    format!("[{}]", texts.join(", "))
}

/// A basic string of TOML, which has the escapes of JSON.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
