//! The client for services behind the reverse proxy: connections, TLS and timeouts.
//!
//! HTTP/1.1 and HTTP/2 have a client each, since settings say which of them a service speaks
//! instead of negotiation: a WebSocket needs the first, gRPC the second. A certificate is always
//! checked against the name in the service's address.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use ::http::{Request, Response};
use axum::body::Body;
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Frame, Incoming};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, pem::PemObject},
};

use super::{GateError, upstream_table::Upstream};
use crate::{
    config,
    http::{self, error::Kind},
};

/// For a connection to a service, which is assumed to be near.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long an idle connection to a service is kept open.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
const MAX_IDLE_CONNECTIONS: usize = 64;

type UpstreamClient = Client<HttpsConnector<HttpConnector>, Body>;

pub(super) struct UpstreamClients {
    http1: UpstreamClient,
    http2: UpstreamClient,
    /// Zero means no timeout.
    timeout: Duration,
}

impl UpstreamClients {
    pub(super) fn new(settings: &config::GateSettings) -> Result<Self, GateError> {
        let mut upstreams = settings.upstreams.iter();
        let roots = match &settings.upstream_ca {
            Some(file) => read_roots(file)?,
            // Without TLS upstreams the system's certificates do not matter.
            None if upstreams.any(|upstream| upstream.scheme.tls()) => system_roots()?,
            None => RootCertStore::empty(),
        };
        let tls = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| GateError::UpstreamTls(error.to_string()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        connector.set_nodelay(true);
        connector.enforce_http(false);
        let builder = || {
            HttpsConnectorBuilder::new()
                .with_tls_config(tls.clone())
                .https_or_http()
        };
        let http1 = builder().enable_http1().wrap_connector(connector.clone());
        let http2 = builder().enable_http2().wrap_connector(connector);
        Ok(Self {
            http1: client(http1, false),
            http2: client(http2, true),
            timeout: settings.upstream_timeout,
        })
    }

    pub(super) async fn answer(
        &self,
        upstream: &Upstream,
        request: Request<Body>,
    ) -> Result<Response<Incoming>, http::Error> {
        let client = if upstream.scheme.http2() {
            &self.http2
        } else {
            &self.http1
        };
        let (request, frames_read) = count_body_frames(request);
        let answer = self
            .with_timeout(client.request(request), &frames_read)
            .await;
        let error = match answer {
            Some(Ok(answer)) => return Ok(answer),
            Some(Err(error)) => http::Error::new(
                Kind::BadGateway,
                "upstream_failed",
                "the service behind this gate does not answer",
            )
            .because(error),
            None => http::Error::new(
                Kind::GatewayTimeout,
                "upstream_timeout",
                "the service behind this gate took too long to answer",
            ),
        };
        tracing::debug!(target: "gate", upstream = upstream.address(), code = error.code, "upstream failed");
        Err(error)
    }

    /// The timeout starts again whenever the upstream reads a part of the request, since an upload
    /// may take longer than an answer.
    async fn with_timeout<T>(
        &self,
        answer: impl Future<Output = T>,
        frames_read: &AtomicU64,
    ) -> Option<T> {
        if self.timeout.is_zero() {
            return Some(answer.await);
        }
        let mut answer = std::pin::pin!(answer);
        loop {
            let before = frames_read.load(Ordering::Relaxed);
            match tokio::time::timeout(self.timeout, &mut answer).await {
                Ok(answer) => return Some(answer),
                Err(_) if frames_read.load(Ordering::Relaxed) == before => return None,
                Err(_) => {}
            }
        }
    }
}

fn client(connector: HttpsConnector<HttpConnector>, http2: bool) -> UpstreamClient {
    Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_TIMEOUT)
        .pool_max_idle_per_host(MAX_IDLE_CONNECTIONS)
        .http2_only(http2)
        .set_host(false)
        .build(connector)
}

/// The request, with a counter of the parts of its body that were read. Its trailers are dropped:
/// they are headers that have not been stripped.
fn count_body_frames(request: Request<Body>) -> (Request<Body>, Arc<AtomicU64>) {
    let frames_read = Arc::new(AtomicU64::new(0));
    let count = frames_read.clone();
    let request = request.map(|body| {
        Body::new(body.map_frame(move |frame| {
            count.fetch_add(1, Ordering::Relaxed);
            frame
                .into_data()
                .map_or_else(|_| Frame::data(Bytes::new()), Frame::data)
        }))
    });
    (request, frames_read)
}

fn system_roots() -> Result<RootCertStore, GateError> {
    let mut roots = RootCertStore::empty();
    // A certificate that cannot be read is simply not trusted.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        let message = "the system has no trusted certificates: install them (Debian: ca-certificates) or set gate.upstreamCa";
        return Err(GateError::UpstreamTls(message.into()));
    }
    Ok(roots)
}

fn read_roots(file: &Path) -> Result<RootCertStore, GateError> {
    let invalid = |message: String| {
        GateError::UpstreamTls(format!("gate.upstreamCa={}: {message}", file.display()))
    };
    let mut roots = RootCertStore::empty();
    let certificates =
        CertificateDer::pem_file_iter(file).map_err(|error| invalid(error.to_string()))?;
    for certificate in certificates {
        let certificate = certificate.map_err(|error| invalid(error.to_string()))?;
        let added = roots.add(certificate);
        added.map_err(|error| invalid(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(invalid("it contains no certificate".into()));
    }
    Ok(roots)
}
