//! What only PostgreSQL has: several processes, a network, and transactions that it takes back.

use std::{sync::Arc, time::Duration, time::Instant};

use tailbone_oidc::store::{
    ClientOrigin, GrantId, Issue, Postgres, PostgresError, PostgresSettings, Presented, Store,
    StoreError,
};

use tailbone_values::Secret;

use crate::{
    promises::{self, at, both, client, code, grant, race},
    server::{Proxy, Server, Stores as _, Way, certificate, settings},
};

const PATIENCE: Duration = Duration::from_secs(10);

/// One server, and a database for each promise.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_promise_holds() {
    let Some(server) = Server::start() else {
        return;
    };
    for (name, promise) in promises::ALL {
        eprintln!("{name}");
        promise(Arc::new(server.store(&server.database()).await)).await;
    }
}

/// Two stores stand for two processes: they share nothing but the database.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_processes_one_has_the_code_and_one_migrates() {
    let Some(server) = Server::start() else {
        return;
    };
    let database = server.database();
    let settings = server.settings(&database);
    let (one, two) = tokio::join!(Postgres::open(&settings), Postgres::open(&settings));
    let stores = [Arc::new(one.unwrap()), Arc::new(two.unwrap())];
    assert_eq!(
        server.ask(&database, "SELECT count(*), max(version) FROM oidc_schema"),
        "1|1"
    );
    for round in 0..10 {
        let name = format!("c{round}");
        stores[0]
            .authorize(&grant("app", "alice"), code(&name))
            .await
            .unwrap();
        let answers = race(|number| {
            let (store, name) = (stores[number % 2].clone(), name.clone());
            async move {
                let issue = both(&format!("{name}-{number}"));
                store
                    .redeem_code(code(&name).digest, &issue, at(1))
                    .await
                    .unwrap()
            }
        })
        .await;
        let valid = answers
            .iter()
            .filter(|answer| matches!(answer, Presented::Valid(_)));
        assert_eq!(valid.count(), 1, "{answers:?}");
    }
    // Each of the two finds at once what the other one has acknowledged.
    for round in 0..50 {
        let name = format!("d{round}");
        stores[round % 2]
            .authorize(&grant("app", "alice"), code(&name))
            .await
            .unwrap();
        let found = stores[(round + 1) % 2]
            .present_code(code(&name).digest, at(1))
            .await;
        assert!(matches!(found.unwrap(), Presented::Valid(_)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_goes_away_and_comes_back_needs_no_restart() {
    let Some(mut server) = Server::start() else {
        return;
    };
    let database = server.database();
    let proxy = Proxy::to(server.addr).await;
    let mut settings = settings(proxy.addr, &database);
    settings.timeout = Duration::from_millis(500);
    let store = Postgres::open(&settings).await.unwrap();
    let refused = async |what: &str| {
        let begun = Instant::now();
        let error = store.client("app", at(0)).await.unwrap_err();
        assert!(
            matches!(error, StoreError::Unavailable { .. }),
            "{what}: {error}"
        );
        let error = store
            .authorize(&grant("app", "alice"), code(what))
            .await
            .unwrap_err();
        assert!(
            matches!(error, StoreError::Unavailable { .. }),
            "{what}: {error}"
        );
        assert!(
            begun.elapsed() < Duration::from_secs(3),
            "{what}: {:?}",
            begun.elapsed()
        );
    };
    let works = async |what: &str| {
        let begun = Instant::now();
        let name = loop {
            let name = GrantId::random().unwrap().text();
            match store.authorize(&grant("app", "alice"), code(&name)).await {
                Ok(()) => break name,
                Err(error) => assert!(begun.elapsed() < PATIENCE, "{what}: {error}"),
            }
        };
        let found = store.present_code(code(&name).digest, at(1)).await.unwrap();
        assert!(matches!(found, Presented::Valid(_)), "{what}: {found:?}");
    };
    works("nothing").await;
    for (what, way) in [
        ("closed", Way::Closed),
        ("stuck", Way::Stuck),
        ("slow", Way::Slow(2000)),
    ] {
        proxy.set(way);
        refused(what).await;
        proxy.set(Way::Open);
        works(what).await;
    }
    proxy.set(Way::Slow(20));
    works("a little slow").await;
    proxy.set(Way::Open);

    server.stop();
    refused("stopped").await;
    server.resume();
    works("stopped").await;
    for round in 0..3 {
        store
            .add_client(&client(&format!("kept-{round}"), ClientOrigin::Admin), None)
            .await
            .unwrap();
        server.crash();
        works("crashed").await;
    }
    assert_eq!(
        store.clients(None, 9, at(0)).await.unwrap().len(),
        3,
        "all were acknowledged"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_postgres_takes_back_is_tried_again() {
    let Some(server) = Server::start() else {
        return;
    };
    let database = server.database();
    let store = server.store(&database).await;
    // Fails the first calls that come, as serializable transactions and deadlocks do.
    for (code_, times, works) in [("40001", 4, true), ("40P01", 4, true), ("40001", 99, false)] {
        server.ask(
            &database,
            &format!(
                "CREATE SEQUENCE tries;
                 CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                     IF nextval('tries') <= {times} THEN
                         RAISE EXCEPTION 'try again' USING ERRCODE = '{code_}';
                     END IF;
                     RETURN NEW;
                 END $$;
                 CREATE TRIGGER fail BEFORE INSERT ON oidc_access_tokens
                     FOR EACH ROW EXECUTE FUNCTION fail()"
            ),
        );
        let name = format!("{code_}-{times}");
        store
            .authorize(&grant("app", "alice"), code(&name))
            .await
            .unwrap();
        let redeemed = store
            .redeem_code(code(&name).digest, &both(&name), at(1))
            .await;
        match redeemed {
            Ok(Presented::Valid(_)) if works => {}
            Err(StoreError::Unavailable { .. }) if !works => {}
            other => panic!("{name}: {other:?}"),
        }
        let undo =
            "DROP TRIGGER fail ON oidc_access_tokens; DROP FUNCTION fail; DROP SEQUENCE tries";
        server.ask(&database, undo);
        if !works {
            // Nothing of it took effect, so the code is still good.
            let redeemed = store
                .redeem_code(code(&name).digest, &both(&name), at(1))
                .await;
            assert!(matches!(redeemed, Ok(Presented::Valid(_))), "{redeemed:?}");
        }
    }
    // A database whose transactions are serializable unless they say otherwise.
    server.ask(
        "postgres",
        &format!("ALTER DATABASE {database} SET default_transaction_isolation = 'serializable'"),
    );
    let store = Arc::new(server.store(&database).await);
    store
        .authorize(&grant("app", "alice"), code("s"))
        .await
        .unwrap();
    let answers = race(|number| {
        let store = store.clone();
        async move {
            let issue = both(&format!("s-{number}"));
            store
                .redeem_code(code("s").digest, &issue, at(1))
                .await
                .unwrap()
        }
    })
    .await;
    let valid = answers
        .iter()
        .filter(|answer| matches!(answer, Presented::Valid(_)));
    assert_eq!(valid.count(), 1, "{answers:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_does_not_suit_is_refused() {
    let Some(server) = Server::start() else {
        return;
    };
    let open = async |database: &str| Postgres::open(&server.settings(database)).await;
    let database = server.database();
    let alter = |setting: &str| {
        server.ask(
            "postgres",
            &format!("ALTER DATABASE {database} SET {setting}"),
        );
    };
    alter("synchronous_commit = off");
    let error = open(&database).await.unwrap_err();
    assert!(
        matches!(error, PostgresError::Unsynchronized { .. }),
        "{error}"
    );
    alter("synchronous_commit = on");
    drop(open(&database).await.unwrap());

    server.ask(
        "postgres",
        "CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0",
    );
    let error = open("latin").await.unwrap_err();
    assert!(
        error.to_string().contains("its encoding is LATIN1"),
        "{error}"
    );

    server.ask(&database, "UPDATE oidc_schema SET version = 7");
    let error = open(&database).await.unwrap_err().to_string();
    assert!(
        error.contains("to version 7, and this one knows 1"),
        "{error}"
    );
    server.ask(&database, "UPDATE oidc_schema SET version = 1");

    // A role that may use the tables and make none.
    server.ask(
        &database,
        "CREATE ROLE small LOGIN; REVOKE CREATE ON SCHEMA public FROM PUBLIC;
         GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO small",
    );
    let mut settings = server.settings(&database);
    let address = settings.address.reveal().replace("tailbone@", "small@");
    settings.address = Secret::new(address);
    let store = Postgres::open(&settings).await.unwrap();
    let issue = Issue {
        refresh_until: None,
        ..both("t")
    };
    store
        .issue(&grant("app", "alice"), &issue, at(0))
        .await
        .unwrap();

    for (address, words) in [
        ("postgres://u:s3cret@/db", "it names no host"),
        ("postgres://u:s3cret@h/db?sslmode=maybe", "sslmode"),
        ("host=h password=s3cret colour=blue", "colour"),
    ] {
        settings.address = Secret::new(address);
        let error = Postgres::open(&settings).await.unwrap_err().to_string();
        assert!(
            error.contains(words) && !error.contains("s3cret"),
            "{address}: {error}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_is_verified_and_is_demanded_of_other_machines() {
    let Some(server) = Server::start_with_tls() else {
        return;
    };
    let open = async |port: u16, words: &str, authorities: &str| {
        let address =
            format!("hostaddr=127.0.0.1 port={port} user=tailbone dbname=postgres {words}");
        let settings = PostgresSettings {
            address: Secret::new(address),
            authorities: Some(certificate(authorities)),
            ..server.settings("postgres")
        };
        match Postgres::open(&settings).await {
            Ok(store) => store.check().await.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        }
    };
    let port = server.addr.port();
    open(port, "host=localhost sslmode=require", "first.crt")
        .await
        .unwrap();
    let used = "SELECT count(*) FROM pg_stat_ssl WHERE ssl";
    assert_ne!(server.ask("postgres", used), "0");
    let refused = |outcome: Result<(), String>, words: &str| {
        let error = outcome.unwrap_err();
        assert!(error.contains(words), "{words}: {error}");
    };
    // Another authority, another name, and no file of authorities.
    let strange = open(port, "host=localhost sslmode=require", "second.crt").await;
    refused(strange, "certificate");
    refused(
        open(port, "host=db.example", "first.crt").await,
        "certificate",
    );
    refused(
        open(port, "host=localhost", "first.key").await,
        "no certificates",
    );
    refused(
        open(port, "host=localhost", "none").await,
        "none: no certificates",
    );

    let Some(plain) = Server::start() else {
        return;
    };
    let port = plain.addr.port();
    refused(open(port, "host=db.example", "first.crt").await, "TLS");
    open(port, "host=db.example sslmode=disable", "first.crt")
        .await
        .unwrap();
    open(port, "host=localhost", "first.crt").await.unwrap();
}
