//! The whole exchange: a real listener, real keys, an issuer's server and a token endpoint on
//! loopback.

mod client;
mod defects;
mod dialects;
mod fetching;
mod tls;
mod wire;

use std::{
    path::Path,
    sync::{Arc, LazyLock, OnceLock},
    time::Duration,
};

use http::{HeaderMap, StatusCode};
use jiff::Timestamp;
use serde_json::{Value, json};
use tailbone::{
    config::{self, Credentials, Environment, Flags, KeySpec, Purpose, RawSettings, Secret},
    http::{
        layers, origin,
        serve::{Limits, Server, serve},
        tcp::{PlainListener, Remote},
    },
    jwks::fetch,
    keys::Signer,
    sts::{self, TokenExchange},
    telemetry::meter::Meter,
    web::{Allowed, Origin},
};
use testkit::{
    jwks_server::{Behaviour, JwksServer, signer},
    token_endpoint::{ID, SECRET, TokenEndpoint, Trouble},
    until,
    written::Written,
};

/// A key that many tests share, since making one takes a moment.
fn rsa() -> &'static Signer {
    static KEY: OnceLock<Signer> = OnceLock::new();
    KEY.get_or_init(|| signer("rsa-1", KeySpec::Rs256 { bits: 2048 }))
}

/// A key that no issuer publishes at first.
fn stranger() -> &'static Signer {
    static KEY: OnceLock<Signer> = OnceLock::new();
    KEY.get_or_init(|| signer("stranger", KeySpec::Rs256 { bits: 2048 }))
}

fn ec() -> &'static Signer {
    static KEY: OnceLock<Signer> = OnceLock::new();
    KEY.get_or_init(|| signer("ec-1", KeySpec::Es256))
}

/// An exchange with everything around it.
struct Exchange {
    issuer: JwksServer,
    tokens: TokenEndpoint,
    dir: tempfile::TempDir,
    settings: config::StsSettings,
    fetching: fetch::FetchLimits,
    meter: Meter,
}

/// An exchange that runs.
struct RunningExchange {
    exchange: Exchange,
    sts: Option<TokenExchange>,
    url: String,
    /// One per exchange: a shared client would share connections between runtimes of tests, which
    /// end at different times.
    http: reqwest::Client,
    _server: Server,
}

impl Exchange {
    async fn new() -> Self {
        Self::with(
            JwksServer::of(&[rsa(), ec()]).await,
            TokenEndpoint::start().await,
        )
    }

    fn with(issuer: JwksServer, tokens: TokenEndpoint) -> Self {
        LazyLock::force(&AWAKE);
        let dir = tempfile::tempdir().unwrap();
        let credentials = Some(Credentials {
            id: ID.into(),
            secret: Secret::new(SECRET),
        });
        let nothing_typed = RawSettings::collect(Flags::default(), &Environment::default(), None);
        let (defaults, ..) = config::load(&nothing_typed, Purpose::Start).unwrap();
        let settings = config::StsSettings {
            policies_dir: dir.path().to_owned(),
            credentials,
            token_url: tokens.url.parse().unwrap(),
            ..defaults.sts
        };
        let fetching = fetch::FetchLimits {
            time: Duration::from_millis(500),
            ..fetch::FetchLimits::default()
        };
        Self {
            issuer,
            tokens,
            dir,
            settings,
            fetching,
            meter: Meter::default(),
        }
    }

    /// Writes a policy for the issuer: the fields of TailSTS and these additional lines.
    fn policy(self, name: &str, scopes: &[&str], lines: &str) -> Self {
        let url = self.issuer.jwks_url();
        self.policy_of(name, &url, scopes, lines)
    }

    fn policy_of(self, name: &str, jwks_url: &str, scopes: &[&str], lines: &str) -> Self {
        let algorithm = if lines.contains("algorithms") {
            ""
        } else {
            "algorithm = \"RS256\""
        };
        let text = format!(
            "issuer = \"{}\"\n{algorithm}\njwks_url = \"{jwks_url}\"\nallowed_scopes = {}\n{lines}\n",
            self.issuer.url,
            json!(scopes)
        );
        self.file(name, &text)
    }

    fn file(self, name: &str, text: &str) -> Self {
        std::fs::write(self.dir.path().join(name), text).unwrap();
        self
    }

    fn set(mut self, change: impl FnOnce(&mut config::StsSettings)) -> Self {
        change(&mut self.settings);
        self
    }

    fn fetching(mut self, change: impl FnOnce(&mut fetch::FetchLimits)) -> Self {
        change(&mut self.fetching);
        self
    }

    async fn run(self) -> RunningExchange {
        let sts =
            TokenExchange::start_with(&self.settings, self.fetching, self.meter.clone()).unwrap();
        let tcp = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", tcp.local_addr().unwrap());
        let meant = Allowed::parse("https://app.example.com", Origin::parse).unwrap();
        let routes = origin::wrap(sts::router(sts.state()), &[meant]);
        let server = serve(
            "sts",
            PlainListener(tcp),
            layers::wrap_own_errors(routes, "sts"),
            Limits::default(),
            Remote::identify,
        );
        RunningExchange {
            exchange: self,
            sts: Some(sts),
            url,
            http: reqwest::Client::new(),
            _server: server,
        }
    }

    /// The claims of a valid token.
    fn claims(&self) -> Value {
        let now = Timestamp::now().as_second();
        json!({"iss": self.issuer.url, "sub": "test", "aud": "us", "iat": now, "exp": now + 300})
    }

    fn token(&self, change: impl FnOnce(&mut Value)) -> String {
        let mut claims = self.claims();
        change(&mut claims);
        sign(rsa(), &claims)
    }
}

impl std::ops::Deref for RunningExchange {
    type Target = Exchange;

    fn deref(&self) -> &Exchange {
        &self.exchange
    }
}

fn sign(signer: &Signer, claims: &Value) -> String {
    signer.sign(claims.to_string().as_bytes()).unwrap()
}

/// A completely read answer.
#[derive(Debug)]
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: String,
}

impl Answer {
    async fn of(request: reqwest::RequestBuilder) -> Self {
        let response = request.send().await.unwrap();
        Self {
            status: response.status(),
            headers: response.headers().clone(),
            body: response.text().await.unwrap(),
        }
    }

    fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("{self:?}"))
    }

    /// Status and body, as in the contract's table.
    fn plain(&self) -> (u16, &str) {
        (self.status.as_u16(), &self.body)
    }
}

impl RunningExchange {
    fn post(&self) -> reqwest::RequestBuilder {
        self.http.post(&self.url)
    }

    async fn ask(&self, token: &str, scopes: &[&str]) -> Answer {
        Answer::of(
            self.post()
                .bearer_auth(token)
                .json(&json!({"scopes": scopes})),
        )
        .await
    }

    async fn ask_json(&self, token: &str, scopes: &[&str]) -> Answer {
        let request = self
            .post()
            .bearer_auth(token)
            .json(&json!({"scopes": scopes}));
        Answer::of(request.header("accept", "application/json")).await
    }

    fn sts(&self) -> &TokenExchange {
        self.sts.as_ref().unwrap()
    }

    /// Waits until `accepts` is true, for background work.
    async fn until(&self, holds: impl Fn(&Self) -> bool) {
        until("background work", || holds(self)).await;
    }
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

/// Keeps all log lines enabled from the start. Otherwise tracing could disable a line that is
/// reached while no test listens, just before a test begins to listen.
static AWAKE: LazyLock<tracing::Dispatch> = LazyLock::new(|| {
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .with_writer(std::io::sink);
    tracing::Dispatch::new(subscriber.finish())
});

/// The lines that were logged on this thread during its life.
struct Lines {
    written: Written,
    _guard: tracing::subscriber::DefaultGuard,
}

impl Lines {
    fn listen() -> Self {
        let written = Written::default();
        let writer = written.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::DEBUG)
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        Self {
            written,
            _guard: tracing::subscriber::set_default(subscriber),
        }
    }

    fn all(&self) -> String {
        self.written.text()
    }

    fn audit(&self) -> Vec<String> {
        let all = self.all();
        let audit = all.lines().filter(|line| line.contains(" audit: "));
        audit.map(str::to_owned).collect()
    }
}
