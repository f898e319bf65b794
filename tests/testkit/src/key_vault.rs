//! The stand-in for Azure Key Vault (`tests/python/key_vault.py`), and Microsoft's own clients as a
//! second opinion about it (`check_key_vault.py`).

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::SocketAddr,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use jiff::Timestamp;
use tailbone_keys::azure::{AzureClient, AzureIdentity, VaultSettings};
use tailbone_values::Secret;
use tempfile::TempDir;

use crate::{certificates::self_signed, connect_proxy::ConnectProxy, files::venv};

/// The vault's address. Only the client of [`KeyVault::client`] finds it.
pub const VAULT: &str = "https://stub.vault.example";

/// What the vault is told of the one application that it knows.
pub const TENANT: &str = "tenant";
pub const CLIENT: &str = "client";
pub const CLIENT_SECRET: &str = "s3cr3t";

const HOSTS: [&str; 3] = [
    "stub.vault.example",
    "login.microsoftonline.com",
    "login.example",
];

pub fn identity() -> AzureIdentity {
    AzureIdentity::Secret {
        tenant: TENANT.into(),
        client: CLIENT.into(),
        secret: Secret::new(CLIENT_SECRET),
    }
}

/// For a store that uses this name in the vault.
pub fn settings(name: &str) -> VaultSettings {
    VaultSettings {
        vault: VAULT.into(),
        name: name.into(),
        identity: identity(),
    }
}

pub struct KeyVault {
    server: Child,
    addr: SocketAddr,
    folder: TempDir,
}

impl KeyVault {
    pub fn start() -> Self {
        let folder = TempDir::new().unwrap();
        let now = Timestamp::now();
        let day = Duration::from_secs(86_400);
        let pair = self_signed(&HOSTS, now - day, now + day);
        let [certificate, key] =
            ["certificate.pem", "key.pem"].map(|name| folder.path().join(name));
        std::fs::write(&certificate, pair.cert).unwrap();
        std::fs::write(&key, pair.key).unwrap();
        let mut server = Command::new(venv("bin/python"))
            .arg("tests/python/key_vault.py")
            .args([&certificate, &key])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut port = String::new();
        let mut output = BufReader::new(server.stdout.take().unwrap());
        output.read_line(&mut port).unwrap();
        let addr = SocketAddr::from(([127, 0, 0, 1], port.trim().parse().unwrap()));
        Self {
            server,
            addr,
            folder,
        }
    }

    fn http(&self) -> reqwest::Client {
        let certificate = std::fs::read(self.ca_file()).unwrap();
        reqwest::Client::builder()
            .tls_certs_only([reqwest::Certificate::from_pem(&certificate).unwrap()])
            .resolve("stub.vault.example", self.addr)
            .resolve("login.microsoftonline.com", self.addr)
            .no_proxy()
            .build()
            .unwrap()
    }

    /// The certificate to trust.
    pub fn ca_file(&self) -> PathBuf {
        self.folder.path().join("certificate.pem")
    }

    /// A proxy behind which another process finds the vault at its own address.
    pub async fn proxy(&self) -> ConnectProxy {
        ConnectProxy::start(&HOSTS, self.addr).await
    }

    /// For the program under test.
    pub fn client(&self) -> AzureClient {
        AzureClient {
            http: Some(self.http()),
        }
    }

    /// Changes how the vault behaves from now on: `none`, `deny`, `away`, `rotate`, `disable`.
    pub async fn trouble(&self, trouble: &str) {
        let url = format!("{VAULT}/test/{trouble}");
        let answer = self.http().post(url).send().await.unwrap();
        assert!(answer.status().is_success());
    }

    /// What Microsoft's own client does and prints.
    pub fn check(&self, command: &[&str], input: &[u8]) -> Result<String, String> {
        let mut python = Command::new(venv("bin/python"))
            .args([
                "tests/python/check_key_vault.py",
                &self.addr.port().to_string(),
            ])
            .arg(self.ca_file())
            .args(command)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        python.stdin.take().unwrap().write_all(input).unwrap();
        let output = python.wait_with_output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
        if output.status.success() {
            Ok(text(&output.stdout))
        } else {
            Err(text(&output.stderr))
        }
    }
}

impl Drop for KeyVault {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}
