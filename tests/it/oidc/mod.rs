//! The component `oidc` with the fake node and a store on disk: whole logins, and what is refused
//! on the way.

mod access;
mod administration;
mod application;
mod assertions;
mod claims;
mod client_documents;
mod client_files;
mod clients;
mod commands;
mod core_parameters;
mod device;
mod documents;
mod exchange;
mod groups;
mod jwt;
mod login;
mod logout;
mod notices;
mod pages;
mod programs;
mod recorded;
mod registration;
mod replicas;
mod requests;
mod reuse;
mod suite;
mod tokens;
mod tsidp;

use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use ::http::{Request, StatusCode, header};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use http_body_util::Full;
use jiff::Timestamp;
use jsonwebtoken::{DecodingKey, Validation, jwk::JwkSet};
use serde_json::{Value, json};
use tailbone::{
    config::OidcErrorFormat,
    http::{layers, serve::Server},
    jwks::KeySet,
    keys::{KeySpec, SigningQueue},
    oidc::{
        LogoutNotices, Oidc, ServedKeys, TailnetPeople,
        access::{LoginAccess, LoginRuleFile, LoginRules},
        groups::{Groups, TailnetGroups},
        internet_router, router,
    },
    policy::LOGIN_CAPABILITY,
    tailnet::fake::{FakeNode, Identity},
    telemetry::meter::Meter,
};
use tailbone_oidc::{
    authorize::UnknownScopes,
    capability::CAPABILITY,
    claims::{Mapping, Style},
    client::{AuthMethod, ClientMetadata, Login},
    device::Tries,
    fetch::{FetchSettings, GuardedClient},
    provider::{Foreign, Provider, ProviderSettings},
    store::{Client, ClientOrigin, ClientSecret, Digest, Sqlite, Store},
    token::Offers,
};
use tempfile::TempDir;
use testkit::{
    http::{Answer, Connection, request},
    keys::policy,
    world::World,
};

const ISSUER: &str = "https://idp.example.ts.net";
const HOST: &str = "idp.example.ts.net";
const APP: &str = "https://app.example.com/callback?tenant=1";
const SECRET: &str = "a-secret-of-the-application-that-nobody-else-knows";
const VERIFIER: &str = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
const CHALLENGE: &str = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM";
const RESOURCE: &str = "https://mcp.example.com/";

/// By the default settings. Parsing the certificates of the system takes a while.
static FETCHES_NOTHING_PRIVATE: LazyLock<Arc<Foreign>> =
    LazyLock::new(|| Arc::new(Foreign::new(&FetchSettings::default(), None).unwrap()));

/// The component on a world of its own, with a client for each kind of login.
struct OidcServer {
    world: World,
    provider: Provider,
    access: Arc<LoginAccess>,
    groups: Arc<Groups>,
    _dir: Option<TempDir>,
    _server: Server,
    _internet: Server,
}

impl OidcServer {
    async fn open() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut ProviderSettings)) -> Self {
        Self::changed(|provider| change(Arc::make_mut(&mut provider.settings))).await
    }

    async fn changed(change: impl FnOnce(&mut Provider)) -> Self {
        let access = LoginAccess::grants_only(LOGIN_CAPABILITY);
        Self::with_all(es256().await, access, Groups::default(), change).await
    }

    /// With rules about who may log in where.
    async fn with_rules(rules: LoginRuleFile) -> Self {
        let require_rule = true;
        let access = LoginAccess {
            rules,
            require_rule,
        };
        Self::with_all(es256().await, access, Groups::default(), |_| {}).await
    }

    async fn with_groups(groups: Groups) -> Self {
        let access = LoginAccess::grants_only(LOGIN_CAPABILITY);
        Self::with_all(es256().await, access, groups, |_| {}).await
    }

    async fn with_all(
        keys: KeySet,
        access: LoginAccess,
        groups: Groups,
        change: impl FnOnce(&mut Provider),
    ) -> Self {
        let dir = TempDir::new().unwrap();
        let store = Arc::new(Sqlite::open(&dir.path().join("oidc.db")).unwrap());
        Self::on(store, Some(dir), (keys, access, groups), change).await
    }

    async fn on(
        store: Arc<dyn Store>,
        dir: Option<TempDir>,
        (keys, access, groups): (KeySet, LoginAccess, Groups),
        change: impl FnOnce(&mut Provider),
    ) -> Self {
        let settings = ProviderSettings {
            issuer: ISSUER.into(),
            host: HOST.into(),
            style: Style::Tsidp,
            mapping: Mapping::default(),
            offers: Offers {
                token_exchange: true,
            },
            unknown_scopes: UnknownScopes::Ignore,
            nodes_may_inspect: true,
        };
        let world = World::new();
        let (access, groups) = (Arc::new(access), Arc::new(groups));
        let mut provider = Provider {
            settings: Arc::new(settings),
            store,
            keys,
            signing: Arc::new(SigningQueue::new(|work| work())),
            network: Arc::new(TailnetPeople {
                directory: world.directory.clone(),
                capability: CAPABILITY.into(),
                access: access.clone(),
                groups: groups.clone(),
            }),
            session_ends: Arc::new(notices(FetchSettings::default(), Meter::default())),
            user_codes: Arc::new(Tries::of_user_codes()),
            new_devices: Arc::new(Tries::of_new_devices()),
            pushed_requests: Arc::new(Tries::of_pushed_requests()),
            foreign: FETCHES_NOTHING_PRIVATE.clone(),
            workload: None,
        };
        change(&mut provider);
        let oidc = Arc::new(Oidc {
            provider: provider.clone(),
            capability: CAPABILITY.into(),
            groups: groups.clone(),
            errors: OidcErrorFormat::Json,
            cache_time: Duration::from_secs(300),
            served_keys: ServedKeys::default(),
            meter: Meter::default(),
        });
        let server = Self {
            _server: world
                .serve(443, layers::wrap_own_errors(router(oidc.clone()), "oidc"))
                .await,
            _internet: world
                .serve(8443, layers::wrap_own_errors(internet_router(oidc), "oidc"))
                .await,
            world,
            provider,
            access,
            groups,
            _dir: dir,
        };
        server
            .add("silent", AuthMethod::ClientSecretBasic, Login::Silent)
            .await;
        server
            .add("asking", AuthMethod::ClientSecretBasic, Login::Confirm)
            .await;
        server.add("public", AuthMethod::None, Login::Silent).await;
        server
    }

    async fn add(&self, id: &str, method: AuthMethod, login: Login) {
        self.add_with(id, method, |metadata| metadata.login = Some(login))
            .await;
    }

    /// A client of which the test says more.
    async fn add_with(
        &self,
        id: &str,
        method: AuthMethod,
        change: impl FnOnce(&mut ClientMetadata),
    ) {
        let mut metadata = ClientMetadata {
            client_name: format!("The {id} application"),
            redirect_uris: vec!["http://127.0.0.1/cb".into(), APP.into()],
            token_endpoint_auth_method: method,
            ..ClientMetadata::default()
        };
        change(&mut metadata);
        self.add_client(id, &metadata).await;
    }

    /// With the secret of all clients, if the client has one.
    async fn add_client(&self, id: &str, metadata: &ClientMetadata) {
        let now = Timestamp::now();
        // Where the test does not say otherwise.
        let metadata = ClientMetadata {
            login: metadata.login.or(Some(Login::Confirm)),
            ..metadata.clone()
        };
        let secret = ClientSecret {
            digest: Digest::of(SECRET),
            created_at: now,
            expires_at: None,
        };
        let client = Client {
            id: id.into(),
            origin: ClientOrigin::Admin,
            owner: None,
            secrets: Some(secret)
                .into_iter()
                .filter(|_| metadata.token_endpoint_auth_method.has_secret())
                .collect(),
            registration_token: None,
            metadata: metadata.to_stored().unwrap(),
            created_at: now,
            updated_at: now,
            expires_at: None,
            version: 0,
        };
        self.provider.store.add_client(&client, None).await.unwrap();
    }

    async fn alice(&self) -> Connection {
        self.person("alice", |identity| identity).await
    }

    /// A connection of a person whose grants the test chooses.
    async fn person(&self, name: &str, grants: impl FnOnce(Identity) -> Identity) -> Connection {
        self.device(name, grants).await.1
    }

    async fn device(
        &self,
        name: &str,
        grants: impl FnOnce(Identity) -> Identity,
    ) -> (FakeNode, Connection) {
        let identity = grants(Identity::user(&format!("{name}@example.com")));
        let node = self.world.join(name, identity);
        let connection = self.world.call(&node, 443).await;
        (node, connection)
    }

    async fn machine(&self) -> Connection {
        let node = self.world.join("ci", Identity::tagged(["tag:ci"]));
        self.world.call(&node, 443).await
    }

    /// The back end of an application that is not on the tailnet.
    async fn outside(&self) -> Connection {
        let peer = self.world.peer("outside");
        self.world.call(&peer, 8443).await
    }

    /// The claims of an ID token, after another library has verified it with the published keys.
    async fn verified(&self, token: &str) -> Value {
        self.verified_with(token, |_| {}).await
    }

    /// The same for a token that has no end.
    async fn verified_without_times(&self, token: &str) -> Value {
        self.verified_with(token, |rules| rules.required_spec_claims.clear())
            .await
    }

    async fn verified_with(&self, token: &str, change: impl FnOnce(&mut Validation)) -> Value {
        let document = self.outside().await.get("/.well-known/jwks.json").await;
        let keys: JwkSet = serde_json::from_value(document.json()).unwrap();
        let header = jsonwebtoken::decode_header(token).unwrap();
        let key = keys.find(header.kid.as_deref().unwrap());
        let mut rules = Validation::new(header.alg);
        rules.validate_aud = false;
        rules.set_issuer(&[ISSUER]);
        change(&mut rules);
        let key = DecodingKey::from_jwk(key.expect("it is published")).unwrap();
        jsonwebtoken::decode::<Value>(token, &key, &rules)
            .unwrap()
            .claims
    }
}

/// One key, the cheapest.
async fn es256() -> KeySet {
    let keys = KeySet::in_memory("oidc", &policy(), "tb", KeySpec::Es256, &[]);
    keys.start(Timestamp::now()).await.expect("the first keys");
    keys
}

/// Tells applications where these settings let it.
fn notices(settings: FetchSettings, meter: Meter) -> LogoutNotices {
    LogoutNotices::new(GuardedClient::new(&settings).unwrap(), meter)
}

fn mcp(identity: Identity) -> Identity {
    let rule = json!({"users": ["*"], "resources": [RESOURCE, "https://other.example.com"]});
    identity.cap(CAPABILITY, rule)
}

fn query(pairs: &[(&str, &str)]) -> String {
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    query.extend_pairs(pairs);
    query.finish()
}

/// The usual request of a client, and what the test adds.
fn asking(client: &str, more: &[(&str, &str)]) -> String {
    let usual = [
        ("response_type", "code"),
        ("client_id", client),
        ("redirect_uri", APP),
        ("state", "st&te"),
        ("scope", "openid email profile"),
        ("nonce", "n-1"),
    ];
    let usual = usual
        .into_iter()
        .filter(|(name, _)| more.iter().all(|(other, _)| name != other));
    let all: Vec<_> = usual
        .chain(more.iter().copied())
        .filter(|(_, value)| *value != "-")
        .collect();
    format!("/authorize?{}", query(&all))
}

fn form(path: &str, pairs: &[(&str, &str)]) -> Request<Full<Bytes>> {
    let (mut parts, _) = request("POST", path).into_parts();
    let kind = "application/x-www-form-urlencoded".parse().unwrap();
    parts.headers.insert(header::CONTENT_TYPE, kind);
    Request::from_parts(parts, Full::from(query(pairs)))
}

fn with(
    mut request: Request<Full<Bytes>>,
    name: &'static str,
    value: &str,
) -> Request<Full<Bytes>> {
    request.headers_mut().insert(name, value.parse().unwrap());
    request
}

fn basic(client: &str) -> String {
    let pair = base64::engine::general_purpose::STANDARD.encode(format!("{client}:{SECRET}"));
    format!("Basic {pair}")
}

/// The parameters of a redirect to the client.
fn answer_of(answer: &Answer) -> Vec<(String, String)> {
    assert_eq!(answer.status(), StatusCode::FOUND, "{answer:?}");
    let to = answer.header("location");
    let query = to
        .strip_prefix(&format!("{APP}&"))
        .unwrap_or_else(|| panic!("{to}"));
    url::form_urlencoded::parse(query.as_bytes())
        .into_owned()
        .collect()
}

fn field<'a>(fields: &'a [(String, String)], name: &str) -> &'a str {
    let found = fields.iter().find(|(known, _)| known == name);
    found.map_or("", |(_, value)| value)
}

/// The code of a login that shows no page.
async fn code(connection: &mut Connection, path: &str) -> String {
    let fields = answer_of(&connection.get(path).await);
    assert_eq!(field(&fields, "state"), "st&te");
    assert_eq!(field(&fields, "iss"), ISSUER);
    let code = field(&fields, "code").to_owned();
    assert!(
        code.len() == 32 && code.bytes().all(|b| b"0123456789abcdef".contains(&b)),
        "{fields:?}"
    );
    code
}

/// Redeems a code as the client `silent`.
async fn redeem(connection: &mut Connection, code: &str, more: &[(&str, &str)]) -> Answer {
    let usual = [
        ("grant_type", "authorization_code"),
        ("code", code),
        ("redirect_uri", APP),
    ];
    let all: Vec<_> = usual.into_iter().chain(more.iter().copied()).collect();
    let request = with(form("/token", &all), "authorization", &basic("silent"));
    connection.send(request).await
}

/// The tokens of a whole login of `silent`.
async fn tokens(connection: &mut Connection, more: &[(&str, &str)]) -> Value {
    let code = code(connection, &asking("silent", more)).await;
    let answer = redeem(connection, &code, &[]).await;
    assert_eq!(answer.status(), 200, "{answer:?}");
    answer.json()
}

async fn refresh(connection: &mut Connection, token: &Value, more: &[(&str, &str)]) -> Answer {
    let usual = [
        ("grant_type", "refresh_token"),
        ("refresh_token", token.as_str().unwrap()),
    ];
    let all: Vec<_> = usual.into_iter().chain(more.iter().copied()).collect();
    let request = with(form("/token", &all), "authorization", &basic("silent"));
    connection.send(request).await
}

async fn userinfo(connection: &mut Connection, token: &Value) -> Answer {
    let bearer = format!("Bearer {}", token.as_str().unwrap());
    connection
        .send(with(request("GET", "/userinfo"), "authorization", &bearer))
        .await
}

/// Status, code and words of a refusal.
fn refusal(answer: &Answer) -> (u16, String, String) {
    let body = answer.json();
    let text = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
    assert_eq!(answer.header("cache-control"), "no-store");
    (answer.status(), text("error"), text("error_description"))
}

fn is(status: u16, code: &str, words: &str) -> (u16, String, String) {
    (status, code.into(), words.into())
}

/// The header of a token.
fn header_of(token: &str) -> Value {
    let header = token.split('.').next().unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(header).unwrap()).unwrap()
}
