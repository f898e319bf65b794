//! Clients that register themselves (RFC 7591) and keep their registration (RFC 7592), and tsidp's
//! `/clients/`.
//!
//! Invariants
//! - The registration access token is told once and stored as a digest. It stays the same for the
//!   life of the client.
//! - Whoever shows it reads, replaces or removes that one client, and learns no secret.

use http::StatusCode;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;
use zeroize::Zeroizing;

use super::{BearerError, Caller, Provider, after, no_random, store_failed, written};
use crate::{
    OidcError,
    client::{BadMetadata, ClientMetadata, Offered},
    discovery,
    store::{
        AddedClient, Client, ClientOrigin, ClientSecret, Digest, GrantsOf, RegistrationLimits,
        random_token,
    },
    token::REFRESH_TOKEN,
};

/// How many clients may register themselves, in all and by one caller.
const LIMITS: RegistrationLimits = RegistrationLimits {
    total: 10_000,
    per_owner: 200,
};

/// How long a client that registered itself stays without a login, in seconds.
const UNUSED: i64 = 90 * 24 * 3600;

/// The most clients that `/clients/` lists.
const LISTED: u32 = 10_000;

/// How often a registration is read again, because somebody else has changed it.
pub(super) const TRIES: usize = 3;

/// What only this server says of a client (RFC 7592, section 2.2).
const OURS: [&str; 4] = [
    "client_id_issued_at",
    "client_secret_expires_at",
    "registration_access_token",
    "registration_client_uri",
];

/// Who makes a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Registrar {
    /// tsidp's `/clients/`, by an administrator.
    Admin,
    /// The client itself.
    Client,
}

/// A client as it is told when it is made: tsidp's members in tsidp's order, then those of RFC
/// 7591.
#[derive(Serialize)]
pub struct ClientView {
    pub client_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_secret: Option<String>,
    #[serde(flatten)]
    pub metadata: ClientMetadata,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub dynamically_registered: bool,
    pub created_at: String,
    /// The first of the redirect URIs, for those who read tsidp's older entries.
    pub redirect_uri: String,
    pub client_id_issued_at: i64,
    /// 0: never. Only of a client with a secret.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_secret_expires_at: Option<i64>,
    /// Of RFC 7592, for a client that registered itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub registration_access_token: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub registration_client_uri: Option<String>,
}

impl std::fmt::Debug for ClientView {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientView")
            .field("client_id", &self.client_id)
            .finish_non_exhaustive()
    }
}

/// A client as `/clients/` lists it.
#[derive(Debug, Serialize)]
pub struct ListedClient {
    pub client_id: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub client_name: String,
    pub redirect_uris: Vec<String>,
    pub created_at: String,
    pub redirect_uri: &'static str,
    /// Ours: `file`, `manual` or `registered`.
    pub owner: &'static str,
}

/// Go's zero time, which clients of tsidp's pages carry.
const NO_TIME: &str = "0001-01-01T00:00:00Z";

impl Provider {
    /// Reads a registration, stores the client and tells its secrets once.
    pub async fn register(
        &self,
        body: &[u8],
        caller: &Caller,
        now: Timestamp,
    ) -> Result<ClientView, OidcError> {
        let metadata = self.read_registration(body)?;
        self.check_sector(&metadata).await?;
        self.add(metadata, Registrar::Client, caller, now).await
    }

    fn read_registration(&self, body: &[u8]) -> Result<ClientMetadata, OidcError> {
        self.read_metadata(|offered| ClientMetadata::register(body, offered))
    }

    /// Reads metadata, with what they may choose from.
    pub(super) fn read_metadata(
        &self,
        read: impl FnOnce(Offered<'_>) -> Result<ClientMetadata, BadMetadata>,
    ) -> Result<ClientMetadata, OidcError> {
        let algorithms: Vec<&str> = self.keys.algorithms().map(|one| one.as_str()).collect();
        let mut grant_types = self.settings.offers.grant_types();
        grant_types.push(REFRESH_TOKEN);
        let offered = Offered {
            auth_methods: &discovery::AUTH_METHODS,
            grant_types: &grant_types,
            id_token_algorithms: &algorithms,
        };
        read(offered)
            .map_err(|error| OidcError::bad(error.code(), crate::describable(&error.to_string())))
    }

    /// Stores a new client.
    pub async fn add(
        &self,
        metadata: ClientMetadata,
        registrar: Registrar,
        caller: &Caller,
        now: Timestamp,
    ) -> Result<ClientView, OidcError> {
        let id = random_token().map_err(no_random)?.to_string();
        let secret = if metadata.token_endpoint_auth_method.has_secret() {
            Some(new_secret()?)
        } else {
            None
        };
        let secrets = secret.as_ref().map(|secret| stored(secret, None, now));
        let by_itself = registrar == Registrar::Client;
        let registration_token = by_itself.then(new_secret).transpose()?;
        let client = Client {
            id,
            origin: match registrar {
                Registrar::Admin => ClientOrigin::Admin,
                Registrar::Client => ClientOrigin::Registered,
            },
            owner: caller.owner().filter(|_| by_itself),
            secrets: secrets.into_iter().collect(),
            registration_token: registration_token.as_ref().map(|token| Digest::of(token)),
            metadata: metadata.to_stored().map_err(written)?,
            created_at: now,
            updated_at: now,
            expires_at: by_itself.then(|| after(now, UNUSED)),
            version: 0,
        };
        let limits = by_itself.then_some(LIMITS);
        let added = self.store.add_client(&client, limits).await;
        match added.map_err(store_failed)? {
            AddedClient::Added => {}
            AddedClient::Exists => return Err(OidcError::server_error("failed to store client")),
            AddedClient::TooMany | AddedClient::TooManyOfOwner => {
                return Err(OidcError::new(
                    StatusCode::TOO_MANY_REQUESTS,
                    "invalid_request",
                    "there are more registered clients than may be",
                ));
            }
        }
        tracing::info!(target: "oidc", client_id = client.id, name = metadata.client_name, registered = by_itself, "a client was added");
        let told = Told {
            secret: secret.as_deref().map(String::as_str),
            registration_token: registration_token.as_deref().map(String::as_str),
        };
        Ok(self.view(&client, metadata, told))
    }

    /// The registration of the client that shows its token.
    pub async fn registration(
        &self,
        id: &str,
        token: Option<&str>,
        now: Timestamp,
    ) -> Result<ClientView, BearerError> {
        let (client, metadata) = self.managed(id, token, now).await?;
        let told = Told {
            secret: None,
            registration_token: token,
        };
        Ok(self.view(&client, metadata, told))
    }

    /// Replaces what the client said about itself; what it does not say again is gone. A client
    /// that needs a secret now, and has none, gets one.
    pub async fn replace_registration(
        &self,
        id: &str,
        token: Option<&str>,
        body: &[u8],
        now: Timestamp,
    ) -> Result<ClientView, BearerError> {
        for _ in 0..TRIES {
            let (client, before) = self.managed(id, token, now).await?;
            changeable(&client)?;
            let metadata = ClientMetadata {
                // Whoever was kept out by an administrator stays out.
                access: before.access,
                ..self.read_registration(body)?
            };
            check_replacement(body, &client, now)?;
            self.check_sector(&metadata).await?;
            let mut secrets = client.secrets.clone();
            let secret = fit_secrets(&mut secrets, &metadata, now)?;
            let changed = Client {
                secrets,
                metadata: metadata.to_stored().map_err(written)?,
                updated_at: now,
                ..client
            };
            let replaced = self.store.replace_client(&changed, now).await;
            if replaced.map_err(store_failed)? {
                let told = Told {
                    secret: secret.as_deref().map(String::as_str),
                    registration_token: token,
                };
                return Ok(self.view(&changed, metadata, told));
            }
            // It was changed or removed in the meantime.
        }
        Err(OidcError::unavailable().into())
    }

    /// Removes the client that shows its token, with all that it was given.
    pub async fn remove_registration(
        &self,
        id: &str,
        token: Option<&str>,
        now: Timestamp,
    ) -> Result<(), BearerError> {
        self.managed(id, token, now).await?;
        self.remove_client(id, now).await?;
        Ok(())
    }

    /// The client whose registration access token this is. A client that does not exist is refused
    /// in the same words.
    async fn managed(
        &self,
        id: &str,
        token: Option<&str>,
        now: Timestamp,
    ) -> Result<(Client, ClientMetadata), BearerError> {
        let shown = |client: &Client| {
            let known = client.registration_token;
            token.is_some_and(|token| known.is_some_and(|known| known.matches(token)))
        };
        let found = self.client(id, now).await?;
        found
            .filter(|(client, _)| shown(client))
            .ok_or(BearerError::Challenge {
                status: StatusCode::UNAUTHORIZED,
                code: "invalid_token",
                description: "this is not the registration access token of the client",
            })
    }

    fn view(&self, client: &Client, metadata: ClientMetadata, told: Told<'_>) -> ClientView {
        let by_itself = client.origin == ClientOrigin::Registered;
        let place = format!("{}/{}", discovery::REGISTER_PATH, client.id);
        ClientView {
            client_id: client.id.clone(),
            client_secret: told.secret.map(str::to_owned),
            client_secret_expires_at: (!client.secrets.is_empty()).then_some(0),
            redirect_uri: metadata.redirect_uris.first().cloned().unwrap_or_default(),
            metadata,
            dynamically_registered: by_itself,
            created_at: in_milliseconds(client.created_at).to_string(),
            client_id_issued_at: client.created_at.as_second(),
            registration_access_token: told.registration_token.map(str::to_owned),
            registration_client_uri: told
                .registration_token
                .map(|_| discovery::url_of(&self.settings.issuer, &place)),
        }
    }

    /// All clients, without secrets.
    pub async fn list_clients(&self, now: Timestamp) -> Result<Vec<ListedClient>, OidcError> {
        let clients = self.store.clients(None, LISTED, now).await;
        let listed = clients.map_err(store_failed)?.into_iter().map(|client| {
            let created = client.created_at.to_string();
            listed(client, created)
        });
        Ok(listed.collect())
    }

    /// One of them. tsidp tells no time here.
    pub async fn listed_client(
        &self,
        id: &str,
        now: Timestamp,
    ) -> Result<Option<ListedClient>, OidcError> {
        let client = self.store.client(id, now).await.map_err(store_failed)?;
        Ok(client.map(|client| listed(client, NO_TIME.to_owned())))
    }

    /// Removes a client with all that it was given; `false` if there is none.
    pub async fn remove_client(&self, id: &str, now: Timestamp) -> Result<bool, OidcError> {
        if let Some(client) = self.store.client(id, now).await.map_err(store_failed)? {
            changeable(&client)?;
        }
        let grants = GrantsOf::Client(id.to_owned());
        let revoked = self.store.revoke_grants(&grants).await;
        revoked.map_err(store_failed)?;
        self.store
            .remove_client(id, now)
            .await
            .map_err(store_failed)
    }
}

/// Whether anything but its file may change a client.
pub(super) fn changeable(client: &Client) -> Result<(), OidcError> {
    if client.origin != ClientOrigin::File {
        return Ok(());
    }
    let file = client.owner.as_deref().unwrap_or_default();
    let file = crate::describable(file);
    let words = format!("this client is changed by its file alone: {file}");
    Err(OidcError::new(
        StatusCode::FORBIDDEN,
        "access_denied",
        words,
    ))
}

/// What of a client's secrets an answer tells.
struct Told<'a> {
    secret: Option<&'a str>,
    registration_token: Option<&'a str>,
}

/// Whether this is a replacement for the registration of this client: it names the client, and
/// says nothing that is only for this server to say.
fn check_replacement(body: &[u8], client: &Client, now: Timestamp) -> Result<(), OidcError> {
    let value: Value = serde_json::from_slice(body)
        .map_err(|_| OidcError::invalid_request("invalid request body"))?;
    if value.get("client_id").and_then(Value::as_str) != Some(&client.id) {
        let words = "client_id must be that of the client";
        return Err(OidcError::invalid_request(words));
    }
    if let Some(name) = OURS.into_iter().find(|name| value.get(name).is_some()) {
        let words = format!("{name} is not for the client to say");
        return Err(OidcError::invalid_request(words));
    }
    let is_current = |given: &str| {
        let valid = |end: Option<Timestamp>| end.is_none_or(|end| end > now);
        let mut secrets = client.secrets.iter();
        secrets.any(|one| valid(one.expires_at) && one.digest.matches(given))
    };
    match value.get("client_secret") {
        None => Ok(()),
        Some(secret) if secret.as_str().is_some_and(is_current) => Ok(()),
        Some(_) => {
            let words = "client_secret is not that of the client, which cannot choose one";
            Err(OidcError::invalid_request(words))
        }
    }
}

/// As the store keeps it, so that a client is told the same time whenever it asks.
fn in_milliseconds(time: Timestamp) -> Timestamp {
    Timestamp::from_millisecond(time.as_millisecond()).unwrap_or(time)
}

fn listed(client: Client, created_at: String) -> ListedClient {
    let metadata = ClientMetadata::from_stored(&client.metadata).unwrap_or_default();
    ListedClient {
        client_id: client.id,
        client_name: metadata.client_name,
        redirect_uris: metadata.redirect_uris,
        created_at,
        redirect_uri: "",
        owner: client.origin.owner(),
    }
}

/// Makes the secrets of a client those that its metadata needs: none, or at least one. Gives the
/// one that was made for this.
pub(super) fn fit_secrets(
    secrets: &mut Vec<ClientSecret>,
    metadata: &ClientMetadata,
    now: Timestamp,
) -> Result<Option<Zeroizing<String>>, OidcError> {
    if !metadata.token_endpoint_auth_method.has_secret() {
        secrets.clear();
    } else if secrets.is_empty() {
        let made = new_secret()?;
        secrets.push(stored(&made, None, now));
        return Ok(Some(made));
    }
    Ok(None)
}

/// A secret as it is kept.
pub(super) fn stored(secret: &str, expires_at: Option<Timestamp>, now: Timestamp) -> ClientSecret {
    ClientSecret {
        digest: Digest::of(secret),
        created_at: now,
        expires_at,
    }
}

/// As tsidp's: 64 hexadecimal digits.
pub(super) fn new_secret() -> Result<Zeroizing<String>, OidcError> {
    let (one, other) = (
        random_token().map_err(no_random)?,
        random_token().map_err(no_random)?,
    );
    Ok(Zeroizing::new(format!("{}{}", *one, *other)))
}
