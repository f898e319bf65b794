//! Runs the kept corpus of every fuzz target without a fuzzer: inputs that once found something
//! stay tested.

use std::{collections::BTreeSet, fs, path::Path};

#[path = "../fuzz/src/lib.rs"]
#[allow(unreachable_pub)]
mod targets;

const CORPUS: &str = "tests/fuzz/corpus";

#[test]
fn every_target_holds_over_its_corpus() {
    for (name, target) in targets::TARGETS {
        let mut inputs = 0;
        for entry in fs::read_dir(Path::new(CORPUS).join(name)).expect(name) {
            let path = entry.unwrap().path();
            let outcome = std::panic::catch_unwind(|| target(&fs::read(&path).unwrap()));
            assert!(outcome.is_ok(), "{} breaks a promise", path.display());
            inputs += 1;
        }
        assert!(inputs > 0, "{name} has no corpus");
    }
}

#[test]
fn the_corpus_is_small_and_has_a_target_each() {
    let names: BTreeSet<_> = targets::TARGETS
        .iter()
        .map(|(name, _)| (*name).to_owned())
        .collect();
    let mut bytes = 0;
    for entry in fs::read_dir(CORPUS).unwrap() {
        let folder = entry.unwrap();
        let name = folder.file_name().into_string().unwrap();
        assert!(names.contains(&name), "{name} is no target");
        for entry in fs::read_dir(folder.path()).unwrap() {
            bytes += entry.unwrap().metadata().unwrap().len();
        }
    }
    assert!(bytes < 500_000, "{bytes} bytes");
}
