//! The issuer with keys that OpenBao keeps: what callers, readiness and the log say while the
//! service is sealed, away, or no longer lets this server sign.

use std::{fs, sync::Arc};

use reqwest::Method;
use serde_json::{Value, json};
use tailbone::tailnet::Node;
use tempfile::TempDir;
use testkit::{
    daemon::Daemon,
    eventually,
    http::{Answer, Connection},
    openbao::OpenBao,
    tailnet::{DevnetTailnet, Owner, Tailnet},
};

use super::{alone, tailbone};

/// A tailnet with a server whose keys OpenBao keeps, and a caller.
struct Setting {
    bao: OpenBao,
    daemon: Daemon,
    alice: Arc<dyn Node>,
    host: String,
    folder: TempDir,
}

const SIGN: (&str, &[&str]) = ("transit/sign/tailbone-es256", &["update"]);

impl Setting {
    async fn new(tailnet: &DevnetTailnet) -> Self {
        let bao = OpenBao::start().await;
        bao.allow(&[
            SIGN,
            ("transit/keys/tailbone-es256", &["read", "create", "update"]),
            ("transit/keys/tailbone-es256/rotate", &["update"]),
        ])
        .await;
        let folder = TempDir::new().unwrap();
        let token = folder.path().join("vault-token");
        fs::write(&token, bao.token().await).unwrap();
        let host = tailnet.host("tailbone");
        let key = tailnet.devnet.ready_key().await;
        let ca_file = bao.ca_file();
        let address = bao.address();
        let flags = [
            "--signer",
            "vault",
            "--key-algorithm",
            "ES256",
            "--vault-address",
            &address,
            "--vault-ca-file",
            ca_file.to_str().unwrap(),
        ];
        let mut daemon = tailbone(&folder)
            .on(tailnet.devnet)
            .host(&host)
            .auth_key(&key)
            .variable("TB_KEYS_VAULT_TOKEN_FILE", &token)
            .flags(&flags)
            .start();
        daemon.listening(1).await;
        daemon.ready();
        let alice = tailnet
            .node("alice", Owner::User("alice@example.com"))
            .await;
        Self {
            bao,
            daemon,
            alice,
            host,
            folder,
        }
    }

    async fn issue(&self) -> Answer {
        let mut connection = Connection::to(&*self.alice, &self.host, 80).await;
        connection.post("/issue").await
    }

    /// Callers are refused with 503 and told when to try again, and readiness says why.
    async fn refuses(&self, why: &str) {
        eventually(why, async || {
            let answer = self.issue().await;
            let said = answer.json();
            let told = said["error_description"].as_str().unwrap_or_default();
            if answer.status() == 503 && told.contains(why) {
                assert_eq!(answer.refusal().1, "signer_unavailable");
                let after = answer.header("retry-after");
                assert!((1..=5).contains(&after.parse().unwrap()), "{after}");
            } else {
                return Err(format!("{answer:?}"));
            }
            // A single call that fails is no reason to take the server out of service.
            let latch = self.latch().await;
            if latch["ready"] == false && latch["reason"].as_str().unwrap().contains(why) {
                Ok(())
            } else {
                Err(latch.to_string())
            }
        })
        .await;
        // Verifiers are not affected.
        let mut connection = Connection::to(&*self.alice, &self.host, 80).await;
        let jwks = connection.get("/.well-known/jwks.json").await;
        assert_eq!(jwks.status(), 200);
    }

    async fn issues(&self) {
        eventually("a token", async || {
            let answer = self.issue().await;
            match answer.status() {
                200 => Ok(()),
                _ => Err(format!("{answer:?}")),
            }
        })
        .await;
        let latch = self.latch().await;
        assert_eq!(latch["ready"], true, "{latch}");
    }

    async fn latch(&self) -> Value {
        let mut connection = Connection::to(&*self.alice, &self.host, 80).await;
        let all = connection.get("/readyz?verbose").await.json();
        let latches = all["latches"].as_array().unwrap();
        let mut named = latches.iter().filter(|latch| latch["name"] == "key-signs");
        named.next().unwrap().clone()
    }
}

#[test]
fn an_issuer_goes_on_through_what_befalls_its_signing_service() {
    alone(async {
        let tailnet = DevnetTailnet::new();
        let mut setting = Setting::new(&tailnet).await;
        setting.issues().await;

        setting.bao.seal().await;
        setting.refuses("is sealed").await;
        setting.bao.unseal().await;
        setting.issues().await;

        setting.bao.kill();
        setting.refuses("cannot be reached").await;
        setting.bao.run().await;
        setting.refuses("is sealed").await;
        setting.bao.unseal().await;
        setting.issues().await;

        setting.bao.allow(&[("transit/*", &["deny"])]).await;
        setting.refuses("denies this server the permission").await;
        setting.bao.allow(&[SIGN]).await;
        setting.issues().await;

        let bao = &setting.bao;
        let rotate = "transit/keys/tailbone-es256/rotate";
        bao.ok(Method::POST, rotate, json!({})).await;
        let config = "transit/keys/tailbone-es256/config";
        let least = json!({"min_encryption_version": 2});
        bao.ok(Method::POST, config, least).await;
        setting.refuses("disabled or deleted the key").await;
        let least = json!({"min_encryption_version": 0});
        bao.ok(Method::POST, config, least).await;
        setting.issues().await;

        let token = fs::read_to_string(setting.folder.path().join("vault-token")).unwrap();
        let log = setting.daemon.log();
        assert!(!log.contains(&token), "the token is in the log");
        for words in [
            "the signing service does not sign",
            "the signing service signs again",
        ] {
            assert!(log.contains(words), "{words}: {log}");
        }
        assert_eq!(setting.daemon.stop().code(), Some(0), "{log}");
    });
}
