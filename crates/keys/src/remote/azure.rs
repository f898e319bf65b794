//! Keys that Azure Key Vault keeps and signs with.
//!
//! All keys of one algorithm are versions of one vault key: a rotation makes the next version, and
//! a signature names the version that it wants. [`crate::azure`] has the stores that hand keys out.

use std::{fmt, time::Duration};

use aws_lc_rs::digest::{self, digest};
use azure_core::error::ErrorKind;
use azure_core::http::{RetryOptions, StatusCode};
use azure_security_keyvault_keys::{
    KeyClient, KeyClientOptions, ResourceExt as _,
    models::{
        CreateKeyParameters, CurveName, JsonWebKey, KeyClientSignOptions, KeyOperation, KeyType,
        SignParameters, SignatureAlgorithm,
    },
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use futures_util::{FutureExt as _, future::BoxFuture};
use tailbone_values::printable;
use tokio::sync::OnceCell;

use super::{KeyLocation, KeyReference, KeyService, ServiceError, ServiceKind, Trouble, public};
use crate::{
    Algorithm, Curve, KeyId, KeySpec, PublicJwk, PublicParts,
    azure::{AzureClient, AzureIdentity},
};

/// The pause before a repeated call.
const PAUSE: Duration = Duration::from_millis(100);

/// Which vault, and which of its keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyVaultSettings {
    /// `https://NAME.vault.azure.net`
    pub vault: String,
    /// The name of the vault key. `{algorithm}` in it stands for `es256` and the like.
    pub key: String,
}

/// A vault, with the credentials that the environment offers.
pub struct KeyVault {
    settings: KeyVaultSettings,
    identity: AzureIdentity,
    http: AzureClient,
    /// Made for the first call, because it looks at the environment.
    client: OnceCell<KeyClient>,
}

impl fmt::Debug for KeyVault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("KeyVault").field(&self.settings).finish()
    }
}

impl KeyVault {
    /// Connects to nothing yet.
    pub fn new(settings: KeyVaultSettings) -> Self {
        Self::with_client(settings, AzureIdentity::Environment, AzureClient::default())
    }

    /// With an identity and a way of making requests of the caller's own.
    pub fn with_client(
        settings: KeyVaultSettings,
        identity: AzureIdentity,
        http: AzureClient,
    ) -> Self {
        Self {
            settings,
            identity,
            http,
            client: OnceCell::new(),
        }
    }

    async fn client(&self) -> Result<&KeyClient, ServiceError> {
        let build = async || {
            let credential = self.identity.credential(&self.http)?;
            let mut options = KeyClientOptions {
                client_options: self.http.options(),
                ..KeyClientOptions::default()
            };
            // The engine repeats calls.
            options.client_options.retry = RetryOptions::none();
            KeyClient::new(&self.settings.vault, credential, Some(options))
        };
        let client = self.client.get_or_try_init(build).await;
        client.map_err(|error| self.failure("connect", &error))
    }

    async fn make_key(&self, kid: KeyId, spec: KeySpec) -> Result<KeyReference, ServiceError> {
        let algorithm = spec.algorithm().as_str().to_ascii_lowercase();
        let name = self.settings.key.replace("{algorithm}", &algorithm);
        let mut wanted = CreateKeyParameters {
            key_ops: Some(vec![KeyOperation::Sign, KeyOperation::Verify]),
            ..CreateKeyParameters::default()
        };
        match spec {
            KeySpec::EdDsa => return Err(no_eddsa()),
            KeySpec::Rs256 { bits } => {
                wanted.kty = Some(KeyType::Rsa);
                wanted.key_size = i32::try_from(bits).ok();
            }
            KeySpec::Es256 | KeySpec::Es384 | KeySpec::Es512 => {
                wanted.kty = Some(KeyType::Ec);
                wanted.curve = Some(match spec {
                    KeySpec::Es384 => CurveName::P384,
                    KeySpec::Es512 => CurveName::P521,
                    _ => CurveName::P256,
                });
            }
        }
        let request = wanted
            .try_into()
            .map_err(|error| self.failure("create", &error))?;
        let made = async {
            let answer = self.client().await?.create_key(&name, request, None).await;
            let model = answer.and_then(azure_core::http::Response::into_model);
            model.map_err(|error| self.failure("create", &error))
        };
        let made = made.await?;
        let version = made.resource_id().ok().and_then(|id| id.version);
        let parts = made.key.as_ref().and_then(public_parts);
        let (Some(version), Some(parts)) = (version, parts) else {
            return Err(refused(format!(
                "{}: the new version of {name} is not described",
                self.settings.vault
            )));
        };
        Ok(KeyReference {
            location: KeyLocation {
                key: name,
                service: ServiceKind::Azure,
                version,
            },
            public: PublicJwk { kid, parts },
        })
    }

    async fn signature(&self, key: &KeyReference, message: &[u8]) -> Result<Vec<u8>, ServiceError> {
        let (algorithm, hash) = match key.public.algorithm() {
            Algorithm::EdDsa => return Err(no_eddsa()),
            Algorithm::Es256 => (SignatureAlgorithm::Es256, &digest::SHA256),
            Algorithm::Es384 => (SignatureAlgorithm::Es384, &digest::SHA384),
            Algorithm::Es512 => (SignatureAlgorithm::Es512, &digest::SHA512),
            Algorithm::Rs256 => (SignatureAlgorithm::Rs256, &digest::SHA256),
        };
        let parameters = SignParameters {
            algorithm: Some(algorithm),
            value: Some(digest(hash, message).as_ref().to_vec()),
        };
        let request = parameters
            .try_into()
            .map_err(|error| self.failure("sign", &error))?;
        let options = KeyClientSignOptions {
            key_version: Some(key.location.version.clone()),
            ..KeyClientSignOptions::default()
        };
        let client = self.client().await?;
        let answer = client.sign(&key.location.key, request, Some(options)).await;
        let model = answer.and_then(azure_core::http::Response::into_model);
        let signed = model.map_err(|error| self.failure("sign", &error))?;
        // R ‖ S for ECDSA, as in a JWS.
        signed
            .result
            .ok_or_else(|| refused("the answer holds no signature".to_owned()))
    }

    /// The messages of Microsoft's crates hold neither tokens nor keys.
    fn failure(&self, call: &str, error: &azure_core::Error) -> ServiceError {
        let words = printable(&error.to_string());
        let detail = format!("{} {call}: {words}", self.settings.vault);
        let away = |detail| ServiceError::new(Trouble::Away, detail);
        match error.kind() {
            ErrorKind::HttpResponse { status, .. } => match *status {
                // A disabled key is 403 as well.
                StatusCode::Forbidden if words.contains("disabled") => {
                    ServiceError::new(Trouble::Disabled, detail)
                }
                StatusCode::Unauthorized | StatusCode::Forbidden => {
                    ServiceError::new(Trouble::Forbidden, detail)
                }
                StatusCode::NotFound => ServiceError::new(Trouble::Disabled, detail),
                StatusCode::TooManyRequests => {
                    ServiceError::new(Trouble::Throttled, detail).retry_after(PAUSE)
                }
                status if u16::from(status) >= 500 => away(detail).retry_after(PAUSE),
                _ => refused(detail),
            },
            ErrorKind::Credential => ServiceError::new(Trouble::Forbidden, detail),
            _ => away(detail).retry_after(PAUSE),
        }
    }
}

impl KeyService for KeyVault {
    fn kind(&self) -> ServiceKind {
        ServiceKind::Azure
    }

    fn make(&self, kid: KeyId, spec: KeySpec) -> BoxFuture<'_, Result<KeyReference, ServiceError>> {
        self.make_key(kid, spec).boxed()
    }

    fn sign<'a>(
        &'a self,
        key: &'a KeyReference,
        message: &'a [u8],
    ) -> BoxFuture<'a, Result<Vec<u8>, ServiceError>> {
        self.signature(key, message).boxed()
    }
}

fn public_parts(key: &JsonWebKey) -> Option<PublicParts> {
    let curve = match key.crv {
        None => {
            let number = |bytes: &Vec<u8>| {
                let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
                Some(URL_SAFE_NO_PAD.encode(bytes.get(zeros..)?))
            };
            return Some(PublicParts::Rsa {
                e: number(key.e.as_ref()?)?,
                n: number(key.n.as_ref()?)?,
            });
        }
        Some(CurveName::P256) => Curve::P256,
        Some(CurveName::P384) => Curve::P384,
        Some(CurveName::P521) => Curve::P521,
        Some(_) => return None,
    };
    let point = [&[4][..], key.x.as_ref()?, key.y.as_ref()?].concat();
    public::from_point(curve, &point)
}

fn no_eddsa() -> ServiceError {
    refused("Key Vault has no EdDSA; choose another keys.algorithm".to_owned())
}

fn refused(detail: String) -> ServiceError {
    ServiceError::new(Trouble::Refused, detail)
}
