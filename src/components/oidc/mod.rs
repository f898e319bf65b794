//! The OpenID provider: people log in to applications with their identity on the tailnet.
//!
//! An application (the client) sends the browser here; the browser's connection says who it is. The
//! application redeems the code that comes back for tokens, and asks what it wants to know. All
//! that tsidp does, and what the standards add.
//!
//! Invariants
//! - Who a person is says the connection, and nothing in the request.
//! - Through Funnel applications read documents, redeem, ask and revoke. Nobody logs in there,
//!   registers or administers.
//! - A page shows only escaped text, runs only our own script, and is in no other page's frame.
//!
//! `routes.rs` has the endpoints, `device.rs`, `logout.rs`, `par.rs` and `registration.rs` those of
//! one subject each, `notices.rs` tells applications of logouts, `keys.rs` has the published keys,
//! `client_files.rs` applies the clients of files, `answers.rs` how the endpoints answer, `pages/`
//! the pages, `callers.rs` what the tailnet says, [`access`] who may log in where, [`groups`] who
//! is in which group, `counts.rs` the metrics, [`state`] where the state is and whether it answers.
//! Done elsewhere: the steps of a login and what tokens say ([`tailbone_oidc`]), the life of the
//! keys ([`crate::jwks`]).

pub mod access;
mod answers;
mod callers;
mod client_files;
mod clients;
mod counts;
mod device;
mod forms;
pub mod groups;
mod keys;
mod login;
mod logout;
mod notices;
mod pages;
mod par;
mod registration;
mod requests;
mod routes;
pub mod state;
mod tokens;

use std::{sync::Arc, time::Instant};

use jiff::Timestamp;
use tailbone_oidc::{
    device::Tries,
    documents::DocumentHosts,
    fetch::GuardedClient,
    provider::{Foreign, Provider, ProviderSettings, WorkloadIssuer},
    store::{Store, tsidp},
    token::Offers,
};

pub use callers::TailnetPeople;
pub use keys::ServedKeys;
pub use notices::LogoutNotices;
pub use routes::{Oidc, internet_router, router};

use self::{
    access::{LoginAccess, LoginRuleFile},
    client_files::ClientFiles,
    groups::{Groups, TailnetGroups},
    state::{Import, State, Upkeep},
};
use crate::{
    config::{Listen, RuleSource, Settings},
    http::layers,
    keys::issuer_name::Issuer,
    part::{Context, Lifecycle, Part, PartError, Routes},
    policy::LoadError,
};

/// The component, at its listeners.
pub fn part(settings: &Settings, context: &Context) -> Result<Part, PartError> {
    let node = context.node.watch().borrow().name.clone();
    let workload_issuer = settings.workload.issuer.clone();
    let workload_issuer = workload_issuer.unwrap_or_else(|| format!("https://{node}"));
    let settings = &settings.oidc;
    let name = issuer_of(&settings.listen);
    let configured = settings.issuer.as_deref();
    let issuer = name.name(configured, &node, Some(&settings.dir))?;
    let keys = context.keys_of("oidc").cloned();
    let keys = keys.ok_or("the server made no keys for the OpenID provider")?;
    let state = State::open(settings, &context.meter)?;
    let capability: Arc<str> = settings.capability.as_str().into();
    let RuleSource {
        file,
        capability: of_rules,
    } = &settings.access.rules;
    let access = Arc::new(LoginAccess {
        rules: LoginRuleFile::open(file.as_deref(), of_rules)?,
        require_rule: settings.access.require_rule,
    });
    let groups = Arc::new(Groups {
        file: match &settings.groups.file {
            Some(file) => Some(LoginRuleFile::open(Some(file.as_path()), "")?),
            None => None,
        },
        tailnet: match &settings.groups.tailnet {
            Some(api) => Some(Arc::new(TailnetGroups::new(api)?)),
            None => None,
        },
    });
    let provider = Provider {
        settings: Arc::new(ProviderSettings {
            issuer: issuer.clone(),
            host: node,
            style: settings.claims,
            mapping: settings.mapping.clone(),
            offers: Offers {
                token_exchange: settings.token_exchange,
            },
            unknown_scopes: settings.unknown_scopes,
            nodes_may_inspect: settings.nodes_may_inspect,
        }),
        store: state.store.clone(),
        keys,
        signing: context.signing.clone(),
        network: Arc::new(TailnetPeople {
            directory: context.directory.clone(),
            capability: capability.clone(),
            access: access.clone(),
            groups: groups.clone(),
        }),
        session_ends: Arc::new(LogoutNotices::new(
            GuardedClient::new(&settings.fetch)?,
            context.meter.clone(),
        )),
        user_codes: Arc::new(Tries::of_user_codes()),
        new_devices: Arc::new(Tries::of_new_devices()),
        pushed_requests: Arc::new(Tries::of_pushed_requests()),
        foreign: Arc::new(Foreign::new(
            &settings.fetch,
            DocumentHosts::of(&settings.document_hosts),
        )?),
        workload: context
            .keys_of("workload")
            .cloned()
            .map(|keys| WorkloadIssuer {
                issuer: workload_issuer.into(),
                keys,
            }),
    };
    context.state.provider.put(provider.clone());
    let import = match &settings.take_over {
        Some(dir) => tsidp::read_clients(dir, Timestamp::now())?.map(|clients| Import {
            source: dir.display().to_string(),
            clients,
        }),
        None => None,
    };
    let files = settings.clients.as_ref().map(ClientFiles::new);
    let clients = files.as_ref().map(ClientFiles::read).transpose()?;
    state.begin(import, clients);
    let report = context.state.provider_report.clone();
    report.begin(&issuer, state.store.place());
    tracing::info!(target: "oidc", issuer, store = state.store.place(), "people can log in to applications");
    let oidc = Arc::new(Oidc {
        provider,
        capability,
        groups: groups.clone(),
        errors: settings.errors,
        cache_time: settings.keys.cache_time,
        served_keys: ServedKeys::default(),
        meter: context.meter.clone(),
    });
    let internet = layers::wrap_own_errors(internet_router(oidc.clone()), "oidc");
    let routes = layers::wrap_own_errors(router(oidc), "oidc");
    let routes = Routes::new("oidc", routes).on_the_internet(internet);
    let mut part = Part::new("oidc");
    if let Some(tailnet) = groups.tailnet.clone() {
        part = part.latch("oidc-groups", move |_| tailnet.state(Instant::now()));
    }
    for (name, check) in state.latches() {
        part = part.latch(name, move |_| check());
    }
    let part = part
        .serve("oidc", settings.listen.clone(), &routes)
        .lifecycle(Live {
            access,
            groups,
            store: state.store.clone(),
            files,
            upkeep: state.upkeep(report),
        });
    if configured.is_some() {
        return Ok(part);
    }
    let status = context.node.watch();
    Ok(part.latch("oidc-issuer", move |_| {
        name.still_named(&issuer, &status.borrow().name)
    }))
}

/// What goes on while the server runs.
struct Live {
    access: Arc<LoginAccess>,
    groups: Arc<Groups>,
    store: Arc<dyn Store>,
    files: Option<ClientFiles>,
    upkeep: Upkeep,
}

impl Lifecycle for Live {
    fn tick(&self) {
        let files = [Some(&self.access.rules), self.groups.file.as_ref()];
        for file in files.into_iter().flatten() {
            if let Err(error) = file.tick() {
                log_load_error(&error);
            }
        }
        if let Some(tailnet) = &self.groups.tailnet {
            tailnet.tick(Instant::now());
        }
        self.upkeep.tick();
    }

    fn reload(&self, _: &Settings) {
        let files = [Some(&self.access.rules), self.groups.file.as_ref()];
        for file in files.into_iter().flatten() {
            match file.reload() {
                Ok(_) => tracing::info!(target: "oidc", "policy reloaded"),
                Err(error) => log_load_error(&error),
            }
        }
        if let Some(files) = &self.files {
            files.reload(&self.store);
        }
    }
}

fn log_load_error(error: &LoadError) {
    tracing::warn!(target: "oidc", error = error as &dyn std::error::Error, "the policy file has mistakes; the previous rules stay in force");
}

/// The provider as an issuer. Its name has the port of the first listener where that is not the
/// usual one, as in tsidp.
pub fn issuer_of(listen: &[Listen]) -> Issuer {
    let port = listen.iter().find_map(|listen| match listen {
        Listen::Tailnet { port, .. } | Listen::Funnel { port, .. } => Some(*port),
        _ => None,
    });
    Issuer {
        setting: "oidc.issuer",
        who: "applications",
        port,
    }
}
