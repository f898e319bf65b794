//! Azure Key Vault as the place of private keys: tsiam's storages `AzureKeyVaultKeys` and
//! `AzureKeyVaultSecrets`.
//!
//! - [`WrappingKey`]: a vault key wraps a random content key, and that encrypts the private half
//!   (AES-256-GCM). The version of the vault key is recorded, so rotating it locks nobody out.
//! - [`SecretPerKey`]: each private half is a secret of its own.
//! - [`WrappedKeyFile`], [`SingleSecret`]: where tsiam keeps its one key, which is taken over.
//!
//! Microsoft's crates make the requests. They run no other program: of the default credentials
//! those that ask a command line are left out.

mod secrets;
mod wrapping;

use std::{sync::Arc, time::Duration};

pub use azure_core::credentials::TokenCredential;
use azure_core::{
    credentials::Secret,
    error::ErrorKind,
    http::{ClientOptions, ExponentialRetryOptions, RetryOptions, StatusCode, Transport},
};
use azure_identity::{
    ClientAssertionCredentialOptions, ClientSecretCredential, ClientSecretCredentialOptions,
    ManagedIdentityCredential, ManagedIdentityCredentialOptions, WorkloadIdentityCredential,
    WorkloadIdentityCredentialOptions,
};

use crate::sealing::SealError;

pub use secrets::{SecretPerKey, SingleSecret};
pub use wrapping::{WrappedKeyFile, WrappingKey};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);

/// After these, who asked is told: the server's start, or an operator.
const MAX_RETRIES: u32 = 2;

/// How requests reach Azure.
#[derive(Debug, Clone, Default)]
pub struct AzureClient {
    /// Instead of one with our limits.
    pub http: Option<reqwest::Client>,
}

impl AzureClient {
    pub(crate) fn options(&self) -> ClientOptions {
        let http = self.http.clone().or_else(|| {
            let limited = reqwest::Client::builder()
                .connect_timeout(CONNECT_TIMEOUT)
                .timeout(REQUEST_TIMEOUT);
            limited.build().ok()
        });
        let retry = ExponentialRetryOptions {
            max_retries: MAX_RETRIES,
            ..ExponentialRetryOptions::default()
        };
        ClientOptions {
            retry: RetryOptions::exponential(retry),
            transport: http.map(|http| Transport::new(Arc::new(http))),
            ..ClientOptions::default()
        }
    }
}

/// Who this server is to Azure.
pub enum AzureIdentity {
    /// An application with its secret.
    Secret {
        tenant: String,
        client: String,
        secret: String,
    },
    /// What the environment offers: an application's secret (`AZURE_CLIENT_SECRET`), a federated
    /// token (`AZURE_FEDERATED_TOKEN_FILE`), or the machine's managed identity.
    Environment,
}

impl std::fmt::Debug for AzureIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Secret { .. } => "Secret",
            Self::Environment => "Environment",
        })
    }
}

impl AzureIdentity {
    /// The credential. Asks nobody yet.
    pub fn credential(
        self,
        client: &AzureClient,
    ) -> Result<Arc<dyn TokenCredential>, azure_core::Error> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let of_application = match self {
            Self::Secret {
                tenant,
                client,
                secret,
            } => Some((tenant, client, secret)),
            Self::Environment => variable("AZURE_TENANT_ID")
                .zip(variable("AZURE_CLIENT_ID"))
                .zip(variable("AZURE_CLIENT_SECRET"))
                .map(|((tenant, client), secret)| (tenant, client, secret)),
        };
        if let Some((tenant, id, secret)) = of_application {
            let options = ClientSecretCredentialOptions {
                client_options: client.options(),
            };
            let secret = Secret::new(secret);
            return Ok(ClientSecretCredential::new(
                &tenant,
                id,
                secret,
                Some(options),
            )?);
        }
        if variable("AZURE_FEDERATED_TOKEN_FILE").is_some() {
            let options = WorkloadIdentityCredentialOptions {
                credential_options: ClientAssertionCredentialOptions {
                    client_options: client.options(),
                },
                ..WorkloadIdentityCredentialOptions::default()
            };
            return Ok(WorkloadIdentityCredential::new(Some(options))?);
        }
        let options = ManagedIdentityCredentialOptions {
            client_options: client.options(),
            ..ManagedIdentityCredentialOptions::default()
        };
        Ok(ManagedIdentityCredential::new(Some(options))?)
    }
}

/// What an error of Microsoft's crates means for a sealed key. Their messages hold neither tokens
/// nor keys, but their raw responses may, so only status and code are shown.
fn seal_error(place: &str, error: &azure_core::Error) -> SealError {
    let place = place.to_owned();
    match error.kind() {
        ErrorKind::HttpResponse {
            status, error_code, ..
        } => {
            let code = error_code.as_deref().unwrap_or("no code");
            let detail = format!("{} ({code})", u16::from(*status));
            match *status {
                StatusCode::Unauthorized | StatusCode::Forbidden => {
                    SealError::Denied { place, detail }
                }
                StatusCode::NotFound | StatusCode::BadRequest => SealError::Lost { place, detail },
                _ => SealError::Away { place, detail },
            }
        }
        ErrorKind::Credential => SealError::Denied {
            place,
            detail: "no access token could be had".to_owned(),
        },
        _ => SealError::Away {
            place,
            detail: error.to_string(),
        },
    }
}

fn is_not_found(error: &azure_core::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::HttpResponse {
            status: StatusCode::NotFound,
            ..
        }
    )
}
