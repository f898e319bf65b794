//! Checks rules of the house that can be seen in the source: the direction of dependencies, where
//! unsafe code is, where the clock is read, and names.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use tailbone::telemetry::log::OWN_TARGETS;

/// The program's modules from the bottom up. A module may only import those of lower rows; the
/// first row is the crates, whose own order Cargo holds.
const LAYERS: &[&[&str]] = &[
    &[
        "http",
        "identity",
        "jwks",
        "keys",
        "policy",
        "tailnet",
        "telemetry",
        "web",
    ],
    &["config", "signals", "version"],
    &["part", "token_endpoint"],
    &[
        "admin", "gate", "issuer", "metrics", "oidc", "sts", "workload",
    ],
    &["server"],
    &["cli"],
];

const COMPONENTS: &str = "src/components";

#[test]
fn modules_import_only_lower_ones() {
    let mut wrong = Vec::new();
    for module in modules() {
        let layer = layer(&module)
            .unwrap_or_else(|| panic!("{module} has no layer in tests/it/architecture.rs"));
        for (file, import) in imports(&module) {
            if import == module {
                continue;
            }
            let Some(other) = self::layer(&import) else {
                continue;
            };
            if other >= layer {
                wrong.push(format!("{} imports crate::{import}", file.display()));
            }
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn the_import_reader_finds_imports() {
    let seen: BTreeSet<_> = imports("gate")
        .into_iter()
        .map(|(_, import)| import)
        .collect();
    assert!(seen.contains("policy") && seen.contains("http"), "{seen:?}");
}

/// Two crates have an upper storey, of which the lower one knows nothing.
#[test]
fn keys_know_nothing_of_publishing_and_identity_nothing_of_policy() {
    for (sources_of, upper) in [
        ("crates/keys/src", "jwks"),
        ("crates/identity/src", "policy"),
    ] {
        let lower = sources(Path::new(sources_of))
            .into_iter()
            .filter(|file| !file.starts_with(Path::new(sources_of).join(upper)));
        let wrong: Vec<_> = lower.filter(|file| in_file(file).contains(upper)).collect();
        assert_eq!(wrong, Vec::<PathBuf>::new(), "these import {upper}");
    }
}

/// The log takes a target that it does not know for a library's, and drops its lines below `warn`.
#[test]
fn the_log_lists_every_target_of_ours() {
    let used: BTreeSet<_> = all_sources()
        .into_iter()
        .flat_map(|file| targets(&fs::read_to_string(file).unwrap()))
        .collect();
    let known: BTreeSet<_> = OWN_TARGETS.iter().map(|&name| name.to_owned()).collect();
    assert_eq!(used, known, "crates/telemetry/src/log.rs has the list");
}

#[test]
fn unsafe_code_is_in_the_fence_alone() {
    let allowed = ["src/signals.rs", "crates/tailnet/src/ffi.rs"];
    let wrong: Vec<_> = all_sources()
        .into_iter()
        .filter(|file| !allowed.iter().any(|a| file == Path::new(a)))
        .filter(|file| {
            fs::read_to_string(file).unwrap().lines().any(|line| {
                let code = line.split("//").next().unwrap();
                code.contains("unsafe {")
                    || code.contains("unsafe fn")
                    || code.contains("unsafe impl")
            })
        })
        .collect();
    assert_eq!(wrong, Vec::<PathBuf>::new());
}

/// Code that decides something at a time. It is told the time, so that its tests can choose it.
const TIMELESS: &[&str] = &[
    "crates/identity/src/policy",
    "crates/identity/src/visitor.rs",
    "crates/keys/src/jwks/verify.rs",
    "crates/keys/src/rotation.rs",
    "crates/oidc/src/store",
    "src/components/gate/guard.rs",
    "src/components/issuer/claims.rs",
    "src/components/sts/policy",
];

#[test]
fn code_that_depends_on_time_takes_it_as_an_argument() {
    let mut read = Vec::new();
    for place in TIMELESS.iter().map(Path::new) {
        let files = if place.is_dir() {
            sources(place)
        } else {
            vec![place.to_owned()]
        };
        for file in files {
            let text = fs::read_to_string(&file).unwrap();
            let code = text.split("#[cfg(test)]").next().unwrap();
            read.extend(code.contains("::now()").then_some(file));
        }
    }
    assert_eq!(read, Vec::<PathBuf>::new(), "these read the clock");
}

/// Such names say nothing about what a thing does.
#[test]
fn no_type_is_called_a_manager_or_a_helper() {
    let declares = |line: &str| {
        let mut words = line.split(|c: char| !c.is_alphanumeric() && c != '_');
        words
            .find(|word| ["struct", "enum", "trait", "mod", "type"].contains(word))
            .and(words.next())
            .is_some_and(|name| {
                let name = name.to_ascii_lowercase();
                ["manager", "helper", "helpers", "utils", "util"]
                    .iter()
                    .any(|end| name.ends_with(end))
            })
    };
    let found: Vec<_> = all_sources()
        .into_iter()
        .filter(|file| fs::read_to_string(file).unwrap().lines().any(declares))
        .collect();
    assert_eq!(found, Vec::<PathBuf>::new());
}

/// The Go program's repository contained a private key. Our tests generate their keys, or mark them
/// as test keys.
#[test]
fn d25_no_private_key_lies_in_the_tree() {
    let listed = std::process::Command::new("git")
        .args(["ls-files", "-z"])
        .output()
        .unwrap();
    let files = String::from_utf8(listed.stdout).unwrap();
    let marks = [
        concat!("PRIVATE", " KEY-----"),
        concat!(r#""d""#, ":"),
        concat!(r#""d""#, " :"),
    ];
    let named = ["tests/it/keys/go_fixture.rs", "tests/it/keys/small_rsa.jwk"];
    let folders = ["tests/fuzz/keys/", "tests/testkit/tls/"];
    let allowed =
        |file: &str| named.contains(&file) || folders.iter().any(|folder| file.starts_with(folder));
    let wrong: Vec<_> = files
        .split('\0')
        .filter(|file| !file.is_empty() && !allowed(file))
        .filter(|file| {
            fs::read(file).is_ok_and(|bytes| {
                let text = String::from_utf8_lossy(&bytes);
                marks.iter().any(|mark| text.contains(mark))
            })
        })
        .collect();
    assert!(!files.is_empty(), "git lists nothing");
    assert_eq!(wrong, Vec::<&str>::new());
}

/// Each `name` of a `target: "name"`.
fn targets(text: &str) -> BTreeSet<String> {
    text.lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .flat_map(|line| line.split("target: \"").skip(1))
        .filter_map(|rest| Some(rest.split_once('"')?.0.to_owned()))
        // A request has a target too.
        .filter(|target| !target.starts_with('/'))
        .collect()
}

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|modules| modules.contains(&module))
}

/// The program's modules; each component is one.
fn modules() -> BTreeSet<String> {
    ["src", COMPONENTS]
        .into_iter()
        .flat_map(|folder| fs::read_dir(folder).unwrap())
        .map(|entry| {
            let path = entry.unwrap().path();
            path.file_stem().unwrap().to_str().unwrap().to_owned()
        })
        .filter(|name| !["components", "lib", "main", "mod"].contains(&name.as_str()))
        .collect()
}

/// Each `crate::x` and each `use crate::{x, y}` in a module's files.
fn imports(module: &str) -> Vec<(PathBuf, String)> {
    let mut files = Vec::new();
    for folder in ["src", COMPONENTS].map(|parent| Path::new(parent).join(module)) {
        files.extend(sources(&folder));
        let single = folder.with_extension("rs");
        files.extend(single.exists().then_some(single));
    }
    files
        .into_iter()
        .flat_map(|file| {
            in_file(&file)
                .into_iter()
                .map(move |import| (file.clone(), import))
        })
        .collect()
}

fn in_file(file: &Path) -> BTreeSet<String> {
    let text: String = fs::read_to_string(file)
        .unwrap()
        .lines()
        .filter(|l| !l.trim_start().starts_with("//"))
        .collect::<Vec<_>>()
        .join("\n");
    let mut found = BTreeSet::new();
    for (at, _) in text.match_indices("crate::") {
        let rest = &text[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            None => found.extend(word(rest)),
            Some(group) => found.extend(top_level(group)),
        }
    }
    found
}

/// The first names in `a::{b}, c, d::e}`.
fn top_level(group: &str) -> Vec<String> {
    let (mut depth, mut start, mut words) = (0, 0, Vec::new());
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            ',' if depth == 0 => {
                words.extend(word(group[start..at].trim()));
                start = at + 1;
            }
            '}' if depth == 0 => {
                words.extend(word(group[start..at].trim()));
                break;
            }
            '}' => depth -= 1,
            _ => {}
        }
    }
    words
}

fn word(text: &str) -> Option<String> {
    let word: String = text
        .chars()
        .take_while(|c| c.is_alphanumeric() || *c == '_')
        .collect();
    (!word.is_empty()).then_some(word)
}

/// Those of the program and of its crates.
fn all_sources() -> Vec<PathBuf> {
    [sources(Path::new("src")), sources(Path::new("crates"))].concat()
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut files = Vec::new();
    for path in entries.map(|entry| entry.unwrap().path()) {
        if path.is_dir() {
            files.extend(sources(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}
