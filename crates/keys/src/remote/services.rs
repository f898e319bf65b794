//! The services of this process, and which of them makes new keys.

use std::sync::Arc;

use tailbone_telemetry::meter::Meter;

use super::{
    KeyReference, KeyService, RemoteLimits, ServiceError, ServiceKind,
    engine::{BoundedService, RemoteKey},
};
use crate::{JwkError, KeyId, KeySpec};

/// The signing services that the settings name. Cheap to clone; clones share the limits.
#[derive(Debug, Clone, Default)]
pub struct RemoteServices {
    services: Vec<Arc<BoundedService>>,
    /// One of them.
    maker: Option<Arc<BoundedService>>,
}

impl RemoteServices {
    /// `maker` makes new keys; without one they are local. The others sign with the keys that they
    /// already have.
    pub fn new(
        maker: Option<Arc<dyn KeyService>>,
        others: Vec<Arc<dyn KeyService>>,
        limits: RemoteLimits,
    ) -> Self {
        let bounded = |service| Arc::new(BoundedService::new(service, limits));
        let maker = maker.map(bounded);
        let others = others.into_iter().map(bounded);
        Self {
            services: maker.iter().cloned().chain(others).collect(),
            maker,
        }
    }

    /// The same services, with their calls counted there.
    #[must_use]
    pub fn counted_by(&self, meter: &Meter) -> Self {
        let counted = |service: &Arc<BoundedService>| Arc::new(service.counted_by(meter));
        Self {
            services: self.services.iter().map(counted).collect(),
            maker: self.maker.as_ref().map(counted),
        }
    }

    /// Whether the keys of this service can sign here.
    pub(crate) fn has(&self, kind: ServiceKind) -> bool {
        self.find(kind).is_some()
    }

    /// The service that makes new keys, if they are not local.
    pub(crate) fn maker(&self) -> Option<ServiceKind> {
        self.maker.as_ref().map(|maker| maker.service().kind())
    }

    /// Has that service make one.
    pub(crate) async fn make(
        &self,
        kid: KeyId,
        spec: KeySpec,
    ) -> Option<Result<KeyReference, ServiceError>> {
        let maker = self.maker.as_ref()?;
        Some(maker.make(kid, spec).await)
    }

    /// What signs with this key.
    pub(crate) fn key(&self, reference: &KeyReference) -> Option<Result<RemoteKey, JwkError>> {
        let service = self.find(reference.location.service)?;
        Some(RemoteKey::new(service.clone(), reference.clone()))
    }

    fn find(&self, kind: ServiceKind) -> Option<&Arc<BoundedService>> {
        let mut services = self.services.iter();
        services.find(|service| service.service().kind() == kind)
    }
}
