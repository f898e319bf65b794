//! The page of modules, compared with the tests that exist.

use std::{collections::BTreeSet, process::Command};

const PAGE: &str = include_str!("../../../../docs/compatibility/openid-modules.md");

/// Heading, number of modules, and where the tests of each module stand.
const PLANS: [(&str, usize, &[&str]); 5] = [
    ("Config OP", 1, &["config"]),
    (
        "Basic OP and Form Post OP",
        38,
        &["basic::default_mode", "basic::form_post"],
    ),
    ("Dynamic OP", 23, &["dynamic"]),
    ("RP-Initiated Logout OP", 11, &["logout"]),
    ("Back-Channel Logout OP", 2, &["logout"]),
];

/// The rows of the table below a heading: module, test, result.
fn rows(heading: &str) -> Vec<[&'static str; 3]> {
    let (_, below) = PAGE
        .split_once(&format!("\n## {heading}\n"))
        .unwrap_or_else(|| panic!("no heading {heading}"));
    let section = below.split("\n## ").next().unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    rows.map(|line| {
        let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
        cells.try_into().unwrap_or_else(|_| panic!("{line}"))
    })
    .collect()
}

/// A row without a test says `–` and why.
#[test]
fn the_page_names_every_module_and_every_test() {
    let listed = Command::new(std::env::current_exe().unwrap())
        .args(["--list", "--format", "terse"])
        .output()
        .unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let exist: BTreeSet<&str> = listed
        .lines()
        .filter_map(|line| line.strip_suffix(": test")?.strip_prefix("oidc::suite::"))
        .filter(|name| !name.starts_with("table::"))
        .collect();
    let mut told = BTreeSet::new();
    for (heading, modules, places) in PLANS {
        let rows = rows(heading);
        let names: BTreeSet<_> = rows.iter().map(|[module, ..]| module).collect();
        assert_eq!((rows.len(), names.len()), (modules, modules), "{heading}");
        for [module, test, result] in rows {
            let name = module.trim_matches('`').replace('-', "_").to_lowercase();
            assert!(
                ["passes", "skipped", "refused"]
                    .iter()
                    .any(|word| result.starts_with(word))
                    || (test == "–" && !result.is_empty()),
                "{module}: {result}"
            );
            if test != "–" {
                assert_eq!(test, format!("`{name}`"), "the test of {module}");
                told.extend(places.iter().map(|place| format!("{place}::{name}")));
            }
        }
    }
    let told: BTreeSet<&str> = told.iter().map(String::as_str).collect();
    assert_eq!(told, exist);
}
