//! `tailbone sts …` against running servers.

use clap::Parser;
use tailbone::{
    cli::{layout::Layout, sts::StsCommandError},
    config::Environment,
};
use tokio::sync::oneshot;

use super::*;

#[derive(Parser)]
struct Line {
    #[command(subcommand)]
    sts: tailbone::cli::sts::Sts,
}

async fn run(arguments: &[&str], variables: &[(&str, &str)]) -> Result<String, StsCommandError> {
    let (out, result) = output_of(arguments, variables).await;
    result.map(|()| out)
}

async fn output_of(
    arguments: &[&str],
    variables: &[(&str, &str)],
) -> (String, Result<(), StsCommandError>) {
    let line = Line::try_parse_from(["sts"].iter().chain(arguments)).unwrap();
    let variables: Environment = variables.iter().copied().collect();
    let mut out = Vec::new();
    let never = std::future::pending();
    let result = line
        .sts
        .run(&variables, Layout::PIPE, &mut out, never)
        .await;
    (String::from_utf8(out).unwrap(), result)
}

pub(super) async fn exchange_command(
    server: &str,
    more: &[&str],
) -> Result<String, StsCommandError> {
    let arguments: Vec<_> = ["exchange", "--server", server]
        .iter()
        .chain(more)
        .copied()
        .collect();
    run(&arguments, &[]).await
}

/// Starts a trial issuer and returns its token and address. It ends when the last value is dropped.
pub(super) async fn trial(
    arguments: &[&str],
    variables: &'static [(&str, &str)],
) -> (String, String, oneshot::Sender<()>) {
    let line = ["sts", "serve-trial-issuer"].iter().chain(arguments);
    let line = Line::try_parse_from(line).unwrap();
    let (stop, stopped) = oneshot::channel();
    let out = Written::default();
    let mut writer = out.clone();
    tokio::spawn(async move {
        let variables: Environment = variables.iter().copied().collect();
        let stopped = async { drop(stopped.await) };
        line.sts
            .run(&variables, Layout::PIPE, &mut writer, stopped)
            .await
            .unwrap();
    });
    until("a token", || out.text().ends_with('\n')).await;
    let token = out.text().trim().to_owned();
    let read = tailbone::jwks::verify::ParsedToken::read(&token).unwrap();
    let base = read.claims.text("iss").unwrap().to_owned();
    (token, base, stop)
}

#[tokio::test]
async fn tokens_come_from_variables_files_and_github() {
    let running = Exchange::new()
        .await
        .policy("p.toml", &["acls", "routes"], "audience = \"us\"")
        .run()
        .await;
    let token = running.token(|_| {});
    let wanted = TokenEndpoint::token_for("acls", "") + "\n";

    let variables = [
        ("TAILSTS_SERVER", running.url.as_str()),
        ("OIDC_TOKEN", &token),
        ("SCOPES", "acls"),
    ];
    assert_eq!(run(&["exchange"], &variables).await.unwrap(), wanted);
    let file = running.dir.path().join(".token");
    std::fs::write(&file, format!("{token}\n")).unwrap();
    assert_eq!(
        exchange_command(&running.url, &["--token-file", file.to_str().unwrap()])
            .await
            .unwrap(),
        wanted
    );
    let named = [("MY_JOB", token.as_str())];
    let server = running.url.as_str();
    assert_eq!(
        run(
            &["exchange", "--server", server, "--token-variable", "MY_JOB"],
            &named
        )
        .await
        .unwrap(),
        wanted
    );

    let json = exchange_command(
        &running.url,
        &["--token", &token, "--scopes", "acls routes", "--json"],
    )
    .await
    .unwrap();
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        (json["expires_in"].as_u64(), json["scope"].as_str()),
        (Some(3600), Some("acls routes"))
    );

    let github = GitHub::start(token).await;
    let variables = [
        ("ACTIONS_ID_TOKEN_REQUEST_URL", github.url.as_str()),
        ("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "runner"),
    ];
    assert_eq!(
        run(
            &["exchange", "--server", server, "--audience", "us"],
            &variables
        )
        .await
        .unwrap(),
        wanted
    );
    let refused = run(
        &["exchange", "--server", server, "--audience", "them"],
        &variables,
    )
    .await
    .unwrap_err();
    assert!(
        refused.to_string().contains("GitHub issued no token: 400"),
        "{refused}"
    );
}

/// GitHub's endpoint: the request token as bearer, and the audience added to the existing query.
struct GitHub {
    url: String,
    _server: Server,
}

impl GitHub {
    async fn start(token: String) -> Self {
        use axum::{Router, extract::Query, routing::get};
        use tailbone::http::json::Json;
        let handler =
            async move |Query(query): Query<std::collections::BTreeMap<String, String>>,
                        headers: HeaderMap| {
                let right = query.get("api-version").is_some_and(|v| v == "2.0")
                    && query.get("audience").is_some_and(|v| v == "us")
                    && headers["authorization"] == "Bearer runner";
                if right {
                    Ok(Json(json!({"value": token, "count": 1})))
                } else {
                    Err(StatusCode::BAD_REQUEST)
                }
            };
        let tcp = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/token?api-version=2.0", tcp.local_addr().unwrap());
        let router = Router::new().route("/token", get(handler));
        Self {
            url,
            _server: serve(
                "github",
                PlainListener(tcp),
                router,
                Limits::default(),
                Remote::identify,
            ),
        }
    }
}

#[tokio::test]
async fn refusals_are_told_without_the_token() {
    let running = Exchange::new()
        .await
        .policy("p.toml", &["acls"], "")
        .run()
        .await;
    let token = running.token(|_| {});
    let refused = exchange_command(&running.url, &["--token", &token, "--scopes", "all"])
        .await
        .unwrap_err()
        .to_string();
    assert!(
        refused.contains("403") && refused.contains("invalid_scope"),
        "{refused}"
    );
    assert!(!refused.contains(&token));
    let gone = exchange_command("http://127.0.0.1:1", &["--token", &token])
        .await
        .unwrap_err();
    assert!(gone.to_string().contains("cannot be reached"), "{gone}");
    let none = exchange_command(&running.url, &[]).await.unwrap_err();
    assert!(matches!(none, StsCommandError::Usage(_)));
}

#[tokio::test]
async fn policies_are_checked_and_explained() {
    let exchange = Exchange::new()
        .await
        .policy("p.toml", &["acls"], "subject = \"test\"")
        .policy("q.toml", &["routes"], "subject = \"q\"");
    let dir = exchange.dir.path().to_str().unwrap();
    let checked = run(&["check", "--policies-dir", dir], &[]).await.unwrap();
    assert!(
        checked.contains("warning: p.toml: audience")
            && checked.ends_with("2 policies, no mistakes\n"),
        "{checked}"
    );
    assert!(
        run(&["check", "--strict"], &[("POLICIES_DIR", dir)])
            .await
            .is_err()
    );

    let file = exchange.dir.path().join(".token");
    std::fs::write(&file, exchange.token(|_| {})).unwrap();
    let explain = [
        "explain",
        "--policies-dir",
        dir,
        "--token-file",
        file.to_str().unwrap(),
        "--scopes",
    ];
    let allowed = run(&[&explain[..], &["acls"]].concat(), &[]).await.unwrap();
    let sentence = allowed.replace(['\n', ' '], "");
    assert!(
        sentence.starts_with("allowed:p.tomlletsthesubject\"test\"oftheissuerhttp")
            && sentence.contains("haveacls"),
        "{allowed}"
    );
    assert!(
        allowed.ends_with(
            "Policies for this issuer\n  p.toml  allows\n  q.toml  the subject differs (subject)\n"
        ),
        "{allowed}"
    );
    let (said, result) = output_of(&[&explain[..], &["dns"]].concat(), &[]).await;
    assert!(matches!(result, Err(StsCommandError::Refused)));
    let sentence = said.replace("\n", " ");
    assert!(
        sentence
            .contains("the nearest, p.toml, would have to change: the scope dns is not allowed"),
        "{said}"
    );

    let file = exchange.dir.path().join(".foreign");
    let foreign = exchange.token(|claims| claims["iss"] = "https://elsewhere.example".into());
    std::fs::write(&file, foreign).unwrap();
    let mut explain = explain;
    explain[4] = file.to_str().unwrap();
    let (said, result) = output_of(&[&explain[..], &["acls"]].concat(), &[]).await;
    assert!(matches!(result, Err(StsCommandError::Refused)));
    assert!(
        said.replace('\n', " ").contains(
            "no policy is about the issuer https://elsewhere.example, so one has to be added"
        ),
        "{said}"
    );

    let one = Exchange::new()
        .await
        .policy("p.toml", &["acls"], "subject = \"test\"");
    let dir = one.dir.path().to_str().unwrap();
    let checked = run(&["check", "--policies-dir", dir], &[]).await.unwrap();
    assert!(checked.ends_with("1 policy, no mistakes\n"), "{checked}");
}
