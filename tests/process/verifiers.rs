//! Workload tokens of the real program, shown to verifiers that are not ours. Each reads the
//! issuer's documents through Funnel, by the issuer's name and with the certificate authority of
//! the tailnet, and keeps to one list of promises ([`check`]).

use std::{fs, path::PathBuf};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::Timestamp;
use reqwest::Method;
use serde_json::{Value, json};
use tailbone::{
    keys::{KeyStore, Signer},
    tailnet::{EmbeddedNode, Node as _},
    workload::client::recipe::{self, IssuerFacts, KubernetesRecipe, VaultRecipe},
};
use testkit::{
    connect_proxy::ConnectProxy,
    daemon::Daemon,
    openbao::OpenBao,
    tailnet::tagged_node,
    verifiers::{TrustedIssuer, Verifier, VerifierProgram},
};

use super::{
    alone,
    funnel::{Edge, NAME},
    workload::{ISSUER, OPEN, https, part, start, token},
};

const ALGORITHMS: [&str; 5] = ["RS256", "ES256", "ES384", "ES512", "EdDSA"];

/// An audience that is none of the verifier's.
const FOREIGN: &str = "somebody-else";

const SPIFFE_SUBJECT: &str = "spiffe://{tailnet}/node/{id}";

const OTHER_ISSUER: &str = "https://other.example-devnet.ts.net";

const HOUR: i64 = 3600;

/// The server, a machine `tag:web` that asks it for tokens, and the way of the verifiers.
struct World {
    edge: Edge,
    daemon: Daemon,
    web: EmbeddedNode,
    proxy: ConnectProxy,
    audiences: Vec<String>,
}

impl World {
    /// With an audience for each of these algorithms, and this subject for all of them.
    async fn new(algorithms: &[&str], subject: &str) -> Self {
        let edge = Edge::with_authority();
        let audiences: Vec<_> = algorithms.iter().map(|one| format!("for-{one}")).collect();
        let mut rules =
            format!("{OPEN}[[audience]]\nmatch = ['{FOREIGN}']\nsubject = '{subject}'\n");
        for (audience, algorithm) in audiences.iter().zip(algorithms) {
            rules += &format!(
                "[[audience]]\nmatch = ['{audience}']\nalgorithm = '{algorithm}'\nsubject = '{subject}'\n"
            );
        }
        let all = ALGORITHMS.join(",");
        // A new key signs at once.
        let at_once = ["--cache-time", "0s", "--clock-skew", "0s"];
        let flags = [&["--workload-keys-algorithms", &all], &at_once[..]].concat();
        let mut daemon = start(&edge, &rules, &flags).await;
        daemon.logs("certificate of the node's name in use").await;
        daemon.ready();
        let web = tagged_node(&edge.devnet, edge.folder(), "web", "tag:web").await;
        // Once the internet reaches the server, verifiers do.
        assert_eq!(edge.get("/.well-known/jwks.json").await.status(), 200);
        let proxy = ConnectProxy::start(&[NAME], edge.devnet.ready.funnel["443"]).await;
        Self {
            edge,
            daemon,
            web,
            proxy,
            audiences,
        }
    }

    fn id(&self) -> String {
        self.web.watch().borrow().id.clone()
    }

    fn ca_file(&self) -> PathBuf {
        self.edge
            .devnet
            .ready
            .acme
            .as_ref()
            .unwrap()
            .root_file
            .clone()
    }

    async fn token(&self, audience: &str) -> String {
        token(&mut https(&self.edge, &self.web).await, audience).await
    }

    /// The token with these changes of its claims, signed by the same key.
    fn signed_again(&self, token: &str, changes: &Value) -> String {
        let mut claims = part(token, 1);
        claims
            .as_object_mut()
            .unwrap()
            .extend(changes.as_object().unwrap().clone());
        let header = part(token, 0);
        let [kid, algorithm] = ["kid", "alg"].map(|name| header[name].as_str().unwrap());
        let keys = KeyStore::new(self.edge.folder().join("workload-keys").join(algorithm));
        let keys = keys.load().unwrap().keys;
        let key = keys.iter().find(|key| key.kid().as_str() == kid).unwrap();
        let signer = Signer::new(key.private.as_ref().unwrap()).unwrap();
        signer.sign(&serde_json::to_vec(&claims).unwrap()).unwrap()
    }

    /// Makes a new key of the algorithm, which signs from now on.
    fn rotate(&self, algorithm: &str) {
        let flags = [
            "keys",
            "rotate",
            "--set",
            "workload",
            "--algorithm",
            algorithm,
        ];
        let rotated = self.daemon.run(&flags);
        let errors = String::from_utf8_lossy(&rotated.stderr);
        assert!(rotated.status.success(), "{errors}");
    }

    fn trusted(&self) -> (PathBuf, &[String]) {
        (self.ca_file(), &self.audiences)
    }

    /// What the recipes are told of this issuer.
    async fn facts(&self) -> IssuerFacts {
        let keys = self.edge.get("/.well-known/jwks.json").await.json();
        let keys = keys["keys"].as_array().unwrap().iter();
        IssuerFacts {
            server: ISSUER.to_owned(),
            issuer: ISSUER.to_owned(),
            algorithms: ALGORITHMS.map(str::to_owned).to_vec(),
            keys: keys.map(|key| key.as_object().unwrap().clone()).collect(),
        }
    }

    async fn end(mut self) {
        let log = self.daemon.log();
        assert!(self.daemon.stop().success(), "{log}");
        self.web.close().await;
    }
}

/// The file that a recipe writes.
fn file_in(recipe: &str) -> Value {
    let (_, file) = recipe.split_once("<<'EOF'\n").unwrap();
    let (file, _) = file.split_once("\nEOF").unwrap();
    serde_json::from_str(file).unwrap()
}

/// How a verifier says no, each time in a part of its words.
struct Refusals {
    audience: &'static str,
    issuer: &'static str,
    signature: &'static str,
    expired: &'static str,
}

fn encoded(part: &Value) -> String {
    URL_SAFE_NO_PAD.encode(part.to_string())
}

/// The token with a changed part, under its old signature.
fn changed(token: &str, at: usize, change: impl FnOnce(&mut Value)) -> String {
    let mut parts: Vec<_> = token.split('.').map(str::to_owned).collect();
    let mut changed = part(token, at);
    change(&mut changed);
    parts[at] = encoded(&changed);
    parts.join(".")
}

/// A verifier accepts a token of each algorithm, with the subject `subject` at the place `at` of
/// what it makes of the token. It refuses those of another audience or issuer, changed ones, ended
/// ones and those without a signature. After a rotation it accepts tokens of the old key and of the
/// new one.
async fn check(
    world: &World,
    verifier: &mut impl Verifier,
    (at, subject): (&str, String),
    words: Refusals,
) {
    let mut accepted = async |token: &str| {
        let said = verifier.verify(token).await;
        let said = said.unwrap_or_else(|error| panic!("{error}: {token}"));
        assert_eq!(said.pointer(at), Some(&json!(subject)), "{said}");
    };
    for audience in &world.audiences {
        accepted(&world.token(audience).await).await;
    }
    let first = &world.audiences[0];
    let good = world.token(first).await;
    let foreign = world.signed_again(&good, &json!({"aud": [FOREIGN]}));
    let (other, now) = (OTHER_ISSUER, Timestamp::now().as_second());
    // SPIFFE has trust domains in place of issuers.
    let stranger = if subject.starts_with("spiffe://") {
        json!({"iss": other, "sub": "spiffe://other.ts.net/node/1"})
    } else {
        json!({"iss": other})
    };
    let ended = json!({"iat": now - 2 * HOUR, "nbf": now - 2 * HOUR, "exp": now - HOUR});
    let unsigned = changed(&good, 0, |header| header["alg"] = json!("none"));
    let (unsigned, _) = unsigned.rsplit_once('.').unwrap();
    let bad = [
        (
            "of another audience",
            world.token(FOREIGN).await,
            words.audience,
        ),
        ("re-signed for another audience", foreign, words.audience),
        (
            "of another issuer",
            world.signed_again(&good, &stranger),
            words.issuer,
        ),
        (
            "changed",
            changed(&good, 1, |claims| claims["jti"] = json!("x")),
            words.signature,
        ),
        ("ended", world.signed_again(&good, &ended), words.expired),
        ("without a signature", format!("{unsigned}."), ""),
    ];
    // Signing again is no reason to refuse.
    accepted(&world.signed_again(&good, &json!({"jti": "x"}))).await;
    for (what, token, words) in bad {
        let refused = verifier.verify(&token).await;
        let Err(said) = refused else {
            panic!("a token {what} is accepted: {refused:?}");
        };
        assert!(said.contains(words), "a token {what}: {said}");
    }

    let kid = part(&good, 0)["kid"].clone();
    world.rotate(part(&good, 0)["alg"].as_str().unwrap());
    let fresh = world.token(first).await;
    assert_ne!(part(&fresh, 0)["kid"], kid, "nothing was rotated");
    let mut accepted = async |token: &str| {
        let said = verifier.verify(token).await;
        let said = said.unwrap_or_else(|error| panic!("{error}: {token}"));
        assert_eq!(said.pointer(at), Some(&json!(subject)), "{said}");
    };
    for token in [&fresh, &good] {
        accepted(token).await;
    }
}

/// A verifier that is a program with the claims as its answer.
async fn check_program(
    algorithms: &[&str],
    verifier: fn(&TrustedIssuer<'_>) -> VerifierProgram,
    words: Refusals,
) {
    let world = World::new(algorithms, "{id}").await;
    let (ca_file, audiences) = world.trusted();
    let mut verifier = verifier(&TrustedIssuer {
        issuer: ISSUER,
        ca_file: &ca_file,
        audiences,
        proxy: &world.proxy,
    });
    check(&world, &mut verifier, ("/sub", world.id()), words).await;
    drop(verifier);
    world.end().await;
}

#[test]
fn pyjwt_accepts_workload_tokens() {
    let words = Refusals {
        audience: "InvalidAudienceError",
        issuer: "InvalidIssuerError",
        signature: "InvalidSignatureError",
        expired: "ExpiredSignatureError",
    };
    alone(async { check_program(&ALGORITHMS, VerifierProgram::pyjwt, words).await });
}

#[test]
fn jose_accepts_workload_tokens() {
    let words = Refusals {
        audience: "unexpected \"aud\" claim value",
        issuer: "unexpected \"iss\" claim value",
        signature: "signature verification failed",
        expired: "\"exp\" claim timestamp check failed",
    };
    alone(async { check_program(&ALGORITHMS, VerifierProgram::jose, words).await });
}

#[test]
fn nimbus_accepts_workload_tokens() {
    let words = Refusals {
        audience: "JWT aud",
        issuer: "JWT iss claim",
        signature: "Invalid signature",
        expired: "Expired JWT",
    };
    // EdDSA needs another library beside it.
    alone(async { check_program(&ALGORITHMS[..4], VerifierProgram::nimbus, words).await });
}

#[test]
fn go_spiffe_accepts_workload_tokens_with_a_spiffe_id() {
    alone(async {
        let world = World::new(&ALGORITHMS[..4], SPIFFE_SUBJECT).await;
        let (ca_file, audiences) = world.trusted();
        let mut verifier = VerifierProgram::go_spiffe(&TrustedIssuer {
            issuer: ISSUER,
            ca_file: &ca_file,
            audiences,
            proxy: &world.proxy,
        });
        let subject = format!("spiffe://example-devnet.ts.net/node/{}", world.id());
        let words = Refusals {
            audience: "expected audience in",
            issuer: "no bundle found for trust domain",
            signature: "error in cryptographic primitive",
            expired: "token has expired",
        };
        check(&world, &mut verifier, ("/id", subject), words).await;
        drop(verifier);
        world.end().await;
    });
}

/// By the recipe's own file, with the tailnet's certificate authority and what a careful operator
/// adds.
#[test]
fn the_api_server_of_kubernetes_accepts_workload_tokens() {
    alone(async {
        let world = World::new(&ALGORITHMS[..4], "{id}").await;
        let asked = KubernetesRecipe {
            audience: world.audiences[0].clone(),
            subject: world.id(),
            cluster_role: "view".to_owned(),
        };
        let mut config = file_in(&recipe::kubernetes(&world.facts().await, &asked));
        let entry = &mut config["jwt"][0];
        let authority = fs::read_to_string(world.ca_file()).unwrap();
        entry["issuer"]["certificateAuthority"] = json!(authority);
        entry["issuer"]["audiences"] = json!(world.audiences);
        entry["issuer"]["audienceMatchPolicy"] = json!("MatchAny");
        let record = "claims[\"italypaleale.me/tsiam\"]";
        entry["claimMappings"]["groups"] = json!({"expression": format!("{record}.tags")});
        entry["claimValidationRules"] = json!([{
            "expression": format!("{record}.hostname == 'web'"),
            "message": "another machine",
        }]);
        let file = world.edge.folder().join("authentication.yaml");
        fs::write(&file, config.to_string()).unwrap();

        let mut verifier = VerifierProgram::kubernetes(&file, &world.proxy);
        let user = verifier
            .verify(&world.token(&world.audiences[1]).await)
            .await;
        assert_eq!(user.unwrap()["groups"], json!(["tag:web"]));
        let words = Refusals {
            audience: "expected audience in",
            issuer: "no authenticator for this issuer",
            signature: "failed to verify signature",
            expired: "token is expired",
        };
        let name = format!("tailnet:{}", world.id());
        check(&world, &mut verifier, ("/username", name), words).await;
        let db = json!({"italypaleale.me/tsiam": {"hostname": "db", "tags": []}});
        let good = world.token(&world.audiences[0]).await;
        let refused = verifier.verify(&world.signed_again(&good, &db)).await;
        assert!(refused.unwrap_err().contains("another machine"));
        drop(verifier);
        world.end().await;
    });
}

/// A role of an auth method.
struct Role<'a> {
    bao: &'a OpenBao,
    name: &'a str,
}

impl Verifier for Role<'_> {
    async fn verify(&mut self, token: &str) -> Result<Value, String> {
        let login = json!({"role": self.name, "jwt": token});
        let asked = self.bao.call(Method::POST, "auth/jwt/login", login);
        let (status, answer) = asked.await;
        if status.is_success() {
            Ok(answer["auth"].clone())
        } else {
            Err(answer["errors"].to_string())
        }
    }
}

/// By the recipe's own role, with bound claims.
#[test]
fn openbao_lets_workload_tokens_in() {
    alone(async {
        let world = World::new(&ALGORITHMS, "{id}").await;
        let bao = OpenBao::start_behind(Some(&world.proxy)).await;
        let method = json!({"type": "jwt"});
        bao.ok(Method::POST, "sys/auth/jwt", method).await;
        let asked = VaultRecipe {
            audience: world.audiences[0].clone(),
            subject: world.id(),
            role: "web".to_owned(),
            policy: "web".to_owned(),
            mount: "jwt".to_owned(),
        };
        let recipe = recipe::vault(&world.facts().await, &asked);
        let said = |name: &str| {
            let lines = recipe
                .lines()
                .map(|line| line.trim().trim_end_matches(" \\"));
            let mut values = lines.filter_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            values
                .next()
                .unwrap_or_else(|| panic!("no {name}: {recipe}"))
                .to_owned()
        };
        let config = json!({
            "oidc_discovery_url": said("oidc_discovery_url"),
            "bound_issuer": said("bound_issuer"),
            "oidc_discovery_ca_pem": fs::read_to_string(world.ca_file()).unwrap(),
        });
        bao.ok(Method::POST, "auth/jwt/config", config).await;
        for host in ["web", "db"] {
            let mut role = file_in(&recipe);
            role["bound_audiences"] = json!(world.audiences);
            role["bound_claims"] = json!({"/italypaleale.me~1tsiam/hostname": host});
            role["claim_mappings"] = json!({"sub": "subject"});
            bao.ok(Method::POST, &format!("auth/jwt/role/{host}"), role)
                .await;
        }
        let role = |name| Role { bao: &bao, name };
        let words = Refusals {
            audience: "invalid audience (aud) claim",
            issuer: "invalid issuer (iss) claim",
            signature: "error verifying token signature",
            expired: "token is expired",
        };
        check(
            &world,
            &mut role("web"),
            ("/metadata/subject", world.id()),
            words,
        )
        .await;
        let good = world.token(&world.audiences[0]).await;
        let allowed = role("web").verify(&good).await.unwrap();
        assert_eq!(allowed["token_policies"], json!(["default", "web"]));
        let refused = role("db").verify(&good).await.unwrap_err();
        assert!(
            refused.contains("does not match any associated bound claim"),
            "{refused}"
        );
        world.end().await;
    });
}
