//! A real OpenBao server for tests, with TLS, on a free loopback port over a temporary directory.
//! It is unsealed and has a transit engine. It ends when dropped.

use std::{
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use jiff::{SignedDuration, Timestamp};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tailbone_keys::remote::vault::{VaultSettings, VaultToken};
use tailbone_values::Secret;
use tempfile::TempDir;

use crate::{certificates::self_signed, connect_proxy::ConnectProxy, patience};

pub struct OpenBao {
    child: Option<Child>,
    pub addr: SocketAddr,
    folder: TempDir,
    client: reqwest::Client,
    root: String,
    unseal_key: String,
    /// The way to issuers.
    proxy: Option<String>,
}

impl OpenBao {
    pub async fn start() -> Self {
        Self::start_behind(None).await
    }

    /// With this proxy between it and the issuers of tokens.
    pub async fn start_behind(proxy: Option<&ConnectProxy>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let now = Timestamp::now();
        let day = SignedDuration::from_hours(24);
        let certificate = self_signed(&["localhost"], now - day, now + day);
        std::fs::write(folder.path().join("tls.crt"), &certificate.cert).unwrap();
        std::fs::write(folder.path().join("tls.key"), &certificate.key).unwrap();
        let client = reqwest::Client::builder()
            .tls_certs_merge([reqwest::Certificate::from_der(&certificate.der).unwrap()])
            .no_proxy()
            .build()
            .unwrap();
        let addr = free_port();
        let mut bao = Self {
            child: None,
            addr,
            folder,
            client,
            root: String::new(),
            unseal_key: String::new(),
            proxy: proxy.map(ConnectProxy::url),
        };
        bao.run().await;
        let shares = json!({"secret_shares": 1, "secret_threshold": 1});
        let made = bao.ok(Method::PUT, "sys/init", shares).await;
        bao.root = made["root_token"].as_str().unwrap().to_owned();
        bao.unseal_key = made["keys_base64"][0].as_str().unwrap().to_owned();
        bao.unseal().await;
        let engine = json!({"type": "transit"});
        bao.ok(Method::POST, "sys/mounts/transit", engine).await;
        bao
    }

    /// Ends the server at once. Its keys stay on the disk.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Starts the server again, which is sealed then.
    pub async fn run(&mut self) {
        let at = |name: &str| self.folder.path().join(name).display().to_string();
        std::fs::create_dir_all(at("storage")).unwrap();
        let cluster = free_port();
        let config = json!({
            "api_addr": self.address(),
            "cluster_addr": format!("https://{cluster}"),
            "listener": [{"tcp": {
                "address": self.addr.to_string(),
                "cluster_address": cluster.to_string(),
                "tls_cert_file": at("tls.crt"),
                "tls_key_file": at("tls.key"),
            }}],
            "storage": {"raft": {
                "path": at("storage"),
                "node_id": "test",
                "performance_multiplier": "1",
            }},
        });
        std::fs::write(at("config.json"), config.to_string()).unwrap();
        let log = std::fs::File::create(at("log")).unwrap();
        let program = program();
        let mut child = Command::new(&program)
            .args(["server", "-config", &at("config.json")])
            .envs(self.proxy.iter().map(|url| ("HTTPS_PROXY", url)))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", program.display()));
        let began = Instant::now();
        while self
            .client
            .get(format!("{}/v1/sys/seal-status", self.address()))
            .send()
            .await
            .is_err()
        {
            let ended = child.try_wait().unwrap().is_some();
            assert!(
                !ended && began.elapsed() < patience(),
                "OpenBao does not answer: {}",
                std::fs::read_to_string(at("log")).unwrap()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.child = Some(child);
    }

    pub async fn seal(&self) {
        self.ok(Method::PUT, "sys/seal", json!({})).await;
    }

    pub async fn unseal(&self) {
        let key = json!({"key": self.unseal_key});
        self.ok(Method::PUT, "sys/unseal", key).await;
        // The mounts come a moment after the answer.
        let began = Instant::now();
        let health = format!("{}/v1/sys/health", self.address());
        while !self
            .client
            .get(&health)
            .send()
            .await
            .is_ok_and(|answer| answer.status() == 200)
        {
            assert!(began.elapsed() < patience(), "OpenBao stays sealed");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// A call as root, which must succeed.
    pub async fn ok(&self, method: Method, path: &str, body: Value) -> Value {
        let (status, answer) = self.call(method, path, body).await;
        assert!(status.is_success(), "{path}: {status}: {answer}");
        answer
    }

    /// A call as root.
    pub async fn call(&self, method: Method, path: &str, body: Value) -> (StatusCode, Value) {
        let answer = self
            .client
            .request(method, format!("{}/v1/{path}", self.address()))
            .header("X-Vault-Token", &self.root)
            .json(&body)
            .send()
            .await
            .unwrap();
        let status = answer.status();
        let text = answer.text().await.unwrap();
        (status, serde_json::from_str(&text).unwrap_or_default())
    }

    /// Sets the policy `signer`: a path and its capabilities for each line.
    pub async fn allow(&self, lines: &[(&str, &[&str])]) {
        let rule = |(path, capabilities): &(&str, &[&str])| {
            format!("path \"{path}\" {{ capabilities = {capabilities:?} }}\n")
        };
        let policy: String = lines.iter().map(rule).collect();
        let body = json!({"policy": policy});
        self.ok(Method::PUT, "sys/policies/acl/signer", body).await;
    }

    /// A new token that has the policy `signer`.
    pub async fn token(&self) -> String {
        let body = json!({"policies": ["signer"], "no_default_policy": true});
        let made = self.ok(Method::POST, "auth/token/create", body).await;
        made["auth"]["client_token"].as_str().unwrap().to_owned()
    }

    pub fn address(&self) -> String {
        format!("https://localhost:{}", self.addr.port())
    }

    pub fn ca_file(&self) -> PathBuf {
        self.folder.path().join("tls.crt")
    }

    /// As root, with a transit key per algorithm.
    pub fn settings(&self) -> VaultSettings {
        VaultSettings {
            address: self.address().parse().unwrap(),
            mount: "transit".into(),
            key: "tailbone-{algorithm}".into(),
            namespace: None,
            token: VaultToken::Fixed(Secret::new(self.root.clone())),
            ca_file: Some(self.ca_file()),
        }
    }
}

impl Drop for OpenBao {
    fn drop(&mut self) {
        self.kill();
    }
}

fn free_port() -> SocketAddr {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    socket.local_addr().unwrap()
}

fn program() -> PathBuf {
    if let Some(path) = std::env::var_os("TAILBONE_OPENBAO") {
        return path.into();
    }
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")))
        .unwrap_or_default();
    let path = cache.join("tailbone/bin/bao");
    assert!(
        path.exists(),
        "no OpenBao for the tests of signing services: run scripts/setup --tests, or set \
         TAILBONE_OPENBAO to its path"
    );
    path
}
