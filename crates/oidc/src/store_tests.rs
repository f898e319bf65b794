//! A store in a temporary directory, for tests of what stands on it.

use std::time::Duration;

use jiff::Timestamp;

use crate::store::{Client, ClientOrigin, Grant, GrantId, Sqlite, Store as _};

pub(crate) fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

pub(crate) fn after(seconds: u64) -> Timestamp {
    now().saturating_add(Duration::from_secs(seconds)).unwrap()
}

pub(crate) struct World {
    pub(crate) store: Sqlite,
    _dir: tempfile::TempDir,
}

impl World {
    /// With the clients `app` and `other`.
    pub(crate) async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Sqlite::open(&dir.path().join("oidc.sqlite")).unwrap();
        for id in ["app", "other"] {
            let client = Client {
                id: id.to_owned(),
                origin: ClientOrigin::Admin,
                owner: None,
                secrets: Vec::new(),
                registration_token: None,
                metadata: "{}".to_owned(),
                created_at: now(),
                updated_at: now(),
                expires_at: None,
                version: 1,
            };
            store.add_client(&client, None).await.unwrap();
        }
        Self { store, _dir: dir }
    }
}

pub(crate) fn new_grant(client_id: &str) -> Grant {
    Grant {
        id: GrantId::random().unwrap(),
        client_id: client_id.to_owned(),
        subject: Some("userid:1".to_owned()),
        session: None,
        created_at: now(),
        details: "{}".to_owned(),
    }
}
