//! `tailbone workload spiffe`, from the side of a workload.

use std::{os::unix::fs::PermissionsExt as _, path::PathBuf};

use hyper_util::rt::TokioIo;
use serde_json::Value;
use tailbone::workload::client::spiffe::proto::{
    JwtBundlesRequest, JwtsvidRequest, ValidateJwtsvidRequest, X509BundlesRequest, X509svidRequest,
    spiffe_workload_api_client::SpiffeWorkloadApiClient,
};
use tonic::{
    Code, Request, Status,
    transport::{Channel, Endpoint},
};

use super::*;

const SUBJECT: &str = "spiffe://tail1234.ts.net/web";

struct Api {
    client: SpiffeWorkloadApiClient<Channel>,
    running: Running,
    socket: PathBuf,
    _dir: tempfile::TempDir,
}

impl Api {
    async fn start(issuer: &FakeIssuer, more: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("spiffe.sock");
        let line = [
            "spiffe",
            "--server",
            &issuer.url,
            "--socket",
            socket.to_str().unwrap(),
        ];
        let running = Running::start(&[&line[..], more].concat(), &[]);
        until("the socket", || socket.exists()).await;
        let path = socket.clone();
        let connector = tower::service_fn(move |_| {
            let path = path.clone();
            async move {
                tokio::net::UnixStream::connect(path)
                    .await
                    .map(TokioIo::new)
            }
        });
        let channel = Endpoint::from_static("http://localhost")
            .connect_with_connector(connector)
            .await
            .unwrap();
        Self {
            client: SpiffeWorkloadApiClient::new(channel),
            running,
            socket,
            _dir: dir,
        }
    }

    async fn svid(&mut self, audience: &[&str], id: &str) -> Result<(String, String), Status> {
        let request = with_metadata(JwtsvidRequest {
            audience: audience.iter().map(|&one| one.to_owned()).collect(),
            spiffe_id: id.to_owned(),
        });
        let mut svids = self.client.fetch_jwtsvid(request).await?.into_inner().svids;
        assert_eq!(svids.len(), 1);
        let svid = svids.remove(0);
        Ok((svid.spiffe_id, svid.svid))
    }

    async fn validate(&mut self, audience: &str, svid: &str) -> Result<(String, f64), Status> {
        let request = with_metadata(ValidateJwtsvidRequest {
            audience: audience.to_owned(),
            svid: svid.to_owned(),
        });
        let answer = self.client.validate_jwtsvid(request).await?.into_inner();
        let claims = answer.claims.unwrap().fields;
        let Some(prost_types::value::Kind::NumberValue(end)) = claims["exp"].kind else {
            panic!("exp is no number")
        };
        Ok((answer.spiffe_id, end))
    }
}

fn with_metadata<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    let metadata = request.metadata_mut();
    metadata.insert("workload.spiffe.io", "true".parse().unwrap());
    request
}

const DOMAIN: [&str; 2] = ["--trust-domain", "tail1234.ts.net"];

#[tokio::test]
async fn a_workload_gets_validates_and_reads_keys_of_svids() {
    let issuer = FakeIssuer::with_subject(SUBJECT).await;
    let mut api = Api::start(&issuer, &DOMAIN).await;
    let (id, svid) = api.svid(&["db"], "").await.unwrap();
    assert_eq!(id, SUBJECT);
    let (_, again) = api.svid(&["db"], SUBJECT).await.unwrap();
    assert_eq!(again, svid);
    assert_eq!(issuer.tokens(), 1);

    let (id, end) = api.validate("db", &svid).await.unwrap();
    assert_eq!(id, SUBJECT);
    assert!(end > jiff::Timestamp::now().as_second() as f64);
    let wrong = api.validate("web", &svid).await.unwrap_err();
    assert_eq!(wrong.code(), Code::InvalidArgument);
    let mut forged = svid.clone();
    forged.truncate(svid.len() - 4);
    forged.push_str("AAAA");
    let wrong = api.validate("db", &forged).await.unwrap_err();
    assert_eq!(wrong.code(), Code::InvalidArgument);

    let request = with_metadata(JwtBundlesRequest {});
    let mut bundles = api
        .client
        .fetch_jwt_bundles(request)
        .await
        .unwrap()
        .into_inner();
    let first = soon("the bundle", bundles.message())
        .await
        .unwrap()
        .unwrap();
    let bundle = &first.bundles["spiffe://tail1234.ts.net"];
    let bundle: Value = serde_json::from_slice(bundle).unwrap();
    assert_eq!(bundle["keys"][0]["use"], "jwt-svid");
    assert_eq!(bundle["keys"][0]["kid"], "k1");

    let mode = std::fs::metadata(&api.socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let socket = api.socket.clone();
    api.running.stop().await.unwrap();
    until("the end of the socket", || !socket.exists()).await;
}

#[tokio::test]
async fn a_stream_of_keys_goes_on_when_they_change() {
    let issuer = FakeIssuer::with_subject(SUBJECT).await;
    let mut api = Api::start(&issuer, &DOMAIN).await;
    let request = with_metadata(JwtBundlesRequest {});
    let mut bundles = api
        .client
        .fetch_jwt_bundles(request)
        .await
        .unwrap()
        .into_inner();
    soon("the bundle", bundles.message())
        .await
        .unwrap()
        .unwrap();
    // A token of the new key makes the keys be read at once.
    issuer.rotate("k2");
    let (_, svid) = api.svid(&["db"], "").await.unwrap();
    api.validate("db", &svid).await.unwrap();
    let next = soon("the next bundle", bundles.message())
        .await
        .unwrap()
        .unwrap();
    let text = String::from_utf8(next.bundles["spiffe://tail1234.ts.net"].clone()).unwrap();
    assert!(text.contains("k2"), "{text}");
    api.running.stop().await.unwrap();
}

#[tokio::test]
async fn what_is_refused() {
    let issuer = FakeIssuer::with_subject(SUBJECT).await;
    let mut api = Api::start(&issuer, &DOMAIN).await;
    let bare = api.client.fetch_jwtsvid(JwtsvidRequest {
        audience: vec!["db".to_owned()],
        spiffe_id: String::new(),
    });
    assert_eq!(bare.await.unwrap_err().code(), Code::InvalidArgument);
    let bare = api.client.fetch_jwt_bundles(JwtBundlesRequest {});
    assert_eq!(bare.await.unwrap_err().code(), Code::InvalidArgument);
    let bare = api
        .client
        .validate_jwtsvid(ValidateJwtsvidRequest::default());
    assert_eq!(bare.await.unwrap_err().code(), Code::InvalidArgument);
    for audiences in [&[][..], &[""], &["a", "b"]] {
        let error = api.svid(audiences, "").await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{audiences:?}");
    }
    let other = api.svid(&["db"], "spiffe://tail1234.ts.net/other").await;
    assert_eq!(other.unwrap_err().code(), Code::PermissionDenied);
    let refused = api.svid(&["forbidden"], "").await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(
        refused.message().contains("audience_not_allowed"),
        "{refused}"
    );
    let x509 = api.client.fetch_x509svid(with_metadata(X509svidRequest {}));
    assert_eq!(x509.await.unwrap_err().code(), Code::Unimplemented);
    let x509 = api
        .client
        .fetch_x509_bundles(with_metadata(X509BundlesRequest {}));
    assert_eq!(x509.await.unwrap_err().code(), Code::Unimplemented);
    api.running.stop().await.unwrap();
}

#[tokio::test]
async fn a_subject_that_is_no_spiffe_id_is_told_with_the_setting() {
    let issuer = FakeIssuer::start().await;
    let mut api = Api::start(&issuer, &["--group"]).await;
    let error = api.svid(&["db"], "").await.unwrap_err();
    assert_eq!(error.code(), Code::PermissionDenied);
    assert_eq!(
        error.message(),
        "the token's subject \"web.tail1234.ts.net\" is no SPIFFE ID: set the issuer's \
         workload.subject to a template such as spiffe://127.0.0.1/…"
    );
    let mode = std::fs::metadata(&api.socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    api.running.stop().await.unwrap();

    let issuer = FakeIssuer::with_subject(SUBJECT).await;
    let mut api = Api::start(&issuer, &["--trust-domain", "example.org"]).await;
    let error = api.svid(&["db"], "").await.unwrap_err();
    assert!(
        error
            .message()
            .ends_with("start this with --trust-domain tail1234.ts.net"),
        "{error}"
    );
    api.running.stop().await.unwrap();
}
