//! The endpoint of the standards (RFC 6749, 8693 and 8707).

use super::*;

const EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
const JWT: &str = "urn:ietf:params:oauth:token-type:jwt";

async fn post(connection: &mut Connection, path: &str, form: &[(&str, &str)]) -> Answer {
    let body = form
        .iter()
        .fold(
            url::form_urlencoded::Serializer::new(String::new()),
            |mut all, (name, value)| {
                all.append_pair(name, value);
                all
            },
        )
        .finish();
    let (mut parts, _) = request("POST", path).into_parts();
    let form = "application/x-www-form-urlencoded".parse().unwrap();
    parts.headers.insert("content-type", form);
    connection
        .send(Request::from_parts(parts, Full::from(body)))
        .await
}

fn error(answer: &Answer) -> (u16, String) {
    let error = answer.json()["error"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    (answer.status(), error)
}

fn bad(code: &str) -> (u16, String) {
    (400, code.to_owned())
}

#[tokio::test]
async fn client_credentials_are_the_connection_and_numbers_are_numbers() {
    let server = WorkloadServer::open().await;
    let mut web = server.web().await;
    for path in ["/oauth/token", "/token"] {
        let form = [("grant_type", "client_credentials"), ("resource", AUDIENCE)];
        let answer = post(&mut web, path, &form).await;
        assert_eq!(answer.status(), 200, "{answer:?}");
        assert_eq!(answer.header("cache-control"), "no-store");
        let body = answer.json();
        assert_eq!(body["token_type"], "Bearer");
        assert_eq!(body["expires_in"], 300);
        assert!(body.get("issued_token_type").is_none());
        let (_, claims) = server.verified(&token_in(&answer)).await;
        assert_eq!(claims["aud"], json!([AUDIENCE]));
    }
}

#[tokio::test]
async fn a_token_of_the_same_node_is_exchanged_for_one_of_another_audience() {
    let server = WorkloadServer::open().await;
    let mut web = server.web().await;
    let token = token_in(&token_for(&mut web, "first").await);
    let form = |token: &str| {
        [
            ("grant_type", EXCHANGE.to_owned()),
            ("subject_token", token.to_owned()),
            ("subject_token_type", JWT.to_owned()),
            ("audience", AUDIENCE.to_owned()),
        ]
    };
    let ask = async |connection: &mut Connection, token: &str| {
        let form = form(token);
        let form: Vec<(&str, &str)> = form
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        post(connection, "/oauth/token", &form).await
    };
    let answer = ask(&mut web, &token).await;
    assert_eq!(answer.status(), 200, "{answer:?}");
    assert_eq!(answer.json()["issued_token_type"], JWT);
    assert_eq!(answer.json()["token_type"], "N_A");
    let (_, claims) = server.verified(&token_in(&answer)).await;
    assert_eq!(claims["aud"], json!([AUDIENCE]));

    let mut other = server.call("other", Identity::tagged(["tag:web"])).await;
    assert_eq!(
        error(&ask(&mut other, &token).await),
        bad("invalid_request"),
        "another node's"
    );
    let (head, signature) = token.rsplit_once('.').unwrap();
    let forged = format!("{head}.{}", signature.chars().rev().collect::<String>());
    for wrong in ["", "a.b.c", &forged, "eyJhbGciOiJub25lIn0.e30."] {
        assert_eq!(
            error(&ask(&mut web, wrong).await),
            bad("invalid_request"),
            "{wrong}"
        );
    }
}

#[tokio::test]
async fn requests_that_are_wrong_are_told_in_the_standards_words() {
    let server = WorkloadServer::open().await;
    let mut web = server.web().await;
    let credentials = ("grant_type", "client_credentials");
    for (form, expected) in [
        (vec![("audience", "a")], bad("invalid_request")),
        (
            vec![("grant_type", "password"), ("audience", "a")],
            bad("unsupported_grant_type"),
        ),
        (vec![credentials], bad("invalid_request")),
        (
            vec![credentials, ("audience", "a"), ("audience", "b")],
            bad("invalid_request"),
        ),
        (
            vec![credentials, ("audience", "a"), ("resource", "b")],
            bad("invalid_target"),
        ),
        (
            vec![credentials, credentials, ("audience", "a")],
            bad("invalid_request"),
        ),
        (
            vec![("grant_type", EXCHANGE), ("audience", "a")],
            bad("invalid_request"),
        ),
        (
            vec![
                ("grant_type", EXCHANGE),
                ("audience", "a"),
                ("subject_token", "x"),
                ("subject_token_type", "urn:x"),
            ],
            bad("invalid_request"),
        ),
    ] {
        assert_eq!(
            error(&post(&mut web, "/oauth/token", &form).await),
            expected,
            "{form:?}"
        );
    }
    let long = "a".repeat(513);
    let form = [credentials, ("audience", long.as_str())];
    assert_eq!(
        error(&post(&mut web, "/oauth/token", &form).await),
        bad("invalid_target")
    );
    let no_form = web.post("/oauth/token").await;
    assert_eq!(error(&no_form), bad("invalid_request"));
}

#[tokio::test]
async fn the_same_rules_decide_and_browsers_are_refused() {
    let server = WorkloadServer::with_rules("").await;
    let mut web = server.web().await;
    let form = [("grant_type", "client_credentials"), ("audience", "a")];
    assert_eq!(
        error(&post(&mut web, "/oauth/token", &form).await),
        bad("invalid_target")
    );

    let mut request = request("POST", "/oauth/token");
    request
        .headers_mut()
        .insert("origin", "https://evil.example".parse().unwrap());
    assert_eq!(web.send(request).await.status(), 403);
}
