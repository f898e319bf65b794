//! The published keys, as clients read them.

use std::sync::Arc;

use ::http::HeaderMap;
use arc_swap::ArcSwapOption;
use aws_lc_rs::digest::{SHA256, digest};
use axum::response::Response;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use serde_json::{Value, json};
use tailbone_oidc::OidcError;

use super::{Oidc, answers};
use crate::{
    http::public_document,
    jwks::{Etag, Versioned},
};

/// The document, made once for each version of the keys.
#[derive(Debug, Default)]
pub struct ServedKeys(ArcSwapOption<Served>);

#[derive(Debug)]
struct Served {
    /// Of the version that it was made of.
    version: Etag,
    etag: String,
    bytes: Bytes,
}

impl ServedKeys {
    pub(super) async fn answer(&self, oidc: &Oidc, request: &HeaderMap) -> Response {
        let keys = oidc.provider.keys.loaded().await;
        let Some(published) = keys.document() else {
            let error = OidcError::server_error("internal server error");
            return answers::error(oidc.errors, request, &error);
        };
        let served = self.of(&published);
        public_document::answer(
            request,
            "application/json",
            &served.etag,
            oidc.cache_time,
            served.bytes.clone(),
        )
    }

    fn of(&self, published: &Versioned) -> Arc<Served> {
        let known = self.0.load_full();
        if let Some(known) = known.filter(|known| known.version == published.etag) {
            return known;
        }
        let served = Arc::new(Served::of(published));
        self.0.store(Some(served.clone()));
        served
    }
}

impl Served {
    fn of(published: &Versioned) -> Self {
        // Without `use`, some clients take a key for one that encrypts.
        let keys: Vec<Value> = published
            .document
            .keys()
            .iter()
            .cloned()
            .map(|mut key| {
                if let Some(members) = key.as_object_mut() {
                    members.entry("use").or_insert_with(|| "sig".into());
                }
                key
            })
            .collect();
        let bytes = serde_json::to_vec_pretty(&json!({ "keys": keys })).unwrap_or_default();
        Self {
            version: published.etag.clone(),
            etag: URL_SAFE_NO_PAD.encode(digest(&SHA256, &bytes)),
            bytes: bytes.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jwks::Document;

    fn version(etag: &str, kid: &str) -> Versioned {
        let document = json!({"keys": [{"kty": "EC", "kid": kid}]}).to_string();
        Versioned {
            document: Document::parse(document.as_bytes()).unwrap(),
            etag: Etag(etag.into()),
        }
    }

    #[test]
    fn the_document_is_made_once_for_each_version() {
        let served = ServedKeys::default();
        let first = served.of(&version("1", "a"));
        assert!(Arc::ptr_eq(&first, &served.of(&version("1", "a"))));
        let second = served.of(&version("2", "b"));
        assert_ne!(first.etag, second.etag);
        let text = String::from_utf8(second.bytes.to_vec()).unwrap();
        assert!(
            text.contains("\"use\": \"sig\"") && text.contains("\"b\""),
            "{text}"
        );
    }
}
