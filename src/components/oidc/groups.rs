//! Which groups a person is in: those of a file, and those of the tailnet's own policy file, which
//! Tailscale's API tells.
//!
//! Invariants
//! - A request never waits for the API: it is asked in the background, and its last answer counts.
//! - An answer that is too old is no answer: then nobody can say which groups a person is in, and a
//!   login that needs them waits. No application hears that somebody has left a group because the
//!   API was away.
//! - What the API sends is bounded, and so is the time that it may take.
//!
//! What applications are told is the claims builder's concern (`tailbone_oidc::claims`).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use ::http::{StatusCode, header};
use parking_lot::Mutex;
use serde::Deserialize;
use tailbone_values::Object;
use url::Url;

use super::access::LoginRuleFile;
use crate::{
    config::{Credentials, TailnetGroupSettings},
    http::client,
    identity::{Caller, Visitor},
    policy::Selector,
    telemetry::{error_chain, readiness::LatchState},
    token_endpoint::{RequestedGrant, TokenEndpoint, TokenEndpointError},
};

/// How often the API is asked, and how soon again when it gave no answer.
const ASK_EVERY: Duration = Duration::from_secs(300);
const ASK_AGAIN: Duration = Duration::from_secs(30);

/// How long an answer counts while there is no newer one.
pub const MAX_AGE: Duration = Duration::from_secs(3600);

/// One call of the API.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The largest policy file.
const MAX_POLICY_BYTES: usize = 4 << 20;

/// What the OAuth client needs.
const SCOPE: &str = "policy_file:read";

/// The groups of people, from everywhere.
#[derive(Debug, Default)]
pub struct Groups {
    /// The table `[groups]` of a file of rules.
    pub file: Option<LoginRuleFile>,
    pub tailnet: Option<Arc<TailnetGroups>>,
}

impl Groups {
    /// The names of the groups, each once; `None` if nobody can say at the moment. People of other
    /// tailnets are in none, whatever their login.
    pub fn of(&self, visitor: &Visitor, now: Instant) -> Option<Vec<String>> {
        if visitor.foreign() {
            return Some(Vec::new());
        }
        let caller = visitor.caller_any_tailnet();
        let mut names = BTreeSet::new();
        if let Some(file) = &self.file {
            let rules = file.rules();
            names.extend(rules.groups_of(caller).map(str::to_owned));
        }
        if let Some(tailnet) = &self.tailnet {
            names.extend(tailnet.of(caller, now)?);
        }
        Some(names.into_iter().collect())
    }
}

/// The groups in the tailnet's own policy file.
#[derive(Debug)]
pub struct TailnetGroups {
    http: reqwest::Client,
    endpoint: TokenEndpoint,
    policy_url: Url,
    client: Credentials,
    asking: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    known: Option<Known>,
    /// When the API was last asked, and what was wrong with its answer.
    asked: Option<(Instant, Option<String>)>,
}

#[derive(Debug, Clone)]
struct Known {
    groups: Arc<BTreeMap<String, Vec<Selector>>>,
    since: Instant,
}

/// Why the API told no groups.
#[derive(Debug, thiserror::Error)]
enum ApiError {
    #[error("Tailscale's API gave the OAuth client no token")]
    Token(#[from] TokenEndpointError),
    #[error("Tailscale's API cannot be reached")]
    Unreachable(#[source] reqwest::Error),
    #[error("Tailscale's API answered {0} to the request for the policy file")]
    Status(StatusCode),
    #[error("the policy file is larger than {MAX_POLICY_BYTES} bytes")]
    TooLarge,
    #[error("the policy file cannot be read")]
    Invalid(#[source] serde_json::Error),
}

impl TailnetGroups {
    pub fn new(settings: &TailnetGroupSettings) -> Result<Self, reqwest::Error> {
        let at = |path: &str| {
            let mut url = settings.api.clone();
            url.set_path(path);
            url
        };
        Ok(Self {
            http: client::builder(TIMEOUT).build()?,
            endpoint: TokenEndpoint::new(at("/api/v2/oauth/token"), TIMEOUT, Duration::ZERO)?,
            policy_url: at("/api/v2/tailnet/-/acl"),
            client: settings.client.clone(),
            asking: AtomicBool::new(false),
            state: Mutex::default(),
        })
    }

    fn of(&self, caller: &Caller, now: Instant) -> Option<Vec<String>> {
        let known = self.state.lock().known.clone()?;
        if now.saturating_duration_since(known.since) > MAX_AGE {
            return None;
        }
        let member = |members: &Vec<Selector>| members.iter().any(|one| one.matches(caller));
        let groups = known.groups.iter();
        let of_caller = groups.filter(|(_, members)| member(members));
        Some(of_caller.map(|(name, _)| name.clone()).collect())
    }

    /// Whether it is time to ask again.
    fn is_due(&self, now: Instant) -> bool {
        match &self.state.lock().asked {
            None => true,
            Some((at, trouble)) => {
                let wait = if trouble.is_some() {
                    ASK_AGAIN
                } else {
                    ASK_EVERY
                };
                now.saturating_duration_since(*at) >= wait
            }
        }
    }

    /// Asks in the background, when it is time and nobody asks yet.
    pub fn tick(self: &Arc<Self>, now: Instant) {
        if !self.is_due(now) || self.asking.swap(true, Ordering::AcqRel) {
            return;
        }
        let groups = self.clone();
        tokio::spawn(async move {
            groups.ask(now).await;
            groups.asking.store(false, Ordering::Release);
        });
    }

    /// Asks the API, and keeps its answer.
    pub async fn ask(&self, now: Instant) {
        let answer = self.fetch(now).await;
        let mut state = self.state.lock();
        let before = state.asked.take().and_then(|(_, trouble)| trouble);
        let trouble = match answer {
            Ok(groups) => {
                if before.is_some() || state.known.is_none() {
                    let count = groups.len();
                    tracing::info!(target: "oidc", groups = count, "the groups of the tailnet's policy file are known");
                }
                let groups = Arc::new(groups);
                state.known = Some(Known { groups, since: now });
                None
            }
            Err(error) => {
                let told = error_chain(&error);
                if before.as_ref() != Some(&told) {
                    tracing::warn!(target: "oidc", error = &error as &dyn std::error::Error, "the groups of the tailnet's policy file could not be read");
                }
                Some(told)
            }
        };
        state.asked = Some((now, trouble));
    }

    async fn fetch(&self, now: Instant) -> Result<BTreeMap<String, Vec<Selector>>, ApiError> {
        let grant = RequestedGrant {
            policy: "oidc.groups".to_owned(),
            scopes: vec![SCOPE.to_owned()],
            tags: Vec::new(),
        };
        let token = self.endpoint.token(&self.client, &grant, now).await?;
        let unreachable = |error: reqwest::Error| ApiError::Unreachable(error.without_url());
        let response = self
            .http
            .get(self.policy_url.clone())
            .bearer_auth(token.token.reveal())
            // Otherwise the file comes with its comments.
            .header(header::ACCEPT, "application/json")
            .send()
            .await
            .map_err(unreachable)?;
        let status = response.status();
        if status != StatusCode::OK {
            return Err(ApiError::Status(status));
        }
        let body = client::read_body_up_to(response, MAX_POLICY_BYTES).await;
        let body = body.map_err(unreachable)?.ok_or(ApiError::TooLarge)?;
        let Object(policy) =
            serde_json::from_slice::<Object<PolicyFile>>(&body).map_err(ApiError::Invalid)?;
        Ok(policy.groups())
    }

    /// For readiness. Logins without groups work all the same.
    pub fn state(&self, now: Instant) -> LatchState {
        let state = self.state.lock();
        let trouble = state
            .asked
            .as_ref()
            .and_then(|(_, trouble)| trouble.as_ref());
        let known = state.known.as_ref();
        let old = known.is_none_or(|known| now.saturating_duration_since(known.since) > MAX_AGE);
        match (trouble, old) {
            (Some(trouble), true) => {
                LatchState::Degraded(format!("logins with groups wait: {trouble}"))
            }
            (Some(trouble), false) => LatchState::Degraded(format!("groups may be old: {trouble}")),
            (None, true) => LatchState::Degraded("the groups have not been read yet".to_owned()),
            (None, false) => LatchState::Released,
        }
    }
}

/// What is read of the tailnet's policy file.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct PolicyFile {
    groups: BTreeMap<String, Vec<String>>,
}

impl PolicyFile {
    /// The groups by their names without `group:`. Members that are no logins, domains or tags
    /// stand for nobody.
    fn groups(self) -> BTreeMap<String, Vec<Selector>> {
        let members = |words: Vec<String>| {
            let selectors = words.iter().filter_map(|word| Selector::parse(word).ok());
            let people = |one: &Selector| {
                matches!(
                    one,
                    Selector::Domain(_) | Selector::Tag(_) | Selector::User(_)
                )
            };
            selectors.filter(people).collect()
        };
        self.groups
            .into_iter()
            .map(|(name, words)| {
                let name = name.strip_prefix("group:").unwrap_or(&name).to_owned();
                (name, members(words))
            })
            .collect()
    }
}
