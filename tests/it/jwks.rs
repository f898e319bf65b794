//! Places of publication: a real S3 server and real files, and their faults.

use std::{
    convert::Infallible,
    fs,
    os::unix::fs::PermissionsExt as _,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use futures_util::{FutureExt as _, future::BoxFuture};
use jiff::Timestamp;
use tailbone::{
    config::KeySpec,
    jwks::{
        Document, Etag, FilePublisher, Found, PublishError, Publisher, UpdateError, Versioned,
        life::KeyLife, update,
    },
    keys::{KeyStore, disk::Probe},
};
use testkit::{
    fault_proxy::{Fault, FaultProxy},
    keys::policy,
    publisher_contract::{Publication, change_at_once, check_contract, document, key, now},
    s3::{self, BUCKET, KEY_PATH, S3Server, publisher_at, publisher_with},
};

#[tokio::test]
async fn a_file_is_a_place_of_publication() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("deep/er/jwks.json");
    let (read, put, kept) = (path.clone(), path.clone(), path.clone());
    check_contract(&Publication {
        publisher: Arc::new(FilePublisher::new(&path)),
        bytes: Box::new(move || fs::read(&read).ok()),
        put: Box::new(move |bytes| fs::write(&put, bytes).unwrap()),
        backups: Box::new(move || {
            let entries = fs::read_dir(kept.parent().unwrap()).unwrap().flatten();
            entries
                .map(|entry| entry.file_name().into_string().unwrap())
                .filter(|name| name.contains(".bak-"))
                .collect()
        }),
    })
    .await;
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o644
    );
    assert_eq!(
        fs::metadata(path.parent().unwrap())
            .unwrap()
            .permissions()
            .mode()
            & 0o777,
        0o700
    );
}

#[tokio::test]
async fn a_bucket_is_a_place_of_publication() {
    let server = Arc::new(S3Server::start());
    let (read, put, kept) = (server.clone(), server.clone(), server.clone());
    check_contract(&Publication {
        publisher: Arc::new(server.publisher()),
        bytes: Box::new(move || read.object()),
        put: Box::new(move |bytes| put_raw(&put, bytes)),
        backups: Box::new(move || {
            kept.objects()
                .into_iter()
                .filter(|name| name.contains(".bak-"))
                .collect()
        }),
    })
    .await;
}

/// Stores bytes on the server as another program would.
fn put_raw(server: &S3Server, bytes: &[u8]) {
    let bytes = bytes.to_vec();
    let addr = server.addr;
    // The list's callbacks are not async, so this uses a runtime on a thread of its own.
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let config = aws_sdk_s3::config::Builder::from(&s3::config(Duration::from_secs(5)))
                .force_path_style(true)
                .endpoint_url(format!("http://{addr}"))
                .build();
            let client = aws_sdk_s3::Client::from_conf(config);
            client
                .put_object()
                .bucket(BUCKET)
                .key(KEY_PATH)
                .body(bytes.into())
                .send()
                .await
                .unwrap();
        });
    })
    .join()
    .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d02_a_storm_of_changes_loses_none_in_a_file() {
    let folder = tempfile::tempdir().unwrap();
    change_at_once(
        Arc::new(FilePublisher::new(folder.path().join("jwks.json"))),
        8,
        50,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d02_a_storm_of_changes_loses_none_in_a_bucket() {
    let server = S3Server::start();
    change_at_once(Arc::new(server.publisher()), 8, 50).await;
}

#[tokio::test]
async fn an_object_in_a_bucket_has_its_type_and_its_cache_time() {
    let server = S3Server::start();
    let proxy = FaultProxy::start(server.addr).await;
    let publisher = publisher_at(proxy.addr);
    update(&publisher, now(), |document, _| {
        document.add(&key("tb-1")).map(drop)
    })
    .await
    .unwrap();
    let requests = proxy.requests();
    let put = requests
        .iter()
        .find(|head| head.starts_with("PUT "))
        .unwrap()
        .to_ascii_lowercase();
    assert!(put.contains("content-type: application/json\r\n"), "{put}");
    assert!(
        put.contains("cache-control: public, max-age=300\r\n"),
        "{put}"
    );
    assert!(put.contains("if-none-match: *\r\n"), "{put}");
    assert!(
        !put.contains("x-amz-acl") && !put.contains("checksum"),
        "{put}"
    );
    assert!(
        requests.last().unwrap().starts_with("GET "),
        "it is read back"
    );
}

/// Each way in which a read can fail, with the expected error.
#[tokio::test]
async fn d01_read_error_is_never_an_empty_set() {
    let server = S3Server::start();
    let proxy = FaultProxy::start(server.addr).await;
    let publisher = Arc::new(publisher_with(
        proxy.addr,
        BUCKET,
        Duration::from_millis(250),
    ));
    let folder = tempfile::tempdir().unwrap();
    let life = KeyLife::new(
        KeyStore::new(folder.path()),
        publisher.clone(),
        policy(),
        "tb",
        KeySpec::Es256,
    )
    .in_told_time();
    life.start(now()).await.unwrap();
    let signer = life.current_keys().signer().unwrap();
    let object = server.object().unwrap();
    let files = names(folder.path());

    type Expected = fn(&PublishError) -> bool;
    let unavailable: Expected = |error| matches!(error, PublishError::Unavailable { .. });
    let unreadable: Expected = |error| matches!(error, PublishError::Unreadable { .. });
    let denied: Expected = |error| matches!(error, PublishError::Denied { .. });
    let cases: [(&str, Fault, Expected); 12] = [
        ("403", Fault::code(403, "AccessDenied"), denied),
        ("403 without a word", Fault::status(403), denied),
        ("404 without a word", Fault::status(404), unavailable),
        (
            "404 of a web server",
            Fault::Answer {
                status: 404,
                body: b"<html>nginx</html>".to_vec(),
            },
            unavailable,
        ),
        ("500", Fault::code(500, "InternalError"), unavailable),
        ("503", Fault::code(503, "SlowDown"), unavailable),
        (
            "slow",
            Fault::Delay(Duration::from_millis(400)),
            unavailable,
        ),
        ("truncated", Fault::Truncate, unavailable),
        (
            "clobbered",
            Fault::Replace(b"<html>maintenance</html>".to_vec()),
            unreadable,
        ),
        ("emptied to nothing", Fault::Replace(Vec::new()), unreadable),
        (
            "cut short",
            Fault::Replace(br#"{"keys":[{"kty":"#.to_vec()),
            unreadable,
        ),
        ("50 MiB", Fault::Announce(50 * 1024 * 1024), unreadable),
    ];
    for (name, fault, expected) in cases {
        proxy.always("GET", fault);
        let error = publisher.read().await.unwrap_err();
        assert!(expected(&error), "{name}: {error:?}");
        let error = life.generate(None, now()).await.unwrap_err();
        assert!(!error.to_string().is_empty());
        let report = life.sync(now()).await.unwrap();
        assert!(report.document_trouble.is_some(), "{name}: {report:?}");
        let report = life.housekeeping(Default::default(), now()).await.unwrap();
        assert!(
            report.document_trouble.is_some() && report.done.is_empty(),
            "{name}: {report:?}"
        );
        assert!(
            life.remove(signer.kid().as_str(), now()).await.is_err(),
            "{name}"
        );
        // Nothing has changed, and tokens are still signed.
        proxy.heal();
        assert_eq!(server.object().unwrap(), object, "{name}");
        assert_eq!(names(folder.path()), files, "{name}");
        assert_eq!(
            life.current_keys().signer().unwrap().kid(),
            signer.kid(),
            "{name}"
        );
    }
    let report = life.sync(now()).await.unwrap();
    assert_eq!(
        (report.document_trouble, report.done),
        (None, vec![]),
        "and when it is over nothing is left to mend"
    );
}

#[tokio::test]
async fn a_bucket_that_is_not_there_is_not_an_empty_one() {
    let server = S3Server::start();
    let publisher = publisher_with(server.addr, "no-such-bucket", Duration::from_secs(5));
    let error = publisher.read().await.unwrap_err();
    assert!(matches!(error, PublishError::NotFound { .. }), "{error:?}");
    let gone = publisher_with(
        "127.0.0.1:1".parse().unwrap(),
        BUCKET,
        Duration::from_secs(1),
    );
    assert!(matches!(
        gone.read().await,
        Err(PublishError::Unavailable { .. })
    ));
}

#[tokio::test]
async fn a_write_whose_answer_is_lost_is_found_and_not_done_twice() {
    let server = S3Server::start();
    let proxy = FaultProxy::start(server.addr).await;
    let publisher = publisher_at(proxy.addr);
    proxy.once("PUT", Fault::DropAfter);
    let updated = update(&publisher, now(), |document, _| {
        document.add(&key("tb-1")).map(drop)
    })
    .await
    .unwrap();
    assert_eq!(updated.lost_writes, 0);
    assert_eq!(updated.document.unwrap().document, document(&["tb-1"]));
    assert_eq!(
        proxy
            .requests()
            .iter()
            .filter(|head| head.starts_with("PUT "))
            .count(),
        1
    );
}

#[tokio::test]
async fn a_stale_read_ends_in_a_conflict_not_in_a_lost_change() {
    let server = S3Server::start();
    let proxy = FaultProxy::start(server.addr).await;
    let publisher = publisher_at(proxy.addr);
    for kid in ["tb-1", "tb-2", "tb-3"] {
        update(&publisher, now(), |document, _| {
            document.add(&key(kid)).map(drop)
        })
        .await
        .unwrap();
    }
    proxy.once("GET", Fault::Stale);
    update(&publisher, now(), |document, _| {
        document.add(&key("tb-4")).map(drop)
    })
    .await
    .unwrap();
    let read = publisher.read().await.unwrap().unwrap();
    assert_eq!(read.document, document(&["tb-1", "tb-2", "tb-3", "tb-4"]));
}

#[tokio::test]
async fn a_place_that_is_down_ends_an_update_in_time() {
    let server = S3Server::start();
    let proxy = FaultProxy::start(server.addr).await;
    let publisher = publisher_with(proxy.addr, BUCKET, Duration::from_millis(200));
    let start = Instant::now();
    proxy.always("PUT", Fault::status(500));
    let error = update(&publisher, now(), |document, _| {
        document.add(&key("tb-1")).map(drop)
    })
    .await
    .unwrap_err();
    assert!(
        matches!(
            error,
            UpdateError::Publish(PublishError::Unavailable { .. })
        ),
        "{error:?}"
    );
    proxy.always("PUT", Fault::code(403, "AccessDenied"));
    let error = update(&publisher, now(), |document, _| {
        document.add(&key("tb-1")).map(drop)
    })
    .await
    .unwrap_err();
    assert!(
        matches!(error, UpdateError::Publish(PublishError::Denied { .. })),
        "{error:?}"
    );
    assert!(start.elapsed() < Duration::from_secs(5));
    assert_eq!(server.object(), None);
}

#[tokio::test]
async fn a_copy_that_may_not_be_kept_does_not_stop_a_removal() {
    let server = S3Server::start();
    let proxy = FaultProxy::start(server.addr).await;
    let publisher = publisher_at(proxy.addr);
    publisher
        .write(&document(&["tb-1", "tb-2"]), None)
        .await
        .unwrap();
    proxy.once("PUT", Fault::code(403, "AccessDenied"));
    let updated = update(&publisher, now(), |document, _| {
        document.remove("tb-1");
        Ok::<_, Infallible>(())
    })
    .await
    .unwrap();
    assert!(matches!(
        updated.backup,
        Some(Err(PublishError::Denied { .. }))
    ));
    assert_eq!(
        publisher.read().await.unwrap().unwrap().document,
        document(&["tb-2"])
    );
}

/// A store that accepts every write and ignores the conditions, with a second writer that does not
/// check.
#[derive(Debug)]
struct IgnoresConditions {
    document: Mutex<Document>,
    overwrites: Mutex<u32>,
}

impl Publisher for IgnoresConditions {
    fn place(&self) -> &str {
        "careless"
    }

    fn read(&self) -> BoxFuture<'_, Result<Option<Versioned>, PublishError>> {
        let document = self.document.lock().unwrap().clone();
        async {
            Ok(Some(Versioned {
                document,
                etag: Etag("same".into()),
            }))
        }
        .boxed()
    }

    fn write<'a>(
        &'a self,
        new: &'a Document,
        _: Option<&'a Etag>,
    ) -> BoxFuture<'a, Result<Etag, PublishError>> {
        let mut overwrites = self.overwrites.lock().unwrap();
        *self.document.lock().unwrap() = if *overwrites > 0 {
            *overwrites -= 1;
            document(&["tb-other"])
        } else {
            new.clone()
        };
        async { Ok(Etag("same".into())) }.boxed()
    }

    fn back_up<'a>(
        &'a self,
        _: &'a Document,
        _: Timestamp,
    ) -> BoxFuture<'a, Result<String, PublishError>> {
        async { Ok(String::new()) }.boxed()
    }
}

#[tokio::test]
async fn d02_a_place_that_ignores_conditions_is_noticed_and_the_change_made_again() {
    let place = IgnoresConditions {
        document: Mutex::default(),
        overwrites: Mutex::new(2),
    };
    let updated = update(&place, now(), |document, _| {
        document.add(&key("tb-1")).map(drop)
    })
    .await
    .unwrap();
    assert_eq!(updated.lost_writes, 2);
    assert_eq!(
        updated.document.unwrap().document,
        document(&["tb-other", "tb-1"])
    );
    // A store that never keeps anything is reported as such.
    let place = IgnoresConditions {
        document: Mutex::default(),
        overwrites: Mutex::new(u32::MAX),
    };
    let error = update(&place, now(), |document, _| {
        document.add(&key("tb-1")).map(drop)
    })
    .await
    .unwrap_err();
    assert!(error.to_string().contains("keeps overwriting"), "{error}");
}

#[tokio::test]
async fn a_change_that_refuses_writes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let publisher = FilePublisher::with_probe(
        folder.path().join("jwks.json"),
        Probe::new(|_, _| panic!("a write")),
    );
    let refused = update(&publisher, now(), |_, found| {
        assert_eq!(found, Found::Missing);
        Err("no")
    })
    .await;
    assert!(matches!(refused, Err(UpdateError::Change("no"))));
}

#[tokio::test]
async fn files_keep_the_ten_newest_copies() {
    let folder = tempfile::tempdir().unwrap();
    let publisher = FilePublisher::new(folder.path().join("jwks.json"));
    for n in 0..13 {
        publisher
            .back_up(
                &Document::default(),
                now() + jiff::SignedDuration::from_secs(n),
            )
            .await
            .unwrap();
    }
    let copies = names(folder.path());
    assert_eq!(copies.len(), 10);
    assert!(copies[0].contains("20250615T150643"), "{copies:?}");
}

fn names(folder: &std::path::Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap().flatten();
    let mut names: Vec<_> = entries
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}
