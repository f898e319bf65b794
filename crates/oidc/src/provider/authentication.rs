//! Whether a client is who it says it is: by a secret, by an assertion that it signed, or by a
//! workload token of this server.
//!
//! Invariants
//! - A client that signs assertions has no other way in, and no other client can use one.
//! - The answer says that a client is not who it says, the log says why.

use std::{sync::Arc, time::Instant};

use jiff::Timestamp;
use tailbone_keys::jwks;

use super::{Provider, clients::Fetching, store_failed};
use crate::{
    OidcError,
    assertion::{AssertedBy, AssertionError, ClientAssertion, Expected, TrustedSubject},
    client::{AuthMethod, ClientMetadata},
    client_keys::{ClientKeys, SignatureProblem},
    discovery::{
        DEVICE_AUTHORIZATION_PATH, INTROSPECT_PATH, PAR_PATH, REVOKE_PATH, TOKEN_PATH, url_of,
    },
    token::{Credentials, Presented, prove},
};

/// Where clients authenticate. An assertion may be for each of them, or for the issuer.
const ENDPOINTS: [&str; 5] = [
    TOKEN_PATH,
    INTROSPECT_PATH,
    REVOKE_PATH,
    PAR_PATH,
    DEVICE_AUTHORIZATION_PATH,
];

/// The issuer of workload tokens in this process.
#[derive(Debug, Clone)]
pub struct WorkloadIssuer {
    pub issuer: Arc<str>,
    pub keys: jwks::KeySet,
}

impl Provider {
    /// The client that a request proves to be.
    pub(super) async fn proven(
        &self,
        presented: &Presented,
        now: Timestamp,
    ) -> Result<Option<ClientMetadata>, OidcError> {
        self.proven_by(presented, Fetching::Refused, now).await
    }

    /// The same, with leave to fetch the client's document.
    pub(super) async fn proven_by(
        &self,
        presented: &Presented,
        fetching: Fetching,
        now: Timestamp,
    ) -> Result<Option<ClientMetadata>, OidcError> {
        let client_id = presented.client_id.as_str();
        let (client, metadata) = match self.client_by(client_id, fetching, now).await {
            Ok(Some(found)) => found,
            Ok(None) => return Ok(None),
            Err(error) if error.status.is_client_error() => {
                tracing::warn!(target: "oidc", client_id, error = %error, "a client is not usable");
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let is_secret = |given: &str| {
            let valid = |end: Option<Timestamp>| end.is_none_or(|end| end > now);
            let mut secrets = client.secrets.iter();
            secrets.any(|one| valid(one.expires_at) && one.digest.matches(given))
        };
        let proven = match &presented.credentials {
            Credentials::Assertion(assertion) => {
                match self.check_assertion(assertion, &metadata, now).await {
                    Ok(()) => true,
                    Err(AssertionError::Store(error)) => return Err(store_failed(error)),
                    Err(error) if error.is_our_trouble() => {
                        tracing::error!(target: "oidc", client_id, error = %error, "an assertion cannot be checked");
                        return Err(OidcError::unavailable());
                    }
                    Err(error) => {
                        tracing::warn!(target: "oidc", client_id, reason = error.code(), error = %error, "an assertion of a client does not count");
                        return Ok(None);
                    }
                }
            }
            Credentials::None | Credentials::Secret(_) => {
                prove(presented, &metadata, is_secret).is_ok()
            }
        };
        if !proven {
            tracing::warn!(target: "oidc", client_id, "a client did not prove who it is");
        }
        Ok(proven.then_some(metadata))
    }

    async fn check_assertion(
        &self,
        assertion: &ClientAssertion,
        client: &ClientMetadata,
        now: Timestamp,
    ) -> Result<(), AssertionError> {
        if client.token_endpoint_auth_method != AuthMethod::PrivateKeyJwt {
            return Err(AssertionError::Method);
        }
        let issuer = self.settings.issuer.as_str();
        let endpoints = ENDPOINTS.map(|path| url_of(issuer, path));
        let mut audiences: Vec<&str> = endpoints.iter().map(String::as_str).collect();
        audiences.push(issuer);
        let algorithm = client.token_endpoint_auth_signing_alg.as_deref();
        let algorithm = algorithm.map(|name| {
            let unknown = |_| AssertionError::Algorithm(name.to_owned());
            name.parse().map_err(unknown)
        });
        let expected = Expected {
            audiences: &audiences,
            algorithm: algorithm.transpose()?,
            at: now,
        };
        match assertion.asserted_by() {
            AssertedBy::Client => {
                let keys = ClientKeys::of(client.jwks.as_ref(), client.jwks_uri.as_deref())?;
                let (cache, store) = (&self.foreign.keys, &*self.store);
                assertion
                    .verify(&keys, cache, store, &expected, Instant::now())
                    .await
            }
            AssertedBy::Issuer => {
                self.check_workload_token(assertion, client, &expected)
                    .await
            }
        }
    }

    async fn check_workload_token(
        &self,
        assertion: &ClientAssertion,
        client: &ClientMetadata,
        expected: &Expected<'_>,
    ) -> Result<(), AssertionError> {
        let workload = self.workload.as_ref();
        let workload = workload.ok_or(AssertionError::UnknownSubject)?;
        let subjects = client.workload_subjects.iter();
        let trusted: Vec<TrustedSubject> = subjects
            .map(|subject| TrustedSubject {
                issuer: workload.issuer.to_string(),
                subject: subject.clone(),
            })
            .collect();
        let published = workload.keys.loaded().await.document();
        let published = published.ok_or(SignatureProblem::NoKeys)?;
        let keys = jwks::fetch::KeySet::parse(&published.document.to_bytes());
        let keys = keys.map_err(|_| SignatureProblem::NoKeys)?;
        assertion.verify_workload_token(&keys, &trusted, expected)
    }
}
