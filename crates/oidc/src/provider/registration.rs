//! Clients that register themselves (RFC 7591), and tsidp's `/clients/`.

use http::StatusCode;
use jiff::Timestamp;
use serde::Serialize;
use zeroize::Zeroizing;

use super::{Caller, Provider, after, no_random, store_failed, written};
use crate::{
    OidcError,
    client::{ClientMetadata, Offered},
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
}

/// Go's zero time, which clients of tsidp's pages carry.
const NO_TIME: &str = "0001-01-01T00:00:00Z";

impl Provider {
    /// Reads a registration, stores the client and tells its secret once.
    pub async fn register(
        &self,
        body: &[u8],
        caller: &Caller,
        now: Timestamp,
    ) -> Result<ClientView, OidcError> {
        let algorithms: Vec<&str> = self.keys.algorithms().map(|one| one.as_str()).collect();
        let mut grant_types = self.settings.offers.grant_types();
        grant_types.push(REFRESH_TOKEN);
        let offered = Offered {
            auth_methods: &discovery::AUTH_METHODS,
            grant_types: &grant_types,
            id_token_algorithms: &algorithms,
        };
        let metadata = ClientMetadata::register(body, offered).map_err(|error| {
            OidcError::bad(error.code(), crate::describable(&error.to_string()))
        })?;
        self.add(metadata, Registrar::Client, caller, now).await
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
        let secrets = secret.as_ref().map(|secret| ClientSecret {
            digest: Digest::of(secret),
            created_at: now,
            expires_at: None,
        });
        let by_itself = registrar == Registrar::Client;
        let client = Client {
            id,
            origin: match registrar {
                Registrar::Admin => ClientOrigin::Admin,
                Registrar::Client => ClientOrigin::Registered,
            },
            owner: caller.owner().filter(|_| by_itself),
            secrets: secrets.into_iter().collect(),
            registration_token: None,
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
        Ok(ClientView {
            client_secret_expires_at: secret.is_some().then_some(0),
            client_secret: secret.map(|secret| secret.to_string()),
            redirect_uri: metadata.redirect_uris.first().cloned().unwrap_or_default(),
            metadata,
            dynamically_registered: by_itself,
            created_at: now.to_string(),
            client_id_issued_at: now.as_second(),
            client_id: client.id,
        })
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
        let grants = GrantsOf::Client(id.to_owned());
        let revoked = self.store.revoke_grants(&grants).await;
        revoked.map_err(store_failed)?;
        self.store
            .remove_client(id, now)
            .await
            .map_err(store_failed)
    }
}

fn listed(client: Client, created_at: String) -> ListedClient {
    let metadata = ClientMetadata::from_stored(&client.metadata).unwrap_or_default();
    ListedClient {
        client_id: client.id,
        client_name: metadata.client_name,
        redirect_uris: metadata.redirect_uris,
        created_at,
        redirect_uri: "",
    }
}

/// As tsidp's: 64 hexadecimal digits.
fn new_secret() -> Result<Zeroizing<String>, OidcError> {
    let (one, other) = (
        random_token().map_err(no_random)?,
        random_token().map_err(no_random)?,
    );
    Ok(Zeroizing::new(format!("{}{}", *one, *other)))
}
