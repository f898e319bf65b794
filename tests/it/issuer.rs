//! The issuer's routes from the point of view of callers on a tailnet, with the fake node: who gets
//! a token, what it contains, who is refused.

use std::{sync::Arc, time::Duration};

use ::http::{Extensions, Request};
use arc_swap::ArcSwap;
use bytes::Bytes;
use http_body_util::Full;
use jiff::Timestamp;
use jsonwebtoken::{Algorithm, DecodingKey, Validation, jwk::JwkSet};
use serde_json::{Value, json};
use tailbone::{
    config::TokenSettings,
    http::{
        layers,
        serve::{Accept, Limits, Server, serve},
    },
    issuer::{Issuer, router},
    jwks::life::KeyLife,
    keys::SigningQueue,
    tailnet::{
        BackendState, Node,
        fake::{FakeNode, Identity},
    },
    telemetry::meter::Meter,
    web::Origin,
};
use tempfile::TempDir;
use testkit::{
    http::{Connection, request},
    keys::{key_life, policy},
    soon,
    world::{Serving, World, allowed},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// An issuer on a world of its own.
struct IssuerServer {
    world: World,
    keys: KeyLife,
    dir: TempDir,
    server: Server,
}

/// What an issuer's listener allows.
#[derive(Default)]
struct Allowing<'a> {
    limits: Limits,
    hosts: &'a [&'a str],
    origins: &'a [&'a str],
}

impl IssuerServer {
    /// With its first key.
    async fn new() -> Self {
        Self::allowing(Allowing::default()).await
    }

    /// With its first key.
    async fn allowing(allowing: Allowing<'_>) -> Self {
        let issuer = Self::without_key(allowing).await;
        let started = issuer.keys.start(Timestamp::now()).await;
        started.expect("a first key");
        issuer
    }

    async fn without_key(allowing: Allowing<'_>) -> Self {
        let dir = TempDir::new().unwrap();
        let keys = key_life(dir.path());
        let policy = policy();
        let routes = router(Issuer {
            token: Arc::new(ArcSwap::from_pointee(TokenSettings {
                issuer: "tailbone".into(),
                expiry: policy.token_life,
                skew: policy.skew,
            })),
            keys: keys.clone(),
            signing: Arc::new(SigningQueue::new(|work| work())),
            cache_time: policy.cache_time,
            origins: allowed(allowing.origins, Origin::parse).into(),
            meter: Meter::default(),
        });
        let world = World::new();
        let serving = Serving {
            limits: allowing.limits.into(),
            hosts: Some(world.hosts(allowing.hosts)),
            ..Serving::default()
        };
        let routes = layers::wrap(routes, "issuer");
        let server = world.serve_with(80, routes, serving).await;
        Self {
            world,
            keys,
            dir,
            server,
        }
    }

    async fn call(&self, peer: &FakeNode) -> Connection {
        self.world.call(peer, 80).await
    }

    async fn alice(&self) -> Connection {
        let alice = Identity::user("alice@example.com");
        self.call(&self.world.join("laptop", alice)).await
    }
}

/// The claims of a token, after verification with the published keys by an independent library.
async fn verified(connection: &mut Connection) -> Value {
    let answer = connection.post("/issue").await;
    assert_eq!(answer.status(), 200, "{answer:?}");
    let token = answer.json()["token"].as_str().expect("a token").to_owned();
    let set: JwkSet =
        serde_json::from_value(connection.get("/.well-known/jwks.json").await.json()).unwrap();
    let kid = jsonwebtoken::decode_header(&token)
        .unwrap()
        .kid
        .expect("a kid");
    let key = DecodingKey::from_jwk(set.find(&kid).expect("the key is published")).unwrap();
    let mut rules = Validation::new(Algorithm::ES256);
    rules.validate_nbf = true;
    rules.leeway = 0;
    rules.validate_aud = false;
    jsonwebtoken::decode::<Value>(&token, &key, &rules)
        .expect("it verifies")
        .claims
}

#[tokio::test]
async fn a_user_gets_the_claims_of_the_contract_and_a_stable_subject() {
    let issuer = IssuerServer::new().await;
    let claims = verified(&mut issuer.alice().await).await;
    let iat = claims["iat"].as_i64().unwrap();
    let now = Timestamp::now().as_second();
    assert!((now - 5..=now).contains(&iat), "{iat} against {now}");
    assert_eq!(claims["exp"].as_i64().unwrap() - iat, 20 * 60);
    assert_eq!(claims["user"], "alice@example.com");
    assert_eq!(claims["display_name"], "alice");
    assert_eq!(claims["iss"], "tailbone");
    let sub = claims["sub"].as_str().unwrap();
    assert!(
        sub.strip_prefix("user-")
            .is_some_and(|id| id.parse::<i64>().is_ok()),
        "{sub}"
    );
    assert!(claims.get("tags").is_none() && claims.get("node").is_none());
    assert_eq!(claims["jti"].as_str().unwrap().len(), 32);
}

#[tokio::test]
async fn the_answer_is_json_and_must_not_be_cached() {
    let issuer = IssuerServer::new().await;
    let answer = issuer.alice().await.post("/issue").await;
    assert_eq!(answer.header("content-type"), "application/json");
    assert_eq!(answer.header("cache-control"), "no-store");
    assert_eq!(
        answer.json().as_object().unwrap().len(),
        1,
        "token and nothing else"
    );
}

#[tokio::test]
async fn d06_each_machine_has_claims_of_its_own() {
    let issuer = IssuerServer::new().await;
    let one = issuer.world.join("ci-1", Identity::tagged(["tag:ci"]));
    let two = issuer
        .world
        .join("ci-2", Identity::tagged(["tag:ci", "tag:prod"]));
    let one = verified(&mut issuer.call(&one).await).await;
    let two = verified(&mut issuer.call(&two).await).await;
    // The claims of the Go program.
    assert_eq!(one["user"], "tagged-devices");
    assert_eq!(one["display_name"], "Tagged Devices");
    // The additional claims.
    assert_eq!(one["tags"], json!(["tag:ci"]));
    assert_eq!(two["tags"], json!(["tag:ci", "tag:prod"]));
    assert_ne!(one["sub"], two["sub"]);
    assert!(one["sub"].as_str().unwrap().starts_with("node-"));
    assert!(
        one["node"].as_str().unwrap().starts_with("ci-1"),
        "{}",
        one["node"]
    );
}

#[tokio::test]
async fn d06_a_caller_in_doubt_gets_no_token() {
    let issuer = IssuerServer::new().await;
    let foreign = Identity {
        same_tailnet: false,
        ..Identity::user("eve@elsewhere.example")
    };
    let foreign = issuer.world.join("foreign", foreign);
    let answer = issuer.call(&foreign).await.post("/issue").await;
    assert_eq!(answer.refusal(), (403, "foreign_tailnet".to_owned()));
    assert_eq!(answer.header("cache-control"), "no-store");

    let expired = issuer.world.join("old", Identity::user("bob@example.com"));
    let mut connection = issuer.call(&expired).await;
    issuer.world.tailnet.expire("old");
    assert_eq!(
        connection.post("/issue").await.refusal(),
        (403, "node_expired".to_owned())
    );
}

#[tokio::test]
async fn d20_an_unknown_peer_is_401_and_a_node_that_is_down_503() {
    let issuer = IssuerServer::new().await;
    let ghost = issuer
        .world
        .join("ghost", Identity::user("ghost@example.com"));
    let mut connection = issuer.call(&ghost).await;
    issuer.world.tailnet.remove("ghost");
    let answer = connection.post("/issue").await;
    assert_eq!(answer.refusal(), (401, "unknown_peer".to_owned()));
    assert_ne!(answer.header("www-authenticate"), "");

    let mut alice = issuer.alice().await;
    verified(&mut alice).await;
    issuer
        .world
        .node
        .set_status(|status| status.state = BackendState::NeedsLogin);
    let answer = alice.post("/issue").await;
    assert_eq!(answer.refusal(), (503, "node_not_running".to_owned()));
    assert_ne!(answer.header("retry-after"), "");
}

fn named(host: &str, method: &str, path: &str) -> Request<Full<Bytes>> {
    let mut request = request(method, path);
    let host = host.parse().unwrap();
    request.headers_mut().insert("host", host);
    request
}

/// The headers that browsers add to requests of pages, which pages cannot remove.
const BROWSER_HEADERS: [(&str, &str); 5] = [
    ("origin", "http://evil.example"),
    // After DNS rebinding the page is of the same origin.
    ("origin", "http://tailbone"),
    ("origin", "null"),
    ("sec-fetch-site", "cross-site"),
    ("sec-fetch-site", "same-origin"),
];

#[tokio::test]
async fn a_page_gets_no_token() {
    let issuer = IssuerServer::new().await;
    let mut alice = issuer.alice().await;
    for (name, value) in BROWSER_HEADERS {
        let mut page = request("POST", "/issue");
        page.headers_mut().insert(name, value.parse().unwrap());
        let answer = alice.send(page).await;
        assert_eq!(
            answer.refusal(),
            (403, "browser_request".to_owned()),
            "{name}: {value}"
        );
        assert_eq!(answer.header("access-control-allow-origin"), "");
        // Public keys may be read by pages.
        let mut page = request("GET", "/.well-known/jwks.json");
        page.headers_mut().insert(name, value.parse().unwrap());
        let answer = alice.send(page).await;
        assert_eq!(answer.status(), 200, "{name}: {value}");
        assert_eq!(answer.header("access-control-allow-origin"), "*");
    }
    verified(&mut alice).await;
}

#[tokio::test]
async fn a_fetch_by_a_program_is_no_request_of_a_page() {
    let issuer = IssuerServer::new().await;
    let mut program = request("POST", "/issue");
    // As Node.js sends them.
    for (name, value) in [("sec-fetch-mode", "cors"), ("user-agent", "node")] {
        program.headers_mut().insert(name, value.parse().unwrap());
    }
    let answer = issuer.alice().await.send(program).await;
    assert_eq!(answer.status(), 200, "{answer:?}");
}

fn page_allowed() -> Allowing<'static> {
    Allowing {
        origins: &["https://app.example.com"],
        ..Allowing::default()
    }
}

#[tokio::test]
async fn an_allowed_page_gets_a_token_and_may_read_it() {
    let issuer = IssuerServer::allowing(page_allowed()).await;
    let mut alice = issuer.alice().await;
    let mut page = request("POST", "/issue");
    let headers = page.headers_mut();
    headers.insert("origin", "https://app.example.com".parse().unwrap());
    headers.insert("sec-fetch-site", "cross-site".parse().unwrap());
    let answer = alice.send(page).await;
    assert_eq!(answer.status(), 200, "{answer:?}");
    assert_eq!(
        answer.header("access-control-allow-origin"),
        "https://app.example.com"
    );
    assert_eq!(answer.header("vary"), "origin");
    let mut other = request("POST", "/issue");
    let origin = "http://app.example.com".parse().unwrap();
    other.headers_mut().insert("origin", origin);
    assert_eq!(alice.send(other).await.status(), 403);
}

#[tokio::test]
async fn an_allowed_page_gets_an_answer_to_its_preflight() {
    let issuer = IssuerServer::allowing(page_allowed()).await;
    let mut alice = issuer.alice().await;
    let mut ask = async |origin: &str| {
        let mut ask = request("OPTIONS", "/issue");
        for (name, value) in [
            ("origin", origin),
            ("access-control-request-method", "POST"),
            ("access-control-request-headers", "content-type"),
            ("access-control-request-private-network", "true"),
        ] {
            ask.headers_mut().insert(name, value.parse().unwrap());
        }
        alice.send(ask).await
    };
    let answer = ask("https://app.example.com").await;
    assert_eq!(answer.status(), 204);
    for (name, value) in [
        ("access-control-allow-origin", "https://app.example.com"),
        ("access-control-allow-methods", "GET, POST"),
        ("access-control-allow-headers", "content-type"),
        ("access-control-allow-private-network", "true"),
        ("vary", "origin"),
    ] {
        assert_eq!(answer.header(name), value, "{name}");
    }
    let answer = ask("https://evil.example").await;
    assert_eq!(answer.status(), 405);
    assert_eq!(answer.header("access-control-allow-origin"), "");
}

#[tokio::test]
async fn only_a_name_of_the_node_is_answered() {
    let issuer = IssuerServer::allowing(Allowing {
        hosts: &["keys.example.com"],
        ..Allowing::default()
    })
    .await;
    let mut alice = issuer.alice().await;
    let status = issuer.world.node.watch().borrow().clone();
    let fqdn = format!("{}.:80", status.name.to_uppercase());
    let ip = status.addresses[0].to_string();
    let ours = ["tailbone", &fqdn, &ip, "keys.example.com:8080"];
    let others = [
        "evil.example",
        "evil.example:80",
        "localhost",
        "tailbone.evil.example",
    ];
    for path in ["/issue", "/.well-known/jwks.json", "/readyz", "/nowhere"] {
        for host in ours {
            let method = if path == "/issue" { "POST" } else { "GET" };
            let answer = alice.send(named(host, method, path)).await;
            assert_ne!(answer.status(), 421, "{host}{path}: {answer:?}");
        }
        for host in others {
            let answer = alice.send(named(host, "POST", path)).await;
            let refusal = answer.refusal();
            assert_eq!(refusal, (421, "unknown_host".to_owned()), "{host}{path}");
        }
    }
    // The node's name changes while the server runs.
    issuer
        .world
        .names
        .set("tailbone-1.other.ts.net", "tailbone", &[]);
    let renamed = named("tailbone-1", "POST", "/issue");
    assert_eq!(alice.send(renamed).await.status(), 200);
    assert_eq!(alice.post("/issue").await.status(), 421);
}

#[tokio::test]
async fn the_host_rule_in_every_form_of_request() {
    let issuer = IssuerServer::new().await;
    let alice = issuer
        .world
        .join("laptop", Identity::user("alice@example.com"));
    for (head, status) in [
        ("POST /issue HTTP/1.0\r\n\r\n", "200"),
        (
            "POST http://tailbone/issue HTTP/1.1\r\nHost: tailbone\r\nConnection: close\r\n\r\n",
            "200",
        ),
        (
            "POST http://evil.example/issue HTTP/1.1\r\nHost: tailbone\r\nConnection: close\r\n\r\n",
            "400",
        ),
        (
            "POST http://evil.example/issue HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n",
            "421",
        ),
        ("POST /issue HTTP/1.1\r\nConnection: close\r\n\r\n", "400"),
        ("POST /issue HTTP/1.0\r\nHost: evil.example\r\n\r\n", "421"),
    ] {
        let mut stream = alice
            .dial("tailbone:80", Duration::from_secs(5))
            .await
            .unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        soon("an answer", stream.read_to_string(&mut answer))
            .await
            .unwrap();
        assert_eq!(answer.split(' ').nth(1), Some(status), "{head}: {answer}");
    }
}

#[tokio::test]
async fn a_funnel_caller_has_no_identity_here() {
    let issuer = IssuerServer::new().await;
    let stream = issuer.world.node.dial_as_funnel(80).await.unwrap();
    let answer = Connection::over(stream).await.post("/issue").await;
    assert_eq!(answer.refusal(), (403, "funnel".to_owned()));
}

#[tokio::test]
async fn a_change_of_identity_is_seen_by_the_next_request_of_a_kept_connection() {
    let issuer = IssuerServer::new().await;
    let mut connection = issuer.alice().await;
    let before = verified(&mut connection).await;

    issuer.world.tailnet.update("laptop", |identity| {
        identity.login = "alice.smith@example.com".into()
    });
    let renamed = verified(&mut connection).await;
    assert_eq!(renamed["user"], "alice.smith@example.com");
    assert_eq!(
        renamed["sub"], before["sub"],
        "a renamed user is the same subject"
    );

    issuer.world.tailnet.update("laptop", |identity| {
        identity.tags = vec!["tag:kiosk".into()]
    });
    assert_eq!(
        verified(&mut connection).await["tags"],
        json!(["tag:kiosk"])
    );

    issuer.world.tailnet.expire("laptop");
    assert_eq!(
        connection.post("/issue").await.refusal(),
        (403, "node_expired".to_owned())
    );

    issuer.world.tailnet.remove("laptop");
    assert_eq!(
        connection.post("/issue").await.refusal(),
        (401, "unknown_peer".to_owned())
    );
}

#[tokio::test]
async fn without_a_key_the_answer_is_503_and_the_first_key_ends_it() {
    let issuer = IssuerServer::without_key(Allowing::default()).await;
    issuer.keys.sync(Timestamp::now()).await.unwrap();
    let mut alice = issuer.alice().await;
    assert_eq!(
        alice.post("/issue").await.refusal(),
        (503, "no_signing_key".to_owned())
    );
    assert_eq!(
        alice.get("/.well-known/jwks.json").await.refusal(),
        (503, "no_jwks".to_owned())
    );
    issuer.keys.start(Timestamp::now()).await.unwrap();
    verified(&mut alice).await;
}

/// A server listens before it has its first key.
#[tokio::test]
async fn callers_wait_while_the_first_key_is_made() {
    let issuer = IssuerServer::without_key(Allowing::default()).await;
    let (mut alice, mut verifier) = (issuer.alice().await, issuer.alice().await);
    // Both requests have been sent and get no answer yet.
    let mut token = Box::pin(alice.post("/issue"));
    let mut jwks = Box::pin(verifier.get("/.well-known/jwks.json"));
    let early = futures_util::future::select(&mut token, &mut jwks);
    let early = tokio::time::timeout(Duration::from_millis(50), early).await;
    assert!(early.is_err(), "answered without a key");

    issuer.keys.start(Timestamp::now()).await.unwrap();
    let (token, jwks) = soon("both answers", futures_util::future::join(token, jwks)).await;
    assert_eq!(
        (token.status(), jwks.status()),
        (200, 200),
        "{token:?} {jwks:?}"
    );
    assert_eq!(jwks.json()["keys"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn d16_a_token_is_good_for_a_verifier_whose_clock_is_behind() {
    let issuer = IssuerServer::new().await;
    let claims = verified(&mut issuer.alice().await).await;
    assert_eq!(
        claims["iat"].as_i64().unwrap() - claims["nbf"].as_i64().unwrap(),
        60
    );
}

#[tokio::test]
async fn d20_a_wrong_method_names_the_right_one_and_wrong_paths_are_404() {
    let issuer = IssuerServer::new().await;
    let mut alice = issuer.alice().await;
    let answer = alice.get("/issue").await;
    assert_eq!(answer.refusal(), (405, "method_not_allowed".to_owned()));
    assert_eq!(answer.header("allow"), "POST");
    assert_eq!(alice.post("/_healthz").await.refusal().0, 405);
    assert_eq!(
        alice.get("/issue/").await.refusal(),
        (404, "not_found".to_owned())
    );
    assert_eq!(alice.get("/").await.refusal().0, 404);
}

#[tokio::test]
async fn d20_an_error_of_ours_never_shows_a_path() {
    let issuer = IssuerServer::new().await;
    let mut alice = issuer.alice().await;
    std::fs::remove_dir_all(issuer.dir.path()).unwrap();
    // Signing continues with the loaded key; callers never learn about directories.
    let answer = alice.post("/issue").await;
    let text = String::from_utf8_lossy(answer.0.body()).into_owned();
    assert!(
        !text.contains(issuer.dir.path().to_str().unwrap()),
        "{text}"
    );
}

#[tokio::test]
async fn d21_the_published_keys_are_served_with_what_caches_need() {
    let issuer = IssuerServer::new().await;
    let mut alice = issuer.alice().await;
    let answer = alice.get("/.well-known/jwks.json").await;
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.header("content-type"), "application/json");
    assert_eq!(answer.header("cache-control"), "public, max-age=300");
    let key = &answer.json()["keys"][0];
    assert_eq!(key["kty"], "EC");
    assert!(
        key.get("d").is_none(),
        "the private half is nobody's business"
    );

    let etag = answer.header("etag").to_owned();
    let mut again = request("GET", "/.well-known/jwks.json");
    again
        .headers_mut()
        .insert("if-none-match", etag.parse().unwrap());
    let answer = alice.send(again).await;
    assert_eq!((answer.status(), answer.0.body().len()), (304, 0));
    let answer = alice.send(request("HEAD", "/.well-known/jwks.json")).await;
    assert_eq!((answer.status(), answer.0.body().len()), (200, 0));
}

#[tokio::test]
async fn healthz_answers_as_the_go_program() {
    let issuer = IssuerServer::without_key(Allowing::default()).await;
    let answer = issuer.alice().await.get("/_healthz").await;
    assert_eq!(answer.status(), 200);
    let text = String::from_utf8(answer.0.body().to_vec()).unwrap();
    assert!(
        text.starts_with(r#"{"commit":""#) && text.contains(r#"","ok":true,"version":""#),
        "{text}"
    );
}

#[tokio::test]
async fn d14_a_peer_that_does_not_finish_its_request_is_disconnected_and_blocks_nobody() {
    let issuer = IssuerServer::allowing(Allowing {
        limits: Limits {
            header_time: Duration::from_millis(200),
            ..Limits::default()
        },
        ..Allowing::default()
    })
    .await;
    let slow = issuer
        .world
        .join("slow", Identity::user("slow@example.com"));
    let mut stuck = Vec::new();
    for _ in 0..20 {
        let mut stream = slow
            .dial("tailbone:80", Duration::from_secs(5))
            .await
            .unwrap();
        stream
            .write_all(b"POST /issue HTTP/1.1\r\nHo")
            .await
            .unwrap();
        stuck.push(stream);
    }
    verified(&mut issuer.alice().await).await;
    for mut stream in stuck {
        let mut rest = Vec::new();
        // The connection may be reset: the server does not wait for the rest of the head.
        let _ = soon("the server lets go", stream.read_to_end(&mut rest)).await;
        assert!(!String::from_utf8_lossy(&rest).contains("200 OK"));
    }
}

#[tokio::test]
async fn d14_large_heads_and_bodies_are_refused() {
    let issuer = IssuerServer::new().await;
    let mut alice = issuer.alice().await;
    let mut large = request("POST", "/issue");
    large
        .headers_mut()
        .insert("x-filler", "a".repeat(40 << 10).parse().unwrap());
    assert_eq!(alice.send(large).await.status(), 431);
    let mut body = request("POST", "/issue");
    *body.body_mut() = vec![b'x'; 70 << 10].into();
    assert_eq!(issuer.alice().await.send(body).await.status(), 413);
}

#[tokio::test]
async fn d13_a_stop_lets_open_requests_finish_and_then_says_so() {
    use tailbone::http::serve::Stopped;
    let issuer = IssuerServer::new().await;
    let mut busy = issuer.alice().await;
    verified(&mut busy).await;
    assert_eq!(
        soon("the stop", issuer.server.stop(Duration::from_secs(5))).await,
        Stopped::Drained
    );
}

#[tokio::test]
async fn d13_a_connection_that_is_open_at_the_stop_still_gets_its_answer() {
    use tailbone::http::serve::Stopped;
    let issuer = IssuerServer::new().await;
    let mut fresh = issuer.alice().await;
    let (server, keys) = (issuer.server, issuer.keys);
    let stop = tokio::spawn(async move { server.stop(Duration::from_secs(5)).await });
    // The stop comes first, the request afterwards.
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
    assert_eq!(fresh.post("/issue").await.status(), 200);
    assert_eq!(soon("the stop", stop).await.unwrap(), Stopped::Drained);
    drop(keys);
}

/// A listener that fails.
struct FailingListener;

impl Accept for FailingListener {
    type Io = tailbone::tailnet::Stream;
    type Addr = ();
    async fn accept(&mut self) -> std::io::Result<(Self::Io, ())> {
        Err(std::io::Error::other("the node is gone"))
    }
}

#[tokio::test]
async fn d13_a_failed_listener_is_reported() {
    let mut server = serve(
        "x",
        FailingListener,
        axum::Router::new(),
        Limits::default(),
        |()| Extensions::new(),
    );
    assert_eq!(
        soon("the end", server.failed()).await.to_string(),
        "the node is gone"
    );
}
