//! The checks of the OpenID provider: its database, and what applications read at its name.

use serde_json::Value;
use tailbone_oidc::store::{Postgres, Sqlite};

use super::{Answer, Finding, count, fail, fetched, keys_of, ok, skip, warn};
use crate::{
    config::{OidcSettings, OidcStore},
    oidc::{
        self,
        state::{DATABASE, postgres_settings},
    },
};

/// Whether the database can be used. Nothing is made and nothing is changed.
pub(super) async fn store(settings: &OidcSettings) -> Finding {
    match &settings.store {
        OidcStore::Sqlite => {
            let path = settings.dir.join(DATABASE);
            if !path.exists() {
                let shown = path.display();
                return ok(format!("{shown} does not exist yet; server start makes it"));
            }
            match Sqlite::open_to_read(&path) {
                Ok(_) => ok(format!("{} can be read", path.display())),
                Err(error) => fail(error.to_string()),
            }
        }
        OidcStore::Postgres(address) => {
            let asked = match Postgres::new(&postgres_settings(address)) {
                Ok(postgres) => postgres.fits().await.map(|()| postgres),
                Err(error) => Err(error),
            };
            match asked {
                Ok(postgres) => ok(format!("{} answers", postgres.name())),
                Err(error) => fail(error.to_string()).hint(
                    "See whether it runs, and oidc.store, oidc.storePassword and oidc.storeCaFile",
                ),
            }
        }
    }
}

/// Whether applications find the provider at its name. This machine need not be on the tailnet.
pub(super) async fn discovery(settings: &OidcSettings, status: &Answer) -> Finding {
    let issuer = match (&settings.issuer, status) {
        (Some(issuer), _) => issuer.clone(),
        (None, Ok(status)) if status.node_name.contains('.') => {
            let node = status.node_name.trim_end_matches('.');
            oidc::issuer_of(&settings.listen).of_node(node)
        }
        _ => return skip("not checked without oidc.issuer or a running server"),
    };
    let base = issuer.trim_end_matches('/');
    let address = format!("{base}/.well-known/openid-configuration");
    let bytes = match fetched(&address).await {
        Ok(bytes) => bytes,
        Err(words) => {
            return warn(words).hint(
                "Applications on machines like this one do not find the provider; those outside \
                 of the tailnet need a funnel listener in oidc.listen",
            );
        }
    };
    let document: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    if document["issuer"] != issuer.as_str() {
        return fail(format!("{address} is not the document of {issuer}"))
            .hint("Another server answers at that name, or a proxy changes the document");
    }
    let jwks = document["jwks_uri"].as_str().unwrap_or_default();
    match fetched(jwks).await.map(|bytes| keys_of(&bytes)) {
        Ok(Some(keys)) if !keys.is_empty() => {
            ok(format!("{issuer} has {}", count(keys.len(), "key", "keys")))
        }
        Ok(_) => fail(format!("{jwks} has no key")),
        Err(words) => fail(words),
    }
}
