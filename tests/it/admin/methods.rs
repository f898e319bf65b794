//! The effects and answers of the methods.

use std::{sync::Arc, time::Duration};

use http_body_util::BodyExt as _;
use jiff::Timestamp;
use prost::Message as _;
use tailbone::{
    admin::{
        AdminApi,
        proto::{
            GenerateNewKeysRequest, Key, RemoveKeyRequest, RotateKeysRequest, StatusRequest,
            admin_service_client::AdminServiceClient,
        },
        router,
    },
    config::{Authorization, KeySpec},
    http::layers,
    jwks::{FilePublisher, KeySet, life::KeyLife},
    keys::{Algorithm, KeyStore},
    part::ServerState,
    tailnet::fake::Identity,
};
use testkit::{eventually, soon};
use tonic::{Code, Status};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

use super::{AdminServer, Api, CACHE_TIME, SKEW, generate, list, policy};

async fn remove(api: &mut Api, kid: &str, force: Option<bool>) -> Result<Vec<String>, Status> {
    let request = RemoveKeyRequest {
        key_id: kid.into(),
        force,
    };
    let answer = soon("a removal", api.remove_key(request)).await?;
    let keys = answer.into_inner().keys;
    Ok(keys.into_iter().map(|key| key.key_id).collect())
}

#[tokio::test]
async fn a_key_is_made_listed_and_removed() {
    let server = AdminServer::new().await;
    let mut api = server.owner().await;
    let first = list(&mut api).await.remove(0);
    assert_eq!((&*first.state, first.published), ("active", true));
    assert!(
        first.signs_since >= first.created_at && first.created_at > 0,
        "{first:?}"
    );

    let made = generate(&mut api).await;
    assert_eq!(
        (&*made.state, made.published, made.signs_since),
        ("published", true, 0)
    );
    let listed = list(&mut api).await;
    let ids: Vec<_> = listed.iter().map(|key| &key.key_id).collect();
    assert_eq!(ids, [&first.key_id, &made.key_id], "oldest first");
    assert_eq!(listed[1], made);

    assert_eq!(
        remove(&mut api, &made.key_id, None).await.unwrap(),
        std::slice::from_ref(&first.key_id)
    );
    assert_eq!(server.published(), [first.key_id]);
}

#[tokio::test]
async fn d09_size_and_algorithm_are_what_was_asked_for() {
    let server = AdminServer::new().await;
    let mut api = server.local().await;
    for (size, algorithm, wanted) in [
        (3072, "RS256", ("RS256", 3072)),
        (0, "EdDSA", ("EdDSA", 0)),
        (0, "", ("ES256", 0)),
    ] {
        let request = GenerateNewKeysRequest {
            size,
            algorithm: algorithm.into(),
            ..GenerateNewKeysRequest::default()
        };
        let key = soon("a key", api.generate_new_keys(request)).await;
        let key = key.unwrap().into_inner().key.unwrap();
        assert_eq!((&*key.algorithm, key.size), wanted);
    }
    let before = server.published();
    for (size, algorithm) in [(1024, "RS256"), (-1, ""), (2048, "ES256"), (0, "HS256")] {
        let request = GenerateNewKeysRequest {
            size,
            algorithm: algorithm.into(),
            ..GenerateNewKeysRequest::default()
        };
        let refused = api.generate_new_keys(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{size} {algorithm}");
    }
    assert_eq!(server.published(), before);
}

#[tokio::test]
async fn keys_of_a_component_are_listed_rotated_and_removed_beside_the_issuers() {
    let server = AdminServer::new().await;
    let folder = tempfile::TempDir::new().unwrap();
    let set = KeySet::new(
        "workload",
        KeyStore::new(folder.path().join("keys")),
        Arc::new(FilePublisher::new(folder.path().join("jwks.json"))),
        &policy(),
        "wl",
        KeySpec::Es384,
        &[KeySpec::Rs256 { bits: 3072 }],
    )
    .in_told_time();
    let before = Timestamp::now() - Duration::from_secs(10);
    for (_, report) in set.start(before).await.unwrap() {
        assert!(!report.failed(), "{report:?}");
    }
    let admin = AdminApi {
        keys: server.keys.clone(),
        sets: [set.clone()].into(),
        spec: KeySpec::Es256,
        mode: Authorization::Grant,
        state: ServerState::default(),
        changes: Arc::default(),
    };
    let path = folder.path().join("admin.sock");
    let routes = layers::wrap_grpc(router(admin).unwrap(), "admin");
    let _served = super::serve_socket(&path, routes);
    let stream = tokio::net::UnixStream::connect(&path).await.unwrap();
    let mut api = AdminServiceClient::new(super::over(stream).await);

    let sets = |keys: &[Key]| {
        let mut sets: Vec<_> = keys
            .iter()
            .map(|key| format!("{} {} {}", key.set, key.algorithm, key.size))
            .collect();
        sets.sort();
        sets
    };
    let listed = list(&mut api).await;
    assert_eq!(
        sets(&listed),
        [" ES256 0", "workload ES384 0", "workload RS256 3072"]
    );
    // The size is the set's; an algorithm that the set does not have is refused.
    let rotate = |algorithm: &str, set: &str| RotateKeysRequest {
        algorithm: algorithm.into(),
        set: set.into(),
        ..RotateKeysRequest::default()
    };
    let made = soon("a key", api.rotate_keys(rotate("RS256", "workload"))).await;
    let made = made.unwrap().into_inner().key.unwrap();
    assert_eq!((&*made.set, made.size), ("workload", 3072));
    for (algorithm, set, words) in [
        ("EdDSA", "workload", "no keys for EdDSA"),
        ("ES384", "oidc", "there is workload"),
    ] {
        let refused = soon("an answer", api.rotate_keys(rotate(algorithm, set))).await;
        let refused = refused.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
        assert!(refused.message().contains(words), "{refused:?}");
    }
    let status = soon("a status", api.status(StatusRequest {})).await;
    let status = status.unwrap().into_inner();
    assert_eq!(status.keys.len(), 4);
    assert_eq!(status.key_sets[0].name, "workload");
    assert!(status.key_sets[0].jwks_read_at > 0);

    // What signs is not removed unasked; what does not is removed from its set's document.
    let signing = set.signer(Algorithm::Es384).unwrap().kid().to_string();
    let refused = remove(&mut api, &signing, Some(false)).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    let left = remove(&mut api, &made.key_id, Some(false)).await.unwrap();
    assert_eq!(left.len(), 2);
    assert!(left.contains(&signing));
    let left = remove(&mut api, &signing, Some(true)).await.unwrap();
    assert_eq!(left.len(), 1);
    assert!(set.signer(Algorithm::Es384).is_err());
    assert_eq!(server.published().len(), 1, "the issuer's key stays");
}

#[tokio::test]
async fn d18_the_signing_key_goes_only_where_that_is_known_and_wanted() {
    let server = AdminServer::new().await;
    let mut api = server.owner().await;
    let signing = server.published().remove(0);
    let refused = remove(&mut api, &signing, Some(false)).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    for words in [
        "is the key this server signs with, and no other is ready",
        "tokens signed with",
        "Nothing was changed",
    ] {
        assert!(refused.message().contains(words), "{words}: {refused:?}");
    }
    assert_eq!(server.published(), std::slice::from_ref(&signing));
    // A key that does not sign is removed without any question.
    let other = generate(&mut api).await.key_id;
    remove(&mut api, &other, Some(false)).await.unwrap();
    assert_eq!(
        remove(&mut api, &signing, Some(true)).await.unwrap(),
        [""; 0]
    );
}

#[tokio::test]
async fn an_old_client_removes_the_signing_key_without_force() {
    let server = AdminServer::new().await;
    let signing = server.published().remove(0);
    assert_eq!(
        remove(&mut server.owner().await, &signing, None)
            .await
            .unwrap(),
        [""; 0]
    );
}

#[tokio::test]
async fn d18_other_servers_stop_signing_with_a_removed_key_at_their_next_look() {
    let server = AdminServer::new().await;
    let elsewhere = tempfile::tempdir().unwrap();
    let publisher = FilePublisher::new(server.keys_dir().join("jwks.json"));
    let other = KeyLife::new(
        KeyStore::new(elsewhere.path()),
        std::sync::Arc::new(publisher),
        policy(),
        "tb",
        tailbone::config::KeySpec::Es256,
    )
    .in_told_time();
    let now = Timestamp::now();
    other.start(now).await.unwrap();
    // The second server's key is in the document beside the first one's. It is pending, since
    // verifiers know another key already.
    let later = now + CACHE_TIME + SKEW;
    other.sync(later).await.unwrap();
    let theirs = other.current_keys().signer().unwrap().kid().to_string();
    assert!(server.published().contains(&theirs));

    let remaining = remove(&mut server.owner().await, &theirs, Some(false)).await;
    assert_eq!(remaining.unwrap().len(), 1);
    other.sync(later + Duration::from_secs(31)).await.unwrap();
    assert!(
        other.current_keys().signer().is_err(),
        "signs with a removed key"
    );
}

#[tokio::test]
async fn d26_a_client_can_tell_what_went_wrong() {
    let server = AdminServer::new().await;
    let mut api = server.owner().await;
    let unknown = remove(&mut api, "tb-1", None).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
    assert_eq!(
        unknown.message(),
        "failed to remove key from JWKS: key tb-1 not found"
    );
    for bad in [String::new(), "x".repeat(513)] {
        let refused = remove(&mut api, &bad, None).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
    }
    for path in ["../../etc/passwd", "/", ".", "a\0b"] {
        let refused = remove(&mut api, path, None).await.unwrap_err();
        assert_eq!(refused.code(), Code::NotFound, "{path:?}");
    }
    // If the document is no JWKS, nothing is overwritten and every method reports it.
    let document = server.keys_dir().join("jwks.json");
    std::fs::write(&document, "<html>").unwrap();
    let kid = server
        .keys
        .current_keys()
        .signer()
        .unwrap()
        .kid()
        .to_string();
    let generated = api
        .generate_new_keys(GenerateNewKeysRequest::default())
        .await
        .unwrap_err();
    let listed = api
        .list_keys(tailbone::admin::proto::ListKeysRequest {})
        .await
        .unwrap_err();
    let removed = remove(&mut api, &kid, None).await.unwrap_err();
    for (status, words) in [
        (generated, "failed to upload key: "),
        (listed, "failed to download JWKS: "),
        (removed, "failed to upload updated JWKS: "),
    ] {
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert!(status.message().starts_with(words), "{status:?}");
    }
    assert_eq!(std::fs::read(&document).unwrap(), b"<html>");
}

#[tokio::test]
async fn rotating_makes_one_successor_and_says_when_it_signs() {
    let server = AdminServer::new().await;
    let mut api = server.owner().await;
    let before = Timestamp::now().as_second();
    let request = || RotateKeysRequest::default();
    let first = soon("rotate", api.rotate_keys(request())).await;
    let first = first.unwrap().into_inner();
    let key = first.key.clone().unwrap();
    assert_eq!(key.state, "published");
    let wait = i64::try_from((CACHE_TIME + SKEW).as_secs()).unwrap();
    let from = first.signs_from - wait;
    assert!((before..before + 20).contains(&from), "{first:?}");
    let again = api.rotate_keys(request()).await.unwrap().into_inner();
    assert!(!first.existed && again.existed);
    assert_eq!(again.key, first.key, "the one that waits is the successor");
    assert_eq!(again.signs_from, first.signs_from);
    assert_eq!(server.published().len(), 2);
}

#[tokio::test]
async fn status_tells_node_key_and_trouble() {
    let server = AdminServer::new().await;
    let mut api = server.local().await;
    let status = api.status(StatusRequest {}).await.unwrap().into_inner();
    assert_eq!(status.node_state, "Running");
    assert_eq!(status.node_name, "tailbone.fake-tailnet.ts.net");
    assert_eq!(status.addresses, [server.world.node.ip().to_string()]);
    assert_eq!(vec![status.signing_key], server.published());
    assert!(status.jwks_read_at > 0);
    assert_eq!((&*status.jwks_trouble, &*status.signing_trouble), ("", ""));

    std::fs::write(server.keys_dir().join("jwks.json"), "[").unwrap();
    server.keys.sync(Timestamp::now()).await.unwrap();
    let status = api.status(StatusRequest {}).await.unwrap().into_inner();
    assert!(status.jwks_trouble.contains("cannot be used"), "{status:?}");
    assert!(!status.signing_key.is_empty(), "signing goes on");
}

#[tokio::test]
async fn d23_a_server_tells_the_version_and_commit_it_was_built_from() {
    let server = AdminServer::new().await;
    let status = server.local().await.status(StatusRequest {}).await;
    let status = status.unwrap().into_inner();
    assert_eq!(status.version, env!("CARGO_PKG_VERSION"));
    if std::path::Path::new(".git").exists() {
        let hex = status.commit.chars().all(|c| c.is_ascii_hexdigit());
        assert!(hex && status.commit.len() >= 7, "{:?}", status.commit);
    }
}

#[tokio::test]
async fn a_change_is_finished_even_if_its_client_disconnects() {
    let server = AdminServer::new().await;
    // The directory is locked, so the call waits.
    let lock = KeyStore::new(server.keys_dir()).lock().unwrap();
    let mut api = server.local().await;
    let call = tokio::time::timeout(
        Duration::from_millis(300),
        api.generate_new_keys(GenerateNewKeysRequest::default()),
    );
    assert!(call.await.is_err(), "it did not wait");
    drop(api);
    drop(lock);
    eventually("the key is published", async || {
        let published = server.published();
        if published.len() == 2 {
            Ok(())
        } else {
            Err(format!("{published:?}"))
        }
    })
    .await;
}

#[tokio::test]
async fn health_and_reflection_are_for_everybody() {
    let server = AdminServer::new().await;
    let bob = server
        .world
        .tailnet
        .join("laptop", Identity::user("bob@example.com"));
    let channel = server.channel(&bob).await;
    for service in ["", "proto.AdminService"] {
        let request = HealthCheckRequest {
            service: service.into(),
        };
        let answer = HealthClient::new(channel.clone()).check(request).await;
        assert_eq!(answer.unwrap().into_inner().status, 1, "{service:?}");
    }
    let ask = |question| ServerReflectionRequest {
        host: String::new(),
        message_request: Some(question),
    };
    let questions = tokio_stream::iter([
        ask(MessageRequest::ListServices(String::new())),
        ask(MessageRequest::FileContainingSymbol("proto.Key".into())),
    ]);
    let answers = ServerReflectionClient::new(channel)
        .server_reflection_info(questions)
        .await
        .unwrap()
        .into_inner();
    let answers: Vec<_> = soon("the schema", tokio_stream::StreamExt::collect(answers)).await;
    let [Ok(services), Ok(file)] = answers.as_slice() else {
        panic!("{answers:?}")
    };
    let Some(MessageResponse::ListServicesResponse(services)) = &services.message_response else {
        panic!("{services:?}")
    };
    let names: Vec<_> = services.service.iter().map(|s| s.name.as_str()).collect();
    assert!(
        names.contains(&"proto.AdminService") && names.contains(&"grpc.health.v1.Health"),
        "{names:?}"
    );
    let Some(MessageResponse::FileDescriptorResponse(file)) = &file.message_response else {
        panic!("{file:?}")
    };
    let text = String::from_utf8_lossy(&file.file_descriptor_proto[0]);
    assert!(text.contains("signs_since"), "{text}");
}

#[tokio::test]
async fn unknown_methods_and_broken_messages_have_their_own_codes() {
    let server = AdminServer::new().await;
    let stream = tokio::net::UnixStream::connect(server.socket())
        .await
        .unwrap();
    let (mut sender, connection) = hyper::client::conn::http2::handshake(
        hyper_util::rt::TokioExecutor::new(),
        hyper_util::rt::TokioIo::new(stream),
    )
    .await
    .unwrap();
    tokio::spawn(connection);
    let mut send = async |path: &str, body: Vec<u8>| {
        let request = ::http::Request::post(format!("http://tailbone{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(http_body_util::Full::new(bytes::Bytes::from(body)))
            .unwrap();
        let answer = soon("an answer", sender.send_request(request))
            .await
            .unwrap();
        let (head, body) = answer.into_parts();
        let trailers = soon("the end", body.collect()).await.unwrap();
        let code = |headers: Option<&::http::HeaderMap>| {
            let code = headers?.get("grpc-status")?.to_str().ok()?;
            code.parse::<i32>().ok()
        };
        code(Some(&head.headers))
            .or_else(|| code(trailers.trailers()))
            .map(Code::from)
    };
    let message = |bytes: &[u8]| {
        let mut framed = vec![0];
        framed.extend(u32::try_from(bytes.len()).unwrap().to_be_bytes());
        framed.extend(bytes);
        framed
    };
    for path in [
        "/proto.AdminService/FormatDisk",
        "/proto.AdminService/ListKeys/",
        "/x.Y/Z",
        "/",
    ] {
        assert_eq!(
            send(path, message(b"")).await,
            Some(Code::Unimplemented),
            "{path}"
        );
    }
    assert_eq!(
        send("/proto.AdminService/ListKeys", message(b"")).await,
        Some(Code::Ok)
    );
    let long = RemoveKeyRequest {
        key_id: "x".repeat(20_000),
        force: None,
    };
    let code = send(
        "/proto.AdminService/RemoveKey",
        message(&long.encode_to_vec()),
    )
    .await;
    assert_eq!(code, Some(Code::OutOfRange));
    let code = send("/proto.AdminService/RemoveKey", message(&[0; 100_000])).await;
    assert_eq!(code, Some(Code::ResourceExhausted));
    let code = send("/proto.AdminService/RemoveKey", message(b"\xff\xff\xff")).await;
    assert_eq!(code, Some(Code::Internal), "not a message");
}

#[test]
fn messages_on_the_wire_are_those_of_the_go_program() {
    // Encoded by hand from the contract: key_id = 1, algorithm = 2, created_at = 4, and no field 3.
    let old: &[u8] = b"\x0a\x0dtb-1740172800\x12\x05RS256\x20\x80\xdc\xe3\xbd\x06";
    let key = Key {
        key_id: "tb-1740172800".into(),
        algorithm: "RS256".into(),
        created_at: 1_740_172_800,
        ..Key::default()
    };
    assert_eq!(key.encode_to_vec(), old);
    assert_eq!(Key::decode(old).unwrap(), key);
    let full = Key {
        state: "active".into(),
        signs_since: 1,
        published: true,
        size: 2048,
        ..key
    };
    let more = full.encode_to_vec();
    assert_eq!(
        &more[..old.len()],
        old,
        "old clients read the front and skip the rest"
    );
    assert_eq!(
        &more[old.len()..],
        b"\x2a\x06active\x30\x01\x38\x01\x40\x80\x10"
    );

    let remove = RemoveKeyRequest::decode(&b"\x0a\x04tb-1"[..]).unwrap();
    assert_eq!((&*remove.key_id, remove.force), ("tb-1", None));
    assert_eq!(GenerateNewKeysRequest::default().encode_to_vec(), b"");
}
