//! The component `oidc` through the whole program: a person logs in over TLS on the tailnet, the
//! application redeems through Funnel, and a restart ends nothing.

use std::fs;

use ::http::{Request, header};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http_body_util::Full;
use serde_json::{Value, json};
use testkit::{
    daemon::Daemon,
    http::{Answer, request},
    pyjwt,
    tailnet::users_node,
};

use super::{
    alone,
    funnel::Edge,
    workload::{ISSUER, https, part},
};

pub(super) const APP: &str = "https://app.example.com/callback";
pub(super) const ID: &str = "0123456789abcdef0123456789abcdef";
pub(super) const SECRET: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// An application of tsidp, as its file has it.
pub(super) fn tsidp(edge: &Edge) {
    let dir = edge.folder().join("tsidp");
    fs::create_dir(&dir).unwrap();
    let client = json!({
        "client_id": ID, "client_secret": SECRET, "client_name": "Wiki",
        "redirect_uris": [APP], "created_at": "0001-01-01T00:00:00Z", "redirect_uri": "",
    });
    let file = json!({ ID: client }).to_string();
    fs::write(dir.join("oidc-funnel-clients.json"), file).unwrap();
}

/// The server, with the applications of tsidp.
pub(super) async fn start(edge: &Edge) -> Daemon {
    let flags = [
        "--components",
        "oidc,metrics",
        "--oidc-listen",
        "tailnet+tls://:443,funnel://:443",
        "--oidc-take-over",
        "tsidp",
    ];
    let mut daemon = edge.start_with(&flags).await;
    daemon.logs("certificate of the node's name in use").await;
    daemon
}

fn posted(pairs: &[(&str, &str)]) -> Request<Full<Bytes>> {
    let mut form = url::form_urlencoded::Serializer::new(String::new());
    form.extend_pairs(pairs);
    let (mut parts, _) = request("POST", "/token").into_parts();
    let kind = "application/x-www-form-urlencoded".parse().unwrap();
    parts.headers.insert(header::CONTENT_TYPE, kind);
    let basic = format!("Basic {}", STANDARD.encode(format!("{ID}:{SECRET}")));
    parts
        .headers
        .insert(header::AUTHORIZATION, basic.parse().unwrap());
    Request::from_parts(parts, Full::from(form.finish()))
}

/// What the application's back end is answered.
async fn through_funnel(edge: &Edge, pairs: &[(&str, &str)]) -> Value {
    let answer: Answer = edge.connection(9, 443).await.send(posted(pairs)).await;
    assert_eq!(answer.status(), 200, "{answer:?}");
    answer.json()
}

#[test]
fn an_application_of_tsidp_logs_people_in_and_a_restart_ends_nothing() {
    alone(async {
        let edge = Edge::with_authority();
        tsidp(&edge);
        let mut daemon = start(&edge).await;
        daemon.ready();
        let alice = users_node(&edge.devnet, edge.folder(), "alice").await;
        let mut browser = https(&edge, &alice).await;
        let asked = format!(
            "/authorize?response_type=code&client_id={ID}&scope=openid+email&state=s&redirect_uri={APP}"
        );
        let login = browser.get(&asked).await;
        assert_eq!(login.status(), 302, "{login:?}");
        let location = login.header("location").to_owned();
        let code = location.strip_prefix(&format!("{APP}?code=")).unwrap();
        let code = code.split('&').next().unwrap();
        let redeemed = [
            ("grant_type", "authorization_code"),
            ("code", code),
            ("redirect_uri", APP),
        ];
        let tokens = through_funnel(&edge, &redeemed).await;
        let token = tokens["id_token"].as_str().unwrap();
        let claims = part(token, 1);
        assert_eq!(
            (&claims["iss"], &claims["aud"]),
            (&json!(ISSUER), &json!(ID))
        );
        assert!(claims["email"].as_str().unwrap().contains('@'), "{claims}");
        assert!(claims["nid"].as_i64().unwrap() > 0, "{claims}");
        let document = edge.get("/.well-known/jwks.json").await;
        let keys = edge.folder().join("read.json");
        fs::write(&keys, document.text()).unwrap();
        pyjwt::verify(&keys, ISSUER, token).unwrap();
        assert_eq!(edge.get(&asked).await.status(), 401);

        assert!(daemon.stop().success());
        let log = daemon.log();
        for secret in [SECRET, code, token] {
            assert!(!log.contains(secret), "a secret is in the log");
        }
        let _daemon = start(&edge).await;
        let refresh = tokens["refresh_token"].as_str().unwrap();
        let refreshed = [("grant_type", "refresh_token"), ("refresh_token", refresh)];
        let again = through_funnel(&edge, &refreshed).await;
        let later = part(again["id_token"].as_str().unwrap(), 1);
        assert_eq!(later["sub"], claims["sub"]);
        assert_eq!(later["auth_time"], claims["auth_time"]);
    });
}
