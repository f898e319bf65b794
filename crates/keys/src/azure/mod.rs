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

use std::{fmt, sync::Arc, time::Duration};

use azure_core::{
    credentials::TokenCredential,
    error::ErrorKind,
    http::{ClientOptions, ExponentialRetryOptions, RetryOptions, StatusCode, Transport},
};
use azure_identity::{
    ClientAssertionCredentialOptions, ClientSecretCredential, ClientSecretCredentialOptions,
    ManagedIdentityCredential, ManagedIdentityCredentialOptions, WorkloadIdentityCredential,
    WorkloadIdentityCredentialOptions,
};

use tailbone_values::Secret;

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
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum AzureIdentity {
    /// An application with its secret.
    Secret {
        tenant: String,
        client: String,
        secret: Secret,
    },
    /// What the environment offers: an application's secret (`AZURE_CLIENT_SECRET`), a federated
    /// token (`AZURE_FEDERATED_TOKEN_FILE`), or the machine's managed identity.
    #[default]
    Environment,
}

impl AzureIdentity {
    /// The credential. Asks nobody yet.
    pub(crate) fn credential(
        &self,
        client: &AzureClient,
    ) -> Result<Arc<dyn TokenCredential>, azure_core::Error> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let of_application = match self {
            Self::Secret {
                tenant,
                client,
                secret,
            } => Some((tenant.clone(), client.clone(), secret.clone())),
            Self::Environment => variable("AZURE_TENANT_ID")
                .zip(variable("AZURE_CLIENT_ID"))
                .zip(variable("AZURE_CLIENT_SECRET"))
                .map(|((tenant, client), secret)| (tenant, client, Secret::new(secret))),
        };
        if let Some((tenant, id, secret)) = of_application {
            let options = ClientSecretCredentialOptions {
                client_options: client.options(),
            };
            let secret = azure_core::credentials::Secret::new(secret.reveal().to_owned());
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

/// A vault, the name of what is used there, and who this server is to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VaultSettings {
    /// `https://NAME.vault.azure.net`
    pub vault: String,
    /// Of a key or of secrets.
    pub name: String,
    pub identity: AzureIdentity,
}

/// A vault that cannot even be asked: its address or the server's identity is none.
#[derive(Debug, thiserror::Error)]
#[error("{vault} cannot be asked: {source}")]
pub struct InvalidVault {
    vault: String,
    source: azure_core::Error,
}

/// What is used of a vault, and the client for it. Cheap to clone.
struct InVault<C> {
    client: Arc<C>,
    name: String,
    /// For people.
    place: String,
}

impl<C> InVault<C> {
    /// `build` makes the client of its kind; it asks nobody yet.
    fn new(
        settings: &VaultSettings,
        client: &AzureClient,
        place: String,
        build: impl FnOnce(
            &str,
            Arc<dyn TokenCredential>,
            ClientOptions,
        ) -> Result<C, azure_core::Error>,
    ) -> Result<Self, InvalidVault> {
        let built = settings
            .identity
            .credential(client)
            .and_then(|credential| build(&settings.vault, credential, client.options()));
        let client = built.map_err(|source| InvalidVault {
            vault: settings.vault.clone(),
            source,
        })?;
        Ok(Self {
            client: Arc::new(client),
            name: settings.name.clone(),
            place,
        })
    }

    fn error(&self, error: &azure_core::Error) -> SealError {
        seal_error(&self.place, error)
    }

    fn foreign(&self) -> SealError {
        SealError::Foreign {
            place: self.place.clone(),
        }
    }
}

impl<C> Clone for InVault<C> {
    fn clone(&self) -> Self {
        Self {
            client: self.client.clone(),
            name: self.name.clone(),
            place: self.place.clone(),
        }
    }
}

/// Microsoft's clients have no form for people.
impl<C> fmt::Debug for InVault<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("InVault").field(&self.place).finish()
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
