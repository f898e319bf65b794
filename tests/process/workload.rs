//! The component `workload` through the whole program: a node of the tailnet gets a token over TLS,
//! and the internet reads the keys through Funnel.

use std::{fs, sync::Arc};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use tailbone::{
    keys::{KeyId, KeySpec, PrivateJwk},
    tailnet::{EmbeddedNode, Node as _},
};
use testkit::{
    daemon::Daemon,
    http::{Answer, Connection, dial, request},
    key_vault::{self, KeyVault},
    pyjwt,
    tailnet::users_node,
};

use super::{
    alone,
    certificates::{ask, client, handshake},
    funnel::{Edge, NAME, claim_everything},
};

const AUDIENCE: &str = "https://vault.example.com";

pub(super) const ISSUER: &str = "https://public.example-devnet.ts.net";

const LATCHES: [&str; 2] = ["workload-key-signs", "workload-jwks-read"];

/// Every audience for everybody.
pub(super) const OPEN: &str = "[[rule]]\ndecision = \"allow\"\n";

/// The server, which issues on the tailnet by these rules, and publishes on the internet.
pub(super) async fn start(edge: &Edge, rules: &str, flags: &[&str]) -> Daemon {
    fs::write(edge.folder().join("workload.toml"), rules).unwrap();
    let all = [
        "--components",
        "workload,metrics",
        "--workload-listen",
        "tailnet+tls://:443,funnel://:443",
        "--workload-policy",
        "workload.toml",
    ];
    edge.start_with(&[&all, flags].concat()).await
}

/// A connection over TLS from a node of the tailnet.
pub(super) async fn https(edge: &Edge, node: &EmbeddedNode) -> Connection {
    let config = Arc::new(client(std::slice::from_ref(&edge.root), &["http/1.1"]));
    let stream = dial(node, &format!("{NAME}:443")).await;
    let stream = handshake(&config, NAME, stream).await.unwrap();
    Connection::over(stream).await.host(NAME)
}

/// What clients of tsiam ask for.
pub(super) async fn token(connection: &mut Connection, audience: &str) -> String {
    let mut asked = request("POST", &format!("/token?resource={audience}"));
    asked.headers_mut().insert("x-tsiam", "1".parse().unwrap());
    let answer = connection.send(asked).await;
    assert_eq!(answer.status(), 200, "{answer:?}");
    answer.json()["access_token"].as_str().unwrap().to_owned()
}

/// The header or the claims of a token.
pub(super) fn part(token: &str, at: usize) -> Value {
    let part = token.split('.').nth(at).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
}

/// What PyJWT says of the token with the keys that the internet reads.
async fn verified(edge: &Edge, token: &str) {
    let document = edge.get("/.well-known/jwks.json").await;
    assert_eq!(document.status(), 200, "{document:?}");
    let file = edge.folder().join("read.json");
    fs::write(&file, document.text()).unwrap();
    pyjwt::verify(&file, ISSUER, token).unwrap();
}

/// The names and states of the workload latches, as the metrics socket shows them and as `status`
/// does.
async fn latches(daemon: &Daemon) -> [Vec<(String, bool)>; 2] {
    let output = daemon.run(&["status", "-o", "json"]);
    let status = String::from_utf8(output.stdout).unwrap();
    [ask(daemon, "/readyz?verbose").await, status].map(|shown| {
        let shown: Value = serde_json::from_str(&shown).unwrap();
        let latches = shown["latches"].as_array().unwrap().iter();
        latches
            .map(|latch| (latch["name"].as_str().unwrap(), latch["ready"] == true))
            .filter(|(name, _)| LATCHES.contains(name))
            .map(|(name, ready)| (name.to_owned(), ready))
            .collect()
    })
}

fn not_found(answer: &Answer) {
    assert_eq!(
        (answer.status(), answer.text().as_str()),
        (404, "404 page not found\n")
    );
}

#[test]
fn tokens_come_over_the_tailnet_and_their_keys_through_funnel() {
    alone(async {
        let edge = Edge::with_authority();
        let mut daemon = start(&edge, OPEN, &[]).await;
        daemon.logs("certificate of the node's name in use").await;
        daemon.ready();
        let released = LATCHES.map(|name| (name.to_owned(), true)).to_vec();
        assert_eq!(latches(&daemon).await, [released.clone(), released]);

        let alice = users_node(&edge.devnet, edge.folder(), "alice").await;
        let before = token(&mut https(&edge, &alice).await, AUDIENCE).await;
        let claims = part(&before, 1);
        assert_eq!(claims["iss"], ISSUER);
        assert_eq!(claims["aud"], json!([AUDIENCE]));
        assert_eq!(claims["sub"], alice.watch().borrow().id.as_str());
        verified(&edge, &before).await;

        // What a verifier needs is there, under the issuer's own name.
        let discovery = edge.get("/.well-known/openid-configuration").await;
        let discovery = discovery.json();
        assert_eq!(discovery["issuer"], ISSUER);
        assert_eq!(
            discovery["jwks_uri"],
            format!("{ISSUER}/.well-known/jwks.json")
        );
        // Tokens are not, whatever the caller says of itself.
        for path in ["/token?resource=a", "/oauth/token", "/healthz", "/"] {
            for method in ["POST", "GET"] {
                let mut asked = request(method, path);
                claim_everything(&mut asked, &alice);
                asked.headers_mut().insert("x-tsiam", "1".parse().unwrap());
                let answer = edge.connection(9, 443).await.send(asked).await;
                match (method, path) {
                    ("POST", "/healthz" | "/") => assert_eq!(answer.status(), 405, "{path}"),
                    _ => not_found(&answer),
                }
            }
        }
        let log = daemon.log();
        assert!(!log.contains(&before), "the log has a token");

        // A restart keeps issuer and keys.
        assert_eq!(daemon.stop().code(), Some(0), "{}", daemon.log());
        daemon = start(&edge, OPEN, &[]).await;
        daemon.logs_times("workload tokens are issued", 2).await;
        daemon.ready();
        let after = token(&mut https(&edge, &alice).await, AUDIENCE).await;
        assert_eq!(part(&after, 1)["iss"], ISSUER);
        assert_eq!(part(&after, 0), part(&before, 0), "the key and its use");
        for token in [&before, &after] {
            verified(&edge, token).await;
        }
        assert_eq!(daemon.stop().code(), Some(0), "{}", daemon.log());
        alice.close().await;
    });
}

#[test]
fn tsiams_config_and_key_run_unchanged() {
    alone(async {
        let edge = Edge::with_authority();
        let kid: KeyId = "mVxo7y5lJ0YB0Nd4S2pXqA".parse().unwrap();
        let key = PrivateJwk::generate(kid.clone(), KeySpec::Es256).unwrap();
        let key: Value = serde_json::from_slice(&key.to_file()).unwrap();
        fs::write(edge.folder().join("key.json"), key.to_string()).unwrap();
        let config = format!(
            "tsnet:\n  funnel: true\ntokens:\n  lifetime: 10m\n  allowedAudiences: [{AUDIENCE}]\n  \
             allowEmptyNodeCapability: true\nsigningKey:\n  file:\n    storagePath: key.json\n"
        );
        fs::write(edge.folder().join("config.yaml"), config).unwrap();
        let mut daemon = edge.start_with(&["--components", "workload"]).await;
        daemon.logs("certificate of the node's name in use").await;

        let alice = users_node(&edge.devnet, edge.folder(), "alice").await;
        let token = token(&mut https(&edge, &alice).await, AUDIENCE).await;
        let header = json!({"alg": "ES256", "kid": kid.as_str(), "typ": "JWT"});
        assert_eq!(part(&token, 0), header);
        let claims = part(&token, 1);
        assert_eq!(claims["sub"], alice.watch().borrow().name.as_str());
        let life = claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap();
        assert_eq!(life, 600);
        verified(&edge, &token).await;
        assert_eq!(daemon.stop().code(), Some(0), "{}", daemon.log());
        alice.close().await;
    });
}

/// Both storages of tsiam in Azure Key Vault, with its own key in them, and with the vault away.
#[test]
fn tsiams_keys_in_azure_key_vault_sign_and_go_on_without_it() {
    alone(async {
        let vault = KeyVault::start();
        let proxy = vault.proxy().await;
        let edge = Edge::with_authority();
        let alice = users_node(&edge.devnet, edge.folder(), "alice").await;
        let kid: KeyId = "mVxo7y5lJ0YB0Nd4S2pXqA".parse().unwrap();
        // A vault key of 2048 bits can wrap tsiam's Ed25519 keys alone.
        let storages = [
            (
                "AzureKeyVaultSecrets",
                "azureKeyVaultSecrets",
                KeySpec::Es256,
                "secretName: tsiam-key",
            ),
            (
                "AzureKeyVaultKeys",
                "azureKeyVaultKeys",
                KeySpec::EdDsa,
                "keyName: wrapper, storagePath: key.bin",
            ),
        ];
        for (before, (storage, group, spec, more)) in storages.into_iter().enumerate() {
            let key = PrivateJwk::generate(kid.clone(), spec).unwrap();
            let text = key.to_compact();
            vault.check(&["set", "tsiam-key"], &text).unwrap();
            if spec == KeySpec::EdDsa {
                let blob = vault.check(&["wrap", "wrapper"], &text).unwrap();
                let blob = URL_SAFE_NO_PAD.decode(blob).unwrap();
                fs::write(edge.folder().join("key.bin"), blob).unwrap();
            }
            let algorithm = spec.algorithm();
            let config = format!(
                "tsnet: {{stateDir: .tsnet}}\ntokens:\n  allowedAudiences: [{AUDIENCE}]\n  \
                 allowEmptyNodeCapability: true\nsigningKey:\n  algorithm: {algorithm}\n  storage: \
                 {storage}\n  {group}: {{vaultUrl: '{}', tenantId: {}, clientId: {}, clientSecret: \
                 {}, {more}}}\n",
                key_vault::VAULT,
                key_vault::TENANT,
                key_vault::CLIENT,
                key_vault::CLIENT_SECRET
            );
            fs::write(edge.folder().join("config.yaml"), config).unwrap();
            let start = async || {
                let trusted = edge.folder().join("trusted.pem");
                let mut roots = fs::read(vault.ca_file()).unwrap();
                let authority = edge.devnet.ready.acme.as_ref().unwrap();
                roots.extend(fs::read(&authority.ca_file).unwrap());
                fs::write(&trusted, roots).unwrap();
                let start = edge.to_start(&["--components", "workload"]).await;
                start
                    .variable("SSL_CERT_FILE", &trusted)
                    .variable("HTTPS_PROXY", proxy.url())
                    .variable("NO_PROXY", "127.0.0.1,localhost")
                    .start()
            };
            let header = json!({"alg": algorithm.as_str(), "kid": kid.as_str(), "typ": "JWT"});

            let mut daemon = start().await;
            let issued = "workload tokens are issued";
            daemon.logs_times(issued, before + 1).await;
            daemon.logs("certificate of the node's name in use").await;
            daemon.ready();
            let mut connection = https(&edge, &alice).await;
            assert_eq!(part(&token(&mut connection, AUDIENCE).await, 0), header);
            // The keys are here already.
            vault.trouble("away").await;
            assert_eq!(part(&token(&mut connection, AUDIENCE).await, 0), header);
            drop(connection);
            assert_eq!(daemon.stop().code(), Some(0), "{}", daemon.log());
            assert!(!daemon.log().contains(key_vault::CLIENT_SECRET));
            for private in ["workload-keys", ".tsnet/workload-keys"] {
                let found = edge.folder().join(private).join(algorithm.as_str());
                for file in fs::read_dir(found).into_iter().flatten().flatten() {
                    let name = file.file_name().into_string().unwrap();
                    assert!(!name.ends_with(".private.jwk"), "{name}");
                }
            }
            vault.trouble("none").await;
        }
        alice.close().await;
    });
}

#[test]
fn a_node_that_lost_its_name_issues_nothing_until_a_setting_says_the_issuer() {
    alone(async {
        let edge = Edge::with_authority();
        let mut daemon = start(&edge, OPEN, &[]).await;
        daemon.logs("workload tokens are issued").await;
        assert_eq!(daemon.stop().code(), Some(0), "{}", daemon.log());

        // A new node cannot have the name, which the old one still has.
        fs::remove_dir_all(edge.folder().join(".tsnet")).unwrap();
        daemon = start(&edge, OPEN, &[]).await;
        assert_eq!(daemon.end().code(), Some(1), "{}", daemon.log());
        let log = daemon.log();
        for words in [
            "the component workload cannot be started",
            "the node is now called https://public-1.example-devnet.ts.net",
            &format!("tokens were issued by {ISSUER} until now"),
            "set workload.issuer",
        ] {
            assert!(log.contains(words), "{words}: {log}");
        }
        assert_eq!(log.matches("workload tokens are issued").count(), 1);

        daemon = start(&edge, OPEN, &["--workload-issuer", ISSUER]).await;
        daemon.logs_times("workload tokens are issued", 2).await;
        assert_eq!(daemon.stop().code(), Some(0), "{}", daemon.log());
    });
}
