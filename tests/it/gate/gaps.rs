//! The gaps G1 to G11 that a published WhoIs middleware leaves, closed.
//! `docs/compatibility/defects.md` lists the numbers.

use std::net::IpAddr;

use tailbone::{policy::CAPABILITY, tailnet::fake::Identity};
use testkit::faulty_node::Fault;

use super::{
    refused,
    server::{ALLOW_OWN, GateServer},
};

#[tokio::test]
async fn g01_behind_a_proxy_nobody_becomes_the_proxy() {
    let server = GateServer::start(ALLOW_OWN).await;
    // The proxy reports its own address, which would make everybody the proxy.
    let own = format!("Remote-Addr: {}", server.ip("proxy"));
    let answer = server.ask_as("proxy", "/", &[&own]).await;
    assert_eq!(refused(&answer), (401, "client_is_proxy".into()));
    let ours = format!("Remote-Addr: {}", server.ip("tailbone"));
    assert_eq!(
        refused(&server.ask("/", &[&ours]).await),
        (401, "client_is_proxy".into())
    );
    // On the tailnet itself no header can name the caller.
    let other = format!("X-Forwarded-For: {}", server.ip("bob"));
    let spoof = format!("Remote-Addr: {}", server.ip("bob"));
    let seen = server
        .send("alice", "GET /", &["Host: x", &other, &spoof])
        .await;
    assert_eq!(seen.received("tailscale-user"), ["alice@example.com"]);
}

#[tokio::test]
async fn g01_only_trusted_proxies_may_ask() {
    let server = GateServer::start(ALLOW_OWN).await;
    let about = format!("Remote-Addr: {}", server.ip("bob"));
    assert_eq!(server.ask_as("proxy", "/", &[&about]).await.status, 204);
    for other in ["alice", "robot", "sharee"] {
        let answer = server.ask_as(other, "/", &[&about]).await;
        assert_eq!(refused(&answer), (403, "untrusted_proxy".into()), "{other}");
    }
    // Trust depends on the identity and not on the connection: it ends with the tag.
    server
        .world
        .tailnet
        .update("proxy", |identity| identity.tags = vec!["tag:other".into()]);
    assert_eq!(server.ask_as("proxy", "/", &[&about]).await.status, 403);
}

#[tokio::test]
async fn g02_failures_unknown_and_refused_callers_have_codes_of_their_own() {
    let server =
        GateServer::start("[[rule]]\ndecision = \"allow\"\nwho = [\"alice@example.com\"]\n").await;
    assert_eq!(server.ask_about("bob").await.status, 403);
    assert_eq!(
        server.ask("/", &["Remote-Addr: 192.0.2.1"]).await.status,
        401
    );
    server.fault(Fault::Fails);
    let answer = server.ask_about("alice").await;
    assert_eq!(answer.status, 503);
    assert!(!answer.body.contains("inner words"), "{}", answer.body);
    assert!(!answer.json()["request_id"].as_str().unwrap().is_empty());
    assert!(!answer.header("retry-after").is_empty());
}

#[tokio::test]
async fn g03_a_known_caller_costs_no_call() {
    let server = GateServer::start(ALLOW_OWN).await;
    server.ask_about("alice").await;
    let before = server.world.faulty.asked();
    for _ in 0..5 {
        assert_eq!(server.ask_about("alice").await.status, 204);
    }
    assert_eq!(server.world.faulty.asked(), before);
    server.world.tailnet.update("alice", |identity| {
        identity.login = "carol@example.com".into()
    });
    assert_eq!(
        server.ask_about("alice").await.header("tailscale-user"),
        "carol@example.com"
    );
}

#[tokio::test]
async fn g04_expired_nodes_are_refused_and_grants_decide() {
    let server = GateServer::start("").await;
    assert_eq!(
        refused(&server.ask_about("alice").await),
        (403, "denied_by_policy".into())
    );
    server.world.tailnet.update("alice", |identity| {
        *identity = identity
            .clone()
            .cap(CAPABILITY, serde_json::json!({"paths": ["/docs"]}));
    });
    let about = format!("Remote-Addr: {}", server.ip("alice"));
    assert_eq!(
        server
            .ask("/", &[&about, "X-Original-URI: /docs/x?y"])
            .await
            .status,
        204
    );
    assert_eq!(
        server
            .ask("/", &[&about, "X-Original-URI: /other"])
            .await
            .status,
        403
    );
    assert_eq!(server.ask("/", &[&about]).await.status, 403, "no path told");
    server.world.tailnet.expire("alice");
    let answer = server.ask("/", &[&about, "X-Original-URI: /docs"]).await;
    assert_eq!(refused(&answer), (403, "node_expired".into()));
}

#[tokio::test]
async fn g05_names_of_other_control_servers_work_without_their_final_dot() {
    let server = GateServer::with(ALLOW_OWN, |gate| {
        gate.expected_tailnet = Some("example.org.".into())
    })
    .await;
    server.node_is_called("alice.example.org.");
    server
        .world
        .node
        .set_status(|status| status.tailnet = "example.org".into());
    let answer = server.ask_about("alice").await;
    assert_eq!(
        (answer.status, answer.header("tailscale-tailnet")),
        (204, "example.org")
    );
    assert_eq!(answer.header("tailscale-node-name"), "alice.example.org");
}

#[tokio::test]
async fn g06_a_node_that_was_shared_into_ours_has_its_own_tailnet() {
    let server = GateServer::start(
        "[[rule]]\ndecision = \"allow\"\nforeign = true\ntailnet = \"other.ts.net\"\n",
    )
    .await;
    server.node_is_called("box.other.ts.net");
    let answer = server.ask_about("sharee").await;
    assert_eq!(
        (answer.status, answer.header("tailscale-tailnet")),
        (204, "other.ts.net")
    );
    server.node_is_called("box.evil.ts.net");
    assert_eq!(server.ask_about("sharee").await.status, 403);
}

#[tokio::test]
async fn g07_tags_make_a_machine_whatever_its_profile_is_called() {
    let server = GateServer::start(
        "[[rule]]\ndecision = \"allow\"\nwho = [\"alice@example.com\", \"tagged-devices@x\"]\n",
    )
    .await;
    server.fault(Fault::changed(|whois| {
        whois.user.login = "alice@example.com".into()
    }));
    let answer = server.ask_about("robot").await;
    assert_eq!(
        refused(&answer),
        (403, "denied_by_policy".into()),
        "a machine is not the user that its profile names"
    );
}

#[tokio::test]
async fn g08_an_ipv4_address_inside_ipv6_is_the_same_caller() {
    let server = GateServer::start(ALLOW_OWN).await;
    let IpAddr::V4(v4) = server.ip("alice") else {
        panic!()
    };
    let mapped = format!("Remote-Addr: {}", v4.to_ipv6_mapped());
    assert_eq!(
        server.ask("/", &[&mapped]).await.header("tailscale-user"),
        "alice@example.com"
    );
}

#[tokio::test]
async fn g09_what_comes_through_a_subnet_router_is_the_router() {
    // Nodes behind a subnet router cannot be told apart, so they all get the router's tags and
    // never a user's name.
    let server = GateServer::start(
        "[[rule]]\ndecision = \"deny\"\nwho = [\"tag:router\"]\n[[rule]]\ndecision = \"allow\"\n",
    )
    .await;
    server
        .world
        .tailnet
        .join("router", Identity::tagged(["tag:router"]));
    assert_eq!(server.ask_about("alice").await.status, 204);
    let router = server
        .world
        .tailnet
        .join("router", Identity::tagged(["tag:router"]));
    let about = format!("Remote-Addr: {}", router.ip());
    assert_eq!(server.ask("/", &[&about]).await.status, 403);
}

#[tokio::test]
async fn g10_a_local_probe_passes_where_a_rule_lets_it() {
    let policy = "[[rule]]\ndecision = \"anonymous\"\npaths = [\"/healthz\"]\n[[rule]]\ndecision = \"allow\"\n";
    let server = GateServer::start(policy).await;
    let probe = async |path: &str| {
        let uri = format!("X-Original-URI: {path}");
        server.ask("/", &["Remote-Addr: 127.0.0.1", &uri]).await
    };
    assert_eq!(probe("/healthz").await.status, 204);
    assert_eq!(refused(&probe("/").await), (401, "unknown_peer".into()));
    // Known callers pass there too, without their identity.
    let about = format!("Remote-Addr: {}", server.ip("alice"));
    let answer = server.ask("/", &[&about, "X-Original-URI: /healthz"]).await;
    assert_eq!((answer.status, answer.header("tailscale-user")), (204, ""));
    server.fault(Fault::Fails);
    assert_eq!(
        probe("/healthz").await.status,
        204,
        "a probe needs no identity"
    );
}

#[tokio::test]
async fn g11_an_answer_without_host_details_is_no_panic() {
    let server = GateServer::start(ALLOW_OWN).await;
    server.fault(Fault::changed(|whois| {
        whois.node.name.clear();
        whois.node.hostname.clear();
        whois.node.addresses.clear();
        whois.user.display_name.clear();
    }));
    let answer = server.ask_about("alice").await;
    assert_eq!(
        (answer.status, answer.header("tailscale-node-name")),
        (204, "")
    );
}
