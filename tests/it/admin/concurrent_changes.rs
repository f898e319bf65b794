//! Two admins at the same time: on one server, and on two servers with one document.

use std::{collections::BTreeSet, sync::Arc};

use futures_util::future::join_all;
use tailbone::{
    admin::proto::{RemoveKeyRequest, RotateKeysRequest},
    config::Authorization,
    jwks::{FilePublisher, Publisher},
};
use tempfile::TempDir;
use testkit::{s3::S3Server, soon};

use super::{AdminServer, Api, generate, list};

/// One admin's work: creates keys and removes every second one. Returns those that are left.
async fn work(mut api: Api, changes: usize) -> Vec<String> {
    let mut left = Vec::new();
    for number in 0..changes {
        let kid = generate(&mut api).await.key_id;
        if number % 2 == 0 {
            left.push(kid);
            continue;
        }
        let request = RemoveKeyRequest {
            key_id: kid,
            force: Some(false),
        };
        soon("a removal", api.remove_key(request)).await.unwrap();
    }
    left
}

async fn nothing_is_lost(servers: &[&AdminServer]) {
    let mut wanted: BTreeSet<String> = BTreeSet::new();
    let mut admins = Vec::new();
    for server in servers {
        wanted.extend(
            list(&mut server.local().await)
                .await
                .into_iter()
                .map(|key| key.key_id),
        );
        admins.push(work(server.local().await, 6));
        admins.push(work(server.owner().await, 6));
    }
    wanted.extend(join_all(admins).await.into_iter().flatten());
    for server in servers {
        let keys = list(&mut server.local().await).await;
        assert!(
            keys.iter()
                .filter(|key| !key.state.is_empty())
                .all(|key| key.published)
        );
        let found: BTreeSet<_> = keys.into_iter().map(|key| key.key_id).collect();
        assert_eq!(found, wanted);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_admins_on_one_server_lose_nothing() {
    nothing_is_lost(&[&AdminServer::new().await]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_admins_on_two_servers_with_one_file_lose_nothing() {
    let shared = TempDir::new().unwrap();
    let path = shared.path().join("jwks.json");
    let start = || async {
        let publisher = Arc::new(FilePublisher::new(&path));
        AdminServer::at(TempDir::new().unwrap(), Authorization::Grant, publisher).await
    };
    nothing_is_lost(&[&start().await, &start().await]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_admins_on_two_servers_with_one_bucket_lose_nothing() {
    let server = S3Server::start();
    let start = || async {
        let publisher: Arc<dyn Publisher> = Arc::new(server.publisher());
        AdminServer::at(TempDir::new().unwrap(), Authorization::Grant, publisher).await
    };
    nothing_is_lost(&[&start().await, &start().await]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rotations_at_once_make_one_successor() {
    let server = AdminServer::new().await;
    let admins: Vec<_> = join_all((0..6).map(|_| server.local())).await;
    let rotate = async |mut api: Api| {
        let answer = api.rotate_keys(RotateKeysRequest::default()).await;
        answer.unwrap().into_inner().key.unwrap().key_id
    };
    let made: BTreeSet<_> = soon("rotations", join_all(admins.into_iter().map(rotate)))
        .await
        .into_iter()
        .collect();
    assert_eq!(made.len(), 1, "{made:?}");
    assert_eq!(server.published().len(), 2);
}
