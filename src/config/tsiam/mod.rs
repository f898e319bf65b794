//! tsiam's config file, for those who replace tsiam with our component `workload`.
//!
//! tsiam finds its file by itself ([`locate`]), and so do we where that component runs and no file
//! of ours applies. Its values become raw values of our settings ([`read`]), whose origin names
//! tsiam's key. `tailbone config migrate` prints them as a file of ours
//! (`migrate.rs`).
//!
//! A file is tsiam's if it has one of tsiam's groups ([`GROUPS`]), none of which is a group of
//! ours. A file with groups of both is a mistake.
//!
//! tsiam is strict, and so is the reader: an unknown key, a key in other capitals, a value of
//! another type and everything that tsiam's own check refuses are mistakes. All of them are
//! reported, not only the first.

mod read;

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
};

pub(super) use read::read;

use super::{
    file::{self, FileEntry, FileFormat},
    raw::Environment,
    report::{Remark, ValueOrigin},
    table,
};

/// Names the file; there is no search then.
pub(super) const VARIABLE: &str = "TSIAM_CONFIG";

/// The groups at the top of tsiam's file.
const GROUPS: [&str; 4] = ["logs", "signingKey", "tokens", "tsnet"];

const NAMES: [&str; 2] = ["config.yaml", "config.yml"];

/// Whose settings a file has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    Neither,
    Tailbone,
    Tsiam,
}

/// Says whose settings these are, or that they are of both.
pub(super) fn owner(entries: &[FileEntry]) -> Result<Owner, String> {
    let groups = || {
        entries
            .iter()
            .map(|entry| entry.key.split('.').next().unwrap_or_default())
    };
    let theirs = groups().find(|group| GROUPS.contains(group));
    let ours = groups().find(|group| {
        let mut known = table::ALL
            .iter()
            .filter_map(|row| row.key.split('.').next());
        known.any(|known| known.eq_ignore_ascii_case(group))
    });
    match (theirs, ours) {
        (Some(theirs), Some(ours)) => Err(format!(
            "has keys of tsiam ({theirs}) and of tailbone ({ours}): keep tsiam's alone, or make \
             them tailbone's with tailbone config migrate"
        )),
        (Some(_), None) => Ok(Owner::Tsiam),
        (None, Some(_)) => Ok(Owner::Tailbone),
        (None, None) => Ok(Owner::Neither),
    }
}

/// Finds tsiam's file as tsiam does: `TSIAM_CONFIG`, or else in the working directory, in
/// `~/.tsiam` and in `/etc/tsiam`. A `config.yaml` of the working directory that has none of
/// tsiam's groups is surely another program's and only warned about.
pub(super) fn locate(
    environment: &Environment,
    warnings: &mut Vec<Remark>,
) -> Result<Option<PathBuf>, Remark> {
    if let Some(named) = environment.value(VARIABLE) {
        let path = PathBuf::from(named);
        return if path.is_file() {
            Ok(Some(path))
        } else {
            Err(Remark {
                origin: ValueOrigin::Variable(VARIABLE.into()),
                value: Some(path.display().to_string()),
                sentence: "no such file; without this variable config.yaml is looked for in the \
                           working directory, ~/.tsiam and /etc/tsiam"
                    .into(),
            })
        };
    }
    Ok(search(&places(environment.value("HOME")), warnings))
}

/// Where tsiam looks, in its order.
fn places(home: Option<&OsStr>) -> Vec<PathBuf> {
    let home = home.map(|home| Path::new(home).join(".tsiam"));
    [Some(PathBuf::new()), home, Some("/etc/tsiam".into())]
        .into_iter()
        .flatten()
        .collect()
}

fn search(places: &[PathBuf], warnings: &mut Vec<Remark>) -> Option<PathBuf> {
    for name in NAMES {
        for (at, place) in places.iter().enumerate() {
            let path = place.join(name);
            if !path.is_file() {
                continue;
            }
            if at == 0 && is_of_another_program(&path) {
                warnings.push(Remark {
                    origin: ValueOrigin::File { path, key: None },
                    value: None,
                    sentence: format!(
                        "not read, since it has no key of tsiam ({})",
                        GROUPS.join(", ")
                    ),
                });
                continue;
            }
            return Some(path);
        }
    }
    None
}

/// A file that cannot be read counts as tsiam's, so that its mistake is reported.
fn is_of_another_program(path: &Path) -> bool {
    let entries = file::text_of(path)
        .ok()
        .and_then(|text| file::parse(&text, FileFormat::Yaml).ok());
    entries.is_some_and(|entries| {
        !entries.is_empty() && matches!(owner(&entries), Ok(Owner::Neither | Owner::Tailbone))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(text: &str) -> Vec<FileEntry> {
        file::parse(text, FileFormat::Yaml).unwrap()
    }

    #[test]
    fn a_files_groups_tell_whose_it_is() {
        for (text, expected) in [
            ("tokens: {lifetime: 5m}", Owner::Tsiam),
            ("tsnet: {hostname: a}\nunknown: 1", Owner::Tsiam),
            ("keys: {dir: a}", Owner::Tailbone),
            ("SERVER: {port: 1}", Owner::Tailbone),
            ("components: [issuer]", Owner::Tailbone),
            ("image: x", Owner::Neither),
            // In other capitals it is no group of tsiam.
            ("Tokens: {lifetime: 5m}", Owner::Neither),
            ("{}", Owner::Neither),
        ] {
            assert_eq!(owner(&entries(text)), Ok(expected), "{text}");
        }
        let both = owner(&entries("keys: {dir: a}\ntokens: {lifetime: 5m}")).unwrap_err();
        assert!(
            both.contains("(tokens)") && both.contains("(keys)"),
            "{both}"
        );
    }

    #[test]
    fn no_group_of_ours_is_a_group_of_tsiam() {
        for row in table::ALL {
            let group = row.key.split('.').next().unwrap_or_default();
            assert!(
                GROUPS
                    .iter()
                    .all(|theirs| !theirs.eq_ignore_ascii_case(group)),
                "{group}"
            );
        }
    }

    #[test]
    fn the_places_are_searched_in_the_contracts_order() {
        let dir = tempfile::tempdir().unwrap();
        let places = ["a", "b", "c"].map(|name| dir.path().join(name));
        let found = || search(&places, &mut Vec::new());
        assert_eq!(found(), None);
        // Each of these takes precedence over those before it.
        for (place, name) in [
            ("c", "config.yml"),
            ("b", "config.yml"),
            ("a", "config.yml"),
            ("c", "config.yaml"),
            ("b", "config.yaml"),
            ("a", "config.yaml"),
        ] {
            let path = dir.path().join(place).join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, "tsnet: {hostname: a}").unwrap();
            assert_eq!(found(), Some(path));
        }
    }

    #[test]
    fn the_working_directory_may_have_a_file_of_another_program() {
        let dir = tempfile::tempdir().unwrap();
        let places = ["here", "etc"].map(|name| dir.path().join(name));
        for place in &places {
            std::fs::create_dir(place).unwrap();
            std::fs::write(place.join("config.yaml"), "image: nginx\n").unwrap();
        }
        let mut warnings = Vec::new();
        // What is in tsiam's own directory is tsiam's, whatever is in it.
        let found = search(&places, &mut warnings);
        assert_eq!(found, Some(places[1].join("config.yaml")));
        assert_eq!(warnings.len(), 1);
        assert!(
            warnings[0].to_string().contains("no key of tsiam"),
            "{}",
            warnings[0]
        );
        // A broken one may be tsiam's.
        std::fs::write(places[0].join("config.yaml"), "tsnet: [\n").unwrap();
        let found = search(&places, &mut warnings);
        assert_eq!(found, Some(places[0].join("config.yaml")));
    }
}
