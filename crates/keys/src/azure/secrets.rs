//! Private halves as secrets of a vault, and the single secret of tsiam.

use azure_security_keyvault_secrets::{
    ResourceId, SecretClient, SecretClientOptions,
    models::{SecretClientGetSecretOptions, SetSecretParameters},
};
use futures_util::{FutureExt as _, future::BoxFuture};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tailbone_values::Object;
use zeroize::Zeroizing;

use super::{AzureClient, InVault, InvalidVault, VaultSettings, is_not_found, seal_error};
use crate::{
    KeyId,
    sealing::{SealError, Sealing},
    tsiam::{Found, KeySource, SourceError},
};

const VERSION: u32 = 1;

/// A secret for each key. The names begin with that of tsiam's single one.
#[derive(Debug, Clone)]
pub struct SecretPerKey(InVault<SecretClient>);

/// What the directory holds in place of a private half.
#[derive(Serialize, Deserialize)]
struct Reference {
    version: u32,
    vault: String,
    secret: String,
    secret_version: String,
}

impl SecretPerKey {
    /// Secrets whose names begin with that of the settings. Asks nobody yet.
    pub fn new(settings: &VaultSettings, client: &AzureClient) -> Result<Self, InvalidVault> {
        let place = settings.vault.trim_end_matches('/').to_owned();
        let secrets = InVault::new(
            settings,
            client,
            place,
            |vault, credential, client_options| {
                let options = SecretClientOptions {
                    client_options,
                    ..SecretClientOptions::default()
                };
                SecretClient::new(vault, credential, Some(options))
            },
        );
        secrets.map(Self)
    }

    fn reference(&self, sealed: &[u8]) -> Result<Reference, SealError> {
        match serde_json::from_slice(sealed) {
            Ok(Object(
                reference @ Reference {
                    version: VERSION, ..
                },
            )) if reference.vault == self.0.place => Ok(reference),
            _ => Err(self.0.foreign()),
        }
    }
}

impl Sealing for SecretPerKey {
    fn kind(&self) -> &'static str {
        "azure-secrets"
    }

    fn place(&self) -> &str {
        &self.0.place
    }

    fn seal<'a>(
        &'a self,
        name: &'a KeyId,
        key: &'a [u8],
    ) -> BoxFuture<'a, Result<Vec<u8>, SealError>> {
        async move {
            // A vault's names have letters, digits and dashes alone.
            let id = name.as_str().chars();
            let id: String = id
                .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
                .collect();
            let secret = format!("{}-{id}", self.0.name);
            let parameters = SetSecretParameters {
                value: Some(String::from_utf8_lossy(key).into_owned()),
                content_type: Some("application/jwk+json".to_owned()),
                ..SetSecretParameters::default()
            };
            let set = async {
                let request = parameters.try_into()?;
                let answer = self.0.client.set_secret(&secret, request, None).await?;
                answer.into_model()
            };
            let set = set.await.map_err(|error| self.0.error(&error))?;
            let id = set.id.and_then(|id| id.parse::<ResourceId>().ok());
            let reference = Reference {
                version: VERSION,
                vault: self.0.place.clone(),
                secret,
                secret_version: id.and_then(|id| id.version).unwrap_or_default(),
            };
            // Plain text, so serialising cannot fail.
            let mut json = serde_json::to_vec_pretty(&reference).unwrap_or_default();
            json.push(b'\n');
            Ok(json)
        }
        .boxed()
    }

    fn open<'a>(
        &'a self,
        sealed: &'a [u8],
    ) -> BoxFuture<'a, Result<Zeroizing<Vec<u8>>, SealError>> {
        async move {
            let reference = self.reference(sealed)?;
            let options = SecretClientGetSecretOptions {
                secret_version: Some(reference.secret_version),
                ..SecretClientGetSecretOptions::default()
            };
            let get = async {
                let answer = self.0.client.get_secret(&reference.secret, Some(options));
                answer.await?.into_model()
            };
            let secret = get.await.map_err(|error| self.0.error(&error))?;
            let value = secret.value.unwrap_or_default();
            Ok(Zeroizing::new(value.into_bytes()))
        }
        .boxed()
    }

    fn discard<'a>(&'a self, sealed: &'a [u8]) -> BoxFuture<'a, Result<(), SealError>> {
        async move {
            let reference = self.reference(sealed)?;
            match self.0.client.delete_secret(&reference.secret, None).await {
                Ok(_) => Ok(()),
                Err(error) if is_not_found(&error) => Ok(()),
                Err(error) => Err(self.0.error(&error)),
            }
        }
        .boxed()
    }
}

/// tsiam's storage `AzureKeyVaultSecrets`: its key is the value of this secret.
#[derive(Debug)]
pub struct SingleSecret {
    secrets: SecretPerKey,
    place: String,
}

impl SingleSecret {
    /// The secret whose name those of `secrets` begin with.
    pub fn new(secrets: SecretPerKey) -> Self {
        Self {
            place: format!("{}/secrets/{}", secrets.0.place, secrets.0.name),
            secrets,
        }
    }
}

impl KeySource for SingleSecret {
    fn place(&self) -> &str {
        &self.place
    }

    fn read(&self) -> BoxFuture<'_, Result<Option<Found>, SourceError>> {
        async move {
            let get = async {
                let answer = self.secrets.0.client.get_secret(&self.secrets.0.name, None);
                answer.await?.into_model()
            };
            let secret = match get.await {
                Ok(secret) => secret,
                Err(error) if is_not_found(&error) => return Ok(None),
                Err(error) => {
                    return Err(SourceError::Vault {
                        place: self.place.clone(),
                        error: seal_error("the vault", &error),
                    });
                }
            };
            let created = secret.attributes.and_then(|attributes| attributes.created);
            Ok(Some(Found {
                json: Zeroizing::new(secret.value.unwrap_or_default().into_bytes()),
                created: created
                    .and_then(|time| Timestamp::from_second(time.unix_timestamp()).ok()),
            }))
        }
        .boxed()
    }
}
