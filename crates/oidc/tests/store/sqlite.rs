//! What only SQLite has: a file, which one process holds, on a disk that can be full.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, sync::Arc};

use tailbone_oidc::store::{OpenError, Presented, Sqlite, Store, StoreError};

use crate::promises::{self, at, both, code, grant};

fn open(path: &Path) -> Arc<Sqlite> {
    Arc::new(Sqlite::open(path).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_promise_holds() {
    for (name, promise) in promises::ALL {
        eprintln!("{name}");
        let folder = tempfile::tempdir().unwrap();
        promise(open(&folder.path().join("oidc.db"))).await;
    }
}

#[tokio::test]
async fn what_was_stored_is_there_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state/oidc.db");
    let store = open(&path);
    store
        .authorize(&grant("app", "alice"), code("c"))
        .await
        .unwrap();
    drop(store);
    let store = open(&path);
    let found = store.present_code(code("c").digest, at(1)).await.unwrap();
    assert!(matches!(found, Presented::Valid(_)), "{found:?}");
    for end in ["", "-wal", "-shm", ".lock"] {
        let file = folder.path().join(format!("state/oidc.db{end}"));
        let mode = fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file:?}");
    }
}

#[tokio::test]
async fn a_second_process_is_kept_out() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("oidc.db");
    let store = open(&path);
    let error = Sqlite::open(&path).unwrap_err().to_string();
    assert!(
        error.contains("in use by another tailbone process"),
        "{error}"
    );
    drop(store);
    drop(open(&path));
}

#[tokio::test]
async fn what_is_not_ours_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("other.db");
    let other = rusqlite::Connection::open(&path).unwrap();
    other.execute_batch("CREATE TABLE theirs (x)").unwrap();
    drop(other);
    let before = fs::read(&path).unwrap();
    let error = Sqlite::open(&path).unwrap_err();
    assert!(matches!(error, OpenError::NotOurs { .. }), "{error}");
    assert_eq!(fs::read(&path).unwrap(), before);

    let text = folder.path().join("text");
    fs::write(
        &text,
        "not a database, but a text that is longer than a header of SQLite\n".repeat(9),
    )
    .unwrap();
    let error = Sqlite::open(&text).unwrap_err().to_string();
    assert!(error.contains("not a database"), "{error}");

    let newer = folder.path().join("newer.db");
    drop(open(&newer));
    let connection = rusqlite::Connection::open(&newer).unwrap();
    connection
        .execute_batch("UPDATE oidc_schema SET version = 7")
        .unwrap();
    drop(connection);
    let error = Sqlite::open(&newer).unwrap_err().to_string();
    assert!(
        error.contains("to version 7, and this one knows 1"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_while_serving_is_a_store() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder.path().join("oidc.db"));
    let writer = {
        let store = store.clone();
        tokio::spawn(async move {
            for number in 0..300 {
                let name = format!("c{number}");
                store
                    .authorize(&grant("app", "alice"), code(&name))
                    .await
                    .unwrap();
                store
                    .redeem_code(code(&name).digest, &both(&name), at(1))
                    .await
                    .unwrap();
            }
        })
    };
    let mut copies = Vec::new();
    while !writer.is_finished() {
        let to = folder.path().join(format!("copy-{}", copies.len()));
        store.back_up(&to).await.unwrap();
        copies.push(to);
    }
    writer.await.unwrap();
    let there = folder.path().join("there");
    store.back_up(&there).await.unwrap();
    assert!(
        store
            .back_up(&there)
            .await
            .unwrap_err()
            .to_string()
            .contains("there is a file")
    );
    assert_eq!(
        fs::metadata(&there).unwrap().permissions().mode() & 0o777,
        0o600
    );
    copies.push(there);
    let mut last = 0;
    for copy in copies {
        let store = open(&copy);
        let grants = store
            .grants(
                &tailbone_oidc::store::GrantsOf::Subject("alice".to_owned()),
                999,
                at(2),
            )
            .await
            .unwrap();
        assert!(grants.len() >= last, "{copy:?}");
        last = grants.len();
    }
    assert_eq!(last, 300);
}

/// Cuts the log at each of its frames and in the middle of each: what a kill, or a loss of power,
/// leaves after each write. What was acknowledged by then is there, and nothing is there by half.
#[tokio::test]
async fn a_cut_at_any_write_loses_nothing_that_was_acknowledged() {
    const HEADER: usize = 32;
    const FRAME: usize = 24 + 4096;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("oidc.db");
    let store = open(&path);
    let wal = folder.path().join("oidc.db-wal");
    // Length of the log when each was acknowledged.
    let mut acknowledged = Vec::new();
    let length = || usize::try_from(fs::metadata(&wal).unwrap().len()).unwrap();
    let begun = length();
    for number in 0..12 {
        let name = format!("c{number}");
        store
            .authorize(&grant("app", "alice"), code(&name))
            .await
            .unwrap();
        store
            .redeem_code(code(&name).digest, &both(&name), at(1))
            .await
            .unwrap();
        acknowledged.push((name, length()));
    }
    let (database, log) = (fs::read(&path).unwrap(), fs::read(&wal).unwrap());
    assert_eq!(
        (log.len() - HEADER) % FRAME,
        0,
        "SQLite's file format, section 4"
    );
    let cuts = (begun..=log.len()).step_by(FRAME / 2);
    let mut seen = 0;
    for cut in cuts {
        let copy = folder.path().join("cut/oidc.db");
        fs::create_dir(copy.parent().unwrap()).unwrap();
        fs::write(&copy, &database).unwrap();
        fs::write(folder.path().join("cut/oidc.db-wal"), &log[..cut]).unwrap();
        let store = open(&copy);
        for (name, length) in &acknowledged {
            let token = store.access_token(code(name).digest, at(2)).await.unwrap();
            let code = store.present_code(code(name).digest, at(2)).await.unwrap();
            if *length <= cut {
                assert!(token.is_some(), "{name} is lost at {cut}");
                seen += 1;
            }
            // A token that is there was given for a code that is redeemed.
            assert_eq!(
                token.is_some(),
                matches!(code, Presented::Reused(_)),
                "{name} at {cut}"
            );
        }
        drop(store);
        fs::remove_dir_all(copy.parent().unwrap()).unwrap();
    }
    assert!(seen > 12, "{seen}");
}

#[tokio::test]
async fn calls_that_come_together_share_a_sync_and_fail_alone() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder.path().join("oidc.db"));
    let same = grant("app", "alice");
    // Two of one id: the second is refused by the database, the others are not.
    let calls = (0..50).map(|number| {
        let grant = if number % 2 == 0 {
            same.clone()
        } else {
            grant("app", "bob")
        };
        let (store, name) = (store.clone(), format!("c{number}"));
        async move { store.authorize(&grant, code(&name)).await }
    });
    let answers = futures_util::future::join_all(calls).await;
    for (number, answer) in answers.iter().enumerate() {
        let refused = matches!(answer, Err(StoreError::Broken { .. }));
        assert_eq!(
            refused,
            number % 2 == 0 && number > 0,
            "{number}: {answer:?}"
        );
        let name = format!("c{number}");
        let found = store.present_code(code(&name).digest, at(1)).await.unwrap();
        assert_eq!(matches!(found, Presented::Valid(_)), !refused, "{number}");
    }
}
