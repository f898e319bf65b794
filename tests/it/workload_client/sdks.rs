//! SDKs of the clouds and SPIFFE's library for Python with what `tailbone workload` gives them,
//! against token services that check our tokens with PyJWT.

use std::path::Path;

use serde_json::{Value, json};
use tailbone::keys::{Algorithm, KeySpec};
use testkit::{
    cloud_sdks::{self, AZURE, GOOGLE, joined},
    s3::S3Server,
};

use super::*;

/// Without a port, as AWS wants it.
const ISSUER: &str = "https://id.example.com";
const SUBJECT: &str = "nABC123CNTRL";

/// An issuer whose tokens every cloud takes.
async fn issuer() -> FakeIssuer {
    FakeIssuer::build(SUBJECT, KeySpec::new(Algorithm::Rs256, 2048), Some(ISSUER)).await
}

fn settings(issuer: &FakeIssuer) -> Value {
    let tailbone = env!("CARGO_BIN_EXE_tailbone");
    let all = cloud_sdks::settings(ISSUER, SUBJECT, tailbone, &["--server", &issuer.url]);
    joined([all, json!({"documents": issuer.url})])
}

async fn python(functions: &[&str], issuer: &FakeIssuer, more: Value) -> Result<Value, String> {
    cloud_sdks::run(functions, joined([settings(issuer), more])).await
}

fn agent(issuer: &FakeIssuer, files: &[(&str, &Path)]) -> Running {
    let mut line = vec![
        "agent".to_owned(),
        "--server".to_owned(),
        issuer.url.clone(),
    ];
    for (audience, path) in files {
        line.extend([
            "--write".to_owned(),
            format!("{audience}={}", path.display()),
        ]);
    }
    Running::start(&line.iter().map(String::as_str).collect::<Vec<_>>(), &[])
}

/// An agent renews the file while boto3 reads an object again and again, for which it needs new
/// credentials each time: no renewal of the credentials fails.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn boto3_reads_an_object_while_its_token_is_renewed() {
    let (issuer, store) = (issuer().await, S3Server::start());
    // The shortest that leaves a reader time between its reading and its use of the token.
    issuer.set_life(4);
    store.put_object("what a token buys");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("aws");
    let agent = agent(&issuer, &[("sts.amazonaws.com", &file)]);
    until("the file", || file.exists()).await;
    let more = json!({"aws_file": file, "rotations": 4});
    let more = joined([cloud_sdks::store(&store), more]);
    let functions = ["aws_file", "aws_process"];
    let got = python(&functions, &issuer, more).await.unwrap();
    assert_eq!(got["aws_file"]["refused"], json!([]));
    assert_eq!(got["aws_file"]["object"], "what a token buys");
    assert!(got["aws_file"]["tokens"].as_u64().unwrap() >= 4, "{got}");
    assert!(got["aws_file"]["reads"].as_u64().unwrap() > 10, "{got}");
    assert_eq!(got["aws_process"]["object"], "what a token buys");
    agent.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn azure_and_google_libraries_get_access_tokens() {
    let issuer = issuer().await;
    let dir = tempfile::tempdir().unwrap();
    let [azure, google, secret] = ["azure", "google", "secret"].map(|name| dir.path().join(name));
    let files = [(AZURE, azure.as_path()), (GOOGLE, google.as_path())];
    let agent = agent(&issuer, &files);
    let addr = free_address();
    let line = [
        "serve",
        "--server",
        &issuer.url,
        "--listen",
        &addr,
        "--audience",
        GOOGLE,
        "--secret-file",
        secret.to_str().unwrap(),
    ];
    let source = Running::start(&line, &[]);
    until("the files", || azure.exists() && google.exists()).await;
    until("the source", || std::net::TcpStream::connect(&addr).is_ok()).await;
    let more = json!({
        "azure_file": azure,
        "google_file": google,
        "source": format!("http://{addr}/token"),
        "source_secret": std::fs::read_to_string(&secret).unwrap(),
    });
    let functions = ["azure", "google_file", "google_url", "google_executable"];
    let got = python(&functions, &issuer, more).await.unwrap();
    assert_eq!(
        got,
        json!({
            "azure": {"token": "entra-https://vault.azure.net/.default"},
            "google_file": {"token": "google-token"},
            "google_url": {"token": "google-token"},
            "google_executable": {"token": "google-token", "kept": true},
        })
    );
    source.stop().await.unwrap();
    agent.stop().await.unwrap();
}

/// The services are as strict as the clouds: the same files of an ES256 issuer are no good for
/// Entra, and those of another machine for nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cloud_refuses_what_it_does_not_trust() {
    let es256 = FakeIssuer::build(SUBJECT, KeySpec::Es256, Some(ISSUER)).await;
    let other =
        FakeIssuer::build("nOTHER", KeySpec::new(Algorithm::Rs256, 2048), Some(ISSUER)).await;
    let dir = tempfile::tempdir().unwrap();
    for (issuer, expected) in [
        (&es256, "AADSTS50027: the algorithm ES256"),
        (&other, "AADSTS70021"),
    ] {
        let file = dir.path().join("azure");
        let write = format!("{AZURE}={}", file.display());
        run(&[
            "agent",
            "--once",
            "--server",
            &issuer.url,
            "--write",
            &write,
        ])
        .await
        .unwrap();
        let more = json!({"azure_file": file});
        let said = python(&["azure"], issuer, more).await.unwrap_err();
        assert!(said.contains(expected), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spiffes_library_for_python_takes_the_workload_api() {
    let id = "spiffe://tail1234.ts.net/web";
    let issuer = FakeIssuer::with_subject(id).await;
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("api.sock");
    let path = socket.to_str().unwrap();
    let line = [
        "spiffe",
        "--server",
        &issuer.url,
        "--socket",
        path,
        "--trust-domain",
        "tail1234.ts.net",
    ];
    let api = Running::start(&line, &[]);
    until("the socket", || socket.exists()).await;
    let more = json!({"spiffe_socket": path});
    let got = python(&["spiffe"], &issuer, more).await.unwrap();
    assert_eq!(got["spiffe"]["id"], id);
    assert_eq!(got["spiffe"]["fetched"], id);
    assert_eq!(got["spiffe"]["domains"], json!(["tail1234.ts.net"]));
    api.stop().await.unwrap();
}
