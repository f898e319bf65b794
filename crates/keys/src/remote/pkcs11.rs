//! Hardware security modules and other tokens, through a PKCS#11 module.
//!
//! Invariants
//! - Calls of the module may block for as long as the device likes, so they are made on threads of
//!   their own, each with a session of its own. A thread that hangs costs the others nothing.
//! - Private keys are made on the token as sensitive and not extractable.
//! - A PIN that the token refused is not tried again: a few more attempts would lock the token.
//! - Whoever drops a [`Token`] waits until its threads have left the module, 2 s at most. A process
//!   that ends meanwhile takes the module's memory from under them.
//!
//! The `CKA_ID` of a key is its `kid`, in bytes.

use std::{
    collections::HashMap,
    fmt,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use aws_lc_rs::digest::{self, digest};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use cryptoki::{
    context::{CInitializeArgs, CInitializeFlags, Pkcs11},
    error::{Error, RvError},
    mechanism::Mechanism,
    object::{Attribute, AttributeType, ObjectClass, ObjectHandle},
    session::{Session, UserType},
    types::AuthPin,
};
use futures_util::{FutureExt as _, future::BoxFuture};
use parking_lot::Mutex;
use tailbone_values::{Secret, printable};
use tokio::sync::oneshot;

use super::{KeyLocation, KeyReference, KeyService, ServiceError, ServiceKind, Trouble, public};
use crate::{Algorithm, Curve, KeyId, KeySpec, PublicJwk, PublicParts};

/// Time limit for making a key. A device may take a minute for an RSA key.
const MAKE_TIMEOUT: Duration = Duration::from_secs(120);

/// Time limit for the threads to end. One that hangs in the device is left behind.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// The pause before a repeated call.
const PAUSE: Duration = Duration::from_millis(50);

/// Which token, and how to use it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pkcs11Settings {
    /// The shared library of the device's vendor.
    pub module: PathBuf,
    /// The label of the token.
    pub token: String,
    pub pin: Secret,
    /// Threads with a session each.
    pub sessions: usize,
}

/// A token, reached through its vendor's module.
#[derive(Debug)]
pub struct Token {
    settings: Arc<Pkcs11Settings>,
    /// Started when the first job comes.
    threads: Mutex<Option<Threads>>,
}

/// They end when the sender is dropped.
#[derive(Debug)]
struct Threads {
    jobs: mpsc::Sender<Job>,
    handles: Vec<JoinHandle<()>>,
}

enum Job {
    Make(KeyId, KeySpec, Answer<KeyReference>),
    Sign(KeyReference, Vec<u8>, Answer<Vec<u8>>),
}

type Answer<T> = oneshot::Sender<Result<T, ServiceError>>;

impl Token {
    /// Loads nothing yet.
    pub fn new(settings: Pkcs11Settings) -> Self {
        Self {
            settings: Arc::new(settings),
            threads: Mutex::default(),
        }
    }

    async fn run<T>(&self, job: impl FnOnce(Answer<T>) -> Job) -> Result<T, ServiceError> {
        let (answer, outcome) = oneshot::channel();
        let gone = || away("the threads of the PKCS#11 module have ended".to_owned());
        self.send(job(answer)).ok_or_else(gone)?;
        outcome.await.map_err(|_| gone())?
    }

    fn send(&self, job: Job) -> Option<()> {
        let mut threads = self.threads.lock();
        let threads = threads.get_or_insert_with(|| start_threads(&self.settings));
        threads.jobs.send(job).ok()
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        let Some(Threads { jobs, handles }) = self.threads.get_mut().take() else {
            return;
        };
        drop(jobs);
        let began = Instant::now();
        while handles.iter().any(|thread| !thread.is_finished()) && began.elapsed() < CLOSE_TIMEOUT
        {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

impl KeyService for Token {
    fn kind(&self) -> ServiceKind {
        ServiceKind::Pkcs11
    }

    fn make(&self, kid: KeyId, spec: KeySpec) -> BoxFuture<'_, Result<KeyReference, ServiceError>> {
        self.run(move |answer| Job::Make(kid, spec, answer)).boxed()
    }

    fn make_timeout(&self) -> Duration {
        MAKE_TIMEOUT
    }

    fn sign<'a>(
        &'a self,
        key: &'a KeyReference,
        message: &'a [u8],
    ) -> BoxFuture<'a, Result<Vec<u8>, ServiceError>> {
        let (key, message) = (key.clone(), message.to_vec());
        self.run(|answer| Job::Sign(key, message, answer)).boxed()
    }
}

fn start_threads(settings: &Arc<Pkcs11Settings>) -> Threads {
    let (sender, jobs) = mpsc::channel();
    let jobs = Arc::new(Mutex::new(jobs));
    let shared = Arc::new(SharedModule::default());
    let start = |_| {
        let worker = Worker {
            settings: settings.clone(),
            shared: shared.clone(),
            open: None,
        };
        let jobs = jobs.clone();
        thread::Builder::new()
            .name("pkcs11".to_owned())
            .spawn(move || worker.run(&jobs))
    };
    // If no thread can be started, jobs fail because their receiver is dropped.
    let handles = (0..settings.sessions.max(1)).map(start);
    Threads {
        jobs: sender,
        handles: handles.filter_map(Result::ok).collect(),
    }
}

/// What the threads have in common.
#[derive(Default)]
struct SharedModule {
    module: Mutex<Option<Pkcs11>>,
    pin_refused: AtomicBool,
}

struct Worker {
    settings: Arc<Pkcs11Settings>,
    shared: Arc<SharedModule>,
    open: Option<Open>,
}

/// A session that is logged in, and the keys that it has found.
struct Open {
    session: Session,
    keys: HashMap<String, ObjectHandle>,
}

impl Worker {
    fn run(mut self, jobs: &Mutex<mpsc::Receiver<Job>>) {
        loop {
            // One thread waits for the next job; the others wait for their turn to wait.
            let Ok(job) = jobs.lock().recv() else {
                return;
            };
            match job {
                // Callers that are gone cost the device nothing.
                Job::Make(.., answer) if answer.is_closed() => {}
                Job::Sign(.., answer) if answer.is_closed() => {}
                Job::Make(kid, spec, answer) => {
                    let outcome = self.attempt(|open| open.make(&kid, spec));
                    let _ = answer.send(outcome);
                }
                Job::Sign(key, message, answer) => {
                    let outcome = self.attempt(|open| open.sign(&key, &message));
                    let _ = answer.send(outcome);
                }
            }
        }
    }

    /// After an error the session is closed: the next job opens another one, and so finds a token
    /// that was taken out and put back.
    fn attempt<T>(
        &mut self,
        work: impl FnOnce(&mut Open) -> Result<T, ServiceError>,
    ) -> Result<T, ServiceError> {
        let mut open = match self.open.take() {
            Some(open) => open,
            None => self.open()?,
        };
        let outcome = work(&mut open)?;
        self.open = Some(open);
        Ok(outcome)
    }

    fn open(&self) -> Result<Open, ServiceError> {
        if self.shared.pin_refused.load(Ordering::Acquire) {
            return Err(ServiceError::new(
                Trouble::Forbidden,
                "the token refused the PIN; it is not tried again before a restart",
            ));
        }
        let module = self.module()?;
        let slots = module
            .get_slots_with_token()
            .map_err(|error| failure("C_GetSlotList", &error))?;
        let labelled = |slot: &cryptoki::slot::Slot| {
            let info = module.get_token_info(*slot);
            info.is_ok_and(|info| info.label().trim() == self.settings.token)
        };
        let slot = slots.into_iter().find(labelled).ok_or_else(|| {
            away(format!(
                "{} has no token with the label {:?}",
                self.settings.module.display(),
                self.settings.token
            ))
        })?;
        let session = module
            .open_rw_session(slot)
            .map_err(|error| failure("C_OpenSession", &error))?;
        let pin = AuthPin::from(self.settings.pin.reveal().to_owned());
        match session.login(UserType::User, Some(&pin)) {
            // Sessions of one process share the login.
            Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => Ok(Open {
                session,
                keys: HashMap::new(),
            }),
            Err(error) => {
                if let Error::Pkcs11(
                    RvError::PinIncorrect
                    | RvError::PinInvalid
                    | RvError::PinLenRange
                    | RvError::PinLocked,
                    _,
                ) = error
                {
                    self.shared.pin_refused.store(true, Ordering::Release);
                }
                Err(failure("C_Login", &error))
            }
        }
    }

    fn module(&self) -> Result<Pkcs11, ServiceError> {
        let mut loaded = self.shared.module.lock();
        if let Some(module) = &*loaded {
            return Ok(module.clone());
        }
        let path = self.settings.module.display();
        let module = Pkcs11::new(&self.settings.module)
            .map_err(|error| away(format!("{path}: {}", printable(&error.to_string()))))?;
        match module.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
            // Another part of this process uses the same module.
            Ok(()) | Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => {}
            Err(error) => return Err(failure("C_Initialize", &error)),
        }
        *loaded = Some(module.clone());
        Ok(module)
    }
}

impl Open {
    fn make(&self, kid: &KeyId, spec: KeySpec) -> Result<KeyReference, ServiceError> {
        let id = Attribute::Id(kid.as_str().as_bytes().to_vec());
        let label = Attribute::Label(format!("tailbone {kid}").into_bytes());
        let (mechanism, kind) = match spec {
            KeySpec::EdDsa => return Err(no_eddsa()),
            KeySpec::Rs256 { bits } => (
                Mechanism::RsaPkcsKeyPairGen,
                vec![
                    Attribute::ModulusBits(u64::from(bits).into()),
                    Attribute::PublicExponent(vec![1, 0, 1]),
                ],
            ),
            KeySpec::Es256 => (Mechanism::EccKeyPairGen, vec![curve_oid(Curve::P256)]),
            KeySpec::Es384 => (Mechanism::EccKeyPairGen, vec![curve_oid(Curve::P384)]),
            KeySpec::Es512 => (Mechanism::EccKeyPairGen, vec![curve_oid(Curve::P521)]),
        };
        let mut public = vec![
            Attribute::Token(true),
            Attribute::Verify(true),
            id.clone(),
            label.clone(),
        ];
        public.extend(kind);
        let private = [
            Attribute::Token(true),
            Attribute::Private(true),
            Attribute::Sensitive(true),
            Attribute::Extractable(false),
            Attribute::Sign(true),
            id,
            label,
        ];
        let (public, _) = self
            .session
            .generate_key_pair(&mechanism, &public, &private)
            .map_err(|error| failure("C_GenerateKeyPair", &error))?;
        let parts = self
            .public_parts(public, spec)?
            .ok_or_else(|| refused("the new key has an unexpected public half".to_owned()))?;
        Ok(KeyReference {
            location: KeyLocation {
                key: kid.to_string(),
                service: ServiceKind::Pkcs11,
                version: String::new(),
            },
            public: PublicJwk {
                kid: kid.clone(),
                parts,
            },
        })
    }

    fn public_parts(
        &self,
        key: ObjectHandle,
        spec: KeySpec,
    ) -> Result<Option<PublicParts>, ServiceError> {
        let wanted = [
            AttributeType::EcPoint,
            AttributeType::Modulus,
            AttributeType::PublicExponent,
        ];
        let wanted = match spec {
            KeySpec::Rs256 { .. } => &wanted[1..],
            _ => &wanted[..1],
        };
        let attributes = self
            .session
            .get_attributes(key, wanted)
            .map_err(|error| failure("C_GetAttributeValue", &error))?;
        let (mut point, mut n, mut e) = (None, None, None);
        for attribute in attributes {
            match attribute {
                Attribute::EcPoint(bytes) => point = Some(bytes),
                Attribute::Modulus(bytes) => n = Some(number(&bytes)),
                Attribute::PublicExponent(bytes) => e = Some(number(&bytes)),
                _ => {}
            }
        }
        let curve = match spec {
            KeySpec::EdDsa => return Ok(None),
            KeySpec::Es256 => Curve::P256,
            KeySpec::Es384 => Curve::P384,
            KeySpec::Es512 => Curve::P521,
            KeySpec::Rs256 { .. } => return Ok(e.zip(n).map(|(e, n)| PublicParts::Rsa { e, n })),
        };
        // The standard wants the point in an OCTET STRING; some modules leave that out.
        Ok(point.and_then(|bytes| {
            let start = bytes.len().checked_sub(1 + 2 * curve.length())?;
            public::from_point(curve, bytes.get(start..)?)
        }))
    }

    fn sign(&mut self, key: &KeyReference, message: &[u8]) -> Result<Vec<u8>, ServiceError> {
        let handle = self.find(&key.location.key)?;
        let hashed = |hash| digest(hash, message).as_ref().to_vec();
        let (mechanism, data) = match key.public.algorithm() {
            Algorithm::EdDsa => return Err(no_eddsa()),
            Algorithm::Es256 => (Mechanism::Ecdsa, hashed(&digest::SHA256)),
            Algorithm::Es384 => (Mechanism::Ecdsa, hashed(&digest::SHA384)),
            Algorithm::Es512 => (Mechanism::Ecdsa, hashed(&digest::SHA512)),
            Algorithm::Rs256 => (Mechanism::Sha256RsaPkcs, message.to_vec()),
        };
        // An ECDSA signature is R ‖ S here, as in a JWS.
        self.session
            .sign(&mechanism, handle, &data)
            .map_err(|error| failure("C_Sign", &error))
    }

    fn find(&mut self, kid: &str) -> Result<ObjectHandle, ServiceError> {
        if let Some(handle) = self.keys.get(kid) {
            return Ok(*handle);
        }
        let template = [
            Attribute::Class(ObjectClass::PRIVATE_KEY),
            Attribute::Id(kid.as_bytes().to_vec()),
        ];
        let found = self
            .session
            .find_objects(&template)
            .map_err(|error| failure("C_FindObjects", &error))?;
        let handle = found.first().ok_or_else(|| {
            let detail = format!("the token has no private key with the CKA_ID {kid:?}");
            ServiceError::new(Trouble::Disabled, detail)
        })?;
        self.keys.insert(kid.to_owned(), *handle);
        Ok(*handle)
    }
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Job")
    }
}

/// The curve's object identifier in DER (RFC 5480).
fn curve_oid(curve: Curve) -> Attribute {
    let oid: &[u8] = match curve {
        Curve::P256 => &[0x06, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7],
        Curve::P384 => &[0x06, 5, 0x2b, 0x81, 0x04, 0, 0x22],
        Curve::P521 => &[0x06, 5, 0x2b, 0x81, 0x04, 0, 0x23],
    };
    Attribute::EcParams(oid.to_vec())
}

/// A number as JWKs hold it: without leading zeros.
fn number(bytes: &[u8]) -> String {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    URL_SAFE_NO_PAD.encode(bytes.get(zeros..).unwrap_or_default())
}

fn failure(call: &str, error: &Error) -> ServiceError {
    // The module's own words are long explanations; the name of the code is what people look for.
    let Error::Pkcs11(code, _) = error else {
        return away(format!("{call}: {}", printable(&error.to_string())));
    };
    let detail = format!("{call}: {code:?}");
    match code {
        RvError::PinExpired
        | RvError::PinIncorrect
        | RvError::PinInvalid
        | RvError::PinLenRange
        | RvError::PinLocked
        | RvError::UserPinNotInitialized
        | RvError::KeyFunctionNotPermitted
        | RvError::ActionProhibited => ServiceError::new(Trouble::Forbidden, detail),
        // The session is opened anew for the next attempt.
        RvError::SessionClosed
        | RvError::SessionHandleInvalid
        | RvError::UserNotLoggedIn
        | RvError::KeyHandleInvalid
        | RvError::ObjectHandleInvalid => away(detail).retry_after(PAUSE),
        RvError::HostMemory | RvError::DeviceMemory | RvError::SessionCount => {
            ServiceError::new(Trouble::Throttled, detail).retry_after(PAUSE)
        }
        RvError::DeviceError
        | RvError::DeviceRemoved
        | RvError::TokenNotPresent
        | RvError::TokenNotRecognized
        | RvError::SlotIdInvalid
        | RvError::GeneralError
        | RvError::FunctionFailed
        | RvError::CryptokiNotInitialized => away(detail),
        _ => refused(detail),
    }
}

fn no_eddsa() -> ServiceError {
    refused("EdDSA is not used with PKCS#11; choose another keys.algorithm".to_owned())
}

fn away(detail: String) -> ServiceError {
    ServiceError::new(Trouble::Away, detail)
}

fn refused(detail: String) -> ServiceError {
    ServiceError::new(Trouble::Refused, detail)
}
