//! Signs with a key of a service: limits, retries, the check of each signature, and the probes
//! while the service is away.

use std::{
    fmt,
    sync::{
        Arc, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use parking_lot::Mutex;
use tailbone_telemetry::meter::Meter;
use tokio::sync::Semaphore;

use super::{
    KeyReference, KeyService, RemoteFailure, RemoteLimits, ServiceError, Trouble,
    breaker::{Breaker, Change},
    public::Verifier,
};
use crate::{JwkError, KeyId, KeySpec, PublicJwk, SignError};

/// Callers that may wait for each signature in progress. More are refused at once.
const WAITING_PER_SLOT: usize = 16;

/// Calls for one signature, the first included.
const ATTEMPTS: u32 = 3;

/// What a probe asks to be signed. It has no dot, so it is no part of a token.
const PROBE: &[u8] = b"tailbone: is this key there?";

/// A service with its limits.
#[derive(Debug)]
pub(super) struct BoundedService {
    service: Arc<dyn KeyService>,
    limits: RemoteLimits,
    slots: Arc<Semaphore>,
    /// Callers that wait or whose signature is in progress.
    callers: Arc<AtomicUsize>,
    meter: Meter,
}

impl BoundedService {
    pub(super) fn new(service: Arc<dyn KeyService>, limits: RemoteLimits) -> Self {
        Self {
            service,
            limits,
            slots: Arc::new(Semaphore::new(limits.concurrency)),
            callers: Arc::default(),
            meter: Meter::default(),
        }
    }

    /// The same service and limits.
    pub(super) fn counted_by(&self, meter: &Meter) -> Self {
        Self {
            service: self.service.clone(),
            limits: self.limits,
            slots: self.slots.clone(),
            callers: self.callers.clone(),
            meter: meter.clone(),
        }
    }

    /// Makes a key, or the next version of one.
    pub(super) async fn make(
        &self,
        kid: KeyId,
        spec: KeySpec,
    ) -> Result<KeyReference, ServiceError> {
        let began = Instant::now();
        let limit = self.service.make_timeout();
        let made = tokio::time::timeout(limit, self.service.make(kid, spec)).await;
        let made = made.unwrap_or_else(|_| {
            let detail = format!("no key within {limit:?}");
            Err(ServiceError::new(Trouble::Slow, detail))
        });
        self.count("make", began, made.as_ref().err());
        made
    }

    fn count(&self, call: &'static str, began: Instant, error: Option<&ServiceError>) {
        let service = self.service.kind().as_str();
        let result = error.map_or("done", |error| error.trouble.as_str());
        self.meter
            .key_service_called(service, call, result, began.elapsed());
    }

    pub(super) fn service(&self) -> &dyn KeyService {
        &*self.service
    }

    fn enter(&self) -> Result<Place, SignError> {
        let place = Place(self.callers.clone());
        let before = self.callers.fetch_add(1, Ordering::AcqRel);
        if before < self.limits.concurrency.saturating_mul(1 + WAITING_PER_SLOT) {
            Ok(place)
        } else {
            Err(SignError::Overloaded)
        }
    }
}

/// A caller's place, held until dropped.
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A key of a service, ready to sign. Cheap to clone.
#[derive(Clone)]
pub(crate) struct RemoteKey(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    service: Arc<BoundedService>,
    reference: KeyReference,
    verifier: Verifier,
    breaker: Mutex<Breaker>,
}

impl RemoteKey {
    pub(super) fn new(
        service: Arc<BoundedService>,
        reference: KeyReference,
    ) -> Result<Self, JwkError> {
        Ok(Self(Arc::new(Inner {
            verifier: Verifier::new(&reference.public.parts)?,
            service,
            reference,
            breaker: Mutex::default(),
        })))
    }

    pub(crate) fn public(&self) -> &PublicJwk {
        &self.0.reference.public
    }

    /// Why the service would not be asked for a signature now.
    pub(crate) fn trouble(&self) -> Option<Trouble> {
        self.0.breaker.lock().trouble()
    }

    /// Appends the signature to `input`, a header and claims in base64url.
    ///
    /// If the caller goes away, a call that has begun goes on to its end: cancelling it would cost
    /// the connection to the service.
    pub(crate) async fn sign(&self, input: String) -> Result<String, SignError> {
        let key = &self.0;
        key.admit()?;
        let limits = key.service.limits;
        let deadline = tokio::time::Instant::now() + limits.timeout;
        let place = key.service.enter()?;
        let slot = tokio::time::timeout_at(deadline, key.service.slots.clone().acquire_owned());
        let slot = slot
            .await
            .map_err(|_| SignError::Overloaded)?
            .map_err(|_| SignError::Crypto)?;
        // The service may have been found away meanwhile.
        key.admit()?;
        let key = key.clone();
        let call = tokio::spawn(async move {
            let outcome = key.call("sign", input.as_bytes(), deadline).await;
            drop((slot, place));
            let change = key.breaker.lock().record(
                outcome.as_ref().map(drop).map_err(|error| error.trouble),
                Instant::now(),
            );
            key.report(change, outcome.as_ref().err());
            if change == Change::Opened {
                tokio::spawn(probe(Arc::downgrade(&key), key.breaker.lock().opened));
            }
            let signature = outcome.map_err(|error| key.failure(&error))?;
            let mut token = input;
            token.push('.');
            URL_SAFE_NO_PAD.encode_string(signature, &mut token);
            Ok(token)
        });
        // An error here is a panic, which is logged already, or the end of the runtime.
        call.await.unwrap_or(Err(SignError::Crypto))
    }
}

impl fmt::Debug for RemoteKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RemoteKey").field(&self.0.reference).finish()
    }
}

impl Inner {
    fn admit(&self) -> Result<(), SignError> {
        let admitted = self.breaker.lock().admit(Instant::now());
        admitted.map_err(SignError::Remote)
    }

    /// Asks the service until it signs, the time is up, or it says that asking again is no use.
    async fn call(
        &self,
        purpose: &'static str,
        message: &[u8],
        deadline: tokio::time::Instant,
    ) -> Result<Vec<u8>, ServiceError> {
        let mut attempt = 1;
        loop {
            let began = Instant::now();
            let signed = self.call_once(message, deadline).await;
            self.service.count(purpose, began, signed.as_ref().err());
            let error = match signed {
                Ok(signature) => return Ok(signature),
                Err(error) => error,
            };
            let Some(pause) = error.retry_after else {
                return Err(error);
            };
            let next = tokio::time::Instant::now() + pause;
            if attempt == ATTEMPTS || next >= deadline {
                return Err(error);
            }
            attempt += 1;
            tokio::time::sleep_until(next).await;
        }
    }

    async fn call_once(
        &self,
        message: &[u8],
        deadline: tokio::time::Instant,
    ) -> Result<Vec<u8>, ServiceError> {
        let call = self.service.service().sign(&self.reference, message);
        let Ok(signed) = tokio::time::timeout_at(deadline, call).await else {
            let detail = format!("no signature within {:?}", self.service.limits.timeout);
            return Err(ServiceError::new(Trouble::Slow, detail));
        };
        let signature = signed?;
        if self.verifier.accepts(message, &signature) {
            Ok(signature)
        } else {
            let detail = "a signature does not verify with the published JWK";
            Err(ServiceError::new(Trouble::Mismatch, detail))
        }
    }

    fn failure(&self, error: &ServiceError) -> SignError {
        let open = self.breaker.lock().admit(Instant::now()).err();
        let pause = error.retry_after.unwrap_or_default();
        SignError::Remote(RemoteFailure {
            trouble: error.trouble,
            retry_after: open
                .map_or(pause, |open| open.retry_after)
                .max(std::time::Duration::from_secs(1)),
        })
    }

    /// Logs what an operator should know.
    fn report(&self, change: Change, error: Option<&ServiceError>) {
        let service = self.reference.location.service;
        let meter = &self.service.meter;
        match change {
            Change::Closed => meter.key_service_refuses(service.as_str(), false),
            Change::Opened => meter.key_service_refuses(service.as_str(), true),
            Change::None | Change::Other => {}
        }
        let kid = self.reference.public.kid.as_str();
        let error = error.map(ToString::to_string);
        match change {
            Change::None => {
                if let Some(error) = error {
                    tracing::debug!(target: "keys", %service, kid, error, "no signature");
                }
            }
            Change::Opened | Change::Other => {
                tracing::warn!(target: "keys", %service, kid, error, "the signing service does not sign; callers are refused until it does");
            }
            Change::Closed => {
                tracing::info!(target: "keys", %service, kid, "the signing service signs again");
            }
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.breaker.lock().trouble().is_some() {
            let service = self.reference.location.service.as_str();
            self.service.meter.key_service_refuses(service, false);
        }
    }
}

/// Asks the service now and then until it signs, or until the key is no longer in use. `opened`:
/// for which of the breaker's times this probe is.
async fn probe(key: Weak<Inner>, opened: u64) {
    loop {
        let pause = {
            let Some(key) = key.upgrade() else { return };
            let breaker = key.breaker.lock();
            match breaker.next_probe(Instant::now()) {
                Some(pause) if breaker.opened == opened => pause,
                _ => return,
            }
        };
        tokio::time::sleep(pause).await;
        let Some(key) = key.upgrade() else { return };
        let deadline = tokio::time::Instant::now() + key.service.limits.timeout;
        let outcome = key.call("probe", PROBE, deadline).await;
        let change = key.breaker.lock().record_probe(
            outcome.as_ref().map(drop).map_err(|error| error.trouble),
            Instant::now(),
        );
        key.report(change, outcome.as_ref().err());
    }
}
