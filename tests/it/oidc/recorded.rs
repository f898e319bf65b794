//! Requests of programs that cannot be run here, replayed as their sources say that they send them:
//! Grafana with `[auth.generic_oauth]` (Go's oauth2), and Proxmox VE with an OpenID realm (Rust's
//! openidconnect).

use aws_lc_rs::digest::{SHA256, digest};

use super::*;

/// An application that has registered this redirect URI alone.
async fn with_app(id: &str, redirect_uri: &str) -> OidcServer {
    let server = OidcServer::open().await;
    server
        .add_with(id, AuthMethod::ClientSecretBasic, |metadata| {
            metadata.redirect_uris = vec![redirect_uri.into()];
            metadata.login = Some(Login::Silent);
        })
        .await;
    server
}

/// The parameters with which the browser comes back to the application.
async fn logged_in(server: &OidcServer, path: &str, redirect_uri: &str) -> Vec<(String, String)> {
    let answer = server.alice().await.get(path).await;
    assert_eq!(answer.status(), StatusCode::FOUND, "{answer:?}");
    let to = answer.header("location");
    let (back, fields) = to.split_once('?').unwrap();
    assert_eq!(back.trim_end_matches('/'), redirect_uri, "{to}");
    url::form_urlencoded::parse(fields.as_bytes())
        .into_owned()
        .collect()
}

const GRAFANA: &str = "https://grafana.example.com/login/generic_oauth";

#[tokio::test]
async fn grafana_logs_a_person_in_and_reads_userinfo() {
    let server = with_app("grafana", GRAFANA).await;
    // With `use_pkce = true` and `scopes = openid email profile`. The verifier is the longest that
    // there may be.
    let verifier = "kq-_0Zx7".repeat(16);
    let challenge = URL_SAFE_NO_PAD.encode(digest(&SHA256, verifier.as_bytes()));
    let asked = format!(
        "/authorize?client_id=grafana&code_challenge={challenge}&code_challenge_method=S256\
         &redirect_uri=https%3A%2F%2Fgrafana.example.com%2Flogin%2Fgeneric_oauth\
         &response_type=code&scope=openid+email+profile\
         &state=6PDzqTaFS9qBnQ-JDBPzYv0l6mYb4Fv_d6yqkWvDo1k%3D"
    );
    let fields = logged_in(&server, &asked, GRAFANA).await;
    assert_eq!(
        field(&fields, "state"),
        "6PDzqTaFS9qBnQ-JDBPzYv0l6mYb4Fv_d6yqkWvDo1k="
    );
    let body = format!(
        "code={}&code_verifier={verifier}&grant_type=authorization_code\
         &redirect_uri=https%3A%2F%2Fgrafana.example.com%2Flogin%2Fgeneric_oauth",
        field(&fields, "code")
    );
    let mut backend = server.outside().await;
    let answer = backend.send(token_request("grafana", &body, None)).await;
    assert_eq!(answer.status(), 200, "{answer:?}");
    let tokens = answer.json();
    assert_eq!(tokens["token_type"], "Bearer");
    assert!(tokens["expires_in"].as_u64().unwrap() > 0, "{tokens}");
    let claims = server.verified(tokens["id_token"].as_str().unwrap()).await;
    assert_eq!(claims["aud"], "grafana");
    let told = userinfo(&mut backend, &tokens["access_token"]).await.json();
    // `login_attribute_path = username`, and what it looks for by itself.
    for (name, value) in [
        ("email", "alice@example.com"),
        ("username", "alice"),
        ("name", "alice"),
    ] {
        assert_eq!(told[name], value, "{told}");
    }
    // With `use_refresh_token = true`, once the access token has ended.
    let refresh = tokens["refresh_token"].as_str().unwrap();
    let body = format!("grant_type=refresh_token&refresh_token={refresh}");
    let answer = backend.send(token_request("grafana", &body, None)).await;
    assert_eq!(answer.status(), 200, "{answer:?}");
}

/// The interface itself: Proxmox has no path for the way back.
const PROXMOX: &str = "https://pve.example.com:8006";

#[tokio::test]
async fn proxmox_logs_a_person_in_and_finds_its_name_for_the_user() {
    let server = with_app("proxmox", PROXMOX).await;
    let mut backend = server.outside().await;
    // The issuer of the realm has to be that of the document, to the byte.
    let document = backend.get("/.well-known/openid-configuration").await;
    let document = document.json();
    assert_eq!(document["issuer"], ISSUER);
    for name in [
        "authorization_endpoint",
        "jwks_uri",
        "response_types_supported",
        "subject_types_supported",
        "id_token_signing_alg_values_supported",
    ] {
        assert!(!document[name].is_null(), "{name}: {document}");
    }
    // With `scopes` as they are by default.
    let asked = format!(
        "/authorize?response_type=code&client_id=proxmox\
         &state=%7B%22csrf_token%22%3A%22K3uXHpBr0qIhVGvkcI1L0w%22%2C%22realm%22%3A%22tailnet%22%7D\
         &code_challenge={CHALLENGE}&code_challenge_method=S256\
         &redirect_uri=https%3A%2F%2Fpve.example.com%3A8006\
         &scope=openid+email+profile&display=page&nonce=3uyQjZ1bXvMZgSnWcpZUvA"
    );
    let fields = logged_in(&server, &asked, PROXMOX).await;
    let state = r#"{"csrf_token":"K3uXHpBr0qIhVGvkcI1L0w","realm":"tailnet"}"#;
    assert_eq!(field(&fields, "state"), state);
    let body = format!(
        "grant_type=authorization_code&code={}&code_verifier={VERIFIER}\
         &redirect_uri=https%3A%2F%2Fpve.example.com%3A8006",
        field(&fields, "code")
    );
    let json = Some("application/json");
    let answer = backend.send(token_request("proxmox", &body, json)).await;
    assert_eq!(answer.status(), 200, "{answer:?}");
    let tokens = answer.json();
    let claims = server.verified(tokens["id_token"].as_str().unwrap()).await;
    assert_eq!(claims["nonce"], "3uyQjZ1bXvMZgSnWcpZUvA");
    let told = userinfo(&mut backend, &tokens["access_token"]).await.json();
    assert_eq!(told["sub"], claims["sub"]);
    // What the realm's `username-claim` may be: Proxmox takes what the token lacks from UserInfo.
    for (claim, value) in [("email", "alice@example.com"), ("username", "alice")] {
        let found = claims.get(claim).unwrap_or(&told[claim]);
        assert_eq!(found, value, "{claim}: {claims} {told}");
    }
    // Another way to the same interface is another redirect URI.
    let other = asked.replace("%3A8006", "%3A8007");
    let refused = server.alice().await.get(&other).await;
    assert_eq!(refused.status(), 400, "{refused:?}");
}

fn token_request(client: &str, body: &str, accept: Option<&str>) -> Request<Full<Bytes>> {
    let (mut parts, _) = request("POST", "/token").into_parts();
    let kind = "application/x-www-form-urlencoded".parse().unwrap();
    parts.headers.insert(header::CONTENT_TYPE, kind);
    if let Some(accept) = accept {
        let accept = accept.parse().unwrap();
        parts.headers.insert(header::ACCEPT, accept);
    }
    let request = Request::from_parts(parts, Full::from(body.to_owned()));
    with(request, "authorization", &basic(client))
}
