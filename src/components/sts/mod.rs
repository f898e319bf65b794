//! The exchange: gives an access token for Tailscale's API in return for an outside OIDC token (of
//! a CI job or a cloud workload), by policy.
//!
//! | Request | Answer |
//! |---|---|
//! | `POST` any path with `Authorization: Bearer <jwt>`, `{"scopes": […]}` | 200, the bare token |
//! | … and `Accept: application/json` | `{"access_token", "token_type", "expires_in", "scope"}` |
//! | `POST` any path with an RFC 8693 form | the same with `issued_token_type` |
//! | `GET /_healthz` | 200 `{"ok": true, "ready": …}` |
//! | any other method | 405 |
//!
//! Errors are plain text in the first case, and JSON as in RFC 6749 and RFC 8693 in the others.
//!
//! Invariants
//! - Only a policy grants anything, and only for a token whose signature and claims it accepts
//!   ([`policy`]).
//! - A call of Tailscale has the scopes and tags of one request and never of another
//!   ([`crate::token_endpoint`]).
//! - Each exchange and each refusal is one audit line with issuer, subject, policy, scopes and
//!   reason. No token is ever written anywhere.
//! - An issuer whose keys cannot be fetched only delays its own callers, for a bounded time.
//!
//! Done elsewhere: listeners and the layers around the routes
//! ([`crate::http::layers::wrap_own_errors`]), fetching keys ([`crate::jwks::fetch`]), the syntax
//! of settings. Callers are identified by their token only: an identity on the tailnet is logged at
//! most, since jobs also call from outside.

pub mod client;
mod error;
pub mod policy;
mod routes;
pub mod trial_issuer;

use std::{collections::BTreeSet, sync::Arc, time::Instant};

use ::http::Extensions;
use arc_swap::ArcSwap;
use futures_util::future::join_all;
use jiff::Timestamp;

pub use error::ExchangeError;
pub use routes::router;

use self::policy::{
    CheckedToken, ExchangePolicy, LoadedPolicies, PolicyLoadError, PolicyOutcome, RequestedAccess,
};
use crate::{
    config::{self, Listen},
    http::{layers, origin},
    jwks::{
        fetch::{self, Fetcher, KeySource, SourceState},
        verify::{ParsedToken, SignatureCheck},
    },
    part::{AcceptedHosts, Context, Lifecycle, Part, PartError, Routes},
    telemetry::meter::Meter,
    token_endpoint::{AccessToken, RequestedGrant, TokenEndpoint, TokenEndpointError},
};

/// The component, at its listeners.
pub fn part(settings: &config::Settings, context: &Context) -> Result<Part, PartError> {
    let origins = &settings.server.allowed_origins;
    let settings = &settings.sts;
    let exchange = TokenExchange::start(settings, context.meter.clone())?;
    let routes = origin::wrap(router(exchange.state()), origins);
    let routes = origin::share(routes, origins);
    let routes = layers::wrap_own_errors(routes, "sts");
    // The caller's identity is in the token, not in the connection.
    let routes = Routes::new("sts", routes.clone()).on_the_internet(routes);
    let state = exchange.state();
    let mut part = Part::new("sts")
        .latch("sts-issuers", move |_| {
            if state.readiness().ready {
                Ok(())
            } else {
                Err(
                    "the keys of no issuer in the exchange's policies have been fetched yet"
                        .to_owned(),
                )
            }
        })
        .lifecycle(exchange);
    for listen in settings.listen.clone() {
        let (name, hosts) = match listen {
            // The names there are those of the certificate or of the proxy in front.
            Listen::Host { .. } => ("sts host", AcceptedHosts::Any),
            Listen::Funnel { .. } => ("sts funnel", AcceptedHosts::Any),
            _ => ("sts", AcceptedHosts::Own),
        };
        part = part.serve_as(name, vec![listen], &routes, hosts, |_| Extensions::new());
    }
    Ok(part)
}

/// The running exchange. Its background tasks end when it is stopped or dropped.
#[derive(Debug)]
pub struct TokenExchange {
    state: Arc<SharedState>,
}

/// The state that all requests share. Apart from caches, no request changes what another one reads.
#[derive(Debug)]
pub struct SharedState {
    settings: config::StsSettings,
    policies: ArcSwap<Vec<ExchangePolicy>>,
    keys: Fetcher,
    endpoint: TokenEndpoint,
    meter: Meter,
}

/// Why the exchange did not start, or kept its previous policies.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    #[error(transparent)]
    Policies(#[from] PolicyLoadError),
    #[error(
        "no OAuth client: set sts.clientId and sts.clientSecret, or client_id and client_secret_file in {}",
        .0.join(", ")
    )]
    NoCredentials(Vec<String>),
    #[error("cannot create the HTTP client")]
    Http(#[from] reqwest::Error),
}

/// Whether the exchange can answer requests.
#[derive(Debug, Clone)]
pub struct ExchangeReadiness {
    /// Every issuer's keys were requested once, and at least one issuer answered.
    pub ready: bool,
    pub sources: Vec<SourceState>,
}

/// A granted request.
#[derive(Debug)]
pub struct Granted {
    pub token: AccessToken,
    pub grant: RequestedGrant,
}

impl TokenExchange {
    /// Reads the policies and starts to fetch the issuers' keys. Needs a running tokio runtime.
    pub fn start(settings: &config::StsSettings, meter: Meter) -> Result<Self, SetupError> {
        let rules = fetch::FetchLimits {
            cool_down: settings.jwks_cool_down,
            ..fetch::FetchLimits::default()
        };
        Self::start_with(settings, rules, meter)
    }

    /// The same with other rules for fetching the issuers' keys.
    pub fn start_with(
        settings: &config::StsSettings,
        rules: fetch::FetchLimits,
        meter: Meter,
    ) -> Result<Self, SetupError> {
        let state = SharedState {
            settings: settings.clone(),
            policies: ArcSwap::default(),
            keys: Fetcher::new(rules)?.with_meter(meter.clone()),
            endpoint: TokenEndpoint::new(
                settings.token_url.clone(),
                settings.timeout,
                settings.cache_time,
            )?,
            meter,
        };
        if settings.token_url.scheme() == "http" && !policy::is_loopback(&settings.token_url) {
            tracing::warn!(target: "sts", "sts.tokenUrl has no TLS: anybody on the path can read the client's secret");
        }
        state.reload_policies()?;
        Ok(Self {
            state: Arc::new(state),
        })
    }

    pub fn state(&self) -> Arc<SharedState> {
        self.state.clone()
    }

    /// Reads the policies again. After a mistake in any of them the previous ones stay active.
    pub fn reload_policies(&self) -> Result<(), SetupError> {
        self.state.reload_policies()
    }

    pub fn readiness(&self) -> ExchangeReadiness {
        self.state.readiness()
    }

    /// Ends the background tasks; running requests use the keys that are there.
    pub fn stop(self) {}
}

impl Lifecycle for TokenExchange {
    fn reload(&self, _: &config::Settings) {
        if let Err(error) = self.reload_policies() {
            tracing::warn!(target: "sts", error = &error as &dyn std::error::Error, "the policies have mistakes; the previous ones stay in force");
        }
    }
}

impl Drop for TokenExchange {
    fn drop(&mut self) {
        self.state.keys.watch(&BTreeSet::new());
    }
}

impl SharedState {
    fn reload_policies(&self) -> Result<(), SetupError> {
        let LoadedPolicies { policies, warnings } =
            policy::load(&self.settings.policies_dir, self.settings.strict)?;
        let without_client: Vec<_> = policies
            .iter()
            .filter(|policy| policy.credentials.is_none() && self.settings.credentials.is_none())
            .map(|policy| policy.name.clone())
            .collect();
        if !without_client.is_empty() {
            return Err(SetupError::NoCredentials(without_client));
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
        self.endpoint.clear_cache();
        self.keys.watch(&sources);
        Ok(())
    }

    pub fn readiness(&self) -> ExchangeReadiness {
        let sources = self.keys.states();
        ExchangeReadiness {
            ready: sources.iter().all(|source| source.tried)
                && sources.iter().any(|source| source.keys.is_some()),
            sources,
        }
    }

    /// Verifies the token, decides, and fetches the access token.
    async fn exchange(
        &self,
        token: &ParsedToken,
        request: RequestedAccess<'_>,
        now: Timestamp,
        monotonic_now: Instant,
    ) -> Result<Granted, RefusedExchange> {
        let policies = self.policies.load_full();
        let checked_token = self.check_signatures(&policies, token, monotonic_now).await;
        let decision = policy::decide(
            &policies,
            &checked_token,
            request,
            now,
            self.settings.leeway,
        );
        tracing::debug!(target: "sts", "{decision}");
        let policy = match decision.outcome {
            PolicyOutcome::Allowed(policy) => policy,
            PolicyOutcome::Refused(policy, reason) => {
                return Err(RefusedExchange {
                    verified: !reason.precedes_verification(),
                    policy: policy.map(|policy| policy.name.clone()),
                    error: ExchangeError::Refused(reason),
                });
            }
        };
        let grant = RequestedGrant {
            policy: policy.name.clone(),
            scopes: request.scopes.to_vec(),
            tags: policy.tags_for(request),
        };
        let refused = |error| RefusedExchange {
            verified: true,
            policy: Some(policy.name.clone()),
            error,
        };
        // Loading has checked that one of the two exists.
        let credentials = policy
            .credentials
            .as_ref()
            .or(self.settings.credentials.as_ref());
        let credentials = credentials.ok_or_else(|| {
            let missing = TokenEndpointError::ClientRefused("no client is set".to_owned());
            refused(missing.into())
        })?;
        match self
            .endpoint
            .token(credentials, &grant, monotonic_now)
            .await
        {
            Ok(token) => Ok(Granted { token, grant }),
            Err(error) => Err(refused(error.into())),
        }
    }

    /// Verifies the signature with the keys of each source in the issuer's policies, concurrently.
    async fn check_signatures<'a>(
        &self,
        policies: &[ExchangePolicy],
        token: &'a ParsedToken,
        monotonic_now: Instant,
    ) -> CheckedToken<'a> {
        let issuer = token.claims.text("iss").unwrap_or_default();
        let sources: BTreeSet<&KeySource> = policy::policies_for_issuer(policies, issuer)
            .filter(|policy| {
                // No fetch for a token whose algorithm is not allowed anyway.
                (token.algorithm).is_some_and(|algorithm| policy.algorithms.contains(&algorithm))
            })
            .map(|policy| &policy.source)
            .collect();
        let checks = sources.into_iter().map(|source| async move {
            let is_recent_enough = |set: &_| token.can_be_checked_with(set);
            let signature = match self
                .keys
                .keys(source, is_recent_enough, monotonic_now)
                .await
            {
                Ok(set) => token.signature(&set),
                Err(_) => SignatureCheck::NoKeys,
            };
            (source.clone(), signature)
        });
        CheckedToken {
            token,
            signatures: join_all(checks).await,
        }
    }
}

/// A refusal with the details for the audit line.
#[derive(Debug)]
struct RefusedExchange {
    error: ExchangeError,
    policy: Option<String>,
    /// Whether the signature was valid, so that the claims are really the issuer's.
    verified: bool,
}
