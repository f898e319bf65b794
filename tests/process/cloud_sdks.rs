//! A machine of the tailnet whose SDKs live on `tailbone workload …`, with the real server: token
//! services check its tokens with PyJWT and the keys that they read through Funnel, and go-spiffe
//! takes the Workload API.

use std::{
    env, fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use aws_config::BehaviorVersion;
use aws_credential_types::provider::ProvideCredentials as _;
use aws_sdk_s3::config::{Credentials, SharedCredentialsProvider};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;
use testkit::{
    cloud_sdks::{self, AZURE, GOOGLE, TokenServices, aws_profile, joined},
    connect_proxy::ConnectProxy,
    daemon::Daemon,
    eventually,
    s3::{self, S3Server},
    soon, until,
    verifiers::workload_api,
};

use super::{
    alone,
    funnel::{Edge, NAME},
    run_again,
    workload::{ISSUER, OPEN, part, start},
};

const AWS: &str = "sts.amazonaws.com";

/// The server, a machine `tag:web` that asks it for tokens, and the way of the clouds.
struct World {
    edge: Edge,
    daemon: Daemon,
    proxy: ConnectProxy,
    /// What commands on the machine are told of the issuer.
    reach: Vec<String>,
}

impl World {
    async fn new(rules: &str, flags: &[&str]) -> Self {
        let edge = Edge::with_authority_and_peers(&["web=tag:web"]);
        let subject = ["--workload-subject", "tag:{tag}"];
        let mut daemon = start(&edge, rules, &[&subject, flags].concat()).await;
        daemon.logs("certificate of the node's name in use").await;
        daemon.ready();
        edge.devnet.ping("web", "public").await;
        // Once the internet reaches the server, clouds do.
        assert_eq!(edge.get("/.well-known/jwks.json").await.status(), 200);
        let proxy = ConnectProxy::start(&[NAME], edge.devnet.ready.funnel["443"]).await;
        let words = ["--server", ISSUER, "--timeout", "30s", "--ca-file"];
        let mut reach: Vec<_> = words.map(str::to_owned).to_vec();
        let tailnet = edge.devnet.ready.peers["web"].proxy.clone();
        reach.extend([ca_file(&edge), "--proxy".to_owned(), tailnet]);
        Self {
            edge,
            daemon,
            proxy,
            reach,
        }
    }

    /// What the clouds trust, and how they reach the issuer's documents.
    fn settings(&self, more: Value) -> Value {
        let reach: Vec<_> = self.reach.iter().map(String::as_str).collect();
        let program = env!("CARGO_BIN_EXE_tailbone");
        let documents = json!({
            "documents_proxy": self.proxy.url(),
            "documents_ca": ca_file(&self.edge),
        });
        let all = cloud_sdks::settings(ISSUER, "tag:web", program, &reach);
        joined([all, documents, more])
    }

    /// A command of `tailbone workload` on the machine, which runs until it is stopped.
    fn client(&self, line: &[&str]) -> Client {
        let child = Command::new(env!("CARGO_BIN_EXE_tailbone"))
            .arg("workload")
            .args(line)
            .args(&self.reach)
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Client { child }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.edge.folder().join(name)
    }

    /// Makes a key that signs once verifiers can have read it.
    fn rotate(&self, algorithm: &str) {
        let set = ["keys", "rotate", "--set", "workload"];
        let rotated = self
            .daemon
            .run(&[&set[..], &["--algorithm", algorithm]].concat());
        let errors = String::from_utf8_lossy(&rotated.stderr);
        assert!(rotated.status.success(), "{errors}");
    }

    fn end(mut self) {
        let log = self.daemon.log();
        assert!(self.daemon.stop().success(), "{log}");
    }
}

fn ca_file(edge: &Edge) -> String {
    let acme = edge.devnet.ready.acme.as_ref().unwrap();
    acme.root_file.display().to_string()
}

/// A running command. Killed when dropped.
struct Client {
    child: Child,
}

impl Client {
    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    fn stop(mut self) {
        self.signal(Signal::TERM);
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_address() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

/// Reads the object with the AWS SDK for Rust, which finds its settings as usual and has no
/// credentials yet.
async fn read_with_rust(store: &S3Server) -> String {
    let role = aws_config::load_defaults(BehaviorVersion::latest()).await;
    let role = role.credentials_provider().unwrap();
    let role = role.provide_credentials().await.unwrap();
    assert!(role.session_token().is_some(), "that is no role");
    // The object store of the tests knows no session tokens.
    let keys = Credentials::new(
        role.access_key_id(),
        role.secret_access_key(),
        None,
        None,
        "test",
    );
    let config = s3::config(Duration::from_secs(5)).into_builder();
    let config = config.credentials_provider(SharedCredentialsProvider::new(keys));
    let config = aws_sdk_s3::config::Builder::from(&config.build())
        .endpoint_url(format!("http://{}", store.addr))
        .force_path_style(true);
    let client = aws_sdk_s3::Client::from_conf(config.build());
    let read = client.get_object().bucket(s3::BUCKET).key(s3::KEY_PATH);
    let object = read.send().await.unwrap();
    let bytes = object.body.collect().await.unwrap().into_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// The clouds keep the issuer's keys for as long as it says. While an agent renews the token three
/// times a second and the server's key is rotated three times, boto3 and the AWS SDK for Rust read
/// an object again and again, each time with new credentials: no renewal fails anywhere.
#[test]
fn keys_rotate_under_a_running_agent_and_no_renewal_of_any_sdk_fails() {
    // The SDK for Rust reads it from the environment of its process.
    const PROFILE: &str = "AWS_CONFIG_FILE";
    let folder = TempDir::new().unwrap();
    let mut again = Command::new(env::current_exe().unwrap());
    again
        .env(PROFILE, folder.path().join("aws-config"))
        .env("AWS_PROFILE", "web");
    run_again(again, async {
        // A new key signs three seconds after it was published.
        let flags = ["--cache-time", "2s", "--clock-skew", "1s"];
        let world = World::new(OPEN, &flags).await;
        let store = S3Server::start();
        store.put_object("what a token buys");
        let (file, metrics) = (world.path("aws"), free_address());
        let write = format!("{AWS}={}", file.display());
        let agent = world.client(&["agent", "--write", &write, "--metrics", &metrics]);
        until("the file", || file.exists()).await;

        let end = world.path("end");
        let more = json!({"aws_file": file, "rotations": 10, "end_file": end});
        let settings = world.settings(joined([cloud_sdks::store(&store), more]));
        let plain = joined([settings.clone(), json!({"certificate": null})]);
        let services = TokenServices::start(&plain);
        let profile = env::var(PROFILE).unwrap();
        fs::write(profile, aws_profile(&file, &services)).unwrap();
        let python = tokio::spawn(async move {
            let functions = ["aws_file", "aws_process"];
            cloud_sdks::run(&functions, settings).await
        });

        let kid = || {
            let token = fs::read_to_string(&file).unwrap();
            part(&token, 0)["kid"].as_str().unwrap().to_owned()
        };
        let mut reads = 0;
        for _ in 0..3 {
            let old = kid();
            world.rotate("RS256");
            eventually("a token of the new key", async || {
                agent.signal(Signal::HUP);
                assert_eq!(read_with_rust(&store).await, "what a token buys");
                reads += 1;
                tokio::time::sleep(Duration::from_millis(300)).await;
                let rotated = kid() != old;
                rotated.then_some(()).ok_or_else(|| old.clone())
            })
            .await;
        }
        fs::write(&end, "").unwrap();

        let got = soon("boto3", python).await.unwrap().unwrap();
        for function in ["aws_file", "aws_process"] {
            assert_eq!(got[function]["object"], "what a token buys");
        }
        assert_eq!(got["aws_file"]["refused"], json!([]));
        assert!(got["aws_file"]["tokens"].as_u64().unwrap() >= 10, "{got}");
        let said = services.said();
        assert_eq!(said.len(), reads, "{said:?}");
        assert!(said.iter().all(|one| one["subject"] == "tag:web"));
        let text = reqwest::get(format!("http://{metrics}/metrics")).await;
        let text = text.unwrap().text().await.unwrap();
        let failed = text.lines().find(|line| line.contains("result=\"failed\""));
        assert!(failed.unwrap().ends_with(" 0"), "{text}");
        println!("{reads} reads of the SDK for Rust, and {got}");
        agent.stop();
        world.end();
    });
}

#[test]
fn azure_and_google_libraries_get_access_tokens_from_the_real_server() {
    alone(async {
        let world = World::new(OPEN, &[]).await;
        let [azure, google, secret] = ["azure", "google", "secret"].map(|name| world.path(name));
        let writes = [(AZURE, &azure), (GOOGLE, &google)];
        let writes = writes.map(|(audience, path)| format!("{audience}={}", path.display()));
        let agent = world.client(&["agent", "--write", &writes[0], "--write", &writes[1]]);
        let addr = free_address();
        let secret_file = secret.to_str().unwrap();
        let line = ["serve", "--listen", &addr, "--audience", GOOGLE];
        let source = world.client(&[&line[..], &["--secret-file", secret_file]].concat());
        until("the files", || azure.exists() && google.exists()).await;
        until("the source", || std::net::TcpStream::connect(&addr).is_ok()).await;
        let settings = world.settings(json!({
            "azure_file": azure,
            "google_file": google,
            "source": format!("http://{addr}/token"),
            "source_secret": fs::read_to_string(&secret).unwrap(),
        }));
        let functions = ["azure", "google_file", "google_url", "google_executable"];
        let got = cloud_sdks::run(&functions, settings).await.unwrap();
        assert_eq!(
            got,
            json!({
                "azure": {"token": "entra-https://vault.azure.net/.default"},
                "google_file": {"token": "google-token"},
                "google_url": {"token": "google-token"},
                "google_executable": {"token": "google-token", "kept": true},
            })
        );
        source.stop();
        agent.stop();
        world.end();
    });
}

/// go-spiffe asks for an SVID and its keys, validates it itself, and lets the API validate it.
#[test]
fn go_spiffe_takes_the_workload_api_of_the_real_server() {
    alone(async {
        let rules = format!("{OPEN}[[audience]]\nmatch = ['nobody']\nsubject = '{{name}}'\n");
        let flags = ["--workload-algorithm", "ES256"];
        let id = "spiffe://example-devnet.ts.net/machine/{tag}";
        let world = World::new(&rules, &[&flags[..], &["--workload-subject", id]].concat()).await;
        let socket = world.path("api.sock");
        let line = ["spiffe", "--socket", socket.to_str().unwrap()];
        let domain = ["--trust-domain", "example-devnet.ts.net"];
        let api = world.client(&[&line[..], &domain].concat());
        until("the socket", || socket.exists()).await;

        let web = "spiffe://example-devnet.ts.net/machine/web";
        let said = workload_api(&socket, "db", "cache").unwrap();
        assert_eq!(said["id"], web);
        assert_eq!(said["validated"], web);
        assert_eq!(said["audience"], json!(["db"]));
        assert_eq!(said["keys"], 2, "one of each algorithm");
        assert_eq!(said["domains"], json!(["example-devnet.ts.net"]));
        let refused = said["refused"].as_str().unwrap();
        assert!(refused.contains("InvalidArgument"), "{refused}");
        // The server's rules give this audience another subject, which is no SPIFFE ID.
        let refused = workload_api(&socket, "nobody", "cache").unwrap_err();
        assert!(refused.contains("PermissionDenied"), "{refused}");

        world.rotate("ES256");
        let said = workload_api(&socket, "db", "cache").unwrap();
        assert_eq!(said["id"], web);
        api.stop();
        world.end();
    });
}
