//! `tailbone workload google-executable` and `tailbone workload serve`.

use std::os::unix::fs::PermissionsExt as _;

use serde_json::Value;

use super::*;

const AUDIENCE: &str =
    "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/w/providers/p";

async fn executable(variables: &[(&str, &str)]) -> Value {
    let printed = run_as(OutputFormat::Text, &["google-executable"], variables);
    serde_json::from_str(&printed.await.unwrap()).unwrap()
}

#[tokio::test]
async fn an_executable_answers_as_the_libraries_want() {
    let issuer = FakeIssuer::start().await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("cache");
    let variables = [
        ("TAILBONE_WORKLOAD_SERVER", issuer.url.as_str()),
        ("GOOGLE_EXTERNAL_ACCOUNT_AUDIENCE", AUDIENCE),
        (
            "GOOGLE_EXTERNAL_ACCOUNT_OUTPUT_FILE",
            file.to_str().unwrap(),
        ),
    ];
    let answer = executable(&variables).await;
    assert_eq!(answer["version"], 1);
    assert_eq!(answer["success"], true);
    assert_eq!(answer["token_type"], "urn:ietf:params:oauth:token-type:jwt");
    assert!(answer["expiration_time"].as_i64().unwrap() > jiff::Timestamp::now().as_second());
    let claims =
        jsonwebtoken::dangerous::insecure_decode::<Value>(answer["id_token"].as_str().unwrap())
            .unwrap()
            .claims;
    assert_eq!(claims["aud"][0], AUDIENCE);
    let kept: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!(kept, answer);

    issuer.set_away(true);
    let failure = executable(&variables).await;
    assert_eq!(failure["success"], false);
    assert_eq!(failure["code"], "no_token");
    assert!(
        failure["message"].as_str().unwrap().contains("503"),
        "{failure}"
    );
    let saml = [("GOOGLE_EXTERNAL_ACCOUNT_TOKEN_TYPE", "urn:saml2")];
    let failure = executable(&[&variables[..], &saml].concat()).await;
    assert_eq!(failure["code"], "configuration");
    let kept_still: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!(kept_still, kept);
}

/// A running source and its secret.
struct Source {
    base: String,
    secret: String,
    running: Running,
    dir: tempfile::TempDir,
}

impl Source {
    async fn start(issuer: &FakeIssuer) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("secret");
        let addr = free_address();
        let line = [
            "serve",
            "--server",
            &issuer.url,
            "--listen",
            &addr,
            "--audience",
            AUDIENCE,
            "--audience",
            "forbidden",
            "--secret-file",
            file.to_str().unwrap(),
        ];
        let running = Running::start(&line, &[]);
        until("the listener", || {
            std::net::TcpStream::connect(&addr).is_ok()
        })
        .await;
        Self {
            base: format!("http://{addr}"),
            secret: std::fs::read_to_string(file).unwrap(),
            running,
            dir,
        }
    }

    async fn get(&self, path: &str, headers: &[(&str, &str)]) -> (u16, Value) {
        let mut request = reqwest::Client::new().get(format!("{}{path}", self.base));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer = request.send().await.unwrap();
        let status = answer.status().as_u16();
        if status == 200 {
            assert_eq!(answer.headers()["cache-control"], "no-store");
        }
        (status, answer.json().await.unwrap_or_default())
    }
}

#[tokio::test]
async fn a_source_gives_tokens_to_those_who_know_the_secret() {
    let issuer = FakeIssuer::start().await;
    let source = Source::start(&issuer).await;
    let shown = [("X-Tailbone-Secret", source.secret.as_str())];
    let (status, token) = source.get("/token", &shown).await;
    assert_eq!(status, 200);
    let life = token["expires_in"].as_u64().unwrap();
    assert!((295..=300).contains(&life), "{life}");
    let claims =
        jsonwebtoken::dangerous::insecure_decode::<Value>(token["access_token"].as_str().unwrap())
            .unwrap()
            .claims;
    assert_eq!(claims["aud"][0], AUDIENCE);
    // The path shows the secret as well, and the token is given again.
    let path = format!("/{}/token", source.secret);
    let (status, again) = source.get(&path, &[]).await;
    assert_eq!(
        (status, &again["access_token"]),
        (200, &token["access_token"])
    );
    assert_eq!(issuer.tokens(), 1);

    let code = async |path: &str, headers: &[(&str, &str)]| {
        let (status, answer) = source.get(path, headers).await;
        (
            status,
            answer["error"].as_str().unwrap_or_default().to_owned(),
        )
    };
    let no_secret = (403, "no_secret".to_owned());
    assert_eq!(code("/token", &[]).await, no_secret);
    assert_eq!(
        code("/token", &[("X-Tailbone-Secret", "")]).await,
        no_secret
    );
    assert_eq!(
        code("/AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA/token", &[]).await,
        no_secret
    );
    for browser in [
        ("Origin", "https://evil.example"),
        ("Origin", ""),
        ("Sec-Fetch-Site", "none"),
    ] {
        let refused = code("/token", &[shown[0], browser]).await;
        assert_eq!(refused, (403, "browser_request".to_owned()), "{browser:?}");
    }
    let foreign = code("/token", &[shown[0], ("Host", "evil.example")]).await;
    assert_eq!(foreign, (421, "unknown_host".to_owned()));
    let other = code("/token?audience=other", &shown).await;
    assert_eq!(other, (403, "audience_not_allowed".to_owned()));
    let refused = code("/token?audience=forbidden", &shown).await;
    assert_eq!(refused, (403, "no_token".to_owned()));
    assert_eq!(issuer.tokens(), 1);

    let mode = std::fs::metadata(source.dir.path().join("secret"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    source.running.stop().await.unwrap();
}

#[tokio::test]
async fn a_secret_stays_and_a_weak_one_is_refused() {
    let issuer = FakeIssuer::start().await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("secret");
    let first = tailbone::workload::client::google::secret(&file).unwrap();
    let second = tailbone::workload::client::google::secret(&file).unwrap();
    assert_eq!(first.reveal(), second.reveal());
    std::fs::write(&file, "short\n").unwrap();
    let line = [
        "serve",
        "--server",
        &issuer.url,
        "--audience",
        "a",
        "--secret-file",
        file.to_str().unwrap(),
    ];
    let error = words(&run(&line).await.unwrap_err());
    assert!(
        error.contains("at least 16") && !error.contains("short"),
        "{error}"
    );
}
