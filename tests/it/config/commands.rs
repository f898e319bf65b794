//! The command line itself: help, exit codes, confirmations, completions.

use serde_json::Value as Json;
use tailbone::{
    cli,
    config::{self, Flags, RawSettings, sections, table},
};

use super::run;

#[test]
fn every_setting_has_a_key_and_a_variable_of_its_own_a_flag_and_help() {
    cli::command().debug_assert();
    let mut keys = std::collections::BTreeSet::new();
    let mut variables = std::collections::BTreeSet::new();
    for row in table::ALL {
        assert!(
            keys.insert(row.key.to_ascii_lowercase()),
            "{} twice",
            row.key
        );
        assert!(variables.insert(row.variable()), "{} twice", row.variable());
        assert!(row.flags().next().is_some(), "{} has no flag", row.key);
        assert!(
            !row.help.is_empty() && !row.help.ends_with('.'),
            "{}",
            row.key
        );
    }
    for group in table::groups() {
        assert!(
            table::find(group).is_none(),
            "{group} is a setting and a group"
        );
    }
}

#[test]
fn a_group_without_a_command_prints_its_help() {
    for (arguments, usage) in [
        (
            &["completion"][..],
            "Usage: tailbone completion [OPTIONS] [shell]",
        ),
        (&[], "Usage: tailbone [OPTIONS] [COMMAND]"),
        (&["server"], "Usage: tailbone server [OPTIONS] [COMMAND]"),
        (&["keys"], "Usage: tailbone keys [OPTIONS] [COMMAND]"),
        (&["key"], "Usage: tailbone keys [OPTIONS] [COMMAND]"),
        (&["config"], "Usage: tailbone config [OPTIONS] [COMMAND]"),
        (
            &["help", "server", "start"],
            "Usage: tailbone server start [OPTIONS]",
        ),
        (
            &["keys", "remove", "-h"],
            "Usage: tailbone keys remove [OPTIONS] <keyID>",
        ),
    ] {
        let ran = run(arguments, &[]);
        assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{arguments:?}");
        assert!(ran.out.contains(usage), "{}", ran.out);
    }
}

#[test]
fn a_command_line_that_is_not_understood_ends_with_2() {
    for arguments in [
        &["srever"][..],
        &["server", "start", "--bucket"],
        &["server", "start", "--buckte", "x"],
        &["keys", "remove"],
        &["keys", "remove", "a", "b"],
        &["keys", "list", "--yes"],
        &["server", "housekeeping", "--port", "1"],
        &["completion", "tcsh"],
    ] {
        let ran = run(arguments, &[]);
        assert_eq!((ran.code, ran.out.as_str()), (2, ""), "{arguments:?}");
        assert!(ran.err.starts_with("Error: "), "{}", ran.err);
        assert_eq!(
            ran.err.to_lowercase().matches("error:").count(),
            1,
            "{}",
            ran.err
        );
    }
}

#[test]
fn d09_the_size_reaches_the_request() {
    let ran = run(&["keys", "generate", "-s", "1024"], &[]);
    assert_eq!(ran.code, 64);
    assert!(
        ran.err.contains("--size=1024: not the size of an RSA key"),
        "{}",
        ran.err
    );
    let mut flags = Flags::default();
    flags.set(&sections::keys::SIZE, "--size", "4096".into());
    let environment = [("TB_KEYS_SIZE", "3072")].into_iter().collect();
    let (settings, _, _) =
        config::load_client(&RawSettings::collect(flags, &environment, None)).unwrap();
    assert_eq!(settings.key_size, Some(4096));
}

#[test]
fn d26_a_removal_that_nobody_can_confirm_is_refused() {
    let ran = run(&["keys", "remove", "tb-1"], &[]);
    assert_eq!((ran.code, ran.out.as_str()), (2, ""));
    assert!(ran.err.contains("say --yes"), "{}", ran.err);
    // Confirmed in advance in one of three ways, it does not ask.
    for (arguments, variables) in [
        (&["keys", "remove", "tb-1", "-y"][..], &[][..]),
        (
            &["keys", "remove", "tb-1"],
            &[("TB_NO_CONFIRMATION", "true")],
        ),
        (
            &["keys", "--timeout", "100ms", "remove", "--yes", "tb-1"],
            &[],
        ),
    ] {
        let ran = run(arguments, variables);
        assert!(!ran.err.contains("say --yes"), "{}", ran.err);
    }
}

#[test]
fn version_has_the_two_lines_and_more_in_json() {
    let (version, commit) = (tailbone::version::VERSION, tailbone::version::COMMIT);
    // A bad variable or a broken file does not hide the version.
    let variables = [("TB_OUTPUT", "json"), ("HOME", "/nowhere")];
    assert_eq!(
        run(&["version"], &variables).out,
        format!("Version {version}\nCommit {commit}\n")
    );
    for flag in ["--version", "-v"] {
        assert_eq!(
            run(&[flag], &[]).out,
            format!("tailbone version {version}-{commit}\n")
        );
    }
    let all: Json = serde_json::from_str(&run(&["version", "-ojson"], &[]).out).unwrap();
    assert_eq!(all["version"], version);
    assert!(all["go"].is_string() && all["tsnet"].is_string());
}

#[test]
fn completions_and_man_pages_know_every_flag() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let ran = run(&["completion", shell, "--no-descriptions"], &[]);
        assert_eq!(ran.code, 0);
        for row in table::ALL {
            for flag in row.flags() {
                assert!(ran.out.contains(flag.long), "{shell}: {}", flag.long);
            }
        }
    }
    let directory = tempfile::tempdir().unwrap();
    let pages = directory.path().join("man1");
    assert_eq!(run(&["man", pages.to_str().unwrap()], &[]).code, 0);
    let page = std::fs::read_to_string(pages.join("tailbone-server-start.1")).unwrap();
    assert!(page.contains("TB_SERVER_TAILSCALE_CONTROLURL"));
    assert!(pages.join("tailbone-keys-remove.1").is_file() && pages.join("tailbone.1").is_file());
}
