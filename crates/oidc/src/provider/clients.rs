//! Which client an id names: one of the store, or one that a document at its id describes.
//!
//! Invariants
//! - A client of the store comes before a document.
//! - Nobody on the internet makes the server fetch a document, unless they present what was given
//!   to its client.

use std::time::Instant;

use http::StatusCode;
use jiff::Timestamp;

use super::{Provider, store_failed};
use crate::{
    OidcError,
    client::{ClientMetadata, Offered},
    documents::{ClientUrl, NoDocument},
    fetch::{FetchError, FetchUrl, SectorError, check_sector},
    store::{Client, ClientOrigin},
    token::{AUTHORIZATION_CODE, REFRESH_TOKEN},
};

/// How the clients of documents may authenticate: a document has no secret.
const AUTH_METHODS: [&str; 2] = ["none", "private_key_jwt"];

/// What they may ask for: logins of people. Nobody vouches for a program that describes itself.
const GRANT_TYPES: [&str; 2] = [AUTHORIZATION_CODE, REFRESH_TOKEN];

/// Whether the document of a client may be fetched, or counts only while it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fetching {
    Allowed,
    Refused,
}

impl Fetching {
    pub(super) fn allowed_if(allowed: bool) -> Self {
        if allowed {
            Self::Allowed
        } else {
            Self::Refused
        }
    }
}

impl Provider {
    /// A client and what it says about itself. No document is fetched.
    pub(super) async fn client(
        &self,
        id: &str,
        now: Timestamp,
    ) -> Result<Option<(Client, ClientMetadata)>, OidcError> {
        self.client_by(id, Fetching::Refused, now).await
    }

    /// The same, perhaps with leave to fetch the client's document.
    pub(super) async fn client_by(
        &self,
        id: &str,
        fetching: Fetching,
        now: Timestamp,
    ) -> Result<Option<(Client, ClientMetadata)>, OidcError> {
        let Some(client) = self.store.client(id, now).await.map_err(store_failed)? else {
            return self.described_client(id, fetching, now).await;
        };
        let metadata = ClientMetadata::from_stored(&client.metadata).map_err(|error| {
            tracing::error!(target: "oidc", client_id = id, error = %error, "the entry of the client cannot be read");
            OidcError::unavailable()
        })?;
        Ok(Some((client, metadata)))
    }

    /// Whether the sector that a registration names knows its redirect URIs.
    pub(super) async fn check_sector(&self, metadata: &ClientMetadata) -> Result<(), OidcError> {
        let uri = metadata.sector_identifier_uri.as_deref();
        let Some(uri) = uri.filter(|uri| !uri.is_empty()) else {
            return Ok(());
        };
        let bad = |sentence: String| OidcError::bad("invalid_client_metadata", sentence);
        let url = FetchUrl::parse(uri);
        let url = url.map_err(|error| bad(format!("sector_identifier_uri: {error}")))?;
        match check_sector(&self.foreign.client, &url, &metadata.redirect_uris).await {
            Err(SectorError::Fetch(FetchError::Busy)) => Err(OidcError::unavailable()),
            checked => checked.map_err(|error| bad(error.to_string())),
        }
    }

    async fn described_client(
        &self,
        id: &str,
        fetching: Fetching,
        now: Timestamp,
    ) -> Result<Option<(Client, ClientMetadata)>, OidcError> {
        let Some(hosts) = &self.foreign.document_hosts else {
            return Ok(None);
        };
        if !ClientUrl::is_meant(id) {
            return Ok(None);
        }
        let bad = |sentence: String| OidcError::bad("invalid_client", sentence);
        let url = ClientUrl::parse(id).map_err(|error| bad(error.to_string()))?;
        if !hosts.permit(&url) {
            let sentence = "this server takes no clients from this host";
            return Err(bad(sentence.to_owned()));
        }
        let cache = &self.foreign.documents;
        let document = match fetching {
            Fetching::Refused => cache.known(url.address(), Instant::now()).await,
            Fetching::Allowed => {
                let fetched = cache.get(url.address(), |_| true, Instant::now()).await;
                Some(fetched.map_err(|error| no_document(id, &error))?)
            }
        };
        let Some(document) = document else {
            return Ok(None);
        };
        let algorithms: Vec<&str> = self.keys.algorithms().map(|one| one.as_str()).collect();
        let offered = Offered {
            auth_methods: &AUTH_METHODS,
            grant_types: &GRANT_TYPES,
            id_token_algorithms: &algorithms,
        };
        let metadata = ClientMetadata::from_document(&document.metadata, offered)
            .map_err(|error| bad(format!("the client's document: {error}")))?;
        let client = Client {
            id: id.to_owned(),
            // It is asked about as one that registered itself, and has no end of its own.
            origin: ClientOrigin::Registered,
            owner: None,
            secrets: Vec::new(),
            registration_token: None,
            metadata: String::new(),
            created_at: now,
            updated_at: now,
            expires_at: None,
            version: 0,
        };
        Ok(Some((client, metadata)))
    }
}

fn no_document(id: &str, error: &NoDocument) -> OidcError {
    tracing::info!(target: "oidc", client_id = id, error = %error, "the document of a client cannot be had");
    let sentence = format!("the client's document cannot be had: {error}");
    match error {
        NoDocument::Fetch(error) if error.is_transient() => {
            let status = StatusCode::SERVICE_UNAVAILABLE;
            OidcError::new(status, "temporarily_unavailable", sentence)
        }
        _ => OidcError::bad("invalid_client", sentence),
    }
}
