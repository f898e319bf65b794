//! The gate as a whole: the rules of a published WhoIs middleware (W1-W15), the gaps that it leaves
//! (G1-G11), and which proxies may ask about clients. `docs/compatibility/defects.md` lists the
//! numbers; `docs/compatibility/gate.md` says what is done differently and why.

mod command;
/// The published example must work.
#[allow(dead_code, unreachable_pub)]
#[path = "../../examples/whoami.rs"]
mod example;
mod pages;
mod proxies;
mod reverse;
mod upstreams;
mod world;

use std::{net::IpAddr, sync::Arc};

use tailbone::{
    gate::{Admitted, GateLayer},
    http::serve::Limits,
    policy::{CAPABILITY, Rules},
    tailnet::{BackendState, fake::Identity},
};
use testkit::{backend::Answer, counts::counts};

use self::world::{ALLOW_OWN, Trouble, World};

#[tokio::test]
async fn w01_a_client_address_that_is_none_is_401() {
    let world = World::start(ALLOW_OWN).await;
    for bad in ["laptop", "", "100.64.0.1:x", "1.2.3", "unix:"] {
        let answer = world.ask("/", &[&format!("Remote-Addr: {bad}")]).await;
        let expected = if bad.is_empty() {
            // As in nginx-auth: the proxy sent no address at all.
            (400, "missing_client_address")
        } else {
            (401, "invalid_client_address")
        };
        assert_eq!((answer.status, answer.code().as_str()), expected, "{bad:?}");
    }
    let answer = world.ask("/", &[]).await;
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (400, "missing_client_address")
    );
}

#[tokio::test]
async fn w02_a_node_that_does_not_answer_is_503() {
    let world = World::start(ALLOW_OWN).await;
    world.trouble.set(Trouble::WhoIsFails);
    assert_eq!(
        refused(&world.ask_about("alice").await),
        (503, "whois_failed".into())
    );
    assert_eq!(
        refused(&world.get("alice", "/").await),
        (503, "whois_failed".into())
    );
}

#[tokio::test]
async fn w02_a_node_that_never_answers_is_given_up_on() {
    let world = World::start(ALLOW_OWN).await;
    world.trouble.set(Trouble::WhoIsHangs);
    let began = std::time::Instant::now();
    assert_eq!(
        refused(&world.ask_about("alice").await),
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
    let world = World::start(ALLOW_OWN).await;
    assert_eq!(
        world.ask_about("alice").await.status,
        204,
        "kept from now on"
    );
    for state in [
        BackendState::NeedsLogin,
        BackendState::Starting,
        BackendState::Stopped,
    ] {
        world.node.set_status(|status| status.state = state);
        assert_eq!(
            refused(&world.ask_about("alice").await),
            (503, "node_not_running".into())
        );
        assert_eq!(
            refused(&world.get("alice", "/").await),
            (503, "node_not_running".into())
        );
    }
    world
        .node
        .set_status(|status| status.state = BackendState::Running);
    assert_eq!(world.ask_about("alice").await.status, 204);
}

#[tokio::test]
async fn w04_a_peer_that_the_tailnet_does_not_know_is_401() {
    let world = World::start(ALLOW_OWN).await;
    let answer = world.ask("/", &["Remote-Addr: 100.99.9.9"]).await;
    assert_eq!(refused(&answer), (401, "unknown_peer".into()));
    assert_eq!(answer.header("www-authenticate"), "Tailnet");
    world.tailnet.remove("alice");
    assert_eq!(
        refused(&world.get("alice", "/").await),
        (401, "unknown_peer".into())
    );
}

#[tokio::test]
async fn w05_a_name_of_an_unusual_shape_is_no_reason_to_refuse() {
    // The middleware cut the tailnet's name out of the node's name; we use the suffix from the control
    // server.
    let world = World::start(ALLOW_OWN).await;
    world.trouble.set(Trouble::Name("laptop"));
    assert_eq!(world.ask_about("alice").await.status, 204);
}

#[tokio::test]
async fn w06_the_tailnet_is_the_magicdns_suffix_without_final_dot() {
    let world = World::start(ALLOW_OWN).await;
    let answer = world.ask_about("alice").await;
    assert_eq!(answer.header("tailscale-tailnet"), "fake-tailnet.ts.net");
    assert_eq!(
        world.get("alice", "/").await.seen("tailscale-tailnet"),
        ["fake-tailnet.ts.net"]
    );
}

#[tokio::test]
async fn w07_a_sharee_has_no_tailnet_and_is_refused_unless_a_rule_names_them() {
    let world = World::start(ALLOW_OWN).await;
    world.trouble.set(Trouble::Name("device-of-shared-to-user"));
    assert_eq!(
        refused(&world.ask_about("sharee").await),
        (403, "denied_by_policy".into())
    );
    world.policy("[[rule]]\ndecision = \"allow\"\nforeign = true\nwho = [\"eve@other.org\"]\n");
    let answer = world.ask_about("sharee").await;
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
        let world = World::with(ALLOW_OWN, |gate| {
            gate.expected_tailnet = Some(expected.into())
        })
        .await;
        let answer = world.ask_about("alice").await;
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
    let world = World::start(ALLOW_OWN).await;
    let ask = async |expected: &str| {
        let addr = format!("Remote-Addr: {}", world.ip("alice"));
        world
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
    let world = World::with(policy, |gate| {
        gate.expected_tailnet = Some("fake-tailnet".into())
    })
    .await;
    world.trouble.set(Trouble::Name("device-of-shared-to-user"));
    assert_eq!(
        refused(&world.ask_about("sharee").await),
        (403, "wrong_tailnet".into())
    );
}

#[tokio::test]
async fn w10_without_an_expected_tailnet_the_policy_alone_decides() {
    let world = World::start("[[rule]]\ndecision = \"allow\"\nforeign = true\n").await;
    assert_eq!(world.ask_about("sharee").await.status, 204);
    assert_eq!(world.ask_about("alice").await.status, 403);
}

#[tokio::test]
async fn w11_a_handler_finds_the_whole_identity_in_the_request() {
    let world = World::start(ALLOW_OWN).await;
    let rules = Rules::parse(ALLOW_OWN, CAPABILITY).unwrap();
    let app = axum::Router::new()
        .route("/", axum::routing::get(whoami))
        .layer(GateLayer::new(rules));
    let answer = world.serve_own(app, "alice", "/").await;
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
        let answer = World::start(ALLOW_OWN)
            .await
            .serve_own(app(), peer, path)
            .await;
        assert_eq!(
            (answer.status, answer.body.as_str()),
            (status, body),
            "{peer} {path}"
        );
    }
    let answer = World::start(ALLOW_OWN)
        .await
        .serve_own(app(), "sharee", "/")
        .await;
    assert_eq!(refused(&answer), (403, "denied_by_policy".into()));
}

#[tokio::test]
async fn w12_a_handler_without_the_layer_answers_401() {
    let world = World::start(ALLOW_OWN).await;
    let app = axum::Router::new().route("/", axum::routing::get(whoami));
    let answer = world.serve_own(app, "alice", "/").await;
    assert_eq!(refused(&answer), (401, "not_a_tailnet_caller".into()));
}

#[tokio::test]
async fn w13_the_login_is_the_user() {
    let world = World::start(ALLOW_OWN).await;
    let answer = world.ask_about("alice").await;
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
    let world = World::start("[[rule]]\ndecision = \"allow\"\nwho = [\"tag:ci\"]\n").await;
    let answer = world.ask_about("robot").await;
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
        refused(&world.ask_about("alice").await),
        (403, "denied_by_policy".into())
    );
}

#[tokio::test]
async fn w15_the_node_is_in_the_process_so_there_is_no_socket_to_set() {
    // What the setting has become: the gate's own socket exists at its path, and not after the end.
    let world = World::start(ALLOW_OWN).await;
    let socket = world.socket.clone();
    assert!(socket.exists());
    world.stop().await;
    assert!(!socket.exists());
}

#[tokio::test]
async fn g01_behind_a_proxy_nobody_becomes_the_proxy() {
    let world = World::start(ALLOW_OWN).await;
    // The proxy reports its own address, which would make everybody the proxy.
    let own = format!("Remote-Addr: {}", world.ip("proxy"));
    let answer = world.ask_as("proxy", "/", &[&own]).await;
    assert_eq!(refused(&answer), (401, "client_is_proxy".into()));
    let ours = format!("Remote-Addr: {}", world.ip("tailbone"));
    assert_eq!(
        refused(&world.ask("/", &[&ours]).await),
        (401, "client_is_proxy".into())
    );
    // On the tailnet itself no header can name the caller.
    let other = format!("X-Forwarded-For: {}", world.ip("bob"));
    let spoof = format!("Remote-Addr: {}", world.ip("bob"));
    let seen = world
        .send("alice", "GET /", &["Host: x", &other, &spoof])
        .await;
    assert_eq!(seen.seen("tailscale-user"), ["alice@example.com"]);
}

#[tokio::test]
async fn g01_only_trusted_proxies_may_ask() {
    let world = World::start(ALLOW_OWN).await;
    let about = format!("Remote-Addr: {}", world.ip("bob"));
    assert_eq!(world.ask_as("proxy", "/", &[&about]).await.status, 204);
    for other in ["alice", "robot", "sharee"] {
        let answer = world.ask_as(other, "/", &[&about]).await;
        assert_eq!(refused(&answer), (403, "untrusted_proxy".into()), "{other}");
    }
    // Trust depends on the identity and not on the connection: it ends with the tag.
    world
        .tailnet
        .update("proxy", |identity| identity.tags = vec!["tag:other".into()]);
    assert_eq!(world.ask_as("proxy", "/", &[&about]).await.status, 403);
}

#[tokio::test]
async fn g02_trouble_unknown_and_unwanted_are_told_apart_and_nothing_inner_is_told() {
    let world =
        World::start("[[rule]]\ndecision = \"allow\"\nwho = [\"alice@example.com\"]\n").await;
    assert_eq!(world.ask_about("bob").await.status, 403);
    assert_eq!(
        world.ask("/", &["Remote-Addr: 192.0.2.1"]).await.status,
        401
    );
    world.trouble.set(Trouble::WhoIsFails);
    let answer = world.ask_about("alice").await;
    assert_eq!(answer.status, 503);
    assert!(!answer.body.contains("inner words"), "{}", answer.body);
    assert!(!answer.json()["request_id"].as_str().unwrap().is_empty());
    assert!(!answer.header("retry-after").is_empty());
}

#[tokio::test]
async fn g03_a_known_caller_costs_no_call() {
    let world = World::start(ALLOW_OWN).await;
    world.ask_about("alice").await;
    let before = world.trouble.asked();
    for _ in 0..5 {
        assert_eq!(world.ask_about("alice").await.status, 204);
    }
    assert_eq!(world.trouble.asked(), before);
    world.tailnet.update("alice", |identity| {
        identity.login = "carol@example.com".into()
    });
    assert_eq!(
        world.ask_about("alice").await.header("tailscale-user"),
        "carol@example.com"
    );
}

#[tokio::test]
async fn g04_expired_nodes_are_refused_and_grants_decide() {
    let world = World::start("").await;
    assert_eq!(
        refused(&world.ask_about("alice").await),
        (403, "denied_by_policy".into())
    );
    world.tailnet.update("alice", |identity| {
        *identity = identity
            .clone()
            .cap(CAPABILITY, serde_json::json!({"paths": ["/docs"]}));
    });
    let about = format!("Remote-Addr: {}", world.ip("alice"));
    assert_eq!(
        world
            .ask("/", &[&about, "X-Original-URI: /docs/x?y"])
            .await
            .status,
        204
    );
    assert_eq!(
        world
            .ask("/", &[&about, "X-Original-URI: /other"])
            .await
            .status,
        403
    );
    assert_eq!(world.ask("/", &[&about]).await.status, 403, "no path told");
    world.tailnet.expire("alice");
    let answer = world.ask("/", &[&about, "X-Original-URI: /docs"]).await;
    assert_eq!(refused(&answer), (403, "node_expired".into()));
}

#[tokio::test]
async fn g05_names_of_other_control_servers_work_without_their_final_dot() {
    let world = World::with(ALLOW_OWN, |gate| {
        gate.expected_tailnet = Some("example.org.".into())
    })
    .await;
    world.trouble.set(Trouble::Name("alice.example.org."));
    world
        .node
        .set_status(|status| status.tailnet = "example.org".into());
    let answer = world.ask_about("alice").await;
    assert_eq!(
        (answer.status, answer.header("tailscale-tailnet")),
        (204, "example.org")
    );
    assert_eq!(answer.header("tailscale-node-name"), "alice.example.org");
}

#[tokio::test]
async fn g06_a_node_that_was_shared_into_ours_has_its_own_tailnet() {
    let world = World::start(
        "[[rule]]\ndecision = \"allow\"\nforeign = true\ntailnet = \"other.ts.net\"\n",
    )
    .await;
    world.trouble.set(Trouble::Name("box.other.ts.net"));
    let answer = world.ask_about("sharee").await;
    assert_eq!(
        (answer.status, answer.header("tailscale-tailnet")),
        (204, "other.ts.net")
    );
    world.trouble.set(Trouble::Name("box.evil.ts.net"));
    assert_eq!(world.ask_about("sharee").await.status, 403);
}

#[tokio::test]
async fn g07_tags_make_a_machine_whatever_its_profile_is_called() {
    let world = World::start(
        "[[rule]]\ndecision = \"allow\"\nwho = [\"alice@example.com\", \"tagged-devices@x\"]\n",
    )
    .await;
    world.trouble.set(Trouble::Login("alice@example.com"));
    let answer = world.ask_about("robot").await;
    assert_eq!(
        refused(&answer),
        (403, "denied_by_policy".into()),
        "a machine is not the user that its profile names"
    );
}

#[tokio::test]
async fn g08_an_ipv4_address_inside_ipv6_is_the_same_caller() {
    let world = World::start(ALLOW_OWN).await;
    let IpAddr::V4(v4) = world.ip("alice") else {
        panic!()
    };
    let mapped = format!("Remote-Addr: {}", v4.to_ipv6_mapped());
    assert_eq!(
        world.ask("/", &[&mapped]).await.header("tailscale-user"),
        "alice@example.com"
    );
}

#[tokio::test]
async fn g09_what_comes_through_a_subnet_router_is_the_router() {
    // Nodes behind a subnet router cannot be told apart, so they all get the router's tags and
    // never a user's name.
    let world = World::start(
        "[[rule]]\ndecision = \"deny\"\nwho = [\"tag:router\"]\n[[rule]]\ndecision = \"allow\"\n",
    )
    .await;
    world
        .tailnet
        .join("router", Identity::tagged(["tag:router"]));
    assert_eq!(world.ask_about("alice").await.status, 204);
    let router = world
        .tailnet
        .join("router", Identity::tagged(["tag:router"]));
    let about = format!("Remote-Addr: {}", router.ip());
    assert_eq!(world.ask("/", &[&about]).await.status, 403);
}

#[tokio::test]
async fn g10_a_local_probe_passes_where_a_rule_lets_it() {
    let policy = "[[rule]]\ndecision = \"anonymous\"\npaths = [\"/healthz\"]\n[[rule]]\ndecision = \"allow\"\n";
    let world = World::start(policy).await;
    let probe = async |path: &str| {
        let uri = format!("X-Original-URI: {path}");
        world.ask("/", &["Remote-Addr: 127.0.0.1", &uri]).await
    };
    assert_eq!(probe("/healthz").await.status, 204);
    assert_eq!(refused(&probe("/").await), (401, "unknown_peer".into()));
    // Known callers pass there too, without their identity.
    let about = format!("Remote-Addr: {}", world.ip("alice"));
    let answer = world.ask("/", &[&about, "X-Original-URI: /healthz"]).await;
    assert_eq!((answer.status, answer.header("tailscale-user")), (204, ""));
    world.trouble.set(Trouble::WhoIsFails);
    assert_eq!(
        probe("/healthz").await.status,
        204,
        "a probe needs no identity"
    );
}

#[tokio::test]
async fn g11_an_answer_without_host_details_is_no_panic() {
    let world = World::start(ALLOW_OWN).await;
    world.trouble.set(Trouble::Bare);
    let answer = world.ask_about("alice").await;
    assert_eq!(
        (answer.status, answer.header("tailscale-node-name")),
        (204, "")
    );
}

#[tokio::test]
async fn funnel_callers_have_no_identity_and_are_never_looked_up() {
    let world = World::start("[[rule]]\ndecision = \"anonymous\"\nwho = [\"funnel\"]\npaths = [\"/public\"]\n[[rule]]\ndecision = \"allow\"\n").await;
    let asked = world.trouble.asked();
    let public = world
        .send_from(
            world::FUNNEL,
            "GET /public",
            &["Host: x", "Tailscale-User: alice@example.com"],
        )
        .await;
    assert_eq!(public.status, 200);
    assert_eq!(public.seen("tailscale-funnel-request"), ["?1"]);
    assert!(public.seen("tailscale-user").is_empty());
    let private = world.send_from(world::FUNNEL, "GET /", &["Host: x"]).await;
    assert_eq!(refused(&private), (403, "funnel".into()));
    assert_eq!(world.trouble.asked(), asked);
}

#[tokio::test]
async fn each_route_reads_its_own_convention_alone() {
    let policy = "[[rule]]\ndecision = \"deny\"\npaths = [\"/admin\"]\n[[rule]]\ndecision = \"deny\"\nmethods = [\"DELETE\"]\n[[rule]]\ndecision = \"allow\"\nhosts = [\"app.example.com\"]\n";
    let world = World::start(policy).await;
    let alice = world.ip("alice");
    let (addr, chain) = (
        format!("Remote-Addr: {alice}"),
        format!("X-Forwarded-For: 192.0.2.7, {alice}"),
    );
    let host = "Host: app.example.com";
    let nginx = async |more: &[&str]| {
        let mut headers = vec![addr.as_str(), host];
        headers.extend(more);
        world.ask_bare("GET /auth/nginx", &headers).await.status
    };
    assert_eq!(
        nginx(&["X-Original-URI: /x", "X-Original-Method: GET"]).await,
        204
    );
    assert_eq!(
        nginx(&[
            "X-Original-URI: /admin",
            "X-Original-Method: GET",
            "X-Forwarded-Uri: /x"
        ])
        .await,
        403
    );
    assert_eq!(
        nginx(&[
            "X-Original-URI: /x",
            "Original-URI: /admin",
            "X-Original-Method: GET"
        ])
        .await,
        400
    );
    assert_eq!(
        nginx(&["X-Original-URI: /x", "X-Original-Method: DELETE"]).await,
        403
    );
    assert_eq!(
        nginx(&["X-Original-URI: /x"]).await,
        403,
        "a rule asks for the method"
    );

    let forwarded = async |more: &[&str]| {
        let mut headers = vec![
            chain.as_str(),
            "Host: gate",
            "X-Forwarded-Host: app.example.com",
        ];
        headers.extend(more);
        world.ask_bare("GET /auth/forwarded", &headers).await.status
    };
    assert_eq!(
        forwarded(&["X-Forwarded-Method: GET", "X-Forwarded-Uri: /x?y"]).await,
        200
    );
    assert_eq!(
        forwarded(&[
            "X-Forwarded-Method: GET",
            "X-Forwarded-Uri: /admin",
            "X-Original-URI: /x"
        ])
        .await,
        403
    );
    assert_eq!(
        forwarded(&[
            "X-Forwarded-Method: GET",
            "X-Forwarded-Uri: /x",
            "X-Forwarded-Uri: /x"
        ])
        .await,
        400
    );
    assert_eq!(
        forwarded(&["X-Forwarded-Method: DELETE", "X-Forwarded-Uri: /x"]).await,
        403
    );
    assert_eq!(
        forwarded(&["X-Forwarded-Method: GET", "X-Forwarded-Uri: /%2e%2e/admin"]).await,
        403
    );

    let envoy = async |line: &str| world.ask_bare(line, &[&chain, host]).await.status;
    assert_eq!(envoy("GET /auth/envoy/x").await, 200);
    assert_eq!(envoy("GET /auth/envoy/admin").await, 403);
    assert_eq!(envoy("DELETE /auth/envoy/x").await, 403);
    assert_eq!(envoy("GET /auth/envoy/x/../admin").await, 403);
    assert_eq!(envoy("GET /auth/envoy").await, 200);
}

#[tokio::test]
async fn browsers_without_identity_are_redirected_only_where_asked() {
    let world = World::with(ALLOW_OWN, |gate| {
        gate.auth.redirect = Some("https://join.example.com/".into());
    })
    .await;
    let ask = async |about: &str, accept: &str, method: &str| {
        let (about, accept) = (
            format!("X-Forwarded-For: {about}"),
            format!("Accept: {accept}"),
        );
        let method = format!("X-Forwarded-Method: {method}");
        let told = [
            "X-Forwarded-Proto: https",
            "X-Forwarded-Host: app.example.com",
            "X-Forwarded-Uri: /x",
            "Host: gate",
            &about,
            &accept,
            &method,
        ];
        world.ask_bare("GET /auth/forwarded", &told).await
    };
    let answer = ask("192.0.2.1", "text/html", "GET").await;
    assert_eq!(answer.status, 302);
    assert!(
        answer
            .header("location")
            .starts_with("https://join.example.com/?rd=https%3A%2F%2Fapp.example.com%2Fx")
    );
    assert_eq!(
        ask("192.0.2.1", "application/json", "GET").await.status,
        401
    );
    assert_eq!(ask("192.0.2.1", "text/html", "POST").await.status, 401);
    world.policy("");
    let alice = world.ip("alice").to_string();
    assert_eq!(
        ask(&alice, "text/html", "GET").await.status,
        403,
        "known, and refused"
    );
}

#[tokio::test]
async fn a_backend_gets_a_token_if_asked() {
    let sign: tailbone::gate::SignFn = Arc::new(|claims| {
        Box::pin(async move {
            Ok(format!(
                "h.{}.s",
                String::from_utf8(claims).unwrap().replace(['"', '\n'], "'")
            ))
        })
    });
    let world = World::signing(ALLOW_OWN, sign).await;
    let token = world
        .get("alice", "/")
        .await
        .seen("tailbone-token")
        .concat();
    for part in [
        "'aud':'app.example.com'",
        "'iss':'tailbone/gate'",
        "'login':'alice@example.com'",
        "'tailnet':'fake-tailnet.ts.net'",
    ] {
        assert!(token.contains(part), "{part} in {token}");
    }
    let failing: tailbone::gate::SignFn = Arc::new(|_| {
        Box::pin(async { Err(tailbone::gate::BackendTokenError("inner words".into())) })
    });
    let world = World::signing(ALLOW_OWN, failing).await;
    let answer = world.get("alice", "/").await;
    assert_eq!(refused(&answer), (503, "no_token".into()));
    assert!(!answer.body.contains("inner words"));
}

#[tokio::test]
async fn decisions_and_what_comes_back_are_counted() {
    let world = World::start(
        "[[rule]]\nname = \"public\"\ndecision = \"anonymous\"\npaths = [\"/public\"]\n\
         [[rule]]\nname = \"staff\"\ndecision = \"allow\"\nwho = [\"alice@example.com\"]\n",
    )
    .await;
    world.tailnet.update("robot", |identity| {
        let grant = serde_json::json!({ "paths": ["/x"] });
        identity
            .caps
            .entry(CAPABILITY.into())
            .or_default()
            .push(grant);
    });
    for (peer, path, status) in [
        ("alice", "/", 200),
        ("alice", "/public", 200),
        ("robot", "/x", 200),
        ("bob", "/", 403),
    ] {
        assert_eq!(world.get(peer, path).await.status, status, "{peer} {path}");
    }
    assert_eq!(world.ask_about("alice").await.status, 204);
    let unknown = world.ask("/", &["Remote-Addr: 100.99.0.1"]).await;
    assert_eq!(unknown.status, 401);
    assert_eq!(
        counts(&world.meter, "gate_decisions_total"),
        [
            r#"gate_decisions_total{result="allowed",reason="",rule="grant"} 1"#,
            r#"gate_decisions_total{result="allowed",reason="",rule="rule:staff"} 2"#,
            r#"gate_decisions_total{result="anonymous",reason="",rule="rule:public"} 1"#,
            r#"gate_decisions_total{result="refused",reason="denied_by_policy",rule="end"} 1"#,
            r#"gate_decisions_total{result="refused",reason="unknown_peer",rule="end"} 1"#,
        ]
    );
    assert_eq!(
        counts(&world.meter, "gate_upstreams_total"),
        [r#"gate_upstreams_total{result="answered"} 3"#]
    );
}

#[tokio::test]
async fn a_changed_policy_holds_for_the_next_request_and_a_broken_one_for_none() {
    let world = World::start(ALLOW_OWN).await;
    assert_eq!(world.get("alice", "/").await.status, 200);
    world.policy("[[rule]]\ndecision = \"deny\"\n");
    assert_eq!(world.get("alice", "/").await.status, 403);
    std::fs::write(&world.policy_file, "[[rule]]\ndecision = \"alow\"\n").unwrap();
    assert!(world.gate.reload_if_changed().is_err());
    assert_eq!(world.get("alice", "/").await.status, 403);
}

#[tokio::test]
async fn changed_rights_reach_a_connection_that_is_open() {
    let world =
        World::start("[[rule]]\ndecision = \"allow\"\nwho = [\"alice@example.com\"]\n").await;
    let mut open = world.keep_alive("alice").await;
    assert_eq!(open.get("/").await, 200);
    world.tailnet.update("alice", |identity| {
        identity.login = "mallory@example.com".into()
    });
    assert_eq!(open.get("/").await, 403);
}

fn refused(answer: &Answer) -> (u16, String) {
    (answer.status, answer.code())
}

#[tokio::test]
async fn behind_the_local_socket_each_client_has_a_rate() {
    let world = World::start(ALLOW_OWN).await;
    world.limits.set(Limits {
        request_rate: 1,
        request_burst: 3,
        ..Limits::default()
    });
    for _ in 0..3 {
        assert_eq!(world.ask_about("alice").await.status, 204);
    }
    assert_eq!(world.ask_about("alice").await.status, 429);
    assert_eq!(world.ask_about("bob").await.status, 204);
}

/// Nested escapes at the end of a path of the greatest length.
fn long_path() -> String {
    let escapes = "%25".to_owned() + &"25".repeat(200) + "2e";
    format!("/{}{escapes}", "a".repeat(8000 - escapes.len()))
}

#[tokio::test]
async fn a_path_that_hides_much_is_refused_only_where_a_rule_or_a_route_is_about_paths() {
    let world = World::start(ALLOW_OWN).await;
    let status = async |peer: &str| world.get(peer, &long_path()).await.status;
    assert_eq!(status("alice").await, 200);
    // The service gets the path as it was sent, since no rule is about paths.
    assert_eq!(status("sharee").await, 403);

    let public = "[[rule]]\nname = \"public\"\ndecision = \"anonymous\"\npaths = [\"/public\"]\n";
    world.policy(&format!("{public}{ALLOW_OWN}"));
    assert_eq!(
        status("alice").await,
        200,
        "a later rule lets everything through"
    );
    world.policy(public);
    let answer = world.get("alice", &long_path()).await;
    assert_eq!(answer.status, 400);
}
