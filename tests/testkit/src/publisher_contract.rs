//! What every place of publication must do.

use std::{convert::Infallible, sync::Arc};

use jiff::Timestamp;
use tailbone_keys::PublicJwk;
use tailbone_keys::jwks::{Document, Etag, PublishError, Publisher, Unreadable, update};

/// A new place, and direct access to its bytes.
pub struct Publication {
    pub publisher: Arc<dyn Publisher>,
    pub bytes: Box<dyn Fn() -> Option<Vec<u8>>>,
    pub put: Box<Put>,
    /// Names of the copies kept.
    pub backups: Box<dyn Fn() -> Vec<String>>,
}

type Put = dyn Fn(&[u8]);

pub fn now() -> Timestamp {
    Timestamp::from_second(1_750_000_000).unwrap()
}

pub fn key(kid: &str) -> PublicJwk {
    let json =
        format!(r#"{{"alg":"ES256","crv":"P-256","kid":"{kid}","kty":"EC","x":"AA","y":"AQ"}}"#);
    PublicJwk::from_json(json.as_bytes()).unwrap()
}

pub fn document(kids: &[&str]) -> Document {
    let mut document = Document::default();
    for kid in kids {
        document.add(&key(kid)).unwrap();
    }
    document
}

async fn a_document_does_not_grow_beyond_what_is_read(publication: &Publication) {
    let mut full = document(&["tb-1"]).to_bytes();
    let end = full.len() - 1;
    let note = format!(r#","note":"{}""#, "x".repeat(1024 * 1024 - full.len() - 30));
    full.splice(end..end, note.into_bytes());
    (publication.put)(&full);
    let added = update(&*publication.publisher, now(), |document, _| {
        document.add(&key("tb-2")).map(drop)
    })
    .await;
    assert!(added.unwrap_err().to_string().contains("larger than"));
    assert_eq!((publication.bytes)().unwrap(), full);
}

/// The whole list except the storm.
pub async fn check_contract(publication: &Publication) {
    missing_is_neither_empty_nor_unreadable(publication).await;
    a_write_wants_what_it_replaces(publication).await;
    what_cannot_be_read_is_left_alone(publication).await;
    foreign_content_survives(publication).await;
    a_removal_keeps_a_copy(publication).await;
    a_document_does_not_grow_beyond_what_is_read(publication).await;
}

async fn missing_is_neither_empty_nor_unreadable(publication: &Publication) {
    let publisher = &publication.publisher;
    assert_eq!(publisher.read().await.unwrap(), None);
    let etag = publisher.write(&Document::default(), None).await.unwrap();
    let read = publisher.read().await.unwrap().unwrap();
    assert!(read.document.is_empty());
    assert_eq!(read.etag, etag);
    assert_eq!((publication.bytes)().unwrap(), br#"{"keys":[]}"#);
}

async fn a_write_wants_what_it_replaces(publication: &Publication) {
    let publisher = &publication.publisher;
    let conflict = |result: Result<Etag, PublishError>| {
        assert!(
            matches!(result, Err(PublishError::Conflict { .. })),
            "{result:?}"
        );
    };
    let old = publisher.read().await.unwrap().unwrap().etag;
    conflict(publisher.write(&document(&["tb-1"]), None).await);
    let new = publisher
        .write(&document(&["tb-1"]), Some(&old))
        .await
        .unwrap();
    conflict(publisher.write(&document(&["tb-2"]), Some(&old)).await);
    let read = publisher.read().await.unwrap().unwrap();
    assert_eq!((read.etag, read.document), (new, document(&["tb-1"])));
}

async fn what_cannot_be_read_is_left_alone(publication: &Publication) {
    let half = br#"{"keys":[{"kid":"tb-1"#;
    type Expected = fn(&Unreadable) -> bool;
    let cases: [(&[u8], Expected); 4] = [
        (b"", |e| matches!(e, Unreadable::NotJson(_))),
        (half, |e| matches!(e, Unreadable::NotJson(_))),
        (br#"{"keys":"none"}"#, |e| matches!(e, Unreadable::Keys)),
        (&[b' '; 1024 * 1024 + 1], |e| {
            matches!(e, Unreadable::TooLarge)
        }),
    ];
    for (bytes, expected) in cases {
        (publication.put)(bytes);
        let error = publication.publisher.read().await.unwrap_err();
        assert!(
            matches!(&error, PublishError::Unreadable { reason, .. } if expected(reason)),
            "{error:?}"
        );
        let added = update(&*publication.publisher, now(), |document, _| {
            document.add(&key("tb-9")).map(drop)
        })
        .await;
        assert!(added.is_err());
        assert_eq!(
            (publication.bytes)().unwrap(),
            bytes,
            "nothing was overwritten"
        );
    }
}

async fn foreign_content_survives(publication: &Publication) {
    let foreign =
        br#"{"keys":[{"kid":"theirs","kty":"oct","odd":[1,{"b":null}]},{"kty":"RSA"}],"note":"x"}"#;
    (publication.put)(foreign);
    let updated = update(&*publication.publisher, now(), |document, _| {
        document.add(&key("tb-1")).map(drop)
    })
    .await
    .unwrap();
    assert!(updated.changed && updated.backup.is_none() && updated.lost_writes == 0);
    assert_eq!(
        String::from_utf8((publication.bytes)().unwrap()).unwrap(),
        concat!(
            r#"{"keys":[{"kid":"theirs","kty":"oct","odd":[1,{"b":null}]},{"kty":"RSA"},"#,
            r#"{"alg":"ES256","crv":"P-256","kid":"tb-1","kty":"EC","x":"AA","y":"AQ"}],"note":"x"}"#
        )
    );
    let again = update(&*publication.publisher, now(), |document, _| {
        document.add(&key("tb-1")).map(drop)
    })
    .await
    .unwrap();
    assert!(!again.changed, "what is there is not written again");
}

async fn a_removal_keeps_a_copy(publication: &Publication) {
    let before = (publication.backups)().len();
    let updated = update(&*publication.publisher, now(), |document, _| {
        document.remove("tb-1");
        Ok::<_, Infallible>(())
    })
    .await
    .unwrap();
    assert!(updated.backup.unwrap().is_ok());
    assert_eq!((publication.backups)().len(), before + 1);
    assert_eq!(
        (publication.bytes)().unwrap(),
        br#"{"keys":[{"kid":"theirs","kty":"oct","odd":[1,{"b":null}]},{"kty":"RSA"}],"note":"x"}"#
    );
}

/// `writers` at once, each making `changes` changes: adding keys, and removing half of its own
/// again. Nothing is lost.
pub async fn change_at_once(publisher: Arc<dyn Publisher>, writers: usize, changes: usize) {
    let tasks: Vec<_> = (0..writers)
        .map(|writer| {
            let publisher = publisher.clone();
            tokio::spawn(async move {
                for change in 0..changes {
                    // Three keys are added, then the second of them is removed.
                    let (kid, add) = match change % 4 {
                        3 => (format!("tb-{writer}-{}", change - 2), false),
                        _ => (format!("tb-{writer}-{change}"), true),
                    };
                    let key = key(&kid);
                    update(&*publisher, now(), |document, _| {
                        if add {
                            document.add(&key).unwrap();
                        } else {
                            document.remove(&kid);
                        }
                        Ok::<_, Infallible>(())
                    })
                    .await
                    .unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let document = publisher.read().await.unwrap().unwrap().document;
    let mut expected: Vec<String> = (0..writers)
        .flat_map(|writer| (0..changes).map(move |change| (writer, change)))
        .filter(|(_, change)| change % 4 != 3 && !(change % 4 == 1 && change + 2 < changes))
        .map(|(writer, change)| format!("tb-{writer}-{change}"))
        .collect();
    expected.sort();
    let mut found: Vec<String> = document.kids().map(str::to_owned).collect();
    found.sort();
    assert_eq!(found, expected);
}
