//! Applications whose libraries are not ours log a person in with the real program. The browser is
//! on the tailnet; the application's back end is not, and reaches the provider through Funnel.

use std::{
    fs,
    net::SocketAddr,
    sync::{Arc, OnceLock},
};

use ::http::header;
use reqwest::Method;
use serde_json::{Value, json};
use tailbone::tailnet::{EmbeddedNode, Node as _};
use tailbone_oidc::capability::CAPABILITY;
use testkit::{
    backend::Backend,
    connect_proxy::ConnectProxy,
    eventually,
    files::certificate_file,
    http::{Connection, dial},
    oidc_clients::{McpServer, Registration},
    openbao::OpenBao,
};
use tokio::{io::copy_bidirectional, net::TcpListener};

use super::{
    alone,
    funnel::{Edge, NAME},
    oidc_server::{
        APP, ID, SECRET, browser_of, path_of, posted, provider, start, write_tsidp_files,
    },
    workload::ISSUER,
};

/// What every application must have learned of the person.
fn check(learned: &Value, library: &str) {
    let [claims, told, refreshed] = ["claims", "userinfo", "refreshed"].map(|name| &learned[name]);
    assert_eq!(claims["iss"], ISSUER, "{library}: {learned}");
    assert_eq!(claims["aud"], ID, "{library}: {learned}");
    assert_eq!(
        claims["preferred_username"], "alice",
        "{library}: {learned}"
    );
    assert_eq!(claims["email"], "alice@example.com", "{library}: {learned}");
    for claim in ["sub", "email"] {
        assert_eq!(told[claim], claims[claim], "{library}: {learned}");
    }
    for claim in ["iss", "sub", "aud", "auth_time"] {
        assert_eq!(refreshed[claim], claims[claim], "{library}: {learned}");
    }
}

#[test]
fn libraries_of_three_languages_and_openbao_log_a_person_in() {
    alone(async {
        let (edge, mut daemon) = provider().await;
        let (_alice, mut browser) = browser_of(&edge, "alice").await;
        // Once the internet reaches the server, applications do.
        assert_eq!(edge.get("/.well-known/jwks.json").await.status(), 200);
        let proxy = ConnectProxy::start(&[NAME], edge.devnet.ready.funnel["443"]).await;
        let registered = Registration {
            issuer: ISSUER,
            ca_file: &edge.devnet.ready.acme.as_ref().unwrap().root_file,
            client_id: ID,
            secret: SECRET,
            redirect_uri: APP,
            proxy: &proxy,
        };
        for library in ["Authlib", "openid-client", "go-oidc"] {
            let application = match library {
                "Authlib" => registered.authlib(),
                "openid-client" => registered.openid_client(),
                _ => registered.go_oidc(),
            };
            let address = application.authorize();
            let path = path_of(&address);
            let login = browser.get(path).await;
            assert_eq!(login.status(), 302, "{library}: {login:?}");
            check(&application.learned(login.header("location")), library);
        }
        log_in_to_openbao(&registered, &mut browser).await;
        let log = daemon.log();
        assert!(daemon.stop().success(), "{log}");
    });
}

/// OpenBao's own method for people, which knows them by their mail.
async fn log_in_to_openbao(registered: &Registration<'_>, browser: &mut Connection) {
    let bao = OpenBao::start_behind(Some(registered.proxy)).await;
    bao.ok(Method::POST, "sys/auth/oidc", json!({"type": "oidc"}))
        .await;
    let config = json!({
        "oidc_discovery_url": ISSUER,
        "oidc_discovery_ca_pem": fs::read_to_string(registered.ca_file).unwrap(),
        "oidc_client_id": ID,
        "oidc_client_secret": SECRET,
    });
    bao.ok(Method::POST, "auth/oidc/config", config).await;
    let role = json!({
        "role_type": "oidc",
        "user_claim": "email",
        "oidc_scopes": ["email", "profile"],
        "claim_mappings": {"preferred_username": "name"},
        "allowed_redirect_uris": [APP],
    });
    bao.ok(Method::POST, "auth/oidc/role/people", role).await;
    let asked = json!({"role": "people", "redirect_uri": APP});
    let asked = bao.ok(Method::POST, "auth/oidc/oidc/auth_url", asked).await;
    let address = asked["data"]["auth_url"].as_str().unwrap();
    let path = path_of(address);
    let login = browser.get(path).await;
    assert_eq!(login.status(), 302, "{login:?}");
    let (_, answer) = login.header("location").split_once('?').unwrap();
    let back = format!("auth/oidc/oidc/callback?{answer}");
    let token = bao.ok(Method::GET, &back, json!({})).await;
    assert_eq!(token["auth"]["metadata"]["role"], "people", "{token}");
    assert_eq!(token["auth"]["metadata"]["name"], "alice", "{token}");
}

/// An address on loopback where programs find the provider as this node of the tailnet does.
async fn way_of(node: Arc<EmbeddedNode>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut program, _)) = listener.accept().await {
            let node = node.clone();
            tokio::spawn(async move {
                let mut server = dial(&*node, &format!("{NAME}:443")).await;
                // A program that goes away has seen enough.
                let _ = copy_bidirectional(&mut program, &mut server).await;
            });
        }
    });
    addr
}

/// The person reads the page of a login and confirms it. Where the browser goes then.
async fn confirmed(browser: &mut Connection, path: &str) -> String {
    let page = browser.get(path).await;
    let [asked, token] = ["request", "confirm"].map(|name| page.hidden_field(name));
    let pairs = [
        ("request", asked.as_str()),
        ("confirm", &token),
        ("decision", "continue"),
    ];
    let mut answer = posted("/authorize/confirm", &pairs);
    let cookie = page.header("set-cookie").split(';').next().unwrap();
    let headers = answer.headers_mut();
    headers.insert(header::COOKIE, cookie.parse().unwrap());
    headers.insert(header::ORIGIN, ISSUER.parse().unwrap());
    let answer = browser.send(answer).await;
    assert_eq!(answer.status(), 303, "{answer:?}");
    answer.header("location").to_owned()
}

/// What describes an MCP client, at an address of this machine. The server ends when dropped.
async fn client_document() -> (Backend, String) {
    let at = Arc::new(OnceLock::new());
    let told = at.clone();
    let document = move || async move {
        let document = json!({
            "client_id": told.get(),
            "client_name": "An MCP client",
            "redirect_uris": ["http://127.0.0.1:8976/callback"],
            "token_endpoint_auth_method": "none",
        });
        let kind = [(header::CONTENT_TYPE, "application/json")];
        (kind, document.to_string())
    };
    let app = axum::Router::new().route("/client.json", axum::routing::get(document));
    let server = Backend::serve_tls("first", app).await;
    let address = format!("https://localhost:{}/client.json", server.addr.port());
    at.set(address.clone()).unwrap();
    (server, address)
}

/// Each client registers itself, as a grant allows, or is described by a document, and asks for a
/// token for the MCP server. The server asks the provider about the token by its node's identity.
#[test]
fn mcp_clients_use_a_server_as_the_person_by_registration_and_by_document() {
    alone(async {
        let edge = Edge::with_authority();
        write_tsidp_files(&edge);
        let trusted = certificate_file("first.crt");
        let reading_documents = [
            "--oidc-client-documents",
            "localhost",
            "--oidc-private-hosts",
            "localhost",
            "--oidc-ca-file",
            trusted.to_str().unwrap(),
        ];
        let mut daemon = start(&edge, &reading_documents).await;
        let (alice, mut browser) = browser_of(&edge, "alice").await;
        let nodes = edge.devnet.nodes().await;
        let provider = nodes.iter().find(|node| node["host"] == "public").unwrap();
        let grant = json!({"allow_dcr": true, "users": ["*"], "resources": ["*"]});
        let from = alice.watch().borrow().id.clone();
        let to = provider["id"].as_str().unwrap();
        edge.devnet.grant(&from, to, CAPABILITY, grant).await;
        eventually("the grant counts", async || {
            let answer = browser.send(posted("/register", &[])).await;
            (answer.status() == 400)
                .then_some(())
                .ok_or_else(|| format!("{answer:?}"))
        })
        .await;

        let proxy = ConnectProxy::start(&[NAME], way_of(alice.clone()).await).await;
        let ca_file = &edge.devnet.ready.acme.as_ref().unwrap().root_file;
        let server = McpServer::start(ISSUER, ca_file, &proxy);
        let (_documents, document) = client_document().await;
        let python = McpServer::python_client;
        let javascript = McpServer::javascript_client;
        let document = Some(document.as_str());
        for (client, document) in [
            (python as fn(&_, _) -> _, None),
            (python, document),
            (javascript, None),
            (javascript, document),
        ] {
            let client = client(&server, document);
            let address = client.authorize();
            let path = path_of(&address);
            assert!(path.contains("&resource="), "{path}");
            let back = confirmed(&mut browser, path).await;
            assert!(back.starts_with("http://127.0.0.1:8976/callback?code="));
            let learned = client.learned(&back);
            let claims = &learned["claims"];
            assert_eq!(claims["username"], "alice@example.com", "{learned}");
            assert_eq!(claims["client_id"], learned["client_id"]);
            if let Some(document) = document {
                assert_eq!(claims["client_id"], document);
            }
            assert_eq!(claims["aud"], json!([learned["client_id"], server.url]));
            assert_eq!(learned["refreshable"], true);
        }
        let log = daemon.log();
        assert!(daemon.stop().success(), "{log}");
    });
}
