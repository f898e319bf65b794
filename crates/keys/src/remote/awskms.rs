//! AWS KMS.
//!
//! Asymmetric keys of KMS have no versions, so each key of ours is a KMS key of its own, with its
//! `kid` as the tag `tailbone-kid`. They are never deleted: KMS bills them until an operator
//! schedules their deletion.

use std::time::Duration;

use aws_config::{
    BehaviorVersion, SdkConfig, retry::RetryConfig,
    stalled_stream_protection::StalledStreamProtectionConfig, timeout::TimeoutConfig,
};
use aws_lc_rs::digest::{self, digest};
use aws_sdk_kms::{
    Client,
    config::Region,
    error::{ProvideErrorMetadata, SdkError},
    primitives::Blob,
    types::{KeyUsageType, MessageType, SigningAlgorithmSpec, Tag},
};
use futures_util::{FutureExt as _, future::BoxFuture};
use tailbone_telemetry::innermost_cause;
use tokio::sync::OnceCell;

use super::{KeyLocation, KeyReference, KeyService, ServiceError, ServiceKind, Trouble, public};
use crate::{Algorithm, Curve, KeyId, KeySpec, PublicJwk};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Longest message in bytes that KMS hashes itself.
const MAX_RAW: usize = 4096;

/// The pause before a repeated call.
const PAUSE: Duration = Duration::from_millis(100);

/// Which KMS.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AwsKmsSettings {
    /// The address of another service with the same interface.
    pub endpoint: Option<String>,
    /// `None`: found as every AWS program finds it.
    pub region: Option<String>,
}

/// KMS, with credentials found as every AWS program finds them.
#[derive(Debug)]
pub struct AwsKms {
    settings: AwsKmsSettings,
    /// Made for the first call, because finding region and credentials may take requests of its
    /// own.
    client: OnceCell<Client>,
}

impl AwsKms {
    /// Connects to nothing yet.
    pub fn new(settings: AwsKmsSettings) -> Self {
        Self {
            settings,
            client: OnceCell::new(),
        }
    }

    /// With a configuration made by the caller.
    pub fn with_config(shared: &SdkConfig, settings: AwsKmsSettings) -> Self {
        let client = client(shared, &settings);
        Self {
            settings,
            client: OnceCell::new_with(Some(client)),
        }
    }

    async fn client(&self) -> &Client {
        let load = async || {
            let shared = aws_config::load_defaults(BehaviorVersion::latest()).await;
            client(&shared, &self.settings)
        };
        self.client.get_or_init(load).await
    }

    async fn make_key(&self, kid: KeyId, spec: KeySpec) -> Result<KeyReference, ServiceError> {
        let client = self.client().await;
        let tag = Tag::builder()
            .tag_key("tailbone-kid")
            .tag_value(kid.as_str())
            .build()
            .map_err(|error| refused(error.to_string()))?;
        let made = client
            .create_key()
            .key_spec(kms_spec(spec)?)
            .key_usage(KeyUsageType::SignVerify)
            .description(format!("Signing key {kid} of tailbone"))
            .tags(tag)
            .send()
            .await
            .map_err(|error| failure("CreateKey", &error))?;
        let arn = made
            .key_metadata
            .and_then(|metadata| metadata.arn)
            .ok_or_else(|| refused("CreateKey names no key".into()))?;
        let public = client
            .get_public_key()
            .key_id(&arn)
            .send()
            .await
            .map_err(|error| failure("GetPublicKey", &error))?;
        let parts = public
            .public_key
            .and_then(|der| public::from_spki(der.as_ref()))
            .ok_or_else(|| refused(format!("{arn} has an unexpected public key")))?;
        Ok(KeyReference {
            location: KeyLocation {
                key: arn,
                service: ServiceKind::AwsKms,
                version: String::new(),
            },
            public: PublicJwk { kid, parts },
        })
    }

    async fn signature(&self, key: &KeyReference, message: &[u8]) -> Result<Vec<u8>, ServiceError> {
        let (algorithm, hash, curve) = match key.public.algorithm() {
            Algorithm::EdDsa => return Err(no_eddsa()),
            Algorithm::Es256 => (
                SigningAlgorithmSpec::EcdsaSha256,
                &digest::SHA256,
                Some(Curve::P256),
            ),
            Algorithm::Es384 => (
                SigningAlgorithmSpec::EcdsaSha384,
                &digest::SHA384,
                Some(Curve::P384),
            ),
            Algorithm::Es512 => (
                SigningAlgorithmSpec::EcdsaSha512,
                &digest::SHA512,
                Some(Curve::P521),
            ),
            Algorithm::Rs256 => (
                SigningAlgorithmSpec::RsassaPkcs1V15Sha256,
                &digest::SHA256,
                None,
            ),
        };
        let (kind, message) = if message.len() <= MAX_RAW {
            (MessageType::Raw, message.to_vec())
        } else {
            (MessageType::Digest, digest(hash, message).as_ref().to_vec())
        };
        let signed = self
            .client()
            .await
            .sign()
            .key_id(&key.location.key)
            .signing_algorithm(algorithm)
            .message_type(kind)
            .message(Blob::new(message))
            .send()
            .await
            .map_err(|error| failure("Sign", &error))?;
        let signature = signed.signature.map(Blob::into_inner).unwrap_or_default();
        match curve {
            None => Ok(signature),
            Some(curve) => public::fixed_signature(curve, &signature)
                .ok_or_else(|| refused("the signature is not one of ECDSA".into())),
        }
    }
}

impl KeyService for AwsKms {
    fn kind(&self) -> ServiceKind {
        ServiceKind::AwsKms
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

/// The engine repeats and limits calls, so the SDK does not.
fn client(shared: &SdkConfig, settings: &AwsKmsSettings) -> Client {
    let mut config = aws_sdk_kms::config::Builder::from(shared)
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
        .timeout_config(
            TimeoutConfig::builder()
                .connect_timeout(CONNECT_TIMEOUT)
                .build(),
        )
        .retry_config(RetryConfig::disabled());
    if let Some(endpoint) = &settings.endpoint {
        config = config.endpoint_url(endpoint);
        if shared.region().is_none() {
            // Every request is signed for a region. Services other than AWS accept any.
            config = config.region(Region::from_static("us-east-1"));
        }
    }
    if let Some(region) = &settings.region {
        config = config.region(Region::new(region.clone()));
    }
    Client::from_conf(config.build())
}

fn kms_spec(spec: KeySpec) -> Result<aws_sdk_kms::types::KeySpec, ServiceError> {
    use aws_sdk_kms::types::KeySpec as Kms;
    match spec {
        KeySpec::EdDsa => Err(no_eddsa()),
        KeySpec::Es256 => Ok(Kms::EccNistP256),
        KeySpec::Es384 => Ok(Kms::EccNistP384),
        KeySpec::Es512 => Ok(Kms::EccNistP521),
        KeySpec::Rs256 { bits: 2048 } => Ok(Kms::Rsa2048),
        KeySpec::Rs256 { bits: 3072 } => Ok(Kms::Rsa3072),
        KeySpec::Rs256 { bits: 4096 } => Ok(Kms::Rsa4096),
        KeySpec::Rs256 { bits } => Err(refused(format!("KMS makes no RSA keys of {bits} bits"))),
    }
}

fn no_eddsa() -> ServiceError {
    refused("EdDSA is not used with KMS; choose another keys.algorithm".into())
}

/// What an error of the SDK means.
fn failure<E>(
    operation: &str,
    error: &SdkError<E, aws_sdk_kms::config::http::HttpResponse>,
) -> ServiceError
where
    E: std::error::Error + ProvideErrorMetadata + 'static,
{
    let detail = |words: &str| format!("KMS {operation}: {}", tailbone_values::printable(words));
    let SdkError::ServiceError(answer) = error else {
        let detail = detail(&innermost_cause(error));
        let away = ServiceError::new(Trouble::Away, detail);
        return match error {
            // The service may close an idle connection at the moment of its use.
            SdkError::DispatchFailure(failure) if failure.is_io() => away.retry_after(PAUSE),
            SdkError::ResponseError(_) => away.retry_after(PAUSE),
            _ => away,
        };
    };
    let code = answer.err().code().unwrap_or_default();
    let words = answer.err().message().unwrap_or_default();
    let detail = detail(&format!("{code}: {words}"));
    match code {
        "DisabledException" | "KMSInvalidStateException" | "NotFoundException" => {
            ServiceError::new(Trouble::Disabled, detail)
        }
        "AccessDeniedException"
        | "ExpiredTokenException"
        | "IncompleteSignature"
        | "InvalidClientTokenId"
        | "InvalidSignatureException"
        | "MissingAuthenticationToken"
        | "NotAuthorized"
        | "OptInRequired"
        | "UnrecognizedClientException" => ServiceError::new(Trouble::Forbidden, detail),
        "LimitExceededException"
        | "RequestLimitExceeded"
        | "Throttling"
        | "ThrottlingException"
        | "TooManyRequestsException" => {
            ServiceError::new(Trouble::Throttled, detail).retry_after(PAUSE)
        }
        _ if answer.raw().status().is_server_error() => {
            ServiceError::new(Trouble::Away, detail).retry_after(PAUSE)
        }
        _ => refused(detail),
    }
}

fn refused(detail: String) -> ServiceError {
    ServiceError::new(Trouble::Refused, detail)
}
