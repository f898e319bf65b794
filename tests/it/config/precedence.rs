//! Which of several values counts, and what the defaults mean.

use std::{path::Path, time::Duration};

use proptest::prelude::*;
use serde_json::json;
use tailbone::config::{
    self, Authorization, Component, Environment, Flags, KeySpec, LogFormat, LogLevel, OutputFormat,
    Publish, RawSettings, RawValue, ValueOrigin, table,
};

use super::{addresses, client, file, load, run, show, with_file};

#[test]
fn output_follows_the_same_order() {
    let text = "output: yaml\n";
    assert!(
        with_file("t.yaml", text, &["config", "show"])
            .out
            .starts_with("admin:\n")
    );
    let (_directory, path) = file("t.yaml", text);
    let path = path.to_str().unwrap();
    let variable = [("TB_OUTPUT", "json")];
    assert!(
        run(&["config", "show", "--config", path], &variable)
            .out
            .starts_with("{\n")
    );
    assert!(
        run(&["config", "show", "--config", path, "-otable"], &variable)
            .out
            .starts_with(" Setting ")
    );
    assert!(
        run(&["-o", "text", "config", "show"], &variable)
            .out
            .starts_with(" Setting ")
    );
}

#[test]
fn the_client_has_its_own_settings() {
    let defaults = client(&[]);
    assert_eq!(defaults.host, "");
    assert_eq!(defaults.port, 50051);
    assert_eq!(defaults.timeout, Duration::from_secs(30));
    assert_eq!(defaults.output, OutputFormat::Text);
    assert!(!defaults.no_confirmation);
    assert_eq!(defaults.socket, Path::new(".tsnet/admin.sock"));
    assert_eq!((defaults.key_size, defaults.key_algorithm), (None, None));

    let typed = client(&[
        ("TB_ADMIN_CLIENT_HOST", "[fd7a::1]"),
        ("TB_ADMIN_CLIENT_PORT", "1234"),
        ("TB_NO_CONFIRMATION", "1"),
        ("TB_OUTPUT", "yml"),
        ("TB_SERVER_TAILSCALE_DIR", "/state"),
        ("TB_KEYS_SIZE", "4096"),
        ("TB_KEYS_ALGORITHM", "eddsa"),
        // Settings that only a server reads do not stop the client.
        ("TB_SERVER_PORT", "abc"),
    ]);
    assert_eq!(typed.host, "fd7a::1");
    assert_eq!(typed.port, 1234);
    assert!(typed.no_confirmation);
    assert_eq!(typed.output, OutputFormat::Yaml);
    assert_eq!(typed.socket, Path::new("/state/admin.sock"));
    assert_eq!(typed.key_size, Some(4096));
    assert_eq!(typed.key_algorithm.as_deref(), Some("EdDSA"));
}

#[test]
fn port_is_the_issuers_for_server_and_the_admins_for_keys() {
    let server = run(&["server", "start", "--port", "abc"], &[]);
    assert!(
        server.err.contains("--port=abc: not a port"),
        "{}",
        server.err
    );
    assert_eq!(
        show(&["--port", "81"], &[])["admin.client.port"].0,
        json!(50051)
    );
    for arguments in [
        ["keys", "--port", "abc", "list"],
        ["keys", "list", "--port", "abc"],
        ["key", "ls", "--port", "abc"],
    ] {
        let ran = run(&arguments, &[("TB_SERVER_PORT", "also wrong")]);
        assert_eq!(
            (ran.code, ran.err.as_str()),
            (64, "Error: --port=abc: not a port (1-65535)\n")
        );
    }
}

#[test]
fn flags_may_stand_before_the_last_word_and_twice() {
    let ran = run(
        &[
            "server",
            "--dir",
            "",
            "start",
            "--expiry=1h",
            "--expiry",
            "x",
        ],
        &[],
    );
    assert_eq!(ran.code, 64);
    assert!(ran.err.contains("--dir=: an empty path"), "{}", ran.err);
    assert!(
        ran.err.contains("--expiry=x: not a duration"),
        "{}",
        ran.err
    );
    let shown = show(
        &[
            "--port=1",
            "-p=2",
            "-p3",
            "--no-color=false",
            "--ts-ephemeral",
        ],
        &[],
    );
    assert_eq!(shown["server.port"].0, json!(3));
    assert_eq!(shown["log.no_color"].0, json!(false));
    assert_eq!(shown["server.tailscale.ephemeral"].0, json!(true));
    let shown = show(&["--components", "issuer", "--components", "admin"], &[]);
    assert_eq!(shown["components"].0, json!(["issuer", "admin"]));
}

#[test]
fn defaults_mean_what_the_contract_says() {
    let settings = load(&[]).unwrap();
    assert_eq!(
        settings.components,
        [Component::Admin, Component::Issuer].into()
    );
    assert_eq!(settings.log.level, LogLevel::Info);
    assert_eq!(settings.log.format, LogFormat::Console);
    assert_eq!(settings.keys.token.expiry, Duration::from_secs(1200));
    assert_eq!(settings.keys.spec, KeySpec::Rs256 { bits: 2048 });
    assert_eq!(settings.keys.rotate_every, None);
    assert_eq!(
        settings.keys.publish,
        Publish::File {
            path: "keys/jwks.json".into()
        }
    );
    assert_eq!(addresses(&settings.server.listen), ["tailnet://:80"]);
    assert_eq!(settings.server.grace, Duration::from_secs(10));
    assert_eq!(settings.server.tailscale.authkey, None);
    assert_eq!(settings.server.tailscale.control_url, None);
    assert!(!settings.server.tailscale.ephemeral && !settings.server.tailscale.upload_logs);
    assert_eq!(settings.admin.authorization, Authorization::Grant);
    assert_eq!(settings.admin.socket, Path::new(".tsnet/admin.sock"));
}

#[test]
fn no_color_counts_where_the_setting_is_not_given() {
    assert!(load(&[("NO_COLOR", "1")]).unwrap().log.no_color);
    assert!(!load(&[("NO_COLOR", "")]).unwrap().log.no_color);
    assert!(
        !load(&[("NO_COLOR", "1"), ("TB_LOG_NO_COLOR", "false")])
            .unwrap()
            .log
            .no_color
    );
    assert_eq!(
        show(&[], &[("NO_COLOR", "x")])["log.no_color"].1,
        "variable NO_COLOR"
    );
}

/// The rows that accept any short word, so that a random value is valid.
fn any_row() -> impl Strategy<Value = &'static table::Row> {
    let rows: Vec<_> = table::ALL
        .iter()
        .copied()
        .filter(|row| {
            matches!(
                row.kind,
                table::ValueKind::Path | table::ValueKind::Port | table::ValueKind::Duration { .. }
            )
        })
        .collect();
    proptest::sample::select(rows)
}

fn any_value(row: &table::Row, seed: u16) -> String {
    match row.kind {
        table::ValueKind::Port => (1000 + seed % 40_000).to_string(),
        table::ValueKind::Duration { .. } => format!("{}m", 6 + seed % 50),
        _ => format!("path-{seed}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_strongest_layer_wins(
        row in any_row(),
        by_flag in proptest::option::of(any::<u16>()),
        by_variable in proptest::option::of(any::<u16>()),
        by_file in proptest::option::of(any::<u16>()),
        capitals in any::<bool>(),
    ) {
        let [by_flag, by_variable, by_file] = [by_flag, by_variable, by_file].map(|seed| seed.map(|seed| any_value(row, seed)));
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("settings.json");
        let mut nested = by_file.as_ref().map_or(json!({}), |value| json!(value));
        if by_file.is_some() {
            for name in row.key.rsplit('.') {
                let name = if capitals { name.to_uppercase() } else { name.to_owned() };
                nested = json!({ name: nested });
            }
        }
        std::fs::write(&path, nested.to_string()).unwrap();
        let mut flags = Flags::default();
        if let Some(value) = &by_flag {
            flags.set(row, "--flag", RawValue::Text(value.clone()));
        }
        let environment: Environment = by_variable.iter().map(|value| (row.variable(), value)).collect();
        let (_, origins, warnings) = config::load_all(&RawSettings::collect(flags, &environment, Some(&path)))
            .map_err(|mistakes| TestCaseError::fail(mistakes.to_string()))?;

        let expected = match (by_flag, by_variable, by_file) {
            (Some(value), _, _) => Some((value, ValueOrigin::Flag("--flag".into()))),
            (None, Some(value), _) => Some((value, ValueOrigin::Variable(row.variable()))),
            (None, None, Some(value)) => {
                let key = if capitals { row.key.to_uppercase() } else { row.key.to_owned() };
                Some((value, ValueOrigin::File { path, key: Some(key) }))
            }
            (None, None, None) => None,
        };
        let entry = origins.entries.iter().find(|entry| entry.row.key == row.key).unwrap();
        match expected {
            Some((value, origin)) => {
                prop_assert_eq!(&entry.origin, &origin);
                let text = entry.value.as_str().map_or_else(|| entry.value.to_string(), str::to_owned);
                prop_assert_eq!(text, value);
            }
            None => prop_assert_eq!(&entry.origin, &ValueOrigin::Default),
        }
        prop_assert!(warnings.is_empty(), "{:?}", warnings);
    }

    #[test]
    fn no_value_makes_the_loader_panic_and_no_message_moves_the_cursor(
        row in proptest::sample::select(table::ALL),
        value in prop_oneof![any::<String>(), any::<String>().prop_map(|text| format!("file:{text}"))],
    ) {
        let environment: Environment = [(row.variable(), value.replace('\0', ""))].into_iter().collect();
        if let Err(mistakes) = config::load_all(&RawSettings::collect(Flags::default(), &environment, None)) {
            for line in mistakes.to_string().lines() {
                prop_assert!(!line.chars().any(char::is_control), "{line:?}");
            }
        }
    }
}
