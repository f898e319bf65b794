//! `tailbone workload agent`.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use serde_json::Value;

use super::*;

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// The number that the issuer gave the token in the file.
fn number(path: &Path) -> u64 {
    let token = fs::read_to_string(path).unwrap();
    let claims = jsonwebtoken::dangerous::insecure_decode::<Value>(&token)
        .unwrap()
        .claims;
    claims["jti"].as_str().unwrap().parse().unwrap()
}

#[tokio::test]
async fn once_writes_every_file_with_its_own_audience() {
    let issuer = FakeIssuer::start().await;
    let dir = tempfile::tempdir().unwrap();
    let (aws, azure) = (dir.path().join("aws"), dir.path().join("azure"));
    let writes = [
        format!("sts.amazonaws.com={}", aws.display()),
        format!("https://a.example/?x=1={}", azure.display()),
    ];
    let line = [
        "agent",
        "--server",
        &issuer.url,
        "--once",
        "--write",
        &writes[0],
        "--write",
        &writes[1],
    ];
    run(&line).await.unwrap();
    for (path, audience) in [
        (&aws, "sts.amazonaws.com"),
        (&azure, "https://a.example/?x=1"),
    ] {
        let token = fs::read_to_string(path).unwrap();
        assert_eq!(token.trim(), token, "nothing but the token");
        let claims = jsonwebtoken::dangerous::insecure_decode::<Value>(&token)
            .unwrap()
            .claims;
        assert_eq!(claims["aud"][0], audience);
        assert_eq!(mode(path), 0o600);
    }
    run(&[&line[..], &["--group-read"]].concat()).await.unwrap();
    assert_eq!(mode(&aws), 0o640);
}

#[tokio::test]
async fn once_says_what_failed_and_keeps_the_old_file() {
    let issuer = FakeIssuer::start().await;
    let dir = tempfile::tempdir().unwrap();
    let kept = dir.path().join("kept");
    fs::write(&kept, "old").unwrap();
    let writes = [
        format!("a={}", dir.path().join("new").display()),
        format!("forbidden={}", kept.display()),
    ];
    let line = [
        "agent",
        "--server",
        &issuer.url,
        "--once",
        "--write",
        &writes[0],
        "--write",
        &writes[1],
    ];
    let error = words(&run(&line).await.unwrap_err());
    let start = format!("1 of 2 token files were not written; {}", kept.display());
    assert!(
        error.starts_with(&start) && error.contains("audience_not_allowed"),
        "{error}"
    );
    assert_eq!(fs::read_to_string(&kept).unwrap(), "old");
    assert!(number(&dir.path().join("new")) > 0);

    let twice = [
        "agent",
        "--server",
        &issuer.url,
        "--write",
        &writes[0],
        "--write",
        &writes[0],
    ];
    assert!(matches!(run(&twice).await, Err(WorkloadError::Usage(_))));
    let nowhere = format!("a={}/none/token", dir.path().display());
    let line = [
        "agent",
        "--server",
        &issuer.url,
        "--once",
        "--write",
        &nowhere,
    ];
    let error = words(&run(&line).await.unwrap_err());
    assert!(error.contains("No such file or directory"), "{error}");
}

#[tokio::test]
async fn a_running_agent_renews_by_itself_and_at_a_hangup() {
    let issuer = FakeIssuer::start().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    let write = format!("a={}", path.display());
    // A token of two seconds is renewed after one.
    issuer.set_life(2);
    let agent = Running::start(&["agent", "--server", &issuer.url, "--write", &write], &[]);
    until("a second token", || path.exists() && number(&path) >= 2).await;
    issuer.set_life(3600);
    until("a long token", || issuer.tokens() >= 3).await;
    let before = issuer.tokens();
    agent.signal(Signal::Hangup);
    until("the renewal", || number(&path) > before).await;
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn the_old_file_stays_while_the_issuer_is_away_and_the_health_says_so() {
    let issuer = FakeIssuer::start().await;
    let dir = tempfile::tempdir().unwrap();
    let (path, health) = (dir.path().join("token"), dir.path().join("health"));
    let write = format!("a={}", path.display());
    let read = || -> Value {
        let text = fs::read(&health).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    };
    let line = [
        "agent",
        "--server",
        &issuer.url,
        "--write",
        &write,
        "--health-file",
        health.to_str().unwrap(),
    ];
    let agent = Running::start(&line, &[]);
    until("health", || read()["status"] == "ok").await;
    let token = fs::read_to_string(&path).unwrap();
    let state = read()["files"][0].clone();
    let times = ["renewed_on", "renew_on", "expires_on"].map(|name| state[name].as_i64().unwrap());
    assert!(times.is_sorted(), "{state}");
    assert!(
        3 * (times[1] - times[0]) < 2 * (times[2] - times[0]),
        "{state}"
    );

    issuer.set_away(true);
    agent.signal(Signal::Hangup);
    until("the failure", || read()["status"] == "failing").await;
    assert!(
        read()["files"][0]["error"]
            .as_str()
            .unwrap()
            .contains("503")
    );
    assert_eq!(fs::read_to_string(&path).unwrap(), token);

    issuer.set_away(false);
    until("recovery", || read()["status"] == "ok").await;
    assert_ne!(fs::read_to_string(&path).unwrap(), token);
    agent.stop().await.unwrap();

    // Another agent finds the file of this one.
    issuer.set_away(true);
    let agent = Running::start(&line, &[]);
    until("the failure", || read()["status"] == "failing").await;
    agent.stop().await.unwrap();
    fs::remove_file(&path).unwrap();
    let agent = Running::start(&line, &[]);
    until("no token", || read()["status"] == "down").await;
    agent.stop().await.unwrap();
}

/// A reader sees whole tokens only.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_never_see_a_part_of_a_token() {
    let issuer = FakeIssuer::start().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    let write = format!("a={}", path.display());
    let agent = Running::start(&["agent", "--server", &issuer.url, "--write", &write], &[]);
    until("the file", || path.exists()).await;
    let mut seen = std::collections::BTreeSet::new();
    let reading = tokio::task::spawn_blocking({
        let path = path.clone();
        move || {
            while seen.len() < 20 {
                seen.insert(number(&path));
            }
        }
    });
    while !reading.is_finished() {
        agent.signal(Signal::Hangup);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    reading.await.unwrap();
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn metrics_are_served_on_loopback_alone() {
    let issuer = FakeIssuer::start().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    let write = format!("sts.amazonaws.com={}", path.display());
    let addr = free_address();
    let line = [
        "agent",
        "--server",
        &issuer.url,
        "--write",
        &write,
        "--metrics",
        &addr,
    ];
    let agent = Running::start(&line, &[]);
    until("a token", || path.exists()).await;
    let get = async |path: &str| reqwest::get(format!("http://{addr}{path}")).await.unwrap();
    let text = get("/metrics").await.text().await.unwrap();
    assert!(
        text.contains(&format!(
            "tailbone_workload_agent_renewals_total{{audience=\"sts.amazonaws.com\",path=\"{}\",\
             result=\"ok\"}} 1",
            path.display()
        )),
        "{text}"
    );
    assert!(text.contains("tailbone_workload_agent_token_expiry_timestamp_seconds{"));
    assert_eq!(get("/healthz").await.status(), 200);
    agent.stop().await.unwrap();

    let outside = [
        "workload",
        "agent",
        "--write",
        "a=b",
        "--metrics",
        "0.0.0.0:9464",
    ];
    assert!(Line::try_parse_from(outside).is_err());
}
