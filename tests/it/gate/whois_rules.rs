//! The rules W1 to W15 of a published WhoIs middleware, kept or changed.
//! `docs/compatibility/defects.md` lists the numbers.

use tailbone::{
    gate::{Admitted, GateLayer},
    policy::{CAPABILITY, Rules},
    tailnet::BackendState,
};
use testkit::faulty_node::Fault;

use super::{
    example, refused,
    server::{ALLOW_OWN, GateServer},
};

#[tokio::test]
async fn w01_a_client_address_that_is_none_is_401() {
    let server = GateServer::start(ALLOW_OWN).await;
    for bad in ["laptop", "", "100.64.0.1:x", "1.2.3", "unix:"] {
        let answer = server.ask("/", &[&format!("Remote-Addr: {bad}")]).await;
        let expected = if bad.is_empty() {
            // As in nginx-auth: the proxy sent no address at all.
            (400, "missing_client_address")
        } else {
            (401, "invalid_client_address")
        };
        assert_eq!((answer.status, answer.code().as_str()), expected, "{bad:?}");
    }
    let answer = server.ask("/", &[]).await;
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (400, "missing_client_address")
    );
}

#[tokio::test]
async fn w02_a_node_that_does_not_answer_is_503() {
    let server = GateServer::start(ALLOW_OWN).await;
    server.fault(Fault::Fails);
    assert_eq!(
        refused(&server.ask_about("alice").await),
        (503, "whois_failed".into())
    );
    assert_eq!(
        refused(&server.get("alice", "/").await),
        (503, "whois_failed".into())
    );
}

#[tokio::test]
async fn w02_a_node_that_never_answers_is_given_up_on() {
    let server = GateServer::start(ALLOW_OWN).await;
    server.fault(Fault::Hangs);
    let began = std::time::Instant::now();
    assert_eq!(
        refused(&server.ask_about("alice").await),
        (503, "whois_failed".into())
    );
    assert!(
        (4..9).contains(&began.elapsed().as_secs()),
        "{:?}",
        began.elapsed()
    );
}

#[tokio::test]
async fn w03_a_node_that_is_not_running_is_503() {
    let server = GateServer::start(ALLOW_OWN).await;
    assert_eq!(
        server.ask_about("alice").await.status,
        204,
        "kept from now on"
    );
    for state in [
        BackendState::NeedsLogin,
        BackendState::Starting,
        BackendState::Stopped,
    ] {
        server.world.node.set_status(|status| status.state = state);
        assert_eq!(
            refused(&server.ask_about("alice").await),
            (503, "node_not_running".into())
        );
        assert_eq!(
            refused(&server.get("alice", "/").await),
            (503, "node_not_running".into())
        );
    }
    server
        .world
        .node
        .set_status(|status| status.state = BackendState::Running);
    assert_eq!(server.ask_about("alice").await.status, 204);
}

#[tokio::test]
async fn w04_a_peer_that_the_tailnet_does_not_know_is_401() {
    let server = GateServer::start(ALLOW_OWN).await;
    let answer = server.ask("/", &["Remote-Addr: 100.99.9.9"]).await;
    assert_eq!(refused(&answer), (401, "unknown_peer".into()));
    assert_eq!(answer.header("www-authenticate"), "Tailnet");
    server.world.tailnet.remove("alice");
    assert_eq!(
        refused(&server.get("alice", "/").await),
        (401, "unknown_peer".into())
    );
}

#[tokio::test]
async fn w05_a_name_of_an_unusual_shape_is_no_reason_to_refuse() {
    // The middleware cut the tailnet's name out of the node's name; we use the suffix from the
    // control server.
    let server = GateServer::start(ALLOW_OWN).await;
    server.node_is_called("laptop");
    assert_eq!(server.ask_about("alice").await.status, 204);
}

#[tokio::test]
async fn w06_the_tailnet_is_the_magicdns_suffix_without_final_dot() {
    let server = GateServer::start(ALLOW_OWN).await;
    let answer = server.ask_about("alice").await;
    assert_eq!(answer.header("tailscale-tailnet"), "fake-tailnet.ts.net");
    assert_eq!(
        server.get("alice", "/").await.received("tailscale-tailnet"),
        ["fake-tailnet.ts.net"]
    );
}

#[tokio::test]
async fn w07_a_sharee_has_no_tailnet_and_is_refused_unless_a_rule_names_them() {
    let server = GateServer::start(ALLOW_OWN).await;
    server.node_is_called("device-of-shared-to-user");
    assert_eq!(
        refused(&server.ask_about("sharee").await),
        (403, "denied_by_policy".into())
    );
    server.policy("[[rule]]\ndecision = \"allow\"\nforeign = true\nwho = [\"eve@other.org\"]\n");
    let answer = server.ask_about("sharee").await;
    assert_eq!(
        (answer.status, answer.header("tailscale-tailnet")),
        (204, "")
    );
    assert_eq!(answer.header("tailscale-user"), "eve@other.org");
}

#[tokio::test]
async fn w08_another_tailnet_than_the_expected_one_is_403() {
    for (expected, status) in [
        ("fake-tailnet.ts.net", 204),
        ("fake-tailnet.ts.net.", 204),
        ("Fake-Tailnet", 204),
        ("tailnet-x", 403),
        ("ts.net", 403),
        ("tailnet", 403),
    ] {
        let server = GateServer::with(ALLOW_OWN, |gate| {
            gate.expected_tailnet = Some(expected.into())
        })
        .await;
        let answer = server.ask_about("alice").await;
        assert_eq!(answer.status, status, "{expected}");
        if status == 403 {
            assert_eq!(answer.code(), "wrong_tailnet");
            assert!(
                !answer.body.contains("tailnet-x"),
                "what is expected is nobody's business"
            );
        }
    }
}

#[tokio::test]
async fn w08_a_proxy_may_expect_a_tailnet_too() {
    let server = GateServer::start(ALLOW_OWN).await;
    let ask = async |expected: &str| {
        let addr = format!("Remote-Addr: {}", server.ip("alice"));
        server
            .ask("/", &[&addr, &format!("Expected-Tailnet: {expected}")])
            .await
            .status
    };
    assert_eq!(ask("fake-tailnet.ts.net.").await, 204);
    assert_eq!(ask("").await, 204);
    assert_eq!(ask("other").await, 403);
}

#[tokio::test]
async fn w09_an_expected_tailnet_refuses_sharees() {
    let policy = "[[rule]]\ndecision = \"allow\"\nforeign = true\n";
    let server = GateServer::with(policy, |gate| {
        gate.expected_tailnet = Some("fake-tailnet".into())
    })
    .await;
    server.node_is_called("device-of-shared-to-user");
    assert_eq!(
        refused(&server.ask_about("sharee").await),
        (403, "wrong_tailnet".into())
    );
}

#[tokio::test]
async fn w10_without_an_expected_tailnet_the_policy_alone_decides() {
    let server = GateServer::start("[[rule]]\ndecision = \"allow\"\nforeign = true\n").await;
    assert_eq!(server.ask_about("sharee").await.status, 204);
    assert_eq!(server.ask_about("alice").await.status, 403);
}

#[tokio::test]
async fn w11_a_handler_finds_the_whole_identity_in_the_request() {
    let server = GateServer::start(ALLOW_OWN).await;
    let rules = Rules::parse(ALLOW_OWN, CAPABILITY).unwrap();
    let app = axum::Router::new()
        .route("/", axum::routing::get(whoami))
        .layer(GateLayer::new(rules));
    let answer = server.serve_own(app, "alice", "/").await;
    assert_eq!(
        answer.body,
        "alice@example.com alice.fake-tailnet.ts.net fake-tailnet.ts.net nFAKE0002CNTRL"
    );
}

async fn whoami(caller: Admitted) -> String {
    let visitor = caller.visitor().unwrap();
    let tailbone::identity::Caller::User(user) = visitor.caller().unwrap() else {
        return "not a user".into();
    };
    format!(
        "{} {} {} {}",
        user.login,
        visitor.node_name(),
        visitor.tailnet(),
        visitor.node_id()
    )
}

#[tokio::test]
async fn the_example_knows_who_calls() {
    let app = || example::app().unwrap();
    for (peer, path, status, body) in [
        (
            "alice",
            "/",
            200,
            "user:alice@example.com at alice.fake-tailnet.ts.net\n",
        ),
        ("alice", "/tags", 200, "alice@example.com has no tags\n"),
        ("robot", "/tags", 200, "tag:ci,tag:prod\n"),
        ("sharee", "/healthz", 200, "fine\n"),
    ] {
        let answer = GateServer::start(ALLOW_OWN)
            .await
            .serve_own(app(), peer, path)
            .await;
        assert_eq!(
            (answer.status, answer.body.as_str()),
            (status, body),
            "{peer} {path}"
        );
    }
    let answer = GateServer::start(ALLOW_OWN)
        .await
        .serve_own(app(), "sharee", "/")
        .await;
    assert_eq!(refused(&answer), (403, "denied_by_policy".into()));
}

#[tokio::test]
async fn w12_a_handler_without_the_layer_answers_401() {
    let server = GateServer::start(ALLOW_OWN).await;
    let app = axum::Router::new().route("/", axum::routing::get(whoami));
    let answer = server.serve_own(app, "alice", "/").await;
    assert_eq!(refused(&answer), (401, "not_a_tailnet_caller".into()));
}

#[tokio::test]
async fn w13_the_login_is_the_user() {
    let server = GateServer::start(ALLOW_OWN).await;
    let answer = server.ask_about("alice").await;
    for (header, value) in [
        ("tailscale-user", "alice@example.com"),
        ("tailscale-login", "alice"),
        ("tailscale-name", "alice"),
        ("tailscale-user-login", "alice@example.com"),
        ("tailscale-user-name", "alice"),
        (
            "tailscale-headers-info",
            "https://tailscale.com/s/serve-headers",
        ),
        ("tailscale-node-name", "alice.fake-tailnet.ts.net"),
        ("tailscale-tags", ""),
    ] {
        assert_eq!(answer.header(header), value, "{header}");
    }
}

#[tokio::test]
async fn w14_a_tagged_node_is_its_tags() {
    let server = GateServer::start("[[rule]]\ndecision = \"allow\"\nwho = [\"tag:ci\"]\n").await;
    let answer = server.ask_about("robot").await;
    assert_eq!(answer.status, 204);
    assert_eq!(answer.header("tailscale-tags"), "tag:ci,tag:prod");
    for header in [
        "tailscale-user",
        "tailscale-login",
        "tailscale-name",
        "tailscale-user-login",
    ] {
        assert_eq!(answer.header(header), "", "{header}");
        assert!(
            answer.headers.iter().any(|(name, _)| name == header),
            "{header} overwrites the client's"
        );
    }
    assert_eq!(
        refused(&server.ask_about("alice").await),
        (403, "denied_by_policy".into())
    );
}

#[tokio::test]
async fn w15_the_node_is_in_the_process_so_there_is_no_socket_to_set() {
    // What the setting has become: the gate's own socket exists at its path, and not after the end.
    let server = GateServer::start(ALLOW_OWN).await;
    let socket = server.socket.clone();
    assert!(socket.exists());
    server.stop().await;
    assert!(!socket.exists());
}
