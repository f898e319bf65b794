//! Secrets: where they may come from, and that nothing shows them.

use serde_json::json;
use tailbone::config::{self, Purpose};

use super::{file, load, mistake, raw, remarks, run, show, with_file};

#[test]
fn an_auth_key_may_come_from_a_file() {
    let (_directory, path) = file("authkey", "tskey-from-file\r\n");
    let path = path.to_str().unwrap();
    let by_prefix = format!("file:{path}");
    let key = |variables: &[(&str, &str)]| {
        load(variables)
            .unwrap()
            .server
            .tailscale
            .authkey
            .map(|key| key.reveal().to_owned())
    };
    let expected = Some("tskey-from-file".to_owned());
    assert_eq!(key(&[("TB_SERVER_TAILSCALE_AUTHKEY_FILE", path)]), expected);
    assert_eq!(
        key(&[("TB_SERVER_TAILSCALE_AUTHKEY", &by_prefix)]),
        expected
    );
    assert_eq!(
        key(&[("TB_SERVER_TAILSCALE_AUTHKEY", "tskey-plain\n")]),
        Some("tskey-plain".into())
    );
    assert_eq!(key(&[("TB_SERVER_TAILSCALE_AUTHKEY_FILE", "")]), None);
    let shown = show(
        &["--ts-authkey", &by_prefix],
        &[("TB_SERVER_TAILSCALE_AUTHKEY", "tskey-plain")],
    );
    assert_eq!(
        shown["server.tailscale.authkey"],
        (json!("(hidden)"), "flag --ts-authkey".into())
    );
    // Only the file's name is on the command line, so no warning is needed.
    assert_eq!(
        run(&["config", "check", "--ts-authkey", &by_prefix], &[]).err,
        "The settings are fine\n"
    );
    let shown = show(&[], &[("TB_SERVER_TAILSCALE_AUTHKEY_FILE", path)]);
    assert_eq!(
        shown["server.tailscale.authkey"].1,
        "variable TB_SERVER_TAILSCALE_AUTHKEY_FILE"
    );

    let both = [
        ("TB_SERVER_TAILSCALE_AUTHKEY_FILE", path),
        ("TB_SERVER_TAILSCALE_AUTHKEY", "tskey-x"),
    ];
    assert_eq!(
        remarks(&both).1,
        [
            "TB_SERVER_TAILSCALE_AUTHKEY: TB_SERVER_TAILSCALE_AUTHKEY_FILE is set too: keep one of the two"
        ]
    );
}

#[test]
fn housekeeping_needs_no_auth_key() {
    let variables = raw(&[("TB_SERVER_TAILSCALE_AUTHKEY_FILE", "/nowhere")]);
    assert!(config::load(&variables, Purpose::Start).is_err());
    let settings = config::load(&variables, Purpose::Housekeeping).unwrap().0;
    assert_eq!(settings.server.tailscale.authkey, None);
}

#[test]
fn no_secret_is_ever_shown() {
    const SECRET: &str = "tskey-auth-hush";
    let home = tempfile::tempdir().unwrap();
    let broken = home.path().join("broken");
    std::fs::write(&broken, format!("{SECRET} and more\n{SECRET}")).unwrap();
    let files = [
        (
            "t.toml",
            format!("[server.tailscale]\nauthkey = '{SECRET}'\n[server]\nport = 0\n"),
        ),
        (
            "t.toml",
            format!("[server.tailscale]\nauthkey = {SECRET}\n"),
        ),
        (
            "t.toml",
            format!("[server.tailscale]\nauthkey = ['{SECRET}']\n"),
        ),
        (
            "t.yaml",
            format!("server: {{tailscale: {{authkey: \"{SECRET} x\"}}}}\n"),
        ),
        (
            "t.yaml",
            format!("server: {{tailscale: {{authkey: *{SECRET}}}}}\n"),
        ),
        (
            "t.json",
            format!("{{\"server\":{{\"tailscale\":{{\"authkey\":\"{SECRET}\\u0000\"}}}}}}"),
        ),
        (
            "t.json",
            format!("{{\"server\":{{\"tailscale\":{{\"authkey\":{SECRET}}}}}}}"),
        ),
    ];
    let mut said = String::new();
    for arguments in [
        &["config", "check"][..],
        &["config", "show", "--origin"],
        &["config", "show", "-o", "json"],
        &["config", "show", "-o", "yaml", "--origin"],
        // With a mistake beside the secret, so that nothing is started.
        &["server", "start", "--port", "abc"],
        &["server", "housekeeping", "--dir", ""],
        &["keys", "list"],
    ] {
        for (name, text) in &files {
            let ran = with_file(name, text, arguments);
            said += &(ran.out + &ran.err);
        }
        let variables = [
            ("TB_SERVER_TAILSCALE_AUTHKEY", SECRET.to_owned()),
            ("TB_SERVER_TAILSCALE_AUTHKEY", format!("{SECRET} x")),
            ("TB_SERVER_TAILSCALE_AUTHKEY", format!("{SECRET}\u{1b}")),
            ("TB_SERVER_TAILSCALE_AUTHKEY", SECRET.repeat(1000)),
            (
                "TB_SERVER_TAILSCALE_AUTHKEY_FILE",
                broken.to_str().unwrap().to_owned(),
            ),
            // An error about a misspelt name does not show its value.
            ("TB_SERVER_TAILSCALE_AUTH_KEY", SECRET.to_owned()),
        ];
        for (name, value) in &variables {
            let ran = run(arguments, &[(name, value), ("TB_KEYS_SIZE", "1")]);
            said += &(ran.out + &ran.err);
            let ran = run(arguments, &[(name, value)]);
            said += &(ran.out + &ran.err);
        }
    }
    for value in [SECRET, "tskey-auth-hush x", ""] {
        let ran = run(
            &["config", "check", "--ts-authkey", value, "--port", "x"],
            &[],
        );
        said += &(ran.out + &ran.err);
    }
    let (settings, origins, _) = config::load(
        &raw(&[("TB_SERVER_TAILSCALE_AUTHKEY", SECRET)]),
        Purpose::Start,
    )
    .unwrap();
    said += &format!(
        "{settings:?} {origins:?} {:?}",
        raw(&[("TB_SERVER_TAILSCALE_AUTHKEY", SECRET)])
    );
    assert!(!said.contains("hush"), "{said}");
    // The texts that must replace it.
    for words in [
        "(hidden)",
        "contains blanks, line ends or control characters",
        "longer than 4096 bytes",
        "everybody on this machine can read it",
        "one value, not a list",
        "is not TOML (line 2)",
        "is not JSON (line 1",
        "did you mean TB_SERVER_TAILSCALE_AUTHKEY?",
    ] {
        assert!(said.contains(words), "{words}");
    }
    assert!(mistake("TB_SERVER_TAILSCALE_AUTHKEY", "(hidden)").contains("not a secret"));
}
