//! The modules of the OpenID Foundation's certification plans, each as a test of its name: what the
//! module checks with a relying party of its own, checked here with ours. Written from the list of
//! what each module asks for, so that a certification run finds nothing new.
//!
//! A module distinguishes what fails it from what merely warns. A warning is noted where the module
//! gives one, and is a failure here as well unless the test says why it stays.
//!
//! `docs/compatibility/openid-modules.md` has the list with the results; `table.rs` compares it
//! with the tests.

mod basic;
mod config;
mod dynamic;
mod logout;
mod table;

use std::{collections::BTreeMap, sync::LazyLock};

use tailbone::keys::Signer;
use tailbone_oidc::assertion::JWT_BEARER;
use testkit::jwks_server::signer;

use super::{
    pages::{Browser, SESSION, is_page},
    *,
};

/// Where the relying party waits for its answers.
const CALLBACK: &str = "https://suite.example.com/test/a/tailbone/callback";

/// As long as the suite's.
const STATE: &str = "Zq3vT8mXc0RbL5yKd7NwHs2PgJ9fUeA1oV6tQiBzMxWlGkCrYnDhSpEjFu4aOIvT\
                     3bQ8xLm5KzN0yRc7WdP2sHgJ9fUeAo1V6tQiBMxlGkCrYnDhSpEjFu4aOIvTZq3v";
const NONCE: &str = "q7Rk2nVwXz";

/// What an ID token may tell without a warning. Everything else is about the person, and belongs
/// into UserInfo where an access token is given as well.
const OF_THE_PROTOCOL: [&str; 15] = [
    "acr",
    "amr",
    "at_hash",
    "aud",
    "auth_time",
    "azp",
    "c_hash",
    "exp",
    "iat",
    "iss",
    "jti",
    "nbf",
    "nonce",
    "sid",
    "sub",
];

/// How the provider answers: the plans Basic and Form Post differ in this alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Default,
    FormPost,
}

type Fields = BTreeMap<String, String>;

/// A client, as it was registered.
#[derive(Debug, Clone)]
struct RegisteredClient {
    id: String,
    secret: String,
    method: String,
}

/// What the clients of the suite sign with. RSA keys are made slowly.
static CLIENT_KEY: LazyLock<Signer> = LazyLock::new(|| signer("1", KeySpec::Rs256 { bits: 2048 }));

/// A module under way: a provider, a client that has registered itself, and the browser in which
/// the person logs in.
struct Module {
    server: OidcServer,
    mode: Mode,
    browser: Browser,
    client: RegisteredClient,
    /// Where the client waits for answers.
    callback: String,
    /// What the client signs with, if it does.
    key: &'static Signer,
    /// For whom its assertions are.
    audience: String,
}

/// A whole login.
struct Login {
    tokens: Value,
    /// Of the ID token, whose signature, times and names have been checked.
    claims: Value,
}

impl Login {
    fn access_token(&self) -> &Value {
        &self.tokens["access_token"]
    }

    fn auth_time(&self) -> i64 {
        self.claims["auth_time"].as_i64().expect("auth_time")
    }

    /// Claims that a module warns of.
    fn unexpected_claims(&self) -> Vec<&str> {
        let names = self.claims.as_object().unwrap().keys();
        names
            .map(String::as_str)
            .filter(|name| !OF_THE_PROTOCOL.contains(name))
            .collect()
    }
}

/// RS256 and ES256, as the program has them. RSA keys are made slowly, so that all modules share
/// one set.
async fn keys() -> KeySet {
    static KEYS: tokio::sync::OnceCell<KeySet> = tokio::sync::OnceCell::const_new();
    KEYS.get_or_init(new_keys).await.clone()
}

async fn new_keys() -> KeySet {
    let rs256 = KeySpec::Rs256 { bits: 2048 };
    let keys = KeySet::in_memory("oidc", &policy(), "tb", rs256, &[KeySpec::Es256]);
    keys.start(Timestamp::now()).await.expect("the first keys");
    keys
}

/// A provider as the certificate is for, and what the module changes.
async fn server(change: impl FnOnce(&mut Provider)) -> OidcServer {
    let keys = keys().await;
    let server = OidcServer::changed(|provider| {
        provider.keys = keys;
        Arc::make_mut(&mut provider.settings).style = Style::Standard;
        change(provider);
    });
    server.await
}

fn may_register(identity: Identity) -> Identity {
    identity.cap(CAPABILITY, json!({"allow_dcr": true}))
}

async fn register(server: &OidcServer, metadata: &Value) -> Answer {
    let (parts, _) = request("POST", "/register").into_parts();
    let body = Full::from(metadata.to_string());
    let mut suite = server.person("suite", may_register).await;
    suite.send(Request::from_parts(parts, body)).await
}

/// A client of the suite with these members besides the usual ones.
async fn registered(server: &OidcServer, more: &Value) -> RegisteredClient {
    let mut metadata = json!({
        "client_name": "The certification suite",
        "redirect_uris": [CALLBACK],
        "contacts": ["certification@example.com"],
        "grant_types": ["authorization_code"],
        "response_types": ["code"],
        "token_endpoint_auth_method": "client_secret_basic",
    });
    for (name, value) in more.as_object().unwrap() {
        metadata[name] = value.clone();
    }
    let answer = register(server, &metadata).await;
    assert_eq!(answer.status(), 201, "{answer:?}");
    assert_eq!(answer.header("content-type"), "application/json");
    let client = answer.json();
    let text = |name: &str| client[name].as_str().unwrap_or_default().to_owned();
    // A secret comes with its end; the way to manage the client with its token, or neither.
    let has = |name: &str| client.get(name).is_some();
    assert_eq!(has("client_secret"), has("client_secret_expires_at"));
    assert_eq!(
        has("registration_client_uri"),
        has("registration_access_token")
    );
    RegisteredClient {
        id: text("client_id"),
        secret: text("client_secret"),
        method: text("token_endpoint_auth_method"),
    }
}

impl Module {
    async fn start(mode: Mode) -> Self {
        Self::of(mode, &json!({})).await
    }

    /// With a client that registers these members.
    async fn of(mode: Mode, more: &Value) -> Self {
        Self::with(mode, more, Style::Standard).await
    }

    async fn with(mode: Mode, more: &Value, style: Style) -> Self {
        let server = server(|provider| Arc::make_mut(&mut provider.settings).style = style);
        Self::on(server.await, mode, more).await
    }

    /// On a server of its own.
    async fn on(server: OidcServer, mode: Mode, more: &Value) -> Self {
        let client = registered(&server, more).await;
        let browser = Browser::of(&server, "alice").await;
        Self {
            server,
            mode,
            browser,
            client,
            callback: CALLBACK.to_owned(),
            key: &CLIENT_KEY,
            audience: format!("{ISSUER}/token"),
        }
    }

    /// The parameters of the usual request, with `more` in place of those of the same name or
    /// behind them; `-` leaves one out.
    fn params(&self, more: &[(&str, &str)]) -> Vec<(String, String)> {
        let mode = match self.mode {
            Mode::Default => "-",
            Mode::FormPost => "form_post",
        };
        let usual = [
            ("client_id", self.client.id.as_str()),
            ("redirect_uri", &self.callback),
            ("scope", "openid"),
            ("state", STATE),
            ("nonce", NONCE),
            ("response_type", "code"),
            ("response_mode", mode),
        ];
        let kept = usual
            .into_iter()
            .filter(|(name, _)| more.iter().all(|(other, _)| name != other));
        kept.chain(more.iter().copied())
            .filter(|(_, value)| *value != "-")
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect()
    }

    /// What the browser is shown first.
    async fn authorize(&mut self, more: &[(&str, &str)]) -> Answer {
        let params = self.params(more);
        let pairs: Vec<_> = params
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        let path = format!("/authorize?{}", query(&pairs));
        self.browser.get(&path).await
    }

    /// What reaches the client, after the person has confirmed where a page asks for it.
    async fn answered(&mut self, more: &[(&str, &str)]) -> Fields {
        let shown = self.authorize(more).await;
        self.confirm(shown).await
    }

    async fn confirm(&mut self, mut shown: Answer) -> Fields {
        if is_page(&shown) {
            shown = self.browser.press(&shown, "continue").await;
        }
        self.fields(&shown)
    }

    /// The answer's parameters, each of which the client gets once and nowhere but where the mode
    /// puts them.
    fn fields(&self, answer: &Answer) -> Fields {
        let pairs: Vec<(String, String)> = match self.mode {
            Mode::Default => {
                assert!([302, 303].contains(&answer.status()), "{answer:?}");
                let to = answer.header("location");
                let query = to.strip_prefix(&self.callback).expect("the redirect URI");
                assert!(!query.contains('#'), "{to}");
                let begin = if self.callback.contains('?') {
                    '&'
                } else {
                    '?'
                };
                let query = query.strip_prefix(begin).unwrap_or_else(|| panic!("{to}"));
                url::form_urlencoded::parse(query.as_bytes())
                    .into_owned()
                    .collect()
            }
            Mode::FormPost => {
                assert_eq!(answer.status(), 200, "{answer:?}");
                assert_eq!(answer.header("location"), "");
                assert!(answer.header("content-type").starts_with("text/html"));
                posted(&answer.text(), &self.callback)
            }
        };
        let fields: Fields = pairs.iter().cloned().collect();
        assert_eq!(fields.len(), pairs.len(), "a parameter occurs twice");
        assert_eq!(fields["state"], STATE);
        // RFC 9207: the client learns whose answer it is.
        assert_eq!(fields["iss"], ISSUER);
        fields
    }

    /// The error that the client gets without a page; nothing else comes with it.
    async fn refused(&mut self, more: &[(&str, &str)]) -> String {
        let shown = self.authorize(more).await;
        let fields = self.fields(&shown);
        assert!(!fields.contains_key("code"), "{fields:?}");
        fields["error"].clone()
    }

    /// A page that says that the login does not work. The browser is sent nowhere.
    async fn is_refused_on_a_page(&mut self, more: &[(&str, &str)]) {
        let answer = self.authorize(more).await;
        assert_eq!(answer.status(), 400, "{answer:?}");
        assert!(answer.header("content-type").starts_with("text/html"));
        assert_eq!(answer.header("location"), "");
        let text = answer.text();
        assert!(text.contains("does not work"), "{text}");
        assert!(!text.contains("<form"), "{text}");
    }

    fn code(fields: &Fields) -> &str {
        assert!(!fields.contains_key("error"), "{fields:?}");
        let code = &fields["code"];
        // 128 bits in hexadecimal digits: the suite wants 96, in 16 characters.
        assert!(code.len() >= 32, "{code}");
        code
    }

    /// Who the client is, signed (RFC 7523, section 3).
    fn assertion(&self, client: &RegisteredClient) -> String {
        let now = Timestamp::now().as_second();
        let claims = json!({
            "iss": client.id, "sub": client.id, "aud": self.audience, "iat": now,
            "exp": now + 60, "jti": uuid::Uuid::new_v4().to_string(),
        });
        self.key.sign(claims.to_string().as_bytes()).unwrap()
    }

    /// A request of the client to the token endpoint.
    async fn token(&self, client: &RegisteredClient, pairs: &[(&str, &str)]) -> Answer {
        let assertion;
        let mut pairs = pairs.to_vec();
        let request = match client.method.as_str() {
            "client_secret_basic" => {
                let half = |text: &str| -> String {
                    url::form_urlencoded::byte_serialize(text.as_bytes()).collect()
                };
                let pair = format!("{}:{}", half(&client.id), half(&client.secret));
                let pair = base64::engine::general_purpose::STANDARD.encode(pair);
                with(
                    form("/token", &pairs),
                    "authorization",
                    &format!("Basic {pair}"),
                )
            }
            "client_secret_post" => {
                pairs.push(("client_id", &client.id));
                pairs.push(("client_secret", &client.secret));
                form("/token", &pairs)
            }
            "private_key_jwt" => {
                assertion = self.assertion(client);
                pairs.push(("client_assertion_type", JWT_BEARER));
                pairs.push(("client_assertion", &assertion));
                form("/token", &pairs)
            }
            other => panic!("no client authenticates by {other}"),
        };
        let request = with(request, "accept", "application/json");
        self.server.outside().await.send(request).await
    }

    async fn redeem(&self, code: &str, more: &[(&str, &str)]) -> Answer {
        let usual = [
            ("grant_type", "authorization_code"),
            ("code", code),
            ("redirect_uri", self.callback.as_str()),
        ];
        let pairs: Vec<_> = usual.into_iter().chain(more.iter().copied()).collect();
        self.token(&self.client, &pairs).await
    }

    /// A whole login: what comes back is checked as every module checks it.
    async fn login(&mut self, more: &[(&str, &str)]) -> Login {
        let fields = self.answered(more).await;
        self.finish(&fields, more).await
    }

    /// A login for which no page may be shown.
    async fn silent_login(&mut self, more: &[(&str, &str)]) -> Login {
        let shown = self.authorize(more).await;
        let fields = self.fields(&shown);
        self.finish(&fields, more).await
    }

    async fn finish(&self, fields: &Fields, asked: &[(&str, &str)]) -> Login {
        let answer = self.redeem(Self::code(fields), &[]).await;
        let nonce = asked
            .iter()
            .find(|(name, _)| *name == "nonce")
            .map_or(NONCE, |(_, value)| value);
        self.checked(&answer, Some(nonce).filter(|nonce| *nonce != "-"))
            .await
    }

    /// The tokens of an answer, after the checks of OpenID Connect Core, sections 3.1.3.3 and
    /// 3.1.3.7.
    async fn checked(&self, answer: &Answer, nonce: Option<&str>) -> Login {
        assert_eq!(answer.status(), 200, "{answer:?}");
        assert_eq!(answer.header("content-type"), "application/json");
        assert_eq!(answer.header("cache-control"), "no-store");
        let tokens = answer.json();
        assert_eq!(tokens["token_type"], "Bearer");
        assert!(tokens["access_token"].as_str().unwrap().len() >= 32);
        assert!(tokens["expires_in"].as_i64().unwrap() > 0);
        let token = tokens["id_token"].as_str().unwrap();
        assert_eq!(header_of(token)["alg"], "RS256");
        let claims = self.server.verified(token).await;
        assert_eq!(claims["iss"], ISSUER);
        assert_eq!(claims["aud"], self.client.id.as_str());
        let subject = claims["sub"].as_str().unwrap();
        assert!(subject.is_ascii() && (1..=255).contains(&subject.len()));
        assert_eq!(claims.get("nonce").and_then(Value::as_str), nonce);
        let time = |name: &str| claims[name].as_i64().unwrap_or_else(|| panic!("{name}"));
        let now = Timestamp::now().as_second();
        assert!(time("exp") > now && time("iat") <= now && now - time("iat") < 60);
        assert!(time("auth_time") <= now);
        let access_token = tokens["access_token"].as_str().unwrap();
        assert_eq!(claims["at_hash"], left_half_of_sha256(access_token));
        if let Some(azp) = claims.get("azp") {
            assert_eq!(azp, self.client.id.as_str());
        }
        Login { tokens, claims }
    }

    async fn userinfo(&self, login: &Login) -> Value {
        let answer = userinfo(&mut self.server.outside().await, login.access_token()).await;
        assert_eq!(answer.status(), 200, "{answer:?}");
        assert_eq!(answer.header("content-type"), "application/json");
        let claims = answer.json();
        assert_eq!(claims["sub"], login.claims["sub"]);
        claims
    }

    async fn discovery(&self) -> Value {
        let path = "/.well-known/openid-configuration";
        self.server.alice().await.get(path).await.json()
    }

    /// Lets the browser's login be this many seconds older.
    async fn age(&self, seconds: i64) {
        let cookie = Digest::of(self.browser.cookie(SESSION).expect("a session"));
        let (store, now) = (&self.server.provider.store, Timestamp::now());
        let mut session = store.session(cookie, now).await.unwrap().unwrap();
        let earlier = session.authenticated_at.as_second() - seconds;
        session.authenticated_at = Timestamp::from_second(earlier).unwrap();
        assert!(store.renew_session(&session, now).await.unwrap());
    }
}

/// The fields of the only form of a page that posts itself to this address. Without scripts it has
/// a button.
fn posted(page: &str, action: &str) -> Vec<(String, String)> {
    let text = |text: &str| {
        let text = text.replace("&quot;", "\"").replace("&#39;", "'");
        let text = text.replace("&lt;", "<").replace("&gt;", ">");
        text.replace("&amp;", "&")
    };
    let (_, form) = page
        .split_once("<form ")
        .unwrap_or_else(|| panic!("{page}"));
    assert_eq!(form.matches("<form").count(), 0, "{page}");
    let (attributes, _) = form.split_once('>').unwrap();
    assert!(attributes.contains("method=\"post\""), "{attributes}");
    let to = attributes.split_once("action=\"").unwrap().1;
    assert_eq!(text(to.split('"').next().unwrap()), action);
    assert!(page.contains("<noscript><button>") && page.contains("<script>"));
    form.split("<input type=\"hidden\" name=\"")
        .skip(1)
        .map(|field| {
            let (name, rest) = field.split_once('"').unwrap();
            let value = rest.strip_prefix(" value=\"").unwrap();
            (text(name), text(value.split('"').next().unwrap()))
        })
        .collect()
}

/// `at_hash` of RS256 (OpenID Connect Core, section 3.1.3.6).
fn left_half_of_sha256(token: &str) -> String {
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, token.as_bytes());
    URL_SAFE_NO_PAD.encode(&hash.as_ref()[..16])
}
