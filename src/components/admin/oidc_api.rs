//! The methods for the OpenID provider, based on its operations
//! ([`tailbone_oidc::provider::Provider`]).

use std::time::Duration;

use ::http::StatusCode;
use jiff::Timestamp;
use tailbone_oidc::{
    OidcError,
    client::Login,
    provider::{
        ClientEntry, GrantEntry, MadeClient, NewClient, Provider, SessionEntry, secret_name,
    },
    store::{ClientOrigin, ClientQuery, ClientSecret, GrantName, GrantsOf, SessionId, SessionsOf},
};
use tailbone_values::excerpt;
use tonic::{Request, Response, Status};

use super::{
    api::{About, AdminApi, Admission, admission_of},
    oidc_proto::{
        AddClientSecretRequest, AddClientSecretResponse, ChangedClient, Client,
        CreateClientRequest, EndSessionsRequest, EndSessionsResponse, GetClientRequest, Grant,
        ListClientsRequest, ListClientsResponse, ListGrantsRequest, ListGrantsResponse,
        ListSessionsRequest, ListSessionsResponse, RemoveClientRequest, RemoveClientResponse,
        RemoveClientSecretRequest, RevokeGrantsRequest, RevokeGrantsResponse, Secret, Session,
        UpdateClientRequest, oidc_admin_server::OidcAdmin,
    },
};
use crate::http::{Error, error::Kind};

/// Metadata may have a set of keys in it.
pub(super) const MAX_REQUEST_BYTES: usize = 256 << 10;

/// When to try again after trouble of the store.
const RETRY_AFTER: Duration = Duration::from_secs(5);

impl AdminApi {
    /// Runs a call on the provider.
    async fn on_provider<T: Send + 'static, F>(
        &self,
        admission: Admission,
        about: About,
        about_answer: impl FnOnce(&T) -> About + Send + 'static,
        call: impl FnOnce(Provider) -> F + Send + 'static,
    ) -> Result<Response<T>, Status>
    where
        F: Future<Output = Result<T, OidcError>> + Send + 'static,
    {
        let provider = self.state.provider.get().cloned();
        let call = async move {
            let provider = provider.ok_or_else(|| {
                Error::new(
                    Kind::Precondition,
                    "oidc_not_running",
                    "this server runs no OpenID provider: the component oidc is off, or the node has not joined the tailnet yet",
                )
            })?;
            call(provider).await.map_err(error_of)
        };
        self.run_to_completion(admission, about, about_answer, call)
            .await
    }
}

#[tonic::async_trait]
impl OidcAdmin for AdminApi {
    async fn list_clients(
        &self,
        request: Request<ListClientsRequest>,
    ) -> Result<Response<ListClientsResponse>, Status> {
        let (admission, request) = admission_of(request)?;
        let call = async move |provider: Provider| {
            let query = ClientQuery {
                text: request.search,
                origin: match request.origin.as_str() {
                    "" => None,
                    name => Some(origin_named(name)?),
                },
                after: Some(request.page_token).filter(|token| !token.is_empty()),
                limit: request.page_size,
            };
            let page = provider.find_clients(&query, Timestamp::now()).await?;
            let clients = page.clients.into_iter().map(|entry| {
                let mut client = wire_client(entry);
                client.metadata_json.clear();
                client.redirect_uris.truncate(1);
                client
            });
            Ok(ListClientsResponse {
                clients: clients.collect(),
                next_page_token: page.next.unwrap_or_default(),
            })
        };
        self.on_provider(admission, About::default(), |_| About::default(), call)
            .await
    }

    async fn get_client(
        &self,
        request: Request<GetClientRequest>,
    ) -> Result<Response<Client>, Status> {
        let (admission, GetClientRequest { client_id }) = admission_of(request)?;
        let about = about_client(&client_id);
        let call = async move |provider: Provider| {
            let entry = provider.client_entry(&client_id, Timestamp::now()).await?;
            Ok(wire_client(entry))
        };
        self.on_provider(admission, about, |_| About::default(), call)
            .await
    }

    async fn create_client(
        &self,
        request: Request<CreateClientRequest>,
    ) -> Result<Response<ChangedClient>, Status> {
        let (admission, request) = admission_of(request)?;
        let about = about_client(&request.client_id);
        let call = async move |provider: Provider| {
            let new = NewClient {
                id: &request.client_id,
                metadata: &request.metadata_json,
                secret_until: time(request.secret_expires_at)?,
            };
            Ok(changed(
                provider.create_client(new, Timestamp::now()).await?,
            ))
        };
        let about_answer = |answer: &ChangedClient| {
            let client = answer.client.as_ref();
            client.map_or_else(About::default, |client| about_client(&client.client_id))
        };
        self.on_provider(admission, about, about_answer, call).await
    }

    async fn update_client(
        &self,
        request: Request<UpdateClientRequest>,
    ) -> Result<Response<ChangedClient>, Status> {
        let (admission, request) = admission_of(request)?;
        let about = about_client(&request.client_id);
        let call = async move |provider: Provider| {
            let UpdateClientRequest {
                client_id,
                metadata_json,
                version,
            } = request;
            let made = provider
                .change_client(&client_id, &metadata_json, version, Timestamp::now())
                .await?;
            Ok(changed(made))
        };
        self.on_provider(admission, about, |_| About::default(), call)
            .await
    }

    async fn remove_client(
        &self,
        request: Request<RemoveClientRequest>,
    ) -> Result<Response<RemoveClientResponse>, Status> {
        let (admission, RemoveClientRequest { client_id }) = admission_of(request)?;
        let about = about_client(&client_id);
        let call = async move |provider: Provider| {
            provider.delete_client(&client_id, Timestamp::now()).await?;
            Ok(RemoveClientResponse {})
        };
        self.on_provider(admission, about, |_| About::default(), call)
            .await
    }

    async fn add_client_secret(
        &self,
        request: Request<AddClientSecretRequest>,
    ) -> Result<Response<AddClientSecretResponse>, Status> {
        let (admission, request) = admission_of(request)?;
        let about = about_client(&request.client_id);
        let call = async move |provider: Provider| {
            let until = time(request.expires_at)?;
            let made = provider
                .add_secret(&request.client_id, until, Timestamp::now())
                .await?;
            Ok(AddClientSecretResponse {
                secret: Some(wire_secret(&made.stored)),
                client_secret: made.secret.to_string(),
            })
        };
        let about_answer = |answer: &AddClientSecretResponse| About {
            secret: answer.secret.as_ref().map(|one| one.secret_id.clone()),
            ..About::default()
        };
        self.on_provider(admission, about, about_answer, call).await
    }

    async fn remove_client_secret(
        &self,
        request: Request<RemoveClientSecretRequest>,
    ) -> Result<Response<Client>, Status> {
        let (admission, request) = admission_of(request)?;
        let about = About {
            secret: Some(excerpt(&request.secret_id)),
            ..about_client(&request.client_id)
        };
        let call = async move |provider: Provider| {
            let RemoveClientSecretRequest {
                client_id,
                secret_id,
                force,
            } = request;
            let entry = provider
                .remove_secret(&client_id, &secret_id, force, Timestamp::now())
                .await?;
            Ok(wire_client(entry))
        };
        self.on_provider(admission, about, |_| About::default(), call)
            .await
    }

    async fn list_sessions(
        &self,
        request: Request<ListSessionsRequest>,
    ) -> Result<Response<ListSessionsResponse>, Status> {
        let (admission, ListSessionsRequest { user, client_id }) = admission_of(request)?;
        let about = about_all(&user, &client_id);
        let call = async move |provider: Provider| {
            let now = Timestamp::now();
            let of = match (user.as_str(), client_id.as_str()) {
                ("", "") => SessionsOf::All,
                (user, "") => SessionsOf::Subject(provider.subject_of(user, now).await?),
                ("", client_id) => SessionsOf::Client(client_id.to_owned()),
                _ => return Err(not_one("user and client")),
            };
            let found = provider.find_sessions(&of, now).await?;
            Ok(ListSessionsResponse {
                sessions: found.entries.into_iter().map(wire_session).collect(),
                more: found.more,
            })
        };
        self.on_provider(admission, about, |_| About::default(), call)
            .await
    }

    async fn end_sessions(
        &self,
        request: Request<EndSessionsRequest>,
    ) -> Result<Response<EndSessionsResponse>, Status> {
        let (admission, request) = admission_of(request)?;
        let EndSessionsRequest {
            session_id,
            user,
            client_id,
        } = request;
        let about = About {
            session: given(&session_id),
            ..about_all(&user, &client_id)
        };
        let call = async move |provider: Provider| {
            let now = Timestamp::now();
            let of = match (session_id.as_str(), user.as_str(), client_id.as_str()) {
                (session_id, "", "") => {
                    let id = SessionId::parse(session_id).ok_or_else(|| bad_id("session"))?;
                    provider.end_session_of(id, now).await?;
                    return Ok(EndSessionsResponse { ended: 1 });
                }
                ("", user, "") => SessionsOf::Subject(provider.subject_of(user, now).await?),
                ("", "", client_id) => SessionsOf::Client(client_id.to_owned()),
                _ => return Err(not_one("session, user and client")),
            };
            let ended = provider.end_sessions(&of, now).await?;
            Ok(EndSessionsResponse { ended })
        };
        self.on_provider(admission, about, |_| About::default(), call)
            .await
    }

    async fn list_grants(
        &self,
        request: Request<ListGrantsRequest>,
    ) -> Result<Response<ListGrantsResponse>, Status> {
        let (admission, request) = admission_of(request)?;
        let ListGrantsRequest {
            user,
            client_id,
            session_id,
        } = request;
        let about = About {
            session: given(&session_id),
            ..about_all(&user, &client_id)
        };
        let call = async move |provider: Provider| {
            let now = Timestamp::now();
            let of = match (user.as_str(), client_id.as_str(), session_id.as_str()) {
                ("", "", "") => return Err(not_one("session, user and client")),
                (user, "", "") => GrantsOf::Subject(provider.subject_of(user, now).await?),
                ("", client_id, "") => GrantsOf::Client(client_id.to_owned()),
                ("", "", session_id) => {
                    let id = SessionId::parse(session_id).ok_or_else(|| bad_id("session"))?;
                    GrantsOf::Session(id)
                }
                _ => return Err(not_one("session, user and client")),
            };
            let found = provider.find_grants(&of, now).await?;
            Ok(ListGrantsResponse {
                grants: found.entries.into_iter().map(wire_grant).collect(),
                more: found.more,
            })
        };
        self.on_provider(admission, about, |_| About::default(), call)
            .await
    }

    async fn revoke_grants(
        &self,
        request: Request<RevokeGrantsRequest>,
    ) -> Result<Response<RevokeGrantsResponse>, Status> {
        let (admission, request) = admission_of(request)?;
        let RevokeGrantsRequest {
            grant_id,
            user,
            client_id,
        } = request;
        let about = About {
            grant: given(&grant_id),
            ..about_all(&user, &client_id)
        };
        let call = async move |provider: Provider| {
            let now = Timestamp::now();
            let of = match (grant_id.as_str(), user.as_str(), client_id.as_str()) {
                (grant_id, "", "") => {
                    let name = GrantName::parse(grant_id).ok_or_else(|| bad_id("grant"))?;
                    provider.revoke_named(name, now).await?;
                    return Ok(RevokeGrantsResponse { revoked: 1 });
                }
                ("", user, "") => GrantsOf::Subject(provider.subject_of(user, now).await?),
                ("", "", client_id) => GrantsOf::Client(client_id.to_owned()),
                _ => return Err(not_one("grant, user and client")),
            };
            let revoked = provider.revoke_all(&of).await?;
            Ok(RevokeGrantsResponse { revoked })
        };
        self.on_provider(admission, about, |_| About::default(), call)
            .await
    }
}

/// The status decides the kind; code and words stay.
fn error_of(error: OidcError) -> Error {
    let kind = match error.status {
        StatusCode::BAD_REQUEST => Kind::BadRequest,
        StatusCode::CONFLICT => Kind::Conflict,
        StatusCode::NOT_FOUND => Kind::NotFound,
        StatusCode::PRECONDITION_FAILED => Kind::Precondition,
        StatusCode::SERVICE_UNAVAILABLE => Kind::Unavailable {
            retry_after: RETRY_AFTER,
        },
        _ => Kind::Internal,
    };
    Error::new(kind, error.code, error.description)
}

fn not_one(of: &str) -> OidcError {
    OidcError::bad("bad_selection", format!("name one of {of}, and no other"))
}

fn bad_id(of: &str) -> OidcError {
    OidcError::bad("bad_id", format!("this is not the id of a {of}"))
}

fn about_client(id: &str) -> About {
    About {
        client_id: given(id),
        ..About::default()
    }
}

fn about_all(user: &str, client_id: &str) -> About {
    About {
        user: given(user),
        ..about_client(client_id)
    }
}

fn given(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| excerpt(text))
}

/// A time of a request; 0 is none.
fn time(seconds: i64) -> Result<Option<Timestamp>, OidcError> {
    if seconds == 0 {
        return Ok(None);
    }
    let time = Timestamp::from_second(seconds);
    time.map(Some)
        .map_err(|_| OidcError::bad("bad_time", "a time is not in Unix seconds"))
}

const ORIGINS: [(ClientOrigin, &str); 4] = [
    (ClientOrigin::Admin, "admin"),
    (ClientOrigin::File, "file"),
    (ClientOrigin::Registered, "registered"),
    (ClientOrigin::Tsidp, "tsidp"),
];

fn origin_named(wanted: &str) -> Result<ClientOrigin, OidcError> {
    let found = ORIGINS.into_iter().find(|(_, name)| *name == wanted);
    found.map(|(origin, _)| origin).ok_or_else(|| {
        OidcError::bad(
            "bad_origin",
            "the origin of a client is admin, file, registered or tsidp",
        )
    })
}

fn changed(made: MadeClient) -> ChangedClient {
    ChangedClient {
        client: Some(wire_client(made.entry)),
        client_secret: made.secret.map(|one| one.to_string()).unwrap_or_default(),
    }
}

fn wire_client(entry: ClientEntry) -> Client {
    let ClientEntry {
        client,
        metadata,
        login,
    } = entry;
    let origin = ORIGINS.into_iter().find(|(one, _)| *one == client.origin);
    let method = serde_json::to_value(metadata.token_endpoint_auth_method);
    Client {
        metadata_json: metadata.to_stored().unwrap_or_default(),
        client_id: client.id,
        name: metadata.client_name,
        origin: origin.map_or("", |(_, name)| name).to_owned(),
        auth_method: method
            .ok()
            .and_then(|method| method.as_str().map(str::to_owned))
            .unwrap_or_default(),
        login: match login {
            Login::Confirm => "confirm",
            Login::Silent => "silent",
        }
        .to_owned(),
        redirect_uris: metadata.redirect_uris,
        created_at: client.created_at.as_second(),
        updated_at: client.updated_at.as_second(),
        expires_at: client.expires_at.map_or(0, Timestamp::as_second),
        owner: client.owner.unwrap_or_default(),
        secrets: client.secrets.iter().map(wire_secret).collect(),
        version: client.version,
    }
}

fn wire_secret(secret: &ClientSecret) -> Secret {
    Secret {
        secret_id: secret_name(secret),
        created_at: secret.created_at.as_second(),
        expires_at: secret.expires_at.map_or(0, Timestamp::as_second),
    }
}

fn wire_session(entry: SessionEntry) -> Session {
    let SessionEntry { session, login } = entry;
    Session {
        session_id: session.id.text(),
        subject: session.subject,
        login,
        created_at: session.created_at.as_second(),
        authenticated_at: session.authenticated_at.as_second(),
        expires_at: session.expires_at.as_second(),
    }
}

fn wire_grant(entry: GrantEntry) -> Grant {
    let GrantEntry { grant, details } = entry;
    Grant {
        grant_id: grant.id.name().text(),
        client_id: grant.client_id,
        subject: grant.subject.unwrap_or_default(),
        login: details.identity.login,
        session_id: grant.session.map(|id| id.text()).unwrap_or_default(),
        scopes: details.scopes,
        resources: details.resources,
        created_at: grant.created_at.as_second(),
    }
}
