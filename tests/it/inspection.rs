//! What a server tells about itself, on the fake node: readiness, metrics, status, and whom it
//! knows.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;
use tailbone::{
    admin::{AdminClient, ServerAddress},
    cli::{self, console::Console, layout::Layout},
    config::{Authorization, Environment, KeySpec},
    http::{
        health, layers,
        serve::{Limits, Listening, Server},
    },
    jwks::{FilePublisher, KeySet, life::KeyLife},
    keys::KeyStore,
    metrics::{self, MetricSources},
    part::ServerState,
    tailnet::{
        BackendState, Node,
        fake::Identity,
        join::{JoinState, classify},
    },
    telemetry::{
        meter::Meter,
        readiness::{LatchState, Readiness},
    },
};
use tailbone_oidc::store::LiveRows;
use tempfile::TempDir;
use testkit::{
    keys::{key_life, policy},
    world::{Serving, World, caller_routes},
};

use crate::admin::{routes, serve_socket};

#[tokio::test]
async fn readyz_follows_its_latches_and_livez_does_not() {
    let world = World::new();
    let readiness = Readiness::default();
    let node = world.node.clone();
    readiness.latch("node-running", move |now| {
        match classify(&node.watch().borrow(), false, now) {
            JoinState::Running => Ok(()),
            other => Err(other.to_string()),
        }
    });
    let listeners = readiness.switch("listeners-up", "not yet");
    let outage = Arc::new(AtomicBool::new(false));
    let bucket = outage.clone();
    readiness.latch("jwks-read", move |_| {
        if bucket.load(Ordering::Relaxed) {
            LatchState::Degraded("read 20 minutes ago".into())
        } else {
            LatchState::Released
        }
    });
    let _server = world
        .serve_limited(80, health::router(readiness), Limits::default())
        .await;
    let alice = world.peer("alice");
    let mut alice = world.call(&alice, 80).await;

    let answer = alice.get("/readyz").await;
    assert_eq!(answer.status(), 503);
    assert_eq!(answer.header("retry-after"), "1");
    assert_eq!(answer.json()["held"], serde_json::json!(["listeners-up"]));
    assert!(answer.json().get("latches").is_none());
    listeners.release();
    assert_eq!(alice.get("/readyz").await.status(), 200);

    // A degraded latch is reported and takes no server out of service.
    outage.store(true, Ordering::Relaxed);
    let answer = alice.get("/readyz?verbose").await;
    assert_eq!(answer.status(), 200);
    let json = answer.json();
    assert_eq!(
        (&json["ready"], &json["held"], &json["degraded"]),
        (
            &true.into(),
            &serde_json::json!([]),
            &serde_json::json!(["jwks-read"])
        )
    );
    assert_eq!(json["latches"][2]["reason"], "read 20 minutes ago");

    world
        .node
        .set_status(|status| status.state = BackendState::NeedsMachineAuth);
    let answer = alice.get("/readyz?verbose").await;
    assert_eq!(answer.status(), 503);
    let latch = &answer.json()["latches"][0];
    assert_eq!(latch["name"], "node-running");
    assert!(
        latch["reason"].as_str().unwrap().contains("approve"),
        "{latch}"
    );
    assert_eq!(alice.get("/livez").await.status(), 200);
    world
        .node
        .set_status(|status| status.state = BackendState::Running);
    assert_eq!(alice.get("/readyz?verbose=1").await.status(), 200);
    assert_eq!(alice.post("/readyz").await.refusal().0, 405);
}

#[tokio::test]
async fn metrics_tell_what_was_counted_and_what_is() {
    let dir = TempDir::new().unwrap();
    let world = World::new();
    let keys = key_life(dir.path());
    keys.start(Timestamp::now()).await.unwrap();
    let folder = TempDir::new().unwrap();
    let set = KeySet::new(
        "workload",
        KeyStore::new(folder.path().join("keys")),
        Arc::new(FilePublisher::new(folder.path().join("jwks.json"))),
        &policy(),
        "tb",
        KeySpec::Es256,
        &[KeySpec::EdDsa],
    );
    set.start(Timestamp::now()).await.unwrap();
    let meter = Meter::default();
    let own = ServerState::default();
    own.readiness.switch("listeners-up", "not yet").release();
    let serving = Serving {
        meter: meter.clone(),
        ..Limits::default().into()
    };
    let issuer = world
        .serve_with(80, layers::wrap(caller_routes(), "test"), serving)
        .await;
    own.listeners.add(Listening {
        name: issuer.name(),
        addr: ":80".into(),
        load: issuer.load(),
        certificate: None,
    });
    let router = metrics::router(MetricSources {
        meter: meter.clone(),
        node: Arc::new(world.node.clone()),
        keys,
        key_sets: [set].into(),
        readiness: own.readiness.clone(),
        listeners: own.listeners.clone(),
    });
    let _metrics = world.serve_limited(9090, router, Limits::default()).await;
    let alice = world.peer("alice");
    // A change of the network map causes one more WhoIs call for each open connection.
    world.node.set_status(|status| {
        status.key_expiry = Some(Timestamp::from_second(4_000_000_000).unwrap());
    });
    let mut caller = world.call(&alice, 80).await;
    for _ in 0..3 {
        assert_eq!(caller.get("/").await.status(), 200);
    }
    meter.token_issued("issuer", Duration::from_millis(3));
    meter.token_refused("issuer", "funnel");
    // A metric without any count has no line.
    meter.key_changed("publish", true);
    meter.decided("refused", "denied_by_policy", "end".into());
    meter.upstream("answered");
    meter.exchanged("deploy.toml");
    meter.issuer_keys_fetched("new");
    meter.key_service_refuses("vault", true);
    meter.oidc_requested("authorize", "refused", "access_denied");
    let took = Some(Duration::from_millis(2));
    meter.oidc_store_called("write", "done", took);
    meter.oidc_rows_counted("grant", 5);
    meter.oidc_rows_counted("grant", 3);
    meter.oidc_rows_swept(7);
    meter.logout_told("told");

    let answer = world.call(&alice, 9090).await.get("/metrics").await;
    assert_eq!(answer.status(), 200);
    assert!(
        answer
            .header("content-type")
            .starts_with("application/openmetrics-text")
    );
    let text = String::from_utf8(answer.0.body().to_vec()).unwrap();
    for line in [
        r#"tailbone_tokens_total{component="issuer",result="issued",reason=""} 1"#,
        r#"tailbone_tokens_total{component="issuer",result="refused",reason="funnel"} 1"#,
        r#"tailbone_gate_decisions_total{result="refused",reason="denied_by_policy",rule="end"} 1"#,
        r#"tailbone_gate_upstreams_total{result="answered"} 1"#,
        r#"tailbone_sts_exchanges_total{policy="deploy.toml",result="granted",reason=""} 1"#,
        r#"tailbone_sts_key_fetches_total{result="new"} 1"#,
        r#"tailbone_oidc_requests_total{endpoint="authorize",result="refused",reason="access_denied"} 1"#,
        r#"tailbone_oidc_store_calls_total{call="write",result="done"} 1"#,
        r#"tailbone_oidc_store_call_seconds_bucket{le="0.0025",call="write"} 1"#,
        r#"tailbone_oidc_rows{kind="grant"} 3"#,
        "tailbone_oidc_rows_swept_total 7",
        r#"tailbone_oidc_logout_notices_total{result="told"} 1"#,
        "tailbone_signing_seconds_count 1",
        r#"tailbone_signing_seconds_bucket{le="0.005"} 1"#,
        r#"tailbone_whois_total{result="known"} 1"#,
        r#"tailbone_whois_total{result="kept"} 2"#,
        r#"tailbone_join_state{state="running"} 1"#,
        r#"tailbone_join_state{state="expired"} 0"#,
        "tailbone_node_key_expiry_timestamp_seconds 4000000000.0",
        r#"tailbone_keys{state="active"} 1"#,
        "tailbone_signing 1.0",
        r#"tailbone_key_set_signing{set="workload",algorithm="EdDSA"} 1"#,
        r#"tailbone_key_set_keys{set="workload",state="active"} 2"#,
        r#"tailbone_key_set_jwks_trouble{set="workload"} 0"#,
        "tailbone_ready 1.0",
        r#"tailbone_latch_held{latch="listeners-up"} 0"#,
        r#"tailbone_latch_degraded{latch="listeners-up"} 0"#,
        r#"tailbone_connections{listener="test"} 1"#,
        "tailbone_jwks_trouble 0.0",
        "# EOF",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
    for name in [
        "process_open_fds ",
        "process_resident_memory_bytes ",
        "tailbone_signing_key_age_seconds ",
        "tailbone_key_set_signing_key_age_seconds{",
        "tailbone_key_set_jwks_read_timestamp_seconds{",
        "tailbone_jwks_read_timestamp_seconds ",
        "tailbone_go_goroutines ",
        "tailbone_go_heap_bytes ",
        "tailbone_build_info{",
    ] {
        assert!(text.contains(name), "{name} is not in\n{text}");
    }
    assert!(!text.contains("alice"), "a caller is a label:\n{text}");

    // Alerts and dashboard only use metrics that exist.
    for file in [
        "deploy/prometheus/tailbone.rules.yml",
        "deploy/grafana/tailbone.json",
    ] {
        let asked = std::fs::read_to_string(file).unwrap();
        let mut names = 0;
        for name in asked
            .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .filter(|word| word.starts_with("tailbone_") || word.starts_with("process_"))
        {
            let family = name.trim_end_matches("_bucket").trim_end_matches("_total");
            assert!(
                text.contains(&format!("# TYPE {family} ")),
                "{file} asks for {name}, which is not in\n{text}"
            );
            names += 1;
        }
        assert!(names > 10, "{file}: {names}");
        if file.ends_with(".json") {
            serde_json::from_str::<serde_json::Value>(&asked).unwrap();
        }
    }
}

/// The admin API on a local socket.
fn administration(path: &Path, keys: KeyLife, state: ServerState) -> Server {
    serve_socket(path, routes(keys, Authorization::Grant, state))
}

#[tokio::test]
async fn a_policy_is_tried_with_a_live_caller() {
    let dir = TempDir::new().unwrap();
    let world = World::new();
    let own = ServerState::default();
    own.membership.joined(Arc::new(world.node.clone()));
    let socket = dir.path().join("admin.sock");
    let _server = administration(&socket, key_life(dir.path()), own);
    let alice = world.peer("alice");
    let robot = world.tailnet.join("robot", Identity::tagged(["tag:ci"]));
    let mut foreign = Identity::user("eve@other.org");
    foreign.same_tailnet = false;
    let eve = world.tailnet.join("eve", foreign);
    world.tailnet.update("alice", |identity| {
        let grant = serde_json::json!({ "paths": ["/docs"] });
        let capability = tailbone::policy::CAPABILITY.to_owned();
        identity.caps.entry(capability).or_default().push(grant);
    });
    let policy = dir.path().join("policy.toml");
    std::fs::write(
        &policy,
        "[[rule]]\nname = \"ci\"\ndecision = \"allow\"\nwho = [\"tag:ci\"]\n\
         [[rule]]\nname = \"guests\"\ndecision = \"allow\"\nforeign = true\nwho = [\"eve@other.org\"]\npaths = [\"/docs\"]\n",
    )
    .unwrap();
    let test = async |address: String, path: &str| {
        let arguments = [
            "tailbone",
            "policy",
            "test",
            "--policy",
            policy.to_str().unwrap(),
            "--admin-socket",
            socket.to_str().unwrap(),
            "--address",
            &address,
            "--path",
            path,
        ]
        .map(std::ffi::OsString::from);
        let run = move || {
            let (mut out, mut err) = (Vec::new(), Vec::new());
            let mut console = Console {
                out: &mut out,
                err: &mut err,
                person: None,
                layout: Layout::PIPE,
            };
            let code = cli::execute(arguments.into_iter(), &Environment::default(), &mut console);
            let said = String::from_utf8([out, err].concat()).unwrap();
            (code, said.lines().next().unwrap_or_default().to_owned())
        };
        tokio::task::spawn_blocking(run).await.unwrap()
    };
    for (address, path, first) in [
        (
            alice.ip().to_string(),
            "/docs/x",
            "allow: grant 1 of the tailnet's own policy lets alice@example.com in",
        ),
        (
            alice.ip().to_string(),
            "/x",
            "deny: no rule lets alice@example.com in; ",
        ),
        (
            format!("{}:4711", robot.ip()),
            "/x",
            "allow: rule \"ci\" (line 1) lets a machine with tag:ci in",
        ),
        (
            eve.ip().to_string(),
            "/docs",
            "allow: rule \"guests\" (line 5) lets eve@other.org of",
        ),
        (
            eve.ip().to_string(),
            "/x",
            "deny: no rule lets eve@other.org of",
        ),
        (
            "100.99.99.99".into(),
            "/docs",
            "deny: no rule lets an unknown caller in; ",
        ),
    ] {
        let (code, said) = test(address.clone(), path).await;
        assert!(
            code == 0 && said.starts_with(first),
            "{address} {path}: {code} {said}"
        );
    }
    // A node that the tailnet no longer vouches for has no identity, whatever it was granted.
    world.tailnet.expire("alice");
    let (_, said) = test(alice.ip().to_string(), "/docs/x").await;
    assert!(
        said.starts_with("deny: no rule lets an unknown caller in; "),
        "{said}"
    );
    let (code, said) = test("alice".into(), "/docs").await;
    assert!(
        code != 0 && said.contains("not an address"),
        "{code} {said}"
    );
}

#[tokio::test]
async fn status_and_whois_at_the_local_socket() {
    let dir = TempDir::new().unwrap();
    let world = World::new();
    let keys = key_life(dir.path());
    let own = ServerState::default();
    let up = own.readiness.switch("listeners-up", "not yet");
    let path = dir.path().join("admin.sock");
    let _server = administration(&path, keys.clone(), own.clone());
    let client = AdminClient::new(ServerAddress::Socket(path), Duration::from_secs(10));

    // The socket is there during joining, and says where to log in.
    own.membership.joining(JoinState::NeedsLogin {
        url: "https://login.example/a".into(),
    });
    let status = client.status().await.unwrap();
    assert!(!status.ready);
    assert_eq!(status.join_state, "needs-login");
    assert_eq!(status.login_url, "https://login.example/a");
    assert_eq!(status.latches[0].reason, "not yet");
    let words = client
        .who_is("100.64.0.1".into())
        .await
        .unwrap_err()
        .message;
    assert!(words.contains("not joined"), "{words}");

    own.membership.joined(Arc::new(world.node.clone()));
    keys.start(Timestamp::now()).await.unwrap();
    up.release();
    let status = client.status().await.unwrap();
    assert!(status.ready, "{status:?}");
    assert_eq!(status.join_state, "running");
    assert_eq!(status.keys.len(), 1);
    assert!(status.jwks_read_at > 0 && status.node_key_expiry == 0);
    assert_eq!(status.oidc, None, "there is no provider");
    let store = own.readiness.switch("oidc-store", "it does not answer");
    own.provider_report.begin("https://idp.example", "sqlite:x");
    let provider = client.status().await.unwrap().oidc.unwrap();
    assert_eq!(provider.store, "sqlite:x");
    assert_eq!(provider.store_trouble, "it does not answer");
    assert_eq!((provider.counted_at, provider.swept_at), (0, 0));
    store.release();
    let live = LiveRows {
        grants: 4,
        ..LiveRows::default()
    };
    let moment = |seconds| Timestamp::from_second(seconds).unwrap();
    own.provider_report.counted(live, moment(1_800_000_000));
    own.provider_report.swept(9, moment(1_800_000_001));
    let provider = client.status().await.unwrap().oidc.unwrap();
    assert_eq!(provider.store_trouble, "");
    assert_eq!((provider.grants, provider.counted_at), (4, 1_800_000_000));
    assert_eq!((provider.swept_rows, provider.swept_at), (9, 1_800_000_001));

    let alice = world.peer("alice");
    let known = client.who_is(alice.ip().to_string()).await.unwrap();
    assert_eq!(
        (known.kind.as_str(), known.login.as_str()),
        ("user", "alice@example.com")
    );
    assert_eq!(
        (known.refusal.as_str(), known.tailnet.as_str()),
        ("", "fake-tailnet.ts.net")
    );
    world.tailnet.expire("alice");
    let known = client.who_is(format!("{}:443", alice.ip())).await.unwrap();
    assert_eq!(known.refusal, "node_expired");
    let unknown = client.who_is("100.99.99.99".into()).await.unwrap_err();
    assert_eq!(unknown.code, tonic::Code::NotFound);
    let nonsense = client.who_is("alice".into()).await.unwrap_err();
    assert_eq!(nonsense.code, tonic::Code::InvalidArgument);
    client.recent_log().await.unwrap();
}
