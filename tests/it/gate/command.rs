//! `tailbone policy …`: shows which rule decides, and why, without a node.

use std::{ffi::OsString, fs};

use tailbone::{
    cli::{self, console::Console, layout::Layout},
    config::Environment,
};

const POLICY: &str = "[groups]\nstaff = [\"alice@example.com\", \"tag:ci\"]\n\n\
    [[rule]]\nname = \"no-admin\"\ndecision = \"deny\"\npaths = [\"/admin\"]\n\n\
    [[rule]]\nname = \"probe\"\ndecision = \"anonymous\"\npaths = [\"/healthz\"]\n\n\
    [[rule]]\nname = \"staff\"\ndecision = \"allow\"\nwho = [\"group:staff\"]\nhosts = [\"wiki.example.com\"]\n";

fn policy(text: &str, arguments: &[&str]) -> (u8, String, String) {
    policy_on(Layout::PIPE, text, arguments)
}

fn policy_on(layout: Layout, text: &str, arguments: &[&str]) -> (u8, String, String) {
    run(layout, "--policy", text, arguments)
}

/// Runs `tailbone policy …` with a file of rules that this flag names.
pub(crate) fn run(
    layout: Layout,
    flag: &str,
    text: &str,
    arguments: &[&str],
) -> (u8, String, String) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("policy.toml");
    fs::write(&file, text).unwrap();
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let all = ["tailbone", "policy"]
        .into_iter()
        .chain(arguments.iter().copied());
    let flags = [flag, file.to_str().unwrap()];
    let code = cli::execute(
        all.chain(flags).map(OsString::from),
        &Environment::default(),
        &mut Console {
            out: &mut out,
            err: &mut err,
            person: None,
            layout,
        },
    );
    (
        code,
        String::from_utf8(out).unwrap(),
        String::from_utf8(err).unwrap(),
    )
}

#[test]
fn one_sentence_says_who_is_let_in_by_which_rule_or_which_would_have_to_change() {
    for (arguments, sentence) in [
        (
            &[
                "--as",
                "alice@example.com",
                "--host",
                "wiki.example.com",
                "--path",
                "/x?y",
            ][..],
            "allow: rule \"staff\" (line 14) lets alice@example.com in",
        ),
        (
            &[
                "--as",
                "bob@example.com",
                "--host",
                "wiki.example.com",
                "--path",
                "/x",
            ],
            "deny: no rule lets bob@example.com in; the nearest, rule \"staff\" (line 14), would \
             have to change: not for this caller",
        ),
        (
            &["--node", "ci", "--host", "wiki.example.com", "--path", "/x"],
            "allow: rule \"staff\" (line 14) lets a machine with tag:ci in",
        ),
        (
            &[
                "--node",
                "tag:ci",
                "--host",
                "wiki.example.com",
                "--path",
                "/a/../admin",
            ],
            "deny: rule \"no-admin\" (line 4) keeps a machine with tag:ci out and would have to change: \
             the path can be read as one that it is about and as one that it is not",
        ),
        (
            &["--as", "alice@example.com", "--path", "/admin/x"],
            "deny: rule \"no-admin\" (line 4) keeps alice@example.com out and would have to change",
        ),
        (
            &["--unknown", "--path", "/healthz"],
            "anonymous: rule \"probe\" (line 9) lets an unknown caller in, without identity",
        ),
        (
            &[
                "--as",
                "bob@example.com",
                "--grant",
                "tailbone.dev/cap/gate={}",
            ],
            "allow: grant 1 of the tailnet's own policy lets bob@example.com in",
        ),
        (
            &["--as", "bob@example.com", "--foreign", "--path", "/x"],
            "deny: no rule lets bob@example.com of another tailnet in; the nearest, rule \"probe\" \
             (line 9), would have to change: another path",
        ),
        (
            &["--as", "alice@example.com"],
            "deny: rule \"no-admin\" (line 4) keeps alice@example.com out and would have to change: the \
             proxy did not tell the path",
        ),
    ] {
        let mut all = vec!["test"];
        all.extend(arguments);
        let (code, out, err) = policy(POLICY, &all);
        let (first, _) = out.split_once("\n\n").unwrap();
        assert_eq!(
            (code, first.replace('\n', " ").as_str()),
            (0, sentence),
            "{arguments:?} {err}"
        );
    }
}

#[test]
fn a_policy_without_rules_gets_a_sentence_in_place_of_an_empty_list() {
    let (code, out, _) = policy("", &["test", "--as", "bob@example.com"]);
    assert_eq!(
        (code, &*out),
        (
            0,
            "deny: no rule lets bob@example.com in, and none comes near: add one\n  \
             There are no rules, neither in a file (gate.policy) nor in the caller's\n  grants.\n"
        )
    );
}

#[test]
fn the_rules_fit_the_terminal() {
    let arguments = [
        "test",
        "--as",
        "bob@example.com",
        "--host",
        "wiki.example.com",
        "--path",
        "/x",
    ];
    let (_, out, _) = policy_on(Layout::terminal(80), POLICY, &arguments);
    assert_eq!(
        out,
        "\
✗ deny: no rule lets bob@example.com in; the nearest, rule \"staff\" (line 14),
  would have to change: not for this caller

Rules, in their order
  rule:no-admin (line 4)  deny: another path
  rule:probe (line 9)     anonymous: another path
  rule:staff (line 14)    allow: not for this caller
"
    );
    let (_, out, _) = policy_on(Layout::terminal(40), POLICY, &arguments);
    assert!(out.lines().all(|line| line.chars().count() <= 40), "{out}");
}

#[test]
fn every_rule_that_was_looked_at_is_told_as_json() {
    let (_, out, _) = policy(
        POLICY,
        &[
            "test",
            "--as",
            "alice@example.com",
            "--host",
            "other",
            "--path",
            "/",
            "-o",
            "json",
        ],
    );
    let told: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(told["decision"], "deny");
    assert_eq!(told["rules"].as_array().unwrap().len(), 3);
    assert_eq!(told["rules"][2]["why"], "another host");
}

#[test]
fn an_expectation_that_fails_is_a_failure() {
    let ask = |expected| {
        policy(
            POLICY,
            &[
                "test",
                "--unknown",
                "--path",
                "/healthz",
                "--expect",
                expected,
            ],
        )
        .0
    };
    assert_eq!((ask("anonymous"), ask("allow")), (0, 1));
}

#[test]
fn mistakes_are_told_all_at_once() {
    let (code, _, err) = policy(
        "[[rule]]\ndecision = \"alow\"\npath = [\"/\"]\n",
        &["check"],
    );
    assert_eq!(code, 64);
    assert!(
        err.contains("line 2: rule[1].decision") && err.contains("line 3: rule[1].path"),
        "{err}"
    );
    assert_eq!(policy(POLICY, &["check"]).0, 0);
    assert_eq!(
        policy(POLICY, &["test", "--as", "a@b.c", "--grant", "x"]).0,
        2
    );
    assert_eq!(
        policy(POLICY, &["test", "--path", "/"]).0,
        2,
        "nobody named"
    );

    // A check of the settings includes the rules.
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("policy.toml");
    fs::write(&file, "[[rule]]\n").unwrap();
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let mut console = Console {
        out: &mut out,
        err: &mut err,
        person: None,
        layout: Layout::PIPE,
    };
    let all = [
        "tailbone",
        "config",
        "check",
        "--gate-policy",
        file.to_str().unwrap(),
    ];
    let code = cli::execute(
        all.map(OsString::from),
        &Environment::default(),
        &mut console,
    );
    assert_eq!(code, 64, "{}", String::from_utf8_lossy(&err));
}
