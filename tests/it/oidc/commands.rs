//! `tailbone oidc …` on the state of a server, while that runs and when it does not.

use std::{ffi::OsString, path::Path};

use tailbone::{
    cli::{self, console::Console, layout::Layout},
    config::Environment,
};
use tailbone_oidc::store::{Code, Grant, GrantId, GrantsOf, PostgresSettings};
use tailbone_values::Secret;

use super::*;

/// Exit code, standard output, standard error.
pub(super) fn run(arguments: &[&str]) -> (u8, String, String) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let mut all = vec!["tailbone", "oidc"];
    all.extend(arguments);
    let code = cli::execute(
        all.into_iter().map(OsString::from),
        &Environment::default(),
        &mut Console {
            out: &mut out,
            err: &mut err,
            person: None,
            layout: Layout::PIPE,
        },
    );
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (code, text(out), text(err))
}

fn done(arguments: &[&str]) -> Value {
    let mut all = arguments.to_vec();
    all.extend(["-o", "json"]);
    let (code, out, err) = run(&all);
    assert_eq!(code, 0, "{arguments:?}: {err}");
    serde_json::from_str(&out).unwrap()
}

fn refused(arguments: &[&str], words: &str) {
    let (code, out, err) = run(arguments);
    assert_eq!((code, out.as_str()), (1, ""), "{arguments:?}: {err}");
    assert!(
        err.starts_with("Error: ") && err.contains(words),
        "{arguments:?}: {err}"
    );
}

/// A grant whose code has expired, and one that lives.
fn fill(store: &dyn Store, runtime: &tokio::runtime::Runtime) {
    let now = Timestamp::now();
    for (subject, expires_at) in [
        ("alice", now + Duration::from_secs(600)),
        ("gone", now - Duration::from_secs(600)),
    ] {
        let grant = Grant {
            id: GrantId::random().unwrap(),
            client_id: "app".into(),
            subject: Some(subject.into()),
            session: None,
            created_at: now,
            details: "{}".into(),
        };
        let digest = Digest::of(subject);
        let code = Code { digest, expires_at };
        runtime.block_on(store.authorize(&grant, code)).unwrap();
    }
}

pub(super) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_running_servers_state_is_copied_and_dumped_and_not_changed() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let dir = TempDir::new().unwrap();
    let path = |name: &str| dir.path().join(name);
    let place = ["--oidc-dir", text(dir.path())];
    let with = |more: &[&str]| -> Vec<String> {
        let all = more.iter().chain(&place);
        all.map(|&word| word.to_owned()).collect()
    };
    let with = |more: &[&str]| with(more);
    let call = |more: &[&str]| {
        let all = with(more);
        done(&all.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let fails = |more: &[&str], words: &str| {
        let all = with(more);
        refused(&all.iter().map(String::as_str).collect::<Vec<_>>(), words);
    };
    fails(&["dump", text(&path("none"))], "oidc.db");
    fails(&["sweep"], "there is no");
    assert!(!path("oidc.db").exists() && !path("none").exists());

    let server = Sqlite::open(&path("oidc.db")).unwrap();
    fill(&server, &runtime);
    let (copy, dump) = (path("copy.db"), path("state.jsonl"));
    let copied = call(&["backup", text(&copy)]);
    assert_eq!(copied["did"], "backup");
    assert_eq!(copied["path"], text(&copy));
    assert!(copied["bytes"].as_u64().unwrap() > 0, "{copied}");
    call(&["dump", text(&dump)]);
    // Nothing is overwritten, and nothing of a server is changed behind its back.
    fails(&["backup", text(&copy)], "there is a file");
    fails(&["dump", text(&dump)], "exists");
    fails(&["load", text(&dump)], "Stop the server");
    fails(&["sweep"], "Stop the server");
    drop(server);

    let swept = call(&["sweep"]);
    assert_eq!(
        (&swept["did"], &swept["rows"]),
        (&json!("sweep"), &json!(1))
    );
    fails(&["load", text(&dump)], "empty store only");
    let (code, out, _) = run(&["sweep", "--oidc-dir", text(dir.path())]);
    assert_eq!(
        (code, out.contains("Deleted 0 expired rows")),
        (0, true),
        "{out}"
    );

    let other = TempDir::new().unwrap();
    let into = ["load", text(&dump), "--oidc-dir", text(other.path())];
    assert_eq!(done(&into)["did"], "load");
    for file in [copy, other.path().join("oidc.db")] {
        let store = Sqlite::open(&file).unwrap();
        let found = store.present_code(Digest::of("alice"), Timestamp::now());
        let found = runtime.block_on(found).unwrap();
        assert!(
            matches!(found, tailbone_oidc::store::Presented::Valid(_)),
            "{file:?}"
        );
    }
}

#[test]
fn a_state_moves_to_postgresql_and_back() {
    let Some(database) = tailbone_postgres::Server::start() else {
        return;
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let dir = TempDir::new().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    let store = Sqlite::open(&from.join("oidc.db")).unwrap();
    fill(&store, &runtime);
    drop(store);
    let (first, second) = (dir.path().join("1"), dir.path().join("2"));
    let url = database.url(&database.database());
    done(&["dump", text(&first), "--oidc-dir", text(&from)]);
    let loaded = done(&["load", text(&first), "--oidc-store", &url]);
    assert!(
        loaded["store"].as_str().unwrap().starts_with("postgres:"),
        "{loaded}"
    );
    done(&["dump", text(&second), "--oidc-store", &url]);
    let read = |path: &Path| std::fs::read_to_string(path).unwrap();
    assert_eq!(read(&first), read(&second));
    done(&["load", text(&second), "--oidc-dir", text(&to)]);
    assert_eq!(done(&["sweep", "--oidc-store", &url])["rows"], 1);
    refused(&["backup", text(&to), "--oidc-store", &url], "pg_dump");

    let settings = PostgresSettings {
        address: Secret::new(url.as_str()),
        password: None,
        authorities: None,
        connections: 1,
        timeout: Duration::from_secs(5),
    };
    let left = runtime.block_on(async {
        let store = tailbone_oidc::store::Postgres::open(&settings)
            .await
            .unwrap();
        let of = GrantsOf::Subject("gone".into());
        let revoked = store.revoke_grants(&of).await.unwrap();
        let found = store
            .present_code(Digest::of("alice"), Timestamp::now())
            .await;
        (revoked, found.unwrap())
    });
    assert!(
        matches!(left, (0, tailbone_oidc::store::Presented::Valid(_))),
        "{left:?}"
    );

    let with_password = url.replace("tailbone@", "tailbone:s3cret@");
    let (code, _, err) = run(&["sweep", "--oidc-store", &with_password]);
    assert_eq!(code, 64);
    assert!(
        err.contains("oidc.storePassword") && !err.contains("s3cret"),
        "{err}"
    );
}
