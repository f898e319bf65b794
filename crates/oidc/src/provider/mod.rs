//! The provider: the steps of a login over the store, the keys and the network's word.
//!
//! Each method takes what a request says and who sent it, and gives what the answer says. HTTP is
//! for the component.
//!
//! Invariants
//! - A token is signed before the code or the refresh token that it comes for is used up, and given
//!   out only to the one who has used it up.
//! - Trouble of the store or the keys is told as [`OidcError::unavailable`], with its cause in the
//!   log, never in the answer.

mod access;
mod access_token;
mod administration;
mod authentication;
mod authorization;
mod clients;
mod device;
mod foreign;
mod inspection;
mod logout;
mod programs;
mod registration;
mod requests;
mod tokens;

use std::sync::Arc;

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Map, Value};
use tailbone_keys::{
    Algorithm, SigningQueue,
    jwks::{Document, KeySet},
};

pub use access::{Admission, Denial};
pub use administration::{
    ClientEntry, ClientPage, GrantEntry, Listed, MadeClient, MadeSecret, NewClient, SessionEntry,
    secret_name,
};
pub use authentication::WorkloadIssuer;
pub use authorization::{
    AuthorizeRequest, Authorized, Browser, Confirmation, DeniedLogin, MachineLogin, NewSession,
    Question, SESSION_LIFETIME,
};
pub use device::{Decided, DeviceQuestion};
pub use foreign::Foreign;
pub use inspection::{BearerError, Inspector, UserInfo};
pub use logout::{SessionEnds, SignOut, SignOutRequest};
pub use registration::{ClientView, ListedClient, Registrar};

use crate::{
    OidcError,
    authorize::{ReadRules, UnknownScopes},
    capability::Rules,
    claims::{self, Granted, Identity, Mapping, Style},
    client::{ClientMetadata, Login},
    device::Tries,
    store::{Client, ClientOrigin, NoRandom, Store, StoreError},
    token::Offers,
};

/// The `typ` of an ID token, and of no other token.
const ID_TOKEN_TYPE: &str = "JWT";

/// What makes tokens and remembers them. Clones share one state.
#[derive(Debug, Clone)]
pub struct Provider {
    pub settings: Arc<ProviderSettings>,
    pub store: Arc<dyn Store>,
    pub keys: KeySet,
    pub signing: Arc<SigningQueue>,
    pub network: Arc<dyn Network>,
    pub session_ends: Arc<dyn SessionEnds>,
    /// Of user codes, by person.
    pub user_codes: Arc<Tries>,
    /// Of devices that begin a login, by caller.
    pub new_devices: Arc<Tries>,
    /// Of clients without credentials that push requests, by caller.
    pub pushed_requests: Arc<Tries>,
    /// What clients name for the server to fetch.
    pub foreign: Arc<Foreign>,
    /// Whose tokens clients may authenticate with; `None`: nobody's.
    pub workload: Option<WorkloadIssuer>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProviderSettings {
    /// As every token says it.
    pub issuer: String,
    /// The node's full name, which stands behind logins that are no mail addresses.
    pub host: String,
    pub style: Style,
    /// How names and mail are made of logins.
    pub mapping: Mapping,
    pub offers: Offers,
    pub unknown_scopes: UnknownScopes,
    /// A node of the tailnet may introspect and exchange tokens without a secret, as in tsidp.
    pub nodes_may_inspect: bool,
}

/// Who sends a request, by the network.
#[derive(Debug, Clone, PartialEq)]
pub enum Caller {
    /// A tagged node, which no person uses.
    Machine {
        node: String,
        /// Empty if another tailnet gave them.
        tags: Vec<String>,
        /// The values of the capability, as policy gives them to the node.
        grants: Vec<serde_json::Value>,
    },
    Person(Box<Identity>),
    /// From the internet, or the network does not know.
    Unknown,
}

impl Caller {
    /// Who registers a client, for the limit of each.
    fn owner(&self) -> Option<String> {
        match self {
            Self::Machine { node, .. } => Some(format!("node:{node}")),
            Self::Person(identity) => Some(identity.subject()),
            Self::Unknown => None,
        }
    }

    /// What policy gives the node from which the request comes.
    fn grants(&self) -> &[serde_json::Value] {
        match self {
            Self::Machine { grants, .. } => grants,
            Self::Person(identity) => &identity.grants,
            Self::Unknown => &[],
        }
    }

    /// For requests that need no secret: tsidp takes each node's word for itself.
    fn node(&self) -> Option<&str> {
        match self {
            Self::Machine { node, .. } => Some(node),
            Self::Person(identity) => Some(&identity.device.id),
            Self::Unknown => None,
        }
    }
}

/// Asks the network again who a person is.
pub trait Network: std::fmt::Debug + Send + Sync {
    /// The same person on the same device, as the network knows them now.
    fn again<'a>(&'a self, identity: &'a Identity) -> BoxFuture<'a, Result<Identity, Gone>>;

    /// Whether this person may log in at a client; `registered`: the client made its own entry.
    fn admits<'a>(
        &'a self,
        identity: &'a Identity,
        client_id: &'a str,
        registered: bool,
        access: &'a [String],
    ) -> BoxFuture<'a, Result<Admission, Gone>>;
}

/// Why the network does not vouch for a person any more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Gone {
    #[error("the person or the device is not in the tailnet any more: {0}")]
    Refused(String),
    #[error("the tailnet could not say: {0}")]
    Unavailable(String),
}

impl Provider {
    fn claims(&self) -> claims::Provider<'_> {
        claims::Provider {
            issuer: &self.settings.issuer,
            host: &self.settings.host,
            style: self.settings.style,
            mapping: &self.settings.mapping,
        }
    }

    /// What a client will be told about the person. Rules that fail a token leave out what they
    /// would add.
    fn told(&self, granted: Granted<'_>) -> Map<String, Value> {
        let claims = self.claims();
        let rules = Rules::parse(&granted.identity.grants).unwrap_or_default();
        claims
            .told(granted, &rules)
            .or_else(|_| claims.told(granted, &Rules::default()))
            .unwrap_or_default()
    }

    fn read_rules(&self) -> ReadRules {
        ReadRules {
            unknown_scopes: self.settings.unknown_scopes,
        }
    }

    /// Signs an ID token with the key of this algorithm.
    async fn sign(
        &self,
        algorithm: Algorithm,
        claims: &impl Serialize,
    ) -> Result<String, OidcError> {
        self.sign_as(algorithm, ID_TOKEN_TYPE, claims).await
    }

    /// The same for a token of another `typ`.
    async fn sign_as(
        &self,
        algorithm: Algorithm,
        typ: &'static str,
        claims: &impl Serialize,
    ) -> Result<String, OidcError> {
        let failed = |error: &dyn std::error::Error| {
            tracing::error!(target: "oidc", error = %error, "no token");
            // tsidp's words.
            OidcError::server_error("internal server error - could not get signer")
        };
        let signer = self.keys.loaded().await.signer(algorithm);
        let signer = signer.map_err(|error| failed(&error))?;
        let payload = serde_json::to_vec(claims).map_err(|error| failed(&error))?;
        let signed = if typ == ID_TOKEN_TYPE {
            // Its header is ready.
            self.signing.sign(&signer, &payload).await
        } else {
            self.signing.sign_as(&signer, typ, &payload).await
        };
        signed.map_err(|error| failed(&error))
    }
}

/// The algorithm of a client's ID tokens.
fn algorithm_of(client: &ClientMetadata, keys: &KeySet) -> Algorithm {
    let wanted = client.id_token_signed_response_alg.as_deref();
    offered_algorithm(wanted.unwrap_or_default(), keys)
}

/// The algorithm of this name, or the default one if there is no key for it.
fn offered_algorithm(name: &str, keys: &KeySet) -> Algorithm {
    let wanted: Option<Algorithm> = name.parse().ok();
    wanted
        .filter(|wanted| keys.algorithms().any(|known| known == *wanted))
        .unwrap_or(keys.default_algorithm())
}

/// Whether a login shows a page: as the entry says, and otherwise as tsidp does for the clients
/// that come from there.
fn login_of(client: &Client, metadata: &ClientMetadata) -> Login {
    metadata.login.unwrap_or(match client.origin {
        // Those of tsidp's `/clients/` are made by an administrator, who expects what tsidp does.
        ClientOrigin::Admin | ClientOrigin::Tsidp => Login::Silent,
        ClientOrigin::File | ClientOrigin::Registered => Login::Confirm,
    })
}

/// In tsidp's words.
fn rules_of(identity: &Identity) -> Result<Rules, OidcError> {
    Rules::parse(&identity.grants).map_err(|error| {
        tracing::warn!(target: "oidc", login = identity.login, error = %error, "no token");
        OidcError::invalid_request("failed to unmarshal capability")
    })
}

fn store_failed(error: StoreError) -> OidcError {
    match error {
        StoreError::Unsuitable { .. } => {
            OidcError::invalid_request("a value is longer than it may be, or has a NUL")
        }
        // The watcher of the store tells it once, whatever the number of requests.
        StoreError::Full { .. } | StoreError::Unavailable { .. } => OidcError::unavailable(),
        error => {
            tracing::error!(target: "oidc", error = %error, "the store failed");
            OidcError::unavailable()
        }
    }
}

fn no_random(error: NoRandom) -> OidcError {
    tracing::error!(target: "oidc", error = %error, "no random numbers");
    OidcError::unavailable()
}

fn written(error: serde_json::Error) -> OidcError {
    tracing::error!(target: "oidc", error = %error, "a record cannot be written");
    OidcError::server_error("internal server error")
}

/// Seconds later.
fn after(now: Timestamp, seconds: i64) -> Timestamp {
    let end = now.as_second().saturating_add(seconds);
    Timestamp::from_second(end).unwrap_or(Timestamp::MAX)
}

/// A token of this issuer, with a good signature; times are not looked at. One whose `typ` says
/// that it is no ID token is none.
fn verified(
    token: &str,
    published: &Document,
    issuer: &str,
) -> Option<serde_json::Map<String, serde_json::Value>> {
    let header = jsonwebtoken::decode_header(token).ok()?;
    if header.typ.is_some_and(|typ| typ != ID_TOKEN_TYPE) {
        return None;
    }
    let key = published.find(header.kid.as_deref()?)?;
    // The key says which algorithm it is for; the token has no say in it.
    let algorithm = key.get("alg")?.as_str()?.parse().ok()?;
    let key: jsonwebtoken::jwk::Jwk = serde_json::from_value(key.clone()).ok()?;
    let mut rules = jsonwebtoken::Validation::new(algorithm);
    rules.required_spec_claims.clear();
    rules.validate_exp = false;
    rules.validate_nbf = false;
    rules.validate_aud = false;
    let key = jsonwebtoken::DecodingKey::from_jwk(&key).ok()?;
    let claims =
        jsonwebtoken::decode::<serde_json::Map<String, serde_json::Value>>(token, &key, &rules);
    let claims = claims.ok()?.claims;
    (claims.get("iss")?.as_str()? == issuer).then_some(claims)
}
