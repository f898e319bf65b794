//! The administration of the provider over gRPC: clients, secrets, sessions and grants, who may,
//! and what is refused.

use tailbone::{
    admin::oidc_proto::{
        AddClientSecretRequest, ChangedClient, Client as Entry, CreateClientRequest,
        EndSessionsRequest, GetClientRequest, ListClientsRequest, ListGrantsRequest,
        ListSessionsRequest, RemoveClientRequest, RemoveClientSecretRequest, RevokeGrantsRequest,
        UpdateClientRequest, oidc_admin_client::OidcAdminClient,
    },
    config::Authorization,
    jwks::{FilePublisher, life::KeyLife},
    keys::KeyStore,
    part::ServerState,
};
use testkit::{http::dial, soon};
use tonic::{Code, Response, Status, transport::Channel};
use tracing_subscriber::layer::SubscriberExt as _;

use super::{
    logout::{SignedIn, log_in},
    *,
};
use crate::admin::{ADMIN_CAPABILITY, PORT, authorization::Lines, over, routes};

type Api = OidcAdminClient<Channel>;

/// The clients of every test.
const TESTS: [&str; 3] = ["asking", "public", "silent"];

/// The admin API beside the provider of a server.
pub(super) struct Administered {
    pub(super) server: OidcServer,
    _dir: TempDir,
    _admin: Server,
}

impl Administered {
    pub(super) async fn open() -> Self {
        Self::of(OidcServer::open().await, true).await
    }

    async fn of(server: OidcServer, running: bool) -> Self {
        let dir = TempDir::new().unwrap();
        let state = ServerState::default();
        state.membership.joined(server.world.faulty.clone());
        if running {
            state.provider.put(server.provider.clone());
        }
        let admin = server
            .world
            .serve(PORT, admin_routes(dir.path(), state))
            .await;
        Self {
            server,
            _dir: dir,
            _admin: admin,
        }
    }

    async fn caller(&self, name: &str, methods: &[&str]) -> Api {
        let mut identity = Identity::user(&format!("{name}@example.com"));
        if !methods.is_empty() {
            identity = identity.cap(ADMIN_CAPABILITY, json!({"methods": methods}));
        }
        let node = self.server.world.join(name, identity);
        OidcAdminClient::new(over(dial(&node, &format!("tailbone:{PORT}")).await).await)
    }

    async fn owner(&self) -> Api {
        self.caller("owner", &[]).await
    }
}

/// The routes of the admin API, whose keys nobody needs.
pub(super) fn admin_routes(dir: &std::path::Path, state: ServerState) -> axum::Router {
    let publisher = FilePublisher::new(dir.join("jwks.json"));
    let store = KeyStore::new(dir.join("keys"));
    let keys = KeyLife::new(store, Arc::new(publisher), policy(), "tb", KeySpec::Es256);
    routes(keys, Authorization::Grant, state)
}

async fn answered<T>(call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, Status> {
    soon("an answer", call).await.map(Response::into_inner)
}

/// The gRPC code and the stable code of a refusal.
fn refused<T: std::fmt::Debug>(answer: Result<T, Status>) -> (Code, String) {
    let status = answer.unwrap_err();
    let code = status.metadata().get("tb-error");
    let code = code.unwrap_or_else(|| panic!("{status:?}"));
    (status.code(), code.to_str().unwrap().to_owned())
}

async fn create(api: &mut Api, id: &str, metadata: Value) -> Result<ChangedClient, Status> {
    answered(api.create_client(CreateClientRequest {
        client_id: id.into(),
        metadata_json: metadata.to_string(),
        secret_expires_at: 0,
    }))
    .await
}

async fn update(api: &mut Api, id: &str, changes: Value) -> Result<ChangedClient, Status> {
    answered(api.update_client(UpdateClientRequest {
        client_id: id.into(),
        metadata_json: changes.to_string(),
        version: None,
    }))
    .await
}

async fn get(api: &mut Api, id: &str) -> Result<Entry, Status> {
    let client_id = id.into();
    answered(api.get_client(GetClientRequest { client_id })).await
}

async fn remove(api: &mut Api, id: &str) -> Result<(), Status> {
    let client_id = id.into();
    answered(api.remove_client(RemoveClientRequest { client_id }))
        .await
        .map(drop)
}

async fn found(api: &mut Api, search: &str, origin: &str) -> Vec<String> {
    let request = ListClientsRequest {
        search: search.into(),
        origin: origin.into(),
        ..ListClientsRequest::default()
    };
    let page = answered(api.list_clients(request)).await.unwrap();
    assert_eq!(page.next_page_token, "");
    page.clients.into_iter().map(|one| one.client_id).collect()
}

fn wiki() -> Value {
    json!({
        "client_name": "Wiki Größe 100%",
        "redirect_uris": ["https://Wiki.example.com/cb", "https://other.example.com/cb"],
        "login": "confirm",
    })
}

#[tokio::test]
async fn a_client_is_made_found_changed_and_removed() {
    let admin = Administered::open().await;
    let mut api = admin.owner().await;
    let made = create(&mut api, "", wiki()).await.unwrap();
    assert_eq!(made.client_secret.len(), 64);
    let client = made.client.unwrap();
    let id = client.client_id.as_str();
    assert_eq!(id.len(), 32);
    assert_eq!(
        (&*client.origin, &*client.login, &*client.auth_method),
        ("admin", "confirm", "client_secret_basic")
    );
    assert_eq!(get(&mut api, id).await.unwrap(), client);
    let shown: Value = serde_json::from_str(&client.metadata_json).unwrap();
    assert_eq!(shown["redirect_uris"], wiki()["redirect_uris"]);
    assert!(!format!("{client:?}").contains(&made.client_secret));

    // By name, by address and by id, whatever the case; `%` and `_` stand for themselves.
    for search in ["wiki GRÖSSE", "100%", "WIKI.EXAMPLE", &id[4..20], "größe"] {
        let wanted: &[&str] = if search == "wiki GRÖSSE" { &[] } else { &[id] };
        assert_eq!(found(&mut api, search, "").await, wanted, "{search}");
    }
    for search in ["wiki%size", "w_ki", "nothing"] {
        assert_eq!(found(&mut api, search, "").await, [""; 0], "{search}");
    }
    assert_eq!(found(&mut api, "wiki.example", "admin").await, [id]);
    assert_eq!(found(&mut api, "application", "admin").await, TESTS);
    assert_eq!(found(&mut api, "application", "file").await, [""; 0]);

    // Members that are not named stay, and null takes one away.
    let changes = json!({"client_name": "Notes", "login": null});
    let changed = update(&mut api, id, changes).await.unwrap();
    assert_eq!(changed.client_secret, "", "it keeps the one it has");
    let changed = changed.client.unwrap();
    assert_eq!((&*changed.name, &*changed.login), ("Notes", "silent"));
    assert_eq!(changed.redirect_uris, client.redirect_uris);
    assert_eq!(changed.version, client.version + 1);
    assert_eq!(get(&mut api, id).await.unwrap(), changed);
    assert_eq!(found(&mut api, "wiki größe", "").await, [""; 0]);
    assert_eq!(found(&mut api, "notes", "").await, [id]);

    // A public client has no secret; one that authenticates again gets one.
    let public = json!({"token_endpoint_auth_method": "none"});
    let public = update(&mut api, id, public).await.unwrap().client.unwrap();
    assert_eq!(public.secrets, []);
    let secret = json!({"token_endpoint_auth_method": "client_secret_post"});
    let secret = update(&mut api, id, secret).await.unwrap().client_secret;
    assert_eq!(secret.len(), 64);

    remove(&mut api, id).await.unwrap();
    assert_eq!(found(&mut api, "", "admin").await, TESTS);
    let gone = (Code::NotFound, "client_not_found".to_owned());
    assert_eq!(refused(get(&mut api, id).await), gone);
}

#[tokio::test]
async fn clients_come_in_pages() {
    let admin = Administered::open().await;
    let mut api = admin.owner().await;
    for id in ["b", "a", "c"] {
        create(&mut api, id, wiki()).await.unwrap();
    }
    let mut ids = Vec::new();
    let mut sizes = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = ListClientsRequest {
            page_size: 4,
            page_token,
            ..ListClientsRequest::default()
        };
        let page = answered(api.list_clients(request)).await.unwrap();
        sizes.push(page.clients.len());
        for client in page.clients {
            assert_eq!(client.metadata_json, "");
            assert_eq!(client.redirect_uris.len(), 1);
            ids.push(client.client_id);
        }
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(ids, ["a", "asking", "b", "c", "public", "silent"]);
    assert_eq!(sizes, [4, 2]);
}

#[tokio::test]
async fn seeing_and_changing_are_rights_of_their_own() {
    let admin = Administered::open().await;
    let no_grant = (Code::PermissionDenied, "no_grant".to_owned());
    for (name, methods, sees, changes) in [
        ("nobody", &[][..], false, false),
        (
            "keys",
            &["list", "generate", "remove", "rotate"],
            false,
            false,
        ),
        ("viewer", &["oidc-view"], true, false),
        ("editor", &["oidc-edit"], false, true),
        ("both", &["oidc-view", "oidc-edit"], true, true),
    ] {
        let mut api = admin.caller(name, methods).await;
        let client_id = || "none".to_owned();
        let missing = ListSessionsRequest {
            user: "userid:1".into(),
            ..ListSessionsRequest::default()
        };
        let grants = ListGrantsRequest {
            client_id: client_id(),
            ..ListGrantsRequest::default()
        };
        let reads = [
            answered(api.list_clients(ListClientsRequest::default()))
                .await
                .map(drop),
            get(&mut api, "silent").await.map(drop),
            answered(api.list_sessions(missing)).await.map(drop),
            answered(api.list_grants(grants)).await.map(drop),
        ];
        for read in reads {
            match read {
                Ok(()) => assert!(sees, "{name}"),
                Err(status) => {
                    assert!(!sees, "{name}: {status:?}");
                    assert!(status.message().contains("oidc-view"), "{status:?}");
                    assert_eq!(refused::<()>(Err(status)), no_grant);
                }
            }
        }
        let made = create(&mut api, name, wiki()).await.map(drop);
        let changed = update(&mut api, name, json!({})).await.map(drop);
        let request = AddClientSecretRequest {
            client_id: name.into(),
            expires_at: 0,
        };
        let added = answered(api.add_client_secret(request)).await;
        let secret_id = added.clone().ok().and_then(|one| one.secret);
        let request = RemoveClientSecretRequest {
            client_id: name.into(),
            secret_id: secret_id.unwrap_or_default().secret_id,
            force: false,
        };
        let taken = answered(api.remove_client_secret(request)).await.map(drop);
        let removed = remove(&mut api, name).await;
        let sessions = EndSessionsRequest {
            user: "userid:1".into(),
            ..EndSessionsRequest::default()
        };
        let ended = answered(api.end_sessions(sessions)).await.map(drop);
        let grants = RevokeGrantsRequest {
            client_id: client_id(),
            ..RevokeGrantsRequest::default()
        };
        let revoked = answered(api.revoke_grants(grants)).await.map(drop);
        let all = [
            made,
            changed,
            added.map(drop),
            taken,
            removed,
            ended,
            revoked,
        ];
        for change in all {
            match change {
                Ok(()) => assert!(changes, "{name}"),
                Err(status) => {
                    assert!(!changes, "{name}: {status:?}");
                    assert!(status.message().contains("oidc-edit"), "{status:?}");
                    assert_eq!(refused::<()>(Err(status)), no_grant);
                }
            }
        }
    }
    let mut owner = admin.owner().await;
    assert_eq!(found(&mut owner, "", "").await, TESTS);
}

#[tokio::test]
async fn what_cannot_be_is_refused_and_changes_nothing() {
    let admin = Administered::open().await;
    let mut api = admin.owner().await;
    create(&mut api, "wiki", wiki()).await.unwrap();
    let before = get(&mut api, "wiki").await.unwrap();
    let store = &admin.server.provider.store;

    let is = |code: Code, words: &str| (code, words.to_owned());
    let missing = is(Code::NotFound, "client_not_found");
    assert_eq!(refused(get(&mut api, "nobody").await), missing);
    assert_eq!(refused(get(&mut api, "a\0b").await), missing);
    let nobody = update(&mut api, "nobody", json!({})).await;
    assert_eq!(refused(nobody), missing);
    assert_eq!(refused(remove(&mut api, "nobody").await), missing);
    let secret = AddClientSecretRequest {
        client_id: "nobody".into(),
        expires_at: 0,
    };
    assert_eq!(
        refused(answered(api.add_client_secret(secret)).await),
        missing
    );

    let metadata = is(Code::InvalidArgument, "invalid_client_metadata");
    for (changes, code) in [
        (json!([]), &*metadata.1),
        (json!({"redirect_url": "https://a"}), &*metadata.1),
        (json!({"redirect_uris": null}), &*metadata.1),
        (json!({"redirect_uris": "https://a"}), &*metadata.1),
        (json!({"login": "loud"}), &*metadata.1),
        (json!({"grant_types": ["password"]}), &*metadata.1),
        (
            json!({"id_token_signed_response_alg": "RS512"}),
            &*metadata.1,
        ),
        (
            json!({"redirect_uris": ["javascript:alert(1)"]}),
            "invalid_redirect_uri",
        ),
        (
            json!({"redirect_uris": ["https://a/#f"]}),
            "invalid_redirect_uri",
        ),
    ] {
        let changed = update(&mut api, "wiki", changes.clone()).await;
        assert_eq!(
            refused(changed),
            is(Code::InvalidArgument, code),
            "{changes}"
        );
        let made = create(&mut api, "new-one", changes.clone()).await;
        assert_eq!(refused(made), is(Code::InvalidArgument, code), "{changes}");
    }
    for id in [
        "new",
        "a b",
        "a/b",
        "https://app.example.com/c",
        "ü",
        &"x".repeat(129),
    ] {
        let made = create(&mut api, id, wiki()).await;
        assert_eq!(
            refused(made),
            is(Code::InvalidArgument, "bad_client_id"),
            "{id}"
        );
    }
    let again = create(&mut api, "wiki", wiki()).await;
    assert_eq!(
        refused(again),
        is(Code::FailedPrecondition, "client_exists")
    );
    let old = UpdateClientRequest {
        client_id: "wiki".into(),
        metadata_json: json!({"client_name": "x"}).to_string(),
        version: Some(before.version + 1),
    };
    let old = answered(api.update_client(old)).await;
    assert_eq!(refused(old), is(Code::Aborted, "client_changed"));
    assert_eq!(get(&mut api, "wiki").await.unwrap(), before);

    // A file says what this one is.
    let mut client = store
        .client("silent", Timestamp::now())
        .await
        .unwrap()
        .unwrap();
    client.id = "filed".into();
    client.origin = ClientOrigin::File;
    client.owner = Some("filed.json".into());
    store.add_client(&client, None).await.unwrap();
    let of_file = is(Code::FailedPrecondition, "client_of_file");
    let changed = update(&mut api, "filed", json!({"client_name": "x"})).await;
    assert_eq!(refused(changed), of_file);
    assert_eq!(refused(remove(&mut api, "filed").await), of_file);

    let list = ListClientsRequest {
        origin: "heaven".into(),
        ..ListClientsRequest::default()
    };
    let list = answered(api.list_clients(list)).await;
    assert_eq!(refused(list), is(Code::InvalidArgument, "bad_origin"));
    let list = ListClientsRequest {
        search: "x".repeat(257),
        ..ListClientsRequest::default()
    };
    let list = answered(api.list_clients(list)).await;
    assert_eq!(refused(list), is(Code::InvalidArgument, "bad_search"));
}

#[tokio::test]
async fn without_the_provider_the_answer_says_so() {
    let admin = Administered::of(OidcServer::open().await, false).await;
    let mut api = admin.owner().await;
    let answer = get(&mut api, "silent").await;
    let code = "oidc_not_running".to_owned();
    assert_eq!(refused(answer), (Code::FailedPrecondition, code));
}

/// Whether a client authenticates with this secret.
async fn authenticates(connection: &mut Connection, client: &str, secret: &str) -> bool {
    use base64::engine::general_purpose::STANDARD;
    let basic = format!("Basic {}", STANDARD.encode(format!("{client}:{secret}")));
    let request = form("/introspect", &[("token", "none")]);
    let request = with(request, "authorization", &basic);
    connection.send(request).await.status() == 200
}

#[tokio::test]
async fn a_client_has_several_secrets_and_each_is_told_once() {
    let admin = Administered::open().await;
    let mut api = admin.owner().await;
    let first = create(&mut api, "wiki", wiki()).await.unwrap();
    let (first, first_id) = (
        first.client_secret,
        first.client.unwrap().secrets[0].secret_id.clone(),
    );
    let until = Timestamp::now().as_second() + 3600;
    let add = |expires_at| AddClientSecretRequest {
        client_id: "wiki".into(),
        expires_at,
    };
    let second = answered(api.add_client_secret(add(until))).await.unwrap();
    let shown = second.secret.unwrap();
    assert_eq!(shown.expires_at, until);
    let second = second.client_secret;
    let entry = get(&mut api, "wiki").await.unwrap();
    assert_eq!(entry.secrets.len(), 2);
    assert_eq!(entry.secrets[1], shown);
    assert!(!format!("{entry:?}").contains(&first) && !format!("{entry:?}").contains(&second));

    let mut outside = admin.server.outside().await;
    for secret in [&first, &second] {
        assert!(authenticates(&mut outside, "wiki", secret).await);
    }
    let take = |secret_id: &str, force| RemoveClientSecretRequest {
        client_id: "wiki".into(),
        secret_id: secret_id.into(),
        force,
    };
    let left = answered(api.remove_client_secret(take(&first_id, false))).await;
    assert_eq!(left.unwrap().secrets, std::slice::from_ref(&shown));
    assert!(!authenticates(&mut outside, "wiki", &first).await);
    assert!(authenticates(&mut outside, "wiki", &second).await);

    let again = answered(api.remove_client_secret(take(&first_id, false))).await;
    let missing = (Code::NotFound, "secret_not_found".to_owned());
    assert_eq!(refused(again), missing);
    let last = answered(api.remove_client_secret(take(&shown.secret_id, false))).await;
    let last_one = (Code::FailedPrecondition, "last_secret".to_owned());
    assert_eq!(refused(last), last_one);
    let last = answered(api.remove_client_secret(take(&shown.secret_id, true))).await;
    assert_eq!(last.unwrap().secrets, []);
    assert!(!authenticates(&mut outside, "wiki", &second).await);

    let past = answered(api.add_client_secret(add(1))).await;
    let bad_end = (Code::InvalidArgument, "bad_secret_end".to_owned());
    assert_eq!(refused(past), bad_end);
    for _ in 0..10 {
        answered(api.add_client_secret(add(0))).await.unwrap();
    }
    let many = answered(api.add_client_secret(add(0))).await;
    let too_many = (Code::FailedPrecondition, "too_many_secrets".to_owned());
    assert_eq!(refused(many), too_many);
    let public = json!({"token_endpoint_auth_method": "none"});
    update(&mut api, "wiki", public).await.unwrap();
    let none = answered(api.add_client_secret(add(0))).await;
    let no_secrets = (Code::FailedPrecondition, "no_secrets".to_owned());
    assert_eq!(refused(none), no_secrets);
}

#[tokio::test]
async fn sessions_are_found_and_ended_with_what_was_granted_in_them() {
    let mut alice = SignedIn::open().await;
    let sid = alice.server.verified(&alice.id_token).await["sid"].clone();
    let admin = Administered::of(alice.server, true).await;
    let mut api = admin.owner().await;
    let by = |user: &str, client_id: &str| ListSessionsRequest {
        user: user.into(),
        client_id: client_id.into(),
    };
    let all = answered(api.list_sessions(by("", ""))).await.unwrap();
    let session = all.sessions[0].clone();
    assert_eq!((all.sessions.len(), all.more), (1, false));
    assert_eq!(json!(session.session_id), sid);
    assert_eq!(session.login, "alice@example.com");
    let number = session.subject.strip_prefix("userid:").unwrap().to_owned();
    for (user, client) in [
        (session.subject.as_str(), ""),
        (&number, ""),
        ("alice@example.com", ""),
        ("", "leaving"),
    ] {
        let found = answered(api.list_sessions(by(user, client))).await;
        let only = std::slice::from_ref(&session);
        assert_eq!(found.unwrap().sessions, only, "{user}{client}");
    }
    for (user, client) in [("userid:999999", ""), ("", "silent")] {
        let found = answered(api.list_sessions(by(user, client))).await;
        assert_eq!(found.unwrap().sessions, [], "{user}{client}");
    }
    let unknown = answered(api.list_sessions(by("bob@example.com", ""))).await;
    let nobody = (Code::NotFound, "user_not_found".to_owned());
    assert_eq!(refused(unknown), nobody);
    let bad = |code: &str| (Code::InvalidArgument, code.to_owned());
    let two = answered(api.list_sessions(by("1", "leaving"))).await;
    assert_eq!(refused(two), bad("bad_selection"));

    let end = |session: &str, user: &str, client: &str| EndSessionsRequest {
        session_id: session.into(),
        user: user.into(),
        client_id: client.into(),
    };
    let none = answered(api.end_sessions(end("", "", ""))).await;
    assert_eq!(refused(none), bad("bad_id"));
    let ended = answered(api.end_sessions(end(&session.session_id, "", ""))).await;
    assert_eq!(ended.unwrap().ended, 1);
    let again = answered(api.end_sessions(end(&session.session_id, "", ""))).await;
    let missing = (Code::NotFound, "session_not_found".to_owned());
    assert_eq!(refused(again), missing);
    let connection = &mut alice.browser.connection;
    let answer = userinfo(connection, &alice.tokens["access_token"]).await;
    assert_eq!(answer.status(), 401, "the grants end with the session");

    for (user, client) in [("alice@example.com", ""), ("", "leaving")] {
        let tokens = log_in(&mut alice.browser, "leaving").await;
        let ended = answered(api.end_sessions(end("", user, client))).await;
        assert_eq!(ended.unwrap().ended, 1, "{user}{client}");
        let connection = &mut alice.browser.connection;
        let answer = userinfo(connection, &tokens["access_token"]).await;
        assert_eq!(answer.status(), 401);
    }
    let left = answered(api.list_sessions(by("", ""))).await.unwrap();
    assert_eq!(left.sessions, []);
}

#[tokio::test]
async fn grants_are_found_and_revoked_one_or_all_of_them() {
    let admin = Administered::open().await;
    let mut api = admin.owner().await;
    let mut alice = admin.server.alice().await;
    let mut bob = admin.server.person("bob", |identity| identity).await;
    let of_alice = tokens(&mut alice, &[]).await;
    let second = tokens(&mut alice, &[]).await;
    let of_bob = tokens(&mut bob, &[]).await;
    let by = |user: &str, client_id: &str| ListGrantsRequest {
        user: user.into(),
        client_id: client_id.into(),
        session_id: String::new(),
    };
    let all = answered(api.list_grants(by("", "silent"))).await.unwrap();
    assert_eq!((all.grants.len(), all.more), (3, false));
    let logins: Vec<_> = all.grants.iter().map(|one| one.login.as_str()).collect();
    assert_eq!(
        logins
            .iter()
            .filter(|&&one| one == "bob@example.com")
            .count(),
        1
    );
    let one = all
        .grants
        .iter()
        .find(|one| one.login == "alice@example.com");
    let subject = one.unwrap().subject.clone();
    let found = answered(api.list_grants(by(&subject, ""))).await.unwrap();
    assert_eq!(found.grants.len(), 2);
    let grant = found.grants.last().unwrap();
    assert_eq!(grant.grant_id.len(), 16);
    assert_eq!(grant.scopes, ["openid", "email", "profile"]);
    let refresh_token = of_alice["refresh_token"].as_str().unwrap();
    assert!(
        refresh_token.contains(&grant.grant_id) || {
            let other = second["refresh_token"].as_str().unwrap();
            other.contains(&grant.grant_id)
        }
    );

    let revoke = |grant: &str, user: &str, client: &str| RevokeGrantsRequest {
        grant_id: grant.into(),
        user: user.into(),
        client_id: client.into(),
    };
    let done = answered(api.revoke_grants(revoke(&grant.grant_id, "", ""))).await;
    assert_eq!(done.unwrap().revoked, 1);
    let again = answered(api.revoke_grants(revoke(&grant.grant_id, "", ""))).await;
    let missing = (Code::NotFound, "grant_not_found".to_owned());
    assert_eq!(refused(again), missing);
    let alive = [
        userinfo(&mut alice, &of_alice["access_token"])
            .await
            .status(),
        userinfo(&mut alice, &second["access_token"]).await.status(),
    ];
    assert!(alive == [200, 401] || alive == [401, 200], "{alive:?}");
    let done = answered(api.revoke_grants(revoke("", &subject, ""))).await;
    assert_eq!(done.unwrap().revoked, 1);
    assert_eq!(
        userinfo(&mut bob, &of_bob["access_token"]).await.status(),
        200
    );
    let done = answered(api.revoke_grants(revoke("", "", "silent"))).await;
    assert_eq!(done.unwrap().revoked, 1);
    assert_eq!(
        userinfo(&mut bob, &of_bob["access_token"]).await.status(),
        401
    );

    let bad = |code: &str| (Code::InvalidArgument, code.to_owned());
    let none = answered(api.list_grants(by("", ""))).await;
    assert_eq!(refused(none), bad("bad_selection"));
    let odd = answered(api.revoke_grants(revoke("0123", "", ""))).await;
    assert_eq!(refused(odd), bad("bad_id"));
    let two = answered(api.revoke_grants(revoke("", "1", "silent"))).await;
    assert_eq!(refused(two), bad("bad_selection"));
}

#[tokio::test]
async fn each_call_is_one_audit_line_without_a_secret() {
    // With only one subscriber in the process, tracing asks the thread that reaches a log line
    // first whether the line is wanted, and that may be another test's thread.
    let _second = tracing::Dispatch::new(tracing_subscriber::registry());
    let lines = Lines::default();
    let _guard =
        tracing::subscriber::set_default(tracing_subscriber::registry().with(lines.clone()));
    let admin = Administered::open().await;
    let mut api = admin.owner().await;
    let made = create(&mut api, "", wiki()).await.unwrap();
    let id = made.client.unwrap().client_id;
    update(&mut api, &id, json!({"login": "loud"}))
        .await
        .unwrap_err();
    let add = AddClientSecretRequest {
        client_id: id.clone(),
        expires_at: 0,
    };
    let added = answered(api.add_client_secret(add)).await.unwrap();
    let secret_id = added.secret.unwrap().secret_id;
    let end = EndSessionsRequest {
        user: "userid:7".into(),
        ..EndSessionsRequest::default()
    };
    answered(api.end_sessions(end)).await.unwrap();
    let mut viewer = admin.caller("viewer", &["oidc-view"]).await;
    remove(&mut viewer, &id).await.unwrap_err();

    let audit: Vec<_> = lines
        .of("audit")
        .into_iter()
        .filter(|line| line.contains("message=admin"))
        .collect();
    let wanted: [&[&str]; 5] = [
        &[
            "\"allowed\"",
            "\"CreateClient\"",
            "user:owner@",
            &id,
            "\"done\"",
        ],
        &["\"UpdateClient\"", &id, "\"invalid_client_metadata\""],
        &["\"AddClientSecret\"", &id, &secret_id, "\"done\""],
        &["\"EndSessions\"", "userid:7", "\"done\""],
        &[
            "\"refused\"",
            "\"RemoveClient\"",
            "\"no_grant\"",
            "\"oidc-edit\"",
        ],
    ];
    assert_eq!(audit.len(), wanted.len(), "{audit:#?}");
    for (line, parts) in audit.iter().zip(wanted) {
        for part in parts {
            assert!(line.contains(part), "{part} in {line}");
        }
    }
    for line in lines.all() {
        for secret in [&made.client_secret, &added.client_secret] {
            assert!(!line.contains(secret.as_str()), "{line}");
        }
    }
}

/// Exit code, standard output, standard error of a command on the local socket.
async fn tailbone(socket: &std::path::Path, arguments: &[&str]) -> (u8, String, String) {
    let mut all: Vec<std::ffi::OsString> = vec!["tailbone".into(), "oidc".into()];
    all.extend(arguments.iter().map(Into::into));
    all.push("--admin-socket".into());
    all.push(socket.into());
    let done = tokio::task::spawn_blocking(move || {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let mut console = tailbone::cli::console::Console {
            out: &mut out,
            err: &mut err,
            person: None,
            layout: tailbone::cli::layout::Layout::terminal(60),
        };
        let environment = tailbone::config::Environment::default();
        let code = tailbone::cli::execute(all, &environment, &mut console);
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (code, text(out), text(err))
    });
    soon("the command", done).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_line_administers_a_running_server() {
    let admin = Administered::open().await;
    let dir = TempDir::new().unwrap();
    let socket = dir.path().join("admin.sock");
    let state = ServerState::default();
    state.provider.put(admin.server.provider.clone());
    let _local = crate::admin::serve_socket(&socket, admin_routes(dir.path(), state));
    let run = async |arguments: &[&str]| tailbone(&socket, arguments).await;
    let done = async |arguments: &[&str]| {
        let mut all = arguments.to_vec();
        all.extend(["-o", "json"]);
        let (code, out, err) = tailbone(&socket, &all).await;
        assert_eq!(code, 0, "{arguments:?}: {err}");
        serde_json::from_str::<Value>(&out).unwrap()
    };

    let create = "client create --id wiki --name Wiki --redirect-uri https://wiki.example.com/cb";
    let create: Vec<_> = create.split(' ').collect();
    let made = done(&create).await;
    assert_eq!(
        (&made["client_id"], &made["login"]),
        (&json!("wiki"), &json!("silent"))
    );
    assert_eq!(made["client_secret"].as_str().unwrap().len(), 64);
    let changed = done(&["client", "update", "wiki", "--login", "confirm"]).await;
    assert_eq!(changed["login"], "confirm");
    assert!(changed.get("client_secret").is_none());
    let listed = done(&["client", "list", "--search", "wiki"]).await;
    assert_eq!(listed.as_array().unwrap().len(), 1);
    let (code, out, _) = run(&["client", "list"]).await;
    assert_eq!(code, 0);
    assert!(out.lines().all(|line| line.chars().count() <= 60), "{out}");
    let added = done(&[
        "client",
        "secret",
        "add",
        "wiki",
        "--secret-lifetime",
        "24h",
    ])
    .await;
    assert!(added["expires_at"].as_i64().unwrap() > added["created_at"].as_i64().unwrap());
    let id = added["secret_id"].as_str().unwrap();
    let shown = done(&["client", "show", "wiki"]).await;
    assert_eq!(shown["secrets"][1]["secret_id"], id);
    assert_eq!(shown["metadata"]["client_name"], "Wiki");
    let left = done(&["client", "secret", "remove", "wiki", id, "--yes"]).await;
    assert_eq!(left["secrets"].as_array().unwrap().len(), 1);

    // Nobody is asked here, so nothing is removed without a yes.
    let (code, _, err) = run(&["client", "remove", "wiki"]).await;
    assert_eq!(code, 2);
    assert!(err.contains("--yes"), "{err}");
    let (code, out, err) = run(&["client", "remove", "wiki", "--yes"]).await;
    assert_eq!((code, out.trim()), (0, "✓ Removed client wiki"), "{err}");
    let (code, out, err) = run(&["client", "show", "wiki"]).await;
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(err.contains("there is no such client"), "{err}");
    let (code, _, err) = run(&["client", "update", "wiki"]).await;
    assert_eq!(code, 2);
    assert!(err.contains("nothing to change"), "{err}");

    let (code, out, err) = run(&["session", "list"]).await;
    assert_eq!(
        (code, out.as_str(), err.as_str()),
        (0, "", "No sessions found\n")
    );
    assert_eq!(done(&["session", "list"]).await, json!([]));
    tokens(&mut admin.server.alice().await, &[]).await;
    let grants = done(&["grant", "list", "--client", "silent"]).await;
    assert_eq!(grants[0]["login"], "alice@example.com");
    let id = grants[0]["grant_id"].as_str().unwrap();
    let (code, out, err) = run(&["grant", "revoke", id, "-y"]).await;
    assert_eq!((code, out.trim()), (0, "✓ Revoked 1 grant"), "{err}");
    let (code, out, err) = run(&["grant", "revoke", "--client", "silent", "-y"]).await;
    assert_eq!((code, out.trim()), (0, "✓ Revoked 0 grants"), "{err}");
    let (code, _, err) = run(&["session", "end"]).await;
    assert_eq!(code, 2, "{err}");
}
