//! The parts that are switched on, with their listeners: one list, and one loop over it.

use std::{sync::Arc, time::Duration};

use futures_util::{FutureExt as _, future::select_all};

use super::{
    StartError,
    listen::{Opened, Opener},
};
use crate::{
    admin,
    config::{Component, Settings},
    gate,
    http::{
        serve::{Server, Stopped},
        tls::CertificateFiles,
    },
    issuer, metrics,
    part::{BuildError, Context, Lifecycle, Part},
    sts,
};

/// What the server knows of a component.
struct Entry {
    component: Component,
    build: fn(&Settings, &Context) -> Result<Part, BuildError>,
    /// Whether it signs anything with the keys, so that there must be some.
    signs: fn(&Settings) -> bool,
}

/// All components there are.
static COMPONENTS: [Entry; 5] = [
    Entry {
        component: Component::Issuer,
        build: issuer::part,
        signs: |_| true,
    },
    Entry {
        component: Component::Admin,
        build: admin::part,
        signs: |_| true,
    },
    Entry {
        component: Component::Gate,
        build: gate::part,
        signs: |settings| settings.gate.token.is_some(),
    },
    Entry {
        component: Component::Sts,
        build: sts::part,
        signs: |_| false,
    },
    Entry {
        component: Component::Metrics,
        build: metrics::part,
        signs: |_| false,
    },
];

fn switched_on(settings: &Settings) -> impl Iterator<Item = &'static Entry> {
    COMPONENTS
        .iter()
        .filter(|entry| settings.components.contains(&entry.component))
}

/// Whether there must be keys.
pub(super) fn needs_keys(settings: &Settings) -> bool {
    switched_on(settings).any(|entry| (entry.signs)(settings))
}

/// What runs.
pub(super) struct Parts {
    servers: Vec<Server>,
    lifecycles: Vec<Box<dyn Lifecycle>>,
    certificates: Vec<Arc<CertificateFiles>>,
}

impl Parts {
    /// Builds the parts and begins to serve. The keys may still be loading. `socket` is the local
    /// admin socket, which is served already.
    pub(super) async fn start(
        settings: &Settings,
        opener: Opener,
        socket: Option<Server>,
    ) -> Result<Self, StartError> {
        let mut parts = Self {
            servers: socket.into_iter().collect(),
            lifecycles: Vec::new(),
            certificates: Vec::new(),
        };
        for entry in switched_on(settings) {
            let part = (entry.build)(settings, &opener.context);
            let name = entry.component.name();
            let part = part.map_err(|source| StartError::Part { name, source })?;
            parts.add(part, &opener).await?;
        }
        Ok(parts)
    }

    async fn add(&mut self, part: Part, opener: &Opener) -> Result<(), StartError> {
        for endpoint in part.endpoints {
            let Opened {
                server,
                certificate,
            } = opener.open(endpoint).await?;
            self.servers.push(server);
            self.certificates.extend(certificate);
        }
        for (name, look) in part.latches {
            opener.context.state.readiness.latch(name, look);
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
    }

    /// Waits until a listener fails.
    pub(super) async fn listener_died(&mut self) -> StartError {
        if self.servers.is_empty() {
            return std::future::pending().await;
        }
        let ends = self.servers.iter_mut().map(|server| {
            async {
                let what = server.name();
                let source = server.failed().await;
                StartError::ListenerDied { what, source }
            }
            .boxed()
        });
        select_all(ends).await.0
    }

    /// Stops accepting, lets open requests finish within `grace`, and reports what was cut off.
    pub(super) async fn stop(&mut self, grace: Duration) {
        let stops = self.servers.drain(..).map(|server| async move {
            let what = server.name();
            if server.stop(grace).await == Stopped::Cut {
                tracing::warn!(target: "server", listener = what, ?grace, "requests were cut: the grace time is over");
            }
        });
        futures_util::future::join_all(stops).await;
        for part in self.lifecycles.drain(..) {
            part.stop().await;
        }
    }
}
