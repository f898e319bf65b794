//! Processes that are killed, and disks that are full: another run of this program does the work
//! of a server, in a test that is ignored otherwise.

use std::{
    collections::BTreeMap,
    env, fs,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use tailbone_oidc::store::{Postgres, Presented, RefreshToken, Sqlite, Store, StoreError};

use crate::{
    promises::{at, both, code, grant},
    server::{Server, settings, signal},
};

/// A path for SQLite, or the address and the database of a PostgreSQL.
const PLACE: &str = "TAILBONE_TEST_STORE";

async fn open(place: &str) -> Arc<dyn Store> {
    match place.split_once(' ') {
        Some((addr, database)) => {
            let settings = settings(addr.parse().unwrap(), database);
            Arc::new(Postgres::open(&settings).await.unwrap())
        }
        None => Arc::new(Sqlite::open(Path::new(place)).unwrap()),
    }
}

/// Another run of this program, which does one ignored test.
fn child(test: &str, place: &str) -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    command
        .args(["--exact", test, "--ignored", "--nocapture"])
        .env(PLACE, place)
        .stdout(Stdio::piped());
    command
}

/// Logs in and refreshes, in four tasks, and says so after each acknowledgement.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the process that is killed"]
async fn writes_until_it_is_killed() {
    let store = open(&env::var(PLACE).unwrap()).await;
    let run = tailbone_oidc::store::random_token().unwrap();
    let tasks = (0..4).map(|task| {
        let (store, run) = (store.clone(), run.to_string());
        tokio::spawn(async move {
            for number in 0.. {
                let name = format!("{run}-{task}-{number}");
                store
                    .authorize(&grant("app", "alice"), code(&name))
                    .await
                    .unwrap();
                say(&format!("authorized {name} -"));
                let issued = store
                    .redeem_code(code(&name).digest, &both(&name), at(1))
                    .await;
                let Ok(Presented::Valid(issued)) = issued else {
                    panic!("{issued:?}");
                };
                let first = issued.refresh.unwrap();
                say(&format!("redeemed {name} {}", *first.reveal()));
                let second = format!("{name}-second");
                let issue = both(&second);
                let rotated = store
                    .rotate_refresh(&first, Duration::ZERO, &issue, at(2))
                    .await;
                let Ok(Presented::Valid(issued)) = rotated else {
                    panic!("not rotated");
                };
                say(&format!(
                    "rotated {name} {}",
                    *issued.refresh.unwrap().reveal()
                ));
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
}

/// A line that is out before this returns.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "did {line}").unwrap();
    out.flush().unwrap();
}

/// What was acknowledged before the kill: the last thing said of each name.
fn killed_after(mut child: Child, acknowledgements: usize) -> BTreeMap<String, (String, String)> {
    let mut said = BTreeMap::new();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for (number, line) in lines
        .map_while(Result::ok)
        .filter(|line| line.contains("did "))
        .enumerate()
    {
        if number == acknowledgements {
            signal(&child, "KILL");
        }
        let words: Vec<_> = line[line.find("did ").unwrap()..].split(' ').collect();
        // The last line may be cut.
        if let [_, what, name, token] = words[..] {
            said.insert(name.to_owned(), (what.to_owned(), token.to_owned()));
        }
    }
    child.wait().unwrap();
    said
}

async fn check(store: &dyn Store, said: &BTreeMap<String, (String, String)>) {
    for (name, (what, token)) in said {
        let access = async |name: &str| store.access_token(code(name).digest, at(3)).await.unwrap();
        let second = access(&format!("{name}-second")).await;
        let first = access(name).await;
        assert!(first.is_some() || second.is_none(), "{name} by half");
        match what.as_str() {
            "authorized" => {
                // It may be redeemed already, and only the acknowledgement be missing.
                let found = store.present_code(code(name).digest, at(3)).await.unwrap();
                match found {
                    Presented::Valid(_) => assert!(first.is_none(), "{name} by half"),
                    Presented::Reused(_) => assert!(first.is_some(), "{name} by half"),
                    Presented::Unknown => panic!("{name} is lost"),
                }
            }
            "redeemed" => assert!(first.is_some(), "{name} is lost"),
            "rotated" => {
                assert!(second.is_some(), "{name} is lost");
                let token = RefreshToken::parse(token).unwrap();
                let found = store
                    .present_refresh(&token, Duration::ZERO, at(3))
                    .await
                    .unwrap();
                assert!(matches!(found, Presented::Valid(_)), "{name}: {found:?}");
            }
            other => panic!("{other}"),
        }
    }
}

/// `settled` returns when nothing of the killed process goes on.
async fn kill_many_times(place: &str, settled: impl Fn()) {
    for round in 0..12 {
        let child = child("killed::writes_until_it_is_killed", place)
            .spawn()
            .unwrap();
        let said = killed_after(child, 7 * round + 1);
        settled();
        assert!(!said.is_empty());
        check(&*open(place).await, &said).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_process_loses_nothing_that_sqlite_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    kill_many_times(folder.path().join("oidc.db").to_str().unwrap(), || ()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_process_loses_nothing_that_postgres_acknowledged() {
    let Some(server) = Server::start() else {
        return;
    };
    let database = server.database();
    // The server goes on with what it was sent until it notices.
    let connections = format!("SELECT count(*) FROM pg_stat_activity WHERE datname = '{database}'");
    let settled = || while server.ask("postgres", &connections) != "0" {};
    kill_many_times(&format!("{} {database}", server.addr), settled).await;
}

/// On a disk of its own, which the mount below makes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the process on a small disk"]
async fn fills_its_disk() {
    let path = PathBuf::from(env::var(PLACE).unwrap());
    let filler = path.with_file_name("filler");
    fs::write(&filler, vec![0; 256 * 1024]).unwrap();
    let store = Sqlite::open(&path).unwrap();
    let mut stored = Vec::new();
    let error = loop {
        let name = format!("c{}", stored.len());
        match store.authorize(&grant("app", "alice"), code(&name)).await {
            Ok(()) => stored.push(name),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, StoreError::Full { .. }), "{error}");
    assert!(
        error.to_string().contains("no space left on the device"),
        "{error}"
    );
    let there = async |store: &Sqlite| {
        for name in &stored {
            let found = store.present_code(code(name).digest, at(1)).await.unwrap();
            assert!(matches!(found, Presented::Valid(_)), "{name}: {found:?}");
        }
    };
    there(&store).await;
    fs::remove_file(&filler).unwrap();
    store
        .authorize(&grant("app", "alice"), code("later"))
        .await
        .unwrap();
    let redeemed = store
        .redeem_code(code("later").digest, &both("later"), at(1))
        .await
        .unwrap();
    assert!(matches!(redeemed, Presented::Valid(_)), "{redeemed:?}");
    there(&store).await;
    drop(store);
    there(&Sqlite::open(&path).unwrap()).await;
    say(&format!("fill {} -", stored.len()));
}

#[test]
fn a_full_disk_refuses_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mount = format!(
        "mount -t tmpfs -o size=1m tmpfs {}",
        folder.path().display()
    );
    let tried = Command::new("unshare")
        .args(["--mount", "sh", "-c", &mount])
        .output();
    if !tried.as_ref().is_ok_and(|output| output.status.success()) {
        eprintln!("left out, disks cannot be mounted here: {tried:?}");
        return;
    }
    let path = folder.path().join("oidc.db");
    let inner = child("killed::fills_its_disk", path.to_str().unwrap());
    let output = Command::new("unshare")
        .args([
            "--mount",
            "sh",
            "-c",
            &format!("{mount} && exec \"$0\" \"$@\""),
        ])
        .arg(inner.get_program())
        .args(inner.get_args())
        .env(PLACE, &path)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("did fill "),
        "{output:?}"
    );
}
