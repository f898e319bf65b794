//! What clients name for the server to fetch, and what is kept of it.

use std::sync::Arc;

use tailbone_http::client::ReachError;

use crate::{
    documents::{self, DocumentCache, DocumentHosts},
    fetch::{CacheBounds, FetchSettings, GuardedClient, KeyCache},
};

/// The client of foreign addresses with its caches.
#[derive(Debug)]
pub struct Foreign {
    pub client: Arc<GuardedClient>,
    /// What is at the `jwks_uri` of clients.
    pub keys: KeyCache,
    pub documents: DocumentCache,
    /// From where documents of clients come; `None`: from nowhere.
    pub document_hosts: Option<DocumentHosts>,
}

impl Foreign {
    pub fn new(
        settings: &FetchSettings,
        document_hosts: Option<DocumentHosts>,
    ) -> Result<Self, ReachError> {
        let client = Arc::new(GuardedClient::new(settings)?);
        Ok(Self {
            keys: KeyCache::new(client.clone(), CacheBounds::default()),
            documents: DocumentCache::new(client.clone(), documents::cache_bounds()),
            document_hosts,
            client,
        })
    }
}
