//! Names, defaults and precedence of every setting, as `contract.txt` has them.

use serde_json::{Value as Json, json};
use tailbone::config::table;

use super::{file, show};

/// A line of `contract.txt`.
pub(super) struct Row {
    flag: &'static str,
    pub(super) key: &'static str,
    default: Json,
    /// Three other values: for the flag, the variable and the file.
    pub(super) others: [&'static str; 3],
}

impl Row {
    /// The contract's rule for names of variables.
    fn variable(&self) -> String {
        format!("TB_{}", self.key.replace('.', "_").to_ascii_uppercase())
    }
}

pub(super) fn contract() -> Vec<Row> {
    include_str!("contract.txt")
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| {
            let columns: Vec<_> = line.split_whitespace().collect();
            let &[flag, key, default, by_flag, by_variable, by_file] = columns.as_slice() else {
                panic!("not six columns: {line}");
            };
            Row {
                flag,
                key,
                default: serde_json::from_str(default).unwrap(),
                others: [by_flag, by_variable, by_file],
            }
        })
        .collect()
}

#[test]
fn in_every_row_a_flag_wins_over_the_variable_the_file_and_the_default() {
    for row in contract() {
        if row.key == "output" {
            // It changes the format of this very output; see `output_follows_the_same_order`.
            continue;
        }
        let [by_flag, by_variable, by_file] = row.others;
        let (name, last) = row.key.rsplit_once('.').unwrap_or(("", row.key));
        let header = if name.is_empty() {
            String::new()
        } else {
            format!("[{name}]\n")
        };
        let (_directory, path) = file("tailbone.toml", &format!("{header}{last} = '{by_file}'\n"));
        let path = path.to_str().unwrap();
        let flag = if row.flag.starts_with("--") {
            format!("{}={by_flag}", row.flag)
        } else {
            format!("{}{by_flag}", row.flag)
        };
        let name_of_variable = row.variable();
        let variable = [(name_of_variable.as_str(), by_variable)];
        let origin_of_flag = match row.flag {
            "-p" => "flag --port".to_owned(),
            "-b" => "flag --binding".to_owned(),
            long => format!("flag {long}"),
        };

        assert_eq!(
            show(&[], &[])[row.key],
            (row.default.clone(), "default".into()),
            "{}",
            row.key
        );
        assert_eq!(
            show(&["--config", path], &[])[row.key],
            (shown(&row, by_file), format!("file {path}: {}", row.key))
        );
        assert_eq!(
            show(&["--config", path], &variable)[row.key],
            (
                shown(&row, by_variable),
                format!("variable {name_of_variable}")
            )
        );
        assert_eq!(
            show(&["--config", path, &flag], &variable)[row.key],
            (shown(&row, by_flag), origin_of_flag)
        );
        // An empty variable counts as unset.
        assert_eq!(
            show(&["--config", path], &[(&name_of_variable, "")])[row.key].0,
            shown(&row, by_file)
        );
    }
}

#[test]
fn the_contract_names_every_row_of_the_table() {
    let mut known: Vec<String> = contract().iter().map(|row| row.key.to_owned()).collect();
    // Tested elsewhere: a secret, and settings that only `keys …` uses.
    known.extend(
        [
            "server.tailscale.authkey",
            "server.tailscale.clientSecret",
            "server.tailscale.idToken",
            "server.telemetry.otlp.headers",
            "keys.pkcs11.pin",
            "keys.vault.token",
            "oidc.storePassword",
            "sts.clientSecret",
            "workload.keys.azure.clientSecret",
            "oidc.groups.clientSecret",
            "no-confirmation",
            "admin.client.host",
            "admin.client.port",
            "admin.client.timeout",
        ]
        .map(str::to_owned),
    );
    for row in table::ALL {
        assert!(
            known.iter().any(|key| key == row.key),
            "{} has no test",
            row.key
        );
    }
    assert_eq!(show(&[], &[]).len(), table::ALL.len());
}

/// The output of `config show` for a typed value.
fn shown(row: &Row, typed: &str) -> Json {
    match &row.default {
        Json::Array(_) => typed.split(',').collect(),
        Json::Bool(_) => json!(typed == "true"),
        Json::Number(_) => json!(typed.parse::<u32>().unwrap()),
        _ => json!(typed),
    }
}
