//! The dialects that TailSTS did not have: OAuth's JSON and RFC 8693.

use super::*;

const GRANT: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
const JWT: &str = "urn:ietf:params:oauth:token-type:jwt";
const ACCESS_TOKEN: &str = "urn:ietf:params:oauth:token-type:access_token";

#[tokio::test]
async fn json_answers_follow_oauth() {
    let running = Exchange::new()
        .await
        .policy("p.toml", &["acls"], "subject = \"test\"")
        .run()
        .await;
    let good = running.token(|_| {});
    let granted = running.ask_json(&good, &["acls"]).await;
    assert_eq!(granted.status, 200);
    assert_eq!(granted.header("cache-control"), "no-store");
    assert_eq!(
        granted.json(),
        json!({"access_token": TokenEndpoint::token_for("acls", ""), "token_type": "Bearer", "expires_in": 3600, "scope": "acls"})
    );

    let bare = running
        .post()
        .header("accept", "application/json")
        .json(&json!({"scopes": ["acls"]}));
    let missing = Answer::of(bare).await;
    assert_eq!(
        (missing.status.as_u16(), missing.header("www-authenticate")),
        (401, "Bearer")
    );

    let expired = running.token(|c| c["exp"] = json!(1));
    let expired = running.ask_json(&expired, &["acls"]).await;
    assert_eq!(expired.status, 401);
    assert_eq!(
        expired.header("www-authenticate"),
        "Bearer error=\"invalid_token\""
    );
    assert_eq!(expired.json()["error"], "invalid_token");
    assert!(!expired.json()["request_id"].as_str().unwrap().is_empty());

    let code = |answer: Answer| {
        (
            answer.status.as_u16(),
            answer.json()["error"].as_str().unwrap().to_owned(),
        )
    };
    let other = running.token(|c| c["sub"] = "other".into());
    assert_eq!(
        code(running.ask_json(&other, &["acls"]).await),
        (403, "access_denied".into())
    );
    assert_eq!(
        code(running.ask_json(&good, &["all"]).await),
        (403, "invalid_scope".into())
    );
    assert_eq!(
        code(running.ask_json(&good, &[]).await),
        (400, "invalid_scope".into())
    );
}

#[tokio::test]
async fn json_tells_strangers_nothing_about_policies() {
    let running = Exchange::new()
        .await
        .policy("p.toml", &["acls"], "")
        .run()
        .await;
    let description = |answer: Answer| answer.json()["error_description"].clone();
    let unknown = running.token(|c| c["iss"] = "https://other.example".into());
    let forged = format!("{}AAAA", running.token(|_| {}));
    assert_eq!(
        description(running.ask_json(&unknown, &["acls"]).await),
        description(running.ask_json(&forged, &["acls"]).await)
    );
}

#[tokio::test]
async fn text_stays_the_default() {
    let running = Exchange::new()
        .await
        .policy("p.toml", &["acls"], "")
        .run()
        .await;
    for accept in [
        "*/*",
        "text/plain",
        "application/json;q=0",
        "text/plain, application/json;q=0.5",
    ] {
        let request = running.post().header("accept", accept).body("x");
        assert_eq!(
            Answer::of(request).await.body,
            "missing Authorization header\n",
            "{accept}"
        );
    }
}

#[tokio::test]
async fn token_exchange_as_rfc_8693_has_it() {
    let running = Exchange::new()
        .await
        .policy(
            "p.toml",
            &["acls", "routes"],
            "tags = [\"tag:ci\", \"tag:web\"]",
        )
        .run()
        .await;
    let good = running.token(|_| {});
    let ask = |changes: &[(&str, &str)]| {
        let mut form = vec![
            ("grant_type", GRANT),
            ("subject_token", &good),
            ("subject_token_type", JWT),
            ("scope", "acls routes"),
        ];
        for (name, value) in changes {
            match form.iter_mut().find(|(known, _)| known == name) {
                Some(pair) if *value != "twice" => pair.1 = value,
                _ => form.push((name, value)),
            }
        }
        Answer::of(running.post().form(&form))
    };
    let granted = ask(&[("tags", "tag:ci"), ("requested_token_type", ACCESS_TOKEN)]).await;
    assert_eq!(
        granted.json(),
        json!({
            "access_token": TokenEndpoint::token_for("acls routes", "tag:ci"),
            "issued_token_type": ACCESS_TOKEN, "token_type": "Bearer", "expires_in": 3600, "scope": "acls routes",
        })
    );
    let code = async |changes: &[(&str, &str)]| {
        let answer = ask(changes).await;
        assert_eq!(answer.header("cache-control"), "no-store");
        (
            answer.status.as_u16(),
            answer.json()["error"].as_str().unwrap().to_owned(),
        )
    };
    let bad = |error: &str| (400, error.to_owned());
    assert_eq!(
        code(&[("grant_type", "client_credentials")]).await,
        bad("invalid_request")
    );
    assert_eq!(code(&[("subject_token", "")]).await, bad("invalid_request"));
    assert_eq!(
        code(&[("subject_token", "x")]).await,
        bad("invalid_request")
    );
    assert_eq!(
        code(&[("subject_token_type", ACCESS_TOKEN)]).await,
        bad("invalid_request")
    );
    assert_eq!(
        code(&[("subject_token", "twice")]).await,
        bad("invalid_request")
    );
    assert_eq!(code(&[("actor_token", "x")]).await, bad("invalid_request"));
    assert_eq!(
        code(&[("audience", "https://aws.example")]).await,
        bad("invalid_target")
    );
    assert_eq!(code(&[("scope", "all")]).await, bad("invalid_scope"));
    assert_eq!(code(&[("scope", "")]).await, bad("invalid_scope"));
    assert_eq!(code(&[("tags", "tag:prod")]).await, bad("invalid_target"));
}

#[tokio::test]
async fn reload_takes_good_policies_and_keeps_the_old_ones_over_bad_ones() {
    let running = Exchange::new()
        .await
        .policy("p.toml", &["acls"], "")
        .run()
        .await;
    let good = running.token(|_| {});
    assert_eq!(running.ask(&good, &["routes"]).await.status, 403);
    let path = running.dir.path().join("p.toml");
    let text = read(&path);
    std::fs::write(&path, text.replace("\"acls\"", "\"routes\"")).unwrap();
    running.sts().reload_policies().unwrap();
    assert_eq!(running.ask(&good, &["routes"]).await.status, 200);
    std::fs::write(&path, "issuer = 1").unwrap();
    running.sts().reload_policies().unwrap_err();
    assert_eq!(running.ask(&good, &["routes"]).await.status, 200);
}
