//! `tailbone policy test --audience`: who gets a token for which audience, by which rule.

use tailbone::cli::layout::Layout;

use crate::gate::command::run;

const RULES: &str = r#"[[rule]]
name = "quarantine"
decision = "deny"
who = ["tag:quarantine"]

[[rule]]
name = "web"
decision = "allow"
who = ["tag:web"]
audiences = ["https://*.example.com"]
max_lifetime = "2m"
algorithms = ["ES256"]
claims = { team = "payments" }
"#;

fn policy(arguments: &[&str]) -> (u8, String, String) {
    run(Layout::PIPE, "--workload-policy", RULES, arguments)
}

#[test]
fn one_sentence_says_who_gets_a_token_by_which_rule_or_which_would_have_to_change() {
    let tsiam = r#"italypaleale.me/tsiam={"allowedAudiences":["https://a.example.org"]}"#;
    for (arguments, sentence) in [
        (
            &["--node", "web", "--audience", "https://a.example.com"][..],
            "allow: rule \"web\" (line 6) gives a machine with tag:web tokens for \
             https://a.example.com, for at most 2m, signed with ES256, with team",
        ),
        (
            &["--node", "web", "--audience", "https://a.example.org"],
            "deny: no rule gives a machine with tag:web tokens for https://a.example.org; the \
             nearest, rule \"web\" (line 6), would have to change: another audience",
        ),
        (
            &[
                "--node",
                "web",
                "--audience",
                "https://a.example.org",
                "--grant",
                tsiam,
            ],
            "allow: a grant of italypaleale.me/tsiam gives a machine with tag:web tokens for \
             https://a.example.org",
        ),
        (
            &[
                "--node",
                "quarantine",
                "--audience",
                "https://a.example.org",
                "--grant",
                tsiam,
            ],
            "deny: rule \"quarantine\" (line 1) gives a machine with tag:quarantine no tokens \
             for https://a.example.org",
        ),
        (
            &[
                "--node",
                "web",
                "--audience",
                "a",
                "--workload-audiences",
                "b,c",
            ],
            "deny: workload.audiences does not list a, so nobody gets tokens for it",
        ),
        (
            &[
                "--as",
                "alice@example.com",
                "--audience",
                "b",
                "--workload-audiences",
                "b",
                "--workload-allow-without-grant",
            ],
            "allow: workload.allowWithoutGrant gives alice@example.com tokens for b",
        ),
        (
            &["--funnel", "--audience", "https://a.example.com"],
            "deny: no rule gives a caller from the internet tokens for https://a.example.com; the \
             nearest, rule \"web\" (line 6), would have to change: not for callers from the internet",
        ),
    ] {
        let (code, out, err) = policy(&[&["test"], arguments].concat());
        let first = out.lines().collect::<Vec<_>>().join(" ");
        let first = first.split("  Rules").next().unwrap_or_default();
        let said = first.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(said.contains(sentence), "{arguments:?}: {said}\n{err}");
        assert_eq!(code, 0, "{err}");
    }
}

#[test]
fn programs_get_the_decision_and_the_rule() {
    let (_, out, _) = policy(&[
        "test",
        "-o",
        "json",
        "--node",
        "web",
        "--audience",
        "https://a.example.com",
    ]);
    let answer: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(answer["decision"], "allow");
    assert_eq!(answer["rule"], "rule:web");
    assert_eq!(answer["line"], 6);
}

#[test]
fn mistakes_in_either_file_end_the_check() {
    let (code, _, err) = run(
        Layout::PIPE,
        "--workload-policy",
        "[[rule]]\ndecision = \"allow\"\nhosts = [\"a\"]\n",
        &["check"],
    );
    assert_ne!(code, 0);
    assert!(
        err.contains("line 3: rule[1].hosts: is not known here"),
        "{err}"
    );
    assert_eq!(policy(&["check"]).0, 0);
}
