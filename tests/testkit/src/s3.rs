//! A real S3 server for tests: versitygw on a free loopback port over a temporary directory. It
//! ends when dropped.

use std::{
    net::{SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use aws_config::{BehaviorVersion, SdkConfig, timeout::TimeoutConfig};
use aws_credential_types::Credentials;
use aws_sdk_s3::config::{Region, SharedCredentialsProvider};
use tailbone_keys::jwks::{S3Publisher, S3Settings};
use tempfile::TempDir;

pub const ACCESS: &str = "test-access";
pub const SECRET: &str = "test-secret";

pub const BUCKET: &str = "keys-of-a-test";
pub const KEY_PATH: &str = ".well-known/jwks.json";

pub struct S3Server {
    child: Child,
    pub addr: SocketAddr,
    root: TempDir,
}

impl S3Server {
    /// Starts the server, with an empty bucket.
    pub fn start() -> Self {
        let program = program();
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join(BUCKET)).unwrap();
        // Another process may take the port before the server does.
        for _ in 0..5 {
            let addr = TcpListener::bind("127.0.0.1:0")
                .unwrap()
                .local_addr()
                .unwrap();
            let mut child = Command::new(&program)
                .args(["--access", ACCESS, "--secret", SECRET, "--quiet"])
                .args(["--port", &addr.to_string(), "posix"])
                .arg(root.path())
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap_or_else(|error| panic!("{}: {error}", program.display()));
            if answers(addr, &mut child) {
                return Self { child, addr, root };
            }
            let _ = child.kill();
            let _ = child.wait();
        }
        panic!("versitygw did not start listening");
    }

    /// The object's bytes on the server's disk.
    pub fn object(&self) -> Option<Vec<u8>> {
        std::fs::read(self.root.path().join(BUCKET).join(KEY_PATH)).ok()
    }

    /// Puts an object where the keys would be.
    pub fn put_object(&self, content: &str) {
        let path = self.root.path().join(BUCKET).join(KEY_PATH);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    /// Names of all objects beside it.
    pub fn objects(&self) -> Vec<String> {
        let folder = self.root.path().join(BUCKET).join(".well-known");
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let mut names: Vec<_> = entries
            .map(|entry| entry.file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    pub fn publisher(&self) -> S3Publisher {
        publisher_at(self.addr)
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A publisher that talks to `addr`: the server or a proxy in front of it.
pub fn publisher_at(addr: SocketAddr) -> S3Publisher {
    S3Publisher::with_config(
        &config(Duration::from_secs(5)),
        &S3Settings {
            bucket: BUCKET.to_owned(),
            key_path: KEY_PATH.to_owned(),
            endpoint: Some(format!("http://{addr}")),
            path_style: true,
            cache_time: Duration::from_secs(300),
        },
    )
}

/// As [`publisher_at`], for a bucket that may not exist, or with a short time limit.
pub fn publisher_with(addr: SocketAddr, bucket: &str, patience: Duration) -> S3Publisher {
    S3Publisher::with_config(
        &config(patience),
        &S3Settings {
            bucket: bucket.to_owned(),
            key_path: KEY_PATH.to_owned(),
            endpoint: Some(format!("http://{addr}")),
            path_style: true,
            cache_time: Duration::from_secs(300),
        },
    )
}

pub fn config(patience: Duration) -> SdkConfig {
    SdkConfig::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::from_static("us-east-1"))
        .credentials_provider(SharedCredentialsProvider::new(Credentials::new(
            ACCESS, SECRET, None, None, "test",
        )))
        .timeout_config(
            TimeoutConfig::builder()
                .operation_attempt_timeout(patience)
                .build(),
        )
        .build()
}

fn program() -> PathBuf {
    if let Some(path) = std::env::var_os("TAILBONE_VERSITYGW") {
        return path.into();
    }
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")))
        .unwrap_or_default();
    let path = cache.join("tailbone/bin/versitygw");
    assert!(
        path.exists(),
        "no versitygw for the S3 tests: run scripts/setup, or set TAILBONE_VERSITYGW to its path"
    );
    path
}

fn answers(addr: SocketAddr, child: &mut Child) -> bool {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(20) {
        if TcpStream::connect(addr).is_ok() {
            return true;
        }
        if child.try_wait().is_ok_and(|ended| ended.is_some()) {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    false
}
