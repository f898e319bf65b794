//! The component `oidc` through the whole program: a person logs in over TLS on the tailnet, the
//! application redeems through Funnel, and neither a restart nor a database that was away ends
//! anything.

use std::fs;

use ::http::{Request, header};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http_body_util::Full;
use rustix::process::Signal;
use serde_json::{Value, json};
use testkit::{
    daemon::Daemon,
    http::{Answer, Connection},
    pyjwt,
};
use tokio::net::UnixStream;

use super::{
    alone,
    funnel::Edge,
    oidc_server::{
        APP, ID, KID, SECRET, browser_of, posted, provider, start, start_unready, write_tsidp_files,
    },
    workload::{ISSUER, part},
};

/// With the application's secret.
fn redeeming(pairs: &[(&str, &str)]) -> Request<Full<Bytes>> {
    let mut request = posted("/token", pairs);
    let basic = format!("Basic {}", STANDARD.encode(format!("{ID}:{SECRET}")));
    let headers = request.headers_mut();
    headers.insert(header::AUTHORIZATION, basic.parse().unwrap());
    request
}

/// What the application's back end is answered.
async fn through_funnel(edge: &Edge, pairs: &[(&str, &str)]) -> Value {
    let answer: Answer = edge.connection(9, 443).await.send(redeeming(pairs)).await;
    assert_eq!(answer.status(), 200, "{answer:?}");
    answer.json()
}

fn asked() -> String {
    format!(
        "/authorize?response_type=code&client_id={ID}&scope=openid+email&state=s&redirect_uri={APP}"
    )
}

fn code_of(login: &Answer) -> String {
    assert_eq!(login.status(), 302, "{login:?}");
    let location = login.header("location").to_owned();
    let code = location.strip_prefix(&format!("{APP}?code=")).unwrap();
    code.split('&').next().unwrap().to_owned()
}

async fn redeemed(edge: &Edge, code: &str) -> Value {
    let form = [
        ("grant_type", "authorization_code"),
        ("code", code),
        ("redirect_uri", APP),
    ];
    through_funnel(edge, &form).await
}

#[test]
fn an_application_of_tsidp_logs_people_in_and_a_restart_ends_nothing() {
    alone(async {
        let (edge, mut daemon) = provider().await;
        let (_alice, mut browser) = browser_of(&edge, "alice").await;
        let asked = asked();
        let login = browser.get(&asked).await;
        let code = &code_of(&login);
        let tokens = redeemed(&edge, code).await;
        let token = tokens["id_token"].as_str().unwrap();
        // Verifiers that have cached tsidp's document go on.
        assert_eq!(part(token, 0)["kid"], KID.to_string());
        let claims = part(token, 1);
        assert_eq!(
            (&claims["iss"], &claims["aud"]),
            (&json!(ISSUER), &json!(ID))
        );
        assert!(claims["email"].as_str().unwrap().contains('@'), "{claims}");
        assert!(claims["nid"].as_i64().unwrap() > 0, "{claims}");
        let document = edge.get("/.well-known/jwks.json").await;
        let keys = edge.folder().join("read.json");
        fs::write(&keys, document.text()).unwrap();
        pyjwt::verify(&keys, ISSUER, token).unwrap();
        assert_eq!(edge.get(&asked).await.status(), 401);
        // Nobody is at this address, as where a machine is not on the tailnet.
        let away = "https://127.0.0.1:1";
        let flags = ["--components", "oidc", "--oidc-issuer", away];
        let examined = |check: &str| daemon.examined(&flags, check);
        assert_eq!(examined("oidc-dir")["verdict"], "ok");
        let store = examined("oidc-store");
        assert_eq!(store["verdict"], "ok", "{store}");
        let discovery = examined("oidc-discovery");
        assert_eq!(discovery["verdict"], "warn", "{discovery}");

        assert!(daemon.stop().success());
        let log = daemon.log();
        for secret in [SECRET, code, token] {
            assert!(!log.contains(secret), "a secret is in the log");
        }
        let _daemon = start(&edge, &[]).await;
        let refresh = tokens["refresh_token"].as_str().unwrap();
        let refreshed = [("grant_type", "refresh_token"), ("refresh_token", refresh)];
        let again = through_funnel(&edge, &refreshed).await;
        let later = part(again["id_token"].as_str().unwrap(), 1);
        assert_eq!(later["sub"], claims["sub"]);
        assert_eq!(later["auth_time"], claims["auth_time"]);
    });
}

#[test]
fn clients_of_files_are_there_at_the_start_and_follow_their_files_on_reload() {
    alone(async {
        let edge = Edge::with_authority();
        let dir = edge.folder().join("clients");
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("secret"), SECRET).unwrap();
        let describe = |redirect: &str| {
            let text = format!(
                "redirect_uris = ['{redirect}']\nclient_secret = 'file:secret'\nlogin = 'silent'\n"
            );
            fs::write(dir.join(format!("{ID}.toml")), text).unwrap();
        };
        describe(APP);
        let flags = [
            "--components",
            "oidc,metrics",
            "--oidc-listen",
            "tailnet+tls://:443,funnel://:443",
            "--oidc-clients-dir",
            "clients",
        ];
        let mut daemon = edge.start_with(&flags).await;
        daemon.logs("certificate of the node's name in use").await;
        daemon.logs("the clients of files are applied").await;
        daemon.ready();
        let (_alice, mut browser) = browser_of(&edge, "alice").await;
        let login = browser.get(&asked()).await;
        redeemed(&edge, &code_of(&login)).await;

        fs::write(dir.join("another.toml"), "\nredirect_uri = 'x'\n").unwrap();
        describe("https://elsewhere.example.com/callback");
        daemon.signal(Signal::HUP);
        daemon.logs("another.toml, line 2").await;
        assert_eq!(browser.get(&asked()).await.status(), 302);
        fs::remove_file(dir.join("another.toml")).unwrap();
        daemon.signal(Signal::HUP);
        daemon
            .logs_times("the clients of files are applied", 2)
            .await;
        assert_eq!(browser.get(&asked()).await.status(), 400);
        assert!(!daemon.log().contains(SECRET));
    });
}

/// Status of `/readyz`, and the latch of the store.
async fn readiness(daemon: &Daemon) -> (u16, Value) {
    let stream = UnixStream::connect(daemon.path("metrics")).await.unwrap();
    let mut connection = Connection::over(stream).await.host("localhost");
    let answer = connection.get("/readyz?verbose").await;
    let told: Value = answer.json();
    let latches = told["latches"].as_array().unwrap();
    let latch = latches.iter().find(|latch| latch["name"] == "oidc-store");
    (answer.status(), latch.unwrap().clone())
}

#[test]
fn a_postgresql_that_is_away_at_the_start_and_in_between_needs_no_restart() {
    alone(async {
        let Some(mut database) = tailbone_postgres::Server::start() else {
            return;
        };
        let store = database.url(&database.database());
        database.stop();
        let edge = Edge::with_authority();
        write_tsidp_files(&edge);
        let mut daemon = start_unready(&edge, &["--oidc-store", &store]).await;
        daemon.logs("the store cannot be used yet").await;
        let (status, latch) = readiness(&daemon).await;
        assert_eq!((status, &latch["ready"]), (503, &json!(false)), "{latch}");
        let (_alice, mut browser) = browser_of(&edge, "alice").await;
        let unavailable = async |browser: &mut Connection| {
            let refused = browser.get(&asked()).await;
            assert_eq!(refused.status(), 503, "{refused:?}");
            assert_eq!(refused.json()["error"], "temporarily_unavailable");
            assert!(!refused.header("retry-after").is_empty());
        };
        unavailable(&mut browser).await;
        let away = "https://127.0.0.1:1";
        let flags = [
            "--components",
            "oidc",
            "--oidc-issuer",
            away,
            "--oidc-store",
            &store,
        ];
        let examined = daemon.examined(&flags, "oidc-store");
        assert_eq!(examined["verdict"], "fail", "{examined}");

        database.resume();
        daemon.logs("tsidp's clients are here").await;
        daemon.ready();
        let examined = daemon.examined(&flags, "oidc-store");
        assert_eq!(examined["verdict"], "ok", "{examined}");
        let tokens = redeemed(&edge, &code_of(&browser.get(&asked()).await)).await;

        database.stop();
        for _ in 0..3 {
            unavailable(&mut browser).await;
        }
        let (status, latch) = readiness(&daemon).await;
        let degraded = (&latch["ready"], &latch["degraded"]);
        let ready = (&json!(true), &json!(true));
        assert_eq!((status, degraded), (200, ready), "{latch}");
        database.resume();
        daemon.logs("the store answers again").await;
        let refresh = tokens["refresh_token"].as_str().unwrap();
        let refreshed = [("grant_type", "refresh_token"), ("refresh_token", refresh)];
        through_funnel(&edge, &refreshed).await;
        redeemed(&edge, &code_of(&browser.get(&asked()).await)).await;
        assert!(daemon.stop().success());
        let log = daemon.log();
        assert_eq!(log.matches("the store does not answer").count(), 1, "{log}");
        let reasons = log.lines().filter_map(|line| {
            let (_, reason) = line.split_once("the store cannot be used yet")?;
            Some(reason.to_owned())
        });
        let mut reasons: Vec<_> = reasons.collect();
        let lines = reasons.len();
        reasons.sort_unstable();
        reasons.dedup();
        assert_eq!(reasons.len(), lines, "a reason is there twice: {log}");
    });
}
