//! Tokens for machines, which clouds and other verifiers trust: what tsiam does, and more.
//!
//! A node of the tailnet asks for a token with an audience, and gets a JWT that names the node.
//! AWS, Azure, Google Cloud, Vault or Kubernetes check it with the keys that they read at the
//! issuer's name, and give the node rights of their own for it.
//!
//! Invariants
//! - The claims come from the connection's identity, the settings and the rules. Of the request
//!   only the audience has a say.
//! - Every URL is made of the issuer's name, which does not change without a word
//!   ([`crate::keys::issuer_name`]).
//! - Through Funnel there are the documents and nothing else.
//! - Each token and each refusal is one audit line; the token itself is never written anywhere.
//!
//! `routes.rs` has tsiam's requests and answers, `oauth.rs` those of the standards; [`access`]
//! decides who gets what, `tokens.rs` makes the token, `documents.rs` is what verifiers read.
//! [`client`] asks for tokens, and needs no server here. Done elsewhere: identification
//! ([`crate::identity`]), the life of the keys ([`crate::jwks`]).

pub mod access;
mod claims;
pub mod client;
mod documents;
mod oauth;
mod query;
mod routes;
mod subject_token;
mod tokens;

use std::sync::Arc;

use arc_swap::ArcSwap;

pub use crate::keys::issuer_name::IssuerNameError;
pub use routes::{Workload, internet_router, router};
pub use tokens::{TokenMaker, TokenSettings};

use self::access::{Access, AudienceRuleFile};
use crate::{
    config::{RuleSource, Settings, WorkloadKeyStorage, WorkloadSettings},
    http::layers,
    keys::issuer_name::Issuer,
    part::{Context, Lifecycle, Part, PartError, Routes},
    policy::LoadError,
};

const ISSUER: Issuer = Issuer {
    setting: "workload.issuer",
    who: "clouds",
    port: None,
};

/// The component, at its listeners.
pub fn part(settings: &Settings, context: &Context) -> Result<Part, PartError> {
    let settings = &settings.workload;
    let node = context.node.watch().borrow().name.clone();
    let configured = settings.issuer.as_deref();
    // A set that is only in memory has no place for it.
    let kept = settings.keys.storage != WorkloadKeyStorage::Memory;
    let keep = kept.then_some(settings.keys.dir.as_path());
    let issuer = ISSUER.name(configured, &node, keep)?;
    let keys = context.keys_of("workload").cloned();
    let keys = keys.ok_or("the server made no keys for workload tokens")?;
    let RuleSource { file, capability } = &settings.rules;
    let rules = AudienceRuleFile::open(file.as_deref(), capability)?;
    let tokens = TokenMaker {
        issuer: issuer.as_str().into(),
        keys,
        signing: context.signing.clone(),
        rules: Arc::new(rules),
        settings: Arc::new(ArcSwap::from_pointee(settings.into())),
        meter: context.meter.clone(),
    };
    tracing::info!(target: "workload", issuer, "workload tokens are issued");
    let lifecycle = Live {
        rules: tokens.rules.clone(),
        settings: tokens.settings.clone(),
    };
    let workload = Arc::new(Workload::new(tokens, settings.keys.cache_time));
    let internet = layers::wrap_own_errors(internet_router(workload.clone()), "workload");
    let routes = layers::wrap_own_errors(router(workload), "workload");
    let routes = Routes::new("workload", routes).on_the_internet(internet);
    let part = Part::new("workload")
        .serve("workload", settings.listen.clone(), &routes)
        .lifecycle(lifecycle);
    if configured.is_some() {
        return Ok(part);
    }
    let status = context.node.watch();
    Ok(part.latch("workload-issuer", move |_| {
        ISSUER.still_named(&issuer, &status.borrow().name)
    }))
}

impl From<&WorkloadSettings> for TokenSettings {
    fn from(settings: &WorkloadSettings) -> Self {
        Self {
            access: Access {
                audiences: settings.audiences.clone(),
                allow_without_grant: settings.allow_without_grant,
            },
            lifetime: settings.lifetime,
            algorithm: settings.algorithm,
            subject: settings.subject.clone(),
            with_capabilities: settings.cap_map,
        }
    }
}

/// What changes while the server runs.
struct Live {
    rules: Arc<AudienceRuleFile>,
    settings: Arc<ArcSwap<TokenSettings>>,
}

impl Lifecycle for Live {
    fn tick(&self) {
        if let Err(error) = self.rules.tick() {
            log_load_error(&error);
        }
    }

    fn reload(&self, settings: &Settings) {
        self.settings.store(Arc::new((&settings.workload).into()));
        match self.rules.reload() {
            Ok(_) => tracing::info!(target: "workload", "policy reloaded"),
            Err(error) => log_load_error(&error),
        }
    }
}

fn log_load_error(error: &LoadError) {
    tracing::warn!(target: "workload", error = error as &dyn std::error::Error, "the policy file has mistakes; the previous rules stay in force");
}
