//! Config files: where they are searched for, their forms, and broken ones.

use serde_json::Value as Json;
use tailbone::config::{self, Environment, Flags, Purpose, RawSettings};

use super::{file, load, run, with_file};

#[test]
fn the_home_directory_is_searched_in_the_contracts_order() {
    let home = tempfile::tempdir().unwrap();
    let at = home.path().to_str().unwrap();
    let found = || {
        let ran = run(&["config", "show", "-o", "json"], &[("HOME", at)]);
        assert_eq!(ran.code, 0, "{}", ran.err);
        let shown: Json = serde_json::from_str(&ran.out).unwrap();
        (
            shown["keys"]["issuer"].as_str().unwrap().to_owned(),
            ran.err.replace(at, "HOME"),
        )
    };
    assert_eq!(found(), ("tailbone".into(), String::new()));
    // Each of these files takes precedence over those before it.
    for (name, text) in [
        (".tailbone.yml", "keys: {issuer: yml}"),
        (".tailbone.yaml", "keys: {issuer: yaml}"),
        (".tailbone.toml", "[keys]\nissuer = 'toml'"),
        (".tailbone.json", r#"{"keys": {"issuer": "json"}}"#),
    ] {
        std::fs::write(home.path().join(name), text).unwrap();
        let extension = name.rsplit('.').next().unwrap();
        assert_eq!(
            found(),
            (
                extension.to_owned(),
                format!("Using config file: HOME/{name}\n")
            )
        );
    }
}

#[test]
fn a_file_that_is_no_longer_read_is_told() {
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join(".tailbone.ini"), "[keys]\nissuer=x").unwrap();
    let at = home.path().to_str().unwrap();
    let ran = run(&["config", "check"], &[("HOME", at)]);
    assert_eq!(ran.code, 0);
    assert_eq!(
        ran.err.replace(at, "HOME"),
        "Warning: HOME/.tailbone.ini: is not read: a config file is .tailbone.json, .toml, .yaml or .yml\nThe settings are fine\n"
    );
    // Neither the bare name nor the working directory is used, and no home is required.
    std::fs::write(home.path().join(".tailbone"), "x").unwrap();
    assert_eq!(
        run(&["config", "check"], &[]).err,
        "The settings are fine\n"
    );
}

#[test]
fn keys_in_a_file_ignore_case_and_may_be_dotted() {
    let text = "[SERVER.TailScale]\nJoinTIMEOUT = '5s'\nhostname = 'x'\n[keys]\n'S3.pathstyle' = true\nBUCKET = 'b'\n";
    let ran = with_file("t.toml", text, &["config", "show", "-o", "json"]);
    let shown: Json = serde_json::from_str(&ran.out).expect(&ran.err);
    assert_eq!(shown["server"]["tailscale"]["joinTimeout"], "5s");
    assert_eq!(shown["keys"]["s3"]["pathStyle"], true);
}

#[test]
fn a_named_file_that_is_missing_broken_or_of_another_kind_is_a_mistake() {
    let missing = run(
        &["config", "check", "--config", "/nowhere/tailbone.toml"],
        &[],
    );
    assert_eq!(missing.code, 64);
    assert_eq!(
        missing.err,
        "Error: /nowhere/tailbone.toml: cannot be read: No such file or directory (os error 2)\n"
    );
    for (name, text) in [
        ("t.toml", "a = b = c"),
        ("t.json", "{"),
        ("t.yaml", "a: [}"),
        ("t.YML", "- 1"),
    ] {
        let ran = with_file(name, text, &["config", "check"]);
        assert_eq!(ran.code, 64, "{name}");
        assert!(ran.err.starts_with("Error: PATH: "), "{}", ran.err);
    }
    for name in [
        "t.properties",
        "t.props",
        "t.prop",
        "t.hcl",
        "t.tfvars",
        "t.dotenv",
        "t.env",
        "t.ini",
        "t",
        "t.txt",
    ] {
        let ran = with_file(name, "", &["config", "check"]);
        assert_eq!(ran.code, 64, "{name}");
        assert_eq!(
            ran.err,
            "Error: --config=PATH: not a config file that can be read: its name must end in .toml, .yaml (.yml) or .json\n"
        );
    }
    // Not UTF-8, too large, a directory.
    let (_directory, path) = file("t.toml", "");
    std::fs::write(&path, b"issuer = '\xff'").unwrap();
    assert!(
        run(
            &["config", "check", "--config", path.to_str().unwrap()],
            &[]
        )
        .err
        .contains("UTF-8")
    );
    std::fs::write(&path, " ".repeat(2 << 20)).unwrap();
    assert!(
        run(
            &["config", "check", "--config", path.to_str().unwrap()],
            &[]
        )
        .err
        .contains("1 MiB")
    );
    let directory = path.parent().unwrap().join("d.toml");
    std::fs::create_dir(&directory).unwrap();
    assert_eq!(
        run(
            &["config", "check", "--config", directory.to_str().unwrap()],
            &[]
        )
        .code,
        64
    );
    // An empty name means no file.
    assert_eq!(run(&["config", "check", "--config", ""], &[]).code, 0);
}

#[test]
fn a_broken_file_in_the_home_directory_is_a_mistake_too() {
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join(".tailbone.toml"), "[keys").unwrap();
    let ran = run(
        &["keys", "list"],
        &[("HOME", home.path().to_str().unwrap())],
    );
    assert_eq!(ran.code, 64);
    assert!(ran.err.contains("is not TOML (line 1)"), "{}", ran.err);
}

#[test]
fn what_config_show_prints_can_be_used_as_a_config_file() {
    let variables = [
        ("TB_COMPONENTS", "issuer"),
        ("TB_KEYS_EXPIRY", "1h30m"),
        ("TB_KEYS_BUCKET", "b"),
        ("TB_SERVER_TAILSCALE_TAGS", "tag:a,tag:b"),
        ("TB_ADMIN_SOCKET", "/run/x.sock"),
        ("TB_KEYS_ROTATEEVERY", "720h"),
    ];
    for format in ["yaml", "json"] {
        // With a bucket there is no file, so the output must not contain `keys.jwksFile`.
        let shown = run(&["config", "show", "-o", format], &variables).out;
        let (_directory, path) = file(&format!("t.{format}"), &shown);
        let again = RawSettings::collect(Flags::default(), &Environment::default(), Some(&path));
        let (settings, _, warnings) = config::load(&again, Purpose::Start).unwrap();
        assert_eq!(settings, load(&variables).unwrap());
        assert_eq!(warnings, []);
    }
}
