//! The document as an object in a bucket of S3, or of another service with the same interface.
//!
//! Invariants
//! - Writes carry `If-Match` or `If-None-Match: *`. The SDK's own retries are off for them: a write
//!   that is repeated after it took effect would look like somebody else's.
//! - Only `NoSuchKey` means that there is no document. Any other 404, and every other failure, is
//!   an error.
//! - No more than [`MAX_DOCUMENT`] bytes are read, and every request has a time limit.
//! - Credentials, region and endpoint are found as every AWS program finds them. None of them is
//!   ever shown.

use std::{sync::Arc, time::Duration};

use aws_config::{
    BehaviorVersion, retry::RetryConfig, stalled_stream_protection::StalledStreamProtectionConfig,
    timeout::TimeoutConfig,
};
use aws_sdk_s3::{
    Client,
    config::{RequestChecksumCalculation, ResponseChecksumValidation},
    error::{ProvideErrorMetadata, SdkError},
    operation::{get_object::GetObjectError, put_object::builders::PutObjectFluentBuilder},
    primitives::ByteStream,
};
use futures_util::{FutureExt as _, future::BoxFuture};
use jiff::Timestamp;
use tokio::sync::OnceCell;

use super::{
    Document, Etag, PublishError, Publisher, Unreadable, Versioned, document::MAX_DOCUMENT,
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(6);

/// Where the object is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct S3Settings {
    pub bucket: String,
    pub key_path: String,
    /// The address of a service other than AWS, e.g. `https://s3.example.com`.
    pub endpoint: Option<String>,
    /// Put the bucket into the path instead of the host name.
    pub path_style: bool,
    /// Announced to verifiers in `Cache-Control`.
    pub cache_time: Duration,
}

/// Publishes into a bucket.
#[derive(Debug, Clone)]
pub struct S3Publisher {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    settings: S3Settings,
    place: String,
    /// Made for the first request, because finding region and credentials may take requests of its
    /// own.
    service: OnceCell<Service>,
}

#[derive(Debug)]
struct Service {
    client: Client,
    /// Time limit of one attempt of one request, its body included.
    attempt_timeout: Duration,
}

impl S3Publisher {
    /// With credentials and region from the environment, profile files or the instance, found when
    /// they are first needed.
    pub fn new(settings: &S3Settings) -> Self {
        Self::build(settings, OnceCell::new())
    }

    /// With a configuration made by the caller. Its time limit for one attempt, if it has one, is
    /// kept.
    pub fn with_config(shared: &aws_config::SdkConfig, settings: &S3Settings) -> Self {
        let service = Service::new(shared, settings);
        Self::build(settings, OnceCell::new_with(Some(service)))
    }

    fn build(settings: &S3Settings, service: OnceCell<Service>) -> Self {
        let at = settings
            .endpoint
            .as_deref()
            .map(|endpoint| format!(" at {endpoint}"))
            .unwrap_or_default();
        Self {
            inner: Arc::new(Inner {
                place: format!("s3://{}/{}{at}", settings.bucket, settings.key_path),
                settings: settings.clone(),
                service,
            }),
        }
    }
}

impl Service {
    fn new(shared: &aws_config::SdkConfig, settings: &S3Settings) -> Self {
        let attempt_timeout = shared
            .timeout_config()
            .and_then(TimeoutConfig::operation_attempt_timeout)
            .unwrap_or(ATTEMPT_TIMEOUT);
        let mut config = aws_sdk_s3::config::Builder::from(shared)
            .force_path_style(settings.path_style)
            // Many services do not know the newer checksums; TLS and reading back protect the
            // content.
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .timeout_config(
                TimeoutConfig::builder()
                    .connect_timeout(CONNECT_TIMEOUT)
                    .operation_attempt_timeout(attempt_timeout)
                    .operation_timeout(attempt_timeout * 2)
                    .build(),
            )
            .retry_config(RetryConfig::standard().with_max_attempts(2));
        if let Some(endpoint) = &settings.endpoint {
            config = config.endpoint_url(endpoint);
        }
        if shared.region().is_none() {
            // Every S3 request is signed for a region. Services other than AWS accept any.
            config = config.region(aws_sdk_s3::config::Region::from_static("us-east-1"));
        }
        Self {
            client: Client::from_conf(config.build()),
            attempt_timeout,
        }
    }
}

impl Publisher for S3Publisher {
    fn place(&self) -> &str {
        &self.inner.place
    }

    fn read(&self) -> BoxFuture<'_, Result<Option<Versioned>, PublishError>> {
        self.inner.read().boxed()
    }

    fn write<'a>(
        &'a self,
        document: &'a Document,
        expected: Option<&'a Etag>,
    ) -> BoxFuture<'a, Result<Etag, PublishError>> {
        async move {
            let inner = &self.inner;
            let put = inner.put(&inner.settings.key_path, document).await;
            let put = match expected {
                Some(etag) => put.if_match(&*etag.0),
                None => put.if_none_match("*"),
            };
            inner.send(put).await
        }
        .boxed()
    }

    fn back_up<'a>(
        &'a self,
        document: &'a Document,
        now: Timestamp,
    ) -> BoxFuture<'a, Result<String, PublishError>> {
        async move {
            let time = now.strftime("%Y%m%dT%H%M%S%.9fZ");
            let path = format!("{}.bak-{time}", self.inner.settings.key_path);
            let put = self.inner.put(&path, document).await;
            self.inner.send(put).await?;
            Ok(format!("s3://{}/{path}", self.inner.settings.bucket))
        }
        .boxed()
    }
}

impl Inner {
    async fn service(&self) -> &Service {
        let connect = async {
            let shared = aws_config::defaults(BehaviorVersion::latest()).load().await;
            Service::new(&shared, &self.settings)
        };
        self.service.get_or_init(|| connect).await
    }

    async fn read(&self) -> Result<Option<Versioned>, PublishError> {
        let Service {
            client,
            attempt_timeout,
        } = self.service().await;
        let answer = client
            .get_object()
            .bucket(&self.settings.bucket)
            .key(&self.settings.key_path)
            .send()
            .await;
        let mut object = match answer {
            Ok(object) => object,
            Err(error) => {
                if error
                    .as_service_error()
                    .is_some_and(GetObjectError::is_no_such_key)
                {
                    return Ok(None);
                }
                return Err(self.failed(&error, true));
            }
        };
        let too_large = || self.unreadable(Unreadable::TooLarge);
        if object
            .content_length
            .is_some_and(|length| usize::try_from(length).is_ok_and(|length| length > MAX_DOCUMENT))
        {
            return Err(too_large());
        }
        let body = async {
            let mut bytes = Vec::new();
            while let Some(part) = object.body.next().await {
                let part = part
                    .map_err(|error| self.unavailable(&format!("the answer broke off: {error}")))?;
                bytes.extend_from_slice(&part);
                if bytes.len() > MAX_DOCUMENT {
                    return Err(too_large());
                }
            }
            Ok(bytes)
        };
        let bytes = tokio::time::timeout(*attempt_timeout, body)
            .await
            .map_err(|_| self.unavailable("the answer did not end in time"))??;
        if object
            .content_length
            .is_some_and(|length| usize::try_from(length) != Ok(bytes.len()))
        {
            return Err(self.unavailable("the answer broke off"));
        }
        let document = Document::parse(&bytes).map_err(|reason| self.unreadable(reason))?;
        // Without an ETag no compare-and-swap is possible, and every write could lose a change.
        let etag = object
            .e_tag
            .ok_or_else(|| self.unavailable("the answer has no ETag"))?;
        Ok(Some(Versioned {
            document,
            etag: Etag(etag.into()),
        }))
    }

    async fn put(&self, path: &str, document: &Document) -> PutObjectFluentBuilder {
        let service = self.service().await;
        service
            .client
            .put_object()
            .bucket(&self.settings.bucket)
            .key(path)
            .body(ByteStream::from(document.to_bytes()))
            .content_type("application/json")
            .cache_control(format!(
                "public, max-age={}",
                self.settings.cache_time.as_secs()
            ))
    }

    async fn send(&self, put: PutObjectFluentBuilder) -> Result<Etag, PublishError> {
        let once = aws_sdk_s3::config::Builder::new().retry_config(RetryConfig::disabled());
        match put.customize().config_override(once).send().await {
            Ok(answer) => Ok(Etag(answer.e_tag.unwrap_or_default().into())),
            Err(error) => Err(self.failed(&error, false)),
        }
    }

    /// What a failure means. `reading`: a refusal may then mean that there is no such object.
    fn failed<E: ProvideErrorMetadata + std::error::Error + 'static>(
        &self,
        error: &SdkError<E>,
        reading: bool,
    ) -> PublishError {
        let status = error
            .raw_response()
            .map_or(0, |answer| answer.status().as_u16());
        let code = error
            .as_service_error()
            .and_then(ProvideErrorMetadata::code)
            .unwrap_or_default();
        let place = self.place.clone();
        match (status, code) {
            (_, "NoSuchBucket") => PublishError::NotFound { place, detail: "no such bucket".to_owned() },
            // The object that we were about to replace was deleted.
            (404, "NoSuchKey") if !reading => PublishError::Conflict { place },
            (409 | 412, _) => PublishError::Conflict { place },
            (401 | 403, _) => PublishError::Denied {
                place,
                hint: match (code, reading) {
                    ("" | "AccessDenied", true) => {
                        " (AccessDenied; where the object does not exist yet, S3 says so only to those who may s3:ListBucket)"
                            .to_owned()
                    }
                    ("", false) => String::new(),
                    (code, _) => format!(" ({code})"),
                },
            },
            (0, _) => self.unavailable(&aws_sdk_s3::error::DisplayErrorContext(error).to_string()),
            (status, "") => self.unavailable(&format!("it answered {status}")),
            (status, code) => self.unavailable(&format!("it answered {status} {code}")),
        }
    }

    fn unreadable(&self, reason: Unreadable) -> PublishError {
        PublishError::Unreadable {
            place: self.place.clone(),
            reason,
        }
    }

    fn unavailable(&self, detail: &str) -> PublishError {
        PublishError::Unavailable {
            place: self.place.clone(),
            detail: detail.to_owned(),
        }
    }
}
