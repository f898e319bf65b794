//! The SPIFFE Workload API for JWT-SVIDs, on a unix socket: tokens of the issuer for workloads that
//! speak SPIFFE.
//!
//! Invariants
//! - A call without the metadata `workload.spiffe.io: true` is refused, so that no web page and no
//!   forwarded request can make one.
//! - A token is an SVID only if its subject is a SPIFFE ID of the trust domain, and its algorithm
//!   one that the standard allows.
//! - Every process that may open the socket has this machine's identity: the socket's mode is the
//!   protection.

mod socket;

use std::{
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{Stream, stream};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, jwk::Jwk};
use prost_types::{ListValue, Struct, value::Kind};
use serde_json::{Map, Value};
use tokio::sync::{Mutex, watch};
use tonic::{Request, Response, Status, service::Routes};

use self::proto::{
    JwtBundlesRequest, JwtBundlesResponse, Jwtsvid, JwtsvidRequest, JwtsvidResponse,
    ValidateJwtsvidRequest, ValidateJwtsvidResponse, X509BundlesRequest, X509BundlesResponse,
    X509svidRequest, X509svidResponse,
    spiffe_workload_api_server::{SpiffeWorkloadApi, SpiffeWorkloadApiServer},
};
pub use self::socket::ApiSocket;
use super::{
    cache::CachedTokens,
    issuer::{self, Issuer, TokenError},
};
use crate::{http::layers, telemetry};

#[allow(missing_debug_implementations, unreachable_pub)]
pub mod proto {
    tonic::include_proto!("_");
}

const JWKS: &str = ".well-known/jwks.json";
/// How often the keys are read. A new key is published long before it signs.
const REFRESH: Duration = Duration::from_secs(60);
const RETRY: Duration = Duration::from_secs(5);
/// A token of an unknown key makes the keys be read, but not more often than this.
const MIN_REFRESH: Duration = Duration::from_secs(1);
/// How far clocks may be apart.
const LEEWAY_SECONDS: u64 = 60;
const MAX_ID_BYTES: usize = 2048;

/// The algorithms of JWT-SVIDs.
const ALGORITHMS: [(&str, Option<Algorithm>); 9] = [
    ("ES256", Some(Algorithm::ES256)),
    ("ES384", Some(Algorithm::ES384)),
    // Allowed, but the library that checks tokens here does not know it.
    ("ES512", None),
    ("PS256", Some(Algorithm::PS256)),
    ("PS384", Some(Algorithm::PS384)),
    ("PS512", Some(Algorithm::PS512)),
    ("RS256", Some(Algorithm::RS256)),
    ("RS384", Some(Algorithm::RS384)),
    ("RS512", Some(Algorithm::RS512)),
];

/// The API. Clones share its tokens and keys.
#[derive(Debug, Clone)]
pub struct WorkloadApi(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    tokens: CachedTokens,
    trust_domain: String,
    bundle: watch::Sender<Option<Arc<Bundle>>>,
    refreshed: Mutex<Option<Instant>>,
}

/// The issuer's keys.
#[derive(Debug, PartialEq, Eq)]
struct Bundle {
    /// As SPIFFE wants it: a JWKS whose keys are for `jwt-svid`.
    document: Vec<u8>,
    keys: Vec<Value>,
}

impl WorkloadApi {
    pub fn new(issuer: Issuer, trust_domain: String) -> Self {
        Self(Arc::new(Inner {
            tokens: CachedTokens::new(issuer),
            trust_domain,
            bundle: watch::Sender::new(None),
            refreshed: Mutex::default(),
        }))
    }

    pub fn router(&self) -> axum::Router {
        let service = SpiffeWorkloadApiServer::new(self.clone());
        let routes = Routes::new(service).prepare().into_axum_router();
        layers::wrap_grpc(routes, "workload-spiffe")
    }

    /// Reads the issuer's keys for ever. The last ones stay while it is away.
    pub async fn keep_keys(&self) {
        let mut failing = false;
        loop {
            let outcome = self.refresh().await;
            if let Err(error) = &outcome
                && !failing
            {
                let error = telemetry::error_chain(error);
                tracing::warn!(target: "workload", error, "the issuer's keys cannot be read");
            }
            failing = outcome.is_err();
            tokio::time::sleep(if failing { RETRY } else { REFRESH }).await;
        }
    }

    async fn refresh(&self) -> Result<(), TokenError> {
        let issuer = &self.0.tokens.issuer;
        let bundle = Bundle::read(&issuer.document(JWKS).await?)
            .ok_or_else(|| issuer.invalid("it is no JWKS"))?;
        self.0.bundle.send_if_modified(|known| {
            let changed = known.as_deref() != Some(&bundle);
            if changed {
                *known = Some(Arc::new(bundle));
            }
            changed
        });
        Ok(())
    }

    /// Reads the keys after this call, for all callers that wait for them at once.
    async fn refresh_soon(&self) -> Result<(), TokenError> {
        let asked = Instant::now();
        let mut refreshed = self.0.refreshed.lock().await;
        if let Some(at) = *refreshed {
            if at > asked {
                return Ok(());
            }
            tokio::time::sleep(MIN_REFRESH.saturating_sub(at.elapsed())).await;
        }
        *refreshed = Some(Instant::now());
        self.refresh().await
    }

    fn current(&self) -> Option<Arc<Bundle>> {
        self.0.bundle.borrow().clone()
    }

    /// The claims of a token that is valid for the audience.
    async fn validate(&self, audience: &str, svid: &str) -> Result<Map<String, Value>, String> {
        let header = jsonwebtoken::decode_header(svid).map_err(|_| "it is no JSON Web Token")?;
        let allowed = ALGORITHMS.iter().any(|(_, one)| *one == Some(header.alg));
        if !allowed {
            return Err(format!("its algorithm is {:?}", header.alg));
        }
        let kid = header.kid.as_deref().ok_or("it names no key")?;
        let find = || self.current().and_then(|bundle| bundle.key(kid));
        let key = match find() {
            Some(key) => Some(key),
            None => {
                let refreshed = self.refresh_soon().await;
                refreshed.map_err(|error| telemetry::error_chain(&error))?;
                find()
            }
        };
        let key = key.ok_or("the issuer has no key of that name")?;
        let mut validation = Validation::new(header.alg);
        validation.leeway = LEEWAY_SECONDS;
        validation.validate_nbf = true;
        validation.set_audience(&[audience]);
        validation.set_required_spec_claims(&["aud", "exp", "sub"]);
        let decoded = jsonwebtoken::decode::<Map<String, Value>>(svid, &key, &validation)
            .map_err(|error| error.to_string())?;
        let subject = decoded.claims.get("sub").and_then(Value::as_str);
        self.identity(subject.unwrap_or_default())?;
        Ok(decoded.claims)
    }

    /// Checks that a subject is a SPIFFE ID of the trust domain.
    fn identity(&self, subject: &str) -> Result<(), String> {
        let trust_domain = &self.0.trust_domain;
        match trust_domain_of(subject) {
            None => Err(format!(
                "the token's subject {subject:?} is no SPIFFE ID: set the issuer's \
                 workload.subject to a template such as spiffe://{trust_domain}/…"
            )),
            Some(other) if other != trust_domain => Err(format!(
                "the token's subject {subject} is in another trust domain: start this with \
                 --trust-domain {other}"
            )),
            Some(_) => Ok(()),
        }
    }
}

impl Bundle {
    /// The keys of a JWKS that have a name, marked as keys for SVIDs.
    fn read(jwks: &str) -> Option<Self> {
        let document: Value = serde_json::from_str(jwks).ok()?;
        let keys = document.get("keys")?.as_array()?;
        let keys: Vec<Value> = keys
            .iter()
            .filter(|key| key.get("kid").is_some_and(Value::is_string))
            .cloned()
            .map(|mut key| {
                key["use"] = "jwt-svid".into();
                key
            })
            .collect();
        let document = serde_json::to_vec(&serde_json::json!({"keys": keys})).ok()?;
        Some(Self { document, keys })
    }

    fn key(&self, kid: &str) -> Option<DecodingKey> {
        let key = self.keys.iter().find(|key| key["kid"] == kid)?;
        let mut key = key.clone();
        // The library does not know the use of SPIFFE.
        key.as_object_mut()?.remove("use");
        let key: Jwk = serde_json::from_value(key).ok()?;
        DecodingKey::from_jwk(&key).ok()
    }
}

/// The trust domain of a SPIFFE ID, or nothing for any other text.
pub fn trust_domain_of(id: &str) -> Option<&str> {
    let rest = id.strip_prefix("spiffe://")?;
    let (domain, path) = match rest.split_once('/') {
        Some((domain, path)) => (domain, Some(path)),
        None => (rest, None),
    };
    let in_path = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'-' | b'_');
    let segment =
        |segment: &str| !["", ".", ".."].contains(&segment) && segment.bytes().all(in_path);
    let right = is_trust_domain(domain)
        && id.len() <= MAX_ID_BYTES
        && path.is_none_or(|path| path.split('/').all(segment));
    right.then_some(domain)
}

/// Whether this can be the name of a trust domain.
pub fn is_trust_domain(name: &str) -> bool {
    let allowed =
        |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, b'.' | b'-' | b'_');
    !name.is_empty() && name.len() <= 255 && name.bytes().all(allowed)
}

/// Libraries of SPIFFE send it with every call.
fn check_metadata<T>(request: &Request<T>) -> Result<(), Status> {
    let value = request.metadata().get("workload.spiffe.io");
    if value.is_some_and(|value| value.as_encoded_bytes() == b"true") {
        return Ok(());
    }
    let words = "the metadata workload.spiffe.io: true is missing";
    Err(Status::invalid_argument(words))
}

fn status(error: &TokenError) -> Status {
    let words = telemetry::error_chain(error);
    match error {
        TokenError::Refused { status, .. } if status.is_client_error() => {
            Status::permission_denied(words)
        }
        _ => Status::unavailable(words),
    }
}

type Bundles = Pin<Box<dyn Stream<Item = Result<JwtBundlesResponse, Status>> + Send>>;

#[tonic::async_trait]
impl SpiffeWorkloadApi for WorkloadApi {
    type FetchJWTBundlesStream = Bundles;
    type FetchX509BundlesStream = stream::Empty<Result<X509BundlesResponse, Status>>;
    type FetchX509SVIDStream = stream::Empty<Result<X509svidResponse, Status>>;

    async fn fetch_jwtsvid(
        &self,
        request: Request<JwtsvidRequest>,
    ) -> Result<Response<JwtsvidResponse>, Status> {
        check_metadata(&request)?;
        let request = request.into_inner();
        let [audience] = request.audience.as_slice() else {
            return Err(Status::invalid_argument(
                "name one audience: this issuer's tokens have exactly one",
            ));
        };
        if audience.is_empty() {
            return Err(Status::invalid_argument("the audience is empty"));
        }
        let (token, _) = self.0.tokens.get(audience).await.map_err(|error| {
            let words = telemetry::error_chain(&error);
            tracing::warn!(target: "workload", audience, error = words, "no token");
            status(&error)
        })?;
        let text = token.token.reveal();
        let claims = issuer::unverified_claims(text).unwrap_or_default();
        let subject = claims
            .get("sub")
            .and_then(Value::as_str)
            .unwrap_or_default();
        self.identity(subject).map_err(Status::permission_denied)?;
        let algorithm = issuer::algorithm(text).unwrap_or_default();
        if !ALGORITHMS.iter().any(|(name, _)| *name == algorithm) {
            return Err(Status::permission_denied(format!(
                "the token's algorithm is {algorithm:?}, which SPIFFE does not allow: let the \
                 issuer sign with RS256 or ES256 for this audience"
            )));
        }
        if !["", subject].contains(&request.spiffe_id.as_str()) {
            return Err(Status::permission_denied(format!(
                "this machine is {subject}, not {}",
                request.spiffe_id
            )));
        }
        Ok(Response::new(JwtsvidResponse {
            svids: vec![Jwtsvid {
                spiffe_id: subject.to_owned(),
                svid: text.to_owned(),
                hint: String::new(),
            }],
        }))
    }

    async fn fetch_jwt_bundles(
        &self,
        request: Request<JwtBundlesRequest>,
    ) -> Result<Response<Bundles>, Status> {
        check_metadata(&request)?;
        if self.current().is_none() {
            self.refresh_soon().await.map_err(|error| status(&error))?;
        }
        let mut changes = self.0.bundle.subscribe();
        changes.mark_changed();
        let name = format!("spiffe://{}", self.0.trust_domain);
        let answers = stream::unfold((changes, name), async |(mut changes, name)| {
            loop {
                // The sender lives as long as the API, of which this stream is a part.
                changes.changed().await.ok()?;
                let Some(bundle) = changes.borrow_and_update().clone() else {
                    continue;
                };
                let bundles = [(name.clone(), bundle.document.clone())].into();
                return Some((Ok(JwtBundlesResponse { bundles }), (changes, name)));
            }
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn validate_jwtsvid(
        &self,
        request: Request<ValidateJwtsvidRequest>,
    ) -> Result<Response<ValidateJwtsvidResponse>, Status> {
        check_metadata(&request)?;
        let request = request.into_inner();
        if request.audience.is_empty() {
            return Err(Status::invalid_argument("the audience is empty"));
        }
        let claims = self.validate(&request.audience, &request.svid).await;
        let claims = claims.map_err(|reason| {
            Status::invalid_argument(format!("the token is invalid: {reason}"))
        })?;
        let subject = claims
            .get("sub")
            .and_then(Value::as_str)
            .unwrap_or_default();
        Ok(Response::new(ValidateJwtsvidResponse {
            spiffe_id: subject.to_owned(),
            claims: Some(fields(claims)),
        }))
    }

    async fn fetch_x509svid(
        &self,
        _: Request<X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        Err(no_certificates())
    }

    async fn fetch_x509_bundles(
        &self,
        _: Request<X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        Err(no_certificates())
    }
}

fn no_certificates() -> Status {
    Status::unimplemented("this issuer has tokens (JWT-SVIDs) and no certificates (X509-SVIDs)")
}

fn fields(object: Map<String, Value>) -> Struct {
    Struct {
        fields: object
            .into_iter()
            .map(|(name, member)| (name, value(member)))
            .collect(),
    }
}

fn value(json: Value) -> prost_types::Value {
    let kind = match json {
        Value::Null => Kind::NullValue(0),
        Value::Bool(flag) => Kind::BoolValue(flag),
        Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or_default()),
        Value::String(text) => Kind::StringValue(text),
        Value::Array(items) => Kind::ListValue(ListValue {
            values: items.into_iter().map(value).collect(),
        }),
        Value::Object(object) => Kind::StructValue(fields(object)),
    };
    prost_types::Value { kind: Some(kind) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spiffe_id_has_a_trust_domain() {
        for right in [
            "spiffe://example.org/web",
            "spiffe://tail1234.ts.net/ns/a_b/sa/C-d.e",
            "spiffe://example.org",
        ] {
            assert!(trust_domain_of(right).is_some(), "{right}");
        }
        assert_eq!(trust_domain_of("spiffe://a.b/c"), Some("a.b"));
        for wrong in [
            "",
            "web.tail1234.ts.net",
            "https://example.org/web",
            "spiffe:///web",
            "spiffe://Example.org/web",
            "spiffe://example.org:80/web",
            "spiffe://example.org/",
            "spiffe://example.org//web",
            "spiffe://example.org/../web",
            "spiffe://example.org/w%20b",
            "spiffe://example.org/web?x",
        ] {
            assert_eq!(trust_domain_of(wrong), None, "{wrong}");
        }
        let long = format!("spiffe://example.org/{}", "a".repeat(MAX_ID_BYTES));
        assert_eq!(trust_domain_of(&long), None);
    }

    #[test]
    fn a_bundle_contains_named_keys_for_svids() {
        let jwks = r#"{"keys":[{"kty":"EC","kid":"a","use":"sig"},{"kty":"EC"}]}"#;
        let bundle = Bundle::read(jwks).unwrap();
        assert_eq!(
            String::from_utf8(bundle.document).unwrap(),
            r#"{"keys":[{"kid":"a","kty":"EC","use":"jwt-svid"}]}"#
        );
        assert!(Bundle::read("<html>").is_none() && Bundle::read("{}").is_none());
    }
}
