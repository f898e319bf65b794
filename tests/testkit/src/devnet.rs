//! A tailnet on loopback (`scripts/devnet`) as a value: started by [`Devnet::start`], gone when
//! dropped.
//!
//! `TAILBONE_DEVNET_BIN` names another program to start. Each call of the test API has a function
//! here, which panics with the server's message if it refuses.

use std::{
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};

use serde::Deserialize;
use serde_json::{Value, json};

/// A running devnet.
#[derive(Debug)]
pub struct Devnet {
    pub ready: Ready,
    http: OnceLock<reqwest::Client>,
    child: Child,
}

/// The line that it prints when it is ready.
#[derive(Debug, Clone, Deserialize)]
pub struct Ready {
    pub control_url: String,
    pub auth_key: String,
    pub api_url: String,
    /// If the tailnet started with HTTPS.
    pub acme: Option<AcmeRecord>,
    /// Where each port of Funnel is on loopback, if it started with Funnel.
    #[serde(default)]
    pub funnel: std::collections::BTreeMap<String, SocketAddr>,
    #[serde(default)]
    pub peers: std::collections::BTreeMap<String, PeerRecord>,
}

/// The certificate authority of the tailnet.
#[derive(Debug, Clone, Deserialize)]
pub struct AcmeRecord {
    pub directory: String,
    /// Who vouches for its server.
    pub ca_file: PathBuf,
    /// Who signs what it issues.
    pub root_file: PathBuf,
}

/// What the certificate authority has been asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct AcmeCounts {
    pub requests: u64,
    /// Those that were accepted.
    pub orders: u64,
}

#[derive(Debug, Clone, Deserialize)]
pub struct PeerRecord {
    pub ip: String,
    pub proxy: String,
}

/// What a new auth key allows.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub struct Key {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub login: String,
    pub tags: Vec<String>,
    pub ephemeral: bool,
    pub reusable: bool,
    pub preauthorized: bool,
    pub expired: bool,
}

impl Devnet {
    /// A tailnet for one test, which may change what all nodes share (trouble of the control
    /// server, approval).
    pub fn start() -> Self {
        Self::with_peers(&[])
    }

    /// With HTTPS and a certificate authority.
    pub fn with_https() -> Self {
        Self::with_flags(["--https"])
    }

    /// With HTTPS and Funnel, but without a certificate authority.
    pub fn with_funnel() -> Self {
        Self::with_flags(["--funnel"])
    }

    /// Each peer as `NAME=LOGIN` or `NAME=tag:X`.
    pub fn with_peers(peers: &[&str]) -> Self {
        Self::with_flags(peers.iter().flat_map(|peer| ["--peer", peer]))
    }

    /// Each peer as `NAME=LOGIN` or `NAME=tag:X`, with HTTPS and a certificate authority.
    pub fn with_https_and_peers(peers: &[&str]) -> Self {
        let peers = peers.iter().flat_map(|peer| ["--peer", peer]);
        Self::with_flags(["--https"].into_iter().chain(peers))
    }

    /// The same with Funnel.
    pub fn with_https_funnel_and_peers(peers: &[&str]) -> Self {
        let peers = peers.iter().flat_map(|peer| ["--peer", peer]);
        Self::with_flags(["--https", "--funnel"].into_iter().chain(peers))
    }

    fn with_flags<'a>(flags: impl IntoIterator<Item = &'a str>) -> Self {
        let mut command = Command::new(program());
        command.args(flags);
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            // Inherited, so that the devnet's messages appear when a test fails.
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap_or_else(|e| panic!("starting {}: {e}", program().display()));
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap())
            .read_line(&mut line)
            .unwrap();
        let ready = serde_json::from_str(&line)
            .unwrap_or_else(|e| panic!("devnet said {line:?} instead of what it offers: {e}"));
        Self {
            ready,
            http: OnceLock::new(),
            child,
        }
    }

    /// One devnet for all tests of this process that use only their own nodes. It ends with the
    /// process.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Devnet> = OnceLock::new();
        SHARED.get_or_init(Self::start)
    }

    /// A key that needs no approval, for a node of any user.
    pub async fn ready_key(&self) -> String {
        let key = Key {
            preauthorized: true,
            ..Key::default()
        };
        self.key(&key).await
    }

    pub async fn key(&self, key: &Key) -> String {
        let made = self.post("/keys", json!(key)).await;
        made["auth_key"].as_str().unwrap().to_owned()
    }

    /// A client that trades its secret (or, with `jwt`, that ID token) for auth keys with these
    /// tags. Returns its id, and its secret in the form that the node takes.
    pub async fn oauth_client(&self, tags: &[&str], jwt: Option<&str>) -> (String, String) {
        let mut client = json!({ "tags": tags });
        if let Some(jwt) = jwt {
            client["jwt"] = json!(jwt);
        }
        let made = self.post("/oauth-clients", client).await;
        let text = |name: &str| made[name].as_str().unwrap_or_default().to_owned();
        let secret = format!("{}?baseURL={}", text("client_secret"), text("base_url"));
        (text("client_id"), secret)
    }

    /// Renames the node's user, for all nodes of that user.
    pub async fn rename_login(&self, node: &str, login: &str) {
        self.post(&format!("/nodes/{node}/login"), json!({ "login": login }))
            .await;
    }

    pub async fn set_tags(&self, node: &str, tags: &[&str]) {
        self.post(&format!("/nodes/{node}/tags"), json!({ "tags": tags }))
            .await;
    }

    pub async fn expire(&self, node: &str) {
        self.post(&format!("/nodes/{node}/expire"), json!({})).await;
    }

    pub async fn unexpire(&self, node: &str) {
        self.post(&format!("/nodes/{node}/unexpire"), json!({}))
            .await;
    }

    pub async fn approve(&self, node: &str) {
        self.post(&format!("/nodes/{node}/approve"), json!({}))
            .await;
    }

    pub async fn delete_node(&self, node: &str) {
        self.call(reqwest::Method::DELETE, &format!("/nodes/{node}"), None)
            .await;
    }

    pub async fn nodes(&self) -> Vec<Value> {
        let all = self.call(reqwest::Method::GET, "/nodes", None).await;
        all["nodes"].as_array().unwrap().clone()
    }

    /// Completes the login of a waiting node, as a person would at its URL.
    pub async fn complete_login(&self, host: &str, login: &str) {
        self.post(
            &format!("/logins/{host}/complete"),
            json!({ "login": login }),
        )
        .await;
    }

    /// Opens the WireGuard session between a peer and a node. Without it a caller whose first
    /// packet is lost waits 5 s.
    pub async fn ping(&self, peer: &str, to: &str) {
        self.post(&format!("/peers/{peer}/ping"), json!({ "to": to }))
            .await;
    }

    /// Makes a peer open connections to a port of a node and reset each as soon as it is
    /// established. Returns their number.
    pub async fn resets(&self, peer: &str, to: &str, port: u16, during: Duration) -> u64 {
        let during = u64::try_from(during.as_millis()).unwrap();
        let order = json!({ "to": to, "port": port, "at_once": 8, "for_ms": during });
        let done = self.post(&format!("/peers/{peer}/resets"), order).await;
        done["reset"].as_u64().unwrap()
    }

    pub async fn grant(&self, src: &str, dst: &str, cap: &str, value: Value) {
        let caps = json!({ cap: [value] });
        self.post("/grants", json!({ "src": src, "dst": dst, "caps": caps }))
            .await;
    }

    /// Replaces the access rules, each given as (src, dst, ports).
    pub async fn access(&self, rules: &[(&str, &str, &str)]) {
        let rules: Vec<_> = rules
            .iter()
            .map(|(src, dst, ports)| json!({ "src": src, "dst": dst, "ports": ports }))
            .collect();
        self.post("/access", json!({ "rules": rules })).await;
    }

    /// Changes switches of the tailnet: `require_approval`, `require_auth`, …
    pub async fn configure(&self, switches: Value) {
        self.post("/config", switches).await;
    }

    /// Sets the trouble of the control server: `{"mode":"ok|hold|fail|slow|down", …}`.
    pub async fn control(&self, trouble: Value) {
        self.post("/control", trouble).await;
    }

    /// Sets the fault of the certificate authority, as [`Self::control`] does.
    pub async fn set_acme_fault(&self, fault: Value) {
        self.post("/acme", fault).await;
    }

    pub async fn acme_counts(&self) -> AcmeCounts {
        let counts = self.call(reqwest::Method::GET, "/acme", None).await;
        serde_json::from_value(counts).unwrap()
    }

    async fn post(&self, path: &str, body: Value) -> Value {
        self.call(reqwest::Method::POST, path, Some(body)).await
    }

    async fn call(&self, method: reqwest::Method, path: &str, body: Option<Value>) -> Value {
        // A client belongs to the runtime that first used it, but a shared devnet serves tests that
        // each have their own. So connections are not reused.
        let http = self.http.get_or_init(|| {
            reqwest::Client::builder()
                .pool_max_idle_per_host(0)
                .no_proxy()
                .build()
                .unwrap()
        });
        let mut request = http.request(method.clone(), format!("{}{path}", self.ready.api_url));
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response = request
            .send()
            .await
            .unwrap_or_else(|e| panic!("devnet {method} {path}: {e}"));
        let status = response.status();
        let text = response.text().await.unwrap();
        assert!(
            status.is_success(),
            "devnet {method} {path}: {status}: {text}"
        );
        serde_json::from_str(&text).unwrap()
    }
}

impl Drop for Devnet {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        // It is our child and not waited for yet, so the process id is still its own.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(5) {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn program() -> PathBuf {
    std::env::var_os("TAILBONE_DEVNET_BIN")
        .map_or_else(|| crate::files::tree("scripts/devnet"), PathBuf::from)
}
