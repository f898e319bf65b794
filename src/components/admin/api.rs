//! The methods, based on [`KeyLife`], and the access check before them.

use std::{net::SocketAddr, sync::Arc};

use ::http::request::Parts;
use axum::{
    Router,
    extract::{Request as HttpRequest, State},
    middleware::{self, Next},
    response::{IntoResponse as _, Response as HttpResponse},
};
use jiff::Timestamp;
use tokio::sync::Mutex;
use tonic::{Request, Response, Status, service::Routes};
use tracing::Instrument as _;

use super::{
    authorize::{
        Access, AccessDecision, AccessRule, AccessRules, DECLARED_METHODS, Requester, access,
        authorize,
    },
    impact::{consequences, impact},
    key_errors::{KeyOperation, key_error, list_error},
    new_key::{named_set, requested_spec, requested_spec_in},
    oidc_api,
    oidc_proto::oidc_admin_server::OidcAdminServer,
    proto::{
        self, GenerateNewKeysRequest, GenerateNewKeysResponse, Key, ListKeysRequest,
        ListKeysResponse, RecentLogRequest, RecentLogResponse, RemoveKeyRequest, RemoveKeyResponse,
        RotateKeysRequest, RotateKeysResponse, StatusRequest, StatusResponse, WhoIsRequest,
        WhoIsResponse,
        admin_service_server::{AdminService, AdminServiceServer},
    },
};
use crate::{
    audit,
    config::{Authorization, KeySpec, Settings},
    http::{Error, certificate::CertificateSource, error::Kind, grpc, unix::LocalPeer},
    identity::{Caller, Connection, Visitor},
    jwks::{
        KeySet,
        life::{GeneratedKey, KeyLife, LifeError},
    },
    keys::KeyView,
    part::{self, AcceptedHosts, Context, Part, PartError, ProviderFigures, ServerState},
    tailnet::{self, join::JoinState},
    telemetry::{self, audit::Decision as Audited, readiness},
    version,
};

/// A request only contains an id and a number.
const MAX_REQUEST_BYTES: usize = 16 << 10;
/// The default limit of gRPC clients, with room for more keys than anybody has.
const MAX_RESPONSE_BYTES: usize = 4 << 20;
/// The longest key id that is accepted.
const MAX_KID_BYTES: usize = 512;

/// The state of the methods. Cheap to clone.
#[derive(Debug, Clone)]
pub struct AdminApi {
    /// The keys of issuer and gate.
    pub keys: KeyLife,
    /// The keys of components that have their own.
    pub sets: Arc<[KeySet]>,
    /// The kind of a new key, unless the request names one.
    pub spec: KeySpec,
    pub mode: Authorization,
    pub state: ServerState,
    /// Serializes changes, so that what a change was decided on still holds when it is made.
    pub changes: Arc<Mutex<()>>,
}

/// The component on its own listeners; the local admin socket is the server's.
pub fn part(settings: &Settings, context: &Context) -> Result<Part, PartError> {
    Ok(Part::new("admin").serve_as(
        "admin",
        settings.admin.listen.clone(),
        &part::Routes::new("admin", context.admin_routes.clone()),
        AcceptedHosts::Own,
        |LocalPeer { uid, pid }| Requester::Local { uid, pid }.identify(),
    ))
}

/// The services behind the access check. Needs `http::layers::wrap_grpc` around it, and in each
/// request's extensions either a [`Requester`] or an `Arc<Connection>`.
pub fn router(admin: AdminApi) -> Result<Router, tonic_reflection::server::Error> {
    let service = AdminServiceServer::new(admin.clone())
        .max_decoding_message_size(MAX_REQUEST_BYTES)
        .max_encoding_message_size(MAX_RESPONSE_BYTES);
    let oidc = OidcAdminServer::new(admin.clone())
        .max_decoding_message_size(oidc_api::MAX_REQUEST_BYTES)
        .max_encoding_message_size(MAX_RESPONSE_BYTES);
    let (reporter, health) = tonic_health::server::health_reporter();
    // This does not wait: nobody else uses the new reporter's table.
    tokio::spawn(async move {
        reporter.set_serving::<AdminServiceServer<AdminApi>>().await;
        reporter.set_serving::<OidcAdminServer<AdminApi>>().await;
    });
    let descriptors = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let routes = Routes::new(service)
        .add_service(oidc)
        .add_service(health)
        .add_service(descriptors().build_v1()?)
        // Used by grpcurl and older tools.
        .add_service(descriptors().build_v1alpha()?);
    Ok(routes
        .into_axum_router()
        .layer(middleware::from_fn_with_state(admin, check_access)))
}

/// A call that is allowed.
#[derive(Debug, Clone)]
pub(super) struct Admission {
    method: &'static str,
    requester: Requester,
    rule: AccessRule,
}

/// What a call was about, for its audit line.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct About {
    pub(super) kid: Option<String>,
    pub(super) client_id: Option<String>,
    pub(super) secret: Option<String>,
    pub(super) session: Option<String>,
    pub(super) grant: Option<String>,
    pub(super) user: Option<String>,
}

impl About {
    fn key(kid: Option<String>) -> Self {
        Self {
            kid,
            ..Self::default()
        }
    }

    fn or(self, other: Self) -> Self {
        Self {
            kid: self.kid.or(other.kid),
            client_id: self.client_id.or(other.client_id),
            secret: self.secret.or(other.secret),
            session: self.session.or(other.session),
            grant: self.grant.or(other.grant),
            user: self.user.or(other.user),
        }
    }
}

async fn check_access(
    State(admin): State<AdminApi>,
    request: HttpRequest,
    next: Next,
) -> HttpResponse {
    let (mut head, body) = request.into_parts();
    match admin.admit(&head).await {
        Ok(admission) => {
            if let Some(admission) = admission {
                head.extensions.insert(admission);
            }
            next.run(HttpRequest::from_parts(head, body)).await
        }
        Err(error) => error.into_response(),
    }
}

impl AdminApi {
    /// Decides about a call. `None`: the method is open to everybody and does not administer
    /// anything.
    async fn admit(&self, head: &Parts) -> Result<Option<Admission>, Error> {
        let path = head.uri.path();
        grpc::check(head.version, &head.headers).inspect_err(|error| {
            audit!(
                Audited::Refused,
                "admin",
                method = method_name(path),
                reason = error.code
            );
        })?;
        let Some(access) = access(path) else {
            return Err(unlisted_method(path, DECLARED_METHODS));
        };
        let Access::Right(right) = access else {
            return Ok(None);
        };
        let method = method_name(path);
        let requester = self.requester(head).await.inspect_err(|error| {
            audit!(
                Audited::Refused,
                "admin",
                method,
                reason = error.code,
                detail = error.message
            );
        })?;
        let rules = AccessRules {
            mode: self.mode,
            own_uid: rustix::process::geteuid().as_raw(),
            owner: self.state.membership.status().owner_id,
        };
        match authorize(right, &requester, &rules) {
            AccessDecision::Allowed { rule } => Ok(Some(Admission {
                method,
                requester,
                rule,
            })),
            AccessDecision::Denied { explanation } => {
                audit!(Audited::Refused, "admin", method, caller = %requester, reason = "no_grant", right = right.as_str());
                Err(Error::new(Kind::Forbidden, "no_grant", explanation))
            }
        }
    }

    /// Identifies the requester: by the kernel on the socket, by the tailnet elsewhere.
    async fn requester(&self, head: &Parts) -> Result<Requester, Error> {
        if let Some(local) = head.extensions.get::<Requester>() {
            return Ok(local.clone());
        }
        let connection = Connection::of(&head.extensions)?;
        let caller = connection.caller().await?;
        connection.count_request()?;
        Ok(Requester::Tailnet(caller))
    }

    async fn generate(&self, size: i32, algorithm: &str, set: &str) -> Result<Key, Error> {
        let set = named_set(&self.sets, set)?;
        let _changes = self.changes.lock().await;
        let now = Timestamp::now();
        let made: Result<GeneratedKey, LifeError> = match set {
            None => {
                let spec = requested_spec(size, algorithm, self.spec)?;
                self.keys.generate(spec, now).await
            }
            Some(set) => {
                let spec = requested_spec_in(size, algorithm, set)?;
                set.generate(Some(spec), now).await
            }
        };
        let made = made.map_err(|error| key_error(KeyOperation::Generate, &error))?;
        made.report.audit();
        tracing::info!(target: "admin", kid = made.key.kid, algorithm = made.key.algorithm, "generated new key pair");
        Ok(key_of(set, &made.key))
    }

    /// The set that this key belongs to, and its keys; `None` if it is in none. A key of another
    /// server belongs to the set in whose document it is.
    async fn set_with(&self, kid: &str) -> Result<Option<(&KeySet, Vec<Key>)>, LifeError> {
        let known = self.keys.current_keys().snapshot();
        let known = known.keys.iter().any(|key| key.kid == kid);
        for set in self.sets.iter() {
            let (keys, _) = set.list(Timestamp::now()).await?;
            let belongs = |key: &KeyView| key.kid == kid && (key.state.is_some() || !known);
            if keys.iter().any(belongs) {
                let keys = keys.iter().map(|key| key_of(Some(set), key));
                return Ok(Some((set, keys.collect())));
            }
        }
        Ok(None)
    }

    async fn list(&self) -> Result<Vec<Key>, Error> {
        let report = self
            .keys
            .list(Timestamp::now())
            .await
            .map_err(|error| key_error(KeyOperation::List, &error))?;
        if let Some(error) = report.unread {
            return Err(list_error(error));
        }
        let mut listed: Vec<Key> = report.keys.iter().map(wire_key).collect();
        for set in self.sets.iter() {
            let (keys, unread) = set
                .list(Timestamp::now())
                .await
                .map_err(|error| key_error(KeyOperation::List, &error))?;
            if let Some(error) = unread {
                return Err(list_error(error));
            }
            listed.extend(keys.iter().map(|key| key_of(Some(set), key)));
        }
        Ok(listed)
    }

    async fn remove(&self, kid: &str, force: Option<bool>) -> Result<Vec<Key>, Error> {
        if kid.is_empty() || kid.len() > MAX_KID_BYTES {
            return Err(Error::new(
                Kind::BadRequest,
                "bad_key_id",
                format!("a key id has 1 to {MAX_KID_BYTES} bytes"),
            ));
        }
        let _changes = self.changes.lock().await;
        let failed = |error: LifeError| key_error(KeyOperation::Remove, &error);
        let in_set = self.set_with(kid).await.map_err(failed)?;
        // Older clients leave this out: they have asked their user before the call.
        if force == Some(false) {
            let keys = match &in_set {
                Some((_, keys)) => keys.clone(),
                None => {
                    let synced = self.keys.sync(Timestamp::now()).await.map_err(failed)?;
                    synced.audit();
                    synced.keys.iter().map(wire_key).collect()
                }
            };
            let impact = impact(&keys, kid);
            if impact.signing || impact.last {
                let explanation = consequences(kid, impact).join("; ");
                return Err(Error::new(
                    Kind::Precondition,
                    "breaks",
                    format!("{explanation}. Nothing was changed; force removes it anyway"),
                ));
            }
        }
        let set = in_set.map(|(set, _)| set);
        let removed = match set {
            Some(set) => set.remove(kid, Timestamp::now()).await,
            None => self.keys.remove(kid, Timestamp::now()).await,
        };
        let removed = removed.map_err(|error| {
            if let LifeError::NotFound(_) = error {
                tracing::warn!(target: "admin", kid, "key not found in JWKS");
            }
            key_error(KeyOperation::Remove, &error)
        })?;
        removed.report.audit();
        tracing::info!(target: "admin", kid, remaining_keys = removed.remaining.len(), "removed key from JWKS");
        let remaining = removed.remaining.iter();
        Ok(remaining.map(|key| key_of(set, key)).collect())
    }

    async fn rotate(
        &self,
        size: i32,
        algorithm: &str,
        set: &str,
    ) -> Result<RotateKeysResponse, Error> {
        let set = named_set(&self.sets, set)?;
        let _changes = self.changes.lock().await;
        let now = Timestamp::now();
        let made: Result<GeneratedKey, LifeError> = match set {
            None => {
                let spec = requested_spec(size, algorithm, self.spec)?;
                self.keys.rotate(spec, now).await
            }
            Some(set) => {
                let spec = requested_spec_in(size, algorithm, set)?;
                set.rotate(Some(spec), now).await
            }
        };
        let made = made.map_err(|error| key_error(KeyOperation::Rotate, &error))?;
        made.report.audit();
        if made.existed {
            tracing::info!(target: "admin", kid = made.key.kid, "a successor is waiting already");
        } else {
            tracing::info!(target: "admin", kid = made.key.kid, algorithm = made.key.algorithm, "generated new key pair");
        }
        Ok(RotateKeysResponse {
            key: Some(key_of(set, &made.key)),
            signs_from: seconds(made.key.signs_since),
            existed: made.existed,
        })
    }

    fn status(&self) -> StatusResponse {
        let now = Timestamp::now();
        let node = self.state.membership.status();
        let join = self.state.membership.state(now);
        let latches = self.state.readiness.check(now);
        let snapshot = self.keys.current_keys().snapshot();
        let oidc = self.state.provider_report.get();
        let oidc = oidc.map(|figures| wire_provider(figures, &latches));
        StatusResponse {
            oidc,
            version: version::VERSION.to_owned(),
            commit: version::COMMIT.to_owned(),
            node_state: format!("{:?}", node.state),
            node_name: node.name.clone(),
            addresses: node.addresses.iter().map(ToString::to_string).collect(),
            signing_key: snapshot
                .signing()
                .map(|(kid, _)| kid.to_string())
                .unwrap_or_default(),
            signing_trouble: snapshot
                .signer
                .as_ref()
                .err()
                .map(ToString::to_string)
                .unwrap_or_default(),
            jwks_read_at: seconds(snapshot.document_read),
            jwks_trouble: snapshot.trouble.join("; "),
            ready: readiness::all(&latches),
            latches: latches
                .into_iter()
                .map(|latch| proto::Latch {
                    name: latch.name.to_owned(),
                    ready: latch.ready,
                    reason: latch.reason,
                    degraded: latch.degraded,
                })
                .collect(),
            join_state: join.code().to_owned(),
            join_words: join.to_string(),
            login_url: match &join {
                JoinState::NeedsLogin { url } => url.clone(),
                _ => String::new(),
            },
            node_key_expiry: seconds(node.key_expiry),
            tailnet: node.tailnet.clone(),
            owner: node.owner.clone(),
            tags: node.tags.clone(),
            listeners: self
                .state
                .listeners
                .all()
                .into_iter()
                .map(|listening| proto::Listener {
                    name: listening.name.to_owned(),
                    address: listening.addr,
                    connections: listening.load.open() as u64,
                    certificate: listening
                        .certificate
                        .map(|certificate| wire_certificate(&*certificate, now)),
                })
                .collect(),
            keys: self.last_read_keys(&snapshot.keys),
            key_sets: self
                .sets
                .iter()
                .map(|set| proto::KeySet {
                    name: set.name().to_owned(),
                    jwks_place: set.place().to_owned(),
                    jwks_read_at: seconds(set.document_read()),
                    jwks_trouble: set.trouble().join("; "),
                })
                .collect(),
            jwks_place: self.keys.place().to_owned(),
            health: node.health.clone(),
            certificate_names: node.cert_domains.clone(),
        }
    }

    /// The keys as last read: those of issuer and gate, and those of the sets.
    fn last_read_keys(&self, keys: &[KeyView]) -> Vec<Key> {
        let mut all: Vec<Key> = keys.iter().map(wire_key).collect();
        for set in self.sets.iter() {
            all.extend(set.keys().iter().map(|key| key_of(Some(set), key)));
        }
        all
    }

    /// The identity of a caller at this address, as the components would see it.
    async fn look_up_caller(&self, address: &str) -> Result<WhoIsResponse, Error> {
        let refused = |kind, code, message: &str| Err(Error::new(kind, code, message));
        // No connection uses port 0: for a bare address the node answers for any port.
        let Some(peer) = address
            .parse::<SocketAddr>()
            .ok()
            .or_else(|| Some(SocketAddr::new(address.parse().ok()?, 0)))
        else {
            return refused(
                Kind::BadRequest,
                "bad_address",
                "not an address: give an IP address, with or without a port",
            );
        };
        let Some(node) = self.state.membership.node() else {
            return refused(
                Kind::Precondition,
                "node_not_running",
                "this server's node has not joined the tailnet yet",
            );
        };
        let whois = match node.whois(peer).await {
            Ok(whois) => whois,
            Err(tailnet::Error::NotFound) => {
                return refused(
                    Kind::NotFound,
                    "unknown_peer",
                    "the tailnet knows no node at this address",
                );
            }
            Err(error) => {
                return Err(Error::new(
                    Kind::Precondition,
                    "whois_failed",
                    format!("the node could not answer: {error}"),
                ));
            }
        };
        let refusal = Caller::from_whois(whois.clone()).err();
        let own_tailnet = node.watch().borrow().tailnet.clone();
        let visitor = Visitor::from_whois(whois.clone(), &own_tailnet).ok();
        Ok(WhoIsResponse {
            kind: if whois.node.tags.is_empty() {
                "user".to_owned()
            } else {
                "machine".to_owned()
            },
            login: whois.user.login,
            display_name: whois.user.display_name,
            node_name: whois.node.name,
            node_id: whois.node.id,
            tags: whois.node.tags,
            grants_json: serde_json::to_string(&whois.caps).unwrap_or_default(),
            refusal: refusal
                .as_ref()
                .map(|refusal| refusal.code().to_owned())
                .unwrap_or_default(),
            refusal_words: refusal
                .map(|refusal| refusal.to_string())
                .unwrap_or_default(),
            tailnet: visitor.map_or_else(String::new, |visitor| visitor.tailnet().to_owned()),
        })
    }

    /// Runs a call to its end, even if its client disconnects, and writes its audit line: what the
    /// request was about, and what its answer says besides.
    pub(super) async fn run_to_completion<T: Send + 'static>(
        &self,
        admission: Admission,
        about: About,
        about_answer: impl FnOnce(&T) -> About + Send + 'static,
        call: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<Response<T>, Status> {
        let completed = async move {
            let outcome = call.await;
            let answered = outcome.as_ref().map(about_answer);
            let About {
                kid,
                client_id,
                secret,
                session,
                grant,
                user,
            } = about.or(answered.unwrap_or_default());
            let Admission {
                method,
                requester,
                rule,
            } = admission;
            audit!(
                Audited::Allowed,
                "admin",
                method,
                caller = %requester,
                rule = rule.as_str(),
                kid,
                client_id,
                secret,
                session,
                grant,
                user,
                outcome = outcome.as_ref().err().map_or("done", |error| error.code)
            );
            if let Err(error) = &outcome {
                tracing::warn!(target: "admin", method, code = error.code, "{}", error.message);
            }
            outcome
        };
        match tokio::spawn(completed.in_current_span()).await {
            Ok(Ok(answer)) => Ok(Response::new(answer)),
            Ok(Err(error)) => Err(error.grpc()),
            Err(error) => {
                tracing::error!(target: "admin", %error, "an admin call ended unexpectedly");
                Err(Error::new(
                    Kind::Internal,
                    "internal",
                    "unexpected failure; the log has the cause under this id",
                )
                .grpc())
            }
        }
    }
}

#[tonic::async_trait]
impl AdminService for AdminApi {
    async fn generate_new_keys(
        &self,
        request: Request<GenerateNewKeysRequest>,
    ) -> Result<Response<GenerateNewKeysResponse>, Status> {
        let (
            admission,
            GenerateNewKeysRequest {
                size,
                algorithm,
                set,
            },
        ) = admission_of(request)?;
        let admin = self.clone();
        let call = async move {
            Ok(GenerateNewKeysResponse {
                key: Some(admin.generate(size, &algorithm, &set).await?),
            })
        };
        self.run_to_completion(
            admission,
            About::default(),
            |answer| about_key(answer.key.as_ref()),
            call,
        )
        .await
    }

    async fn list_keys(
        &self,
        request: Request<ListKeysRequest>,
    ) -> Result<Response<ListKeysResponse>, Status> {
        let (admission, ListKeysRequest {}) = admission_of(request)?;
        let admin = self.clone();
        self.run_to_completion(
            admission,
            About::default(),
            |_| About::default(),
            async move {
                Ok(ListKeysResponse {
                    keys: admin.list().await?,
                })
            },
        )
        .await
    }

    async fn remove_key(
        &self,
        request: Request<RemoveKeyRequest>,
    ) -> Result<Response<RemoveKeyResponse>, Status> {
        let (admission, RemoveKeyRequest { key_id, force }) = admission_of(request)?;
        let admin = self.clone();
        let kid = key_id.chars().take(MAX_KID_BYTES).collect();
        let call = async move {
            Ok(RemoveKeyResponse {
                keys: admin.remove(&key_id, force).await?,
            })
        };
        self.run_to_completion(admission, About::key(Some(kid)), |_| About::default(), call)
            .await
    }

    async fn rotate_keys(
        &self,
        request: Request<RotateKeysRequest>,
    ) -> Result<Response<RotateKeysResponse>, Status> {
        let (
            admission,
            RotateKeysRequest {
                size,
                algorithm,
                set,
            },
        ) = admission_of(request)?;
        let admin = self.clone();
        let call = async move { admin.rotate(size, &algorithm, &set).await };
        self.run_to_completion(
            admission,
            About::default(),
            |answer| about_key(answer.key.as_ref()),
            call,
        )
        .await
    }

    async fn status(
        &self,
        request: Request<StatusRequest>,
    ) -> Result<Response<StatusResponse>, Status> {
        let (admission, StatusRequest {}) = admission_of(request)?;
        let answer = AdminApi::status(self);
        self.run_to_completion(
            admission,
            About::default(),
            |_| About::default(),
            async move { Ok(answer) },
        )
        .await
    }

    async fn who_is(
        &self,
        request: Request<WhoIsRequest>,
    ) -> Result<Response<WhoIsResponse>, Status> {
        let (admission, WhoIsRequest { address }) = admission_of(request)?;
        let admin = self.clone();
        self.run_to_completion(
            admission,
            About::default(),
            |_| About::default(),
            async move { admin.look_up_caller(&address).await },
        )
        .await
    }

    async fn recent_log(
        &self,
        request: Request<RecentLogRequest>,
    ) -> Result<Response<RecentLogResponse>, Status> {
        let (admission, RecentLogRequest {}) = admission_of(request)?;
        let local = matches!(admission.requester, Requester::Local { .. });
        self.run_to_completion(
            admission,
            About::default(),
            |_| About::default(),
            async move {
                if !local {
                    // The log names every caller, which a grant to list keys does not cover.
                    return Err(Error::new(
                        Kind::Forbidden,
                        "local_only",
                        "the log is only shown on the local admin socket",
                    ));
                }
                Ok(RecentLogResponse {
                    lines: telemetry::log::recent(),
                })
            },
        )
        .await
    }
}

/// The admission that the access check has added. If it is missing, so is the check.
pub(super) fn admission_of<T>(request: Request<T>) -> Result<(Admission, T), Status> {
    let (_, mut extensions, message) = request.into_parts();
    match extensions.remove::<Admission>() {
        Some(admission) => Ok((admission, message)),
        None => Err(Error::new(Kind::Internal, "internal", "the access check did not run").grpc()),
    }
}

fn unlisted_method(path: &str, declared: &[&str]) -> Error {
    if declared.contains(&path) {
        tracing::error!(target: "admin", path, "BUG: a method without a row in the table of rights was called, and refused");
        return Error::new(
            Kind::Internal,
            "internal",
            format!("a bug in this server: no rule says who may call {path}"),
        );
    }
    Error::new(
        Kind::Unimplemented,
        "no_such_method",
        "there is no such method here",
    )
}

/// The last part of a path in the table, as a static string.
fn method_name(path: &str) -> &'static str {
    super::authorize::METHODS
        .iter()
        .find(|(method, _)| *method == path)
        .and_then(|(method, _)| method.rsplit('/').next())
        .unwrap_or_default()
}

fn about_key(key: Option<&Key>) -> About {
    About::key(key.map(|key| key.key_id.clone()))
}

fn wire_provider(figures: ProviderFigures, latches: &[readiness::Latch]) -> proto::OidcProvider {
    let (live, counted_at) = figures.live.unzip();
    let (swept_rows, swept_at) = figures.swept.unzip();
    let live = live.unwrap_or_default();
    let store = latches.iter().find(|latch| latch.name == "oidc-store");
    proto::OidcProvider {
        issuer: figures.issuer,
        store: figures.store,
        store_trouble: store.map(|latch| latch.reason.clone()).unwrap_or_default(),
        counted_at: seconds(counted_at),
        clients: live.clients,
        grants: live.grants,
        access_tokens: live.access_tokens,
        sessions: live.sessions,
        swept_at: seconds(swept_at),
        swept_rows: swept_rows.unwrap_or_default(),
    }
}

fn wire_certificate(certificate: &dyn CertificateSource, now: Timestamp) -> proto::Certificate {
    let trouble = certificate.trouble(now).unwrap_or_default();
    match certificate.facts() {
        Some(facts) => proto::Certificate {
            names: facts.names.clone(),
            issuer: facts.issuer.clone(),
            not_after: facts.not_after.as_second(),
            trouble,
        },
        None => proto::Certificate {
            trouble,
            ..proto::Certificate::default()
        },
    }
}

/// A key in its wire format, with the set that it belongs to.
pub fn key_of(set: Option<&KeySet>, view: &KeyView) -> Key {
    Key {
        set: set.map_or_else(String::new, |set| set.name().to_owned()),
        ..wire_key(view)
    }
}

/// A key in its wire format.
pub fn wire_key(view: &KeyView) -> Key {
    Key {
        key_id: view.kid.clone(),
        algorithm: view.algorithm.clone(),
        created_at: seconds(view.created),
        state: view
            .state
            .map(|state| state.to_string())
            .unwrap_or_default(),
        signs_since: if view.signing {
            seconds(view.signs_since)
        } else {
            0
        },
        published: view.published,
        size: i32::try_from(view.bits).unwrap_or_default(),
        set: String::new(),
    }
}

fn seconds(time: Option<Timestamp>) -> i64 {
    time.map(Timestamp::as_second).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    #[test]
    fn a_method_of_ours_without_a_row_is_refused_as_our_bug() {
        let code = |declared: &[&str]| {
            unlisted_method("/proto.AdminService/New", declared)
                .grpc()
                .code()
        };
        assert_eq!(code(&["/proto.AdminService/New"]), Code::Internal);
        assert_eq!(code(DECLARED_METHODS), Code::Unimplemented);
    }

    #[test]
    fn a_call_without_the_access_check_is_refused() {
        let refused = admission_of(Request::new(ListKeysRequest {}))
            .map(drop)
            .unwrap_err();
        assert_eq!(refused.code(), Code::Internal);
    }
}
