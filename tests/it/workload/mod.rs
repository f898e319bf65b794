//! The component `workload` with the fake node: tsiam's wire, the standards' endpoint, and who gets
//! what.

mod access;
mod command;
mod documents;
mod oauth;
mod tokens;
mod wire;

use std::{sync::Arc, time::Duration};

use ::http::Request;
use arc_swap::ArcSwap;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use http_body_util::Full;
use jiff::Timestamp;
use jsonwebtoken::{DecodingKey, Validation, jwk::JwkSet};
use serde_json::{Value, json};
use tailbone::{
    http::{layers, serve::Server},
    identity::{AudiencePattern, SubjectTemplate},
    jwks::{FilePublisher, KeySet},
    keys::{Algorithm, KeySpec, KeyStore, SigningQueue},
    tailnet::fake::Identity,
    telemetry::meter::Meter,
    workload::{
        TokenMaker, TokenSettings, Workload,
        access::{Access, AudienceRuleFile, AudienceRules, TSIAM_CAPABILITY},
        internet_router, router,
    },
};
use tempfile::TempDir;
use testkit::{
    http::{Answer, Connection, request},
    keys::policy,
    world::World,
};

const ISSUER: &str = "https://tailbone.example.ts.net";
const AUDIENCE: &str = "https://a.example.com";

/// The component on a world of its own.
struct WorkloadServer {
    world: World,
    settings: Arc<ArcSwap<TokenSettings>>,
    _dir: TempDir,
    _server: Server,
    _internet: Server,
}

impl WorkloadServer {
    /// Which lets everybody have every audience.
    async fn open() -> Self {
        Self::with_rules("[[rule]]\ndecision = 'allow'\n").await
    }

    async fn with_rules(rules: &str) -> Self {
        let dir = TempDir::new().unwrap();
        let keys = KeySet::new(
            "workload",
            KeyStore::new(dir.path()),
            Arc::new(FilePublisher::new(dir.path().join("jwks.json"))),
            &policy(),
            "tb",
            KeySpec::Es256,
            &[KeySpec::Es384, KeySpec::EdDsa],
        );
        keys.start(Timestamp::now()).await.expect("the first keys");
        let rules = AudienceRules::parse(rules, tailbone::policy::WORKLOAD_CAPABILITY).unwrap();
        let settings = Arc::new(ArcSwap::from_pointee(TokenSettings {
            access: Access::default(),
            lifetime: Duration::from_secs(300),
            algorithm: Algorithm::Es256,
            subject: SubjectTemplate::parse("{name}").unwrap(),
            with_capabilities: false,
        }));
        let workload = Arc::new(Workload::new(
            TokenMaker {
                issuer: ISSUER.into(),
                keys: keys.clone(),
                signing: Arc::new(SigningQueue::new(|work| work())),
                rules: Arc::new(AudienceRuleFile::fixed(rules)),
                settings: settings.clone(),
                meter: Meter::default(),
            },
            policy().cache_time,
        ));
        let world = World::new();
        let routes = layers::wrap_own_errors(router(workload.clone()), "workload");
        let internet = layers::wrap_own_errors(internet_router(workload), "workload");
        Self {
            _server: world.serve(443, routes).await,
            _internet: world.serve(8443, internet).await,
            world,

            settings,
            _dir: dir,
        }
    }

    /// A change of the settings, as a reload makes it.
    fn set(&self, change: impl FnOnce(&mut TokenSettings)) {
        let mut settings = self.settings.load().as_ref().clone();
        change(&mut settings);
        self.settings.store(Arc::new(settings));
    }

    fn allow(&self, audiences: &[&str]) {
        let patterns = audiences
            .iter()
            .map(|one| AudiencePattern::parse(one).unwrap());
        self.set(|settings| settings.access.audiences = patterns.collect());
    }

    /// A connection of a machine with this tag.
    async fn web(&self) -> Connection {
        self.call("web", Identity::tagged(["tag:web"])).await
    }

    async fn call(&self, host: &str, identity: Identity) -> Connection {
        self.world.call(&self.world.join(host, identity), 443).await
    }

    /// Through the routes for the internet.
    async fn outside(&self) -> Connection {
        let peer = self.world.peer("outside");
        self.world.call(&peer, 8443).await
    }

    /// The header and the claims of a token, after another library has verified it with the
    /// published keys.
    async fn verified(&self, token: &str) -> (Value, Value) {
        let document = self.outside().await.get("/.well-known/jwks.json").await;
        let keys: JwkSet = serde_json::from_value(document.json()).unwrap();
        let header = jsonwebtoken::decode_header(token).unwrap();
        let key = keys
            .find(header.kid.as_deref().unwrap())
            .expect("it is published");
        let mut rules = Validation::new(header.alg);
        rules.validate_aud = false;
        rules.set_issuer(&[ISSUER]);
        let key = DecodingKey::from_jwk(key).unwrap();
        let claims = jsonwebtoken::decode::<Value>(token, &key, &rules)
            .unwrap()
            .claims;
        let header = URL_SAFE_NO_PAD
            .decode(token.split('.').next().unwrap())
            .unwrap();
        (serde_json::from_slice(&header).unwrap(), claims)
    }
}

/// A request of tsiam's clients.
fn asking(path: &str) -> Request<Full<Bytes>> {
    let mut request = request("POST", path);
    request
        .headers_mut()
        .insert("x-tsiam", "1".parse().unwrap());
    request
}

/// What tsiam's clients ask for.
async fn token_for(connection: &mut Connection, audience: &str) -> Answer {
    connection
        .send(asking(&format!("/token?resource={audience}")))
        .await
}

/// The token of a good answer.
fn token_in(answer: &Answer) -> String {
    assert_eq!(answer.status(), 200, "{answer:?}");
    answer.json()["access_token"].as_str().unwrap().to_owned()
}

/// The status and code of a refusal.
fn refusal(answer: &Answer) -> (u16, String) {
    let code = answer.json()["code"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    (answer.status(), code)
}

fn machine(grant: Value) -> Identity {
    Identity::tagged(["tag:web"]).cap(TSIAM_CAPABILITY, grant)
}

fn audiences(list: &[&str]) -> Value {
    json!({ "allowedAudiences": list })
}
