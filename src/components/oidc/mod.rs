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
//! one subject each, `keys.rs` the published keys, `answers.rs` how they answer, `pages.rs` and
//! `denied.rs` the pages, `callers.rs` what the tailnet says, [`access`] who may log in where,
//! [`groups`] who is in which group. Done elsewhere: the steps of a login and what tokens say
//! ([`tailbone_oidc`]), the life of the keys ([`crate::jwks`]).

pub mod access;
mod answers;
mod callers;
mod denied;
mod device;
pub mod groups;
mod keys;
mod logout;
mod pages;
mod par;
mod registration;
mod routes;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use jiff::Timestamp;
use parking_lot::Mutex;
use tailbone_oidc::{
    device::Tries,
    documents::DocumentHosts,
    provider::{Foreign, Provider, ProviderSettings, WorkloadIssuer},
    store::{Client, Sqlite, Store, tsidp},
    token::Offers,
};

pub use callers::TailnetPeople;
pub use keys::ServedKeys;
pub use routes::{Oidc, internet_router, router};

use self::{
    access::{LoginAccess, LoginRuleFile},
    groups::{Groups, TailnetGroups},
};
use crate::{
    config::{RuleSource, Settings},
    http::layers,
    part::{Context, Lifecycle, Part, PartError, Routes},
    policy::LoadError,
    telemetry::readiness::LatchState,
};

/// The database in the component's directory.
const DATABASE: &str = "oidc.db";

/// How often expired rows are looked for, and how many of each kind are deleted at once.
const SWEEP_EVERY: Duration = Duration::from_secs(600);
const SWEEP_ROWS: u32 = 500;

/// Pause before clients of tsidp are copied again after a failure.
const IMPORT_AGAIN: Duration = Duration::from_secs(5);

/// The component, at its listeners.
pub fn part(settings: &Settings, context: &Context) -> Result<Part, PartError> {
    let node = context.node.watch().borrow().name.clone();
    let workload_issuer = settings.workload.issuer.clone();
    let workload_issuer = workload_issuer.unwrap_or_else(|| format!("https://{node}"));
    let settings = &settings.oidc;
    let issuer = match &settings.issuer {
        Some(issuer) => issuer.clone(),
        None if !node.contains('.') => {
            return Err(
                "the node has no full name, of which the issuer's name is made: turn \
                        MagicDNS on in the tailnet, or set oidc.issuer"
                    .into(),
            );
        }
        None => issuer_of(&node, &settings.listen),
    };
    let keys = context.keys_of("oidc").cloned();
    let keys = keys.ok_or("the server made no keys for the OpenID provider")?;
    let store: Arc<dyn Store> = Arc::new(Sqlite::open(&settings.dir.join(DATABASE))?);
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
        store: store.clone(),
        keys,
        signing: context.signing.clone(),
        network: Arc::new(TailnetPeople {
            directory: context.directory.clone(),
            capability: capability.clone(),
            access: access.clone(),
            groups: groups.clone(),
        }),
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
    let found = match &settings.take_over {
        Some(dir) => tsidp::read_clients(dir, Timestamp::now())?.map(|clients| (dir, clients)),
        None => None,
    };
    let imported = Arc::new(AtomicBool::new(found.is_none()));
    if let Some((dir, clients)) = found {
        let (store, imported) = (store.clone(), imported.clone());
        let source = dir.display().to_string();
        tokio::spawn(async move {
            import(&*store, &source, clients).await;
            imported.store(true, Ordering::Release);
        });
    }
    tracing::info!(target: "oidc", issuer, store = store.place(), "people can log in to applications");
    let oidc = Arc::new(Oidc {
        provider,
        capability,
        groups: groups.clone(),
        errors: settings.errors,
        cache_time: settings.keys.cache_time,
        served_keys: ServedKeys::default(),
    });
    let internet = layers::wrap_own_errors(internet_router(oidc.clone()), "oidc");
    let routes = layers::wrap_own_errors(router(oidc), "oidc");
    let routes = Routes::new("oidc", routes).on_the_internet(internet);
    let mut part = Part::new("oidc");
    if let Some(tailnet) = groups.tailnet.clone() {
        part = part.latch("oidc-groups", move |_| tailnet.state(Instant::now()));
    }
    Ok(part
        .serve("oidc", settings.listen.clone(), &routes)
        .latch("oidc-clients", move |_| {
            if imported.load(Ordering::Acquire) {
                return LatchState::Released;
            }
            LatchState::Held("the clients of tsidp are being copied".to_owned())
        })
        .lifecycle(Live {
            access,
            groups,
            sweeper: Sweeper {
                store,
                last: Mutex::new(Instant::now()),
            },
        }))
}

/// What goes on while the server runs.
struct Live {
    access: Arc<LoginAccess>,
    groups: Arc<Groups>,
    sweeper: Sweeper,
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
        self.sweeper.tick();
    }

    fn reload(&self, _: &Settings) {
        let files = [Some(&self.access.rules), self.groups.file.as_ref()];
        for file in files.into_iter().flatten() {
            match file.reload() {
                Ok(_) => tracing::info!(target: "oidc", "policy reloaded"),
                Err(error) => log_load_error(&error),
            }
        }
    }
}

fn log_load_error(error: &LoadError) {
    tracing::warn!(target: "oidc", error = error as &dyn std::error::Error, "the policy file has mistakes; the previous rules stay in force");
}

/// Copies clients of tsidp, unless that has happened before. Tries again while the store does not
/// answer.
async fn import(store: &dyn Store, source: &str, clients: Vec<Client>) {
    loop {
        match store
            .import_clients(source, &clients, Timestamp::now())
            .await
        {
            Ok(imported) => {
                tracing::info!(target: "oidc", source, ?imported, "tsidp's clients are here");
                return;
            }
            Err(error) => {
                tracing::error!(target: "oidc", source, error = %error, "tsidp's clients could not be copied yet");
                tokio::time::sleep(IMPORT_AGAIN).await;
            }
        }
    }
}

/// The node's name, with the port of the first listener where it is not the usual one, as in tsidp.
fn issuer_of(node: &str, listen: &[crate::config::Listen]) -> String {
    let port = listen.iter().find_map(|listen| match listen {
        crate::config::Listen::Tailnet { port, .. }
        | crate::config::Listen::Funnel { port, .. } => Some(*port),
        _ => None,
    });
    match port {
        None | Some(443) => format!("https://{node}"),
        Some(port) => format!("https://{node}:{port}"),
    }
}

/// Deletes what has expired, a little at a time.
struct Sweeper {
    store: Arc<dyn Store>,
    last: Mutex<Instant>,
}

impl Sweeper {
    fn tick(&self) {
        let mut last = self.last.lock();
        if last.elapsed() < SWEEP_EVERY {
            return;
        }
        *last = Instant::now();
        let store = self.store.clone();
        tokio::spawn(async move {
            loop {
                match store.sweep(SWEEP_ROWS, Timestamp::now()).await {
                    Ok(swept) if swept.more => tokio::time::sleep(Duration::from_millis(100)).await,
                    Ok(_) => return,
                    Err(error) => {
                        tracing::warn!(target: "oidc", error = %error, "expired rows could not be deleted");
                        return;
                    }
                }
            }
        });
    }
}
