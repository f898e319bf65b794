//! `tailbone workload aws-credentials`.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use axum::{Router, http::StatusCode, response::IntoResponse as _, routing::post};
use serde_json::Value;
use tailbone::{
    config::Limits,
    http::{
        serve::{Server, serve},
        tcp::{PlainListener, Remote},
    },
};

use super::*;

const ROLE: &str = "arn:aws:iam::123456789012:role/web";

/// A token service that keeps the forms it gets, and answers with each of `refusals` first.
struct TokenService {
    url: String,
    forms: Arc<Mutex<Vec<HashMap<String, String>>>>,
    _server: Server,
}

impl TokenService {
    async fn start(refusals: &[(u16, &str)]) -> Self {
        let tcp = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", tcp.local_addr().unwrap());
        let forms = Arc::new(Mutex::new(Vec::new()));
        let kept = forms.clone();
        let refusals: Vec<_> = refusals
            .iter()
            .map(|(status, code)| (*status, (*code).to_owned()))
            .collect();
        let handler = async move |body: String| {
            let form = url::form_urlencoded::parse(body.as_bytes());
            let form: HashMap<_, _> = form.into_owned().collect();
            let mut kept = kept.lock().unwrap();
            kept.push(form);
            match refusals.get(kept.len() - 1) {
                Some((status, code)) => {
                    let xml = format!(
                        "<ErrorResponse><Error><Code>{code}</Code><Message>Not this one\
                         </Message></Error></ErrorResponse>"
                    );
                    (StatusCode::from_u16(*status).unwrap(), xml).into_response()
                }
                None => "<R><Credentials><AccessKeyId>AKIA1</AccessKeyId><SecretAccessKey>s\
                         </SecretAccessKey><SessionToken>t</SessionToken>\
                         <Expiration>2026-11-30T12:00:00Z</Expiration></Credentials></R>"
                    .into_response(),
            }
        };
        let server = serve(
            "sts",
            PlainListener(tcp),
            Router::new().route("/", post(handler)),
            Limits::default(),
            Remote::identify,
        );
        Self {
            url,
            forms,
            _server: server,
        }
    }

    async fn ask(&self, issuer: &FakeIssuer) -> Result<String, WorkloadError> {
        let variables = [
            ("AWS_ROLE_ARN", ROLE),
            ("AWS_ENDPOINT_URL_STS", &self.url),
            ("TAILBONE_WORKLOAD_SERVER", &issuer.url),
        ];
        run_as(OutputFormat::Text, &["aws-credentials"], &variables).await
    }
}

#[tokio::test]
async fn a_token_buys_credentials() {
    let issuer = FakeIssuer::start().await;
    let service = TokenService::start(&[]).await;
    let printed: Value = serde_json::from_str(&service.ask(&issuer).await.unwrap()).unwrap();
    assert_eq!(
        printed,
        serde_json::json!({
            "Version": 1, "AccessKeyId": "AKIA1", "SecretAccessKey": "s", "SessionToken": "t",
            "Expiration": "2026-11-30T12:00:00Z",
        })
    );
    let form = service.forms.lock().unwrap()[0].clone();
    let value = |name| form[name].as_str();
    assert_eq!(value("Action"), "AssumeRoleWithWebIdentity");
    assert_eq!(value("Version"), "2011-06-15");
    assert_eq!(value("RoleArn"), ROLE);
    assert_eq!(value("RoleSessionName"), "web.tail1234.ts.net");
    assert!(!form.contains_key("DurationSeconds"));
    let claims = jsonwebtoken::dangerous::insecure_decode::<Value>(value("WebIdentityToken"))
        .unwrap()
        .claims;
    assert_eq!(claims["aud"][0], "sts.amazonaws.com");
}

#[tokio::test]
async fn what_may_pass_is_tried_again_and_a_refusal_is_told() {
    let issuer = FakeIssuer::start().await;
    let passing = TokenService::start(&[(400, "IDPCommunicationError"), (503, "Busy")]).await;
    passing.ask(&issuer).await.unwrap();
    assert_eq!(passing.forms.lock().unwrap().len(), 3);
    assert_eq!(issuer.tokens(), 1);

    let refusing = TokenService::start(&[(403, "AccessDenied")]).await;
    let error = refusing.ask(&issuer).await.unwrap_err();
    assert_eq!(
        words(&error),
        "AWS's token service refused: 403 Forbidden: AccessDenied: Not this one"
    );
    assert_eq!(refusing.forms.lock().unwrap().len(), 1);
    let none = run(&["aws-credentials", "--server", &issuer.url]).await;
    assert!(matches!(none, Err(WorkloadError::Usage(_))));
}
