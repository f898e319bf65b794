//! How tests of the component `oidc` begin: the program with the applications of tsidp, and people
//! of the tailnet who log in.

use std::{fs, sync::Arc};

use ::http::{Request, header};
use aws_lc_rs::{
    encoding::AsDer as _,
    rsa::{KeyPair, KeySize},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http_body_util::Full;
use rsa::{pkcs1::EncodeRsaPrivateKey as _, pkcs8::DecodePrivateKey as _};
use serde_json::json;
use tailbone::tailnet::EmbeddedNode;
use testkit::{
    daemon::Daemon,
    http::{Connection, request},
    tailnet::users_node,
};

use super::{
    funnel::Edge,
    workload::{ISSUER, https},
};

/// The application that tsidp's file has.
pub(super) const APP: &str = "https://app.example.com/callback";
pub(super) const ID: &str = "0123456789abcdef0123456789abcdef";
pub(super) const SECRET: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// The id of tsidp's key: a number above 2^53, as most of them are.
pub(super) const KID: u64 = 17_293_822_569_102_704_641;

/// A tailnet, and on it the server with the applications of tsidp.
pub(super) async fn provider() -> (Edge, Daemon) {
    let edge = Edge::with_authority();
    write_tsidp_files(&edge);
    let daemon = start(&edge, &[]).await;
    (edge, daemon)
}

/// Somebody's device, and the connection of the browser on it.
pub(super) async fn browser_of(edge: &Edge, name: &str) -> (Arc<EmbeddedNode>, Connection) {
    let node = Arc::new(users_node(&edge.devnet, edge.folder(), name).await);
    let browser = https(edge, &node).await;
    (node, browser)
}

/// The server, which takes over what tsidp has left, and these flags.
pub(super) async fn start(edge: &Edge, more: &[&str]) -> Daemon {
    let daemon = start_unready(edge, more).await;
    daemon.ready();
    daemon
}

/// The same where the store is away.
pub(super) async fn start_unready(edge: &Edge, more: &[&str]) -> Daemon {
    let flags = [
        "--components",
        "oidc,metrics",
        "--oidc-listen",
        "tailnet+tls://:443,funnel://:443",
        "--oidc-take-over",
        "tsidp",
    ];
    let mut daemon = edge.start_with(&[&flags, more].concat()).await;
    daemon.logs("certificate of the node's name in use").await;
    daemon
}

/// An application of tsidp, as its file has it, and tsidp's key.
pub(super) fn write_tsidp_files(edge: &Edge) {
    let dir = edge.folder().join("tsidp");
    fs::create_dir(&dir).unwrap();
    let client = json!({
        "client_id": ID, "client_secret": SECRET, "client_name": "Wiki",
        "redirect_uris": [APP], "created_at": "0001-01-01T00:00:00Z", "redirect_uri": "",
    });
    let file = json!({ ID: client }).to_string();
    fs::write(dir.join("oidc-funnel-clients.json"), file).unwrap();
    fs::write(dir.join("oidc-key.json"), key_file()).unwrap();
}

/// tsidp's file of its key.
fn key_file() -> String {
    let pair = KeyPair::generate(KeySize::Rsa2048).unwrap();
    let key = rsa::PrivateKey::from_pkcs8_der(pair.as_der().unwrap().as_ref()).unwrap();
    let text = STANDARD.encode(key.to_pkcs1_der().unwrap().as_bytes());
    let (dashes, label) = ("-----", "RSA PRIVATE KEY");
    let key = format!("{dashes}BEGIN {label}{dashes}\n{text}\n{dashes}END {label}{dashes}\n");
    json!({"kid": KID, "key": key}).to_string()
}

/// A form, as browsers and applications post it.
pub(super) fn posted(path: &str, pairs: &[(&str, &str)]) -> Request<Full<Bytes>> {
    let mut form = url::form_urlencoded::Serializer::new(String::new());
    form.extend_pairs(pairs);
    let (mut parts, _) = request("POST", path).into_parts();
    let kind = "application/x-www-form-urlencoded".parse().unwrap();
    parts.headers.insert(header::CONTENT_TYPE, kind);
    Request::from_parts(parts, Full::from(form.finish()))
}

/// What an application sends a browser to, as a path of the provider.
pub(super) fn path_of(address: &str) -> &str {
    address
        .strip_prefix(ISSUER)
        .unwrap_or_else(|| panic!("{address}"))
}
