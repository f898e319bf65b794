//! `tailbone server housekeeping`: one pass, without a node.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use jiff::Timestamp;
use serde_json::{Value, json};
use tailbone::{
    config::KeySpec,
    jwks::{FilePublisher, KeySet},
    keys::KeyStore,
};
use tempfile::TempDir;
use testkit::keys::policy;

use super::{
    cli::{OLD, Shell, grow_older},
    published,
};

/// A key directory with one published key.
struct KeyFolder {
    dir: TempDir,
    shell: Shell,
}

impl KeyFolder {
    async fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let shell = Shell::with(&[("TB_KEYS_DIR", &dir.path().join("keys"))]);
        let folder = Self { dir, shell };
        let (code, _, err) = folder
            .shell
            .raw("keys generate --local --algorithm ES256")
            .await;
        assert_eq!(code, 0, "{err}");
        folder
    }

    fn keys(&self) -> PathBuf {
        self.dir.path().join("keys")
    }

    fn document(&self) -> PathBuf {
        self.keys().join("jwks.json")
    }

    async fn pass(&self, more: &str) -> (u8, String, String) {
        self.shell
            .raw(&format!(
                "server housekeeping --log-level error --key-algorithm ES256{more}"
            ))
            .await
    }
}

fn private_files(keys: &Path) -> usize {
    std::fs::read_dir(keys)
        .unwrap()
        .flatten()
        .filter(|entry| {
            entry
                .file_name()
                .to_string_lossy()
                .ends_with(".private.jwk")
        })
        .count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pass_with_nothing_to_do_says_so_in_each_form() {
    let folder = KeyFolder::new().await;
    let mask = |text: &str| {
        let id = &published(&folder.keys())[0];
        let text = text.replace(folder.keys().to_str().unwrap(), "<keys>");
        text.replace(id, "<kid>")
    };
    let (code, out, err) = folder.pass("").await;
    assert_eq!((code, &*err), (0, ""));
    assert_eq!(
        out,
        " Action   KeyId  Outcome  Reason \n nothing  -      done     -      \n"
    );
    let (code, out, _) = folder.pass(" -o json").await;
    assert_eq!(code, 0);
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(report["done"], serde_json::json!([]));
    assert_eq!(
        mask(report["place"].as_str().unwrap()),
        "file:<keys>/jwks.json"
    );
    assert_eq!(report["keys"][0]["state"], "active");
    let (code, out, _) = folder.pass(" -o yaml").await;
    assert_eq!(code, 0);
    assert!(
        mask(&out).starts_with("place: file:<keys>/jwks.json\ndry_run: false\n"),
        "{out}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d07_a_document_that_is_missing_empty_or_broken_deletes_nothing() {
    for content in [
        None,
        Some("{\"keys\":[]}"),
        Some("{}"),
        Some("<html>"),
        Some(""),
    ] {
        let folder = KeyFolder::new().await;
        match content {
            None => std::fs::remove_file(folder.document()).unwrap(),
            Some(text) => std::fs::write(folder.document(), text).unwrap(),
        }
        let (code, out, err) = folder.pass("").await;
        assert_eq!(private_files(&folder.keys()), 1, "{content:?}: {out}{err}");
        let readable = matches!(content, None | Some("{\"keys\":[]}"));
        assert_eq!(code, u8::from(!readable), "{content:?}: {out}{err}");
        if !readable {
            assert!(err.contains("cannot be used and is left alone"), "{err}");
            assert_eq!(
                std::fs::read_to_string(folder.document()).unwrap(),
                content.unwrap()
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dry_run_tells_and_changes_nothing() {
    let folder = KeyFolder::new().await;
    std::fs::remove_file(folder.document()).unwrap();
    let (_, out, err) = folder.pass(" --dry-run").await;
    assert!(
        out.contains("publish") && out.contains("planned"),
        "{out}{err}"
    );
    assert!(!folder.document().exists());
    let (code, out, err) = folder.pass("").await;
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("publish") && out.contains("done"), "{out}");
    assert_eq!(published(&folder.keys()).len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rotation_happens_only_where_it_is_set() {
    let folder = KeyFolder::new().await;
    grow_older(&folder.keys());
    let (code, _, err) = folder.pass("").await;
    assert_eq!(code, 0, "{err}");
    assert_eq!(published(&folder.keys()), [OLD], "rotation is off");
    let (code, out, err) = folder.pass(" --rotate-every 24h --dry-run").await;
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("generate") && out.contains("planned"), "{out}");
    assert_eq!(published(&folder.keys()).len(), 1);
    let (code, out, err) = folder.pass(" --rotate-every 24h").await;
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("generate"), "{out}");
    assert_eq!(published(&folder.keys()).len(), 2);
    let (code, out, _) = folder.pass(" --rotate-every 24h").await;
    assert!(
        code == 0 && out.contains("nothing"),
        "one successor is enough: {out}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_without_keys_is_reported_and_left_alone() {
    let dir = TempDir::new().unwrap();
    let shell = Shell::with(&[("TB_KEYS_DIR", &dir.path().join("keys"))]);
    let (code, _, err) = shell.raw("server housekeeping --log-level error").await;
    assert_eq!(code, 1);
    assert!(err.contains("there is no JWKS yet"), "{err}");
    assert!(!dir.path().join("keys/jwks.json").exists());
}

/// Keys for workload tokens, in a folder of their own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_components_own_keys_are_listed_made_kept_and_removed_without_a_server() {
    let dir = TempDir::new().unwrap();
    let (keys, own) = (dir.path().join("keys"), dir.path().join("own"));
    let shell = Shell::with(&[
        ("TB_KEYS_DIR", &keys),
        ("TB_WORKLOAD_KEYS_DIR", &own),
        ("TB_COMPONENTS", Path::new("workload")),
        ("TB_WORKLOAD_ALGORITHM", Path::new("ES256")),
        ("TB_WORKLOAD_KEYS_ALGORITHMS", Path::new("ES256,EdDSA")),
        ("TB_OUTPUT", Path::new("json")),
        ("TB_LOG_LEVEL", Path::new("error")),
    ]);
    let document = own.join("jwks.json");
    let set = KeySet::new(
        "workload",
        KeyStore::new(&own),
        Arc::new(FilePublisher::new(&document)),
        &policy(),
        "tb",
        KeySpec::Es256,
        &[KeySpec::EdDsa],
    );
    set.start(Timestamp::now()).await.unwrap();
    let run = async |arguments: &str| {
        let (code, out, err) = shell.raw(arguments).await;
        let result: Value = serde_json::from_str(&out).unwrap_or_default();
        (code, result, err)
    };

    let (code, listed, err) = run("keys list --local").await;
    assert_eq!((code, err.as_str()), (0, ""));
    let listed = listed.as_array().unwrap();
    assert_eq!(listed.len(), 2);
    for key in listed {
        assert_eq!(
            (&key["set"], &key["state"]),
            (&json!("workload"), &json!("active"))
        );
    }

    let (code, done, err) = run("server housekeeping").await;
    assert_eq!((code, err.as_str()), (0, ""));
    let sets = done["sets"].as_array().unwrap();
    let algorithms: Vec<_> = sets.iter().map(|set| &set["algorithm"]).collect();
    assert_eq!(algorithms, ["ES256", "EdDSA"]);
    assert!(
        sets.iter()
            .all(|one| one["set"] == "workload" && one["done"] == json!([]))
    );
    // There are no other keys, and none are made.
    assert!(done.get("place").is_none(), "{done}");
    assert!(!keys.exists());

    // A document that was lost comes back with both keys.
    std::fs::remove_file(&document).unwrap();
    run("server housekeeping --dry-run").await;
    assert!(!document.exists());
    run("server housekeeping").await;
    assert_eq!(published(&own).len(), 2);

    let kid = listed[0]["key_id"].as_str().unwrap();
    let (code, made, err) = run("keys rotate --local --set workload --algorithm EdDSA").await;
    assert_eq!((code, err.as_str()), (0, ""));
    let successor = &made[0]["key"];
    assert_eq!(
        (&successor["set"], &successor["algorithm"]),
        (&json!("workload"), &json!("EdDSA"))
    );
    // Without an algorithm, it is the set's default.
    let (code, made, err) = run("keys generate --local --set workload").await;
    assert_eq!((code, err.as_str()), (0, ""));
    assert_eq!(made[0]["key"]["algorithm"], "ES256");
    assert_eq!(published(&own).len(), 4);
    assert!(!keys.exists());

    let (code, _, err) = run("keys rotate --local --set gate").await;
    assert_eq!(code, 1);
    let words = "failed to rotate keys: unknown_key_set: no such key set; there is workload";
    assert!(err.contains(words), "{err}");
    let (code, _, err) = run("keys generate --local --set workload --algorithm RS256").await;
    assert_eq!(code, 1, "{err}");
    assert_eq!(published(&own).len(), 4);

    let (code, left, err) = run(&format!("keys remove --local --yes {kid}")).await;
    assert_eq!(code, 0, "{err}");
    assert!(
        left.as_array()
            .unwrap()
            .iter()
            .all(|key| key["key_id"] != kid)
    );
    let (_, listed, _) = run("keys list --local").await;
    assert_eq!(listed.as_array().unwrap().len(), 3);

    // Beside the issuer, whose keys have the report to themselves.
    let both = shell.clone().and("TB_COMPONENTS", "issuer,workload");
    let (_, out, _) = both.raw("server housekeeping").await;
    let done: Value = serde_json::from_str(&out).unwrap();
    assert!(
        done["place"].is_string() && done["sets"].is_array(),
        "{done}"
    );
}
