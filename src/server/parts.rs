//! The parts that are switched on, with their listeners: one list, and one loop over it.

use std::{sync::Arc, time::Duration};

use futures_util::{FutureExt as _, future::select_all};

use super::{
    ServerError,
    listeners::{ListenerOpener, OpenListener},
    node_certificate::CertificateRenewal,
};
use crate::{
    admin,
    config::{Component, Settings},
    gate,
    http::{
        certificate::CertificateSource,
        serve::{Server, Stopped},
    },
    issuer,
    jwks::KeySet,
    keys::azure::InvalidVault,
    metrics, oidc,
    part::{Context, Lifecycle, Part, PartError},
    sts,
    telemetry::meter::Meter,
    workload,
};

/// What the server knows of a component.
struct ComponentEntry {
    build: fn(&Settings, &Context) -> Result<Part, PartError>,
    /// Whether it signs anything with the keys, so that there must be some.
    needs_keys: fn(&Settings) -> bool,
    own_keys: Option<OwnKeys>,
}

/// The keys that belong to a component alone.
pub(super) struct OwnKeys {
    /// The set, under the component's name, with its calls of services counted. Reads nothing yet.
    pub(super) set: fn(&Settings, &Meter) -> Result<KeySet, InvalidVault>,
    /// The names of its latches: a key signs, and the document was read.
    pub(super) key_signs: &'static str,
    pub(super) jwks_read: &'static str,
}

/// All components there are: the compiler refuses one that is missing here.
fn entry(component: Component) -> ComponentEntry {
    match component {
        Component::Issuer => ComponentEntry {
            build: issuer::part,
            needs_keys: |_| true,
            own_keys: None,
        },
        Component::Admin => ComponentEntry {
            build: admin::part,
            needs_keys: |_| true,
            own_keys: None,
        },
        Component::Gate => ComponentEntry {
            build: gate::part,
            needs_keys: |settings| settings.gate.token.is_some(),
            own_keys: None,
        },
        Component::Sts => ComponentEntry {
            build: sts::part,
            needs_keys: |_| false,
            own_keys: None,
        },
        Component::Workload => ComponentEntry {
            build: workload::part,
            needs_keys: |_| false,
            own_keys: Some(OwnKeys {
                set: |settings, meter| {
                    let keys = settings.workload.keys.set_counted_by(meter)?;
                    let services = settings.keys.signer.services().counted_by(meter);
                    Ok(keys.with_remote(&services))
                },
                key_signs: "workload-key-signs",
                jwks_read: "workload-jwks-read",
            }),
        },
        Component::Oidc => ComponentEntry {
            build: oidc::part,
            needs_keys: |_| false,
            own_keys: Some(OwnKeys {
                set: |settings, meter| {
                    let services = settings.keys.signer.services().counted_by(meter);
                    Ok(settings.oidc.keys.set().with_remote(&services))
                },
                key_signs: "oidc-key-signs",
                jwks_read: "oidc-jwks-read",
            }),
        },
        Component::Metrics => ComponentEntry {
            build: metrics::part,
            needs_keys: |_| false,
            own_keys: None,
        },
    }
}

/// Whether there must be keys.
pub(super) fn needs_keys(settings: &Settings) -> bool {
    let mut components = settings.components.iter();
    components.any(|component| (entry(*component).needs_keys)(settings))
}

/// The own keys of the components that have some.
pub(super) fn own_keys(settings: &Settings) -> impl Iterator<Item = OwnKeys> {
    let components = settings.components.iter();
    components.filter_map(|component| entry(*component).own_keys)
}

/// The own keys of the components, for commands without a server. Reads nothing yet.
pub(super) fn key_sets(settings: &Settings) -> Result<Vec<KeySet>, InvalidVault> {
    let meter = Meter::default();
    let open = |own: OwnKeys| (own.set)(settings, &meter);
    own_keys(settings).map(open).collect()
}

/// What runs.
pub(super) struct RunningParts {
    servers: Vec<Server>,
    lifecycles: Vec<Box<dyn Lifecycle>>,
    certificates: Vec<Arc<dyn CertificateSource>>,
    renewal: Arc<CertificateRenewal>,
}

impl RunningParts {
    /// Builds the parts and begins to serve. The keys may still be loading. `socket` is the local
    /// admin socket, which is served already.
    pub(super) async fn start(
        settings: &Settings,
        opener: ListenerOpener,
        socket: Option<Server>,
    ) -> Result<Self, ServerError> {
        let mut parts = Self {
            servers: socket.into_iter().collect(),
            lifecycles: Vec::new(),
            certificates: Vec::new(),
            renewal: opener.renewal.clone(),
        };
        for component in &settings.components {
            let part = (entry(*component).build)(settings, &opener.context);
            let name = component.name();
            let part = part.map_err(|source| ServerError::Part { name, source })?;
            parts.add(part, &opener).await?;
        }
        Ok(parts)
    }

    async fn add(&mut self, part: Part, opener: &ListenerOpener) -> Result<(), ServerError> {
        for endpoint in part.endpoints {
            let OpenListener {
                server,
                certificate,
            } = opener.open(endpoint).await?;
            self.servers.push(server);
            self.certificates.extend(certificate);
        }
        for (name, check) in part.latches {
            opener.context.state.readiness.latch(name, check);
        }
        self.lifecycles.extend(part.lifecycle);
        Ok(())
    }

    /// Reads again what has changed: files of the parts, certificates.
    pub(super) fn tick(&self) {
        for part in &self.lifecycles {
            part.tick();
        }
        for certificate in &self.certificates {
            certificate.tick();
        }
    }

    /// As on a hang-up signal: reads everything again, whether it has changed or not.
    pub(super) fn reload(&self, settings: &Settings) {
        for part in &self.lifecycles {
            part.reload(settings);
        }
        for certificate in &self.certificates {
            certificate.tick();
        }
        self.renewal.retry_now();
    }

    /// Waits until a listener fails.
    pub(super) async fn listener_failed(&mut self) -> ServerError {
        if self.servers.is_empty() {
            return std::future::pending().await;
        }
        let ends = self.servers.iter_mut().map(|server| {
            async {
                let name = server.name();
                let source = server.failed().await;
                ServerError::ListenerFailed { name, source }
            }
            .boxed()
        });
        select_all(ends).await.0
    }

    /// Stops accepting, lets open requests finish within `grace`, and reports what was cut off.
    pub(super) async fn stop(&mut self, grace: Duration) {
        let stops = self.servers.drain(..).map(|server| async move {
            let name = server.name();
            if server.stop(grace).await == Stopped::Cut {
                tracing::warn!(target: "server", listener = name, ?grace, "the grace time is over: open requests were cut off");
            }
        });
        futures_util::future::join_all(stops).await;
        for part in self.lifecycles.drain(..) {
            part.stop().await;
        }
    }
}
