//! `kill -9` between any two steps of any write, followed by a start: nothing that was acknowledged
//! is lost, and nothing half-finished remains.
//!
//! The writes go through `keys::disk`, which reports each step to a probe. The killed process is
//! this test program itself, started again for one ignored test; its probe counts the steps and
//! sends SIGKILL at the chosen one.

use std::{
    fs,
    os::unix::process::ExitStatusExt as _,
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use tailbone::{
    config::KeySpec,
    jwks::{
        Document,
        life::{Housekeeping, KeyLife, Report},
    },
    keys::{Algorithm, KeyState, KeyStore, disk::Probe, tsiam::KeyFile},
};

use super::{
    at, key_life, kids, names,
    set::{TSIAM_KID, key_set, tsiam_key},
    with_probe,
};

const OPERATIONS: [&str; 7] = [
    "take over",
    "start",
    "start set",
    "generate",
    "rotate",
    "remove",
    "housekeeping",
];
/// The time of the operation: the successor in the prepared directory is due, and the key before it
/// may be removed.
const THEN: i64 = 1_000_000;

/// Not a test, but the process that the tests below start and kill.
#[test]
#[ignore = "started by the other tests of this file"]
fn victim() {
    let Ok(folder) = std::env::var("TAILBONE_TEST_CRASH_FOLDER") else {
        return;
    };
    let operation = std::env::var("TAILBONE_TEST_CRASH_OPERATION").unwrap();
    let last: u32 = std::env::var("TAILBONE_TEST_CRASH_STEP")
        .unwrap()
        .parse()
        .unwrap();
    let folder = Path::new(&folder);
    let steps = AtomicU32::new(0);
    let probe = Probe::new(move |_, _| {
        if steps.fetch_add(1, Ordering::SeqCst) == last {
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL)
                .unwrap();
        }
    });
    let life = with_probe(&folder.join("keys"), &folder.join("jwks.json"), &probe);
    runtime().block_on(async {
        match &*operation {
            "start" => drop(life.start(at(THEN)).await.unwrap()),
            "start set" | "take over" => {
                let set = key_set(folder, &[KeySpec::Es384, KeySpec::EdDsa], &probe);
                let set = set.taking_over(Arc::new(KeyFile::new(folder.join("key.json"))));
                drop(set.start(at(THEN)).await.unwrap());
            }
            "generate" => {
                let made = life.generate(None, at(THEN)).await.unwrap();
                fs::write(folder.join("acknowledged"), made.key.kid).unwrap();
            }
            "rotate" => drop(life.rotate(None, at(THEN)).await.unwrap()),
            "remove" => {
                let victim = fs::read_to_string(folder.join("victim")).unwrap();
                drop(life.remove(&victim, at(THEN)).await.unwrap());
            }
            "housekeeping" => drop(
                life.housekeeping(Housekeeping::default(), at(THEN))
                    .await
                    .unwrap(),
            ),
            other => panic!("{other}?"),
        }
    });
}

#[test]
fn a_kill_at_any_step_of_a_first_start_loses_nothing() {
    every_step("start", |_| {});
}

#[test]
fn a_kill_at_any_step_of_a_first_start_of_a_set_delays_no_key() {
    every_step("start set", |_| {});
}

#[test]
fn a_kill_at_any_step_of_a_takeover_keeps_the_key() {
    every_step("take over", |folder| {
        drop(tsiam_key(folder, KeySpec::Es384));
    });
}

#[test]
fn a_kill_at_any_step_of_generate_loses_nothing() {
    every_step("generate", prepare);
}

#[test]
fn a_kill_at_any_step_of_rotate_loses_nothing() {
    every_step("rotate", prepare);
}

#[test]
fn a_kill_at_any_step_of_remove_loses_nothing() {
    every_step("remove", prepare);
}

#[test]
fn a_kill_at_any_step_of_housekeeping_loses_nothing() {
    every_step("housekeeping", prepare);
}

/// A directory with a retired key whose time is over, a signing key, and a successor that is due;
/// the document also contains a foreign key.
fn prepare(folder: &Path) {
    let jwks = folder.join("jwks.json");
    let keys = folder.join("keys");
    let life = key_life(&keys, &jwks);
    runtime().block_on(async {
        life.start(at(0)).await.unwrap();
        life.generate(None, at(1000)).await.unwrap();
        life.sync(at(2000)).await.unwrap();
        fs::write(
            folder.join("victim"),
            life.current_keys().signer().unwrap().kid().as_str(),
        )
        .unwrap();
        life.generate(None, at(2001)).await.unwrap();
    });
    let mut document: serde_json::Value =
        serde_json::from_slice(&fs::read(&jwks).unwrap()).unwrap();
    document["keys"]
        .as_array_mut()
        .unwrap()
        .insert(0, serde_json::json!({"kid": "stranger", "kty": "oct"}));
    fs::write(&jwks, document.to_string()).unwrap();
    assert_eq!(kids(&jwks).len(), 4);
}

fn every_step(operation: &str, prepare: impl Fn(&Path)) {
    assert!(OPERATIONS.contains(&operation));
    let (whole, prepared) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    // Always the same path: in another place everything would have to be published again.
    let folder = whole.path().join("case");
    fs::create_dir(&folder).unwrap();
    prepare(&folder);
    copy(&folder, prepared.path());
    let mut step = 0;
    loop {
        fs::remove_dir_all(&folder).unwrap();
        fs::create_dir(&folder).unwrap();
        copy(prepared.path(), &folder);
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["keys::crash::victim", "--exact", "--ignored"])
            .env("TAILBONE_TEST_CRASH_FOLDER", &folder)
            .env("TAILBONE_TEST_CRASH_OPERATION", operation)
            .env("TAILBONE_TEST_CRASH_STEP", step.to_string())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap();
        let finished = match status.signal() {
            None => {
                assert!(status.success(), "{operation} failed by itself");
                true
            }
            Some(signal) => {
                assert_eq!(signal, 9);
                false
            }
        };
        match operation {
            "start set" => set_recovers(&folder, step),
            "take over" => takeover_recovers(&folder, step),
            _ => recovers(&folder, operation, step),
        }
        if finished {
            assert!(
                step >= 8,
                "{operation} has {step} steps? then nothing was killed"
            );
            return;
        }
        step += 1;
    }
}

/// Whatever was written before the kill, the first keys of all algorithms sign at the next start,
/// and no other keys are left.
fn set_recovers(folder: &Path, step: u32) {
    let told = format!("killed at step {step}");
    let jwks = folder.join("jwks.json");
    let specs = [KeySpec::Es384, KeySpec::EdDsa];
    runtime().block_on(async {
        // The document of a new set holds a key of each algorithm, or does not exist.
        if jwks.exists() {
            assert_eq!(kids(&jwks).len(), 3, "{told}");
        }
        let set = key_set(folder, &specs, &Probe::default());
        let reports = set.start(at(THEN + 1)).await.unwrap();
        assert!(
            !reports.iter().any(|(_, report)| report.failed()),
            "{told}: {reports:?}"
        );
        for algorithm in set.algorithms() {
            let signer = set
                .signer(algorithm)
                .unwrap_or_else(|reason| panic!("{told}: {algorithm}: {reason}: {reports:?}"));
            assert!(kids(&jwks).contains(&signer.kid().to_string()), "{told}");
        }
        assert_eq!(kids(&jwks).len(), 3, "{told}");
        assert!(!folder.join("set/first-keys.json").exists(), "{told}");
        let reports = set.sync(at(THEN + 2)).await.unwrap();
        let idle = |(_, report): &(_, Report)| report.done.is_empty() && report.trouble.is_empty();
        assert!(reports.iter().all(idle), "{told}: {reports:?}");
    });
}

/// The key that was taken over signs, and nothing else for its algorithm was made.
fn takeover_recovers(folder: &Path, step: u32) {
    let told = format!("killed at step {step}");
    runtime().block_on(async {
        let set = key_set(folder, &[KeySpec::Es384, KeySpec::EdDsa], &Probe::default());
        let set = set.taking_over(Arc::new(KeyFile::new(folder.join("key.json"))));
        let reports = set.start(at(THEN + 1)).await.unwrap();
        assert!(
            !reports.iter().any(|(_, report)| report.failed()),
            "{told}: {reports:?}"
        );
        let signer = set.signer(Algorithm::Es384);
        let signer = signer.unwrap_or_else(|reason| panic!("{told}: {reason}: {reports:?}"));
        assert_eq!(signer.kid().as_str(), TSIAM_KID, "{told}");
        let published = kids(&folder.join("jwks.json"));
        assert_eq!(published.len(), 3, "{told}: {published:?}");
        assert!(published.contains(&TSIAM_KID.to_owned()), "{told}");
    });
}

fn recovers(folder: &Path, operation: &str, step: u32) {
    let told = format!("{operation} killed at step {step}");
    let (keys, jwks) = (folder.join("keys"), folder.join("jwks.json"));
    runtime().block_on(async {
        // At this moment the document is complete for verifiers.
        let before = fs::read(&jwks)
            .ok()
            .map(|bytes| Document::parse(&bytes).unwrap_or_else(|error| panic!("{told}: {error}")));
        let life = key_life(&keys, &jwks);
        // Temporary files count as abandoned when they are a minute old by the file system's clock.
        let report = life.start(at(THEN + 1)).await.unwrap();
        assert!(
            !report.failed() && report.skipped.is_empty(),
            "{told}: {report:?}"
        );
        let signer = life
            .current_keys()
            .signer()
            .unwrap_or_else(|reason| panic!("{told}: {reason}: {report:?}"));
        let published = kids(&jwks);
        assert!(published.contains(&signer.kid().to_string()), "{told}");
        if operation != "start" {
            assert!(published.contains(&"stranger".to_owned()), "{told}");
        }
        if let Ok(kid) = fs::read_to_string(folder.join("acknowledged")) {
            assert!(
                published.contains(&kid),
                "{told}: what was acknowledged is there"
            );
        }
        // A removal that had become visible is completed; any other may be requested again.
        if let (Some(before), Ok(victim)) = (&before, fs::read_to_string(folder.join("victim")))
            && operation == "remove"
        {
            if before.find(&victim).is_none() {
                assert!(
                    !published.contains(&victim),
                    "{told}: it does not come back"
                );
            }
            if published.contains(&victim) {
                life.remove(&victim, at(THEN + 2)).await.unwrap();
            }
            assert!(!kids(&jwks).contains(&victim));
        }
        // Everything is at rest: no file without its key, no key without its files, nothing left to
        // do.
        let report = life.sync(at(THEN + 3)).await.unwrap();
        assert_eq!(
            (report.done.len(), report.failed()),
            (0, false),
            "{told}: {report:?}"
        );
        for key in &report.keys {
            let file = |kind: &str| keys.join(format!("{}.{kind}", key.kid)).exists();
            let expected = match key.state {
                Some(KeyState::Active | KeyState::Published) => (true, true, true),
                Some(KeyState::Retired) => (false, true, true),
                None => (false, false, false),
                other => panic!("{told}: {other:?}"),
            };
            assert_eq!(
                (file("private.jwk"), file("public.jwk"), file("state.json")),
                expected,
                "{told}: {key:?}"
            );
            assert!(key.published, "{told}: {key:?}");
        }
        let stems: Vec<_> = names(&keys)
            .into_iter()
            .filter(|name| !name.starts_with('.'))
            .collect();
        assert!(
            stems
                .iter()
                .all(|name| report.keys.iter().any(|key| name.starts_with(&key.kid))),
            "{told}: {stems:?}"
        );
        // The next key can be made as if nothing had happened.
        life.generate(None, at(THEN + 4)).await.unwrap();
    });
    swept(&keys, &jwks, &told);
}

/// The files of a killed writer are removed when they are a minute old.
fn swept(keys: &Path, jwks: &Path, told: &str) {
    let far = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(120);
    let store = KeyStore::new(keys);
    store.sweep(jiff::Timestamp::now()).unwrap();
    store.sweep(far).unwrap();
    assert!(
        !names(keys).iter().any(|name| name.starts_with(".tmp-")),
        "{told}: {:?}",
        names(keys)
    );
    let _: &KeyLife = &key_life(keys, jwks);
}

fn copy(from: &Path, to: &Path) {
    for name in names(from) {
        let (from, to) = (from.join(&name), to.join(&name));
        if from.is_dir() {
            fs::create_dir(&to).unwrap();
            copy(&from, &to);
        } else {
            fs::copy(from, to).unwrap();
        }
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}
