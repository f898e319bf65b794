//! Who is let in: routes, rules, rates, and what a decision leaves behind.

use std::sync::Arc;

use tailbone::{http::serve::Limits, policy::CAPABILITY};
use testkit::counts::counts;

use super::{
    refused,
    server::{self, ALLOW_OWN, GateServer},
};

#[tokio::test]
async fn funnel_callers_have_no_identity_and_are_never_looked_up() {
    let server = GateServer::start("[[rule]]\ndecision = \"anonymous\"\nwho = [\"funnel\"]\npaths = [\"/public\"]\n[[rule]]\ndecision = \"allow\"\n").await;
    let asked = server.world.faulty.asked();
    let public = server
        .send_from(
            server::FUNNEL,
            "GET /public",
            &["Host: x", "Tailscale-User: alice@example.com"],
        )
        .await;
    assert_eq!(public.status, 200);
    assert_eq!(public.received("tailscale-funnel-request"), ["?1"]);
    assert!(public.received("tailscale-user").is_empty());
    let private = server
        .send_from(server::FUNNEL, "GET /", &["Host: x"])
        .await;
    assert_eq!(refused(&private), (403, "funnel".into()));
    assert_eq!(server.world.faulty.asked(), asked);
}

#[tokio::test]
async fn each_route_reads_its_own_convention_alone() {
    let policy = "[[rule]]\ndecision = \"deny\"\npaths = [\"/admin\"]\n[[rule]]\ndecision = \"deny\"\nmethods = [\"DELETE\"]\n[[rule]]\ndecision = \"allow\"\nhosts = [\"app.example.com\"]\n";
    let server = GateServer::start(policy).await;
    let alice = server.ip("alice");
    let (addr, chain) = (
        format!("Remote-Addr: {alice}"),
        format!("X-Forwarded-For: 192.0.2.7, {alice}"),
    );
    let host = "Host: app.example.com";
    let nginx = async |more: &[&str]| {
        let mut headers = vec![addr.as_str(), host];
        headers.extend(more);
        server.ask_line("GET /auth/nginx", &headers).await.status
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
        server
            .ask_line("GET /auth/forwarded", &headers)
            .await
            .status
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

    let envoy = async |line: &str| server.ask_line(line, &[&chain, host]).await.status;
    assert_eq!(envoy("GET /auth/envoy/x").await, 200);
    assert_eq!(envoy("GET /auth/envoy/admin").await, 403);
    assert_eq!(envoy("DELETE /auth/envoy/x").await, 403);
    assert_eq!(envoy("GET /auth/envoy/x/../admin").await, 403);
    assert_eq!(envoy("GET /auth/envoy").await, 200);
}

#[tokio::test]
async fn browsers_without_identity_are_redirected_only_where_asked() {
    let server = GateServer::with(ALLOW_OWN, |gate| {
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
        server.ask_line("GET /auth/forwarded", &told).await
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
    server.policy("");
    let alice = server.ip("alice").to_string();
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
    let server = GateServer::signing(ALLOW_OWN, sign).await;
    let token = server
        .get("alice", "/")
        .await
        .received("tailbone-token")
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
    let server = GateServer::signing(ALLOW_OWN, failing).await;
    let answer = server.get("alice", "/").await;
    assert_eq!(refused(&answer), (503, "no_token".into()));
    assert!(!answer.body.contains("inner words"));
}

#[tokio::test]
async fn decisions_and_what_comes_back_are_counted() {
    let server = GateServer::start(
        "[[rule]]\nname = \"public\"\ndecision = \"anonymous\"\npaths = [\"/public\"]\n\
         [[rule]]\nname = \"staff\"\ndecision = \"allow\"\nwho = [\"alice@example.com\"]\n",
    )
    .await;
    server.world.tailnet.update("robot", |identity| {
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
        assert_eq!(server.get(peer, path).await.status, status, "{peer} {path}");
    }
    assert_eq!(server.ask_about("alice").await.status, 204);
    let unknown = server.ask("/", &["Remote-Addr: 100.99.0.1"]).await;
    assert_eq!(unknown.status, 401);
    assert_eq!(
        counts(&server.meter, "gate_decisions_total"),
        [
            r#"gate_decisions_total{result="allowed",reason="",rule="grant"} 1"#,
            r#"gate_decisions_total{result="allowed",reason="",rule="rule:staff"} 2"#,
            r#"gate_decisions_total{result="anonymous",reason="",rule="rule:public"} 1"#,
            r#"gate_decisions_total{result="refused",reason="denied_by_policy",rule="end"} 1"#,
            r#"gate_decisions_total{result="refused",reason="unknown_peer",rule="end"} 1"#,
        ]
    );
    assert_eq!(
        counts(&server.meter, "gate_upstreams_total"),
        [r#"gate_upstreams_total{result="answered"} 3"#]
    );
}

#[tokio::test]
async fn a_changed_policy_applies_to_the_next_request_and_a_broken_one_to_none() {
    let server = GateServer::start(ALLOW_OWN).await;
    assert_eq!(server.get("alice", "/").await.status, 200);
    server.policy("[[rule]]\ndecision = \"deny\"\n");
    assert_eq!(server.get("alice", "/").await.status, 403);
    std::fs::write(&server.policy_file, "[[rule]]\ndecision = \"alow\"\n").unwrap();
    assert!(server.gate.reload_if_changed().is_err());
    assert_eq!(server.get("alice", "/").await.status, 403);
}

#[tokio::test]
async fn changed_rights_reach_a_connection_that_is_open() {
    let server =
        GateServer::start("[[rule]]\ndecision = \"allow\"\nwho = [\"alice@example.com\"]\n").await;
    let mut open = server.keep_alive("alice").await;
    assert_eq!(open.get("/").await, 200);
    server.world.tailnet.update("alice", |identity| {
        identity.login = "mallory@example.com".into()
    });
    assert_eq!(open.get("/").await, 403);
}

#[tokio::test]
async fn each_client_behind_the_local_socket_has_its_own_rate_limit() {
    let server = GateServer::start(ALLOW_OWN).await;
    server.limits.set(Limits {
        request_rate: 1,
        request_burst: 3,
        ..Limits::default()
    });
    for _ in 0..3 {
        assert_eq!(server.ask_about("alice").await.status, 204);
    }
    assert_eq!(server.ask_about("alice").await.status, 429);
    assert_eq!(server.ask_about("bob").await.status, 204);
}

/// Nested escapes at the end of a path of the greatest length.
fn long_path() -> String {
    let escapes = "%25".to_owned() + &"25".repeat(200) + "2e";
    format!("/{}{escapes}", "a".repeat(8000 - escapes.len()))
}

#[tokio::test]
async fn a_deeply_escaped_path_is_refused_only_where_a_rule_or_a_route_is_about_paths() {
    let server = GateServer::start(ALLOW_OWN).await;
    let status = async |peer: &str| server.get(peer, &long_path()).await.status;
    assert_eq!(status("alice").await, 200);
    // The service gets the path as it was sent, since no rule is about paths.
    assert_eq!(status("sharee").await, 403);

    let public = "[[rule]]\nname = \"public\"\ndecision = \"anonymous\"\npaths = [\"/public\"]\n";
    server.policy(&format!("{public}{ALLOW_OWN}"));
    assert_eq!(
        status("alice").await,
        200,
        "a later rule lets everything through"
    );
    server.policy(public);
    let answer = server.get("alice", &long_path()).await;
    assert_eq!(answer.status, 400);
}
