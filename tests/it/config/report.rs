//! What `config check`, `config show` and the page of settings say.

use std::path::Path;

use tailbone::config::table;

use super::{file, run};

#[test]
fn d19_every_mistake_is_told_at_once_with_its_origin() {
    let (_directory, path) = file(
        "tailbone.yaml",
        "server:\n  prot: 8080\n  tailscale:\n    joinRetry: -1s\nkeys:\n  expiry: soon\nadmin: 1\n",
    );
    let ran = run(
        &[
            "config",
            "check",
            "--config",
            path.to_str().unwrap(),
            "--port",
            "0",
            "--components",
            "issuer,admn",
            "--ts-authkey",
            "tskey-secret",
        ],
        &[
            ("TB_SERVER_GRACE", "10"),
            ("TB_KEYS_SIZE", "1024"),
            ("TB_SERVER_PORT", "not looked at, the flag wins"),
            ("TB_ADMIN_CLIENT_PORT", "-1"),
            ("TB_LOG_LEVEL", "verbose"),
            ("TB_KEYS_KEY_PATH", "x"),
        ],
    );
    assert_eq!((ran.code, ran.out.as_str()), (64, ""));
    insta::assert_snapshot!(
        ran.err
            .replace(path.to_str().unwrap(), "/etc/tailbone.yaml")
    );
}

#[test]
fn config_check_says_that_all_is_fine_and_changes_nothing() {
    let home = tempfile::tempdir().unwrap();
    let before = std::fs::read_dir(home.path()).unwrap().count();
    let ran = run(
        &[
            "config",
            "check",
            "--dir",
            home.path().join("keys").to_str().unwrap(),
        ],
        &[],
    );
    assert_eq!(
        (ran.code, ran.out.as_str(), ran.err.as_str()),
        (0, "", "The settings are fine\n")
    );
    assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), before);
}

#[test]
fn config_show_as_table() {
    let ran = run(
        &["config", "show", "--origin", "--ts-hostname", "corner"],
        &[
            ("TB_SERVER_TAILSCALE_AUTHKEY", "tskey-secret"),
            ("TB_SERVER_PORT", "0x1F90"),
        ],
    );
    let lines: Vec<_> = ran.out.lines().map(str::trim_end).collect();
    insta::assert_snapshot!(lines.join("\n"));
}

#[test]
fn config_show_as_yaml() {
    insta::assert_snapshot!(run(&["config", "show", "-o", "yaml"], &[]).out);
}

#[test]
fn the_page_of_settings_is_fresh() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/settings.md");
    let page = table::settings_page();
    if std::env::var_os("TAILBONE_UPDATE_DOCS").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == page,
        "docs/settings.md is stale: run this test with TAILBONE_UPDATE_DOCS=1"
    );
}
