//! Access over the wire. The table of all combinations is tested beside `authorize` itself.

use std::sync::{Arc, Mutex};

use serde_json::json;
use tailbone::{
    admin::proto::{
        GenerateNewKeysRequest, ListKeysRequest, RemoveKeyRequest, RotateKeysRequest,
        StatusRequest, admin_service_client::AdminServiceClient,
    },
    config::Authorization,
    tailnet::{BackendState, fake::Identity},
};
use testkit::soon;
use tonic::{Code, Status};
use tracing_subscriber::layer::SubscriberExt as _;

use super::{ADMIN_CAPABILITY, AdminServer, Api, list, over};

const METHODS: [&str; 5] = ["generate", "list", "remove", "rotate", "status"];

/// Calls a method with a request that would change something if it were allowed.
async fn call(api: &mut Api, method: &str, kid: &str) -> Result<(), Status> {
    match method {
        "generate" => api
            .generate_new_keys(GenerateNewKeysRequest::default())
            .await
            .map(drop),
        "list" => api.list_keys(ListKeysRequest {}).await.map(drop),
        "remove" => {
            let request = RemoveKeyRequest {
                key_id: kid.into(),
                force: None,
            };
            api.remove_key(request).await.map(drop)
        }
        "rotate" => api
            .rotate_keys(RotateKeysRequest::default())
            .await
            .map(drop),
        _ => api.status(StatusRequest {}).await.map(drop),
    }
}

/// The status of each method for one caller, in the order of [`METHODS`].
async fn codes(server: &AdminServer, api: &mut Api) -> Vec<Code> {
    let mut codes = Vec::new();
    for method in METHODS {
        let kid = server.published().last().cloned().unwrap_or_default();
        let answer = soon(method, call(api, method, &kid)).await;
        codes.push(answer.err().map_or(Code::Ok, |status| status.code()));
    }
    codes
}

fn admin(methods: &[&str]) -> serde_json::Value {
    json!({ "methods": methods })
}

#[tokio::test]
async fn d05_without_a_right_every_method_is_refused_and_nothing_changes() {
    let server = AdminServer::new().await;
    let before = server.published();
    let callers = [
        Identity::user("bob@example.com"),
        Identity::tagged(["tag:ci"]),
        Identity::user("bob@example.com").cap("example.com/cap/other", admin(&["*"])),
        Identity::user("bob@example.com").cap(ADMIN_CAPABILITY, json!({"methods": "*"})),
    ];
    for (number, identity) in callers.into_iter().enumerate() {
        let mut api = server.caller(&format!("n{number}"), identity).await;
        assert_eq!(
            codes(&server, &mut api).await,
            [Code::PermissionDenied; 5],
            "{number}"
        );
    }
    assert_eq!(server.published(), before);
}

#[tokio::test]
async fn d05_a_refusal_names_the_grant_and_carries_code_and_id() {
    let server = AdminServer::new().await;
    let mut bob = server
        .caller("laptop", Identity::user("bob@example.com"))
        .await;
    let status = call(&mut bob, "remove", "tb-1").await.unwrap_err();
    assert_eq!(
        status.message(),
        "user:bob@example.com lacks the grant \"tailbone.dev/cap/admin\" with {\"methods\":[\"remove\"]} \
         towards this server, and is not the owner of the server's node"
    );
    assert_eq!(status.metadata().get("tb-error").unwrap(), "no_grant");
    assert_eq!(status.metadata().get("x-request-id").unwrap().len(), 32);
}

#[tokio::test]
async fn owner_socket_and_grants_give_access_to_their_methods() {
    use Code::{Ok, PermissionDenied as No};
    let server = AdminServer::new().await;
    assert_eq!(codes(&server, &mut server.owner().await).await, [Ok; 5]);
    assert_eq!(codes(&server, &mut server.local().await).await, [Ok; 5]);
    // In the order of METHODS; Status requires the right `list`.
    for (grant, wanted) in [
        ("generate", [Ok, No, No, No, No]),
        ("list", [No, Ok, No, No, Ok]),
        ("remove", [No, No, Ok, No, No]),
        ("rotate", [No, No, No, Ok, No]),
        ("*", [Ok; 5]),
    ] {
        for (number, identity) in [
            Identity::user("bob@example.com"),
            Identity::tagged(["tag:ci"]),
        ]
        .into_iter()
        .enumerate()
        {
            let host = format!("{}{number}", if grant == "*" { "all" } else { grant });
            let mut api = server
                .caller(&host, identity.cap(ADMIN_CAPABILITY, admin(&[grant])))
                .await;
            assert_eq!(codes(&server, &mut api).await, wanted, "{grant} {number}");
        }
    }
}

#[tokio::test]
async fn a_grant_counts_from_the_moment_it_is_given_and_no_longer() {
    let server = AdminServer::new().await;
    let mut bob = server
        .caller("laptop", Identity::user("bob@example.com"))
        .await;
    let denied = |status: Result<(), Status>| status.unwrap_err().code() == Code::PermissionDenied;
    assert!(denied(call(&mut bob, "list", "").await));
    server.world.tailnet.update("laptop", |identity| {
        identity
            .caps
            .insert(ADMIN_CAPABILITY.into(), vec![admin(&["list"])]);
    });
    call(&mut bob, "list", "").await.unwrap();
    server
        .world
        .tailnet
        .update("laptop", |identity| identity.caps.clear());
    assert!(denied(call(&mut bob, "list", "").await));
}

#[tokio::test]
async fn the_owner_is_a_user_and_not_a_login() {
    let server = AdminServer::new().await;
    let mut owner = server.owner().await;
    server.world.tailnet.update("desk", |identity| {
        identity.login = "owner.married@example.com".into();
    });
    call(&mut owner, "list", "").await.unwrap();
    // The login has become free, and a new user gets it.
    let mut namesake = Identity::user("owner@example.com");
    namesake.user_id += 1;
    let mut api = server.caller("laptop", namesake).await;
    assert_eq!(codes(&server, &mut api).await, [Code::PermissionDenied; 5]);
}

#[tokio::test]
async fn an_owner_who_tags_the_node_away_loses_it() {
    let server = AdminServer::new().await;
    let mut owner = server.owner().await;
    call(&mut owner, "list", "").await.unwrap();
    server.world.tailnet.update("tailbone", |identity| {
        identity.tags = vec!["tag:tailbone".into()]
    });
    let status = call(&mut owner, "list", "").await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    assert!(!status.message().contains("owner of"), "{status:?}");
}

#[tokio::test]
async fn a_caller_in_doubt_is_refused_even_in_mode_open() {
    for mode in [Authorization::Grant, Authorization::Open] {
        let server = AdminServer::with(mode).await;
        let stranger = |change: fn(&mut Identity)| {
            let mut identity =
                Identity::user("owner@example.com").cap(ADMIN_CAPABILITY, admin(&["*"]));
            change(&mut identity);
            identity
        };
        let mut foreign = server
            .caller("foreign", stranger(|id| id.same_tailnet = false))
            .await;
        assert_eq!(
            codes(&server, &mut foreign).await,
            [Code::PermissionDenied; 5]
        );
        let mut expired = server.caller("expired", stranger(|_| {})).await;
        server
            .world
            .tailnet
            .update("expired", |id| id.expired = true);
        assert_eq!(
            codes(&server, &mut expired).await,
            [Code::PermissionDenied; 5]
        );

        let mut forgotten = server.caller("forgotten", stranger(|_| {})).await;
        server.world.tailnet.remove("forgotten");
        assert_eq!(
            codes(&server, &mut forgotten).await,
            [Code::Unauthenticated; 5]
        );

        let funnel = server.world.node.dial_as_funnel(super::PORT).await.unwrap();
        let mut funnel = AdminServiceClient::new(over(funnel).await);
        assert_eq!(
            codes(&server, &mut funnel).await,
            [Code::PermissionDenied; 5]
        );

        let mut owner = server.owner().await;
        server
            .world
            .node
            .set_status(|status| status.state = BackendState::NeedsLogin);
        assert_eq!(codes(&server, &mut owner).await, [Code::Unavailable; 5]);
        // On the machine itself the operator needs no tailnet.
        list(&mut server.local().await).await;
    }
}

#[tokio::test]
async fn mode_open_lets_every_known_caller_in() {
    let server = AdminServer::with(Authorization::Open).await;
    for (host, identity) in [
        ("laptop", Identity::user("bob@example.com")),
        ("runner", Identity::tagged(["tag:ci"])),
    ] {
        let mut api = server.caller(host, identity).await;
        assert_eq!(codes(&server, &mut api).await, [Code::Ok; 5]);
    }
}

/// The log lines of one test, whose server runs on the test's thread.
#[derive(Debug, Clone, Default)]
pub(crate) struct Lines(Arc<Mutex<Vec<String>>>);

impl<S: tracing::Subscriber> tracing_subscriber::Layer<S> for Lines {
    fn on_event(&self, event: &tracing::Event<'_>, _: tracing_subscriber::layer::Context<'_, S>) {
        struct Text(String);
        impl tracing::field::Visit for Text {
            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                self.0 += &format!(" {}={value:?}", field.name());
            }
        }
        let mut text = Text(event.metadata().target().to_owned());
        event.record(&mut text);
        self.0.lock().unwrap().push(text.0);
    }
}

impl Lines {
    pub(crate) fn all(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }

    pub(crate) fn of(&self, target: &str) -> Vec<String> {
        let lines = self.0.lock().unwrap();
        let wanted = lines
            .iter()
            .filter(|line| line.starts_with(&format!("{target} ")));
        wanted.cloned().collect()
    }
}

#[tokio::test]
async fn d05_each_call_is_one_audit_line_and_no_line_holds_a_secret() {
    // With only one subscriber in the process, tracing asks the thread that reaches a log line
    // first whether the line is wanted, and that may be another test's thread.
    let _second = tracing::Dispatch::new(tracing_subscriber::registry());
    let lines = Lines::default();
    let _guard =
        tracing::subscriber::set_default(tracing_subscriber::registry().with(lines.clone()));
    let server = AdminServer::new().await;
    let mut owner = server.owner().await;
    let made = super::generate(&mut owner).await.key_id;
    call(&mut owner, "list", "").await.unwrap();
    call(&mut owner, "remove", "tb-0\nnobody")
        .await
        .unwrap_err();
    call(&mut owner, "remove", &made).await.unwrap();
    let private: Vec<String> = std::fs::read_dir(server.keys_dir())
        .unwrap()
        .flatten()
        .filter(|entry| {
            entry
                .file_name()
                .to_string_lossy()
                .ends_with(".private.jwk")
        })
        .map(|entry| {
            let jwk: serde_json::Value =
                serde_json::from_slice(&std::fs::read(entry.path()).unwrap()).unwrap();
            jwk["d"].as_str().unwrap().to_owned()
        })
        .collect();
    let mut bob = server
        .caller("laptop", Identity::user("bob@example.com"))
        .await;
    call(&mut bob, "rotate", "").await.unwrap_err();

    let audit: Vec<_> = lines
        .of("audit")
        .into_iter()
        .filter(|line| line.contains("message=admin"))
        .collect();
    let wanted: [&[&str]; 5] = [
        &[
            "\"allowed\"",
            "\"GenerateNewKeys\"",
            "user:owner@example.com",
            "\"owner\"",
            &made,
            "\"done\"",
        ],
        &["\"allowed\"", "\"ListKeys\"", "\"done\""],
        &[
            "\"allowed\"",
            "\"RemoveKey\"",
            "tb-0\\nnobody",
            "\"key_not_found\"",
        ],
        &["\"allowed\"", "\"RemoveKey\"", &made, "\"done\""],
        &[
            "\"refused\"",
            "\"RotateKeys\"",
            "user:bob@example.com",
            "\"no_grant\"",
        ],
    ];
    assert_eq!(audit.len(), wanted.len(), "{audit:#?}");
    for (line, parts) in audit.iter().zip(wanted) {
        for part in parts {
            assert!(line.contains(part), "{part} in {line}");
        }
    }
    assert!(!private.is_empty());
    for line in lines.all() {
        assert!(
            !private.iter().any(|secret| line.contains(secret)),
            "{line}"
        );
    }
    // Texts that people search for in the log.
    let told = lines.of("admin").join("\n");
    for words in [
        "generated new key pair",
        "removed key from JWKS",
        "key not found in JWKS",
        "failed to remove key from JWKS: key tb-0",
    ] {
        assert!(told.contains(words), "{words}: {told}");
    }
}

/// A stream sends no further requests, so it only ends with its connection.
#[tokio::test]
async fn a_health_watch_ends_when_the_filter_closes_the_port_to_its_caller() {
    use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

    let server = AdminServer::new().await;
    let node = server
        .world
        .tailnet
        .join("laptop", Identity::user("alice@example.com"));
    let mut health = HealthClient::new(server.channel(&node).await);
    let watch = health.watch(HealthCheckRequest::default()).await.unwrap();
    let mut watch = watch.into_inner();
    soon("the first word", watch.message())
        .await
        .unwrap()
        .unwrap();
    server.world.tailnet.update("laptop", |identity| {
        identity.closed_ports = vec![super::PORT]
    });
    let end = soon("the end of the watch", watch.message()).await;
    assert!(!matches!(end, Ok(Some(_))), "{end:?}");
}
