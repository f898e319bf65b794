//! Dumps, and how a store moves from one database to the other.

use std::{
    io::{self, Write},
    sync::{Arc, Mutex},
};

use tailbone_oidc::store::{
    ClientOrigin, Digest, Issue, Presented, Session, SessionId, Sqlite, Store, StoreError,
};

use crate::{
    promises::{at, both, client, code, grant, token},
    server::{Server, Stores as _},
};

#[derive(Clone, Default)]
struct Memory(Arc<Mutex<Vec<u8>>>);

impl Write for Memory {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

async fn dump(store: &dyn Store) -> String {
    let memory = Memory::default();
    store.dump(Box::new(memory.clone())).await.unwrap();
    String::from_utf8(memory.0.lock().unwrap().clone()).unwrap()
}

async fn load(store: &dyn Store, text: &str) -> Result<(), StoreError> {
    store
        .load(Box::new(io::Cursor::new(text.as_bytes().to_vec())))
        .await
}

/// Something of each kind, and more grants than fit one page.
async fn fill(store: &dyn Store) {
    store
        .add_client(&client("app", ClientOrigin::Admin), None)
        .await
        .unwrap();
    store
        .add_client(&client("gone", ClientOrigin::Registered), None)
        .await
        .unwrap();
    store
        .import_clients("tsidp", &[client("old", ClientOrigin::Tsidp)], at(0))
        .await
        .unwrap();
    let session = Session {
        id: SessionId::random().unwrap(),
        cookie: Digest::of("biscuit"),
        subject: "alice".to_owned(),
        authenticated_at: at(0),
        created_at: at(0),
        expires_at: at(3000),
        details: "{}".to_owned(),
    };
    store.add_session(&session).await.unwrap();
    for number in 0..1100 {
        let mut grant = grant("app", "alice");
        grant.session = (number < 5).then_some(session.id);
        let name = format!("n{number}");
        if number % 2 == 0 {
            store.authorize(&grant, code(&name)).await.unwrap();
        } else {
            store.issue(&grant, &both(&name), at(0)).await.unwrap();
        }
    }
    store
        .use_assertion(Digest::of("jti"), at(60), at(0))
        .await
        .unwrap();
    store.remove_client("gone", at(1)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dump_moves_a_store_between_both_databases() {
    let folder = tempfile::tempdir().unwrap();
    let first = Sqlite::open(&folder.path().join("first")).unwrap();
    fill(&first).await;
    let refresh = first
        .issue(&grant("app", "bob"), &both("hidden"), at(0))
        .await
        .unwrap();
    let refresh = refresh.refresh.unwrap();
    let written = dump(&first).await;
    for secret in ["hidden", "biscuit", "jti", &refresh.reveal()[32..]] {
        assert!(!written.contains(secret), "{secret} is in it");
    }

    let check = async |store: &dyn Store| {
        let found = store
            .present_refresh(&refresh, Default::default(), at(1))
            .await
            .unwrap();
        assert!(matches!(found, Presented::Valid(_)), "{found:?}");
        let again = store.import_clients("tsidp", &[], at(0)).await.unwrap();
        assert_eq!(again, tailbone_oidc::store::Imported::Before);
    };
    let second = Sqlite::open(&folder.path().join("second")).unwrap();
    load(&second, &written).await.unwrap();
    assert_eq!(dump(&second).await, written);
    check(&second).await;

    let Some(server) = Server::start() else {
        return;
    };
    let third = server.store(&server.database()).await;
    load(&third, &written).await.unwrap();
    assert!(
        dump(&third).await == written,
        "PostgreSQL orders and spells as SQLite does"
    );
    check(&third).await;
    let fourth = Sqlite::open(&folder.path().join("fourth")).unwrap();
    load(&fourth, &dump(&third).await).await.unwrap();
    assert!(dump(&fourth).await == written);
    let refused = load(&third, &written).await.unwrap_err();
    assert!(matches!(refused, StoreError::Unsupported(_)), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dump_is_of_one_instant() {
    let folder = tempfile::tempdir().unwrap();
    let sqlite = Arc::new(Sqlite::open(&folder.path().join("oidc.db")).unwrap());
    let server = Server::start();
    let mut stores: Vec<Arc<dyn Store>> = vec![sqlite];
    if let Some(server) = &server {
        stores.push(Arc::new(server.store(&server.database()).await));
    }
    for store in stores {
        fill(&*store).await;
        let writer = store.clone();
        let writing = tokio::spawn(async move {
            for number in 0..200 {
                let issue = Issue {
                    access: Some(token(&format!("while {number}"), 300)),
                    ..both("x")
                };
                writer
                    .issue(&grant("app", "carol"), &issue, at(0))
                    .await
                    .unwrap();
            }
        });
        while !writing.is_finished() {
            // A grant and its access token are written together.
            let written = dump(&*store).await;
            let grants = written.matches("\"carol\"").count();
            let tables = written.split("{\"table\":\"");
            let tokens = tables.filter(|table| table.starts_with("oidc_access_tokens"));
            let tokens = tokens.map(|table| table.lines().count() - 1).sum::<usize>();
            assert_eq!(tokens, 550 + grants);
        }
        writing.await.unwrap();
    }
}

#[tokio::test]
async fn what_is_no_whole_dump_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let first = Sqlite::open(&folder.path().join("first")).unwrap();
    fill(&first).await;
    let written = dump(&first).await;
    let lines: Vec<_> = written.lines().collect();
    let store = Sqlite::open(&folder.path().join("second")).unwrap();
    let empty = dump(&store).await;
    for (text, words) in [
        (String::new(), "line 1: it is no dump"),
        ("{}".to_owned(), "line 1: it is no dump"),
        (
            written.replacen("\"tailbone_oidc_dump\":1", "\"tailbone_oidc_dump\":2", 1),
            "newer",
        ),
        (lines[..lines.len() - 1].join("\n"), "its end is missing"),
        (
            [&lines[..900], &lines[901..]].concat().join("\n"),
            "rows are missing",
        ),
        (format!("{written}[1]"), "there is more behind its end"),
        (
            written.replacen("\"oidc_grants\"", "\"oidc_other\"", 1),
            "a table that this",
        ),
        (
            written.replacen("\"redeemed_at\"", "\"other\"", 1),
            "a column that this",
        ),
        ([lines[0], "[1]"].join("\n"), "line 2: a row has no table"),
        (
            [lines[0], lines[1], "[1]"].join("\n"),
            "line 3: a row does not fit",
        ),
        ([lines[0], "nonsense"].join("\n"), "line 2: it is neither"),
    ] {
        let error = load(&store, &text).await.unwrap_err();
        assert!(matches!(error, StoreError::Dump { .. }), "{error}");
        assert!(error.to_string().contains(words), "{words}: {error}");
        assert_eq!(dump(&store).await, empty, "{words}");
    }
    load(&store, &written).await.unwrap();
}
