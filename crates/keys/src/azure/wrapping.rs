//! A vault key that wraps: envelopes of ours, and tsiam's file.

use std::path::PathBuf;

use aws_lc_rs::aead::{AES_256_GCM, Aad, Nonce, RandomizedNonceKey};
use azure_security_keyvault_keys::{
    KeyClient, KeyClientOptions, ResourceId,
    models::{EncryptionAlgorithm, KeyOperationParameters},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use futures_util::{FutureExt as _, TryStreamExt as _, future::BoxFuture};
use serde::{Deserialize, Serialize};
use tailbone_values::Object;
use zeroize::Zeroizing;

use super::{AzureClient, InVault, InvalidVault, VaultSettings, seal_error};
use crate::{
    KeyId,
    disk::{self, DiskError},
    sealing::{SealError, Sealing},
    tsiam::{Found, KeySource, SourceError},
};

const VERSION: u32 = 1;
/// Length in bytes of a content key.
const CONTENT_KEY: usize = 32;
/// Size limit in bytes of tsiam's file: what a vault key of 4096 bits wraps to is 512.
const MAX_WRAPPED: u64 = 4096;

/// A key of a vault that wraps others.
#[derive(Debug, Clone)]
pub struct WrappingKey(InVault<KeyClient>);

/// What the directory holds in place of a private half.
#[derive(Serialize, Deserialize)]
struct Envelope {
    version: u32,
    /// The vault's key, without its version.
    key: String,
    key_version: String,
    /// The content key, wrapped by RSA-OAEP-256.
    wrapped: String,
    nonce: String,
    ciphertext: String,
}

impl Envelope {
    /// What is authenticated besides the ciphertext: a part of one envelope fits into no other.
    fn additional_data(&self) -> String {
        format!("{}\n{}\n{}", self.version, self.key, self.key_version)
    }
}

impl WrappingKey {
    /// Asks nobody yet.
    pub fn new(settings: &VaultSettings, client: &AzureClient) -> Result<Self, InvalidVault> {
        let VaultSettings { vault, name, .. } = settings;
        let place = format!("{}/keys/{name}", vault.trim_end_matches('/'));
        let key = InVault::new(
            settings,
            client,
            place,
            |vault, credential, client_options| {
                let options = KeyClientOptions {
                    client_options,
                    ..KeyClientOptions::default()
                };
                KeyClient::new(vault, credential, Some(options))
            },
        );
        key.map(Self)
    }

    fn lost(&self, detail: &str) -> SealError {
        SealError::Lost {
            place: self.0.place.clone(),
            detail: detail.to_owned(),
        }
    }

    /// The wrapped key, and the version of the vault's key that wrapped it: the latest.
    async fn wrap(&self, content_key: &[u8]) -> Result<(Vec<u8>, String), SealError> {
        let parameters = parameters(content_key.to_vec());
        let request = parameters
            .try_into()
            .map_err(|error| self.0.error(&error))?;
        let wrapped = async {
            let answer = self.0.client.wrap_key(&self.0.name, request, None).await?;
            answer.into_model()
        };
        let result = wrapped.await.map_err(|error| self.0.error(&error))?;
        let version = result
            .kid
            .and_then(|kid| kid.parse::<ResourceId>().ok())
            .and_then(|id| id.version);
        match (result.result, version) {
            (Some(wrapped), Some(version)) => Ok((wrapped, version)),
            _ => Err(SealError::Away {
                place: self.0.place.clone(),
                detail: "its answer names no key version".to_owned(),
            }),
        }
    }

    /// An empty version means the latest.
    async fn unwrap(
        &self,
        version: &str,
        wrapped: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, azure_core::Error> {
        let request = parameters(wrapped.to_vec()).try_into()?;
        let answer = self
            .0
            .client
            .unwrap_key(&self.0.name, version, request, None)
            .await?;
        let result = answer.into_model()?;
        Ok(Zeroizing::new(result.result.unwrap_or_default()))
    }

    /// All versions of the vault's key, the newest first.
    async fn versions(&self) -> Result<Vec<String>, azure_core::Error> {
        let mut pager = self
            .0
            .client
            .list_key_properties_versions(&self.0.name, None)?;
        let mut versions = Vec::new();
        while let Some(key) = pager.try_next().await? {
            let created = key.attributes.and_then(|attributes| attributes.created);
            let id = key.kid.and_then(|kid| kid.parse::<ResourceId>().ok());
            if let Some(version) = id.and_then(|id| id.version) {
                versions.push((created, version));
            }
        }
        versions.sort();
        Ok(versions.into_iter().rev().map(|(_, name)| name).collect())
    }
}

fn parameters(value: Vec<u8>) -> KeyOperationParameters {
    KeyOperationParameters {
        algorithm: Some(EncryptionAlgorithm::RsaOaep256),
        value: Some(value),
        ..KeyOperationParameters::default()
    }
}

impl Sealing for WrappingKey {
    fn kind(&self) -> &'static str {
        "azure-wrapping"
    }

    fn place(&self) -> &str {
        &self.0.place
    }

    fn seal<'a>(
        &'a self,
        _: &'a KeyId,
        key: &'a [u8],
    ) -> BoxFuture<'a, Result<Vec<u8>, SealError>> {
        async move {
            let failed = |_| SealError::Away {
                place: self.0.place.clone(),
                detail: "the crypto library refused".to_owned(),
            };
            let mut content_key = Zeroizing::new([0u8; CONTENT_KEY]);
            aws_lc_rs::rand::fill(&mut *content_key).map_err(failed)?;
            let (wrapped, key_version) = self.wrap(&*content_key).await?;
            let mut envelope = Envelope {
                version: VERSION,
                key: self.0.place.clone(),
                key_version,
                wrapped: URL_SAFE_NO_PAD.encode(wrapped),
                nonce: String::new(),
                ciphertext: String::new(),
            };
            // Encrypted in place, so that no copy of the private half is left.
            let mut text = Zeroizing::new(Vec::with_capacity(key.len() + AES_256_GCM.tag_len()));
            text.extend_from_slice(key);
            let aes = RandomizedNonceKey::new(&AES_256_GCM, &*content_key).map_err(failed)?;
            let aad = Aad::from(envelope.additional_data());
            let nonce = aes
                .seal_in_place_append_tag(aad, &mut *text)
                .map_err(failed)?;
            envelope.nonce = URL_SAFE_NO_PAD.encode(nonce.as_ref());
            envelope.ciphertext = URL_SAFE_NO_PAD.encode(&*text);
            // Plain text, so serialising cannot fail.
            let mut json = serde_json::to_vec_pretty(&envelope).unwrap_or_default();
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
            let Ok(Object(envelope)) = serde_json::from_slice::<Object<Envelope>>(sealed) else {
                return Err(self.0.foreign());
            };
            if envelope.version != VERSION || envelope.key != self.0.place {
                return Err(self.0.foreign());
            }
            let bytes = |text: &str| URL_SAFE_NO_PAD.decode(text).map_err(|_| self.0.foreign());
            let wrapped = bytes(&envelope.wrapped)?;
            let nonce = bytes(&envelope.nonce)?;
            let mut text = Zeroizing::new(bytes(&envelope.ciphertext)?);
            let content_key = self
                .unwrap(&envelope.key_version, &wrapped)
                .await
                .map_err(|error| self.0.error(&error))?;
            let damaged = || self.lost("the envelope is damaged");
            let aes = RandomizedNonceKey::new(&AES_256_GCM, &content_key).map_err(|_| damaged())?;
            let nonce = Nonce::try_assume_unique_for_key(&nonce).map_err(|_| damaged())?;
            let aad = Aad::from(envelope.additional_data());
            let length = aes
                .open_in_place(nonce, aad, &mut text)
                .map_err(|_| damaged())?
                .len();
            text.truncate(length);
            Ok(text)
        }
        .boxed()
    }

    fn discard<'a>(&'a self, _: &'a [u8]) -> BoxFuture<'a, Result<(), SealError>> {
        // The envelope is all there is.
        std::future::ready(Ok(())).boxed()
    }
}

/// tsiam's storage `AzureKeyVaultKeys`: a file with its key, wrapped as a whole by whichever
/// version was the latest at that time.
#[derive(Debug)]
pub struct WrappedKeyFile {
    path: PathBuf,
    place: String,
    key: WrappingKey,
}

impl WrappedKeyFile {
    pub fn new(path: impl Into<PathBuf>, key: WrappingKey) -> Self {
        let path = path.into();
        Self {
            place: format!("{} ({})", path.display(), key.0.place),
            path,
            key,
        }
    }

    async fn unwrap(&self, wrapped: &[u8]) -> Result<Zeroizing<Vec<u8>>, azure_core::Error> {
        let first = match self.key.unwrap("", wrapped).await {
            Ok(key) => return Ok(key),
            Err(error) if !seal_error("", &error).is_final() => return Err(error),
            Err(error) => error,
        };
        // The vault's key was rotated since then.
        for version in self.key.versions().await? {
            match self.key.unwrap(&version, wrapped).await {
                Ok(key) => return Ok(key),
                Err(error) if !seal_error("", &error).is_final() => return Err(error),
                Err(_) => {}
            }
        }
        Err(first)
    }
}

impl KeySource for WrappedKeyFile {
    fn place(&self) -> &str {
        &self.place
    }

    fn read(&self) -> BoxFuture<'_, Result<Option<Found>, SourceError>> {
        async move {
            let path = self.path.clone();
            let read = tokio::task::spawn_blocking(move || {
                let wrapped = disk::read(&path, MAX_WRAPPED)?;
                let modified = std::fs::metadata(&path).and_then(|file| file.modified());
                Ok::<_, DiskError>(wrapped.map(|wrapped| (wrapped, modified.ok())))
            });
            let read = read.await.map_err(|error| SourceError::Unavailable {
                place: self.place.clone(),
                detail: error.to_string(),
            })?;
            let Some((wrapped, modified)) = read? else {
                return Ok(None);
            };
            let json = self
                .unwrap(&wrapped)
                .await
                .map_err(|error| SourceError::Vault {
                    place: self.place.clone(),
                    error: seal_error("the vault", &error),
                })?;
            Ok(Some(Found {
                json,
                created: modified.and_then(|time| time.try_into().ok()),
            }))
        }
        .boxed()
    }
}
