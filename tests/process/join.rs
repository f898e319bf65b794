//! Ways of joining that need a process with an environment of its own.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use axum::{Router, extract::Query, http::HeaderMap, routing::get};
use serde_json::json;
use tailbone::http::json::Json;
use tempfile::TempDir;
use testkit::devnet::Devnet;

use super::{alone, tailbone};

const SETTINGS: &str = "components = \"issuer\"\n[server.tailscale]\nhostname = \"runner\"\ntags = \"tag:made\"\n\
    clientId = \"CLIENT\"\naudience = \"tailnet.example.com\"\n";

/// Like a job on GitHub Actions: no key and no token, but a URL that gives a token for an
/// audience.
#[test]
fn an_audience_is_taken_to_the_platform_for_the_token_to_join_with() {
    alone(async {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let platform = Router::new().route(
            "/token",
            get({
                let asked = asked.clone();
                async move |Query(query): Query<HashMap<String, String>>, headers: HeaderMap| {
                    let bearer = headers["authorization"]
                        .to_str()
                        .unwrap()
                        .to_ascii_lowercase();
                    asked
                        .lock()
                        .unwrap()
                        .push((query["audience"].clone(), bearer));
                    Json(json!({"value": "a.b.c"}))
                }
            }),
        );
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, platform).await });

        let devnet = Devnet::start();
        let folder = TempDir::new().unwrap();
        let (client, _) = devnet.oauth_client(&["tag:made"], Some("a.b.c")).await;
        let environment = format!(
            "unset TB_SERVER_TAILSCALE_AUTHKEY\nexport ACTIONS_ID_TOKEN_REQUEST_TOKEN=sesame \
             ACTIONS_ID_TOKEN_REQUEST_URL='http://{address}/token?v=2'"
        );
        let daemon = tailbone(&folder)
            .joining(&devnet)
            .await
            .settings(&SETTINGS.replace("CLIENT", &client))
            .after(&environment)
            .started()
            .await;
        daemon.ready();
        let asked = asked.lock().unwrap().clone();
        assert_eq!(
            asked,
            [("tailnet.example.com".to_owned(), "bearer sesame".to_owned())]
        );
    });
}
