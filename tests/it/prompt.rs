//! What a person reads after a mistake at the prompt: what is wrong, where, and what to do.

use std::{ffi::OsString, fs};

use tailbone::{
    cli::{self, console::Console, layout::Layout},
    config::Environment,
};
use tempfile::TempDir;

/// Exit code, result and messages of a command line, with its words separated by blanks. `<dir>`
/// stands for a directory.
fn run(line: &str, dir: &TempDir) -> (u8, String, String) {
    let path = dir.path().to_str().unwrap();
    let words = std::iter::once("tailbone".to_owned())
        .chain(line.split(' ').map(|word| word.replace("<dir>", path)));
    let variables = [
        ("TB_SERVER_TAILSCALE_DIR", path),
        ("TB_KEYS_DIR", &format!("{path}/keys")),
    ];
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let code = cli::execute(
        words.map(OsString::from),
        &variables.into_iter().collect::<Environment>(),
        &mut Console {
            out: &mut out,
            err: &mut err,
            person: None,
            layout: Layout::PIPE,
        },
    );
    let text = |bytes| String::from_utf8(bytes).unwrap().replace(path, "<dir>");
    (code, text(out), text(err))
}

#[test]
fn an_error_says_what_is_wrong_where_and_what_to_do() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("no-token"), "abc").unwrap();
    fs::create_dir(dir.path().join("policies")).unwrap();
    fs::write(
        dir.path().join("policies/p.toml"),
        "issuer = \"https://x.example\"\nalgorithm = \"RS256\"\nallowed_scopes = [\"acls\"]\n\
         audience = \"a\"\nsubject = \"s\"\n",
    )
    .unwrap();
    let no_server = "there is no local admin socket at <dir>/admin.sock: start a server with this \
                     configuration (`tailbone server start`)";
    let other_server = format!(
        "{no_server}. Or name another server with --host (admin.client.host, TB_ADMIN_CLIENT_HOST)"
    );
    let nobody_there = "127.0.0.1:1 cannot be reached: Connection refused (os error 111). Check \
                        name and port, and whether this machine is on the tailnet of the server";
    for (line, code, expected) in [
        ("status", 1, &*other_server),
        ("whois 100.64.0.1", 1, &other_server),
        ("status --host 127.0.0.1 --port 1", 1, nobody_there),
        (
            "wait --timeout 100ms",
            1,
            &format!("not ready within 100ms: {no_server}"),
        ),
        (
            "keys remove tb-1 --local --yes",
            1,
            "failed to remove key: key tb-1 not found. `tailbone keys list` shows the keys",
        ),
        (
            "policy check --policy <dir>/missing",
            1,
            "the file of rules cannot be used: <dir>/missing: No such file or directory (os error \
             2). Set another as gate.policy",
        ),
        (
            "policy test --address 100.64.0.1",
            1,
            &format!("--address 100.64.0.1: {no_server}"),
        ),
        (
            "policy test --as ",
            2,
            "--as: write a login, for example --as alice@example.com",
        ),
        (
            "policy test --as a --path x",
            2,
            "--path x: a path begins with /",
        ),
        (
            "policy test --as a --grant x",
            2,
            "--grant x: write it as CAPABILITY=JSON",
        ),
        (
            "policy test --as a --path / --expect allow",
            1,
            "expected allow, but the decision is deny",
        ),
        (
            "sts exchange",
            2,
            "no token: give --token-file, --token-variable or OIDC_TOKEN",
        ),
        (
            "sts exchange --token-variable NAME",
            2,
            "--token-variable NAME: it is not set",
        ),
        (
            "sts exchange --server x --token t",
            2,
            "--server x: not an address such as https://sts.example.com:8443",
        ),
        (
            "sts check --policies-dir <dir>/missing",
            1,
            "failed to read directory <dir>/missing: No such file or directory (os error 2). Name \
             another directory with --policies-dir or TB_STS_POLICIESDIR",
        ),
        (
            "sts explain --policies-dir <dir>/policies --token-file <dir>/missing",
            1,
            "the token file <dir>/missing cannot be read: No such file or directory (os error 2)",
        ),
        (
            "sts explain --policies-dir <dir>/policies --token-file <dir>/no-token",
            1,
            "the token file <dir>/no-token holds no token: not a signed token: it has not three \
             parts",
        ),
        (
            "sts serve-trial-issuer --listen 192.0.2.1",
            1,
            "there can be no listener at 192.0.2.1:8888: Cannot assign requested address (os error \
             99). Choose another address with --listen and --port",
        ),
    ] {
        let (ended, _, err) = run(line, &dir);
        assert_eq!(
            (ended, &*err),
            (code, &*format!("Error: {expected}\n")),
            "{line}"
        );
    }
}

#[test]
fn a_policy_check_without_a_file_does_not_call_it_fine() {
    let dir = TempDir::new().unwrap();
    let (code, _, err) = run("policy check", &dir);
    assert_eq!(
        (code, &*err),
        (
            0,
            "There is no file of rules (gate.policy is not set): only grants of the tailnet \
             decide\n"
        )
    );
    fs::write(dir.path().join("policy.toml"), "").unwrap();
    let (code, _, err) = run("policy check --policy <dir>/policy.toml", &dir);
    assert_eq!((code, &*err), (0, "The policy is fine\n"));
}

#[test]
fn a_successor_that_is_waiting_already_is_mentioned() {
    let dir = TempDir::new().unwrap();
    for command in ["generate", "rotate"] {
        let (code, _, err) = run(&format!("keys {command} --local --algorithm ES256"), &dir);
        assert_eq!((code, err.contains("waiting")), (0, false), "{err}");
    }
    let (code, out, err) = run("keys rotate --local --algorithm EdDSA", &dir);
    assert_eq!(code, 0);
    assert!(out.contains("ES256"), "{out}");
    assert!(
        err.contains("A successor is waiting already; no other is made\n"),
        "{err}"
    );
}

#[test]
fn a_bugreport_with_wrong_settings_has_the_format_that_was_asked_for() {
    let dir = TempDir::new().unwrap();
    let (code, out, _) = run("bugreport -o json --port none", &dir);
    assert_eq!(code, 0);
    let report: serde_json::Value = serde_json::from_str(&out).unwrap();
    let mistakes = report["mistakes"].as_str().unwrap();
    assert!(mistakes.contains("--port"), "{mistakes}");
    assert!(report["status"]["unreachable"].is_string(), "{report}");
}
