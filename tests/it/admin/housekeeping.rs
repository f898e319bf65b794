//! `tailbone server housekeeping`: one pass, without a node.

use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;

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
