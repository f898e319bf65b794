//! Figures for `docs/design/oidc-store.md`. Run with
//! `cargo test -p tailbone-oidc --test store measure -- --ignored --nocapture --test-threads 1`,
//! on a quiet machine.

use std::{
    fs,
    io::Write as _,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use tailbone_oidc::store::{Digest, Presented, Sqlite, Store};

use crate::{
    promises::{at, both, code, grant},
    server::{Server, Stores as _},
};

/// Median of the time that a write of one page and its sync take.
fn sync_time(folder: &Path) -> Duration {
    let mut file = fs::File::create(folder.join("sync")).unwrap();
    let mut times: Vec<_> = (0..200)
        .map(|_| {
            file.write_all(&[1; 4096]).unwrap();
            let begun = Instant::now();
            file.sync_data().unwrap();
            begun.elapsed()
        })
        .collect();
    times.sort();
    times[100]
}

/// Logins and refreshes per second with so many callers at a time.
async fn flows(store: &Arc<dyn Store>, callers: usize, time: Duration) -> (f64, f64) {
    let end = Instant::now() + time;
    let run = tailbone_oidc::store::random_token().unwrap().to_string();
    let work = (0..callers).map(|caller| {
        let (store, run) = (store.clone(), run.clone());
        tokio::spawn(async move {
            let mut done = 0;
            while Instant::now() < end {
                let name = format!("{run}-{caller}-{done}");
                store
                    .authorize(&grant("app", "alice"), code(&name))
                    .await
                    .unwrap();
                store.present_code(code(&name).digest, at(1)).await.unwrap();
                store
                    .redeem_code(code(&name).digest, &both(&name), at(1))
                    .await
                    .unwrap();
                done += 1;
            }
            done
        })
    });
    let logins: usize = join_all(work).await.into_iter().map(Result::unwrap).sum();

    let end = Instant::now() + time;
    let work = (0..callers).map(|caller| {
        let (store, run) = (store.clone(), run.clone());
        tokio::spawn(async move {
            let (grant, issue) = (grant("app", "alice"), both(&format!("{run}{caller}")));
            let issued = store.issue(&grant, &issue, at(1)).await.unwrap();
            let mut refresh = issued.refresh.unwrap();
            let mut done = 0;
            while Instant::now() < end {
                let name = format!("{run}.{caller}.{done}");
                store
                    .present_refresh(&refresh, Duration::ZERO, at(1))
                    .await
                    .unwrap();
                let issue = both(&name);
                let rotated = store
                    .rotate_refresh(&refresh, Duration::ZERO, &issue, at(1))
                    .await;
                let Presented::Valid(issued) = rotated.unwrap() else {
                    panic!("not rotated");
                };
                refresh = issued.refresh.unwrap();
                done += 1;
            }
            done
        })
    });
    let refreshes: usize = join_all(work).await.into_iter().map(Result::unwrap).sum();
    (
        logins as f64 / time.as_secs_f64(),
        refreshes as f64 / time.as_secs_f64(),
    )
}

async fn reads(store: &Arc<dyn Store>, time: Duration) -> f64 {
    store
        .issue(&grant("app", "alice"), &both("read"), at(1))
        .await
        .unwrap();
    let end = Instant::now() + time;
    let work = (0..16).map(|_| {
        let store = store.clone();
        tokio::spawn(async move {
            let mut done = 0;
            while Instant::now() < end {
                assert!(
                    store
                        .access_token(Digest::of("read"), at(2))
                        .await
                        .unwrap()
                        .is_some()
                );
                done += 1;
            }
            done
        })
    });
    let reads: usize = join_all(work).await.into_iter().map(Result::unwrap).sum();
    reads as f64 / time.as_secs_f64()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures"]
async fn calls_per_second() {
    let folder = tempfile::tempdir().unwrap();
    println!("one sync of this disk: {:?}", sync_time(folder.path()));
    let path = folder.path().join("oidc.db");
    let mut stores: Vec<(&str, Arc<dyn Store>)> =
        vec![("SQLite", Arc::new(Sqlite::open(&path).unwrap()))];
    let server = Server::start();
    if let Some(server) = &server {
        stores.push((
            "PostgreSQL",
            Arc::new(server.store(&server.database()).await),
        ));
    }
    for (name, store) in stores {
        for callers in [1, 8, 64, 256] {
            let (logins, refreshes) = flows(&store, callers, Duration::from_secs(4)).await;
            println!("{name}, {callers} callers: {logins:.0} logins/s, {refreshes:.0} refreshes/s");
        }
        println!(
            "{name}: {:.0} introspections/s",
            reads(&store, Duration::from_secs(3)).await
        );
    }
}

/// Rows that expire within an hour, at an even rate; a twentieth has expired at `at(180)`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures; needs 4 GB of disk and some minutes"]
async fn ten_million_rows() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("oidc.db");
    drop(Sqlite::open(&path).unwrap());
    let connection = rusqlite::Connection::open(&path).unwrap();
    let begun = Instant::now();
    connection
        .execute_batch(&format!(
            "PRAGMA synchronous = OFF; PRAGMA cache_size = -2000000; BEGIN;
             WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 10000000)
             INSERT INTO oidc_assertions SELECT randomblob(32), {0} + i * 3600 / 10000 FROM n;
             WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000000)
             INSERT INTO oidc_grants (id, client_id, subject, created_at, expires_at, details,
                 redeemed_at, refresh, refresh_expires_at)
             SELECT randomblob(16), 'app' || (i % 100), 'user' || (i % 1000), {0},
                 {0} + i * 3600 / 1000, hex(randomblob(200)), {0}, randomblob(32), {0} FROM n;
             COMMIT; PRAGMA wal_checkpoint(TRUNCATE);",
            at(0).as_millisecond()
        ))
        .unwrap();
    drop(connection);
    println!(
        "filled in {:?}: {} MB",
        begun.elapsed(),
        fs::metadata(&path).unwrap().len() >> 20
    );
    let begun = Instant::now();
    let store: Arc<dyn Store> = Arc::new(Sqlite::open(&path).unwrap());
    println!("opened in {:?}", begun.elapsed());
    let (logins, refreshes) = flows(&store, 64, Duration::from_secs(4)).await;
    println!("beside them, 64 callers: {logins:.0} logins/s, {refreshes:.0} refreshes/s");
    let (mut calls, mut rows, mut longest) = (0, 0, Duration::ZERO);
    let begun = Instant::now();
    loop {
        let call = Instant::now();
        let swept = store.sweep(1000, at(180)).await.unwrap();
        longest = longest.max(call.elapsed());
        (calls, rows) = (calls + 1, rows + swept.rows);
        if !swept.more {
            break;
        }
    }
    let all = begun.elapsed();
    println!("swept {rows} rows in {all:?} by {calls} calls, the longest {longest:?}");
    let begun = Instant::now();
    store.sweep(1000, at(180)).await.unwrap();
    println!("a sweep that finds nothing: {:?}", begun.elapsed());
}
