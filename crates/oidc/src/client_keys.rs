//! The keys with which a client signs: in its metadata (`jwks`), or at an address (`jwks_uri`).
//!
//! Invariants
//! - A client has its keys in one of the two places.
//! - An unknown key of a `jwks_uri` causes a fetch, within the limits of the cache; those in the
//!   metadata change with the metadata alone.
//! - A key without an id counts for every token of its client.

use std::{sync::Arc, time::Instant};

use serde_json::Value;
use tailbone_keys::jwks::{
    fetch::{KeySet, SetError},
    verify::{ParsedToken, SignatureCheck},
};

use crate::fetch::{BadUrl, FetchUrl, KeyCache, NotFetched};

/// Where the keys of a client are.
#[derive(Debug, Clone)]
pub enum ClientKeys {
    At(FetchUrl),
    Inline(Arc<KeySet>),
    /// The client has none, and can sign nothing.
    None,
}

/// Why the metadata of a client do not say where its keys are.
#[derive(Debug, thiserror::Error)]
pub enum BadClientKeys {
    #[error("jwks and jwks_uri are given, and only one of them may be")]
    Both,
    #[error("jwks is not usable: {0}")]
    Set(#[from] SetError),
    #[error("jwks_uri is not usable: {0}")]
    Url(#[from] BadUrl),
}

/// Why a signature does not count.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SignatureProblem {
    #[error("the signature is not that of a key of the client")]
    Invalid,
    #[error("the client has no keys")]
    NoKeys,
    #[error("no key of the client fits the token")]
    NoMatchingKey,
    #[error("the keys of the client cannot be had: {0}")]
    NotFetched(NotFetched<SetError>),
}

impl ClientKeys {
    pub fn of(jwks: Option<&Value>, jwks_uri: Option<&str>) -> Result<Self, BadClientKeys> {
        match (jwks, jwks_uri) {
            (Some(_), Some(_)) => Err(BadClientKeys::Both),
            (Some(jwks), None) => {
                let set = KeySet::parse(jwks.to_string().as_bytes())?;
                Ok(Self::Inline(Arc::new(set)))
            }
            (None, Some(url)) => Ok(Self::At(FetchUrl::parse(url)?)),
            (None, None) => Ok(Self::None),
        }
    }

    /// Checks the signature of a token that the client made. `now` is for the cache.
    pub async fn verify(
        &self,
        token: &ParsedToken,
        cache: &KeyCache,
        now: Instant,
    ) -> Result<(), SignatureProblem> {
        let set = match self {
            Self::None => return Err(SignatureProblem::NoKeys),
            Self::Inline(set) => set.clone(),
            Self::At(url) => {
                let enough = |set: &KeySet| {
                    let has_named_key = token.kid().is_some_and(|kid| set.contains(kid));
                    has_named_key || token.signature_by_owner(set) == SignatureCheck::Valid
                };
                let set = cache.get(url, enough, now).await;
                set.map_err(SignatureProblem::NotFetched)?
            }
        };
        match token.signature_by_owner(&set) {
            SignatureCheck::Valid => Ok(()),
            SignatureCheck::NoMatchingKey => Err(SignatureProblem::NoMatchingKey),
            SignatureCheck::Invalid | SignatureCheck::NoKeys => Err(SignatureProblem::Invalid),
        }
    }
}
