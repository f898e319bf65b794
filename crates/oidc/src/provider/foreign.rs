//! What clients name for the server to fetch, and what is kept of it.

use std::sync::Arc;

use tailbone_http::client::ReachError;

use crate::fetch::{CacheBounds, FetchSettings, GuardedClient, KeyCache};

/// The client of foreign addresses with its caches.
#[derive(Debug)]
pub struct Foreign {
    pub client: Arc<GuardedClient>,
    /// What is at the `jwks_uri` of clients.
    pub keys: KeyCache,
}

impl Foreign {
    pub fn new(settings: &FetchSettings) -> Result<Self, ReachError> {
        let client = Arc::new(GuardedClient::new(settings)?);
        Ok(Self {
            keys: KeyCache::new(client.clone(), CacheBounds::default()),
            client,
        })
    }
}
