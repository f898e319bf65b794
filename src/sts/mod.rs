//! The exchange: an outside OIDC token (a CI job's, a cloud workload's) for an access token of Tailscale's API, by policy.
//!
//! | Route | Answer |
//! |---|---|
//! | `POST` any path | `Authorization: Bearer <jwt>` and `{"scopes": […]}`: 200 with the bare access token as text |
//! | … with `Accept: application/json` | `{"access_token", "token_type", "expires_in", "scope"}`; errors as RFC 6749 has them |
//! | … with a form of RFC 8693's grant | the same with `issued_token_type`; errors as RFC 8693 has them |
//! | `GET /_healthz` | 200 `{"ok": true, "ready": …}` |
//! | any other method | 405 |
//!
//! Invariants
//! - Nothing is granted but by a policy, for a token whose signature and claims that policy accepts ([`policy`]).
//! - What goes to Tailscale is this request's scopes and tags and nobody else's ([`exchange`]).
//! - Each exchange and each refusal is one audit line with issuer, subject, policy, scopes and reason. No token is ever written.
//! - An issuer whose keys cannot be fetched delays nobody but its own callers, and those for a bounded time.
//!
//! Left to others: listeners and the layers around the routes ([`crate::http::layers::wrap_worded`]), fetching keys ([`crate::jwks::fetch`]), how settings are typed.
//! The caller is known by its token alone: who calls on the tailnet is only written down, since jobs call from outside too.

pub mod client;
pub mod config;
mod error;
pub mod exchange;
pub mod policy;
mod routes;
pub mod trial_issuer;
pub mod verify;

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use futures_util::future::join_all;
use jiff::Timestamp;

pub use error::Error;
pub use routes::router;

use self::{
    config::{Credentials, Settings},
    exchange::{AccessToken, Grant, TokenEndpoint},
    policy::{Examined, LoadError, Loaded, Outcome, Policy, Request},
    verify::{Signature, Token},
};
use crate::{
    jwks::fetch::{Fetcher, Source, SourceState},
    telemetry::meter::Meter,
};

/// The running exchange. Its background tasks end when it is stopped or dropped.
#[derive(Debug)]
pub struct Sts {
    state: Arc<State>,
}

/// What the routes share. No request ever writes what another reads, but for caches.
#[derive(Debug)]
pub struct State {
    policies: ArcSwap<Vec<Policy>>,
    policies_dir: PathBuf,
    strict: bool,
    credentials: Option<Credentials>,
    leeway: Duration,
    keys: Fetcher,
    endpoint: TokenEndpoint,
    meter: Meter,
}

/// Why the exchange did not start, or kept its old policies.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Policies(#[from] LoadError),
    #[error(
        "no OAuth client: set sts.clientId and sts.clientSecret, or client_id and client_secret_file in {}",
        .0.join(", ")
    )]
    NoCredentials(Vec<String>),
    #[error("no HTTP client")]
    Http(#[from] reqwest::Error),
}

/// Whether requests can be answered.
#[derive(Debug, Clone)]
pub struct Readiness {
    /// Every issuer was asked for its keys once, and at least one has given some.
    pub ready: bool,
    pub sources: Vec<SourceState>,
}

/// A granted request.
#[derive(Debug)]
pub struct Granted {
    pub token: AccessToken,
    pub grant: Grant,
}

impl Sts {
    /// Reads the policies and begins to fetch the issuers' keys. Needs a running tokio runtime.
    pub fn start(settings: &Settings, meter: Meter) -> Result<Self, StartError> {
        let state = State {
            policies: ArcSwap::default(),
            policies_dir: settings.policies_dir.clone(),
            strict: settings.strict,
            credentials: settings.credentials.clone(),
            leeway: settings.leeway,
            keys: Fetcher::new(settings.jwks)?.counted(meter.clone()),
            endpoint: TokenEndpoint::new(
                settings.token_url.clone(),
                settings.timeout,
                settings.cache_time,
            )?,
            meter,
        };
        if settings.token_url.scheme() == "http" && !policy::is_loopback(&settings.token_url) {
            tracing::warn!(target: "sts", "sts.tokenUrl has no TLS: the client's secret can be read on the way");
        }
        state.reload()?;
        Ok(Self {
            state: Arc::new(state),
        })
    }

    pub fn state(&self) -> Arc<State> {
        self.state.clone()
    }

    /// Reads the policies anew. With a mistake in any of them the old ones stay.
    pub fn reload(&self) -> Result<(), StartError> {
        self.state.reload()
    }

    pub fn readiness(&self) -> Readiness {
        self.state.readiness()
    }

    /// Ends the background tasks; requests in hand are answered from what is there.
    pub fn stop(self) {}
}

impl Drop for Sts {
    fn drop(&mut self) {
        self.state.keys.watch(&BTreeSet::new());
    }
}

impl State {
    fn reload(&self) -> Result<(), StartError> {
        let Loaded { policies, warnings } = policy::load(&self.policies_dir, self.strict)?;
        let poor: Vec<_> = policies
            .iter()
            .filter(|policy| policy.credentials.is_none() && self.credentials.is_none())
            .map(|policy| policy.name.clone())
            .collect();
        if !poor.is_empty() {
            return Err(StartError::NoCredentials(poor));
        }
        for warning in warnings {
            tracing::warn!(target: "sts", "policy {warning}");
        }
        tracing::info!(target: "sts", count = policies.len(), "policies loaded");
        let sources = policies
            .iter()
            .map(|policy| policy.source.clone())
            .collect();
        self.policies.store(Arc::new(policies));
        self.endpoint.forget();
        self.keys.watch(&sources);
        Ok(())
    }

    pub fn readiness(&self) -> Readiness {
        let sources = self.keys.states();
        Readiness {
            ready: sources.iter().all(|source| source.tried)
                && sources.iter().any(|source| source.keys.is_some()),
            sources,
        }
    }

    /// Verifies, decides, and fetches the access token.
    async fn exchange(
        &self,
        token: &Token,
        request: Request<'_>,
        now: Timestamp,
        clock: Instant,
    ) -> Result<Granted, Refused> {
        let policies = self.policies.load_full();
        let examined = self.examine(&policies, token, clock).await;
        let decision = policy::decide(&policies, &examined, request, now, self.leeway);
        tracing::debug!(target: "sts", "{decision}");
        let policy = match decision.outcome {
            Outcome::Allowed(policy) => policy,
            Outcome::Refused(policy, reason) => {
                return Err(Refused {
                    verified: !reason.is_before_trust(),
                    policy: policy.map(|policy| policy.name.clone()),
                    error: Error::Refused(reason),
                });
            }
        };
        let grant = Grant {
            policy: policy.name.clone(),
            scopes: request.scopes.to_vec(),
            tags: policy.tags_for(request),
        };
        let refused = |error| Refused {
            verified: true,
            policy: Some(policy.name.clone()),
            error,
        };
        // Loading made sure that one of both is there.
        let credentials = policy.credentials.as_ref().or(self.credentials.as_ref());
        let credentials = credentials.ok_or_else(|| {
            let missing = exchange::ExchangeError::ClientRefused("no client is set".to_owned());
            refused(missing.into())
        })?;
        match self.endpoint.token(credentials, &grant, clock).await {
            Ok(token) => Ok(Granted { token, grant }),
            Err(error) => Err(refused(error.into())),
        }
    }

    /// Has each key source of the issuer's policies look at the signature, all at once.
    async fn examine<'a>(
        &self,
        policies: &[Policy],
        token: &'a Token,
        clock: Instant,
    ) -> Examined<'a> {
        let issuer = token.claims.text("iss").unwrap_or_default();
        let sources: BTreeSet<&Source> = policy::of_issuer(policies, issuer)
            .filter(|policy| {
                // No fetch for a token that its algorithm rules out already.
                (token.algorithm).is_some_and(|algorithm| policy.algorithms.contains(&algorithm))
            })
            .map(|policy| &policy.source)
            .collect();
        let looks = sources.into_iter().map(|source| async move {
            let enough = |set: &_| token.is_judged_by(set);
            let signature = match self.keys.keys(source, enough, clock).await {
                Ok(set) => token.signature(&set),
                Err(_) => Signature::NoKeys,
            };
            (source.clone(), signature)
        });
        Examined {
            token,
            signatures: join_all(looks).await,
        }
    }
}

/// A refusal, with what the audit line tells about it.
#[derive(Debug)]
struct Refused {
    error: Error,
    policy: Option<String>,
    /// Whether the token's claims are its issuer's words.
    verified: bool,
}

/// A text from outside as it may stand in a log line: short, and without anything that begins another line.
fn shown(text: &str) -> String {
    const MOST: usize = 256;
    text.chars()
        .take(MOST)
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}
