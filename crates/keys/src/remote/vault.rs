//! The transit engine of HashiCorp Vault and of OpenBao, by its HTTP API.
//!
//! A transit key has versions, so all keys of one algorithm are versions of one transit key: a
//! rotation makes the next version, and a signature names the version that it wants.

use std::{path::PathBuf, time::Duration};

use ::http::{HeaderMap, StatusCode, header};
use aws_lc_rs::digest::{self, digest};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use futures_util::{FutureExt as _, future::BoxFuture};
use parking_lot::Mutex;
use reqwest::{Client, Method};
use serde::Deserialize;
use serde_json::{Value, json};
use tailbone_telemetry::error_chain;
use tailbone_values::Secret;
use tokio::sync::OnceCell;
use url::Url;

use super::{KeyLocation, KeyReference, KeyService, ServiceError, ServiceKind, Trouble, public};
use crate::{Algorithm, KeyId, KeySpec, PublicJwk, PublicParts, disk};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Size limit of an answer in bytes. The answer that describes a key lists all of its versions,
/// each with less than a kilobyte.
const MAX_ANSWER: usize = 1 << 20;

/// Size limit of a file with a token or certificates.
const MAX_FILE: u64 = 1 << 20;

/// The pause before a repeated call where the service names none.
const PAUSE: Duration = Duration::from_millis(100);

/// Which service, and which of its keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VaultSettings {
    pub address: Url,
    /// Where the transit engine is mounted.
    pub mount: String,
    /// The name of the transit key. `{algorithm}` in it stands for `es256` and the like, for
    /// servers that sign with several algorithms.
    pub key: String,
    pub namespace: Option<String>,
    pub token: VaultToken,
    /// Certificates (PEM) to trust in addition.
    pub ca_file: Option<PathBuf>,
}

/// Where the token for the service comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VaultToken {
    /// A file that another program, such as Vault's agent, keeps fresh. It is read again when the
    /// service refuses the token.
    File(PathBuf),
    Fixed(Secret),
}

/// The transit engine.
#[derive(Debug)]
pub struct Vault {
    settings: VaultSettings,
    /// Made for the first call, because it reads a file.
    client: OnceCell<Client>,
    token: Mutex<Option<Secret>>,
}

impl Vault {
    /// Reads nothing and connects to nothing yet.
    pub fn new(settings: VaultSettings) -> Self {
        Self {
            settings,
            client: OnceCell::new(),
            token: Mutex::default(),
        }
    }

    async fn client(&self) -> Result<&Client, ServiceError> {
        let build = async || {
            let mut builder = Client::builder()
                .connect_timeout(CONNECT_TIMEOUT)
                // A redirect would carry the token elsewhere.
                .redirect(reqwest::redirect::Policy::none())
                .user_agent(concat!("tailbone/", env!("CARGO_PKG_VERSION")));
            if let Some(path) = &self.settings.ca_file {
                let pem = read_file(path.clone()).await?;
                let certificates = reqwest::Certificate::from_pem_bundle(&pem)
                    .map_err(|error| away(format!("{}: {error}", path.display())))?;
                builder = builder.tls_certs_merge(certificates);
            }
            builder.build().map_err(|error| away(error_chain(&error)))
        };
        self.client.get_or_try_init(build).await
    }

    /// The token in use, or the one in the file.
    async fn token(&self) -> Result<Secret, ServiceError> {
        let path = match &self.settings.token {
            VaultToken::Fixed(token) => return Ok(token.clone()),
            VaultToken::File(path) => path.clone(),
        };
        if let Some(token) = &*self.token.lock() {
            return Ok(token.clone());
        }
        self.read_token(path).await
    }

    async fn read_token(&self, path: PathBuf) -> Result<Secret, ServiceError> {
        let bytes = zeroize::Zeroizing::new(read_file(path.clone()).await?);
        let text = std::str::from_utf8(&bytes)
            .map(str::trim)
            .ok()
            .filter(|text| !text.is_empty())
            .ok_or_else(|| forbidden(format!("{} holds no token", path.display())))?;
        let token = Secret::new(text);
        *self.token.lock() = Some(token.clone());
        Ok(token)
    }

    /// One call. After a refusal the token's file is read again, and with another token in it the
    /// call is repeated.
    async fn call(
        &self,
        method: Method,
        path: &[&str],
        body: Option<Value>,
    ) -> Result<Value, ServiceError> {
        let token = self.token().await?;
        match self.send(&method, path, body.as_ref(), &token).await {
            Err(refused) if refused.trouble == Trouble::Forbidden => {
                let VaultToken::File(file) = &self.settings.token else {
                    return Err(refused);
                };
                let newer = self.read_token(file.clone()).await?;
                if newer == token {
                    return Err(refused);
                }
                self.send(&method, path, body.as_ref(), &newer).await
            }
            outcome => outcome,
        }
    }

    async fn send(
        &self,
        method: &Method,
        path: &[&str],
        body: Option<&Value>,
        token: &Secret,
    ) -> Result<Value, ServiceError> {
        let mut url = self.settings.address.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            let mount = self.settings.mount.split('/');
            segments.pop_if_empty().push("v1").extend(mount);
            segments.extend(path);
        }
        let asked = format!("{method} {url}");
        let mut request = self
            .client()
            .await?
            .request(method.clone(), url)
            .header("X-Vault-Token", token.reveal())
            .header("X-Vault-Request", "true");
        if let Some(namespace) = &self.settings.namespace {
            request = request.header("X-Vault-Namespace", namespace);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        let mut answer = request.send().await.map_err(|error| {
            let connected = !error.is_connect();
            let failure = away(format!("{asked}: {}", error_chain(&error.without_url())));
            // The service may close an idle connection at the moment of its use.
            if connected {
                failure.retry_after(PAUSE)
            } else {
                failure
            }
        })?;
        let mut bytes = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(|error| {
            away(format!("{asked}: {}", error_chain(&error.without_url()))).retry_after(PAUSE)
        })? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > MAX_ANSWER {
                return Err(refused(format!(
                    "{asked}: an answer of more than {MAX_ANSWER} bytes"
                )));
            }
        }
        if answer.status().is_success() {
            return serde_json::from_slice(&bytes)
                .map_err(|_| refused(format!("{asked}: the answer is not JSON")));
        }
        Err(error(&asked, answer.status(), answer.headers(), &bytes))
    }

    /// The transit key, made if there is none, and whether it was there.
    async fn describe(&self, name: &str, wanted: &str) -> Result<(TransitKey, bool), ServiceError> {
        match self.call(Method::GET, &["keys", name], None).await {
            Ok(answer) => Ok((transit_key(name, answer)?, true)),
            // A missing key is no error there: the list of errors is empty.
            Err(missing) if missing.trouble == Trouble::Disabled => {
                let body = json!({"type": wanted});
                self.call(Method::POST, &["keys", name], Some(body)).await?;
                let made = self.call(Method::GET, &["keys", name], None).await?;
                Ok((transit_key(name, made)?, false))
            }
            Err(other) => Err(other),
        }
    }

    async fn make_key(&self, kid: KeyId, spec: KeySpec) -> Result<KeyReference, ServiceError> {
        let wanted = transit_type(spec);
        let algorithm = spec.algorithm().as_str().to_ascii_lowercase();
        let name = self.settings.key.replace("{algorithm}", &algorithm);
        let (mut key, was_there) = self.describe(&name, &wanted).await?;
        if key.kind != wanted {
            return Err(refused(format!(
                "the transit key {name} is of type {}, and {wanted} is needed for keys.algorithm \
                 and keys.size",
                key.kind
            )));
        }
        if was_there {
            let path = ["keys", name.as_str(), "rotate"];
            self.call(Method::POST, &path, Some(json!({}))).await?;
            let rotated = self.call(Method::GET, &["keys", &name], None).await?;
            key = transit_key(&name, rotated)?;
        }
        let version = key.latest_version.to_string();
        let parts = key
            .keys
            .get(&version)
            .and_then(|version| public_parts(version.get("public_key")?.as_str()?))
            .ok_or_else(|| refused(format!("the transit key {name} tells no public key")))?;
        Ok(KeyReference {
            location: KeyLocation {
                service: ServiceKind::Vault,
                key: name,
                version,
            },
            public: PublicJwk { kid, parts },
        })
    }

    async fn signature(&self, key: &KeyReference, message: &[u8]) -> Result<Vec<u8>, ServiceError> {
        let version: u64 = key.location.version.parse().map_err(|_| {
            refused(format!(
                "{:?} is not a version of a transit key",
                key.location.version
            ))
        })?;
        let mut body = json!({"key_version": version, "marshaling_algorithm": "jws"});
        match hash_of(key.public.algorithm()) {
            Some((hash, name)) => {
                body["input"] = STANDARD.encode(digest(hash, message)).into();
                body["prehashed"] = true.into();
                body["hash_algorithm"] = name.into();
                body["signature_algorithm"] = "pkcs1v15".into();
            }
            None => body["input"] = STANDARD.encode(message).into(),
        }
        let path = ["sign", &key.location.key];
        let answer = self.call(Method::POST, &path, Some(body)).await?;
        // `vault:v3:` and the signature.
        answer
            .pointer("/data/signature")
            .and_then(Value::as_str)
            .and_then(|text| text.rsplit(':').next())
            .and_then(|text| URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).ok())
            .ok_or_else(|| refused("the answer holds no signature".to_owned()))
    }
}

impl KeyService for Vault {
    fn kind(&self) -> ServiceKind {
        ServiceKind::Vault
    }

    fn make(&self, kid: KeyId, spec: KeySpec) -> BoxFuture<'_, Result<KeyReference, ServiceError>> {
        self.make_key(kid, spec).boxed()
    }

    fn sign<'a>(
        &'a self,
        key: &'a KeyReference,
        message: &'a [u8],
    ) -> BoxFuture<'a, Result<Vec<u8>, ServiceError>> {
        self.signature(key, message).boxed()
    }
}

#[derive(Deserialize)]
struct TransitKey {
    #[serde(rename = "type")]
    kind: String,
    latest_version: u64,
    keys: serde_json::Map<String, Value>,
}

fn transit_key(name: &str, mut answer: Value) -> Result<TransitKey, ServiceError> {
    serde_json::from_value(answer["data"].take()).map_err(|_| {
        refused(format!(
            "the answer does not describe the transit key {name}"
        ))
    })
}

/// Transit's name for what `spec` makes.
fn transit_type(spec: KeySpec) -> String {
    match spec {
        KeySpec::EdDsa => "ed25519".to_owned(),
        KeySpec::Es256 => "ecdsa-p256".to_owned(),
        KeySpec::Es384 => "ecdsa-p384".to_owned(),
        KeySpec::Es512 => "ecdsa-p521".to_owned(),
        KeySpec::Rs256 { bits } => format!("rsa-{bits}"),
    }
}

/// The hash that is signed, and transit's name for it. Ed25519 signs the message itself.
fn hash_of(algorithm: Algorithm) -> Option<(&'static digest::Algorithm, &'static str)> {
    match algorithm {
        Algorithm::EdDsa => None,
        Algorithm::Es256 | Algorithm::Rs256 => Some((&digest::SHA256, "sha2-256")),
        Algorithm::Es384 => Some((&digest::SHA384, "sha2-384")),
        Algorithm::Es512 => Some((&digest::SHA512, "sha2-512")),
    }
}

/// PEM for RSA and ECDSA; the bare key in base64 for Ed25519.
fn public_parts(text: &str) -> Option<PublicParts> {
    if text.starts_with("-----") {
        return public::from_pem(text);
    }
    let key: [u8; 32] = STANDARD.decode(text).ok()?.try_into().ok()?;
    Some(PublicParts::Ed25519 {
        x: URL_SAFE_NO_PAD.encode(key),
    })
}

/// What an answer other than success means.
fn error(asked: &str, status: StatusCode, headers: &HeaderMap, body: &[u8]) -> ServiceError {
    #[derive(Deserialize)]
    struct Errors {
        errors: Vec<String>,
    }
    let words = serde_json::from_slice::<Errors>(body)
        .map(|body| body.errors.join("; "))
        .unwrap_or_default();
    let words = tailbone_values::printable(&words.split_whitespace().collect::<Vec<_>>().join(" "));
    let detail = format!("{asked}: {status}: {words}");
    let says = |texts: &[&str]| texts.iter().any(|text| words.contains(text));
    let pause = headers
        .get(header::RETRY_AFTER)
        .and_then(|value| value.to_str().ok()?.parse().ok())
        .map_or(PAUSE, Duration::from_secs);
    match status {
        StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED => forbidden(detail),
        StatusCode::SERVICE_UNAVAILABLE if says(&["sealed"]) => {
            ServiceError::new(Trouble::Sealed, detail)
        }
        StatusCode::TOO_MANY_REQUESTS => {
            ServiceError::new(Trouble::Throttled, detail).retry_after(pause)
        }
        // 412: a standby has not caught up with the active node yet.
        StatusCode::PRECONDITION_FAILED | StatusCode::SERVICE_UNAVAILABLE => {
            away(detail).retry_after(pause)
        }
        StatusCode::NOT_FOUND => ServiceError::new(Trouble::Disabled, detail),
        // Transit says in words alone that a key or version may not sign.
        _ if says(&["not found", "deleted", "minimum", "version is too"]) => {
            ServiceError::new(Trouble::Disabled, detail)
        }
        status if status.is_server_error() => away(detail),
        _ => refused(detail),
    }
}

fn away(detail: String) -> ServiceError {
    ServiceError::new(Trouble::Away, detail)
}

fn forbidden(detail: String) -> ServiceError {
    ServiceError::new(Trouble::Forbidden, detail)
}

fn refused(detail: String) -> ServiceError {
    ServiceError::new(Trouble::Refused, detail)
}

/// Reads a small file that an operator named.
async fn read_file(path: PathBuf) -> Result<Vec<u8>, ServiceError> {
    let shown = path.display().to_string();
    let read = tokio::task::spawn_blocking(move || disk::read(&path, MAX_FILE)).await;
    match read {
        Ok(Ok(Some(bytes))) => Ok(bytes),
        Ok(Ok(None)) => Err(away(format!("{shown} does not exist"))),
        Ok(Err(error)) => Err(away(error.to_string())),
        Err(error) => Err(away(error.to_string())),
    }
}
